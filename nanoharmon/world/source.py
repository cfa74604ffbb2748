"""The shapes world as a source of training data: pictures, prompts, captions, questions.

Scene i is a function of (seed, i), and its row among the latents is i. What the methods are for, and what row, item and
turns are: training/batches.py. An item is the number of a scene; None stands for a text without a picture.

Training takes the scenes from 0 to config.scenes for stages that read latents. The stages vae and llm need none, so
they take scenes from 0 to 10**9. Scenes for evaluation come from other seeds (evals/common.py).
"""
import functools
import hashlib
import random

import numpy as np

from ..tokenizer import DESCRIBE, GENERATE, GENERATE_ANYTHING
from . import language, shapes

LOCATE = "say what is where."                # the question that a description answers
FRESH = 10 ** 9                              # scenes that nobody encodes: hardly any is met twice


class ShapesData:
    """The shapes world, scene by scene. config: DataConfig."""
    name = cache_name = "shapes"
    classes = shapes.NUM_CLASSES

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
        """Text stands in for pictures: a scene is described in words, then the same is asked as later about pictures.
        Of a thought all words are learned, the prompt's as well: they are prompts the LLM will be conditioned on."""
        kind = rng.random()
        if kind < 0.4:
            return self.thought(rng), True
        scene = self.scene(rng.randrange(FRESH))
        if kind < 0.9:
            (_, first), *rest = self.questions(scene, rng)
            return [("user", language.describe(scene, rng) + "\n" + first), *rest], False
        return [("user", language.describe(scene, rng) + "\n" + DESCRIBE),
                ("assistant", language.caption(scene, rng))], False

    def thought(self, rng):
        """A request to draw, answered in words: what could be where. Half of them are about two objects, whose
        relations are the hardest to learn; some requests name the places, which are then to be kept."""
        two = self.config.max_objects > 1 and rng.random() < 0.5
        scene = self.scene(rng.randrange(FRESH), 2 if two else None)
        prompt = language.draw_prompt(scene, rng, places=rng.random() < 0.3)
        return [("user", GENERATE.format(prompt)), ("assistant", language.think(scene, prompt))]

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

    def generation_item(self, rng, pairs=0.0):
        """pairs: how often a scene of two different objects is looked for, beside those met by chance."""
        if not pairs or rng.random() >= pairs:
            return self.understanding_item(rng)                  # any scene
        i = rng.choice(self.sorted_scenes[1] or range(self.rows))
        return i, i

    def understanding_item(self, rng, thoughts=0.0):
        """thoughts: how often it is a thought, a text without a picture."""
        if thoughts and rng.random() < thoughts:
            return None, None
        i = rng.randrange(self.rows)
        return i, i

    def prompt(self, i, rng):
        return language.draw_prompt(self.scene(i), rng)

    def conversation(self, i, rng):
        if i is None:
            return self.thought(rng)
        scene = self.scene(i)
        kind = rng.random()
        if kind < 0.55:
            return self.questions(scene, rng)
        if kind < 0.8:
            return [("user", DESCRIBE), ("assistant", language.caption(scene, rng))]
        return [("user", LOCATE), ("assistant", language.describe(scene, rng))]

    def questions(self, scene, rng):
        """Up to four questions about a scene with their answers; relations, the hardest, are seldom left out."""
        asked = language.questions(scene, rng)
        asked.sort(key=lambda qa: rng.random() * (2 if qa.kind == "relation" else 1))            # the last four stay
        return [turn for qa in asked[-4:] for turn in (("user", qa.question), ("assistant", qa.answer))]


def training_texts(config, n=4000):
    """Texts of the shapes world to train the tokenizer on."""
    rng = random.Random(f"{config.seed}/tokenizer")
    for _ in range(n):
        scene = shapes.random_scene(rng, layout=config.layout, board=config.board)
        yield from (GENERATE.format(language.draw_prompt(scene, rng)), language.caption(scene, rng),
                    language.describe(scene, rng), "user\n", "assistant\n", GENERATE_ANYTHING, DESCRIBE, LOCATE)
        for qa in language.questions(scene, rng):
            yield from (qa.question, qa.answer)
