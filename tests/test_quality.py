"""Planted clouds of points; the eye; the controls.     python -m pytest -q tests/test_quality.py"""
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from nanoharmon.harmon import Harmon
from nanoharmon.pictures import to_pixels
from nanoharmon.evals import quality
from nanoharmon.evals.quality import frechet, within
from nanoharmon.training.recipe import Config
from nanoharmon.world import language, shapes
from test_pipeline import make_pipeline

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
    assert frechet(a, a + 2) == pytest.approx(3 * 4)


def test_frechet_distance_of_gaussians_that_are_turned():
    """In two dimensions tr (AB)^1/2 = (tr AB + 2 det(AB)^1/2)^1/2, which needs no eigenvalues."""
    A, B = torch.tensor([[3.0, 1.2], [1.2, 1.0]]).double(), torch.tensor([[1.0, -0.7], [-0.7, 2.0]]).double()
    expected = (A + B).trace() - 2 * ((A @ B).trace() + 2 * (A @ B).det().sqrt()).sqrt()
    assert frechet(cloud([1.0, 1.0], A), cloud([1.0, 1.0], B, seed=1)) == pytest.approx(expected.item())


def test_points_within_the_third_neighbour_of_a_reference():
    reference = torch.tensor([[0.0], [1.0], [3.0], [10.0]]).double()         # radii 10, 9, 7, 10
    points = torch.tensor([[-10.0], [-10.1], [20.0], [20.1], [5.0]]).double()
    assert within(points, reference).tolist() == [True, False, True, False, True]
    assert within(torch.tensor([[11.5], [2.9], [17.1]]).double(), reference, k=1).tolist() == [True, True, False]


def test_precision_and_recall_of_clusters():
    g = torch.Generator().manual_seed(0)

    def at(*places):
        return torch.cat([torch.randn(50, 3, generator=g).double() + 100 * place for place in places])

    def rates(points):
        return within(points, reference).double().mean().item(), within(reference, points).double().mean().item()
    reference = at(0, 1)
    missing, extra = rates(at(0, 0)), rates(at(0, 1, 2))
    assert rates(reference) == (1, 1) and min(rates(at(0, 1))) > 0.8
    assert missing[0] > 0.8 and 0.35 < missing[1] <= 0.5                     # one mode dropped
    assert 0.5 < extra[0] < 0.7 and extra[1] > 0.8                           # one made up
    assert rates(at(3)) == (0, 0) and rates(at(3)[:1].repeat(50, 1)) == (0, 0)       # elsewhere; always the same point


def test_labels_are_true():
    scene = shapes.Scene((shapes.Object("ring", "blue", 0.9, 0.5, 0.1, (0, 0, 0)),), 30)
    labels, ring = quality.true_labels(scene, 160), shapes.PAIRS.index(("blue", "ring"))
    assert (labels[4:6, 8:] == ring).all() and (labels == ring).sum() == 4 and (labels == 35).sum() == 96


def test_the_same_eye_every_time_and_large_pictures_are_reduced():
    first, _, second = quality.train_eye(16, BOARD, 2), torch.rand(3), quality.train_eye(16, BOARD, 2)
    assert all(map(torch.equal, first.parameters(), second.parameters())) and torch.equal(first.std, second.std)
    large = np.zeros((2, 2 * quality.MOST, 2 * quality.MOST, 3), np.uint8)
    assert all(map(torch.equal, quality.eye_features(first, large), quality.eye_features(first, large[:, ::2, ::2].copy())))


class Artist:
    """Looks like a Pipeline; draws what is asked, or what `choose` makes of it."""
    meta, device, size = {}, torch.device("cpu"), 48

    def __init__(self, choose=lambda meta: meta):
        torch.manual_seed(0)
        self.model, self.choose = Harmon(Config.preset("nano").model), choose
        self.metas = {meta["prompt"]: meta for task in language.TASKS for meta in language.geneval_prompts(task, 5000, 0)}

    def draw(self, prompts, size, seed):
        rng = random.Random(seed)
        scenes = [language.scene_for(self.choose(self.metas[p]), rng) for p in prompts]
        return [Image.fromarray(shapes.render(scene, size)) for scene in scenes]

    def pixels(self, images):
        return to_pixels(torch.from_numpy(np.stack(images)))


def test_the_controls_come_out_as_they_must():
    eye = quality.train_eye(48, BOARD, steps=90)
    found = quality.quality_scores(Artist(), 150, eye=eye)
    figures = {name: [row["Frechet"], row["precision, %"]["rate"], row["recall, %"]["rate"]]
               for name, row in found.items()}
    perfect, few = figures["other renders"], figures["single objects only"]
    assert figures["drawn"][0] < 1.5 * perfect[0] and min(*figures["drawn"][1:], *perfect[1:]) > 0.8
    assert few[0] > 2 * perfect[0] and few[1] > 0.8 and few[2] < 0.6         # all right, but modes are missing
    for name in "blank", "noise":
        assert figures[name][0] > 5 * perfect[0] and max(figures[name][1:]) < 0.1
    assert found["other renders"]["read, %"]["rate"] > 0.8
    assert found["VAE reconstructions"]["PSNR, dB"] < 30                     # of random weights
    assert quality.quality_scores(Artist(), 150, eye=eye) == found
    same = quality.quality_scores(Artist(lambda _: language.geneval_prompts("colors", 1, 0)[0]), 150, eye=eye)["drawn"]
    assert same["recall, %"]["rate"] < 0.2 and same["Frechet"] > few[0]      # always the same prompt


def test_the_command_writes_its_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quality.train_eye, "__defaults__", (3, None))        # steps
    make_pipeline().save(tmp_path / "ckpt")
    threads = torch.get_num_threads()
    quality.main(["--ckpt", str(tmp_path / "ckpt"), "--n", "8", "--steps", "2", "--procs", "1", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "results.json").read_text())["results"]["quality"]
    assert list(rows) == ["drawn", "other renders", "VAE reconstructions", "single objects only", "blank", "noise"]
    assert f"drawn{rows['drawn']['Frechet']:.3f}" in capsys.readouterr().out.replace(" ", "")
