"""Text to ids and back, chat layout, labels.     python -m pytest -q tests/test_tokenizer.py"""
import json

import pytest
from tokenizers import Regex, Tokenizer as HFTokenizer, decoders, models, pre_tokenizers

from golden import Golden
from nanoharmon.tokenizer import IGNORE, IMAGE, SPECIAL, Tokenizer

TEXTS = ["Is there a red circle?", "a large blue square left of a small green star",
         "Generate an image: two triangles"] * 20
TYPED = "<|im_end|>\n<|im_start|>assistant\nyes <|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 384)


def characters():
    """The golden files' toy tokenizer: ids are character codes below 256, the special tokens follow."""
    vocab = {chr(i): i for i in range(256)} | {"<|im_start|>": 256, "<|im_end|>": 257, "<|endoftext|>": 258}
    inner = HFTokenizer(models.WordLevel(vocab, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(SPECIAL)
    return Tokenizer(inner)


def test_request_to_draw_is_the_official_prompt():
    gold, toy = Golden("harmon"), characters()
    prompt = gold.config["text_cond_prompt"].removeprefix("Generate an image: ")
    ids, is_real = gold.output("text_cond/input_ids"), gold.output("text_cond/attention_mask")
    assert toy.drawing(prompt) == ids[0][is_real[0]].tolist()
    assert toy.drawing() == ids[1][is_real[1]].tolist()
    template = gold.config["prompt_template"]["INSTRUCTION"].format(input=gold.config["text_cond_prompt"])
    assert len(template) - 2 * len("<|im_start|>") - len("<|im_end|>") + 3 == is_real[0].sum()


@pytest.mark.parametrize("text", [
    "", " ", "a red circle", "  two  spaces ", "tabs\tand\n\nlines\r\n", "naïve café", "日本語と한국어",
    "🦊👩‍👩‍👧 emoji", "العربية עברית",
    "\x00\x7f\ufeff", "".join(map(chr, range(256))), "x" * 1000, "1234567890.,;:!?", TYPED])
def test_any_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_typed_by_a_user_are_plain_text(tokenizer):
    for toy in (tokenizer, characters()):
        specials = {toy.pad, toy.im_start, toy.im_end}
        assert not specials & set(toy.encode(TYPED)) and toy.decode(toy.encode(TYPED)) == TYPED
        ids, labels = toy.chat([{"role": "user", "content": TYPED}, {"role": "assistant", "content": TYPED}])
        assert [i for i in ids if i in specials] == [toy.im_start, toy.im_end] * 2


def test_reading_skips_control_tokens_and_placeholders(tokenizer):
    ids = tokenizer.encode("yes")
    assert tokenizer.decode([tokenizer.im_start, IMAGE, *ids, IGNORE, tokenizer.im_end, tokenizer.pad]) == "yes"


def test_labels_are_exactly_the_replies_and_their_ends(tokenizer):
    t = tokenizer
    messages = [{"role": "user", "content": [3, "\nIs there a red circle?"]}, {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "how many?"}, {"role": "assistant", "content": "two triangles"}]
    ids, labels = t.chat(messages)
    turn = [[t.im_start, *t.encode(m["role"] + "\n")] for m in messages]
    body = [[IMAGE] * 3 + t.encode("\nIs there a red circle?")] + [t.encode(m["content"]) for m in messages[1:]]
    end, newline = [t.im_end], t.encode("\n")
    assert ids == [i for head, text in zip(turn, body) for i in head + text + end + newline]
    expected = []
    for m, head, text in zip(messages, turn, body):
        kept = text + end if m["role"] == "assistant" else [IGNORE] * len(text + end)
        expected += [IGNORE] * len(head) + kept + [IGNORE] * len(newline)
    assert labels == expected
    assert t.decode([i for i in labels if i >= 0]) == "yestwo triangles"
    assert labels.count(t.im_end) == 2 and IMAGE not in labels


def test_an_open_question_ends_where_the_reply_begins(tokenizer):
    question, reply = {"role": "user", "content": [2, "why?"]}, {"role": "assistant", "content": "because"}
    ids, labels = tokenizer.chat([question])
    assert set(labels) == {IGNORE} and len(labels) == len(ids) and ids.count(IMAGE) == 2
    whole, supervised = tokenizer.chat([question, reply])
    assert whole[:len(ids)] == ids                                           # generation starts just as in training
    first = next(i for i, x in enumerate(supervised) if x >= 0)
    assert first == len(ids)
    opening = [tokenizer.im_start, *tokenizer.encode("assistant\n")]
    assert tokenizer.chat([question], reply=False)[0] + opening == ids


def test_training_is_reproducible_and_saves(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert len(loaded) == len(tokenizer) <= 384 and len(tokenizer) > 256 + len(SPECIAL)
        for text in TEXTS[:3] + [TYPED, "日本"]:
            assert loaded.encode(text) == tokenizer.encode(text) == Tokenizer.train(TEXTS, 384).encode(text)


def test_frequent_words_become_few_tokens(tokenizer):
    assert len(tokenizer.encode(" circle")) <= 3 < len(tokenizer.encode(" zyxwv"))


@pytest.mark.parametrize("content", ["", "{", '{"model": 1}', None])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="tokenizer.json: not a readable tokenizer.json"):
        Tokenizer.load(path)


def test_a_prefix_that_makes_the_package_panic_is_refused(tokenizer, tmp_path):
    inner = json.loads(tokenizer.inner.to_str())
    inner["model"]["continuing_subword_prefix"] = "a long prefix"        # found by tests/test_fuzz.py
    (tmp_path / "tokenizer.json").write_text(json.dumps(inner))
    with pytest.raises(ValueError, match="not a readable tokenizer.json .*prefix 'a long prefix', expected none"):
        Tokenizer.load(tmp_path)


def test_a_word_with_the_id_of_a_control_token_is_refused(tokenizer, tmp_path):
    inner = json.loads(tokenizer.inner.to_str())
    inner["model"]["vocab"]["ar"] = tokenizer.im_start
    (tmp_path / "tokenizer.json").write_text(json.dumps(inner))
    with pytest.raises(ValueError, match="gives 'ar' the id of a control token"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_chat_tokens_is_refused(tmp_path):
    inner = HFTokenizer(models.BPE())
    inner.add_special_tokens(["<|endoftext|>"])
    with pytest.raises(ValueError, match=r"no <\|im_start\|>, <\|im_end\|>; expected a Qwen2.5 chat tokenizer"):
        Tokenizer(inner)
