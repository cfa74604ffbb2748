"""What a stranger types: questions and wishes in the words of someone who never saw how training puts them.

    python -m nanoharmon.evals.strangers           a table and all that went wrong, in a minute of one core

They stand in strangers.txt, written by someone who played thirty people and was told what the world has, but shown none
of its texts: 238 questions, a third of them after others ("and the square?"), and 200 wishes, 40 of them for what the
world has not. Each goes where chat.py sends it. A question is right if the reply is one of the answers beside it. A
wish is right if a perfect picture of the thought would be; one that cannot be drawn, if it is refused.

Simplified: every object lies in the middle of its place; drawings are not judged, thoughts are.
"""
import json
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from ..cli import Parser, model_flags, run_main
from ..conversation import Conversation
from ..pipeline import load_pipeline
from ..tokenizer import REFUSAL
from ..wishes import wish_in
from ..words import put_right
from ..world import language, shapes
from ..world.judge import judge
from ..world.questions import normal
from .common import batches
from .reading import by_kind
from .report import markdown


def read_lines():
    """[(Scene, turns of a talk, right answers to the last one)], [(wish, GenEval metadata of it)]"""
    lines = Path(__file__).with_name("strangers.txt").read_text(encoding="utf-8").splitlines()
    cells = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return ([(scene_of(c[0]), c[1].split(" || "), c[2].split("|")) for c in cells if len(c) == 3],
            [(c[0], {"tag": "wish", "prompt": c[0], **json.loads(c[1])}) for c in cells if len(c) == 2])


def scene_of(located):
    """A scene of what `language.locate` says."""
    placed = language.parse_location(located)
    return language.parse_description(language.listing([f"{language.phrase(*pair)} {p}" for p, pair in placed.items()]))


def answer_of(pipe, scene, turns):
    """The model's answer to the last turn of a talk about a picture; "" if that is taken for a wish."""
    talk, said = Conversation(pipe), ""
    talk.show(Image.fromarray(shapes.render(scene, pipe.size)), "own.png")
    for words in (put_right(pipe.meta, turn) for turn in turns):
        said = "" if wish_in(words) else talk.answer(words)
    return said


def is_right(said, answers, scene):
    """answers: texts; CAPTION and LOCATE stand for all right ones."""
    right = {"CAPTION": lambda: language.objects_in(said) == Counter(o.pair for o in scene.objects),
             "LOCATE": lambda: language.parse_location(said) == language.parse_location(language.locate(scene))}
    return any(right[a]() if a in right else normal(said) == normal(a) for a in answers)


def is_understood(thought, meta):
    """Whether a thought, "" if there was no wish, is what metadata ask for: "refuse"; "any", whatever their shapes, or
    GenEval's "include"."""
    scene = language.parse_description(thought)
    if meta.get("refuse"):
        return not thought or thought.startswith(REFUSAL)
    if scene is None or "include" in meta:
        return scene is not None and judge(shapes.render(scene, 96), meta)["correct"]
    return Counter(o.color for o in scene.objects) == Counter({item["color"]: item["count"] for item in meta["any"]})


def strangers(pipe):
    """{kind of line: rate, "overall"}, [(what was typed, what came of it) of all that went wrong]"""
    asked, wished = read_lines()
    rows = [("questions, alone" if len(turns) == 1 else "questions, after others", " || ".join(turns), said,
             is_right(said, answers, scene))
            for scene, turns, answers in asked for said in [answer_of(pipe, scene, turns)]]
    wishes = [wish_in(put_right(pipe.meta, wish)) for wish, _ in wished]
    drawn = list(filter(None, wishes))
    thoughts = iter([thought for part in batches(drawn) for thought in pipe.think(list(part), seed=0)])
    for (typed, meta), wish in zip(wished, wishes):
        thought = next(thoughts) if wish else ""
        kind = "wishes for what the world has not" if meta.get("refuse") else "wishes"
        rows.append((kind, typed, thought, is_understood(thought, meta)))
    return by_kind([(kind, right) for kind, *_, right in rows]), [row[1:3] for row in rows if not row[3]]


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.evals.strangers", description=__doc__)
    model_flags(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rates, wrong = strangers(load_pipeline(args.ckpt, args.device, args.dtype))
    print(f"right, %\n\n{markdown({kind: {'right': value} for kind, value in rates.items()})}\nwrong:")
    print(*(f"  {typed}  ->  {came or '(taken for the other)'}" for typed, came in wrong), sep="\n")


if __name__ == "__main__":
    run_main(main)
