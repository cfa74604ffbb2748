"""MAR: official numbers, the unmasking loop, in-painting.     python -m pytest -q tests/test_mar.py"""
import math

import numpy as np
import pytest
import torch

from golden import Golden, check, loss_rows, mar_config, split
from nanoharmon.config import MARConfig, nano, pico
from nanoharmon.mar import MAR, mask_ratio_at, random_orders, random_split, redraw_iters, unmasking_schedule


def load(name):
    gold = Golden("mar", name + "/")
    mar = MAR(mar_config(gold.config[name])).eval()
    mar.load_state_dict(gold.state_dict())
    return gold, mar.requires_grad_(False)


gold, mar = load("harmon")
gold_class, mar_class = load("lth14")


def test_conditions_of_the_buffers_are_official():
    latents, (visible, _) = gold.input("native/x"), split(gold.input("native/mask"))
    gold.check("native/encoder_nomask", mar.encode(latents))
    gold.check("native/encoder_classemb", mar.encode(latents, visible, condition=gold.input("native/class_embedding")))


def test_hide_all_adds_steps_with_everything_hidden_and_changes_nothing_else():
    config, g = nano().mar, torch.Generator().manual_seed(0)
    visible = [random_split(config, 2, 9, "cpu", g, hide_all=0.5)[0].shape[1] for _ in range(2000)]
    # cosine: ceil(9 cos(pi/2 u)) = 9 for u < 0.303, in the half that hide_all leaves
    assert abs(visible.count(0) / 2000 - (0.5 + 0.5 * 0.303)) < 0.04 and set(visible) == set(range(9))
    a, b = (random_split(config, 2, 9, "cpu", torch.Generator().manual_seed(3), *more) for more in ((), (0.0,)))
    assert all(map(torch.equal, a, b))
    assert random_split(config, 2, 9, "cpu", g, hide_all=1.0)[0].shape == (2, 0)


def test_mask_ratios_are_the_official_truncated_normal():
    """The official draw is scipy's truncnorm.rvs(1): the inverse cdf at one uniform number of numpy's."""
    uniform = np.random.RandomState(gold.config["numpy_seeds"]["harmon_mask_rates"]).uniform(size=32)
    gold.check("mask_rates", torch.tensor([mask_ratio_at(mar.config, u) for u in uniform]))


def test_a_larger_native_grid_changes_nothing_at_first():
    m, latents = MAR(pico().mar).eval(), torch.randn(2, 16, 4)
    before = m.decode(m.encode(latents, None, (4, 4)), None, (4, 4))
    m.resize_positions(4)
    check("z", m.decode(m.encode(latents)), before, 1e-6)
    assert m.config.grid == 4 and m.encoder_pos_embed_learned.requires_grad


def test_class_loss_is_official_and_drops_labels_in_training_only(monkeypatch):
    g, m, loss, mask = gold_class, mar_class, mar_class.loss, gold_class.input("loss/mask")
    drop, rows = g.input("loss_train/drop_rand")[:, None], loss_rows(mask, m.config.diffusion_batch_mul)
    assert (drop < m.config.label_drop_prob).sum() == 1                      # of two labels
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drop)
    monkeypatch.setattr("nanoharmon.mar.random_split", lambda *_: split(mask))
    for key in "loss_train", "loss_eval":
        t, noise = (g.input(f"{key}/{name}")[rows] for name in ("t", "noise"))
        monkeypatch.setattr(m, "loss", lambda *args, **_: loss(*args[:3], t, noise))
        m.train(key == "loss_train")
        g.check(key, m.class_loss(g.input("imgs").flatten(2).transpose(1, 2), g.input("labels")))


@pytest.mark.parametrize("ratio", ["truncnorm", "cosine"])
@pytest.mark.parametrize("S", [1, 4, 64])
def test_random_split_is_a_partition_and_hides_the_drawn_share(ratio, S):
    config = MARConfig(mask_ratio=ratio)
    for seed in range(20):
        visible, hidden = random_split(config, 3, S, "cpu", torch.Generator().manual_seed(seed))
        share = mask_ratio_at(config, torch.rand((), generator=torch.Generator().manual_seed(seed)).item())
        assert hidden.shape == (3, max(1, math.ceil(S * share)))
        assert torch.equal(torch.cat([visible, hidden], 1).sort(1).values, torch.arange(S).expand(3, S))
        assert (visible.diff() > 0).all() and (hidden.diff() > 0).all()
        assert S < 64 or visible.shape[1] < 4 or not torch.equal(*visible[:2])         # each picture has its own


def test_unmasking_schedule_is_cosine():
    assert unmasking_schedule(256, 4) == [256, 236, 181, 97, 0]
    assert unmasking_schedule(3, 8) == [3, 2, 1, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("iters", [1, 7, 9, 29])
def test_every_token_is_drawn_exactly_once_in_the_reverse_of_its_order(iters, monkeypatch):
    orders, history = random_orders(2, 9, "cpu"), [torch.zeros(2, 9)]

    def are_drawn(latents, visible):
        assert torch.equal(torch.zeros(2, 9).scatter(1, visible, 1) > 0, latents[..., 0] > 0)

    def predict(latents, visible, drawn):
        are_drawn(latents, visible)
        assert torch.equal(latents[..., 0], history[-1]) and not latents[..., 0].gather(1, drawn).any()
        return torch.zeros(2, drawn.shape[1], 64)

    def on_iteration(latents, visible):
        are_drawn(latents, visible)
        assert ((latents[..., 0] != history[-1]) <= (history[-1] == 0)).all()            # none is drawn twice
        history.append(latents[..., 0].clone())
    # the iteration's number as its token
    monkeypatch.setattr(mar.diffloss, "sample", lambda z, **_: torch.full((len(z), 4), float(len(history))))
    mar.draw(predict, orders, iters, on_iteration=on_iteration)
    when = history[-1].gather(1, orders)                                     # the iteration in which each was drawn
    assert when.unique().tolist() == [*range(1, 1 + min(iters, 9))] and (when.diff(dim=1) <= 0).all()
    assert len(history) - 1 == min(iters, 9)


def test_a_round_of_redrawing_draws_each_half_once_given_the_other(monkeypatch):
    calls, scales, orders, known = [], set(), random_orders(2, 12, "cpu"), torch.full((2, 1), 12)
    monkeypatch.setattr(mar.diffloss, "sample", lambda z, cfg, guided: scales.add(cfg) or torch.full(
        (len(z) // 2, 4), float(len(calls))))

    def predict(latents, visible, drawn):
        calls.append((visible, drawn))
        return torch.zeros(4, drawn.shape[1], 64)                            # guided
    before = torch.zeros(2, 13, 4)
    assert mar.redraw(predict, orders, 0, 12, 3.0, before) is before
    after = mar.redraw(predict, orders, 2, 12, 3.0, before, known, cfg_schedule="linear")
    assert len(calls) == 2 * 2 * redraw_iters(12) and (after[:, 12] == 0).all() and (after[:, :12] > 6).all()
    mar.redraw(predict, orders, 1, 12, 3.0, before[:, :12])                  # nothing is known but what is kept
    for k in range(0, 18, 3):                                                # one half: three iterations
        hidden = torch.cat([drawn for _, drawn in calls[k:k + 3]], dim=1)
        places = torch.cat([calls[k][0], hidden], dim=1).sort(dim=1).values
        assert torch.equal(places, torch.arange(13 if k < 12 else 12).repeat(2, 1))
    assert not torch.equal(calls[0][0], calls[6][0]) and scales == {3.0}     # other halves in the second round


def test_one_token_is_drawn_for_its_own_picture_where_growing_guidance_passes_through_1():
    latents, orders = gold_class.input("imgs").flatten(2).transpose(1, 2), torch.tensor([[3], [20]])
    known = torch.stack([torch.arange(36)[torch.arange(36) != place] for place in (3, 20)])
    guided, alone = (mar_class.class_sample(gold_class.input("labels"), orders, 1, cfg, "linear", known=known,
                                            latents=latents, steps=10, generator=torch.Generator().manual_seed(0))
                     for cfg in (2.0, 1.0))
    check("the token", guided, alone, 1e-3)
