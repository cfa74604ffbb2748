"""What callers of the Python API give: numbers of any kind, one text or several, conversations, threads. Checked.

Each function returns what the code goes on with. For anything else it raises a ValueError that begins with
the argument's name (cli.FIXES knows the flag).
"""
import math
import operator
import os
from contextlib import suppress

MOST_THREADS = 10**4                                               # more is a slip of the keyboard
SEEDS = 2**64 - 1                                                  # the largest that torch takes


def whole(name, value, low, high=math.inf):
    """A whole number from low to high: an int, or what numpy and torch have for one."""
    if is_whole(value) and low <= operator.index(value) <= high:
        return operator.index(value)
    raise ValueError(f"{name} is {shown(value)}, expected {'a whole number, ' if not is_whole(value) else ''}"
                     f"{f'{low} or more' if high == math.inf else f'{low} to {high}'}")


def is_whole(value):
    with suppress(TypeError, ValueError):
        operator.index(value)
        return True
    return False


def number(name, value, low, high):
    """A finite number from low to high; an int stays one."""
    if not isinstance(value, (str, bytes)):
        with suppress(TypeError, ValueError, OverflowError, RuntimeError):
            if low <= float(value) <= high:
                return value if isinstance(value, int) else float(value)
    raise ValueError(f"{name} is {shown(value)}, expected a number from {low} to {high}")


def truth(name, value):
    """True or False, of Python or numpy."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise ValueError(f"{name} is {shown(value)}, expected True or False")
    return bool(value)


def box(name, value):
    """Four numbers; which boxes are possible depends on the picture."""
    with suppress(TypeError, ValueError, RuntimeError):
        x0, y0, x1, y1 = value
        if not isinstance(value, str):
            return tuple(v if isinstance(v, int) else float(v) for v in (x0, y0, x1, y1))
    raise ValueError(f"{name} is {shown(value)}, expected x0, y0, x1, y1")


def sides(name, value):
    """A side or (width, height) -> (width, height)."""
    if hasattr(value, "__len__") and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1):
        if len(value) != 2:
            raise ValueError(f"{name} is {shown(value)}, expected a side or (width, height)")
        width, height = value
    else:
        width = height = value
    if not is_whole(width) or not is_whole(height):
        raise ValueError(f"{name} is {shown(value)}, expected pixels, a whole number")
    return operator.index(width), operator.index(height)


def texts(name, value):
    """One text, or any number of them -> a list. A text is never taken for its letters."""
    try:
        found = [value] if isinstance(value, str) else list(value)
    except TypeError:
        found = [None]
    if not all(isinstance(text, str) for text in found):
        raise ValueError(f"{name} are {shown(value)}, expected a text, or a list of them")
    return found


def choices(name, value):
    """For every question a list of texts, or one text."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise ValueError(f"{name} are {shown(value)}, expected a list of texts for each question")
    return [texts(name, one) for one in value]


def conversation(messages):
    """[{"role", "content"}], content a text or a list of texts and of None for pictures."""
    def is_message(m):
        if not isinstance(m, dict) or not isinstance(m.get("role"), str):
            return False
        parts = [m.get("content")] if isinstance(m.get("content"), str) else m.get("content")
        return isinstance(parts, (list, tuple)) and all(part is None or isinstance(part, str) for part in parts)
    if not isinstance(messages, (list, tuple)) or not messages or not all(map(is_message, messages)):
        raise ValueError(f"messages are {shown(messages)}, expected a list of {{\"role\": text, \"content\": text}}, "
                         f"the content perhaps a list of texts, and of None for each picture")
    return messages


def threads_asked():
    """How many threads the user asked for by OMP_NUM_THREADS: the first number of "4,2" (the others are for loops
    inside loops). None for nothing, or for what OpenMP would not take either."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    asked = int(first) if first.isascii() and first.isdigit() and len(first) < 10 else 0
    return asked if 1 <= asked <= MOST_THREADS else None


def cores():
    """How many processor cores this process may use: taskset, containers and schedulers leave it some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shown(value):
    """A value in an error: short, on one line."""
    return f"{' '.join(repr(value).split()):.80}"
