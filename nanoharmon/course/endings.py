"""What each lab ends with: the student's code sees, learns to draw, and draws what a prompt says.

    python -m nanoharmon.course see [--image FILE]      questions and answers about a picture
    python -m nanoharmon.course draw [--steps N]        class-conditional MAR, from scratch: about 9 minutes
    python -m nanoharmon.course unify [--prompt TEXT]   the whole model draws a prompt

`run_ending` mixes the code: the student's version of every exercise that passes its tests, the finished one of all
others. It runs this file as a script beside that mixture, which is why the imports below are written in full.
"""
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


# --- in the student's repository: mix the code, start the script ------------------------------------------------------

def run_ending(lab, options):
    """Run a lab's ending with the student's code. Returns the exit status."""
    from . import check, handout, progress, tree
    from .table import EXERCISES

    if not (handout.ROOT / "checkpoints/nano").is_dir():
        raise ValueError(f"{handout.ROOT} has no checkpoints/nano, expected a handout or a clone; run this in one")
    mine = [e for e in progress.exercises() if progress.earned(e) == e.points] if tree.is_handout() else []
    files = tree.mixed(tree.reference(), mine, tree.PACKAGE)
    print(f"your code, where it passes all its tests: {' '.join(f'{e.number:02d}' for e in mine) or 'none yet'}; the "
          f"finished code: {' '.join(f'{e.number:02d}' for e in EXERCISES if e not in mine) or 'none'}", flush=True)
    with tempfile.TemporaryDirectory(prefix="nanoharmon-") as folder:
        tree.write(folder, files)
        script = shutil.copy(Path(__file__), folder)
        return subprocess.run([sys.executable, script, lab, str(handout.ROOT), json.dumps(options)],
                              env=check.environment(folder) | {"PWD": str(Path.cwd())}).returncode


# --- see --------------------------------------------------------------------------------------------------------------

def see(root, image):
    """Print answers to questions about a picture; without one, about scenes of the world, and which are right."""
    from PIL import Image

    from nanoharmon.cli import markdown_table
    from nanoharmon.evals.common import fresh_scene
    from nanoharmon.pictures import open_image
    from nanoharmon.pipeline import load_pipeline
    from nanoharmon.world import questions, shapes

    pipe = load_pipeline(root / "checkpoints/nano")
    if image:
        picture, asked = open_image(image), ["describe the image.", "how many objects are there?", "is there a ring?"]
        print(markdown_table(["question", "your model says"], [[q, pipe.answer(picture, q)] for q in asked]))
        return
    rows, right = [], 0
    for i in range(3):
        scene = fresh_scene(pipe, "course", i)
        picture = Image.fromarray(shapes.render(scene, pipe.size))
        picture.resize((288, 288), Image.Resampling.NEAREST).save(f"see_{i}.png")
        for qa in questions.questions(scene, random.Random(i)):
            said = pipe.answer(picture, qa.question)
            right += questions.is_right(said, qa)
            rows.append([f"see_{i}.png", qa.question, said, qa.answer, "yes" if questions.is_right(said, qa) else "no"])
    print(markdown_table(["picture", "question", "your model says", "the truth", "right"], rows))
    print(f"{right} of {len(rows)} right. The pictures are here: see_0.png, see_1.png, see_2.png")


# --- draw -------------------------------------------------------------------------------------------------------------

def draw(root, steps, out="draw.png"):
    """Train class-conditional MAR on single objects, draw each class, and let the judge count."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from nanoharmon.evals.common import rate
    from nanoharmon.mar import MAR, random_orders
    from nanoharmon.pictures import picture_grid, to_pictures, to_pixels
    from nanoharmon.pipeline import load_pipeline
    from nanoharmon.training.optim import EMA, lr_factor, make_optimizers, set_lr
    from nanoharmon.training.recipe import Config
    from nanoharmon.world import shapes
    from nanoharmon.world.judge import judge_class

    pipe, config = load_pipeline(root / "checkpoints/nano"), Config.preset("nano")
    size, stage, start = config.stages["mar"].size, config.stages["mar"], time.time()
    grid, labels, rng = pipe.model.vae.grid_of(size, size), list(shapes.SEEN_CLASSES), random.Random(0)
    labels = [label for label in labels if label < len(shapes.PAIRS)]            # one object
    torch.manual_seed(0)
    config.model.mar.diffusion_batch_mul = 4                                     # as in draw.json; 12 take longer
    mar = MAR(config.model.mar)                                                  # nothing learned yet
    seen = np.stack([shapes.render(shapes.class_scene(label, rng), size) for label in labels for _ in range(100)])
    with torch.no_grad():                                                        # (n, S, C), n = 100 of each class
        latents = torch.cat([pipe.model.vae.encode(to_pixels(part)) for part in torch.from_numpy(seen).split(100)])
    classes = torch.tensor(labels).repeat_interleave(100)

    params = dict(mar.named_parameters())
    optimizers, ema = make_optimizers(params, config.optim), EMA(params, config.optim.ema)
    generator = torch.Generator().manual_seed(0)
    bar = tqdm(range(steps), desc="training")
    for step in bar:
        set_lr(optimizers, lr_factor(step, steps, stage.warmup, config.optim.schedule, config.optim.floor) * stage.lr)
        rows = torch.randint(len(latents), (64,), generator=generator)
        loss = mar.class_loss(latents[rows], classes[rows], generator, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params.values(), config.optim.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        ema.update(params, step)
        if step % 20 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}")
    ema.swap(params)
    mar.eval()

    asked = labels * 4                                                           # four pictures of each class
    orders = random_orders(len(asked), grid[0] * grid[1], "cpu", torch.Generator().manual_seed(1))
    drawn = mar.class_sample(torch.tensor(asked), orders, grid[0] * grid[1], cfg=2.0, cfg_schedule="constant",
                             grid=grid, generator=torch.Generator().manual_seed(2), steps=50)
    with torch.no_grad():
        pictures = to_pictures(pipe.model.vae.decode(drawn, grid))
    picture_grid([picture.resize((96, 96)) for picture in pictures[:len(labels)]], 8).save(out)
    found = rate([judge_class(np.asarray(p), label) for p, label in zip(pictures, asked)])
    others = rate([judge_class(np.asarray(p), label) for p, label in zip(pictures, asked[1:] + asked[:1])])
    return {"right": found["right"], "n": found["n"], "percent": 100 * found["rate"], "low": 100 * found["low"],
            "high": 100 * found["high"], "floor": 100 * others["rate"], "minutes": (time.time() - start) / 60,
            "steps": steps}


def report(found, reference, out="draw.png"):
    """What `draw` found, with the floor below it and the reference above."""
    lines = [f"{found['right']} of {found['n']} pictures show what their class says: {found['percent']:.0f} % "
             f"[{found['low']:.0f}, {found['high']:.0f}], after {found['steps']} steps, {found['minutes']:.1f} minutes",
             f"the floor, the same pictures judged for another class: {found['floor']:.0f} %"]
    if reference:
        lines.append(f"the reference, {reference['steps']} steps: {reference['percent']:.0f} % "
                     f"[{reference['low']:.0f}, {reference['high']:.0f}]")
    return "\n".join([*lines, f"one picture of each class: {out}"])


# --- unify ------------------------------------------------------------------------------------------------------------

def unify(root, prompt):
    """Draw a prompt four times, directly and after thinking, and judge it if it is one of the judge's."""
    import numpy as np

    from nanoharmon.pictures import picture_grid
    from nanoharmon.pipeline import load_pipeline
    from nanoharmon.world import prompts
    from nanoharmon.world.judge import judge

    pipe = load_pipeline(root / "checkpoints/nano")
    metas = {m["prompt"]: m for task in prompts.TASKS for m in prompts.geneval_prompts(task, 5000, 0)}
    tiles = []
    for think in (False, True):
        pictures = pipe.draw([prompt] * 4, iters=9, redraw=0, steps=25, think=think, seed=1)
        tiles += pictures
        verdicts = [judge(np.asarray(picture), metas[prompt])["reason"] or "right" if prompt in metas else "not judged"
                    for picture in pictures]
        print(f"{'thinking first' if think else 'the prompt itself'}: {', '.join(verdicts)}")
    picture_grid(tiles, 4).save("unify.png")
    print("the pictures, those drawn after thinking below: unify.png")


def main(lab, root, options):
    root, options = Path(root), json.loads(options)
    if lab != "draw":
        return (see if lab == "see" else unify)(root, **options)
    scores = root / "nanoharmon/course/draw.json"
    found = draw(root, options["steps"])
    print(report(found, json.loads(scores.read_text(encoding="utf-8")) if scores.exists() else None))
    if options["keep"]:
        scores.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from nanoharmon.cli import run_main
    run_main(lambda: main(*sys.argv[1:]))
