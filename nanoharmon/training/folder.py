"""Pictures and texts of your own, as a source of training data: imported into OUT/cache once, then read from there.

    python train.py --data DIR                        a folder, and nothing else (the formats: entries.py)
    python train.py --llava FILE.json --images DIR    LLaVA's conversations
    python train.py --mix shapes:1,DIR:3              a weighted mix, also of several folders

`import_source` decodes every picture before training. Training reads only what that has written, so what happens to
the folder later (a file cut short, moved or edited) cannot hurt a run, and a resumed run sees what it saw before:

    OUT/cache/NAME-HASH/pixels.u8      uint8 (rows, size, size, 3), of the largest size that any stage uses; each
                                       picture has one row or several, its *views*
    OUT/cache/NAME-HASH/items.jsonl    one *item* per entry: {"row": its first row, "views": how many, "caption",
                                       "turns", "class", "held": whether it is held out}; row null: no picture
    OUT/cache/NAME-HASH/about.json     what all this was made of, the names of the classes, and all that was broken

The first view is the picture padded to a square: it is what the model learns to understand. The others are square
crops, which it learns to generate; the official data code pads and crops likewise. That code crops at random each time.
Here latents are encoded once, so there are --data.crops fixed crops, whose places come from the picture's content. A
square picture has one view for both. The VAE trains on all views. A view takes 27 KB at 96 px, 790 KB at 512 px.

Every 50th picture (of fewer than 800: every 20th, at least 4, at most 16; of fewer than 8: none) is held out of
training, for the pictures and figures that tell how it goes. What is broken is counted and named, and left out; more
than 5 % of it stops the run.

Simplified: all of it must fit on the disk, and the texts in memory: a list, not a database.
"""
import hashlib
import json
import os
import re
import shutil
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import write_json
from ..pictures import MAX_BYTES, pad_square, read_image
from ..tokenizer import DESCRIBE, GENERATE, GENERATE_ANYTHING
from .entries import left_out, read_entries

MOST_BROKEN = 0.05
FEWEST = 8                                   # pictures of which some are held out
WORKERS = os.cpu_count() or 1                # threads: Pillow decodes and resizes without holding Python's lock


# --- from files to OUT/cache ------------------------------------------------------------------------------------------

def import_source(name, images, cache, size, crops, frozen=False, progress=lambda x, **_: x):
    """Put a source into `cache`, unless it is there. Returns a line that tells what was found, or "".

    frozen: a run has begun with what is there, so it goes on with it even if the files have changed since.
    """
    folder, (entries, problems) = Path(cache) / folder_name(name), read_source(name, images)
    total, paths = len(entries) + len(problems), list(dict.fromkeys(e.path for e in entries if e.path))
    with ThreadPoolExecutor(WORKERS) as pool:
        prints = dict(progress(zip(paths, pool.map(fingerprint, paths)), total=len(paths), desc=f"read {name}"))
    content = json.dumps([(prints.get(e.path), e.caption, e.label, e.turns) for e in entries]).encode()
    made_of = {"size": size, "crops": crops, "content": hashlib.sha256(content).hexdigest()}
    with suppress(OSError, ValueError, KeyError):
        old = json.loads((folder / "about.json").read_text(encoding="utf-8"))["made_of"]
        if old == made_of:
            return ""
        if frozen and {**old, "content": made_of["content"]} == made_of:
            return (f"note: {name} has changed since this run began, which goes on with what it read then; to read "
                    f"{name} again, delete {folder}")
    check_source(name, entries, problems)
    missing = left_out(name, entries)
    users, different = Counter(prints.get(e.path) for e in entries), {}
    for path in paths:
        different.setdefault(prints[path], path)                 # copies of a file are one picture

    def note_broken(key, problem):
        problems.extend([problem] * users[key])
        stop_if_broken(name, problems, total)                    # now, not after the other thousands

    part = folder.with_name(folder.name + ".part")               # renamed when whole: a kill leaves no half of it
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        found = progress(try_all(different, lambda path: views_of(path, size, crops)), total=len(different),
                         desc=f"decode {name}")
        rows, about = write_pixels(part / "pixels.u8", found, note_broken)
        entries = [e for e in entries if e.path is None or prints[e.path] in rows]
        classes = number_labels([e.label for e in entries if e.label is not None])
        held = held_out(list(rows))
        with open(part / "items.jsonl", "w", encoding="utf-8") as f:
            for e in entries:
                row, views = rows.get(prints.get(e.path), (None, 0))
                f.write(json.dumps({"row": row, "views": views, "caption": e.caption, "turns": e.turns,
                                    "class": classes.get(e.label), "held": prints.get(e.path) in held}) + "\n")
        problems = list(dict.fromkeys(problems))
        write_json(part / "about.json", {
            "name": name, **about, "broken": problems, "left_out": missing, "made_of": made_of,
            "classes": {str(label): i for label, i in sorted(classes.items(), key=str)}})
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    lines = [f"{name}: {total} entries, {len(rows)} pictures, {len(held)} of them held out, {len(classes)} classes, "
             f"{len(problems)} broken", *problems[:10]]
    if len(problems) > 10:
        lines.append(f"... all in {folder / 'about.json'}")
    if missing:
        lines.append(missing)
    if 0 < len(rows) < FEWEST:
        lines.append(f"note: fewer than {FEWEST} different pictures, so none is held out: what is measured and shown "
                     f"is what is trained on")
    return "\n  ".join(lines)


def read_source(name, images):
    """`read_entries`, with what helps those who typed flags."""
    try:
        return read_entries(name, images)
    except ValueError as e:
        raise ValueError(f"{e}; change --data, --llava or --mix (where shapes:1 is the shapes world), or pass "
                         f"--images DIR") from None


def check_source(name, entries, problems):
    """Raises ValueError for a source with too much that is broken, or nothing to learn from."""
    stop_if_broken(name, problems, len(entries) + len(problems))
    if not any(e.caption or e.turns or e.label is not None for e in entries):
        raise ValueError(f"{name}: {len(entries)} pictures without a text or label, expected {name}/metadata.jsonl, or "
                         f"a.txt beside a.png; change --data")


def folder_name(name):
    """The name of a source's folder in OUT/cache."""
    digest = hashlib.sha256(os.path.abspath(name).encode("utf-8", "replace")).hexdigest()[:8]
    return re.sub(r"[^\w-]", "_", Path(name).stem)[:40] + "-" + digest


def fingerprint(path):
    """Of a file's content; of its name where there is no content."""
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= MAX_BYTES:  # a pipe would never end, read_image refuses the rest
            return hashlib.sha256(path.read_bytes()).hexdigest()
    return str(path)


def try_all(paths, work):
    """Yields (key, work(path) or the ValueError it raised) for {key: path} in order, in threads, a few at a time."""
    def attempt(path):
        try:
            return work(path)
        except ValueError as e:
            return e
    keys = list(paths)
    with warnings.catch_warnings(), ThreadPoolExecutor(WORKERS) as pool:
        warnings.simplefilter("ignore")                          # of Pillow; what cannot be read is an error
        for i in range(0, len(keys), 32):                        # all at once would hold all pictures in memory
            yield from zip(keys[i:i + 32], pool.map(attempt, [paths[key] for key in keys[i:i + 32]]))


def views_of(path, size, crops):
    """uint8 (views, size, size, 3): the padded picture, then its crops; a square picture has only one view."""
    image = read_image(path)
    padded = pad_square(image).resize((size, size), Image.Resampling.BICUBIC)
    views, (w, h), side = [padded], image.size, min(image.size)
    if w != h:
        places = hashlib.sha256(padded.tobytes()).digest()       # bytes of no pattern, the same each time
        for k in range(crops):                                   # one in each of `crops` equal parts of the way
            start = round((k + places[k % 32] / 255) / crops * (max(w, h) - side))
            x, y = (start, 0) if w > h else (0, start)
            views.append(image.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side)))
    return np.stack([np.asarray(view) for view in views])


def write_pixels(path, found, note_broken):
    """Write the views of all pictures, one after the other. found: what try_all yields, with fingerprints as keys.

    Returns {fingerprint: (first row, views)}, and for about.json the number of rows and a hash of all pixels.
    """
    rows, n, pixels = {}, 0, hashlib.sha256()
    with open(path, "wb") as f:
        for key, views in found:
            if isinstance(views, ValueError):
                note_broken(key, str(views))
                continue
            f.write(views.tobytes())
            pixels.update(views)
            rows[key] = n, len(views)
            n += len(views)
    return rows, {"rows": n, "pixels": pixels.hexdigest()}


def stop_if_broken(name, problems, total):
    if len(problems) > MOST_BROKEN * total:
        raise ValueError(f"{name}: {len(problems)} of {total} entries are broken, expected at most {MOST_BROKEN:.0%}: "
                         f"{'; '.join(list(dict.fromkeys(problems))[:3])}; mend them or take them out "
                         f"(python -m nanoharmon.data lists them all), or change --data, --llava or --mix")


def number_labels(labels):
    """{label: class}: whole numbers stay what they are, anything else is numbered in the order of the alphabet."""
    if all(isinstance(label, int) for label in labels):
        return {label: label for label in labels}
    numbers = {name: i for i, name in enumerate(sorted({str(label) for label in labels}))}
    return {label: numbers[str(label)] for label in labels}


def held_out(pictures):
    """The held-out ones of a list, evenly spread, the same ones every time. None of a few: a model that is to learn
    one picture by heart, as a test, must see it."""
    if len(pictures) < FEWEST:
        return set()
    n = max(4, min(16, len(pictures) // 20), len(pictures) // 50)
    return {pictures[i * len(pictures) // n] for i in range(n)}


# --- the source -------------------------------------------------------------------------------------------------------

class FolderData:
    """What `import_source` has written into `folder`, item by item; what the methods are for: batches.py."""

    def __init__(self, folder):
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.name, self.cache_name, self.rows, self.content = about["name"], folder.name, about["rows"], about["pixels"]
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
        """All words are learned: without its picture no question has an answer, so a text is a lesson in language."""
        item = rng.choice(self.with_turns)
        if item["caption"] and rng.random() < 0.5:
            return [("user", GENERATE.format(item["caption"]))], True
        return turns_of(item), True

    def class_item(self, rng):
        item = rng.choice(self.with_picture)
        return crop(item, rng), item["class"]

    def generation_item(self, rng, pairs=0.0):
        """pairs: of the shapes world only."""
        item = rng.choice(self.with_caption or self.with_picture)
        return crop(item, rng), item

    def prompt(self, item, rng):
        return item["caption"]

    def understanding_item(self, rng, thoughts=0.0):
        """thoughts: of the shapes world only."""
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
