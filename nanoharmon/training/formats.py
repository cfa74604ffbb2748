"""What a folder of pictures or a LLaVA file says it has, before any picture is opened.

    DIR/metadata.jsonl     {"file_name": "a.png", "text": "a tabby cat", "label": "cat"} in each line; "label" is
                           optional, "text" too (such a picture serves the stages vae and mar); "caption", "prompt" or
                           "description" instead of "text" will do
    DIR/metadata.csv       the same as a table, file_name,text,label in its first line
    DIR/*/metadata.*       the same in folders of DIR
    DIR/a.png, DIR/a.txt   a picture and its text, also in folders, where there is no metadata; a.caption or a.json
                           ({"text": ...}) instead of a.txt will do
    DIR/cat/a.png          where no picture has a text (a.json aside), the names of several folders are labels
    DIR/0.tar, FILE.tar    WebDataset: a.png and a.txt as above, a.cls with its label, in a tar that is not compressed
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
from .entries import MAX_TEXT, Entry, Packed, as_label, clean, described, locate, members, read_bytes, small_text
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
        if not (found or problems):
            raise ValueError(f"{name}: no pictures in it, expected some{''.join(f'; {note}' for note in notes)}")
    elif path.is_file() and kind in TALKS:
        if images and not Path(images).is_dir():
            raise ValueError(f"{name} names pictures in {images}, expected a folder that holds them")
        found = list_llava(path, Path(images).resolve() if images else None)
    else:
        what = "expected" if os.path.exists(name) else "no such file or folder, expected"
        raise ValueError(f"{name}: {what} a folder of pictures, a .tar, or a LLaVA file (.json, .jsonl)")
    entries = []
    for where, make in found:
        try:
            entries.append(make())
        except (ValueError, OSError, RuntimeError) as e:         # RuntimeError: links in a circle, JSON nested too deep
            problems.append(f"{where}: {e}")
    if path.is_dir() and (listed := list_metadata(start := start_of(path))):
        used = {str(e.path) for e in entries} | {os.path.realpath(file) for file in listed}
        notes += left_out([file for file in all_files(path) if os.path.realpath(path / file) not in used
                           and (path / file).is_relative_to(start)], f"no good line of {listed[0].name} names them")
    if ignored := Counter(what for e in entries for what in e.ignored):
        notes.append("not read: " + first_of([f"{n} {what}" for what, n in ignored.most_common()], 8))
    return Found(entries, problems, notes)


# --- what there is: [(where, function that makes the Entry), ...] -----------------------------------------------------

def list_folder(path):
    """(entries still to be made, problems, notes) of a folder."""
    start, files, beside, problems, notes = start_of(path), [], [], [], []
    for file in all_files(path):
        (files if (path / file).is_relative_to(start) else beside).append(file)
    if listed := list_metadata(start):
        found = [row for file in listed for row in list_rows(file)]
        if not found:
            raise ValueError(f"{listed[0]}: no lines, expected one for each picture; fill it, or delete it")
    else:
        links = [file for file in files if file.endswith("/")]
        inside = [os.path.relpath(path / file, start) for file in files if file not in links]
        found, problems, notes, unused = list_files({name: start / name for name in inside}, start)
        notes += left_out(unused + links)
    if not (found or problems):
        others = count_suffixes(files + beside)
        raise ValueError(f"{path}: neither a metadata.jsonl nor pictures ({', '.join(SUFFIXES)}) here, "
                         f"expected one of them" + (f"; it holds {others}" if others else ""))
    others = f"; in other splits, or beside them: {count_suffixes(beside)}" if beside else ""
    return found, problems, [f"only {start} is read{others}"] * (start != path) + notes


def start_of(path):
    """The folder to begin in: `path`, or its train folder if it holds nothing but the parts of a data set."""
    found = {p.name.lower(): p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")}
    loose = set(found) == {"train"} and any(p.suffix.lower() in (*SUFFIXES, ".tar") and p.is_file()
                                            and not p.name.startswith(".") for p in path.iterdir())
    whole = loose or any((path / name).is_file() for name in METADATA) or "train" not in found or set(found) - SPLITS
    return path if whole else found["train"]


def list_metadata(start):
    """The metadata files of a folder; where it has none, those in its folders."""
    folders = sorted(p for p in start.iterdir() if p.is_dir() and not p.name.startswith("."))
    for places in [start], folders:
        found = (next((file for name in METADATA if os.path.isfile(file := place / name)), None) for place in places)
        if found := [file for file in found if file]:
            return found
    return []


def list_rows(path):
    """What a metadata.jsonl or metadata.csv lists."""
    raw, root = read_bytes(path), path.parent.resolve()
    if path.suffix == ".jsonl":
        lines = [(i, line) for i, line in enumerate(raw.splitlines(), 1) if line.strip()]
        return [(f"{path}, line {i}", lambda line=line: parse_row(json.loads(line), root)) for i, line in lines]
    try:
        (_, header), *rows = table_rows(raw.decode("utf-8-sig")) or [(1, [])]
        if isinstance(header, csv.Error):
            raise header
    except (ValueError, csv.Error) as e:
        raise ValueError(f"{path}: not a table in UTF-8 ({e})") from None
    return [(f"{path}, line {i}", lambda row=row: parse_row(of_table(header, row), root)) for i, row in rows]


def table_rows(text):
    """[(number of its first line, cells or csv.Error), ...] of a table. A quote that is not closed costs its own line:
    the next one begins anew."""
    lines, rows, at = list(io.StringIO(text, newline="")), [], 0
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    while at < len(lines):
        start = at
        reader = csv.reader((lines[i] for i in range(start, len(lines))), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                rows += [(at + 1, cells)] * bool(cells)
                at = start + reader.line_num
        except csv.Error as e:
            rows.append((at + 1, e))
            at += 1
    return rows


def list_files(files, root):
    """(entries still to be made, problems, notes, names that are not used) of {name in the folder root: path}:
    pictures and texts, loose or in a .tar."""
    files, problems, samples, pictures, linked = dict(files), [], {}, [], []
    for name in [name for name in files if name.lower().endswith(".tar") and files[name].is_file()]:
        packed, problem, links = members(files.pop(name))
        linked += links
        files |= {f"{name}/{m.name}": m for m in packed if not os.path.basename(m.name).startswith(".")}
        problems += [problem] * bool(problem)
    for name, file in sorted(files.items()):
        stem, suffix = split_name(name, file)
        samples.setdefault(stem, []).append((suffix, name))
    for parts in samples.values():           # pictures: (name, name of its text or None, name of its label or None)
        text, label = (next((name for kind in kinds for suffix, name in parts if suffix == kind), None)
                       for kinds in (TEXTS, [".cls"]))
        pictures += [(name, text, label) for suffix, name in parts if suffix in SUFFIXES]
    folders = {folder_name(name) for name, _, _ in pictures} - {None}
    said = any(label or text and not text.lower().endswith(".json") for _, text, label in pictures)
    by_folder, notes = len(folders) > 1 and not said, []         # a .json may hold a text or none: parse_files
    if by_folder:
        notes = [f"the names of {len(folders)} folders are labels, of pictures that have neither text nor label"]
    real = root.resolve()

    def make(name, *others):
        opened = [files[n] if isinstance(files.get(n), Packed) else n and locate(n, real) for n in (name, *others)]
        return parse_files(*opened, folder_name(name) if by_folder else None)
    found = [(str(root / names[0]), lambda names=names: make(*names)) for names in pictures]
    return found, problems, notes, linked + list(files.keys() - {name for names in pictures for name in names})


def folder_name(name):
    """The name of the folder that a file lies in; None at the top, also at that of a .tar."""
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
    slash behind it; a folder that cannot be read, with two."""
    found = []

    def unreadable(error):
        found.append(os.path.relpath(error.filename, root) + "//")
    for folder, folders, files in os.walk(root, onerror=unreadable):
        if RUN_FILES & {*files, *folders} and folder != str(root):
            folders[:] = files[:] = []
        folders[:] = [f for f in folders if not f.startswith(".")]               # in place: os.walk goes by this list
        links = [f for f in folders if os.path.islink(os.path.join(folder, f))]
        found += [os.path.relpath(os.path.join(folder, f), root) + "/" * (f in links) for f in files + links
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
        found["unreadable folder" if file.endswith("//") else "link to a folder" if file.endswith("/") else
              "link in a .tar" if file.endswith("/@") else
              suffix if re.fullmatch(r"\.\w{1,9}", suffix) else "other"] += 1
    return first_of([f"{n} {suffix}" for suffix, n in sorted(found.items(), key=lambda x: (-x[1], x[0]))], most)


# --- one of them -> Entry ---------------------------------------------------------------------------------------------

def parse_row(item, root):
    if not isinstance(item, dict) or not isinstance(item.get("file_name"), str):
        fields = f", got {first_of([repr(key) for key in item], 8)}" if isinstance(item, dict) else ""
        raise ValueError('expected {"file_name": NAME, "text": TEXT}' + fields)
    return described(item, locate(item["file_name"], root))


def of_table(header, cells):
    """A row of a table as a line of a metadata.jsonl has it."""
    if isinstance(cells, csv.Error):
        raise ValueError(f"a quote that is not closed, or text behind it ({cells}); a quote inside of a text in quotes "
                         f"is written twice")
    if len(cells) != len(header):
        raise ValueError("more or fewer cells than the first line has; texts with commas stand in quotes")
    row = {key.strip(): value.strip() for key, value in zip(header, cells) if value.strip()}
    return row | {"label": as_label(row["label"])} if "label" in row else row


def parse_files(picture, text, label, folder):
    """The Entry of a picture. text, label: the files with these, or None. folder: the name that labels it, or None."""
    entry = Entry()
    if text and text.suffix.lower() == ".json":
        item = json.loads(read_bytes(text, MAX_TEXT))
        entry = described(item) if isinstance(item, dict) else entry
    elif text:
        entry = Entry(caption=clean(small_text(text), "text"))
    entry.path = picture
    if label:
        entry.label = as_label(small_text(label).strip())
    elif entry.label is None and entry.caption is None:
        entry.label = folder
    return entry
