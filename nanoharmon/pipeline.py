"""A trained model, ready to use: load a directory, draw prompts, answer questions about pictures, encode features.

    from nanoharmon import Pipeline
    pipe = Pipeline.load("checkpoints/nano")
    pipe.draw(["a red circle left of a blue square"], seed=1)[0].save("out.png")
    pipe.answer(Image.open("out.png"), "what color is the circle?")

Pixels follow the official scripts: a picture to be understood is padded to a square with grey (127, 127, 127) and
resized; a drawn one is clamp(127.5 x + 128, 0, 255), cut to integers.
"""
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .checkpoint import load_weights, open_tensors, save_safetensors, write_json
from .config import HarmonConfig, from_dict, to_dict
from .harmon import Harmon
from .tokenizer import Tokenizer

DESCRIBE = "describe the image."            # what the captions of training answer


class Pipeline:
    """Harmon + tokenizer + the native picture size of the checkpoint."""

    def __init__(self, model, tokenizer, meta=None):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.meta = meta or {}              # "size": pixels of the last training stage; "draw": default options

    @property
    def device(self):
        return self.model.mar.fake_latent.device

    @property
    def size(self):
        """Side of the pictures it was last trained on, in pixels."""
        return self.meta.get("size", self.model.config.mar.grid * self.model.config.vae.stride)

    # --- files -----------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path, device="cpu", dtype=torch.float32):
        """A directory with model.safetensors, config.json and tokenizer.json. Raises ValueError for anything wrong."""
        path = Path(path)
        for name in ("config.json", "tokenizer.json"):
            if not (path / name).is_file():
                raise ValueError(f"{path}: no {name} here, expected a checkpoint directory; pass --ckpt DIR")
        try:
            stored = json.loads((path / "config.json").read_text())
        except ValueError as e:
            raise ValueError(f"{path / 'config.json'}: not valid JSON ({e}); pass another --ckpt") from None
        if not isinstance(stored, dict) or "model" not in stored:
            raise ValueError(f"{path / 'config.json'}: no \"model\" entry, expected what train.py or convert writes")
        try:
            config = from_dict(HarmonConfig, stored["model"], str(path / "config.json"))
        except TypeError as e:
            raise ValueError(f"{path / 'config.json'}: {e}") from None
        with torch.device("meta"):          # no memory for weights that are about to be replaced
            model = Harmon(config)
        load_weights(model, open_tensors(path), dtype=dtype, assign=True)
        model.llm.tie()
        return cls(model.to(device), Tokenizer.load(path), stored.get("meta"))

    def save(self, path, dtype=torch.float32):
        """Write the directory `load` reads; weights in `dtype`. The VAE's scale travels in config.json."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().to(dtype) for k, v in self.model.state_dict().items()}
        if self.model.config.llm.tie_word_embeddings:
            del tensors["llm.lm_head.weight"]                # the same tensor as the embedding: stored once
        save_safetensors(tensors, path / "model.safetensors", {"format": "pt"})
        self.tokenizer.save(path / "tokenizer.json")
        write_json({"model": to_dict(self.model.config), "meta": self.meta}, path / "config.json")

    # --- drawing ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, prompts, size=None, cfg=3.0, iters=64, steps=100, sampler="ddpm", temperature=1.0,
             cfg_schedule="constant", seed=0, image=None, region=None, on_step=None):
        """One PIL picture per prompt (a list of strings), drawn together as one batch.

        size: pixels, a side or (width, height); iters: unmasking iterations, at most the number of tokens; steps:
        diffusion steps per token; image and region (x0, y0, x1, y1 in pixels): draw only that part of a picture anew.
        on_step(pictures) gets the pictures so far, hidden tokens grey. The same arguments draw the same bytes.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        order_generator = torch.Generator().manual_seed(seed)
        width, height = (size, size) if isinstance(size or self.size, int) and size else (
            (self.size, self.size) if size is None else size)
        grid = self.model.vae.grid_of(height, width)
        ids, is_real = self.prompt_ids(prompts, guided=cfg != 1.0)
        options = {}
        if region is not None:
            tokens = self.model.vae.encode(self.pixels([image.convert("RGB").resize((width, height))]))
            inside, outside = split_region(region, grid, self.model.config.vae.stride, self.device)
            options = {"tokens": tokens.repeat(len(prompts), 1, 1), "known": outside.repeat(len(prompts), 1),
                       "orders": torch.stack([inside[torch.randperm(len(inside), generator=order_generator)
                                                     .to(self.device)] for _ in prompts])}
        places = options["orders"].shape[1] if options else grid[0] * grid[1]
        if not 1 <= iters <= places:
            raise ValueError(f"{iters} iterations asked for, expected 1 to {places} (the tokens to draw); "
                             f"pass --iters {places} or less")
        if on_step is not None:
            options["on_step"] = lambda tokens, visible: on_step(self.unfinished(tokens, visible, grid))
        tokens = self.model.draw(ids, is_real, iters, cfg, grid, generator=generator, order_generator=order_generator,
                                 cfg_schedule=cfg_schedule, steps=steps, sampler=sampler, temperature=temperature,
                                 **options)
        return to_pictures(self.model.vae.decode(tokens.to(self.dtype), grid))

    @property
    def dtype(self):
        return self.model.mar.fake_latent.dtype

    def prompt_ids(self, prompts, guided):
        """Right-padded ids and is_real of drawing requests, the unconditional ones after them when guided."""
        rows = [self.tokenizer.drawing(p) for p in prompts]
        rows += [self.tokenizer.drawing(None)] * len(prompts) if guided else []
        return pad(rows, self.tokenizer.pad, self.device)

    def unfinished(self, tokens, visible, grid):
        """Pictures of half-drawn tokens: decoded, with the hidden places grey."""
        shown = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter(1, visible, True)
        image = self.model.vae.decode(tokens.to(self.dtype), grid)
        shown = shown.view(-1, 1, *grid).float()
        shown = torch.nn.functional.interpolate(shown, size=image.shape[-2:], mode="nearest")
        return to_pictures(image * shown)

    # --- understanding ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reply(self, messages, images=(), size=None, temperature=0.0, top_p=1.0, max_new_tokens=64, seed=0):
        """Stream the assistant's next turn, as pieces of text.

        messages: [{"role", "content"}]; content a string, or a list where each None stands for the next of `images`
        (PIL pictures).
        """
        ids, _ = self.tokenizer.chat(self.count_images(messages, size))
        limit = self.model.config.llm.max_position_embeddings
        if len(ids) + max_new_tokens > limit:
            raise ValueError(f"the conversation is {len(ids)} tokens long, expected at most {limit - max_new_tokens} "
                             f"(the context); start anew with /reset")
        ids = torch.tensor([ids], device=self.device)
        embeds = self.embed(ids, images, size)
        generator = torch.Generator(self.device).manual_seed(seed)
        said, shown = [], ""
        for token in self.model.llm.generate(embeds, [self.tokenizer.im_end, self.tokenizer.pad], max_new_tokens,
                                             temperature, top_p, generator):
            said.append(token.item())
            text = self.tokenizer.decode(said)
            if not text.endswith("\ufffd"):                  # a character of several bytes may still be incomplete
                yield text[len(shown):]
                shown = text

    def answer(self, image, question, **options):
        """One answer to one question about a PIL picture."""
        return "".join(self.reply([{"role": "user", "content": [None, "\n" + question]}], [image], **options)).strip()

    @torch.no_grad()
    def answers(self, images, questions, size=None, max_new_tokens=48):
        """Greedy answers to one question per picture, as one batch; the same as `answer` one by one."""
        rows = [self.tokenizer.chat(self.count_images([{"role": "user", "content": [None, "\n" + q]}], size))[0]
                for q in questions]
        ids, is_real = pad(rows, self.tokenizer.pad, self.device, left=True)
        embeds = self.embed(ids, images, size)
        stop = [self.tokenizer.im_end, self.tokenizer.pad]
        tokens = torch.stack(list(self.model.llm.generate(embeds, stop, max_new_tokens, is_real=is_real)), dim=1)
        rows = [[t for t in row if t not in stop] for row in tokens.tolist()]
        return [self.tokenizer.decode(row).strip() for row in rows]

    def count_images(self, messages, size):
        """Replace None by the number of placeholders of a picture."""
        side = (size or self.size) // self.model.config.vae.stride
        n = side * side + self.model.config.mar.buffer_size
        return [{**m, "content": [n if part is None else part for part in m["content"]]}
                if isinstance(m["content"], list) else m for m in messages]

    def embed(self, ids, images, size):
        if not images:
            return self.model.llm.embed(ids)
        tokens, grid = self.tokens(images, size)
        return self.model.embed_with_images(tokens, ids, grid)

    def tokens(self, images, size=None):
        """PIL pictures -> latent tokens (N, S, C) and their grid, padded to a square and resized."""
        size = size or self.size
        grid = self.model.vae.grid_of(size, size)
        pixels = self.pixels([pad_square(image).resize((size, size), Image.Resampling.BICUBIC)
                              if image.size != (size, size) else image.convert("RGB") for image in images])
        return self.model.vae.encode(pixels), grid

    @torch.no_grad()
    def features(self, images, size=None):
        """What the shared encoder makes of whole pictures: (N, S, D) image tokens and (N, U, D) buffers."""
        tokens, grid = self.tokens(images, size)
        x = self.model.mar.encode(tokens, None, grid)
        U = self.model.config.mar.buffer_size
        return x[:, U:], x[:, :U]

    def pixels(self, images):
        """RGB PIL pictures of one size -> (N, 3, H, W) in [-1, 1]."""
        array = np.stack([np.asarray(image, dtype=np.uint8) for image in images])
        return to_pixels(torch.from_numpy(array).to(self.device)).to(self.dtype)


def to_pixels(array):
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [-1, 1]."""
    return array.permute(0, 3, 1, 2).float() * (2 / 255) - 1


def to_pictures(image):
    """(N, 3, H, W) in about [-1, 1] -> PIL pictures; the official rounding."""
    array = (127.5 * image.float() + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(a) for a in array]


def pad_square(image):
    """Centre a picture on a grey square: nothing is cut off, nothing is stretched."""
    image = image.convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def pad(rows, value, device, left=False):
    """Lists of ids -> ids (B, L) and is_real (B, L), padded on the right (drawing) or left (answering)."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), value)
    is_real = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(length - len(row), None) if left else slice(0, len(row))
        ids[i, where], is_real[i, where] = torch.tensor(row), True
    return ids.to(device), is_real.to(device)


def split_region(region, grid, stride, device):
    """Token indices (n,) that a pixel box touches, and the others (1, S-n)."""
    x0, y0, x1, y1 = region
    h, w = grid
    if not (0 <= x0 < x1 <= w * stride and 0 <= y0 < y1 <= h * stride):
        raise ValueError(f"region {x0},{y0},{x1},{y1} is not a box inside the {w * stride}x{h * stride} picture; "
                         f"pass --region x0,y0,x1,y1 in pixels")
    rows, columns = torch.arange(h) * stride, torch.arange(w) * stride
    inside = (((rows < y1) & (rows + stride > y0))[:, None] & ((columns < x1) & (columns + stride > x0))).flatten()
    index = torch.arange(h * w)
    return index[inside].to(device), index[~inside].unsqueeze(0).to(device)
