"""Files of users. Pictures as they come: upright, without transparency, 8 bits, of a bearable size. Errors are
ValueErrors that name the flag to change.
"""
import os
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .checkpoint import _write

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")     # not EPS: Pillow would start Ghostscript
MAX_PIXELS = 64_000_000                                            # larger pictures are refused before decoding


def open_image(path, flag="--image"):
    """A picture file as an RGB PIL picture: upright (EXIF), transparency over white, 16 bits reduced to 8."""
    wanted = f"expected a picture ({', '.join(FORMATS)}); change {flag}"
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file, {wanted}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")            # our limit is below Pillow's, and an error
            image = Image.open(path, formats=FORMATS)  # lazy: reads the header only
        if image.width * image.height <= MAX_PIXELS:
            return to_rgb(ImageOps.exif_transpose(image))
        problem = f"{image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS // 10**6} million"
    except Exception as e:                             # damaged files raise a dozen types, not only OSError
        problem = "not a picture" if isinstance(e, Image.UnidentifiedImageError) else f"damaged or truncated ({e})"
        problem = "too many pixels" if isinstance(e, Image.DecompressionBombError) else problem
    raise ValueError(f"{path}: {problem}, {wanted}")


def to_rgb(image):
    """Any PIL mode -> RGB."""
    if image.mode[0] in "IF":                          # 16 or 32 bits, or floats: Pillow would clip, not scale
        array = np.nan_to_num(np.asarray(image, dtype=np.float64))
        white = 65535 if image.mode.startswith("I;16") or array.max() > 255 else 1 if array.max() <= 1 else 255
        return Image.fromarray((array * (255 / white)).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def check_output(path, flag, suffixes=()):
    """Complain now, not after minutes of work, about a place where nothing can be written. -> Path"""
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {path.name!r}, expected a name ending in {', '.join(suffixes)}; change {flag}")
    if not path.parent.is_dir():
        raise ValueError(f"no folder {path.parent} to write {path.name} in; make it, or change {flag}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file, expected the name of a file to write; change {flag}")
    if not os.access(path.parent, os.W_OK) or path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} is not writable; change {flag}")
    return path


def encode(picture, format="PNG", **options):
    """A PIL picture as the bytes of a file."""
    buffer = BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def write_bytes(path, data):
    """Write a file whole or not at all. Raises OSError that says why not."""
    _write(path, [data])
