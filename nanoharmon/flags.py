"""Every field of a config is a flag: --mar.encoder_depth 6, --stage_2.lr=0.5. Text to values, and the --help text."""
import dataclasses
import typing

from .config import nearest

NUMBER = {int: "a whole number", float: "a number"}


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
        raise ValueError(f"got {text!r}, expected {NUMBER.get(kind, kind.__name__)}") from None


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


def override(config, flags):
    """Apply ["--mar.encoder_depth=6", "--stage_2.lr", "0.5"] to a config in place. Errors name the nearest flag."""
    known = {f"--{name}.{f.name}": (section, f) for name, section in sections(config).items()
             for f in dataclasses.fields(section) if not dataclasses.is_dataclass(f.type)}
    flags = list(flags)
    while flags:
        flag, eq, text = flags.pop(0).partition("=")
        if flag not in known:
            raise ValueError(f"unknown flag {flag}{nearest(flag, known)}; see --help")
        if not eq:
            if not flags or flags[0].startswith("--"):
                raise ValueError(f"{flag} needs a value")
            text = flags.pop(0)
        section, f = known[flag]
        try:
            setattr(section, f.name, parse_value(f.type, text))
        except ValueError as e:
            raise ValueError(f"{flag}: {e}") from None


def describe_flags(config):
    """The --help text of all --section.field flags, with their values in this preset."""
    lines = []
    for name, section in sections(config).items():
        for f in dataclasses.fields(section):
            if not dataclasses.is_dataclass(f.type):
                value = getattr(section, f.name)
                value = ",".join(map(str, value)) if isinstance(value, tuple) else value
                lines.append(f"  --{name}.{f.name} {value}\n        {f.metadata.get('help', '')}")
    return "\n".join(lines)
