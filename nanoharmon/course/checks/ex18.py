"""Exercise 18, Harmon.see: what the encoder gives, and the order in which the LLM reads it."""
import random

import torch

from nanoharmon.course.checks.compare import same
from nanoharmon.course.checks.tiny import small_harmon

POINTS = {"test_encoded_is_what_the_encoder_gives": 1, "test_for_the_llm_the_buffers_come_last": 1,
          "test_nothing_visible_and_no_buffers": 1, "test_both_results_can_be_trained": 1}


def example(seed, **mar):
    """A model, latents (B, S, C), visible (B, K), and a grid of S places that is not the native one."""
    rng = random.Random(f"18/{seed}")
    model = small_harmon(rng, **mar)
    side = model.config.mar.grid
    grid = {3: (1, 9), 4: (2, 8)}[side]
    S, B = side * side, rng.choice((2, 3))
    K = rng.choice([k for k in (3, 4, 6, 7) if k != model.config.mar.buffer_size])
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    latents = torch.randn(B, S, model.config.mar.token_dim, generator=generator)
    visible = torch.stack([torch.randperm(S, generator=generator)[:K].sort().values for _ in range(B)])
    return model, latents, visible, grid


def projected(model, encoded, order):
    """proj_in of the rows of encoded (B, U+K, D), one by one, in the given order -> (B, U+K, E)."""
    return torch.stack([model.proj_in(encoded[:, i]) for i in order], dim=1)


def result(got):
    assert isinstance(got, (tuple, list)) and len(got) == 2, "see returns something else than a pair: encoded, embeds"
    return got


@torch.no_grad()
def test_encoded_is_what_the_encoder_gives(seed):
    model, latents, visible, grid = example(seed)
    U = model.config.mar.buffer_size
    before = latents.clone()
    encoded = result(model.see(latents, visible, grid))[0]
    assert torch.equal(latents, before), "see changes the latents it is given, in place; make new tensors"
    expected = model.mar.encode(latents, visible, grid)
    same("encoded", encoded, expected, {
        "the buffers are moved in encoded, too: only embeds, for the LLM, is reordered": expected.roll(-U, 1),
        "grid is not handed on to the encoder": model.mar.encode(latents, visible),
        "visible is not handed on to the encoder": model.mar.encode(latents, None, grid),
        "encoded and embeds are returned in the other order": projected(model, expected, range(expected.shape[1]))
         .roll(-U, 1)})


@torch.no_grad()
def test_for_the_llm_the_buffers_come_last(seed):
    model, latents, visible, grid = example(seed)
    U = model.config.mar.buffer_size
    for shown in (visible, None):                            # some tokens hidden; a whole picture
        encoded = model.mar.encode(latents, shown, grid)
        n = encoded.shape[1]
        tokens, buffers = list(range(U, n)), list(range(U))
        same("embeds", result(model.see(latents, shown, grid))[1], projected(model, encoded, tokens + buffers), {
            "the buffers stay in front": projected(model, encoded, buffers + tokens),
            "the last U rows come to the front, instead of the first U to the end: the wrong direction":
             projected(model, encoded, buffers + tokens).roll(U, 1),
            "the order of the tokens is reversed, too": projected(model, encoded, tokens[::-1] + buffers[::-1]),
            "the order of the buffers is reversed, too": projected(model, encoded, tokens + buffers[::-1]),
            "proj_in is left out": encoded.roll(-U, 1),
            "encoded and embeds are returned in the other order": encoded})


@torch.no_grad()
def test_nothing_visible_and_no_buffers(seed):
    model, latents, visible, _ = example(seed)
    encoded, embeds = result(model.see(latents, visible[:, :0]))
    expected = model.mar.encode(latents, visible[:, :0])                         # (B, U, D): only the buffers
    same("with nothing visible, as at the start of a drawing, encoded", encoded, expected)
    same("with nothing visible, as at the start of a drawing, embeds", embeds,
         projected(model, expected, range(expected.shape[1])))
    model, latents, visible, _ = example(seed, buffer_size=0)
    encoded = model.mar.encode(latents, visible)                                 # (B, K, D)
    same("for a model without buffers (U = 0), embeds", result(model.see(latents, visible))[1],
         projected(model, encoded, range(visible.shape[1])),
         {"a slice such as [:, -U:] is everything when U is 0": torch.cat([
             projected(model, encoded, range(visible.shape[1]))] * 2, dim=1),
          "a slice such as [:, :-U] is nothing when U is 0": embeds[:, :0]})


def test_both_results_can_be_trained(seed):
    model, latents, visible, _ = example(seed)
    encoded, embeds = result(model.see(latents, visible))
    for what, tensor, root in (("encoded", encoded, "mar.encoder_blocks"), ("embeds", embeds, "mar.encoder_blocks"),
                               ("embeds", embeds, "proj_in")):
        model.zero_grad(set_to_none=True)
        assert tensor.requires_grad, f"{what} has no gradient: no detach() and no no_grad() here, see is trained"
        (tensor * torch.randn_like(tensor)).sum().backward(retain_graph=True)
        moved = [p.grad is not None and bool(p.grad.any()) for n, p in model.named_parameters() if n.startswith(root)]
        assert any(moved), f"no gradient of {what} reaches {root}: no detach() between them"
