"""Train Harmon from nothing: vae -> llm -> mar -> stage 1 -> stage 2 -> stage 3 -> a short evaluation.

    python train.py                             the default: preset nano, the shapes world, on a laptop's CPU
    python train.py --quick                     the same in a sixth of the time, for a first try
    python train.py --stage 2 --out out/nano    one stage
    torchrun --nproc_per_node=4 train.py ...    several GPUs

The first three stages stand in for what Harmon downloads (KL-16, Qwen2.5, MAR); stages 1-3 are those of the paper
(sec. 3.3): 1 aligns the encoder with the frozen LLM, 2 trains both tasks jointly, 3 doubles the resolution.
A stage that is done is skipped; an interrupted one continues with --resume, bit for bit.

On CPU two single-threaded processes work side by side (--procs): on 2 cores that is a quarter faster than two
threads, and does not stall when something else runs (LOG.md). Gradients are averaged over processes.
"""
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from PIL import Image
from tqdm import tqdm

from nanoharmon import evaluate, shapes
from nanoharmon.checkpoint import latest_state, load_state, save_state, write_json
from nanoharmon.cli import Parser, number, pick_device, run
from nanoharmon.config import PRESETS, STAGES, Config, describe_flags, nearest, override, to_dict
from nanoharmon.data import ShapesData, encode_share, new_cache, training_texts
from nanoharmon.harmon import Harmon
from nanoharmon.optim import EMA, lr_factor, make_optimizers, select, set_lr
from nanoharmon.pipeline import Pipeline, to_pictures
from nanoharmon.plot import draw_curves, read_log
from nanoharmon.tokenizer import Tokenizer
from nanoharmon.vae import vae_loss

# what is drawn and asked while it trains, always with the same seeds
WATCH_PROMPTS = ["a red circle", "a blue square", "a green ring", "a white cross", "two yellow circles",
                 "three orange triangles", "a red circle and a blue square", "a green ring left of a red cross"]
WATCH_QUESTIONS = ["describe the image.", "how many objects are there?", "is there a red object?",
                   "what shape is the {color} object?"]


class Run:
    """What all stages share: where to write, which process this is, the model and the data."""

    def __init__(self, config, args, rank, world, device):
        self.config, self.args, self.rank, self.world, self.device = config, args, rank, world, device
        self.out, self.main, self.start = Path(args.out), rank == 0, time.time()
        self.amp = None                      # float32 on CPU: bf16 autocast measured a quarter to a half slower there
        if device.type == "cuda":            # on CUDA bf16 where it exists, else fp16 with a GradScaler
            self.amp = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16

    def wait(self):
        if self.world > 1:
            dist.barrier()

    def log(self, **values):
        if self.main:
            with open(self.out / "log.jsonl", "a") as f:
                f.write(json.dumps({"time": round(time.time() - self.start, 1), **values}) + "\n")


# --- one loss per stage ------------------------------------------------------------------------------------------------

def stage_losses(run, name, stage, model, data, rng, generator):
    """Yields (label, loss, weight) of one step: this process's share of the batch."""
    draw_n, read_n = stage.draw_batch // run.world, stage.read_batch // run.world
    host = torch.Generator().manual_seed(rng.getrandbits(48))
    if name == "vae":
        size = stage.size if rng.random() < 0.5 else run.config.stages["1"].size     # both resolutions are used later
        loss, parts = vae_loss(model.vae, data.images(rng, draw_n * (stage.size // size) ** 2, size), kl_weight=1e-4)
        yield "vae", loss, 1.0
        yield from ((k, v, 0.0) for k, v in parts.items())
    elif name == "llm":
        for ids, labels, is_real, index in data.texts(rng, draw_n):
            yield "text", model.understanding_loss(None, ids, labels, is_real, index), 0.5
    elif name == "mar":
        tokens, labels = data.class_pictures(rng, draw_n, stage.size)
        yield "draw", model.mar.class_loss(tokens, labels, generator, host), 1.0
    else:
        grid = model.vae.grid_of(stage.size, stage.size)
        for tokens, ids, is_real in data.drawings(rng, draw_n, stage.size, stage.caption_drop):
            yield "draw", model.generation_loss(tokens, ids, is_real, grid, generator=generator,
                                                order_generator=host), 0.5
        for tokens, ids, labels, is_real, index in data.readings(rng, read_n, stage.size):
            yield "read", model.understanding_loss(tokens, ids, labels, is_real, index, grid), 0.5 * stage.read_weight


def train_stage(run, name, model, data, pipe):
    stage, optim = run.config.stages[name], run.config.optim
    params = select(model, stage.train_parts.split(","))
    optimizers = make_optimizers(params, optim)
    ema = EMA(params, optim.ema)
    folder, first = run.out / f"stage_{name}", 0
    model.train()

    state_path = latest_state(folder) if run.args.resume else None
    if state_path:
        state = load_state(state_path)
        first = state["step"]
        with torch.no_grad():
            for n, p in params.items():
                p.copy_(state["params"][n])
        ema.shadow = {n: t.to(run.device) for n, t in state["ema"].items()}
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)

    scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp is torch.float16)
    totals, seconds, since, bad = {}, time.time(), first, 0
    bar = tqdm(range(first, stage.steps), initial=first, total=stage.steps, desc=f"{name:>5}", disable=not run.main,
               mininterval=1.0, dynamic_ncols=True)
    for step in bar:
        factor = lr_factor(step, stage.steps, stage.warmup, optim.schedule, optim.floor) * stage.lr
        set_lr(optimizers, factor)
        # --- forward and backward: all randomness comes from (seed, stage, step, process)
        rng = random.Random(f"{run.config.data.seed}/{name}/{step}/{run.rank}")
        generator = torch.Generator(run.device).manual_seed(rng.getrandbits(48))
        torch.manual_seed(rng.getrandbits(48))
        with torch.autocast(run.device.type, run.amp or torch.bfloat16, enabled=run.amp is not None):
            for label, loss, weight in stage_losses(run, name, stage, model, data, rng, generator):
                if weight:
                    scaler.scale(loss * weight).backward()
                totals.setdefault(label, []).append(loss.detach())
        # --- average over processes, clip, update
        average_gradients(params, run.world)
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(params.values(), optim.clip)
        if torch.isfinite(norm):
            bad = 0
            for optimizer in optimizers:
                scaler.step(optimizer)
            ema.update(params, step)
        else:
            bad += 1
            run.log(stage=name, step=step, skipped="loss or gradient is not finite")
            if bad >= 5:
                raise ValueError(f"stage {name}: the loss was not finite for 5 steps in a row at step {step}; "
                                 f"lower --stage_{name}.lr (now {stage.lr}) or --optim.lr")
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()
        # --- log, save, show
        last = step + 1 == stage.steps
        if step % 50 == 49 or last:
            means = {k: torch.stack(v).mean().item() for k, v in totals.items()}
            rate = (step + 1 - since) * (stage.draw_batch + stage.read_batch) / (time.time() - seconds)
            run.log(stage=name, step=step + 1, lr=factor, grad=norm.item(), images_per_s=round(rate, 1),
                    **{k: round(v, 5) for k, v in means.items()})
            bar.set_postfix_str(" ".join(f"{k} {v:.4f}" for k, v in means.items()) + f" {rate:.0f} img/s")
            totals, seconds, since = {}, time.time(), step + 1
        if run.args.save_every and (step + 1) % run.args.save_every == 0 and not last and run.main:
            save_state(folder, step + 1, {"step": step + 1, "params": {n: p.detach() for n, p in params.items()},
                                          "ema": ema.shadow, "optimizers": [o.state_dict() for o in optimizers]})
        if run.main and (last or run.args.sample_every and (step + 1) % run.args.sample_every == 0):
            ema.swap(params)                                     # pictures and answers come from the averaged weights
            look(run, name, step + 1, pipe, data)
            ema.swap(params)
    ema.copy_to(params)
    model.eval()


@torch.no_grad()
def look(run, name, step, pipe, data):
    """Pictures of fixed prompts and seeds, four answers, and the curves so far."""
    size, model = run.config.stages[name].size or run.config.stages["1"].size, pipe.model.eval()
    rng, answers = random.Random(0), []
    if name == "vae":
        images = data.images(rng, 8, size)
        pictures = to_pictures(torch.cat([images, model.vae.decode(model.vae.encode(images), model.vae.grid_of(size, size))]))
    elif name == "llm":
        scene = data.scene(-1)
        for question in WATCH_QUESTIONS:
            text = shapes.describe(scene, rng) + "\n" + question.format(color=scene.objects[0].color)
            answers.append([text, "".join(pipe.reply([{"role": "user", "content": text}]))])
        pictures = []
    elif name == "mar":
        labels = torch.tensor(rng.sample(shapes.SEEN_CLASSES, 16), device=run.device)
        grid = model.vae.grid_of(size, size)
        tokens = model.mar.class_sample(labels, grid[0] * grid[1], cfg=2.0, cfg_schedule="constant", grid=grid, steps=25,
                                        generator=torch.Generator(run.device).manual_seed(0))
        pictures = to_pictures(model.vae.decode(tokens, grid))
    else:
        pictures = pipe.draw(WATCH_PROMPTS * 2, size=size, steps=25, seed=0)
        scene = data.scene(-1)
        image = Image.fromarray(shapes.render(scene, size))
        for question in WATCH_QUESTIONS:
            question = question.format(color=scene.objects[0].color)
            answers.append([question, pipe.answer(image, question, size=size)])
    if pictures:
        grid = Image.new("RGB", (8 * (size + 2), -(-len(pictures) // 8) * (size + 2)), "white")
        for i, picture in enumerate(pictures):
            grid.paste(picture, (i % 8 * (size + 2), i // 8 * (size + 2)))
        (run.out / "samples").mkdir(exist_ok=True)
        grid.save(run.out / "samples" / f"stage_{name}_{step:06d}.png")
    run.log(stage=name, step=step, answers=answers)
    draw_curves(read_log(run.out / "log.jsonl"), run.out / "curves.png")
    model.train()


def average_gradients(params, world):
    if world == 1:
        return
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params.values()]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for p, piece in zip(params.values(), flat.split([g.numel() for g in grads])):
        if p.grad is not None:
            p.grad.copy_(piece.view_as(p))


# --- the run -----------------------------------------------------------------------------------------------------------

def train(run):
    config = run.config
    torch.manual_seed(config.data.seed)
    model = Harmon(config.model).to(run.device)
    done = [s for s in STAGES if (run.out / f"stage_{s}" / "config.json").exists()]
    if done:
        pipe = Pipeline.load(run.out / f"stage_{done[-1]}", run.device)
        model, tokenizer = pipe.model, pipe.tokenizer
        config.model = model.config
    else:
        tokenizer = Tokenizer.train(training_texts(config.data), config.model.llm.vocab_size)
        pipe = Pipeline(model, tokenizer, {})
    data = ShapesData(config.data, tokenizer, config.model.mar.buffer_size, run.device)
    for name in STAGES:
        if name in done or (run.args.stage and name not in run.args.stage):
            continue
        if name not in ("vae", "llm"):
            load_latents(run, pipe, data, config.stages[name].size)
        if config.stages[name].own_positions:
            model.mar.resize_positions(model.vae.grid_of(config.stages[name].size, config.stages[name].size)[0])
        train_stage(run, name, model, data, pipe)
        if name == "vae":
            measure_scale(run, model, data)
        pipe.meta["size"] = config.stages[name].size or config.stages["1"].size
        if run.main:
            pipe.save(run.out / f"stage_{name}")
        run.wait()
    return pipe


def measure_scale(run, model, data):
    """vae.scale = 1 / std of the latents: the diffusion schedule expects unit variance."""
    rng = random.Random(f"{run.config.data.seed}/scale")
    size = run.config.stages["vae"].size
    with torch.no_grad():
        latents = torch.cat([model.vae.moments(data.images(rng, 64, size))[0] for _ in range(8)])
    run.config.model.vae.scale = model.vae.config.scale = round(1 / latents.std().item(), 4)


def load_latents(run, pipe, data, size):
    path = run.out / "cache" / f"latents_{size}.npy"
    h, w = pipe.model.vae.grid_of(size, size)
    if not path.exists():
        part = path.with_suffix(".part.npy")
        if run.main:
            new_cache(part, run.config.data.scenes, h * w, run.config.model.vae.z_channels)
        run.wait()
        show = (lambda x: tqdm(x, desc=f"encode {size} px")) if run.main else (lambda x: x)
        encode_share(pipe.model.vae, data, size, part, run.rank, run.world, progress=show)
        run.wait()
        if run.main:
            part.rename(path)
        run.wait()
    data.latents[size] = np.load(path, mmap_mode="r")


def finish(run, pipe):
    """The short evaluation, and the checkpoint to use: float16 weights, config and tokenizer in OUT/final."""
    pipe.meta["draw"] = {"cfg": 3.0, "iters": 64, "steps": 50}
    pipe.meta["layout"], pipe.meta["board"] = run.config.data.layout, run.config.data.board
    pipe.save(run.out / "final", torch.float16)
    pipe = Pipeline.load(run.out / "final", run.device)          # what is measured is what ships
    figures = evaluate.quick(pipe, progress=tqdm)
    run.log(stage="evaluation", **figures)
    write_json(figures, run.out / "results.json")
    for name, value in figures.items():
        print(f"{name:32s} {value:.3f}" if isinstance(value, float) else f"{name:32s} {value}")
    print(f"{(time.time() - run.start) / 60:.1f} minutes. Try: python sample.py --ckpt {run.out / 'final'} --prompt "
          f"\"a red circle left of a blue square\"")


def worker(rank, world, config, args, store):
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // world))))
    elif device.type == "cuda":
        torch.cuda.set_device(device := torch.device("cuda", rank))
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", init_method=store, rank=rank,
                                world_size=world)
    this = Run(config, args, rank, world, device)
    pipe = train(this)
    if this.main and not args.stage:
        finish(this, pipe)
    if world > 1:
        dist.destroy_process_group()


def parse_args(argv=None):
    parser = Parser(prog="train.py", description=__doc__, epilog="--preset nano --help lists what --section.field "
                    "VALUE can change, for instance --mar.encoder_depth 6 or --stage_2.steps 4000")
    add = parser.add_argument
    add("--preset", default="nano", help=f"one of {', '.join(PRESETS)} (default nano)")
    add("--out", default="out/nano", metavar="DIR", help="everything is written there (default out/nano)")
    add("--stage", action="append", choices=STAGES, help="run only this stage (several times for several)")
    add("--quick", action="store_true", help="a sixth of the steps of every stage")
    add("--resume", action="store_true", help="go on where an interrupted run stopped")
    add("--procs", type=number(int, 1, 64), help="processes on CPU (default: one per core, at most 2)")
    add("--device", default="auto", help="auto, cpu, cuda (default auto)")
    add("--save-every", type=number(int, 0), default=500, help="steps between saved states; 0 = none (default 500)")
    add("--sample-every", type=number(int, 0), default=500, help="steps between sample pictures (default 500)")
    add("--dry-run", action="store_true", help="print the plan: stages, sizes, parameters, and stop")
    args, rest = parser.parse_known_args(argv)
    config = Config.preset(args.preset)
    for flag in rest:
        if flag.startswith("-") and "." not in flag:
            raise ValueError(f"unknown flag {flag}{nearest(flag, parser._option_string_actions)}; --help lists them")
    override(config, rest)
    if args.quick:
        for stage in config.stages.values():
            stage.steps = max(1, stage.steps // 6)
        config.data.scenes //= 3
    return args, config


def main(argv=None):
    args, config = parse_args(argv)
    out = Path(args.out)
    device = pick_device(args.device)
    if args.dry_run:
        plan(config)
        return
    begun = [s for s in STAGES if (out / f"stage_{s}").exists()]
    if begun and not args.resume:
        print(f"{out} has stages {', '.join(begun)}: they are kept; finished ones are skipped")
    out.mkdir(parents=True, exist_ok=True)
    write_json(to_dict(config), out / "train_config.json")
    args.device = str(device)
    world, store = args.procs or min(2, os.cpu_count() or 1), f"file://{out.resolve()}/.store-{os.getpid()}"
    if "RANK" in os.environ:                                     # started by torchrun
        worker(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), config, args, "env://")
    elif device.type == "cpu" and world > 1:
        torch.multiprocessing.spawn(worker, (world, config, args, store), nprocs=world)
    else:
        worker(0, 1, config, args, store)


def plan(config):
    """What --dry-run prints."""
    with torch.device("meta"):
        model = Harmon(config.model)
    for part, child in model.named_children():
        print(f"{part:10s} {sum(p.numel() for p in child.parameters()) / 1e6:9.2f}M parameters")
    print(f"{'stage':6s} {'steps':>6s} {'px':>4s} {'draw':>5s} {'read':>5s} {'lr x':>5s}  trained")
    for name, stage in config.stages.items():
        trained = select(model, stage.train_parts.split(","))
        print(f"{name:6s} {stage.steps:6d} {stage.size:4d} {stage.draw_batch:5d} {stage.read_batch:5d} {stage.lr:5.2f}  "
              f"{stage.train_parts} ({sum(p.numel() for p in trained.values()) / 1e6:.2f}M)")


if __name__ == "__main__":
    run(main)
