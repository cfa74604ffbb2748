"""What moves, how fast, and its average.     python -m pytest -q tests/test_optim.py"""
import math

import pytest
import torch

from nanoharmon.config import pico
from nanoharmon.harmon import Harmon
from nanoharmon.training.optim import EMA, Muon, is_matrix, lr_factor, make_optimizers, orthogonalize, select, set_lr
from nanoharmon.training.recipe import OptimConfig
from nanoharmon.training.sharding import clip_gradients


@pytest.fixture(scope="module")
def model():
    return Harmon(pico())


@pytest.mark.parametrize("parts, roots", [("mar.encoder,proj_in.", {"mar", "proj_in"}), ("llm.,", {"llm"})])
def test_select_trains_what_begins_with_a_prefix_and_freezes_the_rest(model, parts, roots):
    chosen = select(model, parts)                            # the empty prefix after a comma does not count
    on = {n for n, p in model.named_parameters() if p.requires_grad}
    assert on == set(chosen) and {n.split(".")[0] for n in on} == roots
    assert not any(n.startswith("mar.dec") for n in on)


def test_every_parameter_is_in_one_group_and_matrices_go_to_muon(model):
    params = select(model, "vae.,mar.,llm.,proj_in.,proj_out.")
    adam, muon = make_optimizers(params, OptimConfig(beta1=0.8, muon_momentum=0.7))
    names, groups = {id(p): n for n, p in params.items()}, [*adam.param_groups, *muon.param_groups]
    decayed, plain, in_muon = ({names[id(p)] for p in group["params"]} for group in groups)
    assert sorted([*decayed, *plain, *in_muon]) == sorted(params)
    assert decayed == {"mar.z_proj.weight", "vae.quant_conv.weight", "vae.post_quant_conv.weight", *(
        f"vae.{half}.conv_{end}.weight" for half in ("encoder", "decoder") for end in ("in", "out"))}
    # embeddings, and what the diffusion MLP has before and behind its blocks
    assert sum(params[n].ndim > 1 for n in plain) == 14 and "llm.model.embed_tokens.weight" in plain
    assert [group["weight_decay"] for group in groups] == [0.02, 0, 0.02]
    assert (groups[0]["betas"], groups[2]["momentum"]) == ((0.8, 0.95), 0.7)


def test_given_weights_get_gentle_rates(model):
    params, config = select(model, "mar.,llm."), OptimConfig(given=0.1)
    set_lr(optimizers := make_optimizers(params, config, ("llm.", "vae.")), 0.5)
    rates = {id(p): 2 * g["lr"] for o in optimizers for g in o.param_groups for p in g["params"]}
    assert len(rates) == len(params)
    for name, p in params.items():
        assert rates[id(p)] == (0.01 if is_matrix(name, p) else 2e-3) * (0.1 if name.startswith("llm.") else 1), name
    assert len(make_optimizers(params, OptimConfig(given=1), ("llm.",))) == 2              # as if nothing were given


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (2, 16, 4)])
def test_orthogonalize_makes_singular_values_about_one_and_keeps_directions(shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    y = orthogonalize(x)
    s = torch.linalg.svdvals(y)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert y.shape == x.shape and 0.3 < s.min() and s.max() < 1.3
    assert torch.nn.functional.cosine_similarity(y.flatten(1), (u @ v).flatten(1)).min() > 0.95


def test_muon_steps_each_third_of_a_fused_qkv_by_itself_and_a_convolution_as_a_matrix():
    torch.manual_seed(0)
    named = {"blocks.0.attn.qkv.weight": torch.nn.Parameter(torch.randn(12, 4)),
             "conv.weight": torch.nn.Parameter(torch.randn(4, 4, 3, 3)),
             "blocks.0.mlp.weight": torch.nn.Parameter(torch.randn(16, 4)),      # tall: its step is twice as long
             "res_blocks.0.adaLN_modulation.1.weight": torch.nn.Parameter(torch.randn(12, 4))}
    optimizer, mean = Muon(named, lr=0.1, momentum=0.9, weight_decay=0.5), {n: 0 for n in named}
    for _ in range(2):
        before = {n: p.detach().clone() for n, p in named.items()}
        for name, p in named.items():
            p.grad = torch.randn_like(p)
            mean[name] = 0.9 * mean[name] + 0.1 * p.grad
        optimizer.step()
        for (name, p), parts, scale in zip(named.items(), (3, 1, 1, 3), (1, 1, 2, 1)):
            wanted = 0.9 * mean[name] + 0.1 * p.grad                  # Nesterov's look ahead
            for moved, part in zip((0.95 * before[name] - p.detach()).flatten(1).chunk(parts),
                                   wanted.flatten(1).chunk(parts)):
                torch.testing.assert_close(moved, 0.1 * scale * orthogonalize(part[None])[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_rises_then_falls_to_its_floor(schedule):
    f = [lr_factor(step, 100, 10, schedule, 0.1) for step in range(101)]
    assert f[:10] == pytest.approx([(i + 1) / 10 for i in range(10)]) and f[10] == 1 and f[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(f[10:], f[11:])) and f[55] == pytest.approx(0.55)
    assert f[20] == pytest.approx(0.1 + 0.9 * ((1 + math.cos(math.pi / 9)) / 2 if schedule == "cosine" else 8 / 9))


def test_ema_follows_its_ramp_and_is_swapped_in_for_a_while():
    params = {"w": torch.nn.Parameter(torch.zeros(2))}
    ema, expected = EMA(params, 0.5), 0.0
    for step in range(20):
        params["w"].data.fill_(step + 1.0)
        ema.update(params, step)
        d = min(0.5, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * (step + 1)
    assert torch.allclose(ema.shadow["w"], torch.full((2,), expected))
    ema.swap(params)
    assert params["w"][0].item() == pytest.approx(expected) and ema.shadow["w"][0] == 20
    ema.swap(params)
    assert params["w"][0] == 20 and ema.shadow["w"][0].item() == pytest.approx(expected)


def test_gradients_are_cut_to_the_largest_norm():
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (1, 3)]
    sum(p.sum() for p in params).backward()                      # each is 1
    assert clip_gradients(params, 0.5).item() == 2
    assert torch.cat([p.grad for p in params]).norm().item() == pytest.approx(0.5, rel=1e-4)
