"""Checks of exercise 09: the cosine schedule, and noise for a clean token."""
import random
from unittest.mock import patch

import numpy as np
import torch

from nanoharmon import diffusion
from nanoharmon.course.checks.chain import alpha_bar, bars_of, rows
from nanoharmon.course.checks.compare import same, unchanged

POINTS = {"test_betas": 1, "test_betas_are_precise": 1, "test_noised_tokens": 1}


def betas(steps, max_beta, offset=0.008, power=2, shift=0):
    bars = [alpha_bar((i + shift) / steps, offset, power) for i in range(steps + 1)]
    return np.array([min(1 - after / before, max_beta) for before, after in zip(bars, bars[1:])])


def test_betas(seed):
    rng = random.Random(seed)
    for steps, max_beta in ((rng.randint(20, 400), 0.999), (rng.randint(5, 20), rng.uniform(0.3, 0.6)), (1, 0.9)):
        bars = np.array([alpha_bar(i / steps) for i in range(steps + 1)])
        got = diffusion.cosine_betas(steps, max_beta)
        assert isinstance(got, np.ndarray), f"cosine_betas gives a {type(got).__name__}, expected a numpy array"
        same(f"cosine_betas({steps}, {max_beta:.3g})", got, betas(steps, max_beta), {
            "nothing is cut at max_beta": betas(steps, 9.0),
            "all is cut at 0.999, whatever max_beta is": betas(steps, 0.999),
            "the cosine is not squared": betas(steps, max_beta, power=1),
            "the offset 0.008 is missing": betas(steps, max_beta, offset=0.0),
            "one step off: entry i goes from i / steps to (i + 1) / steps": betas(steps, max_beta, shift=-1),
            "one step off: entry 0 goes from 0 to 1 / steps": betas(steps, max_beta, shift=1),
            "alpha-bar is returned, the share of signal that is left, and not beta": bars[1:],
            "alpha-bar is returned, from u = 0 on, and not beta": bars[:-1],
            "1 - alpha-bar is returned; a beta is the noise of one step only": 1 - bars[1:],
            "alpha is returned, which is 1 - beta": 1 - betas(steps, max_beta),
        }, rtol=1e-5, atol=1e-9)


def test_betas_are_precise(seed):
    steps = random.Random(seed).randint(300, 1000)
    got = diffusion.cosine_betas(steps)
    assert got.dtype == np.float64, f"the betas are {got.dtype}, expected float64: products of {steps} follow"
    same(f"cosine_betas({steps}), compared to ten digits", got, betas(steps, 0.999), {
        "it is computed in float32": betas(steps, 0.999).astype(np.float32)}, rtol=1e-10, atol=1e-15)


def test_noised_tokens(seed):
    rng = random.Random(seed)
    for count, steps in ((rng.randint(6, 20), rng.randint(30, 60)), (1000, 1000)):
        with patch.object(diffusion, "cosine_betas", lambda steps=1000, max_beta=0.999: betas(steps, max_beta)):
            chain = diffusion.Diffusion(count, steps)            # from the betas of this file: q_sample alone counts
        N, C = rng.randint(5, 9), rng.randint(2, 6)
        x0, noise = torch.randn(2, N, C)
        t = torch.cat([torch.tensor([0, count - 1]), torch.randint(0, count, (N - 2,))])
        before = x0.clone(), noise.clone()
        bars, long = bars_of(chain.timestep_map, steps), bars_of(range(steps), steps)
        got = chain.q_sample(x0, t, noise)
        unchanged("x0", before[0], x0)
        unchanged("noise", before[1], noise)

        def mixed(function, bars=bars, t=t):
            return rows(function, bars, t, x0, noise)

        def right(s, x, e):
            return s.bar ** 0.5 * x + (1 - s.bar) ** 0.5 * e
        same("x_t", got, mixed(right), {
            "the factors are ac and 1 - ac, without their square roots":
                mixed(lambda s, x, e: s.bar * x + (1 - s.bar) * e),
            "the two factors are swapped; at t = 0 almost all is signal":
                mixed(lambda s, x, e: (1 - s.bar) ** 0.5 * x + s.bar ** 0.5 * e),
            "the noise is subtracted": mixed(lambda s, x, e: s.bar ** 0.5 * x - (1 - s.bar) ** 0.5 * e),
            "the factor of the noise is 1 - sqrt(ac), and not sqrt(1 - ac)":
                mixed(lambda s, x, e: s.bar ** 0.5 * x + (1 - s.bar ** 0.5) * e),
            "the square root of 1 - ac is missing": mixed(lambda s, x, e: s.bar ** 0.5 * x + (1 - s.bar) * e),
            "the noise of one step is added; alpha-bar (ac) is the product over all steps up to t":
                mixed(lambda s, x, e: (1 - s.beta) ** 0.5 * x + s.beta ** 0.5 * e),
            "all rows get the timestep of the first": mixed(right, t=t[:1].expand(N)),
            "t is looked up in the chain of all steps; it is a place in this chain already": mixed(right, bars=long),
        }, dtype=torch.float32)
