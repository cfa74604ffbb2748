"""Exercise 18: wrong solutions, each with a piece of the message it must get, and right ones, written differently."""
HEAD = "def see(self, latents, visible=None, grid=None):\n"
BODY = """\
    U = self.config.mar.buffer_size
    encoded = self.mar.encode(latents, visible, grid)
    embeds = self.proj_in(encoded)
"""

WRONG = [
    ("buffers stay in front", HEAD + BODY + "    return encoded, embeds\n", "the buffers stay in front"),
    ("the wrong direction", HEAD + BODY + "    return encoded, embeds.roll(U, 1)\n", "the wrong direction"),
    ("encoded is reordered too", HEAD + BODY + """\
    encoded, embeds = encoded.roll(-U, 1), embeds.roll(-U, 1)
    return encoded, embeds
""", "the buffers are moved in encoded, too"),
    ("grid is forgotten", HEAD + BODY.replace(", grid)", ")") + "    return encoded, embeds.roll(-U, 1)\n",
     "grid is not handed on"),
    ("visible is forgotten", HEAD + BODY.replace("visible, grid)", "grid=grid)") +
     "    return encoded, embeds.roll(-U, 1)\n", "visible is not handed on"),
    ("cut at the number of tokens", HEAD + BODY + """\
    K = encoded.shape[1] - U
    return encoded, torch.cat([embeds[:, K:], embeds[:, :K]], dim=1)
""", "wrong direction"),
    ("detached", HEAD + BODY + "    return encoded.detach(), torch.cat([embeds[:, U:], embeds[:, :U]], 1)\n",
     "encoded has no gradient"),
    ("slices from the end", HEAD + BODY + """\
    moved = embeds.roll(-U, 1)
    return encoded, torch.cat([moved[:, :-U], embeds[:, :U]], dim=1)
""", "a slice such as [:, :-U]"),
    ("the other order of the pair", HEAD + BODY + "    return embeds.roll(-U, 1), encoded\n", "in the other order"),
]

RIGHT = [
    ("roll", HEAD + """\
    both = self.mar.encode(latents, visible=visible, grid=grid)
    return both, self.proj_in(both).roll(-self.mar.config.buffer_size, dims=1)
"""),
    ("an index", HEAD + """\
    x = self.mar.encode(latents, visible, grid, None)
    first, n = self.config.mar.buffer_size, x.size(1)
    order = torch.tensor([*range(first, n), *range(first)], dtype=torch.long, device=x.device)
    return x, self.proj_in(x.index_select(1, order))
"""),
    ("two parts and a helper", HEAD + """\
    encoded = self.mar.encode(latents, visible, grid)
    buffers, tokens = halves_of(encoded, self.config.mar.buffer_size)
    return encoded, torch.cat((self.proj_in(tokens), self.proj_in(buffers)), dim=-2)


def halves_of(x, n):
    return torch.split(x, [n, x.shape[1] - n], dim=1)
"""),
]
