"""Exercise 22: wrong solutions, each with a piece of the message it must get, and right ones, written differently."""
UPDATE = """\
@torch.no_grad()
def update(self, params, step):
    decay = min(self.decay, (1 + step) / (10 + step))
    for name, value in self.shadow.items():
        value.lerp_(params[name], 1 - decay)
"""
SWAP = """\
@torch.no_grad()
def swap(self, params):
    for name, value in self.shadow.items():
        current = params[name].clone()
        params[name].copy_(value)
        value.copy_(current)
"""
RAMP = "min(self.decay, (1 + step) / (10 + step))"


def update(old, new):
    assert UPDATE.count(old) == 1, old
    return UPDATE.replace(old, new) + "\n\n" + SWAP


def swap(old, new):
    assert SWAP.count(old) == 1, old
    return UPDATE + "\n\n" + SWAP.replace(old, new)


WRONG = [
    ("no ramp", update(RAMP, "self.decay"), "has no ramp"),
    ("old and new change places", update("1 - decay", "decay"), "old and new change places"),
    ("the larger", update(RAMP, "max(self.decay, (1 + step) / (10 + step))"), "the larger of decay and ramp"),
    ("one step ahead", update(RAMP, "min(self.decay, (2 + step) / (11 + step))"), "one step ahead"),
    ("no limit", update(RAMP, "(1 + step) / (10 + step)"), "the ramp never ends"),
    ("by order", update("""\
    for name, value in self.shadow.items():
        value.lerp_(params[name], 1 - decay)""", """\
    for value, p in zip(self.shadow.values(), params.values()):
        if value.shape == p.shape:
            value.lerp_(p, 1 - decay)"""), "go by name"),
    ("with a graph", update("""\
@torch.no_grad()
def update""", "def update").replace("value.lerp_(params[name], 1 - decay)", """\
self.shadow[name] = decay * value + (1 - decay) * params[name]"""), "the average has a gradient"),
    ("the parameters are averaged", update("value.lerp_(params[name], 1 - decay)", """\
value.lerp_(params[name], 1 - decay)
        params[name].copy_(value)"""), "update changes the parameters"),
    ("no copy", swap("params[name].clone()", "params[name]"), "overwritten before its value is kept"),
    ("other objects", swap("""\
        current = params[name].clone()
        params[name].copy_(value)
        value.copy_(current)""", """\
        self.shadow[name], params[name] = params[name].detach(), torch.nn.Parameter(value)"""), "another object"),
    ("one way only", swap("        value.copy_(current)\n", ""), "both then have the average"),
]

RIGHT = [
    ("new tensors and data", """\
def update(self, params, step):
    share = (step + 1.0) / (step + 10.0)
    share = self.decay if share > self.decay else share
    for name in params:
        self.shadow[name] = share * self.shadow[name] + (1 - share) * params[name].detach()


def swap(self, params):
    for name in self.shadow:
        self.shadow[name], params[name].data = params[name].data, self.shadow[name]
"""),
    ("a helper", """\
@torch.no_grad()
def update(self, params, step):
    d = ramp(self.decay, step)
    for name, p in params.items():
        self.shadow[name].mul_(d).add_(p, alpha=1 - d)


@torch.no_grad()
def swap(self, params):
    kept = {name: p.detach().clone() for name, p in params.items()}
    for name, p in params.items():
        p.data.copy_(self.shadow[name])
        self.shadow[name] = kept[name]


def ramp(most, step):
    return min(most, 1 - 9 / (10 + step))
"""),
]
