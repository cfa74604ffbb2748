"""Pictures and texts of your own, as a source of training data.

    python train.py --data DIR                        a folder of one of the first two kinds below, and nothing else
    python train.py --llava FILE.json --images DIR    the third kind
    python train.py --mix shapes:1,DIR:3              a weighted mix, also of several folders

    DIR/metadata.jsonl     {"file_name": "a.png", "text": "a tabby cat", "label": "cat"} in each line; "label" is
                           optional, "text" too (such a picture serves the stages vae and mar)
    DIR/a.png, DIR/a.txt   a picture and its text, also in subfolders (when there is no metadata.jsonl)
    FILE.json              LLaVA: [{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat?"},
                           {"from": "gpt", "value": "A cat."}, ...]}, ...]; without "image", text only

`import_source` decodes every picture once, before training, into OUT/cache: squares of the largest size that any stage
uses, and the texts. Training reads only that. So what happens to the folder later (a file cut short, moved or edited)
cannot hurt a run, and a resumed run sees exactly what it saw before.

To be read, a picture is padded to a square; to be drawn, it is cropped to one, as in the official data code. That code
crops at random each time; here latents are encoded once, so a picture that is not square has --data.crops fixed crops
instead, whose places come from its content. The VAE trains on all of these squares. They take 27 KB each at 96 px, 790
KB at 512 px.

Every 50th picture (of fewer than 800: every 20th, at least 4, at most 16) is held out of training, for the pictures and
figures that tell how it goes.

What is broken is counted and named, and left out; more than 5 % of it stops the run. Nothing outside of the folder is
ever opened, whatever a file name says. All of it must fit on the disk, and the texts in memory: a list, not a database.
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
from tqdm import tqdm

from ..cli import Parser, run_main
from ..files import check_output, write_bytes, write_json
from ..pictures import MAX_BYTES, captioned, file_bytes, grid, pad_square, read_image
from ..tokenizer import DESCRIBE, GENERATE, GENERATE_ANYTHING
from .entries import read_entries

MOST_BROKEN = 0.05
WORKERS = os.cpu_count() or 1                # threads: Pillow decodes and resizes without holding Python's lock


# --- from files to OUT/cache ------------------------------------------------------------------------------------------

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


def squares(path, size, crops):
    """uint8 (views, size, size, 3): the padded picture, then its crops; a square picture has only one view."""
    image = read_image(path)
    padded = pad_square(image).resize((size, size), Image.Resampling.BICUBIC)
    views, (w, h), side = [padded], image.size, min(image.size)
    if w != h:
        places = hashlib.sha256(padded.tobytes()).digest()
        for k in range(crops):                                   # one in each of `crops` equal parts of the way
            start = round((k + places[k % 32] / 255) / crops * (max(w, h) - side))
            x, y = (start, 0) if w > h else (0, start)
            views.append(image.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side)))
    return np.stack([np.asarray(view) for view in views])


def decode(paths, work):
    """(path, work(path) or the ValueError it raised) for all paths in order, in threads, a few at a time."""
    def attempt(path):
        try:
            return work(path)
        except ValueError as e:
            return e
    with warnings.catch_warnings(), ThreadPoolExecutor(WORKERS) as pool:
        warnings.simplefilter("ignore")                          # of Pillow; what cannot be read is an error
        for i in range(0, len(paths), 32):
            yield from zip(paths[i:i + 32], pool.map(attempt, paths[i:i + 32]))


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


def import_source(name, images, cache, size, crops, frozen=False, progress=lambda x, **_: x):
    """Put a source into `cache` (see the top), unless it is there. Returns a line that tells what was found, or "".

    frozen: a run has begun with what is there, so it goes on with it even if the files have changed since.
    """
    folder = Path(cache) / folder_name(name)
    entries, problems = read_entries(name, images)
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
    stop_if_broken(name, problems, total)
    if not any(e.caption or e.turns or e.label is not None for e in entries):
        raise ValueError(f"{name}: {len(entries)} pictures without a text or label, expected {name}/metadata.jsonl, or "
                         f"a.txt beside a.png; change --data")

    part, users, first = folder.with_name(folder.name + ".part"), Counter(prints.get(e.path) for e in entries), {}
    for path in paths:
        first.setdefault(prints[path], path)                     # copies of a file are one picture
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        rows, at, pixels = {}, 0, hashlib.sha256()
        with open(part / "pixels.u8", "wb") as f:
            found = decode(list(first.values()), lambda path: squares(path, size, crops))
            for path, views in progress(found, total=len(first), desc=f"decode {name}"):
                if isinstance(views, ValueError):
                    problems += [str(views)] * users[prints[path]]
                    stop_if_broken(name, problems, total)
                else:
                    f.write(views.tobytes())
                    pixels.update(views)
                    rows[prints[path]] = at, len(views)
                    at += len(views)
        entries = [e for e in entries if e.path is None or prints[e.path] in rows]
        classes = number_labels([e.label for e in entries if e.label is not None])
        held = held_out(name, list(rows), any(e.path for e in entries))
        with open(part / "items.jsonl", "w", encoding="utf-8") as f:
            for e in entries:
                row, views = rows.get(prints.get(e.path), (None, 0))
                f.write(json.dumps({"row": row, "views": views, "caption": e.caption, "turns": e.turns,
                                    "class": classes.get(e.label), "held": prints.get(e.path) in held}) + "\n")
        problems = list(dict.fromkeys(problems))
        write_json(part / "about.json", {
            "name": name, "rows": at, "pixels": pixels.hexdigest(), "broken": problems, "made_of": made_of,
            "classes": {str(label): i for label, i in sorted(classes.items(), key=str)}})
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return (f"{name}: {total} entries, {len(rows)} pictures, {len(held)} of them held out, {len(classes)} classes, "
            f"{len(problems)} broken" + "".join(f"\n  {problem}" for problem in problems[:10]) +
            f"\n  ... all in {folder / 'about.json'}" * (len(problems) > 10))


def held_out(name, pictures, wanted):
    """Every 50th picture, but up to 16 of a small set, and at least four: evenly spread, the same ones every time."""
    if wanted and len(pictures) < 8:
        raise ValueError(f"{name}: {len(pictures)} different pictures, expected at least 8, of which 4 are held out; "
                         f"change --data or --llava")
    n = max(4, min(16, len(pictures) // 20), len(pictures) // 50)
    return {pictures[i * len(pictures) // n] for i in range(n)} if pictures else set()


# --- the source -------------------------------------------------------------------------------------------------------

class FolderData:
    """What `import_source` has put into `folder`, item by item; see data.py for what each method is for."""
    def __init__(self, folder):
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.name, self.cache_name, self.rows, self.content = about["name"], folder.name, about["rows"], about["pixels"]
        self.classes = max(about["classes"].values(), default=-1) + 1
        side = self.side = about["made_of"]["size"]
        self.pixels = (np.memmap(folder / "pixels.u8", np.uint8, "r").reshape(-1, side, side, 3) if self.rows
                       else np.zeros((0, side, side, 3), np.uint8))
        self.latents = {}
        with open(folder / "items.jsonl", encoding="utf-8") as f:
            items = [json.loads(line) for line in f]
        self.held = [item for item in items if item["held"]]
        self.items = [item for item in items if not item["held"]]
        self.leave_out(lambda turns: True)

    def leave_out(self, fits):
        """Use the texts only of items whose first turn fits(turns). Returns how many do not."""
        usable = [item for item in self.items if (turns := conversation(item)) and fits(turns[:2])]
        self.seen = [item for item in self.items if item["views"]]
        self.captioned = [item for item in usable if item["caption"] and item["views"]]
        self.told = usable
        return sum(bool(conversation(item)) for item in self.items) - len(usable)

    def has(self, kind):
        """Whether it has usable "pictures", "captions" or "texts"."""
        return bool({"pictures": self.seen, "captions": self.captioned, "texts": self.told}[kind])

    def corpus(self):
        """Texts to train the tokenizer on."""
        for item in self.items:
            yield from (text for role, words in conversation(item) for text in (role + "\n", words))
            if item["caption"]:
                yield from (GENERATE.format(item["caption"]), GENERATE_ANYTHING)

    def pictures(self, rows, size):
        """uint8 (n, size, size, 3) of the given rows."""
        if size == self.side:
            return self.pixels[rows]
        return np.stack([np.asarray(Image.fromarray(self.pixels[row]).resize((size, size), Image.Resampling.BICUBIC))
                         for row in rows])

    def picture(self, rng, size):
        item = rng.choice(self.seen)
        return self.pictures([item["row"] + rng.randrange(item["views"])], size)[0]

    def text(self, rng):
        """Turns, and True: stage llm learns all of their words, for without its picture no question has an answer."""
        item = rng.choice(self.told)
        if item["caption"] and rng.random() < 0.5:
            return [("user", GENERATE.format(item["caption"]))], True
        return conversation(item), True

    def class_picture(self, rng):
        item = rng.choice(self.seen)
        return crop(item, rng), item["class"]

    def to_draw(self, rng, pairs=0.0):
        item = rng.choice(self.captioned or self.seen)
        return crop(item, rng), item

    def prompt(self, item, rng):
        return item["caption"]

    def to_read(self, rng, thoughts=0.0):
        item = rng.choice(self.told)
        return item["row"], item

    def conversation(self, item, rng):
        return conversation(item)


def conversation(item):
    """The turns about an item; a caption answers the request to describe the picture."""
    return item["turns"] or ([("user", DESCRIBE), ("assistant", item["caption"])] if item["caption"] else [])


def crop(item, rng):
    """The row of one of an item's crops; a picture that is square needs none."""
    return item["row"] + (1 + rng.randrange(item["views"] - 1) if item["views"] > 1 else 0)


# --- what is in a folder ----------------------------------------------------------------------------------------------

def report(name, images=""):
    """What a source of files holds: lines of text, and five pictures with their texts as one picture (or None)."""
    entries, problems = read_entries(name, images)
    total, users, sizes = len(entries) + len(problems), Counter(e.path for e in entries if e.path), {}
    found = decode(list(users), lambda path: read_image(path).size)
    for path, size in tqdm(found, total=len(users), desc="decode", disable=None):
        if isinstance(size, ValueError):
            problems += [str(size)] * users[path]
        else:
            sizes[path] = size
    entries = [e for e in entries if e.path is None or e.path in sizes]
    lines = [f"{name}: {total} entries, {len(sizes)} pictures; {len(problems)} entries broken, "
             f"{len(problems) / total:.1%} (training stops above {MOST_BROKEN:.0%})"]
    if sizes:
        by_area = sorted(sizes.values(), key=lambda size: size[0] * size[1])
        small, middle, large = ("{}x{}".format(*by_area[i]) for i in (0, len(by_area) // 2, -1))
        lines.append(f"sizes: {small} to {large} pixels, median {middle}; {sum(w == h for w, h in by_area)} square")
    if captions := sorted(len(e.caption) for e in entries if e.caption):
        lines.append(f"texts: {len(captions)}, of {captions[0]} to {captions[-1]} characters, "
                     f"median {captions[len(captions) // 2]}")
    if without := sum(not (e.caption or e.turns) for e in entries):
        lines.append(f"without text: {without}, of use to the stages vae and mar")
    if turns := sorted(len(e.turns) // 2 for e in entries if e.turns):
        lines.append(f"conversations: {len(turns)}, of {turns[0]} to {turns[-1]} questions; "
                     f"{sum(e.path is None for e in entries)} without a picture")
    if labels := Counter(e.label for e in entries if e.label is not None):
        lines.append(f"labels: {len(labels)}; " + ", ".join(f"{label} {n}" for label, n in labels.most_common(10)) +
                     ", ..." * (len(labels) > 10))
    lines += ["broken:"] * bool(problems) + [f"  {problem}" for problem in dict.fromkeys(problems)]
    shown = [e for e in entries if e.path]
    if not shown:
        return lines, None
    shown = [shown[i * len(shown) // 5] for i in range(5)]
    texts = [e.caption or " / ".join(text for _, text in (e.turns or [])[:2]) or f"label {e.label}" for e in shown]
    return lines, grid([captioned(pad_square(read_image(e.path)), text, 192) for e, text in zip(shown, texts)], 5)


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.data", description=__doc__)
    parser.add_argument("source", metavar="DIR|FILE.json", help="a folder of pictures with texts, or a LLaVA file")
    parser.add_argument("--images", metavar="DIR", help="the folder of the pictures that FILE.json names")
    parser.add_argument("--out", default="data.png", metavar="FILE", help="five pictures as a PNG (default data.png)")
    args = parser.parse_args(argv)
    if args.images and Path(args.source).suffix.lower() != ".json":
        raise ValueError(f"--images {args.images} is for the pictures of a LLaVA file, {args.source} is none; "
                         f"drop --images")
    out = check_output(args.out, "--out", (".png",))
    lines, sheet = report(args.source, args.images)
    print(*lines, sep="\n")
    if sheet:
        write_bytes(out, file_bytes(sheet))
        print(f"wrote {out}")


if __name__ == "__main__":
    run_main(main)
