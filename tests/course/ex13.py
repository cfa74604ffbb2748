"""Solutions of exercise 13, a block that the condition modulates."""
MODULATE = """
def modulate(x, shift, scale):
    return x * (1 + scale) + shift
"""
BLOCK = """
def forward(self, x, modulation):
    shift, scale, gate = modulation.chunk(3, dim=-1)
    return x + gate * self.mlp(modulate(self.in_ln(x), shift, scale))
"""
WRONG = [
    ("no 1", MODULATE.replace("(1 + scale)", "scale") + BLOCK, "the 1 is missing"),
    ("shift first", MODULATE.replace("x * (1 + scale) + shift", "(x + shift) * (1 + scale)") + BLOCK,
     "added before scaling"),
    ("in place", """
def modulate(x, shift, scale):
    x *= 1 + scale
    return x.add_(shift)
""" + BLOCK,
     "changes x in place"),
    ("order of the three", MODULATE + BLOCK.replace("shift, scale, gate =", "scale, shift, gate ="),
     "read as scale, shift, gate"),
    ("gate first", MODULATE + BLOCK.replace("shift, scale, gate =", "gate, shift, scale ="),
     "read as gate, shift, scale"),
    ("no residual", MODULATE + BLOCK.replace("x + gate", "gate"), "x is not added again"),
    ("no gate", MODULATE + BLOCK.replace("gate * ", ""), "the gate is forgotten"),
    ("gate over all", MODULATE + BLOCK.replace("x + gate * ", "gate * (x + ") .replace("scale))\n", "scale)))\n"),
     "applied to x, too"),
    ("no norm", MODULATE + BLOCK.replace("self.in_ln(x)", "x"), "the LayerNorm is forgotten"),
    ("normed residual", MODULATE + """
def forward(self, x, modulation):
    x = self.in_ln(x)
    shift, scale, gate = modulation.chunk(3, dim=-1)
    return x + gate * self.mlp(modulate(x, shift, scale))
""", "the normed x is added again"),
    ("one row for the batch", MODULATE + BLOCK.replace("modulation.", "modulation[:1]."), "modulation of the first"),
    ("no gradient", MODULATE + BLOCK.replace("modulation.", "modulation.detach()."), "no gradient comes back to x or"),
    ("axes swapped", MODULATE + BLOCK.replace("chunk(3, dim=-1)", "view(3, len(x), -1)"), ""),
]
RIGHT = [
    ("slices, and a helper", """
def modulate(x, shift, scale):
    return torch.addcmul(x + shift, x, scale)

def three(parts):
    width = parts.shape[-1] // 3
    return parts[..., :width], parts[..., width:2 * width], parts[..., 2 * width:]

def forward(self, x, modulation):
    a, b, c = three(modulation)
    h = self.in_ln(x)
    h = self.mlp(modulate(h, shift=a, scale=b))
    return torch.addcmul(x, c, h)
"""),
    ("einsum, modulate written out", """
def modulate(x, shift, scale):
    out = x.clone()
    out += x * scale
    return out + shift

def forward(self, x, modulation):
    m = modulation.unflatten(-1, (3, x.shape[-1]))
    normed = self.in_ln(x)
    update = self.mlp(normed + normed * m[:, 1] + m[:, 0])
    return torch.einsum("nkw,nkw->nw", torch.stack([torch.ones_like(x), m[:, 2]], 1), torch.stack([x, update], 1))
"""),
]
