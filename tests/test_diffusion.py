"""Schedules, losses and samplers of the diffusion MLP.     python -m pytest -q tests/test_diffusion.py"""
import numpy as np
import pytest
import torch

from golden import Golden, check, check_gradients
from nanoharmon.config import SAMPLERS, MARConfig
from nanoharmon.diffloss import DiffLoss
from nanoharmon.diffusion import Diffusion, space_timesteps

gold = Golden("diffloss")
VARIANTS = ("craft", "rand")


def head(variant):
    c, g = gold.config, Golden("diffloss", variant + "/")
    model = DiffLoss(MARConfig(token_dim=c["in_channels"], decoder_embed_dim=c["z_channels"], diffloss_w=c["width"],
                               diffloss_d=c["depth"]))
    model.load_state_dict(g.state_dict())
    return g, model


@pytest.mark.parametrize("name", ["train1000", "r10", "r20", "r50", "r100"])
def test_every_table_is_official_to_float64(name):
    diffusion = Diffusion(int(name.removeprefix("train").removeprefix("r")))
    tables = {**diffusion.tables, "timestep_map": diffusion.timestep_map}
    stored = gold.outputs(f"schedule/{name}/")
    assert "betas" in stored
    for key, ref in stored.items():
        np.testing.assert_allclose(tables[key], ref.numpy(), rtol=1e-13, atol=0, err_msg=key)
    assert space_timesteps(1000, 1) == gold.output("schedule/space_timesteps/1").tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_denoising_mlp_and_guidance_are_official(variant):
    g, model = head(variant)
    x, t, c = (gold.input("mlp/" + k) for k in "xtc")
    with torch.no_grad():
        if g.has("t_freq"):
            g.check("t_freq", model.net.time_embed.sinusoids(t))
        g.check("t_emb", model.net.time_embed(t))
        g.check("mlp", model.net(x, t, c))
        z = torch.cat([c, c.flip(0)])
        guided = model.guide(x, model.net.modulations(model.net.time_embed(t.repeat(2)) + model.net.cond_embed(z)), 3.0)
        alone, many = (model.sample(c[:1].repeat(n, 1), steps=7, randn=torch.ones)[0] for n in (1, 900))
    check("guided", guided, g.output("mlp_with_cfg3")[:len(x)])
    check("modulations of two steps at once", many, alone, 0.01)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_all_its_parts_are_official(variant):
    g, model = head(variant)
    x0, t, noise, z, mask = (gold.input("loss/" + k) for k in ("x_start", "t", "noise", "z", "mask"))
    diffusion = model.train_diffusion
    x_t = diffusion.q_sample(x0, t, noise)
    output = model.net(x_t, t, z)
    loss, vb = diffusion.loss(output, x0, x_t, t, noise), diffusion.variational_bound(output, x0, x_t, t)
    mean, logvar, pred_x0 = diffusion.p_mean_variance(output, x_t, t)
    if g.has("x_t"):
        g.check("x_t", x_t)
    rows = model(x0, z, t, noise)
    many = model(x0.repeat(100, 1), z, t.repeat(100), noise.repeat(100, 1))  # more of them than timesteps
    for key, got in {"mse": loss - vb, "vb": vb, "loss": loss, "p_mean": mean,
                     "p_log_variance": logvar.expand_as(mean), "p_pred_xstart": pred_x0,
                     "loss_nomask": many.mean(), "loss_masked": (rows * mask).sum() / mask.sum()}.items():
        g.check(key, got)


def test_gradients_of_the_loss_are_official():
    """Also: the variance's bound sends no gradient into eps, otherwise final_layer's would be larger."""
    g, model = head("rand")
    x0, t, noise, z, mask = (gold.input("loss/" + k) for k in ("x_start", "t", "noise", "z", "mask"))
    ((model(x0, z, t, noise) * mask).sum() / mask.sum()).backward()
    check_gradients(g, "", model)


MEAN, STD = 0.7, 0.3


def exact_network(x, t):
    """The eps that is right for one-channel data from N(MEAN, STD^2); the smaller variance bound."""
    ac = Diffusion().tables["alphas_cumprod"][t]
    eps = (1 - ac) ** 0.5 * (x - ac ** 0.5 * MEAN) / (ac * STD ** 2 + 1 - ac)
    return torch.cat([eps, -torch.ones_like(eps)], dim=1)


@pytest.mark.parametrize("sampler, steps, tolerance", [
    ("ddpm", 250, 0.012), ("ddim", 50, 0.02), ("ddim", 250, 0.006), ("dpm++", 15, 0.03), ("dpm++", 50, 0.006)])
def test_samplers_reach_a_known_gaussian(sampler, steps, tolerance):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, 1, dtype=torch.float64, generator=generator)
    x = (x - x.mean()) / x.std()                                             # no sampling error left at the start
    got = Diffusion(steps).sample(exact_network, x, lambda n: torch.randn(n, generator=generator, dtype=x.dtype),
                                  sampler=sampler)
    assert abs(got.mean().item() - MEAN) < tolerance and abs(got.std().item() - STD) < tolerance


def test_every_timestep_is_trained_from_a_network_that_starts_at_zero_and_what_it_draws_is_cut(monkeypatch):
    model, seen = DiffLoss(MARConfig(token_dim=4, decoder_embed_dim=24, diffloss_w=32, diffloss_d=2, clip_x0=0.5)), []
    monkeypatch.setattr(model.train_diffusion, "q_sample", lambda x0, t, noise: seen.append(t) or x0)
    loss = model(torch.zeros(20000, 4), torch.zeros(20000, 24), noise=torch.ones(20000, 4))
    assert set(seen[0].tolist()) == set(range(1000)) and (loss >= 1).all()   # of noise 1 nothing is predicted yet
    assert torch.equal(model.net(torch.randn(3, 4), torch.tensor([0, 5, 999]), torch.randn(3, 24)), torch.zeros(3, 8))
    assert all(model.sample(torch.randn(9, 24), steps=5, sampler=name).abs().max() < 0.501 for name in SAMPLERS)
