"""TokLIP (arXiv 2505.05422): VQ codes that mean something. A frozen codebook, and a causal encoder that reads it.

codes (B, S) -> their vectors (B, S, code_dim), frozen -> MLP -> causal blocks -> features (B, S, D) -> pooled (B, D)

A code says how a patch looks, not what it shows. TokLIP leaves the codes as they are, so that a picture can be drawn
code by code and decoded by vq.py, and learns an encoder on top: the teacher's picture tower (teacher.py), its patch
embedding replaced by an MLP on code vectors, its attention made causal. Causal, so that the features of the codes drawn
so far do not change when the next one comes. Two terms teach it, while codebook and text tower stay as they are:

    InfoNCE       its pooled feature against the texts'
    distillation  squared distance of its pooled feature to the teacher's, of the same picture

Where article and released code (TencentARC/TokLIP) differ, this follows the code: docs/COMPARE.md. Left out: its
optional distillation of single tokens. The temperature begins at CLIP's value, and has no limits.
"""
import copy
import math

import torch
from torch import nn

from .teacher import info_nce

# the released 1000 * mean over 1152 numbers, of features of length 1, as a factor on the squared distance: so it
# does not depend on how many numbers a feature has
DISTILL = 1000 / 1152


class TokLIP(nn.Module):
    """Starts from a Teacher's picture tower, whose width D it keeps. code_dim: numbers in a code's vector."""

    def __init__(self, teacher, code_dim):
        super().__init__()
        self.tower = copy.deepcopy(teacher.picture)
        self.width = D = self.tower.pos_embed.shape[-1]
        self.tower.embed = nn.Sequential(nn.Linear(code_dim, 4 * D), nn.GELU(), nn.Linear(4 * D, D))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))          # CLIP's first value

    def tokens(self, vectors):
        """Code vectors (B, K, code_dim) of the first K places -> features (B, K, D): place i sees places 0 .. i."""
        return self.tower.tokens(vectors, is_causal=True)

    def features(self, vectors):
        """Code vectors (B, S, code_dim) -> the picture's feature (B, D), of length 1."""
        return self.tower.pool(self.tokens(vectors))


def toklip_loss(toklip, vq, teacher, image, ids, is_real, same):
    """InfoNCE + DISTILL * distillation, of a batch of `contrast_batch`."""
    with torch.no_grad():
        vectors = vq.vectors(vq.encode(image).squeeze(-1))                       # (B, S, code_dim)
        texts, wanted = teacher.text(ids, is_real), teacher.features(image)      # (B, D) each
    found = toklip.features(vectors)
    contrast = info_nce(found, texts, toklip.log_scale.exp(), same)
    distance = (found - wanted).square().sum(dim=-1).mean()
    return contrast + DISTILL * distance
