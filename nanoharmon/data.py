"""Batches of the shapes world for every stage, and the cache of VAE latents.

Every batch is a pure function of (seed, stage, step, process): nothing about the data needs saving, and a resumed run
sees exactly what the unbroken one would have seen. Scene i is likewise a function of (seed, i). Scenes for
evaluation come from other seeds (evaluate.py).

What a stage reads (README, stage table): `vae` pictures; `llm` texts only; `mar` pictures with a class; `1`, `2`, `3`
pictures with prompts to draw them, and pictures with a request to describe them or with up to four questions.
"""
import random
import shutil
from pathlib import Path

import numpy as np
import torch

from . import shapes
from .pipeline import DESCRIBE, pad, to_pixels
from .tokenizer import GENERATE, GENERATE_ANYTHING, IGNORE


class ShapesData:
    """Batches for one process. `latents` {size: array (N, S, C)} must be there for the stages after `vae`."""

    def __init__(self, config, tokenizer=None, buffers=0, device="cpu"):
        self.config, self.tokenizer, self.buffers, self.device = config, tokenizer, buffers, device
        self.latents = {}
        self.uniform = None

    def scene(self, i):
        """The i-th training scene; without unseen pairs."""
        return shapes.random_scene(random.Random(f"{self.config.seed}/scene/{i}"), most=self.config.max_objects,
                                   layout=self.config.layout, board=self.config.board)

    def images(self, rng, n, size):
        """n pictures (n, 3, size, size) in [-1, 1]."""
        return self.render([self.scene(rng.randrange(10 ** 9)) for _ in range(n)], size)

    def render(self, scenes, size):
        """Pictures (n, 3, size, size) of the scenes, in [-1, 1]."""
        return to_pixels(torch.from_numpy(np.stack([shapes.render(s, size) for s in scenes]))).to(self.device)

    def texts(self, rng, n):
        """n texts without pictures, for the LLM's pretraining: ids, labels, is_real (n, L), label_index; as two halves."""
        rows = []
        for _ in range(n):
            scene = self.scene(rng.randrange(10 ** 9))
            kind = rng.random()
            if kind < 0.5:                           # a request to draw, answered by where things could be
                chat = [("user", GENERATE.format(shapes.draw_prompt(scene, rng))),
                        ("assistant", shapes.describe(scene))]
            elif kind < 0.9:                         # questions about a described scene
                chat = self.questions(scene, rng)
                chat[0] = ("user", shapes.describe(scene) + "\n" + chat[0][1])
            else:
                chat = [("user", shapes.describe(scene) + "\n" + DESCRIBE),
                        ("assistant", shapes.caption(scene, rng))]
            ids, labels = self.tokenizer.chat([{"role": r, "content": c} for r, c in chat])
            rows.append((ids, labels))
        for _, rows in halves(range(n), rows, key=lambda row: len(row[0])):
            yield self.supervised(rows)

    def class_pictures(self, rng, n, size):
        """Latents (n, S, C) of scenes with one kind of object, and their class labels (n,)."""
        if self.uniform is None:
            classes = [(i, scene) for i, scene in enumerate(map(self.scene, range(len(self.latents[size]))))
                       if len({o.pair for o in scene.objects}) == 1]
            self.uniform = [(i, shapes.scene_class(scene)) for i, scene in classes]
            if not classes:
                raise ValueError(f"none of the {len(self.latents[size])} training scenes has objects of one kind only, "
                                 f"which stage mar needs; pass a larger --data.scenes")
        index, labels = zip(*rng.choices(self.uniform, k=n))
        return self.tokens(index, size), torch.tensor(labels, device=self.device)

    def drawings(self, rng, n, size, caption_drop):
        """Latents (n, S, C) and the prompts they answer: ids, is_real (n, T), right-padded; as two halves."""
        index = [rng.randrange(len(self.latents[size])) for _ in range(n)]
        rows = [self.tokenizer.drawing(None if rng.random() < caption_drop
                                       else shapes.draw_prompt(self.scene(i), rng)) for i in index]
        for index, rows in halves(index, rows, key=len):
            yield self.tokens(index, size), *pad(rows, self.tokenizer.pad, self.device)

    def readings(self, rng, n, size):
        """Latents (n, S, C) and conversations about them: ids, labels, is_real (n, L), label_index; as two halves."""
        index = [rng.randrange(len(self.latents[size])) for _ in range(n)]
        places = self.latents[size].shape[1] + self.buffers
        rows = []
        for i in index:
            scene = self.scene(i)
            chat = [("user", DESCRIBE), ("assistant", shapes.caption(scene, rng))]
            if rng.random() < 0.6:
                chat = self.questions(scene, rng)
            messages = [{"role": r, "content": c} for r, c in chat]
            messages[0]["content"] = [places, "\n" + messages[0]["content"]]
            rows.append(self.tokenizer.chat(messages))
        for index, rows in halves(index, rows, key=lambda row: len(row[0])):
            yield self.tokens(index, size), *self.supervised(rows)

    def questions(self, scene, rng):
        """Up to four turns about a scene, as (role, text) pairs."""
        asked = shapes.questions(scene, rng)             # relations first, mostly: they are the hardest
        asked.sort(key=lambda qa: rng.random() * (2 if qa.kind == "relation" else 1), reverse=True)
        asked = asked[:4]
        return [turn for qa in asked for turn in (("user", qa.question), ("assistant", qa.answer))]

    def tokens(self, index, size):
        return torch.from_numpy(self.latents[size][list(index)]).float().to(self.device)

    def supervised(self, rows):
        """(ids, labels) lists -> ids, labels, is_real (B, L), and the flat index of supervised positions."""
        ids, is_real = pad([r for r, _ in rows], self.tokenizer.pad, "cpu")
        labels = pad([r for _, r in rows], IGNORE, "cpu")[0]
        index = (labels[:, 1:].flatten() >= 0).nonzero().squeeze(1)       # on the host: a GPU would have to wait
        return tuple(x.to(self.device) for x in (ids, labels, is_real, index))


def halves(index, rows, key):
    """The shorter and the longer half of a batch: padding to the longest text would waste half of the LLM's work."""
    order = sorted(range(len(rows)), key=lambda i: key(rows[i]))
    for part in (order[:len(order) // 2], order[len(order) // 2:]):
        if part:
            yield [index[i] for i in part], [rows[i] for i in part]


def encode_share(vae, data, size, path, rank, world, batch=64, progress=lambda x: x):
    """Encode this process's share of the training scenes into `path`, a float16 array (N, S, C) made by rank 0."""
    out = np.load(path, mmap_mode="r+")
    for start in progress(range(rank * batch, len(out), world * batch)):
        scenes = [data.scene(i) for i in range(start, min(start + batch, len(out)))]
        with torch.no_grad():
            out[start:start + len(scenes)] = vae.encode(data.render(scenes, size)).half().cpu().numpy()
    out.flush()


def new_cache(path, n, tokens, channels):
    """An empty file for `encode_share`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    need, free = n * tokens * channels * 2, shutil.disk_usage(Path(path).parent).free
    if need > free:                          # writing into a mapped file on a full disk would be a bus error
        raise ValueError(f"the latents of {n} pictures need {need / 1e6:.0f} MB, {Path(path).parent} has only "
                         f"{free / 1e6:.0f} MB; free space, or pass --out on another disk or a smaller --data.scenes")
    np.lib.format.open_memmap(path, "w+", np.float16, (n, tokens, channels)).flush()


def training_texts(config, n=4000):
    """Texts to train the tokenizer on."""
    rng = random.Random(f"{config.seed}/tokenizer")
    for _ in range(n):
        scene = shapes.random_scene(rng, layout=config.layout, board=config.board)
        yield from (GENERATE.format(shapes.draw_prompt(scene, rng)), shapes.caption(scene, rng),
                    shapes.describe(scene), "user\n", "assistant\n", GENERATE_ANYTHING, DESCRIBE)
        for qa in shapes.questions(scene, rng):
            yield from (qa.question, qa.answer)
