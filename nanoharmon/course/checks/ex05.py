"""Checks of exercise 05, rotary positions."""
import random

import torch

from nanoharmon.course.checks.compare import same, unchanged
from nanoharmon.qwen import rope_tables, rotate

POINTS = {"test_tables": 2, "test_rotate": 1, "test_products_depend_on_the_distance": 1}


def angles(positions, d, exponent, theta, twice=True):
    """(B, L, d) by loops, float64; exponent(i) of pair i."""
    speeds = [theta ** -exponent(i) for i in range(d // 2)]
    speeds = speeds * 2 if twice else [s for s in speeds for _ in range(2)]
    return torch.tensor([[[int(p) * s for s in speeds] for p in row] for row in positions], dtype=torch.float64)


def test_tables(seed):
    rng = random.Random(seed)
    B, L, d, theta = rng.randrange(2, 4), rng.randrange(3, 7), 2 * rng.randrange(2, 9), rng.choice([50.0, 1e3, 1e4])
    positions = torch.randint(0, 40, (B, L))                     # any order: padding, or a picture after a prompt
    before = positions.clone()
    got = rope_tables(positions, d, theta)
    unchanged("positions", before, positions)
    assert isinstance(got, (tuple, list)) and len(got) == 2, "expected two results, cos and sin"
    right = angles(positions, d, lambda i: 2 * i / d, theta)

    def signed_sine(angle):
        return torch.cat([-angle[..., :d // 2].sin(), angle[..., d // 2:].sin()], dim=-1)
    for name, function, table in (("cos", torch.cos, got[0]), ("sin", signed_sine, got[1])):
        other = signed_sine if name == "cos" else torch.cos
        same(name, table, function(right)[:, None], {
            "cos and sin are exchanged": other(right)[:, None],
            "the sines of the first half have no minus": torch.sin(right)[:, None],
            "the minus is in the second half, not in the first": -signed_sine(right)[:, None],
            "the dimension of the heads is missing, (B, L, d)": function(right),
            "the heads come after the positions, (B, L, 1, d)": function(right)[:, :, None],
            "the angles of neighbours are equal; expected those of channels i and i + d/2":
                function(angles(positions, d, lambda i: 2 * i / d, theta, twice=False))[:, None],
            "the exponent is i / head_dim, not 2i / head_dim":
                function(angles(positions, d, lambda i: i / d, theta))[:, None],
            "the exponent starts at 1, not at 0":
                function(angles(positions, d, lambda i: 2 * (i + 1) / d, theta))[:, None],
            "the positions are counted 0, 1, 2, ... whatever `positions` says": function(angles(
                torch.arange(L).expand(B, L), d, lambda i: 2 * i / d, theta))[:, None],
            "theta is always 10000": function(angles(positions, d, lambda i: 2 * i / d, 1e4))[:, None],
            "only half of the channels have an angle": function(right)[:, None, :, :d // 2],
        }, rtol=1e-4, atol=2e-5, dtype=torch.float32)


def test_rotate(seed):
    rng = random.Random(seed)
    B, heads, L, d = rng.randrange(2, 4), rng.randrange(2, 4), rng.randrange(2, 6), 2 * rng.randrange(2, 7)
    x, angle = torch.randn(B, heads, L, d), torch.randn(B, 1, L, d // 2) * 2
    c, s = angle.cos(), angle.sin()
    cos, sin = torch.cat([c, c], dim=-1), torch.cat([-s, s], dim=-1)
    a, b = x[..., :d // 2], x[..., d // 2:]
    expected = torch.empty_like(x)
    for i in range(d // 2):                                      # pair by pair
        expected[..., i] = a[..., i] * c[..., i] - b[..., i] * s[..., i]
        expected[..., i + d // 2] = b[..., i] * c[..., i] + a[..., i] * s[..., i]
    even, odd = x[..., ::2], x[..., 1::2]
    before = x.clone()
    got = rotate(x, cos, sin)
    unchanged("x", before, x)
    same("the rotated x", got, expected, {
        "it is turned backwards": torch.cat([a * c + b * s, b * c - a * s], dim=-1),
        "both halves have the minus": torch.cat([a * c - b * s, b * c - a * s], dim=-1),
        "the halves are exchanged": torch.cat([b * c + a * s, a * c - b * s], dim=-1),
        "neighbours are paired; expected channels i and i + d/2":
            x * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * torch.cat([s, s], dim=-1),
        "the halves are not exchanged before they meet sin": x * cos + x * sin,
        "the minus of the table is put once more": x * cos + torch.cat([-b, a], dim=-1) * sin,
        "only cos is used": x * cos})
    low = rotate(x.bfloat16(), cos, sin)
    same("the rotated bfloat16", low.float(), expected, rtol=5e-2, atol=5e-2)
    assert low.dtype == torch.bfloat16, f"x is bfloat16, your result {str(low.dtype)[6:]}, expected the same"


def test_products_depend_on_the_distance(seed):
    rng = random.Random(seed)
    d, near, far = 2 * rng.randrange(2, 9), rng.randrange(0, 5), rng.randrange(1, 9)
    q, k = torch.randn(1, 2, 1, d).double(), torch.randn(1, 2, 1, d).double()

    def product(at_q, at_k):
        def turned(x, at):
            return rotate(x, *rope_tables(torch.tensor([[at]]), d, 1e3))
        return (turned(q, at_q) * turned(k, at_k)).sum(-1)
    same(f"q . k at positions {near + far} and {near}, against {near + far + 20} and {near + 20}",
         product(near + far + 20, near + 20), product(near + far, near), rtol=1e-3, atol=1e-4)
    same("the length of a rotated vector", rotate(q, *rope_tables(torch.tensor([[far]]), d, 1e3)).norm(), q.norm())
    assert not torch.allclose(product(0, 0), product(far, 0), rtol=1e-3), \
        "q . k is the same at every distance: nothing is turned"
