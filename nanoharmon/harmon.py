"""Harmon (arXiv 2503.21979): one MAR encoder that both sees and draws, with a Qwen2.5 LLM in the middle.

The same encoder serves two tasks:

    understanding   picture -> latents -> MAR encoder, *nothing hidden* -> proj_in -> LLM -> text
    generation      picture so far -> MAR encoder, hidden tokens dropped -> proj_in -> LLM after the prompt -> proj_out,
                    added to the encoder's output -> MAR decoder -> z at the hidden places -> diffusion MLP -> latents

What to know about the order of tokens (sec. 3 and the official code): the MAR encoder has its U buffers in *front* of
the image tokens. For the LLM they move to the *end*, where causal attention lets them see the prompt and all visible
tokens; after the LLM they move back to the front. (A picture to understand stands before the question, buffers last
again: the LLM meets one layout only.) 2-D positions come from the MAR position embedding; to the LLM the image is a
plain sequence that continues the text.

Letters: B batch, T text tokens, S image tokens, K visible ones, U buffers, D MAR width, E LLM width, C channels of an
image token, L sequence length in the LLM. Five names for five tensors: `latents` are image tokens (B, S, C), `encoded`
is the MAR encoder's output (B, U+K, D), `embeds` what the LLM reads (B, L, E), of text or of a picture, `summed` the
encoder's output plus the LLM's (B, U+K, D), `z` the MAR decoder's output at the hidden places (B, S-K, D), or at the m
to draw (B, m, D). Parameters have the official names (`vae. mar. llm. proj_in. proj_out.`): official weights load.
"""
import torch
from torch import nn

from .mar import MAR, random_orders, random_split
from .qwen import KVCache, Qwen, rotary_positions
from .tokenizer import IMAGE
from .vae import VAE


def projector(d_in, d_middle, d_out):
    """Two linear layers: d_in -> d_middle -> d_out."""
    return nn.Sequential(nn.Linear(d_in, d_middle), nn.SiLU(), nn.Linear(d_middle, d_out))


class Harmon(nn.Module):
    """`config`: HarmonConfig."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vae, self.mar, self.llm = VAE(config.vae), MAR(config.mar), Qwen(config.llm)
        D, E = config.mar.encoder_embed_dim, config.llm.hidden_size
        self.proj_in = projector(D, E, E)
        self.proj_out = projector(E, E, D)

    # --- the shared encoder ----------------------------------------------------------------------------------------

    def see(self, latents, visible=None, grid=None):
        """Encode a picture, and project it for the LLM. latents (B, S, C), visible (B, K) or None = all of them.

        Returns encoded (B, U+K, D), buffers first, and embeds (B, K+U, E), buffers last.
        """
        U = self.config.mar.buffer_size
        encoded = self.mar.encode(latents, visible, grid)                        # (B, U+K, D)
        embeds = self.proj_in(encoded)                                           # (B, U+K, E)
        return encoded, torch.cat([embeds[:, U:], embeds[:, :U]], dim=1)         # buffers to the end

    def through_llm(self, encoded, embeds, text, is_real, cache=None):
        """Let the LLM read [text | picture so far]; add its last states of the picture to the encoder's output.

        encoded (B, U+K, D) and embeds (B, K+U, E) from `see`; text (B, T, E), right-padded, is_real (B, T). With a
        cache that holds the text already, `text` is None. Returns summed (B, U+K, D), buffers first: through them the
        prompt reaches the decoder even when no image token is visible. Added, so that what MAR has learned before still
        works while the LLM's part is small: the encoder says what is there, the LLM what is wanted.
        """
        n, U = embeds.shape[1], self.config.mar.buffer_size                      # n = K + U
        is_real = torch.cat([is_real, is_real.new_ones(embeds.shape[:2])], dim=1)    # (B, T+n)
        positions = rotary_positions(is_real)    # (B, T+n): the picture's go on from the last real text token
        if cache is None:                        # the last MLP only for the picture: nobody reads the text's states
            rows = torch.arange(is_real.numel(), device=is_real.device).view(is_real.shape)[:, -n:]      # (B, n)
            states = self.llm.model(torch.cat([text, embeds.to(text.dtype)], dim=1), positions, is_real,
                                    rows=rows.flatten()).view(*rows.shape, -1)        # (B, n, E)
        else:
            states = self.llm.model(embeds, positions[:, -n:], is_real, cache)   # (B, n, E)
        states = self.proj_out(states)                                           # (B, n, D)
        return encoded + torch.cat([states[:, n - U:], states[:, :n - U]], dim=1)          # buffers back to the front

    # --- training --------------------------------------------------------------------------------------------------

    def generation_loss(self, latents, ids, is_real, grid=None, split=None, t=None, noise=None, generator=None,
                        order_generator=None, hide_all=0.0, pictures=None):
        """Diffusion loss of the hidden tokens given the prompt and the visible ones. A scalar.

        latents (B, S, C) of the picture; ids (B, T) the prompt, right-padded; is_real (B, T). split: (visible, hidden)
        indices; split, t and noise are random when not given: order_generator, on the host, decides which tokens are
        hidden, and how many; generator, on the device, the rest. hide_all: see random_split. pictures (N, S, C):
        latents that the prompt shows, at IMAGE in ids, as for understanding (RecA, arXiv 2509.07295).
        """
        visible, hidden = split or random_split(self.config.mar, *latents.shape[:2], latents.device, order_generator,
                                                hide_all)
        encoded, embeds = self.see(latents, visible, grid)                       # (B, U+K, D), (B, K+U, E)
        text = self.embed_with_images(pictures, ids, grid, self.config.grad_scale)         # (B, T, E)
        summed = self.through_llm(encoded, embeds, text, is_real)                # (B, U+K, D)
        z = self.mar.decode(summed, visible, grid, hidden)                       # (B, S-K, D)
        return self.mar.loss(z, latents, hidden, t, noise, generator)

    def understanding_loss(self, latents, ids, labels, label_index=None, grid=None):
        """Cross-entropy of the replies, given whole pictures. A scalar.

        latents (N, S, C) of the N pictures in the order of their placeholders (None = text only); ids (B, L) with IMAGE
        at the S+U places of each picture; labels (B, L): ids of the replies, -100 elsewhere; padding is at the end.
        """
        embeds = self.embed_with_images(latents, ids, grid, self.config.grad_scale)        # (B, L, E)
        return self.llm.loss(embeds, labels, label_index)

    def embed_with_images(self, latents, ids, grid=None, grad_scale=1.0):
        """Text embeddings of ids (B, L) with the pictures' embeddings in the IMAGE places -> (B, L, E).

        grad_scale: factor on the gradient of these pictures into proj_in and the encoder, 0.1 in the official code: the
        gradient of answers can be much larger than that of drawing, and both reach the same encoder.
        """
        embeds = self.llm.embed(ids.clamp(min=0))        # (B, L, E); IMAGE as id 0, overwritten below
        if latents is None:
            return embeds
        shown = self.see(latents, None, grid)[1]                                 # (N, S+U, E)
        if grad_scale != 1.0:
            shown = shown.detach() + grad_scale * (shown - shown.detach())       # same value, scaled gradient
        return embeds.masked_scatter((ids == IMAGE).unsqueeze(-1), shown.to(embeds.dtype))

    # --- drawing ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, ids, is_real, iters=64, cfg=3.0, grid=None, orders=None, redraw=0, **options):
        """Draw. ids, is_real (B or 2B, T): right-padded prompts; with cfg != 1 the B unconditional ones follow
        ("Generate an image.", of a part GENERATE_ANY_PART: in training they replace a share of the prompts).

        grid (h, w): tokens down and across, default the native grid. orders: see MAR.draw, None = all places, in random
        order. redraw: rounds of MAR.redraw. options: cfg_schedule, temperature, steps, sampler, generator, randn,
        latents and known (in-painting), on_iteration: MAR.draw and DiffLoss.sample. Returns latents (B, S, C).
        """
        grid = grid or (self.config.mar.grid,) * 2
        copies = 1 if cfg == 1.0 else 2                          # with guidance, the unconditional prompts follow
        B = is_real.shape[0] // copies
        if orders is None:
            orders = random_orders(B, grid[0] * grid[1], "cpu").to(is_real.device)
        cache = KVCache()                                                        # the prompt goes through the LLM once
        self.llm.model(self.llm.embed(ids), is_real=is_real, cache=cache)
        cache.append = False                                                     # the picture changes in each iteration

        def predict(latents, visible, to_draw):                  # -> z (B or 2B, m, D)
            encoded, embeds = self.see(latents, visible, grid)   # the same for both halves of the guided batch
            summed = self.through_llm(encoded.repeat(copies, 1, 1), embeds.repeat(copies, 1, 1), None, is_real, cache)
            return self.mar.decode(summed, visible.repeat(copies, 1), grid, to_draw.repeat(copies, 1))
        latents = self.mar.draw(predict, orders, iters, cfg, **options)
        options["latents"] = latents                             # the drawing, instead of a picture to be in-painted
        return self.mar.redraw(predict, orders, redraw, iters, cfg, **options)
