"""How fast the model is, of how many FLOPs and bytes, at any size, with random weights: nothing is downloaded.

    python -m nanoharmon.bench                                  nano: all but iterations, about a minute
    python -m nanoharmon.bench --preset moderate --json a.json  the size of docs/HARDWARE.md, kept in a file
    python -m nanoharmon.bench --compare a.json b.json          two such files side by side
    python -m nanoharmon.bench --preset harmon-1.5b             full size: three of 64 iterations, vae, an answer
    python -m nanoharmon.bench --only draw --mar.diffloss_d 6   one workload, another size
    python -m nanoharmon.bench --dry-run                        the plan: parameters and memory, without weights

    draw            --pictures with guidance, --iters iterations of --steps diffusion steps
    vae             those pictures decoded
    generation      the generation loss, forward and backward, 7/8 of the tokens hidden, --batch pictures
    understanding   the understanding loss, forward and backward: 8 tokens, a picture, a reply of 32
    answer          a reply of --tokens tokens to 8 tokens and a picture, one by one
    stage 2 (or 3)  a training step of that stage, shapes world, in one process (train.py starts two on a CPU)
    iterations      the first, the middle and the last of 64 iterations that draw one picture with 100 steps each

Every workload runs once to warm up, then --repeat times. Small figures differ from run to run: compare medians, and
look at the spread and at "others", the CPU cores that other programs used. What is counted: evals/measure.py.
"""
import random
import statistics
import sys
from dataclasses import asdict
from functools import partial

import numpy as np
import torch

from .. import arguments
from ..cli import DTYPES, Parser, markdown_table, number
from ..compiling import compile_blocks
from ..config import PRESETS, HarmonConfig, LLMConfig, MARConfig, VAEConfig
from ..files import check_output, read_json, write_json
from ..flags import check_model, override
from ..mar import random_orders, unmasking_schedule
from ..pipeline import SMALL, pick_device, pick_dtype
from ..tokenizer import IMAGE, Tokenizer
from ..training.batches import Batches
from ..training.losses import stage_losses
from ..training.optim import EMA, make_optimizers, select, set_lr
from ..training.recipe import Config
from ..training.sharding import clip_gradients
from ..weights.checkpoint import meta_model
from ..world.source import ShapesData, training_texts
from .measure import Parts, measure

PROMPT, REPLY = 16, 32                               # tokens of a prompt, and of a supervised reply
ITERS, STEPS = 64, 100                               # of "iterations": how the official scripts draw


def moderate():
    """Between nano and micro: the size at which the official code was measured (docs/HARDWARE.md)."""
    return HarmonConfig(
        VAEConfig(ch=64, ch_mult=(1, 2), num_res_blocks=1, patch_size=8, attn_resolutions=(), scale=1.0),
        MARConfig(encoder_embed_dim=256, encoder_depth=6, encoder_num_heads=8, decoder_embed_dim=256, decoder_depth=6,
                  decoder_num_heads=8, buffer_size=16, class_num=140, diffloss_d=3, diffloss_w=256),
        LLMConfig(vocab_size=512, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8,
                  num_key_value_heads=2))


def recipe(preset, flags=()):
    """The Config of a preset, changed by flags. Its model is that of the last stage."""
    config = Config.preset("nano" if preset == "moderate" else preset)
    if preset == "moderate":
        config.model = moderate()
    elif config.stages["3"].own_positions:
        config.model.mar.grid = config.stages["3"].size // config.model.vae.stride
    override(config, flags)
    check_model(config.model)
    return config


# --- the model --------------------------------------------------------------------------------------------------------

def random_model(config, dtype, device):
    """A model with random weights in `dtype`, each filled where it is to stay: there is never a second copy, and never
    one in float32."""
    model = meta_model(config).to(dtype).to_empty(device=device)
    model.llm.tie()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.normal_(std=min(0.02, p[0].numel() ** -0.5), generator=generator)
            else:
                p.fill_(float("norm" in name and name.endswith("weight")))
    return model.eval().requires_grad_(False)


def print_sizes(preset, config, dtype, device):
    model = meta_model(config)
    c, total = model.config, sum(p.numel() for p in model.parameters())
    S, U, size = c.mar.grid ** 2, c.mar.buffer_size, dtype.itemsize
    print(f"{preset}, {str(dtype).removeprefix('torch.')} on {device}, {torch.get_num_threads()} threads")
    for part, module in model.named_children():
        n = sum(p.numel() for p in module.parameters())
        print(f"  {part:9s} {n / 1e6:9.2f}M parameters {n * size / 2**30:7.2f} GiB")
    print(f"  {'all':9s} {total / 1e6:9.2f}M parameters {total * size / 2**30:7.2f} GiB")
    cache = 2 * c.llm.num_hidden_layers * c.llm.num_key_value_heads * (c.llm.hidden_size // c.llm.num_attention_heads)
    L = PROMPT + S + U
    print(f"  picture of {c.mar.grid * c.vae.stride} px: {S} tokens + {U} buffers; the LLM reads 2 x {L} (guidance), "
          f"its keys and values take {2 * L * cache * size / 2**20:.1f} MiB")


# --- workloads: each makes its inputs, and returns what is to be run --------------------------------------------------

class Inputs:
    """Random inputs for a model."""

    def __init__(self, model, recipe, args, device):
        self.model, self.recipe, self.args, self.device, self.config = model, recipe, args, device, model.config
        self.S, self.U = self.config.mar.grid ** 2, self.config.mar.buffer_size
        self.generator, self.host = torch.Generator(device).manual_seed(0), torch.Generator().manual_seed(0)

    def latents(self, n):
        C, dtype = self.config.mar.token_dim, self.model.mar.fake_latent.dtype
        return torch.randn(n, self.S, C, generator=self.generator, device=self.device).to(dtype)

    def ids(self, n, length):
        """Ids and is_real (n, length)."""
        ids = torch.randint(0, self.config.llm.vocab_size, (n, length), generator=self.host).to(self.device)
        return ids, torch.ones(n, length, dtype=torch.bool, device=self.device)

    def conversation(self, n, reply):
        """8 tokens, a picture, and `reply` tokens."""
        ids, _ = self.ids(n, 8 + reply)
        places = torch.full((n, self.S + self.U), IMAGE, device=self.device)
        return torch.cat([ids[:, :8], places, ids[:, 8:]], dim=1)


def draw(inputs, parts):
    args, n = inputs.args, inputs.args.pictures
    ids, is_real = inputs.ids(2 * n, PROMPT)
    return partial(inputs.model.draw, ids, is_real, iters=min(args.iters, inputs.S), steps=args.steps,
                   orders=random_orders(n, inputs.S, "cpu", inputs.host).to(inputs.device), generator=inputs.generator)


def vae(inputs, parts):
    return torch.no_grad()(partial(inputs.model.vae.decode, inputs.latents(inputs.args.pictures),
                                   (inputs.config.mar.grid,) * 2))


def generation(inputs, parts):
    n, S = inputs.args.batch, inputs.S
    latents, (ids, is_real), order = inputs.latents(n), inputs.ids(n, PROMPT), random_orders(n, S, "cpu", inputs.host)
    order, hidden = order.to(inputs.device), max(1, round(S * 7 / 8))
    split = order[:, hidden:].sort(dim=1).values, order[:, :hidden].sort(dim=1).values
    return partial(backward, inputs, parts, lambda: inputs.model.generation_loss(
        latents, ids, is_real, split=split, generator=inputs.generator))


def understanding(inputs, parts):
    n = inputs.args.batch
    latents, ids = inputs.latents(n), inputs.conversation(n, REPLY)
    labels = torch.full_like(ids, -100)
    labels[:, -REPLY:] = ids[:, -REPLY:]
    index = (labels[:, 1:].flatten() >= 0).nonzero().squeeze(1)
    return partial(backward, inputs, parts, lambda: inputs.model.understanding_loss(latents, ids, labels, index))


def backward(inputs, parts, loss):
    inputs.model.train().requires_grad_(True)
    inputs.model.zero_grad()
    value = loss()
    with parts("backward"):
        value.backward()
    inputs.model.eval().requires_grad_(False)


def answer(inputs, parts):
    ids, latents = inputs.conversation(1, 8), inputs.latents(1)

    @torch.no_grad()
    def work():
        embeds = inputs.model.embed_with_images(latents, ids)
        return list(inputs.model.llm.generate(embeds, {-1}, max_new_tokens=inputs.args.tokens))
    return work


def training_step(name, inputs, parts):
    """As train.py does it, in one process; latents are random, texts are those of the shapes world."""
    config = inputs.recipe
    config.optim.shards, config.data.scenes = 1, 1000
    stage, source, rng = config.stages[name], ShapesData(config.data), np.random.default_rng(0)
    h, w = inputs.model.vae.grid_of(stage.size, stage.size)
    source.latents[stage.size] = rng.normal(size=(1000, h * w, config.model.mar.token_dim)).astype(np.float16)
    tokenizer = Tokenizer.train(training_texts(config.data, 200), config.model.llm.vocab_size)
    batches = Batches([source], [1], tokenizer, inputs.U, 10**9, inputs.device)
    params = select(inputs.model.train(), stage.train_parts)
    optimizers, ema = make_optimizers(params, config.optim), EMA(params, config.optim.ema)
    set_lr(optimizers, 1e-3)                         # hardly move
    for method in "generation", "understanding":
        parts.watch_items(batches, method, "data")

    def work():
        for loss, _ in stage_losses(config, name, inputs.model, batches, random.Random(0), inputs.generator):
            with parts("backward"):
                loss.backward()
        with parts("optimizer"):
            clip_gradients(list(params.values()), config.optim.clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        with parts("averaging"):
            ema.update(params, 1000)
    return work


def iterations(inputs, parts):
    """The middle iteration has the most typical cost, the last one draws the most: bench prints an estimate."""
    model, S, (ids, is_real) = inputs.model, inputs.S, inputs.ids(2, PROMPT)
    latents, order = inputs.latents(1), random_orders(1, S, "cpu", inputs.host).to(inputs.device)
    counts = unmasking_schedule(S, min(ITERS, S))

    def work():
        for name, i in ("first", 0), ("middle", (len(counts) - 1) // 2), ("last", len(counts) - 2):
            now, then = counts[i], counts[i + 1]                     # hidden before and after iteration i
            with parts(name):    # `known` places are visible, those in `orders` are drawn; the others stay hidden
                model.draw(ids, is_real, iters=1, orders=order[:, then:now], latents=latents, known=order[:, now:],
                           steps=STEPS, generator=inputs.generator)
    return work


WORKLOADS = {"draw": draw, "vae": vae, "generation": generation, "understanding": understanding, "answer": answer,
             "stage 2": partial(training_step, "2"), "stage 3": partial(training_step, "3"), "iterations": iterations}
LARGE, FOR_LARGE = 5 * 10**8, ("iterations", "vae", "answer")        # parameters, and what such a model does by default


# --- the command ------------------------------------------------------------------------------------------------------

def run(names, args, dtype, device):
    """{workload: what `measure` found}"""
    found, parts, changed = {}, Parts(device), True
    for name in names:
        if changed or name.startswith("stage"):              # a stage trains the model, and its size may differ
            config = recipe(args.preset, args.flags)
            if name == "stage 2" and config.stages["3"].own_positions and "--mar.grid" not in " ".join(args.flags):
                config.model.mar.grid = config.stages["2"].size // config.model.vae.stride
            model = work = None                              # never two at once
            model = random_model(config.model, dtype, device)
            if args.compile:
                print(compile_blocks(model))
            parts.watch_model(model)
        work = WORKLOADS[name](Inputs(model, config, args, device), parts)
        found[name] = measure(work, parts, dtype, args.repeat, compiled=args.compile)
        changed = name.startswith("stage")
    return found


def rows_of(found):
    """A table's rows of {workload: figures}."""
    for name, f in found.items():
        middle = statistics.median(f["seconds"])
        yield (name, f"{middle:.3f}", f"{min(f['seconds']):.3f} to {max(f['seconds']):.3f}",
               f"{statistics.median(f['cpu_seconds']):.3f}", f"{f['flops'] / 1e9:.1f}",
               f"{100 * f['flops'] / middle / f['peak']:.0f} %",
               "?" if f["memory"] is None else f"{f['memory'] / 2**20:.0f}",
               "?" if f["others"] is None else f"{f['others']:.1f}")


def print_found(found, iters):
    peaks = [f["peak"] for f in found.values()]
    print(markdown_table(["workload", "s", "least to most", "CPU s", "GFLOP", "of peak", "MiB above idle", "others"],
                         rows_of(found)))
    print(f"peak: {min(peaks) / 1e9:.0f} to {max(peaks) / 1e9:.0f} GFLOP/s, of one large matrix product")
    for name, f in found.items():
        middle, parts = statistics.median(f["seconds"]), f["parts"]
        shares = sorted(parts.items(), key=lambda item: -item[1]) + [("the rest", middle - sum(parts.values()))]
        if name == "iterations":                     # the other parts are in these three
            first, mid, last = (parts[part] for part in ("first", "middle", "last"))
            shares = [(part, s) for part, s in shares if part != "the rest"]
            print(f"a picture of {iters} iterations: about {iters * (first + 4 * mid + last) / 6:.0f} s")  # Simpson
        print(f"{name}: " + ", ".join(f"{part} {s:.3f} s ({100 * s / middle:.0f} %)" for part, s in shares))
    busy = max((f["others"] or 0.0) for f in found.values())
    if busy > 0.2:
        print(f"warning: other programs used up to {busy:.1f} cores meanwhile: the seconds are too many, CPU seconds "
              f"less so", file=sys.stderr)


def compare(paths):
    """Two files of --json side by side: medians, and the second's share of the first."""
    for path in paths:
        if "workloads" not in read_json(path):
            raise ValueError(f"{path} has no workloads, expected a file that --json wrote; pass another one")
    one, two = (read_json(path)["workloads"] for path in paths)
    rows = []
    for name in [name for name in one if name in two]:
        a, b = ([statistics.median(f["seconds"]), statistics.median(f["cpu_seconds"]), f["memory"]]
                for f in (one[name], two[name]))
        rows.append([name, f"{a[0]:.3f}", f"{b[0]:.3f}", *(f"{y / x:.2f}" if x and y else "?" for x, y in zip(a, b))])
    print(markdown_table(["workload", "first, s", "second, s", "s ratio", "CPU s ratio", "memory ratio"], rows))


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.bench", description=__doc__)
    add = parser.add_argument
    add("--preset", choices=[*PRESETS, "moderate"], default="nano", help="any field of its model is a flag, too: "
        "--mar.grid 8 (default nano)")
    add("--only", action="append", choices=WORKLOADS, help=f"some of the workloads (default: {', '.join(FOR_LARGE)} "
        f"above 500 M parameters, all but iterations below)")
    add("--repeat", type=number(int, 1, 1000), help="runs by the clock (default 5; 1 above 500 M parameters)")
    add("--json", metavar="FILE", help="also write all figures there")
    add("--compare", nargs=2, metavar="FILE", help="instead: print two such files side by side")
    add("--device", default="auto", help="auto, cpu, cuda (default auto)")
    add("--dtype", choices=(*DTYPES, "auto"), help="of the weights (default float32; auto above 500 M parameters)")
    add("--pictures", type=number(int, 1, 256), default=4, help="to draw at once (default 4)")
    add("--batch", type=number(int, 1, 4096), default=16, help="pictures of a loss (default 16)")
    add("--iters", type=number(int, 1, 10**6), default=16, help="iterations of draw (default 16)")
    add("--steps", type=number(int, 2, 1000), default=20, help="diffusion steps of draw (default 20)")
    add("--tokens", type=number(int, 1, 4096), default=32, help="length of the answer (default 32)")
    add("--compile", action="store_true", help="torch.compile the model's blocks first, as train.py --compile does")
    add("--dry-run", action="store_true", help="print the plan and stop")
    args, args.flags = parser.parse_known_args(argv)
    if args.compare:
        return compare(args.compare)
    if args.json:
        check_output(args.json, "--json", (".json",))
    device, config = pick_device(args.device), recipe(args.preset, args.flags).model
    n = sum(p.numel() for p in meta_model(config).parameters())
    args.repeat = args.repeat or (1 if n > LARGE else 5)
    dtype = pick_dtype(args.dtype or ("auto" if n > LARGE else "float32"), device)
    if arguments.threads_asked() is None and n < SMALL:              # as the scripts do
        torch.set_num_threads(1)
    print_sizes(args.preset, config, dtype, device)
    if args.dry_run:
        return
    names = args.only or [name for name in WORKLOADS if (name in FOR_LARGE if n > LARGE else name != "iterations")]
    found = run(names, args, dtype, device)
    print_found(found, min(ITERS, config.mar.grid ** 2))
    if args.json:
        write_json(args.json, {"preset": args.preset, "dtype": str(dtype)[6:], "device": str(device),
                               "threads": torch.get_num_threads(), "torch": torch.__version__,
                               "model": asdict(config), "workloads": found})
