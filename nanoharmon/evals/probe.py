"""Linear probes: what one linear layer can read from frozen features (the preliminary study of the Harmon paper).

    python -m nanoharmon.probe --run OUT                        every stage of a training output, one Markdown table
    python -m nanoharmon.probe --ckpt OUT/stage_mar --ckpt OUT/stage_3 --n 1000 --out DIR         writes DIR/probe.json

Features: pixels; VAE latents; MAR encoders, one per checkpoint; an encoder with random weights, the control: it blows
the same latents up to the same width, and that alone makes much of them linear. Three views of each: `all` tokens
flattened (where each is matters), their `mean` (it does not), and `one` token, at the centre of the object asked about.
Every checkpoint is read at the picture size it was trained on, and at one common size (the largest of those).

    single   one object: its shape (5), color (7), place (board cell); and shape and color of an unseen pair, while
             the probe itself was fitted on seen pairs only
    many     1 to 4 objects: their number
    pair     a circle and another shape of another color: the circle's color ("bound": who knows the two colors but not
             whose they are gets half), and where it is as seen from the other one ("relation", 4)

One protocol for all. A probe is fitted on few labels, n / draws (200), because with thousands even random features do
well; five disjoint draws of them, one set of n / 2 test scenes. Features are standardized; where there are more than
`inputs` (128) numbers, the linear layer gets their first principal components, found on all n scenes without labels. A
mean or a single token of the VAE has only its own channels (16): `--inputs 16` gives no features more. The layer is
ridge regression onto one-hot targets, its largest output the answer; the penalty is the one of PENALTIES with the least
squared error when each label in turn is left out. Grids above 8 x 8 tokens are averaged down to that for `all`.
Intervals: 95 % Wilson, with the number of test scenes reduced to what the spread over the draws allows.
"""
import dataclasses
import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..cli import Parser, model_flags, number
from ..files import write_json
from ..mar import MAR
from ..pipeline import load_pipeline
from ..world import prompts, shapes
from .common import batches, out_folder, over_processes, placement, rate, wilson, workers
from .report import markdown

PENALTIES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)           # as shares of the trace of the inner products
KINDS = {"single": ("shape", "color", "place", "shape, unseen", "color, unseen"), "many": ("count",),
         "pair": ("bound", "relation")}
UNSEEN = tuple(sorted(shapes.UNSEEN))
STAGES = ("mar", "1", "2", "3")                                  # whose encoder is trained
MOST = 8                                                         # tokens along a side in the view `all`


# --- scenes and their labels ------------------------------------------------------------------------------------------

def probe_scene(pipe, seed, kind, i):
    """Scene i of a kind; "unseen" is a single object of a pair that training never showed."""
    rng = random.Random(f"eval/{seed}/probe/{kind}/{i}")
    if kind == "pair":
        color, (other_color, other) = rng.choice(list(shapes.COLORS)), rng.choice(shapes.SEEN)
        while other == "circle" or other_color == color:
            other_color, other = rng.choice(shapes.SEEN)
        meta = [{"class": other, "color": other_color, "count": 1}, {"class": "circle", "color": color, "count": 1,
                                                                     "position": [rng.choice(shapes.RELATIONS), 0]}]
        other, circle = (scene := prompts.scene_for({"include": meta}, rng, **placement(pipe))).objects
        return shapes.Scene((circle, other), scene.background)
    objects = [rng.choice(UNSEEN)] if kind == "unseen" else None
    return shapes.random_scene(rng, objects, n=rng.randint(1, 4) if kind == "many" else 1, **placement(pipe))


def labels(scene, kind, board):
    """{task: class}: what is true of a scene; of its first object, where the task is about one."""
    first = scene.objects[0]
    shape, color = shapes.SHAPES.index(first.shape), list(shapes.COLORS).index(first.color)
    if kind == "unseen":
        return {"shape, unseen": shape, "color, unseen": color}
    if kind == "pair":
        return {"bound": color, "relation": shapes.RELATIONS.index(shapes.relation(*scene.objects))}
    return {"shape": shape, "color": color, "place": int(first.y * board) * board + int(first.x * board),
            "count": len(scene.objects) - 1}


# --- features ---------------------------------------------------------------------------------------------------------

@torch.no_grad()
def render_and_encode(pipe, seed, kind, start, stop, size):
    """Pictures (n, size, size, 3) uint8 and latents (n, S, C) of scenes start .. stop - 1."""
    images = np.stack([shapes.render(probe_scene(pipe, seed, kind, i), size) for i in range(start, stop)])
    return images, pipe.model.vae.encode(pipe.pixels(images)).float().cpu().numpy()


def views(tokens, grid, where):
    """The three views of tokens (N, S, d) of any kind, {view: (N, ...)}. where (N, 2): a point (x, y), in 0 .. 1."""
    tokens = tokens.float().cpu()
    maps = tokens.transpose(1, 2).unflatten(2, grid)                             # n s c -> n c h w
    if max(grid) > MOST:
        maps = F.adaptive_avg_pool2d(maps, (min(grid[0], MOST), min(grid[1], MOST)))
    column, row = (where * torch.tensor((grid[1], grid[0]))).long().unbind(1)
    one = tokens[torch.arange(len(tokens)), row * grid[1] + column]
    return {"all": maps.flatten(1), "mean": tokens.mean(dim=1), "one": one}


def pixel_views(images, stride, where):
    """Two views of pictures (N, H, W, 3), a patch of the VAE's stride as a token; the mean would say little."""
    images = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    if images.shape[-1] > MOST * stride:
        images = F.adaptive_avg_pool2d(images, MOST * stride)
    patches = F.pixel_unshuffle(images, stride)                                  # (N, 3 stride^2, h, w)
    found = views(patches.flatten(2).transpose(1, 2), tuple(patches.shape[-2:]), where)
    return {"all": found["all"], "one": found["one"]}


@torch.no_grad()
def encoder_views(mar, latents, grid, where):
    """The three views of what an encoder makes of latents (N, S, C), buffers left out."""
    device, U, parts = mar.fake_latent.device, mar.config.buffer_size, []
    for part, at in zip(batches(latents), batches(where)):
        x = mar.encode(part.to(device), None, grid)[:, U:]                       # (n, S, D)
        parts.append(views(x, grid, at))
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def random_encoder(config, grid):
    """An encoder as it is before training, with position tables of this grid: the control."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MAR(dataclasses.replace(config, grid=grid[0])).eval()


# --- the linear layer -------------------------------------------------------------------------------------------------

def components(train, test, inputs):
    """Features (n, d), (m, d) standardized by `train`; of more than `inputs`, the first principal components of it."""
    mean, std = train.mean(dim=0), train.std(dim=0)
    train, test = ((x - mean) * (std > 1e-6) / std.clamp(min=1e-6) for x in (train, test))
    n, d = train.shape
    if d <= inputs:
        return train, test
    values, vectors = torch.linalg.eigh((train.T @ train if d <= n else train @ train.T).double())
    there = (values > 1e-6 * values[-1]).nonzero().squeeze(1)[-inputs:]         # eigenvalues rise
    basis = vectors[:, there] if d <= n else train.double().T @ vectors[:, there] / values[there].sqrt()
    return train @ basis.float(), test @ basis.float()


def kernel(train, test):
    """Inner products (n, n) and (m, n) of features, so scaled that a typical row has 1; + 1 is the bias."""
    train, test = train.double(), test.double()
    unit = train.square().sum(dim=1).mean().clamp(min=1e-12)
    return train @ train.T / unit + 1, test @ train.T / unit + 1


def solve(inner, classes, penalty):
    """The inverse of the penalized inner products (n, n), and centred one-hot targets (n, classes) with their mean."""
    targets = F.one_hot(classes).double()
    mean, eye = targets.mean(dim=0), torch.eye(len(classes), dtype=inner.dtype)
    return torch.cholesky_inverse(torch.linalg.cholesky(inner + penalty * inner.trace() * eye)), targets - mean, mean


def ridge(inner, outer, classes, penalty):
    """Answers (m,) for the rows of outer (m, n), from training rows with inner products (n, n) and classes (n,)."""
    inverse, targets, mean = solve(inner, classes, penalty)
    return (outer @ (inverse @ targets) + mean).argmax(dim=1)


def left_out_error(inner, classes, penalty):
    """Squared error on the training rows, each predicted by a fit without it: (G y) / diag(G), with G the inverse."""
    inverse, targets, _ = solve(inner, classes, penalty)
    return (inverse @ targets / inverse.diagonal()[:, None]).square().sum().item()


def over_draws(hits):
    """The rate of hits (draws, m), booleans, and its interval: scenes and draws both are samples."""
    hits = hits.double()
    p, (draws, m) = hits.mean().item(), hits.shape
    between = hits.mean(dim=1).var().item() / draws if draws > 1 else 0.0
    alone = max(p * (1 - p), 1e-12)                              # variance of one scene
    low, high = wilson(p * (n := alone / (alone / m + between)), n)
    return {"rate": p, "low": low, "high": high, "n": m, "draws": draws}


def fit(train, test, tasks, train_labels, test_labels, draws=5, inputs=128):
    """{task: rate} of one feature set, (n, d) and (m, d) arrays. A task asks the test rows that have a label of it."""
    train, test = components(*(torch.as_tensor(x).float() for x in (train, test)), inputs)
    inner, outer = kernel(train, test)
    labelled = max(1, len(train) // draws)
    parts = [slice(i, i + labelled) for i in range(0, len(train) - labelled + 1, labelled)][:draws]
    out = {}
    for task in tasks:
        y = torch.tensor([row[task.removesuffix(", unseen")] for row in train_labels])
        asked = [i for i, row in enumerate(test_labels) if task in row]
        truth, hits = torch.tensor([test_labels[i][task] for i in asked]), []
        for part in parts:
            best = min(PENALTIES, key=lambda p: left_out_error(inner[part, part], y[part], p))
            hits.append(ridge(inner[part, part], outer[asked][:, part], y[part], best) == truth)
        out[task] = over_draws(torch.stack(hits))
    return out


# --- all of it --------------------------------------------------------------------------------------------------------

def probe_scores(pipe, n=1000, seed=0, size=None, pool=None, progress=None, encoders=None, draws=5, inputs=128):
    """{"features, view": {"inputs", task: rate}} at one picture size: n scenes of each kind to fit on, n / 2 to test.

    encoders: {name: MAR}, of checkpoints with the same VAE; default the one of `pipe`.
    """
    size, board, out = size or pipe.size, placement(pipe)["board"], {}
    grid, config = pipe.model.vae.grid_of(size, size), pipe.model.config
    encoders = {"random encoder": random_encoder(config.mar, grid).to(pipe.device)} | (
        encoders or {"encoder": pipe.model.mar})
    for kind, tasks in KINDS.items():
        counts = {kind: n + max(1, n // 2)} | ({"unseen": max(1, n // 2)} if kind == "single" else {})
        scenes = [(probe_scene(pipe, seed, k, i), k) for k, count in counts.items() for i in range(count)]
        jobs = [(seed, k, b.start, b.stop, size) for k, count in counts.items() for b in batches(range(count))]
        parts = over_processes(render_and_encode, pipe, jobs, pool, progress, f"{kind}, {size} px")
        images, latents = map(np.concatenate, zip(*parts))
        truth = [labels(scene, k, board) for scene, k in scenes]
        where = torch.tensor([(scene.objects[0].x, scene.objects[0].y) for scene, _ in scenes])
        latents = torch.from_numpy(latents)
        blind = out.setdefault("most common answer", {"inputs": 0})
        for task in tasks:
            usual = Counter(row[task.removesuffix(", unseen")] for row in truth[:n]).most_common(1)[0][0]
            blind[task] = rate([row[task] == usual for row in truth[n:] if task in row])
        features = {"pixels": lambda: pixel_views(images, pipe.model.vae.config.stride, where),
                    "VAE latents": lambda: views(latents, grid, where)}
        features |= {name: lambda mar=mar: encoder_views(mar, latents, grid, where) for name, mar in encoders.items()}
        for name in features if progress is None else progress(features, desc="fit"):
            for view, x in features[name]().items():
                row = out.setdefault(f"{name}, {view}", {"inputs": min(x.shape[1], inputs)})
                row.update(fit(x[:n], x[n:], tasks, truth[:n], truth[n:], draws, inputs))
    return dict(sorted(out.items(), key=lambda item: ("answer", "all", "mean", "one").index(item[0].split()[-1])))


def checkpoints(args):
    """{row name: Pipeline} of the checkpoints asked for, all with the same VAE."""
    paths = list(args.ckpt or [])
    if args.run:
        found = [Path(args.run) / f"stage_{stage}" for stage in STAGES]
        paths += [path for path in found if (path / "config.json").exists()]
        if not paths:
            raise ValueError(f"{args.run}: none of {', '.join(path.name for path in found)} is here, expected a "
                             f"training output; pass --run OUT")
    if not paths:
        return {"encoder": load_pipeline(None, args.device, args.dtype)}
    short = [Path(path).resolve().name for path in paths]
    names = short if len(set(short)) == len(short) else list(map(str, paths))
    pipes = {f"encoder {name}": load_pipeline(path, args.device, args.dtype) for name, path in zip(names, paths)}
    first = next(iter(pipes.values())).model.vae.state_dict()
    for path, pipe in zip(paths, pipes.values()):
        weights = pipe.model.vae.state_dict()
        if weights.keys() != first.keys() or any(not torch.equal(weights[k], first[k]) for k in first):
            raise ValueError(f"{path} has another VAE than {paths[0]}, expected checkpoints of one run; give it a "
                             f"command of its own, with --ckpt {path} alone")
    return pipes


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.probe", description=__doc__, conflict_handler="resolve")
    add = parser.add_argument
    model_flags(parser)
    add("--ckpt", action="append", metavar="DIR", help="a trained model; may be given several times (default: "
                                                       "checkpoints/nano, if there is no --run)")
    add("--run", metavar="OUT", help=f"a training output: its {', '.join('stage_' + s for s in STAGES)}")
    add("--n", type=number(int, 10), default=1000, help="scenes of each kind to fit on, half as many to test "
                                                        "(default 1000)")
    add("--draws", type=number(int, 1, 100), default=5, help="separate fits, each with n / draws labels (default 5)")
    add("--inputs", type=number(int, 1), default=128, help="most inputs of the linear layer (default 128)")
    add("--size", type=number(int, 1), help="the common picture size (default: the largest of the checkpoints' own)")
    add("--out", default="out/probe", metavar="DIR", help="where probe.json goes (default out/probe)")
    add("--procs", type=number(int, 1, 64), default=2, help="worker processes on CPU, one thread each (default 2)")
    args = parser.parse_args(argv)
    if args.draws > args.n:
        raise ValueError(f"{args.draws} draws of {args.n} scenes, expected at most one draw per scene; pass a smaller "
                         f"--draws or a larger --n")
    pipes = checkpoints(args)
    pipe, common = next(iter(pipes.values())), args.size or max(p.size for p in pipes.values())
    pipe.model.vae.grid_of(common, common)                      # complains before anything is written
    out, found, table = out_folder(args.out), {}, {}
    with workers(pipe, args.procs) as pool:
        for size in sorted({common, *(p.size for p in pipes.values())}):
            encoders = {name: p.model.mar for name, p in pipes.items() if size in (p.size, common)}
            found[size] = probe_scores(pipe, args.n, args.seed, size, pool, tqdm, encoders, args.draws, args.inputs)
            table |= {f"{name}, {size} px": row for name, row in found[size].items()}
    write_json(out / "probe.json", {
        "checkpoints": list(pipes), "seed": args.seed, "n": args.n, "draws": args.draws, "inputs": args.inputs,
        "interval": "Wilson score over scenes and draws, 95 %", "results": found})
    print(f"linear probe, {args.draws} x {args.n // args.draws} labels: held-out pictures right, %\n")
    print(markdown(table) + "\n")
    print("[low, high]: 95 % intervals over test scenes and draws of labels")
    print(f"wrote {out}/probe.json")
