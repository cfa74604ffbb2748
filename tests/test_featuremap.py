"""Similarity maps on planted features.     python -m pytest -q tests/test_featuremap.py"""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from nanoharmon.evals import featuremap
from nanoharmon.evals.featuremap import Concepts, auc, ranks, separation, shows
from nanoharmon.world import shapes

CONCEPTS = [c for group in featuremap.GROUPS.values() for c in group]


class World:
    """All of a Pipeline that scenes need."""
    meta = {}


# --- area under the curve ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scores, positive, expected", [
    ([1, 2, 3, 4], [0, 0, 1, 1], 1.0), ([4, 3, 2, 1], [0, 0, 1, 1], 0.0), ([5, 5, 5, 5], [0, 1, 0, 1], 0.5),
    ([1, 2, 3, 4], [0, 1, 0, 1], 0.75), ([1, 2, 2, 3], [0, 0, 1, 1], 3.5 / 4)])
def test_area_under_the_curve(scores, positive, expected):
    assert auc(ranks(np.array(scores)), np.array(positive, bool)) == pytest.approx(expected)


# --- scenes -----------------------------------------------------------------------------------------------------------

def test_scenes_confuse_every_pair_in_turn():
    scenes = [featuremap.confusing_scene(World, 0, "test", i) for i in range(35)]
    for pair, scene in zip(shapes.PAIRS, scenes):
        (color, shape), *others = (o.pair for o in scene.objects)
        assert (color, shape) == pair and len(others) == 3 and not set(others) & shapes.UNSEEN
        assert [(c == color, s == shape) for c, s in others] == [(True, False), (False, True), (False, False)]
    assert scenes == [featuremap.confusing_scene(World, 0, "test", i) for i in range(35)]
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


# --- planted features -------------------------------------------------------------------------------------------------

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
    easy = separated("colors", True)["shapes"]["rate"]           # the background is easy to tell from objects
    assert easy > found["colors"]["shapes"]["rate"] + 0.1


# --- the command ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, concept", [
    ("red", ("red", None)), ("Ring", (None, "ring")), ("purple cross", ("purple", "cross")), ("rad", None), ("", None),
    ("red blue", None), ("circle red", None), ("a red circle", None)])
def test_words_become_concepts_or_are_mistakes(text, concept):
    if concept:
        assert featuremap.parse(text) == concept
    else:
        with pytest.raises(ValueError, match=f"{text}.*{'mean .red' if text == 'rad' else ''}.*--concept"):
            featuremap.parse(text)


def test_the_command_writes_the_same_files_twice(pico, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(featuremap, "RESAMPLES", 3)
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        featuremap.main(["--ckpt", str(pico), "--n", "35", "--concept", "green", "--concept", "ring",
                         "--out", str(folder)])
        made.append([(folder / f"featuremap.{kind}").read_bytes() for kind in ("png", "json")])
    assert made[0] == made[1]
    sets = [f"{name}, against {against}" for name in ("VAE latents", "random encoder", "encoder")
            for against in ("all tokens", "other objects")]
    results, said = json.loads(made[0][1])["AUC"], capsys.readouterr().out
    assert list(results) == sets and all(list(row) == list(featuremap.GROUPS) for row in results.values())
    assert Image.open(tmp_path / "a" / "featuremap.png").size == (150 + 8 * 100, 7 * 100)
    assert all(f"| {name} " in said for name in sets)
