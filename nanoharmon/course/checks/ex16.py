"""Checks of exercise 16: how many tokens are still hidden after each iteration."""
import math
import random

from nanoharmon.course.checks.compare import same
from nanoharmon.mar import unmasking_schedule

POINTS = {"test_cosine": 1, "test_ends_and_steps": 1, "test_more_iterations_than_tokens": 1}


def schedule(S, iters, left=lambda S, share: S * math.cos(math.pi / 2 * share), whole=math.floor, least=1, step=1,
             shift=1, last=0):
    """The right counts, one by one; the options are mistakes."""
    counts = [S]
    for i in range(iters):
        n = whole(left(S, (i + shift) / iters))
        if step is not None:
            n = min(n, counts[-1] - step)
        counts.append(max(least, n))
    return counts[:-1] + [last] if last is not None else counts


def clear(S, iters):
    """Whether no count lies so near to a whole number that rounding errors decide."""
    exact = [S * math.cos(math.pi / 2 * (i + 1) / iters) for i in range(iters - 1)]
    return all(abs(x - round(x)) > 1e-6 for x in exact)


def sizes(rng, S, iters):
    while True:
        pair = rng.randint(*S), rng.randint(*iters)
        if clear(*pair):
            return pair


def call(S, iters):
    got = unmasking_schedule(S, iters)
    assert isinstance(got, (list, tuple)), f"unmasking_schedule gives a {type(got).__name__}, expected a list"
    wrong = [n for n in got if not isinstance(n, int)]
    assert not wrong, f"{wrong[0]!r} in the list is no whole number (int)"
    return list(got)


def mistakes(S, iters):
    return {
        "the counts are rounded to the nearest, not down": schedule(S, iters, whole=round),
        "the counts are rounded up, not down": schedule(S, iters, whole=math.ceil),
        "the number falls by the same amount each time": schedule(S, iters, lambda S, share: S * (1 - share)),
        "many tokens are drawn at first and few at the end: 1 - sin, and not cos":
            schedule(S, iters, lambda S, share: S * (1 - math.sin(math.pi / 2 * share))),
        "the angle is not multiplied by pi / 2": schedule(S, iters, lambda S, share: S * math.cos(share)),
        "the cosine is squared": schedule(S, iters, lambda S, share: S * math.cos(math.pi / 2 * share) ** 2),
        "one iteration off: after the first, the share of iterations is 1 / iters": schedule(S, iters, shift=0),
        "n at the beginning is missing": schedule(S, iters)[1:],
        "0 at the end is missing": schedule(S, iters)[:-1],
        "the numbers of tokens drawn are returned, and not of those left":
            [a - b for a, b in zip(schedule(S, iters), schedule(S, iters)[1:])],
        "the numbers of visible tokens are returned, and not of hidden ones": [S - n for n in schedule(S, iters)],
        "one token is left at the end": schedule(S, iters, last=1),
        "an iteration may draw nothing; each should draw at least one token": schedule(S, iters, step=None),
        "the count may fall to 0, and below, before the last iteration": schedule(S, iters, least=-10**6),
        "the count may fall to 0 before the last iteration; one token should be left for it":
            schedule(S, iters, least=0),
        "each iteration draws at least two tokens": schedule(S, iters, step=2),
    }


def test_cosine(seed):
    rng = random.Random(seed)
    for S, iters in (sizes(rng, (200, 300), (4, 9)), sizes(rng, (30, 60), (5, 12)), sizes(rng, (900, 1100), (60, 70))):
        same(f"unmasking_schedule({S}, {iters})", call(S, iters), schedule(S, iters), mistakes(S, iters))


def test_ends_and_steps(seed):
    rng = random.Random(seed)
    for S, iters in ((rng.randint(5, 90), 1), (1, 1), (rng.randint(2, 9), 2), sizes(rng, (20, 40), (18, 20))):
        got = call(S, iters)
        text = f"unmasking_schedule({S}, {iters}) is {str(got)[:60]}"
        assert len(got) == iters + 1, f"{text}: {len(got)} numbers, expected {iters} + 1, one more than iterations"
        assert got[0] == S, f"{text}: it begins with {got[0]}, expected {S}: all are hidden at first"
        assert got[-1] == 0, f"{text}: it ends with {got[-1]}, expected 0: after the last iteration nothing is hidden"
        assert all(a > b for a, b in zip(got, got[1:])), f"{text}: an iteration draws nothing, or takes tokens back"


def test_more_iterations_than_tokens(seed):
    rng = random.Random(seed)
    for S in (1, rng.randint(3, 8)):
        iters = S + rng.randint(2, 12)
        if not clear(S, iters):
            iters = next(n for n in range(S + 2, S + 200) if clear(S, n))
        same(f"unmasking_schedule({S}, {iters})", call(S, iters), schedule(S, iters), mistakes(S, iters))
