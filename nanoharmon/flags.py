"""Every field of a config is a flag: --mar.encoder_depth 6, --stage_2.lr=0.5. Text to values, the --help text, and
which values make a model: checked before anything is built, so that a wrong flag or a damaged config.json is one line
that names the field, and not a traceback, a hang or a full memory hours later.
"""
import dataclasses
import shutil
import textwrap
import typing

from .config import nearest

ABOUT = {"model": "the whole model", "vae": "the VAE: pictures to latents and back", "mar": "MAR: encoder, decoder and "
         "diffusion MLP", "llm": "the LLM", "optim": "how weights are updated", "data": "what is learned from"}
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def parse_value(kind, text):
    """A field's value from command-line text. Raises ValueError that says what was expected."""
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"got {text!r}, expected true or false")
        return text.lower() == "true"
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(parse_value(inner, part) for part in text.split(",") if part)
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"got {text!r}, expected {NAMES[kind]}") from None


def sections(config):
    """{"vae": VAEConfig, ..., "stage_1": StageConfig}: the dataclasses of a config that flags reach, by name."""
    found = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(value, dict):
            found.update({f"stage_{name}": section for name, section in value.items()})
        elif dataclasses.is_dataclass(value):
            found[f.name] = value
            found.update(sections(value))
    return found


def nearest_field(flag, config, others):
    """What was meant by a flag without a section, such as --lr or --batch-size: fields of that name, the nearest of
    `others`, a field that its name begins with, or the nearest of all. "" for nothing."""
    name = flag.partition("=")[0].lstrip("-").replace("-", "_")
    fields = {}
    for section, values in sections(config).items():
        for f in dataclasses.fields(values):
            fields.setdefault(f.name, []).append(f"--{section}.{f.name}")
    if name not in fields and (found := nearest(flag, others)):
        return found
    same = fields.get(name) or next((fields[f] for f in fields if name.startswith(f + "_")), [])
    return f"; did you mean {' or '.join([same[0], *same[1:][-1:]])}?" if same else nearest(name, fields)


def override(config, flags):
    """Apply ["--mar.encoder_depth=6", "--stage_2.lr", "0.5"] to a config in place.

    Returns {"mar.encoder_depth": "6", "stage_2.lr": "0.5"}. Errors name the nearest flag.
    """
    known = {f"--{name}.{f.name}": (section, f) for name, section in {"model": config, **sections(config)}.items()
             for f in dataclasses.fields(section) if not dataclasses.is_dataclass(f.type)}
    flags, changed = list(flags), {}
    while flags:
        flag, eq, text = flags.pop(0).partition("=")
        if flag not in known:
            raise ValueError((f"unknown flag {flag}{nearest(flag, known)}" if flag.startswith("-") else
                              f"got {flag!r}, which belongs to no flag") + "; see --help")
        if not eq:
            if not flags or flags[0].startswith("--"):
                raise ValueError(f"{flag} needs a value")
            text = flags.pop(0)
        section, f = known[flag]
        try:
            setattr(section, f.name, parse_value(f.type, text))
        except ValueError as e:
            raise ValueError(f"{flag}: {e}") from None
        changed[flag.removeprefix("--")] = text
    return changed


def describe_flags(config, preset):
    """The --help text of all --section.field flags, with their values in this preset; the stages side by side."""
    width, found, stages = min(118, shutil.get_terminal_size().columns - 2), sections(config), {}
    lines = [f"Everything else is --SECTION.FIELD VALUE. The values shown are those of preset {preset}.", ""]
    for name, section in found.items():
        if name.startswith("stage_"):
            stages[name.removeprefix("stage_")] = section
            continue
        rows = [(f"  --{name}.{f.name} {as_text(getattr(section, f.name))}", f.metadata["help"])
                for f in dataclasses.fields(section) if not dataclasses.is_dataclass(f.type)]
        column = 2 + min(36, max(len(flag) for flag, _ in rows))
        lines += [ABOUT[name], *(line for flag, help in rows for line in entry(flag, help, column, width)), ""]
    if stages:
        lines.append("the stages: for instance --stage_2.lr 0.5; below each field is its value in every stage")
        for f in dataclasses.fields(section := next(iter(stages.values()))):
            values = [f"{stage}={as_text(getattr(section, f.name))}" for stage, section in stages.items()]
            lines += entry(f"  --stage_NAME.{f.name}", f.metadata["help"], 38, width)
            lines += [" " * 38 + line for line in textwrap.wrap(" ".join(values), max(20, width - 38))]
    return "\n".join(lines)


def as_text(value):
    """A field's value as one types it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def entry(flag, help, column, width):
    """A flag, and its help text behind it from `column` on; below it, where the flag is too long for that."""
    first = flag.ljust(column) if len(flag) < column - 1 else " " * column
    lines = textwrap.wrap(help, max(width, column + 20), initial_indent=first, subsequent_indent=" " * column)
    return lines if first.strip() else [flag, *lines]


# --- which values make a model ----------------------------------------------------------------------------------------

def check_fields(name, section):
    """Every field of a dataclass has its type, and a value in the range that its definition gives (config.arg)."""
    for f in dataclasses.fields(section):
        if dataclasses.is_dataclass(f.type):
            continue
        value, kind = getattr(section, f.name), f.type
        many = typing.get_origin(kind) is tuple
        kind = typing.get_args(kind)[0] if many else kind
        if many and type(value) is not tuple:
            raise ValueError(f"{name}.{f.name} is {value!r:.80}, expected several, each {NAMES[kind]}")
        low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
        for x in value if many else (value,):
            if type(x) is not kind and not (kind is float and type(x) is int):
                raise ValueError(f"{name}.{f.name} is {x!r:.80}, expected {NAMES[kind]}")
            if kind in (int, float) and not low <= x <= high:                    # not: so for NaN, too
                raise ValueError(f"{name}.{f.name} is {x!r:.80}, expected {low} to {high:g}")
        if choices and value not in choices:
            raise ValueError(f"{name}.{f.name} is {value!r:.80}, expected {' or '.join(choices)}")


def check_model(config):
    """A HarmonConfig whose parts can be built, and fit each other."""
    for name, section in {"model": config, **sections(config)}.items():
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
