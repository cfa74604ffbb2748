"""The shapes world: a tiny visual world whose ground truth is exact.

A `Scene` is one to four colored shapes on a plain dark background, and a picture at any resolution (`render`). What can
be said about it is in language.py; judge.py says what a picture shows. Four (color, shape) pairs, `UNSEEN`, are kept
out of everything that trains: a model that draws them has put them together from their parts.

Simplified, compared with photographs: shapes never rotate, touch or overlap; "left of" is about centres only.
"""
import random
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLORS = {"red": (220, 50, 50), "green": (60, 180, 75), "blue": (60, 90, 220), "yellow": (240, 220, 60),
          "purple": (160, 60, 200), "orange": (245, 140, 30), "white": (235, 235, 235)}
PAIRS = tuple(product(COLORS, SHAPES))
UNSEEN = frozenset({("purple", "cross"), ("orange", "ring"), ("white", "triangle"), ("yellow", "square")})
SEEN = tuple(pair for pair in PAIRS if pair not in UNSEEN)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)

# geometry in units of the radius; every shape fits the box [-1, 1]^2. all but the round ones stay a little inside it,
# so that neighbours on a board keep a visible gap even at 10 pixels per cell
SQUARE = 0.86                              # half side
TRIANGLE = ((0.0, -0.96), (0.98, 0.78), (-0.98, 0.78))
CROSS_LENGTH, CROSS_WIDTH = 0.96, 0.31     # half length and half width of an arm
RING_HOLE = 0.55                           # inner radius

SUPERSAMPLE = 4                            # drawn so many times larger, then reduced: soft edges
JITTER = 10                                # most that an object's color differs from the palette's, in each channel
CLEAR = 1.5                                # a relation is clear from this ratio, along : across
NEAR = 0.42                                # centres of objects next to each other are at most so far apart


@dataclass(frozen=True)
class Object:
    """One shape: centre and radius are fractions of the picture's side, y points down, rgb is what is painted."""
    shape: str
    color: str
    x: float
    y: float
    r: float
    rgb: tuple

    @property
    def pair(self):
        return self.color, self.shape


@dataclass(frozen=True)
class Scene:
    objects: tuple
    background: int


# --- scenes -----------------------------------------------------------------------------------------------------------

# (objects, all alike, how often): mostly two different ones, since a model takes longest to learn which color goes with
# which shape, and what is where
MIXTURE = ((1, True, 22), (2, True, 6), (3, True, 9), (4, True, 10), (2, False, 43), (3, False, 5), (4, False, 5))


def random_scene(rng: random.Random, objects: list | None = None, n: int | None = None, most: int = 4,
                 layout: str = "board", board: int = 3, allow_unseen: bool = False) -> Scene:
    """A random scene of the given (color, shape) pairs (always obeyed), or of `n` or up to `most` random ones."""
    if objects is None:
        objects = _random_pairs(rng, [m for m in MIXTURE if n in (None, m[0]) and m[0] <= most],
                                PAIRS if allow_unseen else SEEN)
    places = _board_places(rng, len(objects), board) if layout == "board" else _free_places(rng, len(objects))
    made = []
    for (color, shape), (x, y, r) in zip(objects, places):
        rgb = tuple(min(255, max(0, c + rng.randint(-JITTER, JITTER))) for c in COLORS[color])
        made.append(Object(shape, color, x, y, r, rgb))
    return Scene(tuple(made), rng.randint(15, 45))


def _random_pairs(rng, mixture, pool):
    n, alike, _ = rng.choices(mixture, [weight for *_, weight in mixture])[0]
    if alike:
        return [rng.choice(pool)] * n
    if n > 2 and rng.random() < 0.3:       # partly repeated
        few = rng.sample(pool, rng.randint(2, n - 1))
        return few + rng.choices(few, k=n - len(few))
    return rng.choices(pool, k=n)


def _board_places(rng, n, board):
    for cell in rng.sample(range(board * board), n):
        r = rng.uniform(0.37, 0.45)        # in cells
        slack = 0.5 - r - 0.03             # keeps a margin of 0.03 cell on every side
        x = cell % board + 0.5 + rng.uniform(-slack, slack)
        y = cell // board + 0.5 + rng.uniform(-slack, slack)
        yield x / board, y / board, r / board


def _free_places(rng, n, gap=0.03):
    while True:                            # start over when the places drawn so far leave no room
        places = []
        for _ in range(20 * n):
            r = rng.uniform(0.08, 0.2)
            x, y = rng.uniform(r + gap, 1 - r - gap), rng.uniform(r + gap, 1 - r - gap)
            if all(max(abs(x - a), abs(y - b)) > r + s + gap for a, b, s in places):           # boxes, not outlines
                places.append((x, y, r))
            if len(places) == n:
                return places


def relation(a: Object, b: Object) -> str | None:
    """Where `a` is as seen from `b`: one of `RELATIONS`, or None when that is not clear."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= CLEAR * abs(dy) and dx:  # `and dx`: nothing is left of what has the same centre
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= CLEAR * abs(dx) and dy:
        return "above" if dy < 0 else "below"
    return None


def beside(a: Object, b: Object) -> bool:
    """Whether two objects are next to each other: in neighbouring cells of a 3x3 board, not on its diagonal."""
    return relation(a, b) is not None and (a.x - b.x) ** 2 + (a.y - b.y) ** 2 <= NEAR ** 2


def render(scene: Scene, size: int) -> np.ndarray:
    """The anti-aliased picture, uint8 (size, size, 3)."""
    side = size * SUPERSAMPLE
    image = Image.new("RGB", (side, side), (scene.background,) * 3)
    draw = ImageDraw.Draw(image)
    for o in scene.objects:
        x, y, r = o.x * side, o.y * side, o.r * side

        def box(half_width, half_height):  # Pillow includes the last pixel, hence the -1
            w, h = half_width * r, half_height * r
            return x - w, y - h, x + w - 1, y + h - 1

        if o.shape == "circle":
            draw.ellipse(box(1, 1), fill=o.rgb)
        elif o.shape == "square":
            draw.rectangle(box(SQUARE, SQUARE), fill=o.rgb)
        elif o.shape == "triangle":
            draw.polygon([(x + u * r - 0.5, y + v * r - 0.5) for u, v in TRIANGLE], fill=o.rgb)
        elif o.shape == "cross":
            draw.rectangle(box(CROSS_LENGTH, CROSS_WIDTH), fill=o.rgb)
            draw.rectangle(box(CROSS_WIDTH, CROSS_LENGTH), fill=o.rgb)
        else:
            draw.ellipse(box(1, 1), fill=o.rgb)
            draw.ellipse(box(RING_HOLE, RING_HOLE), fill=(scene.background,) * 3)
    return np.array(image.reduce(SUPERSAMPLE))


# --- classes: (count, color, shape), for class-conditional MAR --------------------------------------------------------

NUM_CLASSES = 4 * len(PAIRS)
SEEN_CLASSES = tuple(c for c in range(NUM_CLASSES) if PAIRS[c % len(PAIRS)] not in UNSEEN)


def scene_class(scene: Scene) -> int:
    """The label of a scene whose objects are all of one kind."""
    [pair] = {o.pair for o in scene.objects}
    return (len(scene.objects) - 1) * len(PAIRS) + PAIRS.index(pair)


def class_scene(label: int, rng: random.Random) -> Scene:
    """A random scene of this class (train on `SEEN_CLASSES` only)."""
    count, kind = divmod(label, len(PAIRS))
    return random_scene(rng, [PAIRS[kind]] * (count + 1))
