"""Pictures and texts of your own, from files into OUT/cache, where training reads them (folder.py).

    OUT/cache/NAME-HASH/pixels.u8      uint8 (rows, size, size, 3), of the largest size that any stage uses; each
                                       picture has one row or several, its *views*
    OUT/cache/NAME-HASH/items.jsonl    one *item* per entry: {"row": its first row, "views": how many, "caption",
                                       "turns", "class", "held": whether it is held out}; row null: no picture
    OUT/cache/NAME-HASH/about.json     what all this was made of, the names of the classes, and all that was broken

HASH is that of the content. So a source that is found again under another name needs no new import, and one that has
changed is not taken for what it was. An import that is stopped leaves NAME-HASH.part, with which the next one goes on.
"""
import hashlib
import json
import os
import re
import shutil
import warnings
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..arguments import cores
from ..cli import bar, one_line
from ..files import advising, content_hash, read_json, write_chunks, write_json
from ..pictures import MAX_BYTES, pad_square, read_image
from ..world.shapes import NUM_CLASSES
from .folder import FolderData
from .formats import Found, read_entries
from .recipe import parse_mix

MOST_BROKEN = 0.05
FEWEST = 8                                   # pictures of which some are held out
WORKERS = cores()                            # threads: Pillow decodes and resizes without holding Python's lock


# --- what a source is, and whether the cache has it -------------------------------------------------------------------

@dataclass
class Source:
    """A source of data that --mix names, before it is imported."""
    name: str
    folder: str                              # in OUT/cache
    found: Found | None = None               # None: the cache has it
    prints: dict | None = None               # {path of a picture: fingerprint}
    made_of: dict | None = None
    notes: tuple = ()

    def contents(self, cache):
        """(number of classes, whether it has pictures, whether it has texts to train on)"""
        if self.found is None:
            data = FolderData(cache / self.folder, self.name)
            return data.classes, data.has("pictures"), data.has("texts")
        entries = self.found.entries
        held = held_out(list(dict.fromkeys(self.prints.values())))           # as import_source, if all can be decoded
        classes = number_labels([e.label for e in entries if e.label is not None])
        return max(classes.values(), default=-1) + 1, any(e.path for e in entries), any(
            e.caption or e.turns for e in entries if self.prints.get(e.path) not in held)


def find_sources(config, out, has_begun):
    """[Source, ...] of the files that a Config names. has_begun: whether the run in `out` has begun."""
    size, known = max(stage.size for stage in config.stages.values()), known_folders(out)
    return [find_source(name, config.data.images, out / "cache", size, config.data.crops, known, has_begun)
            for name, _ in parse_mix(config.data.mix) if name != "shapes"]


def find_source(name, images, cache, size, crops, known, has_begun):
    """The Source of a name.

    known: {name: folder in the cache} of earlier starts. has_begun: the run goes on with what it read then,
    even if the files have changed since, or are gone.
    """
    before = about(cache / known.get(name, "?"))
    fits = has_begun and before and (before["made_of"]["size"], before["made_of"]["crops"]) == (size, crops)
    try:
        with advising("change --data, --llava or --mix (where shapes:1 is the shapes world), or pass --images DIR"):
            found = read_entries(name, images)
    except (ValueError, OSError):
        if fits:
            return Source(name, known[name], notes=(f"note: {name} cannot be read; the run goes on with what it read "
                                                    f"before, in {cache / known[name]}",))
        raise
    entries, paths = found.entries, list(dict.fromkeys(e.path for e in found.entries if e.path))
    with ThreadPoolExecutor(WORKERS) as pool:
        prints = dict(bar(zip(paths, pool.map(fingerprint, paths)), total=len(paths), desc=f"read {name}"))
    content = json.dumps([(prints.get(e.path), e.caption, e.label, e.turns) for e in entries]).encode()
    made_of = {"size": size, "crops": crops, "content": hashlib.sha256(content).hexdigest()}
    digest, changed = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:8], ""
    if before and before["made_of"]["content"] != made_of["content"]:
        changed = f"{name} has changed since it was read ({before['entries']} entries then, {len(entries)} now)"
    elif not before and not known.get(name, digest).endswith(digest):
        changed = f"{name} is not what was read before, and {cache / known[name]} is gone"
    if changed and fits:                     # even if the cache has it by another name: two may have traded their names
        return Source(name, known[name], notes=(f"note: {changed}; the run goes on with what it read then; to use the "
                                                f"new one, pass another --out",))
    for folder in [known.get(name, "?"), *(path.parent.name for path in sorted(cache.glob("*/about.json")))]:
        if (there := about(cache / folder)) and there["made_of"] == made_of:
            return Source(name, folder)
    check_source(name, found)
    folder = re.sub(r"[^\w-]", "_", Path(name).stem)[:40] + "-" + digest
    return Source(name, folder, found, prints, made_of, (f"note: {changed}; it is read again",) * bool(changed))


def about(folder):
    """What import_source has noted about a folder in the cache; None where there is no whole one."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        values["made_of"]["size"], values["made_of"]["crops"], values["name"], values["rows"], values["entries"]
        return values


def known_folders(out):
    """{name of a source: its folder in OUT/cache} of earlier starts."""
    known = {found["name"]: path.parent.name for path in (out / "cache").glob("*/about.json")
             if (found := about(path.parent))}
    with suppress(OSError, ValueError, AttributeError, TypeError):
        stored = read_json(out / "train_config.json").get("sources", {})
        known |= {str(name): str(folder) for name, folder in stored.items()}
    return known


def check_source(name, found):
    """Raises ValueError for a source with too much that is broken, or nothing to learn from."""
    stop_if_broken(name, found.problems, len(found.entries) + len(found.problems))
    if not any(e.caption or e.turns or e.label is not None for e in found.entries):
        hints = "".join(f"; {note}" for note in found.notes)
        raise ValueError(f"{name}: {len(found.entries)} pictures without a text or label, expected \"text\" in a "
                         f"metadata.jsonl, or a.txt beside a.png{hints}; change --data")


def fingerprint(path):
    """A hash of a file's content; its path where that cannot be read, or is too large."""
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= MAX_BYTES:  # a pipe would never end, read_image refuses the rest
            return content_hash(path)
    return str(path)


# --- from files to the cache ------------------------------------------------------------------------------------------

def check_sources(config, cache, todo, sources, mar_may_come):
    """Raises ValueError, with the flag to change, for sources that the stages cannot use. mar_may_come: now or later,
    so that labels need classes while the model can still have them."""
    kept = {}
    for source in sources:
        if other := kept.get(source.folder[-8:]):                # the hash of its content
            raise ValueError(f"{other} and {source.name} hold the same, expected different ones; drop one, and pass "
                             f"--mix {other}:2 to see it more often")
        kept[source.folder[-8:]] = source.name
    names, world = ", ".join(source.name for source in sources), len(sources) < len(parse_mix(config.data.mix))
    contents = [source.contents(cache) for source in sources]
    classes = sum(n for n, _, _ in contents) + world * NUM_CLASSES
    if mar_may_come and classes > config.model.mar.class_num:
        raise ValueError(f"the labels of {names} need {classes} classes, the model has "
                         f"{config.model.mar.class_num}; pass --mar.class_num {classes}")
    if not world and not any(pictures for _, pictures, _ in contents):
        raise ValueError(f"{names}: no pictures, expected some; pass --data DIR, or --mix shapes:1 besides")
    needs = [s for s in todo if s not in ("vae", "mar")]
    if needs and not world and not any(texts for _, _, texts in contents):
        raise ValueError(f"{names}: no texts, which stage {needs[0]} needs; put a.txt beside a.png, or \"text\" into "
                         f"metadata.jsonl, or pass --stage vae --stage mar")


def import_sources(cache, sources):
    """Decode the user's own pictures into OUT/cache."""
    new = not cache.exists()
    try:
        for source in sources:
            if line := import_source(source, cache):
                print(line)
    except (ValueError, OSError):
        if new:                                                  # nothing is left behind
            shutil.rmtree(cache, ignore_errors=True)
        raise
    drop_others(cache, [source.folder for source in sources])


def import_source(source, cache):
    """Put a Source into `cache`, unless it is there. Returns what was found, as text."""
    name, found, prints = source.name, source.found, source.prints
    if found is None:
        return "\n".join(source.notes)
    folder, total, problems = cache / source.folder, len(found.entries) + len(found.problems), found.problems[:]
    users, different = Counter(prints.get(e.path) for e in found.entries), {}
    for path, key in prints.items():
        different.setdefault(key, path)                          # copies of a file are one picture

    def note_broken(key, problem):
        problems.extend([problem] * users[key])
        stop_if_broken(name, problems, total)                    # now, not after the other thousands

    part = folder.with_name(folder.name + ".part")               # renamed when whole: a kill leaves no half of it
    part.mkdir(parents=True, exist_ok=True)
    try:
        rows, pixels = write_pixels(part, different, source.made_of, note_broken, f"decode {name}")
        entries = [e for e in found.entries if e.path is None or prints[e.path] in rows]
        classes = number_labels([e.label for e in entries if e.label is not None])
        held = held_out(list(rows))
        places = [(e, *rows.get(prints.get(e.path), (None, 0))) for e in entries]
        write_chunks(part / "items.jsonl", (json.dumps({
            "row": row, "views": views, "caption": e.caption, "turns": e.turns, "class": classes.get(e.label),
            "held": prints.get(e.path) in held}).encode() + b"\n" for e, row, views in places))
        count, problems = len(problems), list(dict.fromkeys(problems))           # entries; what is said of them
        write_json(part / "about.json", {
            "name": name, **pixels, "entries": len(found.entries), "broken": problems, "notes": found.notes,
            "made_of": source.made_of, "classes": {str(label): i for label, i in sorted(classes.items(), key=str)}})
        (part / "done.jsonl").unlink()
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except (ValueError, OSError):                                # only what was stopped goes on
        shutil.rmtree(part, ignore_errors=True)
        raise
    lines = [*source.notes, f"{name}: {total} entries, {len(rows)} pictures, {len(held)} of them held out, "
             f"{len(classes)} classes, {count} broken",
             *(f"  {one_line(problem)}" for problem in problems[:10])]
    if len(problems) > 10:
        lines.append(f"  ... all in {folder / 'about.json'}")
    lines += [f"  {one_line(note)}" for note in found.notes]
    if 0 < len(rows) < FEWEST:
        lines.append(f"  note: fewer than {FEWEST} different pictures, so none is held out: what is measured and shown "
                     f"is what is trained on")
    return "\n".join(lines)


def drop_others(cache, folders):
    """Delete imported sources, whole or in part, that are not in `folders`, and their latents."""
    for path in [*cache.glob("*/about.json"), *cache.glob("*.part/done.jsonl")]:
        if path.parent.name not in folders:
            shutil.rmtree(path.parent, ignore_errors=True)
            for latents in cache.glob(f"latents_{path.parent.name}_*"):
                latents.unlink()


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


def write_pixels(part, pictures, made_of, note_broken, title):
    """Write the views of {fingerprint: path} into part/pixels.u8, one picture after the other.

    What a stopped import has written is kept: part/done.jsonl has a line for each picture. Returns
    {fingerprint: (first row, views)}, and for about.json the number of rows and a hash of all pixels.
    """
    rows, n, pixels, size, lines, end = {}, 0, hashlib.sha256(), made_of["size"], [], 0
    with suppress(OSError):
        lines = (part / "done.jsonl").read_bytes().split(b"\n")[:-1]             # without half a line

    def decoded():
        left = dict(pictures)
        for key, views in read_done(part / "pixels.u8", lines, size):
            if left.pop(key, None):
                yield key, views, True
        for key, views in try_all(left, lambda path: views_of(path, size, made_of["crops"])):
            yield key, views, False

    with open(part / "pixels.u8", "ab") as f, open(part / "done.jsonl", "ab") as done:
        for key, views, is_kept in bar(decoded(), total=len(pictures), desc=title):
            if isinstance(views, ValueError):
                note_broken(key, str(views))
                found = {"problem": str(views)}
            else:
                if not is_kept:
                    f.truncate(n * size * size * 3)              # what a kill has left behind the last whole picture
                    f.write(views.tobytes())
                    f.flush()
                pixels.update(views)
                rows[key] = n, len(views)
                n += len(views)
                found = {"views": len(views), "crc": zlib.crc32(views)}
            line = json.dumps({"print": key, **found}).encode() + b"\n"
            if not is_kept:                                      # of what is kept the same line is there
                done.truncate(end)                               # behind it may be lines that read_done gave up
                done.write(line)
                done.flush()
            end += len(line)
        f.truncate(n * size * size * 3)
        os.fsync(f.fileno())                                     # before about.json says that all is there
    return rows, {"rows": n, "pixels": pixels.hexdigest()}


def read_done(path, lines, size):
    """Yields (fingerprint, its views or the ValueError) from pixels.u8 and the lines of done.jsonl, as far as they
    fit each other."""
    with suppress(OSError, ValueError, KeyError, TypeError), open(path, "rb") as f:
        for line in map(json.loads, lines):
            if "problem" in line:
                yield line["print"], ValueError(line["problem"])
                continue
            raw = f.read(line["views"] * size * size * 3)
            if zlib.crc32(raw) != line["crc"]:                   # after a power cut
                return
            yield line["print"], np.frombuffer(raw, np.uint8).reshape(-1, size, size, 3)


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
