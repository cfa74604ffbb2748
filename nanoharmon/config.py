"""All hyper-parameters: one dataclass per part, and presets that fill them.

Every field is a flag (flags.py): `--section.field value`, for instance `--mar.encoder_depth 6` or `--stage_2.lr 0.5`;
`train.py --help` lists them all. The presets: `pico` (tests), `nano` (laptop CPU, the default), `micro` (one consumer
GPU), `harmon-0.5b` and `harmon-1.5b` (the official models; REFERENCE numbers from wusize/Harmon configs/models/*).
"""
import dataclasses
import difflib
import typing
from dataclasses import dataclass, field


def arg(default, help, later=False):
    """A dataclass field with its --help text. later: config.json files written before it existed may lack it."""
    metadata = {"help": help, "later": later}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class VAEConfig:
    ch: int = arg(128, "width of the first level")
    ch_mult: tuple[int, ...] = arg((1, 1, 2, 2, 4), "width of each level, in units of ch; each level halves the size")
    num_res_blocks: int = arg(2, "residual blocks per level (one more in the decoder)")
    z_channels: int = arg(16, "channels of a latent token")
    patch_size: int = arg(1, "fold patches of this many pixels into channels before the first convolution")
    resolution: int = arg(256, "nominal picture size; with attn_resolutions it decides which levels have attention")
    attn_resolutions: tuple[int, ...] = arg((16,), "nominal sizes at which the encoder has attention")
    scale: float = arg(0.2325, "1 / std of the latents; measured after the vae stage (0.2325: MAR's, for KL-16)")

    @property
    def stride(self):
        return self.patch_size * 2 ** (len(self.ch_mult) - 1)


@dataclass
class LLMConfig:
    """Field names as in Hugging Face's config.json for Qwen2."""
    vocab_size: int = arg(151936, "rows of the embedding")
    hidden_size: int = arg(896, "width")
    intermediate_size: int = arg(4864, "width of the SwiGLU layer")
    num_hidden_layers: int = arg(24, "layers")
    num_attention_heads: int = arg(14, "query heads")
    num_key_value_heads: int = arg(2, "key/value heads (grouped-query attention)")
    rms_norm_eps: float = arg(1e-6, "epsilon of RMSNorm")
    rope_theta: float = arg(1e6, "base of the rotary frequencies")
    tie_word_embeddings: bool = arg(True, "share input and output embedding")
    max_position_embeddings: int = arg(32768, "longest sequence")


@dataclass
class MARConfig:
    grid: int = arg(16, "native latent grid: position embeddings are grid x grid")
    token_dim: int = arg(16, "channels of a token (= vae.z_channels)")
    encoder_embed_dim: int = arg(768, "encoder width")
    encoder_depth: int = arg(12, "encoder blocks")
    encoder_num_heads: int = arg(12, "encoder heads")
    decoder_embed_dim: int = arg(768, "decoder width")
    decoder_depth: int = arg(12, "decoder blocks")
    decoder_num_heads: int = arg(12, "decoder heads")
    mlp_ratio: float = arg(4.0, "hidden width of a block's MLP, in units of its width")
    buffer_size: int = arg(64, "buffer tokens in front of the image tokens")
    class_num: int = arg(1000, "classes of the class-conditional model (stage mar)")
    label_drop_prob: float = arg(0.1, "share of class labels dropped in stage mar, for guidance")
    mask_ratio: str = arg("truncnorm", "distribution of the share of hidden tokens: truncnorm (official) or cosine")
    mask_ratio_min: float = arg(0.7, "least share of hidden tokens, with truncnorm")
    attn_dropout: float = arg(0.1, "dropout on attention weights")
    proj_dropout: float = arg(0.1, "dropout after projections")
    diffloss_d: int = arg(6, "residual blocks of the diffusion MLP")
    diffloss_w: int = arg(1024, "width of the diffusion MLP")
    diffusion_batch_mul: int = arg(4, "timesteps drawn per token in a training step")
    head: str = arg("diffusion", "how a token is predicted: diffusion, or l2 (its mean; a baseline)", later=True)
    order: str = arg("random", "tokens hidden in training: random ones, or raster = those after a point", later=True)
    clip_x0: float = arg(0.0, "while drawing, cut the predicted clean token to +- this; 0 = do not, as official")


@dataclass
class HarmonConfig:
    vae: VAEConfig = field(default_factory=VAEConfig)
    mar: MARConfig = field(default_factory=MARConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    grad_scale: float = arg(0.1, "scale of the gradient from understanding into the encoder (official: 0.1)")
    separate_encoders: bool = arg(False, "reading has its own encoder (a baseline, study.py)", later=True)


def pico():
    """Seconds on any machine: for tests."""
    return HarmonConfig(
        VAEConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, patch_size=4, attn_resolutions=(), scale=1.0),
        MARConfig(grid=2, token_dim=4, encoder_embed_dim=32, encoder_depth=1, encoder_num_heads=2,
                  decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2, buffer_size=2, class_num=140,
                  mask_ratio="cosine", attn_dropout=0.0, proj_dropout=0.0, diffloss_d=1, diffloss_w=32,
                  diffusion_batch_mul=2, clip_x0=5.0),
        LLMConfig(vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                  num_key_value_heads=1, rope_theta=1e4, max_position_embeddings=512), grad_scale=1.0)


def nano():
    """Laptop CPU: 48 px pictures of 3x3 tokens in stages 1-2, 96 px of 6x6 tokens in stage 3."""
    return HarmonConfig(
        VAEConfig(ch=64, ch_mult=(1, 2), num_res_blocks=1, z_channels=16, patch_size=8, attn_resolutions=(),
                  scale=1.0),
        MARConfig(grid=3, token_dim=16, encoder_embed_dim=160, encoder_depth=4, encoder_num_heads=5,
                  decoder_embed_dim=160, decoder_depth=4, decoder_num_heads=5, buffer_size=8, class_num=140,
                  mask_ratio="cosine", attn_dropout=0.0, proj_dropout=0.0, diffloss_d=3, diffloss_w=160,
                  diffusion_batch_mul=4, clip_x0=5.0),
        LLMConfig(vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                  num_key_value_heads=2, rope_theta=1e4, max_position_embeddings=1024), grad_scale=1.0)


def micro():
    """One consumer GPU, about an hour: 64 px, then 128 px."""
    return HarmonConfig(
        VAEConfig(ch=64, ch_mult=(1, 2, 4), num_res_blocks=2, z_channels=16, patch_size=2, attn_resolutions=(),
                  scale=1.0),
        MARConfig(grid=8, encoder_embed_dim=384, encoder_depth=8, encoder_num_heads=6, decoder_embed_dim=384,
                  decoder_depth=8, decoder_num_heads=6, buffer_size=16, class_num=140, mask_ratio="cosine",
                  attn_dropout=0.0, proj_dropout=0.0, diffloss_d=4, diffloss_w=512, clip_x0=5.0),
        LLMConfig(vocab_size=1024, hidden_size=384, intermediate_size=1024, num_hidden_layers=12,
                  num_attention_heads=6, num_key_value_heads=2, rope_theta=1e4, max_position_embeddings=2048))


def harmon_05b():
    """Official Harmon-0.5B: MAR-B and Qwen2.5-0.5B-Instruct."""
    return HarmonConfig()


def harmon_15b():
    """Official Harmon-1.5B: MAR-H and Qwen2.5-1.5B-Instruct."""
    return HarmonConfig(
        mar=MARConfig(encoder_embed_dim=1280, encoder_depth=20, encoder_num_heads=16, decoder_embed_dim=1280,
                      decoder_depth=20, decoder_num_heads=16, diffloss_d=12, diffloss_w=1536),
        llm=LLMConfig(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12))


PRESETS = {"pico": pico, "nano": nano, "micro": micro, "harmon-0.5b": harmon_05b, "harmon-1.5b": harmon_15b}


# --- training ---------------------------------------------------------------------------------------------------------

@dataclass
class OptimConfig:
    lr: float = arg(2e-3, "peak learning rate of AdamW (embeddings, norms, biases, input and output layers)")
    muon: bool = arg(True, "matrices inside blocks go to Muon; false = AdamW for all, as in the official code")
    muon_lr: float = arg(0.01, "peak learning rate of Muon")
    muon_momentum: float = arg(0.95, "momentum of Muon")
    beta1: float = arg(0.9, "AdamW beta1")
    beta2: float = arg(0.95, "AdamW beta2 (0.95: MAR and Harmon)")
    weight_decay: float = arg(0.02, "weight decay; none on norms, biases, embeddings and the diffusion head")
    clip: float = arg(1.0, "largest norm of the gradient")
    ema: float = arg(0.998, "decay of the weights' moving average, after its ramp")
    schedule: str = arg("linear", "how the learning rate falls after the warmup: linear or cosine")
    floor: float = arg(0.02, "last learning rate, as a share of the peak")
    checkpointing: bool = arg(False, "recompute activations in the backward pass: less memory, a third more time")
    fsdp: bool = arg(False, "several GPUs: each keeps its part of the transformer blocks (sharding.py); for models "
                            "that do not fit; needs --optim.muon false and one --stage per start", later=True)
    shards: int = arg(0, "parts of a batch; each process goes through shards / processes of them, one after the other "
                         "(gradient accumulation); 0 = one per process, or as the run began")


@dataclass
class DataConfig:
    seed: int = arg(0, "seed of everything random in training")
    scenes: int = arg(60000, "different pictures per resolution; their latents are encoded once and kept")
    board: int = arg(3, "cells along a side of the shapes world's board")
    layout: str = arg("board", "placement of objects: board or free")
    max_objects: int = arg(4, "most objects in a scene, 1 to 4")
    mix: tuple[str, ...] = arg(("shapes:1",), "sources of data and their weights; what --data, --llava and --mix say")
    images: str = arg("", "folder of the pictures that LLaVA files name; what --images says")
    crops: int = arg(3, "square crops of a picture that is not square, to draw; their places come from its content")


@dataclass
class StageConfig:
    steps: int = arg(1000, "optimizer steps")
    size: int = arg(48, "side of the pictures, in pixels")
    draw_batch: int = arg(0, "pictures to draw (or to auto-encode, or texts) in a step, over all processes")
    read_batch: int = arg(0, "pictures to understand in a step, over all processes")
    lr: float = arg(1.0, "factor on the learning rates of optim.*")
    warmup: int = arg(50, "steps of linear warmup")
    caption_drop: float = arg(0.0, "share of prompts replaced by 'Generate an image.', for guidance")
    hide_all: float = arg(0.0, "share of steps that draw from the prompt alone, all tokens hidden, beside those that "
                               "mar.mask_ratio gives (official: 0)")
    pairs: float = arg(0.0, "shapes world: share of drawings of two different objects, beside those in the mixture")
    thoughts: float = arg(0.0, "shapes world: share of readings that have no picture: a prompt, answered by what will "
                               "be where (sample.py --think)", later=True)
    train_parts: str = arg("", "what is trained: prefixes of parameter names, comma-separated")
    own_positions: bool = arg(False, "make this stage's grid the native one of the position tables (official: false)")
    read_weight: float = arg(1.0, "weight of the understanding loss (drawing has 1); its gradient can be far longer: "
                                  "LOG.md")


NOT_VAE = "mar.,llm.,proj_in.,proj_out."
ALIGN = "mar.,proj_in.,proj_out."            # stage 1: the LLM stays frozen


def nano_stages():
    return {
        "vae": StageConfig(2000, 96, 16, lr=1.8, train_parts="vae."),
        "llm": StageConfig(800, 0, 64, train_parts="llm."),
        "mar": StageConfig(1100, 48, 128, lr=2.0, train_parts="mar."),
        "1": StageConfig(150, 48, 64, 24, hide_all=0.6, read_weight=0.03, train_parts=ALIGN),
        "2": StageConfig(1200, 48, 96, 16, caption_drop=0.1, hide_all=0.7, pairs=0.85, read_weight=0.03, thoughts=0.25,
                         train_parts=NOT_VAE),
        "3": StageConfig(4000, 96, 64, 16, caption_drop=0.1, pairs=0.2, read_weight=0.03, thoughts=0.25,
                         train_parts=NOT_VAE, own_positions=True),
    }


def micro_stages():
    """For a consumer GPU; not run here, where there is none."""
    return {
        "vae": StageConfig(20000, 128, 32, lr=0.5, train_parts="vae."),
        "llm": StageConfig(5000, 0, 128, lr=0.5, train_parts="llm."),
        "mar": StageConfig(20000, 64, 256, lr=0.5, train_parts="mar."),
        "1": StageConfig(2000, 64, 128, 64, lr=0.5, hide_all=0.6, read_weight=0.03, train_parts=ALIGN),
        "2": StageConfig(20000, 64, 128, 64, lr=0.5, caption_drop=0.1, hide_all=0.6, pairs=0.6, read_weight=0.03,
                         thoughts=0.25, train_parts=NOT_VAE),
        "3": StageConfig(10000, 128, 64, 32, lr=0.5, caption_drop=0.1, hide_all=0.1, pairs=0.5, read_weight=0.03,
                         thoughts=0.25, train_parts=NOT_VAE, own_positions=True),
    }


def harmon_stages():
    """Sizes of the official models; learning rate, schedule and 50,000 steps of the released fine-tuning example.

    The first three stages are meant to be given (--init, or --vae --llm --mar).
    """
    return {
        "vae": StageConfig(50000, 256, 16, train_parts="vae.", warmup=500),
        "llm": StageConfig(50000, 0, 16, train_parts="llm.", warmup=500),
        "mar": StageConfig(50000, 256, 16, train_parts="mar.", warmup=500),
        "1": StageConfig(50000, 256, 16, 4, train_parts=ALIGN, warmup=500),
        "2": StageConfig(50000, 256, 16, 4, caption_drop=0.1, train_parts=NOT_VAE, warmup=500),
        "3": StageConfig(50000, 512, 16, 4, caption_drop=0.1, train_parts=NOT_VAE, warmup=500),
    }


def pico_stages():
    return {
        "vae": StageConfig(20, 32, 8, train_parts="vae.", warmup=5),
        "llm": StageConfig(20, 0, 8, train_parts="llm.", warmup=5),
        "mar": StageConfig(20, 16, 16, train_parts="mar.", warmup=5),
        "1": StageConfig(20, 16, 8, 4, train_parts=ALIGN, warmup=5),
        "2": StageConfig(20, 16, 8, 4, caption_drop=0.1, train_parts=NOT_VAE, warmup=5),
        "3": StageConfig(20, 32, 8, 4, caption_drop=0.1, train_parts=NOT_VAE, warmup=5, own_positions=True),
    }


STAGES = ("vae", "llm", "mar", "1", "2", "3")


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
            optim = OptimConfig(lr=1e-5, muon=False, ema=0.999, schedule="cosine", floor=0.0, checkpointing=True)
        return cls(PRESETS[name](), optim, data, stages)


def quicken(config):
    """Change a Config in place so that a first try takes a sixth of the time (train.py --quick).

    Scenes have one object, and stage 3 stays at stage 2's resolution: more cannot be learned in minutes. The VAE says
    how good anything can look, and mar and 3 teach the diffusion head: they keep the largest shares of their steps.
    Reading is learned long before drawing: half of its pictures will do. (Shares: tried by hand, LOG.md.)
    """
    size = config.stages["2"].size
    for name, stage in config.stages.items():
        stage.steps = max(1, stage.steps // {"vae": 2, "mar": 3, "1": 6, "3": 4}.get(name, 8))
        stage.warmup = min(stage.warmup, stage.steps // 4)
        stage.read_batch //= 2
        stage.hide_all = stage.pairs = 0.0                       # both teach what is where: one object needs neither
    config.stages["3"].size = config.stages["vae"].size = size
    config.stages["vae"].draw_batch *= 2                         # half the pixels of a batch at full size
    config.data.scenes, config.data.max_objects = config.data.scenes // 3, 1


# --- dataclass <-> dict -----------------------------------------------------------------------------------------------

def to_dict(config):
    return dataclasses.asdict(config)


def from_dict(cls, values, where="config.json"):
    """A (nested) dataclass from the dict `to_dict` made. Unknown or missing fields are errors that name them."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {values!r:.80}, expected an object")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise ValueError(f"{where}: unknown field {name!r}{nearest(name, fields)}")
    missing = [name for name, f in fields.items() if name not in values and not f.metadata.get("later")]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    made = {}
    for name, value in values.items():
        kind = fields[name].type
        if dataclasses.is_dataclass(kind):
            made[name] = from_dict(kind, value, f"{where}: {name}")
        else:
            made[name] = tuple(value) if typing.get_origin(kind) is tuple and isinstance(value, list) else value
    return cls(**made)


def nearest(name, names):
    """'; did you mean X?' for an unknown name, or ''."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
