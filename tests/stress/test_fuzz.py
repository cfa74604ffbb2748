"""Mutated files: whatever is in a picture, a JSON file or a safetensors header, it is read, or refused in one line,
soon, and without harm.     python -m pytest -q tests/stress/test_fuzz.py -m stress

Always the same files. PNGs have the right checksums half of the time, so that the damage comes further. What can be read must be usable, too.
"""
import contextlib
import copy
import faulthandler
import io
import json
import logging
import random
import re
import shutil
import struct
import tarfile
import time
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from nanoharmon.cli import in_words
from nanoharmon.config import pico
from nanoharmon.evals import external
from nanoharmon.files import write_json
from nanoharmon.harmon import Harmon
from nanoharmon.pictures import MAX_PIXELS, open_image
from nanoharmon.pipeline import Pipeline
from nanoharmon.tokenizer import Tokenizer
from nanoharmon.training import formats
from nanoharmon.weights.safetensors import open_tensors, save_safetensors
from nanoharmon.weights.states import load_state, save_state

pytestmark = pytest.mark.stress
SLOW = 20                                        # seconds of CPU time; the largest pictures that are allowed need two


def mutate_bytes(rng, data, others):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at, n = rng.randrange(len(data) + 1), rng.randint(1, 1 + len(data) // rng.choice((2, 8, 64)))
        if rng.random() < 0.3:
            at = min(at, rng.randrange(64))      # headers are where it matters
        other = rng.choice((data, *others))
        start, kind = rng.randrange(len(other) + 1), rng.randrange(10)
        if kind <= 3 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind <= 5:
            data[at:at + rng.choice((1, 2, 4))] = rng.choice((b"\0", b"\xff", b"\x7f\xff", b"\xff" * 4, b"\0\0\0\1"))
        elif kind <= 8:                          # cut out, doubled, replaced
            data[at:at + n * (kind != 7)] = b"" if kind == 6 else other[start:start + n]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def mend_png(data):
    """With the right checksum in every chunk."""
    data, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at:at + 4], "big")
        data[end:end + 4] = struct.pack(">I", zlib.crc32(data[at + 4:end])) if end + 4 <= len(data) else b""
        at = end + 4
    return bytes(data)


STRANGE = [None, True, False, -1, 0, 1, 2, 3.5, 2**31, 2**63, 10**30, 1e308, -1e308, float("nan"), float("inf"),
           "", "x", "0", "\ud800", "a\0b", "../x", "/", [], {}, [[]], [1, 2, 3], ["a"], {"a": 1}, "9" * 5000,
           "@deep", "@digits"]


def places(node):
    """(container, key) of all entries of nested dicts and lists, by depth."""
    level, found = [node], []
    while entries_here := [(x, k) for x in level for k in (x if isinstance(x, dict) else range(len(x)))]:
        found.append(entries_here)
        level = [x[k] for x, k in entries_here if isinstance(x[k], (dict, list))]
    return found


def mutate_json(rng, text):
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not (depths := places(tree)):
            break
        inside, key = rng.choice(rng.choice(depths))         # all depths alike, or a vocabulary would take it all
        kind = rng.randrange(8)
        if kind == 0:
            del inside[key]
        elif kind == 1 and isinstance(inside, dict):
            inside[rng.choice((key + "x", key[:-1], "", "__class__"))] = inside.pop(key)
        elif kind <= 3 and isinstance(inside[key], int):
            inside[key] = inside[key] * rng.choice((-1, 1, 2, 1000, 10**9)) + rng.choice((-1, 0, 1, 16, 10**6))
        else:
            inside[key] = copy.deepcopy(rng.choice(STRANGE))
    text = json.dumps(tree)
    return text.replace('"@deep"', "[" * 100_000).replace('"@digits"', "1" * 5000).encode()


def mutate(rng, path, raw, others):
    """A damaged version of the file's bytes, by what kind of file it is."""
    if rng.random() < 0.3 or path.suffix in (".csv", ".tar"):
        return mutate_bytes(rng, raw, others)
    if path.suffix == ".jsonl":
        return b"\n".join(mutate_json(rng, line) if rng.random() < 0.6 else line for line in raw.splitlines())
    if path.suffix == ".safetensors":            # an honest length, or no check behind it would be reached
        start = 8 + int.from_bytes(raw[:8], "little")
        header = mutate_json(rng, raw[8:start])
        return struct.pack("<Q", len(header)) + header + raw[start:]
    return mutate_json(rng, raw)


MODES = {"PNG": "RGB RGBA L P I;16", "JPEG": "RGB L CMYK", "GIF": "P RGBA", "WEBP": "RGB RGBA", "BMP": "RGB P RGBA",
         "TIFF": "RGB L I;16", "PPM": "RGB"}


def pictures():
    """[(name, bytes)] of small pictures in all formats, with what such files carry besides pixels."""
    made, exif, noise = [], Image.Exif(), np.random.default_rng(0).integers(0, 65536, (24, 20, 4)).astype(np.uint16)
    exif[0x0112], exif[0x010E] = 6, "a picture"
    for format, mode in [(format, mode) for format, modes in MODES.items() for mode in modes.split()]:
        image = Image.fromarray(noise[..., 0] if mode == "I;16" else (noise >> 8).astype(np.uint8))
        image = image if mode == "I;16" else image.convert(mode)
        frames = {"save_all": True, "append_images": [image.rotate(180)]} if format in ("PNG", "GIF", "WEBP") else {}
        for options in {}, {"exif": exif, "compression": "tiff_lzw", "progressive": True, "lossless": True, **frames}:
            image.save(file := io.BytesIO(), format, **options)
            made.append((format.lower(), file.getvalue()))
    return made


def look(path):
    image = open_image(path)
    assert image.mode == "RGB" and 0 < len(image.tobytes()) <= 3 * MAX_PIXELS


def fuzz_pictures(folder, n):
    """Yields (format, path, what to do with it) after writing each mutated file."""
    made = pictures()
    for i in range(n):
        rng, (name, data) = random.Random(f"pictures/0/{i}"), made[i % len(made)]
        path, data = folder / f"mutated.{name}", mutate_bytes(rng, data, [other for _, other in made])
        path.write_bytes(mend_png(data) if name == "png" and rng.random() < 0.5 else data)
        yield name, path, look


def draw_and_answer(path):
    pipe = Pipeline.load(path.parent)
    if pipe.plan(["a red circle"])["grid"][0] <= 4:                          # larger ones take their time
        pipe.answer(pipe.draw(["a red circle"], steps=1, iters=1)[0], "what?", max_new_tokens=2)


def talk(path):
    tokenizer = Tokenizer.load(path)
    ids, _ = tokenizer.chat([{"role": "user", "content": [2, "\nwhat? <|im_end|> \x00 日本"]}])
    assert max(ids) < len(tokenizer) and ids.count(tokenizer.im_start) == 2 and isinstance(tokenizer.decode(ids), str)


def read_all(path):
    file = open_tensors(path)
    assert sum(file[name].nbytes for name in file) <= path.stat().st_size


def prepare(folder):
    """{what: (file to mutate, function that reads it)} with good files in a folder."""
    torch.manual_seed(0)
    texts = ["a red circle", "is there a blue ring? no", "Generate an image: two green crosses"]
    pipe = Pipeline(Harmon(pico()), Tokenizer.train(texts * 5, 384), {"size": 16, "draw": {"steps": 2, "iters": 2}})
    pipe.save(folder / "ckpt")
    index = folder / "shards" / "model.safetensors.index.json"
    shutil.copytree(folder / "ckpt", index.parent)
    write_json(index, {"weight_map": dict.fromkeys(open_tensors(index.parent), "model.safetensors")})
    state = save_state(folder, 1, {"step": 1, "params": {"a": torch.ones(2)}, "optimizers": [{"lr": (1, 2.0)}]})
    tensors = {"a.w": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bool), "c": torch.zeros(0, 4)}
    save_safetensors(tensors, folder / "weights.safetensors", {"k": "v"})
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    for name, row in (("metadata", {"file_name": "a.png", "text": "a cat", "label": "cat"}),
                      ("pope", {"question_id": 1, "image": "a.png", "text": "Is there a cat?", "label": "yes"})):
        (folder / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 3, encoding="utf-8")
    (folder / "table").mkdir()
    (folder / "table" / "metadata.csv").write_text("file_name,text,label\na.png,a cat,0\n" * 3, encoding="utf-8")
    (folder / "chat.jsonl").write_text(json.dumps({"image": "a.png", "conversations": [
        {"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}]}) + "\n", encoding="utf-8")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        tar.add(folder / "a.png", "a.png")
        tar.add(folder / "metadata.jsonl", "a.json")
    return {"config.json": (folder / "ckpt" / "config.json", draw_and_answer),
            "tokenizer.json": (folder / "ckpt" / "tokenizer.json", talk),
            "index.json": (index, lambda p: open_tensors(p.parent)),
            "safetensors": (folder / "weights.safetensors", read_all),
            "state": (state, load_state),
            "metadata.jsonl": (folder / "metadata.jsonl", lambda p: formats.read_entries(p.parent)),
            "metadata.csv": (folder / "table" / "metadata.csv", lambda p: formats.read_entries(p.parent)),
            "shard.tar": (folder / "shard.tar", formats.read_entries),
            "chat.jsonl": (folder / "chat.jsonl", lambda p: formats.read_entries(p, p.parent)),
            "pope.jsonl": (folder / "pope.jsonl", lambda p: external.read_pope(p, p.parent))}


def fuzz_others(folder, n):
    """As `fuzz_pictures`, of all other kinds of files."""
    targets = prepare(folder)
    good = {what: path.read_bytes() for what, (path, _) in targets.items()}
    for path, action in targets.values():
        action(path)
    for i in range(n):
        rng, what = random.Random(f"others/0/{i}"), list(targets)[i % len(targets)]
        path, action = targets[what]
        path.unlink()                            # never cut a file that is still mapped
        path.write_bytes(mutate(rng, path, good[what], list(good.values())))
        yield what, path, action
        path.unlink()
        path.write_bytes(good[what])


def run(fuzz, folder, n):
    """{"read" or "refused": how many} of n files; everything else that can happen is an error."""
    seen = Counter()
    for i, (what, path, action) in enumerate(fuzz(folder, n)):
        faulthandler.dump_traceback_later(1800, exit=True)                   # a hang says where
        began = time.process_time()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                action(path)
            seen["read"] += 1
        except (ValueError, OSError) as e:
            line = in_words(e)
            assert line and line.isprintable() and len(line) < 1100, line
            seen["refused"] += 1
        except BaseException as e:               # Rust's panics are no Exceptions
            raise AssertionError(f"{what}, file {i}, {path}: {type(e).__name__}: {e}") from e
        assert (took := time.process_time() - began) < SLOW, f"{what}, file {i}: {took:.0f} s of CPU time"
    faulthandler.cancel_dump_traceback_later()
    return seen


@pytest.mark.parametrize("fuzz, n", [(fuzz_pictures, 1500), (fuzz_others, 220)])
def test_mutated_files_are_read_or_refused_in_one_line(fuzz, n, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])        # pytest's would keep from stderr what reaches users
    count = run(fuzz, tmp_path, n)
    assert count.total() == n and count["refused"] > n / 4 and count["read"] > n / 20
    said = capfd.readouterr().err.splitlines()   # other libraries than libtiff do not write there, either
    assert not [line for line in said if not re.match(r"[\w.]+: ", line)]
