"""Solutions of exercise 05, rotary positions."""
TABLES = """
def rope_tables(positions, head_dim, theta):
    exponent = torch.arange(0, head_dim, 2).float() / head_dim
    angles = positions[..., None].float() * theta ** -exponent
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1).unsqueeze(1), torch.cat([-sin, sin], dim=-1).unsqueeze(1)
"""
ROTATE = """
def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return x * cos + torch.cat([b, a], dim=-1) * sin
"""
WRONG = [
    ("exponent i / d", TABLES.replace("/ head_dim", "/ head_dim / 2"), "the exponent is i / head_dim"),
    ("growing speeds", TABLES.replace("** -exponent", "** exponent"), ""),
    ("neighbours in the table", TABLES.replace("torch.cat([cos, cos], dim=-1)", "cos.repeat_interleave(2, dim=-1)"),
     "the angles of neighbours"),
    ("sin, cos", TABLES.replace("angles.cos(), angles.sin()", "angles.sin(), angles.cos()").replace("-sin, sin",
     "sin, sin").replace("[cos, cos]", "[-cos, cos]"), "exchanged"),
    ("no minus in the table", TABLES.replace("-sin, sin", "sin, sin"), "have no minus"),
    ("minus in the second half", TABLES.replace("-sin, sin", "sin, -sin"), "in the second half"),
    ("no heads", TABLES.replace(".unsqueeze(1)", ""), "the dimension of the heads is missing"),
    ("positions from 0", TABLES.replace("positions[..., None].float()",
                                        "torch.arange(positions.shape[1]).expand_as(positions)[..., None]"),
     "whatever `positions` says"),
    ("theta fixed", TABLES.replace("theta **", "10000.0 **"), "theta is always 10000"),
    ("backwards", ROTATE.replace("* sin", "* -sin"), "turned backwards"),
    ("minus twice", ROTATE.replace("[b, a]", "[-b, a]"), "put once more"),
    ("not exchanged", ROTATE.replace("torch.cat([b, a], dim=-1)", "x"), "not exchanged before"),
    ("neighbours paired", """
def rotate(x, cos, sin):
    turned = torch.stack([x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)
""", ""),
    ("float32 out", ROTATE.replace("    cos, sin = cos.to(x.dtype), sin.to(x.dtype)\n", ""), "x is bfloat16"),
    ("in place", """
def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    other = torch.cat([b, a], dim=-1) * sin.to(x.dtype)
    return x.mul_(cos.to(x.dtype)).add_(other)
""", "changes x in place"),
]
RIGHT = [
    ("einsum and complex numbers", """
def rope_tables(positions, head_dim, theta):
    speeds = torch.tensor([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)] * 2)
    angles = torch.einsum("bl,d->bld", positions.float(), speeds)[:, None]
    sign = torch.tensor([-1.0, 1.0]).repeat_interleave(head_dim // 2)
    return torch.cos(angles), torch.sin(angles) * sign

def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turn = torch.complex(cos[..., half:].float(), sin[..., half:].float())
    y = torch.complex(x[..., :half].float(), x[..., half:].float()) * turn
    return torch.cat([y.real, y.imag], dim=-1).to(x.dtype)
"""),
    ("by halves", """
import math

def rope_tables(positions, head_dim, theta):
    half = head_dim // 2
    i = torch.arange(head_dim) % half
    angles = positions[:, None, :, None] * torch.exp(-math.log(theta) * 2 * i / head_dim)
    sines = angles.sin()
    sines[..., :half] *= -1
    return angles.cos(), sines

def rotate(x, cos, sin):
    half, out = x.shape[-1] // 2, torch.empty_like(x)
    cos, sin = cos.to(x), sin.to(x)
    out[..., :half] = x[..., :half] * cos[..., :half] + x[..., half:] * sin[..., :half]
    out[..., half:] = x[..., half:] * cos[..., half:] + x[..., :half] * sin[..., half:]
    return out
"""),
]
