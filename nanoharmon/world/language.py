"""What can be said about a scene of the shapes world: captions, drawing prompts, questions with answers.

Everything here is true by construction, and can be checked: `parse_caption` inverts `caption`, `is_right` compares
answers, and prompts for evaluation follow GenEval's metadata schema and its six tasks (arXiv 2310.11513), so that
judge.py can say exactly whether a picture is right. No function names a pair of `UNSEEN` unless asked to.

Everything random is drawn from `rng`, in a fixed order: a change of that order changes all training batches.

    python -m nanoharmon.world.language      prints a few of each, and writes their pictures

Simplified: `describe` names places on a 3x3 grid, which decides all relations on the 3x3 board, not in layout `free`.
"""
import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import permutations

from PIL import Image

from ..cli import Parser, run_main
from ..files import check_output, write_bytes
from ..pictures import file_bytes, grid
from .shapes import (COLORS, OPPOSITE, PAIRS, RELATIONS, SEEN, SHAPES, UNSEEN, Object, Scene, random_scene, relation,
                     render)

NUMBERS = ("zero", "one", "two", "three", "four")


# --- captions ---------------------------------------------------------------------------------------------------------

def phrase(color: str | None, shape: str, count: int = 1, one: str = "a") -> str:
    """ "a red circle", "three green crosses", without a color "a circle"; `one`: a, one or the."""
    words = f"{color} {shape}" if color else shape
    if count > 1:
        return f"{NUMBERS[count]} {_plural(words)}"
    if one == "a" and words[0] in "aeiou":
        one = "an"
    return f"{one} {words}".strip()


def _plural(words):
    return words + ("es" if words.endswith("cross") else "s")


def listing(items: list) -> str:
    """ "x", "x and y", "x, y and z"."""
    return " and ".join([", ".join(items[:-1])] * (len(items) > 1) + items[-1:])


def class_name(label: int) -> str:
    """Of a class of stage `mar`, for instance "three green crosses"."""
    count, kind = divmod(label, len(PAIRS))
    return phrase(*PAIRS[kind], count + 1)


PREFIXES = ("there {be}", "a picture of", "a photo of", "an image of", "the picture shows", "i see")
PREFIX = re.compile(f"^({'|'.join(PREFIXES)}) ".replace("{be}", "(is|are)"))
RELATED = re.compile(r"^(.+?) (?:is )?(?:to the )?(left of|right of|above|below) (.+)$")
# every way to name some objects -> (pair, count): so few that a caption is parsed by looking its phrases up
NAMED = {phrase(*pair, count, one): (pair, count)
         for pair in PAIRS for count, one in ((1, "a"), (1, "one"), (2, ""), (3, ""), (4, ""))}
THE = {phrase(*pair, one="the"): pair for pair in PAIRS}


def _facts(scene):
    """All clear relations (a, name, b) between objects whose (color, shape) is unique: "the red circle" is one."""
    counts = Counter(o.pair for o in scene.objects)
    unique = [o for o in scene.objects if counts[o.pair] == 1]
    return [(a, r, b) for a, b in permutations(unique, 2) if (r := relation(a, b))]


def caption(scene: Scene, rng: random.Random) -> str:
    """Names every object exactly; about 70 % in GenEval's bare wording, the rest as "a photo of one red circle"."""
    bare = rng.random() < 0.7
    one = "a" if bare or rng.random() < 0.5 else "one"
    kinds = list(Counter(o.pair for o in scene.objects).items())
    rng.shuffle(kinds)
    text = listing([phrase(*pair, count, one) for pair, count in kinds])
    facts, plural = _facts(scene), kinds[0][1] > 1
    if facts:
        a, related, b = rng.choice(facts)
        if related in ("left of", "right of") and not bare and rng.random() < 0.5:
            related = f"to the {related}"
        u = rng.random()
        if len(scene.objects) == 2 and u < 0.5:                      # the relation names both objects, so it is all
            text = f"{phrase(*a.pair, one=one)} {related} {phrase(*b.pair, one=one)}"
        elif u < (0.55 if len(scene.objects) == 2 else 0.3):
            text += f", with {phrase(*a.pair, one='the')} {related} {phrase(*b.pair, one='the')}"
    if bare:
        return text
    return f"{rng.choice(PREFIXES)} {text}".format(be="are" if plural else "is")


def parse_caption(text: str) -> tuple | None:
    """The inverse of `caption`: (Counter of pairs, [(pair, relation, pair)]); None for nonsense."""
    text = PREFIX.sub("", " ".join(text.lower().split()).rstrip(" ."))       # forgives case, spaces and a dot
    head, _, tail = text.partition(", with ")
    counts, relations = Counter(), []
    try:
        if tail:
            a, related, b = RELATED.match(tail).groups()
            relations.append((THE[a], related, THE[b]))
        if found := RELATED.match(head):
            a, related, b = found.groups()
            relations.append((NAMED[a][0], related, NAMED[b][0]))
            items = [a, b]
        else:
            items = re.split(", | and ", head)
        for item in items:
            pair, count = NAMED[item]
            counts[pair] += count
    except (KeyError, AttributeError):     # an unknown phrase; no relation after "with"
        return None
    return counts, relations


def caption_is_right(text: str, scene: Scene) -> bool:
    """Every object, count, color and stated relation is right, and nothing is left out."""
    parsed = parse_caption(text)
    if parsed is None or parsed[0] != Counter(o.pair for o in scene.objects):
        return False
    facts = {(a.pair, r, b.pair) for a, r, b in _facts(scene)}
    return all(stated in facts for stated in parsed[1])


# --- descriptions: what is where --------------------------------------------------------------------------------------

PLACES = (("at the top left", "at the top", "at the top right"),
          ("at the left", "in the middle", "at the right"),
          ("at the bottom left", "at the bottom", "at the bottom right"))


def describe(scene: Scene, rng: random.Random) -> str:
    """Says what is where: "a red circle at the top and a blue ring in the middle". Answers all questions about a board
    scene, so that texts can stand in for pictures; and as a prompt it is the clearest lesson in which goes where."""
    objects = list(scene.objects)
    rng.shuffle(objects)
    return listing([_placed(o) for o in objects])


def _placed(o):
    return f"{phrase(*o.pair)} {PLACES[int(o.y * 3)][int(o.x * 3)]}"


PLACED = re.compile(r"^an? (\w+) (\w+) (.+)$")
CELLS = {place: (x, y) for y, line in enumerate(PLACES) for x, place in enumerate(line)}


def parse_description(text: str) -> Scene | None:
    """The inverse of `describe`: every object in the middle of its place. None for nonsense, or two at one place."""
    found = {}
    for item in re.split(", | and ", text):
        color, shape, place = match.groups() if (match := PLACED.match(item)) else ("", "", "")
        if (color, shape) not in PAIRS or place not in CELLS or place in found:
            return None
        x, y = CELLS[place]
        found[place] = Object(shape, color, (x + 0.5) / 3, (y + 0.5) / 3, 0.4 / 3, COLORS[color])
    return Scene(tuple(found.values()), 30)    # radius and grey: about the middle of what random_scene draws


def think(scene: Scene, prompt: str) -> str:
    """`describe` in the order of a prompt, alike objects line by line: what the LLM says before it draws the scene."""
    def order(o):
        mention = prompt.find(f"{o.color} {o.shape}")            # -1 when the prompt leaves the color open
        return mention if mention >= 0 else prompt.find(o.shape), int(o.y * 3), int(o.x * 3)
    return listing([_placed(o) for o in sorted(scene.objects, key=order)])


# --- GenEval's six tasks ----------------------------------------------------------------------------------------------

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


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
    raise ValueError(f"task {task!r} is none of {TASKS}")


def geneval_prompts(task: str, n: int, seed: int, unseen: bool = False) -> list:
    """`n` prompts of a task as GenEval metadata; with `unseen`, each names a pair of `UNSEEN`."""
    def names_unseen(meta):
        return any((item.get("color"), item["class"]) in UNSEEN for item in meta["include"])
    metas = [meta for meta in _distinct(task) if names_unseen(meta) == unseen]
    random.Random(seed).shuffle(metas)
    return [metas[i % len(metas)] for i in range(n)] if metas else []        # none: prompts without a color


def scene_for(meta: dict, rng: random.Random, layout: str = "board", board: int = 3) -> Scene:
    """A random scene that satisfies the prompt exactly; colors left open make seen pairs."""
    pairs = []
    for item in meta["include"]:
        free = [color for color, shape in SEEN if shape == item["class"]]
        for _ in range(item["count"]):
            pairs.append((item.get("color") or rng.choice(free), item["class"]))
    wanted = [(i, *item["position"]) for i, item in enumerate(meta["include"]) if "position" in item]
    while True:                            # until the relation is the wanted one: one scene in five
        scene = random_scene(rng, pairs, layout=layout, board=board)
        if all(relation(scene.objects[i], scene.objects[target]) == related for i, related, target in wanted):
            return scene


def draw_prompt(scene: Scene, rng: random.Random, places: bool = True) -> str:
    """A training prompt for drawing this scene: a task pattern that fits it, a caption or (`places`) what is where.

    Places and relations are frequent, and so are prompts that leave the color open: what is learned last should be met
    most (the weights: docs/LOG.md).
    """
    kinds = [o.pair for o in scene.objects]
    rng.shuffle(kinds)
    plain = [(None, shape) for _, shape in kinds]
    options = [(3, caption(scene, rng))]                                     # (weight, prompt)
    if places:
        options.append((12 if len(set(kinds)) == len(kinds) == 2 else 3, describe(scene, rng)))
    if len(kinds) == 1:
        options += [(6, _meta("single_object", *plain)["prompt"]), (3, _meta("colors", *kinds)["prompt"])]
    elif len(set(kinds)) == 1:
        options.append((12, _meta("counting", kinds[0], count=len(kinds))["prompt"]))
    elif len(kinds) == 2:
        options.append((3, _meta("color_attr", *kinds)["prompt"]))
        if plain[0] != plain[1]:
            options.append((5, _meta("two_object", *plain)["prompt"]))
        if facts := _facts(scene):
            a, related, b = rng.choice(facts)
            options.append((9, _meta("position", a.pair, b.pair, related=related)["prompt"]))
    weights, prompts = zip(*options)
    return rng.choices(prompts, weights)[0]


# --- questions --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class QA:
    question: str
    answer: str
    kind: str                              # exist, count, color, shape or relation


def _matches(words, o):
    """Whether an object is what `words` ("circle", "red object", "red circle", "object") names."""
    return all(word in (o.shape, o.color, "object") for word in words.split())


def exist_question(words: str) -> str:
    """ "is there a red circle?" """
    return f"is there {'an' if words[0] in 'aeiou' else 'a'} {words}?"


def questions(scene: Scene, rng: random.Random, allow_unseen: bool = False) -> list:
    """One or more questions of each kind the scene allows, in random order."""
    may_name = PAIRS if allow_unseen else SEEN
    named = [o for o in scene.objects if o.pair in may_name]
    names = {"pair": [f"{color} {shape}" for color, shape in may_name], "shape": list(SHAPES),
             "color": [f"{color} object" for color in COLORS]}
    found = []

    # existence: balanced yes and no; half of the "no" share color or shape with something present
    for want in rng.sample(("yes", "no"), 2):
        pool = names[rng.choices(("pair", "shape", "color"), (4, 1, 1))[0]]
        fits = [w for w in pool if any(_matches(w, o) for o in scene.objects) == (want == "yes")]
        close = [w for w in fits if any(set(w.split()) & {o.color, o.shape} for o in scene.objects)]
        if want == "no" and close and rng.random() < 0.5:
            fits = close
        if fits:
            found.append(QA(exist_question(rng.choice(fits)), want, "exist"))

    # counts: mostly of something present, else anything (so often "zero")
    present = [w for group in names.values() for w in group if any(_matches(w, o) for o in scene.objects)]
    anything = rng.choice(list(names.values())) if rng.random() < 0.3 else present + ["object"]
    for words in dict.fromkeys((rng.choice(present + ["object"]), rng.choice(anything))):
        count = sum(_matches(words, o) for o in scene.objects)
        found.append(QA(f"how many {_plural(words)} are there?", NUMBERS[count], "count"))

    # the color of what its shape alone tells apart, the shape of what its color does
    for o in named:
        if sum(other.shape == o.shape for other in scene.objects) == 1:
            found.append(QA(f"what color is the {o.shape}?", o.color, "color"))
        if sum(other.color == o.color for other in scene.objects) == 1:
            found.append(QA(f"what shape is the {o.color} object?", o.shape, "shape"))

    # relations, asked both ways: yes or no, and by name. half of the "no" ask for the opposite, the likeliest mistake
    facts = [(a, r, b) for a, r, b in _facts(scene) if a in named and b in named]
    if facts:
        a, related, b = rng.choice(facts)
        want = rng.choice(("yes", "no"))
        if want == "no":
            wrong = [r for r in RELATIONS if r != related]
            related = OPPOSITE[related] if rng.random() < 0.5 else rng.choice(wrong)
        found.append(QA(f"is the {a.color} {a.shape} {related} the {b.color} {b.shape}?", want, "relation"))
        a, related, b = rng.choice(facts)
        found.append(QA(f"where is the {a.color} {a.shape} relative to the {b.color} {b.shape}?", f"{related} it",
                        "relation"))
    rng.shuffle(found)
    return found


def _normal(answer):
    """The words of an answer; digits as number words."""
    words = re.sub(r"[^a-z0-9 ]", " ", answer.lower()).split()
    return [NUMBERS[int(w)] if w.isdigit() and int(w) < len(NUMBERS) else w for w in words]


def is_right(answer_text: str, qa: QA) -> bool:
    """Lenient about case, dots, spaces and digits; strict about content."""
    return _normal(answer_text) == _normal(qa.answer)


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.world.language", description=__doc__)
    parser.add_argument("--out", default="shapes.png", help="the picture to write (default shapes.png)")
    out = check_output(parser.parse_args(argv).out, "--out", (".png",))
    rng, tiles = random.Random(0), []
    for layout in ("board", "free"):
        scenes = [random_scene(rng, layout=layout) for _ in range(8)]
        tiles += [Image.fromarray(render(scene, 96)) for scene in scenes]
        for scene in scenes[:4]:
            print(f"{caption(scene, rng)}\n    draw: {draw_prompt(scene, rng)}\n    text: {describe(scene, rng)}")
            for qa in questions(scene, rng)[:3]:
                print(f"    {qa.question} {qa.answer}")
    write_bytes(out, file_bytes(grid(tiles, 8, gap=0)))
    print(f"wrote {out}")


if __name__ == "__main__":
    run_main(main)
