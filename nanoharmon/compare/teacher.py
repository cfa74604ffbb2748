"""The teacher: a small contrastive picture-text model. It stands in for SigLIP2 (arXiv 2502.14786), TokLIP's teacher.

picture -> patches of pixels -> PictureTower -> pooled feature (B, D)  \\
                                                                        inner products (B, B): who belongs to whom?
text -> tokens -> TextTower -> pooled feature (B, D)                   /

Both features have length 1. Training takes a batch of pictures with a text of each, and asks of every picture and every
text whether they belong together (the sigmoid loss of SigLIP, arXiv 2303.15343, eq. 1). Afterwards it can classify
without having been trained to: the class is the text that fits best (`zero_shot`).

As in SigLIP: no class token, but a learned query that looks at all tokens (`Pool`); a bidirectional text tower.
Simplified: the text feature is the mean over its tokens. In a world of few words, two scenes of a batch often get the
same text. Such pairs do belong together, and the losses know it (`same`).
"""
import math
import random

import torch
import torch.nn.functional as F
from torch import nn

from ..attention import attention
from ..pictures import to_pixels
from ..tokenizer import pad
from ..world import shapes
from ..world.language import caption, describe, phrase


class Block(nn.Module):
    """Pre-norm transformer block; who attends to whom is said in each call: TokLIP makes the same block causal."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x, may_attend=None, is_causal=False):
        """x (B, L, D); may_attend bool, broadcastable to (B, heads, L, L)."""
        B, L, D = x.shape                                        # B may be 0; then q, k and v (B, heads, L, d) each
        q, k, v = self.qkv(self.norm1(x)).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(attention(q, k, v, may_attend, is_causal).transpose(1, 2).reshape(B, L, D))
        return x + self.mlp(self.norm2(x))


class Pool(nn.Module):
    """Tokens (B, S, D) -> one feature (B, D), of length 1: a learned query attends to all (SigLIP's "map" head)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, 1, width) * width ** -0.5)
        self.kv, self.proj, self.norm = nn.Linear(width, 2 * width), nn.Linear(width, width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        B, S, D = x.shape
        q = self.query.view(1, 1, self.heads, -1).expand(B, -1, -1, -1).transpose(1, 2)          # (B, heads, 1, d)
        k, v = self.kv(x).view(B, S, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)      # (B, heads, S, d) each
        x = self.proj(attention(q, k, v).reshape(B, D))                          # (B, D)
        return F.normalize(x + self.mlp(self.norm(x)), dim=-1)


class PictureTower(nn.Module):
    """A vision transformer over S patches of c_in numbers each."""

    def __init__(self, c_in, places, width, depth, heads):
        super().__init__()
        self.embed = nn.Linear(c_in, width)
        self.pos_embed = nn.Parameter(torch.randn(1, places, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.pool = nn.LayerNorm(width, eps=1e-6), Pool(width, heads)

    def tokens(self, patches, is_causal=False):
        """patches (B, S, c_in), raster order -> features (B, S, D). Causal: fewer than all may be given, the first
        ones, and the features of a place depend on it and those before."""
        x = self.embed(patches) + self.pos_embed[:, :patches.shape[1]]
        for block in self.blocks:
            x = block(x, is_causal=is_causal)
        return self.norm(x)


class TextTower(nn.Module):
    """A bidirectional transformer over tokens; ids (B, T), right-padded, is_real (B, T) -> (B, D), of length 1."""

    def __init__(self, vocab_size, length, width, depth, heads):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.pos_embed = nn.Parameter(torch.randn(1, length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, width)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids, is_real):
        x = self.embed(ids) + self.pos_embed[:, :ids.shape[1]]
        for block in self.blocks:
            x = block(x, is_real[:, None, None])                 # nobody attends to padding
        real = is_real.unsqueeze(-1)
        return F.normalize(self.head((self.norm(x) * real).sum(dim=1) / real.sum(dim=1)), dim=-1)


class Teacher(nn.Module):
    """Both towers, and how inner products become logits. A patch is the square of `stride` pixels that is one place of
    the VQ tokens as well."""

    def __init__(self, stride, places, vocab_size, width, depth, heads, length=128):
        super().__init__()
        self.stride = stride
        self.picture = PictureTower(3 * stride ** 2, places, width, depth, heads)
        self.text = TextTower(vocab_size, length, width, max(1, depth // 2), heads)
        # SigLIP's first values: with a bias of -10, all pairs are taken for strangers at first, as most of them are
        self.log_scale, self.bias = nn.Parameter(torch.tensor(math.log(10.0))), nn.Parameter(torch.tensor(-10.0))

    def features(self, image):
        """image (B, 3, H, W) in [-1, 1] -> (B, D), of length 1."""
        patches = F.pixel_unshuffle(image, self.stride).flatten(2).transpose(1, 2)         # (B, S, 3 * stride^2)
        return self.picture.pool(self.picture.tokens(patches))

    def loss(self, image, ids, is_real, same):
        """The sigmoid loss of a batch of `contrast_batch`."""
        return sigmoid_loss(self.features(image), self.text(ids, is_real), self.log_scale.exp(), self.bias, same)


# --- losses -----------------------------------------------------------------------------------------------------------

def sigmoid_loss(pictures, texts, scale, bias, same):
    """SigLIP eq. 1: every pair (i, j) is a question of its own, yes or no. pictures, texts (B, D), of length 1; same
    (B, B) bool: which belong together. A scalar: the sum over all pairs, divided by B."""
    logits = scale * pictures @ texts.T + bias                                   # (B, B)
    return -F.logsigmoid(torch.where(same, logits, -logits)).sum() / len(pictures)


def info_nce(pictures, texts, scale, same):
    """InfoNCE both ways (CLIP, arXiv 2103.00020): which of the batch's texts belongs to this picture, which picture to
    this text? Shapes as above. Two with the same text (`same`) are not asked to be told apart."""
    logits = (scale * pictures @ texts.T).masked_fill(same & ~torch.eye(len(same), dtype=torch.bool), -torch.inf)
    own = torch.arange(len(pictures))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


# --- data and measuring -----------------------------------------------------------------------------------------------

def contrast_batch(source, tokenizer, rng, n, size):
    """n pictures (n, 3, size, size), a text of each, ids and is_real (n, T), and which texts are equal, (n, n) bool.

    Half of the texts are captions, half say what is where, so that places matter too. source: ShapesData.
    """
    rows = [rng.randrange(source.rows) for _ in range(n)]
    scenes = [source.scene(i) for i in rows]
    texts = [caption(scene, rng) if rng.random() < 0.5 else describe(scene, rng) for scene in scenes]
    same = torch.tensor([[a == b for b in texts] for a in texts])
    image = to_pixels(torch.from_numpy(source.pictures(rows, size)))
    return image, *pad([tokenizer.encode(text) for text in texts], tokenizer.pad, "cpu"), same


@torch.no_grad()
def zero_shot(picture_features, text_tower, tokenizer, size, placement, n=200):
    """How often the best-fitting text is the right one, for pictures of one object: {"shape", "color", "pair",
    "unseen pair": list of true and false}.

    The texts are "a red circle" for each of the 35 pairs. A shape's feature is the mean over its colors, a color's the
    mean over its shapes (prompt ensembling, as CLIP does). picture_features: images -> (B, D); text_tower: of the
    teacher; placement: options of shapes.random_scene.
    """
    ids, is_real = pad([tokenizer.encode(phrase(*pair)) for pair in shapes.PAIRS], tokenizer.pad, "cpu")
    texts, found = text_tower(ids, is_real), {}                                  # (35, D)
    for unseen in (False, True):
        rng = random.Random(f"eval/0/zero shot/{unseen}")
        pool = sorted(shapes.UNSEEN) if unseen else shapes.SEEN
        truth = [rng.choice(pool) for _ in range(n)]
        images = [shapes.render(shapes.random_scene(rng, [pair], **placement), size) for pair in truth]
        scores = picture_features(to_pixels(torch.stack(list(map(torch.from_numpy, images))))) @ texts.T     # (n, 35)
        found["unseen pair" if unseen else "pair"] = [shapes.PAIRS[i] == pair for i, pair in
                                                      zip(scores.argmax(dim=1).tolist(), truth)]
        if not unseen:
            by_color = scores.unflatten(1, (len(shapes.COLORS), len(shapes.SHAPES)))         # PAIRS goes color by color
            for task, names, own, means in (("color", tuple(shapes.COLORS), 0, by_color.mean(dim=2)),
                                            ("shape", shapes.SHAPES, 1, by_color.mean(dim=1))):
                found[task] = [names[i] == pair[own] for i, pair in zip(means.argmax(dim=1).tolist(), truth)]
    return found
