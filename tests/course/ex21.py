"""Exercise 21: wrong solutions, each with a piece of the message it must get, and right ones, written differently."""
RIGHT_ONE = """\
def select(model, trained):
    trained = [prefix.strip() for prefix in trained.split(",") if prefix.strip()]
    chosen = {}
    for name, p in model.named_parameters():
        on = name.startswith(tuple(trained))
        p.requires_grad_(on)
        if on:
            chosen[name] = p
    lost = [prefix for prefix in trained if not any(name.startswith(prefix) for name, _ in model.named_parameters())]
    if lost or not chosen:
        raise ValueError(f"no parameter begins with {', '.join(lost or trained)!r}")
    return chosen
"""


def changed(old, new):
    assert RIGHT_ONE.count(old) == 1, old
    return RIGHT_ONE.replace(old, new)


WRONG = [
    ("anywhere in the name", changed("on = name.startswith(tuple(trained))",
                                     "on = any(prefix in name for prefix in trained)"), "at the beginning of a name"),
    ("never freezes", changed("p.requires_grad_(on)", "p.requires_grad_(on or p.requires_grad)"), "freeze what no"),
    ("never thaws", changed("p.requires_grad_(on)", "p.requires_grad_(on and p.requires_grad)"), "also thaws"),
    ("the empty prefix", changed("[prefix.strip() for prefix in trained.split(\",\") if prefix.strip()]",
                                 "[prefix.strip() for prefix in trained.split(\",\")]"), "the empty prefix"),
    ("spaces", changed("[prefix.strip() for prefix in trained.split(\",\") if prefix.strip()]",
                       "[prefix for prefix in trained.split(\",\") if prefix]"),
     "spaces around a prefix do not count"),
    ("no error", RIGHT_ONE[:RIGHT_ONE.index("    lost")] + "    return chosen\n", "raises no ValueError"),
    ("an error only when nothing fits", changed("if lost or not chosen", "if not chosen"), "raises no ValueError"),
    ("copies", changed("chosen[name] = p", "chosen[name] = p.detach().clone()"), "not the model's own parameter"),
    ("of state_dict", """\
def select(model, trained):
    trained = [prefix.strip() for prefix in trained.split(",") if prefix.strip()]
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(tuple(trained)))
    chosen = {n: p for n, p in model.state_dict().items() if n.startswith(tuple(trained))}
    if not chosen:
        raise ValueError(", ".join(trained))
    return chosen
""", "not the model's own parameter"),
    ("whole parts only", changed("on = name.startswith(tuple(trained))",
                                 "on = name.split('.')[0] in [prefix.strip('.') for prefix in trained]"),
     "should be in it"),
]

RIGHT = [
    ("two passes", """\
def select(model, trained):
    prefixes = list(filter(None, map(str.strip, trained.split(","))))
    model.requires_grad_(False)
    found = {}
    for prefix in prefixes:
        fits = {n: p for n, p in model.named_parameters() if n[:len(prefix)] == prefix}
        if not fits:
            raise ValueError(f"{prefix} fits no parameter")
        found.update(fits)
    if not found:
        raise ValueError("nothing to train")
    for p in found.values():
        p.requires_grad = True
    return found
"""),
    ("a helper", """\
def select(model, trained):
    wanted = tuple(words(trained))
    params = dict(model.named_parameters())
    for missing in wanted:
        if not [n for n in params if n.startswith(missing)]:
            raise ValueError(f"unknown: {missing}")
    if len(wanted) < 1:
        raise ValueError("no prefix is given")
    for n in params:
        params[n].requires_grad_(n.startswith(wanted))
    return {n: p for n, p in params.items() if p.requires_grad}


def words(text):
    return [w for w in text.replace(" ", "").split(",") if w != ""]
"""),
]
