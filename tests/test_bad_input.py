"""Every command line, misused: exit code 2, one line that names what was wrong and what helps, nothing written.

    python -m pytest -q tests/test_bad_input.py
    python -m pytest -q tests/stress/test_more_bad_input.py -m stress          many more wordings, and odd texts

The mistakes are the rows of bad_input.txt, one per message. All run in this process, in one folder with a tiny
checkpoint and all kinds of wrong files; afterwards it must hold the same files.
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
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import chat
import nanoharmon.__main__
import sample
import train
from nanoharmon import bench, convert, data, evaluate, probe
from nanoharmon.cli import run_main
from nanoharmon.config import to_dict
from nanoharmon.evals import contrast, featuremap, quality, study
from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.qwen import Qwen
from nanoharmon.training import memory
from nanoharmon.weights.safetensors import save_safetensors
from nanoharmon.world import language
from test_pipeline import make_pipeline

MAIN = {module.__name__.split(".")[-1]: module.main for module in (
    sample, chat, train, convert, bench, evaluate, language, data, probe, featuremap, quality, study, contrast, memory,
    nanoharmon.__main__)}
WORK = {"launch", "worker", "workers", "measure", "write", "precision", "time_model", "train_eye", "run_study"}
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


def typed(flags):
    """What a shell makes of flags, with {x*300} and escapes written out."""
    for word in shlex.split(flags):
        word = re.sub(r"\{(.+?)\*(\d+)\}", lambda m: m[1] * int(m[2]), word)
        yield word.encode("latin-1", "backslashreplace").decode("unicode_escape")


ROWS = read_table(Path(__file__).with_name("bad_input.txt"))


# --- a folder full of wrong files -------------------------------------------------------------------------------------

def half(raw):
    return raw[:len(raw) // 2]


def tokenizer_with(word, number):
    def change(raw):
        stored = json.loads(raw)
        stored["model"]["vocab"][word] = number
        return json.dumps(stored).encode()
    return change


# checkpoints in which one file is missing or has other bytes: {name: (file, what becomes of its bytes)}
DAMAGED = {"no_config": (C, None), "cut_config": (C, half), "no_model": (C, lambda raw: b"{}"),
           "other_tokenizer": (T, lambda raw: b"{}"), "large_tokenizer": (T, tokenizer_with("new", 400)),
           "cut_weights": (M, half),                         # and one whose last number is none
           "not_finite": (M, lambda raw: raw[:-4] + struct.pack("<f", float("nan")))}


def damage(source, target, file, change):
    """A folder like another one, but for one file."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != file:
            os.link(path, target / path.name)
    if change:
        (target / file).write_bytes(change((source / file).read_bytes() if (source / file).exists() else b""))


def entry(name, value):
    """Changes an entry of config.json; dots stand between levels."""
    def change(raw):
        stored = inside = json.loads(raw)
        *levels, last = name.split(".")
        for level in levels:
            inside = inside[level]
        inside[last] = json.loads(value)
        return json.dumps(stored).encode()
    return change


def not_a_run(path, stored):
    """A training output that looks finished, but for its train_config.json."""
    (path / "stage_vae").mkdir(parents=True)
    (path / "stage_vae" / C).write_text("{}")
    (path / "train_config.json").write_text(json.dumps(stored))


def wrong_files(path):
    Image.new("RGB", (32, 32), "red").save(path / "red.png")
    red = (path / "red.png").read_bytes()
    for name, content in {"cut.png": red[:60], "text.png": b"hello", "latin1.txt": "a caf\xe9\n".encode("latin-1"),
                          "blank.txt": b"\n \n", "long.txt": b"a ring\n" + b"a" * 10**5}.items():
        (path / name).write_bytes(content)
    for name in "folder", "folder.png":
        (path / name).mkdir()
    (path / "huge.bin").touch()
    os.truncate(path / "huge.bin", 10**11)                   # no room on the disk, but too much for any memory
    for name, side in ("bomb.png", 20000), ("large.png", 9000):
        head = b"IHDR" + struct.pack(">II", side, side) + red[24:29]             # only the header says so
        (path / name).write_bytes(red[:12] + head + struct.pack(">I", zlib.crc32(head)) + red[33:])
    damage(path / "ckpt", path / "run_without" / "stage_vae", T, None)
    torch.save(pytest.approx, path / "code.pth")
    not_a_run(path / "run_list", [])


@pytest.fixture(scope="module")
def here(tmp_path_factory, request):
    """A folder with a checkpoint, an LLM, a picture, and whatever else people pass by mistake in this test file."""
    path, table = tmp_path_factory.mktemp("here"), request.module
    pipe = make_pipeline(draw={"steps": 3, "iters": 4})
    pipe.save(path / "ckpt")
    llm = pipe.model.llm
    (path / "qwen").mkdir()
    save_safetensors({k: v for k, v in llm.state_dict().items() if k != "lm_head.weight"}, path / "qwen" / M)
    (path / "qwen" / C).write_text(json.dumps({"model_type": "qwen2", **to_dict(llm.config)}))
    shutil.copy(path / "ckpt" / T, path / "qwen")
    for word in {word for _, flags, _ in table.ROWS for word in typed(flags) if word.startswith("damaged")}:
        kind, _, name = word.partition("/")
        source = path / ("ckpt" if kind == "damaged" else "qwen")
        damage(source, path / word, *((C, entry(*name.split("=", 1))) if "=" in name else table.DAMAGED[name]))
    table.wrong_files(path)
    return path


def state(folder):
    """Of all files below: names, sizes, times of the last change."""
    paths = [os.path.join(where, name) for where, folders, files in os.walk(folder) for name in folders + files]
    return {path: (s.st_size, s.st_mtime_ns) for path in paths for s in [os.stat(path)]}


@pytest.fixture(scope="module")
def known(here):
    """What the last row has left behind, and the checkpoint once it is loaded."""
    return SimpleNamespace(state=state(here), load=functools.cache(Pipeline.load))


@pytest.fixture
def nothing_starts(known, monkeypatch):
    """Whatever is wrong is noticed before the work begins."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(Pipeline, "load", known.load)
    work = [(module, name) for main in MAIN.values() for module in [sys.modules[main.__module__]]
            for name in WORK & set(vars(module))]
    for owner, name in [*work, (Harmon, "draw"), (Qwen, "generate")]:
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: pytest.fail(f"{name} began"))
    yield
    torch.set_num_threads(threads)


def check_refused(row, here, known, capsys):
    """A row of a table, typed in the folder `here`."""
    command, flags, words = row
    with pytest.raises(SystemExit) as e:
        run_main(lambda: MAIN[command](list(typed(flags))))
    out, err = capsys.readouterr()
    assert e.value.code == 2 and err.startswith("error: ") and err[-1] == "\n" and err[:-1].isprintable(), err
    assert all(word in err for word in words) and len(err) < 1100, err
    before, known.state = known.state, state(here)
    assert not out and known.state == before


def name_of(row):
    return f"{row[0]}{ascii(row[1])[1:80]}"


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_a_mistake_is_one_line_that_says_what_to_change(row, here, known, nothing_starts, capsys, monkeypatch):
    monkeypatch.chdir(here)
    check_refused(row, here, known, capsys)


def test_every_command_is_misused():
    assert {command for command, *_ in ROWS} == set(MAIN)
