"""Questions about a scene of the shapes world with their answers.

Every answer is true by construction. Questions are asked in the ways of phrases.py: in the plain one, as training mixes
them, or in ways that training never uses. Unless asked to, no question names a pair of `UNSEEN`, but
"is the ring red or orange?" may offer one.

Beside an answer stands what to look at first (`look`): what the question names, in plain words, then the places of the
picture in reading order, each with whether this is it, until that is found. Some kinds go on:

    count                    to the last place, counting: "one", "two" instead of "yes"
    relation, where          until two things are found; then the second's sides: "left of no, ..., below yes"
    is place, is count       with where it is, or how many, and whether that is so: "at the top no", "two yes"
    what, side               each place with whether it is meant, then what is there: "at the top no a red ring"
    exist at, empty          as those, then whether that is what was asked for: "ring: red ring yes"

So at each word there is one thing to find out. The answer can be read off the last words.

Sides are meant as people mean them: what is one row higher is above, also when it is two columns to the left. (A prompt
to draw is stricter: shapes.py, `relation`.) Where that could be argued about, on other boards than 3x3, nobody asks.
"""
import random
import re
from dataclasses import dataclass

from ..tokenizer import LOOK
from .language import (CELLS, NAMED, NUMBERS, OPEN, inventory, locate, objects_in, parse_location, phrase, place_of,
                       plural, reading_order)
from .phrases import PLACE_WAYS, QUESTIONS, RELATION_WAYS, SORRY, casual, choose
from .shapes import COLORS, OPPOSITE, PAIRS, RELATIONS, SEEN, SHAPES, Object, Scene

NOUNS = (*OPEN, "one")                                            # of what is named by its color alone
KINDS = ("exist", "none", "exist at", "empty", "count", "is count", "color", "shape", "is color", "is not color",
         "relation", "where", "side", "place", "is place", "what", "locate", "caption")
# kinds that are not asked in the plain way; and which gap of a pattern is QA.subject
NOT_PLAIN = ("none", "exist at", "empty", "is count", "is color", "is not color", "side", "is place")
FAR, NEAR = 1 / 6, 1 / 12                                         # of the picture's side: surely another row, the same
SUBJECT = {"color": "the", "shape": "the", "place": "the", "what": "place", "exist": "a", "count": "s",
           "is color": "the", "exist at": "place", "empty": "place"}
DIRECTIONS = ("left of", "right of", "above", "below", "above and left of", "above and right of",
              "below and left of", "below and right of")


@dataclass(frozen=True)
class QA:
    question: str
    answer: str
    kind: str                              # one of KINDS, or "outside"
    look: str = ""                         # what is seen first; "" = there is nothing to look for
    about: Object | None = None            # the only object that is asked about
    other: Object | None = None            # that it is compared with
    name: str = ""                         # what is looked for first, as the look calls it
    subject: str = ""                      # what "and {subject}?" would ask the same about, in the question's words
    asked_for: str = ""                    # the color, or thing, that is asked for: what that would leave as it is

    @property
    def reply(self) -> str:
        """The answer after what is looked at for it: "look: cross: at the top a red ring no, in the middle a blue cross
        yes. blue"."""
        return f"{LOOK} {self.look}. {self.answer}" if self.look else f"{LOOK} {self.answer}"


def sides(a: Object, b: Object) -> list | None:
    """Where `a` is as seen from `b`: ["above"], ["above", "left of"], ...; None when it is too close to say."""
    found = []
    for d, before, after in ((a.y - b.y, "above", "below"), (a.x - b.x, "left of", "right of")):
        if NEAR < abs(d) < FAR:
            return None
        if abs(d) >= FAR:
            found.append(before if d < 0 else after)
    return found or None


def look(scene: Scene, *targets, count: bool = False) -> str:
    """What is looked for, and what is where, in reading order, until it is met: (name, its objects) for each target,
    with "; " between; all that is there when it has no name. count: all are met, and counted.

    "cross: at the top a red ring no, in the middle a red cross yes". Whether this is it stands right behind the word
    that decides: so that nothing is compared but two words. A color that does is said again, "blue cross: at the top a
    red cross red no, in the middle a red ring no"; where a place or a side does, the object comes last, "at the left:
    at the top no a red ring".
    """
    looks = []
    for name, wanted in targets:
        seen, met, named = [], 0, set(name.split())
        for o in sorted(scene.objects, key=reading_order):
            met += o in wanted
            verdict = "no" if o not in wanted else NUMBERS[met] if count else "yes"
            if named & set(COLORS) and not named & set(SHAPES) - {o.shape}:
                verdict = f"{o.color} {verdict}"
            words = [place_of(o), phrase(*o.pair)]
            if name:
                words.insert(1 if name in CELLS or name in RELATIONS else 2, verdict)
            seen.append(" ".join(words))
            if verdict.endswith("yes"):
                break
        looks.append(f"{name}: {', '.join(seen)}" if name else ", ".join(seen))
    return "; ".join(looks)


def matches(words: str, o: Object) -> bool:
    """Whether an object is what `words` ("circle", "red object", "red circle", "thing") names."""
    return all(word in (o.shape, o.color, *NOUNS) for word in words.split())


def names(o: Object, scene: Scene, may_name=SEEN) -> list:
    """All words that name this object of the scene and no other one. The shape alone comes most often: by their color
    things are found much sooner (docs/LOG.md)."""
    words = [o.shape] * 3 + [f"{o.color} object"] + ([" ".join(o.pair)] * 2 if o.pair in may_name else [])
    return [w for w in words if sum(matches(w, other) for other in scene.objects) == 1]


def reaches(o: Object, place: str) -> bool:
    """Whether some of an object lies in a ninth of the picture."""
    return all(abs(at - (cell + 0.5) / 3) < o.r + 1 / 6 for at, cell in zip((o.x, o.y), CELLS[place]))


def alone_at(place: str, scene: Scene) -> list | None:
    """[the only object at a place], [] where there is none; None where that could be argued about: at the top left is
    at the top, too."""
    here = [o for o in scene.objects if reaches(o, place) or set(place.split()) <= set(place_of(o).split())]
    return here if [place_of(o) for o in here] in ([], [place]) else None


def either(color: str, rng: random.Random) -> str:
    """ "red or blue": a color and another one."""
    return " or ".join(rng.sample((color, rng.choice([c for c in COLORS if c != color])), 2))


def questions(scene: Scene, rng: random.Random, allow_unseen: bool = False, ways: str = "plain",
              same: str = "") -> list:
    """One or more questions of each kind that the scene allows, in random order. ways: "plain", "training" (all that
    training uses), "held out". same: what is asked for again, where the kind has that (QA.asked_for)."""
    may_name = PAIRS if allow_unseen else SEEN
    pool = {"pair": [f"{color} {shape}" for color, shape in may_name], "shape": list(SHAPES),
            "color": [f"{color} object" for color in COLORS]}
    there = {w: [o for o in scene.objects if matches(w, o)] for w in (*sum(pool.values(), []), "object")}
    called = {o: names(o, scene, may_name) for o in scene.objects}           # by words that fit no other one
    found = []

    def add(kind, answer, about=None, second=None, targets=None, name="", compared="", asked_for="", **words):
        """words: what stands in the gaps of the patterns, in plain words. What is looked for is called as in them, or
        `name`, and is one of each of `targets`: if none are given, `about` and `second`."""
        gaps = "thing", "place", "the", "other", "rel"
        sought = [name] if name else [words[gap].removeprefix("the ") for gap in gaps if gap in words] or [""]
        if ways != "plain":
            for gap, options in ("rel", RELATION_WAYS), ("place", PLACE_WAYS):
                if gap in words:
                    words[gap] = choose(options[words[gap]], rng, ways == "held out")
            words = {gap: w.replace("object", rng.choice(OPEN if w == "object" else NOUNS)) for gap, w in words.items()}
        if "thing" in words:
            words |= {"a": phrase(None, words["thing"]), "s": plural(words["thing"])}
        if kind == "color":
            words["two"] = either(answer, rng)
        if kind == "empty":                                        # "at the top": "the top"
            place = words["place"] if words["place"].count("the ") == 1 else name
            words["spot"] = place[place.index("the "):]
        options = QUESTIONS[kind]
        if kind == "shape" and name in CELLS:                      # "what is the object at the top?" asks for more
            options = tuple([way for way in part if "shape" in way] for part in options)
        way = options[0][0] if ways == "plain" else choose(options, rng, ways == "held out")
        text = way.format(**words)
        if ways == "training":
            text = casual(text, rng)
        elif ways == "held out" and rng.random() < 0.3:
            text = text.rstrip("?.")
        targets = targets or [[o] for o in (about, second) if o] or [[]]
        looks = look(scene, *zip(sought, targets), count=kind.endswith("count")) + f"; {compared}" * bool(compared)
        subject = words.get(SUBJECT.get(kind), "")
        found.append(QA(text, answer, kind, looks, about, second, sought[0], subject, asked_for))

    # existence: balanced yes and no; half of the "no" share color or shape with something present
    wants = [("exist", want) for want in rng.sample((True, False), 2)]
    if ways != "plain":
        wants.append(("none", rng.random() < 0.5))
    for kind, want in wants:
        group = pool[rng.choices(("pair", "shape", "color"), (4, 1, 1))[0]]
        fits = [w for w in group if bool(there[w]) == want]
        close = [w for w in fits if any(set(w.split()) & {o.color, o.shape} for o in scene.objects)]
        if not want and close and rng.random() < 0.5:
            fits = close
        if fits:
            words = rng.choice(fits)
            add(kind, "yes" if want == (kind == "exist") else "no",
                there[words][0] if len(there[words]) == 1 else None, targets=[there[words]],
                name=f"no {words}" if kind == "none" else words, thing=words)

    # counts: mostly of something present, else anything (so often "zero")
    present = [w for w in there if there[w]]
    anything = rng.choice(list(pool.values())) if rng.random() < 0.3 else present
    for words in dict.fromkeys((rng.choice(present), rng.choice(anything))):
        add("count", NUMBERS[len(there[words])], targets=[there[words]], thing=words)
    few = [w for w in there if 0 < len(there[w]) < 4]
    if few and ways != "plain":                                  # "two" of three could be argued about: nobody asks
        words = rng.choice([w for w in few if len(there[w]) > 1] or few)
        n, is_so = len(there[words]), len(there[words]) > 1 and rng.random() < 0.6
        answer = "yes" if is_so else "no"
        asked = NUMBERS[n if is_so else rng.randint(max(2, n + 1), 4)]
        add("is count", answer, targets=[there[words]], compared=f"{NUMBERS[n]} {answer}", thing=words, n=asked)

    # the color of what its shape alone tells apart, the shape of what its color does
    for o in scene.objects:
        if len(there[o.shape]) == 1:
            add("color", o.color, o, the=f"the {o.shape}")
            if o.pair in may_name and ways != "plain":
                other = o.color if rng.random() < 0.5 else rng.choice([c for c, s in may_name
                                                                       if s == o.shape and c != o.color])
                other = same if (same, o.shape) in may_name else other
                is_so, kind = other == o.color, rng.choice(("is color", "is color", "is not color"))
                name = f"{'not ' * (kind == 'is not color')}{other} {o.shape}"   # the only one: if met, it is so
                add(kind, "yes" if is_so == (kind == "is color") else "no", o, targets=[[o] * is_so], name=name,
                    asked_for=other, the=f"the {o.shape}", color=other)
        if len(there[f"{o.color} object"]) == 1:
            add("shape", o.shape, o, the=f"the {o.color} object", hue=o.color)
        if called[o]:
            words = " ".join(o.pair) if ways == "plain" and " ".join(o.pair) in called[o] else rng.choice(called[o])
            add("place", place_of(o), o, the=f"the {words}")

    if ways != "plain" and any(called.values()):
        o = rng.choice([o for o in scene.objects if called[o]])
        is_so, words, here = rng.random() < 0.5, rng.choice(called[o]), place_of(o)
        answer = "yes" if is_so else "no"                        # at the top left is at the top, in a way: nobody asks
        place = here if is_so else rng.choice([p for p in CELLS if not set(p.split()) <= set(here.split())])
        add("is place", answer, o, name=words, compared=f"{here} {answer}", the=f"the {words}", place=place)

    # relations, asked both ways: yes or no, and by name. half of the "no" ask for the opposite, the likeliest mistake
    pairs = [(a, b, s) for a in scene.objects for b in scene.objects if a is not b and (s := sides(a, b))
             and called[a] and called[b]]
    for kind in ("relation", "where") if pairs else ():
        a, b, side = rng.choice(pairs)
        compared = ", ".join(f"{r} {'yes' if r in side else 'no'}" for r in RELATIONS)
        words = [[" ".join(o.pair)] if ways == "plain" and " ".join(o.pair) in called[o] else called[o] for o in (a, b)]
        the, other = (f"the {rng.choice(w)}" for w in words)
        if kind == "where":
            add("where", " and ".join(side) + " it", a, b, compared=compared, the=the, other=other)
            continue
        is_so, related = rng.random() < 0.5, rng.choice(side)
        if not is_so:
            related = OPPOSITE[related] if rng.random() < 0.5 else rng.choice([r for r in RELATIONS if r not in side])
        answer = "yes" if is_so else "no"
        add("relation", answer, a, b, compared=f"{compared}; {related} {answer}", the=the, other=other, rel=related)

    # what is on a side of something: of one thing at most, mostly of one. Where that could be argued about nobody asks
    around = {b: [(o, sides(o, b)) for o in scene.objects if o is not b] for b in scene.objects if called[b]}
    sided = [(b, r, near) for b, others in around.items() if others and all(s for _, s in others) for r in RELATIONS
             if len(near := [o for o, s in others if r in s]) < 2 and all(o.pair in may_name for o in near)]
    if sided and ways != "plain":
        b, related, near = rng.choice([side for side in sided if side[2] or rng.random() < 0.1] or sided)
        add("side", phrase(*near[0].pair) if near else "nothing", b, targets=[[b], near], rel=related,
            other=f"the {rng.choice(called[b])}")

    # what is at a place: mostly a taken one. On a 3x3 board each object keeps to a place of its own; elsewhere two may
    # share one, or one reach into others: there nobody asks
    taken = {place_of(o) for o in scene.objects}
    place = rng.choice(sorted(taken) if rng.random() < 0.75 else list(CELLS))
    here = alone_at(place, scene)
    if here == []:
        add("what", "nothing", place=place)
    elif here:
        if here[0].pair in may_name:
            add("what", phrase(*here[0].pair), here[0], place=place)
        if ways != "plain":
            kind, words = rng.choice(("color", "shape")), choose(PLACE_WAYS[place], rng, ways == "held out")
            noun = rng.choice(("object", here[0].shape)) if kind == "color" else "object"
            add(kind, getattr(here[0], kind), here[0], name=place, the=f"the {noun} {words}")

    # whether this, or nothing, is at a place. half of the "no" share color or shape with what is there, or elsewhere
    place = rng.choice(sorted(taken) if rng.random() < 0.5 else list(CELLS))
    here = alone_at(place, scene)
    if ways != "plain" and here is not None:
        fits = [w for group in pool.values() for w in group if matches(w, here[0])] if here else []
        others = [w for group in pool.values() for w in group if w not in fits]
        close = [w for w in others if any(set(w.split()) & {*o.pair} for o in here or scene.objects)]
        words = rng.choice(fits if fits and rng.random() < 0.6 else close if rng.random() < 0.5 else others)
        if same or rng.random() < 0.2:
            words = same if same in there else "anything"
        answer = "yes" if here and (words == "anything" or matches(words, here[0])) else "no"
        seen = " ".join(here[0].pair) if here else "nothing"
        add("exist at", answer, targets=[here], name=place, compared=f"{words}: {seen} {answer}", asked_for=words,
            place=place, a=words if words == "anything" else phrase(None, words))
        answer = "no" if here else "yes"
        add("empty", answer, targets=[here], name=place, compared=f"empty: {seen} {answer}", place=place)

    if all(o.pair in may_name for o in scene.objects):
        add("caption", inventory(scene))
        if len(taken) == len(scene.objects):
            add("locate", locate(scene))
    rng.shuffle(found)
    return found


# --- judging ----------------------------------------------------------------------------------------------------------

def normal(answer: str) -> list:
    """The words of an answer; digits as number words."""
    words = re.sub(r"[^a-z0-9 ]", " ", answer.lower()).split()
    return [NUMBERS[int(w)] if w.isdigit() and int(w) < len(NUMBERS) else w for w in words]


def is_right(answer_text: str, qa: QA) -> bool:
    """Lenient about case, dots, spaces and digits, and about the order in which objects are listed; strict about
    content."""
    if qa.kind == "caption":
        return objects_in(answer_text) == objects_in(qa.answer)
    if qa.kind == "locate":
        return parse_location(answer_text) == parse_location(qa.answer)
    return normal(answer_text) == normal(qa.answer)


ANSWERS = {" ".join(normal(a)) for a in ("yes", "no", "nothing", *NUMBERS, *COLORS, *SHAPES, *CELLS, SORRY, *NAMED,
                                         *(f"{d} it" for d in DIRECTIONS))}


def is_sentence(reply: str) -> bool:
    """Whether a reply is one that the world's language has, right or wrong: the grammar check of the benchmarks."""
    return " ".join(normal(reply)) in ANSWERS or objects_in(reply) is not None or parse_location(reply) is not None
