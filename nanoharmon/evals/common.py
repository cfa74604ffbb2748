"""What the benchmarks share: rates with intervals, work over processes, scenes that training never saw."""
import contextlib
import math
import multiprocessing
import random
import signal

import torch
import torch.multiprocessing

from ..files import check_folder
from ..training.parallel import end_with_parent
from ..world import shapes

BATCH = 64                                                      # pictures drawn, or questions answered, at once
Z = 1.959964                                                    # 95 % of a normal distribution lie within Z sigma


# --- rates and their intervals ----------------------------------------------------------------------------------------

def wilson(right, n):
    """The Wilson score interval of a proportion, 95 %: (low, high)."""
    if n == 0:
        return 0.0, 1.0
    p, zz = right / n, Z * Z / n
    middle, half = p + zz / 2, Z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    return max(0.0, (middle - half) / (1 + zz)), min(1.0, (middle + half) / (1 + zz))


def rate(hits):
    """{"rate", "low", "high", "right", "n"} of a list of true and false."""
    right, n = sum(map(bool, hits)), len(hits)
    low, high = wilson(right, n)
    return {"rate": right / max(1, n), "low": low, "high": high, "right": right, "n": n}


def out_folder(path):
    """Make the folder of --out, before the work and not after it. -> Path"""
    folder = check_folder(path, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# --- work over processes ----------------------------------------------------------------------------------------------

class Worker:
    """What a worker process keeps: the pipeline, sent once, when it starts."""
    pipe = None

    @classmethod
    def start(cls, pipe):
        cls.pipe = pipe
        end_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)            # Ctrl-C is the parent's, which ends its workers
        torch.set_num_threads(1)

    @classmethod
    def do(cls, task):
        function, job = task
        return function(cls.pipe, *job)


@contextlib.contextmanager
def workers(pipe, procs):
    """A pool of processes that share the model, for `pool=` below; None (this process) for one, or on a GPU."""
    if procs <= 1 or pipe.device.type != "cpu":
        yield None
        return
    with contextlib.suppress(ImportError, ValueError, OSError):  # Linux shares each tensor as an open file
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    others = set(multiprocessing.active_children())
    with torch.multiprocessing.get_context("spawn").Pool(procs, Worker.start, (pipe,)) as pool:
        pool.first = set(multiprocessing.active_children()) - others
        yield pool


def imap(pool, tasks):
    """What Worker.do makes of each task. A worker that is killed takes its task with it; the pool starts another, and
    waits for the task for ever: here it is an error."""
    results = pool.imap(Worker.do, tasks)
    for _ in tasks:
        while True:
            with contextlib.suppress(multiprocessing.TimeoutError):
                yield results.next(timeout=2)
                break
            if any(worker.exitcode is not None for worker in pool.first):
                raise ValueError("a process that evaluates was killed, perhaps for lack of memory; pass --procs 1")


def over_processes(function, pipe, jobs, pool=None, progress=None, title=""):
    """[function(pipe, *job) for job in jobs], perhaps in other processes. progress: tqdm or the like."""
    if pool is None:
        done = (function(pipe, *job) for job in jobs)
    else:
        done = imap(pool, [(function, job) for job in jobs])
    return list(done if progress is None else progress(done, total=len(jobs), desc=title))


def batches(items, size=BATCH):
    """Nearly equal parts of at most `size`."""
    parts = math.ceil(len(items) / size)
    return [items[len(items) * i // parts:len(items) * (i + 1) // parts] for i in range(parts)]


def placement(pipe):
    """Where training put objects: options of shapes.random_scene."""
    return {"layout": pipe.meta.get("layout", "board"), "board": pipe.meta.get("board", 3)}


def fresh_scene(pipe, seed, i, unseen=False):
    """Scene i for evaluation, of as many objects as training had at most. With `unseen`, at least one is of a pair that
    it never showed."""
    rng = random.Random(f"eval/{seed}/scene/{unseen}/{i}")
    while True:
        scene = shapes.random_scene(rng, most=pipe.meta.get("max_objects", 4), allow_unseen=unseen, **placement(pipe))
        if not unseen or any(o.pair in shapes.UNSEEN for o in scene.objects):
            return scene
