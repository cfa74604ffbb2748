"""checkpoint.py: what is written comes back, what is broken is refused, what is killed survives."""

import argparse
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nanoharmon.files import write_json
from nanoharmon.weights.checkpoint import describe, latest_state, load_state, load_weights, pack, save_state, unpack
from nanoharmon.weights.safetensors import DTYPES, SafeTensors, load_foreign, open_tensors, save_safetensors

ROOT = Path(__file__).parents[1]


def same(a, b):
    """Equality that also compares types, dtypes and bits."""
    if isinstance(a, torch.Tensor):
        return (a.dtype == b.dtype and a.shape == b.shape
                and bytes(a.contiguous().view(-1).view(torch.uint8).numpy())
                == bytes(b.contiguous().view(-1).view(torch.uint8).numpy()))
    if isinstance(a, dict):
        return (isinstance(b, dict) and list(a) == list(b) and [*map(type, a)] == [*map(type, b)]
                and all(same(a[k], b[k]) for k in a))
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


def every_dtype():
    g = torch.Generator().manual_seed(0)
    tensors = {}
    for code, dtype in DTYPES.items():
        for shape in [(), (3,), (2, 0, 5), (3, 5)]:
            x = torch.randint(0, 2 if code == "BOOL" else 100, shape, generator=g)
            tensors[f"{code} {shape}"] = x.to(dtype)
    tensors["inf"] = torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0])
    tensors["transposed"] = torch.arange(12.0).view(3, 4).T
    tensors["naïve/名"] = torch.ones(1)
    return tensors


def st(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


# ---- safetensors


def test_every_dtype_round_trips_in_order_and_aligned(tmp_path):
    tensors, path = every_dtype(), tmp_path / "a.safetensors"
    save_safetensors(tensors, path, {"format": "pt"})
    file = SafeTensors(path)
    assert list(file.keys()) == list(tensors) and file.metadata == {"format": "pt"}
    for name, t in tensors.items():
        assert same(t, file[name]) and file.shape(name) == tuple(t.shape)
        assert file.dtype(name) == t.dtype
        assert file[name].data_ptr() % t.dtype.itemsize == 0
    file["F32 (3, 5)"].fill_(7)  # private to this process
    assert same(SafeTensors(path)["F32 (3, 5)"], tensors["F32 (3, 5)"])
    assert os.listdir(tmp_path) == ["a.safetensors"]
    save_safetensors({}, path)
    assert len(SafeTensors(path)) == 0


def test_official_package_agrees_both_ways(tmp_path):
    official = pytest.importorskip("safetensors.torch")
    tensors = {k: v.contiguous() for k, v in every_dtype().items()}
    save_safetensors(tensors, tmp_path / "ours", {"a": "b"})
    assert same(tensors, {k: official.load_file(tmp_path / "ours")[k] for k in tensors})
    official.save_file(tensors, tmp_path / "theirs", {"a": "b"})
    theirs = SafeTensors(tmp_path / "theirs")
    assert same(tensors, {k: theirs[k] for k in tensors}) and theirs.metadata == {"a": "b"}


def test_unaligned_data_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(st({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                         "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]}},
                        b"\x07" + struct.pack("<f", 1.5)))
    assert SafeTensors(path)["b"].item() == 1.5 and SafeTensors(path)["a"].item() == 7


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


BAD = {
    "empty": (b"", "truncated"),
    "short": (b"\x01\x02", "truncated"),
    "header beyond file": (st({}, length=100), "truncated"),
    "header of 2**63": (st({}, length=2**63), "limit"),
    "html": (b"<!DOCTYPE html><html>404</html>", "HTML"),
    "html after blanks": (b"\n\n  <HTML><body>", "HTML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, "PyTorch .pth"),
    "pickle": (b"\x80\x02}q\x00(X" + b"\0" * 60, "PyTorch .pth"),
    "not json": (st(b"{abc"), "Expecting"),
    "not object": (st(b"[]"), "not a JSON object"),
    "not utf-8": (st(b'{"\xff":1}'), "UTF-8"),
    "deep": (st(b'{"a":' * 100_000), "nested|Expecting"),
    "duplicate": (st(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "duplicate"),
    "metadata": (st({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata list": (st({"__metadata__": []}), "__metadata__"),
    "entry": (st({"a": 3}, b"\0" * 8), "'a'"),
    "missing field": (st({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "'a'"),
    "extra field": (st({"a": entry(x=1)}, b"\0" * 8), "'a'"),
    "dtype": (st({"a": entry("F8_E4M3")}, b"\0" * 8), "dtype"),
    "dtype type": (st({"a": entry(["F32"])}, b"\0" * 8), "dtype"),
    "negative": (st({"a": entry(shape=[-2])}, b"\0" * 8), "shape"),
    "two negatives": (st({"a": entry(shape=[-2, -1])}, b"\0" * 8), "shape"),
    "float shape": (st({"a": entry(shape=[2.0])}, b"\0" * 8), "shape"),
    "true shape": (st({"a": entry(shape=[True, 2])}, b"\0" * 8), "shape"),
    "huge shape": (st({"a": entry(shape=[2**62, 2**62])}, b"\0" * 8), "shape"),
    "huge empty": (st({"a": entry(shape=[0, 2**62], offsets=[0, 0])}), "shape"),
    "huge rank": (st({"a": entry(shape=[1] * 999, offsets=[0, 4])}, b"\0" * 4), "shape"),
    "size": (st({"a": entry(shape=[3])}, b"\0" * 8), "needs 12"),
    "backwards": (st({"a": entry(offsets=[8, 0])}, b"\0" * 8), "needs 8"),
    "negative offset": (st({"a": entry(offsets=[-8, 0])}, b"\0" * 8), "data_offsets"),
    "three offsets": (st({"a": entry(offsets=[0, 4, 8])}, b"\0" * 8), "data_offsets"),
    "cut data": (st({"a": entry()}, b"\0" * 7), "truncated"),
    "trailing": (st({"a": entry()}, b"\0" * 9), "1 bytes after"),
    "hole": (st({"a": entry(offsets=[4, 12])}, b"\0" * 12), "hole"),
    "overlap": (st({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12), "overlaps"),
    "line break": (st({"a\nb": 3}), "'a"),
    "promise of 8 GB": (st({"a": entry(shape=[2**31], offsets=[0, 2**33])}), "truncated"),
    "endless digits": (st(b'{"a":' + b"9" * 9999 + b"}"), "digit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_clear_line(case, tmp_path):
    raw, expected = BAD[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=expected) as e:
        SafeTensors(path)
    assert str(e.value).startswith(f"{path}: ") and "\n" not in str(e.value)
    assert len(str(e.value)) < 600


def test_missing_file_folder_and_bad_bool(tmp_path):
    for path, what in [(tmp_path / "none", "No such file"), (tmp_path, "No such file")]:
        with pytest.raises(ValueError, match=what):
            open_tensors(path)
    with pytest.raises(ValueError, match="not a file"):
        SafeTensors(tmp_path)
    (tmp_path / "b").write_bytes(st({"a": entry("BOOL", [1], [0, 1])}, b"\x02"))
    with pytest.raises(ValueError, match="BOOL"):
        SafeTensors(tmp_path / "b")["a"]


def test_fuzzed_headers_only_raise_value_error(tmp_path):
    rng, path = random.Random(0), tmp_path / "x"
    save_safetensors({"a.w": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bool),
                      "c": torch.zeros(0, 4), "d": torch.tensor(1, dtype=torch.int64)}, path,
                     {"k": "v"})
    good, wanted = path.read_bytes(), int(os.environ.get("NANOHARMON_FUZZ", 10000))
    length = int.from_bytes(good[:8], "little")
    bits = [b"-1", b"0", b"99999999999999999999", b"1e9", b"null", b"true", b"[]", b"{}", b'""',
            b'"F64"', b'"BOOL"', b",", b":", b"}", b"\\ud800", b"\xff", b"NaN", b"\x00", b" "]
    refused, deadline = 0, time.monotonic() + (8 if wanted <= 2000 else 600)
    for _ in range(wanted):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            kind, i = rng.randrange(6), rng.randrange(8, 8 + length)
            if kind == 0:
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            elif kind == 1:
                raw[i:i + rng.randrange(4)] = rng.choice(bits)
            elif kind == 2:
                del raw[i:i + rng.randrange(1, 9)]
            elif kind == 3:
                raw[i:i] = raw[rng.randrange(8, len(raw)):][:rng.randrange(1, 40)]
            elif kind == 4:
                del raw[rng.randrange(len(raw)):]
            else:  # another digit keeps the JSON whole, so that the checks behind it are reached
                digits = [j for j in range(8, min(8 + length, len(raw))) if 48 <= raw[j] < 58]
                if digits:
                    raw[rng.choice(digits)] = rng.choice(b"0123456789")
            if len(raw) < 9:
                break
        if rng.random() < 0.7:  # an honest length, for the same reason
            raw[:8] = struct.pack("<Q", max(0, len(raw) - 8 - (len(good) - 8 - length)))
        path.unlink()  # never cut a file that is still mapped
        path.write_bytes(raw)
        try:
            file = SafeTensors(path)
            for name in file:
                assert file[name].numel() * file[name].element_size() <= len(raw)
        except ValueError as e:
            assert "\n" not in str(e)
            refused += 1
        assert time.monotonic() < deadline
    assert wanted * 0.5 < refused < wanted


def test_sharded_index(tmp_path):
    save_safetensors({"a": torch.ones(2)}, tmp_path / "m-1.safetensors")
    save_safetensors({"b": torch.zeros(3)}, tmp_path / "m-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {"b": "m-2.safetensors", "a": "m-1.safetensors"}
    write_json(index, {"metadata": {}, "weight_map": weight_map})
    file = open_tensors(tmp_path)
    assert list(file) == ["b", "a"] and file["a"].tolist() == [1, 1] and file.shape("b") == (3,)
    for bad, what in [({"a": "../m-1.safetensors"}, "outside"),
                      ({"a": str(tmp_path / "m-1.safetensors")}, "outside"),
                      ({"a": "x\\..\\m.safetensors"}, "outside"), ({"a": "/etc/passwd"}, "outside"),
                      ({"a": "m-3.safetensors"}, "m-3.safetensors"),
                      ({"a": "m-2.safetensors"}, "'a' is not in its shard"),
                      ({"a": 3}, "weight_map"), ([], "weight_map")]:
        write_json(index, {"weight_map": bad})
        with pytest.raises(ValueError, match=what) as e:
            open_tensors(tmp_path)
        assert "\n" not in str(e.value)
    index.write_text("<html>")
    with pytest.raises(ValueError, match="HTML"):
        open_tensors(tmp_path)
    index.unlink()
    save_safetensors({"c": torch.ones(1)}, tmp_path / "model.safetensors")
    assert list(open_tensors(str(tmp_path))) == ["c"]


@pytest.mark.parametrize("tensors, metadata", [
    ({"a": torch.ones(1, dtype=torch.complex64)}, None), ({"a": [1]}, None),
    ({3: torch.ones(1)}, None), ({"__metadata__": torch.ones(1)}, None),
    ({"a": torch.ones(1, device="meta")}, None), ({"a": torch.eye(2).to_sparse()}, None),
    ({"a": torch.ones(1)}, {"a": 1})])
def test_writer_refuses_what_the_format_cannot_hold(tensors, metadata, tmp_path):
    with pytest.raises(ValueError):
        save_safetensors(tensors, tmp_path / "a", metadata)
    assert not os.listdir(tmp_path)


# ---- foreign checkpoints


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_foreign_files(tmp_path):
    obj = {"model": {"w": torch.arange(4.0)}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    for new in (True, False):
        path = tmp_path / f"{new}.pth"
        torch.save(obj, path, _use_new_zipfile_serialization=new)
        back = load_foreign(path)
        assert same(back["model"], obj["model"]) and back["args"] == obj["args"]
        raw = path.read_bytes()
        for cut in (0, 3, 50, len(raw) // 2, len(raw) - 9):
            (tmp_path / "cut.pth").unlink(missing_ok=True)
            (tmp_path / "cut.pth").write_bytes(raw[:cut])
            with pytest.raises(ValueError, match="cut.pth: .*expected a PyTorch"):
                load_foreign(tmp_path / "cut.pth")
        torch.save({"x": Evil(tmp_path / "was_here")}, path, _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match="contains code, not only tensors; refused"):
            load_foreign(path)
    path.write_bytes(pickle.dumps({"x": Evil(tmp_path / "was_here")}, protocol=2))
    with pytest.raises(ValueError, match="refused"):
        load_foreign(path)
    assert not (tmp_path / "was_here").exists()
    for raw, what in [(BAD["html"][0], "HTML"), (BAD["lfs"][0], "Git LFS"), (b"GIF89a", "neither")]:
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=what):
            load_foreign(path)
    with pytest.raises(ValueError, match="No such file"):
        load_foreign(tmp_path / "none")


# ---- states


def train(model, optimizer, seed):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_optimizer_and_rng_states_continue_bit_for_bit(tmp_path):
    def fresh():
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    model, optimizer = fresh()
    rng, generator, numpy = random.Random(1), torch.Generator(), np.random.default_rng(2)
    train(model, optimizer, 1)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1,
             "python": rng.getstate(), "torch": generator.get_state(),
             "numpy": numpy.bit_generator.state, "nothing": None, "": [], "lr": 0.1, "ok": True,
             "a.b": torch.ones(1), "a": {"b": torch.zeros(1), 1: "int", "1": "str"},
             "nan": float("nan"), "inf": -float("inf"), "one": (), "__metadata__": torch.ones(2)}
    back = load_state(save_state(tmp_path, 1, state))
    assert same(dict(state), back)
    wanted = rng.random(), torch.rand(3, generator=generator), numpy.random()
    train(model, optimizer, 2)

    other, optimizer2 = fresh()
    other.load_state_dict(back["model"])
    optimizer2.load_state_dict(back["optimizer"])
    rng.setstate(back["python"])
    generator.set_state(back["torch"])
    numpy.bit_generator.state = back["numpy"]
    got = rng.random(), torch.rand(3, generator=generator), numpy.random()
    train(other, optimizer2, 2)
    assert same(wanted, got) and same(model.state_dict(), other.state_dict())
    assert same(optimizer.state_dict(), optimizer2.state_dict())


def test_pack_keeps_sharing_and_refuses_the_rest():
    w = torch.randn(3, 4)
    tensors, tree = pack({"embed": w, "head": w, "view": w[:], "part": w[0], "e": w[:0]})
    back = unpack(tensors, json.loads(json.dumps(tree)))
    assert len(tensors) == 3 and back["embed"] is back["head"] is back["view"]
    assert same(back["part"], w[0])
    assert same(unpack(*pack(w)), w) and unpack(*pack(3)) == 3
    for bad in [{"a": {"b": object()}}, {(1, 2): 3}, [np.float32(1)], {"a": torch.float32}]:
        with pytest.raises(ValueError, match="cannot save"):
            pack(bad)
    for tree in [{"tensor": "none"}, {"dict": 3}, {"x": []}, {}]:
        with pytest.raises(ValueError, match="unknown entry"):
            unpack({}, tree)


def test_states_are_pruned_replaced_and_skipped_when_damaged(tmp_path):
    assert latest_state(tmp_path) is None
    (tmp_path / "state" / "step_0000001.tmp-write").mkdir(parents=True)
    for step in (1, 2, 3, 3, 20):
        final = save_state(tmp_path, step, {"x": torch.full((3,), step), "step": step}, keep=2)
    assert sorted(os.listdir(tmp_path / "state")) == ["step_0000003", "step_0000020"]
    assert final == latest_state(tmp_path) == tmp_path / "state" / "step_0000020"
    assert sorted(os.listdir(final)) == ["state.json", "state.safetensors"]
    for name in ("state.json", "state.safetensors"):
        raw = (final / name).read_bytes()
        for broken in (raw[:-5], b"", b"{}", None):
            (final / name).unlink()
            if broken is not None:
                (final / name).write_bytes(broken)
            else:
                (final / name).mkdir()
            assert latest_state(tmp_path).name == "step_0000003"
            with pytest.raises(ValueError) as e:
                load_state(final)
            assert "\n" not in str(e.value) and str(final) in str(e.value)
            if broken is None:
                (final / name).rmdir()
                (final / name).write_bytes(raw)
    save_state(tmp_path, 4, {}, keep=1)  # a later step is not this run's to delete
    assert sorted(os.listdir(tmp_path / "state")) == ["step_0000004", "step_0000020"]


def run(script, *args):
    result = subprocess.run([sys.executable, "-c", script, *map(str, args)], cwd=ROOT, text=True,
                            capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr
    return result.stdout


FULL_DISK = """
import os, resource, sys, torch
from nanoharmon.weights.checkpoint import *
from pathlib import Path
out = Path(sys.argv[1])
save_safetensors({"a": torch.zeros(10)}, out / "a.safetensors")
save_state(out, 1, {"a": torch.zeros(10)})
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
big = torch.zeros(100_000)
for attempt in (lambda: save_safetensors({"a": big}, out / "a.safetensors"),
                lambda: write_json(out / "a.json", ["x" * 200_000]),
                lambda: save_state(out, 2, {"a": big})):
    try:
        attempt()
    except OSError as e:
        print(e)
try:
    write_json(out / "none" / "a.json", {})
except OSError as e:
    print(e)
"""


def test_full_disk_is_explained_and_leaves_the_old_file(tmp_path):
    pytest.importorskip("resource")
    *full, missing = run(FULL_DISK, tmp_path).splitlines()
    assert len(full) == 3 and all("could not write" in x and "pass --out" in x for x in full)
    assert all("free space" in x for x in full) and "No such file" in missing
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "state"]
    assert os.listdir(tmp_path / "state") == ["step_0000001"]
    assert SafeTensors(tmp_path / "a.safetensors").shape("a") == (10,)
    assert latest_state(tmp_path).name == "step_0000001"


# one process imports torch and forks the victims, because importing torch takes seconds
KILL = """
import os, random, shutil, signal, sys, time, torch
from nanoharmon.weights import checkpoint
from nanoharmon.weights.checkpoint import *
torch.set_num_threads(1)
out, rng = sys.argv[1], random.Random(0)

def check(at_least):
    path = latest_state(out)
    assert path is not None, os.listdir(out + "/state")
    state = load_state(path)
    assert state["step"] >= at_least, (state["step"], at_least)
    assert all((t == state["step"]).all() for t in state["tensors"]), path
    return state["step"]

def save(step, keep):
    save_state(out, step, {"step": step, "tensors": [torch.full((5000,), step)] * 3 +
                           [torch.full((3000,), step) for _ in range(4)]}, keep=keep)

save(1, 1)
last = 1
for attempt in range(10):  # at random moments
    r, w = os.pipe()
    if (child := os.fork()) == 0:
        for step in range(last, last + 10_000):
            save(step, 1 + attempt % 2)
            os.write(w, b"%d\\n" % step)
    os.close(w)
    first = os.read(r, 10)
    time.sleep(rng.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done = (first + os.read(r, 10**6)).decode().split()
    os.close(r)
    last = check(int(done[-1]))

moments = 0
for replace in (0, 1):  # and before each single system call that matters, also at the same step
    for moment in range(100):
        if (child := os.fork()) == 0:
            left = moment
            def dying(call):
                def wrapped(*args, **kwargs):
                    global left
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                    return call(*args, **kwargs)
                return wrapped
            for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
                setattr(os, name, dying(getattr(os, name)))
            save(last + 1 - replace, 1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        last = check(last)
        moments += 1
        if status == 0:
            break
    assert status == 0, status
save(last, 1)
print(moments, sorted(os.listdir(out + "/state")) == ["step_%07d" % last])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_at_any_moment_leaves_a_good_state(tmp_path):
    moments, is_clean = run(KILL, tmp_path).split()
    assert int(moments) > 20 and is_clean == "True"


# ---- weights into modules


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_load_weights_is_strict_and_untouched_on_error():
    model, good = Tied(), {k: v.clone() + 1 for k, v in Tied().state_dict().items()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    untied = {k: v for k, v in good.items() if k != "head.weight"}
    no_norm = {k: v for k, v in good.items() if k != "norm.weight"}
    for bad, what in [
            ({**good, "norm.weight": torch.ones(4)}, r"norm.weight is \(4,\) in .*\(3,\) in the m"),
            (no_norm, "1 missing: norm.weight"), ({**good, "x": torch.ones(1)}, "1 unexpected: x"),
            ({**good, "norm.num_batches_tracked": torch.tensor(1.5)}, "float32 in .*int64"),
            ({**good, "head.weight": torch.zeros(5, 3)}, "differ"), ({**good, "x": 3}, "x"),
            ({**good, "norm.bias": 3}, "norm.bias is int in the file"), ({}, "7 missing")]:
        with pytest.raises(ValueError, match=what) as e:
            load_weights(model, bad)
        assert "\n" not in str(e.value) and same(dict(model.state_dict()), before)
    with pytest.raises(ValueError, match="two tensors are renamed"):
        load_weights(model, good, rename=lambda k: "norm.bias" if "norm" in k else k)

    report = load_weights(model, untied)  # the tied name may be absent
    assert same(dict(model.state_dict()), good) and not report.missing
    assert model.head.weight is model.embed.weight
    report = load_weights(model, {"m." + k: v for k, v in no_norm.items()} | {"ema.x": 3},
                          rename=lambda k: k[2:] if k[:2] == "m." else None, ignore=("norm.w*",))
    assert report.missing == ["norm.weight"] and report.unexpected == ["ema.x"]
    assert describe(report) == "6 tensors mapped; 1 missing: norm.weight; 1 unexpected: ema.x"
    half = Tied().half()
    load_weights(half, good)
    assert half.embed.weight.dtype == torch.half and half.norm.num_batches_tracked == 1


def test_assign_fills_a_meta_module_from_the_file(tmp_path):
    good = {k: v.clone() + 1 for k, v in Tied().state_dict().items() if k != "head.weight"}
    save_safetensors(good, tmp_path / "a.safetensors")
    with torch.device("meta"):
        model = Tied()
    model.embed.weight.requires_grad_(False)
    file = open_tensors(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="assign=True"):
        load_weights(model, file)
    load_weights(model, file, assign=True)
    assert model.head.weight is model.embed.weight and not model.embed.weight.requires_grad
    assert same({k: model.state_dict()[k] for k in good}, good)
    assert model.embed.weight.data_ptr() == file["embed.weight"].data_ptr()  # no copy
    load_weights(model, file, assign=True, dtype=torch.bfloat16)
    assert model.norm.weight.dtype == model.norm.running_mean.dtype == torch.bfloat16
    assert model.norm.num_batches_tracked.dtype == torch.int64
    assert "running_mean" in dict(model.norm.named_buffers())
    assert isinstance(model.norm.weight, nn.Parameter) and model.norm.weight.requires_grad
