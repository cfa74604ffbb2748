"""How a model is trained: optimizer, data, and the stages of every preset; what train.py's flags change.

`--stage_2.lr 0.5`, `--optim.muon false`, `--data.seed 1`: every field is a flag (flags.py). The paper's stages are
1, 2 and 3 (Harmon sec. 3.3); `vae`, `llm` and `mar` stand in for the checkpoints that Harmon downloads; `reca` may come
after them (RecA, arXiv 2509.07295).

A new stage needs its name in STAGES and ALL_STAGES (and JOINT_STAGES, if it trains both tasks), a StageConfig in each
*_stages function below, what it learns from in table.py, and a loss in losses.py; words.py, train.py's `finish`,
compare/ and some of evals/ name 1, 2 or 3 themselves. Often none is needed: `--init OUT/stage_3 --optim.given 1
--stage 3 --out NEW` trains on.
"""
import os
from dataclasses import dataclass, replace

from ..config import BELOW_1, PRESETS, SHARE, HarmonConfig, arg, nearest
from ..flags import check_fields, check_model, sections


@dataclass
class OptimConfig:
    lr: float = arg(2e-3, "peak learning rate of AdamW (embeddings, norms, biases, input and output layers)")
    muon: bool = arg(True, "matrices of blocks and projectors, and convolutions, go to Muon; false = AdamW for all, as "
                           "in the official code")
    muon_lr: float = arg(0.01, "peak learning rate of Muon")
    given: float = arg(0.05, "factor on both rates for weights from outside (--init, --vae, --llm, --mar), which are "
                             "to keep what they know; 1 for the official sizes, whose rate is gentle")
    muon_momentum: float = arg(0.95, "momentum of Muon", **BELOW_1)
    beta1: float = arg(0.9, "AdamW beta1", **BELOW_1)
    beta2: float = arg(0.95, "AdamW beta2 (0.95: MAR and Harmon)", **BELOW_1)
    weight_decay: float = arg(0.02, "weight decay; AdamW spares norms, biases, embeddings, diffusion MLP")
    clip: float = arg(1.0, "largest norm of the gradient")
    ema: float = arg(0.998, "decay of the weights' moving average, after its ramp", **BELOW_1)
    schedule: str = arg("linear", "how the learning rate falls after the warmup: linear or cosine",
                        choices=("linear", "cosine"))
    floor: float = arg(0.02, "last learning rate, as a share of the peak", **SHARE)
    checkpointing: bool = arg(False, "recompute activations in the backward pass: less memory, a third more time")
    fsdp: bool = arg(False, "several GPUs: each keeps its part of the transformer blocks (sharding.py); for models "
                            "that do not fit; needs --optim.muon false and one --stage per start")
    shards: int = arg(0, "parts of a batch; each process goes through shards / processes of them, one after the other "
                         "(gradient accumulation); 0 = one per process, two on one core, or as the run began", low=0)


@dataclass
class DataConfig:
    seed: int = arg(0, "seed of everything random in training", low=-2**63, high=2**63 - 1)
    scenes: int = arg(60000, "different pictures per resolution; their latents are encoded once and kept")
    board: int = arg(3, "cells along a side of the shapes world's board", low=2, high=10)
    layout: str = arg("board", "placement of objects: board or free", choices=("board", "free"))
    max_objects: int = arg(4, "most objects in a scene, 1 to 4", high=4)
    mix: tuple[str, ...] = arg(("shapes:1",), "sources of data and their weights; what --data, --llava and --mix say")
    images: str = arg("", "folder of the pictures that LLaVA files name; what --images says")
    crops: int = arg(3, "square crops of a picture that is not square, to draw; their places come from its content",
                     high=100)


@dataclass
class StageConfig:
    steps: int = arg(1000, "optimizer steps")
    size: int = arg(48, "side of the pictures, in pixels; 0 where a stage has none", low=0, high=10**4)
    batch: int = arg(0, "what a step learns from, over all processes: pictures, or texts in stage llm; from stage 1 "
                        "on the pictures to generate", low=0, high=10**6)
    understanding_batch: int = arg(0, "from stage 1 on: conversations in a step, over all processes",
                                   low=0, high=10**6)
    lr: float = arg(1.0, "factor on the learning rates of optim.*")
    warmup: int = arg(50, "steps of linear warmup", low=0)
    caption_drop: float = arg(0.0, "share of prompts replaced by 'Generate an image.', for guidance", **SHARE)
    hide_all: float = arg(0.0, "share of batches drawn from the prompt alone, all tokens hidden, beside those "
                               "that mar.mask_ratio gives (official: 0)", **SHARE)
    pairs: float = arg(0.0, "shapes world: share of generated pictures of two different objects, beside those in the "
                            "mixture", **SHARE)
    texts: float = arg(0.0, "shapes world: share of understanding_batch that has no picture: texts as of stage "
                            "llm, half of them what will be where (sample.py --think)", **SHARE)
    parts: float = arg(0.0, "shapes world: share of batches to generate with only one part of each picture hidden, and "
                            "a prompt about that part (sample.py --region)", **SHARE)
    kl_weight: float = arg(1e-4, "stage vae: weight of the KL. 1e-4 keeps the means from growing (nano: std 2), and is "
                                 "too little to blur them; with 5e-3 they have a fourth of the bits: docs/LOG.md")
    train_parts: str = arg("", "what is trained: prefixes of parameter names, comma-separated")
    own_positions: bool = arg(False, "make this stage's grid the native one of the position tables (official: false)")
    understanding_weight: float = arg(1.0, "weight of the understanding loss (generation has 1); its gradient can be "
                                           "far longer: docs/LOG.md")


STAGES = ("vae", "llm", "mar", "1", "2", "3")
ALL_STAGES = (*STAGES, "reca")                                   # the last one only when --stage names it
HARMON_STAGES = ("1", "2", "3")                                  # those of the paper
JOINT_STAGES = (*HARMON_STAGES, "reca")                          # those that train both tasks
NOT_VAE = "mar.,llm.,proj_in.,proj_out."
ALIGN = "mar.,proj_in.,proj_out."                                # stage 1: the LLM stays frozen


def nano_stages():
    """A laptop CPU: 98 minutes. Where the numbers come from: docs/LOG.md. Those of reca were chosen, not tuned: gentle,
    for it is to keep what the model knows."""
    stages = {
        "vae": StageConfig(steps=2000, size=96, batch=16, lr=1.8, train_parts="vae."),
        "llm": StageConfig(steps=1300, size=0, batch=96, train_parts="llm."),
        "mar": StageConfig(steps=950, size=48, batch=128, lr=2.0, train_parts="mar."),
        "1": StageConfig(steps=150, size=48, batch=64, understanding_batch=24, understanding_weight=0.05,
                         hide_all=0.6, train_parts=ALIGN),
        "2": StageConfig(steps=1000, size=48, batch=96, understanding_batch=48, understanding_weight=0.05,
                         hide_all=0.7, caption_drop=0.1, pairs=0.85, texts=1.0, train_parts=NOT_VAE),
        "3": StageConfig(steps=2250, size=96, batch=64, understanding_batch=32, understanding_weight=0.05,
                         caption_drop=0.1, pairs=0.2, texts=0.4, parts=0.15,
                         train_parts=NOT_VAE, own_positions=True),
    }
    return stages | {"reca": replace(stages["3"], steps=560, lr=0.25, parts=0.0, own_positions=False)}


def micro_stages():
    """For a consumer GPU; never trained: single steps ran on an H200 (docs/HARDWARE.md)."""
    stages = {
        "vae": StageConfig(steps=20000, size=128, batch=32, lr=0.5, train_parts="vae."),
        "llm": StageConfig(steps=5000, size=0, batch=128, lr=0.5, train_parts="llm."),
        "mar": StageConfig(steps=20000, size=64, batch=256, lr=0.5, train_parts="mar."),
        "1": StageConfig(steps=2000, size=64, batch=128, understanding_batch=64, understanding_weight=0.03, lr=0.5,
                         hide_all=0.6, train_parts=ALIGN),
        "2": StageConfig(steps=20000, size=64, batch=128, understanding_batch=64, understanding_weight=0.03, lr=0.5,
                         hide_all=0.6, caption_drop=0.1, pairs=0.6, texts=0.25, train_parts=NOT_VAE),
        "3": StageConfig(steps=10000, size=128, batch=64, understanding_batch=32, understanding_weight=0.03, lr=0.5,
                         hide_all=0.1, caption_drop=0.1, pairs=0.5, texts=0.25, train_parts=NOT_VAE,
                         own_positions=True),
    }
    return stages | {"reca": replace(stages["3"], steps=2000, lr=0.125, hide_all=0.0, own_positions=False)}


def harmon_stages():
    """The official sizes; learning rate, schedule and 50,000 steps of the released fine-tuning example.

    The first three stages are meant to be given (--init, or --vae --llm --mar). reca: the rate and equal shares of both
    tasks of RecA's release.
    """
    common = {"steps": 50000, "size": 256, "batch": 16, "warmup": 500}
    joint = {"understanding_batch": 4, "caption_drop": 0.1, "train_parts": NOT_VAE}
    return {
        "vae": StageConfig(**common, train_parts="vae."),
        "llm": StageConfig(**common | {"size": 0}, train_parts="llm."),
        "mar": StageConfig(**common, train_parts="mar."),
        "1": StageConfig(**common, understanding_batch=4, train_parts=ALIGN),
        "2": StageConfig(**common, **joint),
        "3": StageConfig(**common | {"size": 512}, **joint),
        "reca": StageConfig(**common | {"size": 512, "steps": 5000}, **joint | {"understanding_batch": 16}),
    }


def pico_stages():
    """Seconds, for tests."""
    common = {"steps": 20, "size": 16, "batch": 8, "warmup": 5}
    joint = {"understanding_batch": 4, "caption_drop": 0.1, "train_parts": NOT_VAE}
    return {
        "vae": StageConfig(**common | {"size": 32}, train_parts="vae."),
        "llm": StageConfig(**common | {"size": 0}, train_parts="llm."),
        "mar": StageConfig(**common | {"batch": 16}, train_parts="mar."),
        "1": StageConfig(**common, understanding_batch=4, train_parts=ALIGN),
        "2": StageConfig(**common, **joint),
        "3": StageConfig(**common | {"size": 32}, **joint, own_positions=True),
        "reca": StageConfig(**common | {"size": 32}, **joint),
    }


@dataclass
class Config:
    """Everything train.py needs."""
    model: HarmonConfig
    optim: OptimConfig
    data: DataConfig
    stages: dict

    @classmethod
    def preset(cls, name):
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}{nearest(name, PRESETS)}, expected one of {', '.join(PRESETS)}; "
                             f"pass --preset nano")
        stages, optim, data = nano_stages(), OptimConfig(), DataConfig()
        if name == "pico":
            stages, data = pico_stages(), DataConfig(scenes=200, board=2)
        elif name == "micro":
            stages, data = micro_stages(), DataConfig(layout="free")
        elif name.startswith("harmon"):
            stages, data = harmon_stages(), DataConfig(layout="free")
            optim = OptimConfig(lr=1e-5, given=1.0, muon=False, ema=0.999, schedule="cosine", floor=0.0,
                                checkpointing=True)
        return cls(PRESETS[name](), optim, data, stages)


def quicken(config):
    """Change a Config in place so that a first try takes a seventh of the time (train.py --quick).

    Scenes have one object: more cannot be learned in minutes. The board has two cells a side, and all stages are at the
    resolution at which a cell has as many tokens as in stage 3 (nano: 64 px, 2 x 2 tokens): a shape of one token, as in
    nano's stage 2, was often a wrong one. vae, llm and mar keep the largest shares of their steps: the VAE says how
    good anything can look, the LLM must learn to compare, mar teaches the diffusion MLP. Half of the pictures to
    understand will do for scenes of one object. What is drawn is mostly what a thought would say (world/source.py).
    (Shares and the weight of the KL: tried by hand, docs/LOG.md.)
    """
    data, stages = config.data, config.stages
    size = stages["2"].size
    if data.layout == "board":
        size, data.board = stages["3"].size * 2 // data.board, 2         # a cell is as large as in stage 3
        config.model.mar.grid = size // config.model.vae.stride          # stage mar is at the native grid
    for name, stage in stages.items():
        share = {"vae": 2, "llm": 3.25, "mar": 3.5, "2": 18, "3": 4.8, "reca": 4}.get(name, 8)
        stage.steps = max(1, int(stage.steps / share))
        stage.warmup = min(stage.warmup, stage.steps // 4)
        stage.understanding_batch //= 2
        stage.hide_all = stage.pairs = 0.0                       # both teach what is where: one object needs neither
        stage.size = size if name != "llm" else 0
    stages["2"].texts = stages["3"].texts                        # at one size, stage 2 reads pictures as well
    stages["vae"].kl_weight = 5e-3                               # fewer bits, which are sooner drawn right
    data.scenes, data.max_objects = data.scenes // 3, 1
    config.model.mar.diffusion_batch_mul = min(4, config.model.mar.diffusion_batch_mul)   # 12 pay only in longer runs


def parse_mix(entries):
    """[(name, weight), ...] from ("shapes:1", "photos:3", "FILE.json"); without a number the weight is 1, and of a name
    that comes twice the last one counts. "shapes" is the shapes world; a folder of that name is "./shapes". A path that
    exists, "a:3", has no weight in it."""
    found = {}
    for entry in filter(None, map(str.strip, entries)):
        entry = os.path.expanduser(entry)                # behind a comma, a shell leaves the ~ as it is
        name, _, weight = entry.rpartition(":")
        if os.path.exists(entry):
            name = ""
        try:
            weight = float(weight) if name else 1.0
        except ValueError:                               # a name with a colon
            name, weight = "", 1.0
        if not 0 < weight < float("inf"):
            raise ValueError(f"{entry!r}: the weight is {weight:g}, expected a number above 0; change --mix")
        typed = name or entry
        path = typed.rstrip("/") or "/"
        found["./shapes" if path == "shapes" and typed != "shapes" else path] = weight    # shapes/ is a folder as well
    return list(found.items())


TEXT = 64                                                        # tokens that prompts and questions may take, at least
BYTES = 259                                                    # a byte-level tokenizer: 256 bytes, three control tokens


def check_training(config, world_size, only=()):
    """Complain now, not after an hour of other stages: raises ValueError that names the flag to change.

    only: the stages that --stage names.
    """
    try:
        for name, section in sections(config).items():
            check_fields(name, section)
        check_model(config.model)
    except ValueError as e:
        raise ValueError(f"--{e}; change that flag") from None
    optim, stages, shards, model = config.optim, config.stages, config.optim.shards, config.model
    if model.llm.vocab_size < BYTES:
        raise ValueError(f"--llm.vocab_size is {model.llm.vocab_size}, expected at least {BYTES}, a token per byte; "
                         f"change that flag")
    if optim.fsdp:
        for wrong, fix in ((world_size < 2, "several processes; start it with torchrun --nproc_per_node=2, or "
                                            "--procs 2"),
                           (optim.muon, "AdamW for all parameters; pass --optim.muon false"),
                           (len(only) != 1, "one stage per start; pass --stage with the one that is next")):
            if wrong:
                raise ValueError(f"--optim.fsdp true needs {fix}")
    if shards % world_size:
        raise ValueError(f"--optim.shards {shards} cannot be shared by {world_size} processes, expected a multiple of "
                         f"{world_size}; pass another --procs, or --nproc_per_node to torchrun (a stage keeps the "
                         f"shards it began with), or --optim.shards {world_size}")
    for name, stage in stages.items():
        for field in ("batch", "understanding_batch"):
            if (n := getattr(stage, field)) % shards:
                raise ValueError(f"--stage_{name}.{field} {n} cannot be cut into {shards} shards, expected a multiple "
                                 f"of {shards}; change it, or pass --procs 1 --optim.shards 1")
        if stage.batch + (stage.understanding_batch if name in JOINT_STAGES else 0) < 1:
            raise ValueError(f"stage {name} has an empty batch, expected at least 1; pass --stage_{name}.batch 16")
    check_sizes(config)
    if not only or "mar" in only:
        check_class_size(config)


def check_class_size(config):
    size, side = config.stages["mar"].size, config.model.mar.grid * config.model.vae.stride
    if size != side:
        raise ValueError(f"--stage_mar.size {size}, expected {side}: from class labels MAR learns at its native grid; "
                         f"change it, or --mar.grid")


def check_sizes(config, names=ALL_STAGES):
    """Complain about pictures, of the named stages, that are no whole number of tokens, or too many. Given parts have
    sizes of their own, and so has the model of a run that goes on."""
    stages, model = config.stages, config.model
    stride, limit = model.vae.stride, model.llm.max_position_embeddings
    if not model.mar.buffer_size:
        raise ValueError("--mar.buffer_size 0, expected at least 1: where all of a picture is hidden, buffers are all "
                         "that the LLM is given; change that flag, or pass another --mar")
    for name, stage in ((name, stage) for name, stage in stages.items() if name in names):
        if name != "llm" and (stage.size < stride or stage.size % stride):
            raise ValueError(f"--stage_{name}.size {stage.size}, expected a multiple of {stride}, the VAE's stride")
        tokens = (stage.size // stride) ** 2 + model.mar.buffer_size
        if name == "reca":                                       # the picture is shown in the request, and then drawn
            tokens *= 2
        if name in JOINT_STAGES and tokens + TEXT > limit:
            raise ValueError(f"--stage_{name}.size is {stage.size}, that is {tokens} tokens: with {TEXT} of text they "
                             f"exceed --llm.max_position_embeddings {limit}; change that flag")
        if stage.parts and "shapes" in dict(parse_mix(config.data.mix)):
            is_free, side = config.data.layout == "free", stage.size // stride
            if is_free or side % config.data.board:
                what = "--data.layout free has none" if is_free else f"{side} tokens a side do not fit"
                raise ValueError(f"--stage_{name}.parts {stage.parts} hides cells of a board of {config.data.board}: "
                                 f"{what}; pass --stage_{name}.parts 0")
    if "vae" in names and stages["vae"].size < stages["1"].size:
        raise ValueError(f"--stage_vae.size {stages['vae'].size} is smaller than --stage_1.size {stages['1'].size}, "
                         f"expected the larger of the two: the vae is trained on both")
