"""Solutions of exercise 11: wrong solutions that its check must catch, and right ones that it must accept."""
POSTERIOR = '''
def q_posterior(self, x0, x_t, t):
    mean = self.at("posterior_mean_coef1", t) * x0 + self.at("posterior_mean_coef2", t) * x_t
    return mean, self.at("posterior_log_variance_clipped", t)
'''
CLEAN = '''
def predict_x0(self, x_t, t, eps, clip=0.0):
    x0 = self.at("sqrt_recip_alphas_cumprod", t) * x_t - self.at("sqrt_recipm1_alphas_cumprod", t) * eps
    return x0.clamp(-clip, clip) if clip else x0
'''
STEP = '''
def p_mean_variance(self, output, x_t, t, clip=0.0):
    eps, v = output.chunk(2, dim=-1)
    frac = (v + 1) / 2
    logvar = frac * self.at("log_betas", t) + (1 - frac) * self.at("posterior_log_variance_clipped", t)
    x0 = self.predict_x0(x_t, t, eps, clip)
    return self.q_posterior(x0, x_t, t)[0], logvar, x0
'''
WRONG = [
    ("posterior: arguments swapped", POSTERIOR.replace("* x0 ", "* x_t ").replace("* x_t\n", "* x0\n"),
     "x_0 and x_t are swapped"),
    ("posterior: log of 0", POSTERIOR.replace('self.at("posterior_log_variance_clipped", t)',
                                              'self.at("posterior_variance", t).log()'), "logarithm of 0 at t = 0"),
    ("posterior: log(beta)", POSTERIOR.replace("posterior_log_variance_clipped", "log_betas"), "the upper bound"),
    ("always cut", CLEAN.replace(" if clip else x0", "") + STEP, "cut to 0 when clip is 0"),
    ("never cut", CLEAN.replace("x0.clamp(-clip, clip) if clip else x0", "x0") + STEP, "nothing is cut"),
    ("cut from above only", CLEAN.replace("(-clip, clip)", "(max=clip)") + STEP, "not what is below -clip"),
    ("one root for both", CLEAN.replace("recipm1_alphas", "one_minus_alphas") + STEP, "is not divided by sqrt(ac)"),
    ("noise added", CLEAN.replace("x_t - self", "x_t + self") + STEP, "noise is added, and not"),
    ("one timestep for the batch", CLEAN.replace(", t) *", ", t[:1]) *") + STEP, "the timestep of the first"),
    ("halves swapped", CLEAN + STEP.replace("eps, v = output", "v, eps = output"), "halves of the output are swapped"),
    ("tensors only", CLEAN + STEP.replace('self.at("log_betas", t)', 'self.at("log_betas", t).expand_as(v)'),
     "t may be one whole number"),
    ("share is v", CLEAN + STEP.replace("(v + 1) / 2", "v"), "it should be (v + 1) / 2"),
    ("bounds swapped", CLEAN + STEP.replace("frac *", "(1 - frac) ##").replace(
        "(1 - frac) * self", "frac * self").replace("##", "*"), "the two bounds are swapped"),
    ("v cut", CLEAN + STEP.replace("(v + 1) / 2", "((v + 1) / 2).clamp(0, 1)"), "v is cut to [-1, 1]"),
    ("variances mixed", CLEAN + STEP.replace('self.at("log_betas", t) +', 'self.at("betas", t) +').replace(
        'self.at("posterior_log_variance_clipped", t)\n',
        'self.at("posterior_log_variance_clipped", t).exp()\n    logvar = logvar.log()\n'), "and not their logarithms"),
    ("fixed variance", CLEAN + STEP.replace("logvar, x0", 'self.at("log_betas", t).expand_as(eps), x0'),
     "this is the upper bound"),
    ("clip not passed on", CLEAN + STEP.replace(", eps, clip)", ", eps)"), "clip is not passed on"),
    ("mean is x_0", CLEAN + STEP.replace("self.q_posterior(x0, x_t, t)[0], logvar", "x0, logvar"), "x_0 is returned"),
    ("arguments swapped", CLEAN + STEP.replace("(x0, x_t, t)[0]", "(x_t, x0, t)[0]"), "x_0 and x_t are swapped"),
]
RIGHT = [
    ("solved by hand, a helper, torch.lerp", '''
def bounds(chain, t):
    return (torch.as_tensor(chain.at(name, t)) for name in ("posterior_log_variance_clipped", "log_betas"))

def predict_x0(self, x_t, t, eps, clip=0.0):
    signal, noise = self.at("sqrt_alphas_cumprod", t), self.at("sqrt_one_minus_alphas_cumprod", t)
    result = (x_t - noise * eps) / signal
    if clip > 0:
        result = torch.minimum(torch.maximum(result, torch.tensor(-clip)), torch.tensor(clip))
    return result

def p_mean_variance(self, output, x_t, t, clip=0.0):
    C = x_t.shape[1]
    low, high = bounds(self, t)
    clean = self.predict_x0(x_t, t, output[:, :C], clip=clip)
    mean, _ = self.q_posterior(clean, x_t, t)
    return mean, torch.lerp(low.expand_as(mean), high.expand_as(mean), output[:, C:] / 2 + 0.5), clean
'''),
    ("row by row, with the mean written out", '''
def predict_x0(self, x_t, t, eps, clip=0.0):
    ac = self.at("alphas_cumprod", t)
    found = x_t / ac ** 0.5 - eps * (1 / ac - 1) ** 0.5
    return torch.clip(found, -clip, clip) if clip != 0 else found

def p_mean_variance(self, output, x_t, t, clip=0.0):
    means, logs, cleans = [], [], []
    for n in range(len(x_t)):
        when, x = t if isinstance(t, int) else t[n:n + 1], x_t[n:n + 1]
        eps, v = output[n:n + 1].reshape(2, 1, -1)
        x0 = self.predict_x0(x, when, eps, clip)
        means.append(self.at("posterior_mean_coef1", when) * x0 + self.at("posterior_mean_coef2", when) * x)
        low = self.at("posterior_log_variance_clipped", when)
        logs.append(low + (v + 1) * (self.at("log_betas", when) - low) / 2)
        cleans.append(x0)
    return torch.cat(means), torch.cat(logs), torch.cat(cleans)
'''),
]
