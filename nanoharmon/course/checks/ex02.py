"""Checks of exercise 02, attention with heads."""
import math
import random

import torch

from nanoharmon.course.checks.compare import same, unchanged
from nanoharmon.mar import Attention

POINTS = {"test_one_head": 1, "test_heads": 2, "test_only_some_ask": 1, "test_dropout_only_while_training": 1}


@torch.no_grad()
def make(seed, heads=None):
    rng = random.Random(seed)
    heads = heads or rng.choice([2, 3, 4])
    d = rng.choice([3, 5, 6, 7])
    layer = Attention(heads * d, heads, 0.0, 0.0).eval()
    for p in layer.parameters():
        p.copy_(torch.randn(p.shape) * (0.8 if p.ndim == 2 else 0.3))
    return layer, rng.randrange(2, 4), rng.randrange(4, 8), heads, d


def slow(layer, x, queries, heads, scale=None, order="qkv", head_of=None, softmax_over=-1, project=True):
    """By loops over pictures and heads, in float64; and with the mistakes that the arguments say."""
    W, b = layer.qkv.weight.detach().double(), layer.qkv.bias.detach().double()
    D, x, queries = x.shape[2], x.double(), queries.double()
    d = D // heads
    part = {name: slice(i * D, (i + 1) * D) for i, name in enumerate(order)}
    q, k, v = (source @ W[part[name]].T + b[part[name]] for name, source in (("q", queries), ("k", x), ("v", x)))
    out = torch.zeros(*queries.shape, dtype=torch.float64)
    for n in range(len(x)):
        for h in range(heads):
            own = head_of(h) if head_of else slice(h * d, (h + 1) * d)
            scores = q[n][:, own] @ k[n][:, own].T / (scale or math.sqrt(d))
            out[n][:, own] = scores.softmax(dim=softmax_over) @ v[n][:, own]
    return out @ layer.proj.weight.detach().double().T + layer.proj.bias.detach().double() if project else out


def mistakes(layer, x, queries, heads, d):
    D = heads * d
    return {
        "the scores are not divided by sqrt(d)": lambda: slow(layer, x, queries, heads, scale=1.0),
        "the scores are divided by sqrt(D), not by the root of a head's width":
            lambda: slow(layer, x, queries, heads, scale=math.sqrt(D)),
        "the scores are divided by d, not by its root": lambda: slow(layer, x, queries, heads, scale=float(d)),
        "there is only one head": lambda: slow(layer, x, queries, 1),
        "there is only one head, divided by a head's root": lambda: slow(layer, x, queries, 1, scale=math.sqrt(d)),
        "keys and values are exchanged": lambda: slow(layer, x, queries, heads, order="qvk"),
        "queries and keys are exchanged": lambda: slow(layer, x, queries, heads, order="kqv"),
        "the channels of a head are not neighbours: (D) was cut into (d, heads), expected (heads, d)":
            lambda: slow(layer, x, queries, heads, head_of=lambda h: slice(h, None, heads)),
        "the softmax goes over those who ask, not over the keys":
            lambda: slow(layer, x, queries, heads, softmax_over=0),
        "self.proj is forgotten": lambda: slow(layer, x, queries, heads, project=False),
        "the queries come from x, not from `queries`": lambda: slow(layer, x, x[:, :queries.shape[1]], heads),
        "keys and values come from `queries`, not from x": lambda: slow(layer, queries, queries, heads)}


@torch.no_grad()
def compare(layer, x, queries, heads, d, what):
    before, asked = x.clone(), queries.clone()
    got = layer(x, queries)
    if queries is x:                                             # then it may be left out
        same(what + ", with queries left out", layer(x), got, rtol=1e-3, atol=1e-4)
    unchanged("x", before, x)
    unchanged("queries", asked, queries)
    same(what, got, slow(layer, x, queries, heads), mistakes(layer, x, queries, heads, d), rtol=1e-3, atol=1e-4)


def test_one_head(seed):
    layer, B, L, heads, d = make(seed, heads=1)
    x = torch.randn(B, L, d)
    compare(layer, x, x, heads, d, "attention with one head")


def test_heads(seed):
    layer, B, L, heads, d = make(seed)
    x = torch.randn(B, L, heads * d)
    compare(layer, x, x, heads, d, f"attention with {heads} heads")


def test_only_some_ask(seed):
    layer, B, L, heads, d = make(seed)
    x = torch.randn(B, L, heads * d)
    for m in (1, L - 1):
        compare(layer, x, torch.randn(B, m, heads * d), heads, d, f"attention where {m} of {L} ask")


@torch.no_grad()
def test_dropout_only_while_training(seed):
    layer, B, L, heads, d = make(seed)
    x = torch.randn(B, L, heads * d)
    layer.attn_dropout = layer.proj_dropout = 0.5
    same("the result in eval mode", layer(x, x), slow(layer, x, x, heads), mistakes(layer, x, x, heads, d),
         rtol=1e-3, atol=1e-4)
    layer.train()
    share = (layer(x, x) == 0).double().mean().item()
    assert 0.2 < share < 0.8, f"while training, {100 * share:.0f} % of the result are 0, expected about half of it " \
                              f"with proj_dropout = 0.5"
    layer.proj_dropout = 0.0
    first, second = layer(x, x), layer(x, x)
    assert not torch.allclose(first, second), "while training, attn_dropout = 0.5 changes nothing: no weight is dropped"
    assert (first == 0).double().mean() < 0.1, "proj_dropout = 0, but numbers of the result are dropped"
