"""Curves as a PNG, drawn with Pillow: losses of train.py from log.jsonl, one panel each; and sweeps (sweep.py)."""
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN = 300, 180, 34        # of one panel, pixels
COLUMNS, FRAME = 3, (WIDTH - MARGIN - 10, HEIGHT - 44)                  # panels in a row; inside of a panel, pixels
LOSSES = "mse", "text", "generation", "understanding"                   # which entries are losses
COLORS = "#2060c0", "#d06020"               # of lines


def read_log(path):
    """{(stage, name): [(step, value), ...]} of the losses in a log.jsonl, and the number of lines that are damaged, cut
    off by a kill for instance, and left out."""
    curves, damaged = {}, 0
    for line in Path(path).read_bytes().splitlines():
        try:
            entry = {**json.loads(line)}                                  # a TypeError if it is no object
            found = {(str(entry["stage"]), name): (int(entry["step"]), float(entry[name]))
                     for name in LOSSES if name in entry}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            damaged += 1
            continue
        for key, (step, value) in found.items():
            points = curves.setdefault(key, [])
            while points and points[-1][0] >= step:                       # a stage resumed, or repeated: the newest
                points.pop()
            points.append((step, value))
    return curves, damaged


def draw_curves(curves, path):
    """Write one panel per curve {(title, name): [(x, y)]}. The vertical axis starts at 0 and leaves out the
    first, highest values."""
    (image, pen, font), (width, height) = sheet(len(curves)), FRAME
    for i, ((stage, name), points) in enumerate(curves.items()):
        steps, values = zip(*points)
        high = sorted(values)[int(0.95 * (len(values) - 1))] * 1.1 or 1.0
        left, top = place(i)
        pen.rectangle((left, top, left + width, top + height), outline="#cccccc")
        pen.text((left, top - 16), f"{stage}: {name}  (last {values[-1]:.4f})", "black", font)
        pen.text((left, top + height + 3), f"step 0 .. {steps[-1]}", "#666666", font)
        pen.text((left - MARGIN + 2, top - 4), f"{high:.2g}", "#666666", font)
        pen.text((left - MARGIN + 2, top + height - 8), "0", "#666666", font)
        line = [(left + width * s / steps[-1], top + height * (1 - min(v / high, 1))) for s, v in points]
        if len(line) > 1:
            pen.line(line, fill=COLORS[0], width=2)
        else:
            pen.point(line[0], fill=COLORS[0])
    image.save(path)


def draw_sweeps(sweeps, path):
    """Write one panel per sweep {name: {line: [(value, {"rate", "low", "high"}), ...]}}, and a legend: rates from 0 to
    100 %, with their intervals, the values at equal distances."""
    (image, pen, font), (width, height) = sheet(len(sweeps) + 1), FRAME
    for i, (name, lines) in enumerate(sweeps.items()):
        left, top = place(i)
        pen.rectangle((left, top, left + width, top + height), outline="#cccccc")
        pen.text((left, top - 16), f"{name}: pictures right, %", "black", font)
        for share in (0, 0.5, 1):
            pen.text((left - 4, top + height * (1 - share)), f"{100 * share:.0f}", "#666666", font, anchor="rm")
        for points, color in zip(lines.values(), COLORS):
            at = [left + width * (k + 0.5) / len(points) for k in range(len(points))]
            rates = [(x, top + height * (1 - entry["rate"])) for x, (_, entry) in zip(at, points)]
            pen.line(rates, fill=color, width=2)
            for x, (value, entry) in zip(at, points):
                pen.line([(x, top + height * (1 - entry[end])) for end in ("low", "high")], fill=color)
                pen.text((x, top + height + 3), f"{value:g}", "#666666", font, anchor="ma")
    left, top = place(len(sweeps))
    for k, (line, color) in enumerate(zip(lines, COLORS)):
        y = top + 8 + 20 * k
        pen.line((left, y, left + 20, y), fill=color, width=2)
        pen.text((left + 28, y), line, "black", font, anchor="lm")
    image.save(path)


def sheet(panels):
    """A white picture with room for so many panels, a pen for it, and a font."""
    image = Image.new("RGB", (COLUMNS * WIDTH, max(1, -(-panels // COLUMNS)) * HEIGHT), "white")
    return image, ImageDraw.Draw(image), ImageFont.load_default(11)


def place(i):
    """Where the frame of panel i has its upper left corner, below the title: x, y."""
    return i % COLUMNS * WIDTH + MARGIN, i // COLUMNS * HEIGHT + 22
