"""Solutions of exercise 06, grouped-query attention."""
CODE = """
def forward(self, x, rope, may_attend, cache, layer):
    B, L, _ = x.shape
    q = self.q_proj(x).view(B, L, self.heads, -1).transpose(1, 2)
    k = self.k_proj(x).view(B, L, self.kv_heads, -1).transpose(1, 2)
    v = self.v_proj(x).view(B, L, self.kv_heads, -1).transpose(1, 2)
    q = rotate(q, *rope)
    k = rotate(k, *rope)
    if cache is not None:
        k, v = cache.extend(layer, k, v)
    group = self.heads // self.kv_heads
    k = k.repeat_interleave(group, dim=1)
    v = v.repeat_interleave(group, dim=1)
    x = attention(q, k, v, may_attend, is_causal=may_attend is None and L > 1)
    return self.o_proj(x.transpose(1, 2).reshape(B, L, -1))
"""
EXTEND = "    if cache is not None:\n        k, v = cache.extend(layer, k, v)\n"
SHARE = "    k = k.repeat_interleave(group, dim=1)\n    v = v.repeat_interleave(group, dim=1)\n"
ROTATE_K = "    k = rotate(k, *rope)\n"
WRONG = [
    ("repeat", CODE.replace("repeat_interleave(group, dim=1)", "repeat(1, group, 1, 1)"), "h % kv_heads"),
    ("nothing rotated", CODE.replace(ROTATE_K, "").replace("    q = rotate(q, *rope)\n", ""), "are not rotated"),
    ("keys not rotated", CODE.replace(ROTATE_K, ""), "only the queries are rotated"),
    ("values rotated", CODE.replace(ROTATE_K, ROTATE_K + "    v = rotate(v, *rope)\n"), "the values are rotated"),
    ("not causal", CODE.replace("may_attend is None and L > 1", "False"), "nothing is masked"),
    ("always causal", CODE.replace("may_attend is None and L > 1", "may_attend is None"), "as in causal order"),
    ("mask ignored", CODE.replace("attention(q, k, v, may_attend, is_causal=may_attend is None and L > 1)",
                                  "attention(q, k, v, is_causal=L > 1)"), "may_attend is not used"),
    ("mask ignored for one token", CODE.replace(
        "    x = att", "    may_attend = None if L == 1 else may_attend\n    x = att"),
     "may_attend is not used"),
    ("mask inverted", CODE.replace("v, may_attend, is", "v, None if may_attend is None else ~may_attend, is"),
     "who may NOT attend"),
    ("shared before the cache", CODE.replace(EXTEND, "").replace(SHARE, SHARE + EXTEND), "share them only after"),
    ("rotated after the cache", CODE.replace(ROTATE_K, "").replace(
        EXTEND, EXTEND + "    if k.shape[2] == L:\n        k = rotate(k, *rope)\n"), "not rotated yet"),
    ("cache forgotten", CODE.replace(EXTEND, ""), "call cache.extend"),
    ("o_proj forgotten", CODE.replace("self.o_proj(x.transpose(1, 2).reshape(B, L, -1))",
                                      "x.transpose(1, 2).reshape(B, L, -1)"), "o_proj is forgotten"),
]
RIGHT = [
    ("queries in groups, einsum", """
def forward(self, x, rope, may_attend, cache, layer):
    B, L, E = x.shape
    d, group = self.head_dim, self.heads // self.kv_heads
    q = rotate(self.q_proj(x).reshape(B, L, self.heads, d).permute(0, 2, 1, 3), *rope)
    k = rotate(self.k_proj(x).reshape(B, L, self.kv_heads, d).permute(0, 2, 1, 3), *rope)
    v = self.v_proj(x).reshape(B, L, self.kv_heads, d).permute(0, 2, 1, 3)
    if cache is not None:
        k, v = cache.extend(layer, k, v)
    scores = torch.einsum("bkgqd,bksd->bkgqs", q.unflatten(1, (self.kv_heads, group)), k) / d ** 0.5
    scores = scores.flatten(1, 2)
    if may_attend is not None:
        scores = scores.masked_fill(~may_attend, -torch.inf)
    elif L > 1:
        scores = scores + torch.full((L, L), -torch.inf).triu(1)
    weights = scores.softmax(dim=-1).unflatten(1, (self.kv_heads, group))
    return self.o_proj(torch.einsum("bkgqs,bksd->bqkgd", weights, v).flatten(2))
"""),
    ("a helper and a loop over heads", """
def in_heads(x, heads):
    return torch.stack(x.chunk(heads, dim=-1), dim=1)

def forward(self, x, rope, may_attend, cache, layer):
    q, k, v = in_heads(self.q_proj(x), self.heads), in_heads(self.k_proj(x), self.kv_heads), \\
        in_heads(self.v_proj(x), self.kv_heads)
    q, k = rotate(q, *rope), rotate(k, *rope)
    if cache is not None:
        k, v = cache.extend(layer, k, v)
    out = []
    for h in range(self.heads):
        own = h * self.kv_heads // self.heads
        out.append(attention(q[:, h:h + 1], k[:, own:own + 1], v[:, own:own + 1], may_attend,
                             is_causal=may_attend is None and x.shape[1] > 1).squeeze(1))
    return self.o_proj(torch.cat(out, dim=-1))
"""),
]
