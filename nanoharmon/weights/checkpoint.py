"""What survives a crash: training states, and weights that fit their module or are refused.

A training state is any nest of dicts, lists, tuples, tensors and numbers, split into safetensors (safetensors.py) and
JSON. It is written beside its destination and renamed (files.py): a reader sees the old one or the new one, never half.

What train.py puts into a state: trained weights, their average (EMA), optimizers, GradScaler, step (the schedule is a
function of it), config, number of processes, versions of the libraries, git commit. No state of a random generator:
every batch, mask, timestep and noise is drawn anew from (seed, stage, step, shard).

The newest K states are kept, not "the best" one: the learning rate falls to the end of a stage, so its last weights are
its best, and the drawing loss is mostly noise: its minimum is a lucky batch.
"""
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..config import HarmonConfig, from_dict
from ..files import explained, read_json, sync_folder, write_json
from ..flags import check_model
from ..harmon import Harmon
from ..tokenizer import Tokenizer
from .safetensors import SafeTensors, open_tensors, parse_json, require, save_safetensors

# --- training states --------------------------------------------------------------------------------------------------

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
            require(all(k is None or isinstance(k, (bool, int, float, str)) for k in x),
                    f"{path}: cannot save keys other than text and numbers")
            return {"dict": [[k, encode(v, f"{dot}{k}")] for k, v in x.items()]}
        require(isinstance(x, (list, tuple)), f"{path}: cannot save a {type(x).__name__}")
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
    require(not isinstance(tree, dict), f"unknown entry {str(tree)[:80]!r}")
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
            write_json(tmp / "state.json", {"step": step, "tree": tree})
            if final.exists():  # no rename replaces a folder, so the old one steps aside
                shutil.rmtree(old, ignore_errors=True)
                os.rename(final, old)
            os.rename(tmp, final)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
        sync_folder(final.parent)
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
        tree = parse_json(Path(path, "state.json").read_bytes())["tree"]
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


# --- weights of a module ----------------------------------------------------------------------------------------------

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
        require(name not in report.mapped, f"{source}: two tensors are renamed to {name}, one {key}")
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
        require(all(torch.equal(found[0], t) for t in found[1:]),
                f"{source}: {' and '.join(tied)} differ, but are one parameter in the model")
        report.missing += [n for n in tied if not found and n not in misfits]
    bad = Report(report.mapped, [n for n in report.missing if not is_ignored(n)],
                 [k for k in report.unexpected if not is_ignored(rename(k))], report.mismatched)
    require(not (bad.missing or bad.unexpected or bad.mismatched),
            f"{source}: does not fit {type(module).__name__}: {describe(bad)}")
    return report


def load_weights(module: nn.Module, tensors: Mapping, rename=lambda k: k, ignore=(), dtype=None,
                 assign=False, report=None) -> Report:
    """Copy `tensors` into `module` one by one, after `match_weights` found that they all fit.

    assign: make the loaded tensors the parameters (floating-point ones in `dtype`, by default the
    module's) as a module on the meta device needs; without it `dtype` has no effect. report: that of
    `match_weights`, where it was called before.
    """
    report, names = report or match_weights(module, tensors, rename, ignore), {}
    targets = module.state_dict(keep_vars=True)
    for name, target in targets.items():  # tied parameters have several names
        names.setdefault(id(target), []).append(name)
    for name, key in report.mapped.items():
        t, target = tensors[key].detach(), targets[name]
        if not assign:
            require(not target.is_meta, f"{name} is on the meta device, which needs assign=True")
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


# --- checkpoint directories -------------------------------------------------------------------------------------------

def open_checkpoint(path):
    """A checkpoint directory, checked, with its weights still in the file: (model on the meta device, tensors,
    report that they fit it, tokenizer, meta). Raises ValueError for anything wrong."""
    path = Path(path)
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise ValueError(f"{path}: no {name} here, expected a checkpoint directory")
    stored = read_json(path / "config.json")
    if "model" not in stored:
        raise ValueError(f"{path / 'config.json'}: no \"model\" entry, expected what train.py or convert writes")
    try:
        config = from_dict(HarmonConfig, stored["model"], "\"model\"")
        check_model(config)
        check_meta(stored.get("meta") or {})
        with torch.device("meta"):           # no memory for weights that are about to be replaced
            model = Harmon(config)
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
        whole = type(value) is int and 1 <= value <= (10 if name == "board" else 10**5)
        share = type(value) in (int, float) and 0 <= value <= 100
        known = {"size": whole, "board": whole, "iters": whole, "cfg": share, "temperature": share,
                 "steps": whole, "sampler": type(value) is str, "cfg_schedule": type(value) is str,
                 "think": type(value) is bool, "layout": value in ("board", "free")}
        if not known.get(name, True):
            raise ValueError(f"\"meta\": {name} is {value!r:.80}")
