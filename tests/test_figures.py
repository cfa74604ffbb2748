"""The figures are of today's code and the shipped checkpoint.     python -m pytest -q tests/test_figures.py"""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from nanoharmon.config import PRESETS
from nanoharmon.figures import __main__ as figures, plates, spy
from nanoharmon.figures.canvas import Canvas
from nanoharmon.mar import unmasking_schedule
from test_pipeline import make_pipeline

DOCS = Path(__file__).parents[1] / "docs"
AGAIN = "python -m nanoharmon.figures draws them anew"


def differs(a, b):
    """The share of pixels that are clearly different: letters may fall a little differently with another FreeType."""
    assert a.size == b.size, AGAIN
    return (np.asarray(ImageChops.difference(a.convert("RGB"), b.convert("RGB"))).max(-1) > 60).mean()


@pytest.fixture(scope="module")
def fixed():
    return figures.fixed_plates()


@pytest.mark.parametrize("name", figures.FIXED)
def test_a_figure_of_the_code_is_todays(name, fixed, tmp_path):
    fixed[name].save(tmp_path / "a.png", "code")
    stored = Image.open(DOCS / "figures" / f"{name}.png")
    assert differs(stored, Image.open(tmp_path / "a.png")) < 0.002, AGAIN
    changed = Canvas(fixed[name].height, "")
    changed.image.paste(fixed[name].image)
    changed.box(300, 100, 340, 140, "#ff0000")               # a mistake of the size of a box or a bar
    assert differs(stored, changed.image) > 0.002


@pytest.mark.parametrize("name", figures.ALT)
def test_a_figure_is_small_crisp_and_opaque_and_says_what_it_is_of(name):
    path = DOCS / "figures" / f"{name}.png"
    image = Image.open(path)
    assert image.width == 1640 and image.mode == "P" and "transparency" not in image.info
    assert path.stat().st_size < 150_000
    source = "code" if name in figures.FIXED else figures.checkpoint_id(DOCS.parent / "checkpoints" / "nano")
    assert image.info["Source"] == source, f"{name}.png is of another checkpoint; {AGAIN}"


def test_shapes_are_those_of_the_model():
    shapes, config, grid = plates.tensor_shapes("pico", 16, 1 / 2)
    S, U, D = grid[0] * grid[1], config.mar.buffer_size, config.mar.encoder_embed_dim
    assert shapes["encoded"] == f"{U + S // 2} x {D}"
    assert shapes["whole embeds"] == f"{U + S} x {config.llm.hidden_size}"
    assert shapes["picture"] == "3 x 16 x 16" and shapes["token"] == f"1 x {PRESETS['pico']().mar.token_dim}"


def test_attention_is_what_the_code_lets_through():
    pipe = make_pipeline()
    latents = torch.randn(1, 16, pipe.model.config.mar.token_dim)
    moment = spy.moment(pipe, "a ring", latents, (4, 4), 1 / 4)
    T, K, U = len(moment.tokens), 4, pipe.model.config.mar.buffer_size
    assert moment.visible == K and len(moment.encoder) == U + K and len(moment.decoder) == U + 16
    assert len(moment.llm) == T + K + U
    assert ((moment.llm > 0) == torch.ones_like(moment.llm).tril().bool()).all()         # causal
    assert (moment.encoder > 0).all() and (moment.decoder > 0).all()                     # all to all
    for weights in (moment.encoder, moment.llm, moment.decoder):
        assert torch.allclose(weights.sum(dim=1), torch.ones(len(weights)), atol=1e-5)
    seen = spy.seen_by_buffers(pipe, Image.new("RGB", (32, 32)))
    assert seen.shape == (U, 4, 4) and (seen.sum(dim=(1, 2)) < 1).all()                  # the rest goes to buffers


def test_the_drawing_that_is_shown_is_the_one_that_is_drawn():
    pipe = make_pipeline(draw={"steps": 3, "iters": 4})
    kept = spy.drawing(pipe, "a ring", seed=3)
    [picture] = pipe.draw(["a ring"], seed=3)
    assert plates.decoded(pipe, kept.latents[-1], kept.grid).tobytes() == picture.tobytes()
    assert [v.shape[1] for v in kept.visible] == [16 - n for n in unmasking_schedule(16, 4)[1:]]
    assert [len(chain) for chain in kept.chains] == [3] * 4
    i, row, place = plates.liveliest(pipe, kept)
    t, x_t, x0 = kept.chains[i][-1]
    assert t == 0 and torch.allclose(x0[row], kept.latents[-1][0, place], atol=1e-4)     # the token, at its place
