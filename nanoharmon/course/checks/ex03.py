"""Checks of exercise 03, learned positions on another grid."""
import random

import torch
import torch.nn.functional as F

from nanoharmon.config import MARConfig
from nanoharmon.course.checks.compare import same, unchanged
from nanoharmon.mar import MAR

POINTS = {"test_native_grid": 1, "test_another_grid": 2, "test_buffers_stay": 1}


def make(seed):
    """A MAR, its native side, the number of buffers, and a table (1, U + S, D)."""
    rng = random.Random(seed)
    n, U, D = rng.randrange(3, 6), rng.randrange(1, 5), rng.randrange(3, 8)
    mar = MAR(MARConfig(grid=n, token_dim=2, encoder_embed_dim=8, encoder_depth=1, encoder_num_heads=1,
                        decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=1, buffer_size=U, class_num=2,
                        diffloss_d=1, diffloss_w=8))
    return mar, rng, n, U, torch.randn(1, U + n * n, D)


def resized(places, n, h, w):
    """Bilinear, by hand: the middle of new cell i lies at (i + 0.5) * n / h - 0.5 of the old cells. (n*n, D)."""
    def at(i, size):
        x = max(0.0, (i + 0.5) * n / size - 0.5)
        low = min(int(x), n - 1)
        return low, min(low + 1, n - 1), x - low
    rows = []
    for i in range(h):
        a, b, s = at(i, h)
        for j in range(w):
            c, d, t = at(j, w)
            rows.append((1 - s) * ((1 - t) * places[a * n + c] + t * places[a * n + d])
                        + s * ((1 - t) * places[b * n + c] + t * places[b * n + d]))
    return torch.stack(rows)


def by_torch(places, n, size, **options):
    """(1, n*n, D) -> (1, h*w, D) by F.interpolate with some options."""
    grid = places.transpose(1, 2).reshape(1, -1, n, n)
    return F.interpolate(grid, size=size, **options).flatten(2).transpose(1, 2)


def compare(mar, table, n, U, h, w):
    before = table.clone()
    got = mar.pos_embed(table, (h, w), U)
    unchanged("the table", before, table)
    first, places = table[:, :U], table[:, U:]
    expected = torch.cat([first.double(), resized(places[0].double(), n, h, w)[None]], dim=1)

    def with_buffers(rows):
        return torch.cat([first, rows], dim=1)
    bilinear = {"mode": "bilinear"}
    same(f"the table of a {n} x {n} grid for grid {h} x {w}", got, expected, {
        "h and w are exchanged": lambda: with_buffers(by_torch(places, n, (w, h), **bilinear)),
        "rows and columns of the table are exchanged": lambda: with_buffers(
            by_torch(places.reshape(1, n, n, -1).transpose(1, 2).reshape(1, n * n, -1), n, (h, w), **bilinear)),
        "the nearest place is copied": lambda: with_buffers(by_torch(places, n, (h, w), mode="nearest")),
        "the corners are aligned": lambda: with_buffers(by_torch(places, n, (h, w), align_corners=True, **bilinear)),
        "antialias is on": lambda: with_buffers(by_torch(places, n, (h, w), antialias=True, **bilinear)),
        "it is resized bicubically": lambda: with_buffers(by_torch(places, n, (h, w), mode="bicubic")),
        "channels and places are mixed: reshape does not exchange them": lambda: with_buffers(F.interpolate(
            places.reshape(1, -1, n, n), size=(h, w), **bilinear).flatten(2).transpose(1, 2)),
        "the buffers' rows are lost": lambda: by_torch(places, n, (h, w), **bilinear),
        "the buffers come after the places": lambda: torch.cat([by_torch(places, n, (h, w), **bilinear), first], dim=1),
        "the last rows are taken for the buffers'": lambda: torch.cat(
            [table[:, n * n:], by_torch(table[:, :n * n], n, (h, w), **bilinear)], dim=1)})


@torch.no_grad()
def test_native_grid(seed):
    mar, _, n, U, table = make(seed)
    same("the table for grid None", mar.pos_embed(table, None, U), table, rtol=0, atol=0)
    same("the table for its native grid", mar.pos_embed(table, (n, n), U), table, rtol=0, atol=1e-6)


@torch.no_grad()
def test_another_grid(seed):
    mar, rng, n, _, table = make(seed)
    table = table[:, :n * n]
    compare(mar, table, n, 0, 2 * n, 2 * n)
    h, w = rng.sample(range(2, 9), 2)
    compare(mar, table, n, 0, h, w)
    table = table.bfloat16()
    got = mar.pos_embed(table, (h, w), 0)
    assert got.dtype == torch.bfloat16, f"the table is bfloat16, your result {str(got.dtype)[6:]}, expected the same"


@torch.no_grad()
def test_buffers_stay(seed):
    mar, rng, n, U, table = make(seed)
    h, w = rng.sample(range(2, 9), 2)
    compare(mar, table, n, U, h, w)
