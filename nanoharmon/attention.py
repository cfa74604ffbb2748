"""Scaled dot-product attention and dropout, shared by the MAR blocks, the LLM and the VAE.

Attention is torch's `F.scaled_dot_product_attention`, which picks a fused kernel by itself: it never writes the matrix
of weights to memory. The rest is dropout on CPU, where that kernel has none and torch's own is slow: only the official
presets need it, skip it on a first reading.
"""
import numpy as np
import torch
import torch.nn.functional as F

# cuDNN's kernel, the default on an H100, plans anew for every shape, and nearly every batch and answer has a new one
torch.backends.cuda.enable_cudnn_sdp(False)


def attention(q, k, v, may_attend=None, is_causal=False, dropout=0.0):
    """softmax(q k^T / sqrt(d)) v.

    q (B, heads, Lq, d), k and v (B, heads, Lk, d); may_attend bool, broadcastable to (B, heads, Lq, Lk), True = may
    attend; None = everything may. is_causal: position i may attend to 0 .. i (Lq = Lk), instead of a mask. Every
    row must have something to attend to, else the result is 0 or NaN: callers always let a position see itself.
    Returns (B, heads, Lq, d).
    """
    if dropout == 0.0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend, is_causal=is_causal, dropout_p=dropout)
    assert may_attend is None and not is_causal, "only MAR has dropout, and there everything may attend to everything"
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)                # (B, heads, Lq, Lk)
    weights = weights.float().softmax(dim=-1).to(v.dtype)                    # the softmax in float32
    return Dropout.apply(weights, dropout) @ v                               # (B, heads, Lq, d)


def dropout(x, p):
    """F.dropout(x, p): zero a share p of the numbers at random, and scale the others up."""
    return F.dropout(x, p) if p == 0.0 or x.device.type != "cpu" else Dropout.apply(x, p)


class Dropout(torch.autograd.Function):
    """F.dropout on a CPU: torch's own goes number by number on one core, a sixth of a training step at the official
    0.1. Here a 64-bit word gives four random numbers; they are kept for the backward pass, not the factors."""

    @staticmethod
    def forward(ctx, x, p):
        seed = torch.randint(2**62, ()).item()                               # torch.manual_seed decides it
        words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))
        bits = torch.from_numpy(words.view(np.int16)[:x.numel()]).view(x.shape)
        ctx.save_for_backward(bits)
        ctx.p = p
        return factors(bits, p).mul_(x).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return factors(*ctx.saved_tensors, ctx.p).mul_(gradient).to(gradient.dtype), None


def factors(bits, p):
    """Random int16 -> float32 factors: 0 for a share p of them, p in 16 bits; for the others what keeps the mean."""
    limit = min(round(p * 2**16), 2**16 - 1)
    # clamping whole numbers gives 0 or 1: four times as fast as a mask of booleans
    return bits.float().add_(2**15 - limit + 1).clamp_(0, 1).mul_(2**16 / (2**16 - limit))
