"""Do the benchmarks measure the model? Drawing and questions again, without what they are about: only chance is left.

    python -m nanoharmon.evals.controls        a table of the shipped checkpoint, in five minutes of one core

    as it is          pictures judged by the prompt they were drawn for; questions about the picture that is shown
    another one       pictures judged by another prompt of their task; questions about the scene that is asked about
                      next, of which the question may not even make sense
    a blank picture   is shown
    random weights    draw and answer, in a model of the same sizes (which draws the prompt itself)

A model that knows how things are asked, and what is mostly true, may guess: yes or no is right half of the time.
"""
import numpy as np
import torch

from ..cli import Parser, model_flags, number, run_main
from ..harmon import Harmon
from ..pipeline import Pipeline, load_pipeline
from ..world import prompts, questions, shapes
from ..world.judge import judge
from .common import batches, rate
from .reading import ask, by_kind, questions_of
from .report import markdown

COLUMNS = "as it is", "another one", "a blank picture", "random weights"
BLANK = shapes.Scene((), 30)


def drawn(pipe, n, seed=0, **options):
    """Of n prompts per task: the shares of pictures that fit their prompt, and that fit another one of the task."""
    own, others = [], []
    for task in prompts.TASKS:
        metas = prompts.geneval_prompts(task, n, seed)
        pictures = [np.asarray(picture) for part in batches(metas)
                    for picture in pipe.draw([m["prompt"] for m in part], seed=seed, **options)]
        more = metas + prompts.geneval_prompts(task, 3, seed)    # of three prompts one is another
        for i, (meta, picture) in enumerate(zip(metas, pictures)):
            things = {*meta["prompt"].split(" and ")}            # "a ring and a cross" is "a cross and a ring"
            other = next(m for m in metas[i:] + more if {*m["prompt"].split(" and ")} != things)
            own.append(judge(picture, meta)["correct"])
            others.append(judge(picture, other)["correct"])
    return rate(own), rate(others)


def answered(pipe, rows):
    """{kind: rate, "overall"} of (scene that is shown, question, QA)."""
    said = ask(pipe, rows, choose=False)
    return by_kind([(qa.kind, questions.is_right(answer, qa)) for (answer, _), (*_, qa) in zip(said, rows)])


def controls(pipe, n, seed=0):
    """{"drawing" or a kind of question: {column: rate}}"""
    torch.manual_seed(seed)
    untrained = Pipeline(Harmon(pipe.model.config).eval(), pipe.tokenizer, pipe.meta)
    rows = questions_of(pipe, "plain", n, f"{seed}/controls")
    scenes = [scene for scene, *_ in rows]                       # several questions in a row are about the same one
    other = [(next(s for s in scenes[i:] + scenes if s != scene), question, qa)
             for i, (scene, question, qa) in enumerate(rows)]
    blank = [(BLANK, question, qa) for _, question, qa in rows]
    found = [answered(p, r) for p, r in ((pipe, rows), (pipe, other), (pipe, blank), (untrained, rows))]
    rates = {"drawing": (*drawn(pipe, n, seed), None, drawn(untrained, n, seed, think=False)[0]),
             **{f"questions: {kind}": [f[kind] for f in found] for kind in found[0]}}
    return {name: dict(zip(COLUMNS, row)) for name, row in rates.items()}


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.evals.controls", description=__doc__)
    parser.add_argument("--n", type=number(int, 2, 10**5), default=50, help="prompts per task, and questions of each "
                        "kind (default 50)")
    model_flags(parser)
    args = parser.parse_args(argv)
    found = controls(load_pipeline(args.ckpt, args.device, args.dtype), args.n, args.seed)
    print(f"right, %\n\n{markdown(found)}")


if __name__ == "__main__":
    run_main(main)
