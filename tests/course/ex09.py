"""Solutions of exercise 09: wrong solutions that its check must catch, and right ones that it must accept."""
BETAS = '''
def cosine_betas(steps=1000, max_beta=0.999):
    def alpha_bar(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), max_beta) for i in range(steps)])
'''
SAMPLE = '''
def q_sample(self, x0, t, noise):
    return self.at("sqrt_alphas_cumprod", t) * x0 + self.at("sqrt_one_minus_alphas_cumprod", t) * noise
'''
WRONG = [
    ("no cut at max_beta", BETAS.replace(", max_beta) for", ", 1.0) for") + SAMPLE, "nothing is cut at max_beta"),
    ("cut at a number of its own", BETAS.replace(", max_beta) for", ", 0.999) for") + SAMPLE, "whatever max_beta is"),
    ("cosine not squared", BETAS.replace(" ** 2", "") + SAMPLE, "not squared"),
    ("no offset", BETAS.replace("(t + 0.008) / 1.008", "t") + SAMPLE, "offset 0.008 is missing"),
    ("alpha-bars", BETAS.replace("min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), max_beta)",
                                 "alpha_bar((i + 1) / steps)") + SAMPLE, "alpha-bar is returned"),
    ("float32", BETAS.replace("range(steps)])", "range(steps)], dtype=np.float32)") + SAMPLE, "expected float64"),
    ("no roots", BETAS + '''
def q_sample(self, x0, t, noise):
    ac = self.at("alphas_cumprod", t)
    return ac * x0 + (1 - ac) * noise
''', "without their square roots"),
    ("factors swapped", BETAS + SAMPLE.replace("* x0", "* x").replace("* noise", "* x0").replace("* x ", "* noise "),
     "the two factors are swapped"),
    ("noise of one step", BETAS + '''
def q_sample(self, x0, t, noise):
    beta = self.at("betas", t)
    return (1 - beta).sqrt() * x0 + beta.sqrt() * noise
''', "noise of one step is added"),
    ("one timestep for the batch", BETAS + SAMPLE.replace(", t) *", ", t[:1]) *"), "the timestep of the first"),
    ("in place", BETAS + '''
def q_sample(self, x0, t, noise):
    return x0.mul_(self.at("sqrt_alphas_cumprod", t)).add_(self.at("sqrt_one_minus_alphas_cumprod", t) * noise)
''', "changes x0 in place"),
    ("only for 1000 steps", BETAS + '''
def q_sample(self, x0, t, noise):
    ac = torch.tensor(np.cumprod(1 - cosine_betas(1000)), dtype=torch.float32)[t][:, None]
    return ac.sqrt() * x0 + (1 - ac).sqrt() * noise
''', ""),
]
RIGHT = [
    ("numpy at once, roots by hand", '''
def cosine_betas(steps=1000, max_beta=0.999):
    edges = np.linspace(0, 1, steps + 1)
    bars = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.clip(1 - bars[1:] / bars[:-1], None, max_beta)

def q_sample(self, x0, t, noise):
    ac = self.at("alphas_cumprod", t)
    return torch.sqrt(ac) * x0 + torch.sqrt(1 - ac) * noise
'''),
    ("a loop, and einsum", '''
def share(i, steps):
    return math.cos(math.pi * (i / steps + 0.008) / (2 * 1.008)) ** 2

def cosine_betas(steps=1000, max_beta=0.999):
    result = np.empty(steps)
    for i in range(steps):
        result[i] = (share(i, steps) - share(i + 1, steps)) / share(i, steps)
        if result[i] > max_beta:
            result[i] = max_beta
    return result

def q_sample(self, x0, t, noise):
    factors = torch.stack([self.at("sqrt_alphas_cumprod", t)[:, 0], self.at("sqrt_one_minus_alphas_cumprod", t)[:, 0]])
    return torch.einsum("kn,knc->nc", factors, torch.stack([x0, noise]))
'''),
]
