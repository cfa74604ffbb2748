"""Checks of exercise 11: one step back, from x_t to the distribution of x_{t-1}."""
import random

import torch

from nanoharmon.course.checks.chain import bars_of, rows
from nanoharmon.course.checks.compare import same, unchanged
from nanoharmon.diffusion import Diffusion

POINTS = {"test_posterior": 1, "test_clean_token": 1, "test_mean": 1, "test_log_variance": 1}


def a_step(seed):
    """(chain, its alpha-bars, t, x_t, eps, v) with random sizes; the first place is among the t."""
    rng = random.Random(seed)
    count, N, C = rng.randint(15, 40), rng.randint(5, 9), rng.randint(3, 6)
    chain = Diffusion(count)
    t = torch.cat([torch.tensor([0, count - 3]), torch.randint(1, count - 3, (N - 2,))])
    return chain, bars_of(chain.timestep_map, 1000), t, *torch.randn(3, N, C)


def at_once(function, *args):
    """The result for one t, a whole number, that holds for all rows: so `sample` calls these functions."""
    try:
        return function(*args)
    except (AttributeError, IndexError, RuntimeError, TypeError) as e:
        raise AssertionError(f"t may be one whole number for all rows, as in `sample`; then `self.at` gives a number, "
                             f"and your code ends with {type(e).__name__}: {e}") from None


def test_posterior(seed):
    chain, bars, t, x_t, x0, _ = a_step(seed)
    got = chain.q_posterior(x0, x_t, t)
    assert isinstance(got, tuple) and len(got) == 2, "q_posterior returns two things: mean and log-variance"

    def by_row(function, t=t):
        return rows(function, bars, t, x0, x_t)
    same("the mean of q_posterior", got[0], by_row(lambda s, x0, x: s.mean(x0, x)), {
        "x_0 and x_t are swapped": by_row(lambda s, x0, x: s.mean(x, x0)),
        "the variance is returned first": by_row(lambda s, x0, x: torch.tensor([s.lower])),
        "all rows get the timestep of the first": by_row(lambda s, x0, x: s.mean(x0, x), t[:1].expand(len(t))),
        "the term of x_t is missing": by_row(lambda s, x0, x: s.mean(x0, 0 * x)),
        "the mean of q(x_{t-1} | x_0) is returned, without x_t": by_row(lambda s, x0, x: s.before ** 0.5 * x0),
    })
    same("the log-variance of q_posterior", got[1], by_row(lambda s, *_: torch.tensor([s.lower])), {
        "it is the logarithm of 0 at t = 0; the table whose first entry is replaced is clipped":
            by_row(lambda s, *_: torch.tensor([s.variance]).log()),
        "the variance is returned, and not its logarithm": by_row(lambda s, *_: torch.tensor([s.lower]).exp()),
        "log(beta) is returned, the upper bound": by_row(lambda s, *_: torch.tensor([s.upper])),
    })
    same("the mean of q_posterior with t = 2 for all rows", at_once(chain.q_posterior, x0, x_t, 2)[0],
         by_row(lambda s, x0, x: s.mean(x0, x), torch.full_like(t, 2)))


def test_clean_token(seed):
    chain, bars, t, x_t, eps, _ = a_step(seed)
    before, got = x_t.clone(), chain.predict_x0(x_t, t, eps)

    def by_row(function, eps=eps, t=t):
        return rows(function, bars, t, x_t, eps)
    free = by_row(lambda s, x, e: s.clean(x, e))
    same("x_0", got, free, {
        "x_0 is cut to 0 when clip is 0; then nothing should be cut": torch.zeros_like(x_t),
        "the noise is added, and not taken away": by_row(lambda s, x, e: s.clean(x, -e)),
        "the noise is not divided by sqrt(ac), as x_t is": by_row(
            lambda s, x, e: x / s.bar ** 0.5 - (1 - s.bar) ** 0.5 * e),
        "nothing is divided by sqrt(ac)": by_row(lambda s, x, e: x - (1 - s.bar) ** 0.5 * e),
        "the noise is divided by sqrt(ac) twice": by_row(
            lambda s, x, e: (x - (1 / s.bar - 1) ** 0.5 * e) / s.bar ** 0.5),
        "the square roots are missing": by_row(lambda s, x, e: (x - (1 - s.bar) * e) / s.bar),
        "noise is added as in q_sample; wanted is the way back": by_row(
            lambda s, x, e: s.bar ** 0.5 * x + (1 - s.bar) ** 0.5 * e),
        "all rows get the timestep of the first": by_row(lambda s, x, e: s.clean(x, e), t=t[:1].expand(len(t))),
    })
    unchanged("x_t", before, x_t)
    same("x_0 with t = 2 for all rows", at_once(chain.predict_x0, x_t, 2, eps),
         by_row(lambda s, x, e: s.clean(x, e), t=torch.full_like(t, 2)))
    clip = free.abs().median().item()                            # so that half of the numbers are cut
    same(f"x_0 with clip {clip:.3g}", chain.predict_x0(x_t, t, eps, clip), free.clamp(-clip, clip), {
        "nothing is cut": free,
        "only what is above clip is cut, and not what is below -clip": free.clamp(max=clip),
        "it is cut to [0, clip], and not to [-clip, clip]": free.clamp(0, clip),
        "it is cut to [-1, 1], whatever clip is": free.clamp(-1, 1),
        "eps is cut, and not x_0": by_row(lambda s, x, e: s.clean(x, e), eps=eps.clamp(-clip, clip)),
    })


def test_mean(seed):
    chain, bars, t, x_t, eps, v = a_step(seed)
    output = torch.cat([eps, v], dim=1)
    free = rows(lambda s, x, e: s.clean(x, e), bars, t, x_t, eps)
    clip = free.abs().median().item()
    got = chain.p_mean_variance(output, x_t, t)
    assert isinstance(got, tuple) and len(got) == 3, "p_mean_variance returns three things: mean, log-variance, x_0"

    def mean_of(x0):
        return rows(lambda s, x0, x: s.mean(x0, x), bars, t, x0, x_t)
    same("the mean", got[0], mean_of(free), {
        "the halves of the output are swapped; eps comes first, then v": mean_of(
            rows(lambda s, x, e: s.clean(x, e), bars, t, x_t, v)),
        "every other channel is taken for eps, and not the first half": mean_of(
            rows(lambda s, x, e: s.clean(x, e), bars, t, x_t, output[:, ::2])),
        "x_0 is returned; a step goes only a part of the way to it": free,
        "x_0 and x_t are swapped, in q_posterior or where it is called":
            rows(lambda s, x0, x: s.mean(x, x0), bars, t, free, x_t),
        "eps is taken for x_0; first predict_x0, then q_posterior": mean_of(eps),
    })
    same("the third result, x_0", got[2], free)
    mean, logvar, _ = at_once(chain.p_mean_variance, output, x_t, 2)
    two = torch.full_like(t, 2)
    same("the mean with t = 2 for all rows", mean, rows(
        lambda s, x, e: s.mean(s.clean(x, e), x), bars, two, x_t, eps))
    same("the log-variance with t = 2 for all rows", logvar, rows(lambda s, v: s.log_variance(v), bars, two, v))
    got = chain.p_mean_variance(output, x_t, t, clip)
    same(f"the third result, x_0, with clip {clip:.3g}", got[2], free.clamp(-clip, clip), {
        "clip is not passed on": free})
    same(f"the mean with clip {clip:.3g}", got[0], mean_of(free.clamp(-clip, clip)), {
        "it comes from the x_0 before the cut": mean_of(free)})


def test_log_variance(seed):
    chain, bars, t, x_t, eps, v = a_step(seed)                   # v is sometimes beyond -1 and 1
    got = chain.p_mean_variance(torch.cat([eps, v], dim=1), x_t, t)[1]

    def by_row(function, v=v):
        return rows(function, bars, t, v)
    right = by_row(lambda s, v: s.log_variance(v))
    lower, upper = by_row(lambda s, v: s.lower + 0 * v), by_row(lambda s, v: s.upper + 0 * v)
    share = (v.double() + 1) / 2
    same("the log-variance", got, right, {
        "the share of the upper bound is v; it should be (v + 1) / 2": by_row(lambda s, v: s.log_variance(2 * v - 1)),
        "the two bounds are swapped; v = 1 means log(beta), the larger one": by_row(lambda s, v: s.log_variance(-v)),
        "v is cut to [-1, 1]; the official code leaves it as it is": by_row(
            lambda s, v: s.log_variance(v.clamp(-1, 1))),
        "the variances are mixed, and not their logarithms": (share * upper.exp() + (1 - share) * lower.exp()).log(),
        "the variance is returned, and not its logarithm": right.exp(),
        "it is the log of the standard deviation, half of it": right / 2,
        "v is not used: this is the lower bound": lower,
        "v is not used: this is the upper bound": upper,
        "v is not used: this is q_posterior's, (N, 1)": lower[:, :1],
        "the halves of the output are swapped; v is the second half": by_row(lambda s, v: s.log_variance(v), eps),
    }, rtol=1e-4, atol=1e-4)
