"""Exercise 22, EMA.update and EMA.swap: the moving average of the weights, and using it for a while."""
import random

import torch
from torch import nn

from nanoharmon.training.optim import EMA
from nanoharmon.course.checks.compare import close, same

POINTS = {"test_update_follows_the_ramp": 2, "test_update_goes_by_name_and_touches_nothing_else": 1,
          "test_swap_exchanges_weights_and_averages": 1}


def example(seed):
    """Parameters of random shapes, two of one shape; their values as float64; a generator."""
    rng, generator = random.Random(f"22/{seed}"), torch.Generator().manual_seed(seed)
    shape = rng.choice(((2, 3), (4, 2)))
    shapes = {"a": shape, "b": (rng.choice((1, 5)),), "c": shape, "d": ()}
    params = {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}
    return params, {n: p.detach().double() for n, p in params.items()}, rng, generator


def move(params, generator):
    for p in params.values():
        p.data = torch.randn(p.shape, generator=generator)


def average(first, seen, first_step, weight):
    """`first` after an update with each of the values `seen`; weight(step): what the old average counts."""
    value = first
    for step, new in enumerate(seen, first_step):
        w = weight(step)
        value = w * value + (1 - w) * new
    return value


def test_update_follows_the_ramp(seed):
    params, first, rng, generator = example(seed)
    # the ramp, then the decay; the ramp alone; far behind the ramp
    for decay, first_step, n in ((0.5, 0, 12), (0.9999, 0, 6), (rng.choice((0.9, 0.8)), 200, 3)):
        ema, seen = EMA(params, decay), []
        first = {name: p.detach().double() for name, p in params.items()}
        for step in range(first_step, first_step + n):
            move(params, generator)
            seen.append({name: p.detach().double() for name, p in params.items()})
            ema.update(params, step)
        for name in params:
            def by(weight):
                return average(first[name], [values[name] for values in seen], first_step, weight)
            same(f"the average after {n} updates from step {first_step} on, with decay {decay}", ema.shadow[name],
                 by(lambda s: min(decay, (1 + s) / (10 + s))), {
                     "the decay has no ramp: it is min(decay, (1 + step) / (10 + step))": by(lambda s: decay),
                     "old and new change places: the average keeps the share d, the parameters come in with 1 - d":
                      by(lambda s: 1 - min(decay, (1 + s) / (10 + s))),
                     "old and new change places, and there is no ramp": by(lambda s: 1 - decay),
                     "the larger of decay and ramp is taken, instead of the smaller":
                      by(lambda s: max(decay, (1 + s) / (10 + s))),
                     "the ramp never ends: decay is its limit": by(lambda s: (1 + s) / (10 + s)),
                     "the ramp is one step ahead": by(lambda s: min(decay, (2 + s) / (11 + s))),
                     "the ramp is one step late": by(lambda s: min(decay, s / (9 + s))),
                     "the average is never updated": first[name],
                     "the average is just the last parameters": seen[-1][name]}, rtol=1e-5, atol=1e-5)


def test_update_goes_by_name_and_touches_nothing_else(seed):
    params, first, rng, generator = example(seed)
    ema = EMA(params, 0.5)
    move(params, generator)
    values = {n: p.detach().clone() for n, p in params.items()}
    ema.update({n: params[n] for n in "cbad"}, 100)                              # the same, in another order
    for name, p in params.items():
        assert torch.equal(p, values[name]), "update changes the parameters; it changes their averages only"
        assert not ema.shadow[name].requires_grad and ema.shadow[name].grad_fn is None, \
            "the average has a gradient: it would keep the graph of every step in memory (no_grad, or detach)"
    for name in params:
        crossed = {"a": "c", "c": "a"}.get(name, name)
        same(f"the average of {name!r}", ema.shadow[name], 0.5 * first[name] + 0.5 * values[name].double(), {
            "it takes another parameter's value: the dict may have another order, so go by name":
             0.5 * first[name] + 0.5 * values[crossed].double()})
    before = {n: v.clone() for n, v in ema.shadow.items()}
    move(params, generator)
    for name, p in params.items():
        p.data.add_(1.0)
        assert torch.equal(ema.shadow[name], before[name]), \
            f"the average of {name!r} changes when the parameter does: they share memory, one needs a copy"


def test_swap_exchanges_weights_and_averages(seed):
    rng, generator = random.Random(f"22/swap/{seed}"), torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(rng.choice((2, 3)), 4), nn.Linear(4, rng.choice((1, 2))))
    params = dict(model.named_parameters())
    ema = EMA(params, 0.9)
    for value in ema.shadow.values():
        value.copy_(torch.randn(value.shape, generator=generator))
    own = {n: p.detach().clone() for n, p in params.items()}
    averages = {n: v.clone() for n, v in ema.shadow.items()}
    given = dict(params)
    ema.swap(given)
    for name, p in model.named_parameters():
        if given[name] is not p:
            raise AssertionError(f"swap puts another object into the dict for {name!r}: the model and the optimizer "
                                 f"hold the old one; change its values in place")
        same(f"the parameter {name!r} after swap", p, averages[name], {"swap does not change it": own[name]})
        same(f"the average of {name!r} after swap", ema.shadow[name], own[name], {
            "the parameter is overwritten before its value is kept: both then have the average (clone it first)":
             averages[name], "swap does not change it": averages[name]})
        assert p.requires_grad and p.is_leaf, f"{name!r} is no trained parameter any more after swap"
    for p in params.values():
        p.data.add_(1.0)
    for name in params:
        assert close(ema.shadow[name], own[name]), \
            f"after swap, parameter and average of {name!r} share memory: what trains one changes the other"
    for p in params.values():
        p.data.sub_(1.0)
    ema.swap(dict(sorted(params.items(), reverse=True)))
    for name, p in model.named_parameters():
        same(f"the parameter {name!r} after two swaps", p, own[name])
        same(f"the average of {name!r} after two swaps", ema.shadow[name], averages[name])
