"""RecA (arXiv 2509.07295): after its stages, Harmon learns to draw a picture from its own understanding of it.

request: [all of the picture, as it is understood] describe the image.  ->  Harmon's drawing loss, of the same picture

A caption says little of what is in a picture; its S + U embeddings say nearly all. So drawing is trained with the
densest of prompts, and no captions are needed. Only the condition is new: the drawing loss is Harmon's, hidden tokens
included. Because both tasks share the encoder, the understanding loss is kept beside it. Afterwards one asks for
pictures in words, as before.

As in the released code (HorizonWind2004/reconstruction-alignment), 10 % of the requests say "Generate an image." while
the picture stays in place, and gradients into the encoder through the request are scaled by `grad_scale`. Simplified:
one template instead of 360.
"""
from ..mar import random_split
from ..tokenizer import DESCRIBE, GENERATE_ANYTHING, pad
from ..training.losses import understanding_losses


def requests(tokenizer, n, placeholders, rng, drop):
    """n requests that show a picture of so many places: ids, with IMAGE there, and is_real (n, T), right-padded. drop:
    share of those that say "Generate an image."."""
    rows = [tokenizer.chat([{"role": "user", "content": [
        placeholders, "\n" + (GENERATE_ANYTHING if rng.random() < drop else DESCRIBE)]}])[0] for _ in range(n)]
    return pad(rows, tokenizer.pad, "cpu")


def reca_loss(model, latents, ids, is_real, grid=None, generator=None, order_generator=None):
    """Harmon.generation_loss with the pictures, latents (B, S, C), in the IMAGE places of their requests. A scalar."""
    visible, hidden = random_split(model.config.mar, *latents.shape[:2], latents.device, order_generator)
    text = model.embed_with_images(latents, ids, grid, model.config.grad_scale)              # (B, T, E)
    encoded, embeds = model.see(latents, visible, grid)                          # (B, U+K, D), (B, K+U, E)
    summed = model.through_llm(encoded, embeds, text, is_real)                   # (B, U+K, D)
    z = model.mar.decode(summed, visible, grid, hidden)                          # (B, S-K, D)
    return model.mar.loss(z, latents, hidden, generator=generator)


def reca_losses(stage, model, batches, rng, generator, order_generator):
    """Yields (loss, what to log) of one step: drawing from understanding, and understanding. stage: StageConfig."""
    grid = model.vae.grid_of(stage.size, stage.size)
    picked = [(source, source.generation_item(rng, stage.pairs)[0])
              for source in batches.pick(rng, stage.batch, "pictures")]
    latents = batches.latents_of(picked, stage.size)                             # (B, S, C)
    ids, is_real = requests(batches.tokenizer, stage.batch, latents.shape[1] + batches.buffers, rng, stage.caption_drop)
    loss = reca_loss(model, latents, ids, is_real, grid, generator, order_generator)
    yield loss, {"generation": loss}
    yield from understanding_losses(stage, model, batches, rng, stage.understanding_batch, grid)
