"""Every command line, misused.     python -m pytest -q tests/test_bad_input.py

Exit 2, one line, nothing written. The rows of bad_input.txt, one per message; many more wordings are in tests/stress.
"""
import functools
import json
import os
import re
import shlex
import shutil
import struct
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

import chat
import nanoharmon.__main__
import sample
import train
from nanoharmon import bench, convert, data, evaluate, probe
from nanoharmon.cli import run_main
from nanoharmon.evals import contrast, featuremap, study
from nanoharmon.figures import __main__ as figures
from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.qwen import Qwen
from nanoharmon.training import memory
from nanoharmon.weights.safetensors import save_safetensors
from test_pipeline import make_pipeline

MAIN = {module.__name__.split(".")[-1]: module.main for module in (
    sample, chat, train, convert, bench, evaluate, data, probe, featuremap, study, contrast, memory,
    nanoharmon.__main__)} | {"figures": figures.main}
WORK = {"launch", "worker", "workers", "measure", "write", "precision", "run_study", "contrast", "savings"}
LOAD = functools.cache(Pipeline.load)                        # equal names hold equal checkpoints, if any
C, T, M = "config.json", "tokenizer.json", "model.safetensors"


def read_table(path):
    """[(command, everything typed, words of the error line)]"""
    rows, headers, fresh = [], [], True
    for line in path.read_text(encoding="utf-8").splitlines():
        if header := re.fullmatch(r"\[(\w+)\](.*)", line):
            headers = headers * (not fresh) + [header.groups()]
        elif line.strip() and not line.startswith("#"):
            flags, words = line.split("=>")
            rows += [(command, base + " " + flags.strip(), words.strip().split(" | ")) for command, base in headers]
        fresh = not header
    return rows


def rows_of(table, **places):
    """The columns of a plain table, in rows."""
    lines = Path(__file__).with_name(table).read_text(encoding="utf-8").format(**places).splitlines()
    return [re.split(" +=> +", line) for line in lines if not line.startswith("#")]


def typed(flags):
    """What a shell makes of flags, with {x*300} and escapes written out."""
    for word in shlex.split(flags):
        word = re.sub(r"\{(.+?)\*(\d+)\}", lambda m: m[1] * int(m[2]), word)
        yield word.encode("latin-1", "backslashreplace").decode("unicode_escape")


ROWS = read_table(Path(__file__).with_name("bad_input.txt"))


def entry(name, value):
    """Changes an entry of a JSON file; dots stand between levels."""
    def change(raw):
        stored = inside = json.loads(raw)
        *levels, last = name.split(".")
        for level in levels:
            inside = inside[level]
        inside[last] = json.loads(value)
        return json.dumps(stored).encode()
    return change


# checkpoints in which one file is missing or has other bytes: {name: (file, what becomes of its bytes)}
DAMAGED = {"no_config": (C, None), "cut_config": (C, lambda raw: raw[:99]), "no_model": (C, lambda raw: b"{}"),
           "other_tokenizer": (T, lambda raw: b"{}"), "large_tokenizer": (T, entry("model.vocab.new", "400")),
           "prefix": (T, entry("model.continuing_subword_prefix", '"pre"')), "no_words": (T, entry("model.vocab", "1")),
           "control_id": (T, entry("model.vocab.ar", "1")),
           "cut_weights": (M, lambda raw: raw[:-999]),       # and one whose last number is none
           "not_finite": (M, lambda raw: raw[:-4] + struct.pack("<f", float("nan")))}


def damage(source, target, file, change):
    """A folder like another one, but for one file."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != file:
            os.link(path, target / path.name)
    if change:
        (target / file).write_bytes(change((source / file).read_bytes() if (source / file).exists() else b""))


def wrong_files(path):
    for name in "red.png", "red.gif", "000_0.png":
        Image.new("RGB", (32, 32), "red").save(path / name)
    red = (path / "red.png").read_bytes()
    for name in "folder", "folder.png", "shapes", "first":
        (path / name).mkdir()
    for name, content in {"cut.png": red[:60], "first/0.txt": b"a ring", "shapes/a.heic": b"", "text.png": b"hello",
                          "latin1.txt": "a caf\xe9\n".encode("latin-1"), "blank.txt": b"\n \n", "long.txt": b"a ring\n" + b"a" * 10**5,
                          "lines.json": b'{"prompt": "a"}\n{"prompt" "b"}',
                          "yes.json": b'{"image": "0.png", "text": "x", "label": "Yes"}'}.items():
        (path / name).write_bytes(content)
    for name in "cat", "dog":
        (path / "classes" / name).mkdir(parents=True)
        shutil.copy(path / "red.png", path / "classes" / name)
    for i in range(8):                                                # the first one, which has a text, is held out
        Image.new("RGB", (32, 32), (30 * i, 0, 0)).save(path / "first" / f"{i}.png")
    (path / "empty.tar").write_bytes(bytes(10240))
    (path / "huge.bin").touch()
    os.truncate(path / "huge.bin", 10**11)                   # no room on the disk, but too much for any memory
    for name, side in ("bomb.png", 20000), ("large.png", 9000):
        head = b"IHDR" + struct.pack(">II", side, side) + red[24:29]             # only the header says so
        (path / name).write_bytes(red[:12] + head + struct.pack(">I", zlib.crc32(head)) + red[33:])
    damage(path / "ckpt", path / "run_without" / "stage_vae", T, None)
    torch.save(pytest.approx, path / "code.pth")
    torch.save({"encoder.conv_in.weight": torch.ones(3)}, path / "thin.pth")
    (path / "run_list" / "stage_vae").mkdir(parents=True)             # looks finished, but for train_config.json
    for name, content in ("stage_vae/config.json", "{}"), ("train_config.json", "[]"):
        (path / "run_list" / name).write_text(content, encoding="utf-8")


@pytest.fixture(scope="module")
def here(tmp_path_factory, request):
    """A folder with a checkpoint, an LLM, a picture, and whatever else people pass by mistake in this test file."""
    path, table = tmp_path_factory.mktemp("here"), request.module
    pipe = make_pipeline(draw={"steps": 3, "iters": 4})
    pipe.save(path / "ckpt")
    llm = pipe.model.llm
    (path / "qwen").mkdir()
    save_safetensors({k: v for k, v in llm.state_dict().items() if k != "lm_head.weight"}, path / "qwen" / M)
    (path / "qwen" / C).write_text(json.dumps({"model_type": "qwen2", **asdict(llm.config)}), encoding="utf-8")
    shutil.copy(path / "ckpt" / T, path / "qwen")
    for word in {word for _, flags, _ in table.ROWS for word in typed(flags) if word.startswith("damaged")}:
        kind, _, name = word.partition("/")
        source = path / ("ckpt" if kind == "damaged" else "qwen")
        damage(source, path / word, *((C, entry(*name.split("=", 1))) if "=" in name else table.DAMAGED[name]))
    table.wrong_files(path)
    return path


def state(folder):
    """Of all files below: names, sizes, times of the last change."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture
def nothing_starts(monkeypatch):
    """Whatever is wrong is noticed before the work begins."""
    monkeypatch.setattr(Pipeline, "load", LOAD)
    work = [(module, name) for main in MAIN.values() for module in [sys.modules[main.__module__]]
            for name in WORK & set(vars(module))]
    for owner, name in [*work, (Harmon, "draw"), (Qwen, "generate")]:
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: pytest.fail(f"{name} began"))


def pytest_generate_tests(metafunc):
    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", metafunc.module.ROWS, ids=lambda row: f"{row[0]}{ascii(row[1])[1:80]}")


def test_a_mistake_is_one_line_that_says_what_to_change(row, here, nothing_starts, capsys, monkeypatch):
    monkeypatch.chdir(here)
    (command, flags, words), before = row, state(here)
    with pytest.raises(SystemExit) as e:
        run_main(lambda: MAIN[command](list(typed(flags))))
    out, err = capsys.readouterr()
    assert e.value.code == 2 and err.startswith("error: ") and err[-1] == "\n" and err[:-1].isprintable(), err
    assert all(word in err for word in words) and len(err) < 1100, err
    assert not out and state(here) == before
