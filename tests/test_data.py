"""Batches of every stage, and the cache of latents.     python -m pytest -q tests/test_data.py"""
import random
import re
from collections import Counter, namedtuple

import numpy as np
import pytest
import torch

from nanoharmon.config import pico
from nanoharmon.pictures import to_pixels
from nanoharmon.tokenizer import IGNORE, IMAGE, Tokenizer
from nanoharmon.vae import VAE
from nanoharmon.training import latents
from nanoharmon.training.batches import Batches, halves, parse_mix
from nanoharmon.training.latents import encode_share, latents_path, new_cache
from nanoharmon.training.recipe import DataConfig
from nanoharmon.world import language, shapes
from nanoharmon.world.source import ShapesData, training_texts

CONFIG = DataConfig(scenes=60, board=2)
SCENES = ShapesData(CONFIG)


@pytest.fixture(scope="module")
def data():
    source = ShapesData(CONFIG)
    source.latents[16] = np.random.default_rng(0).normal(size=(60, 4, 4)).astype(np.float16)
    source.latents[16][:, 0, 0] = np.arange(60)                       # a picture's number can be read from its latents
    return Batches([source], [1], Tokenizer.train(training_texts(CONFIG, 60), 384), buffers=2)


BATCHES = {"images": lambda d, rng: [d.images(rng, 4, 16)], "texts": lambda d, rng: list(d.texts(rng, 6)),
           "class_pictures": lambda d, rng: [d.class_pictures(rng, 6, 16)],
           "drawings": lambda d, rng: list(d.generation(rng, 6, 16, 0.5)),
           "readings": lambda d, rng: list(d.understanding(rng, 6, 16))}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_is_a_function_of_its_seed(data, kind):
    def batch(seed):
        parts = BATCHES[kind](data, random.Random(seed))
        return [t for part in parts for t in (part if isinstance(part, tuple) else [part])]
    a, again, other = batch("0/1"), batch("0/1"), batch("0/2")
    assert all(torch.equal(x, y) for x, y in zip(a, again, strict=True))
    assert not all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, other))


def test_scenes_never_show_unseen_pairs_and_come_back_the_same():
    scenes = [SCENES.scene(i) for i in range(300)]
    assert scenes == [SCENES.scene(i) for i in range(300)] and len(set(scenes)) == 300
    assert not {o.pair for s in scenes for o in s.objects} & shapes.UNSEEN


def test_pictures_are_renders_in_minus_one_to_one(data):
    x = data.images(random.Random(0), 3, 16)
    assert x.shape == (3, 3, 16, 16) and x.dtype == torch.float32 and -1 <= x.min() < -0.5 and 0 < x.max() <= 1


def test_drawings_pair_pictures_with_their_own_prompts(data, monkeypatch):
    monkeypatch.setattr(language, "draw_prompt", lambda scene, rng: language.caption(scene, random.Random(1)))
    tokens, ids, is_real = (torch.cat([p.flatten(1) if p.ndim == 3 else torch.nn.functional.pad(p, (0, 99 - p.shape[1]))
                                       for p in parts]) for parts in zip(*data.generation(random.Random(0), 12, 16, 0.0)))
    assert tokens.shape == (12, 16) and is_real.sum(1).min() > 5
    for latent, row, real in zip(tokens, ids, is_real):
        text = data.tokenizer.decode(row[real].tolist())
        assert language.caption(SCENES.scene(int(latent[0])), random.Random(1)) in text


@pytest.mark.parametrize("pairs, low, high", [(0.0, 0.3, 0.65), (0.5, 0.6, 0.9), (1.0, 1, 1)])
def test_pairs_are_scenes_of_two_different_objects(data, pairs, low, high):
    rows = [i for tokens, *_ in data.generation(random.Random(1), 200, 16, 0.0, pairs) for i in tokens[:, 0, 0].tolist()]
    two = [len(s.objects) == len({o.pair for o in s.objects}) == 2 for s in (SCENES.scene(int(i)) for i in rows)]
    assert len(two) == 200 and low <= sum(two) / 200 <= high
    assert SCENES.generation_item(random.Random(2)) == SCENES.understanding_item(random.Random(2))


def test_without_pairs_in_the_world_any_scene_will_do():
    single = ShapesData(DataConfig(scenes=20, max_objects=1))
    assert {len(single.scene(single.generation_item(random.Random(i), 1.0)[0]).objects) for i in range(20)} == {1}


@pytest.mark.parametrize("drop, found", [(0.0, 0), (1.0, 20)])
def test_dropped_captions_become_the_unconditional_prompt(data, drop, found):
    nothing = data.tokenizer.drawing(None)
    rows = [row[is_real].tolist() for _, ids, real in data.generation(random.Random(0), 20, 16, drop)
            for row, is_real in zip(ids, real)]
    assert rows.count(nothing) == found


def test_readings_supervise_answers_only_and_hold_places_for_the_picture(data):
    for tokens, ids, labels, is_real, index in data.understanding(random.Random(3), 8, 16):
        assert tokens.shape == (4, 4, 4) and ids.shape == labels.shape == is_real.shape
        assert ((ids == IMAGE).sum(1) == 4 + 2).all()                 # S + U
        assert (labels[ids == IMAGE] == IGNORE).all() and (labels[~is_real] == IGNORE).all()
        assert torch.equal(labels[labels != IGNORE], ids[labels != IGNORE])
        assert torch.equal(index, (labels[:, 1:].flatten() >= 0).nonzero().squeeze(1)) and len(index)
        for row, latent in zip(labels, tokens):
            said = data.tokenizer.decode(row[row != IGNORE].tolist())
            scene = SCENES.scene(int(latent[0, 0]))
            right = said.strip() and (language.parse_caption(said) is None or language.caption_is_right(said, scene))
            assert right, said


def test_thoughts_say_what_a_prompt_leaves_open():
    rng = random.Random(0)
    for i in range(300):
        (_, request), (_, said) = SCENES.thought(rng)
        prompt = request.removeprefix("Generate an image: ")
        places = [item.split(" ", 3)[1:] for item in re.split(", | and ", said)]
        assert len({place for *_, place in places}) == len(places)               # each in a cell of its own
        for color, shape, place in places:
            assert (color, shape) in shapes.SEEN and shape in prompt
            assert f"{color} {shape}" in prompt or not set(shapes.COLORS) & set(prompt.split())     # given or left open
        mentions = [prompt.find(f"{color} {shape}") for color, shape, _ in places]
        assert mentions == sorted(mentions)
        if found := language.parse_caption(prompt):
            assert found[0] == Counter((color, shape) for color, shape, _ in places)
            where = {(color, shape): language.CELLS[place] for color, shape, place in places}
            for a, related, b in found[1]:
                (x0, y0), (x1, y1) = where[a], where[b]
                dx, dy = x1 - x0, y1 - y0
                assert {"left of": dx > abs(dy), "right of": -dx > abs(dy), "above": dy > abs(dx),
                        "below": -dy > abs(dx)}[related], (prompt, said)


@pytest.mark.parametrize("share, low, high", [(0.0, 0, 0), (0.25, 0.15, 0.35), (1.0, 1, 1)])
def test_thoughts_are_readings_without_a_picture(data, share, low, high):
    bare = total = 0
    for tokens, ids, labels, is_real, index in data.understanding(random.Random(0), 200, 16, share):
        seen = (ids == IMAGE).any(1)
        assert len(tokens) == seen.sum()
        for row, marks in zip(ids[~seen], labels[~seen]):
            text, said = data.tokenizer.decode(row.tolist()), data.tokenizer.decode(marks[marks != IGNORE].tolist())
            assert "Generate an image: " in text and said in text.split("assistant\n")[1]
        bare, total = bare + (~seen).sum().item(), total + len(ids)
    assert total == 200 and low <= bare / 200 <= high


def test_texts_have_no_pictures(data):
    parts = list(data.texts(random.Random(0), 10))
    assert sum(len(ids) for ids, *_ in parts) == 10 and not any((ids == IMAGE).any() for ids, *_ in parts)
    assert parts[0][0].shape[1] <= parts[1][0].shape[1]


def test_class_pictures_have_their_scenes_class(data):
    tokens, labels = data.class_pictures(random.Random(0), 30, 16)
    assert all(shapes.scene_class(SCENES.scene(int(t[0, 0]))) == label for t, label in zip(tokens, labels))
    assert set(labels.tolist()) <= set(shapes.SEEN_CLASSES)


def test_no_picture_with_a_class_is_an_error_that_names_the_flag(monkeypatch):
    mixed = next(s for s in map(SCENES.scene, range(60)) if len({o.pair for o in s.objects}) > 1)
    other = ShapesData(DataConfig(scenes=5))
    monkeypatch.setattr(other, "scene", lambda i: mixed)
    with pytest.raises(ValueError, match="--data.scenes"):
        other.class_item(random.Random(0))


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_halves_are_sorted_and_lose_nothing(n):
    lengths = [3, 1, 2, 5, 4][:n]
    parts = list(halves(range(n), ["x" * k for k in lengths], key=len))
    assert sorted(len(row) for _, rows in parts for row in rows) == sorted(lengths)
    assert all(len(row) == lengths[i] for index, rows in parts for i, row in zip(index, rows))
    assert not n or max(map(len, parts[0][1])) <= min(map(len, parts[-1][1]))


# --- latents -----------------------------------------------------------------------------------------------------------

def test_the_cache_is_the_same_for_any_number_of_processes(tmp_path):
    torch.manual_seed(0)
    vae, files = VAE(pico().vae).eval(), []
    for world in (1, 2):
        files.append(tmp_path / "sub" / f"{world}.npy")
        new_cache(files[-1], 20, 4, 4)
        for rank in range(world):
            encode_share(vae, SCENES, 16, files[-1], rank, world, batch=8)
    one, two = map(np.load, files)
    assert one.shape == (20, 4, 4) and one.dtype == np.float16 and np.array_equal(one, two)
    image = to_pixels(torch.from_numpy(shapes.render(SCENES.scene(13), 16))[None])
    with torch.no_grad():
        np.testing.assert_allclose(one[13], vae.encode(image)[0].numpy(), atol=2e-3)


def test_latents_of_other_scenes_another_size_or_another_encoder_are_not_found(tmp_path, monkeypatch):
    torch.manual_seed(0)
    vae = VAE(pico().vae)
    names = [latents_path(tmp_path, SCENES, 16, vae)]
    assert latents_path(tmp_path, ShapesData(CONFIG), 16, vae) == names[0]
    with torch.no_grad():
        vae.decoder.conv_in.weight += 1                                # latents do not depend on it
        assert latents_path(tmp_path, SCENES, 16, vae) == names[0]
        vae.encoder.conv_in.weight += 1
    names.append(latents_path(tmp_path, SCENES, 16, vae))
    names.append(latents_path(tmp_path, SCENES, 32, vae))
    names += [latents_path(tmp_path, ShapesData(DataConfig(**{"scenes": 60, "board": 2} | other)), 16, vae)
              for other in ({"seed": 1}, {"scenes": 61}, {"board": 3}, {"layout": "free"}, {"max_objects": 2})]
    vae.config.scale = 0.5
    names.append(latents_path(tmp_path, SCENES, 16, vae))
    monkeypatch.setattr(shapes, "JITTER", 11)                          # another version of the shapes world
    names.append(latents_path(tmp_path, SCENES, 16, vae))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("entries, found", [
    (["shapes:1"], [("shapes", 1)]), (["shapes:1", "my photos/:3"], [("shapes", 1), ("my photos", 3)]),
    (["a.json", "b:.5", "a.json:2"], [("a.json", 2), ("b", 0.5)]), (["odd:name"], [("odd:name", 1)]), ([""], [])])
def test_a_mix_is_names_and_weights(entries, found):
    assert parse_mix(entries) == found


@pytest.mark.parametrize("entry", ["shapes:0", "shapes:-1", "shapes:nan", "shapes:inf"])
def test_a_weight_that_is_none_names_the_flag(entry):
    with pytest.raises(ValueError, match=f"{entry}.*--mix"):
        parse_mix([entry])


def test_a_cache_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(latents.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    with pytest.raises(ValueError, match="--data.scenes"):
        new_cache(tmp_path / "x.npy", 20, 4, 16)
    assert not (tmp_path / "x.npy").exists()
