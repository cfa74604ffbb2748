"""The figures: each function draws one and returns its Canvas. What is shown comes from spy.py, from the code that
draws and trains, or from running it on the meta device; only where things stand on the sheet is written here."""
import numpy as np
import torch

from ..config import PRESETS, MARConfig
from ..diffusion import Diffusion
from ..harmon import Harmon
from ..mar import mask_ratio_at, random_orders, unmasking_schedule
from ..pictures import to_pictures
from ..weights.checkpoint import blank
from .canvas import BUFFER, FAINT, FRAME, HIDDEN, IMAGE, INK, NOISE, PAPER, SCALE, TEXT, WIDTH, Canvas, mix


# --- the parts and their shapes --------------------------------------------------------------------------------------

def tensor_shapes(preset, size, share):
    """{tensor: its shape without the batch} of a preset at a moment of drawing, by running it without numbers."""
    config = PRESETS[preset]()
    with blank(), torch.no_grad():
        model, T = Harmon(config).eval(), 20
        grid = model.vae.grid_of(size, size)
        S = grid[0] * grid[1]
        K = round(share * S)
        pixels, visible, ids = torch.empty(1, 3, size, size), torch.empty(1, K).long(), torch.empty(1, T).long()
        latents = model.vae.encode(pixels)
        whole, whole_embeds = model.see(latents, None, grid)
        encoded, embeds = model.see(latents, visible, grid)
        summed = model.through_llm(encoded, embeds, model.llm.embed(ids), ids.bool())
        drawn = torch.empty(1, 1).long()
        z = model.mar.decode(summed, visible, grid, drawn)
        token = model.mar.diffloss.sample(z[0], steps=2)
        picture = model.vae.decode(latents, grid)
    found = {"pixels": pixels, "latents": latents, "visible latents": latents[:, :K], "whole": whole,
             "whole embeds": whole_embeds, "encoded": encoded, "embeds": embeds, "summed": summed, "z": z,
             "token": token[None], "picture": picture}
    return {name: " x ".join(map(str, x.shape[1:])) for name, x in found.items()}, config, grid


def half_drawn(picture, grid, share):
    """A picture of which a share is visible, the hidden places grey, and how many places are visible."""
    (h, w), cell = grid, picture.width // grid[1]
    order = random_orders(1, h * w, "cpu", torch.Generator().manual_seed(0))[0].tolist()
    hidden, out = order[round(share * h * w):], picture.copy()
    for place in hidden:
        x, y = place % w * cell, place // w * cell
        out.paste((128, 128, 128), (x, y, x + cell, y + cell))
    return out, h * w - len(hidden)


def architecture(preset, picture, share):
    """Both tasks through the same encoder and LLM, for a picture that is seen whole, and in part."""
    size = picture.width
    shape, config, grid = tensor_shapes(preset, size, share)
    unfinished, K = half_drawn(picture, grid, share)
    U, S = config.mar.buffer_size, grid[0] * grid[1]
    c = Canvas(500, f"Harmon: one encoder sees and draws (preset {preset}, {size} px)")
    top, middle, bottom = 112, 258, 414

    def part(x0, y0, x1, y1, words, color, about=""):
        c.box(x0, y0, x1, y1, mix(color, 0.16), color, width=1.5)
        c.text((x0 + x1) / 2, (y0 + y1) / 2 - (9 if about else 0), words, 13, anchor="mm")
        if about:
            c.text((x0 + x1) / 2, (y0 + y1) / 2 + 14, about, 10, FAINT, "mm")

    def arrow(points, color, name="", at=None, size=""):
        c.line(points, color, 1.5, arrow=True)
        if name:
            x, y = at or ((points[0][0] + points[1][0]) / 2, points[0][1])
            c.text(x, y - 22, name, 11, INK, "mm")
            c.text(x, y - 9, size, 10, FAINT, "mm")
    # shared
    mar, llm = config.mar, config.llm
    part(276, 70, 372, 300, "MAR\nencoder", IMAGE, f"{mar.encoder_depth} blocks")
    part(456, 70, 526, 300, "proj_in", HIDDEN)
    part(610, 70, 706, 300, "LLM", TEXT, f"{llm.num_hidden_layers} layers")
    # understanding
    c.text(20, 52, "understanding: nothing is hidden", 12, IMAGE)
    c.picture(picture, 20, top - 38, 76)
    part(150, top - 24, 214, top + 24, "VAE\nencoder", HIDDEN)
    arrow([(98, top), (148, top)], IMAGE, "pixels", size=shape["pixels"])
    arrow([(216, top), (274, top)], IMAGE, "latents", size=shape["latents"])
    arrow([(374, top), (454, top)], IMAGE, "encoded", size=shape["whole"])
    arrow([(528, top), (608, top)], IMAGE, "embeds", size=shape["whole embeds"])
    arrow([(708, top), (742, top)], TEXT)
    c.text(748, top, "reply", 11, TEXT)
    c.text(748, 76, "question", 11, TEXT)
    arrow([(744, 77), (708, 77)], TEXT)
    # generation, to the right through the same parts
    c.text(20, middle - 60, "generation: hidden tokens are left out", 12, BUFFER)
    c.picture(unfinished, 20, middle - 38, 76)
    arrow([(98, middle), (274, middle)], BUFFER, "visible latents", size=shape["visible latents"])
    arrow([(374, middle), (454, middle)], BUFFER, "encoded", size=shape["encoded"])
    arrow([(528, middle), (608, middle)], BUFFER, "embeds", size=shape["embeds"])
    c.text(748, middle + 32, "prompt", 11, TEXT)
    arrow([(744, middle + 33), (708, middle + 33)], TEXT)
    # and back to the left
    part(540, bottom - 24, 606, bottom + 24, "proj_out", HIDDEN)
    arrow([(658, 302), (658, bottom), (608, bottom)], BUFFER, "states of", at=(658 + 38, bottom - 26))
    c.text(696, bottom - 35, "the picture", 11, INK, "mm")
    c.pen.ellipse([v * SCALE for v in (455, bottom - 13, 481, bottom + 13)], PAPER, INK, 3)
    c.text(468, bottom - 1, "+", 16, anchor="mm")
    arrow([(538, bottom), (483, bottom)], BUFFER)
    arrow([(324, 302), (324, 340), (468, 340), (468, bottom - 15)], BUFFER)
    c.text(394, 330, "encoded, as it was", 11, INK, "mm")
    part(300, bottom - 34, 396, bottom + 34, "MAR\ndecoder", IMAGE, f"{mar.decoder_depth} blocks")
    arrow([(453, bottom), (398, bottom)], BUFFER, "summed", size=shape["summed"])
    c.text(348, bottom + 50, "mask tokens at hidden places", 10, FAINT, "mm")
    part(150, bottom - 34, 236, bottom + 34, "diffusion\nMLP", NOISE, f"{mar.diffloss_d} blocks")
    arrow([(298, bottom), (238, bottom)], BUFFER, "z", size=shape["z"])
    c.text(193, bottom + 50, "noise to token", 10, FAINT, "mm")
    arrow([(148, bottom), (58, bottom), (58, middle + 42)], NOISE, "new token", at=(102, bottom), size=shape["token"])
    c.text(20, bottom + 28, "until nothing is hidden;", 11)
    c.text(20, bottom + 44, "then the VAE decodes:", 11)
    c.text(20, bottom + 60, shape["picture"], 11, FAINT)
    c.text(800, 462, f"{U + K} = {U} buffers + {K} visible tokens; {U + S} = {U} + all {S}", 11, FAINT, "rm")
    c.text(800, 480, "the buffers stand first in MAR, last in the LLM", 11, FAINT, "rm")
    return c


# --- attention -------------------------------------------------------------------------------------------------------

def groups(c, x, y, cell, sizes, down):
    """Colored bars beside a matrix: which rows (down) or columns are which tokens."""
    at = 0
    for name, n, color in sizes:
        a, b = at * cell, (at + n) * cell
        corners = (x - 10, y + a + 1, x - 5, y + b - 1) if down else (x + a + 1, y - 10, x + b - 1, y - 5)
        c.box(*corners, color, radius=1)
        if not down:
            c.text(x + (a + b) / 2, y - 20, name, 11, color, "mm")
        at += n


def attention(moment, side=228):
    """Who attends to whom in the three transformers, while a picture is drawn."""
    c = Canvas(396, "Who attends to whom, while a third of the picture is visible")
    T, K, U = len(moment.tokens), moment.visible, len(moment.encoder) - moment.visible
    S = len(moment.decoder) - U
    buffers, seen = ("buffers", U, BUFFER), ("visible", K, IMAGE)
    panels = [("MAR encoder: all to all;\nhidden tokens are not there", moment.encoder, [buffers, seen]),
              ("LLM: only to what comes before;\nthe buffers are last, and see all", moment.llm,
               [("prompt", T, TEXT), seen, buffers]),
              ("MAR decoder: all to all; places that\nare hidden hold a mask token", moment.decoder,
               [buffers, ("all places, hidden or visible", S, HIDDEN)])]
    for i, (words, weights, sizes) in enumerate(panels):
        x, y, cell = 34 + i * 264, 84, side / len(weights)
        groups(c, x, y, cell, sizes, False)
        groups(c, x, y, cell, sizes, True)
        values = (weights / weights.max(dim=1, keepdim=True).values).sqrt()      # each row from 0 to its largest
        c.cells(x, y, values.tolist(), NOISE, cell, allowed=(weights > 0).tolist())
        c.text(x, y + side + 14, words, 12, anchor="la")
    c.text(34, 378, "A row is a token that asks, a column one that it reads. Dark: much of its attention (mean over "
           "layers and heads). Empty: not allowed.", 11, FAINT)
    return c


def buffers(seen, picture, moment):
    """What each buffer attends to: places of a picture in the encoder, words of the prompt in the LLM."""
    U, side = len(seen), 84
    c = Canvas(172 + 54 + 24 + 20 * U, "What the buffers attend to")
    c.text(16, 46, "In the MAR encoder, when it sees this picture (mean over blocks and heads; dark: most)", 12, FAINT)
    c.picture(picture, 16, 62, side)
    for u in range(U):
        x = 16 + (u + 1) * (side + 5)
        values = seen[u] / seen.max()
        c.cells(x, 62, values.tolist(), BUFFER, side / values.shape[1], side / values.shape[0])
        c.text(x + side / 2, 62 + side + 12, f"buffer {u + 1}", 11, BUFFER, "mm")
    weights = moment.llm[-U:, :len(moment.tokens)]
    wide = (WIDTH - 32 - 84) / len(moment.tokens)
    top = 236
    c.text(16, 188, "In the LLM, where they take in the prompt for the decoder: the words that they read (start, end: "
           "of a turn)", 12, FAINT)
    for i, token in enumerate(moment.tokens):
        word = token.strip().replace("<|im_start|>", "start").replace("<|im_end|>", "end") or "\\n"
        c.text(100 + (i + 0.5) * wide, top - (10 if i % 2 else 24), word, 10, TEXT, "mm")
    c.cells(100, top, (weights / weights.max()).tolist(), TEXT, wide, 20)
    for u in range(U):
        c.text(92, top + 20 * u + 10, f"buffer {u + 1}", 11, BUFFER, "rm")
    return c


# --- hiding and uncovering -------------------------------------------------------------------------------------------

def masking(preset, grid, iters):
    """How much is hidden in training, and how many tokens each iteration uncovers when drawing."""
    c = Canvas(404, "How much is hidden: in training, and while drawing")
    official, own = MARConfig(), PRESETS[preset]().mar
    u = (np.arange(20000) + 0.5) / 20000                         # uniform: every share of the batches alike
    for i, (config, color, name) in enumerate(((official, IMAGE, "Harmon"), (own, BUFFER, preset))):
        x, ratios = 44 + i * 400, [mask_ratio_at(config, at) for at in u]
        counts = np.histogram(ratios, bins=50, range=(0, 1))[0]
        c.text(x, 66, f"{name} ({config.mask_ratio}): {100 * np.mean(ratios):.0f} % on average", 12)
        c.bars(x, 84, 340, 100, counts, color)
        c.text(x - 6, 90, f"{100 * counts.max() / len(u):.0f} %", 10, FAINT, "rm")
        for tenth in range(0, 11, 2):
            c.text(x + 34 * tenth, 196, f"{10 * tenth} %", 10, FAINT, "mm")
    c.text(16, 46, "Training: how often (up) which share of the tokens (across) is hidden", 12, FAINT)
    c.text(16, 234, "Drawing: how many tokens (up) each iteration (across) uncovers", 12, FAINT)
    for i, (S, n, color) in enumerate(((official.grid ** 2, iters[0], IMAGE), (grid ** 2, iters[1], BUFFER))):
        x, counts = 44 + i * 400, unmasking_schedule(S, n)
        drawn = [before - after for before, after in zip(counts, counts[1:])]
        c.text(x, 254, f"{S} tokens in {n} iterations", 12)
        c.bars(x, 272, 340, 100, drawn, color)
        c.text(x - 6, 278, str(max(drawn)), 10, FAINT, "rm")
        for k in (1, n):
            c.text(x + 340 * (k - 0.5) / n, 384, str(k), 10, FAINT, "mm")
    return c


# --- drawing ---------------------------------------------------------------------------------------------------------

def decoded(pipe, latents, grid):
    with torch.no_grad():
        return to_pictures(pipe.model.vae.decode(latents, grid))[0]


def uncovering(pipe, drawing, prompt, columns=7):
    """A drawing comes about: pictures after some of its iterations."""
    side, total = 108, len(drawing.visible)
    c = Canvas(224, f'"{prompt}"')
    if drawing.thought != prompt:
        c.text(16, 44, f'thinking first: "{drawing.thought}"', 12, TEXT)
    c.text(WIDTH - 16, 20, "grey: still hidden", 12, FAINT, "rm")
    shown = [round(i * (total - 1) / (columns - 1)) for i in range(columns)]
    for k, i in enumerate(shown):
        x = 16 + k * (side + 5)
        c.picture(pipe.unfinished(drawing.latents[i], drawing.visible[i], drawing.grid)[0], x, 64, side)
        c.text(x + side / 2, 64 + side + 13, f"iteration {i + 1}", 11, INK, "mm")
        visible = f"{drawing.visible[i].shape[1]} of {drawing.latents[i].shape[1]} visible"
        c.text(x + side / 2, 64 + side + 29, visible, 10, FAINT, "mm")
    return c


def liveliest(pipe, drawing):
    """The token with the strongest color in the finished picture: (iteration, which of its tokens, place)."""
    picture = np.asarray(decoded(pipe, drawing.latents[-1], drawing.grid)).astype(int)
    (h, w), stride = drawing.grid, pipe.model.config.vae.stride
    color = (picture.max(-1) - picture.min(-1)).reshape(h, stride, w, stride).mean(axis=(1, 3)).flatten()
    place, before = int(color.argmax()), []
    for i, visible in enumerate(drawing.visible):
        now = visible[0].tolist()
        if place in now:
            return i, sorted(set(now) - set(before)).index(place), place
        before = now


def diffusion(pipe, drawing, columns=8):
    """One token's way from noise to a piece of the picture: the token, what is predicted, and its numbers."""
    i, row, place = liveliest(pipe, drawing)
    chain, side = drawing.chains[i], 92
    c = Canvas(440, f"One token's way through diffusion (iteration {i + 1}, {len(chain)} steps)")
    last = len(chain) - 1
    shown = [round(k * last / (columns - 1)) for k in range(columns)]
    c.text(16, 46, "The token (framed) as it is, decoded between its finished neighbours; t counts the noise down", 12,
           FAINT)
    c.text(16, 182, "The clean token that the diffusion MLP predicts at this step", 12, FAINT)
    (h, w), stride = drawing.grid, pipe.model.config.vae.stride
    x, y = place % w, place // w
    left, top = min(max(x - 1, 0), w - 3), min(max(y - 1, 0), h - 3)             # 3 x 3 tokens around it are shown
    for k, step in enumerate(shown):
        t, x_t, x0 = chain[step]
        at = round(16 + k * (side + 7.4))
        for down, token in ((60, x_t), (196, x0)):
            latents = drawing.latents[-1].clone()
            latents[0, place] = token[row]
            part = decoded(pipe, latents, drawing.grid).crop([v * stride for v in (left, top, left + 3, top + 3)])
            c.picture(part, at, down, side)
            corner = at + (x - left) * side / 3, down + (y - top) * side / 3
            c.box(*corner, corner[0] + side / 3, corner[1] + side / 3, outline="#ffffff", radius=0)
        c.text(at + side / 2, 60 + side + 12, f"t = {t}", 11, INK, "mm")
    # its numbers, and how much of them is signal
    numbers = torch.stack([x_t[row] for _, x_t, _ in chain])                     # (steps, C)
    high, left, top, wide, tall = numbers.abs().max().item(), 40, 318, 764, 96
    c.line([(left, top + tall / 2), (left + wide, top + tall / 2)], FRAME, 1)
    for channel in numbers.T.tolist():
        line = [(left + wide * s / last, top + tall / 2 * (1 - v / high)) for s, v in enumerate(channel)]
        c.line(line, mix(NOISE, 0.6))
    signal = Diffusion().tables["alphas_cumprod"]
    c.line([(left + wide * s / last, top + tall / 2 * (1 - signal[t])) for s, (t, _, _) in enumerate(chain)], INK, 2)
    c.text(16, 304, f"Its {numbers.shape[1]} numbers, from t = {chain[0][0]} to {chain[-1][0]} (violet), and the share "
           "of signal in them (black, from 0 to 1)", 12, FAINT)
    for value, at in ((high, top), (0, top + tall / 2), (-high, top + tall)):
        c.text(34, at, f"{value:.2g}", 10, FAINT, "rm")
    return c
