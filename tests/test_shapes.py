"""The shapes world: its texts are true, its judge is right about right and about wrong pictures."""

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from nanoharmon.world.judge import detect, judge, judge_scene
from nanoharmon.world.language import (NUMBERS, TASKS, caption, caption_is_right, class_name, describe, draw_prompt,
                                       geneval_prompts, is_right, parse_caption, parse_description, questions,
                                       scene_for)
from nanoharmon.world.shapes import (COLORS, NUM_CLASSES, OPPOSITE, PAIRS, RELATIONS, SEEN, SEEN_CLASSES, SHAPES,
                                     UNSEEN, Scene, class_scene, random_scene, relation, render, scene_class)

LAYOUTS = ("board", "free")


def scenes(n, seed, **options):
    rng = random.Random(seed)
    return [random_scene(rng, layout=LAYOUTS[i % 2], **options) for i in range(n)]


def mentions_unseen(text):
    return any(f"{color} {shape}" in text for color, shape in UNSEEN)


# scenes and pictures

@pytest.mark.parametrize("layout", LAYOUTS)
def test_objects_keep_apart_and_inside(layout):
    rng = random.Random(0)
    for _ in range(500):
        scene = random_scene(rng, layout=layout)
        for a, b in combinations(scene.objects, 2):
            gap = max(abs(a.x - b.x), abs(a.y - b.y)) - a.r - b.r
            assert gap >= (0.06 / 3 if layout == "board" else 0.03) - 1e-9
        for o in scene.objects:
            assert all(o.r + 0.01 - 1e-9 <= v <= 1 - o.r - 0.01 + 1e-9 for v in (o.x, o.y))
            assert all(abs(c - p) <= 10 for c, p in zip(o.rgb, COLORS[o.color]))
        assert 1 <= len(scene.objects) <= 4 and 15 <= scene.background <= 45


def test_unseen_pairs_are_never_drawn_or_named_in_training():
    rng = random.Random(1)
    drawn = Counter()
    for scene in scenes(2000, 1):
        drawn.update(o.pair for o in scene.objects)
        texts = [caption(scene, rng), draw_prompt(scene, rng), describe(scene, rng)]
        texts += [qa.question for qa in questions(scene, rng)]
        assert not any(mentions_unseen(text) for text in texts)
    assert set(drawn) == set(SEEN)
    for scene in scenes(300, 2, allow_unseen=True):
        assert not any(mentions_unseen(qa.question) for qa in questions(scene, rng))


def test_seeds_reproduce():
    def everything(seed):
        rng = random.Random(seed)
        scene = random_scene(rng)
        return scene, *(say(scene, rng) for say in (caption, draw_prompt, describe, questions))

    assert everything(3) == everything(3) != everything(4)
    scene = everything(3)[0]
    assert np.array_equal(render(scene, 48), render(scene, 48))
    assert render(scene, 48).shape == (48, 48, 3) and render(scene, 48).dtype == np.uint8


def test_relation_is_antisymmetric():
    seen = Counter()
    for scene in scenes(500, 5):
        for a, b in combinations(scene.objects, 2):
            related = relation(a, b)
            assert relation(b, a) == (OPPOSITE[related] if related else None)
            seen[related] += 1
    assert set(seen) == {None, *RELATIONS}


def test_classes_round_trip():
    rng = random.Random(6)
    for label in range(NUM_CLASSES):
        scene = class_scene(label, rng)
        assert scene_class(scene) == label
        assert parse_caption(class_name(label))[0] == Counter(o.pair for o in scene.objects)
    assert len(SEEN_CLASSES) == 4 * (len(PAIRS) - len(UNSEEN))
    with pytest.raises(ValueError):
        scene_class(random_scene(rng, [("red", "circle"), ("red", "ring")]))


# texts

def test_captions_parse_back_and_are_right():
    rng = random.Random(7)
    bare = 0
    for scene in scenes(2000, 7, allow_unseen=True):
        text = caption(scene, rng)
        counts, relations = parse_caption(text)
        assert counts == Counter(o.pair for o in scene.objects)
        for a, related, b in relations:
            (first,), (second,) = [[o for o in scene.objects if o.pair == pair] for pair in (a, b)]
            assert relation(first, second) == related
        assert caption_is_right(text, scene)
        assert text == text.lower() and not text.endswith(".")
        bare += text.split()[0] in ("a", "an", *NUMBERS[2:]) and " of " not in text[:12]
    assert 0.6 < bare / 2000 < 0.85
    for text in ("", "red", "a red", "two red circle", "a red circle with", "a pink circle",
                 "a red circle, with the ring"):
        assert parse_caption(text) is None


def test_altered_captions_are_wrong():
    rng = random.Random(8)
    altered = 0
    for scene in scenes(1000, 8):
        text = caption(scene, rng)
        swaps = [(o.color, rng.choice([c for c in COLORS if c != o.color])) for o in scene.objects]
        swaps += [(o.shape, rng.choice([s for s in SHAPES if s != o.shape])) for o in scene.objects]
        swaps += list(OPPOSITE.items()) + [("two", "three"), ("three", "four"), ("four", "two")]
        for old, new in swaps:
            if old in text:
                # in one place only, so that it cannot turn the caption into another right one
                assert not caption_is_right(text.replace(old, new, 1), scene), (text, old, new)
                altered += 1
        assert not caption_is_right(text + " and a blue ring", scene)
    assert altered > 2000


def truth(question, scene):
    """Answers a question from the scene, by reading it word by word."""
    words = question.rstrip("?").removeprefix("where ").split()

    def fits(o, words):
        words = [w if w == "cross" else "cross" if w == "crosses" else w.removesuffix("s")
                 for w in words]
        return all(w == "object" or w in (o.color, o.shape) for w in words)

    def find(words):
        (o,) = [o for o in scene.objects if fits(o, words)]
        return o

    if question.startswith("is there"):
        return "yes" if any(fits(o, words[3:]) for o in scene.objects) else "no"
    if question.startswith("how many"):
        return NUMBERS[sum(fits(o, words[2:-2]) for o in scene.objects)]
    if question.startswith("what color"):
        return find(words[4:]).color
    if question.startswith("what shape"):
        return find(words[4:]).shape
    a = find(words[2:4])
    b = find(words[-2:])
    across, down = abs(a.x - b.x), abs(a.y - b.y)
    is_so = {"left of": a.x < b.x and across >= 1.5 * down,
             "right of": a.x > b.x and across >= 1.5 * down,
             "above": a.y < b.y and down >= 1.5 * across,
             "below": a.y > b.y and down >= 1.5 * across}
    if question.startswith("where is"):
        return [name for name in RELATIONS if is_so[name]][0] + " it"
    return "yes" if is_so[" ".join(words[4:-3])] else "no"


def test_answers_are_true_and_balanced():
    rng = random.Random(9)
    asked, exist = Counter(), Counter()
    for scene in scenes(1500, 9):
        for qa in questions(scene, rng):
            assert truth(qa.question, scene) == qa.answer, qa
            assert is_right(f" {qa.answer.upper()}. ", qa)
            asked[qa.kind] += 1
            if qa.kind == "exist":
                exist[qa.answer] += 1
    assert set(asked) == {"exist", "color", "shape", "count", "relation"}
    assert abs(exist["yes"] - exist["no"]) < 0.02 * exist.total()


def test_answer_check_is_strict_about_content():
    for scene in scenes(50, 10):
        for qa in questions(scene, random.Random(10)):
            wrongs = {"yes", "no", "two", "red", "circle", "left of it", "", qa.answer + " ring"}
            for wrong in wrongs - {qa.answer}:
                assert not is_right(wrong, qa)
            if qa.kind == "count":
                assert is_right(str(NUMBERS.index(qa.answer)), qa)


def test_descriptions_parse_back_to_where_things_are():
    rng = random.Random(5)
    for scene in [random_scene(rng, allow_unseen=True) for _ in range(300)]:
        again = parse_description(describe(scene, rng))
        where = [sorted((o.pair, int(o.y * 3), int(o.x * 3)) for o in s.objects) for s in (scene, again)]
        assert where[0] == where[1]


def test_description_decides_the_relations_of_a_board():
    rng = random.Random(11)
    assert len({describe(random_scene(rng, n=2), rng) for _ in range(100)}) > 90
    column = {"left": 0, "right": 2}
    row = {"top": 0, "bottom": 2}
    for scene in [random_scene(rng, n=2) for _ in range(300)]:
        if scene.objects[0].pair == scene.objects[1].pair:
            continue
        text = describe(scene, rng)
        places = {}
        for part in text.split(" and "):
            pair = next(o.pair for o in scene.objects if " ".join(o.pair) in part)
            words = part.split(" ".join(pair))[1].split()
            places[pair] = (next((column[w] for w in words if w in column), 1),
                            next((row[w] for w in words if w in row), 1))
        a, b = scene.objects
        dx, dy = (p - q for p, q in zip(places[a.pair], places[b.pair]))
        clear = abs(dx) != abs(dy)
        assert (relation(a, b) is not None) == clear
        if clear:
            along, names = (dx, RELATIONS[:2]) if abs(dx) > abs(dy) else (dy, RELATIONS[2:])
            assert relation(a, b) == names[along > 0]


# GenEval prompts

def test_geneval_prompts():
    for task in TASKS:
        for unseen in (False, True):
            metas = geneval_prompts(task, 200, 0, unseen)
            assert metas == geneval_prompts(task, 200, 0, unseen)
            assert len(metas) == (0 if unseen and task in ("single_object", "two_object") else 200)
            assert all(meta["tag"] == task and mentions_unseen(meta["prompt"]) == unseen
                       for meta in metas)
            wanted = [sum(item["count"] for item in meta["include"]) for meta in metas]
            allowed = {"single_object": {1}, "colors": {1}, "counting": {2, 3, 4}}.get(task, {2})
            assert set(wanted) <= allowed
    assert len({meta["prompt"] for meta in geneval_prompts("position", 500, 1)}) == 500
    position = geneval_prompts("position", 1, 2)[0]
    reference, placed = position["include"]
    related, target = placed["position"]
    assert target == 0 and "position" not in reference
    assert parse_caption(position["prompt"])[1] == [
        ((placed["color"], placed["class"]), related, (reference["color"], reference["class"]))]


# the judge, about right pictures

@pytest.mark.parametrize("layout,size,least", [("board", 32, 0.98), ("board", 64, 0.995),
                                               ("free", 64, 0.995), ("board", 96, 0.999),
                                               ("free", 96, 0.999)])
def test_judge_accepts_fresh_renders(layout, size, least):
    rng = random.Random(12)
    right = []
    for task in TASKS:
        for meta in geneval_prompts(task, 60, 12):
            verdict = judge(render(scene_for(meta, rng, layout=layout), size), meta)
            assert verdict["correct"] == (verdict["reason"] == "")
            right.append(verdict["correct"])
    for _ in range(200):
        scene = random_scene(rng, layout=layout, allow_unseen=True)
        right.append(judge_scene(render(scene, size), scene))
    assert np.mean(right) >= least


def spoil(image, rng, radius=1.0, sigma=6.0):
    """Lightly blurred, with noise: what a small VAE does to a picture."""
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)), float)
    return np.clip(blurred + rng.normal(0, sigma, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_judge_forgives_a_little_blur_and_noise(layout):
    rng, noise = random.Random(13), np.random.default_rng(13)
    made = [random_scene(rng, layout=layout) for _ in range(200)]
    assert np.mean([judge_scene(spoil(render(scene, 96), noise), scene) for scene in made]) >= 0.99


# the judge, about wrong pictures

def recolor(o, color):
    return replace(o, color=color, rgb=COLORS[color])


def swapped_colors(scene, rng):
    a, b = scene.objects
    return replace(scene, objects=(recolor(a, b.color), recolor(b, a.color)))


def one_missing(scene, rng):
    return replace(scene, objects=scene.objects[1:])


def one_extra(scene, rng):
    while True:                                             # one more object beside the others
        extra = random_scene(rng, n=1).objects[0]
        if all(max(abs(extra.x - o.x), abs(extra.y - o.y)) > extra.r + o.r + 0.02
               for o in scene.objects):
            return replace(scene, objects=scene.objects + (extra,))


def mirrored(scene, rng):
    return replace(scene, objects=tuple(replace(o, x=1 - o.x, y=1 - o.y) for o in scene.objects))


def wrong_shape(scene, rng):
    first, *rest = scene.objects
    shape = rng.choice([s for s in SHAPES if s not in {o.shape for o in scene.objects}])
    return replace(scene, objects=(replace(first, shape=shape), *rest))


def wrong_color(scene, rng):
    first, *rest = scene.objects
    color = rng.choice([c for c in COLORS if c != first.color])
    return replace(scene, objects=(recolor(first, color), *rest))


WRONG = [(swapped_colors, ("color_attr",), {"wrong color"}),
         (one_missing, TASKS[1:], {"missing object", "wrong count"}),
         (one_extra, TASKS, {"extra object", "wrong count"}),
         (mirrored, ("position",), {"wrong place"}),
         (wrong_shape, TASKS, {"wrong shape"}),
         (wrong_color, ("colors", "counting", "position"), {"wrong color"})]


@pytest.mark.parametrize("spoil_scene,tasks,reasons", WRONG, ids=[w[0].__name__ for w in WRONG])
@pytest.mark.parametrize("size", (32, 64))
def test_judge_rejects_wrong_scenes(spoil_scene, tasks, reasons, size):
    rng = random.Random(14)
    verdicts = []
    for meta in [meta for task in tasks for meta in geneval_prompts(task, 240 // len(tasks), 14)]:
        scene = scene_for(meta, rng)
        if spoil_scene is swapped_colors:
            (a, b) = scene.objects
            if a.color == b.color or a.shape == b.shape:    # then swapping changes nothing
                continue
        verdicts.append(judge(render(spoil_scene(scene, rng), size), meta))
    assert np.mean([not v["correct"] for v in verdicts]) >= 0.99
    named = reasons if size == 64 else reasons | {"unclear object", "missing object"}
    assert np.mean([v["reason"] in named for v in verdicts]) >= 0.99


def test_judge_rejects_pictures_of_nothing():
    noise = np.random.default_rng(15)
    for size in (32, 64):
        blank = np.full((size, size, 3), 30, np.uint8)
        assert detect(blank) == []
        smooth = noise.normal(0, 1, (30, size // 8, size // 8, 3)) * 60 + 100
        bad = [blank + 100, np.zeros_like(blank), np.full_like(blank, 255),
               np.full_like(blank, COLORS["red"])]
        bad += list(noise.integers(0, 256, (30, size, size, 3)).astype(np.uint8))
        bad += [np.asarray(Image.fromarray(s.clip(0, 255).astype(np.uint8)).resize((size, size)))
                for s in smooth]
        metas = [geneval_prompts(task, 1, 15)[0] for task in TASKS]
        assert not any(judge(blank, meta)["correct"] for meta in metas)
        assert not any(judge(image, metas[i % len(metas)])["correct"]
                       for i, image in enumerate(bad))


def test_judge_rejects_blobs():
    """Near misses: too faint, of no shape, of no palette color, or with a smear beside it."""
    rng = random.Random(16)
    accepted = []
    for meta in geneval_prompts("colors", 60, 16):
        scene = scene_for(meta, rng)
        image = render(scene, 64)
        o = scene.objects[0]
        faint = (0.5 * image + 0.5 * scene.background).astype(np.uint8)
        half = image.copy()
        half[:, :int(o.x * 64)] = scene.background
        pink = render(Scene((replace(o, rgb=(230, 130, 170)),), scene.background), 64)
        smear = image.copy()
        column = 2 if o.x > 0.5 else 58
        smear[5:60, column:column + 2] = (120, 80, 60)
        accepted += [judge(picture, meta)["correct"] for picture in (faint, half, pink, smear)]
    assert np.mean(accepted) <= 0.01


def test_judge_scene_wants_everything_in_place():
    rng = random.Random(17)
    for _ in range(50):
        scene = random_scene(rng, n=1)
        (o,) = scene.objects
        moved = Scene((replace(o, x=1 - o.x if abs(o.x - 0.5) > 0.1 else 0.2),), scene.background)
        assert judge_scene(render(scene, 64), scene) and not judge_scene(render(moved, 64), scene)
        assert not judge_scene(render(wrong_shape(scene, rng), 64), scene)
        assert not judge_scene(render(wrong_color(scene, rng), 64), scene)
        assert not judge_scene(render(one_extra(scene, rng), 64), scene)
