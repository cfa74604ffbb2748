"""A model that reads and draws codes: the LLM of Harmon's middle, with VQ tokens (vq.py) instead of MAR around it.

One class, three systems. All read a picture's codes in front of the question, and draw codes after the request:

    codes    reads code vectors through an MLP. Draws the next code, in raster order, from a softmax over the codebook,
             as LlamaGen (arXiv 2406.06525) and Chameleon (arXiv 2405.09818) do.
    toklip   reads TokLIP's features of the codes (toklip.py) through an MLP; draws as above. Its encoder is causal, so
             the LLM sees the features of the codes drawn so far, too.
    masked   reads as `codes`. Draws all hidden codes at once and keeps the surest, again and again (MaskGIT, arXiv
             2202.04200), inside the LLM (Show-o, arXiv 2408.12528): the picture's places all see each other.

Harmon's two losses and its drawing loop have their counterparts here, with the same arguments: so the batches, losses,
pipeline and benchmarks of Harmon serve these systems unchanged. `latents` are codes here, (B, S, 1) (see vq.py).

Simplified: in all three, the question sees the picture in causal order (Show-o lets a picture's places see each other
there as well); codes have an output layer of their own, and are no words of the LLM's vocabulary.
"""
import torch
import torch.nn.functional as F
from torch import nn

from ..harmon import projector
from ..mar import random_split, unmasking_schedule
from ..qwen import KVCache, Qwen, causal_mask, rope_tables, rotary_positions
from ..tokenizer import IMAGE
from .vq import VQ

CHOICE = 4.5                 # MaskGIT's choice temperature: how much chance decides, at first, which codes are kept


class Discrete(nn.Module):
    """`config`: HarmonConfig, of which `mar` says the native grid, how many tokens are hidden in training (masked), and
    that a picture has no buffers (buffer_size 0). toklip: a TokLIP, or None to read code vectors; it is not
    masked, for its features tell of the codes before them, also of hidden ones."""

    def __init__(self, config, codes, code_dim=8, toklip=None, masked=False):
        super().__init__()
        self.config, self.masked, E = config, masked, config.llm.hidden_size
        self.vae, self.llm, self.toklip = VQ(config.vae, codes, code_dim), Qwen(config.llm), toklip
        self.proj_in = projector(code_dim if toklip is None else toklip.width, E, E)
        # stands where there is no code: before the first one, or in every hidden place
        self.blank = nn.Parameter(torch.randn(1, 1, E) * 0.02)
        self.code_head = nn.Linear(E, codes)

    # --- what the LLM reads ----------------------------------------------------------------------------------------

    def features(self, codes):
        """Codes (B, K) of the first K places -> what is known of each before the LLM, (B, K, d)."""
        vectors = self.vae.vectors(codes)
        return vectors if self.toklip is None else self.toklip.tokens(vectors)

    def see(self, codes):
        """Codes (B, K) -> embeddings for the LLM (B, K, E)."""
        return self.proj_in(self.features(codes))

    def embed_with_images(self, latents, ids, grid=None):
        """Text embeddings of ids (B, L), with the pictures' embeddings in the IMAGE places -> (B, L, E)."""
        embeds = self.llm.embed(ids.clamp(min=0))
        if latents is None:
            return embeds
        return embeds.masked_scatter((ids == IMAGE).unsqueeze(-1), self.see(latents.squeeze(-1).long()))

    def understanding_loss(self, latents, ids, labels, label_index=None, grid=None):
        """Cross-entropy of the replies, as in Harmon."""
        return self.llm.loss(self.embed_with_images(latents, ids, grid), labels, label_index)

    # --- drawing: what each place should be ------------------------------------------------------------------------

    def code_logits(self, codes, ids, is_real, is_hidden=None):
        """Logits of the code of every place, (B, S, codes), after the requests ids (B, T), right-padded.

        codes (B, S). Raster: those of a place follow from the codes before it. Masked: from all that are not hidden,
        is_hidden (B, S) bool.
        """
        B, S = codes.shape
        real = torch.cat([is_real, is_real.new_ones(B, S)], dim=1)               # (B, T+S)
        positions = rotary_positions(real)                                       # (B, T+S)
        if self.masked:
            picture = torch.where(is_hidden.unsqueeze(-1), self.blank, self.see(codes))          # (B, S, E)
        else:                                                                    # a place sees the code before it
            picture = torch.cat([self.blank.expand(B, -1, -1), self.see(codes[:, :-1])], dim=1)
        embeds, model = torch.cat([self.llm.embed(ids), picture], dim=1), self.llm.model         # (B, T+S, E)
        if not self.masked:
            return self.code_head(model(embeds, positions, real)[:, -S:]).float()
        may_attend = causal_mask(0, embeds.shape[1], real, embeds.device)        # (B, 1, T+S, T+S)
        may_attend[..., -S:, -S:] = True                                         # within the picture, all see all
        rope = rope_tables(positions, model.layers[0].self_attn.head_dim, model.config.rope_theta)
        for i, layer in enumerate(model.layers):
            embeds = layer(embeds, rope, may_attend, None, i)
        return self.code_head(model.norm(embeds)[:, -S:]).float()

    def generation_loss(self, latents, ids, is_real, grid=None, split=None, generator=None, order_generator=None,
                        hide_all=0.0):
        """Cross-entropy of the codes: of all, or of the hidden ones. Arguments as in Harmon; a scalar."""
        codes = latents.squeeze(-1).long()                                       # (B, S)
        is_hidden = torch.ones_like(codes, dtype=torch.bool)
        if self.masked:
            _, hidden = split or random_split(self.config.mar, *codes.shape, codes.device, order_generator, hide_all)
            is_hidden = torch.zeros_like(is_hidden).scatter(1, hidden, True)
        return F.cross_entropy(self.code_logits(codes, ids, is_real, is_hidden)[is_hidden], codes[is_hidden])

    # --- drawing: the loops ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, ids, is_real, randn, iters=64, cfg=3.0, temperature=1.0, grid=None, **_):
        """Draw pictures -> codes (B, S, 1). ids (B or 2B, T), with guidance the B unconditional requests last.

        randn(shape) gives all chance, as normal numbers. iters: of the masked drawer; the raster one needs one pass per
        place. temperature 0: always the likeliest code. All else is Harmon's, and unread.
        """
        h, w = grid or (self.config.mar.grid,) * 2
        common = ids, is_real, h * w, cfg, temperature, randn
        return (self.draw_masked(*common, iters) if self.masked else self.draw_raster(*common)).unsqueeze(-1)

    def draw_raster(self, ids, is_real, S, cfg, temperature, randn):
        real, cache = is_real, KVCache()
        self.llm.model(self.llm.embed(ids), is_real=real, cache=cache)           # the request, once
        copies = 1 if cfg == 1.0 else 2
        codes = ids.new_zeros(len(ids) // copies, 0)
        embeds = self.blank.expand(len(ids), -1, -1)                             # (B or 2B, 1, E)
        for _ in range(S):
            real = F.pad(real, (0, 1), value=True)
            state = self.llm.model(embeds, rotary_positions(real)[:, -1:], real, cache)[:, -1]
            new, _ = pick(guide(self.code_head(state).float(), cfg), temperature, randn)     # (B,)
            codes = torch.cat([codes, new.unsqueeze(1)], dim=1)
            embeds = self.see(codes)[:, -1:].repeat(copies, 1, 1)
        return codes

    def draw_masked(self, ids, is_real, S, cfg, temperature, randn, iters):
        copies = 1 if cfg == 1.0 else 2
        codes = ids.new_zeros(len(ids) // copies, S)
        is_hidden, counts = torch.ones_like(codes, dtype=torch.bool), unmasking_schedule(S, iters)
        for i, n_next in enumerate(counts[1:]):                                  # n_next places stay hidden
            if n_next == counts[i]:
                continue                                                         # more iterations than places
            logits = guide(self.code_logits(codes.repeat(copies, 1), ids, is_real, is_hidden.repeat(copies, 1)), cfg)
            new, sure = pick(logits, temperature, randn)                         # (B, S) each
            chance = temperature * CHOICE * (1 - (i + 1) / iters)                # none in the last one
            sure = (sure + chance * gumbel(randn(sure.shape))).masked_fill(~is_hidden, torch.inf)    # drawn ones stay
            codes = torch.where(is_hidden, new, codes)
            is_hidden = torch.ones_like(is_hidden).scatter(1, sure.topk(S - n_next, dim=1).indices, False)
        return codes


def guide(logits, cfg):
    """Classifier-free guidance of logits (2B, ...), conditional rows first -> (B, ...); cfg 1 = none, (B, ...)."""
    if cfg == 1.0:
        return logits
    wanted, anything = logits.chunk(2)
    return anything + cfg * (wanted - anything)


def gumbel(normal):
    """Normal numbers -> Gumbel numbers, by way of uniform ones: the largest of logits + Gumbel is a sample of them."""
    return -(-torch.special.ndtr(normal).clamp(1e-6, 1 - 1e-6).log()).log()


def pick(logits, temperature, randn):
    """A code for each row of logits (..., codes), and its log-probability, both (...)."""
    rows = logits.flatten(0, -2)
    noise = temperature * gumbel(randn(rows.shape)) if temperature else 0
    chosen = (rows + noise).argmax(dim=-1)
    return (x.view(logits.shape[:-1]) for x in (chosen, rows.log_softmax(-1).gather(1, chosen[:, None]).squeeze(1)))
