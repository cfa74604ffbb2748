"""Solutions of exercise 01, pixels to latents and back."""
HEAD = """
def encode(self, image):
    self.grid_of(image.shape[-2], image.shape[-1])
    mean, logvar = self.moments(image)
"""
WRONG = [
    ("scale forgotten", HEAD + "    return mean.flatten(2).transpose(1, 2)\n", "the scale is forgotten"),
    ("divided by the scale", HEAD + "    return mean.flatten(2).transpose(1, 2) / self.config.scale\n",
     "divided by the scale"),
    ("reshape", HEAD + "    B, C, h, w = mean.shape\n    return mean.reshape(B, h * w, C) * self.config.scale\n",
     "mixes channels and places"),
    ("columns first", HEAD + "    return mean.permute(0, 3, 2, 1).flatten(1, 2) * self.config.scale\n",
     "column by column"),
    ("a sample", HEAD + "    mean = mean + (logvar / 2).exp() * torch.randn_like(mean)\n"
     "    return mean.flatten(2).transpose(1, 2) * self.config.scale\n", ""),
    ("in place", HEAD + "    image.clamp_(-0.5, 0.5)\n    return mean.flatten(2).transpose(1, 2) * self.config.scale\n",
     "changes image in place"),
    ("any size", "def encode(self, image):\n    return self.moments(image)[0].flatten(2).transpose(1, 2) * "
     "self.config.scale\n", "though"),
    ("decode without scale", """
def decode(self, latents, grid):
    return self.reconstruct(latents.transpose(1, 2).unflatten(2, grid))
""", "the scale is not undone"),
    ("decode with reshape", """
def decode(self, latents, grid):
    B, S, C = latents.shape
    return self.reconstruct(latents.reshape(B, C, *grid) / self.config.scale)
""", "mixes channels and places"),
    ("height and width exchanged", """
def decode(self, latents, grid):
    h, w = grid
    return self.reconstruct((latents / self.config.scale).transpose(1, 2).unflatten(2, (w, h)))
""", "height and width are exchanged"),
]
RIGHT = [
    ("permute and view", """
def encode(self, image):
    h, w = self.grid_of(*image.shape[2:])
    mean = self.moments(image)[0] * self.config.scale
    return mean.permute(0, 2, 3, 1).reshape(len(image), h * w, -1)

def decode(self, latents, grid):
    (h, w), (B, S, C) = grid, latents.shape
    return self.reconstruct(latents.view(B, h, w, C).permute(0, 3, 1, 2) / self.config.scale)
"""),
    ("loops over places", """
def in_order(h, w):
    return [(i, j) for i in range(h) for j in range(w)]

def encode(self, image):
    height, width = image.shape[-2:]
    h, w = self.grid_of(height, width)
    mean, _ = self.moments(image)
    return torch.stack([mean[:, :, i, j] for i, j in in_order(h, w)], dim=1) * self.config.scale

def decode(self, latents, grid):
    mean = latents.new_zeros(len(latents), latents.shape[2], *grid)
    for token, (i, j) in zip(latents.unbind(1), in_order(*grid)):
        mean[:, :, i, j] = token / self.config.scale
    return self.reconstruct(mean)
"""),
]
