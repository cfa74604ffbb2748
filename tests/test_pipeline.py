"""The Python API: load, save, draw, in-paint, answer, features.     python -m pytest -q tests/test_pipeline.py"""
import functools
import random
import time

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import fill_zeros
from nanoharmon.cli import in_words
from nanoharmon.config import pico
from nanoharmon.harmon import Harmon
from nanoharmon.pictures import pad_square, split_region
from nanoharmon.pipeline import Pipeline, pick_dtype
from nanoharmon.plans import settled
from nanoharmon.tokenizer import IMAGE, Tokenizer
from nanoharmon.world.language import caption
from nanoharmon.world.questions import questions
from nanoharmon.world.shapes import random_scene, render

FAST = {"steps": 3, "iters": 4}
train_tokenizer = functools.cache(Tokenizer.train)
RED = Image.new("RGB", (32, 32), "red")


def make_pipeline(**meta):
    """A random pico: 16 px natively, here 32 px = 4x4 tokens."""
    rng, config = random.Random(0), pico()
    scenes = [random_scene(rng) for _ in range(100)]
    texts = [caption(s, rng) for s in scenes] + [q.question for s in scenes for q in questions(s, rng)]
    torch.manual_seed(0)
    model = fill_zeros(Harmon(config))
    for p in [*model.llm.model.layers.parameters(), *model.proj_in.parameters()]:
        torch.nn.init.normal_(p, std=0.5)                    # so that answers depend on what is asked and seen
    return Pipeline(model, train_tokenizer(tuple(texts), config.llm.vocab_size), {"size": 32, **meta})


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def thinker():
    return make_pipeline(draw={"think": True})


@pytest.fixture(scope="module")
def pictures():
    rng = random.Random(1)
    return [Image.fromarray(render(random_scene(rng), 32)) for _ in range(5)]


def bytes_of(pictures):
    return [p.tobytes() for p in pictures]


def test_a_saved_pipeline_comes_back_the_same(pipe, tmp_path):
    folder = tmp_path / "b c ü"
    pipe.save(folder)
    again = Pipeline.load(str(folder))
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert again.meta == pipe.meta and again.size == 32 and again.model.config == pipe.model.config
    assert bytes_of(again.draw(["a red circle"], **FAST)) == bytes_of(pipe.draw(["a red circle"], **FAST))


def test_the_bytes_depend_on_the_seed_and_the_prompt_and_nothing_else(pipe, monkeypatch):
    first = bytes_of(pipe.draw(["a red circle", "a blue ring"], seed=3, redraw=1, **FAST))
    torch.manual_seed(99)                                    # the global generator does not matter
    assert bytes_of(pipe.draw(["a red circle", "a blue ring"], seed=3, redraw=1, **FAST)) == first
    seen = []
    one = bytes_of(pipe.draw("a red circle", on_iteration=seen.append, **FAST))
    assert one == bytes_of(pipe.draw(["a red circle"], **FAST)) != bytes_of(pipe.draw(["a blue ring"], **FAST))
    pipe.draw("a red circle", seed=1, on_iteration=seen.append, **FAST)
    grey = [(np.asarray(pictures[0]) == 128).all(axis=-1) for pictures in (seen[0], seen[4])]
    assert (grey[0] != grey[1]).any()                        # orders differ, too
    calls, draw = [], pipe.model.mar.draw
    monkeypatch.setattr(pipe.model.mar, "draw", lambda predict, orders, iters, cfg, **options: calls.append(
        (orders.shape[1], iters, cfg)) or draw(predict, orders, iters, cfg, **options))
    pipe.draw("x", redraw=1, cfg=2.0, **FAST)
    assert calls == [(16, 4, 2.0), (8, 1, 2.0), (8, 1, 2.0)]


def test_thoughts_of_a_batch_are_those_of_its_prompts_and_are_drawn(thinker, monkeypatch):
    prompts = ["a circle", "a red circle left of a blue square", "two rings and a white cross"]
    for prompt, thought in zip(prompts, thinker.think(prompts, temperature=0.0, max_new_tokens=12)):
        assert thinker.think([prompt], temperature=0.0, max_new_tokens=12) == [thought]
        asked = [{"role": "user", "content": f"Generate an image: {prompt}"}]
        assert "".join(thinker.reply(asked, max_new_tokens=12)).strip() == thought
    prompts, thoughts = prompts[:2], thinker.think(prompts[:2], seed=3)
    assert all(thoughts) and thoughts == thinker.think(prompts, seed=3) != thinker.think(prompts, seed=4)
    first = bytes_of(thinker.draw(prompts, seed=3, **FAST))
    assert first == bytes_of(thinker.draw(thoughts, seed=3, think=False, **FAST))
    monkeypatch.setattr(thinker, "say", lambda embeds, *_: [""] * len(embeds))
    assert thinker.think(prompts) == prompts                 # who has nothing to say draws the prompt


def test_options_come_from_the_caller_then_the_checkpoint_then_the_paper(pipe, thinker):
    own = {"cfg": 2.5, "steps": 7, "iters": 5, "note": "x"}
    tuned = Pipeline(pipe.model, pipe.tokenizer, {"size": 32, "draw": own})

    def options(pipe, **given):
        plan = pipe.plan(["x"], **given)
        return [plan[k] for k in ("cfg", "steps", "iters", "sampler")]
    assert options(pipe) == [3.0, 100, 16, "ddpm"] and options(tuned) == [2.5, 7, 5, "ddpm"]
    assert options(tuned, cfg=4.0, iters=6, sampler="ddim") == [4.0, 7, 6, "ddim"]
    part = dict(image=RED, region=(0, 0, 8, 8))              # its place is told already: no thought
    assert [thinker.plan(["x"], **given)["think"]
            for given in ({}, dict(think=False), part, dict(part, think=True))] == [True, False, False, True]
    for is_part, words in (False, "generate an image."), (True, "generate this part of the image."):
        ids, is_real = pipe.prompt_ids(["x"], guided=True, part=is_part)
        assert pipe.tokenizer.decode(ids[1][is_real[1]].tolist()).startswith(f"user\n{words}")


def test_numbers_of_numpy_and_pictures_in_any_form_are_taken_and_all_else_is_named(pipe, pictures, tmp_path):
    exif, flat, path = Image.Exif(), pictures[0].crop((0, 0, 32, 24)), tmp_path / "phone.png"
    exif[0x0112] = 6                                         # the camera was turned
    flat.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    tensor = torch.from_numpy(np.array(flat)).permute(2, 0, 1)
    for form in Image.open(path), str(path), path, np.asarray(flat), tensor, tensor / 255, [Image.open(path)]:
        assert pipe.features(form)[0].equal(pipe.features([flat])[0])
    assert pipe.features(flat)[0].equal(pipe.features(pad_square(flat))[0])
    part = dict(region=(0, 0, 32, 6), seed=np.int64(3), cfg=np.float32(2), steps=np.int64(3))
    assert bytes_of(pipe.draw("x", image=path, **part)) == bytes_of(pipe.draw(["x"], image=flat, **part))
    assert pipe.think("a circle", max_new_tokens=3) == pipe.think(["a circle"], max_new_tokens=3)
    for call, message in (
            (lambda: pipe.think("x", max_new_tokens=2.5), "max_new_tokens is 2.5, expected a whole number"),
            (lambda: pipe.answer(RED, ["x"]), "questions are"), (lambda: pipe.features(RED, (8, 16)), "size is 8x16"),
            (lambda: pipe.likelihoods(RED, "x", "yes"), "candidates are"), (lambda: next(pipe.reply("x")), "messages"),
            (lambda: pipe.features(b"png"), "picture is a bytes, expected a PIL"),
            (lambda: pipe.features(np.zeros((8, 8))), "picture is a ndarray of float64 .8, 8., expected a PIL")):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("options, message", [                   # what flags can ask for: bad_input.txt
    (dict(cfg=float("nan")), "cfg is nan, expected a number from 0 to 100"), (dict(seed=-1), "seed is -1, expected 0"),
    (dict(size=float("inf")), "size is inf, expected pixels"), (dict(think="no"), "think is 'no', expected True or"),
    (dict(prompts=["a", " \n"]), "expected some text"), (dict(size=(-8, 8)), "multiples of 8"),
    (dict(sampler="euler"), "one of ddpm"), (dict(image=RED, region=(0, 0, 9, 8), iters=3), "expected 1 to 2")])
def test_what_cannot_be_drawn_is_said_before_work_begins(pipe, options, message):
    with pytest.raises(ValueError, match=message) as e:
        pipe.draw(**{"prompts": ["a red circle"], **options}, on_iteration=lambda _: pytest.fail("drew"))
    assert "--" not in str(e.value) and "--" in in_words(e.value)                 # a fact here, a flag in a script


def test_prompts_drawn_at_once_are_drawn_as_alone(pipe, thinker, monkeypatch):
    prompts, thought = ["a red circle", "two blue rings and a white cross", "a ring"], []
    together = pipe.draw([p for p in prompts for _ in range(2)], seed=3, group=2, **FAST)
    for i, prompt in enumerate(prompts):
        for a, b in zip(together[2 * i:2 * i + 2], pipe.draw([prompt] * 2, seed=3, **FAST), strict=True):
            assert np.abs(np.int16(a) - np.int16(b)).max() <= 1                  # rounding
    assert together[0] != together[1] != together[3]
    with pytest.raises(ValueError, match="group is 4, expected a divisor of 6"):
        pipe.draw(prompts * 2, group=4)
    monkeypatch.setattr(thinker, "think", lambda prompts, seed: thought.append((len(prompts), seed)) or prompts)
    thinker.draw(prompts * 2, seed=3, group=2, **FAST)
    assert thought == [(2, 3)] * 3                                               # so are their thoughts


def test_fast_is_one_choice_for_thoughts_and_another_for_prompts_and_what_is_given_wins(pipe, thinker):
    plans = [p.plan(["x"], fast=True, **given)
             for p, given in ((thinker, {}), (thinker, dict(think=False)), (pipe, dict(steps=7)), (pipe, dict(iters=2)))]
    assert [(p["iters"], p["redraw"], p["steps"]) for p in plans] == [(9, 0, 16), (9, 2, 25), (9, 2, 7), (2, 2, 25)]
    plan = thinker.plan(["x"], **settled(plans[0]))                   # once it has thought
    assert (plan["iters"], plan["redraw"], plan["think"]) == (9, 0, False)


@pytest.mark.parametrize("slow, fast", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_dtype_auto_is_the_faster_one(slow, fast, monkeypatch):
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: time.sleep(0.01 * (str(a.dtype)[6:] == slow)) or
                        product(a[:1], b))
    assert pick_dtype("auto", "cpu") == getattr(torch, fast) and pick_dtype(slow, "cpu") == getattr(torch, slow)


def test_a_prompt_that_just_fits_the_context_is_drawn(pipe, monkeypatch):
    length = len(pipe.tokenizer.drawing_request("a red circle")) + 16 + 2       # tokens and buffers of the picture
    monkeypatch.setattr(pipe.model.config.llm, "max_position_embeddings", length)
    pipe.plan(["a red circle"])
    monkeypatch.setattr(pipe.model.config.llm, "max_position_embeddings", length - 1)
    with pytest.raises(ValueError, match="tokens long, expected at most"):
        pipe.plan(["a", "a red circle"])


def test_the_pictures_so_far_end_in_the_picture(pipe):
    seen, ticks = [], []
    final = pipe.draw(["a red circle"], on_iteration=seen.append, progress=lambda: ticks.append(1), **FAST)
    assert len(seen) == len(ticks) == 4 and bytes_of(seen[-1]) == bytes_of(final)
    grey = [(np.asarray(p) == 128).all(axis=-1).sum() // 64 for p, in seen]      # hidden places, 64 pixels each
    assert grey == sorted(grey, reverse=True) and grey[0] >= 10 and grey[-1] == 0


@pytest.mark.parametrize("region, inside", [
    ((0, 0, 8, 8), [0]), ((7, 0, 9, 1), [0, 1]), ((24, 24, 32, 32), [15]), ((0, 8, 32, 16), [4, 5, 6, 7])])
def test_a_region_is_the_tokens_it_touches_in_pixels_of_the_picture(region, inside):
    got, others = split_region([3 * p for p in region], (96, 96), (4, 4))
    assert got.tolist() == inside and sorted(got.tolist() + others.tolist()) == list(range(16))


def test_tokens_outside_the_region_stay_untouched(pipe, pictures, monkeypatch):
    with torch.no_grad():                                    # with gradients, convolutions round differently
        before, after = pipe.latents(pictures[:1])[0], []
    decode = pipe.model.vae.decode
    monkeypatch.setattr(pipe.model.vae, "decode", lambda latents, grid: after.append(latents) or decode(latents, grid))
    pipe.draw(["a red circle"] * 2, image=pictures[0], region=(8, 8, 20, 16), steps=3)
    inside = torch.zeros(16, dtype=torch.bool)
    inside[[5, 6]] = True
    changed = (after[0] != before).any(dim=-1)               # (2, 16)
    assert changed.equal(inside.expand(2, -1))
    assert not after[0][0].equal(after[0][1])                # two attempts, two results
    monkeypatch.setitem(pipe.meta, "parts", True)            # who learned requests for parts is asked so
    pipe.draw(["a red circle"] * 2, image=pictures[0], region=(8, 8, 20, 16), steps=3)
    assert not after[1].equal(after[0])


def test_answers_are_those_of_answer_one_by_one(pipe, pictures, monkeypatch):
    asked = ["what color is the circle?", "how many?", "is there a red ring left of the blue square?", "x", "where"]
    together = pipe.answers(pictures, asked, max_new_tokens=12)
    assert together == [pipe.answer(p, q, max_new_tokens=12) for p, q in zip(pictures, asked)]
    assert len(set(together)) > 1
    ids = torch.tensor(pipe.tokenizer.encode("ring é")[:-1]).unsqueeze(1)        # cut inside a character
    monkeypatch.setattr(pipe.model.llm, "generate", lambda *_, **__: iter(ids))
    assert pipe.answer(RED, "x") == pipe.answers(RED, "x")[0] == pipe.think("x")[0] == "ring"


def test_a_conversation_of_several_turns_and_pictures_streams(pipe, pictures):
    pictures = pictures[:2]
    messages = [{"role": "user", "content": [None, "\nwhat is it?"]}, {"role": "assistant", "content": "a ring"},
                {"role": "user", "content": [None, "\n", "and this?"]}]
    ids = torch.tensor([pipe.chat_ids(messages, None, 9)])
    with torch.no_grad():
        a, b = (pipe.embed(ids, p, None)[ids == IMAGE].view(2, 18, -1) for p in (pictures, pictures[::-1]))
    assert a.equal(b.flip(0)) and not a.equal(b)             # each picture is in its own place
    said = list(pipe.reply(messages, pictures, max_new_tokens=9))
    assert len(said) > 1 and "".join(said) == "".join(pipe.reply(messages, pictures, max_new_tokens=9))
    with pytest.raises(ValueError, match="one for each None"):
        list(pipe.reply(messages, pictures[:1]))
    said = ["".join(pipe.reply(messages, pictures, None, 1.5, 0.9, 9, seed)) for seed in (0, 0, 1)]
    assert said[0] == said[1] != said[2]


def test_padding_to_a_square_is_centred_and_grey():
    square = np.asarray(pad_square(Image.new("RGB", (2, 6), "red")))
    assert square.shape == (6, 6, 3) and (square[:, 2:4] == (255, 0, 0)).all()
    assert (square[:, [0, 1, 4, 5]] == 127).all()
