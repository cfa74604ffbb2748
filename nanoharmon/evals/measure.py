"""Instruments of the benchmark (bench.py): seconds, their parts, FLOPs, memory, and how busy the machine is.

FLOPs are counted while the work runs, from the shapes of its matrix products, convolutions and attentions (a
multiplication and an addition count as two; everything else counts as nothing). The share of peak compares them with
the best rate that one large matrix product reaches on this machine, with these threads, in the same run.
"""
import ctypes
import os
import re
import statistics
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

SELF, MACHINE = Path("/proc/self"), Path("/proc/stat")           # Linux only; elsewhere these figures are left out


# the fused attention of CPUs, which torch's counter does not know: of q, k, v; and of a gradient, q, k, v
ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *x, **_: sdpa_flop_count(*x[:3]),
          torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
              lambda *x, **_: sdpa_backward_flop_count(*x[:4])}


def wait(device):
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Parts:
    """Seconds spent in parts of the work, by name: `with parts("backward"): ...`."""

    def __init__(self, device):
        self.device, self.seconds = device, {}

    @contextmanager
    def __call__(self, name):
        wait(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            wait(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def watch(self, owner, method, name):
        """From now on, time every call of owner.method. name: a text, or what makes one of the call's arguments."""
        inner = getattr(owner, method)

        def timed(*args, **options):
            with self(name if isinstance(name, str) else name(*args, **options)):
                return inner(*args, **options)
        setattr(owner, method, timed)

    def watch_items(self, owner, method, name):
        """From now on, time the generator owner.method: how long its items take to come."""
        inner = getattr(owner, method)

        def timed(*args, **options):
            items, end = inner(*args, **options), object()
            while True:
                with self(name):
                    item = next(items, end)
                if item is end:
                    return
                yield item
        setattr(owner, method, timed)

    def watch_model(self, model):
        """From now on, time the parts of a Harmon."""
        for method in "encode", "decode":
            self.watch(model.mar, method, f"MAR {method}r")
            self.watch(model.vae, method, "VAE")
        self.watch(model.llm.model, "forward", llm_part)
        self.watch(model.mar.diffloss, "forward", "diffusion MLP")
        self.watch(model.mar.diffloss, "sample", "diffusion MLP")


def llm_part(embeds, positions=None, is_real=None, cache=None, **_):
    """A name for a call of the LLM."""
    return "LLM" if cache is None else "LLM, on its cache" if len(cache) else "LLM, prompt"


# --- memory -----------------------------------------------------------------------------------------------------------

def memory(device, name="VmRSS"):
    """Bytes this process holds now (VmRSS) or held at most since `forget_peak` (VmHWM); None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) if name == "VmRSS" else torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        return int(re.search(rf"{name}:\s*(\d+) kB", (SELF / "status").read_text(encoding="utf-8"))[1]) * 1024


def forget_peak(device):
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)                         # glibc; what malloc keeps free would be used unseen
    with suppress(OSError):
        (SELF / "clear_refs").write_text("5", encoding="utf-8")


# --- the machine ------------------------------------------------------------------------------------------------------

def busy_seconds():
    """CPU seconds of all programs on this machine since it started; None where nobody says."""
    with suppress(OSError):
        user, nice, system = map(int, MACHINE.read_text(encoding="utf-8").split()[1:4])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def matmul_peak(device, dtype):
    """FLOP/s of one large matrix product, the best of twelve."""
    n, best = (1024 if device.type == "cpu" else 8192), 0.0
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    for _ in range(12):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


# --- all of it --------------------------------------------------------------------------------------------------------

def measure(work, parts, dtype, repeat, compiled=False):
    """Run `work()` once to warm up, which is when FLOPs and memory are taken, then `repeat` times by the clock.
    compiled: what it calls is (compiling.py). Then three more runs compile it, and memory is that of the third.

    Returns a dict: seconds and cpu_seconds of every run, parts {name: median seconds}, flops, memory (bytes above what
    was held before), peak (FLOP/s) and others (CPU cores that other programs used).
    """
    device = parts.device
    wait(device)
    forget_peak(device)
    idle, counter = memory(device), FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with torch.compiler.set_stance("force_eager"), counter:      # torch never compiles what it first met while counting
        work()
    for _ in range(3 * compiled):
        forget_peak(device)
        work()
    wait(device)
    most, peak = memory(device, "VmHWM"), matmul_peak(device, dtype)
    seconds, cpu_seconds, of_parts = [], [], []
    begin, busy, own = time.perf_counter(), busy_seconds(), time.process_time()
    for _ in range(repeat):
        parts.seconds, start, cpu = {}, time.perf_counter(), time.process_time()
        work()
        wait(device)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu)
        of_parts.append(parts.seconds)
    others = None
    if busy is not None:
        others = max(0.0, (busy_seconds() - busy - (time.process_time() - own)) / (time.perf_counter() - begin))
    names = dict.fromkeys(name for run in of_parts for name in run)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "flops": counter.get_total_flops(),
            "parts": {name: statistics.median(run.get(name, 0.0) for run in of_parts) for name in names},
            "memory": None if idle is None or most is None else most - idle,
            "peak": max(peak, matmul_peak(device, dtype)), "others": others}
