"""Checks of exercise 14: how many tokens are hidden in training, and which."""
import math
import random
from unittest.mock import patch

import torch

from nanoharmon import mar
from nanoharmon.config import MARConfig
from nanoharmon.course.checks.compare import same

POINTS = {"test_mask_ratio": 1, "test_division": 1, "test_number_of_hidden_tokens": 1, "test_hide_all": 1}


def normal_cdf(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def truncated(u, low, std=0.25, mean=1.0, high=1.0):
    """The number below which a share u of normal(mean, std), cut to [low, high], lies: by halving the range."""
    a, b = low, high
    under, over = (normal_cdf((end - mean) / std) for end in (low, high))
    for _ in range(60):
        middle = (a + b) / 2
        below = (normal_cdf((middle - mean) / std) - under) / (over - under) < u
        a, b = (middle, b) if below else (a, middle)
    return a


def test_mask_ratio(seed):
    rng = random.Random(seed)
    us = sorted([rng.uniform(0.002, 0.03), *(rng.random() for _ in range(12))])
    low = rng.uniform(0.5, 0.65)

    def of_all(function):
        return [function(u) for u in us]
    config = MARConfig(mask_ratio="truncnorm", mask_ratio_min=low)
    same(f"truncnorm, cut to [{low:.3g}, 1]", of_all(lambda u: mar.mask_ratio_at(config, u)),
         of_all(lambda u: truncated(u, low)), {
        "the range begins at 0.7, whatever mask_ratio_min is": of_all(lambda u: truncated(u, 0.7)),
        "the normal distribution is not cut at mask_ratio_min": of_all(lambda u: truncated(u, -9.0)),
        "the normal distribution is not cut at 1": of_all(lambda u: truncated(u, low, high=9.0)),
        "the standard deviation is 1, not 0.25": of_all(lambda u: truncated(u, low, std=1.0)),
        "the mean is mask_ratio_min, not 1": of_all(lambda u: truncated(u, low, mean=low)),
        "the ratio is uniform between mask_ratio_min and 1": of_all(lambda u: low + u * (1 - low)),
        "the ratio falls when u grows": of_all(lambda u: truncated(1 - u, low)),
        "the cosine is used for truncnorm, too": of_all(lambda u: math.cos(math.pi / 2 * u)),
        "values below mask_ratio_min are moved to it; the whole distribution should be cut":
            of_all(lambda u: max(low, truncated(u, -9.0))),
    }, rtol=1e-5, atol=1e-5)
    config = MARConfig(mask_ratio="cosine", mask_ratio_min=low)
    same("cosine", of_all(lambda u: mar.mask_ratio_at(config, u)), of_all(lambda u: math.cos(math.pi / 2 * u)), {
        "it is a sine": of_all(lambda u: math.sin(math.pi / 2 * u)),
        "the angle is u itself, and not pi / 2 u": of_all(math.cos),
        "the angle is pi u, and not pi / 2 u": of_all(lambda u: math.cos(math.pi * u)),
        "truncnorm is used for cosine, too": of_all(lambda u: truncated(u, low)),
        "mask_ratio_min cuts the cosine, too": of_all(lambda u: max(low, math.cos(math.pi / 2 * u))),
        "it is 1 - cos(...)": of_all(lambda u: 1 - math.cos(math.pi / 2 * u)),
    })


def split(B, S, seed, ratio, hide_all=0.0):
    """random_split with a generator of this seed and with `ratio(u)` in place of mask_ratio_at: (visible, hidden)."""
    with patch.object(mar, "mask_ratio_at", lambda config, u: ratio(u)):
        got = mar.random_split(MARConfig(), B, S, "cpu", torch.Generator().manual_seed(seed), hide_all)
    assert isinstance(got, tuple) and len(got) == 2, "random_split returns two things: visible and hidden"
    for name, places in zip(("visible", "hidden"), got):
        assert isinstance(places, torch.Tensor) and places.dtype == torch.int64 and places.ndim == 2 and \
            len(places) == B, f"{name} should be a tensor of whole numbers (int64), ({B}, its number of places)"
    return got


def test_division(seed):
    rng = random.Random(seed)
    B, S = rng.randint(3, 5), rng.randint(20, 40)
    n = rng.randint(S // 3, S // 2 - 1)
    visible, hidden = split(B, S, seed, lambda u: (n - 0.5) / S)
    assert (visible.shape[1], hidden.shape[1]) != (n, S - n), "visible and hidden are swapped: visible comes first"
    assert hidden.shape[1] == n, \
        f"{hidden.shape[1]} of {S} tokens are hidden at the ratio {(n - 0.5) / S:.4f}, expected {n}"
    same("visible and hidden together, sorted", torch.cat([visible, hidden], dim=1).sort(dim=1).values,
         torch.arange(S).expand(B, S))
    for name, places in ("visible", visible), ("hidden", hidden):
        assert (places.diff(dim=1) > 0).all(), f"{name} is not in raster order: sort each row"
    assert not (hidden == hidden[0]).all(), "all pictures of the batch hide the same places; each needs its own order"
    B, S = 200, 8
    _, hidden = split(B, S, seed, lambda u: 0.45)                # 4 of 8, 200 times
    often = hidden.flatten().bincount(minlength=S)
    assert 60 < often.min() and often.max() < 140, \
        f"in 200 pictures the 8 places are hidden {often.tolist()} times, expected about 100 each: which is random"
    again = [split(3, 30, seed + 1, lambda u: 0.5)[1] for _ in range(2)]
    assert torch.equal(*again), \
        "two calls with generators of the same seed differ: take all random numbers from generator"


def test_number_of_hidden_tokens(seed):
    rng = random.Random(seed)
    S, seeds = rng.randint(9, 17), [rng.randrange(10**6) for _ in range(40)]

    def count(function):
        return [function(torch.Generator().manual_seed(s)) for s in seeds]

    def share(g):
        return math.cos(math.pi / 2 * torch.rand((), generator=g).item())

    def late(g):
        torch.rand(1, S, generator=g)
        return share(g)
    same(f"the number of {S} tokens that are hidden", [
        split(1, S, s, lambda u: math.cos(math.pi / 2 * u))[1].shape[1] for s in seeds],
        count(lambda g: math.ceil(S * share(g))), {
        "it is rounded down; round up": count(lambda g: max(1, math.floor(S * share(g)))),
        "it is rounded to the nearest; round up": count(lambda g: max(1, round(S * share(g)))),
        "the ratio is that of the visible tokens": count(lambda g: S - math.ceil(S * share(g))),
        "the ratio is u itself, and mask_ratio_at is not asked":
            count(lambda g: math.ceil(S * torch.rand((), generator=g).item())),
        "u is drawn after the orders; draw it first": count(lambda g: math.ceil(S * late(g))),
    })
    same("the number of hidden tokens at a ratio of 0", [split(2, S, seed, lambda u: 0.0)[1].shape[1]], [1], {
        "no token is hidden; at least one must be, or there is nothing to learn": [0]})
    same("the number of hidden tokens at a ratio of 1", [split(2, S, seed, lambda u: 1.0)[1].shape[1]], [S])
    same("the number of hidden tokens at a ratio of 1.0000001", [
        split(2, S, seed, lambda u: 1 + 1e-7)[1].shape[1]], [S])


def test_hide_all(seed):
    rng = random.Random(seed)
    S, share, seeds = rng.randint(9, 17), rng.uniform(0.3, 0.6), [rng.randrange(10**6) for _ in range(60)]
    us = [torch.rand((), generator=torch.Generator().manual_seed(s)).item() for s in seeds]

    def hidden(ratio):
        return [min(S, max(1, math.ceil(S * ratio(u)))) for u in us]

    def cosine(u):
        return math.cos(math.pi / 2 * u)
    same(f"the number of {S} tokens that are hidden, with hide_all {share:.3g}", [
        split(1, S, s, cosine, share)[1].shape[1] for s in seeds],
        hidden(lambda u: 1 if u < share else cosine((u - share) / (1 - share))), {
        "hide_all is not used": hidden(cosine),
        "u is not stretched: what is left of [0, 1) after hide_all must cover [0, 1) again":
            hidden(lambda u: 1 if u < share else cosine(u)),
        "u - hide_all is not divided by 1 - hide_all": hidden(lambda u: 1 if u < share else cosine(u - share)),
        "u is divided by 1 - hide_all without taking hide_all away":
            hidden(lambda u: 1 if u < share else cosine(min(1, u / (1 - share)))),
        "the share 1 - hide_all hides everything, and not hide_all":
            hidden(lambda u: 1 if u > share else cosine(u / share)),
        "hide_all is the least ratio": hidden(lambda u: max(share, cosine(u))),
    })
    visible, hidden = split(2, S, seed, cosine, 1.0)
    assert hidden.shape[1] == S and visible.shape == (2, 0), "with hide_all 1, every token is hidden in every batch"
