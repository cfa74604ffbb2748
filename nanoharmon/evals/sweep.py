"""How to sample: iterations, steps, redrawing, temperature and guidance of a checkpoint, one varied at a time.

    python -m nanoharmon.evals.study sampling --ckpt checkpoints/nano --out out/study

The others stay as the checkpoint has them, but for 25 diffusion steps instead of 50. A checkpoint that thinks first is
swept twice, thinking and drawing the prompt itself. Writes OUT/sampling.json and the curves, OUT/sampling.png; a sweep
that was stopped goes on where it was. The choices are those of MAR (arXiv 2406.11838, sec. 4 and 5).

Simplified: 90 prompts x 2 pictures per point, so the intervals are wide (about +-3 points near 97 %, +-7 near 60 %).
"""
from pathlib import Path

from tqdm import tqdm

from ..cli import markdown_table
from ..files import read_json, write_json
from ..plans import OFFICIAL
from ..training.plot import draw_sweeps
from .common import workers
from .external import weights_hash
from .geneval import draw_scores
from .report import cell

SWEEPS = {"iters": (1, 2, 4, 9, 18, 36), "redraw": (0, 1, 2, 4), "steps": (5, 10, 25, 50, 100),
          "temperature": (0.6, 0.8, 0.9, 1.0, 1.1), "cfg": (1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
          "cfg, linear schedule": (1.5, 2.0, 3.0, 4.0, 6.0)}


def sampling(pipe, out, n=15, procs=2, seed=0, sweeps=SWEEPS):
    """Draw and judge n prompts per task x 2 at every point of every sweep.

    Returns {sweep: {line: [(value, rate), ...]}}, line: "thinking first" or "the prompt itself". Finished points are
    kept by weights and all options: the sweeps meet in one point.
    """
    own = pipe.plan(["a ring"])
    weights, most = weights_hash(pipe.model), len(own["inside"])
    lines = {"thinking first": True} if own["think"] else {}
    lines["the prompt itself"] = False
    todo = [(line, name, value) for line in lines for name, values in sweeps.items() for value in values
            if name != "iters" or value <= most]
    path, curves = Path(out) / "sampling.json", {name: {line: [] for line in lines} for name in sweeps}
    done = read_json(path) if path.exists() else {}
    with workers(pipe, procs) as pool:
        for line, name, value in tqdm(todo, desc="sampling"):
            options = {"steps": 25, "think": lines[line]}
            options |= {"cfg": value, "cfg_schedule": "linear"} if name.startswith("cfg,") else {name: value}
            plan = pipe.plan(["a ring"], **options)
            key = f"weights {weights}, n {n}, seed {seed}, " + ", ".join(f"{k} {plan[k]}" for k in OFFICIAL)
            if key not in done:
                scores, _ = draw_scores(pipe, n, 2, seed, unseen=False, pool=pool, **options)
                done[key] = scores["seen"]["overall"]
                write_json(path, done)
            curves[name][line].append((value, done[key]))
    draw_sweeps(curves, Path(out) / "sampling.png")
    return curves


def table(curves):
    """Markdown of what `sampling` returns."""
    rows = [[name, f"{points[0][0]:g}", *(cell(rate) for _, rate in points)]
            for name, lines in curves.items() for points in zip(*lines.values())]
    return markdown_table(["", "", *next(iter(curves.values()))], rows)
