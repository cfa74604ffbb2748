"""shapes-GenEval: pictures drawn for GenEval's six tasks (arXiv 2310.11513), judged by rules instead of a detector.

A batch of prompts is drawn from a seed of its own, a function of (--seed, task, group, number of the batch): results do
not depend on the number of processes. Prompts may be ones met in training, except those of unseen color-shape pairs.
"""
import random
from collections import Counter

import numpy as np

from ..plans import settled
from ..tokenizer import REFUSAL
from ..world import language, prompts, shapes
from ..world.judge import judge
from .common import batches, over_processes, rate

COLORED = ("counting", "colors", "position", "color_attr")      # the tasks that can name an unseen pair
REASONS = ("missing object", "extra object", "wrong count", "wrong shape", "wrong color", "wrong place",
           "unclear object", "refused")
KEEP = 8                                                        # pictures and failures of each batch kept for the grids


def draw_and_judge(pipe, metas, seed, options):
    """Draw and judge one batch: [(verdict, meta, picture or None)], pictures only for the first ones and failures.

    When the model thinks first, meta["said"] is what it said, and meta["said right"] whether that fits the prompt. What
    it refuses is wrong, whatever it would draw: sample.py draws nothing then.
    """
    texts = [meta["prompt"] for meta in metas]
    plan = pipe.plan(texts, **options)
    if plan["think"]:
        texts = pipe.think(texts, seed)
        metas = [meta | {"said": said, "said right": said_right(said, meta)} for meta, said in zip(metas, texts)]
    pictures = [np.asarray(p) for p in pipe.draw(texts, seed=seed, **options | settled(plan))]
    verdicts = [judge(p, meta) for p, meta in zip(pictures, metas)]
    for verdict, meta in zip(verdicts, metas):
        if meta.get("said", "").startswith(REFUSAL):
            verdict |= {"correct": False, "reason": "refused"}
    kept = set(range(KEEP)) | set([i for i, v in enumerate(verdicts) if not v["correct"]][:KEEP])
    return [(v, m, p if i in kept else None) for i, (v, m, p) in enumerate(zip(verdicts, metas, pictures))]


def said_right(said, meta):
    """Whether a perfect picture of these words would be a right one."""
    scene = language.parse_description(said)
    return scene is not None and judge(shapes.render(scene, 96), meta)["correct"]


def draw_scores(pipe, n=100, images_per_prompt=4, seed=0, tasks=prompts.TASKS, unseen=True, pool=None, progress=None,
                **options):
    """shapes-GenEval: n prompts per task, n / 4 of unseen pairs. options: cfg, iters, steps... of Pipeline.draw.

    Returns {"seen": {task..., "overall", "color", "shape", "number", "reasons"}, "unseen": ...}, with
    "words" (the rates of what was said) when the model thinks first, and the kept pictures
    {"seen": [(verdict, meta, picture)], "unseen": ...}.
    """
    jobs, groups = [], []
    for task in tasks:
        for group in ("seen", "unseen") if unseen and task in COLORED else ("seen",):
            metas = prompts.geneval_prompts(task, n if group == "seen" else max(1, n // 4), seed, group == "unseen")
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
    """Pair what was asked with what was found, most alike first: [((color, shape), Detected)]. Where
    there is a choice, it is in the picture's favour."""
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
