"""Does the model heed its prompt? How much the generation loss rises when the prompt says something else.

    python -m nanoharmon.evals.contrast --ckpt OUT/stage_2        a table, in seconds: nothing is drawn

For n pictures of two objects the loss of *all* tokens is computed with the true prompt and with wrong ones, at the same
timesteps and noise: so even small differences are real. The wrong prompts:

    relation   "a red circle left of a blue square" -> "a red circle right of a blue square"
    binding    "a red circle left of a blue square" -> "a blue circle left of a red square"
    places     "a red circle at the top and a blue square at the left" -> "... at the left and ... at the top"
    nothing    the request without a description ("Generate an image."), which training knows from caption_drop

None of them names a pair that training never shows.

Of a model that knows scenes of one object only (--quick), pictures of one: another color, shape or place, or nothing.

A model that reads its prompt as a bag of words has zeros in the first three rows, however good its pictures are. That
kept our first checkpoints from drawing relations, and this number showed it hours before any picture did (docs/LOG.md).
Intervals: 95 %, normal, over batches of 16 pictures.
"""
import random
from dataclasses import replace

import torch

from ..cli import Parser, model_flags, number, run_main
from ..pipeline import load_pipeline
from ..tokenizer import pad
from ..world import language, prompts, shapes
from .common import Z, batches, placement
from .report import markdown

PICTURES, BATCH = 256, 16


def exchangeable(a, b):
    """Whether two (color, shape) pairs differ in both, and are seen, too, each with what the other one has."""
    return a[0] != b[0] and a[1] != b[1] and not {(a[0], b[1]), (b[0], a[1])} & shapes.UNSEEN


def wrong_prompts(n, seed, **placement):
    """n scenes, and {what is wrong: [(true prompt, wrong prompt)]}. placement: options of shapes.random_scene."""
    rng, scenes, out = random.Random(f"contrast/{seed}"), [], {}
    named = [(meta, *((o["color"], o["class"]) for o in meta["include"]))        # GenEval lists the reference first
             for meta in prompts.geneval_prompts("position", 4 * n, seed)]
    for meta, b, a in [(meta, b, a) for meta, b, a in named if exchangeable(a, b)][:n]:
        scene = prompts.scene_for(meta, rng, **placement)
        related, order = meta["include"][1]["position"][0], rng.getrandbits(32)
        swapped = shapes.Scene(tuple(shapes.Object(o.shape, o.color, p.x, p.y, o.r, o.rgb)
                                     for o, p in zip(scene.objects, scene.objects[::-1])), scene.background)
        true = meta["prompt"]
        where, elsewhere = (language.describe(s, random.Random(order)) for s in (scene, swapped))
        scenes.append(scene)
        for name, told, untrue in (
                ("relation", true, f"{language.phrase(*a)} {shapes.OPPOSITE[related]} {language.phrase(*b)}"),
                ("binding", true, f"{language.phrase(b[0], a[1])} {related} {language.phrase(a[0], b[1])}"),
                ("places", where, elsewhere), ("nothing", true, None)):
            out.setdefault(name, []).append((told, untrue))
    return scenes, out


def wrong_about_one(n, seed, **placement):
    """The same for scenes of one object: in each wrong prompt it has one thing of another object."""
    rng, scenes, out = random.Random(f"contrast/{seed}"), [], {}
    while len(scenes) < n:
        scene, other = (shapes.random_scene(rng, n=1, **placement) for _ in range(2))
        o, p = *scene.objects, *other.objects
        if not exchangeable(o.pair, p.pair) or language.place_of(o) == language.place_of(p):
            continue
        scenes.append(scene)
        changed = {"color": {"color": p.color}, "shape": {"shape": p.shape}, "place": {"x": p.x, "y": p.y}}
        for name, change in changed.items():
            untrue = replace(scene, objects=(replace(o, **change),))
            out.setdefault(name, []).append((language.think(scene, ""), language.think(untrue, "")))
        out.setdefault("nothing", []).append((language.think(scene, ""), None))
    return scenes, out


@torch.no_grad()
def contrast(pipe, n=PICTURES, seed=0):
    """{what is wrong: (loss with the true prompt, its rise with the wrong one, half the width of its interval)}."""
    model, size, out = pipe.model, pipe.size, {}
    grid = model.vae.grid_of(size, size)
    S = grid[0] * grid[1]
    wrong = wrong_prompts if pipe.meta.get("max_objects", 4) > 1 else wrong_about_one
    scenes, told = wrong(n, seed, **placement(pipe))
    for part in batches(range(n), BATCH):
        latents = model.vae.encode(pipe.pixels([shapes.render(scenes[i], size) for i in part]))
        B = len(latents)
        split = (torch.zeros(B, 0, dtype=torch.long, device=pipe.device),
                 torch.arange(S, device=pipe.device).expand(B, S))               # nothing visible, all hidden
        for name, pairs in told.items():
            losses = []
            for said in zip(*(pairs[i] for i in part)):                          # the true ones, the wrong ones
                ids, is_real = pad([pipe.tokenizer.drawing_request(p) for p in said], pipe.tokenizer.pad, pipe.device)
                generator = torch.Generator(pipe.device).manual_seed(part.start)         # the same noise for all
                losses.append(model.generation_loss(latents, ids, is_real, grid, split, generator=generator).item())
            out.setdefault(name, []).append(losses)
    table = {}
    for name, losses in out.items():
        true, wrong = torch.tensor(losses).double().T
        rise = wrong - true
        table[name] = (true.mean().item(), rise.mean().item(), Z * rise.std().item() / len(rise) ** 0.5)
    return table


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.evals.contrast", description=__doc__)
    model_flags(parser)
    parser.add_argument("--n", type=number(int, 2 * BATCH, 2000), default=PICTURES,
                        help=f"pictures (default {PICTURES})")
    args = parser.parse_args(argv)
    table = contrast(load_pipeline(args.ckpt, args.device, args.dtype), args.n, args.seed)
    print(markdown({name: {"loss with the true prompt": f"{loss:.4f}",
                           "rise x 1e4": f"{1e4 * rise:.1f} +- {1e4 * half:.1f}"}
                    for name, (loss, rise, half) in table.items()}))


if __name__ == "__main__":
    run_main(main)
