r"""Text to token ids: a thin layer over the `tokenizers` package, with the layout of Qwen2.5's chat template.

A conversation is a list of {"role": "system" | "user" | "assistant", "content": ...}; content is a string, or a list of
strings and integers, an integer n standing for a picture of n placeholders. In ids:

    <|im_start|>user\n [n x IMAGE] \n is it red? <|im_end|>\n <|im_start|>assistant\n yes <|im_end|>\n

Only what the assistant says, and the <|im_end|> after it, is supervised. A LOOK ("look:") at its beginning is not: the
program writes it, so that the model says what it sees before it answers. As in Harmon, no system message is added
(Qwen's own template would); the \n after a picture is part of the content. The special tokens are put in by id: the
same characters typed by a user are encoded as plain text, never as control tokens.

`train` makes a small byte-level BPE (GPT-2 style: any language, no unknown tokens) when no LLM is given.
"""
import json
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from tokenizers import Regex, Tokenizer as HFTokenizer, decoders, models, normalizers, pre_tokenizers, trainers

GENERATE = "Generate an image: {}"          # prompt strings of the official scripts
GENERATE_PART = "Generate this part of the image: {}"        # ours: of a picture whose other parts stay
GENERATE_ANYTHING = "Generate an image."    # the unconditional ones, for classifier-free guidance
GENERATE_ANY_PART = "Generate this part of the image."
DESCRIBE = "describe the image."            # what the captions of training answer
LOCATE = "say what is where."               # ours: what the fullest description answers
LOOK = "look:"                              # ours: a reply that begins so says first what it sees (replies.py)
REFUSAL = "sorry, "                         # ours: a reply that begins so refuses to draw
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
IMAGE = -200                                # stands in the ids for one image token or buffer (the official number)
IGNORE = -100                               # label of a token that is not supervised
MAX_BYTES = 10**8                           # of a tokenizer.json; Qwen2.5's has 7 million


class Tokenizer:
    """Encode, decode, and lay out conversations. `tokenizers.Tokenizer` inside; `plain` is the same for typed text."""

    def __init__(self, tokenizer):
        self.inner = tokenizer
        missing = [s for s in SPECIAL if tokenizer.token_to_id(s) is None]
        if missing:
            raise ValueError(f"tokenizer.json: no {', '.join(missing)}; expected a Qwen2.5 chat tokenizer")
        tokenizer.add_special_tokens(SPECIAL)        # so that `decode` skips them; a file may call them ordinary
        self.plain = HFTokenizer(tokenizer.model)    # knows no added token: "<|im_end|>" in a user's text is text
        self.plain.normalizer, self.plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        self.pad, self.im_start, self.im_end = (tokenizer.token_to_id(s) for s in SPECIAL)
        self.newline = self.encode("\n")
        control = {self.pad, self.im_start, self.im_end}
        if shared := [word for word, i in tokenizer.get_vocab().items() if i in control and word not in SPECIAL]:
            raise ValueError(f"tokenizer.json: gives {shared[0][:40]!r} the id of a control token; expected a Qwen2.5 "
                             f"chat tokenizer")
        if control & set(self.encode("".join(SPECIAL))):
            raise ValueError(f"tokenizer.json: takes typed {' '.join(SPECIAL)} for control tokens; expected a Qwen2.5 "
                             f"chat tokenizer")

    @classmethod
    def load(cls, path):
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"{path}: no such file, expected the tokenizer.json that is published beside the weights")
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"larger than {MAX_BYTES // 10**6} MB")
            raw = path.read_bytes()
            if prefix := json.loads(raw)["model"].get("continuing_subword_prefix"):
                raise ValueError(f"continuing_subword_prefix {prefix!r:.40}, expected none")     # the package panics
            inner = HFTokenizer.from_buffer(raw)
        except Exception as e:                       # the package raises plain Exception for every kind of damage
            raise ValueError(f"{path}: not a readable tokenizer.json ({e})") from None
        return cls(inner)

    @classmethod
    def train(cls, texts, vocab_size):
        """A byte-level BPE from an iterable of texts."""
        tokenizer = HFTokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Lowercase()               # a small model has better things to learn
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]+|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        return cls(tokenizer)

    def to_bytes(self):                                  # the content of a tokenizer.json
        return self.inner.to_str(pretty=True).encode()

    def __len__(self):
        """One more than the largest id: the rows that an embedding needs."""
        return 1 + max(self.inner.get_vocab().values())

    def encode(self, text):
        try:
            return self.plain.encode(text, add_special_tokens=False).ids
        except Exception as e:                       # half a character (a lone surrogate), or a vocabulary with holes
            raise ValueError(f"the tokenizer cannot read {text[:40]!r} ({e}); change the text, or the tokenizer.json "
                             f"of the checkpoint") from None

    def decode(self, ids):
        return self.inner.decode([i for i in ids if i >= 0], skip_special_tokens=True)

    def chat(self, messages):
        """Ids and labels of a conversation (lists of the same length). Where the last message is the user's, they end
        with an open turn of the assistant, ready for the reply."""
        ids, labels = [], []

        def add(new, supervised=False):
            ids.extend(new)
            labels.extend(new if supervised else [IGNORE] * len(new))

        for message in messages:
            role, content = message["role"], message["content"]
            supervised = role == "assistant"
            if not supervised and isinstance(content, str):
                add([self.im_start] + self.encode(role + "\n" + content))        # in one piece, as official
            else:
                add([self.im_start] + self.encode(role + "\n"))
                if supervised and isinstance(content, str) and content.startswith(LOOK):
                    add(self.encode(LOOK))
                    content = content.removeprefix(LOOK)
                for part in [content] if isinstance(content, str) else content:
                    add([IMAGE] * part if isinstance(part, int) else self.encode(part), supervised)
            add([self.im_end], supervised)
            add(self.newline)
        if messages[-1]["role"] == "user":
            add([self.im_start] + self.encode("assistant\n"))
        return ids, labels

    def drawing_request(self, prompt=None, part=False):
        """Ids of the request to draw `prompt`; None = the unconditional request. part: it is about a part only."""
        request, anything = (GENERATE_PART, GENERATE_ANY_PART) if part else (GENERATE, GENERATE_ANYTHING)
        text = anything if prompt is None else request.format(prompt)
        return self.chat([{"role": "user", "content": text}])[0]


def pad(rows, value, device, left=False):
    """Lists of ids -> ids (B, L) and is_real (B, L), padded on the right, or on the left for text to be continued."""
    side, rows = "left" if left else "right", list(map(torch.tensor, rows))
    ids = pad_sequence(rows, True, value, side)
    is_real = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], True, False, side)
    return ids.to(device), is_real.to(device)
