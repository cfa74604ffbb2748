"""Speed and memory at full size, with random weights: nothing is downloaded.

    python -m nanoharmon.bench                              harmon-0.5b, then harmon-1.5b, each in its own process
    python -m nanoharmon.bench --preset harmon-1.5b --device cuda
    python -m nanoharmon.bench --dry-run                    the plan: parameters and memory, without weights

Measured: filling the weights, three of the 64 iterations that draw a 256 px picture (the first, the middle one, the
last: each runs the encoder, the LLM, the decoder and 100 diffusion steps, twice because of guidance), decoding it, and
an answer of 32 tokens about a 256 px picture. The model is made on the meta device, then filled in place in `--dtype`:
there is never a second copy, and never one in float32. On CUDA, attention picks the flash kernel by itself.
"""
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from ..cli import DTYPES, Parser, number, run_main
from ..config import PRESETS
from ..harmon import Harmon
from ..mar import random_orders, unmasking_schedule
from ..pipeline import pick_device
from ..tokenizer import IMAGE

PROMPT = 16                                          # tokens of a prompt; with guidance a second one of as many


def meta_model(preset):
    with torch.device("meta"):
        return Harmon(PRESETS[preset]())


def random_model(preset, dtype, device):
    """A model with random weights in `dtype`, each filled where it is to stay."""
    model = meta_model(preset).to(dtype).to_empty(device=device)
    model.llm.tie()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.normal_(std=min(0.02, p[0].numel() ** -0.5), generator=generator)
            else:
                p.fill_(float("norm" in name and name.endswith("weight")))
    return model.eval().requires_grad_(False)


def peak_memory(device):
    """Most memory this process has ever held, in bytes: resident, or on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():                              # Linux's ru_maxrss would count what the parent process held, too
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))[1]) * 1024
    import resource                                  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def print_sizes(preset, dtype, device):
    model = meta_model(preset)
    c, total = model.config, sum(p.numel() for p in model.parameters())
    S, U, size = c.mar.grid ** 2, c.mar.buffer_size, dtype.itemsize
    print(f"{preset}, {str(dtype).removeprefix('torch.')} on {device}")
    for part, module in model.named_children():
        n = sum(p.numel() for p in module.parameters())
        print(f"  {part:9s} {n / 1e6:9.2f}M parameters {n * size / 2**30:7.2f} GiB")
    print(f"  {'all':9s} {total / 1e6:9.2f}M parameters {total * size / 2**30:7.2f} GiB")
    cache = 2 * c.llm.num_hidden_layers * c.llm.num_key_value_heads * (c.llm.hidden_size // c.llm.num_attention_heads)
    L = PROMPT + S + U
    print(f"  picture of {c.mar.grid * c.vae.stride} px: {S} tokens + {U} buffers; the LLM reads 2 x {L} (guidance), "
          f"its keys and values take {2 * L * cache * size / 2**20:.1f} MiB")
    return total * size


class Clock:
    """Prints the seconds since the last call."""

    def __init__(self, device):
        self.device, self.last = device, time.perf_counter()

    def __call__(self, what):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        print(f"  {seconds:8.2f} s  {what}", flush=True)
        return seconds


@torch.no_grad()
def time_model(preset, dtype, device, steps=100, new_tokens=32):
    """Run it and print the figures. Returns {name: number}."""
    clock = Clock(device)
    model = random_model(preset, dtype, device)
    figures = {"fill": clock("to fill the weights")}
    c = model.config
    S, n = c.mar.grid ** 2, c.mar.grid ** 2 + c.mar.buffer_size
    generator = torch.Generator(device).manual_seed(0)
    host = torch.Generator().manual_seed(0)
    ids = torch.randint(0, c.llm.vocab_size, (2, PROMPT), generator=host).to(device)
    is_real = torch.ones(2, PROMPT, dtype=torch.bool, device=device)
    order = random_orders(1, S, "cpu", host).to(device)                      # (1, S)
    latents = torch.randn(1, S, c.mar.token_dim, generator=generator, device=device)

    iters = min(64, S)
    counts, seconds = unmasking_schedule(S, iters), []
    for i in (0, iters // 2, iters - 1):                                     # hidden before and after iteration i
        now, then = counts[i], counts[i + 1]
        # `known` places are visible, those in `orders` are drawn; the others stay hidden
        drawn = model.draw(ids, is_real, iters=1, orders=order[:, then:now], latents=latents,
                           known=order[:, now:], steps=steps, generator=generator)
        seconds.append(clock(f"iteration {i + 1} of {iters}: {S - now} tokens visible, {now - then} drawn"))
    figures["first"], figures["middle"], figures["last"] = seconds
    # simpson's rule over the three
    figures["picture"] = iters * (seconds[0] + 4 * seconds[1] + seconds[2]) / 6
    image = model.vae.decode(drawn.to(dtype), (c.mar.grid,) * 2)
    figures["decode"] = clock(f"to decode {image.shape[-1]} px")

    question = torch.cat([ids[:1, :8], torch.full((1, n), IMAGE, device=device), ids[:1, 8:]], dim=1)
    embeds = model.embed_with_images(model.vae.encode(image), question)
    figures["see"] = clock(f"to encode a {image.shape[-1]} px picture for the LLM")
    said = list(model.llm.generate(embeds, {-1}, max_new_tokens=new_tokens))
    figures["answer"] = clock(f"to answer: {len(said)} tokens after {embeds.shape[1]}")
    figures["peak"] = peak_memory(device)
    weights = sum(p.nbytes for p in model.parameters())
    finite = all(torch.isfinite(x).all() for x in (drawn, image, embeds))
    print(f"  about {figures['picture']:.0f} s for a whole picture, {len(said) / figures['answer']:.1f} tokens/s, "
          f"peak memory {figures['peak'] / 2**30:.2f} GiB, {figures['peak'] / weights:.2f} x the weights"
          f"{'' if finite else ' (not finite!)'}")
    return figures


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.bench", description=__doc__)
    add = parser.add_argument
    add("--preset", action="append", choices=PRESETS, help="several for several (default harmon-0.5b, harmon-1.5b)")
    add("--device", default="auto", help="auto, cpu, cuda (default auto)")
    add("--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default bfloat16)")
    add("--steps", type=number(int, 2, 1000), default=100, help="diffusion steps per token (default 100)")
    add("--tokens", type=number(int, 1, 4096), default=32, help="length of the answer (default 32)")
    add("--dry-run", action="store_true", help="print the plan and stop")
    args = parser.parse_args(argv)
    presets = args.preset or ["harmon-0.5b", "harmon-1.5b"]
    device, dtype = pick_device(args.device), getattr(torch, args.dtype)
    if len(presets) > 1 and not args.dry_run:                        # one process each: peak memory never goes down
        for preset in presets:
            flags = [f"--{k}={getattr(args, k)}" for k in ("device", "dtype", "steps", "tokens")]
            code = subprocess.run([sys.executable, "-m", "nanoharmon.bench", "--preset", preset, *flags]).returncode
            if code:                                                 # it has said why
                sys.exit(code)
        return
    for preset in presets:
        print_sizes(preset, dtype, device)
        if not args.dry_run:
            time_model(preset, dtype, device, args.steps, args.tokens)


if __name__ == "__main__":
    run_main(main)
