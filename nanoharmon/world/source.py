"""The shapes world as a source of training data: pictures, prompts, captions, questions.

Scene i is a function of (seed, i), and its row among the latents is i. What the methods are for, and what row, item and
turns are: training/batches.py. An item is the number of a scene; None stands for a text without a picture.

Training takes the scenes from 0 to config.scenes for stages that read latents. The stages vae and llm need none, so
they take scenes from 0 to 10**9. Scenes for evaluation come from other seeds (evals/common.py).
"""
import functools
import hashlib
import random
from dataclasses import replace

import numpy as np

from ..tokenizer import DESCRIBE, GENERATE, GENERATE_ANY_PART, GENERATE_ANYTHING, GENERATE_PART, LOCATE
from . import conversations, language, phrases, prompts, questions, shapes

FRESH = 10 ** 9                              # scenes that nobody encodes: hardly any is met twice


class ShapesData:
    """The shapes world, scene by scene. config: DataConfig."""
    name = cache_name = "shapes"
    classes = shapes.NUM_CLASSES
    learn_all = False                        # of a text: all words, or only those of the assistant

    def __init__(self, config):
        self.config, self.rows, self.latents = config, config.scenes, {}

    def has(self, kind):
        return True

    @property
    def content(self):
        """The settings, and what the first pictures look like in this version of shapes.py."""
        first = hashlib.sha256(self.pictures(range(min(8, self.rows)), 32))
        return f"{self.config.seed} {self.config.scenes} {self.config.layout} {self.config.board} " \
               f"{self.config.max_objects} {first.hexdigest()}"

    def leave_out(self, fits):
        return 0                             # the texts of scenes are short: all fit

    def scene(self, i, n=None):
        """The i-th training scene (of those with n objects); without unseen pairs."""
        return shapes.random_scene(random.Random(f"{self.config.seed}/scene/{i}"), n=n, most=self.config.max_objects,
                                   layout=self.config.layout, board=self.config.board)

    def pictures(self, rows, size):
        return np.stack([shapes.render(self.scene(i), size) for i in rows])

    def picture(self, rng, size):
        return shapes.render(self.scene(rng.randrange(FRESH)), size)

    def text(self, rng):
        """A request to draw, or a question about a scene: what is where in it, told in words, stands in for its
        picture. One question a text: later ones would have to tell the words of earlier looks from their own, and to
        notice that one just named what is asked for is what takes longest to learn (docs/LOG.md)."""
        if rng.random() < 0.3:
            return self.thought(rng)
        if rng.random() < 0.03:                                  # without a picture there is nothing to talk about
            return turns([conversations.sorry(rng)], look=False)
        scene, look = self.rich_scene(rng), rng.random() < 0.9
        # what is alike is hard to learn: captions come often
        asked = self.caption(scene, rng, look) if rng.random() < 0.2 else self.questions(scene, rng, 1, look)
        (_, question), reply = asked[:2]
        return [("user", language.locate(scene) + "\n" + question), reply]

    def rich_scene(self, rng):
        """A scene for texts: where nothing must be drawn, there can be more to talk about. One to four objects, all
        different or some of a kind (fewer where max_objects allows no more). Of those with several kinds at least half
        have two that share their color or their shape, not both: it must learn to compare both (docs/LOG.md)."""
        n = min(rng.choice((1, 2, 2, 3, 3, 4)), self.config.max_objects)
        kinds = rng.sample(shapes.SEEN, rng.choice((n, max(1, n - 1), min(n, 2))))
        if len(kinds) > 1 and rng.random() < 0.5:
            k = rng.randrange(2)                                 # color, shape
            kinds[1] = rng.choice([p for p in shapes.SEEN if p[k] == kinds[0][k] and p not in kinds] or kinds[1:2])
        pairs = kinds + rng.choices(kinds, k=n - len(kinds))
        return shapes.random_scene(rng, pairs, layout=self.config.layout, board=self.config.board)

    def thought(self, rng):
        """A request to draw, answered in words: what could be where. A third are about two objects, whose relations are
        hard to learn; nearly half may be about more; some requests name the places, which are then to be kept (where
        none are named, more than two objects lie line by line in the prompt's order); some are for what the world does
        not have."""
        while rng.random() < 0.12:
            text, is_request = phrases.outside(rng)
            if is_request:
                return [("user", GENERATE.format(text)), ("assistant", phrases.SORRY)]
        kind = rng.random() if self.config.max_objects > 1 else 1
        scene = self.rich_scene(rng) if kind < 0.45 else self.scene(rng.randrange(FRESH), 2 if kind < 0.8 else None)
        varied = rng.random() < 0.6
        prompt = prompts.draw_prompt(scene, rng, rng.random() < 0.3, varied)
        asked = prompts.request(prompt, rng) if varied else prompt
        scene = language.arranged(scene, prompt)
        return [("user", GENERATE.format(asked)), ("assistant", language.think(scene, prompt))]

    @functools.cached_property
    def sorted_scenes(self):
        """The scenes with one kind of object, as (row, class), and the rows of those with two different ones."""
        alike, pairs = [], []
        for i in range(self.rows):
            scene = self.scene(i)
            kinds = len({o.pair for o in scene.objects})
            if kinds == 1:
                alike.append((i, shapes.scene_class(scene)))
            elif kinds == len(scene.objects) == 2:
                pairs.append(i)
        return alike, pairs

    def class_item(self, rng):
        alike, _ = self.sorted_scenes
        if not alike:
            raise ValueError(f"none of the {self.rows} training scenes has objects of one kind only, which stage "
                             f"mar needs; pass a larger --data.scenes")
        return rng.choices(alike)[0]

    def generation_item(self, rng, pairs=0.0, needs_prompt=True):
        """pairs: how often a scene of two different objects is looked for, beside those met by chance. needs_prompt: of
        folders, where not all pictures have one."""
        if pairs and rng.random() < pairs:
            i = rng.choice(self.sorted_scenes[1] or range(self.rows))
        else:
            i = rng.randrange(self.rows)
        return i, i

    def understanding_item(self, rng, texts=0.0):
        """texts: how often it is a text without a picture."""
        if texts and rng.random() < texts:
            return None, None
        i = rng.randrange(self.rows)
        return i, i

    def prompt(self, i, rng):
        """A prompt for the picture; where all scenes have one object (--quick), nearly always what a thought would say:
        there is no time to learn more (docs/LOG.md)."""
        scene = self.scene(i)
        if self.config.max_objects == 1 and rng.random() < 0.95:
            return language.think(scene, "")
        return prompts.draw_prompt(scene, rng)

    def part(self, rng, across, down):
        """A scene of which one part is to be drawn anew: its number, the part (x0, y0, x1, y1 in cells of the board),
        the scene as it is then, and a prompt that says what the part holds: nothing, or something of another scene,
        whatever was there. What was there shows in the tokens beside it, and must not decide (docs/LOG.md)."""
        i, board = rng.randrange(self.rows), self.config.board
        scene = self.scene(i)
        x, y = rng.randrange(board - across + 1), rng.randrange(board - down + 1)
        if rng.random() < 0.5:                                   # where there is something
            o = rng.choice(scene.objects)
            x, y = min(x, int(o.x * board)), min(y, int(o.y * board))
            x, y = max(x, int(o.x * board) - across + 1), max(y, int(o.y * board) - down + 1)
        cells = [(x + k, y + j) for j in range(down) for k in range(across)]
        others, inside = [o for o in scene.objects if (int(o.x * board), int(o.y * board)) not in cells], []
        if rng.random() < 0.5:                                   # each into a cell, where it was in its own
            new = self.scene(rng.randrange(FRESH)).objects[:4 - len(others)]
            inside = [replace(o, x=(k + o.x * board % 1) / board, y=(j + o.y * board % 1) / board)
                      for o, (k, j) in zip(new, rng.sample(cells, rng.randint(1, len(cells))))]
        part = shapes.Scene(tuple(inside), scene.background)
        if not inside:
            prompt = rng.choice(phrases.NOTHING)
        else:
            prompt = language.inventory(part) if rng.random() < 0.5 else prompts.draw_prompt(part, rng, places=False)
            prompt = prompts.request(prompt, rng) if rng.random() < 0.3 else prompt
        return i, (x, y, x + across, y + down), shapes.Scene((*others, *inside), scene.background), prompt

    def conversation(self, i, rng):
        """One to four questions about a picture, or its description. i None: a text as of stage llm, but more often a
        thought; without such texts stage 2 forgets how to answer and to compare (docs/LOG.md). Most replies say first
        what they look at; the others answer at once, as they do with --no-look."""
        if i is None:
            return self.thought(rng) if rng.random() < 0.25 else self.text(rng)
        scene, kind = self.scene(i), rng.random()
        if kind < 0.1:
            return [("user", LOCATE), ("assistant", language.locate(scene))]
        if kind < 0.15:
            return [("user", DESCRIBE), ("assistant", language.inventory(scene))]
        if kind < 0.25:
            return self.caption(scene, rng, look=True)
        return self.questions(scene, rng, rng.choice((1, 2, 4)), look=kind < 0.9)

    def caption(self, scene, rng, look):
        """A question for what is there, and the answer."""
        ways = rng.choice(("plain", "training"))
        return turns([qa for qa in questions.questions(scene, rng, ways=ways) if qa.kind == "caption"], look)

    def questions(self, scene, rng, n, look):
        """Some n questions about a scene with their answers, half of them in all the ways in which people ask."""
        asked = conversations.dialogue(scene, rng, n, ways=rng.choice(("plain", "training")))
        if rng.random() < 0.08:
            asked[-1] = conversations.sorry(rng)                 # the last one: what follows may go on from a question
        return turns(asked, look)


def turns(asked, look):
    """The turns of questions and answers; look: each answer comes after what is looked at for it."""
    return [turn for qa in asked for turn in (("user", qa.question), ("assistant", qa.reply if look else qa.answer))]


def training_texts(config, n=4000):
    """Texts of the shapes world to train the tokenizer on."""
    rng = random.Random(f"{config.seed}/tokenizer")
    for _ in range(n):
        scene = shapes.random_scene(rng, layout=config.layout, board=config.board)
        prompt = prompts.draw_prompt(scene, rng, varied=True)
        yield from (GENERATE.format(prompts.draw_prompt(scene, rng)), GENERATE.format(prompts.request(prompt, rng)),
                    language.caption(scene, rng), language.inventory(scene), language.describe(scene, rng),
                    language.locate(scene), "user\n", "assistant\n", GENERATE_ANYTHING, GENERATE_ANY_PART, DESCRIBE,
                    LOCATE)
        for qa in conversations.dialogue(scene, rng, 6):
            yield from (qa.question, qa.reply)
        if rng.random() < 0.1:
            text, is_request = phrases.outside(rng)
            yield from (phrases.SORRY, GENERATE.format(text) if is_request else text, GENERATE_PART.format(prompt))
