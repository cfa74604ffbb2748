"""Files that outlive a crash: weights and training states, without ever executing a pickle.

How: a safetensors file is 8 bytes (little-endian header length), a JSON header `{name: {dtype,
shape, data_offsets}}`, then raw tensor bytes. The reader believes no header it has not checked, then
memory-maps the file: tensors are views of the map, to be treated as read-only (a write stays private
to the process). Every file is written beside its destination, fsynced and renamed, so a reader sees
the old one or the new one, never half of one. A training state is any nest of dicts, lists, tuples,
tensors and numbers: `pack` splits it into tensors (safetensors) and structure (JSON).

Simplified: little-endian machines, ten dtypes (no float8, no complex), one writer per path, and no
checksums (the header fixes the exact file size, so a cut file is noticed, a flipped bit is not).
"""

import argparse
import errno
import fnmatch
import json
import math
import mmap
import os
import re
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import nn

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U8": torch.uint8, "BOOL": torch.bool}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes, the limit of the official reader


# ---- reading: nothing in a file is believed before it is checked


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
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive (probably a PyTorch .pth)"
    # 0x80 may also begin a header length, but then byte 8 opens the JSON
    if re.match(rb"\x80[\x02-\x05]", head) and head[8:9] != b"{":
        return "a pickle (probably an old PyTorch .pth)"


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
    _check(len(data) >= 8, f"truncated: {len(data)} bytes, the header length alone needs 8")
    _check(start <= 8 + MAX_HEADER, f"header of {start - 8} bytes, above the {MAX_HEADER} limit")
    _check(start <= len(data), f"truncated: the header needs {start} bytes, got {len(data)}")
    _check(data[8:9] == b"{", "the header is not a JSON object")
    header, entries = _parse_json(data[8:start]), {}
    metadata = header.pop("__metadata__", {})
    _check(isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()),
           "__metadata__ is not a map from text to text")

    def are_counts(values):  # type(), not isinstance: JSON true is an int in Python
        return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)

    for name, entry in header.items():
        label = f"tensor {name[:80]!r}"
        _check(isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"},
               f"{label} needs exactly dtype, shape and data_offsets")
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        _check(isinstance(code, str) and code in DTYPES,
               f"{label} has dtype {str(code)[:20]!r}, not one of {', '.join(DTYPES)}")
        _check(are_counts(shape), f"{label}: shape is not a list of non-negative integers")
        # with a zero among them, dimensions beyond what torch can index would cost no bytes
        _check(len(shape) <= 64 and math.prod(max(n, 1) for n in shape) < 2**60,
               f"{label} has an impossible shape")
        _check(are_counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1],
               f"{label}: data_offsets are not [begin, end], begin <= end")
        begin, end = start + offsets[0], start + offsets[1]
        size = math.prod(shape) * DTYPES[code].itemsize
        _check(end - begin == size, f"{label} has {end - begin} bytes, its shape needs {size}")
        _check(end <= len(data), f"truncated: {label} ends at byte {end} of {len(data)}")
        entries[name] = data, DTYPES[code], tuple(shape), begin, end

    position = start
    for name, (*_, begin, end) in sorted(entries.items(), key=lambda item: item[1][3:]):
        _check(begin == position, f"tensor {name[:80]!r} overlaps or leaves a hole before it")
        position = end
    _check(position == len(data), f"{len(data) - position} bytes after the last tensor")
    return entries, metadata


class SafeTensors:
    """A safetensors file, or an index of several, as a mapping; data is read when it is used."""

    def __init__(self, path):
        self.path, head = Path(path), b""
        try:
            _check(self.path.is_file() or not self.path.exists(), "not a file")
            with open(path, "rb") as f:
                if head := f.read(64):  # an empty file cannot be mapped
                    f = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
            parse = self._parse_index if self.path.suffix == ".json" else _parse_header
            self._entries, self.metadata = parse(f if head else b"")
        except (ValueError, OSError) as e:
            what = _recognise(head) or getattr(e, "strerror", None) or e
            raise ValueError(f"{path}: {what}; expected a safetensors file") from None

    def _parse_index(self, data):
        names = _parse_json(data[:MAX_HEADER]).get("weight_map")
        _check(isinstance(names, dict) and all(isinstance(v, str) for v in names.values()),
               "weight_map is not a map from tensor name to file name")
        files, metadata = {}, {}
        for name in set(names.values()):
            # the name is checked, links are not: the Hugging Face cache is made of links
            _check(name.endswith(".safetensors") and ".." not in PurePosixPath(name).parts
                   and not re.search(r"^/|[\\:\0]", name), f"shard {name!r} is outside the folder")
            shard = SafeTensors(self.path.parent / name)
            files[name] = shard._entries
            metadata |= shard.metadata
        for key, name in names.items():
            _check(key in files[name], f"tensor {key[:80]!r} is not in its shard {name!r}")
        return {key: files[name][key] for key, name in names.items()}, metadata

    def keys(self):
        return self._entries.keys()

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
        is_zip = head.startswith(b"PK\x03\x04")  # since torch 1.6; older files cannot be mapped
        _check(is_zip or head[:1] == b"\x80", _recognise(head) or "neither a zip nor a pickle")
        # MAR stores its command line beside the weights; a Namespace only holds values
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as e:  # damaged files raise a dozen types, none of them telling
        what = "truncated or damaged"
        if re.search("global|reduce|TorchScript|build|new object", str(e), re.IGNORECASE):
            what = "contains code, not only tensors; refused"
        raise ValueError(f"{path}: {what}; expected a PyTorch checkpoint") from None


# ---- writing


@contextmanager
def _explained(path):
    try:
        yield
    except OSError as e:
        if e.errno is None:  # explained further in
            raise
        hint = "check the folder or pass --out elsewhere"
        if e.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            hint = "disk or quota is full; free space or pass --out on another disk"
        raise OSError(f"could not write {path}: {e.strerror}; {hint}") from e


def _sync_folder(folder):
    if os.name != "nt":  # windows cannot open folders
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def _write(path, chunks):
    tmp = Path(f"{path}.tmp-write")  # a fixed name, so the next write replaces a killed one
    with _explained(path):
        try:
            with open(tmp, "wb") as f:
                f.writelines(chunks)
                f.flush()
                os.fsync(f.fileno())
            os.replace(tmp, path)
        finally:
            with suppress(OSError):
                tmp.unlink()
        _sync_folder(tmp.parent)


def save_safetensors(tensors: dict, path: str | Path, metadata: dict | None = None):
    header, position = {"__metadata__": metadata} if metadata else {}, 0
    _check(all(isinstance(x, str) for kv in (metadata or {}).items() for x in kv),
           f"{path}: metadata is not a map from text to text")
    for name, t in tensors.items():
        _check(isinstance(name, str) and name != "__metadata__", f"{path}: bad name {name!r}")
        _check(isinstance(t, torch.Tensor) and t.dtype in DTYPE_NAMES and not t.is_meta
               and t.layout == torch.strided,
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
            flat = tensors[name].detach().cpu().contiguous().view(-1)
            yield flat.view(torch.uint8).numpy().data

    _write(path, chunks())


def write_json(obj, path: str | Path):
    _write(path, [json.dumps(obj, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"])


# ---- training states


def pack(obj) -> tuple[dict, object]:
    """Nested dicts, lists, tuples, tensors, arrays and primitives -> (tensors, JSON tree).

    An object in the tree is always one tag: {"dict": [[key, value], ...]} (keys keep their type),
    {"tuple": [...]}, {"tensor": name}, {"array": [name, dtype, shape]}.
    """
    tensors, names = {}, {}

    def store(t, path):
        # views of the same memory (tied weights) are stored once and come back as one tensor
        same = (t.data_ptr(), t.device, t.dtype, t.shape, t.stride()) if t.numel() else id(t)
        if same not in names:
            name = path or "value"
            while name in tensors or name == "__metadata__":
                name += "_"
            tensors[name], names[same] = t, name
        return names[same]

    def encode(x, path):
        if x is None or isinstance(x, (bool, int, float, str)):
            return x
        if isinstance(x, torch.Tensor):
            return {"tensor": store(x, path)}
        if isinstance(x, np.ndarray) and x.dtype.kind in "biuf":
            raw = torch.frombuffer(bytearray(x.tobytes() or b"-"), dtype=torch.uint8)
            return {"array": [store(raw, path), x.dtype.str, list(x.shape)]}
        dot = f"{path}." if path else ""
        if isinstance(x, dict):
            _check(all(k is None or isinstance(k, (bool, int, float, str)) for k in x),
                   f"{path}: cannot save keys other than text and numbers")
            return {"dict": [[k, encode(v, f"{dot}{k}")] for k, v in x.items()]}
        _check(isinstance(x, (list, tuple)), f"{path}: cannot save a {type(x).__name__}")
        items = [encode(v, f"{dot}{i}") for i, v in enumerate(x)]
        return {"tuple": items} if isinstance(x, tuple) else items

    return encode(obj, "")[::-1] if False else (tensors, encode(obj, ""))
