"""What can be said about a scene of the shapes world: captions, descriptions of what is where, and thoughts.

Everything here is true by construction, and can be checked: `parse_caption` inverts `caption`, `parse_description`
`describe`, `parse_location` `locate`. Prompts to draw are in prompts.py, questions in questions.py.

Everything random is drawn from `rng`, in a fixed order: a change of that order changes all training batches.

Simplified: `describe` names nine places, which decide all relations on a 3x3 board, not in layout `free`.
"""
import random
import re
from collections import Counter
from dataclasses import replace
from itertools import permutations

from .shapes import COLORS, PAIRS, Object, Scene, relation

NUMBERS = ("zero", "one", "two", "three", "four")


# --- captions ---------------------------------------------------------------------------------------------------------

def phrase(color: str | None, shape: str, count: int = 1, one: str = "a") -> str:
    """ "a red circle", "three green crosses", without a color "a circle"; `one`: a, one or the."""
    words = f"{color} {shape}" if color else shape
    if count > 1:
        return f"{NUMBERS[count]} {plural(words)}"
    if one == "a" and words[0] in "aeiou":
        one = "an"
    return f"{one} {words}"


def plural(words: str) -> str:
    """ "red circles", "crosses". """
    return words + ("es" if words.endswith("cross") else "s")


def listing(items: list) -> str:
    """ "x", "x and y", "x, y and z"."""
    return " and ".join([", ".join(items[:-1])] * (len(items) > 1) + items[-1:])


PREFIXES = ("there {be}", "a picture of", "a photo of", "an image of", "the picture shows", "i see")
PREFIX = re.compile(f"^({'|'.join(PREFIXES)}) ".replace("{be}", "(is|are)"))
RELATED = re.compile(r"^(.+?) (?:is )?(?:to the )?(left of|right of|above|below) (.+)$")
# every way to name some objects -> (pair, count): so few that a caption is parsed by looking its phrases up
NAMED = {phrase(*pair, count, one): (pair, count)
         for pair in PAIRS for count, one in ((1, "a"), (1, "one"), (2, ""), (3, ""), (4, ""))}
THE = {phrase(*pair, one="the"): pair for pair in PAIRS}


def facts_of(scene):
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
    facts, are_many = facts_of(scene), kinds[0][1] > 1
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
    return f"{rng.choice(PREFIXES)} {text}".format(be="are" if are_many else "is")


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


def objects_in(text: str) -> Counter | None:
    """The objects that a caption names, its relations left out; None for nonsense."""
    parsed = parse_caption(text)
    return parsed and parsed[0]


def caption_is_right(text: str, scene: Scene) -> bool:
    """Every object, count, color and stated relation is right, and nothing is left out."""
    parsed = parse_caption(text)
    if parsed is None or parsed[0] != Counter(o.pair for o in scene.objects):
        return False
    facts = {(a.pair, r, b.pair) for a, r, b in facts_of(scene)}
    return all(stated in facts for stated in parsed[1])


# --- descriptions: what is where --------------------------------------------------------------------------------------

PLACES = (("at the top left", "at the top", "at the top right"),
          ("at the left", "in the middle", "at the right"),
          ("at the bottom left", "at the bottom", "at the bottom right"))
CELLS = {place: (x, y) for y, line in enumerate(PLACES) for x, place in enumerate(line)}


def describe(scene: Scene, rng: random.Random) -> str:
    """Says what is where: "a red circle at the top and a blue ring in the middle". Answers all questions about a board
    scene (texts for the LLM say the same by `locate`). As a prompt it is the clearest lesson in which goes where."""
    objects = list(scene.objects)
    rng.shuffle(objects)
    return listing([_placed(o) for o in objects])


def place_of(o: Object) -> str:
    """ "at the top left": the ninth of the picture that an object is in."""
    return PLACES[int(o.y * 3)][int(o.x * 3)]


def _placed(o):
    return f"{phrase(*o.pair)} {place_of(o)}"


def reading_order(o):
    return int(o.y * 3), int(o.x * 3)


def inventory(scene: Scene) -> str:
    """What is there, in reading order: "a red circle and two blue squares". It answers "describe the image."."""
    objects = sorted(scene.objects, key=reading_order)
    return listing([phrase(*pair, count) for pair, count in Counter(o.pair for o in objects).items()])


def locate(scene: Scene) -> str:
    """What is where, place by place: "at the top left a red circle and in the middle a blue ring". It answers "say what
    is where.": the place comes first, so that at each word there is one thing to look for, and in one place."""
    return listing([f"{place_of(o)} {phrase(*o.pair)}" for o in sorted(scene.objects, key=reading_order)])


LOCATED = re.compile(r"^((?:at|in) the [a-z ]+?) an? (\w+) (\w+)$")


def parse_location(text: str) -> dict | None:
    """The inverse of `locate`: {place: (color, shape)}; None for nonsense, or two at one place."""
    found = {}
    for item in re.split(", | and ", " ".join(text.lower().split()).rstrip(" .")):
        place, *pair = match.groups() if (match := LOCATED.match(item)) else ("", "", "")
        if tuple(pair) not in PAIRS or place not in CELLS or place in found:
            return None
        found[place] = tuple(pair)
    return found


PLACED = re.compile(r"^an? (\w+) (\w+) (.+)$")


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


OPEN = ("thing", "object", "shape")                              # nouns that leave the shape open: "a red thing"
# of a prompt about one, three or four objects; where the second of two is, is said in more ways
SAYS_WHERE = re.compile("left|right|top|bottom|upper|lower|middle|cent|above|below")


def mentioned(scene: Scene, prompt: str) -> list:
    """The objects in the order in which a prompt names them, after those that it does not name; alike ones in reading
    order."""
    def order(o):
        behind = [f"{shape} {link} {o.color}" for shape in (o.shape, plural(o.shape))
                  for link in ("in", "that is", "that are")]
        names = [f"{o.color} {o.shape}", *behind, *(f"{o.color} {noun}" for noun in OPEN), o.color, o.shape]
        return next((prompt.find(name) for name in names if name in prompt), -1), *reading_order(o)
    return sorted(scene.objects, key=order)


def think(scene: Scene, prompt: str) -> str:
    """What is where, as the LLM says it before it draws the scene: line by line, so that it need not remember which
    places are taken; two objects in the order of the prompt (docs/LOG.md)."""
    objects = mentioned(scene, prompt) if len(scene.objects) == 2 else sorted(scene.objects, key=reading_order)
    return listing([_placed(o) for o in objects])


def arranged(scene: Scene, prompt: str) -> Scene:
    """The scene with its objects line by line in the order in which the prompt names them, where it says no places: so
    its thought need not remember what is left to say."""
    if len(scene.objects) == 2 or SAYS_WHERE.search(prompt):
        return scene
    spots = sorted(scene.objects, key=reading_order)
    return replace(scene, objects=tuple(replace(spot, shape=o.shape, color=o.color, rgb=o.rgb)
                                        for spot, o in zip(spots, mentioned(scene, prompt))))
