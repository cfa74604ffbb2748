"""Between PIL pictures and the numbers that the VAE reads and writes, and between pixels and tokens.

Pixels follow the official scripts: a picture to be understood is padded to a square with grey (127, 127, 127) and
resized; a drawn one is clamp(127.5 x + 128, 0, 255), cut to integers.
"""
import torch
from PIL import Image

from .files import to_rgb


def to_pixels(array):
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1]."""
    return array.permute(0, 3, 1, 2).float() * (2 / 255) - 1


def to_pictures(image):
    """(N, 3, H, W) in about [-1, 1] -> PIL pictures; the official rounding."""
    array = (127.5 * image.float() + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a) for a in array]


def pad_square(image):
    """Centre a picture on a grey square: nothing is cut off, nothing is stretched."""
    image = to_rgb(image)
    side = max(image.size)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def split_region(region, size, grid):
    """Indices of the tokens that a box touches (n,), and of the others (S-n,). Box in pixels of a picture of `size`."""
    (x0, y0, x1, y1), (width, height), (h, w) = region, size, grid
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"region {x0},{y0},{x1},{y1} is not a box inside the {width}x{height} picture; "
                         f"pass --region x0,y0,x1,y1 in pixels")
    rows, columns = torch.arange(h) * height, torch.arange(w) * width            # in 1/h and 1/w pixels: all integers
    inside_rows = (rows < y1 * h) & (rows + height > y0 * h)
    inside_columns = (columns < x1 * w) & (columns + width > x0 * w)
    inside = (inside_rows[:, None] & inside_columns).flatten()
    index = torch.arange(h * w)
    return index[inside], index[~inside]
