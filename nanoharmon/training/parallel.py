"""Several processes, one training: start them, average their gradients, and stop them without losing anything.

Whatever ends a run reaches the user as one line: an error in any process is raised again in the one that started them;
Ctrl-C, SIGTERM and a closed terminal let rank 0 finish its step and save; processes whose parent was killed end by
themselves.
"""
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from ..arguments import cores, threads_asked
from ..cli import tolerate_characters
from .sharding import is_sharded

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:      # as nohup sets it
    SIGNALS.append(signal.SIGHUP)            # the terminal was closed
PATIENCE = timedelta(days=2)                 # that processes have with each other: one may decode pictures for hours
GRACE = 10                                   # seconds that the others get to end after one process has failed


def average_gradients(params, world_size, shards):
    """Make the gradients of {name: parameter}, each a sum over this process's shards of the batch, the mean over all
    `shards`. One all-reduce, however many shards a process has gone through."""
    if shards == 1:
        return
    trained = [p for p in params.values() if p.grad is not None]         # the same parameters in every process
    if world_size == 1:
        return torch._foreach_div_([p.grad for p in trained], shards)
    for p in filter(is_sharded, trained):                    # fully_shard has taken the mean over processes already
        p.grad /= shards / world_size
    trained = [p for p in trained if not is_sharded(p)]
    flat = torch.cat([p.grad.flatten() for p in trained])
    dist.all_reduce(flat)
    flat /= shards
    for p, piece in zip(trained, flat.split([p.numel() for p in trained])):
        p.grad = piece.view_as(p)


def average_values(values, world_size):
    """{name: list of scalar tensors}, the same names in every process -> {name: mean over the lists and processes}."""
    means = torch.stack([torch.stack(v).mean() for v in values.values()])
    if world_size > 1:
        dist.all_reduce(means)
    return dict(zip(values, (means / world_size).tolist()))


def torchrun_says():
    """(how many processes, which of them this is), from the environment that torchrun makes; (0, 0) without it."""
    size, rank = os.environ.get("WORLD_SIZE", ""), os.environ.get("RANK", "")
    if not size:
        return 0, 0
    if not (size.isdecimal() and rank.isdecimal() and int(rank) < int(size) and os.environ.get("MASTER_ADDR")):
        raise ValueError(f"the environment says WORLD_SIZE {size!r:.20} and RANK {rank!r:.20}, expected what torchrun "
                         f"sets; start train.py with torchrun, or unset WORLD_SIZE")
    return int(size), int(rank)


def join(rank, world_size, store, device):
    """Take this process's share of the cores, or its GPU, and meet the others. Returns the device.

    store: the file where they meet; torchrun says by itself where.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads_asked() or max(1, cores() // world_size))
    elif device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
        if device.index >= (n := torch.cuda.device_count()):
            raise ValueError(f"no GPU is left for process {rank}: {n} found; pass --nproc_per_node {n} to torchrun")
        torch.cuda.set_device(device)
    if world_size > 1:                                       # a dead process is noticed at once, a slow one waited for
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=world_size,
                                store=store and dist.FileStore(store, world_size), timeout=PATIENCE,
                                device_id=device if device.type == "cuda" else None)
    return device


def is_lost(error):
    """Is this what a collective raises when another process is gone? gloo has no class of its own for it."""
    return isinstance(error, dist.DistError) or "by peer" in str(error) or "Broken pipe" in str(error)


class Stop:
    """Catches SIGNALS: SystemExit(128 + its number) at once, but while `polite` only `code` is set, for a training
    loop that first finishes its step and saves. A second signal ends at once. Ranks above 0 leave it all to rank 0."""

    def __init__(self, rank=0):
        self.rank, self.code, self.when, self.polite = rank, 0, 0.0, False

    def __enter__(self):
        self.before = {n: signal.signal(n, signal.SIG_IGN if self.rank else self.caught) for n in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def safe(self):
        """All is saved: from now on a signal ends at once, also one that came before."""
        self.polite = False
        if self.code:
            sys.exit(self.code)

    def caught(self, number, frame):
        again = self.code and time.time() - self.when > 1     # within a second: the same, by way of group and parent
        if not self.code:
            self.code, self.when = 128 + number, time.time()
        if again or not self.polite:
            sys.exit(self.code)


def launch(target, world_size, *args):
    """Call target(rank, world_size, store, stop, *args) in `world_size` new processes and wait for them.

    store: where they meet. Raises what the first of them to fail raised; SystemExit as rank 0 does.
    """
    context = multiprocessing.get_context("spawn")
    problems, ready = context.SimpleQueue(), context.Event()
    before = {n: signal.signal(n, signal.SIG_IGN) for n in SIGNALS}       # inherited, until a Stop takes over
    children = []

    def forward(number, frame):
        if not ready.is_set():
            sys.exit(128 + number)
        if os.name == "posix":                                # on Windows, Ctrl-C reaches all processes by itself
            with suppress(ProcessLookupError):
                os.kill(children[0].pid, signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    with tempfile.TemporaryDirectory(prefix="nanoharmon-") as folder:
        try:
            for rank in range(world_size):
                children.append(context.Process(target=_child, args=(
                    target, rank, world_size, str(Path(folder, "store")), problems, ready, args)))
                children[-1].start()
            for number in SIGNALS:
                signal.signal(number, forward)
            while (running := [c.sentinel for c in children if c.is_alive()]):
                multiprocessing.connection.wait(running)
                if any(c.exitcode for c in children):
                    deadline = time.time() + GRACE
                    for child in children:
                        child.join(max(0, deadline - time.time()))
                    break
            codes = [c.exitcode for c in children]
        finally:
            for child in children:
                if child.is_alive():
                    child.kill()
                    child.join()
            for number, handler in before.items():
                signal.signal(number, handler)
    if codes[0] in (130, 143):
        sys.exit(codes[0])
    for rank, code in enumerate(codes):
        if code and code < 0:                                 # first, because the others then fail for lack of a peer
            print(file=sys.stderr)                            # its progress bar may have left a line open
            raise ValueError(f"process {rank} of {world_size} was killed by signal {-code}, perhaps for lack of "
                             f"memory; go on with --resume, and with --procs 1 or smaller batches")
    if not problems.empty():
        error, where = problems.get()
        raise error from RuntimeError("in a worker process:\n" + where)
    if any(codes):
        raise RuntimeError(f"the worker processes ended with exit codes {codes}")


def _child(target, rank, world_size, store, problems, ready, args):
    end_with_parent()
    tolerate_characters()
    tqdm.set_lock(threading.RLock())                          # its own is a semaphore, which a killed process leaks
    with Stop(rank) as stop:
        if rank == 0:
            ready.set()
        try:
            target(rank, world_size, store, stop, *args)
        except Exception as e:
            known = isinstance(e, (ValueError, OSError, MemoryError, RuntimeError))
            problems.put((e if known else RuntimeError(f"{type(e).__name__}: {e}"), traceback.format_exc()))
            sys.exit(2)


def end_with_parent():
    """Called in a child process: let it live no longer than its parent, however that one ends."""
    def watch():
        multiprocessing.parent_process().join()               # returns when the parent is gone
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
