"""Exercise 19: wrong solutions, each with a piece of the message it must get, and right ones, written differently."""
RIGHT_ONE = """\
def through_llm(self, encoded, embeds, text, is_real, cache=None):
    n, U = embeds.shape[1], self.config.mar.buffer_size
    is_real = torch.cat([is_real.bool(), is_real.new_ones(embeds.shape[:2], dtype=torch.bool)], dim=1)
    positions = (is_real.long().cumsum(dim=1) - 1).clamp(min=0)
    if cache is None:
        states = self.llm.model(torch.cat([text, embeds], dim=1), positions, is_real)
    else:
        states = self.llm.model(embeds, positions[:, -n:], is_real, cache)
    states = self.proj_out(states[:, -n:])
    states = torch.cat([states[:, n - U:], states[:, :n - U]], dim=1)
    return encoded + states
"""


def changed(old, new):
    assert RIGHT_ONE.count(old) == 1, old
    return RIGHT_ONE.replace(old, new)


COUNTED = "positions = (is_real.long().cumsum(dim=1) - 1).clamp(min=0)"
WRONG = [
    ("no residual", changed("encoded + states", "states"), "the residual is missing"),
    ("buffers stay at the end", changed("torch.cat([states[:, n - U:], states[:, :n - U]], dim=1)", "states"),
     "the buffers must come back to the front"),
    ("moved in the wrong direction", changed("torch.cat([states[:, n - U:], states[:, :n - U]], dim=1)",
                                             "torch.cat([states[:, U:], states[:, :U]], dim=1)"), "wrong direction"),
    ("the first states", changed("states[:, -n:])", "states[:, :n])"), "the picture's are the last"),
    ("the picture before the prompt", changed("[text, embeds]", "[embeds, text]"), "before the prompt"),
    ("padding counts", changed(COUNTED, "positions = torch.arange(is_real.shape[1]).expand(len(is_real), -1)"),
     "padding counts in the positions"),
    ("padding is attended to", changed("positions, is_real)", "positions)"), "padding is attended to"),
    ("positions of the first row", changed(COUNTED, COUNTED + "[:1].expand(len(is_real), -1)"),
     "go on from the length of the first prompt"),
    ("with a cache from 0 on", changed("positions[:, -n:], is_real, cache", "positions[:, :n], is_real, cache"),
     "holds the prompt: your result is what one gets when the picture"),
    ("with a cache the default positions", changed("positions[:, -n:], is_real, cache", "None, is_real, cache"),
     "padding counts in the positions"),
    ("in place", changed("return encoded + states", "encoded += states\n    return encoded"),
     "encoded is changed in place"),
    ("detached", changed("self.proj_out(states[:, -n:])", "self.proj_out(states[:, -n:].detach())"),
     "no gradient reaches embeds"),
]

RIGHT = [
    ("lengths and roll", """\
def through_llm(self, encoded, embeds, text, is_real, cache=None):
    B, n, _ = embeds.shape
    past = torch.arange(is_real.shape[1], device=embeds.device).expand(B, -1)
    own = is_real.sum(1, keepdim=True) + torch.arange(n, device=embeds.device)
    mask = torch.nn.functional.pad(is_real, (0, n), value=True)
    if text is None:
        h = self.llm.model(embeds, positions=own, is_real=mask, cache=cache)
    else:
        both = torch.cat((text, embeds), 1)
        h = self.llm.model(both, positions=torch.cat((past, own), 1), is_real=mask, cache=cache)[:, text.shape[1]:]
    return self.proj_out(h).roll(self.config.mar.buffer_size, dims=1).add(encoded)
"""),
    ("row by row", """\
def through_llm(self, encoded, embeds, text, is_real, cache=None):
    if cache is not None:
        starts = is_real.sum(dim=1)
        places = torch.stack([torch.arange(embeds.shape[1]) + int(s) for s in starts])
        mask = torch.cat([is_real, torch.ones_like(embeds[..., 0]).bool()], dim=1)
        states = self.llm.model(embeds, places, mask, cache)
    else:
        states = torch.cat([last_states(self.llm.model, t[r], e) for t, r, e in zip(text, is_real, embeds)])
    U = self.config.mar.buffer_size
    K = states.shape[1] - U
    out = self.proj_out(states)
    return torch.cat([encoded[:, :U] + out[:, K:], encoded[:, U:] + out[:, :K]], dim=1)


def last_states(transformer, text, picture):
    return transformer(torch.cat([text, picture])[None])[:, len(text):]
"""),
]
