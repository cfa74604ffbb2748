"""Solutions of exercise 04, RMSNorm."""
WRONG = [
    ("sum for mean", """
def forward(self, x):
    h = x.float()
    return self.weight * (h * torch.rsqrt(h.pow(2).sum(-1, keepdim=True) + self.eps)).to(x.dtype)
""", "summed, not averaged"),
    ("eps outside", """
def forward(self, x):
    h = x.float()
    return self.weight * (h / (h.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)).to(x.dtype)
""", "eps is added outside"),
    ("eps forgotten", """
def forward(self, x):
    h = x.float()
    return self.weight * (h / h.pow(2).mean(-1, keepdim=True).sqrt()).to(x.dtype)
""", "eps is forgotten"),
    ("LayerNorm", """
def forward(self, x):
    return self.weight * F.layer_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)
""", "the mean is subtracted"),
    ("in bfloat16", """
def forward(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
""", "normalised in bfloat16"),
    ("weight forgotten", """
def forward(self, x):
    return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)
""", "the weight is forgotten"),
    ("in place", """
def forward(self, x):
    x.mul_(torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
    return self.weight * x
""", "changes x in place"),
    ("stays in float32", """
def forward(self, x):
    h = x.float()
    return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps))
""", "go back to x.dtype"),
    ("three dimensions only", """
def forward(self, x):
    B, L, E = x.shape
    return self.weight * F.rms_norm(x.float(), (E,), eps=self.eps).to(x.dtype)
""", ""),
]
RIGHT = [
    ("by hand", """
def forward(self, x):
    h = x.to(torch.float32)
    h = h / torch.sqrt((h * h).sum(dim=-1, keepdim=True) / h.shape[-1] + self.eps)
    return h.to(x.dtype) * self.weight
"""),
    ("einsum, rows, and a helper", """
import math

def row_scale(rows, eps):
    return (torch.einsum("ne,ne->n", rows, rows) / rows.shape[1] + eps) ** -0.5

def forward(self, x):
    rows = x.reshape(-1, x.shape[-1]).float()
    rows = torch.stack([row * s for row, s in zip(rows, row_scale(rows, self.eps))])
    return self.weight * rows.to(x.dtype).reshape(x.shape)
"""),
]
