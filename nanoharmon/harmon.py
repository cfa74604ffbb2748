"""Harmon (arXiv 2503.21979): one MAR encoder that both sees and draws, with a Qwen2.5 LLM in the middle.

The same encoder serves two tasks:

    to understand   picture -> tokens -> MAR encoder, *nothing hidden* -> proj_in -> LLM -> text
    to draw         picture so far -> MAR encoder, hidden tokens dropped -> proj_in -> LLM after the prompt -> proj_out,
                    added to the encoder's output -> MAR decoder -> z at the hidden places -> diffusion head -> tokens

What to know about the order of tokens (sec. 3 and the official code): the MAR encoder has its U buffers in *front* of
the image tokens. For the LLM they move to the *end*, where causal attention lets them see the prompt and all visible
tokens; after the LLM they move back to the front. 2-D positions come from the MAR position embedding; to the LLM the
image is a plain sequence that continues the text.

Letters: B batch, T text tokens, S image tokens, K visible ones, U buffers, D MAR width, E LLM width, C token channels,
L sequence length in the LLM. Parameter names are the official ones (`vae. mar. llm. proj_in. proj_out.`), so that the
official weights load strictly.

    python -m nanoharmon.harmon      prints parameters per part, at every preset
"""
import torch
from torch import nn

from .mar import MAR, random_orders, random_split
from .qwen import KVCache, Qwen
from .vae import VAE

IMAGE = -200        # stands in a sequence of token ids for one image token or buffer (the official number)


def projector(d_in, d_out, d_last):
    return nn.Sequential(nn.Linear(d_in, d_out), nn.SiLU(), nn.Linear(d_out, d_last))


class Harmon(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.vae.z_channels != config.mar.token_dim:
            raise ValueError(f"vae.z_channels {config.vae.z_channels} and mar.token_dim {config.mar.token_dim} must be "
                             f"equal; pass --vae.z_channels and --mar.token_dim")
        self.config = config
        self.vae, self.mar, self.llm = VAE(config.vae), MAR(config.mar), Qwen(config.llm)
        self.mar_read = MAR(config.mar) if config.separate_encoders else None    # a baseline: see study.py
        D, E = config.mar.encoder_embed_dim, config.llm.hidden_size
        self.proj_in = projector(D, E, E)
        self.proj_out = projector(E, E, D)

    # --- the shared encoder ----------------------------------------------------------------------------------------

    def see(self, tokens, visible=None, grid=None):
        """Encode a picture for the LLM. tokens (B, S, C), visible (B, K) or None = all of them.

        Returns x (B, U+K, D), the MAR encoder's output, buffers first, and z (B, K+U, E), projected, buffers last.
        """
        encoder = self.mar_read if self.mar_read is not None and visible is None else self.mar
        x = encoder.encode(tokens, visible, grid)                                # (B, U+K, D)
        z = self.proj_in(x)                                                      # (B, U+K, E)
        U = self.config.mar.buffer_size
        return x, torch.cat([z[:, U:], z[:, :U]], dim=1)

    def through_llm(self, x, z, text, is_real, cache=None):
        """Let the LLM read [text | picture so far] and add what it makes of it to the encoder's output.

        x (B, U+K, D) and z (B, K+U, E) from `see`; text (B, T, E) embeddings, right-padded, is_real (B, T). With a
        cache that holds the text already, `text` is None. Returns (B, U+K, D), buffers first.
        """
        is_real = torch.cat([is_real.bool(), is_real.new_ones(z.shape[:2], dtype=torch.bool)], dim=1)   # (B, T+K+U)
        positions = (is_real.long().cumsum(dim=1) - 1).clamp(min=0)              # image positions skip the padding
        if cache is None:
            hidden = self.llm.model(torch.cat([text, z.to(text.dtype)], dim=1), positions, is_real)
        else:
            hidden = self.llm.model(z, positions[:, -z.shape[1]:], is_real, cache)
        hidden = self.proj_out(hidden[:, -z.shape[1]:])                          # (B, K+U, D)
        K = z.shape[1] - self.config.mar.buffer_size
        return x + torch.cat([hidden[:, K:], hidden[:, :K]], dim=1)

    # --- training --------------------------------------------------------------------------------------------------

    def generation_loss(self, tokens, ids, is_real, grid=None, split=None, t=None, noise=None, generator=None,
                        order_generator=None, hide_all=0.0):
        """Diffusion loss of the hidden tokens given the prompt and the visible ones. A scalar.

        tokens (B, S, C) of the picture; ids (B, T) the prompt, right-padded; is_real (B, T). split: (visible, hidden)
        indices; split, t and noise are drawn when not given (order_generator lives on the host, generator on device;
        hide_all: see random_split).
        """
        visible, hidden = split or random_split(self.config.mar, *tokens.shape[:2], tokens.device, order_generator,
                                                hide_all)
        x, z = self.see(tokens, visible, grid)
        x = self.through_llm(x, z, self.llm.embed(ids), is_real)                 # (B, U+K, D)
        z = self.mar.decode(x, visible, grid)                                    # (B, S, D)
        return self.mar.loss(z, tokens, hidden, t, noise, generator)

    def understanding_loss(self, tokens, ids, labels, is_real, label_index=None, grid=None):
        """Cross-entropy of the replies, given whole pictures. A scalar.

        tokens (N, S, C) of the N pictures in the order of their placeholders (None = text only); ids (B, L) with IMAGE
        at the S+U places of each picture; labels (B, L): ids of the replies, -100 elsewhere; is_real (B, L).
        The gradient into the encoder is scaled by config.grad_scale (0.1 in the official code).
        """
        embeds = self.embed_with_images(tokens, ids, grid, self.config.grad_scale)
        hidden = self.llm.model(embeds, is_real=is_real)                         # (B, L, E)
        return self.llm.loss(hidden, labels, label_index)

    def embed_with_images(self, tokens, ids, grid=None, grad_scale=1.0):
        """Text embeddings of ids (B, L) with the pictures' embeddings in the IMAGE places -> (B, L, E)."""
        embeds = self.llm.embed(ids.clamp(min=0))                                # (B, L, E)
        if tokens is None:
            return embeds
        z = self.see(tokens, None, grid)[1]                                      # (N, S+U, E)
        if grad_scale != 1.0:
            z = z.detach() + grad_scale * (z - z.detach())                       # same value, scaled gradient
        return embeds.masked_scatter((ids == IMAGE).unsqueeze(-1), z.to(embeds.dtype))

    # --- drawing ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, ids, is_real, iters=64, cfg=3.0, grid=None, orders=None, generator=None, order_generator=None,
             text=None, **options):
        """Draw pictures. ids (B or 2B, T): right-padded prompts; with cfg != 1 the B unconditional ones follow.

        grid (h, w): tokens down and across, default the native grid. text (B or 2B, T, E): embeddings used instead of
        ids, for prompts with pictures in them. options: cfg_schedule, temperature, steps, sampler, tokens and known
        (in-painting), on_step: see MAR.draw and DiffLoss.sample. Returns tokens (B, S, C).
        """
        grid = grid or (self.config.mar.grid,) * 2
        rows = is_real.shape[0]
        B = rows if cfg == 1.0 else rows // 2
        if orders is None:
            orders = random_orders(B, grid[0] * grid[1], "cpu", order_generator).to(is_real.device)
        cache = KVCache()                                                        # the prompt goes through the LLM once
        self.llm.model(self.llm.embed(ids) if text is None else text, is_real=is_real.bool(), cache=cache)
        cache.append = False

        def predict(tokens, visible):
            x, z = self.see(tokens, visible, grid)       # the same for both halves of the guided batch: done once
            copies = rows // B
            x = self.through_llm(x.repeat(copies, 1, 1), z.repeat(copies, 1, 1), None, is_real, cache)
            return self.mar.decode(x, visible.repeat(copies, 1), grid)           # (rows, S, D)
        return self.mar.draw(predict, orders, iters, cfg, generator=generator, **options)


def main(argv=None):
    from .cli import Parser                                                      # here: it imports this file
    from .config import PRESETS
    Parser(prog="python -m nanoharmon.harmon", description=__doc__).parse_args(argv)
    for name, make in PRESETS.items():
        with torch.device("meta"):
            model = Harmon(make())
        parts = {part: sum(p.numel() for p in child.parameters()) / 1e6 for part, child in model.named_children()}
        print(f"{name:12s} {sum(parts.values()):8.2f}M = "
              + " + ".join(f"{part} {n:.2f}M" for part, n in parts.items()))


if __name__ == "__main__":
    from .cli import run
    run(main)
