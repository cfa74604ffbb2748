"""Similarity maps on planted features.     python -m pytest -q tests/test_featuremap.py"""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nanoharmon.evals import featuremap
from nanoharmon.evals.featuremap import Concepts, auc, ranks, separation, shows
from nanoharmon.world import shapes

CONCEPTS = [c for group in featuremap.GROUPS.values() for c in group]
World = SimpleNamespace(meta={})                                 # all of a Pipeline that scenes need


@pytest.mark.parametrize("scores, positive, expected", [
    ([4, 3, 2, 1], [0, 0, 1, 1], 0.0), ([5, 5, 5, 5], [0, 1, 0, 1], 0.5), ([1, 2, 2, 3], [0, 0, 1, 1], 3.5 / 4)])
def test_area_under_the_curve(scores, positive, expected):
    assert auc(ranks(np.array(scores)), np.array(positive, bool)) == pytest.approx(expected)


def test_scenes_confuse_every_pair_in_turn():
    scenes = [featuremap.confusing_scene(World, 0, "test", i) for i in range(35)]
    for pair, scene in zip(shapes.PAIRS, scenes):
        (color, shape), *others = (o.pair for o in scene.objects)
        assert (color, shape) == pair and len(others) == 3 and not set(others) & shapes.UNSEEN
        assert [(c == color, s == shape) for c, s in others] == [(True, False), (False, True), (False, False)]
    assert not set(scenes) & {featuremap.confusing_scene(World, 0, "means", i) for i in range(35)}


@pytest.mark.parametrize("side, each", [(3, 1), (6, 4)])
def test_tokens_show_the_object_in_their_cell(side, each):
    for i in range(35):
        scene = featuremap.confusing_scene(World, 0, "test", i)
        cells = {int(o.y * 3) * 3 + int(o.x * 3): o for o in scene.objects}
        for k in shows(scene, (side, side), (None, None)).nonzero()[0]:
            assert k // side * 3 // side * 3 + k % side * 3 // side in cells
        assert shows(scene, (side, side), (None, None)).sum() == 4 * each
        pair = scene.objects[0].pair
        assert [shows(scene, (side, side), c).sum() for c in (pair, (pair[0], None), (None, pair[1]))] == [
            each, 2 * each, 2 * each]


def planted(what, n=70, noise=0.3):
    """Features (n, 36, 12) that know colors, shapes, both or nothing, and the masks of all concepts."""
    scenes, rng = [featuremap.confusing_scene(World, 0, what, i) for i in range(n)], np.random.default_rng(0)
    masks = {c: np.stack([shows(s, (6, 6), c) for s in scenes]) for c in CONCEPTS}
    x = noise * rng.normal(size=(n, 36, 12))
    names = [(c, None) for c in shapes.COLORS] + [(None, s) for s in shapes.SHAPES]
    for k, concept in enumerate(names):
        if what == "both" or what == "colors" and k < 7 or what == "shapes" and k >= 7:
            x[..., k] += masks[concept]
    x += 3 * rng.normal(size=(36, 12))                           # what all scenes share at a place counts for nothing
    return torch.from_numpy(x).float(), masks, np.stack([shows(s, (6, 6), (None, None)) for s in scenes])


def separated(what, background):
    x, masks, objects = planted(what)
    half = len(x) // 2
    learned = Concepts(x[:half], {c: m[:half] for c, m in masks.items()})
    masks = {c: m[half:] for c, m in masks.items()}
    resamples = np.random.default_rng(0).exponential(size=(8, half))
    return separation({c: learned.similarity(x[half:], c) for c in CONCEPTS}, masks,
                      None if background else objects[half:], resamples)


def test_what_is_planted_is_found():
    found = {what: separated(what, False) for what in ("both", "colors", "shapes", "nothing")}
    known = {"both": ("colors", "shapes", "pairs", "unseen pairs"), "colors": ("colors",), "shapes": ("shapes",)}
    for what, groups in found.items():
        for group, figure in groups.items():
            if group in known.get(what, ()):
                assert figure["rate"] > 0.9, (what, group)
            elif "pairs" not in group:
                assert 0.4 < figure["rate"] < 0.65, (what, group)
            assert figure["low"] <= figure["rate"] + 0.02 and figure["rate"] - 0.02 <= figure["high"]
    assert found["colors"]["pairs"]["rate"] < found["both"]["pairs"]["rate"] - 0.02
    assert separated("colors", True)["shapes"]["rate"] > found["colors"]["shapes"]["rate"] + 0.1    # background is easy


def test_words_become_concepts():
    known = {"red": ("red", None), "Ring": (None, "ring"), "purple cross": ("purple", "cross")}
    assert {text: featuremap.parse(text) for text in known} == known


def test_the_command_writes_the_same_files_twice(pico, tmp_path, monkeypatch):
    monkeypatch.setattr(featuremap, "RESAMPLES", 3)
    for folder in (tmp_path / "a", tmp_path / "b"):
        featuremap.main(["--ckpt", str(pico), "--n", "35", "--concept", "green", "--out", str(folder)])
    png, numbers = ([(tmp_path / a / f"featuremap.{kind}").read_bytes() for a in "ab"] for kind in ("png", "json"))
    assert png[0] == png[1] and numbers[0] == numbers[1] and len(json.loads(numbers[0])["AUC"]) == 6
