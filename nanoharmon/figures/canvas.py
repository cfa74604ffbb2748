"""A sheet to draw figures on, with Pillow: twice as fine as it is shown, on paper of its own, so that it can be read on
light and dark pages alike. Coordinates are pixels as shown; the font is Pillow's own, the same on every machine."""
import math

from PIL import Image, ImageColor, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ..files import write_bytes
from ..pictures import file_bytes

WIDTH, SCALE = 820, 2                        # of all figures, as shown; and how much finer they are drawn
PAPER, INK, FAINT, FRAME = "#fcfcf9", "#1f2328", "#6a7079", "#c9ccd1"
# what the colors of tokens mean, in all figures
TEXT, IMAGE, BUFFER, HIDDEN, NOISE = "#c2571a", "#2563b0", "#2b8a3e", "#8a8f98", "#8a3ea8"
COLORS = 256                                 # in a file's palette


def mix(color, share):
    """A share of a color (#rrggbb), the rest paper."""
    return tuple(round(share * x + (1 - share) * y) for x, y in zip(*map(ImageColor.getrgb, (color, PAPER))))


class Canvas:
    """Drawing by pixels as shown, from the upper left corner."""

    def __init__(self, height, title):
        self.height = height
        self.image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self.box(0, 0, WIDTH - 1, height - 1, PAPER, FRAME, radius=0)
        self.text(16, 20, title, 15)

    def text(self, x, y, words, size=12, color=INK, anchor="lm"):
        """Words at a point; anchor: l, m, r for where the point is across, and a (top of the letters) or m for down."""
        font = ImageFont.load_default(size * SCALE)
        self.pen.multiline_text((x * SCALE, y * SCALE), words, color, font, anchor, spacing=4 * SCALE, align={
            "l": "left", "m": "center", "r": "right"}[anchor[0]])

    def box(self, x0, y0, x1, y1, fill=None, outline=None, radius=6, width=1):
        self.pen.rounded_rectangle([v * SCALE for v in (x0, y0, x1, y1)], radius * SCALE, fill, outline,
                                   round(width * SCALE))

    def line(self, points, color=INK, width=1.5, arrow=False):
        """A line through points; with an arrow at its end."""
        points = [(x * SCALE, y * SCALE) for x, y in points]
        self.pen.line(points, color, round(width * SCALE), joint="curve")
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            angle, size = math.atan2(y1 - y0, x1 - x0), 7 * SCALE
            ends = [(x1 - size * math.cos(angle + side), y1 - size * math.sin(angle + side)) for side in (-0.4, 0.4)]
            self.pen.polygon([(x1, y1), *ends], color)

    def picture(self, picture, x, y, side):
        """A PIL picture as a square; its pixels stay sharp."""
        self.image.paste(picture.resize((side * SCALE, side * SCALE), Image.Resampling.NEAREST), (x * SCALE, y * SCALE))

    def cells(self, x, y, values, color, cell_w, cell_h=None, allowed=None):
        """A matrix (rows of numbers from 0 to 1) as cells, light to dark; those that are not allowed stay empty."""
        cell_h = cell_h or cell_w
        for r, row in enumerate(values):
            for c, value in enumerate(row):
                if allowed is None or allowed[r][c]:
                    corner = (round((x + c * cell_w) * SCALE), round((y + r * cell_h) * SCALE))
                    end = (round((x + (c + 1) * cell_w) * SCALE) - 2, round((y + (r + 1) * cell_h) * SCALE) - 2)
                    self.pen.rectangle((*corner, *end), mix(color, 0.08 + 0.92 * min(1, value)))

    def bars(self, x, y, w, h, values, color):
        """Numbers as bars from left to right, the largest h high, on a line."""
        edges = [round((x + w * i / len(values)) * SCALE) for i in range(len(values) + 1)]
        for left, right, value in zip(edges, edges[1:], values):
            if value:
                top = round((y + h * (1 - value / max(values))) * SCALE)
                self.pen.rectangle((left, top, right - 1, (y + h) * SCALE), color)
        self.line([(x, y + h), (x + w, y + h)], FAINT, 1)

    def save(self, path, about):
        """A PNG with a palette, and in it what the figure was made from."""
        info = PngInfo()
        info.add_text("Source", about)
        picture = self.image.quantize(COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        write_bytes(path, file_bytes(picture, optimize=True, pnginfo=info))
