"""Checks of exercise 10: the loss of a network that predicts the noise and its variance."""
import math
import random

import torch

from nanoharmon.course.checks.chain import Step, bars_of, rows
from nanoharmon.course.checks.compare import same
from nanoharmon.diffusion import Diffusion

POINTS = {"test_bound": 1, "test_bound_at_the_last_step": 1, "test_loss": 1, "test_gradient": 1}


def kl(step, out, x0, x_t, swapped=False):
    """KL(q || p) per channel in nats: out (2C,), x0 and x_t (C,)."""
    eps, v = out.chunk(2)
    true, mean = step.mean(x0, x_t), step.mean(step.clean(x_t, eps), x_t)
    true_logvar, logvar = torch.full_like(v, step.lower), step.log_variance(v)
    if swapped:
        true, mean, true_logvar, logvar = mean, true, logvar, true_logvar
    return 0.5 * (logvar - true_logvar + (true_logvar - logvar).exp() + (true - mean) ** 2 / logvar.exp() - 1)


def log_likelihood(step, out, x0, x_t, power=0.5):
    """log P(x_0 | x_1) per channel in nats: the mass of the bin x_0 +- 1/255."""
    eps, v = out.chunk(2)
    mean, std = step.mean(step.clean(x_t, eps), x_t), torch.exp(power * step.log_variance(v))

    def cdf(x):
        u = (x - mean) / std
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3)))
    below, above = cdf(x0 - 1 / 255), cdf(x0 + 1 / 255)
    mass = torch.where(x0 < -0.999, above, torch.where(x0 > 0.999, 1 - below, above - below))
    return mass.clamp(min=1e-12).log()


def bound(step, out, x0, x_t):
    """The right answer for one row, in bits."""
    nats = kl(step, out, x0, x_t) if step.before < 1 else -log_likelihood(step, out, x0, x_t)
    return nats.mean() / math.log(2)


def rows_to_judge(seed, t_of):
    """(chain, its alpha-bars, t, out, x0, x_t, noise) with random rng. t_of(n, count) gives n timesteps."""
    rng = random.Random(seed)
    count, N, C = rng.randint(20, 40), rng.randint(5, 9), rng.randint(3, 6)
    chain, t = Diffusion(count), t_of(N, count)
    bars = bars_of(chain.timestep_map, 1000)
    x0 = torch.randn(N, C).clamp(-1.5, 1.5)
    noise = torch.randn(N, C)
    x_t = rows(lambda s, x, e: s.bar ** 0.5 * x + (1 - s.bar) ** 0.5 * e, bars, t, x0, noise).float()
    eps = noise + 0.2 * torch.randn(N, C)                       # a network that is nearly right
    return chain, bars, t, torch.cat([eps, torch.rand(N, C) * 2 - 1], dim=1), x0, x_t, noise


def middle(N, count):
    return torch.randint(1, count - 3, (N,))


def with_zeros(N, count):
    return torch.cat([torch.tensor([0, 0]), middle(N - 2, count)])


def test_bound(seed):
    chain, bars, t, out, x0, x_t, _ = rows_to_judge(seed, middle)
    right = rows(lambda s, *row: kl(s, *row).mean(), bars, t, out, x0, x_t)
    opposite = rows(lambda s, *row: kl(s, *row, swapped=True).mean(), bars, t, out, x0, x_t)
    means = rows(lambda s, o, x, y: 0.5 * (s.mean(x, y) - s.mean(s.clean(y, o.chunk(2)[0]), y)).square().mean()
                 / math.exp(s.lower), bars, t, out, x0, x_t)
    same("the bound at t > 0", chain.variational_bound(out, x0, x_t, t), right / math.log(2), {
        "it is in nats, not in bits": right,
        "the factor 1/2 of the KL divergence is missing": 2 * right / math.log(2),
        "it is multiplied by log 2, not divided": right * math.log(2),
        "p and q are swapped: q, the true posterior, comes first": opposite / math.log(2),
        "the -1 of the KL divergence is missing": (right + 0.5) / math.log(2),
        "only the distance of the means is counted, and not the variances":
            means / math.log(2),
        "it is the sum over the channels, not the mean": right * x0.shape[1] / math.log(2),
        "the sign is wrong": -right / math.log(2),
        "one number is returned for the batch, not one for each row": right.mean() / math.log(2),
    }, rtol=2e-3, atol=1e-4)


def test_bound_at_the_last_step(seed):
    chain, bars, t, out, x0, x_t, _ = rows_to_judge(seed, with_zeros)
    moved = torch.tensor([1.2, -1.1]) - x0[:2, 0]                            # to beyond the outermost bins,
    x0[:2, 0] += moved                                                       # and x_t with them: further than a few
    x_t[:2, 0] += moved                                                      # stds from the mean float32 has no digits

    def chosen(power=0.5, sign=-1, everywhere=False):
        def one(s, *row):
            nll = s.before == 1 or everywhere
            return (sign * log_likelihood(s, *row, power) if nll else kl(s, *row)).mean()
        return rows(one, bars, t, out, x0, x_t) / math.log(2)
    same("the bound where two rows have t = 0", chain.variational_bound(out, x0, x_t, t), chosen(), {
        "the KL divergence is used at t = 0, too, instead of -log p(x_0 | x_1)":
            rows(lambda s, *row: kl(s, *row).mean(), bars, t, out, x0, x_t) / math.log(2),
        "discretized_log_likelihood gets the log of the variance, not of the standard deviation (half of it)":
            chosen(power=1),
        "the log-likelihood at t = 0 has no minus": chosen(sign=1),
        "-log p(x_0 | x_1) is used for all rows, not for those with t = 0 alone": chosen(everywhere=True),
    }, rtol=2e-3, atol=1e-3)


def test_loss(seed):
    chain, bars, t, out, x0, x_t, noise = rows_to_judge(seed, with_zeros)
    vb, squares = rows(bound, bars, t, out, x0, x_t), (out.chunk(2, dim=1)[0] - noise).double() ** 2
    mse = squares.mean(dim=1)
    clean = rows(lambda s, o, x, y: (s.clean(y, o.chunk(2)[0]) - x).square().mean(), bars, t, out, x0, x_t)
    same("the loss", chain.loss(out, x0, x_t, t, noise), mse + vb, {
        "the variational bound is missing, or counts 0.001, the weight of a sum; here it counts 1": mse,
        "the squared error of the noise is missing": vb,
        "the squared error is summed over the channels, not averaged": squares.sum(dim=1) + vb,
        "one number is returned for the batch, not one for each row": (mse + vb).mean(),
        "the squared error is that of x_0, not of the noise": clean + vb,
        "the error is absolute, not squared": squares.sqrt().mean(dim=1) + vb,
        "eps is taken from the second half of the output, which is v":
            (out.chunk(2, dim=1)[1] - noise).double().square().mean(dim=1) + vb,
        "the bound is subtracted": mse - vb,
    }, rtol=2e-3, atol=1e-3)


def test_gradient(seed):
    chain, bars, t, out, x0, x_t, noise = rows_to_judge(seed, with_zeros)
    C = x0.shape[1]
    out.requires_grad_()
    loss = chain.loss(out, x0, x_t, t, noise)
    assert loss.requires_grad, "no gradient comes back to the network's output; what is detached that should not be?"
    eps, v = torch.autograd.grad(loss.sum(), out)[0].chunk(2, dim=1)
    exact = out.detach().double().requires_grad_()
    total = sum(bound(step, exact[n], x0[n].double(), x_t[n].double())
                for n, step in enumerate(Step(bars, int(i)) for i in t))
    of_bound = torch.autograd.grad(total, exact)[0]
    squared = 2 * (out.detach()[:, :C] - noise).double() / C
    same("the gradient into eps", eps, squared, {
        "the bound trains eps, too; detach eps there":
            squared + of_bound[:, :C],
        "eps is detached in the squared error, too": torch.zeros_like(squared),
    }, rtol=1e-3, atol=1e-5)
    same("the gradient into v", v, of_bound[:, C:], {
        "v is detached, too; it should learn from the bound": torch.zeros_like(v)}, rtol=5e-3, atol=1e-3)
