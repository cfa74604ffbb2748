"""The weights of one part of a model: from a file of its own, or from a whole Harmon, ours or as published."""
import re
from pathlib import Path

import torch

from ..config import HarmonConfig, from_dict
from ..files import read_json
from .checkpoint import match_weights
from .recognise import in_place_of_a_folder
from .safetensors import load_foreign, open_tensors
from .sizes import llm_config

IGNORE = {"vae": ("loss.*",), "llm": ("*.rotary_emb.inv_freq",)}           # in some files, of no use to anyone
MAPPED = 2**27                                       # bytes read from a mapped file before it is mapped anew


def read(path):
    """{name: tensor} of a safetensors file, index or directory, or of a .pth/.ckpt: mapped, not read."""
    path = Path(path)
    if path.is_dir() or path.suffix in (".safetensors", ".json"):
        return open_tensors(path)
    found = load_foreign(path)
    found = found if isinstance(found, dict) else {}
    found = next((found[k] for k in ("model_ema", "model", "state_dict") if isinstance(found.get(k), dict)), found)
    found = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)}
    if not found:
        raise ValueError(f"{path}: holds no tensors by name, expected a PyTorch checkpoint of Harmon, MAR or KL-16")
    return found


class Stored(dict):
    """The weights of one part: those of a file whose names begin with `prefix`, without it. flag: names the file."""

    def __init__(self, path, prefix="", flag=""):
        self.path, self.prefix, self.flag = Path(path), prefix, flag
        self.open()

    @classmethod
    def of(cls, part, path):
        """A part as a file of its own, or taken from a whole Harmon, ours or as published."""
        is_whole = any(name.startswith(f"{part}.") for name in read(path))
        return cls(path, f"{part}." if is_whole else "", f"--{part}")

    def open(self):
        self.clear()                                 # lets go of the old mapping, and so of the pages read through it
        self.update({k.removeprefix(self.prefix): t for k, t in read(self.path).items() if k.startswith(self.prefix)})
        self.used = 0

    def copy(self, name, dtype):
        """One tensor, in memory of its own."""
        if self.used > MAPPED:
            self.open()
        self.used += self[name].nbytes
        return self[name].to(dtype, copy=True)

    def shape(self, name, dims):
        shape = tuple(self[name].shape) if name in self else None
        if shape is None or len(shape) != dims or 0 in shape:
            raise ValueError(f"{self.path}: {self.prefix + name} is {shape or 'missing'}, expected {dims} dimensions, "
                             f"as in the right kind of file")
        return shape

    def count(self, pattern):
        """One more than the largest number that fits the group of a pattern, 0 if nothing does."""
        return max([int(m[1]) + 1 for m in map(re.compile(pattern).match, self) if m], default=0)


def read_config(folder):
    """The config.json of a downloaded directory."""
    if not Path(folder, "config.json").is_file():
        raise ValueError(f"{folder}: {in_place_of_a_folder(folder)}")
    return read_json(Path(folder, "config.json"))


def stored_sizes(part, path):
    """The config of one part, from the config.json of a directory that we wrote; None for any other path."""
    stored = read_config(path) if Path(path, "config.json").is_file() else {}
    where = f"{path}/config.json: \"model\""
    return getattr(from_dict(HarmonConfig, stored["model"], where), part) if "model" in stored else None


def read_llm_config(folder):
    """LLMConfig of a Qwen2.5 directory, or of the LLM in a whole Harmon, ours or as published."""
    stored = read_config(folder)
    return stored_sizes("llm", folder) or llm_config(stored.get("llm", stored), Path(folder) / "config.json")


def match_part(part, module, stored, config):
    """match_weights for one part of a model, and a note ("" mostly). Where an LLM's config ties what its file holds
    twice and differently, the embedding counts, as for Hugging Face."""
    ignore, note, (embed, head) = IGNORE.get(part, ()), "", ("model.embed_tokens.weight", "lm_head.weight")
    if part == "llm" and config.tie_word_embeddings and stored.keys() >= {embed, head} and \
            not torch.equal(stored[embed], stored[head]):
        ignore, note = (*ignore, head), f"{head} differs from the embedding, to which config.json ties it"
    return match_weights(module, stored, ignore), note
