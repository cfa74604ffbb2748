"""Files that outlive a crash: weights and training states, without ever executing a pickle.

How: a safetensors file is 8 bytes (header length), a JSON header, then raw tensor bytes. A header
is checked before it is believed; tensors are views of the memory-mapped file, to be treated as
read-only (a write stays private to the process). Files are written beside their destination,
fsynced and renamed, so a reader sees the old one or the new one, never half. A training state
is any nest of dicts, lists, tuples, tensors and numbers, split into safetensors and JSON.

What train.py puts into a state: trained weights, their average (EMA), optimizers, GradScaler, step (the schedule is a
function of it), config, number of processes, versions of the libraries, git commit. No state of a random generator:
every batch, mask, timestep and noise is drawn anew from (seed, stage, step, shard).

The newest K states are kept, not "the best" one: the learning rate falls to the end of a stage, so its last weights are
its best, and the drawing loss is mostly noise: its minimum is a lucky batch.

Simplified: little-endian machines, ten dtypes (no float8, no complex), one writer per path, and no
checksums (the header fixes the exact file size, so a cut file is noticed, a flipped bit is not).
"""

import argparse
import errno
import json
import math
import mmap
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import nn

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U8": torch.uint8, "BOOL": torch.bool}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes, the limit of the official reader


def _check(ok, problem):
    if not ok:
        raise ValueError(problem)


def _recognise(head):
    """Name what people really have when a download went wrong, from a file's first bytes."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (run `git lfs pull`)"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "an HTML page, not the file itself (the download went wrong)"
    # a header length may begin with the same bytes, but then byte 8 opens the JSON
    if re.match(rb"PK\x03\x04|\x80[\x02-\x05]", head) and head[8:9] != b"{":
        return "a zip or pickle (probably a PyTorch .pth)"


def _parse_json(raw):
    def unique(pairs):
        _check(len(dict(pairs)) == len(pairs), "a JSON object has a duplicate key")
        return dict(pairs)

    try:
        obj = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, RecursionError):
        raise ValueError("the JSON is not UTF-8 or nested too deeply") from None
    _check(isinstance(obj, dict), "the JSON is not an object")
    return obj


def _parse_header(data):
    """-> ({name: (data, dtype, shape, begin, end)}, metadata) of a whole file's bytes."""
    start = 8 + int.from_bytes(data[:8], "little")
    _check(start <= 8 + MAX_HEADER, f"header of {start - 8} bytes, above the {MAX_HEADER} limit")
    _check(8 <= len(data) >= start, f"truncated: header needs {start} bytes, got {len(data)}")
    _check(data[8:9] == b"{", "the header is not a JSON object")
    header, entries = _parse_json(data[8:start]), {}
    metadata = header.pop("__metadata__", {})
    _check(isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()),
           "__metadata__ is not a map from text to text")
    for name, entry in header.items():
        label = f"tensor {name[:80]!r}"
        match entry:
            case {"dtype": str(code), "shape": list(shape), "data_offsets": [begin, end]} if (
                    code in DTYPES and len(entry) == 3 and len(shape) <= 64
                    # type(), not isinstance: JSON true is an int in Python
                    and all(type(n) is int and n >= 0 for n in [*shape, begin, end])
                    # a zero among them hides dimensions beyond what torch can index
                    and math.prod(max(n, 1) for n in shape) < 2**60):
                size = math.prod(shape) * DTYPES[code].itemsize
            case _:
                raise ValueError(f"{label} has a bad dtype, shape or data_offsets: "
                                 f"{json.dumps(entry)[:160]}")
        _check(end - begin == size, f"{label} has {end - begin} bytes, its shape needs {size}")
        _check(start + end <= len(data),
               f"truncated: {label} ends at byte {start + end} of {len(data)}")
        entries[name] = data, DTYPES[code], tuple(shape), start + begin, start + end
    for name, (*_, begin, end) in sorted(entries.items(), key=lambda item: item[1][3:]):
        _check(begin == start, f"tensor {name[:80]!r} overlaps or leaves a hole before it")
        start = end
    _check(start == len(data), f"{len(data) - start} bytes after the last tensor")
    return entries, metadata


class SafeTensors(Mapping):
    """A safetensors file, or an index of several, as a mapping; data is read when it is used."""

    def __init__(self, path):
        self.path, head = Path(path), b""
        try:
            _check(self.path.is_file() or not self.path.exists(), "not a file")
            with open(path, "rb") as f:
                data = head = f.read(64)
                if head:  # an empty file cannot be mapped
                    data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
            parse = self._parse_index if self.path.suffix == ".json" else _parse_header
            self._entries, self.metadata = parse(data)
        except (ValueError, OSError) as e:
            what = _recognise(head) or getattr(e, "strerror", None) or e
            raise ValueError(f"{path}: {what}; expected a safetensors file") from None

    def _parse_index(self, data):
        names, files, metadata = _parse_json(data[:MAX_HEADER]).get("weight_map"), {}, {}
        _check(isinstance(names, dict) and all(isinstance(v, str) for v in names.values()),
               "weight_map is not a map from tensor name to file name")
        for name in set(names.values()):
            # the name is checked, links are not: the Hugging Face cache is made of links
            _check(name.endswith(".safetensors") and ".." not in PurePosixPath(name).parts
                   and not re.search(r"^/|[\\:\0]", name), f"shard {name!r} is outside the folder")
            shard = SafeTensors(self.path.parent / name)
            files[name], metadata = shard._entries, metadata | shard.metadata
        for key, name in names.items():
            _check(key in files[name], f"tensor {key[:80]!r} is not in its shard {name!r}")
        return {key: files[name][key] for key, name in names.items()}, metadata

    def __iter__(self):
        return iter(self._entries)

    def __len__(self):
        return len(self._entries)

    def dtype(self, name):
        return self._entries[name][1]

    def shape(self, name):
        return self._entries[name][2]

    def __getitem__(self, name):
        data, dtype, shape, begin, end = self._entries[name]
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        raw = torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=begin)
        if raw.data_ptr() % dtype.itemsize:
            raw = raw.clone()  # legal in the format, but not every processor loads unaligned
        _check(dtype != torch.bool or raw.max() <= 1,
               f"{self.path}: BOOL tensor {name[:80]!r} has bytes other than 0 and 1")
        return raw.view(dtype).view(shape)


def open_tensors(path: str | Path) -> SafeTensors:
    """Open a file, an index, or a folder with model.safetensors.index.json or model.safetensors."""
    index = Path(path) / "model.safetensors.index.json"
    if Path(path).is_dir():
        path = index if index.exists() else index.with_name("model.safetensors")
    return SafeTensors(path)


def load_foreign(path: str | Path):
    """The object in a PyTorch .pth/.ckpt/.pt: tensors and plain data only."""
    try:
        with open(path, "rb") as f:
            head = f.read(64)
    except OSError as e:
        raise ValueError(f"{path}: {e.strerror}; expected a PyTorch checkpoint") from None
    is_zip = head.startswith(b"PK\x03\x04")  # since torch 1.6; older files cannot be mapped
    what = _recognise(head) or "neither a zip nor a pickle"
    try:
        if is_zip or head[:1] == b"\x80":
            # MAR stores its command line beside the weights; a Namespace only holds values
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as e:  # damaged files raise a dozen types
        refused = re.search("Weights only load failed|TorchScript", str(e))
        what = "contains code, not only tensors; refused" if refused else "truncated or damaged"
    raise ValueError(f"{path}: {what}; expected a PyTorch checkpoint")


def _sync_folder(folder):
    if os.name != "nt":  # windows cannot open folders
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


@contextmanager
def explained(path):
    """An OSError inside becomes one that says what could not be written, why, and what helps."""
    try:
        yield
    except OSError as e:
        if not e.strerror:  # explained already, by an inner one
            raise
        hint = "check the folder or pass --out elsewhere"
        if e.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            hint = "disk or quota is full; free space or pass --out on another disk"
        raise OSError(f"could not write {path}: {e.strerror}; {hint}") from e


def _write(path, chunks):
    tmp = Path(f"{path}.tmp-write")  # a fixed name, so the next write replaces a killed one
    try:
        with explained(path):
            with open(tmp, "wb") as f:
                f.writelines(chunks)
                f.flush()
                os.fsync(f.fileno())
            os.replace(tmp, path)
            _sync_folder(tmp.parent)
    finally:
        with suppress(OSError):
            tmp.unlink()


def write_json(obj, path: str | Path):
    _write(path, [json.dumps(obj, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"])


def save_safetensors(tensors: dict, path: str | Path, metadata: dict | None = None, get=None):
    """Write {name: tensor}. get: name -> tensor, when `tensors` only tells shapes and dtypes (meta
    tensors): each is then made when its turn comes, and never two at a time are in memory."""
    header, position = {"__metadata__": metadata} if metadata else {}, 0
    _check(all(isinstance(x, str) for pair in (metadata or {}).items() for x in pair),
           f"{path}: metadata is not a map from text to text")
    for name, t in tensors.items():
        _check(isinstance(name, str) and name != "__metadata__", f"{path}: bad name {name!r}")
        _check(isinstance(t, torch.Tensor) and t.dtype in DTYPE_NAMES
               and t.is_meta == bool(get) and t.layout == torch.strided,
               f"{path}: {name!r} is not a dense tensor of {', '.join(DTYPES)}")
        header[name] = {"dtype": DTYPE_NAMES[t.dtype], "shape": list(t.shape)}
    # names keep their order, data goes from wide to narrow dtypes so that all of it is aligned
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    for name in order:
        end = position + tensors[name].numel() * tensors[name].dtype.itemsize
        header[name]["data_offsets"], position = [position, end], end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)

    def chunks():  # one tensor at a time, so that only one is ever copied
        yield len(raw).to_bytes(8, "little") + raw
        for name in order:
            t = get(name) if get else tensors[name]
            _check(t.shape == tensors[name].shape and t.dtype == tensors[name].dtype,
                   f"{path}: {name!r} is {t.dtype} {tuple(t.shape)}, not what was announced")
            flat = t.detach().cpu().contiguous().view(-1)
            yield flat.view(torch.uint8).numpy().data
            del t, flat

    _write(path, chunks())


def pack(obj) -> tuple[dict, object]:
    """Nested dicts, lists, tuples, tensors and primitives -> (tensors by name, JSON tree).

    In the tree an object is always one tag: {"tensor": name}, {"tuple": [...]} or
    {"dict": [[key, value], ...]}, so that keys keep their type.
    """
    tensors, names = {}, {}

    def encode(x, path):
        if x is None or isinstance(x, (bool, int, float, str)):
            return x
        if isinstance(x, torch.Tensor):
            # views of the same memory (tied weights) are stored once and come back as one tensor
            same = (x.data_ptr(), x.device, x.dtype, x.shape, x.stride()) if x.numel() else id(x)
            if same not in names:
                while path in tensors or path in ("", "__metadata__"):
                    path += "_"
                tensors[path], names[same] = x, path
            return {"tensor": names[same]}
        dot = f"{path}." if path else ""
        if isinstance(x, dict):
            _check(all(k is None or isinstance(k, (bool, int, float, str)) for k in x),
                   f"{path}: cannot save keys other than text and numbers")
            return {"dict": [[k, encode(v, f"{dot}{k}")] for k, v in x.items()]}
        _check(isinstance(x, (list, tuple)), f"{path}: cannot save a {type(x).__name__}")
        items = [encode(v, f"{dot}{i}") for i, v in enumerate(x)]
        return {"tuple": items} if isinstance(x, tuple) else items

    return tensors, encode(obj, "")


def unpack(tensors, tree):
    """The inverse of pack; anything pack does not write is a ValueError."""
    match tree:
        case {"tensor": name} if name in tensors:
            return tensors[name]
        case {"tuple": list(items)}:
            return tuple(unpack(tensors, x) for x in items)
        case {"dict": list(pairs)}:
            return {k: unpack(tensors, v) for k, v in pairs}
        case list(items):
            return [unpack(tensors, x) for x in items]
    _check(not isinstance(tree, dict), f"unknown entry {str(tree)[:80]!r}")
    return tree


def _states(run_dir, last=math.inf):
    """State folders up to step `last`, newest first; `.old` is one that is being replaced."""
    found = []
    for path in Path(run_dir, "state").glob("step_*"):
        m = re.fullmatch(r"step_(\d+)(\.old)?", path.name)
        if m and int(m[1]) <= last:
            found.append((int(m[1]), not m[2], path))
    return [path for *_, path in sorted(found, reverse=True)]


def save_state(run_dir: str | Path, step: int, state: dict, keep: int = 2) -> Path:
    """Write run_dir/state/step_N, then drop all but the `keep` newest states up to this step.

    At every moment in between, the newest complete state is there and found by latest_state (tests/kill.py).
    """
    final = Path(run_dir, "state", f"step_{step:07d}")
    tmp, old = Path(f"{final}.tmp-write"), Path(f"{final}.old")
    tensors, tree = pack(state)
    with explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        for leftover in final.parent.glob("*.tmp-*"):  # of killed writes
            shutil.rmtree(leftover)
        try:
            tmp.mkdir()
            save_safetensors(tensors, tmp / "state.safetensors")
            write_json({"step": step, "tree": tree}, tmp / "state.json")
            if final.exists():  # no rename replaces a folder, so the old one steps aside
                shutil.rmtree(old, ignore_errors=True)
                os.rename(final, old)
            os.rename(tmp, final)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
        _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)
    for path in _states(run_dir, step)[max(keep, 1):]:
        shutil.rmtree(path, ignore_errors=True)
    return final


def versions() -> dict:
    """Of what decides the bits of a result: python, torch, numpy, and this code's git commit ("" outside of git)."""
    root, git = Path(__file__).parents[1], ""
    if (root / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            command = ["git", "--no-optional-locks", "-C", root, "describe", "--always", "--dirty", "--abbrev=12"]
            git = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__, "git": git}


def _read_state(path):
    try:
        tensors = SafeTensors(Path(path, "state.safetensors"))
        tree = _parse_json(Path(path, "state.json").read_bytes())["tree"]
        return tensors, tree, unpack(tensors, tree)
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as e:
        raise ValueError(f"{path}: {e}; expected a training state") from None


def latest_state(run_dir: str | Path) -> Path | None:
    """The newest state that can be loaded; damaged ones are passed over."""
    for path in _states(run_dir):
        with suppress(ValueError):
            _read_state(path)
            return path


def load_state(path: str | Path) -> dict:
    tensors, tree, _ = _read_state(path)
    # copies: the run writes into them, and prunes the file while it goes on
    return unpack({name: t.clone() for name, t in tensors.items()}, tree)


@dataclass
class Report:
    mapped: dict  # name in the module -> name in the file
    missing: list  # only in the module
    unexpected: list  # only in the file
    mismatched: list  # (name, shape in the file, shape in the module)


def describe(report: Report) -> str:
    text = f"{len(report.mapped)} tensors mapped"
    for kind in ("mismatched", "missing", "unexpected"):
        if found := getattr(report, kind):
            few = ["{} is {} in the file, {} in the model".format(*x) if kind == "mismatched" else x
                   for x in found[:4]]
            text += f"; {len(found)} {kind}: {', '.join(few)}" + ", ..." * (len(found) > 4)
    return text


def match_weights(module: nn.Module, tensors: Mapping, rename=lambda k: k, ignore=()) -> Report:
    """Check that `tensors` are the weights of `module`, all of them and nothing else.

    rename: name in the file -> name in the module, None to skip. ignore: glob patterns of names
    (after renaming) that are neither loaded nor required; the report still lists them.
    """
    source, names, report = getattr(tensors, "path", "checkpoint"), {}, Report({}, [], [], [])
    targets = module.state_dict(keep_vars=True)
    for name, target in targets.items():  # tied parameters have several names
        names.setdefault(id(target), []).append(name)

    def is_ignored(name):
        return name is None or any(fnmatchcase(name, pattern) for pattern in ignore)

    for key, t in tensors.items():
        name = rename(key)
        if name not in targets or is_ignored(name):
            report.unexpected.append(key)
            continue
        _check(name not in report.mapped, f"{source}: two tensors are renamed to {name}, one {key}")
        got = tuple(t.shape) if isinstance(t, torch.Tensor) else type(t).__name__
        if got != tuple(targets[name].shape):
            report.mismatched.append((name, got, tuple(targets[name].shape)))
        elif t.is_floating_point() != targets[name].is_floating_point():  # would be truncated
            report.mismatched.append((name, t.dtype, targets[name].dtype))
        else:
            report.mapped[name] = key
    misfits = [name for name, *_ in report.mismatched]
    for tied in names.values():
        found = [tensors[report.mapped[n]] for n in tied if n in report.mapped]
        _check(all(torch.equal(found[0], t) for t in found[1:]),
               f"{source}: {' and '.join(tied)} differ, but are one parameter in the model")
        report.missing += [n for n in tied if not found and n not in misfits]
    bad = Report(report.mapped, [n for n in report.missing if not is_ignored(n)],
                 [k for k in report.unexpected if not is_ignored(rename(k))], report.mismatched)
    _check(not (bad.missing or bad.unexpected or bad.mismatched),
           f"{source}: does not fit {type(module).__name__}: {describe(bad)}")
    return report


def load_weights(module: nn.Module, tensors: Mapping, rename=lambda k: k, ignore=(), dtype=None,
                 assign=False) -> Report:
    """Copy `tensors` into `module` one by one, after `match_weights` found that they all fit.

    assign: make the loaded tensors the parameters (floating-point ones in `dtype`, by default the
    module's) as a module on the meta device needs; without it `dtype` has no effect.
    """
    report, names = match_weights(module, tensors, rename, ignore), {}
    targets = module.state_dict(keep_vars=True)
    for name, target in targets.items():  # tied parameters have several names
        names.setdefault(id(target), []).append(name)
    for name, key in report.mapped.items():
        t, target = tensors[key].detach(), targets[name]
        if not assign:
            _check(not target.is_meta, f"{name} is on the meta device, which needs assign=True")
            with torch.no_grad():
                target.copy_(t)
            continue
        t = t.to(t.device if target.is_meta else target.device,
                 dtype if dtype and target.is_floating_point() else target.dtype)
        if isinstance(target, nn.Parameter):
            t = nn.Parameter(t, target.requires_grad)
        for tied in names[id(target)]:
            owner, _, leaf = tied.rpartition(".")
            setattr(module.get_submodule(owner), leaf, t)
    return report
