"""Batches of the shapes world, mixes, and the cache of latents.     python -m pytest -q tests/test_data.py"""
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch

from nanoharmon.config import pico
from nanoharmon.harmon import Harmon
from nanoharmon.pictures import to_pixels
from nanoharmon.tokenizer import IGNORE, IMAGE, LOOK, Tokenizer
from nanoharmon.training.batches import Batches
from nanoharmon.training.latents import encode_share, latents_path, measure_scale, new_cache
from nanoharmon.training.recipe import Config, DataConfig
from nanoharmon.vae import VAE
from nanoharmon.world import language, phrases, prompts, shapes
from nanoharmon.world.source import ShapesData, training_texts

CONFIG = DataConfig(scenes=60, board=2)
SCENES = ShapesData(CONFIG)


@pytest.fixture(scope="module")
def data():
    source = ShapesData(CONFIG)
    source.latents[16] = np.random.default_rng(0).normal(size=(60, 4, 4)).astype(np.float16)
    source.latents[16][:, 0, 0] = np.arange(60)                       # a picture's number can be read from its latents
    return Batches([source], [1], Tokenizer.train(training_texts(CONFIG, 60), 384), buffers=2)


def scene_of(latents):
    return SCENES.scene(int(latents[0, 0]))


def test_prompts_belong_to_their_pictures(data, monkeypatch):
    monkeypatch.setattr(prompts, "draw_prompt", lambda scene, rng: language.caption(scene, random.Random(1)))
    pieces = list(data.generation(random.Random(0), 12, 16, 0.0))
    for latents, ids, is_real in pieces:
        assert latents.shape == (6, 4, 4) and ids.shape == is_real.shape
        for latent, row, real in zip(latents, ids, is_real):
            assert language.caption(scene_of(latent), random.Random(1)) in data.tokenizer.decode(row[real].tolist())
    assert pieces[0][2].sum(1).max() <= pieces[1][2].sum(1).min()     # the shorter half comes first


def test_requests_of_reca_show_the_picture_and_say_nothing_about_it(data, monkeypatch):
    monkeypatch.setattr(prompts, "draw_prompt", lambda *_: pytest.fail("asks for a prompt"))
    said, numbers = [], []
    for latents, ids, is_real in data.reconstruction(random.Random(0), 200, 16, caption_drop=0.25):
        numbers += latents[:, 0, 0].tolist()
        for row in (row[real].tolist() for row, real in zip(ids, is_real)):
            assert row.count(IMAGE) == 4 + 2
            said.append(data.tokenizer.decode(row))
    shares = Counter(said)
    assert len(shares) == 2 and "describe the image." in shares.most_common()[0][0]
    assert abs(shares.most_common()[1][1] - 50) < 20 and "generate an image." in shares.most_common()[1][0]
    assert len(set(numbers)) > 50                                     # of all 60 scenes


def test_shares_of_a_batch_are_as_asked(data):
    for share in 0.0, 0.25, 1.0:
        scenes, nothing, bare = [], [], []
        for latents, ids, is_real in data.generation(random.Random(1), 200, 16, caption_drop=share, pairs=share):
            scenes += map(scene_of, latents)
            nothing += [row[real].tolist() == data.tokenizer.drawing_request(None) for row, real in zip(ids, is_real)]
        for latents, ids, labels, *_ in data.understanding(random.Random(0), 200, 16, texts=share):
            bare += (~(ids == IMAGE).any(1)).tolist()
            assert len(latents) == (ids == IMAGE).any(1).sum()
            for row, marks in zip(ids[~(ids == IMAGE).any(1)], labels[~(ids == IMAGE).any(1)]):
                assert (marks != IGNORE).any() and torch.equal(row[marks != IGNORE], marks[marks != IGNORE])
        two = [len(s.objects) == len({o.pair for o in s.objects}) == 2 for s in scenes]
        found = np.mean([nothing, bare, two], axis=1)
        expected = share, share, share + 0.45 * (1 - share)           # by chance 0.45 are of two different objects
        assert (np.abs(found - expected) <= 0.1).all() and (share == 0.25 or tuple(found[:2]) == (share, share)), found
    single, rng = ShapesData(DataConfig(scenes=20, max_objects=1)), random.Random(0)
    assert len(single.scene(single.generation_item(rng, 1.0)[0]).objects) == 1       # without pairs any scene will do
    told = [sum(w.prompt(i, rng) == language.think(w.scene(i), "") for i in range(20)) for w in (single, SCENES)]
    assert told[0] > 14 and told[1] < 10                              # --quick draws thoughts


def test_understanding_supervises_answers_only_and_holds_places_for_the_picture(data):
    for latents, ids, labels, label_index in data.understanding(random.Random(3), 8, 16):
        assert latents.shape == (4, 4, 4) and ids.shape == labels.shape
        assert ((ids == IMAGE).sum(1) == 4 + 2).all()                 # S + U
        assert (labels[ids == IMAGE] == IGNORE).all() and (labels[ids == data.tokenizer.pad] == IGNORE).all()
        learned = labels[labels != IGNORE]
        assert torch.equal(ids[labels != IGNORE], learned)
        assert torch.equal(labels[:, 1:].flatten()[label_index], learned)
        for row, latent in zip(labels, latents):
            said = data.tokenizer.decode(row[row != IGNORE].tolist()).strip()
            assert said and (language.parse_caption(said) is None or language.caption_is_right(said, scene_of(latent)))
    for _, labels, _ in data.texts(random.Random(3), 8):              # nor is a word of the user's learned without one
        assert (labels[:, 0] == IGNORE).all() and (labels != IGNORE).any(1).all()


def test_thoughts_say_what_a_prompt_leaves_open():
    rng, refused = random.Random(0), 0
    for _ in range(200):
        (_, request), (_, said) = SCENES.thought(rng)
        if said == phrases.SORRY:                                     # what the world does not have
            refused += 1
            continue
        prompt, objects = request.removeprefix("Generate an image: "), language.parse_description(said).objects
        for o in objects:                                             # its color and shape are given, or left open
            noun, many = f"(?:{'|'.join((o.shape, *language.OPEN))})", f"{o.shape}(e?s)"
            named = f"{o.color} {noun}|something {o.color}|{many}? (in|that is|that are) {o.color}|{many}, .*one {o.color}"
            is_open = not set(shapes.COLORS) & set(re.findall(r"\w+", prompt))
            assert o.pair in shapes.SEEN and re.search(noun if is_open else named, prompt), (prompt, said)
        assert len(objects) == 2 or list(objects) == sorted(objects, key=language.reading_order)
        if found := language.parse_caption(prompt):
            assert found[0] == Counter(o.pair for o in objects)
            by_pair = {o.pair: o for o in objects}
            assert all(shapes.relation(by_pair[a], by_pair[b]) == related for a, related, b in found[1])
    assert 10 < refused < 60
    scene = language.parse_description("a green ring at the left, a red cross at the top and a blue square at the right")
    for prompt in ("a square in blue, a red thing and a ring that is green", "a square, a cross and a ring"):
        said = language.think(language.arranged(scene, prompt), prompt)        # line by line, in the order of the prompt
        assert [o.shape for o in language.parse_description(said).objects] == ["square", "cross", "ring"]
    assert language.arranged(scene, "a ring above a cross and a square") == scene


def test_a_look_is_learned_but_not_to_begin_one(data):
    looked = 0
    for i in range(40):
        turns = SCENES.conversation(i, random.Random(i))
        ids, labels = data.encode(turns)
        learned = data.tokenizer.decode([i for i in labels if i != IGNORE])
        assert learned == "".join(text.removeprefix(LOOK) for role, text in turns if role == "assistant").lower()
        assert data.tokenizer.decode(ids).count(f"assistant\n{LOOK}") == sum(text.startswith(LOOK) for _, text in turns)
        looked += any(text.startswith(LOOK) for _, text in turns)
    assert 15 < looked < 35                                           # the others answer at once


def test_parts_are_drawn_anew_as_their_prompt_says_whatever_was_there(data):
    """Board 2, a grid of 2x2 tokens: a cell is a token."""
    seen = Counter()
    for seed in range(40):
        before, after, ids, is_real, (visible, hidden) = data.parts(random.Random(seed), 8, 16, caption_drop=0.25)
        rng = random.Random(seed)
        cells = rng.choice(((1, 1), (1, 1), (2, 1), (1, 2)))
        assert sorted(torch.cat([visible, hidden], 1)[0].tolist()) == [0, 1, 2, 3] and hidden.shape[1] in (1, 2)
        for latent, picture, row, real, part in zip(before, after, ids, is_real, hidden.tolist()):
            _, box, scene, prompt = SCENES.part(rng, *cells)
            asked = "." if rng.random() < 0.25 else f": {prompt}"
            assert torch.equal(picture, to_pixels(torch.from_numpy(shapes.render(scene, 16))[None])[0])
            assert data.tokenizer.decode(row[real].tolist()).startswith(f"user\ngenerate this part of the image{asked}")

            def split(objects):
                where = [(int(o.y * 2) * 2 + int(o.x * 2) in part, o) for o in objects]
                return [[o for is_in, o in where if is_in == kind] for kind in (True, False)]
            (was, stayed), (now, same) = split(scene_of(latent).objects), split(scene.objects)
            assert stayed == same and all(o.pair in shapes.SEEN for o in now) and len(scene.objects) <= 4
            assert {o.shape for o in now} == {s for s in shapes.SHAPES if s in prompt.replace("drawing", "")}
            seen[bool(was), bool(now)] += 1
    assert min(seen.values()) > 20 and len(seen) == 4                # neither follows from the other


def test_class_pictures_have_the_class_of_their_scene(data):
    latents, labels = data.class_pictures(random.Random(0), 30, 16)
    assert [shapes.scene_class(scene_of(x)) for x in latents] == labels.tolist()
    assert set(labels.tolist()) <= set(shapes.SEEN_CLASSES)


def test_the_cache_is_the_same_for_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("nanoharmon.training.latents.at_once", lambda size: 8)
    torch.manual_seed(0)
    vae, found = VAE(pico().vae).eval(), []
    for world_size in (1, 2):
        new_cache(tmp_path / "sub" / "x.npy", 20, 4, 4)
        for rank in range(world_size):
            encode_share(vae, SCENES, 16, tmp_path / "sub" / "x.npy", rank, world_size)
        found.append(np.load(tmp_path / "sub" / "x.npy"))
    assert found[0].shape == (20, 4, 4) and found[0].dtype == np.float16 and np.array_equal(*found)
    with torch.no_grad():
        latents = vae.encode(to_pixels(torch.from_numpy(SCENES.pictures([13], 16))))
    np.testing.assert_allclose(found[0][13], latents[0].numpy(), atol=2e-3)


def test_latents_have_unit_variance(monkeypatch):
    monkeypatch.setattr("nanoharmon.training.latents.at_once", lambda size: 24)           # so 64 are three parts
    torch.manual_seed(0)
    config = Config.preset("pico")
    model, made = Harmon(config.model), Batches([SCENES], [1], Tokenizer.train(training_texts(CONFIG, 60), 384))
    moments, sizes = model.vae.moments, []
    monkeypatch.setattr(model.vae, "moments", lambda image: (sizes.append(len(image)), moments(image))[1])
    measure_scale(config, model, made)
    assert sizes == [24, 24, 16] * 8
    size = config.stages["vae"].size
    with torch.no_grad():
        std = model.vae.encode(made.images(random.Random(1), 64, size)).std().item()
    assert abs(std - 1) < 0.1 and config.model.vae.scale == model.vae.config.scale != 1


def test_latents_of_other_scenes_another_size_or_another_encoder_are_not_found(tmp_path, monkeypatch):
    torch.manual_seed(0)
    vae = VAE(pico().vae)
    names = [latents_path(tmp_path, SCENES, 16, vae), latents_path(tmp_path, SCENES, 32, vae)]
    names += [latents_path(tmp_path, ShapesData(DataConfig(**{"scenes": 60, "board": 2} | other)), 16, vae)
              for other in ({"seed": 1}, {"scenes": 61}, {"board": 3}, {"layout": "free"}, {"max_objects": 2})]
    with torch.no_grad():
        vae.decoder.conv_in.weight += 1                                # latents do not depend on it
        assert latents_path(tmp_path, ShapesData(CONFIG), 16, vae) == names[0]
        vae.encoder.conv_in.weight += 1
    names.append(latents_path(tmp_path, SCENES, 16, vae))
    vae.config.scale = 0.5
    names.append(latents_path(tmp_path, SCENES, 16, vae))
    monkeypatch.setattr(shapes, "JITTER", 11)                          # another version of the shapes world
    names.append(latents_path(tmp_path, SCENES, 16, vae))
    assert len(set(names)) == len(names)
