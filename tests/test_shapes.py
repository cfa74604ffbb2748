"""The shapes world: its texts are true, its judge is right.     python -m pytest -q tests/test_shapes.py"""
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from nanoharmon.world.judge import detect, judge, judge_scene
from nanoharmon.world.language import (caption, caption_is_right, describe, inventory, locate, objects_in,
                                       parse_caption, parse_description, parse_location, phrase)
from nanoharmon.world.phrases import outside
from nanoharmon.world.prompts import OURS, TASKS, draw_prompt, geneval_prompts, scene_for, wording
from nanoharmon.world.questions import questions
from nanoharmon.world.shapes import (COLORS, NUM_CLASSES, OPPOSITE, PAIRS, SEEN, SEEN_CLASSES, SHAPES, UNSEEN, Scene,
                                     class_scene, random_scene, relation, render, scene_class)


def scenes(n, seed, **options):
    rng = random.Random(seed)
    return [random_scene(rng, layout=("board", "free")[i % 2], **options) for i in range(n)]


def other_than(known, pool, rng):
    return rng.choice([name for name in pool if name not in known])


def mentions_unseen(text):
    return any(f"{color} {shape}" in text for color, shape in UNSEEN)


def test_objects_keep_apart_and_inside_and_unseen_pairs_are_never_drawn_or_named_in_training():
    rng, drawn = random.Random(1), Counter()
    for i, scene in enumerate(scenes(800, 1)):
        least = 0.03 if i % 2 else 0.06 / 3                               # of layout free, of the board
        for a, b in combinations(scene.objects, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) - a.r - b.r >= least - 1e-9
        for o in scene.objects:
            assert all(o.r + 0.01 - 1e-9 <= v <= 1 - o.r - 0.01 + 1e-9 for v in (o.x, o.y))
            assert all(abs(c - p) <= 10 for c, p in zip(o.rgb, COLORS[o.color]))
        assert 1 <= len(scene.objects) <= 4 and 15 <= scene.background <= 45
        drawn.update(o.pair for o in scene.objects)
        texts = [caption(scene, rng), draw_prompt(scene, rng), describe(scene, rng),
                 draw_prompt(scene, rng, varied=True)]
        asked = questions(scene, rng) + questions(scene, rng, ways="training")
        texts += [qa.question for qa in asked] + [outside(rng)[0]]
        assert not any(mentions_unseen(text) for text in texts)
    assert set(drawn) == set(SEEN)


def test_classes_round_trip():
    rng = random.Random(6)
    for label in range(NUM_CLASSES):
        scene, (count, kind) = class_scene(label, rng), divmod(label, len(PAIRS))
        name = phrase(*PAIRS[kind], count + 1)
        assert scene_class(scene) == label and parse_caption(name)[0] == Counter(o.pair for o in scene.objects)
        assert (label in SEEN_CLASSES) == (not mentions_unseen(name))


def test_captions_parse_back_and_are_right_unless_altered():
    rng, altered = random.Random(7), 0
    for scene in scenes(600, 7, allow_unseen=True):
        text = caption(scene, rng)
        counts, relations = parse_caption(text)
        assert counts == Counter(o.pair for o in scene.objects) and caption_is_right(text, scene)
        for a, related, b in relations:
            (first,), (second,) = [[o for o in scene.objects if o.pair == pair] for pair in (a, b)]
            assert relation(first, second) == related
        swaps = [(o.color, other_than({o.color}, COLORS, rng)) for o in scene.objects]
        swaps += [(o.shape, other_than({o.shape}, SHAPES, rng)) for o in scene.objects]
        for old, new in [*swaps, *OPPOSITE.items(), ("two", "three"), ("three", "four"), ("four", "two")]:
            if old in text:               # in one place only, so that it cannot turn the caption into another right one
                assert not caption_is_right(text.replace(old, new, 1), scene), (text, old, new)
                altered += 1
        assert not caption_is_right(text + " and a blue ring", scene)
    assert altered > 1200
    assert not any(map(parse_caption, ["", "a red", "two red circle", "a red circle with", "a pink circle"]))


def test_descriptions_parse_back_and_decide_the_relations_of_a_board():
    rng = random.Random(5)
    for scene in [random_scene(rng, allow_unseen=True) for _ in range(300)]:
        again = parse_description(describe(scene, rng))
        assert len({tuple(sorted((o.pair, int(o.y * 3), int(o.x * 3)) for o in s.objects)) for s in (scene, again)}) == 1
        if len(scene.objects) == len({o.pair for o in scene.objects}) == 2:
            a, b = scene.objects
            x, y = sorted(again.objects, key=lambda o: o.pair != a.pair)
            assert relation(x, y) == relation(a, b)
    assert parse_description("a red ring at the door") is None


def test_looks_and_inventories_parse_back():
    rng = random.Random(5)
    for scene in [random_scene(rng, allow_unseen=True) for _ in range(300)]:
        found = parse_location(locate(scene))
        assert sorted(found.values()) == sorted(o.pair for o in scene.objects) and len(found) == len(scene.objects)
        assert all(scene_of == o.pair for o in scene.objects for scene_of in
                   [found[("at the top", "", "at the bottom")[int(o.y * 3)] + (" left", "", " right")[int(o.x * 3)]
                          if int(o.y * 3) != 1 else ("at the left", "in the middle", "at the right")[int(o.x * 3)]]])
        assert objects_in(inventory(scene)) == Counter(o.pair for o in scene.objects)
    assert parse_location("at the top a red ring and at the top a blue ring") is None
    assert parse_location("at the door a red ring") is None


def test_prompts_of_our_tasks_and_other_words_of_all():
    rng = random.Random(8)
    for task in TASKS + OURS:
        for meta in geneval_prompts(task, 12, 3):
            image = render(scene_for(meta, rng), 96)
            assert judge(image, meta)["correct"], meta
            for held_out in (False, True):
                words = wording(meta, rng, held_out)
                assert all(item["class"][:4] in words and item.get("color", "") in words for item in meta["include"])
    here = {"tag": "place", "include": [{"class": "ring", "count": 1, "color": "red", "cell": [0, 2]}]}
    there = here | {"include": [here["include"][0] | {"cell": [2, 2]}]}
    image = render(scene_for(here, rng), 96)
    assert judge(image, here)["correct"] and judge(image, there)["reason"] == "wrong place"
    apart = {"tag": "beside", "include": [{"class": "ring", "count": 1, "color": "red", "cell": [0, 0]},
                                          {"class": "ring", "count": 1, "color": "blue", "cell": [2, 0]}]}
    close = {"tag": "beside", "include": [{"class": "ring", "count": 1, "color": "red"},
                                          {"class": "ring", "count": 1, "color": "blue", "position": ["next to", 0]}]}
    assert judge(render(scene_for(apart, rng), 96), close)["reason"] == "wrong place"


def test_geneval_prompts():
    for task in TASKS:
        for unseen in (False, True):
            metas = geneval_prompts(task, 60, 0, unseen)
            assert len(metas) == (0 if unseen and task in ("single_object", "two_object") else 60)
            assert all(meta["tag"] == task and mentions_unseen(meta["prompt"]) == unseen for meta in metas)
            wanted = {sum(item["count"] for item in meta["include"]) for meta in metas}
            assert wanted <= {"single_object": {1}, "colors": {1}, "counting": {2, 3, 4}}.get(task, {2})
    meta = geneval_prompts("position", 1, 2)[0]
    reference, placed = [(item["color"], item["class"]) for item in meta["include"]]
    related, target = meta["include"][1]["position"]
    assert target == 0 and parse_caption(meta["prompt"])[1] == [(placed, related, reference)]


@pytest.mark.parametrize("layout, size, n, least", [("board", 96, 12, 0.98), ("free", 96, 12, 0.98),
                                                   ("board", 64, 12, 0.98), ("board", 32, 20, 0.95)])
def test_judge_accepts_right_pictures(layout, size, n, least):
    rng = random.Random(12)
    verdicts = [judge(render(scene_for(meta, rng, layout=layout), size), meta)["correct"]
                for task in TASKS for meta in geneval_prompts(task, n, 12)]
    pictured = [random_scene(rng, layout=layout, allow_unseen=True) for _ in range(n)]
    assert np.mean(verdicts) >= least and np.mean([judge_scene(render(s, size), s) for s in pictured]) >= least


def recolor(o, color):
    return replace(o, color=color, rgb=COLORS[color])


def one_extra(rng, *objects):
    while True:                                             # one more object beside the others
        extra = random_scene(rng, n=1).objects[0]
        if all(max(abs(extra.x - o.x), abs(extra.y - o.y)) > extra.r + o.r + 0.02 for o in objects):
            return *objects, extra


# (random, the objects of a right scene) -> those of a wrong one
swapped_colors = lambda rng, a, b: (recolor(a, b.color), recolor(b, a.color))
one_missing = lambda rng, _, *rest: rest
mirrored = lambda rng, *objects: [replace(o, x=1 - o.x, y=1 - o.y) for o in objects]
wrong_color = lambda rng, first, *rest: (recolor(first, other_than({first.color}, COLORS, rng)), *rest)
wrong_shape = lambda rng, *objects: (replace(objects[0], shape=other_than({o.shape for o in objects}, SHAPES, rng)),
                                     *objects[1:])


@pytest.mark.parametrize("change, tasks, reasons", [
    (swapped_colors, ("color_attr",), {"wrong color"}), (one_missing, TASKS[1:], {"missing object", "wrong count"}),
    (one_extra, TASKS, {"extra object", "wrong count"}), (mirrored, ("position",), {"wrong place"}),
    (wrong_shape, TASKS, {"wrong shape"}), (wrong_color, ("colors", "counting", "position"), {"wrong color"})],
    ids=["swapped_colors", "one_missing", "one_extra", "mirrored", "wrong_shape", "wrong_color"])
def test_judge_rejects_wrong_scenes(change, tasks, reasons):
    rng, verdicts = random.Random(14), []
    for meta in [meta for task in tasks for meta in geneval_prompts(task, 60 // len(tasks), 14)]:
        scene = scene_for(meta, rng)
        same = len(scene.objects) == 2 and any(len({getattr(o, name) for o in scene.objects}) == 1
                                               for name in ("color", "shape"))
        if change is not swapped_colors or not same:        # else swapping changes nothing
            verdicts.append(judge(render(replace(scene, objects=tuple(change(rng, *scene.objects))), 64), meta))
    assert np.mean([not v["correct"] for v in verdicts]) >= 0.99
    assert np.mean([v["reason"] in reasons for v in verdicts]) >= 0.99


def test_judge_rejects_pictures_of_nothing():
    noise, blank = np.random.default_rng(15), np.full((64, 64, 3), 30, np.uint8)
    pictures = [blank, blank + 100, blank * 0, np.full_like(blank, 255), np.full_like(blank, COLORS["red"]),
                *noise.integers(0, 256, (10, 64, 64, 3)).astype(np.uint8)]
    metas = [geneval_prompts(task, 1, 15)[0] for task in TASKS]
    assert detect(blank) == [] and not any(judge(image, meta)["correct"] for image in pictures for meta in metas)


def test_judge_rejects_near_misses():
    rng = random.Random(16)
    for meta in geneval_prompts("colors", 30, 16):
        scene = scene_for(meta, rng)
        (o,), image = scene.objects, render(scene, 64)
        faint, half, smear = (0.5 * image + 0.5 * scene.background).astype(np.uint8), image.copy(), image.copy()
        half[:, :int(o.x * 64)] = scene.background
        smear[5:60, 2 if o.x > 0.5 else 58:][:, :2] = (120, 80, 60)
        odd = [render(Scene((replace(o, rgb=rgb),), scene.background), 64)      # between two colors, far from all
               for rgb in ((230, 130, 170), (0, 255, 0))]
        assert not any(judge(picture, meta)["correct"] for picture in (faint, half, smear, *odd))
        any_color = {"tag": "single_object", "include": [{"class": o.shape, "count": 1}]}
        assert judge(image, any_color)["correct"]
        assert all(judge(picture, any_color)["reason"] == "unclear object" for picture in odd)
        wrong = [(replace(o, x=1 - o.x if abs(o.x - 0.5) > 0.1 else 0.2),),                # the first is elsewhere
                 *(change(rng, o) for change in (wrong_shape, wrong_color, one_extra))]
        assert judge_scene(image, scene)
        assert not any(judge_scene(render(replace(scene, objects=w), 64), scene) for w in wrong)
