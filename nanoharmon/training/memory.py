"""How much memory training takes, before anything is trained: for `train.py --dry-run` and for docs/HARDWARE.md.

    python -m nanoharmon.training.memory            presets but pico, and what fits on 8, 16, 24 and 80 GB

State: weights, gradients, the optimizer's moments and the average (EMA), counted. Work: what a forward and backward
need besides, measured: a step of the stage is run on the meta device, where tensors have shapes but no data, while a
mode adds up what is alive. So it holds what autograd saves, what is recomputed, and what is there only for a moment.

Simplified: one process, all of it float32 (bf16 autocast on a GPU needs less work memory); attention as a GPU does it,
without its matrix of weights; texts of 64 tokens; one division into visible and hidden tokens. Pictures drawn on the
way need less than a training step. How far it is from a GPU: docs/HARDWARE.md.
"""
import math
import random
import weakref
from dataclasses import replace
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from ..cli import Parser, markdown_table, run_main
from ..weights.checkpoint import meta_model
from .batches import halves
from .losses import stage_losses
from .optim import is_matrix, select
from .recipe import JOINT_STAGES, STAGES, TEXT, Config

CARDS, APART = (8, 16, 24, 80), 1.5                              # GB; of each, what CUDA and fragments take
SHOWN = "nano", "micro", "harmon-0.5b", "harmon-1.5b"


def shape_of(x):
    """What decides the shape of an operator's result: arguments with their tensors' shapes in place of tensors."""
    if isinstance(x, torch.Tensor):
        return x.shape, x.stride(), x.dtype, x.is_meta
    return tuple(map(shape_of, x)) if isinstance(x, (list, tuple)) else x


class Peak(TorchDispatchMode):
    """The most bytes of new tensors that were alive at one time.

    Torch computes most shapes in Python, which takes longer than the step itself would. Blocks are alike: what an
    operator made of the same shapes before is made again without asking (half of the time of --dry-run).
    """
    results = {}                             # {operator and shapes: the tensors that it made, or one}

    def __init__(self, known):
        super().__init__()
        self.now = self.peak = 0
        self.seen = WeakIdKeyDictionary({t.untyped_storage(): True for t in known})

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = self.run(op, args, kwargs or {})
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.is_meta and (storage := t.untyped_storage()) not in self.seen:
                self.seen[storage] = True
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, storage.nbytes())
        return out

    def run(self, op, args, kwargs):
        if any(result.alias_info for result in op._schema.returns):          # a view, or in place
            return op(*args, **kwargs)
        key = op, shape_of(args), *kwargs, shape_of(tuple(kwargs.values()))
        if key not in self.results:
            out = op(*args, **kwargs)
            if not all(isinstance(t, torch.Tensor) and t.is_meta for t in tree_leaves(out)):
                return out                                                   # numbers of the host
            self.results[key] = tree_map(shape_of, out)
            return out
        return tree_map(lambda made: torch.empty_strided(*made[:2], dtype=made[2], device="meta"), self.results[key],
                        is_leaf=lambda x: isinstance(x[0], torch.Size))

    def free(self, size):
        self.now -= size


def fused(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False):
    """F.scaled_dot_product_attention by a kernel that GPUs have: the meta device would take the plain one."""
    bias = attn_mask if attn_mask is None else attn_mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, dropout_p, is_causal)[0]


def unfilled(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


class Blank:
    """Batches as those of batches.py, of nothing but shapes; and only the larger half: the other needs no more."""

    def __init__(self, model):
        self.vae, self.buffers, self.shapes = model.vae, model.config.mar.buffer_size, None

    def larger_half(self, n):
        return [*halves(range(n), int)][-1:]                     # none of no rows

    def images(self, rng, n, size):
        return unfilled(n, 3, size, size)

    def latents(self, n, size):
        h, w = self.vae.grid_of(size, size)
        return unfilled(n, h * w, self.vae.config.z_channels)

    def supervised(self, n, places=0):
        """One answer about a picture of so many places, or about none."""
        shape = n, places + 2 * TEXT
        ids, labels, index = (unfilled(*s, dtype=torch.long) for s in (shape, shape, (n * TEXT,)))
        return ids, labels, index

    def texts(self, rng, n):
        for rows in self.larger_half(n):
            yield self.supervised(len(rows))

    def class_pictures(self, rng, n, size):
        return self.latents(n, size), unfilled(n, dtype=torch.long)

    def generation(self, rng, n, size, *shares):
        for rows in self.larger_half(n):
            shape = len(rows), TEXT
            yield self.latents(shape[0], size), unfilled(*shape, dtype=torch.long), unfilled(*shape, dtype=torch.bool)

    def reconstruction(self, rng, n, size, *shares):
        for latents, ids, is_real in self.generation(rng, n, size):
            shown = latents.shape[1] + self.buffers
            yield latents, *(unfilled(len(x), shown + TEXT, dtype=x.dtype) for x in (ids, is_real))

    def understanding(self, rng, n, size, *shares):
        for rows in self.larger_half(n):
            tokens = self.latents(len(rows), size)
            yield tokens, *self.supervised(len(rows), tokens.shape[1] + self.buffers)


def step_memory(model, config, name, shards, checkpointing):
    """(state, work) in GB of a stage whose batch is cut into so many shards. model: meta_model of config.model."""
    optim = replace(config.optim, shards=shards)
    config = replace(config, optim=optim)
    params = select(model, config.stages[name].train_parts)
    model.mar.checkpointing = model.llm.model.checkpointing = checkpointing
    model.train().zero_grad()
    for p in params.values():
        p.grad = torch.empty_like(p)
    known = [*model.parameters(), *(p.grad for p in params.values())]
    with mock.patch.object(F, "scaled_dot_product_attention", fused), Peak(known) as peak:
        for loss, values in stage_losses(config, name, model, Blank(model), random.Random(0), None):
            if loss.requires_grad:
                loss.backward()
            del loss, values
    moments = [1 if optim.muon and is_matrix(n, p) else 2 for n, p in params.items()]      # Muon keeps one, AdamW two
    numbers = (sum(p.numel() for p in model.parameters()) +
               sum((2 + m) * p.numel() for m, p in zip(moments, params.values())))         # 2: gradient, average
    return 4e-9 * numbers, 1e-9 * peak.peak


def savings(config, name):
    """[(mark, state, work)] of a stage in GB: as it is, with checkpointing (*), and with one picture, or as few as
    divide the batch, at a time besides (**). Ends where no smaller card can be reached."""
    stage, rows, model = config.stages[name], [], meta_model(config.model)
    fewest = math.gcd(stage.batch, stage.understanding_batch * (name in JOINT_STAGES))
    for mark, shards, checkpointing in ("", 1, False), ("*", 1, True), ("**", fewest, True):
        if mark != "*" or name != "vae":                         # which has nothing to recompute
            rows.append((mark, *step_memory(model, config, name, shards, checkpointing)))
            state, work = rows[-1][1:]
            if not any(state + APART <= card < state + work + APART for card in CARDS):
                break
    return rows


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.training.memory", description=__doc__)
    parser.add_argument("--preset", action="append", help=f"some of them (default {', '.join(SHOWN)})")
    args = parser.parse_args(argv)
    configs = {preset: Config.preset(preset) for preset in args.preset or SHOWN}
    table, fits = [], {card: [] for card in CARDS}
    for preset, config in configs.items():
        found = {name: savings(config, name) for name in STAGES}
        for name, rows in found.items():
            works = {mark: f"{work:.1f}" for mark, _, work in rows}
            table.append([preset, name, f"{rows[0][1]:.1f}", *(works.get(mark, "-") for mark in ("", "*", "**"))])
        for card in CARDS:
            marks = {name: [mark for mark, state, work in rows if state + work + APART <= card]
                     for name, rows in found.items()}
            fits[card].append(", ".join(name + least[0] for name, least in marks.items() if least) or "-")
    print(markdown_table(["preset", "stage", "state", "work", "checkpointing", "small shards"], table), end="\n\n")
    print(markdown_table(["card", *configs], [[f"{card} GB", *row] for card, row in fits.items()]))


if __name__ == "__main__":
    run_main(main)
