"""Solutions of exercise 17, the drawing loop."""
DRAW = """
@torch.no_grad()
def draw(self, predict, orders, iters, cfg=1.0, cfg_schedule="constant", latents=None, known=None, on_iteration=None,
         **sampling):
    B, n = orders.shape
    if latents is None:
        latents = torch.zeros(B, n, self.config.token_dim, device=orders.device)
    known = orders[:, :0] if known is None else known
    counts = unmasking_schedule(n, iters)
    for n_now, n_next in zip(counts, counts[1:]):
        if n_now == n_next:
            continue
        visible = torch.cat([known, orders[:, n_now:]], dim=1).sort(dim=1).values
        to_draw = orders[:, n_next:n_now].sort(dim=1).values
        scale = cfg if cfg_schedule == "constant" else 1 + (cfg - 1) * (n - max(1, n_next)) / n
        z = predict(latents, visible, to_draw).flatten(0, 1)
        new = self.diffloss.sample(z, cfg=scale, guided=cfg != 1.0, **sampling)
        new = new.unflatten(0, (B, -1)).to(latents.dtype)
        latents = latents.scatter(1, to_draw.unsqueeze(-1).expand(-1, -1, new.shape[-1]), new)
        if on_iteration is not None:
            on_iteration(latents, torch.cat([known, orders[:, n_next:]], dim=1))
    return latents
"""
WRONG = [
    ("first entries first", DRAW.replace("    known =", "    orders = orders.flip(1)\n    known ="),
     "the first entries of orders are drawn first"),
    ("drawn ones are visible", DRAW.replace("orders[:, n_now:]], dim=1).sort", "orders[:, n_next:]], dim=1).sort"),
     "the places that are drawn only now"),
    ("visible not sorted", DRAW.replace("n_now:]], dim=1).sort(dim=1).values", "n_now:]], dim=1)"), "in raster order"),
    ("hidden for visible", DRAW.replace("[known, orders[:, n_now:]]", "[known, orders[:, :n_now]]"),
     "visible and hidden places are swapped"),
    ("known forgotten", DRAW.replace("torch.cat([known, orders[:, n_now:]], dim=1)", "orders[:, n_now:]"),
     "the known places are not among the visible"),
    ("halves row by row", DRAW.replace(".flatten(0, 1)\n", ".transpose(0, 1).flatten(0, 1)\n"),
     "all conditional rows of the batch first"),
    ("batch and places mixed", DRAW.replace("(0, (B, -1))", "(0, (-1, B)).transpose(0, 1)"),
     "tokens of the batch are mixed"),
    ("full cfg at the end", DRAW.replace("max(1, n_next)", "n_next"), "one token counts as hidden"),
    ("share of before", DRAW.replace("(n - max(1, n_next))", "(n - n_now)"), "the share is that before the iteration"),
    ("share of all tokens", DRAW.replace("max(1, n_next)) / n", "max(1, n_next)) / latents.shape[1]").replace(
        "(n - max", "(latents.shape[1] - max"), "that of all tokens"),
    ("cfg always constant", DRAW.replace(
        'cfg if cfg_schedule == "constant" else 1 + (cfg - 1) * (n - max(1, n_next)) / n', "cfg"),
     "cfg_schedule is not used"),
    ("guided left to the sampler", DRAW.replace(", guided=cfg != 1.0", ""), "growing guidance may pass through 1"),
    ("options lost", DRAW.replace(", guided=cfg != 1.0, **sampling", ", guided=cfg != 1.0"), "pass **sampling on"),
    ("empty iterations", DRAW.replace("        if n_now == n_next:\n            continue\n", ""),
     "skip an iteration that has none"),
    ("picture changed in place", DRAW.replace("latents = latents.scatter(", "latents.scatter_("), "latents in place"),
    ("dtype of the sampler", DRAW.replace(".to(latents.dtype)", "").replace("= latents.sc", "= latents.to(new).sc"),
     "keep the dtype"),
    ("on_iteration too early", DRAW.replace("latents = latents.scatter", "latents, old = latents.scatter").replace(
        "shape[-1]), new)", "shape[-1]), new), latents").replace("on_iteration(latents,", "on_iteration(old,"),
     "latents of before the iteration"),
    ("on_iteration with old places", DRAW.replace("orders[:, n_next:]], dim=1))", "orders[:, n_now:]], dim=1))"),
     "visible before the iteration"),
    ("one iteration missing", DRAW.replace("zip(counts, counts[1:])", "zip(counts[:-1], counts[1:-1])"),
     "the model is asked"),
]
RIGHT = [
    ("loops and plain indexing", """
def strength(cfg, schedule, n, left):
    return cfg if schedule != "linear" else 1 + (cfg - 1) * (n - max(left, 1)) / n

@torch.no_grad()
def draw(self, predict, orders, iters, cfg=1.0, cfg_schedule="constant", latents=None, known=None, on_iteration=None,
         **sampling):
    B, n = orders.shape
    result = torch.zeros(B, n, self.config.token_dim) if latents is None else latents.clone()
    if known is None:
        known = torch.empty(B, 0, dtype=torch.long, device=orders.device)
    hidden = n
    for left in unmasking_schedule(n, iters)[1:]:
        if left < hidden:
            drawn = orders[:, left:hidden]
            visible, _ = torch.sort(torch.cat((known, orders[:, hidden:]), 1), 1)
            z = predict(result, visible, drawn)
            z = z.reshape(-1, z.shape[-1])
            tokens = self.diffloss.sample(z, cfg=strength(cfg, cfg_schedule, n, left), guided=cfg != 1, **sampling)
            tokens = tokens.view(B, hidden - left, -1)
            result = result.clone()
            for b in range(B):
                result[b, drawn[b]] = tokens[b].to(result.dtype)
            hidden = left
            if on_iteration:
                on_iteration(result, torch.cat((known, orders[:, left:]), 1))
    return result
"""),
    ("a mask of what is visible", """
@torch.no_grad()
def draw(self, predict, orders, iters, cfg=1.0, cfg_schedule="constant", latents=None, known=None, on_iteration=None,
         **sampling):
    B, n = orders.shape
    if latents is None:
        latents = orders.new_zeros((B, n, self.config.token_dim), dtype=torch.float32)
    is_visible = torch.zeros(latents.shape[:2], dtype=torch.bool, device=orders.device)
    if known is not None:
        is_visible.scatter_(1, known, True)
    places = torch.arange(latents.shape[1], device=orders.device).expand(B, -1)
    schedule = unmasking_schedule(n, iters)
    for i in range(iters):
        n_now, n_next = schedule[i], schedule[i + 1]
        if n_next != n_now:
            is_drawn = torch.zeros_like(is_visible).scatter(1, orders[:, n_next:n_now], True)
            z = predict(latents, places[is_visible].view(B, -1), places[is_drawn].view(B, -1))
            scale = cfg if cfg_schedule == "constant" else (max(1, n_next) + cfg * (n - max(1, n_next))) / n
            new = self.diffloss.sample(torch.cat(list(z)), cfg=scale, guided=(cfg != 1.0), **sampling)
            latents = latents.masked_scatter(is_drawn.unsqueeze(-1), new.to(latents.dtype))
            is_visible = is_visible | is_drawn
            if on_iteration is not None:
                on_iteration(latents, places[is_visible].view(B, -1))
    return latents
"""),
]
