"""The sizes of a model: one dataclass per part, and presets that fill them.

Every field is also a flag (flags.py), for instance `--mar.encoder_depth 6`, and carries its help text and the values
that are accepted. The defaults written here are the official Harmon-0.5B. The presets: `pico` (tests), `nano` (laptop
CPU, what the scripts start from), `micro` (one consumer GPU), `harmon-0.5b` and `harmon-1.5b` (the official models;
their numbers are those of wusize/Harmon, configs/models).
What training adds (stages, optimizer, data) is in training/recipe.py.
"""
import dataclasses
import difflib
import typing
from dataclasses import dataclass, field


SAMPLERS = "ddpm", "ddim", "dpm++"                               # of the diffusion MLP (diffusion.py)
SCHEDULES = "constant", "linear"                                 # of the guidance, while drawing (mar.py)

# ranges for arg(): they catch typos, and do not say what works well
SHARE = {"low": 0, "high": 1}
BELOW_1 = {"low": 0, "high": 0.999999}
POSITIVE = {"low": 1e-12, "high": 1e12}
LAYERS = {"low": 1, "high": 200}


def arg(default, help, low=None, high=10**9, choices=()):
    """A dataclass field with its --help text and the values it may have (checked by flags.check_fields).

    low: by default 1 for whole numbers and 0 for others.
    """
    low = int(type(default) in (int, tuple)) if low is None else low
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass
class VAEConfig:
    ch: int = arg(128, "width of the first level")
    ch_mult: tuple[int, ...] = arg((1, 1, 2, 2, 4), "width of each level / ch; each but the last halves the size",
                                   high=100)
    num_res_blocks: int = arg(2, "residual blocks per level (one more in the decoder)", **LAYERS)
    z_channels: int = arg(16, "channels C of an image token (official name; not the z of the MAR decoder)")
    patch_size: int = arg(1, "side of the pixel patches folded into channels before the first convolution")
    resolution: int = arg(256, "nominal picture size; with attn_resolutions it decides which levels have attention")
    attn_resolutions: tuple[int, ...] = arg((16,), "nominal sizes of encoder levels with attention, besides the middle")
    scale: float = arg(0.2325, "1 / std of the VAE's means; measured after stage vae (0.2325: for KL-16)", **POSITIVE)

    @property
    def stride(self):
        return self.patch_size * 2 ** (len(self.ch_mult) - 1)


@dataclass
class LLMConfig:
    """Field names as in Hugging Face's config.json for Qwen2."""
    vocab_size: int = arg(151936, "rows of the embedding")
    hidden_size: int = arg(896, "width")
    intermediate_size: int = arg(4864, "width of the SwiGLU layer")
    num_hidden_layers: int = arg(24, "layers", **LAYERS)
    num_attention_heads: int = arg(14, "query heads")
    num_key_value_heads: int = arg(2, "key/value heads (grouped-query attention)")
    rms_norm_eps: float = arg(1e-6, "epsilon of RMSNorm", **POSITIVE)
    rope_theta: float = arg(1e6, "base of the rotary frequencies", **POSITIVE)
    tie_word_embeddings: bool = arg(True, "share input and output embedding")
    max_position_embeddings: int = arg(32768, "longest sequence")


@dataclass
class MARConfig:
    grid: int = arg(16, "side of the native latent grid: position embeddings are grid x grid", high=1024)
    token_dim: int = arg(16, "channels of a token (= vae.z_channels)")
    encoder_embed_dim: int = arg(768, "encoder width")
    encoder_depth: int = arg(12, "encoder blocks", **LAYERS)
    encoder_num_heads: int = arg(12, "encoder heads")
    decoder_embed_dim: int = arg(768, "decoder width")
    decoder_depth: int = arg(12, "decoder blocks", **LAYERS)
    decoder_num_heads: int = arg(12, "decoder heads")
    mlp_ratio: float = arg(4.0, "hidden width of a block's MLP, in units of its width", **POSITIVE)
    buffer_size: int = arg(64, "buffer tokens in front of the image tokens", low=0, high=10**6)
    class_num: int = arg(1000, "classes of the class-conditional model (stage mar)")
    label_drop_prob: float = arg(0.1, "share of class labels dropped in stage mar, for guidance", **SHARE)
    mask_ratio: str = arg("truncnorm", "distribution of the share of hidden tokens: truncnorm (official) or cosine",
                          choices=("truncnorm", "cosine"))
    mask_ratio_min: float = arg(0.7, "least share of hidden tokens, with truncnorm", **SHARE)
    attn_dropout: float = arg(0.1, "dropout on attention weights", **BELOW_1)
    proj_dropout: float = arg(0.1, "dropout after projections", **BELOW_1)
    diffloss_d: int = arg(6, "residual blocks of the diffusion MLP", **LAYERS)
    diffloss_w: int = arg(1024, "width of the diffusion MLP")
    diffusion_batch_mul: int = arg(4, "timesteps per token in a training step")
    clip_x0: float = arg(0.0, "while drawing, cut the predicted clean token to +- this; 0 = do not, as official")


@dataclass
class HarmonConfig:
    vae: VAEConfig = field(default_factory=VAEConfig)
    mar: MARConfig = field(default_factory=MARConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    grad_scale: float = arg(0.1, "factor on the gradient of pictures that the LLM is shown (official: 0.1)")


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
    """Laptop CPU: 48 px pictures of 3x3 tokens in stages 1-2, 96 px of 6x6 tokens in stage 3.

    class_num: 5 shapes x 7 colors x 4 counts of the shapes world. clip_x0: just inside the latents' range: 99.99 %
    of the numbers are below 5.6. diffusion_batch_mul: twelve, with a tenth fewer steps, draw better than four.
    grad_scale is 1, because the stages' understanding_weight (training/recipe.py) already makes that gradient small.
    """
    return HarmonConfig(
        VAEConfig(ch=64, ch_mult=(1, 2), num_res_blocks=1, z_channels=16, patch_size=8, attn_resolutions=(),
                  scale=1.0),
        MARConfig(grid=3, token_dim=16, encoder_embed_dim=160, encoder_depth=4, encoder_num_heads=5,
                  decoder_embed_dim=160, decoder_depth=4, decoder_num_heads=5, buffer_size=8, class_num=140,
                  mask_ratio="cosine", attn_dropout=0.0, proj_dropout=0.0, diffloss_d=3, diffloss_w=160,
                  diffusion_batch_mul=12, clip_x0=5.0),
        LLMConfig(vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                  num_key_value_heads=2, rope_theta=1e4, max_position_embeddings=1024), grad_scale=1.0)


def micro():
    """One consumer GPU: 64 px, then 128 px. Never trained; hours are estimated in docs/HARDWARE.md."""
    return HarmonConfig(
        VAEConfig(ch=64, ch_mult=(1, 2, 4), num_res_blocks=2, z_channels=16, patch_size=2, attn_resolutions=(),
                  scale=1.0),
        MARConfig(grid=8, encoder_embed_dim=384, encoder_depth=8, encoder_num_heads=6, decoder_embed_dim=384,
                  decoder_depth=8, decoder_num_heads=6, buffer_size=16, class_num=140, mask_ratio="cosine",
                  attn_dropout=0.0, proj_dropout=0.0, diffloss_d=4, diffloss_w=512, clip_x0=5.0),
        LLMConfig(vocab_size=1024, hidden_size=384, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=6,
                  num_key_value_heads=2, rope_theta=1e4, max_position_embeddings=2048), grad_scale=1.0)


def harmon_15b():
    """Official Harmon-1.5B: MAR-H and Qwen2.5-1.5B-Instruct."""
    return HarmonConfig(
        mar=MARConfig(encoder_embed_dim=1280, encoder_depth=20, encoder_num_heads=16, decoder_embed_dim=1280,
                      decoder_depth=20, decoder_num_heads=16, diffloss_d=12, diffloss_w=1536),
        llm=LLMConfig(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12))


# HarmonConfig as it is: the official Harmon-0.5B, of MAR-B and Qwen2.5-0.5B-Instruct. The stages of each preset are in
# training/recipe.py: those of a new one are nano's until Config.preset says otherwise
PRESETS = {"pico": pico, "nano": nano, "micro": micro, "harmon-0.5b": HarmonConfig, "harmon-1.5b": harmon_15b}


# --- dataclass <-> dict -----------------------------------------------------------------------------------------------

def from_dict(cls, values, where="config.json"):
    """A (nested) dataclass from the dict that `asdict` made. Unknown or missing fields are errors that name them."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {values!r:.80}, expected an object")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise ValueError(f"{where}: unknown field {name!r}{nearest(name, fields)}")
    missing = [name for name in fields if name not in values]
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
