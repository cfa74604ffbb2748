"""Checks of exercise 06, grouped-query attention."""
import math
import random

import torch

from nanoharmon.config import LLMConfig
from nanoharmon.course.checks.compare import same, unchanged
from nanoharmon.qwen import KVCache, SelfAttention, rope_tables

POINTS = {"test_groups": 2, "test_mask": 1, "test_cache": 2}


@torch.no_grad()
def make(seed):
    rng = random.Random(seed)
    kv_heads, group, d = rng.choice([2, 3]), rng.choice([2, 3]), 2 * rng.randrange(2, 5)
    layer = SelfAttention(LLMConfig(hidden_size=kv_heads * group * d, num_attention_heads=kv_heads * group,
                                    num_key_value_heads=kv_heads))
    for p in layer.parameters():
        p.copy_(torch.randn(p.shape) * (0.4 if p.ndim == 2 else 0.3))
    return layer, rng.randrange(2, 4), rng.randrange(4, 8), d


def turned(x, positions, d):
    """RoPE by hand on (L, d) at positions (L,), float64."""
    angle = positions.double()[:, None] * 1e3 ** (-torch.arange(0, d, 2).double() / d)
    a, b = x[:, :d // 2], x[:, d // 2:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def slow(layer, x, allowed, group_of=None, scale=None, turn="qk", project=True):
    """By loops over pictures and query heads. allowed (B, L, L) bool; the other arguments are mistakes."""
    d, x = layer.head_dim, x.double()
    q, k, v = (x @ p.weight.double().T + p.bias.double() for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    B, L, _ = x.shape
    at, group = torch.arange(L), layer.heads // layer.kv_heads
    out = torch.zeros(B, L, layer.heads * d, dtype=torch.float64)
    for n in range(B):
        for h in range(layer.heads):
            own = (group_of or (lambda head: head // group))(h)
            qh, kh, vh = q[n, :, h * d:(h + 1) * d], k[n, :, own * d:(own + 1) * d], v[n, :, own * d:(own + 1) * d]
            qh = turned(qh, at, d) if "q" in turn else qh
            kh = turned(kh, at, d) if "k" in turn else kh
            vh = turned(vh, at, d) if "v" in turn else vh
            scores = (qh @ kh.T / (scale or math.sqrt(d))).masked_fill(~allowed[n], -math.inf)
            out[n, :, h * d:(h + 1) * d] = scores.softmax(-1) @ vh
    return out @ layer.o_proj.weight.double().T if project else out


def mistakes(layer, x, allowed):
    kv = layer.kv_heads
    return {
        "query head h reads head h % kv_heads; expected h // group":
            lambda: slow(layer, x, allowed, group_of=lambda h: h % kv),
        "all query heads read head 0": lambda: slow(layer, x, allowed, group_of=lambda h: 0),
        "queries and keys are not rotated": lambda: slow(layer, x, allowed, turn=""),
        "only the queries are rotated": lambda: slow(layer, x, allowed, turn="q"),
        "only the keys are rotated": lambda: slow(layer, x, allowed, turn="k"),
        "the values are rotated, too": lambda: slow(layer, x, allowed, turn="qkv"),
        "nothing is masked: a token sees those that follow": lambda: slow(layer, x, torch.ones_like(allowed)),
        "may_attend is not used": lambda: slow(layer, x, torch.ones_like(allowed).tril()),
        "may_attend is taken for who may NOT attend": lambda: slow(layer, x, ~allowed),
        "the scores are not divided by sqrt(d)": lambda: slow(layer, x, allowed, scale=1.0),
        "the scores are divided by the root of the whole width":
            lambda: slow(layer, x, allowed, scale=math.sqrt(layer.heads * layer.head_dim)),
        "self.o_proj is forgotten": lambda: slow(layer, x, allowed, project=False)}


def rope_of(B, first, last, d):
    return rope_tables(torch.arange(first, last).expand(B, last - first), d, 1e3)


@torch.no_grad()
def test_groups(seed):
    layer, B, L, d = make(seed)
    x = torch.randn(B, L, layer.heads * d)
    causal = torch.ones(B, L, L, dtype=torch.bool).tril()
    before = x.clone()
    got = layer(x, rope_of(B, 0, L, d), None, None, 0)
    unchanged("x", before, x)
    same("the result", got, slow(layer, x, causal), mistakes(layer, x, causal), rtol=1e-3, atol=1e-4)
    one = layer(x[:, :1], rope_of(B, 0, 1, d), None, None, 0)
    same("the result for one token", one, slow(layer, x[:, :1], causal[:, :1, :1]), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_mask(seed):
    layer, B, L, d = make(seed)
    x = torch.randn(B, L, layer.heads * d)
    allowed = (torch.rand(B, L, L) < 0.5) | torch.eye(L, dtype=torch.bool)       # not causal: whatever it says
    for i in range(L):                                           # no row sees everything, or its inverse were empty
        allowed[:, i, (i + 1) % L] = False
    allowed[:, 0, -1] = True
    got = layer(x, rope_of(B, 0, L, d), allowed[:, None], None, 0)
    same("the result with a mask", got, slow(layer, x, allowed), mistakes(layer, x, allowed), rtol=1e-3, atol=1e-4)
    causal, padded = torch.ones(B, L, L, dtype=torch.bool).tril(), (torch.arange(L) != 1).view(1, 1, 1, L)
    cache = KVCache()
    layer(x[:, :-1], rope_of(B, 0, L - 1, d), None, cache, 0)
    same("one token with a mask and a cache", layer(x[:, -1:], rope_of(B, L - 1, L, d), padded, cache, 0),
         slow(layer, x, causal & padded[0])[:, -1:], {"may_attend is not used": slow(layer, x, causal)[:, -1:]},
         rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_cache(seed):
    layer, B, L, d = make(seed)
    x = torch.randn(B, L + 3, layer.heads * d)
    whole = slow(layer, x, torch.ones(B, L + 3, L + 3, dtype=torch.bool).tril())
    cache, layer_index = KVCache(), 0
    same("the tokens before", layer(x[:, :L], rope_of(B, 0, L, d), None, cache, layer_index), whole[:, :L], rtol=1e-3,
         atol=1e-4)
    assert len(cache) == L, f"after {L} tokens the cache holds {len(cache)}; call cache.extend(layer, k, v)"
    keys, values = cache.layers[layer_index]
    assert keys.shape[1] == layer.kv_heads, f"the cache holds keys of {keys.shape[1]} heads, expected " \
                                            f"{layer.kv_heads}: share them only after cache.extend"
    plain = (x[:, :L] @ layer.k_proj.weight.T + layer.k_proj.bias).view(B, L, layer.kv_heads, d).transpose(1, 2)
    rotated = torch.stack([torch.stack([turned(head.double(), torch.arange(L), d) for head in row]) for row in plain])
    same("the keys in the cache", keys, rotated, {"they are not rotated yet": plain}, rtol=1e-3, atol=1e-4)
    for i in range(L, L + 2):                                    # one token at a time, without a mask
        got = layer(x[:, i:i + 1], rope_of(B, i, i + 1, d), None, cache, layer_index)
        same("one more token with the cache", got, whole[:, i:i + 1], {
            "the new token sees only itself":
                lambda: slow(layer, x[:, i:i + 1], torch.ones(B, 1, 1, dtype=torch.bool)),
            "the single new token may attend only to the first one, as in causal order": lambda: (
                (x[:, :1] @ layer.v_proj.weight.T + layer.v_proj.bias).view(B, 1, layer.kv_heads, d)
                .repeat_interleave(layer.heads // layer.kv_heads, dim=2).flatten(2) @ layer.o_proj.weight.T),
        }, rtol=1e-3, atol=1e-4)
