"""What a folder of pictures or a LLaVA file says it has (the formats: folder.py), before any picture is opened.

Nothing outside of the folder is ever named by what this returns: `..`, absolute names and links that lead out of it are
refused. Every line, pair or conversation that cannot be used becomes a problem, in words, and the rest goes on.
"""
import json
import os
from dataclasses import dataclass
from pathlib import Path

MAX_LIST, MAX_TEXT = 2 * 10**9, 10**6        # bytes of a metadata.jsonl or LLaVA file, of one a.txt: memory holds them
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


@dataclass
class Entry:
    """One line, pair or conversation. turns: [(role, text), ...], the user's and the assistant's by turns."""
    path: Path | None = None
    caption: str | None = None
    label: int | str | None = None
    turns: list | None = None


def read_entries(name, images=""):
    """([Entry, ...], ["what: why it is broken", ...]) of a folder, or of a LLaVA file with its pictures in `images`."""
    path = Path(name)
    if path.is_dir():
        root, listed = path, path / "metadata.jsonl"
        if listed.is_file():
            parse, found = parse_line, [(f"{listed}, line {i}", line) for i, line in
                                        enumerate(read(listed).removeprefix(b"\xef\xbb\xbf").splitlines(), 1)
                                        if line.strip()]
        else:
            parse, found = parse_pair, [(str(path / file), file) for file in picture_files(path)]
        if not found:
            raise ValueError(f"{name}: neither a metadata.jsonl with lines nor pictures ({', '.join(SUFFIXES)}) here, "
                             f"expected one of them; change --data")
    elif path.is_file() and path.suffix.lower() == ".json":
        if not images or not Path(images).is_dir():
            raise ValueError(f"{name} names pictures in {images or 'no folder'}, expected a folder; pass --images DIR")
        root, parse, raw = Path(images), parse_llava, read(path)
        try:
            rows = json.loads(raw)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{name}: not valid JSON ({e}); change --llava") from None
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"{name}: a {type(rows).__name__}, expected a list of conversations; change --llava")
        found = [(f"{name}, entry {i}", row) for i, row in enumerate(rows)]
    else:
        raise ValueError(f"{name}: expected a folder of pictures, a LLaVA .json file, or \"shapes\"; change --data, "
                         f"--llava or --mix")
    root, entries, problems = root.resolve(), [], []
    for where, raw in found:
        try:
            entries.append(parse(raw, root))
        except (ValueError, OSError, RuntimeError) as e:         # RuntimeError: links in a circle, JSON nested too deep
            problems.append(f"{where}: {e}")
    return entries, problems


def read(path, most=MAX_LIST):
    """The bytes of a file of a bearable size."""
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{path}: {size / 1e6:,.0f} MB, expected at most {most // 10**6:,} MB; shorten it")
    return path.read_bytes()


def picture_files(root):
    """Relative paths of the pictures in a folder and its subfolders, in the same order everywhere."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [os.path.relpath(os.path.join(folder, file), root) for file in files
                  if file.lower().endswith(SUFFIXES) and not file.startswith(".")]
    return sorted(found)


def locate(name, root):
    """The path of file `name` in the folder `root` (resolved), or ValueError: `..`, absolute names and links may lead
    out of it."""
    path = (root / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(root):
        raise ValueError(f"{name!r} is outside of the folder {root}, expected a name inside")
    return path


def words(text, what):
    """A stripped text, None for an empty one or none at all."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{what} is {text!r:.40}, expected a string")
    if text and any("\ud800" <= c <= "\udfff" for c in text):     # JSON can say it, UTF-8 cannot
        raise ValueError(f"{what} is not valid text")
    return text and text.strip() or None


def parse_line(line, root):
    item = json.loads(line)
    if not isinstance(item, dict) or not isinstance(item.get("file_name"), str):
        raise ValueError('expected {"file_name": NAME, "text": TEXT}')
    label = item.get("label")
    if isinstance(label, bool) or not isinstance(label, (int, str, type(None))) or isinstance(label, int) and label < 0:
        raise ValueError(f"label is {label!r:.40}, expected a whole number from 0 or a string")
    return Entry(locate(item["file_name"], root), words(item.get("text"), "text"),
                 words(label, "label") if isinstance(label, str) else label)


def parse_pair(file, root):
    text = locate(os.path.splitext(file)[0] + ".txt", root)
    return Entry(locate(file, root), words(read(text, MAX_TEXT).decode("utf-8-sig"), "text") if text.exists() else None)


def parse_llava(item, root):
    if not isinstance(item, dict) or not isinstance(item.get("conversations"), list):
        raise ValueError('expected {"image": NAME, "conversations": [...]}')
    turns = []
    for turn in item["conversations"]:
        speaker, role = (("human", "user"), ("gpt", "assistant"))[len(turns) % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker:
            raise ValueError(f'turn {len(turns) + 1} is not from "{speaker}": human and gpt must take turns')
        turns.append((role, words(turn.get("value"), "value") or ""))
    turns = turns[:len(turns) // 2 * 2]                          # a last question without an answer teaches nothing
    image, marks = item.get("image"), [text.count("<image>") for _, text in turns]
    if image is not None and not isinstance(image, str):
        raise ValueError(f"image is {image!r:.40}, expected one file name")
    if sum(marks) > (image is not None) or any(marks[1:]):
        raise ValueError(f"<image> {sum(marks)} times and {'one' if image else 'no'} picture, expected it once "
                         f"at most, in the first turn, and only beside \"image\"")
    if turns and image:                                          # it may come after the question, too
        turns[0] = "user", turns[0][1].replace("<image>", "").strip()
    if not turns or not all(text for _, text in turns):
        raise ValueError("a turn without text, or no turns at all")
    return Entry(image if image is None else locate(image, root), turns=turns)
