"""What train.py shows of a model that is being trained: pictures and answers, always of the same prompts and seeds."""
import random

import torch
from PIL import Image

from . import shapes
from .pipeline import to_pictures

PROMPTS = ["a red circle", "a blue square", "a green ring", "a white cross", "two yellow circles",
           "three orange triangles", "a red circle and a blue square", "a green ring left of a red cross"]
QUESTIONS = ["describe the image.", "how many objects are there?", "is there a red object?",
             "what shape is the {color} object?"]


@torch.no_grad()
def look(pipe, data, name, size):
    """One sheet of pictures (or None) and [[question, answer], ...] of the model in stage `name`."""
    model, device = pipe.model, pipe.device
    scene = max(map(data.scene, range(-20, 0)), key=lambda s: len(s.objects))                # training's count from 0
    rng, answers, pictures = random.Random(0), [], []
    if name == "vae":
        images = data.images(rng, 8, size)
        decoded = model.vae.decode(model.vae.encode(images), model.vae.grid_of(size, size))
        pictures = to_pictures(torch.cat([images, decoded]))
    elif name == "llm":
        for question in QUESTIONS:
            text = shapes.describe(scene) + "\n" + question.format(color=scene.objects[0].color)
            answers.append([text, "".join(pipe.reply([{"role": "user", "content": text}]))])
    elif name == "mar":
        labels = torch.tensor(rng.sample(shapes.SEEN_CLASSES, 16), device=device)
        grid = model.vae.grid_of(size, size)
        tokens = model.mar.class_sample(labels, grid[0] * grid[1], cfg=2.0, cfg_schedule="constant", grid=grid,
                                        steps=25, generator=torch.Generator(device).manual_seed(0))
        pictures = to_pictures(model.vae.decode(tokens, grid))
    else:
        pictures = pipe.draw(PROMPTS * 2, size=size, steps=25, seed=0)
        image = Image.fromarray(shapes.render(scene, size))
        for question in QUESTIONS:
            question = question.format(color=scene.objects[0].color)
            answers.append([question, pipe.answer(image, question, size=size)])
    return contact_sheet(pictures, size) if pictures else None, answers


def contact_sheet(pictures, size, columns=8):
    sheet = Image.new("RGB", (columns * (size + 2), -(-len(pictures) // columns) * (size + 2)), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (size + 2), i // columns * (size + 2)))
    return sheet
