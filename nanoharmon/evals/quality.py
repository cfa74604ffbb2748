"""How drawn pictures are distributed, beyond right and wrong: do they look like renders, and are they as varied?

    python -m nanoharmon.evaluate --bench quality --ckpt DIR --out DIR        DIR/results.json, and a table

n prompts of GenEval's six tasks are drawn; the reference are fresh renders of scenes that satisfy the same prompts.
Both go through the *eye*, a small network made here, and are compared as clouds of points in its feature space:

    Frechet      |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2) of two Gaussians (arXiv 1706.08500, eq. 6)
    precision    share of the pictures that lie within the reference: in the ball around some reference picture that
                 reaches to its third neighbour (arXiv 1904.06991, eq. 1-2); low = unlike any render
    recall       the same with the roles exchanged; low = some renders have nothing like them: modes are missing

This is not FID. The eye is a convolutional network of ours that learns, from a fixed seed and in half a minute, which
(color, shape) pair is where in a render. It looks at objects and hardly notices blur: for that there is the PSNR of VAE
reconstructions. A point is the mean over places of the eye's last maps (64 numbers: what), how full each ninth of the
picture is (9: where), and how sure the eye is that there is an object at all (without it, with few pictures a blank one
lies within the reference, whose balls are large then); all of variance 1, at most, on renders of random scenes. All
figures depend on the eye and on n (few pictures: a larger distance, rates near 1), so compare at equal n and with the
controls beside them: other renders of the same prompts (what a perfect artist would get), their VAE reconstructions,
single objects only (right and sharp, but most modes are missing), blank pictures and noise. `read` is how many pictures
the eye reads without a mistake: what all this rests on.
"""
import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..pictures import psnr, to_pixels
from ..training.optim import Muon
from ..training.watch import reconstruct
from ..world import prompts, shapes
from .common import batches, over_processes, placement, rate

NEIGHBOURS = 3                          # k of precision and recall, as in the paper
STEPS, BATCH, LR, MUON_LR = 200, 64, 4e-3, 0.03                  # of the eye's training
MOST = 96                               # larger pictures are reduced to this side before the eye sees them


# --- the eye ----------------------------------------------------------------------------------------------------------

class Eye(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1], sides a multiple of 4 -> logits (B, PAIRS + 1, H/16, W/16): what is where."""

    def __init__(self):
        super().__init__()
        layers = [nn.PixelUnshuffle(4)]                                          # (B, 48, H/4, W/4)
        for c_in, c_out, stride in ((48, 48, 2), (48, 64, 1), (64, 96, 2), (96, 64, 1)):
            layers += [nn.Conv2d(c_in, c_out, 3, stride, 1), nn.GroupNorm(1, c_out), nn.SiLU()]
        self.body = nn.Sequential(*layers)                                       # (B, 64, H/16, W/16)
        self.head = nn.Conv2d(64, len(shapes.PAIRS) + 1, 1)
        self.mean, self.std = 0.0, 1.0                                           # of the features of renders

    def forward(self, x):
        return self.head(self.body(x))


def pixels(images):
    """Pictures (N, H, W, 3) uint8 -> what the eye takes."""
    x = to_pixels(torch.from_numpy(images))
    return F.adaptive_avg_pool2d(x, MOST) if max(x.shape[2:]) > MOST else x


@torch.no_grad()
def eye_features(eye, images):
    """Pictures (N, H, W, 3) uint8 -> points (N, 64 + 9 + 1) float64, and what the eye says is where (N, h, w)."""
    points, said = [], []
    for part in batches(images):
        maps = eye.body(pixels(part))                                            # (n, 64, h, w)
        logits = eye.head(maps)
        filled = 1 - logits.softmax(dim=1)[:, -1:]                               # (n, 1, h, w)
        points.append(torch.cat([maps.mean(dim=(2, 3)), F.adaptive_avg_pool2d(filled, 3).flatten(1),
                                 filled.amax(dim=(2, 3))], dim=1))
        said.append(logits.argmax(dim=1))
    return ((torch.cat(points) - eye.mean) / eye.std).double(), torch.cat(said)


def true_labels(scene, size):
    """The (color, shape) pair whose box each place (h, w) of the eye's maps lies in, as a number; else len(PAIRS)."""
    side = math.ceil(size / 16)
    out, places = torch.full((side, side), len(shapes.PAIRS)), (torch.arange(side) + 0.5) / side
    for o in scene.objects:
        out[((places - o.y).abs() <= o.r)[:, None] & ((places - o.x).abs() <= o.r)] = shapes.PAIRS.index(o.pair)
    return out


def train_eye(size, placement, steps=STEPS, progress=None):
    """The eye for pictures of `size` pixels; every step has new scenes. placement: options of shapes.random_scene."""
    def scenes(name, count):
        rngs = (random.Random(f"eye/{name}/{i}") for i in range(count))
        return [shapes.random_scene(rng, allow_unseen=True, **placement) for rng in rngs]
    size = min(size, MOST)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        eye = Eye()
    named = dict(eye.named_parameters())
    matrices = {name: p for name, p in named.items() if name.startswith("body.") and p.ndim == 4}
    others = [p for name, p in named.items() if name not in matrices]
    optimizers = ((torch.optim.AdamW(others), LR), (Muon(matrices, MUON_LR), MUON_LR))
    for step in range(steps) if progress is None else progress(range(steps), desc="the eye"):
        batch = scenes(step, BATCH)
        said = eye(pixels(np.stack([shapes.render(s, size) for s in batch])))
        eye.zero_grad()
        F.cross_entropy(said, torch.stack([true_labels(s, size) for s in batch])).backward()
        for optimizer, lr in optimizers:
            optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20, (steps - step) / steps)
            optimizer.step()
    points = eye_features(eye, np.stack([shapes.render(s, size) for s in scenes("scale", 500)]))[0].float()
    eye.mean, eye.std = points.mean(dim=0), points.std(dim=0).clamp(min=0.05)
    return eye


# --- distances between clouds of points -------------------------------------------------------------------------------

def frechet(a, b):
    """Frechet distance of the Gaussians fitted to points (n, d) and (m, d)."""
    values, vectors = torch.linalg.eigh(a.T.cov())
    half = vectors * values.clamp(min=0).sqrt() @ vectors.T                      # the square root of a's covariance
    cross = torch.linalg.eigvalsh(half @ b.T.cov() @ half).clamp(min=0).sqrt().sum()
    apart = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return (apart + a.var(dim=0).sum() + b.var(dim=0).sum() - 2 * cross).clamp(min=0).item()


def within(points, reference):
    """Which of points (n, d) lie in the ball around some reference point that reaches to its third neighbour: (n,)."""
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}                     # 0 between equal points
    between = torch.cdist(reference, reference, **exact).fill_diagonal_(torch.inf)
    return (torch.cdist(points, reference, **exact) <= between.kthvalue(NEIGHBOURS, dim=1).values).any(dim=1)


# --- all of it --------------------------------------------------------------------------------------------------------

def draw_part(pipe, metas, seed, options):
    return np.stack([np.asarray(p) for p in pipe.draw([meta["prompt"] for meta in metas], seed=seed, **options)])


def quality_scores(pipe, n=400, seed=0, size=None, pool=None, progress=None, eye=None, **options):
    """{row: {"Frechet", "precision, %", "recall, %"}} of n pictures each. options: cfg, iters... of Pipeline.draw."""
    size = size or pipe.size
    tasks = [prompts.geneval_prompts(task, -(-n // len(prompts.TASKS)), seed) for task in prompts.TASKS]
    metas = [meta for group in zip(*tasks) for meta in group][:n]                # the six tasks in turn

    def scenes(name, metas):
        return [prompts.scene_for(meta, random.Random(f"eval/{seed}/quality/{name}/{i}"), **placement(pipe))
                for i, meta in enumerate(metas)]

    def renders(scenes):
        return np.stack([shapes.render(scene, size) for scene in scenes])
    jobs = [(part, random.Random(f"eval/{seed}/quality/draw/{k}").getrandbits(48), {"size": size, **options})
            for k, part in enumerate(batches(metas))]
    drawn = np.concatenate(over_processes(draw_part, pipe, jobs, pool, progress, "quality"))
    eye = eye or train_eye(size, placement(pipe), progress=progress)
    same = scenes("other", metas)
    others, few = renders(same), renders(scenes("few", prompts.geneval_prompts("colors", n, seed)))
    clouds = {"drawn": drawn, "other renders": others, "VAE reconstructions": reconstruct(pipe, others),
              "single objects only": few, "blank": np.full_like(others, 30),
              "noise": np.random.default_rng(seed).integers(0, 256, others.shape, dtype=np.uint8)}
    reference, _ = eye_features(eye, renders(scenes("reference", metas)))
    truth, out = torch.stack([true_labels(scene, min(size, MOST)) for scene in same]), {}
    for name, images in clouds.items():
        points, said = eye_features(eye, images)
        out[name] = {"Frechet": frechet(points, reference), "precision, %": rate(within(points, reference).tolist()),
                     "recall, %": rate(within(reference, points).tolist())}
        if name in ("other renders", "VAE reconstructions"):
            out[name]["read, %"] = rate((said == truth).flatten(1).all(dim=1).tolist())
    out["VAE reconstructions"]["PSNR, dB"] = psnr(others, clouds["VAE reconstructions"])
    return out
