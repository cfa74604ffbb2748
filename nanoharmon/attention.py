"""Scaled dot-product attention and dropout, shared by the MAR blocks and the LLM.

Attention is torch's `F.scaled_dot_product_attention`, which picks a fused kernel by itself: it never writes the matrix
of weights to memory. On CPU that kernel knows no dropout, so training with dropout takes the plain way there.
"""
import torch
import torch.nn.functional as F


def attention(q, k, v, may_attend=None, is_causal=False, dropout=0.0):
    """softmax(q k^T / sqrt(d)) v.

    q (B, heads, Lq, d), k and v (B, heads, Lk, d); may_attend bool, broadcastable to (B, heads, Lq, Lk), True = may
    attend; None = everything may. is_causal: position i may attend to 0 .. i (Lq = Lk), instead of a mask. A row with
    nothing to attend to is not allowed (it would be NaN): the callers always let a position see itself.
    Returns (B, heads, Lq, d).
    """
    if dropout == 0.0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend, is_causal=is_causal, dropout_p=dropout)
    assert may_attend is None and not is_causal, "only MAR has dropout, and there everything may attend to everything"
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)                # (B, heads, Lq, Lk)
    drop, share = dropped(weights, dropout)
    weights = weights.float().softmax(dim=-1).to(v.dtype)                    # the softmax in float32
    return weights.masked_fill(drop, 0.0) @ (v / (1 - share))                # (B, heads, Lq, d)


def dropout(x, p):
    """F.dropout(x, p): zero a share p of the numbers at random, and scale the others up."""
    if p == 0.0 or x.device.type != "cpu":
        return F.dropout(x, p)
    drop, share = dropped(x, p)
    return x.masked_fill(drop, 0.0) / (1 - share)


def dropped(x, p):
    """Which numbers are dropped, at random: bool of the shape of x; and their exact expected share, p in 16 bits.

    torch draws one number at a time, on one core: a sixth of a training step at the official 0.1. Here a 64-bit word
    gives four of them.
    """
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-2**63, None)
    limit = min(round(p * 2**16), 2**16 - 1)                                 # an int16 begins at -2**15
    return (words.view(torch.int16)[:x.numel()] < limit - 2**15).view(x.shape), limit / 2**16
