"""The wing of discrete tokens: each piece against a case worked out by hand.     python -m pytest -q tests/test_compare.py"""
import random

import numpy as np
import pytest
import torch

from nanoharmon.compare.vq import COMMITMENT, VQ, straight_through, usage, vq_loss
from nanoharmon.config import PRESETS
from nanoharmon.pictures import to_pixels
from nanoharmon.training.optim import make_optimizers
from nanoharmon.training.recipe import DataConfig, OptimConfig
from nanoharmon.world.source import ShapesData

WORLD = ShapesData(DataConfig(scenes=200, board=2))


def pictures(first, n, size=16):
    return to_pixels(torch.from_numpy(WORLD.pictures(range(first, first + n), size)))


# --- vq.py ------------------------------------------------------------------------------------------------------------

def test_rounding_is_passed_on_as_if_it_were_not_there():
    z, code = torch.tensor([0.6, 0.8], requires_grad=True), torch.tensor([1.0, 0.0], requires_grad=True)
    out = straight_through(z, code)
    assert out.tolist() == [1, 0]
    (out * torch.tensor([3.0, -2.0])).sum().backward()
    assert z.grad.tolist() == [3, -2] and code.grad is None


def test_the_loss_is_the_sum_of_its_four_terms_and_pulls_each_side(monkeypatch):
    """A codebook of two codes along the axes; z at (0.6, 0.8), so its code is (0, 1), both differences (0.6, -0.2)."""
    vq = VQ(PRESETS["pico"]().vae, codes=2, code_dim=2).eval()
    vq.embedding.weight.data = 5 * torch.eye(2)                  # any length: directions count
    image, z = torch.zeros(1, 3, 8, 8), torch.tensor([[[0.6, 0.8]]], requires_grad=True)
    monkeypatch.setattr(vq, "features", lambda image: z)
    monkeypatch.setattr(vq, "reconstruct", lambda vectors, grid: 0.5 + 0 * vectors.sum() + image)
    loss, parts = vq_loss(vq, image)
    gap = (0.6 ** 2 + 0.2 ** 2) / 2                              # mean over two numbers
    assert loss.item() == pytest.approx(0.5 + 10 * 0.25 + gap + COMMITMENT * gap)
    assert parts["commitment"].item() == pytest.approx(gap)
    loss.backward()
    torch.testing.assert_close(z.grad[0, 0], COMMITMENT * torch.tensor([0.6, -0.2]))       # 2 / 2 of the difference
    # the code turns towards z: its gradient is across its direction, as only directions count
    torch.testing.assert_close(vq.embedding.weight.grad, torch.tensor([[0.0, 0.0], [-0.6 / 5, 0.0]]))


def test_a_short_training_uses_most_of_the_codebook_and_decodes_what_it_encodes():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"vae": VQ(PRESETS["pico"]().vae, codes=64)})
    vq, optimizers = model["vae"], make_optimizers(dict(model.named_parameters()), OptimConfig())
    before = vq_loss(vq.eval(), pictures(0, 64))[0].item()
    vq.train()
    for step in range(40):
        vq_loss(vq, pictures(random.Random(step).randrange(100), 16))[0].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    image = pictures(120, 64)                                    # not trained on
    vq.eval()
    with torch.no_grad():
        codes = vq.encode(image)
        assert vq_loss(vq, image)[0].item() < before / 2
        assert codes.shape == (64, 4, 1) and codes.dtype == torch.long
        found = usage(codes, 64)
        assert found["used"] > 0.5 and found["perplexity"] > 16  # without moving idle codes: 0.13 and 4.5
        # codes alone say the picture, also as the floats that batches make of them
        again = vq.decode(codes.float(), (2, 2))
        torch.testing.assert_close(again, vq.reconstruct(vq.vectors(vq.nearest(vq.features(image))), (2, 2)))
        assert not torch.equal(vq.decode((codes + 1) % 64, (2, 2)), again)


def test_usage_counts_codes():
    assert usage(torch.tensor([[0, 0], [3, 3]]), 4) == pytest.approx({"used": 0.5, "perplexity": 2, "bits": 1})
