"""safetensors files, read and written here: no pickle is ever executed.

How: a file is 8 bytes (header length), a JSON header {name: dtype, shape, data_offsets}, then raw tensor bytes. The
header is checked before it is believed; tensors are views of the memory-mapped file, to be treated as read-only (a
write stays private to the process). PyTorch's own .pth files are read with weights_only, so that they cannot run code
either.

Simplified: little-endian machines, ten dtypes (no float8, no complex), one writer per path, no checksums (the header
fixes the exact file size, so a cut file is noticed, a flipped bit is not).
"""
import argparse
import json
import math
import mmap
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch

from ..files import write_chunks
from .recognise import ORIGINAL, in_place_of_weights

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U8": torch.uint8, "BOOL": torch.bool}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes, the limit of the official reader


def require(ok, problem):
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
    if head.startswith(b"GGUF"):
        return "GGUF, for llama.cpp"


def parse_json(raw):
    def unique(pairs):
        require(len(dict(pairs)) == len(pairs), "a JSON object has a duplicate key")
        return dict(pairs)

    try:
        obj = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, RecursionError):
        raise ValueError("the JSON is not UTF-8 or nested too deeply") from None
    require(isinstance(obj, dict), "the JSON is not an object")
    return obj


def _parse_header(data):
    """-> {name: (data, dtype, shape, begin, end)} of a whole file's bytes, and its metadata {text: text}."""
    start = 8 + int.from_bytes(data[:8], "little")
    require(start <= 8 + MAX_HEADER, f"header of {start - 8} bytes, above the {MAX_HEADER} limit")
    require(8 <= len(data) >= start, f"truncated: header needs {start} bytes, got {len(data)}")
    require(data[8:9] == b"{", "the header is not a JSON object")
    header, entries = parse_json(data[8:start]), {}
    metadata = header.pop("__metadata__", {})
    require(isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()),
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
            case {"dtype": str(code)} if re.fullmatch(r"[A-Z]{1,2}\d+(_\w+)?", code) and code not in DTYPES:
                raise ValueError(f"{label} is {code}, {ORIGINAL}")
            case _:
                raise ValueError(f"{label} has a bad dtype, shape or data_offsets: "
                                 f"{json.dumps(entry)[:160]}")
        require(end - begin == size, f"{label} has {end - begin} bytes, its shape needs {size}")
        require(start + end <= len(data),
                f"truncated: {label} ends at byte {start + end} of {len(data)}")
        entries[name] = data, DTYPES[code], tuple(shape), start + begin, start + end
    for name, (*_, begin, end) in sorted(entries.items(), key=lambda item: item[1][3:]):
        require(begin == start, f"tensor {name[:80]!r} overlaps or leaves a hole before it")
        start = end
    require(start == len(data), f"{len(data) - start} bytes after the last tensor")
    return entries, metadata


class SafeTensors(Mapping):
    """A safetensors file, or an index of several, as a mapping; data is read when it is used."""

    def __init__(self, path):
        self.path, head = Path(path), b""
        try:
            require(self.path.is_file() or not self.path.exists(), "not a file")
            with open(path, "rb") as f:
                data = head = f.read(64)
                if head:  # an empty file cannot be mapped
                    data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
            parse = self._parse_index if self.path.suffix == ".json" else _parse_header
            self._entries, self.metadata = parse(data)
        except (ValueError, OSError) as e:
            what = _recognise(head) or getattr(e, "strerror", None) or e
            expected = "" if "expected" in str(what) else "; expected a safetensors file"
            raise ValueError(f"{path}: {what}{expected}") from None

    def _parse_index(self, data):
        names, files = parse_json(data[:MAX_HEADER]).get("weight_map"), {}
        require(isinstance(names, dict) and all(isinstance(v, str) for v in names.values()),
                "weight_map is not a map from tensor name to file name")
        for name in set(names.values()):
            # the name is checked, links are not: the Hugging Face cache is made of links
            require(name.endswith(".safetensors") and ".." not in PurePosixPath(name).parts
                    and not re.search(r"^/|[\\:\0]", name), f"shard {name!r} is outside the folder")
            files[name] = SafeTensors(self.path.parent / name)._entries
        for key, name in names.items():
            require(key in files[name], f"tensor {key[:80]!r} is not in its shard {name!r}")
        return {key: files[name][key] for key, name in names.items()}, {}

    def __iter__(self):
        return iter(self._entries)

    def __len__(self):
        return len(self._entries)

    def __getitem__(self, name):
        data, dtype, shape, begin, end = self._entries[name]
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        raw = torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=begin)
        if raw.data_ptr() % dtype.itemsize:
            raw = raw.clone()  # legal in the format, but not every processor loads unaligned
        require(dtype != torch.bool or raw.max() <= 1,
                f"{self.path}: BOOL tensor {name[:80]!r} has bytes other than 0 and 1")
        return raw.view(dtype).view(shape)

    def copy(self, name, dtype):
        """One tensor, in memory of its own; the pages of the file that it was read from are let go."""
        t, (data, *_, begin, end) = self[name].to(dtype, copy=True), self._entries[name]
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(data, "madvise") and end > first:  # not on Windows
            data.madvise(mmap.MADV_DONTNEED, first, end - first)
        return t


def open_tensors(path: str | Path) -> SafeTensors:
    """Open a file, an index, or a folder with model.safetensors.index.json or model.safetensors."""
    index = Path(path) / "model.safetensors.index.json"
    if Path(path).is_dir():
        folder, path = Path(path), index if index.exists() else index.with_name("model.safetensors")
        if not path.exists() and (found := in_place_of_weights(folder)):
            raise ValueError(f"{folder}: {found}")
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


def save_safetensors(tensors: dict, path: str | Path, metadata: dict | None = None, get=None):
    """Write {name: tensor}. get: name -> tensor, when `tensors` only tells shapes and dtypes (meta
    tensors): each is then made when its turn comes, and never two at a time are in memory."""
    header, position = {"__metadata__": metadata} if metadata else {}, 0
    for name, t in tensors.items():
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
            require(t.shape == tensors[name].shape and t.dtype == tensors[name].dtype,
                    f"{path}: {name!r} is {t.dtype} {tuple(t.shape)}, not what was announced")
            flat = t.detach().cpu().contiguous().view(-1)
            yield flat.view(torch.uint8).numpy().data
            del t, flat

    write_chunks(path, chunks())
