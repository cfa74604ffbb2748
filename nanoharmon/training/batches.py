"""Batches for every stage, from one source of data or a weighted mix of several.

Every batch is a pure function of (seed, stage, step, shard): nothing about the data needs saving, and a resumed run
sees exactly what the unbroken one would have seen. Scene i of the shapes world is likewise a function of (seed, i).

A source is ShapesData (world/source.py) or FolderData (folder.py: pictures of one's own). It gives one thing at a time:

    picture   uint8 (size, size, 3)
    row       a place in its latents (rows, S, C), which are encoded once, after stage vae (latents.py)
    item      whatever the source needs to find the texts of a row: a scene's number, or a line of items.jsonl
    turns     [("user", text), ("assistant", text), ...]

    stage     it reads                               methods of the source                 what they return
    vae       pictures                               picture(rng, size)                    picture
    llm       texts only                             text(rng)                             turns
    mar       pictures and their classes             class_item(rng)                       row, class (or None)
    1, 2, 3   pictures and prompts that draw them    generation_item(rng, pairs)           row, item
                                                     prompt(item, rng)                     text
              conversations, about pictures or none  understanding_item(rng, texts)        row (None: no picture), item
                                                     conversation(item, rng)               turns
    reca      pictures, shown in the prompts         generation_item(rng, pairs,           row, item
                                                     needs_prompt=False)
              conversations, as above

    any       pictures(rows, size) -> uint8 (n, size, size, 3)
              has(kind) -> whether there are usable "pictures", "captions" or "texts"
              learn_all: of a text, whether all words are learned, or only the assistant's
              corpus() -> texts for the tokenizer (folders; of the shapes world: training_texts)
              leave_out(fits) -> from now on, use no text whose first two turns do not fit; how many these are
              name (in --mix), cache_name (in OUT/cache), rows, classes (how many there are), latents {size: array},
              content (a text that differs when the pictures do); of folders also held and with_picture, for watch.py
"""
import math

import numpy as np
import torch

from ..pictures import split_region, to_pixels
from ..tokenizer import DESCRIBE, GENERATE_ANYTHING, IGNORE, pad
from ..world.shapes import render
from ..world.source import ShapesData
from .folder import FolderData
from .formats import TALKS
from .recipe import JOINT_STAGES, parse_mix


class Batches:
    """Batches for one process. Each source's `latents` must be there after stage `vae`.

    weights: how often each source is picked; buffers: U; room: how many tokens the text of a conversation may have.
    Shapes: n texts, L tokens in the longest of them (T: of prompts); S, C and U as in harmon.py. Copies to a GPU are
    plain ones, which wait for it: they are small, and the batch was made while the GPU computed the one before.
    """

    def __init__(self, sources, weights, tokenizer, buffers=0, room=10**9, device="cpu"):
        self.sources, self.tokenizer, self.buffers, self.room, self.device = sources, tokenizer, buffers, room, device
        self.shapes = next((source for source in sources if source.name == "shapes"), None)
        self.left_out = {source.name: source.leave_out(self.fits) for source in sources}
        self.first_class, n = {}, 0                                  # of each source: classes are numbered on and on
        for source in sources:
            self.first_class[source.name] = n
            n += source.classes
        self.weights = {kind: [weight * source.has(kind) for source, weight in zip(sources, weights)]
                        for kind in ("pictures", "captions", "texts")}
        if not any(self.weights["captions"]):                     # nothing but conversations: drawn without a prompt
            self.weights["captions"] = self.weights["pictures"]
        if any(self.left_out.values()) and not any(self.weights["texts"]):
            raise ValueError("no text fits in the context beside a picture, expected some that do; pass a larger "
                             "--llm.max_position_embeddings")

    def notes(self):
        """What the user should know about what is left out."""
        return [f"note: {name}: {n} texts are not used, they do not fit in the context beside a picture; a larger "
                f"--llm.max_position_embeddings makes room" for name, n in self.left_out.items() if n]

    def world(self):
        """What a checkpoint says of the shapes world that it learned from."""
        return {name: getattr(self.shapes.config, name) for name in ("layout", "board", "max_objects")
                } if self.shapes else {}

    # --- one per stage ----------------------------------------------------------------------------------------------

    def images(self, rng, n, size):
        """Stage vae: pictures (n, 3, size, size) in [-1, 1]."""
        pictures = np.stack([source.picture(rng, size) for source in self.pick(rng, n, "pictures")])
        return to_pixels(torch.from_numpy(pictures)).to(self.device)

    def texts(self, rng, n):
        """Stage llm: texts without pictures. Yields for each half ids, labels (n/2, L) and label_index."""
        sequences = []
        for source in self.pick(rng, n, "texts"):
            ids, labels = self.encode(source.text(rng))
            sequences.append((ids, ids if source.learn_all else labels))
        for half in halves(sequences, key=lambda sequence: len(sequence[0])):
            yield self.supervised(half)

    def class_pictures(self, rng, n, size):
        """Stage mar: latents (n, S, C) and class labels (n,), -1 for pictures without a class."""
        picked, labels = [], []
        for source in self.pick(rng, n, "pictures"):
            row, label = source.class_item(rng)
            picked.append((source, row))
            labels.append(-1 if label is None else self.first_class[source.name] + label)
        return self.latents_of(picked, size), torch.tensor(labels, device=self.device)

    def generation(self, rng, n, size, caption_drop, pairs=0.0):
        """Stages 1 to 3: pictures and prompts that draw them. Yields for each half (see `halves`) latents (n/2, S, C)
        and the prompts, ids and is_real (n/2, T), right-padded.

        caption_drop: share of unconditional prompts, for guidance; pairs: see ShapesData.generation_item.
        """
        items = [(source, *source.generation_item(rng, pairs)) for source in self.pick(rng, n, "captions")]
        prompts = [self.tokenizer.drawing_request(None if rng.random() < caption_drop else source.prompt(item, rng))
                   for source, _, item in items]
        yield from self.requests(items, prompts, size)

    def reconstruction(self, rng, n, size, caption_drop, pairs=0.0):
        """Stage reca: as `generation`, but a prompt shows its picture, and says nothing about it: in ids, IMAGE is at
        the S+U places of the picture, also where the rest is the unconditional prompt (as in RecA's released code)."""
        rows = [(source, source.generation_item(rng, pairs, needs_prompt=False)[0])
                for source in self.pick(rng, n, "pictures")]
        placeholders = self.sources[0].latents[size].shape[1] + self.buffers                                 # S + U
        texts = [GENERATE_ANYTHING if rng.random() < caption_drop else DESCRIBE for _ in rows]
        prompts = [self.encode([("user", text)], placeholders)[0] for text in texts]
        yield from self.requests(rows, prompts, size)

    def parts(self, rng, n, size, caption_drop):
        """Where a stage has parts, shapes world: pictures of which one part is to be drawn anew, and prompts for it, a
        share caption_drop of them unconditional. Latents before (n, S, C), pictures after (n, 3, size, size), ids and
        is_real (n, T), and the split: visible (n, K) and hidden (n, S-K) indices."""
        board, side = self.shapes.config.board, math.isqrt(self.shapes.latents[size].shape[1])
        cells, found = rng.choice(((1, 1), (1, 1), (2, 1), (1, 2))), []
        for _ in range(n):
            i, box, scene, prompt = self.shapes.part(rng, *cells)
            prompt = None if rng.random() < caption_drop else prompt
            found.append((i, render(scene, size), prompt, *split_region(box, (board, board), (side, side))))
        rows, after, prompts, hidden, visible = zip(*found)
        rows_of_ids = [self.tokenizer.drawing_request(p, part=True) for p in prompts]
        ids, is_real = pad(rows_of_ids, self.tokenizer.pad, self.device)
        split = tuple(torch.from_numpy(np.stack(index)).to(self.device) for index in (visible, hidden))
        return (self.latents_of([(self.shapes, row) for row in rows], size),
                to_pixels(torch.from_numpy(np.stack(after))).to(self.device), ids, is_real, split)

    def understanding(self, rng, n, size, texts=0.0):
        """Stages 1 to 3: conversations about pictures, and texts without. Yields for each half latents (N, S, C), then
        ids, labels (n/2, L), and label_index. N <= n/2: a text has no latents (in nano's stage 2, N is 0).

        texts: see ShapesData.understanding_item.
        """
        items = [(source, *source.understanding_item(rng, texts)) for source in self.pick(rng, n, "texts")]
        placeholders = self.sources[0].latents[size].shape[1] + self.buffers                                 # S + U
        sequences = [self.encode(source.conversation(item, rng), 0 if row is None else placeholders)
                     for source, row, item in items]
        for half in halves(zip(items, sequences), key=lambda pair: len(pair[1][0])):
            picked, texts = zip(*half)
            yield self.latents_of(picked, size), *self.supervised(texts)

    # --- what they are made of --------------------------------------------------------------------------------------

    def pick(self, rng, n, kind):
        """n sources by their weights, among those that have "pictures", "captions" or "texts"."""
        return self.sources * n if len(self.sources) == 1 else rng.choices(self.sources, self.weights[kind], k=n)

    def requests(self, picked, prompts, size):
        """For each half of a batch: the latents of what is picked, and its prompts, ids and is_real, right-padded."""
        for half in halves(zip(picked, prompts), key=lambda pair: len(pair[1])):
            rows, texts = zip(*half)
            yield self.latents_of(rows, size), *pad(texts, self.tokenizer.pad, self.device)

    def latents_of(self, picked, size):
        """Latents (N, S, C) of [(source, row), ...], or (source, row, item); row None has none."""
        shape = self.sources[0].latents[size].shape[1:]
        found = [source.latents[size][row] for source, row, *_ in picked if row is not None]
        return torch.from_numpy(np.stack(found) if found else np.zeros((0, *shape))).float().to(self.device)

    def encode(self, turns, placeholders=0):
        """Ids and labels of a conversation, with so many placeholders of a picture in front. Only the assistant's words
        are supervised. What does not fit in the context is left out: later questions, each with its answer."""
        ids, labels = [], []
        for i in range(0, len(turns), 2):
            pair = [{"role": role, "content": text} for role, text in turns[i:i + 2]]
            if placeholders and not i:
                pair[0]["content"] = [placeholders, "\n" + pair[0]["content"]]
            more_ids, more_labels = self.tokenizer.chat(pair)
            if i and len(ids) + len(more_ids) > self.room + placeholders:    # the first pair fits: see leave_out
                break
            ids, labels = ids + more_ids, labels + more_labels
        return ids, labels

    def fits(self, turns):
        """Whether a question with its answer fits in the context beside a picture."""
        most = sum(len(text.encode()) + 32 for _, text in turns)     # tokens <= bytes: mostly settles it
        return most <= self.room or len(self.encode(turns)[0]) <= self.room

    def supervised(self, sequences):
        """[(ids, labels), ...] as lists -> ids, labels (B, L), and label_index: the places in the flattened
        labels[:, 1:] that are supervised, so that the loss computes the logits of these only (Qwen.loss)."""
        ids = pad([ids for ids, _ in sequences], self.tokenizer.pad, "cpu")[0]
        labels = pad([labels for _, labels in sequences], IGNORE, "cpu")[0]
        label_index = (labels[:, 1:].flatten() >= 0).nonzero().squeeze(1)    # on the host: a GPU would have to wait
        return tuple(x.to(self.device) for x in (ids, labels, label_index))


def halves(items, key):
    """A batch as two: yields a list of its items that are shorter, by `key`, and one of those that are longer.

    As one batch, padding to the longest text would waste half of the LLM's work.
    """
    items = sorted(items, key=key)                                   # of the same length: in their order
    for half in (items[:len(items) // 2], items[len(items) // 2:]):
        if half:
            yield half


# --- sources and their weights ----------------------------------------------------------------------------------------

def check_mix(config):
    """Raises ValueError, with the flag to change, for a DataConfig that names no source or pictures of none."""
    if not (names := [name for name, _ in parse_mix(config.mix)]):
        raise ValueError("--mix names no source, expected some; pass --mix shapes:1,DIR:3")
    if config.images and not any(name.lower().endswith(TALKS) for name in names):
        raise ValueError(f"--images {config.images} is for the pictures of a LLaVA file, got none; pass "
                         f"--llava FILE.json besides, or drop --images")


def open_sources(config, cache, folders):
    """The sources of a DataConfig; those of files from the cache. folders: {name: folder there} (imports.py)."""
    return [ShapesData(config) if name == "shapes" else FolderData(cache / folders[name], name)
            for name, _ in parse_mix(config.mix)]


def make_batches(config, sources, tokenizer, device):
    """The batches of a Config."""
    sizes = [stage.size for name, stage in config.stages.items() if name in JOINT_STAGES]
    S = (max(sizes) // config.model.vae.stride) ** 2
    buffers = config.model.mar.buffer_size
    return Batches(sources, [weight for _, weight in parse_mix(config.data.mix)], tokenizer, buffers,
                   config.model.llm.max_position_embeddings - S - buffers, device)
