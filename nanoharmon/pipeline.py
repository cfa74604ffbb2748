"""A trained model, ready to use: load a directory, draw prompts, answer questions about pictures, encode features.

    from nanoharmon import Pipeline
    pipe = Pipeline.load("checkpoints/nano")
    pipe.draw(["a red circle left of a blue square"], seed=1)[0].save("out.png")
    pipe.answer(Image.open("out.png"), "what color is the circle?")
"""
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import arguments
from .files import advising
from .mar import random_orders
from .pictures import as_picture, as_pictures, at_once, pad_square, to_pictures, to_pixels
from .plans import OFFICIAL, plan_drawing
from .qwen import KVCache, rotary_positions
from .replies import check_length, check_sampling, readable, seen_and_said, stream
from .tokenizer import IMAGE, LOOK, REFUSAL, pad
from .weights.checkpoint import load_weights, open_checkpoint, write_checkpoint
from .weights.recognise import in_place_of_a_folder

SMALL = 2 * 10**7                    # parameters: the scripts run a smaller model on one thread (docs/HARDWARE.md)


class Pipeline:
    """Harmon + tokenizer + the native picture size of the checkpoint.

    Where a picture is asked for, pictures.as_picture says what is taken. Wrong arguments are ValueErrors.
    """

    def __init__(self, model, tokenizer, meta=None):
        self.model, self.tokenizer = model.eval(), tokenizer
        # "size": pixels of the last training stage; "draw": default options; "look": whether it looks before answering;
        # "turns": how many it has learned to keep apart (conversation.py); "parts": whether it has drawn parts alone;
        # "words": those it has met (words.py); "layout", "board", "max_objects": of its shapes world
        self.meta = meta or {}

    @property
    def device(self):
        return self.model.llm.lm_head.weight.device

    @property
    def size(self):
        """Side of the pictures it was last trained on, in pixels."""
        return self.meta.get("size", self.model.config.mar.grid * self.model.config.vae.stride)

    # --- files -----------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path, device="cpu", dtype=torch.float32):
        """A directory with model.safetensors, config.json and tokenizer.json. Raises ValueError for anything wrong."""
        model, tensors, report, tokenizer, meta = open_checkpoint(path)
        load_weights(model, tensors, report, dtype)
        for name, p in model.to(device).named_parameters():
            if not torch.isfinite(p).all():  # of a run that diverged, or too large for float16
                raise ValueError(f"{path}: {name} is not finite in {str(dtype)[6:]}")
        return cls(model, tokenizer, meta)

    def save(self, path, dtype=torch.float32, weights=None):
        """Write the directory `load` reads; weights in `dtype`. The VAE's scale travels in config.json. weights:
        those to write instead of the model's, whose blocks are sharded."""
        weights = self.model.state_dict() if weights is None else weights
        write_checkpoint(path, self.model.config, self.meta, self.tokenizer.to_bytes(), weights, weights.get, dtype)

    # --- drawing ---------------------------------------------------------------------------------------------------

    plan = plan_drawing                          # all options of a drawing, filled in and checked (plans.py)

    @torch.no_grad()
    def draw(self, prompts, size=None, cfg=None, iters=None, steps=None, sampler=None, temperature=None,
             cfg_schedule=None, redraw=None, think=None, fast=None, seed=0, group=None, image=None, region=None,
             on_iteration=None, progress=None):
        """One PIL picture per prompt (a text or a list of them), drawn together as one batch.

        size: pixels, a side or (width, height); cfg: guidance, 1 = none; iters: iterations, at most the number of
        tokens; steps: diffusion steps per token; redraw: rounds in which each half is drawn anew, given the other;
        think: draw what the method `think` makes of the prompts.
        fast: a measured choice of iters, steps and redraw (plans.FAST). None = the checkpoint's own default.
        group: draw every so many prompts as if they were a call of their own, with this seed (up to rounding).
        image, region (x0, y0, x1, y1 in its pixels): draw only that part of a picture anew, the picture being resized
        to `size`. on_iteration(pictures) gets the pictures so far, hidden tokens grey; progress() is called as often,
        and decodes nothing. The same arguments draw the same bytes.
        """
        prompts, seed = arguments.texts("prompts", prompts), arguments.whole("seed", seed, 0, arguments.SEEDS)
        image = None if image is None else as_picture(image)
        given = dict(size=size, image=image, region=region, cfg=cfg, iters=iters, steps=steps, sampler=sampler,
                     temperature=temperature, cfg_schedule=cfg_schedule, redraw=redraw, think=think, fast=fast)
        plan, B = self.plan(prompts, **given), len(prompts)
        group = B if group is None else arguments.whole("group", group, 1, B)
        if B % group:
            raise ValueError(f"group is {group}, expected a divisor of {B}, the number of prompts")
        if plan["think"]:
            thoughts = [t for i in range(0, B, group) for t in self.think(prompts[i:i + group], seed)]
            prompts = [p if t.startswith(REFUSAL) else t for p, t in zip(prompts, thoughts)]
            plan = self.plan(prompts, **given)                                   # these may be too long
        grid, device = plan["grid"], self.device
        generator = torch.Generator(device).manual_seed(seed)
        order_generator = torch.Generator().manual_seed(seed)                    # orders are the same on every device
        order = random_orders(group, len(plan["inside"]), "cpu", order_generator).repeat(B // group, 1)        # (B, n)

        def randn(shape):                                                        # the same in each group
            return torch.randn(shape[0] * group // B, *shape[1:], device=device, generator=generator).repeat(
                B // group, 1)
        options = {"orders": plan["inside"][order].to(device)}
        if image is not None:
            latents = self.model.vae.encode(self.pixels([image.resize(plan["size"])]))
            options |= {"latents": latents.repeat(B, 1, 1), "known": plan["outside"].repeat(B, 1).to(device)}

        def tell(latents, visible):
            if on_iteration is not None:
                on_iteration(self.unfinished(latents, visible, grid))
            if progress is not None:
                progress()
        ids, is_real = self.prompt_ids(prompts, guided=plan["cfg"] != 1.0, part=plan["part"])
        options |= {name: plan[name] for name in OFFICIAL if name not in ("think", "fast")}
        latents = self.model.draw(ids, is_real, grid=grid, randn=randn, on_iteration=tell, **options)
        parts = latents.to(self.dtype).split(at_once(max(plan["size"])))         # (b, S, C) each
        return [picture for part in parts for picture in to_pictures(self.model.vae.decode(part, grid))]

    @torch.no_grad()
    def think(self, prompts, seed=0, temperature=0.2, max_new_tokens=64):
        """What to draw for each prompt, in the LLM's words: all that the prompt left open, and what will be where.

        "a circle and a square" -> "a red circle at the top left and a blue square in the middle". The LLM answers the
        request to draw with text instead of a picture. A prompt that it has no answer to stays as it is. Hotter, it
        errs more about relations; colder, about mixed counts, and says less that is new (docs/LOG.md). An answer that
        begins with REFUSAL says that it cannot be drawn; `draw` then draws the prompt itself.
        """
        prompts = arguments.texts("prompts", prompts)
        temperature, _, max_new_tokens, seed = check_sampling(self.model.config.llm, temperature, 1.0, max_new_tokens,
                                                              seed)
        if not prompts:
            return []
        rows = [self.tokenizer.drawing_request(p) for p in prompts]
        ids, is_real = pad(rows, self.tokenizer.pad, self.device, left=True)
        generator = torch.Generator(self.device).manual_seed(seed)
        thoughts = self.say(self.model.llm.embed(ids), is_real, max_new_tokens, temperature, generator)
        return [thought or prompt for thought, prompt in zip(thoughts, prompts)]

    def say(self, embeds, is_real, max_new_tokens, temperature=0.0, generator=None):
        """One reply to each of a batch of left-padded conversations, as embeddings (B, L, E)."""
        stop = [self.tokenizer.im_end, self.tokenizer.pad]
        tokens = self.model.llm.generate(embeds, stop, max_new_tokens, temperature, generator=generator,
                                         is_real=is_real)
        rows = torch.stack(list(tokens), dim=1).tolist()
        return [readable(self.tokenizer, [t for t in row if t not in stop]).strip() for row in rows]

    @property
    def dtype(self):
        return self.model.llm.lm_head.weight.dtype

    def prompt_ids(self, prompts, guided, part=False):
        """Right-padded ids and is_real of drawing requests, the unconditional ones after them when guided. part: they
        are about a part of the picture."""
        rows = [self.tokenizer.drawing_request(p, part) for p in prompts]
        rows += [self.tokenizer.drawing_request(None, part)] * len(prompts) if guided else []
        return pad(rows, self.tokenizer.pad, self.device)

    def unfinished(self, latents, visible, grid):
        """Half-drawn pictures: decoded, with the hidden places grey."""
        shown = torch.zeros(latents.shape[:2], dtype=torch.bool, device=latents.device).scatter(1, visible, True)
        image = self.model.vae.decode(latents.to(self.dtype), grid)
        shown = shown.view(-1, 1, *grid).float()
        shown = torch.nn.functional.interpolate(shown, size=image.shape[-2:], mode="nearest")
        return to_pictures(image * shown)

    # --- understanding ---------------------------------------------------------------------------------------------

    def looks(self, look=None):
        """Whether to look at pictures before answering: as told, else as the checkpoint has learned."""
        return bool(self.meta.get("look", False)) if look is None else arguments.truth("look", look)

    @torch.no_grad()
    def reply(self, messages, images=(), size=None, temperature=0.0, top_p=1.0, max_new_tokens=None, seed=0,
              look=None):
        """Stream the assistant's next turn, as pieces of text. Returns whether max_new_tokens cut it.

        messages: [{"role", "content"}]; content a string, or a list where each None stands for the next of `images`.
        look: begin the reply about pictures with LOOK (replies.py); None = as the checkpoint has it.
        """
        images = as_pictures(images)
        sampling = check_sampling(self.model.config.llm, temperature, top_p, max_new_tokens, seed)
        look = self.looks(look) and bool(images)
        ids = self.chat_ids(messages, size, sampling[2], look)
        embeds = self.embed(torch.tensor([ids], device=self.device), images, size)
        if look:
            yield LOOK
        return (yield from stream(self.model.llm, self.tokenizer, embeds, *sampling))

    def answer(self, image, question, **options):
        """One answer to one question about a picture; what it looked at is left out."""
        [question] = arguments.texts("questions", [question])
        said = "".join(self.reply([{"role": "user", "content": [None, "\n" + question]}], [image], **options))
        return seen_and_said(said)[1]

    @torch.no_grad()
    def answers(self, images, questions, size=None, max_new_tokens=None, look=None):
        """Greedy answers to one question per picture, as one batch; the same as `answer` one by one."""
        images, questions = as_pictures(images), arguments.texts("questions", questions)
        max_new_tokens = check_sampling(self.model.config.llm, max_new_tokens=max_new_tokens)[2]
        look = self.looks(look)
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} pictures and {len(questions)} questions, expected one for each")
        if not images:
            return []
        rows = [self.chat_ids([{"role": "user", "content": [None, "\n" + q]}], size, max_new_tokens, look)
                for q in questions]
        ids, is_real = pad(rows, self.tokenizer.pad, self.device, left=True)
        said = self.say(self.embed(ids, images, size), is_real, max_new_tokens)
        return [seen_and_said(LOOK * look + " " + text)[1] for text in said]

    @torch.no_grad()
    def likelihoods(self, images, questions, candidates, size=None):
        """How likely each candidate answer is: for every question a list of log-probabilities, one per candidate.

        candidates: a list of texts per question. A log-probability is the sum over the tokens of the answer and the
        <|im_end|> after it; it is not divided by their number. Pictures and questions pass through the LLM once, as one
        batch; all candidates follow as a second one that reads its cache. It never looks first.
        """
        images, questions = as_pictures(images), arguments.texts("questions", questions)
        candidates = arguments.choices("candidates", candidates)
        if not len(images) == len(questions) == len(candidates):
            raise ValueError(f"{len(images)} pictures, {len(questions)} questions and {len(candidates)} lists of "
                             f"candidates, expected one for each")
        if not any(candidates):
            return [[] for _ in candidates]
        replies = [self.tokenizer.encode(text) + [self.tokenizer.im_end] for texts in candidates for text in texts]
        rows = [self.chat_ids([{"role": "user", "content": [None, "\n" + q]}], size, max(map(len, replies)))
                for q in questions]
        owner = torch.tensor([i for i, texts in enumerate(candidates) for _ in texts], device=self.device)     # (N,)
        ids, is_real = pad(rows, self.tokenizer.pad, self.device, left=True)     # (B, L)
        said, is_said = pad(replies, self.tokenizer.pad, self.device)            # (N, A)
        llm, cache, L = self.model.llm, KVCache(), ids.shape[1]
        real = torch.cat([is_real[owner], is_said], dim=1)                       # (N, L+A)
        last = llm.model(self.embed(ids, images, size), rotary_positions(is_real), is_real, cache)[:, -1:]
        cache.layers = {i: (k[owner], v[owner]) for i, (k, v) in cache.layers.items()}
        after = llm.model(llm.embed(said), rotary_positions(real)[:, L:], real, cache)
        states = torch.cat([last[owner], after[:, :-1]], dim=1)                  # (N, A, E): each foretells the next
        logs = llm.lm_head(states).float().log_softmax(-1).gather(2, said.unsqueeze(2)).squeeze(2)     # (N, A)
        sums = (logs * is_said).sum(1).split([len(texts) for texts in candidates])
        return [row.tolist() for row in sums]

    def chat_ids(self, messages, size, max_new_tokens, look=False):
        """Ids of a conversation whose reply is to come, with as many placeholders as a picture has for each None; look:
        the reply is begun with LOOK. Raises ValueError when the context is too short for both."""
        n = self.placeholders(size)
        messages = [m if isinstance(m["content"], str) else
                    {**m, "content": [n if part is None else part for part in m["content"]]}
                    for m in arguments.conversation(messages)]
        ids = self.tokenizer.chat(messages)[0] + self.tokenizer.encode(LOOK) * look
        return check_length(ids, self.model.config.llm, max_new_tokens)

    def placeholders(self, size):
        """How many places of the conversation one picture takes: S + U."""
        h, w = self.grid_of(size)
        return h * w + self.model.config.mar.buffer_size

    def embed(self, ids, images, size):
        if (ids == IMAGE).sum() != len(images) * self.placeholders(size):
            raise ValueError(f"{len(images)} pictures given, expected one for each None in the messages")
        if not images:
            return self.model.llm.embed(ids)
        latents, grid = self.latents(images, size)
        return self.model.embed_with_images(latents, ids, grid)

    def latents(self, images, size=None):
        """Pictures -> latents (N, S, C) and their grid, padded to a square and resized."""
        grid = self.grid_of(size)
        sides = (grid[0] * self.model.vae.config.stride,) * 2
        images = [pad_square(image).resize(sides, Image.Resampling.BICUBIC) if image.size != sides else image
                  for image in as_pictures(images)]
        if not images:
            raise ValueError("images are [], expected at least one picture")
        return self.model.vae.encode(self.pixels(images)), grid

    def grid_of(self, size):
        """Latent grid (h, w) of a square picture, of the native size if size is None."""
        width, height = arguments.sides("size", self.size if size is None else size)
        if width != height:
            raise ValueError(f"size is {width}x{height}, expected one side: pictures to be understood are squares")
        return self.model.vae.grid_of(height, width)

    @torch.no_grad()
    def features(self, images, size=None):
        """What the shared encoder makes of whole pictures: the image's (N, S, D) and the buffers' (N, U, D)."""
        latents, grid = self.latents(images, size)
        encoded, U = self.model.mar.encode(latents, None, grid), self.model.config.mar.buffer_size
        return encoded[:, U:], encoded[:, :U]

    def pixels(self, images):
        """RGB PIL pictures of one size -> (N, 3, H, W) in [-1, 1]."""
        array = np.stack([np.asarray(image, dtype=np.uint8) for image in images])
        return to_pixels(torch.from_numpy(array).to(self.device)).to(self.dtype)


# --- loading by name -------------------------------------------------------------------------------------------------

def pick_device(name):
    """"auto", "cpu", "cuda", "cuda:1" or "mps" -> torch.device. Raises ValueError for one that is not there."""
    found = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    kind, _, index = (next(k for k in found if found[k]) if name == "auto" else name).partition(":")
    if not (index or "0").isdecimal() or int(index or 0) >= found.get(kind, 0):
        raise ValueError(f"device {name!r} is not here, torch finds {found}; pass --device auto or --device cpu")
    return torch.device(kind + (index and f":{int(index)}"))


def pick_dtype(name, device):
    """"float32", "bfloat16" or "float16" -> torch.dtype; "auto": the faster of the first two for matrix products here,
    measured in a moment. Without instructions for bfloat16, some CPUs take twice as long for it."""
    def seconds(dtype):
        n, times = 512 if str(device) == "cpu" else 4096, []          # a GPU needs a larger one to show
        x = torch.ones(n, n, dtype=dtype, device=device)
        for _ in range(6):
            start = time.perf_counter()
            (x @ x)[0, 0].item()                                     # waits for a GPU
            times.append(time.perf_counter() - start)
        return min(times)
    return min((torch.float32, torch.bfloat16), key=seconds) if name == "auto" else getattr(torch, name)


SHIPPED = Path(__file__).parents[1] / "checkpoints" / "nano"


def load_pipeline(path, device="auto", dtype="float32"):
    """Pipeline.load; path None is the checkpoint that comes with the code."""
    path = SHIPPED if path is None else Path(path)
    if not path.is_dir():
        raise ValueError(f"no checkpoint folder {path}: {in_place_of_a_folder(path)}; pass --ckpt DIR")
    device = pick_device(device)
    wider = "" if dtype == "float32" else ", or --dtype float32"               # float16 does not hold all numbers
    with advising(f"pass another --ckpt{wider}"):
        pipe = Pipeline.load(path, device, pick_dtype(dtype, device))
    if arguments.threads_asked() is None and sum(p.numel() for p in pipe.model.parameters()) < SMALL:
        torch.set_num_threads(1)
    return pipe
