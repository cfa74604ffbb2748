"""Conversations about a scene of the shapes world: questions that go on from one another.

"what color is the circle?", "and the square?", "where is it?": the same about something else, or something else about
the same. The answer and the look of each question are right without what was said before.
"""
import random
from dataclasses import replace

from .language import place_of
from .phrases import SORRY, outside
from .questions import QA, either, look, questions
from .shapes import SEEN, Scene

# how long a kind waits for its turn, 1 if it is not here: what waits longer comes more seldom
WAIT = {"relation": 0.35, "where": 0.45, "locate": 1.5, "place": 1.3, "exist": 1.3, "side": 0.6, "empty": 1.5}
AND = ("and {subject}?", "what about {subject}?", "how about {subject}?")      # the same about something else
IT = {"color": ("what color is it?", "which color does it have?", "its color?", "what is its color?", "is it {two}?"),
      "place": ("where is it?", "its place?", "and where is it?", "where?"),
      "shape": ("what shape is it?", "which shape does it have?", "its shape?"),
      "is color": ("is it {color}?", "is its color {color}?", "it is {color}, right?")}


def dialogue(scene: Scene, rng: random.Random, n: int, ways: str = "training") -> list:
    """At most n questions, as people ask one after the other: some go on from the one before ("and the square?",
    "what color is it?"). ways: as of `questions`."""
    asked = sorted(questions(scene, rng, ways=ways), key=lambda qa: rng.random() * WAIT.get(qa.kind, 1))[:n]
    rng.shuffle(asked)
    talk = asked[:1]
    if ways == "training" and len(scene.objects) == 1 and rng.random() < 0.3:        # what else could "it" be
        talk = [rng.choice(about_it(scene.objects[0], "", [], scene, rng))]
    for qa in asked[1:]:
        if len(talk) < n and rng.random() < 0.4 and (more := follow_ups(talk, scene, rng, ways)):
            talk.append(rng.choice(more))
        if len(talk) < n and not was_asked(qa.kind, qa.name, qa.about, talk):
            talk.append(qa)
    return talk


def was_asked(kind, name, about, talk):
    """Whether a talk has had a question of this kind that looks for this name or is about this object."""
    return any(qa.kind == kind and (qa.name == name or about and qa.about is about) for qa in talk)


def follow_ups(talk, scene, rng, ways):
    """Questions that go on from the last one of a talk, and that it has not had: the same about something else ("and
    the square?"), and others about the same object ("where is it?"). ways: as of `questions`."""
    last, found = talk[-1], []
    for qa in questions(scene, rng, ways=ways, same=last.asked_for):
        if (qa.kind == last.kind and qa.subject and qa.asked_for == last.asked_for and
                not was_asked(qa.kind, qa.name, qa.about, talk) and
                (qa.kind == "shape" or not qa.subject.startswith("the shape "))):     # which would ask for the shape
            way = rng.choice(AND[:2] if qa.kind in ("exist", "count") else AND)       # "how about a ring?" is a wish
            found.append(replace(qa, question=way.format(subject=qa.subject)))
    if last.about and last.kind in ("exist", "what", "color", "shape", "place"):
        found += [qa for qa in about_it(last.about, last.name, talk, scene, rng) if qa.answer not in last.question]
    if ways == "training":                                       # typed without a question mark
        found = [replace(qa, question=qa.question.rstrip("?")) if rng.random() < 0.3 else qa for qa in found]
    return found


def about_it(o, name, talk, scene, rng):
    """Questions about "it", the object that the last question called `name` ("" where it is the only object), of kinds
    that a talk has not had."""
    found = []
    for kind, answer in ("color", o.color), ("shape", o.shape), ("place", place_of(o)):
        if answer not in name and not was_asked(kind, name, o, talk):
            question = rng.choice(IT[kind]).format(two=either(o.color, rng))
            found.append(QA(question, answer, kind, look(scene, (name, [o])), o, name=name))
    is_alone = [other.shape for other in scene.objects].count(o.shape) == 1
    was_said = o.color in name or any(was_asked(kind, "", o, talk) for kind in ("what", "color", "is color"))
    if is_alone and o.pair in SEEN and not was_said:
        is_so = rng.random() < 0.5
        color = o.color if is_so else rng.choice([c for c, shape in SEEN if shape == o.shape and c != o.color])
        what = f"{color} {o.shape if name else 'object'}"                # nobody has said what the only object is
        found.append(QA(rng.choice(IT["is color"]).format(color=color), "yes" if is_so else "no", "is color",
                        look(scene, (what, [o] * is_so)), o, name=what, asked_for=color))
    return found


def sorry(rng: random.Random, held_out: bool = False) -> QA:
    """A question that the world has no answer to."""
    while True:
        text, is_request = outside(rng, held_out)
        if not is_request:
            return QA(text, SORRY, "outside")
