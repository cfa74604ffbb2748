"""Checks of exercise 13: a block that its condition modulates (AdaLN)."""
import random
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from nanoharmon import diffloss
from nanoharmon.course.checks.compare import same, unchanged

POINTS = {"test_modulate": 1, "test_block": 1, "test_zero_gate": 1}


def a_block(seed):
    """(ResBlock with random weights, x, modulation): N rows."""
    rng = random.Random(seed)
    N, width = rng.randint(3, 7), rng.randint(5, 12)
    block = diffloss.ResBlock(width)
    for p in block.parameters():
        nn.init.normal_(p, std=0.5)
    return block, torch.randn(N, width), torch.randn(N, 3 * width)


def called(block, x, modulation):
    """The student's block, with a modulate that is right: each of the two functions counts by itself."""
    with patch.object(diffloss, "modulate", lambda x, shift, scale: x * (1 + scale) + shift):
        return block(x, modulation)


def by_hand(block, x, modulation, order=(0, 1, 2), one=1, gated=True, residual=True, inside=True):
    """The block in float64 numpy, row by row; the options are mistakes."""
    p = {name: value.detach().double().numpy() for name, value in block.named_parameters()}
    result = []
    for row, parts in zip(x.double().numpy(), modulation.double().numpy()):
        shift, scale, gate = (parts.reshape(3, -1)[i] for i in order)
        normed = (row - row.mean()) / np.sqrt(row.var() + 1e-6) * p["in_ln.weight"] + p["in_ln.bias"]
        h = normed * (one + scale) + shift if inside else row * (one + scale) + shift
        h = p["mlp.0.weight"] @ h + p["mlp.0.bias"]
        h = p["mlp.2.weight"] @ (h / (1 + np.exp(-h))) + p["mlp.2.bias"]
        h = gate * h if gated else h
        result.append({True: row, False: 0 * row, "normed": normed, "gated": gate * row}[residual] + h)
    return np.stack(result)


def test_modulate(seed):
    rng = random.Random(seed)
    shape = rng.randint(2, 5), rng.randint(3, 8)
    for lead in ((), (rng.randint(2, 3),)):
        x, shift, scale = torch.randn(3, *lead, *shape)
        before, got = x.clone(), diffloss.modulate(x, shift, scale)
        unchanged("x", before, x)
        same("modulate(x, shift, scale)", got, x * (1 + scale) + shift, {
            "the 1 is missing: x (1 + scale) + shift": x * scale + shift,
            "shift and scale are swapped": x * (1 + shift) + scale,
            "the shift is added before scaling": (x + shift) * (1 + scale),
            "the shift is subtracted": x * (1 + scale) - shift,
        })


def test_block(seed):
    block, x, m = a_block(seed)
    before, got = (x.clone(), m.clone()), called(block, x, m)
    unchanged("x", before[0], x)
    unchanged("modulation", before[1], m)
    same("the block", got, by_hand(block, x, m), {
        "x is not added again": by_hand(block, x, m, residual=False),
        "the normed x is added again, and not x itself": by_hand(block, x, m, residual="normed"),
        "the gate is forgotten": by_hand(block, x, m, gated=False),
        "the gate is applied to x, too": by_hand(block, x, m, residual="gated"),
        "the LayerNorm is forgotten": by_hand(block, x, m, inside=False),
        "the 1 of 1 + scale is missing": by_hand(block, x, m, one=0),
        "the three parts are read as scale, shift, gate": by_hand(block, x, m, order=(1, 0, 2)),
        "the three parts are read as gate, shift, scale": by_hand(block, x, m, order=(1, 2, 0)),
        "the three parts are read as gate, scale, shift": by_hand(block, x, m, order=(2, 1, 0)),
        "the three parts are read as shift, gate, scale": by_hand(block, x, m, order=(0, 2, 1)),
        "the three parts are read as scale, gate, shift": by_hand(block, x, m, order=(2, 0, 1)),
        "all rows get the modulation of the first": by_hand(block, x, m[:1].expand(len(m), -1)),
    })


def test_zero_gate(seed):
    """Where the modulation is zero, as training starts, a block is the identity; gradient comes through."""
    block, x, m = a_block(seed)
    same("the block whose modulation is zero", called(block, x, 0 * m), x, {
        "the gate is forgotten": by_hand(block, x, 0 * m, gated=False),
        "x is not added again": torch.zeros_like(x)})
    x.requires_grad_(), m.requires_grad_()
    result = called(block, x, m)
    assert result.requires_grad, "no gradient comes back from the block"
    grads = torch.autograd.grad(result.square().sum(), [x, m], allow_unused=True)
    assert all(g is not None and g.abs().sum() > 0 for g in grads), "no gradient comes back to x or to modulation"
