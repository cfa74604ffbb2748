"""Training states: what an interrupted training goes on from, bit for bit, whenever it was killed.

A training state is any nest of dicts, lists, tuples, tensors and numbers: a safetensors file (safetensors.py) of all
tensors, whose metadata hold the rest as JSON. It is written beside its destination and renamed (files.py): a reader
sees the old one or the new one, never half.

What train.py puts into a state: trained weights, their average (EMA), optimizers, GradScaler, step (the schedule is a
function of it), number of processes, versions of the libraries, git commit, a hash of the stage before. No state of a
random generator: every batch, mask, timestep and noise is drawn anew from (seed, stage, step, shard).

The newest K states are kept, not "the best" one: the learning rate falls to the end of a stage, so its last weights are
its best, and the generation loss is mostly noise: its minimum is a lucky batch.
"""
import json
import math
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from ..files import explained
from .safetensors import SafeTensors, require, save_safetensors


def pack(obj) -> tuple[dict, object]:
    """Nested dicts, lists, tuples, tensors and primitives -> (tensors by name, JSON tree).

    In the tree an object is always one tag: {"tensor": name}, {"tuple": [...]} or
    {"dict": [[key, value], ...]}, so that keys keep their type.
    """
    tensors = {}

    def encode(x, path):
        if x is None or isinstance(x, (bool, int, float, str)):
            return x
        if isinstance(x, torch.Tensor):
            require(path not in tensors, f"{path}: two tensors of one name")
            tensors[path] = x
            return {"tensor": path}
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


def step_of(path):
    """The step of a state's file; -1 of any other."""
    number = path.name.removeprefix("step_").removesuffix(".safetensors")
    return int(number) if number.isdecimal() else -1


def states(stage_dir, last=math.inf):
    """The files of a stage's states up to step `last`, newest first."""
    found = Path(stage_dir, "state").glob("step_*.safetensors")
    return sorted((path for path in found if 0 <= step_of(path) <= last), key=step_of, reverse=True)


def save_state(stage_dir: str | Path, step: int, state: dict, keep: int = 2) -> Path:
    """Write stage_dir/state/step_N.safetensors, then drop all but the `keep` newest states up to this step.

    At every moment in between, the newest complete state is there and found by latest_state (tests/stress/kill.py).
    """
    path = Path(stage_dir, "state", f"step_{step:07d}.safetensors")
    tensors, tree = pack(state)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob("*.tmp-*"):  # of killed writes
            leftover.unlink()
    save_safetensors(tensors, path, {"tree": json.dumps(tree)})
    for old in states(stage_dir, step)[keep:]:
        with suppress(OSError):
            old.unlink()
    return path


def versions() -> dict:
    """What decides the bits of a result: versions of python, torch, numpy, and this code's git commit, "" if none."""
    root, git = Path(__file__).resolve().parents[2], ""
    if (root / ".git").exists() and (root / "train.py").exists():    # installed, it may lie in another repository
        with suppress(OSError, subprocess.SubprocessError):
            command = ["git", "--no-optional-locks", "-C", root, "describe", "--always", "--dirty", "--abbrev=12"]
            git = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10).stdout.strip()
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__, "git": git}


def _read_state(path):
    try:
        tensors = SafeTensors(path)
        tree = json.loads(tensors.metadata["tree"])
        return tensors, tree, unpack(tensors, tree)
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as e:
        raise ValueError(f"{path}: {e}; expected a training state") from None


def latest_state(stage_dir: str | Path) -> Path | None:
    """The newest state that can be loaded; damaged ones are passed over."""
    for path in states(stage_dir):
        with suppress(ValueError):
            _read_state(path)
            return path


def load_state(path: str | Path) -> dict:
    tensors, tree, _ = _read_state(path)
    # copies: the run writes into them, and prunes the file while it goes on
    return unpack({name: t.clone() for name, t in tensors.items()}, tree)
