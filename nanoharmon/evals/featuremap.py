"""Where in a picture a concept is, according to the features: similarity maps as a PNG, and how precise they are.

    python -m nanoharmon.evals.featuremap --ckpt checkpoints/nano --out DIR         DIR/featuremap.png, featuremap.json
    python -m nanoharmon.evals.featuremap --concept green --concept "green ring"    other words on the picture

Harmon's paper shows that the features of a MAR encoder respond precisely to visual concepts, those of a VAE do not.
Its maps are GradCAM++ ones; these need no gradients and no classifier. A concept is a color, a shape, or both. Its
vector is the average feature of the tokens that show it, over n scenes; the map of another picture is the cosine
between that vector and each token's feature. Of every feature, the average at its place over those n scenes is
subtracted first, so that neither the position nor what all tokens share counts.

The number: how well the similarity separates the tokens of a concept from others in n other scenes, as the area under
the ROC curve (0.5 = chance), averaged over concepts; against all other tokens, and against those of other objects only,
which is harder. Scenes have four objects: a (color, shape) pair, one of the same color, one of the same shape, and one
that shares neither, so that "red circle" must not light up at a red square or a blue circle. `unseen` pairs were
never shown in training (their vectors are, of course, averages over pictures that show them).
A token shows an object when its centre lies in the object's box. Feature sets: VAE latents, the MAR encoder of the
checkpoint, and one with random weights as the control. Intervals: 95 %, Bayesian bootstrap over the test scenes
(exponential weights: no scene is ever left out entirely, so none of the rare pairs is).
"""
import random

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..cli import Parser, model_flags, number, run_main
from ..config import nearest
from ..files import write_bytes, write_json
from ..pictures import file_bytes, picture_grid
from ..pipeline import load_pipeline
from ..world import shapes
from .common import batches, out_folder, placement
from .probe import random_encoder
from .report import markdown

GROUPS = {"colors": [(c, None) for c in shapes.COLORS], "shapes": [(None, s) for s in shapes.SHAPES],
          "pairs": list(shapes.SEEN), "unseen pairs": sorted(shapes.UNSEEN)}
CONCEPTS = ("red", "circle", "red circle")
RESAMPLES = 100                                     # of the bootstrap
SHOWN, SIDE, MARGIN, GAP = 8, 96, 146, 4            # of the PNG: pictures in a row, pixels of a side, a label, a gap


# --- scenes and what their tokens show --------------------------------------------------------------------------------

def confusing_scene(pipe, seed, name, i, pair=None):
    """A pair (by default the pairs in turn), another object of its color, another of its shape, one of neither."""
    rng = random.Random(f"eval/{seed}/featuremap/{name}/{i}")
    color, shape = pair or shapes.PAIRS[i % len(shapes.PAIRS)]
    rest = [[p for p in shapes.SEEN if (p[0] == color, p[1] == shape) == alike]
            for alike in ((True, False), (False, True), (False, False))]
    return shapes.random_scene(rng, [(color, shape), *map(rng.choice, rest)], **placement(pipe))


def shows(scene, grid, concept):
    """Which tokens (S,) show an object of a concept (color or None, shape or None)."""
    y, x = np.mgrid[:grid[0], :grid[1]]
    y, x, out = (y + 0.5) / grid[0], (x + 0.5) / grid[1], np.zeros(grid, bool)
    for o in scene.objects:
        if concept[0] in (None, o.color) and concept[1] in (None, o.shape):
            out |= (abs(x - o.x) <= o.r) & (abs(y - o.y) <= o.r)
    return out.flatten()


@torch.no_grad()
def features(pipe, scenes, size, progress=None):
    """{feature set: (N, S, d)} of scenes at one picture size."""
    grid, U = pipe.model.vae.grid_of(size, size), pipe.model.config.mar.buffer_size
    encoders = {"random encoder": random_encoder(pipe.model.config.mar, grid).to(pipe.device),
                "encoder": pipe.model.mar}
    parts, out = batches(scenes), []
    for part in progress(parts, desc="features") if progress else parts:
        latents = pipe.model.vae.encode(pipe.pixels([shapes.render(s, size) for s in part]))
        found = {"VAE latents": latents} | {name: mar.encode(latents.to(mar.fake_latent.dtype), None, grid)[:, U:]
                                            for name, mar in encoders.items()}
        out.append({name: x.float().cpu() for name, x in found.items()})
    return {name: torch.cat([part[name] for part in out]) for name in out[0]}


# --- similarity and how precise it is ---------------------------------------------------------------------------------

class Concepts:
    """The vectors of concepts in one feature set. train: features (N, S, d); masks {concept: (N, S) bool}."""

    def __init__(self, train, masks):
        self.centre = train.mean(dim=0)                                          # (S, d): one per place
        self.vectors = {c: (train - self.centre)[torch.from_numpy(m)].mean(dim=0) for c, m in masks.items()}

    def similarity(self, x, concept):
        """Cosine (N, S) between the features x (N, S, d) and a concept's vector."""
        return torch.cosine_similarity(x - self.centre, self.vectors[concept], dim=-1).numpy()


def ranks(scores):
    """0, 1, 2, ... from the lowest score up, equal ones alike."""
    return np.unique(scores, return_inverse=True)[1].reshape(np.shape(scores))


def auc(rank, positive, counts=None):
    """Area under the ROC curve: how often a positive ranks above a negative; equal ranks half. counts: weights."""
    counts = np.ones(len(rank)) if counts is None else counts
    p, q = np.bincount(rank, counts * positive), np.bincount(rank, counts * ~positive)
    pairs = p.sum() * q.sum()
    return float((p * (q.cumsum() - q / 2)).sum() / pairs) if pairs else float("nan")


def separation(similarity, masks, objects, resamples):
    """{group: AUC and interval} of {concept: similarity (N, S)}, {concept: (N, S) bool}.

    objects (N, S): where there is any, to leave the background out; None keeps it. resamples (R, N): how much each
    scene counts in each resample.
    """
    out, (N, S) = {}, next(iter(masks.values())).shape
    keep = np.ones(N * S, bool) if objects is None else objects.flatten()
    counts = np.repeat(resamples, S, axis=1)[:, keep]
    for group, concepts in GROUPS.items():
        rows = []
        for concept in concepts:
            rank, positive = ranks(similarity[concept].flatten()[keep]), masks[concept].flatten()[keep]
            rows.append([auc(rank, positive), *(auc(rank, positive, c) for c in counts)])
        means = np.mean(rows, axis=0)                            # over concepts; the first is of all scenes alike
        low, high = np.percentile(means[1:], (2.5, 97.5))
        out[group] = {"rate": float(means[0]), "low": float(low), "high": float(high)}
    return out


def precision(pipe, n, seed, size, progress=None):
    """{feature set, against what: {group: AUC}}, and {feature set: Concepts} for `picture`."""
    grid, concepts = pipe.model.vae.grid_of(size, size), [c for group in GROUPS.values() for c in group]
    scenes = {name: [confusing_scene(pipe, seed, name, i) for i in range(n)] for name in ("means", "test")}
    masks = {name: {c: np.stack([shows(s, grid, c) for s in scenes[name]]) for c in concepts} for name in scenes}
    found = {name: features(pipe, scenes[name], size, progress) for name in scenes}
    objects = np.stack([shows(s, grid, (None, None)) for s in scenes["test"]])
    resamples = np.random.default_rng(seed).exponential(size=(RESAMPLES, n))
    learned = {name: Concepts(x, masks["means"]) for name, x in found["means"].items()}
    out = {}
    for name, x in found["test"].items():
        similarity = {c: learned[name].similarity(x, c) for c in concepts}
        for against, there in ("all tokens", None), ("other objects", objects):
            out[f"{name}, against {against}"] = separation(similarity, masks["test"], there, resamples)
    return out, learned


# --- the picture ------------------------------------------------------------------------------------------------------

def heat(image, values, mask, grid):
    """A picture (H, W, 3) in grey with values (S,) from 0 to 1 as heat over it; a white line around the mask (S,)."""
    block = np.ones([max(1, SIDE // side) for side in grid])
    v = np.kron(values.reshape(grid), block)[..., None]
    grey = np.asarray(Image.fromarray(image).convert("L").resize((v.shape[1], v.shape[0])))[..., None]
    hot = np.clip(v * (1.6, 2.4, 3.0) - (0, 1.2, 2.2), 0, 1)                     # black, red, yellow, nearly white
    out = (grey * 0.6 * (1 - v) + 255 * hot).clip(0, 255).astype(np.uint8)
    there = np.pad(np.kron(mask.reshape(grid), block) > 0, 1)
    inner = there[:-2, 1:-1] & there[2:, 1:-1] & there[1:-1, :-2] & there[1:-1, 2:]
    out[there[1:-1, 1:-1] & ~inner] = 255
    return Image.fromarray(out)


def picture(pipe, learned, concepts, seed, size):
    """The PNG: a row of pictures, then for every concept one row of maps per feature set."""
    pair = next((c for c, _ in concepts if c), "red"), next((s for _, s in concepts if s), "circle")
    scenes = [confusing_scene(pipe, seed, "shown", i, pair) for i in range(SHOWN)]
    grid, images = pipe.model.vae.grid_of(size, size), [shapes.render(s, size) for s in scenes]
    found = features(pipe, scenes, size)
    rows = [("pictures", [Image.fromarray(image).resize((SIDE, SIDE)) for image in images])]
    for concept in concepts:
        masks = np.stack([shows(s, grid, concept) for s in scenes])
        for name, x in found.items():
            values = learned[name].similarity(x, concept)
            words = f"{' '.join(filter(None, concept))}\n{name}\n0 to {values.max():.2f}"
            if masks.any():
                words += f"\nAUC {auc(ranks(values.flatten()), masks.flatten()):.2f}"
            values = np.clip(values / max(values.max(), 1e-6), 0, 1)
            rows.append((words, [heat(*parts, grid) for parts in zip(images, values, masks)]))
    return picture_grid([tile for words, tiles in rows for tile in (label(words), *tiles)], SHOWN + 1, GAP, "black")


def label(words):
    """The words at the left of a row."""
    tile = Image.new("RGB", (MARGIN, SIDE), "black")
    ImageDraw.Draw(tile).multiline_text((6, 12), words, "white", ImageFont.load_default(13))
    return tile


def parse(text):
    """"red circle", "red" or "circle" -> (color or None, shape or None)."""
    words = text.lower().split()
    color, shape = ([w for w in words if w in known] for known in (shapes.COLORS, shapes.SHAPES))
    if not words or words not in (color, shape, color + shape) or max(len(color), len(shape)) > 1:
        wrong = next((w for w in words if w not in (*shapes.COLORS, *shapes.SHAPES)), "")
        raise ValueError(f"concept {text!r}{nearest(wrong, [*shapes.COLORS, *shapes.SHAPES])}, expected a color, a "
                         f"shape, or a color and a shape; pass --concept \"red circle\"")
    return (color or [None])[0], (shape or [None])[0]


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.evals.featuremap", description=__doc__)
    add = parser.add_argument
    model_flags(parser)
    add("--concept", action="append", metavar="WORDS", help=f"what the picture shows the maps of; may be given several "
                                                            f"times (default {', '.join(CONCEPTS)})")
    add("--n", type=number(int, len(shapes.PAIRS)), default=700, help="scenes the concepts' vectors come from, and as "
                                                                      "many to test (default 700)")
    add("--size", type=number(int, 1), help="side of the pictures in pixels (default: the checkpoint's own)")
    add("--out", default="out/featuremap", metavar="DIR", help="where both files go (default out/featuremap)")
    args = parser.parse_args(argv)
    concepts = [parse(text) for text in args.concept or CONCEPTS]
    pipe = load_pipeline(args.ckpt, args.device, args.dtype)
    size = args.size or pipe.size
    pipe.model.vae.grid_of(size, size)                          # complains before anything is written
    out = out_folder(args.out)
    results, learned = precision(pipe, args.n, args.seed, size, tqdm)
    write_bytes(out / "featuremap.png", file_bytes(picture(pipe, learned, concepts, args.seed, size)))
    write_json(out / "featuremap.json", {
        "checkpoint": args.ckpt or "checkpoints/nano", "seed": args.seed, "n": args.n, "size": size,
        "interval": "bootstrap over scenes, 95 %", "AUC": results})
    print(f"tokens of a concept told from others by similarity, {size} px: area under the ROC curve, %\n")
    print(markdown(results) + "\n\n[low, high]: 95 % bootstrap intervals over scenes")
    print(f"wrote {out}/featuremap.png, {out}/featuremap.json")


if __name__ == "__main__":
    run_main(main)
