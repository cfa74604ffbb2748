"""The VAE gives the official numbers, in both directions.     python -m pytest -q tests/test_vae.py"""
import pytest
import torch

from golden import Golden, check, pixels, vae_config
from nanoharmon.vae import VAE, kl_divergence

gold = Golden("vae")


@pytest.fixture(scope="module")
def vae():
    vae = VAE(vae_config(gold.config, gold.config["z_channels"], gold.config["vae_scale"])).eval()
    vae.load_state_dict(gold.state_dict())
    return vae.requires_grad_(False)


def test_encoder_moments_sample_kl_and_decoder_are_official(vae):
    image = pixels(gold.input("image_uint8"))
    check("image", image, gold.input("image"), 1e-6)
    h = vae.encoder(image)
    mean, logvar = vae.moments(image)
    for key, got in {
            "encoder_h": h, "moments": vae.quant_conv(h), "mode": mean, "logvar": logvar,
            "sample": mean + (0.5 * logvar).exp() * gold.input("posterior_noise"),
            "kl": kl_divergence(mean, logvar).sum(dim=(1, 2, 3)),
            "decoded_mode": vae.reconstruct(mean), "decoded_z": vae.reconstruct(gold.input("z"))}.items():
        gold.check(key, got)


def test_attention_sits_where_the_official_modules_have_it(vae):
    found = [name for name, m in vae.named_modules() if type(m).__name__ == "AttnBlock"]
    assert sorted(found) == sorted(gold.config["attn_modules"])


def test_tokens_are_the_scaled_mean_in_raster_order(vae):
    image, mode, scale = gold.input("image"), gold.output("mode"), gold.config["vae_scale"]
    tokens, (h, w) = vae.encode(image), vae.grid_of(*image.shape[-2:])
    assert tokens.shape == (2, h * w, 4)
    for row in range(h):
        for column in range(w):
            check("token", tokens[:, row * w + column], mode[:, :, row, column] * scale)
    gold.check("decoded_mode", vae.decode(tokens, (h, w)))


def test_log_variance_is_clamped(vae):
    wild = VAE(vae.config)
    torch.nn.init.constant_(wild.quant_conv.weight, 0.0)
    wild.quant_conv.bias.data = torch.tensor([0.0] * 4 + [-99.0, -30.5, 20.5, 99.0])
    logvar = wild.moments(torch.zeros(1, 3, 32, 32))[1]
    assert logvar[0, :, 0, 0].tolist() == [-30, -30, 20, 20]


@pytest.mark.parametrize("height, width", [(31, 32), (32, 40), (0, 32), (8, 8)])
def test_a_picture_that_does_not_fit_the_stride_is_refused(vae, height, width):
    with pytest.raises(ValueError, match=f"image size {width}x{height}: both sides must be multiples of 16"):
        vae.grid_of(height, width)
