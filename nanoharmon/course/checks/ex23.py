"""Checks of exercise 23: Muon's orthogonalize against singular values, lr_factor against a table."""
import math
import random

import torch

from nanoharmon.course.checks.compare import same, unchanged
from nanoharmon.training.optim import lr_factor, orthogonalize

POINTS = {"test_singular_values_go_through_the_polynomial": 2, "test_every_matrix_by_itself": 1,
          "test_it_rises_step_by_step": 1, "test_it_falls_to_its_floor": 1}
COEFFICIENTS = 3.4445, -4.7750, 2.0315


# --- orthogonalize ----------------------------------------------------------------------------------------------------

def matrices(rng, n, rows, columns, longest=100):
    """n random matrices of very different lengths, float32."""
    return torch.randn(n, rows, columns) * torch.tensor([rng.uniform(0.01, longest) for _ in range(n)])[:, None, None]


def expected(x, steps, length=None, coefficients=COEFFICIENTS):
    """U p(...p(S / length)) V^T of each matrix x = U S V^T in float64, with p(s) = a s + b s^3 + c s^5.

    length (n,): by default the Frobenius norm of each.
    """
    (a, b, c), out = coefficients, []
    for i, matrix in enumerate(x.double()):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        s = s / (s.square().sum().sqrt() if length is None else length[i])
        for _ in range(steps):
            s = a * s + b * s ** 3 + c * s ** 5
        out.append(u @ torch.diag(s) @ v)
    return torch.stack(out)


def test_singular_values_go_through_the_polynomial(seed):
    rng = random.Random(seed)
    for steps, shape, longest in ((1, (2, 4, 4), 1), (rng.choice((2, 3)), (2, 3, 5), 3),
                                  (5, (rng.randint(2, 3), 5, 8), 99)):
        x = matrices(rng, *shape, longest)
        before, n, (a, b, c) = x.clone(), shape[0], COEFFICIENTS
        got = orthogonalize(x) if steps == 5 else orthogonalize(x, steps)
        unchanged("x", before, x)
        u, _, v = torch.linalg.svd(x.double(), full_matrices=False)
        same(f"the result after {steps} steps", got, expected(x, steps), {
            "the matrices are not divided by their length first": expected(x, steps, [1.0] * n),
            "all matrices are divided by the length of the whole stack: each has its own":
                expected(x, steps, [x.double().norm()] * n),
            "they are divided by the largest singular value, not by the root of the sum of squares":
                expected(x, steps, torch.linalg.matrix_norm(x.double(), 2)),
            "they are divided by the square of their length":
                expected(x, steps, x.double().square().sum((1, 2))),
            "there is one step too few": expected(x, steps - 1),
            "there is one step too many": expected(x, steps + 1),
            "`steps` is not used: there are always 5": expected(x, 5),
            "b and c change places": expected(x, steps, coefficients=(a, c, b)),
            "the sign of b is lost": expected(x, steps, coefficients=(a, -b, c)),
            "the term of the fifth power is left out": expected(x, steps, coefficients=(a, b, 0)),
            "the length is put back at the end: Muon's step has a size of its own":
                expected(x, steps) * x.double().norm(dim=(1, 2), keepdim=True),
            "it is exact, by a singular value decomposition: asked are the steps, which cost far less": u @ v,
        }, rtol=1e-3, atol=1e-3)


def test_every_matrix_by_itself(seed):
    rng = random.Random(seed)
    rows, columns = rng.randint(6, 9), rng.randint(2, 4)
    x = matrices(rng, 3, rows, columns)
    for kind, y in (("tall", x), ("wide", x.transpose(1, 2)), ("very wide", x.transpose(1, 2).repeat(1, 1, 3)),
                    ("single", x[:1])):
        same(f"the result for {kind} matrices of shape {tuple(y.shape)}", orthogonalize(y), expected(y, 5), {
            "a tall matrix, which is turned for the work, is not turned back": expected(y, 5).transpose(1, 2),
            "all matrices get the result of the first": expected(y, 5)[:1].expand(y.shape)}, rtol=1e-3, atol=1e-3)
    y = torch.cat([x, torch.zeros(1, rows, columns)])            # a layer that no gradient has reached
    got = orthogonalize(y)
    assert not got[3:].isnan().any(), "a matrix of zeros is divided by its length, which is 0: add 1e-7 to the length"
    same("the result for a matrix of zeros, beside others", got, torch.cat([expected(x, 5), y[3:].double()]), rtol=1e-3,
         atol=1e-3)


# --- lr_factor --------------------------------------------------------------------------------------------------------

def example(seed):
    """steps, warmup, floor."""
    rng = random.Random(seed)
    return rng.randint(40, 90), rng.randint(3, 12), rng.choice((0.03, 0.05, 0.2))


def test_it_rises_step_by_step(seed):
    steps, warmup, floor = example(seed)
    for schedule in ("linear", "cosine"):
        first = [lr_factor(s, steps, warmup, schedule, floor) for s in range(warmup)]
        same(f"the factors of a warmup of {warmup} steps", first, [(s + 1) / warmup for s in range(warmup)], {
            "it starts at 0, so that the first step teaches nothing": [s / warmup for s in range(warmup)],
            "it does not reach 1 with the last step of the warmup": [(s + 1) / (warmup + 1) for s in range(warmup)],
            "it starts at the floor": [floor + (1 - floor) * (s + 1) / warmup for s in range(warmup)],
            "there is no warmup": [1.0] * warmup,
            "whole numbers are divided as whole numbers (//)": [(s + 1) // warmup for s in range(warmup)]})
        same("the factor in the first step after the warmup", lr_factor(warmup, steps, warmup, schedule, floor), 1.0, {
            "the fall has begun in the warmup": floor + (1 - floor) * (1 - warmup / steps),
            "the floor is added to the fall, which then starts above 1": 1 + floor})
        for short in (warmup, warmup - 1):                   # a run that ends with its warmup, or before
            try:
                got = [lr_factor(s, short, warmup, schedule, floor) for s in range(warmup + 1)]
            except ZeroDivisionError:
                raise AssertionError("lr_factor divides by zero when a run has no more steps than its warmup: "
                                     "max(1, steps - warmup)") from None
            same(f"the factors of a run of {short} steps with a warmup of {warmup}", got[:short],
                 [(s + 1) / warmup for s in range(short)])


def test_it_falls_to_its_floor(seed):
    steps, warmup, floor = example(seed)
    for schedule in ("linear", "cosine"):
        try:
            first = lr_factor(0, steps, 0, schedule, floor)
        except ZeroDivisionError:
            raise AssertionError("lr_factor divides by zero when there is no warmup: warmup is 0") from None
        same("the first factor when there is no warmup", first, 1.0)
        places = range(warmup, steps + 1)

        def fall(progress, shape=None, floor=floor):
            def usual(u):
                return (1 + math.cos(math.pi * u)) / 2 if schedule == "cosine" else 1 - u
            return [floor + (1 - floor) * (shape or usual)(progress(s)) for s in places]

        def right(s):
            return (s - warmup) / (steps - warmup)
        got = [lr_factor(s, steps, warmup, schedule, floor) for s in places]
        same(f"the {schedule} fall to {floor}, from the end of the warmup on", got, fall(right), {
            "the warmup counts as a part of the fall": fall(lambda s: s / steps),
            "progress never comes to 1: the fall has steps - warmup steps": fall(lambda s: (s - warmup) / steps),
            "the fall ends a step early": fall(lambda s: (s - warmup) / (steps - warmup - 1)),
            "the floor is left out": fall(right, floor=0.0),
            "the floor is the least value (max), instead of where the fall ends":
                [max(floor, x) for x in fall(right, floor=0.0)],
            "the floor is added to the fall, which then starts above 1": [floor + x for x in fall(right, floor=0.0)],
            "the cosine goes over a quarter of a period": fall(right, lambda u: math.cos(math.pi / 2 * u)),
            "the cosine is not halved": fall(right, lambda u: 1 + math.cos(math.pi * u)),
            "linear and cosine change places": fall(
                right, lambda u: 1 - u if schedule == "cosine" else (1 + math.cos(math.pi * u)) / 2),
            "it does not fall": [1.0] * len(places)})
