"""Mutated files: whatever is in a picture or a JSON file, it is read, or refused in one line, soon, and without harm.

    python -m pytest -q tests/test_fuzz.py          5,000 pictures and 600 JSON files, always the same
    python -m tests.test_fuzz 50000                 50,000 of each (two minutes), and what came out, as a table
    python -m tests.test_fuzz 5000 7                another seed

Mutations of bytes: flipped bits, extreme values, pieces cut out, doubled, moved between files, files cut short. In PNGs
the checksums are made right again half of the time, so that the damage comes further. Mutations of JSON: entries
replaced by something else, renamed, or taken away. What can be read must also be usable: a checkpoint draws and
answers. tests/test_checkpoint.py does the same to the headers of safetensors files.
"""
import contextlib
import copy
import faulthandler
import io
import json
import logging
import random
import shutil
import struct
import sys
import tempfile
import time
import types
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nanoharmon.cli import explain
from nanoharmon.config import pico, to_dict
from nanoharmon.files import write_json
from nanoharmon.harmon import Harmon
from nanoharmon.pictures import MAX_PIXELS, open_image
from nanoharmon.pipeline import Pipeline
from nanoharmon.tokenizer import Tokenizer
from nanoharmon.evals import external
from nanoharmon.training import entries, resume as stages
from nanoharmon.training.recipe import Config
from nanoharmon.weights.checkpoint import load_state, save_state
from nanoharmon.weights.convert import load_llm
from nanoharmon.weights.safetensors import open_tensors, save_safetensors

SLOW = 20                                        # seconds of CPU time; the largest pictures that are allowed need two


# --- mutations --------------------------------------------------------------------------------------------------------

def mutate_bytes(rng, data, others):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at, n = rng.randrange(len(data) + 1), rng.randint(1, 1 + len(data) // rng.choice((2, 8, 64)))
        if rng.random() < 0.3:
            at = min(at, rng.randrange(64))      # headers are where it matters
        kind = rng.randrange(7)
        if kind <= 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at:at + rng.choice((1, 2, 4))] = rng.choice((b"\0", b"\xff", b"\x7f\xff", b"\xff" * 4, b"\0\0\0\1"))
        elif kind == 3:
            del data[at:at + n]
        elif kind == 4:
            data[at:at] = data[at:at + n]
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            data[at:at + n] = other[start:start + n]
        elif kind == 6 and rng.random() < 0.3:
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


def places(node, at=()):
    """The paths of all entries of nested dicts and lists."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield (*at, key)
        yield from places(node[key], (*at, key))


def mutate_json(rng, text):
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = list(places(tree))
        if not paths:
            return json.dumps(rng.choice(STRANGE[:-2])).encode()
        depth = rng.randint(1, max(map(len, paths)))         # all depths alike, or a vocabulary would take it all
        *path, key = rng.choice([path for path in paths if len(path) == depth])
        inside = tree
        for step in path:
            inside = inside[step]
        kind = rng.randrange(8)
        if kind == 0:
            del inside[key]
        elif kind == 1 and isinstance(inside, dict):
            inside[rng.choice((key + "x", key[:-1], "", "__class__"))] = inside.pop(key)
        elif kind == 2 and isinstance(inside[key], int):
            inside[key] += rng.choice((-1, 1, 16, 10**6))
        elif kind == 3 and isinstance(inside[key], int):
            inside[key] *= rng.choice((-1, 2, 1000, 10**9))
        else:
            inside[key] = copy.deepcopy(rng.choice(STRANGE))
    text = json.dumps(tree)
    return text.replace('"@deep"', "[" * 100_000).replace('"@digits"', "1" * 5000).encode()


# --- pictures ---------------------------------------------------------------------------------------------------------

def pictures():
    """[(name, bytes)] of small pictures in all formats, with what such files carry besides pixels."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 20, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    rgb, gray, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("RGB").quantize(16)
    wide = Image.fromarray(rng.integers(0, 65536, (24, 20)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    more = {"save_all": True, "append_images": [rgb.rotate(90 * i) for i in (1, 2)], "duration": 50}
    made = []
    for image, format, options in (
            (rgb, "PNG", {"exif": exif, "icc_profile": bytes(200)}), (rgba, "PNG", {}), (wide, "PNG", {}),
            (palette, "PNG", {"transparency": 3}), (gray, "PNG", more), (rgb, "JPEG", {"exif": exif, "quality": 80}),
            (gray, "JPEG", {}), (rgb.convert("CMYK"), "JPEG", {}), (rgb, "JPEG", {"progressive": True}),
            (palette, "GIF", {"transparency": 2, "comment": b"hello"}), (palette, "GIF", more),
            (rgb, "WEBP", {"exif": exif}), (rgba, "WEBP", {"lossless": True}), (rgb, "WEBP", more), (rgb, "BMP", {}),
            (palette, "BMP", {}), (rgba, "BMP", {}), (rgb, "TIFF", {}), (rgb, "TIFF", {"compression": "tiff_lzw"}),
            (wide, "TIFF", {}), (gray, "TIFF", {"compression": "tiff_adobe_deflate"}), (rgb, "PPM", {})):
        file = io.BytesIO()
        image.save(file, format, **options)
        made.append((format.lower(), file.getvalue()))
    return made


def look(path):
    image = open_image(path)
    assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS
    return image.tobytes()[:1]


# --- json -------------------------------------------------------------------------------------------------------------

def prepare(folder):
    """{what: (file to mutate, function that reads it)} with good files in a folder."""
    torch.manual_seed(0)
    texts = ["a red circle", "is there a blue ring? no", "Generate an image: two green crosses"]
    pipe = Pipeline(Harmon(pico()), Tokenizer.train(texts * 5, 384), {"size": 16, "draw": {"steps": 2, "iters": 2}})
    pipe.save(folder / "ckpt")
    index = folder / "shards" / "model.safetensors.index.json"
    shutil.copytree(folder / "ckpt", index.parent)
    write_json(index, {"weight_map": dict.fromkeys(open_tensors(index.parent), "model.safetensors")})
    llm = folder / "qwen" / "config.json"
    llm.parent.mkdir()
    shutil.copy(folder / "ckpt" / "tokenizer.json", llm.parent)
    save_safetensors({k: v for k, v in pipe.model.llm.state_dict().items() if k != "lm_head.weight"},
                     llm.with_name("model.safetensors"))
    write_json(llm, {"model_type": "qwen2", "hidden_act": "silu", "rope_scaling": None, "use_sliding_window": False,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, **to_dict(pico().llm)})
    run = folder / "run"
    shutil.copytree(folder / "ckpt", run / "stage_vae")
    config = Config.preset("pico")
    write_json(run / "train_config.json", {"preset": "pico", "command": ["--preset", "pico"], **to_dict(config)})
    state = save_state(folder, 1, {"step": 1, "params": {"a": torch.ones(2)}, "optimizers": [{"lr": (1, 2.0)}]})
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    lines = {"metadata.jsonl": {"file_name": "a.png", "text": "a cat", "label": "cat"},
             "pope.jsonl": {"question_id": 1, "image": "a.png", "text": "Is there a cat?", "label": "yes"},
             "geneval.jsonl": {"tag": "colors", "include": [{"class": "cat", "count": 1}], "prompt": "a black cat"}}
    for name, row in lines.items():
        (folder / name).write_text((json.dumps(row) + "\n") * 3)
    write_json(folder / "llava.json", [{"image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]}] * 2)

    def use(path):
        pipe = Pipeline.load(path.parent)
        if pipe.drawing_options(["a red circle"])["grid"][0] <= 4:                          # larger ones take their time
            pipe.answer(pipe.draw(["a red circle"], steps=1, iters=1)[0], "what?", max_new_tokens=2)

    def talk(path):
        t = Tokenizer.load(path)
        ids, _ = t.chat([{"role": "user", "content": [2, "\nwhat? <|im_end|> \x00 日本"]}])
        assert max(ids) < len(t) and ids.count(t.im_start) == 2 and isinstance(t.decode(ids), str)

    def compare(path):
        args = types.SimpleNamespace(preset="pico", given=set(), command=[])
        stages.count_shards(config, run, 1)
        stages.check_settings(config, args, run, {})
        stages.check_settings(config, args, run, {"1": 4})
    return {"config.json": (folder / "ckpt" / "config.json", use),
            "config.json of Qwen2.5": (llm, lambda p: load_llm(p.parent)),
            "tokenizer.json": (folder / "ckpt" / "tokenizer.json", talk),
            "index.json": (index, lambda p: open_tensors(p.parent)),
            "train_config.json": (run / "train_config.json", compare),
            "state.json": (state / "state.json", lambda p: load_state(p.parent)),
            "metadata.jsonl": (folder / "metadata.jsonl", lambda p: entries.read_entries(p.parent)),
            "llava.json": (folder / "llava.json", lambda p: entries.read_entries(p, p.parent)),
            "pope.jsonl": (folder / "pope.jsonl", lambda p: external.read_pope(p, p.parent)),
            "geneval.jsonl": (folder / "geneval.jsonl", lambda p: external.read_lines(p, "--prompts", ("prompt",)))}


# --- the run ----------------------------------------------------------------------------------------------------------

def attempt(action, path):
    """"read" or "refused"; everything else that can happen is an error."""
    began = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            action(path)
        outcome = "read"
    except (ValueError, OSError) as e:
        line, outcome = explain(e), "refused"
        assert line and line.isprintable() and len(line) < 1100, line
    assert time.process_time() - began < SLOW, f"{time.process_time() - began:.0f} s of CPU time"
    return outcome


def fuzz_pictures(folder, n, seed=0):
    """Yields (format, path, what to do with it) after writing each mutated file."""
    made = pictures()
    for name, data in made:
        look(write(folder / f"good.{name}", data))
    for i in range(n):
        rng = random.Random(f"pictures/{seed}/{i}")
        name, data = made[i % len(made)]
        data = mutate_bytes(rng, data, [other for _, other in made])
        path = folder / f"mutated.{name}"
        yield name, write(path, mend_png(data) if name == "png" and rng.random() < 0.5 else data), look


def fuzz_json(folder, n, seed=0):
    targets = prepare(folder)
    good = {what: path.read_bytes() for what, (path, _) in targets.items()}
    for path, action in targets.values():
        action(path)
    for i in range(n):
        rng = random.Random(f"json/{seed}/{i}")
        what = list(targets)[i % len(targets)]
        path, action = targets[what]
        raw = good[what]
        if rng.random() < 0.3:
            raw = mutate_bytes(rng, raw, list(good.values()))
        elif path.suffix == ".jsonl":
            raw = b"\n".join(mutate_json(rng, line) if rng.random() < 0.6 else line for line in raw.splitlines())
        else:
            raw = mutate_json(rng, raw)
        yield what, write(path, raw), action
        path.write_bytes(good[what])


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("fuzz, n", [(fuzz_pictures, 5000), (fuzz_json, 600)])
def test_mutated_files_are_read_or_refused_in_one_line(fuzz, n, tmp_path, capfd, monkeypatch):
    seen = Counter()
    monkeypatch.setattr(logging.root, "handlers", [])        # pytest's would keep from stderr what reaches users
    for i, (what, path, action) in enumerate(fuzz(tmp_path, n)):
        try:
            seen[what, attempt(action, path)] += 1
        except Exception as e:
            raise AssertionError(f"file {i}, {what}: {type(e).__name__}: {e}") from e
    assert sum(seen.values()) == n and sum(k for (_, outcome), k in seen.items() if outcome == "refused") > n / 4
    assert sum(k for (_, outcome), k in seen.items() if outcome == "read") > n / 20
    assert not capfd.readouterr().err            # libraries do not write there either


def test_nobody_else_writes_to_stderr(tmp_path, capfd, monkeypatch):
    """Pillow logs an error about this TIFF, and libtiff prints one about the other."""
    monkeypatch.setattr(logging.root, "handlers", [])
    tiff, file = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(tiff, "TIFF")
    Image.new("RGB", (99, 99), "red").save(file, "TIFF", compression="tiff_lzw")
    samples = struct.pack("<HHIHH", 277, 3, 1, 3, 0)
    assert tiff.getvalue().count(samples) == 1
    for data in tiff.getvalue().replace(samples, samples[:8] + b"\0\1\0\0"), file.getvalue().replace(b"\x80", b"\xff"):
        with pytest.raises(ValueError, match="change --image"):
            open_image(write(tmp_path / "a.tiff", data))
    assert not capfd.readouterr().err


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    """A tenth of a megabyte that is 13,000 x 13,000 black pixels."""
    rows = zlib.compress(bytes(13_000 * (13_000 // 8 + 1)), 9)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", 13_000, 13_000, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")))
    assert len(data) < 100_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="13000x13000 pixels, more than the limit of 64 million.*change --image"):
        open_image(write(tmp_path / "bomb.png", data))


def main(n, seed=0):
    """Both in full, with a table. Failures are listed, and the files that caused them are kept."""
    faulthandler.enable()
    torch.set_num_threads(1)
    kept = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for fuzz in fuzz_pictures, fuzz_json:
        seen, slowest, began = Counter(), 0.0, time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            for i, (what, path, action) in enumerate(fuzz(Path(folder), n, seed)):
                faulthandler.dump_traceback_later(1800, exit=True)               # a hang says where
                start = time.process_time()
                try:
                    seen[what, attempt(action, path)] += 1
                except BaseException as e:       # Rust's panics are no Exceptions
                    if isinstance(e, KeyboardInterrupt):
                        raise
                    seen[what, "FAILED"] += 1
                    copy = shutil.copy(path, kept / f"{fuzz.__name__}-{seed}-{i}-{path.name}")
                    print(f"{copy}: {type(e).__name__}: {str(e)[:200]}", flush=True)
                slowest = max(slowest, time.process_time() - start)
                faulthandler.cancel_dump_traceback_later()
        print(f"\n{fuzz.__name__}: {n} files, {time.process_time() - began:.0f} s, the slowest took {slowest:.1f} s")
        for what in dict.fromkeys(what for what, _ in seen):
            print(f"  {what:24s}" + "".join(f"{seen[what, k]:7d} {k}" for k in ("read", "refused", "FAILED")))
    with contextlib.suppress(OSError):
        kept.rmdir()                             # empty: nothing failed
    with contextlib.suppress(ImportError):       # not on Windows
        import resource
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or ["5000"]))
