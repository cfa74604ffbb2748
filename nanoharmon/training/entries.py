"""What a folder of pictures or a LLaVA file says it has, before any picture is opened.

    DIR/metadata.jsonl     {"file_name": "a.png", "text": "a tabby cat", "label": "cat"} in each line; "label" is
                           optional, "text" too (such a picture serves the stages vae and mar)
    DIR/a.png, DIR/a.txt   a picture and its text, also in subfolders (when there is no metadata.jsonl)
    FILE.json              LLaVA: [{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat?"},
                           {"from": "gpt", "value": "A cat."}, ...]}, ...]; without "image", text only

Each line, picture or conversation becomes an Entry. One that cannot be used becomes a problem, in words, and the rest
goes on. Nothing outside of the folder is ever opened: `..`, absolute names and links that lead out of it are problems.
"""
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..cli import first_of
from ..pictures import FORMATS

MAX_LIST, MAX_TEXT = 2 * 10**9, 10**6        # bytes of a metadata.jsonl or LLaVA file, of one a.txt: memory holds them
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm",
            *[".avif"] * ("AVIF" in FORMATS))
OTHER_MEDIA = "video", "videos", "images", "audio", "audios"   # in LLaVA entries about something else than a picture


@dataclass
class Entry:
    path: Path | None = None                 # of the picture; None: a conversation without one
    caption: str | None = None
    label: int | str | None = None           # of its class
    turns: list | None = None                # [("user", text), ("assistant", text), ...]


def read_entries(name, images=""):
    """([Entry, ...], ["where: why it is broken", ...]) of a folder, or a LLaVA file with its pictures in `images`."""
    path = Path(name)
    if path.is_dir():
        root, (parse, found) = path, list_folder(path)
    elif path.is_file() and path.suffix.lower() == ".json":
        if not images or not Path(images).is_dir():
            raise ValueError(f"{name} names pictures in {images or 'no folder'}, expected a folder that holds them")
        root, parse, found = Path(images), parse_llava, list_llava(path)
    else:
        raise ValueError(f"{name}: expected a folder of pictures or a LLaVA .json file")
    root, entries, problems = root.resolve(), [], []
    for where, raw in found:
        try:
            entries.append(parse(raw, root))
        except (ValueError, OSError, RuntimeError) as e:         # RuntimeError: links in a circle, JSON nested too deep
            problems.append(f"{where}: {e}")
    return entries, problems


# --- lists of what there is: [(where, what a parse_... function reads), ...] ------------------------------------------

def list_folder(path):
    """The function that parses them, and: lines of metadata.jsonl if there is one, else pictures."""
    listed = path / "metadata.jsonl"
    if listed.is_file():
        lines = read_bytes(listed).removeprefix(b"\xef\xbb\xbf").splitlines()    # the mark that some editors put first
        parse, found = parse_line, [(f"{listed}, line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    else:
        parse, found = parse_pair, [(str(path / file), file) for file in picture_files(path)]
    if not found:
        others = count_suffixes(all_files(path))
        raise ValueError(f"{path}: neither a metadata.jsonl with lines nor pictures ({', '.join(SUFFIXES)}) here, "
                         f"expected one of them" + (f"; it holds {others}" if others else ""))
    return parse, found


def list_llava(path):
    raw = read_bytes(path)
    try:
        talks = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: not valid JSON ({e})") from None
    if not isinstance(talks, list) or not talks:
        raise ValueError(f"{path}: a {type(talks).__name__}, expected a list of conversations")
    return [(f"{path}, entry {i}", talk) for i, talk in enumerate(talks)]


def picture_files(root):
    """Relative paths of the pictures in a folder and its subfolders, in the same order everywhere."""
    return sorted(file for file in all_files(root) if is_picture(file))


def is_picture(file):
    return file.lower().endswith(SUFFIXES)


def all_files(root):
    """Relative paths of all that is in a folder and its subfolders, but for what begins with a dot. A link to a folder
    is not followed, it is listed with a slash behind it."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]               # in place: os.walk goes by this list
        links = [f + "/" for f in folders if os.path.islink(os.path.join(folder, f))]
        found += [os.path.relpath(os.path.join(folder, f), root) + f[len(f.rstrip("/")):] for f in files + links
                  if not f.startswith(".")]
    return found


def left_out(name, entries):
    """What is in a folder and in none of its entries, in words: "left out: 18 .heic, ...", or ""."""
    root = Path(name)
    if not root.is_dir():
        return ""
    files = set(all_files(root)) - {"metadata.jsonl"}
    if (root / "metadata.jsonl").is_file():
        real, named = root.resolve(), {str(e.path) for e in entries}
        others = (f for f in files if os.path.realpath(real / f) not in named)
        why = "no good line of metadata.jsonl names them"
    else:
        pictures = set(filter(is_picture, files))
        others = files - pictures - {os.path.splitext(file)[0] + ".txt" for file in pictures}
        why = f"pictures end in {', '.join(SUFFIXES)}"
    counts = count_suffixes(others)
    return f"left out: {counts}; {why}" if counts else ""


def count_suffixes(files, most=8):
    """ "18 .heic, 2 .csv" of names of files."""
    found = Counter()
    for file in files:
        suffix = os.path.splitext(file)[1].lower()
        found["link to a folder" if file.endswith("/") else
              suffix if re.fullmatch(r"\.\w{1,9}", suffix) else "other"] += 1
    return first_of([f"{n} {suffix}" for suffix, n in sorted(found.items(), key=lambda x: (-x[1], x[0]))], most)


def read_bytes(path, most=MAX_LIST):
    """The bytes of a file of a bearable size."""
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{path}: {size / 1e6:,.0f} MB, expected at most {most // 10**6:,} MB")
    return path.read_bytes()


# --- one of them -> Entry ---------------------------------------------------------------------------------------------

def parse_line(line, root):
    item = json.loads(line)
    if not isinstance(item, dict) or not isinstance(item.get("file_name"), str):
        raise ValueError('expected {"file_name": NAME, "text": TEXT}')
    label = item.get("label")
    if isinstance(label, bool) or not isinstance(label, (int, str, type(None))) or isinstance(label, int) and label < 0:
        raise ValueError(f"label is {label!r:.40}, expected a whole number from 0 or a string")
    return Entry(locate(item["file_name"], root), clean(item.get("text"), "text"),
                 clean(label, "label") if isinstance(label, str) else label)


def parse_pair(file, root):
    text = locate(os.path.splitext(file)[0] + ".txt", root)
    return Entry(locate(file, root),
                 clean(read_bytes(text, MAX_TEXT).decode("utf-8-sig"), "text") if text.exists() else None)


def parse_llava(talk, root):
    if not isinstance(talk, dict) or not isinstance(talk.get("conversations"), list):
        raise ValueError('expected {"image": NAME, "conversations": [...]}')
    turns = []
    for turn in talk["conversations"]:
        speaker, role = (("human", "user"), ("gpt", "assistant"))[len(turns) % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker:
            raise ValueError(f'turn {len(turns) + 1} is not from "{speaker}": human and gpt must take turns')
        turns.append((role, clean(turn.get("value"), "value") or ""))
    turns = turns[:len(turns) // 2 * 2]                          # a last question without an answer teaches nothing
    if other := [key for key in OTHER_MEDIA if talk.get(key)] or [
            mark for mark in ("<video>", "<audio>") if any(mark in text for _, text in turns)]:
        raise ValueError(f"about {other[0]}, expected one picture (\"image\") or text alone")
    image, marks = talk.get("image"), [text.count("<image>") for _, text in turns]
    if image is not None and not isinstance(image, str):
        raise ValueError(f"image is {image!r:.40}, expected one file name")
    if sum(marks) > (image is not None) or any(marks[1:]):
        raise ValueError(f"<image> {sum(marks)} times and {'one' if image else 'no'} picture, expected it once "
                         f"at most, in the first turn, and only beside \"image\"")
    if turns and image:                                          # training puts the picture in front of the question
        turns[0] = "user", turns[0][1].replace("<image>", "").strip()
    if not turns or not all(text for _, text in turns):
        raise ValueError("a turn without text, or no turns at all")
    return Entry(image if image is None else locate(image, root), turns=turns)


def locate(name, root):
    """The path of file `name` in the folder `root` (resolved), or ValueError if it leads out of it."""
    path = (root / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(root):
        raise ValueError(f"{name!r} is outside of the folder {root}, expected a name inside")
    return path


def clean(text, what):
    """A stripped text, None for an empty one or none at all."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{what} is {text!r:.40}, expected a string")
    if text and any("\ud800" <= c <= "\udfff" for c in text):     # JSON can say it, UTF-8 cannot
        raise ValueError(f"{what} is not valid text")
    return text and text.strip() or None
