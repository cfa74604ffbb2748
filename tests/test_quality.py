"""Planted clouds of points; the eye; the controls.     python -m pytest -q tests/test_quality.py"""
import numpy as np
import pytest
import torch

from nanoharmon.config import pico
from nanoharmon.evals import quality
from nanoharmon.evals.quality import frechet, within
from nanoharmon.harmon import Harmon
from nanoharmon.pictures import to_pixels
from nanoharmon.world import shapes
from test_evaluate import Fake, right_picture

BOARD = {"layout": "board", "board": 3}


def cloud(mean, covariance, n=200, seed=0):
    """Points whose mean and covariance are exactly these."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed)).double()
    x = (x - x.mean(dim=0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return x @ torch.linalg.cholesky(covariance.double()).T + torch.tensor(mean).double()


def test_frechet_distance_of_gaussians_along_the_axes():
    a = cloud([0.0, 1.0, 2.0], torch.diag(torch.tensor([1.0, 4.0, 9.0])))
    b = cloud([3.0, 1.0, -2.0], torch.diag(torch.tensor([4.0, 4.0, 1.0])), n=300, seed=1)
    assert frechet(a, b) == pytest.approx(9 + 16 + (1 - 2) ** 2 + (3 - 1) ** 2)      # means, then standard deviations
    assert frechet(b, a) == pytest.approx(frechet(a, b)) and frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_points_within_the_third_neighbour_of_a_reference():
    reference = torch.tensor([[0.0], [1.0], [3.0], [10.0]]).double()         # radii 10, 9, 7, 10
    points = torch.tensor([[-10.0], [-10.1], [20.0], [20.1], [5.0]]).double()
    assert within(points, reference).tolist() == [True, False, True, False, True]


def test_labels_are_true():
    scene = shapes.Scene((shapes.Object("ring", "blue", 0.9, 0.5, 0.1, (0, 0, 0)),), 30)
    labels, ring = quality.true_labels(scene, 160), shapes.PAIRS.index(("blue", "ring"))
    assert (labels[4:6, 8:] == ring).all() and (labels == ring).sum() == 4 and (labels == 35).sum() == 96


def test_the_same_eye_every_time_and_large_pictures_are_reduced():
    first, _, second = quality.train_eye(16, BOARD, 2), torch.rand(3), quality.train_eye(16, BOARD, 2)
    assert all(map(torch.equal, first.parameters(), second.parameters())) and torch.equal(first.std, second.std)
    large = np.zeros((2, 2 * quality.MOST, 2 * quality.MOST, 3), np.uint8)
    small = np.ascontiguousarray(large[:, ::2, ::2])
    assert all(map(torch.equal, quality.eye_features(first, large), quality.eye_features(first, small)))


def test_the_controls_come_out_as_they_must():
    eye, artist = quality.train_eye(48, BOARD, steps=90), Fake(right_picture)
    torch.manual_seed(0)
    artist.model, artist.pixels = Harmon(pico()), lambda images: to_pixels(torch.from_numpy(np.stack(images)))
    found = quality.quality_scores(artist, 120, eye=eye)
    figures = {name: [row["Frechet"], row["precision, %"]["rate"], row["recall, %"]["rate"]]
               for name, row in found.items()}
    perfect, few = figures["other renders"], figures["single objects only"]
    assert figures["drawn"][0] < 1.5 * perfect[0] and min(*figures["drawn"][1:], *perfect[1:]) > 0.8
    assert few[0] > 2 * perfect[0] and few[1] > 0.8 and few[2] < 0.6         # all right, but modes are missing
    for name in "blank", "noise":
        assert figures[name][0] > 5 * perfect[0] and max(figures[name][1:]) < 0.1
    assert found["other renders"]["read, %"]["rate"] > 0.6
