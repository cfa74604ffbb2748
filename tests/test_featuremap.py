"""Similarity maps on planted features.     python -m pytest -q tests/test_featuremap.py"""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from nanoharmon import cli
from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.tokenizer import Tokenizer
from nanoharmon.evals import featuremap
from nanoharmon.evals.featuremap import Concepts, auc, ranks, separation, shows
from nanoharmon.training.recipe import Config
from nanoharmon.world import shapes
from nanoharmon.world.source import training_texts

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


def test_counts_are_repetitions_and_nothing_to_compare_is_no_number():
    rng = np.random.default_rng(0)
    scores, positive, counts = rng.normal(size=50).round(1), rng.random(50) < 0.3, rng.integers(0, 4, 50)
    repeated = auc(ranks(scores.repeat(counts)), positive.repeat(counts))
    assert auc(ranks(scores), positive, counts) == pytest.approx(repeated)
    assert np.isnan(auc(ranks(scores), np.ones(50, bool)))


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
    """Features (n, 36, 12) that know colors, shapes, both or places only, and the masks of all concepts."""
    scenes, rng = [featuremap.confusing_scene(World, 0, what, i) for i in range(n)], np.random.default_rng(0)
    masks = {c: np.stack([shows(s, (6, 6), c) for s in scenes]) for c in CONCEPTS}
    x = noise * rng.normal(size=(n, 36, 12))
    names = [(c, None) for c in shapes.COLORS] + [(None, s) for s in shapes.SHAPES]
    for k, concept in enumerate(names):
        if what == "both" or what == "colors" and k < 7 or what == "shapes" and k >= 7:
            x[..., k] += masks[concept]
    if what == "places":
        x = np.tile(np.random.default_rng(1).integers(0, 9, (36, 12)), (n, 1, 1))    # whole numbers: exact means
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
    for what, group, low, high in (("both", "colors", 0.9, 1), ("both", "shapes", 0.9, 1), ("both", "pairs", 0.9, 1),
                                   ("both", "unseen pairs", 0.9, 1), ("colors", "colors", 0.9, 1),
                                   ("colors", "shapes", 0.4, 0.65), ("shapes", "shapes", 0.9, 1),
                                   ("shapes", "colors", 0.4, 0.65), ("nothing", "colors", 0.4, 0.6),
                                   ("nothing", "shapes", 0.4, 0.6)):
        figure = found[what][group]
        assert low <= figure["rate"] <= high, (what, group, figure)
        assert figure["low"] <= figure["rate"] + 0.02 and figure["rate"] - 0.02 <= figure["high"]
    assert found["colors"]["pairs"]["rate"] < found["both"]["pairs"]["rate"] - 0.02


def test_the_background_is_easy_to_tell_from_objects():
    hard, easy = separated("colors", False)["shapes"]["rate"], separated("colors", True)["shapes"]["rate"]
    assert easy > hard + 0.1


def test_places_count_for_nothing():
    assert {group: figure["rate"] for group, figure in separated("places", True).items()} == dict.fromkeys(
        featuremap.GROUPS, 0.5)


def test_heat_shows_values_and_outlines_the_mask():
    values, mask = np.zeros(9), np.zeros(9, bool)
    values[4], mask[8] = 1, True
    tile = np.asarray(featuremap.heat(np.zeros((48, 48, 3), np.uint8), values, mask, (3, 3)))
    assert tile.shape == (96, 96, 3) and tile[48, 48].min() > 190 and not tile[16, 16].any()
    inside = tile[64:, 64:].min(axis=-1) == 255
    assert inside[0].all() and inside[:, -1].all() and not inside[1:-1, 1:-1].any()


# --- the command ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, concept", [("red", ("red", None)), ("Ring", (None, "ring")),
                                           ("purple cross", ("purple", "cross"))])
def test_words_become_concepts(text, concept):
    assert featuremap.parse(text) == concept


@pytest.mark.parametrize("text", ["rad", "", "red blue", "circle red", "red circle ring", "a red circle"])
def test_other_words_are_mistakes(capsys, text):
    with pytest.raises(SystemExit) as stop:
        cli.run_main(lambda: featuremap.main(["--concept", text]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--concept" in error and error.count("\n") == 1
    assert text != "rad" or "did you mean 'red'" in error


def test_the_command_writes_the_same_files_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(featuremap, "RESAMPLES", 5)
    config = Config.preset("pico")
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(training_texts(config.data, 100), config.model.llm.vocab_size)
    Pipeline(Harmon(config.model), tokenizer, {"size": 16, "board": 2}).save(tmp_path / "pico")
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        featuremap.main(["--ckpt", str(tmp_path / "pico"), "--n", "35", "--concept", "green", "--concept", "ring",
                         "--out", str(folder)])
        made.append([(folder / f"featuremap.{kind}").read_bytes() for kind in ("png", "json")])
    assert made[0] == made[1]
    sets = [f"{name}, against {against}" for name in ("VAE latents", "random encoder", "encoder")
            for against in ("all tokens", "other objects")]
    results = json.loads(made[0][1])["AUC"]
    assert list(results) == sets and all(list(row) == list(featuremap.GROUPS) for row in results.values())
    assert Image.open(tmp_path / "a" / "featuremap.png").size == (150 + 8 * 100, 7 * 100)
    assert all(name in capsys.readouterr().out for name in sets[:1])
