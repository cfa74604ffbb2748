"""Linear probes: what one linear layer can read from frozen features (the preliminary study of the Harmon paper).

Features of the same pictures: pixels; VAE latents; the checkpoint's MAR encoder; the same encoder with random weights
as a control. Each of the last three flattened (where each token is matters) and averaged over tokens (it does not).
Tasks: shape, color and place (board cell) of a single object; the number of objects, 1 to 4.

One protocol for all: features standardized, ridge regression onto one-hot targets (its largest output is the answer),
the penalty chosen on a fifth of the training scenes from the same list. Ridge is solved in its dual form, whose cost
does not depend on the number of features, so no feature set is cut down or favoured; only grids above 8x8 tokens and
pictures above 96 px are averaged down first, for memory.
"""
import random

import numpy as np
import torch
import torch.nn.functional as F

from . import shapes
from .mar import MAR
from .measure import batches, rate, spread, world

PENALTIES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)           # as shares of the features' total variance
SINGLE, MANY = ("shape", "color", "place"), ("count",)


def probe_scene(pipe, seed, kind, i):
    """Scene i of kind "single" (one object) or "many" (1 to 4, equally often)."""
    rng = random.Random(f"eval/{seed}/probe/{kind}/{i}")
    return shapes.random_scene(rng, n=1 if kind == "single" else rng.randint(1, 4), **world(pipe))


def labels(scene, board):
    """{task: class}: what is true of a scene; of its first object, where the task is about one."""
    o = scene.objects[0]
    return {"shape": shapes.SHAPES.index(o.shape), "color": list(shapes.COLORS).index(o.color),
            "place": int(o.y * board) * board + int(o.x * board), "count": len(scene.objects) - 1}


def flat_and_mean(tokens, grid):
    """Tokens (N, S, C) -> flattened (N, S*C), from at most 8x8 places, and their average (N, C)."""
    maps = tokens.float().transpose(1, 2).unflatten(2, grid)                     # n s c -> n c h w
    if max(grid) > 8:
        maps = F.adaptive_avg_pool2d(maps, (min(grid[0], 8), min(grid[1], 8)))
    return maps.flatten(1), tokens.float().mean(dim=1)


@torch.no_grad()
def features(pipe, seed, kind, start, stop, size):
    """Every feature set of scenes start .. stop - 1, {name: (n, d)}, in numpy arrays."""
    images = torch.from_numpy(np.stack([shapes.render(probe_scene(pipe, seed, kind, i), size)
                                        for i in range(start, stop)]))
    small = images.permute(0, 3, 1, 2).float()
    if size > 96:
        small = F.adaptive_avg_pool2d(small, 96)
    tokens, grid = pipe.model.vae.encode(pipe.pixels(images.numpy())), pipe.model.vae.grid_of(size, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        control = MAR(pipe.model.config.mar).eval().to(tokens.device)
    out, U = {"pixels": small.flatten(1).to(torch.uint8)}, pipe.model.config.mar.buffer_size
    for name, x in (("VAE latents", tokens), ("random encoder", control.encode(tokens.float(), None, grid)[:, U:]),
                    ("encoder", pipe.model.mar.encode(tokens, None, grid)[:, U:])):
        out[name], out[name + ", mean"] = flat_and_mean(x, grid)
    return {name: x.cpu().numpy() for name, x in out.items()}


def kernel(train, test):
    """Inner products (n, n) and (m, n) of standardized features (n, d) and (m, d), in units of d."""
    train, test = (torch.from_numpy(x).float() for x in (train, test))
    mean, std = train.mean(dim=0), train.std(dim=0)
    train, test = ((x - mean) * (std > 1e-6) / std.clamp(min=1e-6) for x in (train, test))
    d = train.shape[1]
    return (train @ train.T).double() / d + 1, (test @ train.T).double() / d + 1         # + 1: the bias


def ridge(inner, outer, classes, penalty):
    """Answers (m,) for the rows of outer (m, n), from training rows with inner products (n, n) and classes (n,)."""
    n, targets = len(classes), F.one_hot(classes).double()
    factor = torch.linalg.cholesky(inner + penalty * inner.trace() * torch.eye(n, dtype=inner.dtype))
    return (outer @ torch.cholesky_solve(targets - targets.mean(dim=0), factor) + targets.mean(dim=0)).argmax(dim=1)


def fit(train, test, tasks, train_labels, test_labels):
    """{task: rate on the test rows} of one feature set."""
    inner, outer = kernel(train, test)
    held, used, out = slice(0, len(train) // 5), slice(len(train) // 5, None), {}
    for task in tasks:
        y = torch.tensor([row[task] for row in train_labels])
        right = [(ridge(inner[used, used], inner[held, used], y[used], p) == y[held]).sum() for p in PENALTIES]
        answers = ridge(inner, outer, y, PENALTIES[int(torch.stack(right).argmax())])
        out[task] = rate([a == row[task] for a, row in zip(answers.tolist(), test_labels)])
    return out


def probe_scores(pipe, n=2000, seed=0, size=None, pool=None, progress=None):
    """{feature set: {task: rate}}: n scenes of each kind to fit on, n / 2 to test."""
    size, board, out = size or pipe.size, world(pipe)["board"], {}
    for kind, tasks in (("single", SINGLE), ("many", MANY)):
        total = n + n // 2
        jobs = [(seed, kind, part[0], part[-1] + 1, size) for part in batches(range(total))]
        parts = spread(features, pipe, jobs, pool, progress, f"features, {kind}")
        truth = [labels(probe_scene(pipe, seed, kind, i), board) for i in range(total)]
        for name in parts[0]:
            x = np.concatenate([part[name] for part in parts])
            out.setdefault(name, {}).update(fit(x[:n], x[n:], tasks, truth[:n], truth[n:]))
    return out
