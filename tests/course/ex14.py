"""Solutions of exercise 14, how many tokens are hidden and which."""
RATIO = """
def mask_ratio_at(config, u):
    if config.mask_ratio == "cosine":
        return math.cos(math.pi / 2 * u)
    low = NormalDist().cdf((config.mask_ratio_min - 1) / 0.25)
    return 1 + 0.25 * NormalDist().inv_cdf(low + u * (0.5 - low))
"""
SPLIT = """
def random_split(config, B, S, device, generator=None, hide_all=0.0):
    u = torch.rand((), generator=generator).item()
    ratio = 1.0 if u < hide_all else mask_ratio_at(config, (u - hide_all) / (1 - hide_all))
    n_hidden = min(S, max(1, math.ceil(S * ratio)))
    orders = random_orders(B, S, "cpu", generator)
    return orders[:, n_hidden:].sort(dim=1).values, orders[:, :n_hidden].sort(dim=1).values
"""
WRONG = [
    ("spread 1", RATIO.replace("/ 0.25", "").replace("0.25 * ", "") + SPLIT, "standard deviation is 1"),
    ("not cut below", RATIO.replace("low = NormalDist().cdf((config.mask_ratio_min - 1) / 0.25)", "low = 0.0").replace(
        "(low + u", "(1e-12 + u") + SPLIT, "not cut at mask_ratio_min"),
    ("not cut at 1", RATIO.replace("0.5 - low", "1 - low") + SPLIT, "not cut at 1"),
    ("0.7 for all", RATIO.replace("config.mask_ratio_min", "0.7") + SPLIT, "whatever mask_ratio_min is"),
    ("uniform", RATIO.replace("1 + 0.25 * NormalDist().inv_cdf(low + u * (0.5 - low))",
                              "config.mask_ratio_min + u * (1 - config.mask_ratio_min)") + SPLIT, "ratio is uniform"),
    ("sine", RATIO.replace("math.cos", "math.sin") + SPLIT, "it is a sine"),
    ("clamped", RATIO.replace("1 + 0.25 * NormalDist().inv_cdf(low + u * (0.5 - low))",
                              "max(config.mask_ratio_min, 1 + 0.25 * NormalDist().inv_cdf(max(u, 1e-12) / 2))") + SPLIT,
     "the whole distribution should be cut"),
    ("rounded down", RATIO + SPLIT.replace("ceil", "floor"), "rounded down"),
    ("nothing may be hidden", RATIO + SPLIT.replace("max(1, math.ceil(S * ratio))", "math.ceil(S * ratio)"),
     "at least one must be"),
    ("swapped", RATIO + SPLIT.replace("n_hidden:]", "@").replace(":n_hidden]", "n_hidden:]").replace("@", ":n_hidden]"),
     "visible and hidden are swapped"),
    ("not sorted", RATIO + SPLIT.replace(".sort(dim=1).values", ""), "not in raster order"),
    ("one order for all", RATIO + SPLIT.replace('(B, S, "cpu", generator)', '(1, S, "cpu", generator).expand(B, S)'),
     "all pictures of the batch hide the same places"),
    ("generator forgotten", RATIO + SPLIT.replace('"cpu", generator)', '"cpu")'), "random numbers from generator"),
    ("the first places", RATIO + SPLIT.replace('random_orders(B, S, "cpu", generator)', "torch.arange(S).expand(B, S)"),
     "the same places"),
    ("not stretched", RATIO + SPLIT.replace("(u - hide_all) / (1 - hide_all)", "u"), "u is not stretched"),
    ("hide_all forgotten", RATIO + SPLIT.replace("1.0 if u < hide_all else ", "").replace(
        "(u - hide_all) / (1 - hide_all)", "u"), "hide_all is not used"),
    ("orders first", RATIO + """
def random_split(config, B, S, device, generator=None, hide_all=0.0):
    orders = random_orders(B, S, "cpu", generator)
    u = torch.rand((), generator=generator).item()
    ratio = 1.0 if u < hide_all else mask_ratio_at(config, (u - hide_all) / (1 - hide_all))
    n_hidden = min(S, max(1, math.ceil(S * ratio)))
    return orders[:, n_hidden:].sort(dim=1).values, orders[:, :n_hidden].sort(dim=1).values
""", "u is drawn after the orders"),
]
RIGHT = [
    ("by halving, and with masks", """
def mask_ratio_at(config, u):
    if config.mask_ratio != "truncnorm":
        return math.sin(math.pi / 2 * (1 - u))
    normal, lower, upper = NormalDist(mu=1.0, sigma=0.25), config.mask_ratio_min, 1.0
    target = normal.cdf(lower) + u * (0.5 - normal.cdf(lower))
    while upper - lower > 1e-9:
        middle = (lower + upper) / 2
        if normal.cdf(middle) < target:
            lower = middle
        else:
            upper = middle
    return upper

def random_split(config, B, S, device, generator=None, hide_all=0.0):
    u = float(torch.rand(1, generator=generator))
    if u < hide_all:
        n = S
    else:
        n = -int(-S * mask_ratio_at(config, (u - hide_all) / (1 - hide_all)) // 1)
        n = sorted((1, n, S))[1]
    is_hidden = torch.zeros(B, S, dtype=torch.bool)
    for row in is_hidden:
        row[torch.randperm(S, generator=generator)[:n]] = True
    places = torch.arange(S).expand(B, S)
    return places[~is_hidden].view(B, S - n).to(device), places[is_hidden].view(B, n).to(device)
"""),
    ("torch's erfinv, the last places", """
def standard(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2

def mask_ratio_at(config, u):
    if config.mask_ratio == "truncnorm":
        low = standard(4 * config.mask_ratio_min - 4)
        p = torch.tensor((1 - u) * low + u * 0.5, dtype=torch.float64)
        return 1 + math.sqrt(2) * torch.erfinv(2 * p - 1).item() / 4
    return math.cos(u * math.pi / 2)

def random_split(config, B, S, device, generator=None, hide_all=0.0):
    u = torch.rand((), generator=generator).item()
    ratio = 1.0
    if u >= hide_all:
        ratio = mask_ratio_at(config, (u - hide_all) / (1 - hide_all))
    n_visible = max(0, min(S - 1, S - math.ceil(S * ratio)))
    shuffled = torch.rand(B, S, generator=generator).argsort(dim=1)
    visible, _ = torch.sort(shuffled[:, :n_visible], dim=-1)
    hidden, _ = torch.sort(shuffled[:, n_visible:], dim=-1)
    return visible.to(device), hidden.to(device)
"""),
]
