"""A row of docs/LEADERBOARD.md from a finished run's own log and results; nothing in it is typed.

    python train.py --out out/mine ...          the run
    python -m nanoharmon.course speedrun out/mine
    python -m nanoharmon.course speedrun            the naive row: a random scene, whatever the prompt says
"""
import json
import random
import shlex
import statistics
from pathlib import Path

from ..cli import markdown_table
from ..files import read_json
from ..weights.states import versions
from ..world import prompts, shapes
from ..world.judge import judge

HEADER = ["minutes", "drawn right, %", "questions, %", "captions, %", "seed", "command", "commit", "steps"]
FIGURES = ("geneval/seen/overall", "vqa/seen/overall", "caption/seen")


def minutes(lines):
    """Minutes of training and evaluation. The log's clock begins anew at each start: all starts are added."""
    total, last = 0.0, 0.0
    for line in lines:
        if line["time"] < last:                                  # --resume
            total += last
        last = line["time"]
    return (total + last) / 60


def naive(n=100, pictures=4):
    """The row of no model at all: each of the prompts of the evaluation is answered with random scenes."""
    rng, rates = random.Random(0), []
    for task in prompts.TASKS:
        metas = [m for m in prompts.geneval_prompts(task, n, 0) for _ in range(pictures)]
        rates.append(statistics.mean(judge(shapes.render(shapes.random_scene(rng), 96), m)["correct"] for m in metas))
    return markdown_table(HEADER, [["0.0", f"{100 * statistics.mean(rates):.1f}", "-", "-", 0,
                                    "a random scene for each prompt", commit(), 0]])


def commit():
    """The git commit of the code as it is now, with -dirty behind it if it was changed: so ask before you change it."""
    return versions()["git"] or "none"


def row(out):
    """The row as a Markdown table. Raises ValueError when the folder holds no finished run."""
    out = Path(out)
    if not out.is_dir():
        raise ValueError(f"{out}: no such folder, expected the OUT of a run; pass the DIR that train.py --out had")
    for name in "log.jsonl", "results.json", "train_config.json":
        if not (out / name).is_file():
            raise ValueError(f"{out} has no {name}, expected a finished run; run train.py --out {out} --resume first")
    lines = []
    for text in (out / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
            lines += [line] if isinstance(line["time"], (int, float)) else []
        except (ValueError, KeyError, TypeError):
            continue                                             # of a run that was killed while it wrote
    results, config = read_json(out / "results.json"), read_json(out / "train_config.json")
    if not lines or (missing := [name for name in FIGURES if not isinstance(results.get(name), (int, float))]):
        raise ValueError(f"{out}: {'log.jsonl has no times' if not lines else f'results.json has no {missing[0]}'}, "
                         f"expected a run in the shapes world; pass the OUT of one")
    try:
        command = shlex.join(["python", "train.py", *config["command"]])
        partly = any(flag.split("=")[0] == "--stage" for flag in config["command"])
        stages, seed = {name: stage["steps"] for name, stage in config["stages"].items()}, config["data"]["seed"]
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{out}/train_config.json lacks settings, expected the file that train.py wrote; pass another "
                         f"OUT") from None
    done = {line["stage"]: line["step"] for line in lines if "lr" in line}       # the last step of each
    if done != stages or partly:
        raise ValueError(f"{out}: trained {done}, its last start says {command}: {stages}, expected all these stages "
                         f"by one command; pass the OUT of one without --stage")
    figures = [f"{100 * results[name]:.1f}" for name in FIGURES]
    return markdown_table(HEADER, [[f"{minutes(lines):.1f}", *figures, seed, f"`{command}`",
                                    commit(), f"{sum(stages.values()):,}"]])
