"""Solutions of exercise 02, attention with heads."""
START = """
def forward(self, x, queries=None):
    queries = x if queries is None else queries
    (B, L, D), m, d = x.shape, queries.shape[1], x.shape[2] // self.heads
    W, b = self.qkv.weight, self.qkv.bias
    p = self.attn_dropout if self.training else 0.0
    q = F.linear(queries, W[:D], b[:D]).view(B, m, self.heads, d).transpose(1, 2)
    k = F.linear(x, W[D:2 * D], b[D:2 * D]).view(B, L, self.heads, d).transpose(1, 2)
    v = F.linear(x, W[2 * D:], b[2 * D:]).view(B, L, self.heads, d).transpose(1, 2)
"""
END = """
    y = self.proj(y.transpose(1, 2).reshape(B, m, D))
    return dropout(y, self.proj_dropout if self.training else 0.0)
"""
BY_HAND = """
    weights = (q @ k.transpose(2, 3) / {scale}).softmax(dim={over})
    y = dropout(weights, p) @ v
"""
RIGHT_MIDDLE = "    y = attention(q, k, v, dropout=p)\n"
WRONG = [
    ("no scale", START + BY_HAND.format(scale="1", over=-1) + END, "not divided by sqrt(d)"),
    ("scale of D", START + BY_HAND.format(scale="D ** 0.5", over=-1) + END, "divided by sqrt(D)"),
    ("softmax over askers", START + BY_HAND.format(scale="d ** 0.5", over=-2) + END, "over those who ask"),
    ("heads cut the other way", (START + RIGHT_MIDDLE).replace("self.heads, d).transpose(1, 2)",
     "d, self.heads).permute(0, 3, 1, 2)") + END.replace("y.transpose(1, 2)", "y.permute(0, 2, 3, 1)"),
     "not neighbours"),
    ("keys for values", (START + RIGHT_MIDDLE).replace("k = F", "t = F").replace("v = F", "k = F").replace(
        "t = F", "v = F") + END, "keys and values are exchanged"),
    ("proj forgotten", START + RIGHT_MIDDLE + END.replace("self.proj(", "("), "self.proj is forgotten"),
    ("queries from x", START.replace("F.linear(queries, W[:D], b[:D])", "F.linear(x[:, :m], W[:D], b[:D])")
     + RIGHT_MIDDLE + END, "the queries come from x"),
    ("view without transposing back", START + RIGHT_MIDDLE + END.replace("y.transpose(1, 2).reshape", "y.reshape"), ""),
    ("dropout always", START.replace("if self.training else 0.0", "") + RIGHT_MIDDLE + END, ""),
    ("no dropout", START.replace("self.attn_dropout if self.training else 0.0", "0.0") + RIGHT_MIDDLE + END,
     "changes nothing"),
]
RIGHT = [
    ("einsum", """
def forward(self, x, queries=None):
    B, L, D = x.shape
    if queries is None:
        queries = x
    wq, wk, wv = self.qkv.weight.chunk(3)
    bq, bk, bv = self.qkv.bias.chunk(3)
    q = (queries @ wq.T + bq).reshape(B, -1, self.heads, D // self.heads)
    k = (x @ wk.T + bk).reshape(B, L, self.heads, -1)
    v = (x @ wv.T + bv).reshape(B, L, self.heads, -1)
    scores = torch.einsum("bmhd,blhd->bhml", q, k) * (D // self.heads) ** -0.5
    weights = dropout(scores.softmax(-1), self.attn_dropout if self.training else 0.0)
    y = torch.einsum("bhml,blhd->bmhd", weights, v).flatten(2)
    return dropout(self.proj(y), self.proj_dropout if self.training else 0.0)
"""),
    ("a loop over heads, the whole qkv for both", """
def one_head(q, k, v, p):
    return attention(q[:, None], k[:, None], v[:, None], dropout=p)[:, 0]

def forward(self, x, queries=None):
    D, queries = x.shape[-1], x if queries is None else queries
    q = self.qkv(queries)[..., :D].chunk(self.heads, dim=-1)
    k, v = (part.chunk(self.heads, dim=-1) for part in self.qkv(x)[..., D:].chunk(2, dim=-1))
    on = float(self.training)
    heads = [one_head(a, b, c, on * self.attn_dropout) for a, b, c in zip(q, k, v)]
    return dropout(self.proj(torch.cat(heads, dim=-1)), on * self.proj_dropout)
"""),
]
