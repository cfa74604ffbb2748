"""Solutions of exercise 15, hide tokens and restore their places."""
ENCODE = """
def encode(self, latents, visible=None, grid=None, condition=None):
    B, U = latents.shape[0], self.config.buffer_size
    condition = self.fake_latent.expand(B, -1) if condition is None else condition
    pos = self.pos_embed(self.encoder_pos_embed_learned, grid, U)
    buffers = condition.unsqueeze(1) + pos[:, :U]
    pos = pos[:, U:]
    if visible is not None:
        latents = take(latents, visible)
        pos = take(pos.expand(B, -1, -1), visible)
    x = self.z_proj(latents.to(self.z_proj.weight.dtype)) + pos
    x = self.z_proj_ln(torch.cat([buffers, x], dim=1))
    return self.encoder_norm(self.run_blocks(self.encoder_blocks, x))
"""
DECODE = """
def decode(self, encoded, visible=None, grid=None, places=None):
    B, U = encoded.shape[0], self.config.buffer_size
    x = self.decoder_embed(encoded)
    pos = self.pos_embed(self.decoder_pos_embed_learned, grid, U)
    if visible is not None:
        S, D = pos.shape[1] - U, x.shape[2]
        canvas = self.mask_token.to(x.dtype).expand(B, S, D)
        canvas = canvas.scatter(1, visible.unsqueeze(-1).expand(-1, -1, D), x[:, U:])
        x = torch.cat([x[:, :U], canvas], dim=1)
    pos_z = self.pos_embed(self.diffusion_pos_embed_learned, grid, 0)
    z = self.decoder_norm(self.run_blocks(self.decoder_blocks, x + pos))[:, U:] + pos_z
    return z if places is None else take(z, places)
"""
WRONG = [
    ("positions of the first places", ENCODE.replace("pos = take(pos.expand(B, -1, -1), visible)",
     "pos = pos[:, :visible.shape[1]]") + DECODE, "positions are those of the first K places"),
    ("buffers last", ENCODE.replace("[buffers, x]", "[x, buffers]") + DECODE, "the buffers come last"),
    ("hidden ones are zeros", ENCODE.replace("""        latents = take(latents, visible)
        pos = take(pos.expand(B, -1, -1), visible)
""", """        seen = torch.zeros(latents.shape[:2]).scatter(1, visible, 1.0)
        latents = latents * seen.unsqueeze(-1)
""") + DECODE, "set to zero, and not left out"),
    ("positions without the buffers'", ENCODE.replace("pos = pos[:, U:]", "pos = pos[:, :-U]") + DECODE,
     "positions of the image begin at 0"),
    ("one row of places for all", ENCODE.replace("take(latents, visible)", "latents[:, visible[0]]").replace(
        "take(pos.expand(B, -1, -1), visible)", "pos[:, visible[0]]") + DECODE, "visible places of the first"),
    ("positions after the norm", ENCODE.replace(" + pos\n", "\n").replace("condition.unsqueeze(1) + pos[:, :U]",
     "condition.unsqueeze(1).expand(-1, U, -1) - 0 * pos[:, :U]").replace("x], dim=1))",
     "x], dim=1)) + torch.cat([self.pos_embed(self.encoder_pos_embed_learned, grid, U)[:, :U].expand(B, -1, -1), "
     "pos.expand(B, -1, -1)], dim=1)") + DECODE, "added after z_proj_ln"),
    ("condition forgotten", ENCODE.replace(" if condition is None else condition", "") + DECODE,
     "every buffer gets fake_latent"),
    ("batch of one", ENCODE.replace("pos.expand(B, -1, -1)", "pos") + DECODE, ""),
    ("visible ones to the front", ENCODE + DECODE.replace("visible.unsqueeze(-1).expand(-1, -1, D)",
     "torch.arange(visible.shape[1]).view(1, -1, 1).expand(B, -1, D)"), "put at the first places"),
    ("zeros for the mask token", ENCODE + DECODE.replace("self.mask_token.to(x.dtype).expand(B, S, D)",
                                                         "x.new_zeros(B, S, D)"), "filled with zeros"),
    ("buffers scattered", ENCODE + DECODE.replace("x[:, U:])", "x)"), "where the buffers are"),
    ("buffers kept", ENCODE + DECODE.replace("[:, U:] + pos_z", "[:, :pos_z.shape[1]] + pos_z"),
     "not cut off the front"),
    ("no last positions", ENCODE + DECODE.replace("[:, U:] + pos_z", "[:, U:]"), "diffusion_pos_embed_learned, are"),
    ("last positions of the first places", ENCODE + DECODE.replace("[:, U:] + pos_z\n", "[:, U:]\n").replace(
        "return z if places is None else take(z, places)",
        "return z + pos_z if places is None else take(z, places) + pos_z[:, :places.shape[1]]"),
     "last positions of the first places"),
    ("places forgotten", ENCODE + DECODE.replace(" if places is None else take(z, places)", ""), "places is not used"),
    ("no positions in the decoder", ENCODE + DECODE.replace("x + pos)", "x)"), "not added before the blocks"),
    ("native grid only", ENCODE.replace("learned, grid, U", "learned, None, U") + DECODE, ""),
]
RIGHT = [
    ("plain indexing, loops", """
def rows(x, index):
    return torch.stack([picture[places] for picture, places in zip(x, index)])

def encode(self, latents, visible=None, grid=None, condition=None):
    B, S, C = latents.shape
    U = self.config.buffer_size
    if visible is None:
        visible = torch.arange(S, device=latents.device).expand(B, S)
    if condition is None:
        condition = self.fake_latent.repeat(B, 1)
    pos = self.pos_embed(self.encoder_pos_embed_learned, grid, U)[0]
    tokens = self.z_proj(latents.to(self.z_proj.weight.dtype))
    everything = torch.cat([condition[:, None].repeat(1, U, 1), tokens], dim=1) + pos
    kept = torch.cat([torch.arange(U).expand(B, U), U + visible], dim=1)
    x = self.z_proj_ln(rows(everything, kept))
    return self.encoder_norm(self.run_blocks(self.encoder_blocks, x))

def decode(self, encoded, visible=None, grid=None, places=None):
    U, x = self.config.buffer_size, self.decoder_embed(encoded)
    B, _, D = x.shape
    pos = self.pos_embed(self.decoder_pos_embed_learned, grid, U)
    if visible is not None:
        full = self.mask_token.to(x.dtype).repeat(B, pos.shape[1] - U, 1)
        for b in range(B):
            full[b, visible[b]] = x[b, U:]
        x = torch.cat([x[:, :U], full], 1)
    z = self.decoder_norm(self.run_blocks(self.decoder_blocks, x + pos))[:, U:]
    z = z + self.pos_embed(self.diffusion_pos_embed_learned, grid, 0)
    return z if places is None else rows(z, places)
"""),
    ("one-hot matrices and einsum", """
def encode(self, latents, visible=None, grid=None, condition=None):
    U, dtype = self.config.buffer_size, self.z_proj.weight.dtype
    table = self.pos_embed(self.encoder_pos_embed_learned, grid, U)
    tokens = self.z_proj(latents.to(dtype)) + table[:, U:]
    if visible is not None:
        chosen = F.one_hot(visible, latents.shape[1]).to(dtype)
        tokens = torch.einsum("bks,bsd->bkd", chosen, tokens)
    first = (self.fake_latent if condition is None else condition)[:, None, :] + table[:, :U]
    x = torch.cat([first.expand(len(latents), -1, -1), tokens], dim=1)
    return self.encoder_norm(self.run_blocks(self.encoder_blocks, self.z_proj_ln(x)))

def decode(self, encoded, visible=None, grid=None, places=None):
    U = self.config.buffer_size
    x = self.decoder_embed(encoded)
    last = self.pos_embed(self.diffusion_pos_embed_learned, grid, 0)
    if visible is not None:
        chosen = F.one_hot(visible, last.shape[1]).to(x.dtype)
        tokens = torch.einsum("bks,bkd->bsd", chosen, x[:, U:])
        tokens = tokens + (1 - chosen.sum(dim=1))[:, :, None] * self.mask_token.to(x.dtype)
        x = torch.cat([x[:, :U], tokens], dim=1)
    x = x + self.pos_embed(self.decoder_pos_embed_learned, grid, U)
    if places is None:
        return self.decoder_norm(self.run_blocks(self.decoder_blocks, x))[:, U:] + last
    x = self.decoder_norm(self.run_blocks(self.decoder_blocks, x, U + places))
    return x + last[0][places]
"""),
]
