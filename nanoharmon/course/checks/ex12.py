"""Checks of exercise 12: classifier-free guidance."""
import random

import torch

from nanoharmon.config import MARConfig
from nanoharmon.course.checks.compare import same, unchanged
from nanoharmon.diffloss import DiffLoss

POINTS = {"test_guided_noise": 1, "test_variance": 1, "test_no_guidance_and_no_condition": 1}


def a_request(seed):
    """(DiffLoss with a simple network, x, y, what that network says to each row with its condition, and without)."""
    rng = random.Random(seed)
    N, C, width = rng.randint(2, 6), rng.randint(4, 7), rng.randint(6, 12)
    model = DiffLoss(MARConfig(token_dim=C, decoder_embed_dim=width, diffloss_w=width, diffloss_d=1))
    a, b, c = torch.randn(C, 2 * C), torch.randn(width, 2 * C), torch.randn(2 * width, 2 * C)        # three layers

    def denoise(x, y):
        for layer in y:
            assert len(x) == len(layer), f"the network gets {len(x)} rows of x with {len(layer)} of a modulation"
        return torch.tanh(x @ a + y[0] @ b + y[1] @ b + y[2] @ c)
    model.net.denoise = denoise
    x, y = torch.randn(N, C), [torch.randn(2 * N, w) for w in (width, width, 2 * width)]
    cond, uncond = (torch.stack([denoise(x[n:n + 1], rows(y, [n + shift]))[0] for n in range(N)]) for shift in (0, N))
    return model, x, y, cond, uncond


def rows(y, index):
    return [layer[index] for layer in y]


def test_guided_noise(seed):
    model, x, y, cond, uncond = a_request(seed)
    N, C = x.shape
    cfg = random.Random(seed).uniform(1.5, 4)
    before, got = [part.clone() for part in (x, *y)], model.guide(x, y, cfg)
    for name, was, part in zip(("x", *3 * ("a modulation",)), before, (x, *y)):
        unchanged(name, was, part)
    assert isinstance(got, torch.Tensor), f"guide gives a {type(got).__name__}, expected a tensor (N, 2C)"
    assert got.shape != (2 * N, 2 * C), "2N rows come back, expected N: one for each row of x"
    assert got.shape == (N, 2 * C), f"the shape is {tuple(got.shape)}, expected (N, 2C) = {(N, 2 * C)}: eps | v"
    c, u = cond[:, :C], uncond[:, :C]
    three = torch.cat([u[:, :3] + cfg * (c[:, :3] - u[:, :3]), c[:, 3:]], dim=1)
    paired = model.net.denoise(x.repeat_interleave(2, dim=0), y)
    pairs = paired[:N, :C], paired[N:, :C]
    same("eps", got[:, :C], u + cfg * (c - u), {
        "the halves of the modulations are swapped; the conditional rows come first": c + cfg * (u - c),
        "the distance is added to the conditional eps, and not to the unconditional one": c + cfg * (c - u),
        "the distance is taken the wrong way round: unconditional minus conditional": u + cfg * (u - c),
        "cfg weighs the unconditional eps": cfg * u + (1 - cfg) * c,
        "the unconditional eps is not subtracted": u + cfg * c,
        "the conditional eps is only multiplied by cfg": cfg * c,
        "nothing is guided: this is the conditional eps": c,
        "nothing is guided: this is the unconditional eps": u,
        "only the first three channels are guided, a quirk of DiT that MAR does not have": three,
        "the rows of x are repeated one by one (a a b b); the conditions are in halves, so x must be a b a b":
            pairs[1] + cfg * (pairs[0] - pairs[1]),
    })


def test_variance(seed):
    model, x, y, cond, uncond = a_request(seed)
    C = x.shape[1]
    cfg = random.Random(seed).uniform(1.5, 4)
    c, u = cond[:, C:], uncond[:, C:]
    got = model.guide(x, y, cfg)
    same("the variance half", got[:, C:], c, {
        "the guidance is applied to the variance, too": u + cfg * (c - u),
        "it comes from the unconditional row": u,
        "it is the mean of both rows": (c + u) / 2,
        "it is missing: only eps comes back": c[:, :0],
    })


def test_no_guidance_and_no_condition(seed):
    """cfg = 1 is the conditional row, cfg = 0 the unconditional eps; a batch of one is like a row of a larger batch."""
    model, x, y, cond, uncond = a_request(seed)
    N, C = x.shape
    same("eps with cfg = 1", model.guide(x, y, 1.0)[:, :C], cond[:, :C], {
        "the distance is added to the conditional eps": 2 * cond[:, :C] - uncond[:, :C],
        "the halves of the modulations are swapped": uncond[:, :C]})
    same("eps with cfg = 0", model.guide(x, y, 0.0)[:, :C], uncond[:, :C], {
        "cfg = 0 is taken for no guidance; it means no condition": cond[:, :C]})
    cfg = random.Random(seed).uniform(1.5, 4)
    right = torch.cat([uncond[:, :C] + cfg * (cond[:, :C] - uncond[:, :C]), cond[:, C:]], dim=1)
    for n in range(N):
        same("a batch of one", model.guide(x[n:n + 1], rows(y, [n, N + n]), cfg), right[n:n + 1])
