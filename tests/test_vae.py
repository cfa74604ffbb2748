"""The VAE gives the official numbers, in both directions.     python -m pytest -q tests/test_vae.py"""
import pytest
import torch

from golden import Golden, check, vae_config
from nanoharmon.vae import VAE, vae_loss

gold = Golden("vae")


@pytest.fixture(scope="module")
def vae():
    vae = VAE(vae_config(gold.config, gold.config["z_channels"], gold.config["vae_scale"])).eval()
    vae.load_state_dict(gold.state_dict())
    return vae.requires_grad_(False)


def test_the_loss_is_of_a_sample_and_has_its_weights(vae, monkeypatch):
    image, noise = gold.input("image"), gold.input("posterior_noise")
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    (loss, parts), off = vae_loss(vae, image, 0.5), vae.reconstruct(gold.output("sample")) - image
    l1, mse, kl = off.abs().mean(), off.square().mean(), gold.output("kl").sum() / noise.numel()
    check("loss", loss, l1 + 10 * mse + 0.5 * kl)
    check("parts", torch.stack([parts["mse"], parts["kl"]]), torch.stack([mse, kl]))


def test_tokens_are_the_scaled_mean_in_raster_order(vae):
    image, mode, scale = gold.input("image"), gold.output("mode"), gold.config["vae_scale"]
    tokens, (h, w) = vae.encode(image), vae.grid_of(*image.shape[-2:])
    check("tokens", tokens, mode.permute(0, 2, 3, 1).flatten(1, 2) * scale)
    gold.check("decoded_mode", vae.decode(tokens, (h, w)))


def test_log_variance_is_clamped(vae):
    wild = VAE(vae.config)
    torch.nn.init.constant_(wild.quant_conv.weight, 0.0)
    wild.quant_conv.bias.data = torch.tensor([0.0] * 4 + [-99.0, -30.5, 20.5, 99.0])
    assert wild.moments(torch.zeros(1, 3, 32, 32))[1][0, :, 0, 0].tolist() == [-30, -30, 20, 20]


@pytest.mark.parametrize("height, width", [(31, 32), (32, 40), (0, 32), (32, 0)])
def test_a_picture_that_does_not_fit_the_stride_is_refused(vae, height, width):
    with pytest.raises(ValueError, match=f"image size {width}x{height}: both sides must be multiples of 16"):
        vae.grid_of(height, width)
