"""MAR: a masked autoregressive image model over continuous tokens (arXiv 2406.11838).

Harmon uses its encoder for both tasks, its decoder and its diffusion MLP only to draw. As in MAE (arXiv 2111.06377) the
*encoder* sees buffers and the visible image tokens only (hidden ones are left out); the *decoder* puts a mask token at
every hidden place and says there what the token should be, as a vector z, from which the diffusion MLP (diffloss.py)
draws the token, or in training learns it. Drawing starts with everything hidden and uncovers tokens in random order.

    latents (B, S, C), visible (B, K)  --encode-->  (B, U+K, D)  --decode-->  z (B, m, D) of m hidden places

Which tokens are visible is an *index* tensor: `visible[b]` lists the K uncovered places of picture b in raster order.
All pictures of a batch hide the same number, so every shape is known on the host and nothing waits for the GPU.
(The official code passes a float mask, 1 = hidden, and gathers with booleans; the results are the same.)

Why buffers: with everything hidden the encoder would have no input at all. The U buffers are tokens that are always
there, and they carry the condition. In MAR a class embedding goes into them before the encoder, in Harmon always the
same learned vector. After the encoder, the LLM's states are added to the outputs of buffers and visible tokens
(harmon.py, `through_llm`): when everything is hidden, the buffers alone bring the prompt to the decoder.

Why four timesteps per token (`diffusion_batch_mul`): the transformer's z costs far more than the small MLP that learns
from it, so each z is used several times (the preset nano has twelve).

This file also holds MAR's own use, drawing from class labels (`class_loss`, `class_sample`): the stage `mar` of
train.py, and what the official MAR checkpoints do. Names of parameters are the official ones.
"""
import math
from statistics import NormalDist

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from .attention import attention, dropout
from .diffloss import DiffLoss


class Attention(nn.Module):
    """Attention with heads: x (B, L, D) -> (B, L, D); with queries (B, m, D), only these ask -> (B, m, D)."""
    def __init__(self, dim, heads, attn_dropout, proj_dropout):
        super().__init__()
        self.heads, self.attn_dropout, self.proj_dropout = heads, attn_dropout, proj_dropout
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, queries=None):                              # (B, L, D), (B, m, D)
        D = x.shape[2]
        if queries is None:
            q, k, v = self.qkv(x).chunk(3, dim=2)                    # (B, L, D) each
        else:                                                        # the same in two parts
            q = F.linear(queries, self.qkv.weight[:D], self.qkv.bias[:D])                          # (B, m, D)
            k, v = F.linear(x, self.qkv.weight[D:], self.qkv.bias[D:]).chunk(2, dim=2)             # (B, L, D) each
        # b l (heads d) -> b heads l d
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        x = attention(q, k, v, dropout=self.attn_dropout if self.training else 0.0)        # like q
        return dropout(self.proj(x.transpose(1, 2).flatten(2)), self.proj_dropout if self.training else 0.0)


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))): x (..., D) -> (..., D)."""
    def __init__(self, dim, width, p):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, width), nn.Linear(width, dim)
        self.p = p                                                   # of dropout

    def forward(self, x):
        p = self.p if self.training else 0.0
        return dropout(self.fc2(dropout(F.gelu(self.fc1(x)), p)), p)             # exact (erf) GELU


class Block(nn.Module):
    """Pre-norm transformer block with bidirectional attention (timm's ViT block)."""

    def __init__(self, dim, heads, config):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, config.attn_dropout, config.proj_dropout)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), config.proj_dropout)

    def forward(self, x, index=None):
        """x (B, L, D) -> (B, L, D); with index (B, m), indices into L, only those are computed: (B, m, D)."""
        h = self.norm1(x)                                            # (B, L, D)
        if index is None:
            x = x + self.attn(h)
        else:
            x = take(x, index) + self.attn(h, take(h, index))          # (B, m, D)
        return x + self.mlp(self.norm2(x))


class MAR(nn.Module):
    """Encoder, decoder and diffusion loss. `config`: MARConfig. Letters: U buffers, S image tokens, K visible ones."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        D_enc, D_dec, U, S = config.encoder_embed_dim, config.decoder_embed_dim, config.buffer_size, config.grid ** 2
        # official name, but no latent: the learned vector that is put into every buffer when there is no class. In
        # Harmon there never is one, so the U buffers differ only by their position embeddings.
        self.fake_latent = nn.Parameter(torch.zeros(1, D_enc))
        self.class_emb = nn.Embedding(config.class_num, D_enc)
        # official name; "z" is here the latents, not the decoder's output
        self.z_proj, self.z_proj_ln = nn.Linear(config.token_dim, D_enc), nn.LayerNorm(D_enc, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, U + S, D_enc))
        self.encoder_blocks = nn.ModuleList(
            Block(D_enc, config.encoder_num_heads, config) for _ in range(config.encoder_depth))
        self.encoder_norm = nn.LayerNorm(D_enc, eps=1e-6)

        self.decoder_embed = nn.Linear(D_enc, D_dec)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, D_dec))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, U + S, D_dec))
        self.decoder_blocks = nn.ModuleList(
            Block(D_dec, config.decoder_num_heads, config) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(D_dec, eps=1e-6)
        # the diffusion MLP sees one z at a time and has no attention: what place it is for must be said once more
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, S, D_dec))

        self.checkpointing = False                   # recompute each block in backward: less memory
        self.init_weights()
        self.diffloss = DiffLoss(config)             # after init_weights, which would undo its own first weights

    def init_weights(self):
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)
        for p in (self.fake_latent, self.class_emb.weight, self.mask_token, self.encoder_pos_embed_learned,
                  self.decoder_pos_embed_learned, self.diffusion_pos_embed_learned):
            nn.init.normal_(p, std=0.02)

    # --- positions -------------------------------------------------------------------------------------------------

    def pos_embed(self, table, grid, n_buffers):
        """A position table (1, n_buffers + S, D) for another grid (h, w): its image part is resized bilinearly."""
        native = self.config.grid
        if grid in (None, (native, native)):
            return table
        buffers, image = table[:, :n_buffers], table[:, n_buffers:]
        image = image.transpose(1, 2).unflatten(2, (native, native))             # 1 (h w) d -> 1 d h w
        image = F.interpolate(image.float(), size=grid, mode="bilinear").to(table.dtype)
        return torch.cat([buffers, image.flatten(2).transpose(1, 2)], dim=1)     # (1, n_buffers + h*w, D)

    @torch.no_grad()
    def resize_positions(self, side):
        """Make side x side the native size: replace each table by its interpolation, which is then trained directly.

        The official code never does this; at 512 px it goes on training the 16 x 16 table through the interpolation.
        But 36 positions that are interpolated from nano's nine would be hard to tell apart.
        """
        U = self.config.buffer_size
        for name, n_buffers in (("encoder_pos_embed_learned", U), ("decoder_pos_embed_learned", U),
                                ("diffusion_pos_embed_learned", 0)):
            table = self.pos_embed(getattr(self, name), (side, side), n_buffers)
            setattr(self, name, nn.Parameter(table.clone()))
        self.config.grid = side

    # --- encoder and decoder ---------------------------------------------------------------------------------------

    def run_blocks(self, blocks, x, index=None):
        """x (B, L, D) through all blocks; index (B, m): the places in L that the last block computes, (B, m, D)."""
        for i, block in enumerate(blocks):
            wanted = index if i == len(blocks) - 1 else None
            if self.checkpointing and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x, wanted, use_reentrant=False)
            else:
                x = block(x, wanted)
        return x

    def encode(self, latents, visible=None, grid=None, condition=None):
        """latents (B, S, C), visible (B, K) or None = all -> (B, U+K, D), buffers first.

        condition (B, D) fills the buffers: a class embedding, None = fake_latent.
        """
        B, U = latents.shape[0], self.config.buffer_size
        condition = self.fake_latent.expand(B, -1) if condition is None else condition
        pos = self.pos_embed(self.encoder_pos_embed_learned, grid, U)            # (1, U+S, D)
        buffers = condition.unsqueeze(1) + pos[:, :U]                            # (B, U, D)
        pos = pos[:, U:]                                                         # (1, S, D)
        if visible is not None:
            latents = take(latents, visible)                                     # (B, K, C)
            pos = take(pos.expand(B, -1, -1), visible)                           # (B, K, D)
        x = self.z_proj(latents.to(self.z_proj.weight.dtype)) + pos              # (B, K, D)
        x = self.z_proj_ln(torch.cat([buffers, x], dim=1))                       # (B, U+K, D)
        return self.encoder_norm(self.run_blocks(self.encoder_blocks, x))

    def decode(self, encoded, visible=None, grid=None, places=None):
        """Encoder output, in Harmon plus what the LLM adds, (B, U+K, D) -> z (B, S, D): the diffusion MLP's condition.

        D is the encoder's width before `decoder_embed` and the decoder's after it (all presets have them equal).
        places (B, m): z only there, (B, m, D), which saves most of the last block.
        """
        B, U = encoded.shape[0], self.config.buffer_size
        x = self.decoder_embed(encoded)                                          # (B, U+K, D)
        pos = self.pos_embed(self.decoder_pos_embed_learned, grid, U)            # (1, U+S, D)
        if visible is not None:
            S, D = pos.shape[1] - U, x.shape[2]
            canvas = self.mask_token.to(x.dtype).expand(B, S, D)                 # a mask token everywhere, then
            canvas = canvas.scatter(1, visible.unsqueeze(-1).expand(-1, -1, D), x[:, U:])  # the visible ones over it
            x = torch.cat([x[:, :U], canvas], dim=1)                             # (B, U+S, D)
        pos_z = self.pos_embed(self.diffusion_pos_embed_learned, grid, 0)        # (1, S, D)
        if places is None:
            return self.decoder_norm(self.run_blocks(self.decoder_blocks, x + pos))[:, U:] + pos_z
        x = self.run_blocks(self.decoder_blocks, x + pos, U + places)            # (B, m, D)
        return self.decoder_norm(x) + take(pos_z.expand(B, -1, -1), places)

    # --- training --------------------------------------------------------------------------------------------------

    def loss(self, z, latents, hidden, t=None, noise=None, generator=None):
        """Diffusion loss of the hidden tokens, a scalar. hidden (B, S-K): places, z (B, S-K, D), latents (B, S, C).

        Every token is used `diffusion_batch_mul` times, with another timestep and noise each.
        t (mul*B*(S-K),) and noise (mul*B*(S-K), C), tiled (row i: token i % (B*(S-K))), are drawn if None.
        """
        mul = self.config.diffusion_batch_mul
        target = take(latents, hidden).flatten(0, 1).repeat(mul, 1)              # (mul*B*(S-K), C)
        return self.diffloss(target, z.flatten(0, 1), t, noise, generator).mean()

    def class_loss(self, latents, labels, generator=None, order_generator=None):
        """MAR's own training step: latents (B, S, C), labels (B,), -1 = none. A share is dropped, for guidance."""
        B, S, _ = latents.shape
        visible, hidden = random_split(self.config, B, S, latents.device, order_generator)
        condition = self.class_emb(labels.clamp(min=0))                          # (B, D)
        drop = torch.rand(B, 1, device=latents.device, generator=generator) < self.config.label_drop_prob
        condition = torch.where(drop & self.training | (labels < 0)[:, None], self.fake_latent, condition)
        z = self.decode(self.encode(latents, visible, condition=condition), visible, places=hidden)  # (B, S-K, D)
        return self.loss(z, latents, hidden, generator=generator)

    # --- drawing ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, predict, orders, iters, cfg=1.0, cfg_schedule="constant", latents=None, known=None,
             on_iteration=None, **sampling):
        """Uncover tokens in `iters` iterations: the drawing loop of MAR and of Harmon. Returns latents (B, S, C).

        predict(latents, visible, to_draw) -> z (B or 2B, m, D) at the m places of this iteration, to_draw (B, m);
        doubled, conditional rows first, when cfg != 1.
        orders (B, n): the places to draw; the *last* entry of each row is drawn first, as in the official code.
        cfg: strength of guidance, 1 = none; cfg_schedule: "constant", or "linear" in the share of uncovered tokens,
        from about 1 to almost cfg. For in-painting: latents (B, S, C), a picture, and known (B, S-n), the places that
        keep their token. on_iteration(latents, visible), here unsorted, is called after every one (for GIFs).
        **sampling: see DiffLoss.sample.
        """
        B, n = orders.shape
        if latents is None:
            latents = torch.zeros(B, n, self.config.token_dim, device=orders.device)      # (B, S, C): S = n, all hidden
        known = orders[:, :0] if known is None else known
        counts = unmasking_schedule(n, iters)    # orders[:, :n_now] are hidden before an iteration, :n_next after it
        for n_now, n_next in zip(counts, counts[1:]):
            if n_now == n_next:
                continue                             # more iterations than tokens: nothing to draw in this one
            visible = torch.cat([known, orders[:, n_now:]], dim=1).sort(dim=1).values      # (B, S-n_now)
            to_draw = orders[:, n_next:n_now].sort(dim=1).values                 # (B, m), m = n_now - n_next
            # max(1, ...): as official, where one token counts as hidden even after the last iteration
            strength = cfg if cfg_schedule == "constant" else 1 + (cfg - 1) * (n - max(1, n_next)) / n
            z = predict(latents, visible, to_draw).flatten(0, 1)                 # (B*m or 2B*m, D)
            new = self.diffloss.sample(z, cfg=strength, guided=cfg != 1.0, **sampling)     # (B*m, C)
            new = new.unflatten(0, (B, -1)).to(latents.dtype)                    # (B, m, C)
            latents = latents.scatter(1, to_draw.unsqueeze(-1).expand(-1, -1, new.shape[-1]), new)
            if on_iteration is not None:
                on_iteration(latents, torch.cat([known, orders[:, n_next:]], dim=1))
        return latents

    def redraw(self, predict, orders, rounds, iters, cfg, latents, known=None, cfg_schedule=None, **options):
        """Correct a finished drawing, latents (ours). Arguments as in `draw`; no cfg_schedule: "linear" would restart.

        In a round one half of the tokens is hidden and drawn anew given the other, then the other half: a token that
        was drawn while little was visible, say with a color between two, has to fit its neighbours then.
        """
        n, chance = orders.shape[1], torch.Generator().manual_seed(0)      # `orders` are random: so are the halves
        for _ in range(rounds if n > 1 else 0):
            halves = orders[:, torch.randperm(n, generator=chance).to(orders.device)].chunk(2, dim=1)      # (B, n/2)
            for hidden, kept in (halves, halves[::-1]):
                latents = self.draw(predict, hidden, redraw_iters(iters), cfg, latents=latents,
                                    known=kept if known is None else torch.cat([known, kept], dim=1), **options)
        return latents

    @torch.no_grad()
    def class_sample(self, labels, orders, iters=64, cfg=3.0, cfg_schedule="linear", grid=None, **options):
        """Draw from class labels (B,), MAR's own use; None draws without a class. orders (B, S), see `random_orders`.

        Returns latents (B, S, C). **options: those of `draw` and the sampler.
        """
        B = len(orders)
        nothing = self.fake_latent.expand(B, -1)                                 # (B, D)
        condition = nothing if labels is None else self.class_emb(labels)        # (B, D)
        if cfg != 1.0:
            condition = torch.cat([condition, nothing])                          # (2B, D)

        def predict(latents, visible, to_draw):
            copies = len(condition) // B
            latents, visible = latents.repeat(copies, 1, 1), visible.repeat(copies, 1)     # of B or 2B rows
            return self.decode(self.encode(latents, visible, grid, condition), visible, grid, to_draw.repeat(copies, 1))
        return self.draw(predict, orders, iters, cfg, cfg_schedule, **options)


def take(x, index):
    """Rows of x (B, S, D) at index (B, n) -> (B, n, D)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def random_orders(B, S, device, generator=None):
    """B random permutations of range(S): (B, S)."""
    return torch.rand(B, S, device=device, generator=generator).argsort(dim=1)


def unmasking_schedule(n, iters):
    """How many of n tokens are hidden before each iteration and after the last: iters+1 numbers from n down to 0.

    Cosine (MaskGIT, arXiv 2202.04200): few tokens at first, many at the end; at least one stays hidden until the last
    iteration, and at least one is drawn in each until only that one is left.
    """
    counts = [n]
    for i in range(iters):
        left = math.floor(n * math.cos(math.pi / 2 * (i + 1) / iters))
        counts.append(0 if i == iters - 1 else max(1, min(counts[-1] - 1, left)))
    return counts


def redraw_iters(iters):
    """Iterations in which `MAR.redraw` draws half of a picture, where the whole had `iters` (tried: docs/LOG.md)."""
    return max(1, iters // 4)


def mask_ratio_at(config, u):
    """Share of hidden tokens for a uniform number u in [0, 1).

    "truncnorm": the official normal(1, 0.25) cut to [mask_ratio_min, 1], by its inverse cdf. "cosine": cos(pi/2 u), the
    distribution met while drawing with the cosine schedule; needed where there are so few tokens that the official
    range would never show the decoder more than a handful.
    """
    if config.mask_ratio == "cosine":
        return math.cos(math.pi / 2 * u)
    low = NormalDist().cdf((config.mask_ratio_min - 1) / 0.25)
    return 1 + 0.25 * NormalDist().inv_cdf(low + u * (0.5 - low))


def random_split(config, B, S, device, generator=None, hide_all=0.0):
    """A random division of S tokens, for training: visible (B, K) and hidden (B, S-K) indices, raster order.

    One ratio per batch (as official). The generator is the host's (`order_generator` of the callers): the ratio decides
    shapes. hide_all: share of batches with everything hidden, beside those that the ratio's distribution gives.
    """
    u = torch.rand((), generator=generator).item()
    ratio = 1.0 if u < hide_all else mask_ratio_at(config, (u - hide_all) / (1 - hide_all))
    n_hidden = min(S, max(1, math.ceil(S * ratio)))
    orders = random_orders(B, S, "cpu", generator)                               # (B, S)
    orders = orders.to(device, non_blocking="cuda" in str(device))               # on MPS the source may be gone by then
    return orders[:, n_hidden:].sort(dim=1).values, orders[:, :n_hidden].sort(dim=1).values
