"""Exercise 20: wrong solutions, each with a piece of the message it must get, and right ones, written differently."""
RIGHT_ONE = """\
def embed_with_images(self, latents, ids, grid=None, grad_scale=1.0):
    embeds = self.llm.embed(ids.clamp(min=0))
    if latents is None:
        return embeds
    pictures = self.see(latents, None, grid)[1]
    if grad_scale != 1.0:
        pictures = pictures.detach() + grad_scale * (pictures - pictures.detach())
    return embeds.masked_scatter((ids == IMAGE).unsqueeze(-1), pictures)
"""


def changed(old, new):
    assert RIGHT_ONE.count(old) == 1, old
    return RIGHT_ONE.replace(old, new)


TRICK = "pictures.detach() + grad_scale * (pictures - pictures.detach())"
LAST = "return embeds.masked_scatter((ids == IMAGE).unsqueeze(-1), pictures)"
WRONG = [
    ("the value is scaled", changed(TRICK, "grad_scale * pictures"), "only their gradient is scaled"),
    ("detached", changed(TRICK, "pictures.detach()"), "to be scaled, not stopped"),
    ("not scaled", changed(TRICK, "pictures"), "not scaled at all"),
    ("a missing detach", changed(TRICK, "pictures + grad_scale * (pictures - pictures.detach())"),
     "by 1 + grad_scale"),
    ("the other share", changed(TRICK, "grad_scale * pictures.detach() + (1 - grad_scale) * pictures"),
     "1 - grad_scale"),
    ("the text is scaled too", changed("    if grad_scale != 1.0:", """\
    if grad_scale != 1.0:
        embeds = embeds.detach() + grad_scale * (embeds - embeds.detach())"""), "the gradient of the text is scaled"),
    ("buffers in front", changed("self.see(latents, None, grid)[1]", "self.proj_in(self.see(latents, None, grid)[0])"),
     "the buffers stand in front"),
    ("grid is forgotten", changed("(latents, None, grid)", "(latents)"), "grid is not handed on"),
    ("column by column", changed(LAST, """\
out = embeds.transpose(0, 1).contiguous()
    out = out.masked_scatter((ids.t() == IMAGE).unsqueeze(-1), pictures)
    return out.transpose(0, 1)"""), "column by column"),
    ("one picture for all", changed(LAST, """\
embeds = embeds.clone()
    embeds[ids == IMAGE] = pictures[:1].expand(len(pictures), -1, -1).flatten(0, 1)
    return embeds"""), "the first picture stands everywhere"),
    ("ids in place", changed("    embeds = self.llm.embed(ids.clamp(min=0))", """\
    where = ids == IMAGE
    embeds = self.llm.embed(ids.clamp_(min=0))""").replace("(ids == IMAGE)", "where"), "ids is changed in place"),
    ("one place for all rows", changed(LAST, """\
out = embeds.clone()
    for row, picture in zip(out, pictures):
        start = (ids == IMAGE).any(dim=0).int().argmax()
        row[start:start + len(picture)] = picture
    return out"""), ""),
]

RIGHT = [
    ("a loop", """\
def embed_with_images(self, latents, ids, grid=None, grad_scale=1.0):
    is_image = ids == IMAGE
    table = self.llm.model.embed_tokens
    out = table(torch.where(is_image, torch.zeros_like(ids), ids))
    if latents is None or len(latents) == 0:
        return out
    _, seen = self.see(latents, grid=grid)
    seen = grad_scale * seen + (1 - grad_scale) * seen.detach()
    queue, rows = seen.reshape(-1, seen.shape[-1]), []
    for row, where in zip(out, is_image):
        n = int(where.sum())
        row = row.clone()
        row[where] = queue[:n]
        queue = queue[n:]
        rows.append(row)
    return torch.stack(rows)
"""),
    ("a hook and a running count", """\
def embed_with_images(self, latents, ids, grid=None, grad_scale=1.0):
    text = self.llm.embed(ids.clip(0))
    if latents is None or latents.shape[0] == 0:
        return text
    pictures = self.see(latents, None, grid)[1].flatten(0, 1)
    if pictures.requires_grad:
        pictures.register_hook(lambda gradient: gradient * grad_scale)
    here = ids.eq(IMAGE)
    number = (here.flatten().cumsum(0) - 1).clamp(min=0).view_as(ids)
    return torch.where(here[:, :, None], pictures[number], text)
"""),
    ("an autograd function", """\
def embed_with_images(self, latents, ids, grid=None, grad_scale=1.0):
    embeds = self.llm.embed(ids.clamp(min=0)).clone()
    if latents is not None:
        embeds[ids == IMAGE] = Scaled.apply(self.see(latents, None, grid)[1], grad_scale).flatten(end_dim=1)
    return embeds


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.scale * gradient, None
"""),
]
