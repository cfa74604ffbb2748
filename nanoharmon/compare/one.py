"""One system with one seed: train what is missing, measure it, write it down. In a process of its own (__main__.py)."""
import time

import torch

from ..files import read_json, write_bytes, write_json
from ..pictures import file_bytes
from .metrics import measure
from .systems import System


def run_one(name, seed, preset, steps, scenes, folder):
    """Train what is missing of a system, then measure it: FOLDER/metrics.json. steps: {part: steps}; scenes: how many
    different pictures."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(steps)
    system = System(name, preset, seed, scenes)
    done = [part for part in parts if (folder / f"{part}.safetensors").exists()]
    if done:
        system.load(folder / f"{done[-1]}.safetensors")
    took = read_json(folder / "seconds.json") if done else {}
    for part in parts[parts.index(done[-1]) + 1 if done else 0:]:
        system.prepare(part)
        began = time.process_time()
        system.train(part, steps[part])
        took[part] = time.process_time() - began
        write_json(folder / "seconds.json", took)
        system.save(folder / f"{part}.safetensors")
        for earlier in parts[:parts.index(part)]:                # the last file holds all of the system
            (folder / f"{earlier}.safetensors").unlink(missing_ok=True)
    figures, pictures = measure(system, preset)
    figures["cost"]["minutes of training"] = sum(took.values()) / 60
    write_bytes(folder / "pictures.png", file_bytes(pictures))
    write_json(folder / "metrics.json", figures)
