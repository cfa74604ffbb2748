"""Scaled dot-product attention, one function for the MAR blocks and for the LLM.

On CUDA (and whenever no gradient is needed) this is `F.scaled_dot_product_attention`, which picks flash attention by
itself. On CPU with gradients, the plain matmul-softmax-matmul below is used instead: at the lengths of the nano preset
(10-70 tokens) the fused kernel's CPU backward took a third of the whole training step. Both give the same numbers to
float32 noise (tests/test_qwen.py).
"""
import torch
import torch.nn.functional as F


def attention(q, k, v, may_attend=None, dropout=0.0):
    """softmax(q k^T / sqrt(d)) v.

    q (B, heads, Lq, d), k and v (B, heads, Lk, d); may_attend bool, broadcastable to (B, heads, Lq, Lk), True = may
    attend; None = everything may. A row with nothing to attend to is not allowed (it would be NaN): the callers
    always let a position see itself. Returns (B, heads, Lq, d).
    """
    if q.device.type != "cpu" or not (torch.is_grad_enabled() and q.requires_grad):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend, dropout_p=dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)                 # (B, heads, Lq, Lk)
    if may_attend is not None:
        scores = scores.masked_fill(~may_attend, float("-inf"))
    weights = scores.float().softmax(dim=-1).to(v.dtype)
    return F.dropout(weights, dropout) @ v if dropout else weights @ v       # (B, heads, Lq, d)
