"""Checks of exercise 15: hidden tokens are left out of the encoder, and the decoder puts something in their places."""
import random

import torch
from torch import nn

from nanoharmon.config import MARConfig
from nanoharmon.course.checks.compare import same, unchanged
from nanoharmon.mar import MAR

POINTS = {"test_encode_everything": 1, "test_encode_visible": 2, "test_decode": 2, "test_places": 1}


def a_model(seed, higher=1):
    """(MAR with random weights, a grid (h, w), latents (B, S, C), visible (B, K) in raster order): random sizes.
    higher: by how much the grid is higher than the native one."""
    rng = random.Random(seed)
    size, C = rng.randint(2, 4), rng.randint(2, 5)
    mar = MAR(MARConfig(
        grid=size, token_dim=C, encoder_embed_dim=2 * rng.randint(4, 6), encoder_depth=1, encoder_num_heads=2,
        decoder_embed_dim=2 * rng.randint(7, 9), decoder_depth=2, decoder_num_heads=2, buffer_size=rng.randint(2, 4),
        class_num=3, attn_dropout=0.0, proj_dropout=0.0, diffloss_d=1, diffloss_w=8)).eval()
    for p in mar.parameters():
        nn.init.normal_(p, std=0.5)
    grid = size + higher, size
    B, S = rng.randint(2, 4), grid[0] * grid[1]
    visible = torch.rand(B, S).argsort(dim=1)[:, :rng.randint(1, S - 2)].sort(dim=1).values
    return mar, grid, torch.randn(B, S, C), visible


def encoded_by_hand(mar, grid, latents, visible, condition=None, positions="own", rest="leave out", buffers="first",
                    order="add, norm", filled=True, final=True, all_like=None):
    """The right encoding, picture by picture and token by token. The options are mistakes."""
    U, result = mar.config.buffer_size, []
    table = mar.pos_embed(mar.encoder_pos_embed_learned, grid, U)[0]         # (U + S, D)
    for b, picture in enumerate(latents):
        places = range(len(picture)) if visible is None else visible[b if all_like is None else all_like].tolist()
        where = {"own": lambda k, s: U + s, "front": lambda k, s: U + k, "no buffers": lambda k, s: s}[positions]
        tokens, pos = [], []
        fill = mar.fake_latent[0] if condition is None or not filled else condition[b]
        front = [(fill, table[u]) for u in range(U)]
        own = [(mar.z_proj(picture[s]), table[where(k, s)]) for k, s in enumerate(places)]
        if rest == "zeros":
            seen = set(places)
            own = [(mar.z_proj(picture[s] * (s in seen)), table[U + s]) for s in range(len(picture))]
        for token, position in front + own if buffers == "first" else own + front:
            tokens.append(token)
            pos.append(position)
        x, pos = torch.stack(tokens), torch.stack(pos)
        if order == "norm, add":
            x = mar.z_proj_ln(x) + pos
        else:
            x = x + pos if order in ("add, norm", "add") else x
            x = mar.z_proj_ln(x) if order != "add" else x
        x = x[None]
        for block in mar.encoder_blocks:
            x = block(x)
        result.append(mar.encoder_norm(x)[0] if final else x[0])
    return torch.stack(result)


def encoder_mistakes(mar, grid, latents, visible, condition):
    def wrong(**options):
        return lambda: encoded_by_hand(mar, grid, latents, visible, condition, **options)
    return {
        "the buffers come last; they come first": wrong(buffers="last"),
        "the positions are those of the first K places, and not those of the visible ones": wrong(positions="front"),
        "the positions of the image begin at 0, where those of the buffers are": wrong(positions="no buffers"),
        "the hidden tokens are set to zero, and not left out": wrong(rest="zeros"),
        "nothing is hidden: visible is not used": lambda: encoded_by_hand(mar, grid, latents, None, condition),
        "all pictures get the visible places of the first": wrong(all_like=0),
        "the positions are added after z_proj_ln": wrong(order="norm, add"),
        "the positions are forgotten": wrong(order="norm"),
        "z_proj_ln is forgotten": wrong(order="add"),
        "encoder_norm is forgotten": wrong(final=False),
        "the condition is not used: every buffer gets fake_latent": wrong(filled=False),
    }


@torch.no_grad()
def test_encode_everything(seed):
    mar, grid, latents, _ = a_model(seed, higher=0)
    before = latents.clone()
    same("encode(latents), nothing hidden", mar.encode(latents), encoded_by_hand(mar, grid, latents, None),
         encoder_mistakes(mar, grid, latents, None, None), atol=1e-4)
    unchanged("latents", before, latents)
    mar, grid, latents, _ = a_model(seed)
    condition = torch.randn(len(latents), mar.config.encoder_embed_dim)
    same("encode with a condition in the buffers", mar.encode(latents, None, grid, condition),
         encoded_by_hand(mar, grid, latents, None, condition),
         encoder_mistakes(mar, grid, latents, None, condition), atol=1e-4)


@torch.no_grad()
def test_encode_visible(seed):
    mar, grid, latents, visible = a_model(seed)
    condition = torch.randn(len(latents), mar.config.encoder_embed_dim)
    got = mar.encode(latents, visible, grid, condition)
    same("encode(latents, visible)", got, encoded_by_hand(mar, grid, latents, visible, condition),
         encoder_mistakes(mar, grid, latents, visible, condition), atol=1e-4)
    hidden = torch.ones(latents.shape[:2], dtype=torch.bool).scatter(1, visible, False)
    other = torch.where(hidden[..., None], latents + 1, latents)
    same("encode after a change of the hidden tokens, which nobody may see",
         mar.encode(other, visible, grid, condition), got, rtol=1e-6, atol=1e-6)
    same("encode with everything hidden", mar.encode(latents, visible[:, :0], grid),
         encoded_by_hand(mar, grid, latents, visible[:, :0]), atol=1e-4)


def decoded_by_hand(mar, grid, encoded, visible, places=None, put="own", position=True, last="own", drop=True,
                    norm=True, filler="mask", all_like=None, shift=0):
    """The right z, picture by picture. The options are mistakes."""
    U, result = mar.config.buffer_size, []
    table = mar.pos_embed(mar.decoder_pos_embed_learned, grid, U)[0]         # (U + S, D)
    final = mar.pos_embed(mar.diffusion_pos_embed_learned, grid, 0)[0]       # (S, D)
    S = len(final)
    for b, picture in enumerate(encoded):
        x = mar.decoder_embed(picture)
        nothing = mar.mask_token[0, 0] if filler == "mask" else torch.zeros_like(x[0])
        canvas = [nothing] * S
        seen = range(S) if visible is None else visible[b if all_like is None else all_like].tolist()
        for k, s in enumerate(seen):
            canvas[{"own": s, "front": k, "none": s}[put]] = nothing if put == "none" else x[U + k - shift]
        x = torch.cat([x[:U], torch.stack(canvas)])
        x = (x + table if position else x)[None]
        for block in mar.decoder_blocks:
            x = block(x)
        x = mar.decoder_norm(x)[0] if norm else x[0]
        z = x[U:] if drop else x[:S]
        wanted = range(S) if places is None else places[b].tolist()
        at = {"own": wanted, "front": range(len(wanted)), "none": None}[last]
        z = torch.stack([z[s] + (final[a] if at is not None else 0) for s, a in zip(wanted, at or wanted)])
        result.append(z)
    return torch.stack(result)


def decoder_mistakes(mar, grid, encoded, visible, places=None):
    def wrong(**options):
        return lambda: decoded_by_hand(mar, grid, encoded, visible, places, **options)
    return {
        "the visible tokens are put at the first places, and not at their own": wrong(put="front"),
        "the visible tokens are lost: a mask token is everywhere": wrong(put="none"),
        "the tokens are taken from the front of encoded, where the buffers are": wrong(shift=mar.config.buffer_size),
        "the hidden places are filled with zeros, and not with mask_token": wrong(filler="zeros"),
        "all pictures get the visible places of the first": wrong(all_like=0),
        "the positions are not added before the blocks": wrong(position=False),
        "the last positions, diffusion_pos_embed_learned, are not added": wrong(last="none"),
        "z gets the last positions of the first places, and not of its own": wrong(last="front"),
        "the buffers are not cut off the front": wrong(drop=False),
        "decoder_norm is forgotten": wrong(norm=False),
        "places is not used: z comes back for every place": lambda: decoded_by_hand(mar, grid, encoded, visible),
    }


@torch.no_grad()
def test_decode(seed):
    mar, grid, latents, visible = a_model(seed)
    U, D = mar.config.buffer_size, mar.config.encoder_embed_dim
    token = mar.mask_token.clone()
    for K, places in (visible.shape[1], visible), (0, visible[:, :0]), (latents.shape[1], None):
        encoded = torch.randn(len(latents), U + K, D)
        before = encoded.clone()
        what = f"decode with {K} of {latents.shape[1]} tokens visible"
        same(what, mar.decode(encoded, places, grid), decoded_by_hand(mar, grid, encoded, places),
             decoder_mistakes(mar, grid, encoded, places), atol=1e-4)
        unchanged("encoded", before, encoded)
        unchanged("mask_token", token, mar.mask_token.detach())


@torch.no_grad()
def test_places(seed):
    mar, grid, latents, visible = a_model(seed)
    B, S = latents.shape[:2]
    encoded = torch.randn(B, mar.config.buffer_size + visible.shape[1], mar.config.encoder_embed_dim)
    hidden = torch.ones(B, S, dtype=torch.bool).scatter(1, visible, False).nonzero()[:, 1].view(B, -1)
    some = hidden[:, torch.randperm(hidden.shape[1])[:max(1, hidden.shape[1] - 1)]]
    for places in hidden, some:
        same(f"decode at {places.shape[1]} places", mar.decode(encoded, visible, grid, places),
             decoded_by_hand(mar, grid, encoded, visible, places),
             decoder_mistakes(mar, grid, encoded, visible, places), atol=1e-4)
