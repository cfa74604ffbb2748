"""Checkpoint directories, and weights that fit their module or are refused.

A checkpoint directory holds model.safetensors, config.json ("model": the sizes, "meta": how to draw) and
tokenizer.json. Loading is strict: all tensors of the module, no others, of the same shapes. The module is made on the
meta device first, so nothing is read or filled before everything is known to fit.
"""
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..cli import first_of
from ..config import HarmonConfig, from_dict
from ..files import read_json, write_bytes, write_json
from ..flags import check_model
from ..harmon import Harmon
from ..tokenizer import Tokenizer
from .recognise import in_names, in_place_of_a_folder
from .safetensors import open_tensors, require, save_safetensors

# --- modules without weights ------------------------------------------------------------------------------------------

class Unfilled(TorchFunctionMode):
    """nn.init.normal_ does nothing: on the meta device, torch loads its compiler for it, which takes longer than all
    else that a script does before it draws."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return kwargs["tensor"] if function is nn.init.normal_ else function(*args, **kwargs or {})


@contextmanager
def blank():
    """Modules made inside have shapes, but no memory."""
    with torch.device("meta"), Unfilled():
        yield


def meta_model(config):
    """A Harmon of these sizes (HarmonConfig), of nothing but shapes."""
    with blank():
        return Harmon(config)


# --- weights of a module ----------------------------------------------------------------------------------------------

@dataclass
class Report:
    mapped: list  # names in both
    missing: list  # only in the module
    unexpected: list  # only in the file
    mismatched: list  # (name, shape or dtype in the file, the same in the module)


def describe(report: Report) -> str:
    text = f"{len(report.mapped)} tensors mapped"
    for kind in ("mismatched", "missing", "unexpected"):
        if found := getattr(report, kind):
            names = ["{} is {} in the file, {} in the model".format(*x) if kind == "mismatched" else x for x in found]
            text += f"; {len(found)} {kind}: {first_of(names, 4)}"
    return text


def names_by_parameter(module):
    """{id of a parameter or buffer: its names}: tied parameters have several."""
    names = {}
    for name, target in module.state_dict(keep_vars=True).items():
        names.setdefault(id(target), []).append(name)
    return names


def match_weights(module: nn.Module, tensors: Mapping, ignore=()) -> Report:
    """Check that `tensors` are the weights of `module`, all of them and nothing else.

    Of a tied parameter one name is enough. ignore: glob patterns of names that are neither loaded nor required; the
    report still lists them.
    """
    path, report = getattr(tensors, "path", "checkpoint"), Report([], [], [], [])
    targets = module.state_dict(keep_vars=True)

    def is_ignored(name):
        return any(fnmatchcase(name, pattern) for pattern in ignore)

    for name, t in tensors.items():
        if name not in targets or is_ignored(name):
            report.unexpected.append(name)
        elif t.shape != targets[name].shape:
            report.mismatched.append((name, tuple(t.shape), tuple(targets[name].shape)))
        elif t.is_floating_point() != targets[name].is_floating_point():  # would be truncated
            report.mismatched.append((name, t.dtype, targets[name].dtype))
        else:
            report.mapped.append(name)
    mapped, misfits = set(report.mapped), {name for name, *_ in report.mismatched}
    for tied in names_by_parameter(module).values():
        found = [tensors[name] for name in tied if name in mapped]
        require(all(torch.equal(found[0], t) for t in found[1:]),
                f"{path}: {' and '.join(tied)} differ, but are one parameter in the model")
        report.missing += [name for name in tied if not found and name not in misfits]
    bad = Report(report.mapped, [name for name in report.missing if not is_ignored(name)],
                 [name for name in report.unexpected if not is_ignored(name)], report.mismatched)
    require(not (bad.missing or bad.unexpected or bad.mismatched),
            f"{path}: {in_names(bad.unexpected) or f'does not fit {type(module).__name__}: {describe(bad)}'}")
    return report


def load_weights(module: nn.Module, tensors: Mapping, report: Report, dtype: torch.dtype, copy=False):
    """Make `tensors` the parameters and buffers of a module on the meta device, floating-point ones in `dtype`.

    tensors: SafeTensors, or stored.Stored. report: what `match_weights` said of them. A tensor that has its dtype
    already stays where it is, in the mapped file, unless `copy` asks for memory of its own.
    """
    targets, names = module.state_dict(keep_vars=True), names_by_parameter(module)
    for name in report.mapped:
        target = targets[name]
        t, kind = tensors[name].detach(), dtype if target.is_floating_point() else target.dtype
        t = tensors.copy(name, kind).detach() if copy or t.dtype != kind else t
        if isinstance(target, nn.Parameter):
            t = nn.Parameter(t, target.requires_grad)
        for tied in names[id(target)]:
            owner, _, leaf = tied.rpartition(".")
            setattr(module.get_submodule(owner), leaf, t)


# --- checkpoint directories -------------------------------------------------------------------------------------------

def write_checkpoint(path, config, meta, tokenizer, tensors, get, dtype):
    """Write what `open_checkpoint` reads, in `dtype`, one tensor at a time. config: HarmonConfig; tokenizer: bytes.
    tensors: {name: a tensor of its shape}, get: name -> its values."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").unlink(missing_ok=True)               # written last: without it, a folder is no checkpoint
    tensors = {name: torch.empty_like(t, dtype=dtype, device="meta") for name, t in tensors.items()}
    if config.llm.tie_word_embeddings:
        del tensors["llm.lm_head.weight"]                        # the same tensor as the embedding: stored once
    save_safetensors(tensors, path / "model.safetensors", {"format": "pt"}, lambda name: get(name).to(dtype))
    write_bytes(path / "tokenizer.json", tokenizer)
    write_json(path / "config.json", {"model": asdict(config), "meta": meta})


def open_checkpoint(path):
    """A checkpoint directory, checked, with its weights still in the file: (model on the meta device, tensors,
    report that they fit it, tokenizer, meta). Raises ValueError for anything wrong."""
    path = Path(path)
    if not (path / "config.json").is_file():
        raise ValueError(f"{path}: {in_place_of_a_folder(path)}")
    stored = read_json(path / "config.json")
    if "llm" in stored:
        raise ValueError(f"{path}: Harmon as published, expected a directory of ours; first run  "
                         f"python -m nanoharmon.convert --harmon {path} --out DIR ")
    if stored.get("model_type"):
        raise ValueError(f"{path}: a language model alone, expected a Harmon; chat.py and train.py take it as --llm")
    if "model" not in stored:
        raise ValueError(f"{path / 'config.json'}: no \"model\" entry, expected what train.py or convert writes")
    if not (path / "tokenizer.json").is_file():
        raise ValueError(f"{path}: no tokenizer.json here, expected a checkpoint directory")
    try:
        config = from_dict(HarmonConfig, stored["model"], "\"model\"")
        check_model(config)
        check_meta(stored.get("meta") or {})
        model = meta_model(config)           # no memory for weights that are about to be replaced
    except (TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as e:
        raise ValueError(f"{path / 'config.json'}: describes no model ({e})") from None
    report = match_weights(model, tensors := open_tensors(path))
    tokenizer = Tokenizer.load(path)
    if len(tokenizer) > config.llm.vocab_size:
        raise ValueError(f"{path / 'tokenizer.json'}: {len(tokenizer)} tokens, expected at most the "
                         f"{config.llm.vocab_size} of the model")
    return model, tensors, report, tokenizer, stored.get("meta")


def check_meta(meta):
    """Complain about a "meta" of config.json that would fail later, in the middle of a drawing or an evaluation."""
    draw = meta.get("draw", {}) if isinstance(meta, dict) else None
    if not isinstance(draw, dict):
        raise ValueError(f"\"meta\" is {meta!r:.80}, expected an object, and in it \"draw\", another")
    for name, value in [*meta.items(), *draw.items()]:
        most = {"board": 10, "max_objects": 4}.get(name, 10**5)
        whole = type(value) is int and 1 <= value <= most, f"a whole number from 1 to {most}"
        number = type(value) in (int, float) and 0 <= value <= 100, "a number from 0 to 100"
        text = type(value) is str, "text"
        known = {"size": whole, "turns": (whole[0] and value > 1, "a whole number above 1"),
                 **dict.fromkeys(("board", "max_objects", "iters", "steps"), whole),
                 **dict.fromkeys(("cfg", "temperature"), number),
                 "redraw": (type(value) is int and 0 <= value <= 100, "a whole number from 0 to 100"),
                 "sampler": text, "cfg_schedule": text, "words": (value is None or type(value) is str, "text"),
                 **dict.fromkeys(("think", "look", "parts"), (type(value) is bool, "true or false")),
                 "layout": (value in ("board", "free"), "board or free")}
        is_good, expected = known.get(name, (True, ""))
        if not is_good:
            raise ValueError(f"\"meta\": {name} is {value!r:.80}, expected {expected}")
