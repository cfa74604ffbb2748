"""Measure a checkpoint on the shapes world, where every answer can be checked exactly.

    python -m nanoharmon.evaluate --ckpt checkpoints/nano                 all benchmarks: tables, results.json, PNG grids
    python -m nanoharmon.evaluate --ckpt DIR --bench geneval --n 20       one of them, smaller

    geneval   pictures drawn for GenEval's six tasks, judged (arXiv 2310.11513), for seen and unseen (color, shape) pairs
    vae       reconstructions of fresh scenes, judged; PSNR
    pope      "is there a red circle?": random, popular and adversarial questions (POPE, arXiv 2305.10355)
    vqa       free-text answers to questions about existence, color, shape, count and relation
    caption   descriptions: every object, count and stated relation must be right
    probe     what a linear layer reads from frozen features (probe.py)

Scenes come from seeds that training never uses, random.Random(f"eval/{seed}/..."); prompts may be ones met in training,
except the unseen ones. Intervals are 95 % Wilson score intervals; they treat pictures as independent, although several
share a prompt, and the overall score pools the tasks (they are equally large, so that is GenEval's mean of the tasks).
Batch k of a task has its own seed: results do not depend on the number of processes.
"""
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from . import cli, report, shapes
from .checkpoint import write_json
from .cli import Parser, load_pipeline, model_flags, number
from .config import nearest
from .diffusion import SAMPLERS
from .judge import judge, judge_scene
from .measure import BATCH, batches, fresh_scene, rate, spread, workers, world
from .pipeline import DESCRIBE, to_pictures
from .probe import probe_scores

BENCHES = ("geneval", "vae", "pope", "vqa", "caption", "probe")
COLORED = ("counting", "colors", "position", "color_attr")      # the tasks that can name an unseen pair
SAMPLINGS = ("random", "popular", "adversarial")
REASONS = ("unclear object", "wrong count", "missing object", "extra object", "wrong shape", "wrong color", "wrong place")
SIZES = {"geneval": 100, "vae": 200, "pope": 400, "vqa": 400, "caption": 400, "probe": 2000}   # default --n
KEEP = 8                                                        # pictures and failures of each batch kept for the grids


# --- geneval -----------------------------------------------------------------------------------------------------------

def draw_batch(pipe, metas, seed, options):
    """Draw and judge one batch: [(verdict, meta, picture or None)], pictures only for the first ones and failures."""
    pictures = [np.asarray(p) for p in pipe.draw([meta["prompt"] for meta in metas], seed=seed, **options)]
    verdicts = [judge(p, meta) for p, meta in zip(pictures, metas)]
    kept = set(range(KEEP)) | set([i for i, v in enumerate(verdicts) if not v["correct"]][:KEEP])
    return [(v, m, p if i in kept else None) for i, (v, m, p) in enumerate(zip(verdicts, metas, pictures))]


def draw_scores(pipe, n=100, images_per_prompt=4, seed=0, tasks=shapes.TASKS, unseen=True, pool=None, progress=None,
                **options):
    """shapes-GenEval: n prompts per task, n / 4 of unseen pairs. options: cfg, iters, steps, sampler... of Pipeline.draw.

    Returns {"seen": {task..., "overall", "color", "shape", "number", "reasons"}, "unseen": ...} and the kept pictures
    {"seen": [(verdict, meta, picture)], "unseen": ...}.
    """
    jobs, groups = [], []
    for task in tasks:
        for group in ("seen", "unseen") if unseen and task in COLORED else ("seen",):
            metas = shapes.geneval_prompts(task, n if group == "seen" else max(1, n // 4), seed, group == "unseen")
            for k, part in enumerate(batches(metas * images_per_prompt)):
                own = random.Random(f"eval/{seed}/geneval/{task}/{group}/{k}").getrandbits(48)
                jobs.append((part, own, options))
                groups.append(group)
    done = spread(draw_batch, pipe, jobs, pool, progress, "geneval")
    results, pictures = {}, {}
    for group in dict.fromkeys(groups):
        drawn = [d for g, part in zip(groups, done) if g == group for d in part]
        results[group] = summary(drawn)
        pictures[group] = [d for d in drawn if d[2] is not None]
    return results, pictures


def summary(drawn):
    """Rates per task and overall, what is right about single objects, and what goes wrong, from [(verdict, meta, _)]."""
    tasks = dict.fromkeys(meta["tag"] for _, meta, _ in drawn)
    by_task = {task: [d for d in drawn if d[1]["tag"] == task] for task in tasks}
    out = {task: rate([v["correct"] for v, _, _ in rows]) for task, rows in by_task.items()}
    out["overall"] = rate([v["correct"] for v, _, _ in drawn])
    matched = [pair for v, meta, _ in drawn for pair in match(meta, v["objects"])]
    out["color"] = rate([found.color == color for (color, _), found in matched if color])
    out["shape"] = rate([found.shape == shape for (_, shape), found in matched])
    # a score of 0 marks stray color, which is no object
    out["number"] = rate([sum(o.score > 0 for o in v["objects"]) == len(wanted(m)) for v, m, _ in drawn])
    out["reasons"] = {task: Counter(v["reason"] for v, _, _ in rows if v["reason"]) for task, rows in by_task.items()}
    return out


def wanted(meta):
    """The (color or None, shape) of every object a prompt asks for."""
    return [(item.get("color"), item["class"]) for item in meta["include"] for _ in range(item["count"])]


def match(meta, objects):
    """Pair what was asked with what was found, most alike first: [((color, shape), Detected)]. Kind to the picture."""
    asked, found, pairs = wanted(meta), list(objects), []
    for alike in (2, 1, 0):
        for a in list(asked):
            for o in found:
                if (o.color == a[0] or a[0] is None) + (o.shape == a[1]) >= alike:
                    pairs.append((a, o))
                    asked.remove(a)
                    found.remove(o)
                    break
    return pairs


# --- vae ---------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def reconstruct_batch(pipe, seed, start, stop, size):
    """[(right, right before, PSNR)] of scenes start .. stop - 1."""
    scenes = [fresh_scene(pipe, seed, i) for i in range(start, stop)]
    images = [shapes.render(scene, size) for scene in scenes]
    tokens = pipe.model.vae.encode(pipe.pixels(images))
    decoded = map(np.asarray, to_pictures(pipe.model.vae.decode(tokens, pipe.model.vae.grid_of(size, size))))
    rows = []
    for scene, image, again in zip(scenes, images, decoded):
        error = np.mean((image.astype(np.float64) - again) ** 2)
        board = world(pipe)["board"]
        rows.append((judge_scene(again, scene, board), judge_scene(image, scene, board),
                     10 * math.log10(255 ** 2 / max(error, 1e-9))))
    return rows


def vae_score(pipe, n=256, seed=0, size=None, pool=None, progress=None):
    """How many fresh scenes survive the VAE: "right" (and "original": before it), mean "psnr" in dB."""
    jobs = [(seed, part[0], part[-1] + 1, size or pipe.size) for part in batches(range(n), 32)]
    rows = [row for part in spread(reconstruct_batch, pipe, jobs, pool, progress, "vae") for row in part]
    right, original, psnr = zip(*rows)
    return {"right": rate(right), "original": rate(original), "psnr": float(np.mean(psnr))}


# --- pope, vqa, caption ------------------------------------------------------------------------------------------------

def answer_batch(pipe, scenes, asked, size, max_new_tokens):
    images = [Image.fromarray(shapes.render(scene, size)) for scene in scenes]
    return pipe.answers(images, asked, size=size, max_new_tokens=max_new_tokens)


def ask(pipe, rows, size=None, pool=None, progress=None, title="", max_new_tokens=12, batch=BATCH):
    """The answers to rows of (scene, question, ...)."""
    jobs = [([r[0] for r in part], [r[1] for r in part], size or pipe.size, max_new_tokens)
            for part in batches(rows, batch)]
    return [a for part in spread(answer_batch, pipe, jobs, pool, progress, title) for a in part]


def pope_questions(pipe, sampling, n, seed, unseen=False):
    """About n (scene, question, "yes" or "no"), half of them "no", both of the same kind of words.

    random: pairs like "red circle". popular: the words true of most training scenes (bare shapes, and colors).
    adversarial: as random, but what is absent shares its color or shape with something present.
    """
    pairs = [f"{c} {s}" for c, s in shapes.PAIRS if unseen or (c, s) not in shapes.UNSEEN]
    common = [*shapes.SHAPES, *(f"{color} object" for color in shapes.COLORS)]
    rows, i = [], 0
    while len(rows) < n:
        scene, rng = fresh_scene(pipe, f"{seed}/pope", i, unseen), random.Random(f"eval/{seed}/pope/{sampling}/{i}")
        present = {o.pair for o in scene.objects}
        words = {w: any(set(w.split()) <= {*pair, "object"} for pair in present)
                 for w in (common if sampling == "popular" else pairs)}
        yes, no = ([w for w in words if words[w] == is_there] for is_there in (True, False))
        if unseen and sampling != "popular":
            yes = [w for w in yes if tuple(w.split()) in shapes.UNSEEN]
        if sampling == "adversarial":
            no = [w for w in no if any(set(w.split()) & set(pair) for pair in present)]
        rows += [(scene, shapes.exist_question(rng.choice(yes)), "yes"), (scene, shapes.exist_question(rng.choice(no)), "no")]
        i += 1
    return rows


def says(answer, word):
    return shapes.is_right(answer, shapes.QA("", word, "exist"))


def yes_no_scores(said, truth):
    """POPE's figures. An answer that is neither yes nor no is wrong, and counts as no in precision and recall."""
    is_yes, truly = [says(a, "yes") for a in said], [t == "yes" for t in truth]
    precision = rate([t for y, t in zip(is_yes, truly) if y])
    recall = rate([y for y, t in zip(is_yes, truly) if t])
    f1 = 2 * precision["right"] / max(1, precision["n"] + recall["n"])
    return {"accuracy": rate([says(a, t) for a, t in zip(said, truth)]), "precision": precision, "recall": recall,
            "f1": f1, "yes_ratio": sum(is_yes) / max(1, len(is_yes))}


def answer_scores(pipe, n=200, seed=0, size=None, unseen=False, benches=("pope", "vqa", "caption"), pool=None,
                  progress=None, batch=BATCH):
    """{"pope": {sampling: figures}, "vqa": {kind: rate, "overall"}, "caption": rate}.

    pope: n questions per sampling; vqa: one question of each kind per scene, n scenes; caption: n scenes.
    """
    common, out, name = dict(size=size, pool=pool, progress=progress, batch=batch), {}, "unseen" if unseen else "seen"
    if "pope" in benches:
        rows = [(*row, s) for s in SAMPLINGS for row in pope_questions(pipe, s, n, seed, unseen)]
        said = ask(pipe, rows, title="pope", **common)
        both = {s: [(a, row[2]) for a, row in zip(said, rows) if row[3] == s] for s in SAMPLINGS}
        out["pope"] = {s: yes_no_scores(*map(list, zip(*both[s]))) for s in SAMPLINGS}
    scenes = [fresh_scene(pipe, f"{seed}/vqa", i, unseen) for i in range(n)]
    if "vqa" in benches:
        rows = []
        for i, scene in enumerate(scenes):
            asked = shapes.questions(scene, random.Random(f"eval/{seed}/vqa/{name}/{i}"), allow_unseen=unseen)
            rows += [(scene, qa.question, qa) for qa in {qa.kind: qa for qa in asked}.values()]
        said = ask(pipe, rows, title="vqa", **common)
        right = [(row[2].kind, shapes.is_right(a, row[2])) for a, row in zip(said, rows)]
        out["vqa"] = {k: rate([r for kind, r in right if kind == k]) for k in sorted({kind for kind, _ in right})}
        out["vqa"]["overall"] = rate([r for _, r in right])
    if "caption" in benches:
        said = ask(pipe, [(scene, DESCRIBE) for scene in scenes], title="caption", max_new_tokens=64, **common)
        out["caption"] = rate([shapes.caption_is_right(a, scene) for a, scene in zip(said, scenes)])
    return out


# --- all of it ---------------------------------------------------------------------------------------------------------

def run(pipe, benches=BENCHES, n=None, images_per_prompt=4, seed=0, size=None, pool=None, progress=None, **options):
    """The named benchmarks, n samples each (default SIZES; a fourth of it for unseen pairs): (results, pictures)."""
    results, pictures, common = {}, {}, dict(seed=seed, size=size, pool=pool, progress=progress)
    for bench in benches:
        count = n or SIZES[bench]
        if bench == "geneval":
            results[bench], pictures = draw_scores(pipe, count, images_per_prompt, **common, **options)
        elif bench == "vae":
            results[bench] = vae_score(pipe, count, **common)
        elif bench == "probe":
            results[bench] = probe_scores(pipe, count, **common)
        else:
            results[bench] = {
                "seen": answer_scores(pipe, count, benches=[bench], **common)[bench],
                "unseen": answer_scores(pipe, max(4, count // 4), unseen=True, benches=[bench], **common)[bench]}
    return results, pictures


def flatten(results, name=""):
    """{"geneval/seen/overall": 0.52, ...}: the rates and figures of nested results."""
    if isinstance(results, dict) and "rate" not in results:
        return {k: v for key, value in results.items() if key != "reasons"
                for k, v in flatten(value, f"{name}/{key}".strip("/")).items()}
    return {name: round(results["rate"] if isinstance(results, dict) else results, 4)}


def quick(pipe, n=20, images_per_prompt=2, seed=0, procs=1, progress=None, **options):
    """A short look at all but the probe, as one flat dict: what train.py prints at its end."""
    with workers(pipe, procs) as pool:
        results, _ = run(pipe, BENCHES[:-1], n, images_per_prompt, seed, pool=pool, progress=progress, **options)
    return flatten(results)


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.evaluate", description=__doc__)
    add, own = parser.add_argument, "(default: the checkpoint's own)"
    add("--bench", default=",".join(BENCHES), help=f"some of {','.join(BENCHES)} (default: all)")
    add("--n", type=number(int, 1), help="prompts per task, scenes or questions (default: " +
        ", ".join(f"{k} {v}" for k, v in SIZES.items()) + "; a fourth of it for unseen pairs)")
    add("--images-per-prompt", type=number(int, 1), default=4, help="pictures drawn of every prompt (default 4)")
    add("--size", type=number(int, 1), help="side of the pictures in pixels " + own)
    add("--cfg", type=number(float, 0, 100), help="guidance " + own)
    add("--cfg-schedule", choices=("constant", "linear"), help=own)
    add("--iters", type=number(int, 1), help="unmasking iterations " + own)
    add("--steps", type=number(int, 1, 1000), help="diffusion steps per token " + own)
    add("--sampler", choices=SAMPLERS, help=own)
    add("--temperature", type=number(float, 0, 100), help="of ddpm's noise " + own)
    add("--out", default="out/eval", metavar="DIR", help="results.json and picture grids (default out/eval)")
    add("--procs", type=number(int, 1, 64), default=2, help="worker processes on CPU, one thread each (default 2)")
    model_flags(parser)
    args = parser.parse_args(argv)
    benches = args.bench.split(",")
    for bench in benches:
        if bench not in BENCHES:
            raise ValueError(f"unknown benchmark {bench!r}{nearest(bench, BENCHES)}, expected some of "
                             f"{','.join(BENCHES)}; pass --bench geneval")
    pipe, out = load_pipeline(args.ckpt, args.device, args.dtype), Path(args.out)
    torch.set_num_threads(1)                                    # the bytes drawn depend on it
    options = {k: getattr(args, k) for k in ("cfg", "iters", "steps", "sampler", "temperature", "cfg_schedule")}
    plan = pipe.plan(["a red circle"], args.size, **options)
    with workers(pipe, args.procs) as pool:
        results, pictures = run(pipe, benches, args.n, args.images_per_prompt, args.seed, args.size, pool, tqdm,
                                **options)
    print(report.tables(results, REASONS))
    print("[low, high]: 95 % Wilson score intervals")
    out.mkdir(parents=True, exist_ok=True)
    report.save_grids(out, pictures)
    write_json({"checkpoint": str(args.ckpt), "seed": args.seed, "n": args.n or SIZES, "interval": "Wilson score, 95 %",
                "images_per_prompt": args.images_per_prompt, "draw": {k: plan[k] for k in options} | {"size": plan["size"]},
                "results": results}, out / "results.json")
    print(f"wrote {out}/results.json" + " and picture grids" * bool(pictures))


if __name__ == "__main__":
    cli.run(main)
