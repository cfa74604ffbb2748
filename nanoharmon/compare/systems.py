"""The systems that are compared: their sizes, what each learns in which order and for how long, and the training loop.

Each system is trained from scratch, in parts, one after the other. A part gets a share of the system's time (SHARES):

    vae       the picture tokenizer: KL-VAE, or VQ, which needs longer. The VQ is the same in all systems of a seed
    llm       the LLM, texts without pictures
    mar       MAR, from class labels
    teacher   the contrastive model (teacher.py)
    toklip    TokLIP, from the teacher
    1         Harmon's stage 1: MAR and projectors, the LLM frozen
    2         to draw and to read together: mostly pairs, and for MAR mostly wholly hidden
    3         the same, with pictures of all kinds
    reca      to draw a picture from its own understanding of it (RecA)

Pictures (48 px at preset nano, 3 x 3 tokens), texts, batches and rates are those of the preset's stages
(training/recipe.py), without --region; and part 2 reads pictures, as nano's stage 2 does not. The LLM is larger where
there is no MAR, so that all have the same number of parameters within 10 %. What else is equal: docs/COMPARE.md.
"""
import random
import time
from dataclasses import replace

import torch
from torch import nn

from ..harmon import Harmon
from ..pipeline import Pipeline
from ..pictures import to_pixels
from ..tokenizer import Tokenizer
from ..training.batches import Batches
from ..training.latents import measure_scale
from ..training.losses import stage_losses
from ..training.optim import EMA, lr_factor, make_optimizers, select, set_lr
from ..training.recipe import Config, StageConfig
from ..weights.safetensors import open_tensors, save_safetensors
from ..world.source import ShapesData, training_texts
from .discrete import Discrete
from .teacher import Teacher, contrast_batch
from .toklip import TokLIP, toklip_loss
from .vq import vq_loss

PLAIN = {"vae": 0.25, "llm": 0.10, "2": 0.25, "3": 0.40}
SHARES = {"harmon": {"vae": 0.15, "llm": 0.10, "mar": 0.15, "1": 0.05, "2": 0.20, "3": 0.35},
          "reca": {"vae": 0.15, "llm": 0.10, "mar": 0.15, "1": 0.05, "2": 0.15, "3": 0.30, "reca": 0.10},
          "toklip": {"vae": 0.25, "llm": 0.10, "teacher": 0.15, "toklip": 0.10, "2": 0.15, "3": 0.25},
          "codes": PLAIN, "masked": PLAIN}
SYSTEMS = tuple(SHARES)
HARMON = ("harmon", "reca")                                      # the others are Discrete
TRAINED = {"teacher": "picture.,text.,log_scale,bias", "toklip": "toklip."}      # other parts: a stage's train_parts
CODE_DIM = 8                                                     # as LlamaGen's
CONTRAST = 64                                                    # pictures in a batch of teacher and toklip
LATENTS = ("mar", "1", "2", "3", "reca")                         # parts that read latents, which are encoded once

# of the systems without MAR, by preset: the codebook, the towers of teacher and TokLIP, and the LLM, whose last number
# is layers without and with TokLIP
OWN = {"nano": {"codes": 512, "tower": {"width": 128, "depth": 4, "heads": 4}, "layers": (8, 6),
                "llm": {"hidden_size": 192, "intermediate_size": 576}},
       "pico": {"codes": 64, "tower": {"width": 32, "depth": 1, "heads": 2}, "layers": (6, 3), "llm": {}}}
PRESETS = tuple(OWN)


def settings(name, preset):
    """The Config of a system: the preset's own, at the picture size of its stage 2."""
    config = Config.preset(preset)
    vae, joint, last = (config.stages[stage] for stage in ("vae", "2", "3"))
    vae.batch, vae.size = vae.batch * (vae.size // joint.size) ** 2, joint.size              # as many pixels
    config.optim.shards = 1
    last.size = config.stages["reca"].size = joint.size
    last.parts, joint.texts = 0.0, last.texts                    # all at one size: stage 2 reads pictures as well
    if name not in HARMON:
        config.model.mar.buffer_size = 0
        config.model.llm = replace(config.model.llm, **OWN[preset]["llm"],
                                   num_hidden_layers=OWN[preset]["layers"][name == "toklip"])
        for stage in joint, last:                                # hide_all is a trick for a diffusion loss
            stage.understanding_weight, stage.hide_all, stage.train_parts = 1.0, 0.0, "llm.,proj_in.,blank,code_head."
    return config


def build(name, preset, config, seed=0):
    """(model, its teacher or None) with random weights. config: HarmonConfig of `settings`."""
    own, teacher = OWN[preset], None
    if name == "toklip":
        torch.manual_seed(random.Random(f"{seed}/new teacher").getrandbits(48))
        teacher = Teacher(config.vae.stride, config.mar.grid ** 2, config.llm.vocab_size, **own["tower"])
    toklip = TokLIP(teacher, CODE_DIM) if teacher else None
    torch.manual_seed(seed)                                      # what comes first, the VQ, is the same for all
    if name in HARMON:
        return Harmon(config), None
    return Discrete(config, own["codes"], CODE_DIM, toklip, masked=name == "masked"), teacher


class System:
    """A system with its data, from random weights. `scenes`: how many different pictures parts 1 to 3 draw from."""

    def __init__(self, name, preset, seed, scenes):
        self.name, self.seed, self.config = name, seed, settings(name, preset)
        self.size = self.config.stages["2"].size
        self.config.data.seed, self.config.data.scenes = seed, scenes
        self.source = ShapesData(self.config.data)
        texts = training_texts(self.config.data, 100 if preset == "pico" else 4000)
        self.tokenizer = Tokenizer.train(texts, self.config.model.llm.vocab_size)
        self.model, self.teacher = build(name, preset, self.config.model, seed)
        self.modules = nn.ModuleDict({"model": self.model} | ({"teacher": self.teacher} if self.teacher else {}))
        self.batches = Batches([self.source], [1.0], self.tokenizer, self.config.model.mar.buffer_size)

    def pipeline(self):
        """A Pipeline that draws and answers, for the benchmarks."""
        return Pipeline(self.model, self.tokenizer, {"size": self.size, **self.batches.world(), "look": True,
                                                     "draw": {"steps": 25, "think": False}})     # else as official

    # --- files -----------------------------------------------------------------------------------------------------

    def save(self, path):
        save_safetensors(self.modules.state_dict(), path)

    def load(self, path):
        self.modules.load_state_dict({name: value.clone() for name, value in open_tensors(path).items()})
        self.set_scale()

    # --- training --------------------------------------------------------------------------------------------------

    def losses(self, part, rng, generator):
        """Yields the losses of one step; their sum is the step's loss."""
        if part == "teacher":
            yield self.teacher.loss(*contrast_batch(self.source, self.tokenizer, rng, CONTRAST, self.size))
        elif part == "toklip":
            batch = contrast_batch(self.source, self.tokenizer, rng, CONTRAST, self.size)
            yield toklip_loss(self.model.toklip, self.model.vae, self.teacher, *batch)
        elif part == "vae" and self.name not in HARMON:
            yield vq_loss(self.model.vae, self.batches.images(rng, self.config.stages["vae"].batch, self.size))
        else:
            yield from (loss for loss, _ in stage_losses(self.config, part, self.model, self.batches, rng, generator))

    def prepare(self, part):
        """What a part needs of the parts before."""
        if part == "toklip":                                     # the tower starts as the trained teacher's
            torch.manual_seed(random.Random(f"{self.seed}/new toklip").getrandbits(48))
            self.model.toklip = TokLIP(self.teacher, CODE_DIM)
        if part in LATENTS and self.size not in self.source.latents:
            self.set_scale()                                     # the schedule of diffusion needs it
            self.encode_scenes()

    def train(self, part, steps):
        """Train one part, `steps` steps long. All of it follows from (seed, part, step)."""
        stage, optim = self.config.stages.get(part, StageConfig()), self.config.optim
        self.prepare(part)
        module = self.teacher if part == "teacher" else self.model
        params = select(module, TRAINED.get(part, stage.train_parts))
        optimizers, ema = make_optimizers(params, optim), EMA(params, optim.ema)
        module.train()
        for step in range(steps):
            warmup = min(stage.warmup, steps // 4)
            set_lr(optimizers, lr_factor(step, steps, warmup, optim.schedule, optim.floor) * stage.lr)
            rng = random.Random(f"{self.seed}/{part}/{step}")
            generator = torch.Generator().manual_seed(rng.getrandbits(48))
            torch.manual_seed(rng.getrandbits(48))
            for loss in self.losses(part, rng, generator):
                loss.backward()
            if torch.isfinite(torch.nn.utils.clip_grad_norm_(list(params.values()), optim.clip)):
                for optimizer in optimizers:
                    optimizer.step()
                ema.update(params, step)
            for optimizer in optimizers:
                optimizer.zero_grad()
        ema.swap(params)
        module.eval()

    def seconds_per_step(self, part, steps=10):
        """Processor time of one step of a part, after a first one that prepares. It trains: the weights change."""
        self.train(part, 1)
        began = time.process_time()
        self.train(part, steps)
        return (time.process_time() - began) / steps

    def set_scale(self):
        """Harmon's VAE: latents of unit variance. It follows from the weights, so no file has it; codes need none."""
        if self.name in HARMON:
            measure_scale(self.config, self.model, self.batches)

    @torch.no_grad()
    def encode_scenes(self):
        """The latents or codes of all scenes, once, for the parts that read them."""
        parts = [self.model.vae.encode(to_pixels(torch.from_numpy(self.source.pictures(rows, self.size))))
                 for rows in (range(k, min(k + 64, self.source.rows)) for k in range(0, self.source.rows, 64))]
        self.source.latents[self.size] = torch.cat(parts).numpy()
