"""Checks of exercise 08, the chat template."""
import copy
import random

from nanoharmon.tokenizer import IGNORE, IMAGE, Tokenizer

POINTS = {"test_ids": 1, "test_labels": 1, "test_pictures": 1, "test_open_turn": 1}
WORDS = "is there a red circle left of the blue square ring cross two yes no what color it".split()


class Joining(Tokenizer):
    """As in Qwen2.5's, two line breaks are one token, here that of the byte \\v."""
    def encode(self, text):
        return super().encode(text.replace("\n\n", "\v"))


def make(seed):
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=5)) for _ in range(30)] + ["user\nassistant\nsystem\n"] * 5
    return rng, Joining.train(texts, 259 + rng.randrange(20, 60))


def sentence(rng):
    return " ".join(rng.choices(WORDS, k=rng.randrange(1, 6)))


def turns(rng, last):
    """A conversation of texts that ends with a message of `last`."""
    roles = ["system"] * rng.randrange(2) + ["user", "assistant"] * rng.randrange(1, 3)
    roles += ["user"] if last == "user" else []
    return [{"role": role, "content": sentence(rng)} for role in roles]


def laid_out(tokenizer, messages, **mistake):
    """[(id, label), ...] written down piece by piece; the names in `mistake` do one thing wrong."""
    rows = []

    def put(ids, supervised=False):
        rows.extend((i, i if supervised else IGNORE) for i in ids)
    for message in messages:
        role, content = message["role"], message["content"]
        mine = role == "assistant" or "all" in mistake
        put([tokenizer.im_start], "head" in mistake and mine)
        if role != "assistant" and isinstance(content, str) and not {"all", "pieces"} & set(mistake):
            put(tokenizer.encode(role + "\n" + content))
        else:
            put(tokenizer.encode(role + "\n"), "head" in mistake and mine)
            for part in [content] if isinstance(content, str) else content:
                if isinstance(part, int):
                    put([IMAGE] * (1 if "one" in mistake else part), "image" in mistake)
                else:
                    put(tokenizer.encode(part), mine)
        if "no_end" not in mistake:
            put([tokenizer.im_end], mine and "end_free" not in mistake)
        if "no_break" not in mistake:
            put(tokenizer.newline, mine and "break_learned" in mistake)
    if "always_open" in mistake or messages[-1]["role"] == "user" and "never_open" not in mistake:
        put([tokenizer.im_start])
        put(tokenizer.encode("assistant" + ("" if "short" in mistake else "\n")), "open_learned" in mistake)
    return [i for i, _ in rows], [label for _, label in rows]


MISTAKES = {
    "the line break after im_end is missing": "no_break", "im_end is missing": "no_end",
    "the assistant's im_end is not supervised: the model would never learn to stop": "end_free",
    "the line break after the assistant's im_end is supervised": "break_learned",
    "the assistant's im_start and role are supervised": "head",
    "role and content of a user are encoded apart": "pieces",
    "what users say is supervised, too": "all",
    "the turn of the assistant that is still to come is missing": "never_open",
    "a turn of the assistant is opened though it has just replied": "always_open",
    "the open turn has no line break after assistant": "short", "the open turn is supervised": "open_learned",
    "a picture has one placeholder instead of n": "one", "placeholders of pictures are supervised": "image"}


def compare(tokenizer, messages, which=(0, 1)):
    before = copy.deepcopy(messages)
    got = tokenizer.chat(messages)
    assert messages == before, "your code changes the messages in place; the caller still needs them"
    assert isinstance(got, tuple) and len(got) == 2, "chat returns two lists, ids and labels"
    right = laid_out(tokenizer, messages)
    assert len(got[0]) == len(got[1]) or 1 not in which, f"{len(got[0])} ids and {len(got[1])} labels, expected as many"
    for k in which:
        if list(got[k]) == right[k]:
            continue
        for words, name in MISTAKES.items():
            wrong = laid_out(tokenizer, messages, **{name: True})
            if list(got[k]) == wrong[k] != right[k]:
                raise AssertionError(f"your result is what one gets when {words}")
        if k == 0 and sorted(got[0]) == sorted(right[0]):
            raise AssertionError("the ids are the right ones, in another order")
        same = [a == b for a, b in zip(got[k], right[k])]
        at = same.index(False) if False in same else len(same)
        raise AssertionError(f"{('ids', 'labels')[k]} of {messages[:2]}: {len(got[k])} of them, expected "
                             f"{len(right[k])}; the first difference is at {at}: {list(got[k])[at:at + 3]}, expected "
                             f"{right[k][at:at + 3]} (im_start {tokenizer.im_start}, im_end {tokenizer.im_end}, line "
                             f"break {tokenizer.newline})")


def test_ids(seed):
    rng, tokenizer = make(seed)
    compare(tokenizer, turns(rng, "assistant"), which=(0,))
    compare(tokenizer, [{"role": "user", "content": "\n" + sentence(rng)}], which=(0,))     # "\n\n" is one token


def test_labels(seed):
    rng, tokenizer = make(seed)
    compare(tokenizer, turns(rng, "assistant"))


def test_pictures(seed):
    rng, tokenizer = make(seed)
    n, m = rng.sample(range(2, 9), 2)
    messages = [{"role": "user", "content": [n, "\n" + sentence(rng)]}, {"role": "assistant", "content": sentence(rng)},
                {"role": "user", "content": ["first " + sentence(rng), m, sentence(rng), n]},
                {"role": "assistant", "content": [sentence(rng), " " + sentence(rng)]}]
    compare(tokenizer, messages)


def test_open_turn(seed):
    rng, tokenizer = make(seed)
    compare(tokenizer, turns(rng, "user"))
    compare(tokenizer, [{"role": "user", "content": [3, "\n" + sentence(rng)]}])
