"""Batches for every stage, from one source of data or a weighted mix of several.

    python -m nanoharmon.data DIR                        what is in a folder: counts, sizes, texts, all that is broken,
    python -m nanoharmon.data FILE.json --images DIR     and five pictures with their texts as data.png

Every batch is a pure function of (seed, stage, step, shard): nothing about the data needs saving, and a resumed run
sees exactly what the unbroken one would have seen. Scene i of the shapes world is likewise a function of (seed, i).
Scenes for evaluation come from other seeds (evaluate.py).

What a stage reads (README, stage table): `vae` pictures; `llm` texts only; `mar` pictures with a class; `1`, `2`, `3`
pictures with prompts to draw them, and pictures with a request to describe them or with questions.

A source, ShapesData here or FolderData (folder.py: your own pictures), gives single items; `row` is a place in its
array of latents, and `item` whatever the source needs to find the text that belongs to it:

    picture(rng, size)   class_picture(rng) -> row, class or None   text(rng) -> turns, whole
    to_draw(rng, pairs) -> row, item      prompt(item, rng) -> text
    to_read(rng, thoughts) -> row, item   conversation(item, rng) -> turns          row None: a text without a picture
"""
from pathlib import Path

import numpy as np
import torch

from ..pictures import to_pixels
from ..tokenizer import IGNORE, pad
from .folder import FolderData, folder_name
from ..world.source import ShapesData

class Batches:
    """Batches for one process. Each source's `latents` {size: array (N, S, C)} must be there after stage `vae`.

    weights: how often each source is picked; buffers: U; room: how many tokens the text of a conversation may have.
    """

    def __init__(self, sources, weights, tokenizer=None, buffers=0, room=10**9, device="cpu"):
        self.sources, self.tokenizer, self.buffers, self.room, self.device = sources, tokenizer, buffers, room, device
        self.left_out = {source.name: source.leave_out(self.fits) for source in sources} if tokenizer else {}
        self.first_class, n = {}, 0                                  # of each source: classes are numbered on and on
        for source in sources:
            self.first_class[source.name] = n
            n += source.classes
        self.weights = {kind: [weight * source.has(kind) for source, weight in zip(sources, weights)]
                        for kind in ("pictures", "captions", "texts")}
        if not any(self.weights["captions"]):                     # nothing but conversations: generated without a prompt
            self.weights["captions"] = self.weights["pictures"]

    def notes(self):
        """What the user should know about what is left out."""
        return [f"note: {name}: {n} texts are not used, they do not fit in the context beside a picture; a larger "
                f"--llm.max_position_embeddings makes room" for name, n in self.left_out.items() if n]

    def pick(self, rng, n, kind):
        """n sources by their weights, among those that have "pictures", "captions" or "texts"."""
        return self.sources * n if len(self.sources) == 1 else rng.choices(self.sources, self.weights[kind], k=n)

    def images(self, rng, n, size):
        """n pictures (n, 3, size, size) in [-1, 1]."""
        array = np.stack([source.picture(rng, size) for source in self.pick(rng, n, "pictures")])
        return to_pixels(torch.from_numpy(array)).to(self.device)

    def texts(self, rng, n):
        """n texts without pictures, for the LLM: ids, labels, is_real (n, L), label_index; as two halves."""
        rows = []
        for source in self.pick(rng, n, "texts"):
            turns, whole = source.text(rng)
            ids, labels = self.encode(turns)
            rows.append((ids, ids if whole else labels))
        for _, rows in halves(range(n), rows, key=lambda row: len(row[0])):
            yield self.supervised(rows)

    def class_pictures(self, rng, n, size):
        """Latents (n, S, C) and class labels (n,), -1 for pictures without a class."""
        picked, labels = [], []
        for source in self.pick(rng, n, "pictures"):
            row, label = source.class_picture(rng)
            picked.append((source, row, None))
            labels.append(-1 if label is None else self.first_class[source.name] + label)
        return self.tokens(picked, size), torch.tensor(labels, device=self.device)

    def generation(self, rng, n, size, caption_drop, pairs=0.0):
        """Latents (n, S, C) and the prompts they answer: ids, is_real (n, T), right-padded; as two halves."""
        picked = [(source, *source.to_draw(rng, pairs)) for source in self.pick(rng, n, "captions")]
        rows = [self.tokenizer.drawing(None if rng.random() < caption_drop else source.prompt(item, rng))
                for source, _, item in picked]
        for picked, rows in halves(picked, rows, key=len):
            yield self.tokens(picked, size), *pad(rows, self.tokenizer.pad, self.device)

    def understanding(self, rng, n, size, thoughts=0.0):
        """Latents (m, S, C) and conversations: ids, labels, is_real (n, L), label_index; as two halves. m <= n: a
        conversation without a picture has no latents."""
        picked = [(source, *source.to_read(rng, thoughts)) for source in self.pick(rng, n, "texts")]
        places = self.sources[0].latents[size].shape[1] + self.buffers
        rows = [self.encode(source.conversation(item, rng), 0 if row is None else places)
                for source, row, item in picked]
        for picked, rows in halves(picked, rows, key=lambda row: len(row[0])):
            yield self.tokens(picked, size), *self.supervised(rows)

    def tokens(self, picked, size):
        """The latents of [(source, row, ...), ...]; of nothing for row None."""
        shape = self.sources[0].latents[size].shape[1:]
        found = [source.latents[size][row] for source, row, _ in picked if row is not None]
        return torch.from_numpy(np.stack(found) if found else np.zeros((0, *shape))).float().to(self.device)

    def encode(self, turns, places=0):
        """Ids and labels of a conversation, a picture of so many places in front. Only the assistant's words are
        supervised. What does not fit in the context is left out: later questions, each with its answer."""
        ids, labels = [], []
        for i in range(0, len(turns), 2):
            pair = [{"role": role, "content": text} for role, text in turns[i:i + 2]]
            if places and not i:
                pair[0]["content"] = [places, "\n" + pair[0]["content"]]
            more, marks = self.tokenizer.chat(pair)
            if i and len(ids) + len(more) > self.room + places:
                break
            ids, labels = ids + more, labels + marks
        return ids, labels

    def fits(self, turns):
        """Whether a question with its answer fits in the context beside a picture."""
        most = sum(len(text.encode()) + 32 for _, text in turns)     # no token is shorter than a byte
        return most <= self.room or len(self.encode(turns)[0]) <= self.room

    def supervised(self, rows):
        """(ids, labels) lists -> ids, labels, is_real (B, L), and the flat index of supervised positions."""
        ids, is_real = pad([r for r, _ in rows], self.tokenizer.pad, "cpu")
        labels = pad([r for _, r in rows], IGNORE, "cpu")[0]
        index = (labels[:, 1:].flatten() >= 0).nonzero().squeeze(1)       # on the host: a GPU would have to wait
        return tuple(x.to(self.device) for x in (ids, labels, is_real, index))


def halves(picked, rows, key):
    """The shorter and the longer half of a batch: padding to the longest text would waste half of the LLM's work."""
    order = sorted(range(len(rows)), key=lambda i: key(rows[i]))
    for part in (order[:len(order) // 2], order[len(order) // 2:]):
        if part:
            yield [picked[i] for i in part], [rows[i] for i in part]


# --- sources and their weights ----------------------------------------------------------------------------------------

def parse_mix(entries):
    """[(name, weight), ...] from ("shapes:1", "photos:3", "FILE.json"); without a number the weight is 1, and of a name
    that comes twice the last one counts."""
    found = {}
    for entry in filter(None, entries):
        name, _, weight = entry.rpartition(":")
        try:
            weight = float(weight) if name else 1.0
        except ValueError:                               # a name with a colon
            name, weight = "", 1.0
        if not 0 < weight < float("inf"):
            raise ValueError(f"{entry!r}: the weight is {weight:g}, expected a number above 0; change --mix")
        found[(name or entry).rstrip("/") or "/"] = weight
    return list(found.items())


def check_mix(config):
    """Raises ValueError, with the flag to change, for a DataConfig that names no source or pictures of none."""
    if not (names := [name for name, _ in parse_mix(config.mix)]):
        raise ValueError("--mix names no source, expected some; pass --mix shapes:1,DIR:3")
    if config.images and not any(name.lower().endswith(".json") for name in names):
        raise ValueError(f"--images {config.images} is for the pictures of a LLaVA file, got none; pass "
                         f"--llava FILE.json besides, or drop --images")


def open_sources(config, cache):
    """The sources of a DataConfig; those of files as stages.prepare has put them into the cache."""
    return [ShapesData(config) if name == "shapes" else FolderData(Path(cache) / folder_name(name))
            for name, _ in parse_mix(config.mix)]


def make_batches(config, sources, tokenizer, device):
    """The batches of a Config."""
    S = max(config.stages[name].size // config.model.vae.stride for name in "123") ** 2
    buffers = config.model.mar.buffer_size
    return Batches(sources, [weight for _, weight in parse_mix(config.data.mix)], tokenizer, buffers,
                   config.model.llm.max_position_embeddings - S - buffers, device)
