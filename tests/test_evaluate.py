"""The benchmarks on planted right and wrong answers.     python -m pytest -q tests/test_evaluate.py

Stand-ins for a trained model: an artist that draws exactly what is asked, one that draws what someone else asked, blank
and noise; readers that answer from what the judge finds, in the right picture, in someone else's or in a blank one; one
that always says yes, one that mumbles. What they score is known before.
"""
import functools
import json
import random
import re
from collections import Counter, deque

import numpy as np
import pytest
import torch
from PIL import Image

from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.tokenizer import DESCRIBE
from nanoharmon.evals import evaluate, probe, quality, reading, report
from nanoharmon.evals.common import batches, fresh_scene, rate, wilson, workers
from nanoharmon.evals.evaluate import draw_scores, match, vae_score
from nanoharmon.evals.reading import answer_scores, pope_questions, yes_no_scores
from nanoharmon.training.recipe import Config
from nanoharmon.world import language, shapes
from nanoharmon.world.judge import Detected, detect
from nanoharmon.world.source import ShapesData

FAST = {"iters": 2, "steps": "3"}


class Fake:
    """Looks like a Pipeline to the scorers. draw_one(meta, rng) -> picture; reply(picture, question) -> text;
    say(meta, rng) -> the text that is then drawn exactly."""
    size, meta, device = 96, {}, torch.device("cpu")

    def __init__(self, draw_one=None, reply=None, say=None):
        self.model = Harmon(Config.preset("nano").model)
        self.draw_one, self.reply, self.say = draw_one, reply, say
        self.metas = {meta["prompt"]: meta for task in language.TASKS for unseen in (False, True)
                      for meta in language.geneval_prompts(task, 10 ** 4, 0, unseen)}

    def plan(self, prompts, think=None, **options):
        return {"think": bool(self.say) if think is None else think}

    def think(self, prompts, seed):
        rng = random.Random(seed)
        return [self.say(self.metas[prompt], rng) for prompt in prompts]

    def draw(self, prompts, seed, think=None, **options):
        rng = random.Random(seed)
        if self.say and not think:
            return [Image.fromarray(shapes.render(language.parse_description(prompt), 96)) for prompt in prompts]
        return [Image.fromarray(self.draw_one(self.metas[prompt], rng)) for prompt in prompts]

    def answers(self, images, questions, size, max_new_tokens):
        return [self.reply(np.asarray(image), q) for image, q in zip(images, questions)]

    def likelihoods(self, images, questions, candidates, size):
        """Sure of what it says: the candidate that is the reply, or else none in particular."""
        return [[-1.0 + language.is_right(reply, language.QA("", c, "")) for c in row]
                for reply, row in zip(self.answers(images, questions, size, 12), candidates)]


def right_picture(meta, rng):
    return shapes.render(language.scene_for(meta, rng), 96)


# --- rates ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("right, n, low, high", [
    (8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)])
def test_wilson_interval_matches_known_values(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)


def test_a_rate_says_what_was_counted():
    low, high = wilson(3, 4)
    assert rate([True, True, False, True]) == {"rate": 0.75, "right": 3, "n": 4, "low": low, "high": high}
    assert rate([])["rate"] == 0.0


def test_batches_are_nearly_equal_and_complete():
    assert [len(b) for b in batches(list(range(130)))] == [43, 43, 44]
    assert sum(batches(list(range(130))), []) == list(range(130)) and batches([]) == []


# --- drawing ----------------------------------------------------------------------------------------------------------

def test_an_artist_who_draws_what_is_asked_gets_everything():
    results, pictures = draw_scores(Fake(right_picture), n=12, images_per_prompt=2)
    for group in ("seen", "unseen"):
        assert set(results[group]) - {"reasons"} == {"overall", "color", "shape", "number"} | set(
            language.TASKS if group == "seen" else evaluate.COLORED)
        assert min(v["rate"] for k, v in results[group].items() if k != "reasons") >= 0.98
    assert results["seen"]["overall"]["n"] == 6 * 24 and results["unseen"]["overall"]["n"] == 4 * 6
    assert all(picture.shape == (96, 96, 3) for _, _, picture in pictures["seen"] + pictures["unseen"])


def another_prompts_picture(meta, rng):
    others = language.geneval_prompts(meta["tag"], 90, 0)
    return right_picture(rng.choice([other for other in others if other != meta]), rng)


def blank(meta, rng):
    return np.full((96, 96, 3), 30, np.uint8)


def noise(meta, rng):
    return np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (96, 96, 3)).astype(np.uint8)


@pytest.mark.parametrize("draw_one, reason", [(another_prompts_picture, None), (blank, "missing object"),
                                              (noise, "unclear object")])
def test_wrong_pictures_get_nothing(draw_one, reason):
    tasks = language.TASKS if draw_one is not another_prompts_picture else ("counting", "position", "color_attr")
    scores = draw_scores(Fake(draw_one), n=30, images_per_prompt=1, tasks=tasks, unseen=False)[0]["seen"]
    assert scores["overall"]["rate"] < 0.05
    assert sum(sum(c.values()) for c in scores["reasons"].values()) == scores["overall"]["n"] - scores["overall"]["right"]
    if reason:
        assert set(scores["reasons"]["colors"]) == {reason} and scores["color"]["rate"] == scores["shape"]["rate"] == 0


def test_what_is_half_right_shows():
    """Everything in blue: shapes and numbers are right, whole pictures hardly ever."""
    def all_blue(meta, rng):
        include = [{**item, "color": "blue"} for item in meta["include"]]
        return right_picture({**meta, "include": include}, rng)
    scores = draw_scores(Fake(all_blue), n=30, images_per_prompt=1, tasks=("color_attr",), unseen=False)[0]["seen"]
    assert scores["shape"]["rate"] == scores["number"]["rate"] == 1 and scores["color"]["rate"] < 0.5
    assert scores["overall"]["rate"] < 0.2 and set(scores["reasons"]["color_attr"]) == {"wrong color"}


def test_objects_are_matched_most_alike_first():
    meta = {"include": [{"class": "ring", "count": 1, "color": "red"}, {"class": "cross", "count": 2, "color": "blue"}]}
    found = [Detected(shape, color, 0.5, 0.5, 0.1, 1.0) for shape, color in
             (("cross", "red"), ("cross", "blue"), ("ring", "red"), ("ring", "red"))]
    assert [(a, (o.color, o.shape)) for a, o in match(meta, found)] == [
        (("red", "ring"), ("red", "ring")), (("blue", "cross"), ("blue", "cross")), (("blue", "cross"), ("red", "cross"))]
    assert match(meta, []) == []


def test_random_weights_draw_and_answer_nothing(pico):
    pipe = Pipeline.load(pico)
    scores = draw_scores(pipe, n=8, images_per_prompt=1, **FAST)[0]
    assert scores["seen"]["overall"]["rate"] < 0.05 and scores["unseen"]["overall"]["rate"] < 0.05
    answers = answer_scores(pipe, n=20)
    assert answers["vqa"]["overall"]["rate"] < 0.1 and answers["caption"]["rate"] < 0.05
    assert answers["vqa"]["likelihood"]["overall"]["rate"] < 0.6            # guessing: about 0.35
    assert all(f["accuracy"]["rate"] < 0.1 and 0.2 < f["likelihood"]["rate"] < 0.8 for f in answers["pope"].values())
    assert vae_score(pipe, n=20)["right"]["rate"] < 0.05


# --- reading ----------------------------------------------------------------------------------------------------------

@functools.lru_cache(None)
def objects_in(data):
    return detect(np.frombuffer(data, np.uint8).reshape(96, 96, 3))


def oracle(image, question):
    """Answers from what the judge finds."""
    objects = objects_in(image.tobytes())

    def that_are(words):
        return [o for o in objects if all(w in (o.color, o.shape, "object") for w in words.split())]
    if question == DESCRIBE:
        counts = Counter((o.color, o.shape) for o in objects)
        return language.listing([language.phrase(*pair, n) for pair, n in counts.items()])
    if found := re.fullmatch(r"is there an? (.+)\?", question):
        return "Yes." if that_are(found[1]) else "No."
    if found := re.fullmatch(r"how many (.+?)s are there\?", question):
        return str(len(that_are(found[1].replace("crosse", "cross"))))
    if found := re.fullmatch(r"what (color|shape) is the (.+)\?", question):
        return getattr(that_are(found[2])[0], found[1]) if that_are(found[2]) else "nothing"
    found = re.fullmatch(r"(?:is|where is) the (.+) (left of|right of|above|below|relative to) the (.+)\?", question)
    if not (that_are(found[1]) and that_are(found[3])):
        return "nothing"
    related = shapes.relation(that_are(found[1])[0], that_are(found[3])[0], 1)
    return f"{related} it" if found[2] == "relative to" else "yes" if related == found[2] else "no"


@pytest.mark.parametrize("unseen", [False, True])
def test_a_perfect_reader_gets_everything(unseen):
    scores = answer_scores(Fake(reply=oracle), n=60, unseen=unseen)
    likelier = scores["vqa"].pop("likelihood")
    assert set(scores["vqa"]) == set(likelier) == {"exist", "count", "color", "shape", "relation", "overall"}
    assert min(v["rate"] for by in (scores["vqa"], likelier) for v in by.values()) >= 0.97
    assert scores["caption"]["rate"] >= 0.97
    for figures in scores["pope"].values():
        assert figures["accuracy"]["rate"] >= 0.97 and figures["f1"] >= 0.97 and abs(figures["yes_ratio"] - 0.5) < 0.03
        assert figures["likelihood"]["rate"] >= 0.97


def test_always_yes_is_half_right():
    scores = answer_scores(Fake(reply=lambda image, question: "yes"), n=40, benches=["pope", "caption"])
    for figures in scores["pope"].values():
        assert figures["accuracy"]["rate"] == 0.5 and figures["yes_ratio"] == 1.0
        assert figures["precision"]["rate"] == 0.5 and figures["recall"]["rate"] == 1.0
        assert figures["f1"] == pytest.approx(2 / 3) and figures["likelihood"]["rate"] == 0.5
    assert scores["caption"]["rate"] == 0.0


def test_who_sees_nothing_is_no_better_than_guessing():
    """A blank picture: nothing is there, in every scene."""
    scores = answer_scores(Fake(reply=lambda image, question: oracle(blank(None, None), question)), n=20)
    for figures in scores["pope"].values():
        assert figures["accuracy"]["rate"] == figures["likelihood"]["rate"] == 0.5 and figures["recall"]["rate"] == 0
    assert scores["vqa"]["color"]["rate"] == scores["vqa"]["shape"]["rate"] == scores["caption"]["rate"] == 0
    assert scores["vqa"]["relation"]["rate"] == 0 and scores["vqa"]["overall"]["rate"] < 0.4


def test_who_sees_another_scene_is_no_better_than_guessing():
    seen = deque(maxlen=30)                     # longer than the questions about one scene follow each other

    def reply(image, question):
        seen.append(image)
        return oracle(seen[0], question)
    scores = answer_scores(Fake(reply=reply), n=40)
    for figures in scores["pope"].values():
        assert 0.3 < figures["accuracy"]["rate"] < 0.7 and 0.3 < figures["likelihood"]["rate"] < 0.7
    assert scores["vqa"]["overall"]["rate"] < 0.45 and scores["caption"]["rate"] < 0.1


def test_who_mumbles_is_judged_by_likelihood_alone():
    class Mumbles(Fake):
        def answers(self, images, questions, size, max_new_tokens):
            return ["well, " + answer for answer in super().answers(images, questions, size, max_new_tokens)]

        def likelihoods(self, images, questions, candidates, size):
            right = Fake.answers(self, images, questions, size, 12)
            return [[len(c) + 100.0 * language.is_right(r, language.QA("", c, "")) for c in row]
                    for r, row in zip(right, candidates)]
    scores = answer_scores(Mumbles(reply=oracle), n=20, benches=["pope", "vqa"])
    assert scores["vqa"]["overall"]["rate"] == 0 and scores["vqa"]["likelihood"]["overall"]["rate"] >= 0.97
    assert all(f["accuracy"]["rate"] == 0 and f["likelihood"]["rate"] >= 0.97 for f in scores["pope"].values())


def test_every_question_has_its_answer_among_the_candidates():
    rng, pipe = random.Random(0), Fake()
    scenes = [fresh_scene(pipe, 0, i, unseen) for i in range(150) for unseen in (False, True)]
    asked = [qa for scene in scenes for qa in language.questions(scene, rng, allow_unseen=True)]
    assert all(reading.candidates(qa.question).count(qa.answer) == 1 for qa in asked)
    assert {qa.kind for qa in asked} == {"exist", "count", "color", "shape", "relation"}


def test_likelihoods_are_those_of_one_answer_at_a_time(pico):
    """One after the other and without a cache: the log-probability of each token given all before it, summed."""
    pipe = Pipeline.load(pico)
    for p in pipe.model.llm.model.layers.parameters():
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(shapes.render(fresh_scene(pipe, 0, i), 16)) for i in range(3)]
    asked = ["is there a ring?", "where is the red circle relative to the blue square?", "what color is it?"]
    choices = [("yes", "no"), tuple(f"{r} it" for r in shapes.RELATIONS), ("a very long answer about it", "red", "r")]
    found = pipe.likelihoods(pictures, asked, choices)
    assert [len(row) for row in found] == [2, 4, 3]
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


def test_neither_yes_nor_no_is_wrong():
    figures = yes_no_scores(["yes", "maybe", "No.", "a circle"], ["yes", "yes", "no", "no"])
    assert figures["accuracy"]["right"] == 2 and figures["precision"]["rate"] == 1 and figures["recall"]["rate"] == 0.5


@pytest.mark.parametrize("sampling", reading.SAMPLINGS)
@pytest.mark.parametrize("unseen", [False, True])
def test_pope_questions_are_balanced_and_true(sampling, unseen):
    rows = pope_questions(Fake(), sampling, 60, 0, unseen)
    assert [r[2] for r in rows] == ["yes", "no"] * 30
    for scene, question, answer in rows:
        words = set(re.fullmatch(r"is there an? (.+)\?", question)[1].split()) - {"object"}
        assert (answer == "yes") == any(words <= set(o.pair) for o in scene.objects)
        if sampling == "adversarial" and answer == "no":
            assert any(words & set(o.pair) for o in scene.objects)
        assert len(words) == (1 if sampling == "popular" else 2)


# --- honesty ----------------------------------------------------------------------------------------------------------

def test_scenes_are_none_of_the_training_scenes():
    pipe, config = Fake(), Config.preset("nano")
    trained = {ShapesData(config.data).scene(i) for i in range(2000)}
    fresh = [{fresh_scene(pipe, seed, i, unseen) for i in range(300)}
             for seed in (0, "0/vqa", "0/pope") for unseen in (False, True)]
    fresh.append({probe.probe_scene(pipe, 0, kind, i) for kind in ("single", "many", "pair", "unseen")
                  for i in range(150)})
    assert len(set.union(trained, *fresh)) == len(trained) + sum(map(len, fresh))
    pairs = [{o.pair for o in scene.objects} & shapes.UNSEEN for scene in fresh[0] | fresh[1]]
    assert sum(map(bool, pairs)) == len(fresh[1])               # always in the unseen group, never in the other


def test_results_depend_on_the_seed_only(pico):
    """Not on the number of processes, nor (for answers) on the batch; a second run is identical."""
    pipe = Pipeline.load(pico)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def everything(pool=None, seed=0):
        results, pictures = draw_scores(pipe, n=4, images_per_prompt=20, seed=seed, tasks=("colors",), pool=pool, **FAST)
        assert len(pictures["seen"]) == 2 * evaluate.KEEP       # of two batches
        return results, [p.tobytes() for _, _, p in pictures["seen"]], answer_scores(pipe, 4, seed, pool=pool), vae_score(
            pipe, 40, seed, pool=pool)
    first = everything()
    assert everything() == first
    assert everything(seed=1)[1] != first[1]
    with workers(pipe, 2) as pool:
        assert everything(pool) == first
    assert answer_scores(pipe, 4, batch=3) == first[2]
    torch.set_num_threads(threads)


def test_more_iterations_than_tokens_are_an_error(pico):
    with pytest.raises(ValueError, match="--iters"):
        draw_scores(Pipeline.load(pico), n=1, iters=9)


# --- probe ------------------------------------------------------------------------------------------------------------

def test_probe_reads_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 400)
    rows = [{"count": int(c)} for c in classes]
    planted = rng.normal(size=(400, 30)).astype(np.float32)
    planted[:, :4] += 6 * np.eye(4)[classes]
    for x, low, high in ((planted, 0.98, 1.0), (rng.normal(size=(400, 600)).astype(np.float32), 0.1, 0.4)):
        found = probe.fit(x[:300], x[300:], ("count",), rows[:300], rows[300:])["count"]
        assert low <= found["rate"] <= high and found["n"] == 100


def test_the_dual_ridge_is_the_primal_one():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 8, generator=g).double(), torch.randint(0, 3, (50,), generator=g)
    inner, penalty = x @ x.T, 0.01
    onehot = torch.nn.functional.one_hot(y).double()
    weights = torch.linalg.solve(x.T @ x + penalty * inner.trace() * torch.eye(8), x.T @ (onehot - onehot.mean(0)))
    assert torch.equal(probe.ridge(inner, inner, y, penalty), (x @ weights + onehot.mean(0)).argmax(1))


# --- the command ------------------------------------------------------------------------------------------------------

def test_the_command_writes_tables_numbers_and_grids(pico, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quality.train_eye, "__defaults__", (3, None))       # steps
    threads = torch.get_num_threads()
    evaluate.main(["--ckpt", str(pico), "--n", "4", "--images-per-prompt", "1", "--steps", "3", "--procs", "1",
                   "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    said, stored = capsys.readouterr().out, json.loads((tmp_path / "results.json").read_text())
    assert "Wilson" in said and stored["results"]["geneval"]["seen"]["overall"]["n"] == 24
    assert "seen, likelihood" in said and stored["checkpoint"] == str(pico)
    assert set(stored["results"]) == set(evaluate.BENCHES) and stored["draw"]["iters"] == 4
    assert {p.name for p in tmp_path.glob("*.png")} == {f"geneval_{a}{b}.png" for a in ("seen", "unseen")
                                                         for b in ("", "_failures")}


def scene_in_words(meta, rng):
    return language.describe(language.scene_for(meta, rng), rng)


def other_scene_in_words(meta, rng):
    return language.describe(shapes.random_scene(rng), rng)


@pytest.mark.parametrize("say, low, high", [(scene_in_words, 1, 1), (other_scene_in_words, 0, 0.1)])
def test_what_is_said_before_drawing_is_judged_beside_the_picture(say, low, high):
    results, pictures = draw_scores(Fake(say=say), n=8, images_per_prompt=1)
    for found in results.values():
        assert set(found["words"]) == set(found["reasons"]) | {"overall"}
        for task, words in found["words"].items():                  # what is said is drawn exactly, so both are right
            assert words == found[task] or task == "overall"
        assert low <= found["words"]["overall"]["rate"] <= high
    assert all(meta["said"] for _, meta, _ in pictures["seen"])
    text = report.tables({"geneval": results}, evaluate.REASONS)
    assert "seen, in words" in text and "unseen, in words" in text
    assert "in words " not in report.tables({"geneval": draw_scores(Fake(right_picture), 2, 1)[0]}, evaluate.REASONS)


@pytest.mark.parametrize("said", ["", "a red circle", "a red circle at the top and a blue ring at the top", "a ring",
                                  "a red dog at the top", "a red circle at the moon", "a red circle at the top, "])
def test_nonsense_said_before_drawing_is_wrong(said):
    meta = language.geneval_prompts("single_object", 1, 0)[0]
    assert language.parse_description(said) is None and not evaluate.said_right(said, meta)


def test_the_tables_say_what_went_wrong_in_each_task():
    drawn = [({"correct": not reason, "reason": reason, "objects": []}, language.geneval_prompts(task, 1, 0)[0], None)
             for task, reasons in (("colors", ["", "", *evaluate.REASONS]), ("position", ["wrong place"] * 3))
             for reason in reasons]
    lines = report.tables({"geneval": {"seen": evaluate.summary(drawn)}}, evaluate.REASONS).splitlines()
    counts = {line[:16].strip(): line[16:].split() for line in lines[lines.index("") + 2:] if line}
    assert counts == {"": ["colors", "position"], "(right)": ["2", "0"], "wrong place": ["1", "3"],
                      **{reason: ["1", "0"] for reason in evaluate.REASONS if reason != "wrong place"}}


def test_a_grid_frames_right_pictures_green_and_wrong_ones_red_with_what_was_seen():
    meta = language.geneval_prompts("colors", 1, 0)[0]
    picture = right_picture(meta, random.Random(0))
    rows = [(evaluate.judge(picture, meta), meta, picture), (evaluate.judge(blank(0, 0), meta), meta, blank(0, 0))]
    image = np.asarray(report.grid(rows)).astype(int)
    half = image.shape[1] // 2
    for part, (r, g, b) in ((image[:, :half], report.RIGHT), (image[:, half:], report.WRONG)):
        assert tuple(part[5, 20]) == (r, g, b)                  # the frame
        assert part[170:].max() > 150                           # words under it
    assert report.saw(rows[0][0]["objects"]) == " ".join((meta["include"][0]["color"], meta["include"][0]["class"]))
    assert report.saw([]) == "nothing"


def test_quick_is_flat(pico):
    figures = evaluate.quick(Pipeline.load(pico), n=4, images_per_prompt=1, **FAST)
    assert {"geneval/seen/overall", "geneval/unseen/color_attr", "vae/psnr", "pope/seen/random/accuracy",
            "vqa/seen/overall", "vqa/seen/likelihood/overall", "caption/unseen"} <= set(figures)
    assert all(isinstance(v, float) for v in figures.values())
