"""What the command lines share: one-line errors, flags that suggest their neighbours, devices, pictures, checkpoints.

    error: <what was got>, <what was expected>, <the flag that fixes it>        on stderr, exit 2, never a traceback

A script ends with `run(main)`; everything below main says what is wrong by raising ValueError or OSError.
NANOHARMON_TRACEBACK=1 in the environment shows the traceback after all.
"""
import argparse
import errno
import functools
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from tqdm import tqdm

from .config import nearest
from .pipeline import Pipeline

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# over what may end in an error: its line has stderr to itself, for this bar goes away, and is none in a file or pipe
bar = functools.partial(tqdm, disable=None, leave=False)


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, no empty values, and the nearest name for an unknown flag."""

    def __init__(self, **options):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options})

    def error(self, message):
        unknown = message.removeprefix("unrecognized arguments: ")
        flag = unknown.strip().partition(" ")[0].partition("=")[0]
        if unknown != message and flag.startswith("-"):
            message = f"unknown flag {flag}{nearest(flag, self._option_string_actions)}; --help lists them all"
        elif unknown != message:
            message = f"got {unknown!r}, which belongs to no flag; put texts with spaces in quotes, see --help"
        elif message.endswith("expected one argument"):
            message += " (one that starts with a dash is written --flag=VALUE)"
        self.exit(2, f"error: {one_line(message.removeprefix('argument '))}\n")

    def parse_known_args(self, args=None, namespace=None):
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:                   # --ckpt "$UNSET" does not ask for the default
            value = getattr(found, action.dest, None)
            if value == "" or isinstance(value, list) and "" in value:
                name = (action.option_strings or [action.metavar])[-1]
                self.error(f"{name} is empty, expected a value; pass one, or leave the flag out")
        return found, rest


def number(kind, low, high=math.inf):
    """An argparse type: an int or a finite float from low to high."""
    def parse(text):
        value = math.nan
        with suppress(ValueError):
            value = kind(text)
        if not low <= value <= high or value == math.inf:
            limits = f"{low} or more" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(
                f"got {text!r}, expected a {'whole ' if kind is int else 'finite '}number, {limits}")
        return value
    return parse


def run(main):
    """Call main(), then exit: 0, 2 after an error, 130 after Ctrl-C."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with suppress(AttributeError):                 # characters that the terminal cannot show are no reason to stop
            stream.reconfigure(errors="replace")
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:                            # `| head`: nobody reads on
        os._exit(0)
    except (ValueError, OSError, MemoryError, RuntimeError) as e:
        no_memory = isinstance(e, MemoryError) or "out of memory" in str(e) or "allocate memory" in str(e)
        if os.environ.get("NANOHARMON_TRACEBACK") or isinstance(e, RuntimeError) and not no_memory:
            raise                                      # a RuntimeError is a bug of ours: show where
        print("error:", "out of memory; pass a smaller picture or batch" if no_memory else explain(e), file=sys.stderr)
        sys.exit(2)


def model_flags(parser):
    """Flags that are the same everywhere."""
    parser.add_argument("--ckpt", metavar="DIR", help="a trained model (default: checkpoints/nano beside the script)")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0, help="same seed, same result (default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default float32)")


def text(words, flag):
    """Words from the command line: not empty, and really text."""
    if not words.strip():
        raise ValueError(f"{flag} is empty, expected some text; pass {flag} TEXT")
    if any("\ud800" <= c <= "\udfff" for c in words):               # what Python makes of bytes that are not UTF-8
        raise ValueError(f"{flag} {words!r} is not valid UTF-8; change the terminal's encoding or {flag}")
    return words


def explain(e):
    """The message of an exception on one line, for people."""
    if not getattr(e, "strerror", None):
        return one_line(str(e))
    full = e.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    fix = "free space or write to another disk" if full else "check that path, or pass another one"
    return one_line(f"{e.filename or 'output'}: {e.strerror}; {fix}")


def one_line(words, most=1000):
    """Words as one line that does a terminal no harm: control characters escaped, the middle of an endless one cut."""
    words = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(words.split()))
    return words if len(words) <= most else f"{words[:most // 2]} ... {words[-most // 2:]}"


def pick_device(name):
    """"auto", "cpu", "cuda", "cuda:1" or "mps" -> torch.device. Raises ValueError for one that is not there."""
    found = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    kind, _, index = (next(k for k in found if found[k]) if name == "auto" else name).partition(":")
    if not (index or "0").isdecimal() or int(index or 0) >= found.get(kind, 0):
        raise ValueError(f"device {name!r} is not here, torch finds {found}; pass --device auto or --device cpu")
    return torch.device(kind + (index and f":{index}"))


def load_pipeline(path, device="auto", dtype="float32"):
    """Pipeline.load; path None is the checkpoint that comes with the code."""
    path = Path(__file__).parents[1] / "checkpoints" / "nano" if path is None else Path(path)
    if not path.is_dir():
        raise ValueError(f"no checkpoint folder {path}; pass --ckpt DIR, or make one with python train.py")
    device = pick_device(device)
    try:
        return Pipeline.load(path, device, DTYPES[dtype])
    except ValueError as e:
        raise ValueError(f"{e}" if "--ckpt" in str(e) else f"{e}; pass another --ckpt") from None
