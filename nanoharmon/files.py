"""Files of users, read: pictures as they come (upright, without transparency, 8 bits, of a bearable size) and JSON.
Files of ours, written whole or not at all. Errors name the flag to change.
"""
import errno
import json
import logging
import os
import threading
import warnings
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")     # not EPS: Pillow would start Ghostscript
MAX_PIXELS = 64_000_000                                            # larger pictures are refused before decoding
MAX_BYTES = 5 * 10**8                                              # of a picture: 64 million pixels, uncompressed
MAX_JSON = 10**7                                                   # bytes; a config.json has a few thousand
MAX_SIDE = 12_000                                                  # padded to a square, a longer one fills the memory
ONE_THREAD = threading.Lock()
logging.getLogger("PIL").addHandler(logging.NullHandler())         # or damaged files are lines on stderr, too


def open_image(path, flag="--image"):
    """`read_image` for a file that a flag names."""
    try:
        return read_image(path)
    except ValueError as e:
        raise ValueError(f"{e}, expected a picture ({', '.join(FORMATS)}); change {flag}") from None


def read_image(path):
    """A picture file as an RGB PIL picture: upright (EXIF), transparency over white, 16 bits reduced to 8, the first
    frame of an animation. Color profiles are ignored. Raises ValueError that says what is wrong with the file."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    if (size := Path(path).stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: {size / 1e6:,.0f} MB, more than the limit of {MAX_BYTES // 10**6} MB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")            # our limit is below Pillow's, and an error
            image = Image.open(path, formats=FORMATS)  # lazy: reads the header only
            if image.width * image.height <= MAX_PIXELS and max(image.size) <= MAX_SIDE:
                with silence() if image.format == "TIFF" else nullcontext():
                    return to_rgb(ImageOps.exif_transpose(image))
        problem = (f"{image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS // 10**6} million, "
                   f"{MAX_SIDE:,} along a side")
    except Exception as e:                             # damaged files raise a dozen types, not only OSError
        problem = "not a picture" if isinstance(e, Image.UnidentifiedImageError) else f"damaged or truncated ({e})"
        problem = "too many pixels" if isinstance(e, Image.DecompressionBombError) else problem
    raise ValueError(f"{path}: {problem}")


@contextmanager
def silence():
    """For one thread at a time: nothing reaches stderr, where libtiff describes all damage unasked."""
    with ONE_THREAD, open(os.devnull, "wb") as nowhere:
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


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


def read_json(path, fix):
    """The object in a small JSON file. Raises ValueError that ends with `fix` for anything else."""
    try:
        if Path(path).stat().st_size > MAX_JSON:
            raise ValueError(f"larger than {MAX_JSON // 10**6} MB")
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: not valid JSON ({e}); {fix}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a {type(values).__name__}, expected a JSON object; {fix}")
    return values


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


def check_folder(path, flag):
    """Complain now about a folder that cannot be made or written in. -> Path"""
    try:
        nearest = next(p for p in (Path(path), *Path(path).absolute().parents) if p.exists())
        problem = "" if nearest.is_dir() and os.access(nearest, os.W_OK) else f"{nearest} is no folder to write in"
    except OSError as e:                               # a name that is too long, for instance
        problem = e.strerror
    if problem:
        raise ValueError(f"cannot write in the folder {path}: {problem}; change {flag}")
    return Path(path)


def encode(picture, format="PNG", **options):
    """A PIL picture as the bytes of a file."""
    buffer = BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


# --- files that are whole or not there --------------------------------------------------------------------------------

def sync_folder(folder):
    """Make renames in it survive a power cut."""
    if os.name != "nt":  # windows cannot open folders
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


@contextmanager
def explained(path):
    """An OSError inside becomes one that says what could not be written, why, and what helps."""
    try:
        yield
    except OSError as e:
        if not e.strerror:  # explained already, by an inner one
            raise
        hint = "check the folder or pass --out elsewhere"
        if e.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            hint = "disk or quota is full; free space or pass --out on another disk"
        raise OSError(f"could not write {path}: {e.strerror}; {hint}") from e


def write_chunks(path, chunks):
    """Write a file of pieces of bytes whole or not at all: beside its destination, fsynced, then renamed. Raises
    OSError that says why not."""
    tmp = Path(f"{path}.tmp-write")  # a fixed name, so the next write replaces a killed one
    try:
        with explained(path):
            with open(tmp, "wb") as f:
                f.writelines(chunks)
                f.flush()
                os.fsync(f.fileno())
            os.replace(tmp, path)
            sync_folder(tmp.parent)
    finally:
        with suppress(OSError):
            tmp.unlink()


def write_json(path: str | Path, obj):
    write_chunks(path, [json.dumps(obj, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"])


def write_bytes(path, data):
    """As `write_chunks`, of one piece."""
    write_chunks(path, [data])
