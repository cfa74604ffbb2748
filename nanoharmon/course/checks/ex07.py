"""Checks of exercise 07, a KV cache that changes nothing."""
import random

import torch

from nanoharmon.config import LLMConfig
from nanoharmon.course.checks.compare import same
from nanoharmon.qwen import KVCache, Qwen, causal_mask

POINTS = {"test_extend": 1, "test_extend_without_keeping": 1, "test_mask": 1, "test_mask_with_padding": 1,
          "test_cached_equals_full": 1}


def new(rng_shape, n):
    B, heads, d = rng_shape
    return torch.randn(B, heads, n, d), torch.randn(B, heads, n, d)


def sizes(seed):
    rng = random.Random(seed)
    return rng, (rng.randrange(2, 4), rng.randrange(2, 4), rng.randrange(2, 6))


def test_extend(seed):
    rng, shape = sizes(seed)
    cache, parts = KVCache(), {0: [], 2: []}
    for n in (rng.randrange(2, 5), 1, rng.randrange(2, 4)):
        for layer in parts:
            k, v = new(shape, n)
            parts[layer].append((k, v))
            got = cache.extend(layer, k, v)
            assert isinstance(got, (tuple, list)) and len(got) == 2, "extend returns two tensors, keys and values"
            keys, values = (torch.cat([p[i] for p in parts[layer]], dim=2) for i in (0, 1))
            backwards = torch.cat([p[0] for p in parts[layer][::-1]], dim=2)
            same(f"the keys of layer {layer}", got[0], keys, {
                "the new ones come first": backwards, "the past is forgotten": k,
                "keys and values are exchanged": values,
                "all layers share one past": lambda: torch.cat([parts[0][0][0], k], dim=2)})
            same(f"the values of layer {layer}", got[1], values, {
                "the past is forgotten": v, "they are the keys": keys})
    total = sum(k.shape[2] for k, _ in parts[0])
    assert len(cache) == total, f"the cache holds {len(cache)} tokens, expected {total}: keep them in self.layers"


def test_extend_without_keeping(seed):
    rng, shape = sizes(seed)
    cache, past = KVCache(), new(shape, rng.randrange(2, 5))
    cache.extend(0, *past)
    cache.append = False
    for n in (1, rng.randrange(2, 5)):
        k, v = new(shape, n)
        got = cache.extend(0, k, v)
        same("the keys with append = False", got[0], torch.cat([past[0], k], dim=2), {
            "the past is forgotten": k, "the new ones are forgotten": past[0]})
        assert len(cache) == past[0].shape[2], f"with append = False the cache grew from {past[0].shape[2]} to " \
                                               f"{len(cache)} tokens, expected no change"
    empty = KVCache()
    empty.append = False
    k, v = new(shape, 2)
    same("the keys of an empty cache with append = False", empty.extend(1, k, v)[0], k)
    assert not empty.layers, "an empty cache with append = False holds something after extend"


def allowed(mask, past, L, B):
    """What a mask means, (B, L, past + L) bool; None is attention's own order, which knows no past."""
    if mask is None:
        assert past == 0 or L == 1, f"the mask is None for past = {past}, L = {L}: attention's own causal order " \
                                    f"begins at token 0 and would hide what the cache holds"
        return torch.ones(B, L, past + L, dtype=torch.bool).tril(past)
    assert isinstance(mask, torch.Tensor) and mask.dtype == torch.bool, \
        f"the mask is {getattr(mask, 'dtype', type(mask).__name__)}, expected bool, True = may attend"
    return mask.expand(B, 1, L, past + L)[:, 0]


def by_loops(past, L, B, is_real=None, itself=True, shift=0, strict=False):
    out = torch.zeros(B, L, past + L, dtype=torch.bool)
    for b in range(B):
        for i in range(L):
            for j in range(past + L):
                at = past + i + shift
                real = is_real is None or bool(is_real[b, j])
                out[b, i, j] = (j < at if strict else j <= at) and real or (itself and j == past + i)
    return out


def test_mask(seed):
    rng, _ = sizes(seed)
    for past, L in ((0, rng.randrange(3, 6)), (rng.randrange(2, 6), 1), (rng.randrange(2, 6), rng.randrange(2, 5))):
        right = by_loops(past, L, 2)
        same(f"the mask for past = {past}, L = {L}", allowed(causal_mask(past, L, None, "cpu"), past, L, 2), right, {
            "True means may not attend": ~right,
            "a token sees those that follow, up to one": by_loops(past, L, 2, shift=1),
            "the past is not counted: the rows begin at token 0": by_loops(past, L, 2, shift=-past, itself=False),
            "a token does not see itself": by_loops(past, L, 2, itself=False, strict=True)})


def test_mask_with_padding(seed):
    rng, _ = sizes(seed)
    for past, L in ((0, rng.randrange(3, 6)), (rng.randrange(2, 6), 1), (rng.randrange(2, 6), rng.randrange(3, 5))):
        B = rng.randrange(2, 4)
        is_real = torch.rand(B, past + L) < 0.5
        is_real[0, 0], is_real[1, -1], is_real[0, -1] = False, True, False
        right = by_loops(past, L, B, is_real)
        mask = causal_mask(past, L, is_real, "cpu")
        assert mask is not None, f"the mask is None for past = {past}, L = {L}, though there is padding"
        assert mask.ndim == 4, f"the mask has the shape {tuple(mask.shape)}, expected (B, 1, L, past + L): the 1 is " \
                               f"for the heads"
        same(f"the mask with padding for past = {past}, L = {L}", allowed(mask, past, L, B), right, {
            "padding does not see itself: its row is empty, and the softmax NaN": by_loops(past, L, B, is_real, False),
            "padding is ignored": by_loops(past, L, B), "only padding is attended to": by_loops(past, L, B, ~is_real),
            "the order is not causal": is_real[:, None].expand(B, L, past + L) | by_loops(past, L, B, is_real),
            "padding may attend to nothing, where nobody should attend to it":
                by_loops(past, L, B) & is_real[:, past:, None]})
    same("the mask for is_real of 0 and 1", causal_mask(0, 3, torch.tensor([[1, 0, 1]]), "cpu")[0, 0],
         by_loops(0, 3, 1, torch.tensor([[1, 0, 1]]))[0])


@torch.no_grad()
def test_cached_equals_full(seed):
    rng, _ = sizes(seed)
    llm = Qwen(LLMConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, rope_theta=1e3)).eval()
    for p in llm.parameters():
        p.copy_(torch.randn(p.shape) * 0.3)
    ids = torch.randint(0, 50, (2, 9))
    full = llm(ids)
    a, b = sorted(rng.sample(range(1, 8), 2))
    cache, parts = KVCache(), []
    for start, end in ((0, a), (a, b), (b, 8), (8, 9)):          # several tokens, several after a past, one
        parts.append(llm(ids[:, start:end], cache=cache))
    same("the logits of a text read in four parts, against those of the whole", torch.cat(parts, dim=1), full,
         rtol=1e-3, atol=1e-3)
