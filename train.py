"""Train Harmon from scratch: vae -> llm -> mar -> stage 1 -> stage 2 -> stage 3 -> a short evaluation.

    python train.py --dry-run                   what would be done: a table of the stages, and their memory
    python train.py --quick                     a first try: a seventh of the time
    python train.py                             the default: preset nano, the shapes world: 98 minutes on 2 cores
    python train.py --resume                    go on after Ctrl-C, a crash, a power cut; on a CPU bit for bit
    python train.py --data DIR                  your own pictures and texts, laid out as docs/DATA.md says
    python train.py --stage 3 --stage_3.lr 0.5  only one stage, with something changed
    python train.py --stage reca                afterwards, if you like: RecA, see below
    torchrun --nproc_per_node=4 train.py        several GPUs

What happens. The first three stages stand in for what Harmon downloads; the others are those of the paper (sec. 3.3):

    vae   the picture tokenizer learns to make latents of pictures, and pictures of latents (for KL-16)
    llm   the language model learns the world's texts, without pictures (for Qwen2.5)
    mar   the encoder, decoder and diffusion MLP learn to draw from class labels (for MAR)
    1     MAR and the projectors are aligned with the LLM, which stays as it is
    2     everything but the VAE learns to draw; beside it texts as of llm (other presets, --quick: pictures to read)
    3     both tasks together, at twice the resolution, and longest
    reca  not of Harmon (RecA, arXiv 2509.07295), and only when named, after stage 3 or --init: the request shows a
          picture, and the model learns to draw it again, without a caption; questions are trained on as before

What you get. OUT/final, for sample.py and chat.py, when all stages are done; OUT/stage_NAME, the model after a stage.
--stage reca leaves OUT/final as it is, and ends with OUT/final_reca and OUT/results_reca.json beside it.
OUT/samples, OUT/curves.png and OUT/log.jsonl show how it goes; OUT/results.json is the evaluation at the end.

When it stops. A finished stage is skipped (delete OUT/stage_NAME and those after it to repeat them). An interrupted
one goes on with --resume and the flags of its first start; without --resume it is an error: hours of work are neither
lost nor mixed. While a run goes on, a second one in its OUT is refused.

More than one process. A batch is cut into shards (--optim.shards): one for each process, and on one core two. Shard s
depends on nothing but (seed, stage, step, s). So one core trains the same model as two, up to rounding; a run may go on
with fewer or more processes; more shards than processes is gradient accumulation, for GPUs with little memory. On CPU
two single-threaded processes work side by side (--procs): 11-18 % faster than two threads.

Read on: README.md has the stages beside the paper's, docs/HARDWARE.md memory and GPUs, docs/LOG.md what was tried.
"""
import math
import random
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import nanoharmon          # noqa: F401, before torch: it sets how idle threads wait
import torch
from tqdm import tqdm

from nanoharmon.arguments import cores
from nanoharmon.cli import Parser, Unbroken, number, run_main, typed
from nanoharmon.compiling import compile_blocks
from nanoharmon.config import PRESETS
from nanoharmon.evals import evaluate
from nanoharmon.files import FolderLock, write_json
from nanoharmon.flags import describe_flags, nearest_field, override
from nanoharmon.pipeline import Pipeline, pick_device
from nanoharmon.training.batches import check_mix, make_batches, open_sources
from nanoharmon.training.imports import known_folders
from nanoharmon.training.latents import load_latents, measure_scale
from nanoharmon.training.losses import stage_losses
from nanoharmon.training.optim import lr_factor, set_lr
from nanoharmon.training.parallel import Stop, average_gradients, average_values, is_lost, join, launch, torchrun_says
from nanoharmon.training.recipe import ALL_STAGES, HARMON_STAGES, Config, check_training, parse_mix, quicken
from nanoharmon.training.resume import TrainingState, begin, count_shards, prepare, progress, recall, to_do
from nanoharmon.training.run import Run
from nanoharmon.training.sharding import clip_gradients, gathered
from nanoharmon.training.table import print_stages
from nanoharmon.training.watch import show, show_final, summary
from nanoharmon.weights.states import latest_state

LOG_EVERY = 50              # steps between two lines of log.jsonl


# --- one stage --------------------------------------------------------------------------------------------------------

def train_stage(run, name, pipe, batches):
    """Train stage `name` from where it stands to its end; the model of `pipe` then has the averaged weights."""
    stage, optim = run.config.stages[name], run.config.optim
    state = TrainingState.of(run, name, pipe.model)
    path = latest_state(run.out / f"stage_{name}") if run.resume else None
    first = state.restore(run, path) if path else 0
    pipe.model.train()
    run.stop.polite = True                               # from here on a signal waits for the end of a step
    values, bad = {}, 0                                  # values: to log; bad: steps in a row that were not finite
    for step in run.steps(name, first):
        factor = lr_factor(step, stage.steps, stage.warmup, optim.schedule, optim.floor) * stage.lr
        set_lr(state.optimizers, factor)
        # --- forward and backward: all randomness comes from (seed, stage, step, shard), whoever computes the shard
        for shard in range(run.rank, optim.shards, run.world_size):
            rng = random.Random(f"{run.config.data.seed}/{name}/{step}/{shard}")
            generator = torch.Generator(run.device).manual_seed(rng.getrandbits(48))
            torch.manual_seed(rng.getrandbits(48))
            with run.autocast():
                for loss, logged in stage_losses(run.config, name, pipe.model, batches, rng, generator):
                    if loss.requires_grad:               # with --train-parts mar.decoder, understanding trains nothing
                        state.scaler.scale(loss).backward()
                    for label, value in logged.items():
                        values.setdefault(label, []).append(value.detach())
        # --- average over the shards, clip, update
        average_gradients(state.params, run.world_size, optim.shards)
        for optimizer in state.optimizers:
            state.scaler.unscale_(optimizer)
        norm = clip_gradients(list(state.params.values()), optim.clip)
        # this makes the CPU wait for the GPU, at little cost: nano is limited by the CPU, and the next batch is made
        # while the GPU runs the optimizer. Without waiting, optimizers and average would have to decide on the GPU
        if torch.isfinite(norm):
            for optimizer in state.optimizers:
                state.scaler.step(optimizer)
            state.ema.update(state.params, step)
            bad = 0
        else:
            bad += state.scaler.get_scale() <= 1         # float16 first halves the scale, else it is always 1
            run.skip(name, step + 1, give_up=bad >= 5)
        state.scaler.update()
        pipe.model.zero_grad()
        # --- log, save, show
        last = step + 1 == stage.steps
        if (step + 1) % LOG_EVERY == 0 or last:
            means, values = average_values(values, run.world_size), {}
            run.log_means(name, step + 1, means, lr=optim.lr * factor, grad=norm.item())
        if not last:                                     # after the last one, train() saves the stage, then shows it
            run.save_if_due(state, name, step + 1)
            if run.shows(step + 1):
                state.ema.swap(state.params)             # pictures and answers come from the averaged weights
                show(run, name, step + 1, pipe, batches)
                state.ema.swap(state.params)
    state.ema.swap(state.params)
    pipe.model.eval()


# --- all stages -------------------------------------------------------------------------------------------------------

def train(run):
    """The stages that are to do, one after the other. Returns (Pipeline of the trained model, batches)."""
    torch.manual_seed(run.config.data.seed)
    sources = open_sources(run.config.data, run.out / "cache", known_folders(run.out))
    pipe = begin(run, sources)
    pipe.model.mar.checkpointing = pipe.model.llm.model.checkpointing = run.config.optim.checkpointing
    batches = make_batches(run.config, sources, pipe.tokenizer, run.device)
    run.say(*batches.notes())
    if run.compile:
        run.say(compile_blocks(pipe.model))
    for name in to_do(run):
        stage, folder = run.config.stages[name], run.out / f"stage_{name}"
        if name not in ("vae", "llm"):
            load_latents(run, pipe, batches, stage.size)
        if stage.own_positions:
            pipe.model.mar.resize_positions(pipe.model.vae.grid_of(stage.size, stage.size)[0])
        train_stage(run, name, pipe, batches)
        if name == "vae":
            measure_scale(run.config, pipe.model, batches)
        pipe.meta |= {"size": stage.size or run.config.stages["1"].size} | batches.world()
        weights = gathered(pipe.model.state_dict(), run.is_main)    # from all processes, where they are sharded
        if run.is_main:
            pipe.save(folder, weights=weights)
            shutil.rmtree(folder / "state", ignore_errors=True)
        run.wait()
        if run.takes_part:                                       # only now that the stage is safe
            show(run, name, stage.steps, pipe, batches)
        run.wait()
        run.stop.safe()
    return pipe, batches


def finish(run, pipe, batches):
    """The short evaluation, and the checkpoint to use: float16 weights, config and tokenizer in OUT/final. RecA's are
    beside those of the model before it, so that one can compare them."""
    beside = "_reca" if "reca" in run.config.stages else ""
    final, results = run.out / f"final{beside}", run.out / f"results{beside}.json"
    stages = [path for s in run.config.stages if (path := run.out / f"stage_{s}" / "config.json").exists()]
    if final.exists() and results.exists() and results.stat().st_mtime >= max(p.stat().st_mtime for p in stages):
        return run.say(f"all stages are finished and evaluated, see {results}; nothing to do")
    own = [source for source in batches.sources if source is not batches.shapes]
    pipe = Pipeline.load(stages[-1].parent, run.device) if run.config.optim.fsdp else pipe       # whole, not sharded
    figures, prompt = {}, "..."
    pipe.meta["draw"] = {"cfg": 3.0, "iters": 64, "steps": 50}
    if batches.shapes:
        if not own:                                              # other pictures have other texts than those of a world
            pipe.meta["draw"] |= {"iters": 18, "redraw": 2}          # measured in this world: docs/RESULTS.md
            pipe.meta["draw"] |= {"think": True} if run.config.stages["3"].texts else {}
            pipe.meta |= {"look": True, "turns": 4}              # so many questions about a picture come in a row
        pipe.meta["parts"] = run.config.stages["3"].parts > 0
    pipe.save(final, torch.float16)
    pipe = Pipeline.load(final, run.device)                      # what is measured is what ships
    if batches.shapes:
        figures = evaluate.quick(pipe, procs=run.world_size if run.device.type == "cpu" else 1, progress=tqdm)
        prompt = "a red circle left of a blue square" if run.config.data.max_objects > 1 else "a red circle"
    if own:
        figures_of_own, captions = show_final(run.out, pipe, own, final.name)
        run.say(*(f"{name}: {value:.4g}" for name, value in figures_of_own.items()))
        figures |= figures_of_own
        prompt = captions[0] if captions and not batches.shapes else prompt
    run.log(stage="evaluation", **figures)
    write_json(results, figures)
    run.say(*summary(figures, run.config.data.max_objects), f"all figures: {results}",
            f"{(time.time() - run.start) / 60:.1f} minutes. Try: python sample.py "
            f"{typed(['--ckpt', str(final), '--prompt', prompt])}")


def worker(rank, world_size, store, stop, run, lock=None):
    """What each process does. store: the file where they meet; None: torchrun says where, or there is only one.
    lock: of OUT, where it is still to be prepared."""
    sys.stdout, sys.stderr = Unbroken(sys.stdout), Unbroken(sys.stderr)
    run = replace(run, rank=rank, world_size=world_size, stop=stop, device=join(rank, world_size, store, run.device))
    try:
        if lock and run.is_main:
            prepare(run, lock)                                   # it may take hours, when own pictures are imported
        run.wait()
        pipe, batches = train(run)
        if run.is_main and (not run.only or "reca" in run.only):
            finish(run, pipe, batches)
    except SystemExit:
        has_begun = (run.out / "train_config.json").exists()
        again = typed([*(flag for flag in run.command if flag != "--resume"), *["--resume"] * has_begun])
        run.end_line()
        how = "stopped and saved" if any(progress(run.out)) else "stopped before there was anything to save"
        start = "python" if store or world_size == 1 else f"torchrun --nproc_per_node={world_size}"
        print(f"{how}; go on with: {start} train.py {again}", file=sys.stderr)
        raise
    except RuntimeError as e:
        if not is_lost(e):
            raise
        raise ValueError(f"process {rank} of {world_size} has lost another one, which stopped or died; go on with "
                         f"--resume and the flags of the start") from e
    finally:
        run.end_line()
    if world_size > 1:
        torch.distributed.destroy_process_group()


# --- flags ------------------------------------------------------------------------------------------------------------

def make_parser():
    parser = Parser(prog="train.py", description=__doc__, add_help=False,
                    usage="python train.py [options below] [--SECTION.FIELD VALUE ...]")
    add = parser.add_argument_group("what to do").add_argument
    add("-h", "--help", action="store_true", help="this text; with --preset NAME, the values of that preset")
    add("--dry-run", action="store_true", help="print the table of stages, and stop")
    add("--preset", default="nano", metavar="NAME", help=f"sizes and stages: {', '.join(PRESETS)} (default nano)")
    add("--quick", action="store_true", help="a seventh of the time, for a first try: fewer steps, "
        "scenes of one object, small pictures (--quick --dry-run lists them)")
    add("--stage", action="append", choices=ALL_STAGES, metavar="NAME", help="run only this stage (several times "
        f"for several): {', '.join(ALL_STAGES)} (which never runs unless it is named)")
    add("--train-parts", metavar="NAMES", help="train only parameters whose names begin so, in stages 1 to 3: "
        "mar.decoder,proj_out")
    add("--out", metavar="DIR", help="everything is written there (default out/PRESET, or out/PRESET-quick)")
    add("--resume", action="store_true", help="go on where an interrupted run stopped")
    add = parser.add_argument_group("your own data (docs/DATA.md)").add_argument
    add("--data", action="append", default=[], metavar="DIR", help="train on your own pictures: a folder with "
        "metadata.jsonl, or with a.png beside a.txt; python -m nanoharmon.data DIR tells what is in it")
    add("--llava", action="append", default=[], metavar="FILE", help="train on conversations in LLaVA's format (.json)")
    add("--images", metavar="DIR", help="the folder of the pictures that --llava names")
    add("--mix", metavar="NAME:N,...", help="how often each source is picked: shapes:1,DIR:3; NAME is shapes (the "
        "world), a folder or a .json file (sources of --data and --llava that are not named: 1)")
    add = parser.add_argument_group("start from given weights (docs/WEIGHTS.md)").add_argument
    add("--init", metavar="DIR|FILE", help="start from a whole Harmon: .pth (with --vae and --llm), or a directory")
    add("--vae", metavar="FILE", help="start from KL-16 (kl16.ckpt) and leave out the stage vae")
    add("--llm", metavar="DIR", help="start from a Qwen2.5 directory and leave out the stage llm")
    add("--mar", metavar="FILE", help="start from MAR (checkpoint-last.pth) and leave out the stage mar")
    add = parser.add_argument_group("the machine (docs/HARDWARE.md)").add_argument
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    add("--procs", type=number(int, 1, 64), metavar="N", help="processes on CPU (default: one per core, at most 2)")
    add("--compile", action="store_true", help="torch.compile the model's blocks: a minute or more to start, and no "
        "gain for nano on a CPU; needs a C++ compiler, on a GPU triton")
    add = parser.add_argument_group("on the way").add_argument
    add("--save-every", type=number(int, 0), default=500, metavar="N", help="steps between saved states; 0 = none "
        "(default 500)")
    add("--keep", type=number(int, 1), default=2, metavar="N", help="how many of the last states are kept (default 2)")
    add("--sample-every", type=number(int, 0), default=500, metavar="N", help="steps between sample pictures, one "
        "more at the end of a stage; 0 = none (default 500)")
    return parser


def parse_args(argv=None):
    """(Run, the parsed flags) of a command line. Raises ValueError for flags that mean nothing."""
    parser, argv = make_parser(), sys.argv[1:] if argv is None else list(argv)
    args, rest = parser.parse_known_args(argv)
    config = Config.preset(args.preset)
    if args.help:
        print(parser.format_help(), describe_flags(config, args.preset), sep="\n")
        sys.exit(0)
    if args.quick:
        quicken(config)
    if "reca" not in (args.stage or ()):                         # it runs only when it is named
        del config.stages["reca"]
    # with a slash, for these are files, whatever their name
    mix = parse_mix([f"{name}/:1" for name in args.data + args.llava] + (args.mix or "").split(","))
    if mix or args.mix:
        config.data.mix = tuple(f"{name}:{weight:g}" for name, weight in mix)
    config.data.images = args.images or ""
    for flag in rest:
        if flag.startswith("--stage_reca.") and "reca" not in config.stages:
            raise ValueError(f"{flag}: stage reca runs only when it is named; pass --stage reca besides, or drop it")
        if flag.startswith("--") and "." not in flag.partition("=")[0]:
            meant = nearest_field(flag, config, parser._option_string_actions)
            raise ValueError(f"unknown flag {flag}{meant}; see --help")
    changed = override(config, rest)
    if args.compile and config.optim.fsdp:
        raise ValueError("--compile and --optim.fsdp true were never tried together; pass one of them")
    for field, flags in ("data.mix", ("data", "llava", "mix")), ("data.images", ("images",)):
        if field in changed and (twice := [flag for flag in flags if getattr(args, flag)]):
            raise ValueError(f"--{field} says the same as --{twice[0]}, expected one of them; drop --{field}")
    if args.train_parts and args.stage and not set(args.stage) & set(HARMON_STAGES):
        raise ValueError(f"--train-parts is for stages 1 to 3, and --stage {args.stage[0]} is none of them; pass "
                         f"--stage_{args.stage[0]}.train_parts, or drop it")
    if (args.mix or "data.mix" in changed) and "shapes" in dict(parse_mix(config.data.mix)) and Path("shapes").is_dir():
        raise ValueError("--mix shapes is the shapes world, and here is a folder of that name; pass ./shapes for the "
                         "folder, or rename it for the world")
    for name in HARMON_STAGES if args.train_parts else ():
        if f"stage_{name}.train_parts" not in changed:
            config.stages[name].train_parts = args.train_parts
    return Run(config, out=Path(args.out or f"out/{args.preset}{'-quick' if args.quick else ''}"), preset=args.preset,
               command=argv, changed=changed, only=tuple(args.stage or ()), resume=args.resume, keep=args.keep,
               given={name: getattr(args, name) for name in ("init", "vae", "llm", "mar")}, save_every=args.save_every,
               sample_every=args.sample_every, compile=args.compile, device=pick_device(args.device)), args


def main(argv=None):
    run, args = parse_args(argv)
    torchrun, run.rank = torchrun_says()
    if args.procs and (torchrun or run.device.type != "cpu" and args.procs > 1):
        raise ValueError("--procs is for processes on CPU that train.py starts itself; drop it, and use torchrun "
                         "--nproc_per_node for several GPUs")
    asked = torchrun or (args.procs if run.device.type == "cpu" else 1)
    usual = asked or min(2, cores())
    notes = recall(run)
    run.config.optim.shards = count_shards(run.config, run.out, usual if asked else 2)   # one core makes the same model
    world_size = asked or math.gcd(usual, run.config.optim.shards)       # a run of one process goes on with one
    check_training(run.config, world_size, run.only)
    check_mix(run.config.data)
    run.say(*notes)
    with FolderLock(run.out) as lock:
        if args.dry_run:
            if run.is_main:
                lock.take(make=False)                            # a stage in training must not count as interrupted
                print_stages(replace(run, world_size=world_size))
            return
        if not torchrun:
            prepare(run, lock)
        if torchrun or world_size == 1:                          # with torchrun, the others are there, and wait
            with Stop(run.rank) as stop:
                worker(run.rank, world_size, None, stop, run, lock if torchrun else None)
        else:
            launch(worker, world_size, run)


if __name__ == "__main__":
    run_main(main)
