"""What the benchmarks share: rates with intervals, flags, work over processes, scenes that training never saw."""
import contextlib
import math
import random
import signal
from argparse import BooleanOptionalAction
from pathlib import Path

import torch
import torch.multiprocessing

from ..cli import number
from ..config import SAMPLERS
from ..plans import OFFICIAL
from ..training.parallel import end_with_parent
from ..world import shapes

BATCH = 64                                                      # pictures drawn, or questions answered, at once


# --- rates and their intervals ----------------------------------------------------------------------------------------

def wilson(right, n, z=1.959964):
    """The Wilson score interval of a proportion: (low, high), 95 % by default."""
    if n == 0:
        return 0.0, 1.0
    p, zz = right / n, z * z / n
    middle, half = p + zz / 2, z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    return max(0.0, (middle - half) / (1 + zz)), min(1.0, (middle + half) / (1 + zz))


def rate(hits):
    """{"rate", "low", "high", "right", "n"} of a list of true and false."""
    right, n = sum(map(bool, hits)), len(hits)
    low, high = wilson(right, n)
    return {"rate": right / max(1, n), "low": low, "high": high, "right": right, "n": n}


def out_folder(path):
    """Make the folder of --out, before the work and not after it. -> Path"""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f"cannot make the folder {path}: {e.strerror}; change --out") from None
    return Path(path)


# --- flags ------------------------------------------------------------------------------------------------------------

def drawing_flags(parser):
    """The flags that say how pictures are drawn."""
    add, own = parser.add_argument, "(default: the checkpoint's own)"
    add("--size", type=number(int, 1), help="side of the pictures in pixels " + own)
    add("--cfg", type=number(float, 0, 100), help="guidance " + own)
    add("--cfg-schedule", choices=("constant", "linear"), help=own)
    add("--iters", type=number(int, 1), help="unmasking iterations " + own)
    add("--steps", type=number(int, 1, 1000), help="diffusion steps per token " + own)
    add("--sampler", choices=SAMPLERS, help=own)
    add("--temperature", type=number(float, 0, 100), help="of ddpm's noise " + own)
    add("--think", action=BooleanOptionalAction, help="the LLM first says what will be where " + own)
    add("--fast", action="store_true", default=None, help="few --iters and --steps, a measured choice (plans.py)")


def given_options(args):
    """What these flags say, for Pipeline.draw: None where it is the checkpoint's to say."""
    return {name: getattr(args, name) for name in OFFICIAL}


# --- work over processes ----------------------------------------------------------------------------------------------

class Worker:
    """What a worker process keeps: the pipeline, sent once, when it starts."""
    pipe = None

    @classmethod
    def start(cls, pipe, threads):
        cls.pipe = pipe
        end_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)            # Ctrl-C is the parent's, which ends its workers
        torch.set_num_threads(threads)

    @classmethod
    def do(cls, task):
        function, job = task
        return function(cls.pipe, *job)


@contextlib.contextmanager
def workers(pipe, procs, threads=1):
    """A pool of processes that share the model, for `pool=` below; None (this process) for one, or on a GPU."""
    if procs <= 1 or pipe.device.type != "cpu":
        yield None
        return
    with torch.multiprocessing.get_context("spawn").Pool(procs, Worker.start, (pipe, threads)) as pool:
        yield pool


def over_processes(function, pipe, jobs, pool=None, progress=None, title=""):
    """[function(pipe, *job) for job in jobs], perhaps in other processes. progress: tqdm or the like."""
    if pool is None:
        done = (function(pipe, *job) for job in jobs)
    else:
        done = pool.imap(Worker.do, [(function, job) for job in jobs])
    return list(done if progress is None else progress(done, total=len(jobs), desc=title))


def batches(items, size=BATCH):
    """Nearly equal parts of at most `size`."""
    parts = math.ceil(len(items) / size)
    return [items[len(items) * i // parts:len(items) * (i + 1) // parts] for i in range(parts)]


def placement(pipe):
    """Where training put objects: options of shapes.random_scene."""
    return {"layout": pipe.meta.get("layout", "board"), "board": pipe.meta.get("board", 3)}


def fresh_scene(pipe, seed, i, unseen=False):
    """Scene i for evaluation. With `unseen`, at least one object is of a pair that training never showed."""
    rng = random.Random(f"eval/{seed}/scene/{unseen}/{i}")
    while True:
        scene = shapes.random_scene(rng, allow_unseen=unseen, **placement(pipe))
        if not unseen or any(o.pair in shapes.UNSEEN for o in scene.objects):
            return scene
