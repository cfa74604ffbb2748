"""Diffusion loss (MAR sec. 3.1-3.3): a small MLP that denoises *one* continuous token, given the MAR decoder's z.

The transformer says what a token should be (z); the diffusion MLP models the distribution p(token | z), so tokens need
not be codes. It replaces the softmax + cross-entropy of a discrete autoregressive model.

    z (N, D), token (N, C)  ->  loss per token          training: eps + learned variance, timestep drawn per row
    z (N, D)                ->  token (N, C)            sampling: the reverse chain, with classifier-free guidance

Parameter names are those of the official `diffloss.net.*`.
"""
import math

import torch
from torch import nn

from .diffusion import Diffusion


def modulate(x, shift, scale):
    return torch.addcmul(x + shift, x, scale)                        # x (1 + scale) + shift


FREQUENCIES = 128                # of a timestep's sinusoids, from 1 to nearly 1/10000, as in DiT (arXiv 2212.09748)
AHEAD = 2048     # rows times steps modulated at once in `sample`: a quarter less time at full size (docs/LOG.md)


class TimestepEmbedder(nn.Module):
    """Sinusoids of the timestep (cosines first), then a two-layer MLP."""

    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def sinusoids(self, t):
        index = torch.arange(FREQUENCIES, dtype=torch.float32, device=t.device)
        args = t[:, None].float() * torch.exp(-math.log(10000) * index / FREQUENCIES)      # (N, FREQUENCIES)
        return torch.cat([args.cos(), args.sin()], dim=-1)           # (N, 2 FREQUENCIES)

    def forward(self, t):                                            # (N,)
        return self.mlp(self.sinusoids(t).to(self.mlp[0].weight.dtype))          # (N, width)


class ResBlock(nn.Module):
    """x + gate * MLP(modulated LayerNorm(x)); shift, scale, gate come from the condition (adaptive LayerNorm)."""
    def __init__(self, width):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x, modulation):                                # (N, width), (N, 3 width)
        shift, scale, gate = modulation.chunk(3, dim=-1)             # (N, width) each
        return torch.addcmul(x, gate, self.mlp(modulate(self.in_ln(x), shift, scale)))     # (N, width)


class FinalLayer(nn.Module):
    """Modulated LayerNorm, then linear: (N, width) -> (N, out)."""
    def __init__(self, width, out):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, modulation):                                # (N, width), (N, 2 width)
        shift, scale = modulation.chunk(2, dim=-1)                   # (N, width) each
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DenoisingMLP(nn.Module):
    """eps | v of a noisy token (diffusion.py says what v is): (x (N, C), t (N,), z (N, D)) -> (N, 2C)."""

    def __init__(self, channels, z_width, width, depth):
        super().__init__()
        self.time_embed = TimestepEmbedder(width)
        self.cond_embed = nn.Linear(z_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)
        self.init_weights()

    def init_weights(self):
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)
        nn.init.normal_(self.time_embed.mlp[0].weight, std=0.02)
        nn.init.normal_(self.time_embed.mlp[2].weight, std=0.02)
        # AdaLN-zero: every block starts as the identity and the output as zero (DiT, arXiv 2212.09748 sec. 3.2)
        for layer in [b.adaLN_modulation[1] for b in self.res_blocks] + [
                self.final_layer.adaLN_modulation[1], self.final_layer.linear]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def modulations(self, y):
        """What conditions y (..., width), time plus z, embedded, do to each layer: a list of (..., 3 width), and of the
        last one (..., 2 width). x plays no part in it, so that `sample` can ask for many steps at once."""
        return [layer.adaLN_modulation(y) for layer in (*self.res_blocks, self.final_layer)]

    def forward(self, x, t, z):
        return self.denoise(x, self.modulations(self.time_embed(t) + self.cond_embed(z)))

    def denoise(self, x, modulations):
        """eps | v (N, 2C) of x (N, C), from the `modulations` of N conditions."""
        x = self.input_proj(x.to(self.input_proj.weight.dtype))      # (N, width)
        for block, modulation in zip(self.res_blocks, modulations):
            x = block(x, modulation)
        return self.final_layer(x, modulations[-1]).float()          # (N, 2C), float32 for the diffusion arithmetic


class DiffLoss(nn.Module):
    """The diffusion MLP with its loss and its sampler (the official name is DiffLoss). `config`: MARConfig."""

    def __init__(self, config):
        super().__init__()
        self.channels, self.clip = config.token_dim, config.clip_x0
        self.net = DenoisingMLP(config.token_dim, config.decoder_embed_dim, config.diffloss_w, config.diffloss_d)
        self.train_diffusion = Diffusion()
        self._spaced = {}                                            # sampling schedules by their steps, made on demand

    def forward(self, target, z, t=None, noise=None, generator=None):
        """Loss per row (N,). target (N, C) clean tokens; z (M, D): row i has the condition z[i % M].

        t (N,) and noise (N, C) are random when not given.
        """
        n, steps, device = target.shape[0], len(self.train_diffusion), target.device
        if t is None:
            t = torch.randint(0, steps, (n,), device=device, generator=generator)
        if noise is None:
            noise = torch.randn(target.shape, device=device, generator=generator)
        target = target.float()
        x_t = self.train_diffusion.q_sample(target, t, noise)        # (N, C)
        # embed each timestep once, however many rows have it, and z before it is repeated
        time = self.net.time_embed(torch.arange(steps, device=device))[t] if n > steps else self.net.time_embed(t)
        y = time + self.net.cond_embed(z).repeat(n // z.shape[0], 1)             # (N, width)
        return self.train_diffusion.loss(self.net.denoise(x_t, self.net.modulations(y)), target, x_t, t, noise)

    def guide(self, x, modulations, cfg):
        """Classifier-free guidance on eps: u + cfg (c - u). x (N, C); modulations: of 2N conditions, N
        with a prompt, then N without.

        v, which sets the variance, is the conditional row's own (not guided), as in the official code.
        """
        cond, uncond = self.net.denoise(x.repeat(2, 1), modulations).chunk(2)    # (N, 2C) each
        eps = uncond[:, :self.channels].lerp(cond[:, :self.channels], cfg)       # (N, C)
        return torch.cat([eps, cond[:, self.channels:]], dim=-1)                 # (N, 2C)

    @torch.no_grad()
    def sample(self, z, temperature=1.0, cfg=1.0, steps=100, sampler="ddpm", generator=None, randn=None, guided=None):
        """Draw tokens. z (N, D) -> (N, C); if guided, z is (2N, D), conditional rows first, and N rows come back.

        guided: whether z is doubled; None = if cfg != 1. MAR.draw passes it: of one token, "linear" makes cfg 1.
        randn(shape) is the source of noise: for the first noise, then, by ddpm only, once per diffusion step.
        """
        if steps not in self._spaced:
            self._spaced[steps] = Diffusion(steps)
        diffusion = self._spaced[steps]
        guided = cfg != 1.0 if guided is None else guided
        n = z.shape[0] // 2 if guided else z.shape[0]
        if randn is None:
            def randn(shape):
                return torch.randn(shape, device=z.device, generator=generator)

        # embedded once: z, the same in every step, and the timesteps, the same for every row
        embedded = self.net.cond_embed(z)                                        # (N, width), guided (2N, width)
        times = self.net.time_embed(torch.tensor(diffusion.timestep_map, device=z.device))         # (steps, width)
        groups = [*times.split(max(1, AHEAD // max(1, len(z))))]             # of steps; the first is needed last
        ahead = []                                                   # modulations of steps to come, the very next last

        def network(x, t):                                           # called once for each step, from the last down
            if not ahead:
                ahead.extend(zip(*self.net.modulations(groups.pop()[:, None] + embedded)))     # of (group, N, width)
            return self.guide(x, ahead.pop(), cfg) if guided else self.net.denoise(x, ahead.pop())
        return diffusion.sample(network, randn((n, self.channels)), randn, temperature, sampler, self.clip)
