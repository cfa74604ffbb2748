"""The benchmarks of talking: other words, conversations, requests and changed parts. evaluate.py runs them.

    phrases   every kind of question and every task, asked in ways that training uses and in ways that it never saw
              (world/phrases.py); requests are judged by what is said before drawing; and what the world does not have:
              wishes and, beside a picture, questions and small talk, told apart as chat.py does
    chat      conversations of eight turns through conversation.py, as chat.py has them: own pictures, two at once,
              drawings, questions that go on from the one before; right by the number of the turn
    edit      one cell of a scene drawn anew (sample.py --region): an object replaced, added, removed

A conversation about a drawing is judged by what the picture shows (judge.py), not by what was asked for.
"""
import random
import tempfile

import numpy as np
from PIL import Image

from ..conversation import Conversation
from ..pipeline import Pipeline
from ..tokenizer import REFUSAL
from ..wishes import wish_in
from ..world import conversations, language, phrases, prompts, questions, shapes
from ..world.judge import detect, judge, judge_scene
from .common import batches, fresh_scene, over_processes, placement, rate
from .geneval import said_right
from .reading import ask, by_kind, questions_of

WAYS = "training", "held out"
TASKS = prompts.TASKS + prompts.OURS
TURNS = 8
EDITS = "replace", "add", "remove"


# --- phrases ----------------------------------------------------------------------------------------------------------

def think_all(pipe, texts, seed, pool=None, progress=None, title=""):
    jobs = [(part, seed + k) for k, part in enumerate(batches(texts))]
    return [said for part in over_processes(Pipeline.think, pipe, jobs, pool, progress, title) for said in part]


def talk_about(pipe, scene, size=None, look=None):
    """A conversation that begins with a picture of the scene."""
    talk = Conversation(pipe, look=look, size=size)
    talk.show(Image.fromarray(shapes.render(scene, size or pipe.size)), "own.png")
    return talk


def phrase_scores(pipe, n=50, seed=0, size=None, pool=None, progress=None, look=None, **_):
    """{"questions, training": {kind: rate, "overall"}, "questions, held out", "requests, plain", ..., "refused": ...};
    n of each kind and task."""
    out = {}
    for ways in WAYS:
        rows = questions_of(pipe, ways, n, seed)
        said = ask(pipe, rows, size, pool, progress, f"phrases, {ways}", choose=False, look=look)
        out[f"questions, {ways}"] = by_kind([(qa.kind, questions.is_right(a, qa)) for (a, _), (*_, qa) in
                                             zip(said, rows)])
    for ways in ("plain", *WAYS):
        metas = [meta for task in TASKS for meta in prompts.geneval_prompts(task, n, seed)]
        rng = random.Random(f"eval/{seed}/requests/{ways}")
        texts = [m["prompt"] if ways == "plain" else prompts.wording(m, rng, ways == "held out") for m in metas]
        said = think_all(pipe, texts, seed, pool, progress, f"requests, {ways}")
        out[f"requests, {ways}"] = by_kind([(m["tag"], said_right(s, m)) for s, m in zip(said, metas)])
        out.setdefault("refused", {})[f"requests, {ways}"] = rate([s.startswith(REFUSAL) for s in said])
    for ways in WAYS:
        rng = random.Random(f"eval/{seed}/outside/{ways}")
        found = [phrases.outside(rng, ways == "held out")[0] for _ in range(4 * n)]
        wishes = list(map(wish_in, found))                       # "" of what is to be answered
        said = think_all(pipe, list(filter(None, wishes)), seed, pool, progress, "outside")
        out["refused"][f"outside, to draw, {ways}"] = rate([s == phrases.SORRY for s in said])
        asked = [text for text, wish in zip(found, wishes) if not wish]          # without a picture chat.py refuses
        said = [talk_about(pipe, fresh_scene(pipe, seed, i), size, look).answer(t) for i, t in enumerate(asked)]
        out["refused"][f"outside, to answer, {ways}"] = rate([s == phrases.SORRY for s in said])
    return out


# --- chat -------------------------------------------------------------------------------------------------------------

def seen_in(picture, said):
    """What a drawing shows, as a scene; what was said where the judge cannot tell."""
    found = detect(np.asarray(picture))
    if not 1 <= len(found) <= 4 or any(o.color is None or o.shape is None for o in found):
        return language.parse_description(said)
    return shapes.Scene(tuple(shapes.Object(o.shape, o.color, o.x, o.y, o.r, ()) for o in found), 30)


def chance(seed, what, i):
    """A seed for the noise of a drawing."""
    return random.Random(f"eval/{seed}/{what}/{i}/noise").getrandbits(30)


def told(talk, words):
    """What the model answers; "" where the conversation is too long for it, which chat.py would say: wrong, and all of
    it is forgotten."""
    try:
        return talk.answer(words)
    except ValueError as e:
        if not str(e).startswith("conversation is"):
            raise
        talk.reset()
        return ""


def one_talk(pipe, seed, i, folder, size, look, options):
    """Yields (number of the turn, kind, right, whether it is a sentence) for each turn of conversation i. folder: for
    its drawings."""
    rng, scene, asked = random.Random(f"eval/{seed}/chat/{i}"), None, []
    talk = Conversation(pipe, folder, chance(seed, "chat", i), look, drawing=options | {"size": size}, size=size)
    for turn in range(TURNS):
        u = rng.random()
        if u < 0.2:                                                          # a drawing; it is talked about next
            meta = rng.choice(prompts.geneval_prompts(rng.choice(TASKS), 100, f"{seed}/chat"))
            words = prompts.wording(meta, rng)
            wish = wish_in(words)                                            # as chat.py does
            path, said = talk.draw(wish) if wish else (None, told(talk, words))
            right = path is not None and judge(np.asarray(talk.pictures[-1]), meta)["correct"]
            yield turn, "draw", right, (bool(path) and not said or questions.is_sentence(said) or
                                        language.parse_description(said) is not None)
            scene, asked = (seen_in(talk.pictures[-1], said) if path else scene), []
            continue
        if scene is None or not talk.pictures or u < 0.35:
            for _ in range(1 if rng.random() < 0.75 else 2):                 # questions are about the last one
                scene = fresh_scene(pipe, f"{seed}/chat/{i}/{turn}", rng.randrange(10**6))
                talk.show(Image.fromarray(shapes.render(scene, size)), "own.png")
            asked = []
        if not asked:                                                        # small talk: not amid what goes on
            asked = conversations.dialogue(scene, rng, 4) if rng.random() > 0.1 else [conversations.sorry(rng)]
        qa = asked.pop(0)
        said = told(talk, qa.question)
        right = questions.is_right(said, qa) and not wish_in(qa.question)
        yield turn, qa.kind, right, questions.is_sentence(said)


def converse(pipe, seed, start, stop, size, look, options):
    """What `one_talk` yields for the conversations start .. stop - 1, as one list."""
    with tempfile.TemporaryDirectory() as folder:
        return [row for i in range(start, stop) for row in one_talk(pipe, seed, i, folder, size, look, options)]


def chat_scores(pipe, n=50, seed=0, pool=None, progress=None, look=None, size=None, **options):
    """{"turn": {"1": rate, ...}, "kind": {...}, "sentences": rate} of n conversations."""
    jobs = [(seed, part.start, part.stop, size or pipe.size, look, options) for part in batches(range(n), 5)]
    rows = [row for part in over_processes(converse, pipe, jobs, pool, progress, "chat") for row in part]
    return {"turn": by_kind([(str(turn + 1), right) for turn, _, right, _ in rows]),
            "kind": by_kind([(kind, right) for _, kind, right, _ in rows]),
            "sentences": rate([is_sentence for *_, is_sentence in rows])}


# --- edit -------------------------------------------------------------------------------------------------------------

def edited(rng, pipe, kind, size):
    """A scene, the cell to change, the request, and the scene that should come out."""
    board = placement(pipe)["board"]
    n = min(rng.choice((2, 3)), pipe.meta.get("max_objects", 4))
    scene = shapes.random_scene(rng, n=n, **placement(pipe))
    taken = {(int(o.x * board), int(o.y * board)): o for o in scene.objects}
    cells = [(x, y) for x in range(board) for y in range(board)]
    x, y = rng.choice([c for c in cells if (c in taken) == (kind != "add")])
    pair = rng.choice([p for p in shapes.SEEN if (x, y) not in taken or p != taken[x, y].pair])
    new = shapes.Object(pair[1], pair[0], (x + 0.5) / board, (y + 0.5) / board, 0.4 / board, shapes.COLORS[pair[0]])
    others = tuple(o for cell, o in taken.items() if cell != (x, y))
    side = size / board
    region = tuple(round(v * side) for v in (x, y, x + 1, y + 1))
    text = rng.choice(("nothing", "an empty place")) if kind == "remove" else language.phrase(*pair)
    return scene, region, text, shapes.Scene(others + (() if kind == "remove" else (new,)), scene.background)


def edit_batch(pipe, seed, kind, start, stop, size, options):
    rows = []
    for i in range(start, stop):
        scene, region, text, wanted = edited(random.Random(f"eval/{seed}/edit/{kind}/{i}"), pipe, kind, size)
        picture = Image.fromarray(shapes.render(scene, size))
        [drawn] = pipe.draw([text], size, image=picture, region=region, seed=chance(seed, kind, i), **options)
        rows.append(judge_scene(np.asarray(drawn), wanted, placement(pipe)["board"]))
    return rows


def edit_scores(pipe, n=50, seed=0, pool=None, progress=None, look=None, size=None, **options):
    """{"replace": rate, "add": rate, "remove": rate}: n scenes each; nothing else may have changed. Options of
    whole pictures are left out: a cell has fewer tokens than --iters, and needs no thought."""
    options = {k: v for k, v in options.items() if k not in ("think", "iters")}
    jobs = [(seed, kind, part.start, part.stop, size or pipe.size, options) for kind in EDITS
            for part in batches(range(n), 10)]
    done = over_processes(edit_batch, pipe, jobs, pool, progress, "edit")
    return by_kind([(job[1], right) for job, part in zip(jobs, done) for right in part])
