"""One diffusion chain, row by row and in float64, straight from the papers: what exercises 09 to 11 are compared with.

Nothing here calls nanoharmon/diffusion.py. A chain is a list `bars`: alpha-bar at each of its timesteps.
"""
import math

import torch


def alpha_bar(u, offset=0.008, power=2):
    """The share of signal that is left at u = 0 .. 1. Improved DDPM eq. 17."""
    return math.cos((u + offset) / (1 + offset) * math.pi / 2) ** power


def bars_of(timesteps, steps, max_beta=0.999):
    """alpha-bar at the given timesteps of the chain with `steps` steps: products of 1 - beta."""
    bar, all_bars = 1.0, []
    for i in range(steps):
        bar *= 1 - min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), max_beta)
        all_bars.append(bar)
    return [all_bars[t] for t in timesteps]


class Step:
    """The numbers of one step of a chain, from place t to t - 1."""

    def __init__(self, bars, t):
        self.bar, self.before = bars[t], bars[t - 1] if t else 1.0
        self.beta = 1 - self.bar / self.before
        self.variance = self.beta * (1 - self.before) / (1 - self.bar)                   # of q(x_{t-1} | x_t, x_0)
        self.upper = math.log(self.beta)
        self.lower = math.log(self.variance) if t else Step(bars, 1).lower          # log 0 is replaced, as officially

    def clean(self, x_t, eps):
        """x_0 from x_t and eps: x_t = sqrt(bar) x_0 + sqrt(1 - bar) eps, solved."""
        return (x_t - math.sqrt(1 - self.bar) * eps) / math.sqrt(self.bar)

    def mean(self, x0, x_t):
        """Mean of q(x_{t-1} | x_t, x_0). DDPM eq. 7."""
        return (math.sqrt(self.before) * self.beta * x0 + math.sqrt(1 - self.beta) * (1 - self.before) * x_t) \
            / (1 - self.bar)

    def log_variance(self, v):
        """Between the two bounds. Improved DDPM eq. 15, with v from -1 to 1."""
        return (1 + v) / 2 * self.upper + (1 - v) / 2 * self.lower


def rows(function, bars, t, *tensors):
    """function(step, row, ...) for each row with its own timestep, stacked. Tensors are used in float64."""
    tensors = [x.detach().double() for x in tensors]
    return torch.stack([function(Step(bars, int(i)), *(x[n] for x in tensors)) for n, i in enumerate(t)])
