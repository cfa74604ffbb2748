"""Optimisation: which parameters move in a stage, AdamW and Muon, the learning-rate schedule, EMA.

Muon (Jordan 2024, arXiv 2502.16982) replaces a weight matrix's momentum by the nearest orthogonal matrix. On the nano
VAE it went further in 400 steps than AdamW in 800; it costs about a fifth of a step (docs/LOG.md). It is used for the
matrices of blocks and projectors and the VAE's convolutions; embeddings, norms, biases, other input and output layers
stay with AdamW. With `optim.muon false` all is AdamW, as in the official fine-tuning.

torch.optim.Muon goes matrix by matrix; here all matrices of one shape go through one batched product, and under several
processes each does its share, which on CPU is what makes it affordable.
"""
import math
from dataclasses import replace

import torch
import torch.distributed as dist

from .sharding import apart

# without weight decay, beside biases and norms; MAR and Harmon spare only these and the diffusion MLP
NO_DECAY = ("diffloss", "embed", "fake_latent", "mask_token", "class_emb")


def prefixes(trained):
    """["mar.", "proj_in."] from "mar., proj_in.,": what the names of trained parameters begin with."""
    return [prefix.strip() for prefix in trained.split(",") if prefix.strip()]         # "" would be a prefix of all


def select(model, trained):
    """Set requires_grad by comma-separated prefixes of names; returns the trained {name: parameter}.

    Raises ValueError when a prefix fits no name.
    """
    trained, chosen = prefixes(trained), {}
    for name, p in model.named_parameters():
        on = name.startswith(tuple(trained))
        p.requires_grad_(on)
        if on:
            chosen[name] = p
    lost = [prefix for prefix in trained if not any(name.startswith(prefix) for name in chosen)]
    if lost or not chosen:
        raise ValueError(f"no parameter to train has a name that starts with {', '.join(lost or trained)!r}, expected "
                         f"prefixes such as mar.,proj_in.")
    return chosen


def is_matrix(name, p):
    """Does Muon take it? Weights inside transformer blocks, projectors and the diffusion MLP's residual blocks."""
    if name.startswith("vae."):                      # all convolutions but the first and last of each half
        return p.ndim == 4 and not any(part in name for part in ("conv_in", "conv_out", "quant_conv"))
    return p.ndim == 2 and any(part in name for part in ("blocks.", "layers.", "proj_in.", "proj_out."))


def make_optimizers(params, config, given=()):
    """[AdamW, Muon] (or [AdamW]) for {name: parameter}; `config`: OptimConfig. Each group has its `base_lr`.

    given: how names begin whose weights come from outside: their rates are lower, times config.given.
    """
    theirs = {n: p for n, p in params.items() if given and config.given != 1 and n.startswith(given)}
    if theirs:
        own = {n: p for n, p in params.items() if n not in theirs}
        slow = replace(config, lr=config.lr * config.given, muon_lr=config.muon_lr * config.given)
        return make_optimizers(own, config) + make_optimizers(theirs, slow)
    matrices = {n: p for n, p in params.items() if config.muon and is_matrix(n, p)}
    decay, plain = [], []
    for name, p in params.items():
        if name not in matrices:
            (plain if p.ndim < 2 or any(part in name for part in NO_DECAY) else decay).append(p)
    groups = [{"params": kind, "weight_decay": wd} for g, wd in ((decay, config.weight_decay), (plain, 0.0))
              for kind in apart(g)]
    betas = config.beta1, config.beta2
    optimizers = [torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)] if groups else []
    if matrices:
        optimizers.append(Muon(matrices, config.muon_lr, config.muon_momentum, config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised. The update has the size `lr * sqrt(max(1, rows / columns))` per direction.

    Under torch.distributed, parameters must be the same on all ranks.
    """

    def __init__(self, named, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(list(named.values()), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.splits = [3 if "qkv" in name or "res_blocks" in name and "adaLN" in name else 1 for name in named]

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        moving = [(p, split) for p, split in zip(group["params"], self.splits) if p.grad is not None]
        for p, _ in moving:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        params = [p for p, _ in moving]
        grads, momenta = [p.grad for p in params], [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        by_shape = {}
        for update, (p, split) in zip(torch._foreach_lerp(grads, momenta, group["momentum"]), moving):       # Nesterov
            # a convolution (out, in, 3, 3) is the matrix (out, in*9); a fused qkv weight (3D, D) is three matrices
            for part, target in zip(update.flatten(1).chunk(split), p.flatten(1).chunk(split)):
                by_shape.setdefault(part.shape, []).append((part, target))
        updates = share_work([torch.stack([part for part, _ in pairs]) for pairs in by_shape.values()])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for (rows, columns), pairs, moves in zip(by_shape, by_shape.values(), updates):
            scale = group["lr"] * max(1, rows / columns) ** 0.5
            torch._foreach_add_([target for _, target in pairs], list(moves.unbind()), alpha=-scale)


def share_work(stacks):
    """orthogonalize each (n, rows, columns) of a list; each process takes a part of it, and sends it to the others."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return [orthogonalize(x) for x in stacks]
    rank, world_size = dist.get_rank(), dist.get_world_size()
    parts = [x.tensor_split(world_size) for x in stacks]                         # [stack][process]
    own = torch.cat([orthogonalize(x[rank]).flatten() for x in parts])           # before any waits for another
    done = []                                                                    # of each process, as one message
    for r, theirs in enumerate(zip(*parts)):
        message = own if r == rank else theirs[0].new_empty(sum(x.numel() for x in theirs))
        if message.numel():                                                      # fewer matrices than processes
            dist.broadcast(message, r)
        done.append(message.split([x.numel() for x in theirs]))
    return [torch.cat(pieces).view_as(x) for pieces, x in zip(zip(*done), stacks)]


def orthogonalize(x, steps=5):
    """About U V^T of each x = U S V^T, by a quintic Newton-Schulz iteration. x (n, rows, columns)."""
    a, b, c = 3.4445, -4.7750, 2.0315        # Jordan's coefficients: singular values end in about [0.7, 1.2]
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.shape[2] < 2 * x.shape[1]:
        for _ in range(steps):
            gram = x @ x.transpose(1, 2)                                         # (n, rows, rows)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    else:
        # the same as x <- p x, gram <- p gram p with p = a + b gram + c gram^2: only the product of all p meets the
        # long side. At 1 : 4 that saves 44 % of the work
        gram, product = x @ x.transpose(1, 2), None
        for step in range(steps):
            p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            p.diagonal(dim1=1, dim2=2).add_(a)
            product = p if product is None else p @ product
            if step < steps - 1:                                                 # the last one is read by nobody
                gram = p @ gram @ p
        x = product @ x
    return x.transpose(1, 2) if tall else x


def lr_factor(step, steps, warmup, schedule, floor):
    """Factor on the learning rate at `step` of `steps`: linear warmup, then to `floor` by cosine or linearly."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    down = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return floor + (1 - floor) * down


def set_lr(optimizers, factor):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor


class EMA:
    """Exponential moving average of the trained weights: what is evaluated and shipped.

    The decay ramps up as (1 + step) / (10 + step) towards `decay`, so that short runs are not an average of their
    beginning: the official 0.9999 needs some 100,000 steps.
    """

    def __init__(self, params, decay):
        self.decay, self.shadow = decay, {n: p.detach().clone() for n, p in params.items()}

    @torch.no_grad()
    def update(self, params, step):
        decay = min(self.decay, (1 + step) / (10 + step))
        for ours, theirs in zip(apart(self.shadow.values()), apart([params[n] for n in self.shadow])):
            torch._foreach_lerp_(ours, theirs, 1 - decay)

    @torch.no_grad()
    def swap(self, params):
        """Exchange parameters and averages, in place."""
        for name, value in self.shadow.items():
            current = params[name].clone()
            params[name].copy_(value)
            value.copy_(current)
