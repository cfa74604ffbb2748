"""Exercise 20, Harmon.embed_with_images: pictures in the places kept for them, with a scaled gradient."""
import random

import torch

from nanoharmon.tokenizer import IMAGE
from nanoharmon.course.checks.compare import same
from nanoharmon.course.checks.tiny import small_harmon

POINTS = {"test_text_alone": 1, "test_pictures_fill_their_places_in_order": 2,
          "test_the_gradient_of_pictures_is_scaled": 2, "test_nothing_is_overwritten": 1}


def example(seed):
    """A model, latents (N, S, C) of N pictures, ids (B, L) with IMAGE in N runs of S+U places, and a grid of S places.

    The first row has two pictures, the second none, the others one each, all at different places.
    """
    rng = random.Random(f"20/{seed}")
    model = small_harmon(rng, grid=3)
    S, U, V = 9, model.config.mar.buffer_size, model.config.llm.vocab_size
    rows = [2, 0, *[1] * rng.choice((1, 2))]
    rng.shuffle(rows)
    ids, L = [], 2 * (S + U) + rng.choice((6, 9))
    for pictures in rows:
        text = L - pictures * (S + U)
        cuts = sorted(rng.sample(range(1, text), pictures))
        row = [rng.randrange(V) for _ in range(text)]
        for cut in reversed(cuts):
            row[cut:cut] = [IMAGE] * (S + U)
        ids.append(row)
    generator = torch.Generator().manual_seed(rng.getrandbits(48))
    latents = torch.randn(sum(rows), S, model.config.mar.token_dim, generator=generator)
    return model, latents, torch.tensor(ids), (1, 9)


def spliced(model, ids, vectors):
    """Place by place, row by row: the next of the vectors (n, E) where ids has IMAGE, else the embedding of the id."""
    table, vectors = model.llm.model.embed_tokens.weight, iter(vectors)
    return torch.stack([torch.stack([next(vectors) if i == IMAGE else table[i] for i in row]) for row in ids.tolist()])


@torch.no_grad()
def test_text_alone(seed):
    model, latents, ids, _ = example(seed)
    text = torch.where(ids == IMAGE, 3, ids)
    expected = model.llm.model.embed_tokens.weight[text]
    same("embeds of a batch without pictures (latents None)", model.embed_with_images(None, text), expected)
    same("embeds of a batch without pictures (latents of 0 pictures)", model.embed_with_images(latents[:0], text),
         expected)


@torch.no_grad()
def test_pictures_fill_their_places_in_order(seed):
    model, latents, ids, grid = example(seed)
    E = model.config.llm.hidden_size
    encoded, pictures = model.see(latents, None, grid)                           # (N, S+U, E), buffers last
    flat, columns = pictures.flatten(0, 1), ids.t().contiguous()
    expected = spliced(model, ids, flat)
    scale = 0.25
    mistakes = {
        "the buffers stand in front of a picture's tokens: see gives them in the LLM's order already":
         spliced(model, ids, model.proj_in(encoded).flatten(0, 1)),
        "the places are filled column by column instead of row by row": spliced(model, columns, flat).transpose(0, 1),
        "the first picture stands everywhere": spliced(model, ids, pictures[0].repeat(len(pictures), 1)),
        "the pictures come in the reverse order": spliced(model, ids, pictures.flip(0).flatten(0, 1)),
        "grid is not handed on to the encoder": spliced(model, ids, model.see(latents)[1].flatten(0, 1)),
        "grad_scale scales the pictures themselves: only their gradient is scaled, their value stays":
         spliced(model, ids, scale * flat),
        "the pictures are added to an embedding instead of taking its place":
         expected + torch.where((ids == IMAGE)[..., None], model.llm.model.embed_tokens.weight[0], 0),
        "the pictures are never put in": spliced(model, ids, model.llm.model.embed_tokens.weight[:1]
                                                  .expand(flat.shape[0], E))}
    for given in (1.0, scale):
        same(f"embeds, with grad_scale {given}", model.embed_with_images(latents, ids, grid, given), expected, mistakes)


def gradients(model, embeds, weights):
    model.zero_grad(set_to_none=True)
    assert embeds.requires_grad, "embeds has no gradient: no detach() of all, and no no_grad() here"
    (embeds * weights).sum().backward()
    picked = {"proj_in": "proj_in.2.weight", "the encoder": "mar.z_proj.weight",
              "the text embedding": "llm.model.embed_tokens.weight"}
    params = dict(model.named_parameters())
    return {part: torch.zeros_like(params[name]) if params[name].grad is None else params[name].grad.clone()
            for part, name in picked.items()}


def test_the_gradient_of_pictures_is_scaled(seed):
    model, latents, ids, grid = example(seed)
    scale = random.Random(f"20/scale/{seed}").choice((0.1, 0.3, 0.7))
    generator = torch.Generator().manual_seed(seed)
    pictures = model.see(latents, None, grid)[1]
    expected = spliced(model, ids, pictures.flatten(0, 1))
    weights = torch.randn(expected.shape, generator=generator)
    full = gradients(model, expected, weights)
    got = gradients(model, model.embed_with_images(latents, ids, grid, scale), weights)
    plain = gradients(model, model.embed_with_images(latents, ids, grid), weights)
    for part in ("proj_in", "the encoder"):
        same(f"the gradient of {part} with grad_scale 1", plain[part], full[part], {
            "the gradient is stopped even with grad_scale 1": 0 * full[part]})
        same(f"the gradient of {part} with grad_scale {scale}", got[part], scale * full[part], {
            "the gradient of the pictures is not scaled at all": full[part],
            "the pictures are detached: the gradient is to be scaled, not stopped": 0 * full[part],
            "the gradient is scaled twice": scale ** 2 * full[part],
            "the gradient is scaled by 1 - grad_scale": (1 - scale) * full[part],
            "the gradient is scaled by 1 + grad_scale: detach the pictures in the difference, too":
             (1 + scale) * full[part],
            "the gradient is divided by grad_scale": full[part] / scale})
    same(f"the gradient of the text embedding with grad_scale {scale}", got["the text embedding"],
         full["the text embedding"], {
             "the gradient of the text is scaled, too: only that of the pictures is":
              scale * full["the text embedding"],
             "the text is detached": 0 * full["the text embedding"]})


@torch.no_grad()
def test_nothing_is_overwritten(seed):
    model, latents, ids, grid = example(seed)
    given, table = (latents.clone(), ids.clone()), model.llm.model.embed_tokens.weight.clone()
    model.embed_with_images(*given, grid, 0.5)
    assert torch.equal(given[1], ids), "ids is changed in place (clamp_, or an assignment): the caller still needs it"
    assert torch.equal(given[0], latents), "latents is changed in place; make a new tensor"
    assert torch.equal(model.llm.model.embed_tokens.weight, table), "the embedding table itself is changed"
