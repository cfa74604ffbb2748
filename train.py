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
import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from tqdm import tqdm

from nanoharmon.checkpoint import latest_state, load_state, save_state, write_json
from nanoharmon.config import STAGES, Config, describe_flags, override, to_dict
from nanoharmon.data import ShapesData, encode_share, new_cache, training_texts
from nanoharmon.harmon import Harmon
from nanoharmon.optim import EMA, lr_factor, make_optimizers, select, set_lr
from nanoharmon.pipeline import Pipeline
from nanoharmon.tokenizer import Tokenizer
from nanoharmon.vae import vae_loss


class Run:
    """What all stages share: where to write, which process this is, the model and the data."""

    def __init__(self, config, args, rank, world, device):
        self.config, self.args, self.rank, self.world, self.device = config, args, rank, world, device
        self.out = Path(args.out)
        self.main = rank == 0
        self.start = time.time()

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
        ids, labels, is_real, index = data.texts(rng, draw_n)
        yield "text", model.understanding_loss(None, ids, labels, is_real, index), 1.0
    elif name == "mar":
        tokens, labels = data.class_pictures(rng, draw_n, stage.size)
        yield "draw", model.mar.class_loss(tokens, labels, generator, host), 1.0
    else:
        grid = model.vae.grid_of(stage.size, stage.size)
        if draw_n:
            tokens, ids, is_real = data.drawings(rng, draw_n, stage.size, stage.caption_drop)
            yield "draw", model.generation_loss(tokens, ids, is_real, grid, generator=generator,
                                                order_generator=host), 1.0
        if read_n:
            tokens, ids, labels, is_real, index = data.readings(rng, read_n, stage.size)
            yield "read", model.understanding_loss(tokens, ids, labels, is_real, index, grid), stage.read_weight


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
    totals, seconds, bad = {}, time.time(), 0
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
            rate = len(next(iter(totals.values()))) * (stage.draw_batch + stage.read_batch) / (time.time() - seconds)
            run.log(stage=name, step=step + 1, lr=factor, grad=norm.item(), images_per_s=round(rate, 1),
                    **{k: round(v, 5) for k, v in means.items()})
            bar.set_postfix_str(" ".join(f"{k} {v:.4f}" for k, v in means.items()) + f" {rate:.0f} img/s")
            totals, seconds = {}, time.time()
        if run.args.save_every and (step + 1) % run.args.save_every == 0 and not last and run.main:
            save_state(folder, step + 1, {"step": step + 1, "params": {n: p.detach() for n, p in params.items()},
                                          "ema": ema.shadow, "optimizers": [o.state_dict() for o in optimizers]})
    ema.copy_to(params)
    model.eval()


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


def worker(rank, world, config, args, store):
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world) if world > 1 else (os.cpu_count() or 1))
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", init_method=store, rank=rank,
                                world_size=world)
    run = Run(config, args, rank, world, device)
    run.amp = None
    train(run)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--out", default="out/nano")
    parser.add_argument("--stage", action="append")
    parser.add_argument("--procs", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--resume", action="store_true")
    args, rest = parser.parse_known_args()
    config = Config.preset(args.preset)
    override(config, rest)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    store = f"file://{Path(args.out).resolve()}/.store-{os.getpid()}"
    if args.procs > 1:
        torch.multiprocessing.spawn(worker, (args.procs, config, args, store), nprocs=args.procs)
    else:
        worker(0, 1, config, args, store)


if __name__ == "__main__":
    main()
