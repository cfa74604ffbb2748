"""Other ways to unify, beside Harmon: train each system from scratch for the same time, measure all, print a table.

    python -m nanoharmon.compare --dry-run              what would be done, and how long it takes
    python -m nanoharmon.compare --minutes 60           all systems, an hour of one core for each and each of two seeds
    python -m nanoharmon.compare --systems codes,masked --minutes 10        two of them, sooner

What is equal, what is not, and what can be concluded: docs/COMPARE.md.

First, a few steps of every part are timed on this machine (processor time of one thread); from these and --minutes
follow the numbers of steps, OUT/plan.json. From then on all depends on the plan and the seed. Not counted: encoding the
scenes, and measuring. OUT/SYSTEM-SEED holds the weights after the last finished part, at the end metrics.json. The same
command again goes on; an interrupted part begins anew. More --seeds or --systems may be added later.
"""
from multiprocessing.pool import ThreadPool

import torch
from tqdm import tqdm

from ..cli import Parser, markdown_table, number, run_main
from ..config import nearest
from ..evals.arm import run_apart
from ..evals.common import out_folder
from ..files import FolderLock, read_json, write_bytes, write_json
from ..pictures import file_bytes, open_image, picture_grid
from .metrics import run_one, tables
from .systems import HARMON, PRESETS, SHARES, SYSTEMS, System

SCENES_A_MINUTE, SCENES = 2000, 20000        # different pictures: so many for each of --minutes, and at most


# --- the plan ---------------------------------------------------------------------------------------------------------

def time_steps(name, preset, steps=10):
    """Seconds of processor time that a step of each part takes: {part: seconds}."""
    system = System(name, preset, 0, 64)
    return {part: system.seconds_per_step(part, steps) for part in SHARES[name]}


def make_plan(names, preset, minutes, old=None):
    """{"preset", "minutes", "shares": {system: {part: share}}, "seconds per step" and "steps": likewise}; old: a plan
    that is kept, and extended by the systems that it lacks."""
    plan = {"preset": preset, "minutes": minutes, "shares": {}, "seconds per step": {}, "steps": {}} | (old or {})
    for name in names:
        if name not in plan["steps"]:
            took = time_steps(name, preset)
            for other, known in plan["seconds per step"].items():
                if (other in HARMON) == (name in HARMON):        # the same tokenizer: it gets the same steps
                    took["vae"] = known["vae"]
            plan["shares"][name], plan["seconds per step"][name] = SHARES[name], took
            plan["steps"][name] = {part: max(1, round(60 * minutes * share / took[part]))
                                   for part, share in SHARES[name].items()}
    return plan


def read_plan(path, preset, minutes):
    """The plan of an earlier start, or {}. Raises ValueError where it was another comparison."""
    plan = read_json(path) if path.exists() else {}
    for flag, value in {"preset": preset, "minutes": minutes}.items() if plan else ():
        if plan.get(flag) != value:
            raise ValueError(f"{path} has {flag} {plan.get(flag)}, got {value}; pass that --{flag}, or another --out")
    for name in plan.get("steps", {}):
        if plan.get("shares", {}).get(name) != SHARES.get(name):
            raise ValueError(f"{path} is of other code, with other shares for {name}; pass another --out")
    return plan


def print_plan(plan, names, seeds, procs):
    rows = []
    for name in names:
        for part, steps in plan["steps"][name].items():
            took = plan["seconds per step"][name][part]
            rows.append((name, part, f"{SHARES[name][part]:.0%}", steps, f"{took:.3f}", f"{steps * took / 60:.2f}"))
    print(markdown_table(("system", "part", "share", "steps", "seconds per step", "minutes"), rows))
    total = plan["minutes"] * len(names) * seeds / min(procs, len(names) * seeds)
    print(f"\n{len(names)} systems x {seeds} seeds x {plan['minutes']:g} minutes, {procs} at a time: {total:.0f} "
          f"minutes of training, and then the measuring")


# --- all of them ------------------------------------------------------------------------------------------------------

def compare(names, seeds, preset, plan, out, procs):
    """{system: [figures of each seed]}, from files where they are there, else trained and measured now."""
    jobs = [(name, seed, out / f"{name}-{seed}") for seed in range(1, seeds + 1) for name in names]
    scenes = max(16, min(SCENES, int(SCENES_A_MINUTE * plan["minutes"])))

    def run(job):
        name, seed, folder = job
        return run_apart(run_one, (name, seed, preset, plan["steps"][name], scenes, folder), folder / "metrics.json")
    with ThreadPool(procs) as pool:                              # each thread waits for one process
        done = list(tqdm(pool.imap(run, jobs), total=len(jobs), desc="compare"))
    return {name: [figures for (other, _, _), figures in zip(jobs, done) if other == name] for name in names}


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.compare", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=number(float, 0.001, 10**5), default=60.0, help="of one core, to train each system with each "
        "seed (default 60)")
    add("--seeds", type=number(int, 1, 100), default=2, help="trainings of every system (default 2)")
    add("--systems", default=",".join(SYSTEMS), help=f"some of {','.join(SYSTEMS)} (default: all)")
    add("--preset", choices=PRESETS, default="nano", help="sizes; pico is for trying out (default nano)")
    add("--procs", type=number(int, 1, 64), default=2, help="systems trained side by side, one core each (default 2)")
    add("--out", default="out/compare", metavar="DIR", help="everything goes there (default out/compare)")
    add("--dry-run", action="store_true", help="time a few steps, print the plan, and stop")
    args = parser.parse_args(argv)
    names = tuple(dict.fromkeys(args.systems.replace(" ", "").split(",")))
    for name in names:
        if name not in SYSTEMS:
            raise ValueError(f"--systems names {name!r}{nearest(name, SYSTEMS)}, expected some of {','.join(SYSTEMS)}")
    torch.set_num_threads(1)
    if args.dry_run:
        return print_plan(make_plan(names, args.preset, args.minutes), names, args.seeds, args.procs)
    out = out_folder(args.out)
    with FolderLock(out, "compare_in_use") as lock:
        lock.take()
        plan = make_plan(names, args.preset, args.minutes, read_plan(out / "plan.json", args.preset, args.minutes))
        write_json(out / "plan.json", plan)
        print_plan(plan, names, args.seeds, args.procs)
        results = compare(names, args.seeds, args.preset, plan, out, args.procs)
        text = tables(results)
        write_bytes(out / "table.md", f"{text}\n".encode())
        write_json(out / "results.json", {"plan": plan, "seeds": args.seeds, "results": results})
        rows = [open_image(out / f"{name}-1" / "pictures.png", "--out") for name in names]
        write_bytes(out / "page.png", file_bytes(picture_grid(rows, 1)))
    print(f"\n{text}\n\n[low, high]: 95 % intervals over pictures; after a colon: each seed")
    print(f"wrote {out}/table.md, results.json and page.png")


if __name__ == "__main__":
    run_main(main)
