"""Solutions of exercise 10: wrong solutions that its check must catch, and right ones that it must accept."""
LOSS = '''
def loss(self, output, x0, x_t, t, noise):
    eps, v = output.chunk(2, dim=-1)
    mse = ((eps - noise) ** 2).mean(dim=-1)
    return mse + self.variational_bound(torch.cat([eps.detach(), v], dim=-1), x0, x_t, t)
'''
BOUND = '''
def variational_bound(self, output, x0, x_t, t):
    true_mean, true_logvar = self.q_posterior(x0, x_t, t)
    mean, logvar, _ = self.p_mean_variance(output, x_t, t)
    kl = 0.5 * (logvar - true_logvar - 1 + torch.exp(true_logvar - logvar)
                + (true_mean - mean) ** 2 * torch.exp(-logvar))
    nll = -discretized_log_likelihood(x0, mean, 0.5 * logvar)
    return torch.where(t == 0, nll.mean(dim=-1), kl.mean(dim=-1)) / LN2
'''
WRONG = [
    ("eps not detached", LOSS.replace(".detach()", "") + BOUND, "detach eps there"),
    ("all detached", LOSS.replace("torch.cat([eps.detach(), v], dim=-1)", "output.detach()") + BOUND,
     "it should learn from the bound"),
    ("summed over channels", LOSS.replace("** 2).mean", "** 2).sum") + BOUND, "the squared error is summed"),
    ("bound forgotten", LOSS.replace("mse + self", "mse + 0 * self") + BOUND, "the variational bound is missing"),
    ("weight of the sum", LOSS.replace("mse + self", "mse + 0.001 * self") + BOUND, "here it counts 1"),
    ("one number for the batch", LOSS.replace("return mse", "return mse.mean()").replace("x_t, t)", "x_t, t).mean()")
     + BOUND, "one number is returned for the batch"),
    ("x_0 instead of noise", LOSS.replace("(eps - noise)", "(self.predict_x0(x_t, t, eps) - x0)") + BOUND,
     "that of x_0, not of the noise"),
    ("nats", LOSS + BOUND.replace(" / LN2", ""), "it is in nats"),
    ("KL the other way", LOSS + BOUND.replace(
        "true_mean, true_logvar = self.q", "mean, logvar = self.q").replace(
        "mean, logvar, _ = self.p", "true_mean, true_logvar, _ = self.p"), "p and q are swapped"),
    ("no half", LOSS + BOUND.replace("kl = 0.5 * ", "kl = "), "factor 1/2"),
    ("log of the variance", LOSS + BOUND.replace("mean, 0.5 * logvar)", "mean, logvar)"), "log of the variance,"),
    ("KL at t = 0, too", LOSS + BOUND.replace("t == 0", "t < 0"), "KL divergence is used at t = 0"),
    ("sign of the likelihood", LOSS + BOUND.replace("nll = -", "nll = "), "has no minus"),
    ("one t decides for all", LOSS + BOUND.replace("t == 0", "t[0] == 0"), ""),
]
RIGHT = [
    ("torch.distributions, masks, another loss call", '''
def loss(self, output, x0, x_t, t, noise):
    C = x0.shape[1]
    predicted = output[:, :C]
    frozen = torch.cat((predicted.detach(), output[:, C:]), 1)
    return torch.nn.functional.mse_loss(predicted, noise, reduction="none").mean(1) \\
        + self.variational_bound(frozen, x0, x_t, t)

def variational_bound(self, output, x0, x_t, t):
    from torch.distributions import Normal, kl_divergence
    q_mean, q_log = self.q_posterior(x0, x_t, t)
    p_mean, p_log = self.p_mean_variance(output, x_t, t)[:2]
    bits = kl_divergence(Normal(q_mean, (q_log / 2).exp()), Normal(p_mean, (p_log / 2).exp())).mean(1)
    last = t == 0
    likelihood = discretized_log_likelihood(x0, p_mean, p_log / 2).mean(1)
    return torch.where(last, -likelihood, bits) / math.log(2)
'''),
    ("einsum, and only the rows that need it", '''
def variational_bound(self, output, x0, x_t, t):
    mean, logvar, _ = self.p_mean_variance(output, x_t, t)
    true_mean, true_logvar = self.q_posterior(x0, x_t, t)
    difference = logvar - true_logvar
    channels = x0.new_full((x0.shape[1],), 1 / x0.shape[1])
    kl = (difference + (-difference).exp() + (true_mean - mean).square() / logvar.exp() - 1) / 2
    result = torch.einsum("nc,c->n", kl, channels)
    for n in (t == 0).nonzero()[:, 0].tolist():
        nll = -discretized_log_likelihood(x0[n], mean[n], logvar[n] / 2)
        result = torch.cat([result[:n], nll.mean()[None], result[n + 1:]])
    return result / LN2

def loss(self, output, x0, x_t, t, noise):
    eps, v = torch.split(output, output.shape[-1] // 2, -1)
    with torch.no_grad():
        fixed = eps.clone()
    return torch.einsum("nc,nc->n", eps - noise, eps - noise) / eps.shape[1] \\
        + self.variational_bound(torch.hstack([fixed, v]), x0, x_t, t)
'''),
]
