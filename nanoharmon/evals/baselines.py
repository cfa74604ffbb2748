"""What MAR and Harmon replaced: raster order, an L2 loss, an encoder for each task. Only the studies need them.

    with swapped_in("raster order"):        # or "l2 loss", "separate encoders", "" for none
        ...                                 # models that are made here have the baseline

The core knows nothing of them: a baseline takes the place of a function or class of the core, in this process and until
the block ends. arm.py trains and measures each arm of a study in a process of its own.

    raster order        the hidden tokens are those after some point, as a left-to-right model meets them; what MAR's
                        random orders replace (arXiv 2406.11838, sec. 4.1)
    l2 loss             the head says one token for each z, by squared error; what diffusion loss replaces (sec. 3)
    separate encoders   understanding has an encoder of its own, `mar_read`; what Harmon's shared one replaces
"""
import contextlib

import torch
from torch import nn

from .. import mar
from ..harmon import Harmon


# --- raster order -----------------------------------------------------------------------------------------------------

def raster_orders(B, S, device, generator=None):
    """In the place of mar.random_orders: left to right, top to bottom, (B, S). Reversed, because the last entry of an
    order is drawn first; and in training (mar.random_split) the last ones are visible."""
    return torch.arange(S - 1, -1, -1, device=device).expand(B, S)


# --- l2 loss ----------------------------------------------------------------------------------------------------------

class L2Loss(nn.Module):
    """In the place of DiffLoss: z -> the token's mean. `config`: MARConfig."""

    def __init__(self, config):
        super().__init__()
        width = config.diffloss_w
        self.net = nn.Sequential(nn.Linear(config.decoder_embed_dim, width), nn.SiLU(),
                                 nn.Linear(width, config.token_dim))

    def forward(self, target, z, t=None, noise=None, generator=None):
        """Squared error per row (N,). target (N, C), z (N, D); nothing is random."""
        return (self.net(z).float() - target.float()).square().mean(dim=-1)

    @torch.no_grad()
    def sample(self, z, cfg=1.0, guided=False, **_):
        """z (N, D) -> (N, C); if guided, z is (2N, D), conditional rows first. Needs nothing that samplers do."""
        mean = self.net(z)                                           # (N, C) or (2N, C)
        if not guided:
            return mean
        cond, uncond = mean.chunk(2)
        return uncond + cfg * (cond - uncond)                        # (N, C)


# --- separate encoders ------------------------------------------------------------------------------------------------

shared_init = Harmon.__init__


def init_two(self, config):
    """In the place of Harmon.__init__."""
    shared_init(self, config)
    self.mar_read = mar.MAR(config.mar)


def see_with_two(self, latents, visible=None, grid=None):
    """In the place of Harmon.see: a picture with nothing hidden is one to understand."""
    encoder, U = self.mar_read if visible is None else self.mar, self.config.mar.buffer_size
    encoded = encoder.encode(latents, visible, grid)                             # (B, U+K, D)
    embeds = self.proj_in(encoded)                                               # (B, U+K, E)
    return encoded, torch.cat([embeds[:, U:], embeds[:, :U]], dim=1)             # buffers to the end


# --- the swap ---------------------------------------------------------------------------------------------------------

SWAPS = {"": (), "raster order": ((mar, "random_orders", raster_orders),), "l2 loss": ((mar, "DiffLoss", L2Loss),),
         "separate encoders": ((Harmon, "__init__", init_two), (Harmon, "see", see_with_two))}


@contextlib.contextmanager
def swapped_in(baseline):
    """Inside the block, this process has one of SWAPS in the core's place."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in SWAPS[baseline]]
    for owner, name, new in SWAPS[baseline]:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, old in before:
            setattr(owner, name, old)
