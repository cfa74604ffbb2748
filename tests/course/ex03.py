"""Solutions of exercise 03, learned positions on another grid."""
CODE = """
def pos_embed(self, table, grid, n_buffers):
    n = self.config.grid
    if grid is None or tuple(grid) == (n, n):
        return table
    first, places = table[:, :n_buffers], table[:, n_buffers:]
    places = places.transpose(1, 2).unflatten(2, (n, n)).float()
    places = F.interpolate(places, size=grid, mode="bilinear").to(table.dtype)
    return torch.cat([first, places.flatten(2).transpose(1, 2)], dim=1)
"""
WRONG = [
    ("h and w exchanged", CODE.replace("size=grid", "size=(grid[1], grid[0])"), "h and w are exchanged"),
    ("corners aligned", CODE.replace('"bilinear"', '"bilinear", align_corners=True'), "the corners are aligned"),
    ("nearest", CODE.replace('"bilinear"', '"nearest"'), "the nearest place"),
    ("bicubic", CODE.replace('"bilinear"', '"bicubic"'), "bicubically"),
    ("mixed", CODE.replace("places.transpose(1, 2).unflatten(2, (n, n))", "places.reshape(1, -1, n, n)"), "are mixed"),
    ("rows and columns exchanged", CODE.replace("unflatten(2, (n, n))", "unflatten(2, (n, n)).transpose(2, 3)"),
     "rows and columns of the table"),
    ("buffers lost", CODE.replace("torch.cat([first, places.flatten(2).transpose(1, 2)], dim=1)",
                                  "places.flatten(2).transpose(1, 2)"), "buffers' rows are lost"),
    ("buffers last", CODE.replace("[first, places.flatten(2).transpose(1, 2)]",
                                  "[places.flatten(2).transpose(1, 2), first]"), "after the places"),
    ("only twice as large", CODE.replace("size=grid", "scale_factor=2.0"), ""),
    ("float32 stays", CODE.replace(".to(table.dtype)", ""), "table is bfloat16"),
]
RIGHT = [
    ("channels as a batch", """
def pos_embed(self, table, grid, n_buffers):
    side = self.config.grid
    if grid is None or grid == (side, side):
        return table.clone()
    square = table[0, n_buffers:].float().T.reshape(-1, 1, side, side)
    new = F.interpolate(square, grid, mode="bilinear", align_corners=False).reshape(square.shape[0], -1).T
    return torch.cat((table[0, :n_buffers], new.to(table)))[None]
"""),
    ("two matrices", """
def weights(old, new):
    W = torch.zeros(new, old)
    for i in range(new):
        x = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        W[i, int(x)] += 1 - (x - int(x))
        W[i, min(int(x) + 1, old - 1)] += x - int(x)
    return W

def pos_embed(self, table, grid, n_buffers):
    n = self.config.grid
    h, w = grid or (n, n)
    places = table[:, n_buffers:].float().reshape(1, n, n, -1)
    new = torch.einsum("hi,wj,bijd->bhwd", weights(n, h), weights(n, w), places)
    return torch.cat([table[:, :n_buffers], new.flatten(1, 2).to(table.dtype)], dim=1)
"""),
]
