"""Exercise 23: wrong solutions, each with a piece of the message it must get, and right ones, written differently."""
MUON = """\
def orthogonalize(x, steps=5):
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x
"""
RATE = """\
def lr_factor(step, steps, warmup, schedule, floor):
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    down = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return floor + (1 - floor) * down
"""


def muon(old, new):
    assert MUON.count(old) == 1, old
    return MUON.replace(old, new) + "\n\n" + RATE


def rate(old, new):
    assert RATE.count(old) == 1, old
    return MUON + "\n\n" + RATE.replace(old, new)


LENGTH = "x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)"
WRONG = [
    ("no length", muon("    " + LENGTH + "\n", ""), "not divided by their length"),
    ("the length of the stack", muon(LENGTH, "x = x / (x.norm() + 1e-7)"), "the length of the whole stack"),
    ("the largest singular value", muon(LENGTH, "x = x / torch.linalg.matrix_norm(x, 2, keepdim=True)"),
     "by the largest singular value"),
    ("in place", muon(LENGTH, "x /= x.norm(dim=(1, 2), keepdim=True) + 1e-7"), "changes x in place"),
    ("steps not used", muon("range(steps)", "range(5)"), "there are always 5"),
    ("b and c", muon("b * gram + c * gram @ gram", "c * gram + b * gram @ gram"), "b and c change places"),
    ("cubic", muon(" + c * gram @ gram", ""), "the fifth power is left out"),
    ("not turned back", muon("return x.transpose(1, 2) if tall else x", "return x"), "is not turned back"),
    ("zeros", muon(" + 1e-7", ""), "add 1e-7 to the length"),
    ("exact", """\
def orthogonalize(x, steps=5):
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u @ v


""" + RATE, "it is exact"),
    ("starts at zero", rate("(step + 1) / warmup", "step / warmup"), "the first step teaches nothing"),
    ("never full", rate("(step + 1) / warmup", "(step + 1) / (warmup + 1)"), "it does not reach 1"),
    ("whole numbers", rate("(step + 1) / warmup", "(step + 1) // warmup"), "as whole numbers (//)"),
    ("warmup in the fall", rate("(step - warmup) / max(1, steps - warmup)", "step / steps"), "counts as a part"),
    ("never down", rate("(step - warmup) / max(1, steps - warmup)", "(step - warmup) / steps"),
     "progress never comes to 1"),
    ("no floor", rate("floor + (1 - floor) * down", "down"), "the floor is left out"),
    ("floor as the least", rate("floor + (1 - floor) * down", "max(floor, down)"), "the least value"),
    ("floor added", rate("floor + (1 - floor) * down", "floor + down"), "the floor is added to the fall"),
    ("a quarter of the cosine", rate("(1 + math.cos(math.pi * progress)) / 2", "math.cos(math.pi / 2 * progress)"),
     "a quarter of a period"),
    ("divides by zero", rate("max(1, steps - warmup)", "(steps - warmup)"), "max(1, steps - warmup)"),
    ("at 0 without warmup", rate("if step < warmup", "if step <= warmup"), "warmup is 0"),
    ("schedules change places", rate('== "cosine"', '== "linear"'), "change places"),
]

RIGHT = [
    ("the other side, and by cases", """\
def orthogonalize(x, steps=5):
    y = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for i in range(0, steps):
        inner = torch.einsum("nri,nrj->nij", y, y)
        y = 3.4445 * y - 4.7750 * torch.bmm(y, inner) + 2.0315 * torch.bmm(torch.bmm(y, inner), inner)
    return y


def lr_factor(step, steps, warmup, schedule, floor):
    rising = min(warmup, step + 1) / warmup if warmup > 0 else 1.0
    if warmup > step:
        return rising
    left = steps - step
    share = left / (steps - warmup) if steps > warmup else 0.0
    if schedule == "linear":
        return floor * (1 - share) + share
    return floor * (1 - math.sin(math.pi / 2 * share) ** 2) + math.sin(math.pi / 2 * share) ** 2
"""),
    ("matrix by matrix, and helpers", """\
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalize(x, steps=5):
    return torch.stack([one(matrix, steps) for matrix in x])


def one(m, steps):
    if m.size(0) > m.size(1):
        return one(m.t(), steps).t()
    m = m / (m.square().sum().sqrt() + 1e-7)
    while steps:
        g, steps = m @ m.t(), steps - 1
        m = A * m + (B * g + C * (g @ g)) @ m
    return m


def lr_factor(step, steps, warmup, schedule, floor):
    if step + 1 <= warmup:
        return float(step + 1) / float(warmup)
    done = min(1.0, (step - warmup) / max(steps - warmup, 1))
    return between(floor, 1.0, 1 - done if schedule != "cosine" else 0.5 + 0.5 * math.cos(done * math.pi))


def between(a, b, u):
    return a * (1 - u) + b * u
"""),
]
