"""Solutions of exercise 12, classifier-free guidance."""
GUIDED = """
def guide(self, x, modulations, cfg):
    C = self.channels
    cond, uncond = self.net.denoise(x.repeat(2, 1), modulations).chunk(2)
    eps = uncond[:, :C] + cfg * (cond[:, :C] - uncond[:, :C])
    return torch.cat([eps, cond[:, C:]], dim=-1)
"""
WRONG = [
    ("variance guided, too", """
def guide(self, x, modulations, cfg):
    cond, uncond = self.net.denoise(x.repeat(2, 1), modulations).chunk(2)
    return uncond + cfg * (cond - uncond)
""", "the guidance is applied to the variance, too"),
    ("halves swapped", GUIDED.replace("cond, uncond = self", "uncond, cond = self"), "the conditional rows come first"),
    ("from the conditional eps", GUIDED.replace("eps = uncond[:, :C] +", "eps = cond[:, :C] +"),
     "added to the conditional eps"),
    ("rows interleaved", GUIDED.replace("x.repeat(2, 1)", "x.repeat_interleave(2, 0)"), "x must be a b a b"),
    ("variance of the unconditional row", GUIDED.replace("[eps, cond", "[eps, uncond"), "from the unconditional row"),
    ("three channels, as in DiT", """
def guide(self, x, modulations, cfg):
    cond, uncond = self.net.denoise(x.repeat(2, 1), modulations).chunk(2)
    eps = uncond[:, :3] + cfg * (cond[:, :3] - uncond[:, :3])
    return torch.cat([eps, cond[:, 3:]], dim=-1)
""", "a quirk of DiT"),
    ("sixteen channels", GUIDED.replace("self.channels", "16"), ""),
    ("both halves come back", GUIDED.replace("return torch.cat([eps, cond[:, C:]], dim=-1)",
     "return torch.cat([torch.cat([eps, eps]), torch.cat([cond, uncond])[:, C:]], dim=-1)"), "2N rows come back"),
    ("eps only", GUIDED.replace("torch.cat([eps, cond[:, C:]], dim=-1)", "eps"), "expected (N, 2C)"),
    ("x not doubled", GUIDED.replace("x.repeat(2, 1)", "x"), "rows of x with"),
    ("cfg 0 means none", GUIDED.replace("    C = self.channels\n", "    C, cfg = self.channels, cfg or 1.0\n"),
     "it means no condition"),
    ("batch of one", GUIDED.replace("x.repeat(2, 1)", "x[:1].expand(2 * len(x), -1)"), ""),
    ("in place", GUIDED.replace(
        "    eps =", "    x += 0.1 * cond[:, :C]\n    eps ="), "changes x in place"),
]
RIGHT = [
    ("two calls", """
def guide(self, x, modulations, cfg):
    N = len(x)
    with_prompt, without = (self.net.denoise(x, [m[half] for m in modulations]) for half in (slice(N), slice(N, None)))
    result = with_prompt.clone()
    result[:, :self.channels] = torch.lerp(without, with_prompt, cfg)[:, :self.channels]
    return result
"""),
    ("einsum over the two halves", """
def weights(cfg, channels, like):
    eps = like.new_tensor([cfg, 1 - cfg])
    variance = like.new_tensor([1.0, 0.0])
    return torch.stack([eps] * channels + [variance] * channels)

def guide(self, x, modulations, cfg):
    answers = self.net.denoise(torch.cat((x, x), dim=0), modulations).view(2, x.shape[0], 2 * x.shape[1])
    return torch.einsum("hnc,ch->nc", answers, weights(cfg, x.shape[1], x))
"""),
]
