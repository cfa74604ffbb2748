"""Measure a checkpoint on the shapes world, where every answer can be checked exactly.

    python -m nanoharmon.evaluate --ckpt checkpoints/nano                all benchmarks: tables, results.json, PNG grids
    python -m nanoharmon.evaluate --ckpt DIR --bench geneval --n 20      one of them, smaller
    python -m nanoharmon.evaluate --ckpt DIR --prompts FILE              GenEval's own prompts, for its official scorer
    python -m nanoharmon.evaluate --ckpt DIR --pope FILE --images DIR    questions in POPE's format: see external.py
    python -m nanoharmon.evaluate --study NAME                           train variants and compare them: see study.py

    geneval   pictures drawn for GenEval's six tasks, judged (arXiv 2310.11513), for seen and unseen color-shape pairs
    vae       reconstructions of fresh scenes, judged; PSNR
    pope      "is there a red circle?": random, popular and adversarial questions (POPE, arXiv 2305.10355)
    vqa       questions about existence, color, shape, count and relation; pope and vqa: see reading.py
    caption   descriptions: every object, count and stated relation must be right
    probe     what a linear layer reads from frozen features (probe.py)
    quality   how drawn pictures are distributed: a Frechet distance, precision and recall (quality.py)

Scenes come from seeds that training never uses, random.Random(f"eval/{seed}/..."); prompts may be ones met in training,
except the unseen ones. Intervals are 95 % Wilson score intervals; they treat pictures as independent, although several
share a prompt, and the overall score pools the tasks (they are equally large, so that is GenEval's mean of the tasks).
Batch k of a task has its own seed: results do not depend on the number of processes.
"""
import random
import sys
from argparse import BooleanOptionalAction
from collections import Counter

import numpy as np
import torch
from tqdm import tqdm

from .. import cli
from ..cli import Parser, model_flags, number
from ..config import nearest
from ..diffusion import SAMPLERS
from ..files import write_json
from ..pictures import to_pictures
from ..pipeline import OFFICIAL, load_pipeline
from ..evals import external, report
from .common import batches, fresh_scene, out_folder, rate, over_processes, workers, placement
from .probe import probe_scores
from .quality import NEIGHBOURS, psnr, quality_scores
from .reading import answer_scores
from ..world import language, shapes
from ..world.judge import judge, judge_scene

BENCHES = ("geneval", "vae", "pope", "vqa", "caption", "probe", "quality")
COLORED = ("counting", "colors", "position", "color_attr")      # the tasks that can name an unseen pair
REASONS = ("missing object", "extra object", "wrong count", "wrong shape", "wrong color", "wrong place",
           "unclear object")
# default --n
SIZES = {"geneval": 25, "vae": 200, "pope": 200, "vqa": 200, "caption": 200, "probe": 1000, "quality": 400}
KEEP = 8                                                        # pictures and failures of each batch kept for the grids


# --- geneval ----------------------------------------------------------------------------------------------------------

def draw_and_judge(pipe, metas, seed, options):
    """Draw and judge one batch: [(verdict, meta, picture or None)], pictures only for the first ones and failures.

    When the model thinks first, meta["said"] is what it said, and meta["said right"] whether that fits the prompt.
    """
    prompts = [meta["prompt"] for meta in metas]
    if pipe.drawing_options(prompts, **options)["think"]:
        prompts = pipe.think(prompts, seed)
        metas = [meta | {"said": said, "said right": said_right(said, meta)} for meta, said in zip(metas, prompts)]
    pictures = [np.asarray(p) for p in pipe.draw(prompts, seed=seed, **options | {"think": False})]
    verdicts = [judge(p, meta) for p, meta in zip(pictures, metas)]
    kept = set(range(KEEP)) | set([i for i, v in enumerate(verdicts) if not v["correct"]][:KEEP])
    return [(v, m, p if i in kept else None) for i, (v, m, p) in enumerate(zip(verdicts, metas, pictures))]


def said_right(said, meta):
    """Whether a perfect picture of these words would be a right one."""
    scene = language.parse_description(said)
    return scene is not None and judge(shapes.render(scene, 96), meta)["correct"]


def draw_scores(pipe, n=100, images_per_prompt=4, seed=0, tasks=language.TASKS, unseen=True, pool=None, progress=None,
                **options):
    """shapes-GenEval: n prompts per task, n / 4 of unseen pairs. options: cfg, iters, steps... of Pipeline.draw.

    Returns {"seen": {task..., "overall", "color", "shape", "number", "reasons"}, "unseen": ...}, with
    "words" (the rates of what was said) when the model thinks first, and the kept pictures
    {"seen": [(verdict, meta, picture)], "unseen": ...}.
    """
    jobs, groups = [], []
    for task in tasks:
        for group in ("seen", "unseen") if unseen and task in COLORED else ("seen",):
            metas = language.geneval_prompts(task, n if group == "seen" else max(1, n // 4), seed, group == "unseen")
            for k, part in enumerate(batches(metas * images_per_prompt)):
                own = random.Random(f"eval/{seed}/geneval/{task}/{group}/{k}").getrandbits(48)
                jobs.append((part, own, options))
                groups.append(group)
    done = over_processes(draw_and_judge, pipe, jobs, pool, progress, "geneval")
    results, pictures = {}, {}
    for group in dict.fromkeys(groups):
        drawn = [d for g, part in zip(groups, done) if g == group for d in part]
        results[group] = summary(drawn)
        pictures[group] = [d for d in drawn if d[2] is not None]
    return results, pictures


def summary(drawn):
    """Rates per task and overall, of single objects, and what goes wrong, from [(verdict, meta, _)]."""
    tasks = dict.fromkeys(meta["tag"] for _, meta, _ in drawn)
    by_task = {task: [d for d in drawn if d[1]["tag"] == task] for task in tasks}
    out = {task: rate([v["correct"] for v, _, _ in rows]) for task, rows in by_task.items()}
    out["overall"] = rate([v["correct"] for v, _, _ in drawn])
    matched = [pair for v, meta, _ in drawn for pair in match(meta, v["objects"])]
    out["color"] = rate([found.color == color for (color, _), found in matched if color])
    out["shape"] = rate([found.shape == shape for (_, shape), found in matched])
    # a score of 0 marks stray color, which is no object
    out["number"] = rate([sum(o.score > 0 for o in v["objects"]) == len(wanted(m)) for v, m, _ in drawn])
    if "said" in drawn[0][1]:
        said = [(meta["tag"], meta["said right"]) for _, meta, _ in drawn]
        out["words"] = {task: rate([hit for tag, hit in said if tag == task]) for task in tasks}
        out["words"]["overall"] = rate([hit for _, hit in said])
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


# --- vae --------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def reconstruct_batch(pipe, seed, start, stop, size):
    """[(right, right before, PSNR)] of scenes start .. stop - 1."""
    scenes = [fresh_scene(pipe, seed, i) for i in range(start, stop)]
    images = [shapes.render(scene, size) for scene in scenes]
    tokens = pipe.model.vae.encode(pipe.pixels(images))
    decoded = map(np.asarray, to_pictures(pipe.model.vae.decode(tokens, pipe.model.vae.grid_of(size, size))))
    rows = []
    for scene, image, again in zip(scenes, images, decoded):
        board = placement(pipe)["board"]
        rows.append((judge_scene(again, scene, board), judge_scene(image, scene, board),
                     psnr(image[None], again[None])))
    return rows


def vae_score(pipe, n=256, seed=0, size=None, pool=None, progress=None):
    """How many fresh scenes survive the VAE: "right" (and "original": before it), mean "psnr" in dB."""
    jobs = [(seed, part[0], part[-1] + 1, size or pipe.size) for part in batches(range(n), 32)]
    rows = [row for part in over_processes(reconstruct_batch, pipe, jobs, pool, progress, "vae") for row in part]
    right, original, decibels = zip(*rows)
    return {"right": rate(right), "original": rate(original), "psnr": float(np.mean(decibels))}


# --- all of it --------------------------------------------------------------------------------------------------------

def run_benchmarks(pipe, benches=BENCHES, n=None, images_per_prompt=4, seed=0, size=None, pool=None, progress=None, **options):
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
        elif bench == "quality":
            results[bench] = quality_scores(pipe, count, **common, **options)
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
    """A short look at all but probe and quality, as one flat dict: what train.py prints at its end."""
    with workers(pipe, procs) as pool:
        results, _ = run_benchmarks(pipe, BENCHES[:-2], n, images_per_prompt, seed, pool=pool, progress=progress, **options)
    return flatten(results)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if any(flag.partition("=")[0] == "--study" for flag in argv):
        from . import study                                     # only here: it trains, and train.py imports this file
        return study.main(argv)
    parser = Parser(prog="python -m nanoharmon.evaluate", description=__doc__)
    add, own = parser.add_argument, "(default: the checkpoint's own)"
    add("--bench", help=f"some of {','.join(BENCHES)} (default: all)")
    add("--prompts", metavar="FILE", help="instead: draw GenEval's evaluation_metadata.jsonl for its official scorer")
    add("--pope", metavar="FILE", help="instead: answer questions in POPE's format")
    add("--images", metavar="DIR", help="the pictures of --pope")
    add("--n", type=number(int, 1, 10**6), help="prompts per task, scenes or questions (default: " +
        ", ".join(f"{k} {v}" for k, v in SIZES.items()) + "; a fourth of it for unseen pairs), or lines of the file")
    add("--images-per-prompt", type=number(int, 1, 1000), default=4, help="pictures drawn of every prompt (default 4)")
    add("--size", type=number(int, 1), help="side of the pictures in pixels " + own)
    add("--cfg", type=number(float, 0, 100), help="guidance " + own)
    add("--cfg-schedule", choices=("constant", "linear"), help=own)
    add("--iters", type=number(int, 1), help="unmasking iterations " + own)
    add("--steps", type=number(int, 1, 1000), help="diffusion steps per token " + own)
    add("--sampler", choices=SAMPLERS, help=own)
    add("--temperature", type=number(float, 0, 100), help="of ddpm's noise " + own)
    add("--think", action=BooleanOptionalAction, help="the LLM first says what will be where " + own)
    add("--out", default="out/eval", metavar="DIR", help="where results and pictures go (default out/eval)")
    add("--procs", type=number(int, 1, 64), default=2, help="worker processes on CPU, one thread each (default 2)")
    model_flags(parser)
    args = parser.parse_args(argv)
    options = {name: getattr(args, name) for name in OFFICIAL}
    if args.prompts or args.pope or args.images:
        return external.run_files(args, options)
    benches = args.bench.split(",") if args.bench else BENCHES
    for bench in benches:
        if bench not in BENCHES:
            raise ValueError(f"unknown benchmark {bench!r}{nearest(bench, BENCHES)}, expected some of "
                             f"{','.join(BENCHES)}; pass --bench geneval")
    if "quality" in benches and (args.n or NEIGHBOURS + 1) <= NEIGHBOURS:
        raise ValueError(f"--n {args.n}: quality compares with {NEIGHBOURS} neighbours of every picture, expected "
                         f"{NEIGHBOURS + 1} or more; pass a larger --n, or --bench without quality")
    pipe = load_pipeline(args.ckpt, args.device, args.dtype)
    torch.set_num_threads(1)                                    # the bytes drawn depend on it
    plan = pipe.drawing_options(["a red circle"], args.size, **options)
    out = out_folder(args.out)
    with workers(pipe, args.procs) as pool:
        results, pictures = run_benchmarks(pipe, benches, args.n, args.images_per_prompt, args.seed, args.size, pool, tqdm,
                                **options)
    print(report.tables(results, REASONS))
    print("[low, high]: 95 % Wilson score intervals")
    report.save_grids(out, pictures)
    write_json(out / "results.json", {
        "checkpoint": args.ckpt or "checkpoints/nano", "seed": args.seed, "n": args.n or SIZES,
        "interval": "Wilson score, 95 %", "images_per_prompt": args.images_per_prompt,
        "draw": {k: plan[k] for k in options} | {"size": plan["size"]}, "results": results})
    print(f"wrote {out}/results.json" + " and picture grids" * bool(pictures))


if __name__ == "__main__":
    cli.run_main(main)
