"""What is written comes back, what is broken is refused.     python -m pytest -q tests/test_checkpoint.py"""
import argparse
import itertools
import json
import os
import struct
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from torch import nn

from nanoharmon.config import pico
from nanoharmon.files import FolderLock, write_json
from nanoharmon.weights.checkpoint import load_weights, match_weights, meta_model
from nanoharmon.weights.safetensors import DTYPES, SafeTensors, load_foreign, open_tensors, save_safetensors
from nanoharmon.weights.states import latest_state, load_state, pack, save_state


def same(a, b):
    """Equality that also compares types, dtypes and bits."""
    if isinstance(a, torch.Tensor):
        raw = [bytes(t.contiguous().view(-1).view(torch.uint8).numpy()) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and raw[0] == raw[1]
    if isinstance(a, dict):
        return type(b) is dict and same([*a], [*b]) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


def st(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def test_a_folder_is_one_process_s_until_that_one_ends_or_is_killed(tmp_path):
    out = tmp_path / "out"
    code = f"from nanoharmon.files import *\nlock = FolderLock({str(out)!r})\nlock.take()\nprint(flush=True)\ninput()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    for make in True, False:
        with pytest.raises(ValueError, match=f"out is in use by process {other.pid} .*--out"), FolderLock(out) as lock:
            lock.take(make)
    with other, FolderLock(out) as lock:
        other.kill()
        other.wait()
        lock.take(make=False)
        assert [path.read_bytes().split()[1] for path in out.iterdir()] == [b"%d" % os.getpid()]
    assert [*out.iterdir()] == []


def test_a_model_that_is_about_to_be_loaded_is_not_filled_with_random_numbers(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "normal_", lambda *_, **__: pytest.fail("filled"))     # loads torch's compiler
    assert all(t.is_meta for t in meta_model(pico()).state_dict().values())


def test_every_dtype_round_trips_in_order_and_aligned(tmp_path):
    g, path = torch.Generator().manual_seed(0), tmp_path / "a.safetensors"
    tensors = {f"{code} {shape}": torch.randint(0, 2 if code == "BOOL" else 100, shape, generator=g).to(dtype)
               for code, dtype in reversed(DTYPES.items()) for shape in [(), (3,), (2, 0, 5), (3, 5)]}
    tensors |= {"inf": torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0]),
                "transposed": torch.arange(12.0).view(3, 4).T, "naïve/名": torch.ones(1)}
    save_safetensors(tensors, path, {"format": "pt"})
    file, raw = SafeTensors(path), path.read_bytes()
    assert same(dict(file), tensors)
    start = 8 + int.from_bytes(raw[:8], "little")
    for name, about in json.loads(raw[8:start]).items():
        if name != "__metadata__":                           # aligned in the file already, so that no copy is needed
            assert (start + about["data_offsets"][0]) % file[name].dtype.itemsize == 0
    file["F32 (3, 5)"].fill_(7)                              # private to this process
    assert same(SafeTensors(path)["F32 (3, 5)"], tensors["F32 (3, 5)"])


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HTML, LFS = b"<!DOCTYPE html><html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
BAD = {"empty": (b"", "truncated"), "header of 2**63": (st({}, length=2**63), "above the 100000000 limit"),
    "html": (HTML, "an HTML page, not the file itself"), "lfs": (LFS, "a Git LFS pointer, .*git lfs pull"),
    "pickle": (b"\x80\x02}q\x00(X" + b"\0" * 60, r"a zip or pickle .*\.pth"), "entry": (st({"a": 3}), "'a' has a bad"),
    "duplicate": (st(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "duplicate"),
    "dtype": (st({"a": entry("F8_E4M3")}, b"\0" * 8), "is F8_E4M3, expected float32"),
    "size": (st({"a": entry(shape=[3])}, b"\0" * 8), "12"),
    "two negatives": (st({"a": entry(shape=[-2, -1])}, b"\0" * 8), "shape"),
    "huge empty": (st({"a": entry(shape=[0, 2**62], offsets=[0, 0])}), "shape"),
    "cut data": (st({"a": entry()}, b"\0" * 7), "truncated"), "tail": (st({"a": entry()}, b"\0" * 9), "1 bytes after"),
    "hole": (st({"a": entry(offsets=[4, 12])}, b"\0" * 12), "hole"),
    "overlap": (st({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12), "overlaps")}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_clear_line(case, tmp_path):
    raw, expected = BAD[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=expected) as e:
        SafeTensors(path)
    assert str(e.value).startswith(f"{path}: ") and "\n" not in str(e.value)


def test_sharded_index(tmp_path):
    save_safetensors({"a": torch.ones(2)}, tmp_path / "m-1.safetensors")
    save_safetensors({"b": torch.zeros(3)}, tmp_path / "m-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    write_json(index, {"metadata": {}, "weight_map": {"b": "m-2.safetensors", "a": "m-1.safetensors"}})
    assert same(dict(open_tensors(tmp_path)), {"b": torch.zeros(3), "a": torch.ones(2)})
    (tmp_path / "in").mkdir()
    for bad, what in [("in/../m-1.safetensors", "outside"), (str(tmp_path / "m-1.safetensors"), "outside"),
                      ("x\\m-1.safetensors", "outside"), ("m-2.safetensors", "'a' is not in its shard")]:
        write_json(index, {"weight_map": {"a": bad}})
        with pytest.raises(ValueError, match=what):
            open_tensors(tmp_path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_foreign_files_are_read_without_running_their_code(tmp_path, is_zip):
    path, good = tmp_path / "a.pth", {"w": torch.ones(4), "args": argparse.Namespace(lr=0.1)}
    torch.save(good, path, _use_new_zipfile_serialization=is_zip)
    assert same(load_foreign(path)["w"], good["w"]) and load_foreign(path)["args"] == good["args"]
    raw = path.read_bytes()
    torch.save({"x": os.getcwd}, path, _use_new_zipfile_serialization=is_zip)            # the name of a function
    for data, what in [(path.read_bytes(), "contains code, not only tensors; refused"),
                       *((data, ".*") for data in (raw[:0], raw[:3], raw[:50], raw[:-9], HTML, LFS, b"GIF89a"))]:
        path.unlink(missing_ok=True)                         # never cut a file that is still mapped
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"a.pth: {what}; expected a PyTorch checkpoint"):
            load_foreign(path)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    w = torch.randn(3, 4)
    state = {"state": {0: {"step": torch.tensor(1.0)}}, "nothing": None, "": [], "lr": 0.1, "ok": True, "one": (),
             "a": {"b": torch.zeros(1), 1: "int", "1": "str"}, "nan": float("nan"),
             "embed": w, "part": w[0], "empty": w[:0]}
    assert same(state, load_state(save_state(tmp_path, 1, state)))
    for bad in {"b": object()}, {(1, 2): "b"}, {"b.c": w, "b": {"c": w}}:
        with pytest.raises(ValueError, match="cannot save|one name"):
            pack({"a": bad})


def test_states_are_pruned_replaced_and_skipped_when_damaged(tmp_path):
    assert latest_state(tmp_path) is None
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "step_0000001.safetensors.tmp-write").touch()
    for step in (1, 2, 3, 3, 20):
        final = save_state(tmp_path, step, {"x": torch.full((3,), step), "step": step}, keep=2)
    older = final.with_name("step_0000003.safetensors")
    assert sorted(final.parent.iterdir()) == [older, final] and final == latest_state(tmp_path)
    assert final.name == "step_0000020.safetensors"
    raw = final.read_bytes()
    for broken in raw[:-5], b"", b"{}", raw.replace(b'"tree"', b'"trea"'), raw:
        final.unlink()                                       # never change a file that is still mapped
        final.write_bytes(broken)
        assert latest_state(tmp_path) == (final if broken == raw else older)
    newer = save_state(tmp_path, 4, {}, keep=1)              # a later step is not this run's to delete
    assert sorted(final.parent.iterdir()) == [newer, final]


def test_a_kill_before_any_system_call_leaves_a_good_state(tmp_path, monkeypatch):
    """Also when a state of the same step is replaced. From the chosen call on, no call does anything any more."""
    def save(step, value):
        save_state(folder, step, {"step": step, "tensors": [torch.full((n,), value) for n in (9, 5)]}, keep=1)

    def mortal(call):
        def wrapped(*args, **options):
            if next(calls) >= moment:
                raise KeyboardInterrupt
            return call(*args, **options)
        return wrapped
    for step, moment in itertools.product((1, 2), range(30)):
        folder, calls = tmp_path / f"{step} {moment}", itertools.count()
        save(1, 0)
        with monkeypatch.context() as m, suppress(KeyboardInterrupt):
            for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
                m.setattr(os, name, mortal(getattr(os, name)))
            save(step, 1)
        state = load_state(latest_state(folder))
        found, = {x for t in state["tensors"] for x in t.tolist()}               # one number, of the old or new state
        assert (state["step"], found) in ((1, 0), (step, 1)) and found >= (moment == 29)
        save(3, 2)
        assert os.listdir(folder / "state") == ["step_0000003.safetensors"]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


GOOD = {k: v + 1 for k, v in Tied().state_dict().items()}


@pytest.mark.parametrize("change, what", [
    ({"norm.weight": torch.ones(4)}, r"norm.weight is \(4,\) in .*\(3,\) in the m"),
    ({"norm.weight": None}, "1 missing: norm.weight"), ({"x": torch.ones(1)}, "1 unexpected: x"),
    ({"head.weight": torch.zeros(5, 3)}, "embed.weight and head.weight differ")])
def test_weights_that_do_not_fit_are_refused(change, what):
    with pytest.raises(ValueError, match=what):
        match_weights(Tied(), {k: v for k, v in {**GOOD, **change}.items() if v is not None})


def test_weights_fill_a_meta_module_from_the_file(tmp_path):
    good = {k: v for k, v in GOOD.items() if k not in ("head.weight", "norm.bias")}      # one name of two is enough
    save_safetensors({**good, "loss.x": torch.ones(1)}, tmp_path / "a.safetensors")
    with torch.device("meta"):
        model = Tied()
    model.embed.weight.requires_grad_(False)
    file = open_tensors(tmp_path / "a.safetensors")
    report = match_weights(model, file, ignore=("loss.*", "norm.bias"))
    assert (report.missing, report.unexpected) == (["norm.bias"], ["loss.x"])
    load_weights(model, file, report, torch.float32)
    assert same({k: model.state_dict()[k] for k in good}, good)
    assert model.head.weight is model.embed.weight and not model.embed.weight.requires_grad
    assert model.embed.weight.data_ptr() == file["embed.weight"].data_ptr()              # no copy
    load_weights(model, file, report, torch.bfloat16)
    assert model.norm.weight.dtype == model.norm.running_mean.dtype == torch.bfloat16
    assert model.norm.num_batches_tracked.dtype == torch.int64 and model.norm.weight.requires_grad
