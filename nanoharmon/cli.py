"""What the command lines share: one-line errors, flags that suggest their neighbours, progress bars.

    error: <what was got>, <what was expected>, <the flag that fixes it>        on stderr, exit 2, no traceback

A script ends with `run_main(main)`; everything below main says what is wrong by raising ValueError or OSError. The
library's errors are facts ("iters is 99, expected 1 to 16"); the flag that fixes them is added here (`FIXES`).
NANOHARMON_TRACEBACK=1 in the environment shows the traceback after all.
"""
import argparse
import errno
import functools
import math
import os
import shlex
import subprocess
import sys
from contextlib import suppress

from tqdm import tqdm

from .config import PRESETS, SAMPLERS, SCHEDULES, nearest

DTYPES = "float32", "bfloat16", "float16"
PATHS = "DIR", "FILE", "OUT", "DIR|FILE"                            # metavars of flags that name files and folders
# how an error of the library about an option begins, and what helps those who typed flags
FIXES = {"image size ": "pass another --size", "size is ": "pass a smaller --size", "iters is ": "pass another --iters",
         "cfg is ": "pass another --cfg", "temperature is ": "pass another --temperature",
         "redraw is ": "pass another --redraw", "seed is ": "pass another --seed", "top_p is ": "pass another --top-p",
         "max_new_tokens is ": "pass another --max-new-tokens", "prompts are ": "pass --prompt TEXT",
         "steps is ": "pass another --steps", "sampler is ": "pass --sampler with one of them",
         "cfg_schedule is ": "pass --cfg-schedule with one of them", "prompt is ": "pass a shorter --prompt",
         "image is ": "pass both --image and --region", "think is ": "drop --think",
         "region is ": "pass --region x0,y0,x1,y1 in pixels of --image",
         "refused: ": "pass --no-think to draw it all the same",
         "conversation is ": "pass a shorter --prompt, or a smaller --max-new-tokens"}
# a progress bar that leaves no line, so that an error after it stands alone; none where stderr is no terminal
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
        elif unknown != message and flag.startswith(("\u2013", "\u2014")):
            message = f"got {flag!r} with a long dash, as editors put it, expected two hyphens; type them anew"
        elif unknown != message:
            prompt = ", such as --prompt" if "--prompt" in self._option_string_actions else ""
            message = f"got {unknown!r}, which belongs to no flag; put one before it{prompt}, and straight quotes " \
                      f"around texts with spaces, see --help"
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
            if action.metavar in PATHS and value:      # in --out=~/x a shell leaves the ~ as it is
                home = [os.path.expanduser(v) for v in ([value] if isinstance(value, str) else value)]
                setattr(found, action.dest, home[0] if isinstance(value, str) else home)
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


def tolerate_characters():
    """Characters that the terminal cannot show, or that are none (file names), are no reason to stop. Nor is a stream
    that is closed (2>&-), for which Python has None."""
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="replace")


class Unbroken:
    """A stream that may be gone (`| less`, a closed terminal) or full: no reason to end a training."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        with suppress(OSError):
            self.stream.write(text)

    def flush(self):
        with suppress(OSError):
            self.stream.flush()


def out_of_memory(error):
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error)


def run_main(main):
    """Call main(), then exit: 0, 2 after an error, 130 after Ctrl-C."""
    tolerate_characters()
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:                            # `| head`: nobody reads on
        os._exit(0)
    except (ValueError, OSError, MemoryError, RuntimeError) as e:
        if os.environ.get("NANOHARMON_TRACEBACK") or isinstance(e, RuntimeError) and not out_of_memory(e):
            raise                                      # a RuntimeError is a bug of ours: show where
        print("error:", in_words(e), file=sys.stderr)
        sys.exit(2)


def model_flags(parser):
    """Flags that are the same everywhere."""
    parser.add_argument("--ckpt", metavar="DIR", help="a trained model (default: checkpoints/nano beside the script)")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0, help="same seed, same result (default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument("--dtype", choices=(*DTYPES, "auto"), default="float32", help="of the weights; auto: the "
                        "faster of float32 and bfloat16 on this machine (default float32)")


def drawing_flags(parser):
    """Flags of sample.py and evaluate that say how pictures are drawn, by the names of plans.OFFICIAL; None where it is
    the checkpoint's to say."""
    add, own = parser.add_argument, "(default: the checkpoint's own, else {})".format
    add("--cfg", type=number(float, 0, 100), help="guidance: 1 none, higher follows the prompt more " + own(3))
    add("--cfg-schedule", choices=SCHEDULES, help="linear grows from 1 to --cfg, not in --redraw " + own("constant"))
    add("--iters", type=number(int, 1, 10**6), help="iterations, at most the number of tokens " + own(64))
    add("--redraw", type=number(int, 0, 100), help="afterwards, rounds in which one half of the tokens and then the "
        "other is drawn anew, given the rest " + own(0))
    add("--steps", type=number(int, 1, 1000), help="diffusion steps per token, 1 to 1000 " + own(100))
    add("--sampler", choices=SAMPLERS, help="ddpm: as the paper; ddim, dpm++: without noise, no better here " +
        own("ddpm"))
    add("--temperature", type=number(float, 0, 100), help="of ddpm's noise: lower is safer and duller " + own(1))
    add("--think", action=argparse.BooleanOptionalAction, help="first let the LLM say what will be where, and draw "
        "that; it must have learned to " + own("no"))
    add("--fast", action="store_true", default=None, help="few --iters, --steps and --redraw: a measured choice "
        "(docs/RESULTS.md)")


def explain_flags(parser, beside=""):
    """Flags of sample.py and chat.py that follow one request through the model (explain.py)."""
    parser.add_argument("--explain", action="store_true", help=f"{beside}also print how the request goes through the "
                        "model: every tensor with its shape, range and line of code")
    parser.add_argument("--dry-run", nargs="?", const="nano", metavar="PRESET", help="with --explain: shapes alone, "
                        f"nothing is loaded; for {', '.join(PRESETS)} (default nano)")


def refuse_beside(parser, args, flag, names, why):
    """An error about the first of some flags that is given beside `flag`, where it would change nothing."""
    for name in names:
        if getattr(args, name) not in (parser.get_default(name), []):
            parser.error(f"--{name.replace('_', '-')} beside {flag}, which {why}; drop one of them")


def text(words, flag):
    """Words from the command line: not empty, and really text."""
    with suppress(UnicodeError):                       # UTF-8 that Python took for ASCII, in the locale C
        words = words.encode("utf-8", "surrogateescape").decode("utf-8")
    if not words.strip():
        raise ValueError(f"{flag} is empty, expected some text; pass {flag} TEXT")
    if any("\ud800" <= c <= "\udfff" for c in words):               # what Python makes of bytes that are not UTF-8
        raise ValueError(f"{flag} {words!r} is not valid UTF-8; change the terminal's encoding or {flag}")
    return words


def in_words(e, fixes=FIXES):
    """The message of an exception on one line, for people, and what helps. fixes: {how it begins: what helps}."""
    if out_of_memory(e):
        return "out of memory; pass a smaller picture or batch"
    if not getattr(e, "strerror", None):
        return one_line("; ".join([str(e), *(fix for start, fix in fixes.items() if str(e).startswith(start))]))
    full = e.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    fix = "free space or write to another disk" if full else "check that path, or pass another one"
    return one_line(f"{e.filename or 'output'}: {e.strerror}; {fix}")


def one_line(words, most=1000):
    """Words as one line that does a terminal no harm: control characters escaped, the middle of an endless one cut."""
    words = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(words.split()))
    return words if len(words) <= most else f"{words[:most // 2]} ... {words[-most // 2:]}"


def typed(words):
    """A command's words as one types them into a shell, on Windows into its own."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def first_of(items, most):
    """The first items of a list as text, and dots where there are more."""
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def markdown_table(header, rows):
    """A Markdown table of values as they print, its columns aligned."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
