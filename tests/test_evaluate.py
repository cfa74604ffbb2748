"""The benchmarks on planted right and wrong answers.     python -m pytest -q tests/test_evaluate.py

Stand-ins for a trained model: artists that draw what is asked, or something else; readers that use the judge.
"""
import functools
import json
import random
import re
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from nanoharmon.evals import controls, evaluate, geneval, probe, quality, reading, talking
from nanoharmon.evals.common import batches, fresh_scene, over_processes, rate, wilson, workers
from nanoharmon.evals.geneval import draw_scores, match
from nanoharmon.evals.reading import answer_scores, pope_questions
from nanoharmon.pipeline import Pipeline
from nanoharmon.plans import OFFICIAL
from nanoharmon.tokenizer import DESCRIBE, LOCATE
from nanoharmon.training import watch
from nanoharmon.training.recipe import Config
from nanoharmon.world import language, prompts, questions, shapes
from nanoharmon.world.judge import Detected, detect
from nanoharmon.world.source import ShapesData
from test_pipeline import make_pipeline
from test_questions import truth

SIDE = 48
METAS = {meta["prompt"]: meta for task in prompts.TASKS for unseen in (False, True)
         for meta in prompts.geneval_prompts(task, 100, 0, unseen)}


def test_a_training_ends_with_the_figures_that_it_tells(pico, monkeypatch, short_replies):
    real = evaluate.run_benchmarks
    monkeypatch.setattr(evaluate, "run_benchmarks", lambda pipe, benches, n, each, **options: real(
        pipe, benches, 1, 1, steps=1, iters=1, **options))
    found = evaluate.quick(Pipeline.load(pico))
    assert {name for line in watch.MAIN_FIGURES.values() for name in line.values()} <= set(found)


class Fake:
    """Looks like a Pipeline. draw_one(meta or text, rng) -> picture; reply(picture, question), say(meta, rng) -> str"""
    size, meta, device = SIDE, {}, torch.device("cpu")

    def __init__(self, draw_one=None, reply=None, say=None):
        self.draw_one, self.reply, self.say = draw_one, reply, say

    def plan(self, prompts, think=None, **options):
        return OFFICIAL | {"think": bool(self.say) if think is None else think}

    def think(self, prompts, seed):
        rng = random.Random(seed)
        return [self.say(METAS[prompt], rng) for prompt in prompts]

    def draw(self, prompts, seed, think=None, **options):
        rng = random.Random(seed)
        return [Image.fromarray(self.draw_one(METAS.get(prompt, prompt), rng)) for prompt in prompts]

    def answers(self, images, questions, size, max_new_tokens, look=None):
        return [self.reply(np.asarray(image), q) for image, q in zip(images, questions)]

    def likelihoods(self, images, asked, candidates, size):
        """Sure of what it says: the candidate that is the reply, or else none in particular."""
        return [[-1.0 + questions.is_right(reply, questions.QA("", c, "")) for c in row]
                for reply, row in zip(self.answers(images, asked, size, 12), candidates)]


def test_wilson_interval_matches_known_values():
    for right, n, low, high in (8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (0, 0, 0.0, 1.0):
        found = rate([True] * right + [False] * (n - right))
        assert (found["low"], found["high"]) == wilson(right, n) == pytest.approx((low, high), abs=1e-4)


# --- drawing ----------------------------------------------------------------------------------------------------------

def right_picture(meta, rng):
    return shapes.render(prompts.scene_for(meta, rng), SIDE)


def another_prompts_picture(meta, rng):
    return right_picture(rng.choice([m for m in METAS.values() if m["tag"] == meta["tag"] and m != meta]), rng)


def test_an_artist_who_draws_what_is_asked_gets_everything():
    results, pictures = draw_scores(Fake(right_picture), n=8, images_per_prompt=2)
    for group, tasks in ("seen", prompts.TASKS), ("unseen", geneval.COLORED):
        assert set(results[group]) - {"reasons"} == {"overall", "color", "shape", "number", *tasks}
        assert min(v["rate"] for k, v in results[group].items() if k != "reasons") >= 0.98
        for _, meta, picture in pictures[group]:
            named = {(item.get("color"), item["class"]) for item in meta["include"]} & shapes.UNSEEN
            assert bool(named) == (group == "unseen") and picture.shape == (SIDE, SIDE, 3)
    assert results["seen"]["overall"]["n"] == 6 * 16 and results["unseen"]["overall"]["n"] == 4 * 4


@pytest.mark.parametrize("draw_one, reason", [
    (another_prompts_picture, None), (lambda *_: np.full((SIDE, SIDE, 3), 30, np.uint8), "missing object")])
def test_wrong_pictures_get_nothing(draw_one, reason):
    scores = draw_scores(Fake(draw_one), n=20, images_per_prompt=1, tasks=("counting", "position", "color_attr"),
                         unseen=False)[0]["seen"]
    assert scores["overall"]["rate"] < 0.05
    assert sum(sum(c.values()) for c in scores["reasons"].values()) == 60 - scores["overall"]["right"]
    assert reason is None or set(scores["reasons"]["position"]) == {reason} and scores["shape"]["right"] == 0


def test_another_prompt_or_picture_is_right_by_chance_only(monkeypatch):
    assert [found["right"] for found in controls.drawn(Fake(right_picture), 65)] == [6 * 65, 0]
    asked = reading.questions_of(Fake, "plain", 2, "0/controls")             # who answers knows what should be shown
    monkeypatch.setattr(controls, "ask", lambda _, rows, choose: [
        (qa.answer if shown == scene else "what?", 0) for (shown, _, qa), (scene, *_) in zip(rows, asked, strict=True)])
    found = controls.controls(make_pipeline(draw={"steps": 1, "iters": 1}), 2)
    assert {f"questions: {kind}" for kind in set(questions.KINDS) - set(questions.NOT_PLAIN)} < set(found)
    assert [by["rate"] for by in found["questions: overall"].values()] == [1, 0, 0, 1]


def test_objects_are_matched_most_alike_first():
    meta = {"include": [{"class": "ring", "count": 1, "color": "red"}, {"class": "cross", "count": 2, "color": "blue"}]}
    found = [Detected(shape, color, 0.5, 0.5, 0.1, 1.0) for shape, color in
             (("cross", "red"), ("cross", "blue"), ("ring", "red"), ("ring", "red"))]
    assert [(a, (o.color, o.shape)) for a, o in match(meta, found)] == [
        (("red", "ring"), ("red", "ring")), (("blue", "cross"), ("blue", "cross")),
        (("blue", "cross"), ("red", "cross"))]


def test_what_is_said_before_drawing_is_judged_beside_the_picture():
    for scene, low, high in (prompts.scene_for, 1, 1), (lambda _, rng: shapes.random_scene(rng), 0, 0.1):
        artist = Fake(lambda said, _: shapes.render(language.parse_description(said), SIDE),
                      say=lambda meta, rng: language.describe(scene(meta, rng), rng))
        for found in draw_scores(artist, n=6, images_per_prompt=1)[0].values():                  # both alike
            assert all(words == found[task] for task, words in found["words"].items() if task != "overall")
            assert low <= found["words"]["overall"]["rate"] <= high


def test_what_is_refused_is_wrong_even_where_the_drawing_is_right():
    circle = right_picture(METAS["a circle"], random.Random(0))
    for said, right in ("what?", 1), ("sorry, no", 0):
        artist = Fake(lambda *_: circle, say=lambda *_: said)
        found, _ = draw_scores(artist, n=5, images_per_prompt=1, tasks=("single_object",))
        assert found["seen"]["overall"]["right"] == right
    assert found["seen"]["reasons"]["single_object"] == {"refused": 5}


# --- reading ----------------------------------------------------------------------------------------------------------

@functools.lru_cache(None)
def objects_in(data):
    return detect(np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3))


def oracle(image, question):
    objects = tuple(objects_in(image.tobytes()))
    if question == DESCRIBE:
        counts = Counter((o.color, o.shape) for o in objects)
        return language.listing([language.phrase(*pair, n) for pair, n in counts.items()])
    if question == LOCATE:
        there = (shapes.Object(o.shape, o.color, o.x, o.y, o.r, ()) for o in objects)
        return language.locate(shapes.Scene(tuple(there), 0))
    try:
        return truth(question, shapes.Scene(objects, 0)).capitalize() + "."
    except (ValueError, TypeError):                              # what is asked about was not found once, or is unclear
        return "nothing"


@pytest.mark.parametrize("unseen", [False, True])
def test_a_perfect_reader_gets_everything(unseen):
    scores = answer_scores(Fake(reply=oracle), n=40, unseen=unseen)
    likelier = scores["vqa"].pop("likelihood")
    assert set(scores["vqa"]) - {"locate", "caption"} == set(likelier) == {*reading.CANDIDATES, "overall"}
    assert min(v["rate"] for v in (*scores["vqa"].values(), *likelier.values(), scores["caption"])) >= 0.95
    for figures in scores["pope"].values():
        assert min(figures["accuracy"]["rate"], figures["f1"], figures["likelihood"]["rate"]) >= 0.95
        assert abs(figures["yes_ratio"] - 0.5) < 0.03


def test_likelihoods_are_those_of_one_answer_at_a_time(pico):
    """One after the other and without a cache: the log-probability of each token given all before it, summed."""
    pipe = Pipeline.load(pico)
    for p in pipe.model.llm.model.layers.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(2))
    pictures = [Image.fromarray(shapes.render(fresh_scene(pipe, 0, i), 16)) for i in range(3)]
    asked = ["is there a ring?", "where is the red circle relative to the blue square?", "what color is it?"]
    choices = [("yes", "no"), tuple(f"{r} it" for r in shapes.RELATIONS), ("a very long answer about it", "red", "r")]
    found = pipe.likelihoods(pictures, asked, choices)
    for picture, question, texts, row in zip(pictures, asked, choices, found):
        start = pipe.chat_ids([{"role": "user", "content": [None, "\n" + question]}], None, 0)
        for text, value in zip(texts, row):
            reply = pipe.tokenizer.encode(text) + [pipe.tokenizer.im_end]
            ids = torch.tensor([start + reply])
            with torch.no_grad():
                hidden = pipe.model.llm.model(pipe.embed(ids, [picture], None))[0, len(start) - 1:-1]
                logs = pipe.model.llm.lm_head(hidden).log_softmax(-1)[range(len(reply)), reply]
            assert value == pytest.approx(logs.sum().item(), abs=1e-4)
        assert max(row) - min(row) > 0.05


@pytest.mark.parametrize("sampling", reading.SAMPLINGS)
def test_pope_questions_are_balanced_and_true(sampling):
    rows, unseen = pope_questions(Fake, sampling, 60, 0), pope_questions(Fake, sampling, 60, 0, unseen=True)
    named = [any(" ".join(pair) in question for pair in shapes.UNSEEN) for _, question, _ in unseen]
    assert all(named) if sampling != "popular" else not any(named)    # of no and yes alike: it must not tell them apart
    rows += unseen
    assert [r[2] for r in rows] == ["yes", "no"] * 60
    for scene, question, answer in rows:
        words = set(re.fullmatch(r"is there an? (.+)\?", question)[1].split()) - {"object"}
        assert (answer == "yes") == any(words <= set(o.pair) for o in scene.objects)
        if sampling == "adversarial" and answer == "no":
            assert any(words & set(o.pair) for o in scene.objects)
        assert len(words) == (1 if sampling == "popular" else 2)


def test_questions_about_unseen_pairs_are_about_them():
    rows = reading.questions_of(Fake, "held out", 8, 0, unseen=True)
    assert {qa.kind for *_, qa in rows} == set(questions.KINDS) and len(rows) == 8 * len(questions.KINDS)
    for scene, _, qa in rows:
        about = scene.objects if qa.kind in reading.OF_ALL else filter(None, (qa.about, qa.other))
        assert not shapes.UNSEEN.isdisjoint(o.pair for o in about), qa


# --- honesty ----------------------------------------------------------------------------------------------------------

def test_scenes_are_none_of_the_training_scenes():
    trained = {ShapesData(Config.preset("nano").data).scene(i) for i in range(1000)}
    fresh = [{fresh_scene(Fake, seed, i, unseen) for i in range(150)}
             for seed in (0, "0/vqa", "0/pope", "0/questions", "0/chat/0/0") for unseen in (False, True)]
    fresh.append({probe.probe_scene(Fake, 0, kind, i) for kind in ("single", "many", "pair", "unseen")
                  for i in range(100)})
    fresh.append({talking.edited(random.Random(f"eval/0/edit/add/{i}"), Fake, "add", SIDE)[0] for i in range(100)})
    assert len(set.union(trained, *fresh)) == len(trained) + sum(map(len, fresh))
    pairs = [{o.pair for o in scene.objects} & shapes.UNSEEN for scene in fresh[0] | fresh[1]]
    assert sum(map(bool, pairs)) == len(fresh[1])               # always in the unseen group, never in the other


def test_results_depend_on_the_seed_only(pico, monkeypatch):
    """Not on the number of processes, nor (for answers) on the batch."""
    pipe = Pipeline.load(pico)

    def everything(pool=None, seed=0):
        results, pictures = draw_scores(pipe, 4, 20, seed, tasks=("colors",), pool=pool, iters=2, steps=3)
        assert len(pictures["seen"]) == 2 * geneval.KEEP        # of two batches
        return (results, [p.tobytes() for _, _, p in pictures["seen"]], answer_scores(pipe, 4, seed, pool=pool),
                evaluate.vae_score(pipe, 40, seed, pool=pool))
    first, other = everything(), everything(seed=1)
    with workers(pipe, 2) as pool:
        assert everything(pool) == first and other[1] != first[1]
        with pytest.raises(ValueError, match="was killed.*pass --procs 1"):      # and no waiting for ever
            over_processes(sys.exit, pipe, [()], pool)
    monkeypatch.setattr(reading, "batches", lambda rows: batches(rows, 3))
    assert answer_scores(pipe, 4) == first[2]


def test_the_command_writes_numbers_and_grids(pico, tmp_path, monkeypatch, short_replies):
    monkeypatch.setattr(quality.train_eye, "__defaults__", (3, None))       # steps
    sizes = ["--n", "4", "--images-per-prompt", "1", "--steps", "3", "--procs", "1"]
    evaluate.main(["--ckpt", str(pico), "--out", str(tmp_path), *sizes])
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert stored["results"]["geneval"]["seen"]["overall"]["n"] == 24
    assert set(stored["results"]) == set(evaluate.BENCHES) and stored["draw"]["iters"] == 4
    assert {path.stem for path in tmp_path.glob("*.png")} == {f"{group}{end}" for group in (
        "geneval_seen", "geneval_unseen", "ours") for end in ("", "_failures")}


def test_cells_are_drawn_anew_only_where_there_are_any(pico, tmp_path, monkeypatch):
    free, asked = Pipeline.load(pico), []
    free.meta["layout"] = "free"
    monkeypatch.setattr(evaluate, "load_pipeline", lambda *_: free)
    monkeypatch.setattr(evaluate, "run_benchmarks", lambda pipe, benches, *_, **__: asked.extend(benches) or ({}, {}))
    evaluate.main(["--out", str(tmp_path), "--procs", "1"])
    assert set(asked) == set(evaluate.BENCHES) - {"edit"}
    monkeypatch.setattr(evaluate, "run_benchmarks", lambda _, benches, *__, **___: ({benches[0]: {"vae": 1}[benches[0]]}, {}))
    with pytest.raises(KeyError):                                # what was measured before stays
        evaluate.main(["--bench", "vae,pope", "--out", str(tmp_path), "--procs", "1"])
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["results"] == {"vae": 1}
