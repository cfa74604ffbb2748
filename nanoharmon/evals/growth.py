"""How cost grows with the work: FLOPs and memory against tokens, batch, lengths and iterations, as exponents.

    python -m nanoharmon.evals.growth                     preset nano, a minute

Each row doubles one size while all others stay. An exponent of 1 means that twice the size costs twice as much, 2 that
it costs four times as much. Attention makes FLOPs grow faster than the tokens, but only where these are many: the
first exponent is that of the first doubling, the second that of the last.

Nothing is computed: tensors are on the meta device, where they have shapes but no data, so the figures are exact and do
not depend on the machine. Memory is the most that is held at one time beside the weights; attention as a fused kernel.
"""
import math
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ..cli import Parser, markdown_table, run_main
from ..config import PRESETS
from ..qwen import KVCache
from ..training.memory import Peak, fused, unfilled
from ..weights.checkpoint import meta_model

USUAL = {"tokens": 256, "batch": 4, "prompt": 16, "iters": 2, "steps": 2}
GROWING = {"tokens": (64, 128, 2048, 4096), "batch": (1, 2, 32, 64), "prompt": (8, 16, 256, 512),
           "iters": (2, 4, 8, 16), "steps": (2, 4, 16, 32)}


def ids(B, length):
    return unfilled(B, length, dtype=torch.long), unfilled(B, length, dtype=torch.bool)


def draw(model, tokens, batch, prompt, iters, steps):
    """Draw a batch with guidance. tokens: of each picture, whose grid is one row high."""
    orders = unfilled(batch, tokens, dtype=torch.long)
    model.draw(*ids(2 * batch, prompt), iters=iters, grid=(1, tokens), orders=orders, steps=steps,
               randn=lambda shape: unfilled(*shape))


@torch.no_grad()
def converse(model, length):
    """A conversation of so many tokens, and one more."""
    cache, llm = KVCache(), model.llm
    llm.model(llm.embed(ids(1, length)[0]), cache=cache)
    llm.lm_head(llm.model(llm.embed(ids(1, 1)[0]), cache=cache))


def cost(model, work, *args, **options):
    """(FLOPs, bytes) of work(model, ...)."""
    counter = FlopCounterMode(display=False)
    with mock.patch.object(F, "scaled_dot_product_attention", fused), Peak(model.parameters()) as peak, counter:
        work(model, *args, **options)
    return counter.get_total_flops(), peak.peak


def exponents(title, model, work, name, sizes, **usual):
    """A row of the table: how work's cost grows with the option `name`."""
    costs = [cost(model, work, **usual | {name: size}) for size in sizes]
    row = [f"{title}: {name}", f"{sizes[0]} to {sizes[-1]}"]
    for values in zip(*costs):
        row += [f"{math.log2(values[1] / values[0]):.2f}", f"{math.log2(values[3] / values[2]):.2f}"]
    return row


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.evals.growth", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="nano")
    args = parser.parse_args(argv)
    model = meta_model(PRESETS[args.preset]()).eval()
    rows = [exponents("drawing", model, draw, name, sizes, **USUAL) for name, sizes in GROWING.items()]
    rows.append(exponents("conversation", model, converse, "length", (64, 128, 512, 1024)))
    print(markdown_table(["", "from, to", "FLOPs, first", "last", "memory, first", "last"], rows))


if __name__ == "__main__":
    run_main(main)
