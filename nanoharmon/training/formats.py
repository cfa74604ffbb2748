"""What a folder of pictures or a LLaVA file says it has, before any picture is opened.

    DIR/metadata.jsonl     {"file_name": "a.png", "text": "a tabby cat", "label": "cat"} in each line; "label" is
                           optional, "text" too (such a picture serves the stages vae and mar); "caption", "prompt" or
                           "description" instead of "text" will do
    DIR/metadata.csv       the same as a table, file_name,text,label in its first line
    DIR/*/metadata.*       the same in folders of DIR
    DIR/a.png, DIR/a.txt   a picture and its text, also in folders, where there is no metadata; a.caption or a.json
                           ({"text": ...}) instead of a.txt will do
    DIR/cat/a.png          where no picture has a text, the names of several folders are labels
    DIR/0.tar, FILE.tar    WebDataset: a.png and a.txt as above, in a tar that is not compressed
    FILE.json, FILE.jsonl  LLaVA's conversations (llava.py)

Of a folder that holds nothing but train and test (val, validation, dev, ...), only train is read.

Each line, picture or conversation becomes an Entry. One that cannot be used becomes a problem, in words, and the rest
goes on. What is in a folder and in no entry is counted.
"""
import csv
import io
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..cli import first_of
from ..pictures import FORMATS
from .entries import MAX_TEXT, Entry, Packed, clean, described, locate, members, read_bytes
from .llava import list_llava

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm",
            *[".avif"] * ("AVIF" in FORMATS))
METADATA = "metadata.jsonl", "metadata.csv"
TEXTS = ".txt", ".caption", ".json"                              # beside a picture; the first of them that there is
TALKS = ".json", ".jsonl"                                        # files of conversations
RUN_FILES = {"train_config.json", "in_use"}                      # in the folder of every run
SPLITS = {"train", "test", "val", "valid", "validation", "dev", "eval"}


@dataclass
class Found:
    """What a source has: entries, ["where: why it is broken", ...], and lines about what is not used."""
    entries: list
    problems: list
    notes: list


def read_entries(name, images=""):
    """Found of a folder, a .tar, or a file of conversations with its pictures in `images`."""
    path = Path(name)
    if path.name in METADATA and path.is_file():
        raise ValueError(f"{name}: the list of a folder, expected the folder, {path.parent}")
    problems, notes, kind = [], [], path.suffix.lower()
    if path.is_dir():
        found, problems, notes = list_folder(path)
    elif path.is_file() and kind == ".tar":
        found, problems, notes, unused = list_files({path.name: path}, path.parent)
        notes += left_out(unused)
    elif path.is_file() and kind in TALKS:
        if not images or not Path(images).is_dir():
            raise ValueError(f"{name} names pictures in {images or 'no folder'}, expected a folder that holds them")
        found = list_llava(path, Path(images).resolve())
    else:
        raise ValueError(f"{name}: expected a folder of pictures, a .tar, or a LLaVA file (.json, .jsonl)")
    entries = []
    for where, make in found:
        try:
            entries.append(make())
        except (ValueError, OSError, RuntimeError) as e:         # RuntimeError: links in a circle, JSON nested too deep
            problems.append(f"{where}: {e}")
    if path.is_dir() and (listed := list_metadata(start_of(path))):
        used = {str(e.path) for e in entries} | {os.path.realpath(file) for file in listed}
        notes += left_out([file for file in all_files(path) if os.path.realpath(path / file) not in used],
                          f"no good line of {listed[0].name} names them")
    if ignored := Counter(what for e in entries for what in e.ignored):
        notes.append("not read: " + first_of([f"{n} {what}" for what, n in ignored.most_common()], 8))
    return Found(entries, problems, notes)


# --- what there is: [(where, function that makes the Entry), ...] -----------------------------------------------------

def list_folder(path):
    """That of a folder, problems, and notes."""
    start, files, problems, notes = start_of(path), all_files(path), [], []
    if listed := list_metadata(start):
        found = [row for file in listed for row in list_rows(file)]
    else:
        inside = {os.path.relpath(path / file, start): file for file in files
                  if (path / file).is_relative_to(start) and not file.endswith("/")}
        found, problems, notes, unused = list_files({name: start / name for name in inside}, start)
        notes += left_out(unused + list(set(files) - set(inside.values())))
    if not (found or problems):
        others = count_suffixes(files)
        raise ValueError(f"{path}: neither a metadata.jsonl with lines nor pictures ({', '.join(SUFFIXES)}) here, "
                         f"expected one of them" + (f"; it holds {others}" if others else ""))
    return found, problems, [f"only {start} is read"] * (start != path) + notes


def start_of(path):
    """The folder to begin in: `path`, or its train folder if it holds nothing but the parts of a data set."""
    found = {p.name.lower(): p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")}
    whole = any((path / name).is_file() for name in METADATA) or "train" not in found or set(found) - SPLITS
    return path if whole else found["train"]


def list_metadata(start):
    """The metadata files of a folder; where it has none, those in its folders."""
    folders = sorted(p for p in start.iterdir() if p.is_dir() and not p.name.startswith("."))
    for places in [start], folders:
        found = (next((file for name in METADATA if (file := place / name).is_file()), None) for place in places)
        if found := [file for file in found if file]:
            return found
    return []


def list_rows(path):
    """What a metadata.jsonl or metadata.csv lists."""
    raw, root = read_bytes(path).removeprefix(b"\xef\xbb\xbf"), path.parent.resolve()     # the mark of some editors
    if path.suffix == ".jsonl":
        lines = [(i, line) for i, line in enumerate(raw.splitlines(), 1) if line.strip()]
        return [(f"{path}, line {i}", lambda line=line: parse_row(json.loads(line), root)) for i, line in lines]
    try:
        text = raw.decode()
        header = text.split("\n", 1)[0]
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        rows = [(reader.line_num, row) for row in reader]
    except (ValueError, csv.Error) as e:
        raise ValueError(f"{path}: not a table in UTF-8 ({e})") from None
    return [(f"{path}, line {i}", lambda row=row: parse_row(of_table(row), root)) for i, row in rows]


def list_files(files, root):
    """Of {name in the folder root: path}, pictures and texts, loose or in a .tar: what there is, problems, notes, and
    the names that are not used."""
    files, problems, samples, pictures = dict(files), [], {}, []
    for name in [name for name in files if name.lower().endswith(".tar") and files[name].is_file()]:
        packed, problem = members(files.pop(name))
        files |= {f"{name}/{m.name}": m for m in packed if not os.path.basename(m.name).startswith(".")}
        problems += [problem] * bool(problem)
    for name, file in sorted(files.items()):
        stem, suffix = split_name(name, file)
        samples.setdefault(stem, []).append((suffix, name))
    for parts in samples.values():                               # pictures: (name, name of its text or None)
        text = next((name for kind in TEXTS for suffix, name in parts if suffix == kind), None)
        pictures += [(name, text) for suffix, name in parts if suffix in SUFFIXES]
    folders = {folder_name(name) for name, _ in pictures} - {None}
    by_folder, notes = len(folders) > 1 and not any(text for _, text in pictures), []
    if by_folder:
        notes = [f"no picture has a text, so the names of {len(folders)} folders are labels"]
    real = root.resolve()

    def make(name, text):
        picture, text = (files[n] if isinstance(files.get(n), Packed) else n and locate(n, real) for n in (name, text))
        return parse_files(picture, text, folder_name(name) if by_folder else None)
    found = [(str(root / name), lambda pair=(name, text): make(*pair)) for name, text in pictures]
    return found, problems, notes, list(files.keys() - {name for pair in pictures for name in pair})


def folder_name(name):
    """Of the folder that a file lies in, or None; a .tar is none."""
    folder = os.path.basename(os.path.dirname(name))
    return None if folder.lower().endswith(".tar") else folder or None


def split_name(name, file):
    """(name without its suffix, suffix in small letters). WebDataset's names, those in a .tar, end at the first dot."""
    stem, suffix = os.path.splitext(name)
    if isinstance(file, Packed):
        folder, base = os.path.split(name)
        stem, suffix = os.path.join(folder, base.split(".")[0]), base[len(base.split(".")[0]):]
    return stem, suffix.lower()


def all_files(root):
    """Relative paths of all that is in a folder and its subfolders, but for what begins with a dot, and for the folders
    of runs: what train.py writes is not what it learns from. A link to a folder is not followed, it is listed with a
    slash behind it."""
    found = []
    for folder, folders, files in os.walk(root):
        if RUN_FILES & {*files, *folders} and folder != str(root):
            folders[:] = files[:] = []
        folders[:] = [f for f in folders if not f.startswith(".")]               # in place: os.walk goes by this list
        links = [f + "/" for f in folders if os.path.islink(os.path.join(folder, f))]
        found += [os.path.relpath(os.path.join(folder, f), root) + f[len(f.rstrip("/")):] for f in files + links
                  if not f.startswith(".")]
    return found


def left_out(files, why=f"pictures end in {', '.join(SUFFIXES)}"):
    """A line about names of files that are not used, as a list of one or none."""
    counts = count_suffixes(files)
    return [f"left out: {counts}; {why}"] * bool(counts)


def count_suffixes(files, most=8):
    """ "18 .heic, 2 .csv" of names of files."""
    found = Counter()
    for file in files:
        suffix = os.path.splitext(file)[1].lower()
        found["link to a folder" if file.endswith("/") else
              suffix if re.fullmatch(r"\.\w{1,9}", suffix) else "other"] += 1
    return first_of([f"{n} {suffix}" for suffix, n in sorted(found.items(), key=lambda x: (-x[1], x[0]))], most)


# --- one of them -> Entry ---------------------------------------------------------------------------------------------

def parse_row(item, root):
    if not isinstance(item, dict) or not isinstance(item.get("file_name"), str):
        fields = f", got {first_of([repr(key) for key in item], 8)}" if isinstance(item, dict) else ""
        raise ValueError('expected {"file_name": NAME, "text": TEXT}' + fields)
    return described(item, locate(item["file_name"], root))


def of_table(row):
    """A row of a table as a line of a metadata.jsonl has it."""
    if None in row or None in row.values():
        raise ValueError("more or fewer cells than the first line has; texts with commas stand in quotes")
    row = {key: value.strip() for key, value in row.items() if value.strip()}
    return {**row, "label": int(row["label"])} if row.get("label", "").isdecimal() else row


def parse_files(picture, text, label):
    """Of a picture, the file with its text or None, and the label that its folder gives it or None."""
    entry = Entry()
    if text and text.suffix.lower() == ".json":
        item = json.loads(read_bytes(text, MAX_TEXT))
        entry = described(item) if isinstance(item, dict) else entry
    elif text:
        entry = Entry(caption=clean(read_bytes(text, MAX_TEXT).decode("utf-8-sig"), "text"))
    entry.path, entry.label = picture, label if entry.label is None else entry.label
    return entry
