"""The papers' claims at nano scale: train variants with equal budgets and several seeds, measure them, print a table.

    python -m nanoharmon.evals.study shared       one encoder for both tasks, against one task, and one each
    python -m nanoharmon.evals.study stages       what stages add: leave one out; the whole run after 1, 2 and 3
    python -m nanoharmon.evals.study mar          MAR's own: order, diffusion loss against L2, width of its MLP
    python -m nanoharmon.evals.study sampling     iterations, diffusion steps, temperature, guidance: sweep.py

About 32, 22 (in the --out of shared, whose joint arm it needs), 26 and 16 (without `redraw`) minutes on two cores. What
a linear layer reads from frozen features, the first of the papers' claims, is in probe.py.

All arms of a study start from the same weights of the stages before (`--base`, the folder of a `python train.py`; what
is missing there is trained first), train as many steps, see as many pictures per task, and are trained by the train.py
beside this package, with the preset's stages: one thread each, two arms side by side. What differs from a usual run:
stage 1 has the batches of stage 2, so that an arm without stage 1 can make up for it; nothing is said before drawing,
nor learned to be (`texts` 0: so stage 2 reads pictures, as nano's usually does not); there are 20,000 scenes. An
arm's seed decides its pictures, their order, all noise and the projectors' first weights. What the core replaced
(raster order, L2 loss, separate encoders) is swapped in: baselines.py. Everything goes to --out. A study that was
stopped goes on where it was; finished arms are not repeated, nor those that two studies share.

Simplified: pictures have 48 px (no stage 3), and the stages before are those of one seed. The standard deviation over
seeds is therefore that of the last stages of training.
"""
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from ..cli import Parser, model_flags, number, refuse_beside, run_main
from ..files import FolderLock, write_json
from ..pipeline import load_pipeline
from ..training.recipe import Config
from . import sweep
from .arm import TRAIN, Arm, Job, base_hash, measure_stage, note, run_apart, train_arm
from .common import out_folder
from .report import markdown

STEPS = {"mar": 500, "1": 90, "2": 280}         # of an arm, at --budget 1
SEEDS = {"shared": 3, "stages": 2, "mar": 2}    # trainings of every arm
STUDIES = (*SEEDS, "sampling")


def arms(study, budget=1.0, preset="nano"):
    """The arms of a study; the first is the one that the others are compared with."""
    n = {stage: max(1, round(steps * budget)) for stage, steps in STEPS.items()}
    second = Config.preset(preset).stages["2"]
    both = [f"--stage_1.batch={second.batch}", f"--stage_1.understanding_batch={second.understanding_batch}",
            "--stage_2.texts=0"]                                 # all that is understood are pictures
    joint = Arm("joint", {"1": n["1"], "2": n["2"]}, both)
    if study == "shared":
        own = "mar.,mar_read.encoder,mar_read.z_proj,mar_read.fake_latent"
        return [joint,
                replace(joint, name="drawing only", flags=[
                    *both, *(f"--stage_{s}.understanding_batch=0" for s in "12")]),
                replace(joint, name="reading only", flags=[
                    *both, *(f"--stage_{s}.batch=0" for s in "12")]),
                replace(joint, name="separate encoders", baseline="separate encoders", flags=[
                    *both, f"--stage_1.train_parts={own},proj_in.,proj_out.",
                    f"--stage_2.train_parts={own},llm.,proj_in.,proj_out."])]
    if study == "stages":
        return [joint,
                replace(joint, name="stage 1 only", steps={"1": n["1"]}),
                replace(joint, name="without stage 1", steps={"2": n["1"] + n["2"]}),     # as many in all
                replace(joint, name="without mar", fresh=("mar",)),
                replace(joint, name="without llm", fresh=("llm",))]
    plain = Arm("random order", {"mar": n["mar"]}, fresh=("mar",))
    return [plain, replace(plain, name="raster order", baseline="raster order"),
            replace(plain, name="l2 loss", baseline="l2 loss", mar={"diffusion_batch_mul": 1}),    # nothing is random
            *(replace(plain, name=f"diffusion width {w}", mar={"diffloss_w": w}) for w in (40, 320))]


# --- tables -----------------------------------------------------------------------------------------------------------

def mean_and_deviation(values, digits):
    """ "0.610 ± 0.020": mean and standard deviation over seeds."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def table(results):
    """Markdown of {arm: [figures of each seed]}."""
    columns = list(dict.fromkeys(name for seeds in results.values() for figures in seeds for name in figures))
    digits = {"minutes": 1, "generation loss": 4, "understanding loss": 4}
    return markdown({arm: {c: mean_and_deviation([figures[c] for figures in seeds], digits.get(c, 3))
                           if c in seeds[0] else "-" for c in columns} for arm, seeds in results.items()})


def against_first(results):
    """What each arm has more than the first, seed by seed: with the same seed, pictures and noise are the same."""
    (first, theirs), *others = results.items()
    return {f"{arm} - {first}": [{c: f[c] - t[c] for c in f if c in t and c != "minutes"} for f, t in zip(ours, theirs)]
            for arm, ours in others if len(ours) == len(theirs) > 1}


# --- the whole study --------------------------------------------------------------------------------------------------

def run_study(study, base, out, seeds, budget, procs):
    """Train and measure the arms of `shared`, `stages` or `mar`: {arm: [figures of each seed]}, and OUT/STUDY.json."""
    chosen, needed = arms(study, budget), ["vae"] if study == "mar" else ["vae", "llm", "mar"]
    if missing := [s for s in needed if not (base / f"stage_{s}" / "config.json").exists()]:
        print(f"training the stages {', '.join(missing)} of {base} first", flush=True)
        code = subprocess.run([sys.executable, str(TRAIN), "--preset", "nano", "--out", str(base),
                               *["--resume"] * (base / "train_config.json").exists(),
                               *(f"--stage={s}" for s in needed)]).returncode
        if code:
            sys.exit(code)                                       # it has said why
    # arm by arm: when the second one begins, the first has encoded the pictures of its seed
    jobs = [Job(base, out, arm, seed) for arm in chosen for seed in range(1, seeds + 1)]
    for job in jobs:
        note(job)
    tasks = [(train_arm, (job,), job.folder / "study.json") for job in jobs]
    after = [s for s in "123" if study == "stages" and (base / f"stage_{s}" / "config.json").exists()]
    for stage in after:
        path = out / f"after_{stage}-{base_hash(base, stage)}.json"
        tasks.append((measure_stage, (base, stage, path), path))
    with ThreadPool(procs) as pool:                              # each thread waits for one process
        done = list(tqdm(pool.imap(lambda task: run_apart(*task), tasks), total=len(tasks), desc=f"study {study}"))
    results = {arm.name: [f for f, job in zip(done, jobs) if job.arm is arm] for arm in chosen}
    results |= {f"whole run, after stage {stage}": [figures] for stage, figures in zip(after, done[len(jobs):])}
    write_json(out / f"{study}.json", {"study": study, "seeds": seeds, "budget": budget,
                                       "steps": {a.name: a.steps for a in chosen}, "results": results})
    return results


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.evals.study", description=__doc__)
    add = parser.add_argument
    add("study", metavar="NAME", choices=STUDIES, help=f"which one: {', '.join(STUDIES)}")
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
    if args.study == "sampling":
        refuse_beside(parser, args, args.study, ("base", "seeds", "budget"), "trains nothing")
        pipe = load_pipeline(args.ckpt, args.device, args.dtype)
    else:
        refuse_beside(parser, args, args.study, ("ckpt", "seed", "device", "dtype"), "trains models of its own")
        pipe = None
        if not TRAIN.is_file():
            raise ValueError(f"no {TRAIN}, expected train.py beside the package; the studies train with it, so start "
                             f"them in a clone of the repository")
    began, out = time.time(), out_folder(args.out)
    with FolderLock(out, "study_in_use") as lock:    # a run in this folder is not in the way
        lock.take()
        if pipe:
            print(sweep.table(sweep.sampling(pipe, out, procs=args.procs, seed=args.seed)))
            print("pictures right, % (95 % Wilson intervals)")
        else:
            seeds = args.seeds or SEEDS[args.study]
            results = run_study(args.study, Path(args.base), out, seeds, args.budget, args.procs)
            minutes = sum(figures["minutes"] for seeds in results.values() for figures in seeds)
            print(table(results), end="\n\n")
            if differences := against_first(results):           # of one seed there are none
                print(table(differences), end="\n\n")
            print(f"mean ± standard deviation over seeds; all arms took {minutes:.0f} process minutes")
    print(f"{(time.time() - began) / 60:.0f} minutes now; everything is in {out}")


if __name__ == "__main__":
    run_main(main)
