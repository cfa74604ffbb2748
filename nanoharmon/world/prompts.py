"""Prompts to draw: GenEval's six tasks and three of ours, in the plain wording and in the words that people use.

Prompts for evaluation follow GenEval's metadata schema (arXiv 2310.11513), so that judge.py can say exactly whether a
picture is right. No function names a pair of `UNSEEN` unless asked to.
"""
import functools
import random
from collections import Counter
from itertools import permutations

from .judge import in_place
from .language import CELLS, NUMBERS, OPEN, caption, listing, phrase, place_of, plural, think
from .phrases import ALONE, BESIDE, JOINTS, PLACE_WAYS, RELATION_WAYS, SOME, choose, loosely, requested
from .shapes import PAIRS, RELATIONS, SEEN, SHAPES, UNSEEN, Scene, beside, random_scene, relation

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
OURS = ("place", "beside", "mixed")        # one object at a place, two next to each other, several of two kinds


def _meta(tag, *things, related=None, count=1):
    """GenEval metadata for (color or None, shape) things; the first is `related` to the second."""
    text = listing([phrase(*thing, count) for thing in things])
    if related:                            # GenEval lists the reference object first
        text = f"{phrase(*things[0])} {related} {phrase(*things[1])}"
        things = things[::-1]
    include = [{"class": shape, "count": count} | ({"color": color} if color else {}) for color, shape in things]
    if related:
        include[1]["position"] = [related, 0]                        # as seen from include[0]
    return {"tag": tag, "include": include, "prompt": text}


@functools.cache
def _distinct(task):
    """All distinct prompts of a task, with the pairs they name."""
    plain = [(None, shape) for shape in SHAPES]
    if task == "single_object":
        return [_meta(task, a) for a in plain]
    if task == "two_object":
        return [_meta(task, a, b) for a, b in permutations(plain, 2)]
    if task == "counting":
        return [_meta(task, a, count=count) for a in PAIRS for count in (2, 3, 4)]
    if task == "colors":
        return [_meta(task, a) for a in PAIRS]
    if task == "position":
        return [_meta(task, a, b, related=r) for a, b in permutations(PAIRS, 2) for r in RELATIONS]
    if task == "color_attr":
        return [_meta(task, a, b) for a, b in permutations(PAIRS, 2)]
    if task == "place":
        return [{"tag": task, "include": [{"class": a[1], "count": 1, "color": a[0], "cell": list(cell)}],
                 "prompt": f"{phrase(*a)} {place}"} for a in PAIRS for place, cell in CELLS.items()]
    if task == "beside":
        return [_meta(task, a, b, related="next to") for a, b in permutations(PAIRS, 2)]
    if task == "mixed":
        counts = [(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]
        few = random.Random(0)                                       # of 6,000 these are enough
        return [{"tag": task, "include": [{"class": s, "count": n, "color": c} for (c, s), n in zip(pair, count)],
                 "prompt": listing([phrase(*kind, n) for kind, n in zip(pair, count)])}
                for pair in permutations(PAIRS, 2) for count in few.sample(counts, 1)]
    raise ValueError(f"task {task!r} is none of {TASKS + OURS}")


def geneval_prompts(task: str, n: int, seed: int, unseen: bool = False) -> list:
    """`n` prompts of a task as GenEval metadata; with `unseen`, each names a pair of `UNSEEN`."""
    def names_unseen(meta):
        return any((item.get("color"), item["class"]) in UNSEEN for item in meta["include"])
    metas = [meta for meta in _distinct(task) if names_unseen(meta) == unseen]
    random.Random(seed).shuffle(metas)
    return [metas[i % len(metas)] for i in range(n)] if metas else []        # none: prompts without a color


def scene_for(meta: dict, rng: random.Random, layout: str = "board", board: int = 3) -> Scene:
    """A random scene that satisfies the prompt exactly; colors left open make seen pairs."""
    wanted = [(i, item) for i, item in enumerate(meta["include"]) for _ in range(item["count"])]
    pairs = [(item.get("color") or rng.choice([c for c, shape in SEEN if shape == item["class"]]), item["class"])
             for _, item in wanted]
    while True:                            # until everything is where it should be: one scene in five, or in nine
        scene = random_scene(rng, pairs, layout=layout, board=board)
        if in_place(dict(zip((i for i, _ in wanted), scene.objects)), meta):
            return scene


def draw_prompt(scene: Scene, rng: random.Random, places: bool = True, varied: bool = False) -> str:
    """A training prompt for drawing this scene: a task pattern that fits it, a caption or (`places`) what is where.

    Places and relations are frequent, and so are prompts that leave the color open: what is learned last should be met
    most (the weights: docs/LOG.md). varied: in all the words that training has for it, also with kinds left open
    ("three things", "something red").
    """
    def way(options):
        return choose(options, rng, plain=0.2 if varied else 1.0)

    def named(pair, n=1, one="a"):
        return loosely(*pair, rng, n, one) if varied else phrase(*pair, n, one)

    kinds = list(Counter(o.pair for o in scene.objects).items())
    rng.shuffle(kinds)
    pairs = [pair for pair, _ in kinds]
    plain = [(None, shape) for _, shape in pairs]
    joint = rng.choice(JOINTS) if varied and len(kinds) == 2 else " and "
    one = "one" if varied and len(kinds) < len(scene.objects) and rng.random() < 0.5 else "a"
    things = [named(*kind, one) for kind in kinds]
    everything = joint.join(things) if len(things) == 2 else listing(things)
    options = [(3, caption(scene, rng) if not varied else everything)]       # (weight, prompt)
    objects = list(scene.objects)
    rng.shuffle(objects)
    if places:
        told = listing([f"{phrase(*o.pair)} {way(PLACE_WAYS[place_of(o)])}" for o in objects])
        if varied and rng.random() < 0.3:
            told = listing([f"{way(PLACE_WAYS[place_of(o)])} {phrase(*o.pair)}" for o in objects])
        elif not varied and rng.random() < 0.5:
            told = think(scene, everything)                          # as the LLM will say it
        many = len(objects) > 2 or len(pairs) < len(objects)
        options.append((9 if many else 12 if len(pairs) == 2 else 3, told))
    if len(objects) == 1:
        for weight, kind in (6, plain[0]), (3, pairs[0]):
            one = rng.choice(("a", "one")) if varied else "a"
            options.append((weight, way(ALONE).format(x=named(kind, one=one))))
        if varied:
            options.append((0.5, f"something {pairs[0][0]}"))
    elif len(pairs) == 1:
        options.append((12, way(ALONE).format(x=everything) if not varied or rng.random() < 0.8 else
                        f"{rng.choice(SOME)} {plural(' '.join(pairs[0]))}"))
        if varied:
            options.append((6, named(plain[0], len(objects))))
    elif len(objects) == 2:
        options.append((3, joint.join(named(pair) for pair in pairs)))
        if varied and plain[0] == plain[1]:
            options.append((5, f"{phrase(*plain[0], 2)}, one {pairs[0][0]} and one {pairs[1][0]}"))
        if plain[0] != plain[1]:
            options.append((5, joint.join(named(kind) for kind in plain)))
        a, b = objects
        both = [named(o.pair) for o in objects]
        if varied and plain[0] != plain[1] and rng.random() < 0.3:           # colors left open
            both = [phrase(None, o.shape) for o in objects]
        if related := relation(a, b):
            options.append((9, f"{both[0]} {way(RELATION_WAYS[related])} {both[1]}"))
            if varied:
                side = f"{way(RELATION_WAYS[related])} it"
                options.append((3, f"{both[1]} " + rng.choice((f"with {both[0]} {side}", f"and {side} {both[0]}"))))
        if beside(a, b):
            options.append((28, f"{both[0]} {way(BESIDE)} {both[1]}"))
    else:
        options.append((12, everything))
    if varied:                                                       # kinds left open, the number is not
        apart = "different " if len({shape for _, shape in pairs}) == len(objects) > 1 and rng.random() < 0.5 else ""
        options.append((1, phrase(None, apart + rng.choice(OPEN), len(objects))))
    weights, prompts = zip(*options)
    return rng.choices(prompts, weights)[0]


def request(prompt: str, rng: random.Random, held_out: bool = False) -> str:
    """A prompt as people ask for it: "can you draw a red circle?"."""
    text = requested(prompt, rng, held_out)
    return text.replace(" an orange", " a orange") if rng.random() < 0.2 else text


def wording(meta: dict, rng: random.Random, held_out: bool = False) -> str:
    """The prompt of a task in other words, as people ask for it."""
    def way(options):
        return choose(options, rng, held_out)
    things = [(item.get("color"), item["class"], item["count"]) for item in meta["include"]]
    named = [phrase(*thing) if thing[2] == 1 or rng.random() < 0.5 else
             phrase(*thing).replace(NUMBERS[thing[2]], str(thing[2]), 1) for thing in things]
    related = next((item["position"][0] for item in meta["include"] if "position" in item), None)
    cell = meta["include"][0].get("cell")
    if related:                                                      # the reference object comes first in the list
        text = f"{named[1]} {way(BESIDE if related == 'next to' else RELATION_WAYS[related])} {named[0]}"
    elif cell:
        place = way(PLACE_WAYS[next(name for name, xy in CELLS.items() if list(xy) == cell)])
        text = f"{place} {named[0]}" if rng.random() < 0.3 else f"{named[0]} {place}"
    elif len(named) == 1:
        text = way(ALONE).format(x=named[0])
    else:
        text = rng.choice(JOINTS).join(named)
    return request(text, rng, held_out)
