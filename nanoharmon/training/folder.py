"""Pictures and texts of your own, as a source of training data: what imports.py has decoded before, and nothing else.

The first view is the picture padded to a square: it is what the model learns to understand. The others are fixed square
crops, which it learns to generate; the official data code crops at random each time, but here latents are encoded once.
A square picture has one view for both. The VAE trains on all views. What is held out, what is left out, and the room
that views take: docs/DATA.md.

Simplified: all of it must fit on the disk, and the texts in memory: a list, not a database.
"""
import json

import numpy as np
from PIL import Image

from ..tokenizer import DESCRIBE, GENERATE, GENERATE_ANYTHING


class FolderData:
    """What imports.py has written into `folder`, item by item; what the methods are for: batches.py."""
    learn_all = True                         # of a text: without its picture no question has an answer, so it is a
                                             # lesson in language

    def __init__(self, folder, name):
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.name, self.cache_name, self.rows, self.content = name, folder.name, about["rows"], about["pixels"]
        self.classes = max(about["classes"].values(), default=-1) + 1
        side = self.side = about["made_of"]["size"]
        self.pixels = (np.memmap(folder / "pixels.u8", np.uint8, "r").reshape(-1, side, side, 3) if self.rows
                       else np.zeros((0, side, side, 3), np.uint8))                # an empty file cannot be mapped
        self.latents = {}
        with open(folder / "items.jsonl", encoding="utf-8") as f:
            items = [json.loads(line) for line in f]
        self.held = [item for item in items if item["held"]]
        self.items = [item for item in items if not item["held"]]
        self.leave_out(lambda turns: True)

    def leave_out(self, fits):
        usable = [item for item in self.items if (turns := turns_of(item)) and fits(turns[:2])]
        self.with_picture = [item for item in self.items if item["views"]]
        self.with_caption = [item for item in usable if item["caption"] and item["views"]]
        self.with_turns = usable
        return sum(bool(turns_of(item)) for item in self.items) - len(usable)

    def has(self, kind):
        return bool({"pictures": self.with_picture, "captions": self.with_caption, "texts": self.with_turns}[kind])

    def corpus(self):
        """Texts to train the tokenizer on."""
        for item in self.items:
            yield from (text for role, words in turns_of(item) for text in (role + "\n", words))
            if item["caption"]:
                yield from (GENERATE.format(item["caption"]), GENERATE_ANYTHING)

    def pictures(self, rows, size):
        if size == self.side:
            return self.pixels[rows]
        return np.stack([np.asarray(Image.fromarray(self.pixels[row]).resize((size, size), Image.Resampling.BICUBIC))
                         for row in rows])

    def picture(self, rng, size):
        item = rng.choice(self.with_picture)
        return self.pictures([item["row"] + rng.randrange(item["views"])], size)[0]

    def text(self, rng):
        item = rng.choice(self.with_turns)
        if item["caption"] and rng.random() < 0.5:
            return [("user", GENERATE.format(item["caption"]))]
        return turns_of(item)

    def class_item(self, rng):
        item = rng.choice(self.with_picture)
        return crop(item, rng), item["class"]

    def generation_item(self, rng, pairs=0.0, needs_prompt=True):
        """pairs: of the shapes world only."""
        item = rng.choice(self.with_caption if needs_prompt and self.with_caption else self.with_picture)
        return crop(item, rng), item

    def prompt(self, item, rng):
        return item["caption"]

    def understanding_item(self, rng, texts=0.0):
        """texts: of the shapes world only."""
        item = rng.choice(self.with_turns)
        return item["row"], item

    def conversation(self, item, rng):
        return turns_of(item)


def turns_of(item):
    """The turns about an item; a caption answers the request to describe the picture."""
    return item["turns"] or ([("user", DESCRIBE), ("assistant", item["caption"])] if item["caption"] else [])


def crop(item, rng):
    """The row of one of an item's crops; a picture that is square needs none."""
    return item["row"] + (1 + rng.randrange(item["views"] - 1) if item["views"] > 1 else 0)
