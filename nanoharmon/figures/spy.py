"""What the figures look at: one drawing, one division into visible and hidden, the attention in it, read from the code
as it runs. Functions of the model are wrapped for that time; nothing is computed a second way."""
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch

from .. import mar, qwen
from ..diffusion import Diffusion
from ..mar import MAR, random_orders

@contextmanager
def attention_weights():
    """Inside, attention (MAR's and the LLM's) also puts its weights into the list: one (heads, Lq, Lk) per call."""
    seen = []

    def wrapper(q, k, v, may_attend=None, is_causal=False, dropout=0.0):
        values = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)              # one-hot: what comes out are weights
        seen.append(attention(q, k, values, may_attend, is_causal)[0])
        return attention(q, k, v, may_attend, is_causal, dropout)
    attention = mar.attention
    with mock.patch.object(mar, "attention", wrapper), mock.patch.object(qwen, "attention", wrapper):
        yield seen


@dataclass
class Moment:
    """A picture being drawn, partly visible: attention in all three transformers, averaged over layers and heads."""
    tokens: list                             # of the prompt, as text
    visible: int
    encoder: torch.Tensor                    # (U+K, U+K)
    llm: torch.Tensor                        # (T+K+U, T+K+U)
    decoder: torch.Tensor                    # (U+S, U+S)


@torch.no_grad()
def moment(pipe, prompt, latents, grid, share):
    """The moment of drawing `prompt` at which a share of the tokens of latents (1, S, C) is visible."""
    ids, is_real = pipe.prompt_ids([prompt], guided=False)
    visible = random_orders(1, latents.shape[1], "cpu", torch.Generator().manual_seed(0))
    visible = visible[:, :round(share * latents.shape[1])].sort(dim=1).values
    with attention_weights() as encoder:
        encoded, embeds = pipe.model.see(latents, visible, grid)
    with attention_weights() as llm:
        summed = pipe.model.through_llm(encoded, embeds, pipe.model.llm.embed(ids), is_real)
    with attention_weights() as decoder:
        pipe.model.mar.decode(summed, visible, grid)
    encoder, llm, decoder = (torch.stack(seen).mean(dim=(0, 1)) for seen in (encoder, llm, decoder))
    decode = pipe.tokenizer.inner.decode
    tokens = [decode([i], skip_special_tokens=False) for i in ids[0].tolist()]
    return Moment(tokens, visible.shape[1], encoder, llm, decoder)


@torch.no_grad()
def seen_by_buffers(pipe, image):
    """How much each buffer attends to each token of a whole picture: (U, h, w), averaged over blocks and heads."""
    latents, grid = pipe.latents([image])
    U = pipe.model.config.mar.buffer_size
    with attention_weights() as seen:
        pipe.model.see(latents, None, grid)
    return torch.stack(seen).mean(dim=(0, 1))[:U, U:].unflatten(1, grid)


@dataclass
class Drawing:
    """A drawing, iteration by iteration, and all diffusion steps of its tokens."""
    thought: str
    grid: tuple
    latents: list                            # after each iteration: (1, S, C)
    visible: list                            # and the places that are visible then: (1, K)
    chains: list                             # of each iteration: [(timestep, x_t (m, C), predicted x_0 (m, C)), ...]


@torch.no_grad()
def drawing(pipe, prompt, seed):
    """Draw as sample.py does with --redraw 0, and keep everything."""
    thought = pipe.think([prompt], seed)[0] if pipe.plan([prompt])["think"] else prompt
    plan = pipe.plan([thought], think=False)
    kept = Drawing(thought, plan["grid"], [], [], [])
    draw, step = MAR.draw, Diffusion.p_mean_variance

    def watched_draw(self, *args, on_iteration=None, **options):
        def keep(latents, visible):
            kept.latents.append(latents)
            kept.visible.append(visible)
        return draw(self, *args, on_iteration=keep, **options)

    def watched_step(self, output, x_t, t, clip=0.0):
        mean, logvar, x0 = step(self, output, x_t, t, clip)
        if t == len(self) - 1:
            kept.chains.append([])
        kept.chains[-1].append((self.timestep_map[t], x_t, x0))
        return mean, logvar, x0
    with mock.patch.object(MAR, "draw", watched_draw), mock.patch.object(Diffusion, "p_mean_variance", watched_step):
        pipe.draw([thought], seed=seed, think=False, redraw=0)
    return kept
