"""Checks of exercise 01, pixels to latents and back."""
import random

import torch

from nanoharmon.config import VAEConfig
from nanoharmon.course.checks.compare import same, unchanged
from nanoharmon.vae import VAE

POINTS = {"test_encode": 2, "test_decode": 1, "test_sizes_that_do_not_fit": 1}


@torch.no_grad()
def make(seed):
    """A small VAE, and the sizes of a picture that is not square."""
    rng = random.Random(seed)
    config = VAEConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=rng.choice([3, 5, 6]),
                       patch_size=rng.choice([1, 2]), attn_resolutions=(), scale=rng.uniform(2.2, 3.7))
    h, w = rng.sample(range(2, 6), 2)
    return VAE(config).eval(), rng.randrange(2, 4), h, w


@torch.no_grad()
def test_encode(seed):
    vae, B, h, w = make(seed)
    scale, C, stride = vae.config.scale, vae.config.z_channels, vae.config.stride
    image = torch.rand(B, 3, h * stride, w * stride) * 2 - 1
    mean, logvar = vae.moments(image)                            # (B, C, h, w)
    expected = torch.empty(B, h * w, C)
    columns_first = torch.empty(B, h * w, C)
    for i in range(h):
        for j in range(w):
            expected[:, i * w + j] = mean[:, :, i, j] * scale
            columns_first[:, j * h + i] = mean[:, :, i, j] * scale
    before = image.clone()
    got = vae.encode(image)
    unchanged("image", before, image)
    same("encode", got, expected, {
        "the scale is forgotten": expected / scale,
        "the latents are divided by the scale": expected / scale ** 2,
        "the map is reshaped, which mixes channels and places": mean.reshape(B, h * w, C) * scale,
        "the places are numbered column by column": columns_first,
        "channels and places are not exchanged": expected.transpose(1, 2),
        "the log-variance is taken for the mean": logvar.flatten(2).transpose(1, 2) * scale,
        "the shape is that of the map": mean * scale})
    torch.manual_seed(seed + 1)                                  # the mean has nothing random
    same("encode, a second time", vae.encode(image), got, rtol=1e-6, atol=1e-7)


@torch.no_grad()
def test_decode(seed):
    vae, B, h, w = make(seed)
    scale, C = vae.config.scale, vae.config.z_channels
    latents = torch.randn(B, h * w, C)
    mean, columns_first = torch.empty(B, C, h, w), torch.empty(B, C, h, w)
    for i in range(h):
        for j in range(w):
            mean[:, :, i, j] = latents[:, i * w + j] / scale
            columns_first[:, :, i, j] = latents[:, j * h + i] / scale
    before = latents.clone()
    got = vae.decode(latents, (h, w))
    unchanged("latents", before, latents)
    same("decode", got, vae.reconstruct(mean), {
        "the scale is not undone": lambda: vae.reconstruct(mean * scale),
        "the latents are multiplied by the scale": lambda: vae.reconstruct(mean * scale ** 2),
        "the latents are reshaped, which mixes channels and places":
            lambda: vae.reconstruct(latents.reshape(B, C, h, w) / scale),
        "the places are numbered column by column": lambda: vae.reconstruct(columns_first),
        "height and width are exchanged":
            lambda: vae.reconstruct((latents / scale).transpose(1, 2).reshape(B, C, w, h))})


@torch.no_grad()
def test_sizes_that_do_not_fit(seed):
    vae, _, h, w = make(seed)
    stride = vae.config.stride
    for height, width in ((h * stride + 1, w * stride), (h * stride, w * stride - 1)):
        try:
            vae.encode(torch.zeros(1, 3, height, width))
        except ValueError:
            continue
        raise AssertionError(f"a picture of {width}x{height} pixels is encoded, though {stride} does not divide both "
                             f"sides; expected the ValueError of grid_of")
    torch.manual_seed(seed)
    image = torch.rand(2, 3, h * stride, w * stride)
    mean = vae.moments(image)[0]
    same("decode(encode(image))", vae.decode(vae.encode(image), (h, w)), vae.reconstruct(mean))
