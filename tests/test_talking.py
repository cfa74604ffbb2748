"""Benchmarks of talking: who knows everything, who knows nothing.     python -m pytest -q tests/test_talking.py"""
import random

import numpy as np
from PIL import Image

from nanoharmon.conversation import Conversation
from nanoharmon.evals import strangers, talking
from nanoharmon.world import conversations, language, phrases, prompts, questions, shapes
from nanoharmon.world.judge import detect
from test_pipeline import make_pipeline

SIZE = 96


class Knowing:
    """Stands in for a Conversation. It overhears what the benchmark is about to ask, with the right answer."""
    heard, wrong = {}, 0.0

    def __init__(self, pipe, folder=None, seed=0, look=None, drawing=None, size=None):
        self.pictures, self.rng, self.size = [], random.Random(seed), size

    def show(self, picture, name):
        assert picture.width == self.size
        self.pictures.append(picture)

    def answer(self, question):
        said = self.heard.get(question, phrases.SORRY)           # a request that sounds like a question: what to draw
        return "what?" if self.rng.random() < self.wrong else phrases.SORRY if isinstance(said, dict) else said

    def draw(self, prompt):
        scene = prompts.scene_for(self.heard[prompt], self.rng)
        self.pictures.append(Image.fromarray(shapes.render(scene, self.size)))
        return "drawing.png", language.describe(scene, self.rng)


def overhear(monkeypatch):
    dialogue, wording = conversations.dialogue, prompts.wording

    def hear_questions(*args, **options):
        found = dialogue(*args, **options)
        Knowing.heard |= {qa.question: qa.answer for qa in found}
        return found

    def hear_prompt(meta, *args):
        text = wording(meta, *args)
        Knowing.heard[text] = meta
        return text
    monkeypatch.setattr(conversations, "dialogue", hear_questions)
    monkeypatch.setattr(prompts, "wording", hear_prompt)
    monkeypatch.setattr(talking, "Conversation", Knowing)


def test_who_knows_everything_is_right_at_every_turn(monkeypatch):
    overhear(monkeypatch)
    pipe = make_pipeline()
    pipe.meta["size"] = SIZE
    found = talking.chat_scores(pipe, 12)
    assert {name: by["n"] for name, by in found["turn"].items()} == {**{str(i): 12 for i in range(1, 9)}, "overall": 96}
    # drawings are talked about as the judge sees them: a scene may hold two things of the same name, or none
    assert found["turn"]["overall"]["rate"] > 0.97 and found["sentences"]["rate"] > 0.98
    assert {"draw", "outside", "place", "count"} <= set(found["kind"])
    monkeypatch.setattr(Knowing, "wrong", 0.5)
    assert talking.told(Conversation(pipe), "a " * 9999) == ""
    found = talking.chat_scores(pipe, 12, size=80)
    assert 0.4 < found["turn"]["overall"]["rate"] < 0.8 and 0.4 < found["sentences"]["rate"] < 0.8


class Editor:
    """Draws parts of pictures as asked, or (`lazy`) leaves them."""
    size, meta, lazy, seeds = SIZE, {}, False, set()

    def draw(self, texts, size, image, region, seed, **options):
        assert image.width == size and "iters" not in options         # a part has fewer tokens than a picture
        self.seeds.add(seed)
        objects = [shapes.Object(o.shape, o.color, o.x, o.y, o.r, shapes.COLORS[o.color])
                   for o in detect(np.asarray(image))]
        if not self.lazy:
            x0, y0, x1, y1 = (v / size for v in region)
            objects = [o for o in objects if not (x0 <= o.x < x1 and y0 <= o.y < y1)]
            if texts not in (["nothing"], ["an empty place"]):
                _, color, shape = texts[0].split()
                objects.append(shapes.Object(shape, color, (x0 + x1) / 2, (y0 + y1) / 2, 0.12, shapes.COLORS[color]))
        return [Image.fromarray(shapes.render(shapes.Scene(tuple(objects), 30), size))]


def test_who_changes_just_the_part_is_right_and_who_does_nothing_is_not():
    editor = Editor()
    found = talking.edit_scores(editor, 20, size=72, iters=36)
    assert {kind: by["rate"] for kind, by in found.items()} == dict.fromkeys((*talking.EDITS, "overall"), 1.0)
    editor.lazy = True
    assert talking.edit_scores(editor, 20, seed=1)["overall"]["rate"] == 0.0 and len(editor.seeds) == 120


def test_other_words_are_asked_in_both_ways_and_random_weights_know_nothing(short_replies):
    pipe = make_pipeline(draw={"steps": 1, "iters": 1}, turns=4)
    found = talking.phrase_scores(pipe, 2, look=False)
    assert set(found) == {f"{what}, {ways}" for what in ("questions", "requests") for ways in talking.WAYS} | {
        "requests, plain", "refused"}
    assert set(found["requests, plain"]) == {*prompts.TASKS, *prompts.OURS, "overall"}
    assert {*questions.KINDS, "overall"} == set(found["questions, held out"])
    for name, by in found.items():
        assert all(r["rate"] < 0.1 for r in (by.values() if name == "refused" else [by["overall"]])), name


def test_lines_of_strangers_can_be_judged_by_their_answers(monkeypatch):
    rng, (asked, wished) = random.Random(0), strangers.read_lines()
    for _, _, right in asked:
        assert all(questions.is_sentence(qa.answer) and questions.is_right(qa.answer, qa) for qa in right), right
    for _, meta in wished:
        said = phrases.SORRY if "refuse" in meta else language.describe(prompts.scene_for(meta, rng), rng)
        assert strangers.is_understood(said, meta), meta
    monkeypatch.setattr(talking.Pipeline, "think", lambda _, texts, seed: [phrases.SORRY] * len(texts))
    monkeypatch.setattr(strangers, "answer_of", lambda *_: "what?")
    found, wrong = strangers.strangers(make_pipeline())
    assert found["overall"]["right"] == found["wishes for what the world has not"]["n"] == 20 and len(wrong) == 230
