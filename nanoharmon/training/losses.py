"""The loss of every stage, on one screen: what train.py makes smaller, step by step.

A stage's batch is cut into `optim.shards` equal shards; this is the loss of one of them. It comes in pieces, each
backpropagated by itself, so that no two pieces need memory at the same time. Their sum is the loss of the shard.
"""
import torch

from ..vae import vae_loss


def stage_losses(config, name, model, batches, rng, generator):
    """Yields (loss, {label: value to log}); labels in plot.LOSSES become curves. config: Config; name: of the stage.

    batches: those of batches.py. rng decides what is in the shard; generator (on the device) the noise and timesteps.
    """
    stage, shards = config.stages[name], config.optim.shards
    n = stage.batch // shards
    host = torch.Generator().manual_seed(rng.getrandbits(48))    # decides shapes, so it lives where Python does
    if name == "vae":
        # both resolutions are used later: half of the batches are of small pictures, as many more of them
        size = stage.size if rng.random() < 0.5 else config.stages["1"].size
        loss, parts = vae_loss(model.vae, batches.images(rng, n * (stage.size // size) ** 2, size), stage.kl_weight)
        yield loss, {"vae": loss, **parts}
    elif name == "llm":
        for ids, labels, label_index in batches.texts(rng, n):
            loss = model.understanding_loss(None, ids, labels, label_index)
            yield loss * (len(ids) / n), {"text": loss}
    elif name == "mar":
        latents, labels = batches.class_pictures(rng, n, stage.size)
        loss = model.mar.class_loss(latents, labels, generator, host)
        yield loss, {"generation": loss}
    else:
        grid, talks = model.vae.grid_of(stage.size, stage.size), stage.understanding_batch // shards
        # stage reca: the request shows the picture (RecA, arXiv 2509.07295), else its caption says what to draw
        requests = batches.reconstruction if name == "reca" else batches.generation
        for latents, ids, is_real in requests(rng, n, stage.size, stage.caption_drop, stage.pairs):
            shown = {"pictures": latents} if name == "reca" else {}
            split = None                                         # at random, but for the batches that change a part
            if batches.shapes and rng.random() < stage.parts:
                before, after, ids, is_real, split = batches.parts(rng, len(ids), stage.size, stage.caption_drop)
                hidden = split[1].unsqueeze(-1).expand(-1, -1, before.shape[-1])     # (n/2, S-K, C)
                with torch.no_grad():
                    after = model.vae.encode(after).to(before.dtype)         # (n/2, S, C); autocast made it bfloat16
                    latents = before.scatter(1, hidden, after.gather(1, hidden))
            loss = model.generation_loss(latents, ids, is_real, grid, split, generator=generator, order_generator=host,
                                         hide_all=stage.hide_all, **shown)
            yield loss * (len(ids) / n), {"generation": loss}
        for latents, ids, labels, label_index in batches.understanding(rng, talks, stage.size, stage.texts):
            loss = model.understanding_loss(latents, ids, labels, label_index, grid)
            yield loss * (len(ids) / talks * stage.understanding_weight), {"understanding": loss}
