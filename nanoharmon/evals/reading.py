"""The reading benchmarks of evaluate.py: yes/no existence (POPE), questions by kind (VQA), captions.

A question with a short answer is scored twice:

    free text     the greedy answer must be right, word for word (case, dots and digits do not matter)
    likelihood    of all answers that a question of this form can have, the model must find the right one likeliest: the
                  log-probability of the whole answer and its end, summed over tokens, not divided by their number

The second asks what a model knows even if it would say it differently. It cannot be compared between kinds: guessing
gets 1 of 2 yes/no questions right, 1 of 7 colors. Captions have no list of answers, so they are free text only. Only
the first may look before it answers (`--look`).
"""
import random

from ..tokenizer import DESCRIBE
from ..world import language, questions, shapes
from .common import batches, fresh_scene, over_processes, rate

SAMPLINGS = ("random", "popular", "adversarial")
TRIES = 50                                  # scenes per question: a world of single objects cannot ask every kind
LONGEST = 128                               # tokens of a reply: two looks at four objects, and the answer
PHRASES = ["nothing", *(language.phrase(*pair) for pair in shapes.PAIRS)]
CANDIDATES = {"exist": ("yes", "no"), "count": language.NUMBERS, "color": tuple(shapes.COLORS), "shape": shapes.SHAPES,
              "relation": ("yes", "no"), "where": [f"{direction} it" for direction in questions.DIRECTIONS],
              "place": list(language.CELLS), "what": PHRASES}
# kinds of questions about all of a scene
OF_ALL = "exist", "none", "exist at", "empty", "count", "is count", "locate", "caption"


# --- asking -----------------------------------------------------------------------------------------------------------

def likeliest(pipe, images, asked, choices, size):
    """The likeliest of its choices for every question."""
    scores = pipe.likelihoods(images, asked, choices, size=size)
    return [max(zip(row, answers), default=(0, None))[1] for row, answers in zip(scores, choices)]


def answer_batch(pipe, scenes, asked, kinds, size, look):
    images = [shapes.render(scene, size) for scene in scenes]
    said = pipe.answers(images, asked, size=size, max_new_tokens=LONGEST, look=look)
    choices = [CANDIDATES.get(kind, ()) for kind in kinds]       # known without the picture; none for a caption
    return list(zip(said, likeliest(pipe, images, asked, choices, size)))


def ask(pipe, rows, size=None, pool=None, progress=None, title="", choose=True, look=None):
    """[(free text, likeliest candidate)] for rows of (scene, question, QA or answer); without `choose` the second is
    None."""
    def kind(truth):
        return getattr(truth, "kind", "exist") if choose else None
    jobs = [([r[0] for r in part], [r[1] for r in part], [kind(r[2]) for r in part], size or pipe.size, look)
            for part in batches(rows)]
    return [a for part in over_processes(answer_batch, pipe, jobs, pool, progress, title) for a in part]


# --- questions and figures --------------------------------------------------------------------------------------------

def pope_questions(pipe, sampling, n, seed, unseen=False):
    """About n (scene, question, "yes" or "no"), half of them "no", both of the same kind of words.

    random: pairs like "red circle". popular: the words true of most training scenes (bare shapes, and colors).
    adversarial: as random, but what is absent shares its color or shape with something present. unseen: pairs that
    training never showed, present or not; else "yes" to every unseen pair would be right.
    """
    pairs = [f"{c} {s}" for c, s in shapes.PAIRS if unseen or (c, s) not in shapes.UNSEEN]
    common = [*shapes.SHAPES, *(f"{color} object" for color in shapes.COLORS)]
    rows, i = [], 0
    while len(rows) < n and i < TRIES * n:
        scene, rng = fresh_scene(pipe, f"{seed}/pope", i, unseen), random.Random(f"eval/{seed}/pope/{sampling}/{i}")
        present = {o.pair for o in scene.objects}
        words = {w: any(set(w.split()) <= {*pair, "object"} for pair in present)
                 for w in (common if sampling == "popular" else pairs)}
        yes, no = ([w for w in words if words[w] == is_there] for is_there in (True, False))
        if unseen and sampling != "popular":
            yes, no = ([w for w in words if tuple(w.split()) in shapes.UNSEEN] for words in (yes, no))
        if sampling == "adversarial":
            no = [w for w in no if any(set(w.split()) & set(pair) for pair in present)]
        if yes and no:
            rows += [(scene, f"is there {language.phrase(None, rng.choice(some))}?", truth)
                     for some, truth in ((yes, "yes"), (no, "no"))]
        i += 1
    return rows


def questions_of(pipe, ways, n, seed, unseen=False):
    """n (scene, question, QA) of each kind, asked in these ways. unseen: about an object of a pair that training never
    showed, or (OF_ALL) about a scene with one."""
    found, i = {kind: [] for kind in questions.KINDS if ways != "plain" or kind not in questions.NOT_PLAIN}, 0
    while min(map(len, found.values())) < n and i < TRIES * n:
        rng = random.Random(f"eval/{seed}/{ways}/{i}")
        scene = fresh_scene(pipe, f"{seed}/questions", i, unseen)
        for qa in questions.questions(scene, rng, unseen, ways):
            is_unseen = qa.kind in OF_ALL or any(o and o.pair in shapes.UNSEEN for o in (qa.about, qa.other))
            if len(found[qa.kind]) < n and (is_unseen or not unseen):
                found[qa.kind].append((scene, qa.question, qa))
        i += 1
    return [row for rows in found.values() for row in rows]


def yes_no_scores(said, truth):
    """POPE's figures. An answer that is neither yes nor no is wrong, and counts as no in precision and recall."""
    said = [" ".join(questions.normal(answer)) for answer in said]
    is_yes, truly = [answer == "yes" for answer in said], [t == "yes" for t in truth]
    precision = rate([t for y, t in zip(is_yes, truly) if y])
    recall = rate([y for y, t in zip(is_yes, truly) if t])
    f1 = 2 * precision["right"] / max(1, precision["n"] + recall["n"])
    return {"accuracy": rate([answer == t for answer, t in zip(said, truth)]), "precision": precision, "recall": recall,
            "f1": f1, "yes_ratio": sum(is_yes) / max(1, len(is_yes))}


def answer_scores(pipe, n=200, seed=0, size=None, unseen=False, benches=("pope", "vqa", "caption"), pool=None,
                  progress=None, look=None):
    """{"pope": {sampling: figures}, "vqa": {kind: rate, "overall"}, "caption": rate}; "likelihood" in the first two.

    pope: n questions per sampling; vqa: n of each kind; caption: n scenes.
    """
    common, out = dict(size=size, pool=pool, progress=progress, look=look), {}
    name = "unseen" if unseen else "seen"
    if "pope" in benches:
        rows = [(*row, s) for s in SAMPLINGS for row in pope_questions(pipe, s, n, seed, unseen)]
        answers, out["pope"] = ask(pipe, rows, title="pope", **common), {}
        for s in SAMPLINGS:
            found = [(*both, row[2]) for both, row in zip(answers, rows) if row[3] == s]
            if not found:        # unseen pairs share no color or shape: beside one object, nothing resembles it
                continue
            said, chosen, truth = zip(*found)
            out["pope"][s] = yes_no_scores(said, truth) | {"likelihood": rate([c == t for c, t in zip(chosen, truth)])}
    if "vqa" in benches:
        rows = questions_of(pipe, "plain", n, f"{seed}/vqa/{name}", unseen)
        answers = ask(pipe, rows, title="vqa", **common)
        out["vqa"] = by_kind([(row[2].kind, questions.is_right(said, row[2])) for (said, _), row in zip(answers, rows)])
        out["vqa"]["likelihood"] = by_kind([(row[2].kind, c == row[2].answer) for (_, c), row in zip(answers, rows)
                                            if row[2].kind in CANDIDATES])
    if "caption" in benches:
        scenes = [fresh_scene(pipe, f"{seed}/vqa", i, unseen) for i in range(n)]
        answers = ask(pipe, [(scene, DESCRIBE, None) for scene in scenes], title="caption",
                      choose=False, **common)
        out["caption"] = rate([language.caption_is_right(said, scene) for (said, _), scene in zip(answers, scenes)])
    return out


def by_kind(hits):
    """{kind: rate, "overall": rate} of [(kind, right or not)]."""
    kinds = sorted({kind for kind, _ in hits})
    return {k: rate([h for kind, h in hits if kind == k]) for k in kinds} | {"overall": rate([h for _, h in hits])}
