"""Gaussian diffusion: cosine schedule, q(x_t | x_0), the "eps + learned variance" loss, and samplers.

In short: 1000 small steps x <- sqrt(1 - beta) x + sqrt(beta) noise turn a clean token x_0 into noise. After the steps
up to t it is x_t = sqrt(ac) x_0 + sqrt(1 - ac) noise; ac, alpha-bar in the papers, is the product of 1 - beta so far.
The network sees x_t and t and predicts that noise, eps. Drawing starts from pure noise at t = 999 and goes back step by
step: each step removes some noise and, in the "ancestral" sampler of DDPM, adds some. How much it adds is learned, too:
v says where the log-variance lies between two bounds.

DDPM (arXiv 2006.11239), improved DDPM (arXiv 2102.09672: cosine schedule eq. 17, learned variance eq. 15, both losses
added as in eq. 16), DDIM (arXiv 2010.02502), DPM-Solver++ 2M (arXiv 2211.01095). This is the subset
of the official 870-line `gaussian_diffusion.py` that MAR and Harmon use, and it gives the same numbers.

Every function works on rows (N, C): one row is one image *token*, with its own timestep. A network output is (N, 2C):
eps | v, v in about [-1, 1]. `t` is an index into the chain of *this* object, which may be shorter than the 1000 steps;
only the network gets the original timestep, timestep_map[t]. t = 0 is one step of noise, the papers' t = 1. In formulas
with x_{t-1} the indices are the papers': x_0 is the clean token.

The variational bound is in bits, as in the official code. Its weight is 1: eq. 16 has 0.001 times the sum over 1000 t,
which is the mean over t. Left out: timesteps that are not evenly spaced, other schedules, other parametrisations.
"""
import math

import numpy as np
import torch

from .config import SAMPLERS

LN2 = math.log(2.0)


def cosine_betas(steps=1000, max_beta=0.999):
    """Noise variances of the cosine schedule, float64 (steps,). Improved DDPM eq. 17."""
    def alpha_bar(u):                                # at the share u of all steps
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), max_beta) for i in range(steps)])


def space_timesteps(train_steps, steps):
    """The `steps` of range(train_steps) that a sampler visits, evenly spaced, both ends included; steps = 1: only 0."""
    if not 1 <= steps <= train_steps:
        raise ValueError(f"{steps} diffusion steps asked for, expected 1 to {train_steps}")
    stride, at, chosen = 1 if steps == 1 else (train_steps - 1) / (steps - 1), 0.0, []
    for _ in range(steps):
        chosen.append(round(at))     # a running sum, rounded half to even: reproduces the official choice exactly
        at += stride
    return chosen


class Diffusion:
    """The tables of one schedule and what can be computed from them.

    `Diffusion()` trains over all 1000 steps; `Diffusion(100)` samples over 100 of them. The network always sees the
    original timestep 0..999 (`timestep_map`). Tables are computed in float64 and used in float32.
    """

    def __init__(self, steps=1000, train_steps=1000):
        alphas_cumprod = np.cumprod(1 - cosine_betas(train_steps))
        self.timestep_map = space_timesteps(train_steps, steps)
        ac = alphas_cumprod[self.timestep_map]
        # betas of the shortened chain, then everything again from them: rounds exactly as the official code does
        betas = 1 - ac / np.append(1.0, ac[:-1])
        ac = np.cumprod(1 - betas)
        ac_prev = np.append(1.0, ac[:-1])
        posterior_variance = betas * (1 - ac_prev) / (1 - ac)
        # log of the first entry would be -inf: the official code repeats the second; a chain of one has none
        clipped = np.append(posterior_variance[1], posterior_variance[1:]) if len(betas) > 1 else betas
        self.tables = {
            "betas": betas, "alphas_cumprod": ac, "alphas_cumprod_prev": ac_prev,
            "sqrt_alphas_cumprod": np.sqrt(ac), "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - ac),
            "sqrt_recip_alphas_cumprod": np.sqrt(1 / ac), "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / ac - 1),
            "posterior_variance": posterior_variance, "posterior_log_variance_clipped": np.log(clipped),
            "log_betas": np.log(betas),
            "posterior_mean_coef1": betas * np.sqrt(ac_prev) / (1 - ac),
            "posterior_mean_coef2": (1 - ac_prev) * np.sqrt(1 - betas) / (1 - ac),
        }
        self._on_device = {}

    def __len__(self):
        return len(self.timestep_map)

    def at(self, name, t):
        """Table `name` at timesteps t (N,) -> float32 (N, 1); at an int t, the same for all rows -> float."""
        if isinstance(t, int):
            return float(self.tables[name][t])
        key = (name, t.device)
        if key not in self._on_device:
            self._on_device[key] = torch.tensor(self.tables[name], dtype=torch.float32, device=t.device)
        return self._on_device[key][t].unsqueeze(-1)

    # --- forward process -------------------------------------------------------------------------------------------

    def q_sample(self, x0, t, noise):
        """Noised tokens x_t = sqrt(ac) x_0 + sqrt(1 - ac) noise. x0, noise (N, C), t (N,)."""
        return self.at("sqrt_alphas_cumprod", t) * x0 + self.at("sqrt_one_minus_alphas_cumprod", t) * noise

    def q_posterior(self, x0, x_t, t):
        """Of q(x_{t-1} | x_t, x_0), DDPM eq. 6-7: mean (N, C), log-variance (N, 1), or a float for an int t."""
        mean = self.at("posterior_mean_coef1", t) * x0 + self.at("posterior_mean_coef2", t) * x_t
        return mean, self.at("posterior_log_variance_clipped", t)

    # --- reverse process -------------------------------------------------------------------------------------------

    def predict_x0(self, x_t, t, eps, clip=0.0):
        """The x_0 that eps implies, cut to [-clip, clip] if clip > 0.

        Its error is that of eps times sqrt(1/ac - 1), which is 2e4 at t = 999: a network that was trained only for
        minutes starts every chain far outside of the data unless x_0 is cut. The official models do without.
        """
        x0 = self.at("sqrt_recip_alphas_cumprod", t) * x_t - self.at("sqrt_recipm1_alphas_cumprod", t) * eps
        return x0.clamp(-clip, clip) if clip else x0

    def p_mean_variance(self, output, x_t, t, clip=0.0):
        """Mean (N, C), log-variance (N, C), predicted x_0 (N, C) of p(x_{t-1} | x_t) from a network output (N, 2C)."""
        eps, v = output.chunk(2, dim=-1)
        frac = (v + 1) / 2           # v = 1: upper bound log(beta), v = -1: lower bound, the posterior's; not clamped
        logvar = frac * self.at("log_betas", t) + (1 - frac) * self.at("posterior_log_variance_clipped", t)
        x0 = self.predict_x0(x_t, t, eps, clip)
        return self.q_posterior(x0, x_t, t)[0], logvar, x0

    # --- training --------------------------------------------------------------------------------------------------

    def loss(self, output, x0, x_t, t, noise):
        """Per token (N,): |eps - noise|^2 averaged over channels, plus the variational bound in bits.

        output (N, 2C) is the network at (x_t, t). Only the variance half gets gradient from the bound: eps learns from
        the squared error alone, which weighs all timesteps alike (improved DDPM sec. 3.1).
        """
        eps, v = output.chunk(2, dim=-1)                             # (N, C) each
        mse = ((eps - noise) ** 2).mean(dim=-1)                      # (N,)
        return mse + self.variational_bound(torch.cat([eps.detach(), v], dim=-1), x0, x_t, t)

    def variational_bound(self, output, x0, x_t, t):
        """KL(q(x_{t-1} | x_t, x_0) || p), bits per channel (N,); at t = 0, -log p(x_0 | x_1)."""
        true_mean, true_logvar = self.q_posterior(x0, x_t, t)        # (N, C), (N, 1)
        mean, logvar, _ = self.p_mean_variance(output, x_t, t)       # (N, C) each
        kl = 0.5 * (logvar - true_logvar - 1 + torch.exp(true_logvar - logvar)
                    + (true_mean - mean) ** 2 * torch.exp(-logvar))     # (N, C)
        nll = -discretized_log_likelihood(x0, mean, 0.5 * logvar)    # (N, C)
        return torch.where(t == 0, nll.mean(dim=-1), kl.mean(dim=-1)) / LN2

    # --- sampling --------------------------------------------------------------------------------------------------

    def sample(self, network, x, randn, temperature=1.0, sampler="ddpm", clip=0.0):
        """The reverse chain from noise x (N, C): network(x, t) -> (N, 2C) once per original timestep t, the last first.

        randn(shape) gives the noise of one step. sampler: "ddpm" ancestral (the official one), "ddim" without noise,
        "dpm++" second order multistep (no noise, either). temperature scales ddpm's noise, nothing else.
        clip: see `predict_x0`.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}, expected one of {', '.join(SAMPLERS)}")
        last_x0 = last_lambda = None
        for i in reversed(range(len(self))):         # an index into this chain, the same for all rows
            output = network(x, self.timestep_map[i])
            if sampler == "ddpm":
                mean, logvar, _ = self.p_mean_variance(output, x, i, clip)
                noise = randn(x.shape)               # drawn at the last step too, though not used: as official
                x = torch.addcmul(mean, torch.exp(0.5 * logvar), noise, value=temperature) if i > 0 else mean
                continue
            ac, ac_prev = self.tables["alphas_cumprod"][i], self.tables["alphas_cumprod_prev"][i]
            x0 = self.predict_x0(x, i, output.chunk(2, dim=-1)[0], clip)
            eps = (x - math.sqrt(ac) * x0) / math.sqrt(1 - ac)       # again, from the cut x0
            if i == 0:
                return x0
            if sampler == "ddim":
                x = math.sqrt(ac_prev) * x0 + math.sqrt(1 - ac_prev) * eps
                continue
            # dpm++ 2M: a linear extrapolation of x0 in lambda = log(signal / noise); first order at both ends
            lam, lam_next = (0.5 * math.log(a / (1 - a)) for a in (ac, ac_prev))
            h = lam_next - lam
            guess = x0 if last_x0 is None or i == 1 else x0 + (x0 - last_x0) * h / (2 * (lam - last_lambda))
            x = math.sqrt((1 - ac_prev) / (1 - ac)) * x - math.sqrt(ac_prev) * math.expm1(-h) * guess
            last_x0, last_lambda = x0, lam
        return x


def discretized_log_likelihood(x, mean, log_std):
    """log P of the bin x +- 1/255 under N(mean, std), in nats; open-ended beyond +-0.999.

    Made for 8-bit pixels in [-1, 1]. Latents are neither, but the official code uses it; only the variance at t = 0
    learns from it.
    """
    def cdf(u):                                      # the official tanh approximation of the normal cdf
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3)))
    centered, inv_std = x - mean, torch.exp(-log_std)
    above = cdf(inv_std * (centered + 1 / 255))
    below = cdf(inv_std * (centered - 1 / 255))
    return torch.where(x < -0.999, above.clamp(min=1e-12).log(),
                       torch.where(x > 0.999, (1 - below).clamp(min=1e-12).log(),
                                   (above - below).clamp(min=1e-12).log()))
