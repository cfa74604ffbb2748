"""The judge of the shapes world: finds the objects in a picture, checks them against the prompt.

    pixels -> how much of which palette color covers each pixel -> connected pieces of one color
           -> color by the nearest palette entry, shape by the best of five fitted templates
           -> GenEval's rules

GenEval (arXiv 2310.11513) asks that everything named is there; this judge also asks that nothing else is. A blob that
fits no shape or no color well, and large stray colored areas, are reported as unclear objects, which make a picture
wrong.

Simplified: no learned detector, so it only works on plain dark backgrounds and upright shapes.
"""
from collections import Counter
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from .shapes import (COLORS, CROSS_LENGTH, CROSS_WIDTH, PAIRS, RING_HOLE, SHAPES, SQUARE, TRIANGLE, Scene, beside,
                     relation)

NAMES = tuple(COLORS)
PALETTE = np.array(list(COLORS.values()), np.float32)

BRIGHTEST = 80       # a median brighter than this is no background
COVERED = 0.6        # a pixel belongs to an object from this coverage on
SMALLEST = 0.004     # pieces of a smaller share of the picture are no objects
STRAY = 0.006        # this share of the picture may be colored without belonging to an object
COLOR_FAR = 60.0     # an object's color is unclear from this RGB distance to the palette on
# a shape is unclear below this soft intersection over union with its template; small ones are all edge, so for a radius
# of 5 pixels or less the bar is lower, and it rises up to 7 pixels
FIT_SMALL, FIT_LARGE = 0.72, 0.80


@dataclass(frozen=True)
class Detected:
    """A found object, in fractions of the picture's side; an unclear shape or color is None."""
    shape: str | None
    color: str | None
    x: float
    y: float
    r: float
    score: float


def detect(image: np.ndarray) -> list:
    """All objects in a uint8 picture (H, W, 3), the unclear ones included."""
    side = image.shape[0]
    background = np.median(image.reshape(-1, 3), axis=0).astype(np.float32)
    if background.max() > BRIGHTEST:
        return [Detected(None, None, 0.5, 0.5, 0.5, 0.0)]
    pixels = image.astype(np.float32) - background
    coverage, label = _cover(pixels, PALETTE - background)
    boxes, piece_of = _pieces(np.where(coverage >= COVERED, label, 0), SMALLEST * label.size)

    found = []
    explained = np.zeros(label.shape, bool)
    for piece, (y0, x0, y1, x1) in enumerate(boxes, 1):
        # two more pixels on each side, for the soft edge; what belongs to other pieces is cut away
        y0, x0 = max(0, y0 - 2), max(0, x0 - 2)
        window = np.s_[y0:y1 + 2, x0:x1 + 2]
        explained[window] = True
        own = piece_of[window] == piece
        # the piece's own color, from its core: the more covered half of its pixels
        core = own & (coverage[window] >= np.median(coverage[window][own]))
        rgb = np.median(pixels[window][core], axis=0)
        soft = pixels[window] @ (rgb / (rgb @ rgb))
        soft = np.clip((soft - 0.15) / 0.7, 0, 1)           # undoes a little blur and noise
        soft[(piece_of[window] > 0) & ~own] = 0
        shape, x, y, r, score = _fit_shape(soft)

        far = np.linalg.norm(PALETTE - background - rgb, axis=1)
        nearest, second = np.sort(far)[:2]
        is_clear = nearest < COLOR_FAR and nearest < 0.7 * second
        bar = np.interp(r, (5, 7), (FIT_SMALL, FIT_LARGE))
        found.append(Detected(shape if score >= bar else None, NAMES[far.argmin()] if is_clear else None,
                              (x + x0) / side, (y + y0) / side, r / side, score))

    stray = (np.abs(pixels).max(axis=2) > 50) & ~explained
    if stray.mean() > STRAY:
        y, x = np.argwhere(stray).mean(axis=0) / side
        found.append(Detected(None, None, float(x), float(y), 0.0, 0.0))
    return found


def _cover(pixels, palette):
    """Each pixel by the palette color in whose direction it lies: (coverage, 1 + color index)."""
    dots = pixels @ palette.T                               # (H, W, 7)
    lengths = (palette ** 2).sum(axis=1)
    # the squared distance to the line through color c is |p|^2 - (p.c)^2 / |c|^2; |p|^2 is the same for all colors
    best = (np.maximum(dots, 0) ** 2 / lengths).argmax(axis=2)
    coverage = np.take_along_axis(dots, best[..., None], axis=2)[..., 0] / lengths[best]
    return coverage, best + 1


def _pieces(label, smallest):
    """Connected pieces (4 neighbours, equal label > 0) of at least `smallest` pixels.

    Returns their boxes [(y0, x0, y1, x1)], and the map (H, W) of which of them each pixel is in, from 1 on; 0 is none.
    Every pixel begins with a number of its own, and takes the least one of its piece, neighbour by neighbour.
    """
    number, before = np.where(label > 0, np.arange(1, label.size + 1).reshape(label.shape), 0), np.zeros(label.shape)
    while (number != before).any():
        before = number.copy()
        for a, b in (np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]):
            alike, least = (label[a] == label[b]) & (label[a] > 0), np.minimum(number[a], number[b])
            for side in a, b:
                np.minimum(number[side], least, out=number[side], where=alike)
        number = np.append(0, number)[number]               # a shortcut: what the pixel of that number has by now
    areas, piece_of = np.bincount(number.ravel(), minlength=label.size + 1), np.zeros(label.size + 1, int)
    kept = 1 + np.flatnonzero(areas[1:] >= smallest)
    piece_of[kept] = 1 + np.arange(len(kept))
    piece_of = piece_of[number]
    places = [np.argwhere(piece_of == piece) for piece in range(1, len(kept) + 1)]
    return [(*p.min(axis=0).tolist(), *(1 + p.max(axis=0)).tolist()) for p in places], piece_of


# --- the five shapes: distances to the outline in units of the radius, negative inside --------------------------------

def _triangle(x, y):
    (_, apex), (half, base), _ = TRIANGLE
    height = base - apex
    slope = (np.abs(x) * height - (y - apex) * half) / np.hypot(height, half)
    return np.maximum(slope, y - base)


def _cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - CROSS_LENGTH, y - CROSS_WIDTH),
                      np.maximum(x - CROSS_WIDTH, y - CROSS_LENGTH))


OUTLINES = {"circle": lambda x, y: np.hypot(x, y) - 1,
            "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - SQUARE,
            "triangle": _triangle,
            "cross": _cross,
            "ring": lambda x, y: np.abs(np.hypot(x, y) - (1 + RING_HOLE) / 2) - (1 - RING_HOLE) / 2}
AREAS = {"circle": np.pi,
         "square": 4 * SQUARE ** 2,
         "triangle": TRIANGLE[1][0] * (TRIANGLE[1][1] - TRIANGLE[0][1]),
         "cross": 8 * CROSS_LENGTH * CROSS_WIDTH - 4 * CROSS_WIDTH ** 2,
         "ring": np.pi * (1 - RING_HOLE ** 2)}
CENTROID = {"triangle": (TRIANGLE[0][1] + 2 * TRIANGLE[1][1]) / 3}  # y; the others' is 0


def _fit_shape(soft):
    """The shape whose template overlaps the coverage map `soft` best: (shape, x, y, r, score).

    In pixels. The area gives each template's size and the centre of gravity its place, so there is nothing to search.
    """
    ys, xs = np.arange(soft.shape[0])[:, None] + 0.5, np.arange(soft.shape[1])[None] + 0.5
    area = soft.sum()
    x, centroid_y = float((soft * xs).sum() / area), float((soft * ys).sum() / area)
    best = None
    for shape in SHAPES:
        r = float(np.sqrt(area / AREAS[shape]))
        y = centroid_y - CENTROID.get(shape, 0) * r
        template = np.clip(0.5 - r * OUTLINES[shape]((xs - x) / r, (ys - y) / r), 0, 1)
        shared = np.minimum(soft, template).sum()
        score = float(shared / (area + template.sum() - shared))
        if best is None or score > best[-1]:
            best = shape, x, y, r, score
    return best


# --- the rules --------------------------------------------------------------------------------------------------------

def judge(image: np.ndarray, meta: dict) -> dict:
    """GenEval's verdict, plus "nothing extra": {"correct", "reason" ("" when right), "objects"}."""
    objects = detect(image)
    reason = _whats_wrong(objects, meta)
    return {"correct": not reason, "reason": reason, "objects": objects}


def _whats_wrong(objects, meta):
    """The first rule that is broken, in words; "" if none is."""
    if any(o.shape is None or o.color is None for o in objects):
        return "unclear object"
    wanted = [(i, item) for i, item in enumerate(meta["include"]) for _ in range(item["count"])]
    if len(objects) != len(wanted):
        if meta["tag"] == "counting":
            return "wrong count"
        return "missing object" if len(objects) < len(wanted) else "extra object"
    if Counter(o.shape for o in objects) != Counter(item["class"] for _, item in wanted):
        return "wrong shape"
    # all ways to say which object is which of the wanted ones: with open colors there can be several
    matches = [order for order in permutations(objects)
               if all(o.shape == item["class"] and item.get("color", o.color) == o.color
                      for o, (_, item) in zip(order, wanted))]
    if not matches:
        return "wrong color"
    if not any(in_place(dict(zip((i for i, _ in wanted), order)), meta) for order in matches):
        return "wrong place"
    return ""


def in_place(by_item: dict, meta: dict) -> bool:
    """Whether objects, {place in meta's list: object}, are where the prompt wants them."""
    for i, item in enumerate(meta["include"]):
        if "cell" in item and [int(by_item[i].x * 3), int(by_item[i].y * 3)] != item["cell"]:
            return False
        related, other = item.get("position", (None, i))
        if related and not (beside(by_item[i], by_item[other]) if related == "next to" else
                            relation(by_item[i], by_item[other]) == related):
            return False
    return True


def judge_class(image: np.ndarray, label: int) -> bool:
    """Whether the picture shows exactly the objects of a class (shapes.py)."""
    count, kind = divmod(label, len(PAIRS))
    color, shape = PAIRS[kind]
    meta = {"tag": "counting", "include": [{"class": shape, "color": color, "count": count + 1}]}
    return judge(image, meta)["correct"]


def judge_scene(image: np.ndarray, scene: Scene, board: int = 3) -> bool:
    """Whether the picture shows exactly the scene's objects, centres within a quarter of a cell."""
    objects, near = detect(image), 0.25 / board
    if len(objects) != len(scene.objects):
        return False
    return any(all((o.color, o.shape) == s.pair and np.hypot(o.x - s.x, o.y - s.y) <= near
                   for o, s in zip(order, scene.objects)) for order in permutations(objects))
