"""The shapes world as a source of training data: pictures, prompts, captions, questions, each a function of (seed, i).

What the methods are for: training/batches.py. Scenes for evaluation come from other seeds (evals/common.py).
"""
import functools
import hashlib
import random

import numpy as np

from ..tokenizer import DESCRIBE, GENERATE, GENERATE_ANYTHING
from ..world import language, shapes

LOCATE = "say what is where."


class ShapesData:
    """The shapes world, scene by scene."""
    name = cache_name = "shapes"
    classes = shapes.NUM_CLASSES

    def __init__(self, config):
        self.config, self.rows, self.latents = config, config.scenes, {}

    def has(self, kind):
        """Whether it has "pictures", "captions", "texts": all of them."""
        return True

    @property
    def content(self):
        """Tells two sets of pictures apart: the settings, and what the first pictures look like in this version."""
        first = hashlib.sha256(self.pictures(range(min(8, self.rows)), 32))
        return f"{self.config.seed} {self.config.scenes} {self.config.layout} {self.config.board} " \
               f"{self.config.max_objects} {first.hexdigest()}"

    def leave_out(self, fits):
        return 0                             # the texts of scenes are short

    def scene(self, i, n=None):
        """The i-th training scene (of those with n objects); without unseen pairs."""
        return shapes.random_scene(random.Random(f"{self.config.seed}/scene/{i}"), n=n, most=self.config.max_objects,
                                   layout=self.config.layout, board=self.config.board)

    def pictures(self, rows, size):
        """uint8 (n, size, size, 3) of the given training scenes."""
        return np.stack([shapes.render(self.scene(i), size) for i in rows])

    def picture(self, rng, size):
        return shapes.render(self.scene(rng.randrange(10 ** 9)), size)

    def text(self, rng):
        kind = rng.random()
        if kind < 0.4:
            return self.thought(rng), True
        scene = self.scene(rng.randrange(10 ** 9))
        if kind < 0.9:                               # questions about a described scene
            (_, first), *rest = self.questions(scene, rng)
            return [("user", language.describe(scene, rng) + "\n" + first), *rest], False
        return [("user", language.describe(scene, rng) + "\n" + DESCRIBE),
                ("assistant", language.caption(scene, rng))], False

    def thought(self, rng):
        """A request to draw, answered in words: what could be where. Half of them are about two objects, whose
        relations are the hardest to learn; some requests name the places, which are then to be kept."""
        two = self.config.max_objects > 1 and rng.random() < 0.5
        scene = self.scene(rng.randrange(10 ** 9), 2 if two else None)
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

    def class_picture(self, rng):
        """A scene with one kind of object."""
        alike, _ = self.sorted_scenes
        if not alike:
            raise ValueError(f"none of the {self.rows} training scenes has objects of one kind only, which stage "
                             f"mar needs; pass a larger --data.scenes")
        return rng.choices(alike)[0]

    def to_draw(self, rng, pairs=0.0):
        """pairs: how often a scene of two different objects is looked for."""
        if not pairs or rng.random() >= pairs:
            return self.to_read(rng)
        i = rng.choice(self.sorted_scenes[1] or range(self.rows))
        return i, i

    def to_read(self, rng, thoughts=0.0):
        """thoughts: how often it is a text without a picture."""
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
        """Up to four turns about a scene, as (role, text) pairs; relations, the hardest, are seldom left out."""
        asked = language.questions(scene, rng)
        asked.sort(key=lambda qa: rng.random() * (2 if qa.kind == "relation" else 1))
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
