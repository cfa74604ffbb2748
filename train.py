"""Train Harmon from nothing: vae -> llm -> mar -> stage 1 -> stage 2 -> stage 3 -> a short evaluation.

    python train.py --dry-run                   what would be done: a table of the stages
    python train.py                             the default: preset nano, the shapes world: 90 minutes on 2 cores
    python train.py --quick                     the same in a sixth of the time, for a first try
    python train.py --resume                    go on after Ctrl-C, a crash or a power cut, bit for bit
    python train.py --stage 3 --stage_3.lr 0.5  only one stage, with something changed
    python train.py --data DIR                  your own pictures and texts, laid out as nanoharmon/folder.py says
    torchrun --nproc_per_node=4 train.py        several GPUs

The first three stages stand in for what Harmon downloads (KL-16, Qwen2.5, MAR); stages 1-3 are those of the paper
(sec. 3.3): 1 aligns the encoder with the frozen LLM, 2 trains both tasks jointly, 3 doubles the resolution.

OUT/final is the trained model, OUT/stage_NAME the model after a stage; OUT/samples and OUT/curves.png show how it goes.
A finished stage is skipped (delete OUT/stage_NAME to repeat it). An interrupted one goes on with --resume and the flags
of its first start; without --resume it is an error: hours of work are neither lost nor mixed.

On CPU two single-threaded processes work side by side (--procs): on 2 cores that is a quarter faster than two
threads, and does not stall when something else runs (LOG.md).

A batch is cut into shards (--optim.shards), one per process unless told otherwise, and shard s is a function of (seed,
stage, step, s) only. So one process with two shards trains the same model as two processes, up to rounding, a run may
go on with fewer or more processes, and more shards than processes is gradient accumulation for GPUs with little memory.
"""
import json
import math
import os
import random
import shlex
import shutil
import sys
import time
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from nanoharmon import evaluate
from nanoharmon.checkpoint import latest_state, load_state, save_state, versions
from nanoharmon.cli import Parser, number, pick_device, run
from nanoharmon.config import PRESETS, STAGES, Config, nearest, quicken, to_dict
from nanoharmon.data import make_batches, open_sources, parse_mix, training_texts
from nanoharmon.files import explained, write_json
from nanoharmon.flags import describe_flags, override
from nanoharmon.latents import load_latents, measure_scale
from nanoharmon.optim import EMA, lr_factor, make_optimizers, select, set_lr
from nanoharmon.parallel import Stop, agree, average_gradients, average_values, is_lost, launch
from nanoharmon.pipeline import Pipeline
from nanoharmon.plot import draw_curves, read_log
from nanoharmon.sharding import clip_gradients, like, shard_blocks, whole
from nanoharmon.stages import as_stage, begin, check, count_shards, given, plan, prepare, progress
from nanoharmon.tokenizer import Tokenizer
from nanoharmon.vae import vae_loss
from nanoharmon.watch import final_look, look


class Run:
    """What all stages share: where to write, which process this is, the model and the data."""

    def __init__(self, config, args, rank, world, device, stop):
        self.config, self.args, self.rank, self.world, self.device, self.stop = config, args, rank, world, device, stop
        self.out, self.main, self.start = Path(args.out), rank == 0, time.time()
        self.shards = config.optim.shards or world
        self.bar = tqdm(disable=True)
        self.amp = None                      # float32 on CPU: bf16 autocast measured a quarter to a half slower there
        if device.type == "cuda":            # on CUDA bf16 where it exists, else fp16 with a GradScaler
            self.amp = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
            if config.optim.fsdp and self.amp is torch.float16:
                raise ValueError("--optim.fsdp true needs GPUs that compute in bfloat16; pass --optim.fsdp false")

    def wait(self):
        if self.world > 1:
            dist.barrier()

    def log(self, **values):
        finite = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}    # JSON has no NaN
        if self.main:
            with explained(self.out / "log.jsonl"), open(self.out / "log.jsonl", "a") as f:
                f.write(json.dumps({"time": round(time.time() - self.start, 1), **finite}) + "\n")


# --- one loss per stage -----------------------------------------------------------------------------------------------

def stage_losses(run, name, stage, model, data, rng, generator):
    """Yields (label, loss, weight) of one shard of a step's batch."""
    draw_n, read_n = stage.draw_batch // run.shards, stage.read_batch // run.shards
    host = torch.Generator().manual_seed(rng.getrandbits(48))
    if name == "vae":
        size = stage.size if rng.random() < 0.5 else run.config.stages["1"].size     # both resolutions are used later
        loss, parts = vae_loss(model.vae, data.images(rng, draw_n * (stage.size // size) ** 2, size), kl_weight=1e-4)
        yield "vae", loss, 1.0
        yield from ((k, v, 0.0) for k, v in parts.items())
    elif name == "llm":
        for ids, labels, is_real, index in data.texts(rng, draw_n):
            yield "text", model.understanding_loss(None, ids, labels, is_real, index), len(ids) / draw_n
    elif name == "mar":
        tokens, labels = data.class_pictures(rng, draw_n, stage.size)
        yield "draw", model.mar.class_loss(tokens, labels, generator, host), 1.0
    else:
        grid = model.vae.grid_of(stage.size, stage.size)
        for tokens, ids, is_real in data.drawings(rng, draw_n, stage.size, stage.caption_drop, stage.pairs):
            loss = model.generation_loss(tokens, ids, is_real, grid, generator=generator, order_generator=host,
                                         hide_all=stage.hide_all)
            yield "draw", loss, len(ids) / draw_n
        for tokens, ids, labels, is_real, index in data.readings(rng, read_n, stage.size, stage.thoughts):
            loss = model.understanding_loss(tokens, ids, labels, is_real, index, grid)
            yield "read", loss, len(ids) / read_n * stage.read_weight


def train_stage(run, name, model, data, pipe):
    stage, optim = run.config.stages[name], run.config.optim
    params = select(model, stage.train_parts.split(","))
    if optim.fsdp:
        params = shard_blocks(model, run.world, run.device.type)
    optimizers = make_optimizers(params, optim)
    ema, folder, first = EMA(params, optim.ema), run.out / f"stage_{name}", 0
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp is torch.float16)
    model.train()

    made_by = {"processes": run.world, **(versions() if run.main else {})}
    if run.args.resume and (path := latest_state(folder)):
        first = restore(run, path, params, ema, optimizers, scaler, made_by)
    totals, seconds, since, bad, skipped = {}, time.time(), first, 0, 0
    run.stop.polite = True                                       # from here on a signal waits for the end of a step
    bar = run.bar = tqdm(range(first, stage.steps), initial=first, total=stage.steps, desc=f"{name:>5}",
                         disable=not run.main, mininterval=1.0, dynamic_ncols=True)
    for step in bar:
        factor = lr_factor(step, stage.steps, stage.warmup, optim.schedule, optim.floor) * stage.lr
        set_lr(optimizers, factor)
        # --- forward and backward: all randomness comes from (seed, stage, step, shard), whoever computes the shard
        for shard in range(run.rank, run.shards, run.world):
            rng = random.Random(f"{run.config.data.seed}/{name}/{step}/{shard}")
            generator = torch.Generator(run.device).manual_seed(rng.getrandbits(48))
            torch.manual_seed(rng.getrandbits(48))
            with torch.autocast(run.device.type, run.amp or torch.bfloat16, enabled=run.amp is not None):
                for label, loss, weight in stage_losses(run, name, stage, model, data, rng, generator):
                    if weight and loss.requires_grad:    # with --train-parts mar.decoder, reading trains nothing
                        scaler.scale(loss * weight).backward()
                    totals.setdefault(label, []).append(loss.detach())
        # --- average over shards, clip, update
        average_gradients(params, run.world, run.shards)
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = clip_gradients(list(params.values()), optim.clip)
        if torch.isfinite(norm):
            bad = 0
            for optimizer in optimizers:
                scaler.step(optimizer)
            ema.update(params, step)
        else:
            bad += scaler.get_scale() <= 1                       # 1 without fp16; there, it first halves its scale
            skipped += 1
            run.log(stage=name, step=step + 1, skipped=skipped)
            if bad >= 5:
                raise ValueError(f"stage {name}: the loss was not finite for 5 steps in a row, up to step {step + 1}; "
                                 f"the last good state is {latest_state(folder) or 'that of the stage before'}; "
                                 f"go on with --resume --stage_{name}.lr {stage.lr / 2:g} (now {stage.lr:g})")
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()
        # --- log, save, show
        last = step + 1 == stage.steps
        if step % 50 == 49 or last:
            means = average_values(totals, run.world)
            rate = (step + 1 - since) * (stage.draw_batch + stage.read_batch) / (time.time() - seconds)
            run.log(stage=name, step=step + 1, lr=factor, grad=norm.item(), images_per_s=round(rate, 1),
                    **{k: round(v, 5) for k, v in means.items()})
            bar.set_postfix_str(" ".join(f"{k} {v:.4f}" for k, v in means.items()) + f" {rate:.0f} img/s")
            totals, seconds, since = {}, time.time(), step + 1
        saving = not last and (run.stop.code or run.args.save_every and (step + 1) % run.args.save_every == 0)
        if optim.fsdp:                                           # then all processes gather what one of them writes
            saving = agree(saving, run.device)
        if saving and (run.main or optim.fsdp):
            state = {"step": step + 1, "params": {n: p.detach() for n, p in params.items()}, "ema": ema.shadow,
                     "optimizers": [o.state_dict() for o in optimizers], "scaler": scaler.state_dict(),
                     "config": to_dict(run.config), "made_by": made_by}
            state = whole(state, run.main)
        if saving and run.main:
            try:
                save_state(folder, step + 1, state, keep=run.args.keep)
            except OSError as e:
                raise OSError(f"{e}; the last good state is {latest_state(folder) or 'that of the stage before'}, "
                              f"go on from there with --resume") from e
            if run.stop.code:
                sys.exit(run.stop.code)
        if (run.main or optim.fsdp) and (last or run.args.sample_every and (step + 1) % run.args.sample_every == 0):
            ema.swap(params)                                     # pictures and answers come from the averaged weights
            show(run, name, step + 1, pipe, data)
            ema.swap(params)
    ema.copy_to(params)
    model.eval()


def restore(run, path, params, ema, optimizers, scaler, made_by):
    """Put everything back as it was when the state was saved. Returns the number of steps done."""
    state = load_state(path)
    with torch.no_grad():
        for n, p in params.items():
            p.copy_(like(state["params"][n], p))
    ema.shadow = {n: like(t.to(run.device), params[n]) for n, t in state["ema"].items()}
    for optimizer, saved in zip(optimizers, state["optimizers"]):
        held = [p for group in optimizer.param_groups for p in group["params"]]
        for i, moments in saved["state"].items():
            saved["state"][i] = {k: like(v, held[i]) for k, v in moments.items()}
        ours = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        optimizer.load_state_dict(saved)
        for group, options in zip(optimizer.param_groups, ours):
            group.update(options)                                # from the command line, not from the state
    scaler.load_state_dict(state.get("scaler") or scaler.state_dict())
    changed = [f"{k} {v} -> {made_by[k]}" for k, v in state.get("made_by", {}).items() if made_by.get(k, v) != v]
    if run.main and changed:
        print(f"note: since {path} was written: {', '.join(changed)}; the batches are the same, but results may differ "
              f"in their last bits")
    return state["step"]


def show(run, name, step, pipe, data):
    """Samples, answers and the curves so far, into OUT."""
    pipe.model.eval()
    sheet, answers = look(pipe, data, name, run.config.stages[name].size or run.config.stages["1"].size)
    if sheet and run.main:
        (run.out / "samples").mkdir(exist_ok=True)
        sheet.save(run.out / "samples" / f"stage_{name}_{step:06d}.png")
    if run.main:
        curves, damaged = read_log(run.out / "log.jsonl")
        draw_curves(curves, run.out / "curves.png")
        run.log(stage=name, step=step, answers=answers, **{"damaged_lines": damaged} if damaged else {})
    pipe.model.train()


# --- the run ----------------------------------------------------------------------------------------------------------

def train(run):
    config = run.config
    torch.manual_seed(config.data.seed)
    done, begun = progress(run.out)
    for name in done if run.main else ():                        # left by a kill between a stage's end and its tidying
        shutil.rmtree(run.out / f"stage_{name}" / "state", ignore_errors=True)
    sources = open_sources(config.data, run.out / "cache")
    if done:
        with as_stage(run.out / f"stage_{done[-1]}") as folder:
            pipe = Pipeline.load(folder, run.device)
        model, tokenizer = pipe.model, pipe.tokenizer
        config.model = model.config
    else:
        config.model, model, tokenizer, report = begin(config, run.args, run.device)
        if run.main:
            print(*report, sep="\n", end="\n" * bool(report))
        texts = (training_texts(config.data) if s.name == "shapes" else s.corpus() for s in sources)
        tokenizer = tokenizer or Tokenizer.train(chain.from_iterable(texts), config.model.llm.vocab_size)
        pipe = Pipeline(model, tokenizer, {})
    model.mar.checkpointing = model.llm.model.checkpointing = config.optim.checkpointing
    data = run.data = make_batches(config, sources, tokenizer, run.device)
    if run.main:
        print(*data.notes(), sep="\n", end="\n" * bool(data.notes()))
    for name in STAGES:
        if name in done or name in given(run.args) or (run.args.stage and name not in run.args.stage):
            continue
        if name not in ("vae", "llm"):
            load_latents(run, pipe, data, config.stages[name].size)
        if config.stages[name].own_positions:
            model.mar.resize_positions(model.vae.grid_of(config.stages[name].size, config.stages[name].size)[0])
        train_stage(run, name, model, data, pipe)
        if name == "vae":
            measure_scale(run, model, data)
        pipe.meta["size"] = config.stages[name].size or config.stages["1"].size
        weights = whole(model.state_dict(), run.main)            # of all processes, where blocks are sharded
        if run.main:
            pipe.save(run.out / f"stage_{name}", weights=weights)
            shutil.rmtree(run.out / f"stage_{name}" / "state", ignore_errors=True)
        run.wait()
        run.stop.safe()
    return pipe


def finish(run, pipe):
    """The short evaluation, and the checkpoint to use: float16 weights, config and tokenizer in OUT/final."""
    results, stages = run.out / "results.json", run.out.glob("stage_*/config.json")
    if results.exists() and results.stat().st_mtime >= max(path.stat().st_mtime for path in stages):
        return print(f"all stages are finished and evaluated, see {results}; nothing to do")
    pipe.meta["draw"] = {"cfg": 3.0, "iters": 64, "steps": 50}
    own, texts, figures = [s for s in run.data.sources if s.name != "shapes"], [], {}
    shapes = len(own) < len(run.data.sources)
    if shapes:
        if run.config.stages["3"].thoughts:
            pipe.meta["draw"]["think"] = True
        pipe.meta["layout"], pipe.meta["board"] = run.config.data.layout, run.config.data.board
    pipe.save(run.out / "final", torch.float16)
    pipe = Pipeline.load(run.out / "final", run.device)          # what is measured is what ships
    if shapes:
        figures |= evaluate.quick(pipe, procs=run.world if run.device.type == "cpu" else 1, progress=tqdm)
    if own:
        sheet, more, texts = final_look(pipe, own, pipe.size)
        figures |= more
        if sheet:
            (run.out / "samples").mkdir(exist_ok=True)
            sheet.save(run.out / "samples" / "final.png")
    run.log(stage="evaluation", **figures)
    write_json(results, figures)
    for name, value in figures.items():
        print(f"{name:32s} {value:.3f}" if isinstance(value, float) else f"{name:32s} {value}")
    print(f"{(time.time() - run.start) / 60:.1f} minutes. Try: python sample.py --ckpt {run.out / 'final'} --prompt "
          + shlex.quote((["a red circle left of a blue square"] * shapes + texts + ["..."])[0]))


def worker(rank, world, store, stop, config, args):
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // world))))
    elif device.type == "cuda":
        torch.cuda.set_device(device := torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0))))
    if world > 1:                                                # torchrun says by itself where to meet
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=world,
                                store=store and dist.FileStore(store, world))
    this = Run(config, args, rank, world, device, stop)
    this.wait()                                                  # until rank 0 has prepared OUT
    try:
        pipe = train(this)
        if this.main and not args.stage:
            finish(this, pipe)
    except SystemExit:
        again = shlex.join([*(flag for flag in args.command if flag != "--resume"), "--resume"])
        this.bar.close()
        print(f"stopped and saved; go on with: python train.py {again}", file=sys.stderr)
        raise
    except RuntimeError as e:
        if not is_lost(e):
            raise
        raise ValueError(f"process {rank} of {world} has lost another one, which stopped or died; go on with --resume "
                         f"and the flags of the start") from e
    finally:
        this.bar.close()                                         # so that an error has a line of its own
    if world > 1:
        dist.destroy_process_group()


def parse_args(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = Parser(prog="train.py", description=__doc__, add_help=False)
    add = parser.add_argument
    add("-h", "--help", action="store_true", help="this text; with --preset NAME, the values of that preset")
    add("--preset", default="nano", help=f"one of {', '.join(PRESETS)} (default nano)")
    add("--out", metavar="DIR", help="everything is written there (default out/PRESET, or out/PRESET-quick)")
    add("--stage", action="append", choices=STAGES, help="run only this stage (several times for several)")
    add("--quick", action="store_true", help="a sixth of the time, for a first try: fewer steps, "
        "scenes of one object, small pictures (--quick --dry-run lists them)")
    add("--resume", action="store_true", help="go on where an interrupted run stopped")
    add("--data", action="append", default=[], metavar="DIR", help="train on your own pictures: a folder with "
        "metadata.jsonl, or with a.png beside a.txt; python -m nanoharmon.data DIR tells what is in it")
    add("--llava", action="append", default=[], metavar="FILE", help="train on conversations in LLaVA's format (.json)")
    add("--images", metavar="DIR", help="the folder of the pictures that --llava names")
    add("--mix", metavar="NAME:N,...", help="how often each source is picked: shapes:1,DIR:3; NAME is shapes, a folder "
        "or a .json file (sources of --data and --llava that are not named: 1)")
    add("--init", metavar="FILE|DIR", help="start from a whole Harmon: .pth (with --vae and --llm), or a directory")
    add("--vae", metavar="FILE", help="start from KL-16 (kl16.ckpt) and leave out the stage vae")
    add("--llm", metavar="DIR", help="start from a Qwen2.5 directory and leave out the stage llm")
    add("--mar", metavar="FILE", help="start from MAR (checkpoint-last.pth) and leave out the stage mar")
    add("--train-parts", metavar="NAMES", help="train only parameters whose names begin so, in stages 1 to 3: "
        "mar.decoder,proj_out")
    add("--procs", type=number(int, 1, 64), help="processes on CPU (default: one per core, at most 2)")
    add("--device", default="auto", help="auto, cpu, cuda (default auto)")
    add("--save-every", type=number(int, 0), default=500, help="steps between saved states; 0 = none (default 500)")
    add("--keep", type=number(int, 1), default=2, help="how many of the last saved states are kept (default 2)")
    add("--sample-every", type=number(int, 0), default=500, help="steps between sample pictures (default 500)")
    add("--dry-run", action="store_true", help="print the table of stages, and stop")
    args, rest = parser.parse_known_args(argv)
    config = Config.preset(args.preset)
    if args.help:
        print(f"{parser.format_help()}\nwhat else can be changed, with the values of preset {args.preset}:\n\n"
              f"{describe_flags(config)}")
        sys.exit(0)
    if args.quick:
        quicken(config)
    mix = parse_mix([f"{name}:1" for name in args.data + args.llava] + (args.mix or "").split(","))
    if mix or args.mix:
        config.data.mix = tuple(f"{name}:{weight:g}" for name, weight in mix)
    config.data.images = args.images or ""
    for flag in rest:
        if flag.startswith("--") and "." not in flag:
            raise ValueError(f"unknown flag {flag}{nearest(flag, parser._option_string_actions)}; see --help")
    override(config, rest)
    if args.train_parts:
        for name in "123":
            config.stages[name].train_parts = args.train_parts
    args.out, args.rest, args.command = args.out or f"out/{args.preset}" + "-quick" * args.quick, rest, argv
    args.given = {flag.removeprefix("--").partition("=")[0] for flag in rest}
    return args, config


def main(argv=None):
    args, config = parse_args(argv)
    args.device, out = str(pick_device(args.device)), Path(args.out)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 0))       # of torchrun
    asked = world or (args.procs if args.device == "cpu" else 1)
    usual = asked or min(2, os.cpu_count() or 1)
    config.optim.shards = count_shards(config, out, usual)
    world = asked or math.gcd(usual, config.optim.shards)        # a run of one process goes on with one
    check(config, world, args.stage or ())
    if args.dry_run:
        return plan(config, out)
    if rank == 0:
        prepare(config, args, out)
    if "RANK" not in os.environ and world > 1:
        launch(worker, world, config, args)
    else:
        with Stop(rank) as stop:
            worker(rank, world, None, stop, config, args)


if __name__ == "__main__":
    run(main)
