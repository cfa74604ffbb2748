"""The papers' claims at nano scale: train variants with equal budgets and several seeds, measure them, print a table.

    python -m nanoharmon.evaluate --study shared      one encoder for both tasks, against one task, and one each
    python -m nanoharmon.evaluate --study stages      what stages add: leave one out; the whole run after 1, 2 and 3
    python -m nanoharmon.evaluate --study mar         MAR's own: order, diffusion loss against L2, width of its MLP
    python -m nanoharmon.evaluate --study sampling    iterations, diffusion steps, temperature, guidance: sweep.py

About 32, 22 (in the --out of shared, whose joint arm it needs), 26 and 16 minutes on two cores. (What a linear layer
reads from frozen features is the first of the papers' claims: probe.py.)

All arms of a study start from the same weights of the stages before (`--base`, the folder of a `python train.py`; what
is missing there is trained first), train as many steps, see as many pictures per task, and are trained by train.py,
with the preset's stages: single-threaded, two arms side by side. (Only stage 1 has the batches of stage 2, so that an
arm without it can make up for it, and nothing is said before drawing.) An arm's seed decides its pictures, their order,
all noise and the projectors' first weights. Everything goes to --out; a study that was stopped goes on where it was,
and finished arms are not repeated, also those that two studies share.

Simplified: pictures have 48 px (no stage 3), and the stages before are those of one seed. The spread that is shown
(standard deviation over seeds) is therefore that of the last stages of training.
"""
import contextlib
import hashlib
import json
import os
import random
import shutil
import statistics
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import cli
from ..cli import Parser, model_flags, number
from ..files import write_json
from ..harmon import Harmon
from ..pictures import to_pictures
from ..pipeline import Pipeline, load_pipeline
from ..evals import evaluate, sweep
from .common import out_folder, rate
from .report import markdown
from ..training.batches import Batches
from ..training.parallel import end_with_parent
from ..training.recipe import Config, DataConfig
from ..world import shapes
from ..world.judge import judge
from ..world.source import ShapesData

STUDIES = ("shared", "stages", "mar", "sampling")
STEPS = {"mar": 500, "1": 90, "2": 280}         # of an arm, at --budget 1
SEEDS = {"shared": 3, "stages": 2, "mar": 2}    # trainings of every arm


@dataclass
class Arm:
    """A variant of training. flags: for train.py; fresh: parts that start from random weights."""
    name: str
    steps: dict                                 # {stage: steps}
    flags: list = field(default_factory=list)
    fresh: tuple = ()
    mar: dict = field(default_factory=dict)     # changed fields of MARConfig
    separate: bool = False


def arms(study, budget=1.0, preset="nano"):
    """The arms of a study; the first is the one that the others are compared with."""
    n = {stage: max(1, round(steps * budget)) for stage, steps in STEPS.items()}
    second = Config.preset(preset).stages["2"]
    both = [f"--stage_1.batch={second.batch}", f"--stage_1.understanding_batch={second.understanding_batch}",
            "--stage_2.thoughts=0"]                              # all readings are of pictures
    joint = Arm("joint", {"1": n["1"], "2": n["2"]}, both)
    reading = "mar_read.encoder,mar_read.z_proj,mar_read.fake_latent"
    if study == "shared":
        return [joint,
                replace(joint, name="drawing only", flags=[*both, *(f"--stage_{s}.understanding_batch=0" for s in "12")]),
                replace(joint, name="reading only", flags=[*both, *(f"--stage_{s}.batch=0" for s in "12")]),
                replace(joint, name="separate encoders", separate=True, flags=[
                    *both, f"--stage_1.train_parts=mar.,{reading},proj_in.,proj_out.",
                    f"--stage_2.train_parts=mar.,{reading},llm.,proj_in.,proj_out."])]
    if study == "stages":
        return [joint,
                replace(joint, name="stage 1 only", steps={"1": n["1"]}),
                replace(joint, name="without stage 1", steps={"2": n["1"] + n["2"]}),     # as many in all
                replace(joint, name="without mar", fresh=("mar",)),
                replace(joint, name="without llm", fresh=("llm",))]
    if study == "mar":
        plain = Arm("random order", {"mar": n["mar"]}, fresh=("mar",))
        return [plain, replace(plain, name="raster order", mar={"order": "raster"}),
                replace(plain, name="l2 loss", mar={"head": "l2", "diffusion_batch_mul": 1}),
                *(replace(plain, name=f"diffusion width {w}", mar={"diffloss_w": w}) for w in (40, 320))]
    raise ValueError(f"unknown study {study!r}, expected one of {', '.join(STUDIES)}; pass --study shared")


def start_worker():
    """One thread for train.py, which gives a single process all cores: arms side by side would wait for each other."""
    os.environ["OMP_NUM_THREADS"] = "1"
    end_with_parent()


# --- training an arm --------------------------------------------------------------------------------------------------

def folder(out, arm, seed):
    return Path(out) / f"{arm.name.replace(' ', '_')}-{seed}"


def before(arm):
    """The stage whose weights an arm starts from."""
    return "vae" if "mar" in arm.steps else "mar"


def fingerprint(base, stage):
    """Of the weights after a stage."""
    return hashlib.sha256((Path(base) / f"stage_{stage}" / "model.safetensors").read_bytes()).hexdigest()[:12]


def note(job):
    """Write down what an arm is, or complain that its folder is of another one: of another --budget, for instance."""
    base, out, arm, seed, preset, scenes = job
    path = folder(out, arm, seed) / "arm.json"
    weights = fingerprint(base, before(arm))
    what = json.loads(json.dumps({"weights": weights, "preset": preset, "scenes": scenes, **asdict(arm)}))
    if path.exists() and (old := json.loads(path.read_text())) != what:
        changed = ", ".join(f"{k} {old.get(k)} -> {v}" for k, v in what.items() if old.get(k) != v)
        raise ValueError(f"{path.parent} holds an arm with other settings: {changed}; pass another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, what)


def start(base, out, arm, seed):
    """Fill OUT with what train.py takes for finished stages: the weights of BASE, in the arm's variant."""
    stage = f"stage_{before(arm)}"
    if (out / stage / "config.json").exists():
        return
    pipe = Pipeline.load(Path(base) / stage)
    config = replace(pipe.model.config, mar=replace(pipe.model.config.mar, **arm.mar), separate_encoders=arm.separate)
    torch.manual_seed(seed)
    model = Harmon(config)
    torch.manual_seed(seed)
    for layer in (*model.proj_in[::2], *model.proj_out[::2]):    # the same in all arms, whatever else is new
        layer.reset_parameters()
    for part in {"vae", "llm", "mar"} - set(arm.fresh):
        getattr(model, part).load_state_dict(getattr(pipe.model, part).state_dict())
    if arm.separate:
        model.mar_read.load_state_dict(model.mar.state_dict())
    if stage != "stage_vae":
        shutil.copytree(Path(base) / "stage_vae", out / "stage_vae", dirs_exist_ok=True)
    Pipeline(model, pipe.tokenizer, pipe.meta).save(out / stage)


def borrow_latents(out, arm, seed):
    """Link the latents that another arm with this seed has encoded: the same pictures and the same VAE."""
    for path in Path(out).glob(f"*-{seed}/cache/latents_*.npy"):
        mine = folder(out, arm, seed) / "cache" / path.name
        if not path.name.endswith(".part.npy") and not mine.exists():
            mine.parent.mkdir(parents=True, exist_ok=True)
            mine.hardlink_to(path)


def train_arm(job):
    """One arm with one seed: its figures, read from OUT/.../study.json when it is done already."""
    base, out, arm, seed, preset, scenes = job
    out = folder(out, arm, seed)
    if (out / "study.json").exists():
        return json.loads((out / "study.json").read_text())
    import train                                # the script beside this package
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    borrow_latents(out.parent, arm, seed)
    with open(out / "train.log", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        start(base, out, arm, seed)
        flags = [f"--stage_{stage}.steps={steps}" for stage, steps in arm.steps.items()]
        train.main(["--preset", preset, "--out", str(out), "--procs", "1", "--resume", "--sample-every", "0",
                    "--save-every", "100", f"--data.seed={seed}", f"--data.scenes={scenes}", *flags, *arm.flags,
                    *(f"--stage={stage}" for stage in arm.steps)])
        pipe = Pipeline.load(out / f"stage_{list(arm.steps)[-1]}")
        figures = class_figures(pipe) if "mar" in arm.steps else arm_figures(pipe, arm)
    figures["minutes"] = (time.time() - began) / 60
    write_json(out / "study.json", figures)
    return figures


# --- measuring it -----------------------------------------------------------------------------------------------------

@torch.no_grad()
def arm_figures(pipe, arm, n=25, scenes=512):
    """Figures of a model after stage 2: prompts drawn right, answers right, and both losses on fresh scenes."""
    figures, none = {}, any("batch=0" in flag for flag in arm.flags)
    source, size = ShapesData(DataConfig(seed=-1, scenes=scenes)), pipe.size
    source.latents[size] = torch.cat([pipe.model.vae.encode(pipe.pixels(source.pictures(range(k, k + 64), size)))
                                      for k in range(0, scenes, 64)]).numpy()
    data = Batches([source], [1], pipe.tokenizer, pipe.model.config.mar.buffer_size)
    losses, grid = {"draw loss": [], "read loss": []}, pipe.model.vae.grid_of(size, size)
    for k in range(scenes // 64):
        rng, generator = random.Random(f"eval/study/{k}"), torch.Generator().manual_seed(k)
        for tokens, ids, is_real in data.generation(rng, 64, size, 0.0):
            losses["draw loss"].append(pipe.model.generation_loss(tokens, ids, is_real, grid, generator=generator,
                                                                  order_generator=generator).item())
        for tokens, ids, labels, is_real, index in data.understanding(rng, 64, size):
            losses["read loss"].append(pipe.model.understanding_loss(tokens, ids, labels, is_real, index, grid).item())
    if not none:
        drawn, _ = evaluate.draw_scores(pipe, n, 2, unseen=False, steps=25)
        figures["prompts right"] = drawn["seen"]["overall"]["rate"]
        figures["draw loss"] = statistics.mean(losses["draw loss"])
    if not any("understanding_batch=0" in flag for flag in arm.flags):
        answers = evaluate.answer_scores(pipe, 8 * n, benches=("vqa", "caption"))
        figures["answers right"] = answers["vqa"]["overall"]["rate"]
        figures["captions right"] = answers["caption"]["rate"]
        figures["read loss"] = statistics.mean(losses["read loss"])
    return figures


def after_figures(job):
    """The same figures for the run in BASE, whose stages are far longer than an arm's, after one of them."""
    base, out, stage = job
    path = Path(out) / f"after_{stage}-{fingerprint(base, stage)}.json"
    if not path.exists():
        torch.set_num_threads(1)
        began = time.time()
        figures = arm_figures(Pipeline.load(Path(base) / f"stage_{stage}"), Arm("", {}))
        write_json(path, figures | {"minutes": (time.time() - began) / 60})
    return json.loads(path.read_text())


def class_figures(pipe, per_class=3):
    """Figures of a class-conditional MAR: share of right pictures, by order and number of iterations."""
    grid = pipe.model.vae.grid_of(pipe.size, pipe.size)
    S = grid[0] * grid[1]
    return {title: class_rate(pipe, grid, per_class, order=order, iters=iters)
            for title, order, iters in ((f"random, {S} iterations", "random", S), ("random, 4", "random", 4),
                                        ("random, 1", "random", 1), (f"raster, {S}", "raster", S))}


@torch.no_grad()
def class_rate(pipe, grid, per_class, **options):
    """Share of pictures with exactly what their class says, for all classes that training shows."""
    right, labels = [], list(shapes.SEEN_CLASSES) * per_class
    for k in range(0, len(labels), 64):
        part = labels[k:k + 64]
        tokens = pipe.model.mar.class_sample(torch.tensor(part), cfg=2.0, cfg_schedule="constant", grid=grid, steps=25,
                                             generator=torch.Generator().manual_seed(k), **options)
        for picture, label in zip(to_pictures(pipe.model.vae.decode(tokens, grid)), part):
            count, kind = divmod(label, len(shapes.PAIRS))
            color, shape = shapes.PAIRS[kind]
            include = [{"class": shape, "color": color, "count": count + 1}]
            right.append(judge(np.asarray(picture), {"tag": "counting", "include": include})["correct"])
    return rate(right)["rate"]


# --- tables -----------------------------------------------------------------------------------------------------------

def mean_and_deviation(values, digits):
    """ "0.610 ± 0.020": mean and standard deviation over seeds."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def table(results):
    """Markdown of {arm: [figures of each seed]}."""
    columns = list(dict.fromkeys(name for seeds in results.values() for figures in seeds for name in figures))
    digits = {"minutes": 1, "draw loss": 4, "read loss": 4}
    return markdown({arm: {c: mean_and_deviation([figures[c] for figures in seeds], digits.get(c, 3)) if c in seeds[0] else "-"
                           for c in columns} for arm, seeds in results.items()})


def against_first(results):
    """What each arm has more than the first, seed by seed: with the same seed, pictures and noise are the same."""
    (first, theirs), *others = results.items()
    return {f"{arm} - {first}": [{c: f[c] - t[c] for c in f if c in t and c != "minutes"} for f, t in zip(ours, theirs)]
            for arm, ours in others if len(ours) == len(theirs) > 1}


def run_study(study, base, out, seeds=3, budget=1.0, procs=2, preset="nano", scenes=20000):
    """Train and measure the arms of `shared`, `stages` or `mar`: {arm: [figures of each seed]}, and OUT/STUDY.json."""
    import train
    base, out = Path(base), Path(out)
    chosen, needed = arms(study, budget, preset), ["vae"] if study == "mar" else ["vae", "llm", "mar"]
    if missing := [s for s in needed if not (base / f"stage_{s}" / "config.json").exists()]:
        print(f"training the stages {', '.join(missing)} of {base} first")
        train.main(["--preset", preset, "--out", str(base), "--resume", *(f"--stage={s}" for s in needed)])
    # arm by arm: when the second one begins, the first has encoded the pictures of its seed
    jobs = [(str(base), str(out), arm, seed, preset, scenes) for arm in chosen for seed in range(1, seeds + 1)]
    for job in jobs:
        note(job)
    with torch.multiprocessing.get_context("spawn").Pool(procs, start_worker) as pool:
        done = list(tqdm(pool.imap(train_arm, jobs, chunksize=1), total=len(jobs), desc=f"study {study}"))
        after = [s for s in "123" if study == "stages" and (base / f"stage_{s}" / "config.json").exists()]
        whole = pool.map(after_figures, [(str(base), str(out), stage) for stage in after], chunksize=1)
    results = {arm.name: [f for f, job in zip(done, jobs) if job[2] is arm] for arm in chosen}
    results |= {f"whole run, after stage {stage}": [figures] for stage, figures in zip(after, whole)}
    write_json(out / f"{study}.json", {"study": study, "seeds": seeds, "budget": budget,
                                       "steps": {a.name: a.steps for a in chosen}, "results": results})
    return results


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.evaluate --study", description=__doc__)
    add = parser.add_argument
    add("--study", choices=STUDIES, required=True, help="which one")
    add("--base", default="out/nano", metavar="OUT", help="of a python train.py: the stages before those of the study "
        "(default out/nano)")
    add("--out", default="out/study", metavar="DIR", help="arms, tables and curves (default out/study)")
    add("--seeds", type=number(int, 1, 100), help="trainings of every arm (default: " +
        ", ".join(f"{study} {n}" for study, n in SEEDS.items()) + ")")
    add("--budget", type=number(float, 0.001, 1000), default=1.0, help="factor on the steps of every arm: " +
        ", ".join(f"stage {stage} {steps}" for stage, steps in STEPS.items()) + " (default 1)")
    add("--procs", type=number(int, 1, 64), default=2, help="arms trained side by side (default 2)")
    model_flags(parser)
    args = parser.parse_args(argv)
    pipe, began = load_pipeline(args.ckpt, args.device, args.dtype) if args.study == "sampling" else None, time.time()
    out = out_folder(args.out)
    if pipe:
        print(sweep.table(sweep.sampling(pipe, out, procs=args.procs)))
        print("pictures right, % (95 % Wilson intervals)")
    else:
        results = run_study(args.study, args.base, out, args.seeds or SEEDS[args.study], args.budget, args.procs)
        minutes = sum(figures["minutes"] for seeds in results.values() for figures in seeds)
        print(table(results), end="\n\n")
        if differences := against_first(results):               # of one seed there are none
            print(table(differences), end="\n\n")
        print(f"mean ± standard deviation over seeds; all arms took {minutes:.0f} process minutes")
    print(f"{(time.time() - began) / 60:.0f} minutes now; everything is in {out}")


if __name__ == "__main__":
    cli.run_main(main)
