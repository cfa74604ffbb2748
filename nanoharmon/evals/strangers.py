"""What a stranger types: questions and wishes in the words of someone who never saw how training puts them.

    python -m nanoharmon.evals.strangers           a table and all that went wrong, in half a minute of one core

They stand in strangers.txt, written by someone who played thirty people and was told what the world has, but shown none
of its texts: 150 questions, a third of them after others ("and the square?"), and 100 wishes, 20 of them for what the
world has not. (Once training learns from what is in such a file, it takes other lines by someone else: these are the
third ones.) As in chat.py, wish_in decides what is a wish. A question is right if it is taken for one, and the reply
is one of the answers beside it. A wish is right if a perfect picture of the thought would be; one that cannot be drawn,
if it is refused, or taken for a question, which chat.py refuses where there is no picture.

Simplified: every object lies in the middle of its place; thoughts are judged, not drawings; nobody says "again", or
wishes to change a picture.
"""
import json
from pathlib import Path

import torch

from ..cli import Parser, model_flags, run_main
from ..pipeline import load_pipeline
from ..tokenizer import REFUSAL
from ..wishes import wish_in
from ..words import put_right
from ..world import language
from ..world.questions import QA, is_right
from .geneval import said_right
from .reading import by_kind
from .report import markdown
from .talking import talk_about, think_all, told


def read_lines():
    """[(Scene, turns of a talk, QAs with the right answers to the last one)], [(wish, metadata of it)]"""
    asked, wished = [], []
    for line in Path(__file__).with_name("strangers.txt").read_text(encoding="utf-8").splitlines():
        match line.split("\t"):
            case described, turns, answers:
                scene = language.parse_description(described)
                all_of_it = {"CAPTION": QA("", language.inventory(scene), "caption"),
                             "LOCATE": QA("", language.locate(scene), "locate")}
                right = [all_of_it.get(answer, QA("", answer, "")) for answer in answers.split("|")]
                asked.append((scene, turns.split(" || "), right))
            case wish, meta:
                wished.append((wish, {"tag": "wish", "prompt": wish, **json.loads(meta)}))
    return asked, wished


def answer_of(pipe, scene, turns):
    """The model's answer to the last turn of a talk about a picture; "" if that is taken for a wish."""
    talk, said = talk_about(pipe, scene), ""
    for words in (put_right(pipe.meta, turn) for turn in turns):
        said = "" if wish_in(words) else told(talk, words)
    return said


def is_understood(thought, meta):
    """Whether a thought, "" if there was no wish, is what the metadata ask for."""
    if "refuse" in meta:
        return not thought or thought.startswith(REFUSAL)
    return said_right(thought, meta)


def strangers(pipe, seed=0):
    """{kind of line: rate, "overall"}, [(what was typed, what came of it) of all that went wrong]"""
    (asked, wished), rows = read_lines(), []                     # rows: kind, typed, what came of it, right or not
    for scene, turns, right in asked:
        said = answer_of(pipe, scene, turns)
        kind = "questions, alone" if len(turns) == 1 else "questions, after others"
        rows.append((kind, " || ".join(turns), said, any(is_right(said, qa) for qa in right)))
    wishes = [wish_in(put_right(pipe.meta, typed)) for typed, _ in wished]       # "" of what is taken for a question
    thoughts = iter(think_all(pipe, list(filter(None, wishes)), seed))
    for (typed, meta), wish in zip(wished, wishes):
        thought = wish and next(thoughts)
        kind = "wishes for what the world has not" if "refuse" in meta else "wishes"
        rows.append((kind, typed, thought, is_understood(thought, meta)))
    return by_kind([(kind, right) for kind, *_, right in rows]), [row[1:3] for row in rows if not row[3]]


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.evals.strangers", description=__doc__)
    model_flags(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)                                     # as in evaluate: what is said depends on it
    rates, wrong = strangers(load_pipeline(args.ckpt, args.device, args.dtype), args.seed)
    print(f"right, %\n\n{markdown({kind: {'right': value} for kind, value in rates.items()})}\nwrong:")
    print(*(f"  {typed}  ->  {came or '(taken for the other)'}" for typed, came in wrong), sep="\n")


if __name__ == "__main__":
    run_main(main)
