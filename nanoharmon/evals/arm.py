"""One arm of a study (study.py): trained by train.py and measured, in a process of its own.

A process of its own, because an arm may swap a baseline into the core (baselines.py), and because arms that are trained
side by side must have one thread each. Its folder holds arm.json (what it is), train.log, the stages that train.py
writes, and study.json, its figures, once it is done.
"""
import contextlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..cli import run_main
from ..files import content_hash, read_json, write_json
from ..harmon import Harmon
from ..mar import random_orders
from ..pictures import to_pictures
from ..pipeline import Pipeline
from ..training.batches import Batches
from ..training.parallel import end_with_parent
from ..training.recipe import DataConfig
from ..world import shapes
from ..world.judge import judge_class
from ..world.source import ShapesData
from .baselines import raster_orders, swapped_in
from .common import placement, rate
from .geneval import draw_scores
from .reading import answer_scores

TRAIN = Path(__file__).parents[2] / "train.py"  # beside the package, never one in the current folder


@dataclass
class Arm:
    """A variant of training."""
    name: str
    steps: dict                                 # {stage: steps}
    flags: list = field(default_factory=list)   # for train.py
    fresh: tuple = ()                           # parts that start from random weights
    mar: dict = field(default_factory=dict)     # changed fields of MARConfig
    baseline: str = ""                          # one of baselines.SWAPS

    @property
    def start(self):
        """The stage whose weights it starts from."""
        return "vae" if "mar" in self.steps else "mar"

    def learns(self, task):
        """task: "batch", generation, or "understanding_batch"."""
        return not any(flag.endswith(f".{task}=0") for flag in self.flags)


@dataclass
class Job:
    """An arm with a seed."""
    base: Path                                  # output of a train.py: the stages before
    out: Path                                   # of the study
    arm: Arm
    seed: int
    preset: str = "nano"
    scenes: int = 20000

    @property
    def folder(self):
        return self.out / f"{self.arm.name.replace(' ', '_')}-{self.seed}"


def base_hash(base, stage):
    """A short name of the weights after a stage: any training changes it."""
    return content_hash(base / f"stage_{stage}" / "model.safetensors")[:12]


def note(job):
    """Write down what an arm is. Raises ValueError when its folder is of another one: of another budget, perhaps."""
    path, weights = job.folder / "arm.json", base_hash(job.base, job.arm.start)
    what = {"weights": weights, "preset": job.preset, "scenes": job.scenes, **asdict(job.arm)}
    what = json.loads(json.dumps(what))                         # tuples become lists, as in the file
    if path.exists() and (old := read_json(path)) != what:
        changed = ", ".join(f"{k} {old.get(k)}, not {v}" for k, v in what.items() if old.get(k) != v)
        raise ValueError(f"{path.parent} holds an arm with {changed or 'other fields'}; pass another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, what)


# --- training it ------------------------------------------------------------------------------------------------------

def prepare(job, pipe):
    """Fill the arm's folder with what train.py takes for finished stages: the weights of `pipe`, in its variant."""
    arm, stage = job.arm, f"stage_{job.arm.start}"
    if (job.folder / stage / "config.json").exists():
        return
    torch.manual_seed(job.seed)
    model = Harmon(replace(pipe.model.config, mar=replace(pipe.model.config.mar, **arm.mar)))
    torch.manual_seed(job.seed)
    for layer in (*model.proj_in[::2], *model.proj_out[::2]):    # the same in all arms, whatever else is new
        layer.reset_parameters()
    for part in {"vae", "llm", "mar"} - set(arm.fresh):
        getattr(model, part).load_state_dict(getattr(pipe.model, part).state_dict())
    if arm.baseline == "separate encoders":
        model.mar_read.load_state_dict(model.mar.state_dict())
    if arm.start != "vae":
        shutil.copytree(job.base / "stage_vae", job.folder / "stage_vae", dirs_exist_ok=True)
    Pipeline(model, pipe.tokenizer, pipe.meta).save(job.folder / stage)


def borrow_latents(job):
    """Link the latents that another arm with this seed has encoded: the same pictures and the same VAE."""
    for path in job.out.glob(f"*-{job.seed}/cache/latents_*.npy"):
        mine = job.folder / "cache" / path.name
        if not path.name.endswith(".part.npy") and not mine.exists():
            mine.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):                   # a disk without hard links: encoded anew
                mine.hardlink_to(path)


def run_train(*flags):
    """train.py as a script, but in this process: what is swapped in stays so."""
    before, sys.argv = sys.argv, [str(TRAIN), *flags]
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    finally:
        sys.argv = before


def train_arm(job):
    """Train and measure, and write study.json. What an earlier call has begun goes on; "minutes" are of this one."""
    arm, began = job.arm, time.time()
    job.folder.mkdir(parents=True, exist_ok=True)
    borrow_latents(job)
    pipe = Pipeline.load(job.base / f"stage_{arm.start}")        # before the swap: it has no baseline
    with (open(job.folder / "train.log", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log),
          contextlib.redirect_stderr(log), swapped_in(arm.baseline)):
        prepare(job, pipe)
        run_train("--preset", job.preset, "--out", str(job.folder), "--procs", "1", "--resume", "--sample-every", "0",
                  "--save-every", "100", f"--data.seed={job.seed}", f"--data.scenes={job.scenes}",
                  *(f"--stage_{stage}.steps={steps}" for stage, steps in arm.steps.items()), *arm.flags,
                  *(f"--stage={stage}" for stage in arm.steps))
        pipe = Pipeline.load(job.folder / f"stage_{list(arm.steps)[-1]}")
        figures = class_figures(pipe) if "mar" in arm.steps else arm_figures(pipe, arm)
    write_json(job.folder / "study.json", figures | {"minutes": (time.time() - began) / 60})


def measure_stage(base, stage, path):
    """The figures of the run in `base` after one of its stages, which are far longer than an arm's, into a file."""
    began = time.time()
    figures = arm_figures(Pipeline.load(base / f"stage_{stage}"), Arm("", {}))
    write_json(path, figures | {"minutes": (time.time() - began) / 60})


# --- measuring it -----------------------------------------------------------------------------------------------------

@torch.no_grad()
def arm_figures(pipe, arm, n=25, scenes=512):
    """Figures of a model after stage 2: prompts drawn right, answers right, and both losses on fresh scenes."""
    source, size, figures = ShapesData(DataConfig(seed=-1, scenes=scenes, **placement(pipe))), pipe.size, {}
    source.latents[size] = torch.cat([pipe.model.vae.encode(pipe.pixels(source.pictures(range(k, k + 64), size)))
                                      for k in range(0, scenes, 64)]).numpy()
    data = Batches([source], [1], pipe.tokenizer, pipe.model.config.mar.buffer_size)
    generation, understanding, grid = [], [], pipe.model.vae.grid_of(size, size)
    for k in range(scenes // 64):
        rng, generator = random.Random(f"eval/study/{k}"), torch.Generator().manual_seed(k)
        for latents, ids, is_real in data.generation(rng, 64, size, 0.0):
            generation.append(pipe.model.generation_loss(latents, ids, is_real, grid, generator=generator,
                                                         order_generator=generator).item())
        for latents, ids, labels, index in data.understanding(rng, 64, size):
            understanding.append(pipe.model.understanding_loss(latents, ids, labels, index, grid).item())
    if arm.learns("batch"):
        drawn, _ = draw_scores(pipe, n, 2, unseen=False, steps=25)
        figures["prompts right"] = drawn["seen"]["overall"]["rate"]
        figures["generation loss"] = statistics.mean(generation)
    if arm.learns("understanding_batch"):
        answers = answer_scores(pipe, 8 * n, benches=("vqa", "caption"), look=True)      # as OUT/final answers
        figures["answers right"] = answers["vqa"]["overall"]["rate"]
        figures["captions right"] = answers["caption"]["rate"]
        figures["understanding loss"] = statistics.mean(understanding)
    return figures


def class_figures(pipe, per_class=3):
    """Figures of a class-conditional MAR: share of right pictures, by order and number of iterations."""
    grid = pipe.model.vae.grid_of(pipe.size, pipe.size)
    S = grid[0] * grid[1]
    return {title: class_rate(pipe, grid, per_class, orders, iters) for title, orders, iters in (
        (f"random, {S} iterations", random_orders, S), ("random, 4", random_orders, 4),
        ("random, 1", random_orders, 1), (f"raster, {S}", raster_orders, S))}


@torch.no_grad()
def class_rate(pipe, grid, per_class, make_orders, iters):
    """Share of pictures with exactly what their class says, for all classes that training shows."""
    right, labels = [], list(shapes.SEEN_CLASSES) * per_class
    for k in range(0, len(labels), 64):
        part, generator = labels[k:k + 64], torch.Generator().manual_seed(k)
        orders = make_orders(len(part), grid[0] * grid[1], "cpu", generator)
        latents = pipe.model.mar.class_sample(torch.tensor(part), orders, iters, cfg=2.0, cfg_schedule="constant",
                                              grid=grid, generator=generator, steps=25)
        for picture, label in zip(to_pictures(pipe.model.vae.decode(latents, grid)), part):
            right.append(judge_class(np.asarray(picture), label))
    return rate(right)["rate"]


# --- a process of its own ---------------------------------------------------------------------------------------------

def run_apart(function, args, path):
    """What function(*args) writes to the JSON file `path`, in a process of its own; read when it is there already."""
    if not path.exists():
        process = multiprocessing.get_context("spawn").Process(target=alone, args=(function, args), daemon=True)
        process.start()
        process.join()
        if process.exitcode:
            log = path.parent / "train.log"                      # of an arm of a study
            raise ValueError(f"the process that was to write {path} ended with exit code {process.exitcode}, expected "
                             f"0; see its error above" + f", or the end of {log}" * log.exists())
    return read_json(path)


def alone(function, args):
    """One thread, for train.py gives a single process all cores; and no longer life than the parent's."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    end_with_parent()
    run_main(lambda: function(*args))
