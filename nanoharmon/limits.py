"""Which values make a model and a training. They are checked before anything is built, so that a wrong flag, or a
damaged config.json, is one line that names the field, and not a traceback, a hang or a full memory hours later.

Messages begin with section.field; behind two dashes that is the flag.
"""
import dataclasses
import typing

from .flags import sections

TEXT = 64                                        # tokens that a stage's prompts and questions may take, at least
BYTES = 259                                      # a byte-level tokenizer: 256 bytes, three special tokens
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
CHOICES = {"layout": ("board", "free"), "schedule": ("linear", "cosine"), "mask_ratio": ("truncnorm", "cosine"),
           "head": ("diffusion", "l2"), "order": ("random", "raster")}
LAYERS = dict.fromkeys(("num_res_blocks", "encoder_depth", "decoder_depth", "diffloss_d", "num_hidden_layers"),
                       (1, 200))
SHARES = dict.fromkeys(("label_drop_prob", "mask_ratio_min", "caption_drop", "hide_all", "pairs", "floor"), (0, 1))
BELOW_1 = dict.fromkeys(("attn_dropout", "proj_dropout", "muon_momentum", "beta1", "beta2", "ema"), (0, 0.999999))
POSITIVE = dict.fromkeys(("scale", "mlp_ratio", "rms_norm_eps", "rope_theta"), (1e-12, 1e12))
# others: whole numbers from 1 (from 0 where 0 is the default), numbers from 0, to a thousand million
RANGES = LAYERS | SHARES | BELOW_1 | POSITIVE | {
    "ch_mult": (1, 100), "buffer_size": (0, 10**6), "grid": (1, 1024), "max_objects": (1, 4), "board": (2, 10),
    "crops": (1, 100), "warmup": (0, 10**9), "size": (0, 10**4), "draw_batch": (0, 10**6), "read_batch": (0, 10**6),
    "seed": (-2**63, 2**63 - 1)}


def check_fields(name, section):
    """Every field of a dataclass of config.py has its type, and a value in its range."""
    for f in dataclasses.fields(section):
        if dataclasses.is_dataclass(f.type):
            continue
        value, kind = getattr(section, f.name), f.type
        many = typing.get_origin(kind) is tuple
        kind = typing.get_args(kind)[0] if many else kind
        if many and type(value) is not tuple:
            raise ValueError(f"{name}.{f.name} is {value!r:.80}, expected several, each {NAMES[kind]}")
        low, high = RANGES.get(f.name, (int(kind is int and f.default != 0), 10**9))
        for x in value if many else (value,):
            if type(x) is not kind and not (kind is float and type(x) is int):
                raise ValueError(f"{name}.{f.name} is {x!r:.80}, expected {NAMES[kind]}")
            if kind in (int, float) and not low <= x <= high:                    # not: so for NaN, too
                raise ValueError(f"{name}.{f.name} is {x!r:.80}, expected {low} to {high:g}")
        if value not in CHOICES.get(f.name, (value,)):
            raise ValueError(f"{name}.{f.name} is {value!r:.80}, expected {' or '.join(CHOICES[f.name])}")


def check_model(config):
    """A HarmonConfig whose parts can be built, and fit each other."""
    for name, section in sections(config).items():
        check_fields(name, section)
    vae, mar, llm = config.vae, config.mar, config.llm
    if not 1 <= len(vae.ch_mult) <= 10:
        raise ValueError(f"vae.ch_mult is {vae.ch_mult!r:.80}, expected 1 to 10 numbers such as 1,2,4")
    if wrong := [vae.ch * m for m in vae.ch_mult if vae.ch * m % 32]:
        raise ValueError(f"vae.ch x vae.ch_mult is {wrong[0]}, expected multiples of 32 (the groups of GroupNorm)")
    for half in "encoder", "decoder":
        width, heads = getattr(mar, f"{half}_embed_dim"), getattr(mar, f"{half}_num_heads")
        if width % heads:
            raise ValueError(f"mar.{half}_num_heads is {heads}, expected a divisor of mar.{half}_embed_dim {width}")
    if llm.hidden_size % (2 * llm.num_attention_heads):
        raise ValueError(f"llm.hidden_size is {llm.hidden_size}, expected a multiple of twice llm.num_attention_heads "
                         f"{llm.num_attention_heads}")
    if llm.num_attention_heads % llm.num_key_value_heads:
        raise ValueError(f"llm.num_key_value_heads is {llm.num_key_value_heads}, expected a divisor of "
                         f"llm.num_attention_heads {llm.num_attention_heads}")
    if vae.z_channels != mar.token_dim:
        raise ValueError(f"vae.z_channels is {vae.z_channels}, expected mar.token_dim {mar.token_dim}")


def check_training(config):
    """A Config that train.py can run. Errors name the flag."""
    try:
        for name, section in sections(config).items():
            check_fields(name, section)
        model, limit = config.model, config.model.llm.max_position_embeddings
        check_model(model)
        if model.llm.vocab_size < BYTES:
            raise ValueError(f"llm.vocab_size is {model.llm.vocab_size}, expected at least {BYTES}, a token per byte")
        for name, stage in config.stages.items():
            tokens = (stage.size // model.vae.stride) ** 2 + model.mar.buffer_size
            if name in ("1", "2", "3") and tokens + TEXT > limit:
                raise ValueError(f"stage_{name}.size is {stage.size}, that is {tokens} tokens: with {TEXT} of text "
                                 f"they exceed --llm.max_position_embeddings {limit}")
    except ValueError as e:
        raise ValueError(f"--{e}; change that flag") from None
