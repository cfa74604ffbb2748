"""Solutions of exercise 07, a KV cache that changes nothing."""
EXTEND = """
def extend(self, layer, k, v):
    if layer in self.layers:
        past_k, past_v = self.layers[layer]
        k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
    if self.append:
        self.layers[layer] = (k, v)
    return k, v
"""
MASK = """
def causal_mask(past, L, is_real, device):
    if is_real is None and (past == 0 or L == 1):
        return None
    query = torch.arange(past, past + L, device=device)[:, None]
    key = torch.arange(past + L, device=device)
    if is_real is None:
        return key <= query
    return ((key <= query) & is_real.bool()[:, None, None, :]) | (key == query)
"""
WRONG = [
    ("new ones first", EXTEND.replace("[past_k, k]", "[k, past_k]").replace("[past_v, v]", "[v, past_v]"),
     "the new ones come first"),
    ("returns only the new", EXTEND.replace("return k, v", "return k[:, :, -n:], v[:, :, -n:]").replace(
        "    if layer in", "    n = k.shape[2]\n    if layer in"), "the past is forgotten"),
    ("never kept", EXTEND.replace("if self.append", "if False"), "the past is forgotten"),
    ("always kept", EXTEND.replace("if self.append", "if True"), "expected no change"),
    ("kept when there is a past", EXTEND.replace("if self.append", "if self.append or layer not in self.layers"),
     "holds something after extend"),
    ("joined along the heads", EXTEND.replace("dim=2", "dim=1"), ""),
    ("one layer for all", EXTEND.replace("if layer in", "layer = 0\n    if layer in"), ""),
    ("past not counted", MASK.replace("arange(past, past + L, device=device)", "arange(L, device=device)").replace(
        "| (key == query)", "| (key == query + past)"), "the rows begin at token 0"),
    ("one too many", MASK.replace("key <= query", "key <= query + 1"), "up to one"),
    ("always None without padding", MASK.replace(" and (past == 0 or L == 1)", ""), "own causal order"),
    ("padding sees nothing", MASK.replace(" | (key == query)", ""), "padding does not see itself"),
    ("inverted", MASK.replace("return key <= query", "return key > query"), "may not attend"),
    ("no room for heads", MASK.replace("[:, None, None, :]", "[:, None, :]"), "the 1 is for"),
]
RIGHT = [
    ("always a mask; lists of parts", """
def extend(self, layer, k, v):
    old = self.layers.get(layer)
    both = (k, v) if old is None else tuple(torch.cat(pair, dim=-2) for pair in zip(old, (k, v)))
    if self.append:
        self.layers[layer] = both
    return both

def causal_mask(past, L, is_real, device):
    mask = torch.ones(L, past + L, dtype=torch.bool, device=device).tril(past)
    if is_real is None:
        return mask
    itself = torch.eye(past + L, dtype=torch.bool, device=device)[past:]
    return (mask & (is_real != 0).view(-1, 1, 1, past + L)).logical_or(itself)
"""),
    ("loops, early returns", """
def rows(past, L):
    return [[j <= past + i for j in range(past + L)] for i in range(L)]

def extend(self, layer, k, v):
    if layer in self.layers:
        k = torch.cat((self.layers[layer][0], k), 2)
        v = torch.cat((self.layers[layer][1], v), 2)
    if not self.append:
        return k, v
    self.layers[layer] = k, v
    return self.layers[layer]

def causal_mask(past, L, is_real, device):
    if is_real is None:
        return None if past == 0 else torch.tensor(rows(past, L), device=device)
    mask = torch.tensor(rows(past, L), device=device).repeat(len(is_real), 1, 1, 1)
    for b in range(len(is_real)):
        mask[b, 0, :, ~is_real[b].bool()] = False
        for i in range(L):
            mask[b, 0, i, past + i] = True
    return mask
"""),
]
