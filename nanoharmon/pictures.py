"""Pictures: files of users as RGB, the numbers that the VAE reads and writes, boxes of pixels as tokens, and grids.

Pictures are taken as they come, from files and from callers: turned upright (EXIF), without transparency, 8 bits; files
of limited size. Pixels follow the official scripts: a picture to be understood is padded to a square with grey (127,
127, 127) and resized; a generated one is clamp(127.5 x + 128, 0, 255), cut to integers.
"""
import logging
import os
import textwrap
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, features

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")     # not EPS: Pillow would start Ghostscript
if "avif" in features.modules and features.check("avif"):          # Pillow 11.3 or later, with its decoder
    FORMATS += ("AVIF",)
MAX_PIXELS = 64_000_000                                            # larger pictures are refused before decoding
MAX_BYTES = 5 * 10**8                                              # of a picture: 64 million pixels, uncompressed
MAX_SIDE = 12_000                                                  # padded to a square, a longer one fills the memory
logging.getLogger("PIL").addHandler(logging.NullHandler())         # or damaged files are lines on stderr, too


# --- files ------------------------------------------------------------------------------------------------------------

def open_image(path, flag="--image"):
    """`read_image` for a file that a flag names."""
    try:
        return read_image(path)
    except ValueError as e:
        raise ValueError(f"{e}, expected a picture ({', '.join(FORMATS)}); change {flag}") from None


def read_image(path):
    """A picture file as an RGB PIL picture: upright (EXIF), transparency over white, 16 bits reduced to 8, the first
    frame of an animation. Color profiles are ignored. Raises ValueError that says what is wrong with the file."""
    path = path if hasattr(path, "open") else Path(path)           # it may lie in a .tar: training/entries.py
    try:
        if not path.is_file():
            problem = "an address, expected a file: download it first" if str(path).startswith(("http:", "https:")) \
                else "no such file, for nothing replaces ~ in quotes" if str(path).startswith("~") else \
                "not a file" if path.exists() else "no such file"
        elif (size := path.stat().st_size) > MAX_BYTES:
            problem = f"{size / 1e6:,.0f} MB, more than the limit of {MAX_BYTES // 10**6} MB"
        else:
            with warnings.catch_warnings(), path.open("rb") as file:
                warnings.simplefilter("ignore")            # our limit is below Pillow's, and an error
                image = Image.open(file, formats=FORMATS)  # lazy: reads the header only
                if image.width * image.height <= MAX_PIXELS and max(image.size) <= MAX_SIDE:
                    return to_rgb(image)
            problem = (f"{image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS // 10**6} million, "
                       f"{MAX_SIDE:,} along a side")
    except Exception as e:                             # damaged files raise a dozen types, not only OSError
        problem = "not a picture" if isinstance(e, Image.UnidentifiedImageError) else \
            "too many pixels" if isinstance(e, Image.DecompressionBombError) else \
            getattr(e, "strerror", None) or f"damaged or truncated ({e})"        # a name too long, no permission
    raise ValueError(f"{path}: {problem}")


def as_picture(given):
    """What callers have for a picture -> an upright RGB PIL picture. Raises ValueError that says what is taken."""
    if isinstance(given, (str, os.PathLike)):
        return read_image(given)
    shape, dtype, what = tuple(getattr(given, "shape", ())), getattr(given, "dtype", None), type(given).__name__
    if isinstance(given, Image.Image):
        what = f"PIL picture of {given.width}x{given.height}"
        if min(given.size) > 0:
            try:
                return to_rgb(given)
            except Exception as e:                     # opened by the caller, and read only now
                raise ValueError(f"picture is damaged or truncated ({e})") from None
    elif dtype is not None:
        what += f" of {str(dtype).removeprefix('torch.')} {shape}"
    if len(shape) == 3 and 0 not in shape:
        if hasattr(given, "detach") and shape[0] == 3:                           # a tensor; torch is not imported here
            array = given.detach().cpu()
            if array.is_floating_point():
                low, high, array = array.min().item(), array.max().item(), (array.float() * 255).round()
                what += f" from {low:.4g} to {high:.4g}"
                array = array.byte() if low >= 0 and high <= 1 else array        # NaN is neither
            given = array.permute(1, 2, 0).contiguous().numpy()
        if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.shape[2] == 3:
            return Image.fromarray(np.ascontiguousarray(given))
    raise ValueError(f"picture is a {what}, expected a PIL picture, the path of a file, a numpy array of uint8 "
                     f"(H, W, 3), or a tensor (3, H, W) of uint8 or from 0 to 1")


def as_pictures(given):
    """One picture or any number of them -> a list of upright RGB PIL pictures."""
    if isinstance(given, (str, bytes, os.PathLike, Image.Image)) or getattr(given, "ndim", 4) in (0, 2, 3) or \
            not hasattr(given, "__iter__") or hasattr(given, "read"):
        given = [given]
    return [as_picture(picture) for picture in given]


def to_rgb(image):
    """Any PIL picture -> RGB, turned as its EXIF says. A sound picture with damaged EXIF is a sound picture."""
    image.load()
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":                          # 16 or 32 bits, or floats: Pillow would clip, not scale
        array = np.nan_to_num(np.asarray(image, dtype=np.float64))
        white = 65535 if image.mode.startswith("I;16") or array.max() > 255 else 1 if array.max() <= 1 else 255
        return Image.fromarray((array * (255 / white)).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def file_bytes(picture, format="PNG", **options):
    """A PIL picture as the bytes of a file."""
    buffer = BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


# --- pixels and tokens ------------------------------------------------------------------------------------------------

def to_pixels(array):
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1]."""
    return array.permute(0, 3, 1, 2).float() * (2 / 255) - 1


def at_once(size):
    """How many pictures of a size go through the VAE at once: it needs some KB of memory for each of their pixels."""
    return max(1, min(64, 2**20 // size**2))


def to_pictures(image):
    """(N, 3, H, W) in about [-1, 1] -> PIL pictures; the official rounding."""
    array = (127.5 * image.float() + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a) for a in array]


def psnr(a, b):
    """Mean over pictures (n, H, W, 3) uint8 of the peak signal-to-noise ratio, in dB."""
    error = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255 ** 2 / np.maximum(error, 1e-9))).mean())


def pad_square(image):
    """Centre a picture on a grey square: nothing is cut off, nothing is stretched."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def split_region(region, size, grid):
    """Indices (numpy) of the tokens that a box touches (n,), and of the others (S-n,). Box in pixels of a picture of
    `size`."""
    (x0, y0, x1, y1), (width, height), (h, w) = region, size, grid
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"region is {x0},{y0},{x1},{y1}, expected a box inside the {width}x{height} picture")
    rows, columns = np.arange(h) * height, np.arange(w) * width                  # in 1/h and 1/w pixels: all integers
    inside_rows = (rows < y1 * h) & (rows + height > y0 * h)
    inside_columns = (columns < x1 * w) & (columns + width > x0 * w)
    inside = (inside_rows[:, None] & inside_columns).flatten()
    index = np.arange(h * w, dtype="int64")             # on Windows, older numpy would take 32 bits
    return index[inside], index[~inside]


# --- several pictures as one ------------------------------------------------------------------------------------------

def picture_grid(tiles, columns, gap=2, background="white"):
    """PIL pictures row by row, `columns` side by side, `gap` pixels after each; cells fit the largest of a row, column.

    Returns one PIL picture.
    """
    rows = [tiles[i:i + columns] for i in range(0, len(tiles), columns)]
    widths = [max(row[c].width for row in rows if c < len(row)) + gap for c in range(min(columns, len(tiles)))]
    heights = [max(tile.height for tile in row) + gap for row in rows]
    sheet = Image.new("RGB", (sum(widths), sum(heights)), background)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            sheet.paste(tile, (sum(widths[:c]), sum(heights[:r])))
    return sheet


def font_for(words, size=14):
    """Pillow's own font, which is ASCII only; for other letters a common font of the system, where there is one."""
    for name in () if words.isascii() else ("DejaVuSans.ttf", "arial.ttf", "Arial.ttf"):
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def captioned(picture, text, width, lines=3):
    """A picture, `width` wide, above the first lines of its text."""
    height = round(width * picture.height / picture.width)
    tile = Image.new("RGB", (width, height + 4 + 15 * lines), "white")
    tile.paste(picture.resize((width, height), Image.Resampling.BICUBIC))
    words = textwrap.wrap(text, width // 6, max_lines=lines, placeholder=" ...")
    ImageDraw.Draw(tile).multiline_text((2, height + 2), "\n".join(words), "black", font_for(text, 11))
    return tile
