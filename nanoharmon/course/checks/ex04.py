"""Checks of exercise 04, RMSNorm."""
import random

import torch

from nanoharmon.course.checks.compare import same, unchanged
from nanoharmon.qwen import RMSNorm

POINTS = {"test_numbers": 2, "test_small_numbers_and_bfloat16": 1}


def module(rng, eps):
    norm = RMSNorm(rng.randrange(3, 40), eps)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(norm.weight.shape))
    return norm


def slow(x, weight, eps):
    """Row by row in float64."""
    rows = x.double().reshape(-1, x.shape[-1])
    out = [[float(w) * float(v) / (sum(float(u) ** 2 for u in row) / len(row) + eps) ** 0.5
            for v, w in zip(row, weight)] for row in rows]
    return torch.tensor(out, dtype=torch.float64).reshape(x.shape)


def test_numbers(seed):
    rng = random.Random(seed)
    norm = module(rng, 10 ** -rng.uniform(2, 4))
    weight, eps = norm.weight.detach().double(), norm.eps
    for lead in ((), (rng.randrange(2, 5),), (rng.randrange(2, 4), rng.randrange(2, 6))):
        x = torch.randn(*lead, norm.weight.shape[0]) * 2 + rng.uniform(0.5, 1)
        before, d = x.clone(), x.double()
        got = norm(x)
        unchanged("x", before, x)
        ms = d.pow(2).mean(-1, keepdim=True)
        unit = d / (ms + eps).sqrt()
        same("the result", got, slow(x, weight, eps), {
            "the weight is forgotten": unit,
            "the weight is applied as 1 + weight": unit * (1 + weight),
            "the mean is subtracted, as in LayerNorm": weight * (d - d.mean(-1, keepdim=True)) /
                (d.var(-1, keepdim=True, unbiased=False) + eps).sqrt(),
            "the squares are summed, not averaged": weight * d / (d.pow(2).sum(-1, keepdim=True) + eps).sqrt(),
            "the root is forgotten: x is divided by the mean square": weight * d / (ms + eps),
            "the mean goes over all numbers, not over those of a token": weight * d / (d.pow(2).mean() + eps).sqrt(),
            "the mean goes over the wrong dimension":
                lambda: weight * d / (d.pow(2).mean(-2, keepdim=True) + eps).sqrt(),
            "eps is added outside of the root": weight * d / (ms.sqrt() + eps),
            "eps is forgotten": weight * d / ms.sqrt(),
            "x is divided by the standard deviation":
                weight * d / (d.var(-1, keepdim=True, unbiased=False) + eps).sqrt(),
        }, rtol=1e-5, atol=1e-6)


def test_small_numbers_and_bfloat16(seed):
    rng = random.Random(seed)
    norm = module(rng, 1e-6)
    weight, eps = norm.weight.detach().double(), norm.eps
    x = torch.randn(2, 3, norm.weight.shape[0]) * 1e-3           # squares as small as eps
    ms = x.double().pow(2).mean(-1, keepdim=True)
    same("the result for numbers of about 0.001", norm(x), slow(x, weight, eps), {
        "eps is added outside of the root": weight * x.double() / (ms.sqrt() + eps),
        "eps is forgotten": weight * x.double() / ms.sqrt(),
        "eps is 1e-5 whatever self.eps is": weight * x.double() / (ms + 1e-5).sqrt(),
        "eps is taken for its square": weight * x.double() / (ms + eps ** 2).sqrt(),
    }, rtol=1e-4, atol=1e-7)
    x = (torch.randn(64, norm.weight.shape[0]) * 30).bfloat16()
    got = norm.bfloat16()(x)
    same("the result for bfloat16", got.float(), slow(x, norm.weight.detach().double(), eps), {
        "it is normalised in bfloat16, and not in float32":
            lambda: (norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))).float(),
    }, rtol=8e-3, atol=1e-6)                                     # bfloat16 rounds by up to 4e-3, here twice
    assert got.dtype == torch.bfloat16, f"x is bfloat16 and your result {str(got.dtype)[6:]}: go back to x.dtype " \
                                        f"before multiplying by the weight"
