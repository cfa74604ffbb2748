"""How a picture is to be drawn: all options, filled in and checked before any work."""
import torch

from . import arguments
from .config import SAMPLERS, SCHEDULES
from .mar import redraw_iters
from .pictures import as_picture, split_region

# how the official scripts draw
OFFICIAL = {"cfg": 3.0, "iters": 64, "steps": 100, "sampler": "ddpm", "temperature": 1.0, "cfg_schedule": "constant",
            "redraw": 0, "think": False, "fast": False}
# --fast, by whether a thought says all that the prompt leaves open: measured in docs/RESULTS.md
FAST = {True: {"iters": 9, "steps": 16, "redraw": 0}, False: {"iters": 9, "steps": 25, "redraw": 2}}
STEPS = 1000                                                     # of the diffusion that the model was trained on


def plan_drawing(pipe, prompts, size=None, image=None, region=None, **given):
    """All options of a drawing by a Pipeline: what is given, else FAST if asked for, else "draw" in config.json's meta,
    else the official ones.

    Raises ValueError for everything that could not be drawn, so that scripts can complain before they work.
    Adds "grid" (tokens down and across), "inside" and "outside", the places to draw and to keep, "part", whether the
    request says that they are a part, and "total", the number of iterations with those of `redraw`.
    """
    own = pipe.meta.get("draw", {})
    options = OFFICIAL | {name: own[name] for name in OFFICIAL if name in own}
    if region is not None:                                   # a thought would place what the region places
        options["think"] = False
    given = {name: value for name, value in given.items() if value is not None}
    options |= given
    for name in "think", "fast":
        options[name] = arguments.truth(name, options[name])
    if options["fast"]:
        options |= FAST[options["think"]] | given
    if options["think"] and "think" not in own:
        raise ValueError("think is on, expected off: this checkpoint has not learned to say what it will draw")
    width, height = arguments.sides("size", pipe.size if size is None else size)
    grid, limit = pipe.model.vae.grid_of(height, width), pipe.model.config.llm.max_position_embeddings
    S, U = grid[0] * grid[1], pipe.model.config.mar.buffer_size
    part = region is not None and bool(pipe.meta.get("parts"))                   # else it only knows whole pictures
    if S + U + len(pipe.tokenizer.drawing_request("", part)) > limit:
        raise ValueError(f"size is {width}x{height}, which is {S + U} tokens: with a prompt more than {limit}")
    if (image is None) != (region is None):
        raise ValueError("region is None, expected a part of the image" if region is None else
                         "image is None, expected the picture that the region is a part of")
    inside, outside = torch.arange(S), torch.arange(0)
    if region is not None:
        region = arguments.box("region", region)
        inside, outside = map(torch.from_numpy, split_region(region, as_picture(image).size, grid))
    if "iters" not in given:
        options["iters"] = min(options["iters"], len(inside))
    for name, most in ("iters", len(inside)), ("steps", STEPS):
        options[name] = arguments.whole(name, options[name], 1, most)
    options["redraw"] = arguments.whole("redraw", options["redraw"], 0, 100)
    for name in "cfg", "temperature":
        options[name] = arguments.number(name, options[name], 0, 100)
    for name, known in ("sampler", SAMPLERS), ("cfg_schedule", SCHEDULES):
        if options[name] not in known:
            raise ValueError(f"{name} is {options[name]!r}, expected one of {', '.join(known)}")
    prompts = arguments.texts("prompts", prompts)
    if not prompts or not all(p.strip() for p in prompts):
        raise ValueError(f"prompts are {prompts!r:.80}, expected some text in each")
    for prompt in prompts:
        T = len(pipe.tokenizer.drawing_request(prompt, part))
        if T + S + U > limit:
            raise ValueError(f"prompt is {T} tokens long, expected at most {limit - S - U} (the context less the "
                             f"picture): {prompt[:40]!r}...")
    again = 2 * options["redraw"] * redraw_iters(options["iters"]) if len(inside) > 1 else 0
    return options | {"size": (width, height), "grid": grid, "inside": inside, "outside": outside, "part": part,
                      "total": options["iters"] + again}


def refuse_idle(plan, given):
    """Raises ValueError for a flag that was given ({name: value or None}) and changes nothing in this plan."""
    for name, idle, why in (
            ("temperature", plan["sampler"] != "ddpm", "is of ddpm's noise; pass --sampler ddpm"),
            ("cfg_schedule", plan["cfg"] == 1, "is of guidance, here none; pass a larger --cfg")):
        if given[name] is not None and idle:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} {given[name]} {why}, or drop {flag}")


def settled(plan):
    """The options of a plan for drawing finished thoughts: `think` is off, and what `fast` chose is in the numbers."""
    return {name: plan[name] for name in OFFICIAL} | {"think": False, "fast": False}
