"""Measure a checkpoint on the shapes world, where every answer can be checked exactly.

    python -m nanoharmon.evaluate --ckpt checkpoints/nano                all benchmarks: tables, results.json, PNG grids
    python -m nanoharmon.evaluate --ckpt DIR --bench geneval --n 20      one of them, smaller
    python -m nanoharmon.evaluate --ckpt DIR --prompts FILE              GenEval's own prompts, for its official scorer
    python -m nanoharmon.evaluate --ckpt DIR --pope FILE --images DIR    questions in POPE's format: see external.py

    geneval   pictures drawn for GenEval's six tasks, judged, for seen and unseen color-shape pairs: geneval.py
    vae       reconstructions of fresh scenes, judged; PSNR
    pope      "is there a red circle?": random, popular and adversarial questions (POPE, arXiv 2305.10355)
    vqa       questions about existence, color, shape, count, places and relations; pope and vqa: see reading.py
    caption   descriptions: every object, count and stated relation must be right
    ours      pictures drawn for tasks that GenEval has not: a place, "next to", several objects of two kinds
    phrases   other words for questions and requests, some never met in training; what the world does not have
    chat      conversations of eight turns: drawings, pictures, questions; phrases, chat and edit: see talking.py
    edit      a part of a picture drawn anew: replaced, added, removed
    probe     what a linear layer reads from frozen features (probe.py)
    quality   how drawn pictures are distributed: a Frechet distance, precision and recall (quality.py)

Scenes come from seeds that training never uses, random.Random(f"eval/{seed}/..."). Intervals are 95 % Wilson score
intervals; they treat pictures as independent, although several share a prompt, and the overall score pools the tasks
(they are equally large, so that is GenEval's mean of the tasks).
"""
from argparse import BooleanOptionalAction

import numpy as np
import torch
from tqdm import tqdm

from ..cli import Parser, drawing_flags, model_flags, number, refuse_beside
from ..config import nearest
from ..files import write_json
from ..pictures import psnr
from ..pipeline import load_pipeline
from ..plans import OFFICIAL, refuse_idle
from ..replies import check_sampling
from ..tokenizer import DESCRIBE
from ..training.watch import reconstruct
from ..world import prompts, shapes
from ..world.judge import judge_scene
from . import external, report
from .common import batches, fresh_scene, out_folder, over_processes, placement, rate, workers
from .geneval import draw_scores
from .probe import probe_scores
from .quality import NEIGHBOURS, quality_scores
from .reading import LONGEST, answer_scores
from .talking import chat_scores, edit_scores, phrase_scores

# what draws and what asks: without any of these, options of drawing and of answering change nothing
DRAWING, ASKING = {"geneval", "ours", "chat", "edit", "quality"}, {"pope", "vqa", "caption", "phrases", "chat"}
TALKING = {"phrases": phrase_scores, "chat": chat_scores, "edit": edit_scores}
# default --n
SIZES = {"geneval": 25, "vae": 200, "pope": 200, "vqa": 200, "caption": 200, "ours": 25, "phrases": 50, "chat": 50,
         "edit": 50, "probe": 1000, "quality": 400}
BENCHES = tuple(SIZES)


# --- vae --------------------------------------------------------------------------------------------------------------

def reconstruct_batch(pipe, seed, start, stop, size, unseen=False):
    """[(right, right before, PSNR)] of scenes start .. stop - 1."""
    scenes, board = [fresh_scene(pipe, seed, i, unseen) for i in range(start, stop)], placement(pipe)["board"]
    images = np.stack([shapes.render(scene, size) for scene in scenes])
    return [(judge_scene(again, scene, board), judge_scene(image, scene, board), psnr(image[None], again[None]))
            for scene, image, again in zip(scenes, images, reconstruct(pipe, images))]


def vae_score(pipe, n, seed=0, size=None, pool=None, progress=None, unseen=False):
    """How many fresh scenes survive the VAE: "right" (and "original": before it), mean "psnr" in dB. unseen: scenes
    with a pair that training never showed."""
    jobs = [(seed, part.start, part.stop, size or pipe.size, unseen) for part in batches(range(n), 32)]
    rows = [row for part in over_processes(reconstruct_batch, pipe, jobs, pool, progress, "vae") for row in part]
    right, original, decibels = zip(*rows)
    return {"right": rate(right), "original": rate(original), "psnr": float(np.mean(decibels))}


# --- all of it --------------------------------------------------------------------------------------------------------

def run_benchmarks(pipe, benches=BENCHES, n=None, images_per_prompt=4, seed=0, size=None, pool=None, progress=None,
                   look=None, **options):
    """The named benchmarks, n samples each (default SIZES; a fourth of it for unseen pairs): (results, pictures)."""
    results, pictures, common = {}, {}, dict(seed=seed, size=size, pool=pool, progress=progress)
    for bench in benches:
        count = n or SIZES[bench]
        if bench == "geneval":
            results[bench], kept = draw_scores(pipe, count, images_per_prompt, **common, **options)
            pictures |= {f"geneval_{group}": rows for group, rows in kept.items()}
        elif bench == "ours":
            scores, kept = draw_scores(pipe, count, images_per_prompt, tasks=prompts.OURS, unseen=False, **common,
                                       **options)
            results[bench], pictures["ours"] = scores["seen"], kept["seen"]
        elif bench == "vae":
            results[bench] = vae_score(pipe, count, **common)
        elif bench == "probe":
            results[bench] = probe_scores(pipe, count, **common)
        elif bench == "quality":
            results[bench] = quality_scores(pipe, count, **common, **options)
        elif bench in TALKING:
            results[bench] = TALKING[bench](pipe, count, look=look, **common, **options)
        else:
            asked = common | {"look": look, "benches": [bench]}
            results[bench] = {"seen": answer_scores(pipe, count, **asked)[bench],
                              "unseen": answer_scores(pipe, max(4, count // 4), unseen=True, **asked)[bench]}
    return results, pictures


def flatten(results, name=""):
    """{"geneval/seen/overall": 0.52, ...}: the rates and figures of nested results."""
    if isinstance(results, dict) and "rate" not in results:
        return {k: v for key, value in results.items() if key != "reasons"
                for k, v in flatten(value, f"{name}/{key}".strip("/")).items()}
    return {name: round(results["rate"] if isinstance(results, dict) else results, 4)}


def quick(pipe, procs=1, progress=None):
    """The first five benchmarks with few samples, as one flat dict: what train.py prints at its end."""
    with workers(pipe, procs) as pool:
        return flatten(run_benchmarks(pipe, BENCHES[:5], 20, 2, pool=pool, progress=progress)[0])


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.evaluate", description=__doc__)
    add = parser.add_argument
    add("--bench", help=f"some of {','.join(BENCHES)} (default: all)")
    add("--prompts", metavar="FILE", help="instead: draw GenEval's evaluation_metadata.jsonl for its official scorer")
    add("--pope", metavar="FILE", help="instead: answer questions in POPE's format")
    add("--images", metavar="DIR", help="the pictures of --pope")
    add("--n", type=number(int, 1, 10**6), help="prompts per task, scenes or questions (default: " +
        ", ".join(f"{k} {v}" for k, v in SIZES.items()) + "; a fourth of it for unseen pairs), or lines of the file")
    add("--images-per-prompt", type=number(int, 1, 1000), default=4, help="pictures drawn of every prompt (default 4)")
    add("--size", type=number(int, 1), help="side of the pictures in pixels (default: the checkpoint's own)")
    drawing_flags(parser)
    add("--look", action=BooleanOptionalAction, help="say first what is seen, until what was asked for is found "
                                                     "(default: the checkpoint's own)")
    add("--out", default="out/eval", metavar="DIR", help="where results and pictures go (default out/eval)")
    add("--procs", type=number(int, 1, 64), default=2, help="worker processes on CPU, one thread each (default 2)")
    model_flags(parser)
    args = parser.parse_args(argv)
    options = {name: getattr(args, name) for name in OFFICIAL}
    if args.prompts or args.pope or args.images:
        refuse_beside(parser, args, "--pope or --prompts", ("look",), "answers at once or draws")
        if not args.prompts:
            refuse_beside(parser, args, "--pope", (*OFFICIAL, "images_per_prompt"), "draws nothing")
        return external.run_files(args, options)
    benches = list(dict.fromkeys(args.bench.replace(" ", "").split(","))) if args.bench else BENCHES
    for bench in benches:
        if bench not in BENCHES:
            raise ValueError(f"unknown benchmark {bench!r}{nearest(bench, BENCHES)}, expected some of "
                             f"{','.join(BENCHES)}; pass --bench geneval,vqa, or leave it out for all")
    for some, idle, why in ((DRAWING, OFFICIAL, "draws nothing"), (ASKING, ["look"], "asks nothing"),
                            ({"geneval", "ours"}, ["images_per_prompt"], "draws no such number"),
                            (DRAWING - {"edit"}, ["iters", "think"], "draws parts of pictures")):
        if not set(benches) & some:
            refuse_beside(parser, args, f"--bench {args.bench}", idle, why)
    if "quality" in benches and args.n and args.n <= NEIGHBOURS:
        raise ValueError(f"--n {args.n}: quality compares with {NEIGHBOURS} neighbours of every picture, expected "
                         f"{NEIGHBOURS + 1} or more; pass a larger --n, or leave quality out")
    if "probe" in benches and args.n == 1:
        raise ValueError("--n 1: probe fits a layer to so many scenes, expected 2 or more; pass a larger --n, or leave "
                         "probe out")
    pipe = load_pipeline(args.ckpt, args.device, args.dtype)
    if "edit" in benches and placement(pipe)["layout"] != "board":
        if args.bench:
            raise ValueError("--bench edit is about cells of a board, and this checkpoint's scenes have none; leave it "
                             "out")
        benches = [bench for bench in benches if bench != "edit"]
    torch.set_num_threads(1)                                    # the bytes drawn depend on it
    plan = pipe.plan(["a red circle"], args.size, **options)
    refuse_idle(plan, options)
    if set(benches) & ASKING:
        most = check_sampling(pipe.model.config.llm)[2] if {"phrases", "chat"} & set(benches) else 0
        external.check_fit(pipe, [{"text": DESCRIBE}], args.size, max(LONGEST, most), "pass a smaller --size")
    out = out_folder(args.out)
    results, pictures = {}, {}
    with workers(pipe, args.procs) as pool:
        for bench in benches:
            found, kept = run_benchmarks(pipe, [bench], args.n, args.images_per_prompt, args.seed, args.size, pool,
                                         tqdm, look=args.look, **options)
            results, pictures = results | found, pictures | kept
            report.save_grids(out, kept)
            write_json(out / "results.json", {                   # after each: whatever stops the next one
                "checkpoint": args.ckpt or "checkpoints/nano", "seed": args.seed, "n": args.n or SIZES,
                "interval": "Wilson score, 95 %", "images_per_prompt": args.images_per_prompt,
                "look": pipe.looks(args.look), "draw": {k: plan[k] for k in options} | {"size": plan["size"]},
                "results": results})
    print(report.tables(results))
    print("[low, high]: 95 % Wilson score intervals")
    print(f"wrote {out}/results.json" + (" and picture grids" if pictures else ""))
