"""What train.py shows of a model that is being trained: pictures and answers, always of the same prompts and seeds.

Of the shapes world, scenes that training does not count; of pictures of one's own, the held-out ones.
"""
import random

import numpy as np
import torch
from PIL import Image

from ..cli import in_words
from ..mar import random_orders
from ..pictures import at_once, captioned, picture_grid, psnr, to_pictures
from ..tokenizer import DESCRIBE, LOCATE
from ..world import language, shapes
from .plot import draw_curves, read_log

PROMPTS = ["a red circle", "a blue square", "a green ring", "a white cross", "two yellow circles",
           "three orange triangles", "a red circle and a blue square", "a green ring left of a red cross"]
QUESTIONS = [LOCATE, DESCRIBE, "how many objects are there?", "is there a red object?",
             "what shape is the {color} object?"]


def show(run, name, step, pipe, batches):
    """Samples, answers and the curves so far, into OUT. What fails is a note: no picture is worth a training."""
    was_training, sheet, answers = pipe.model.training, None, []
    pipe.model.eval()
    try:
        if run.sample_every:
            sheet, answers = snapshot(pipe, batches, name, run.config.stages[name].size or run.config.stages["1"].size)
        if run.is_main:
            if sheet:
                (run.out / "samples").mkdir(exist_ok=True)
                sheet.save(run.out / "samples" / f"stage_{name}_{step:06d}.png")
            log = run.out / "log.jsonl"
            curves, damaged = read_log(log) if log.exists() else ({}, 0)     # none before its first line
            draw_curves(curves, run.out / "curves.png")
            run.log(stage=name, step=step, answers=answers, **{"damaged_lines": damaged} if damaged else {})
    except Exception as e:
        if run.config.optim.fsdp and not isinstance(e, OSError):             # the others draw with it, and would wait
            raise
        run.bar.write(f"note: no pictures of stage {name}, step {step} ({type(e).__name__}: {in_words(e)})")
    pipe.model.train(was_training)


@torch.no_grad()
def snapshot(pipe, batches, name, size):
    """One sheet of pictures (or None) and [[question, answer], ...] of the model in stage `name`."""
    pictures, answers = [], []
    look = all(source.name == "shapes" for source in batches.sources)        # as OUT/final will (train.py, finish)
    for source in batches.sources:
        take = snapshot_of_shapes if source.name == "shapes" else snapshot_of_held_out
        drawn, said = take(pipe, source, name, size, batches.first_class[source.name], look)
        pictures, answers = pictures + drawn, answers + said
    return picture_grid(pictures, 8) if pictures else None, answers


def snapshot_of_shapes(pipe, source, name, size, first_class, look):
    scene = max(map(source.scene, range(-20, 0)), key=lambda s: len(s.objects))              # training's count from 0
    questions = [question.format(color=scene.objects[0].color) for question in QUESTIONS]
    if name == "vae":
        return through_vae(pipe, source.pictures(range(-8, 0), size)), []
    if name == "llm":
        texts = [language.locate(scene) + "\n" + question for question in questions]
        return [], [[text, "".join(pipe.reply([{"role": "user", "content": text}]))] for text in texts]
    if name == "mar":
        some = random.Random(0).sample(shapes.SEEN_CLASSES, 16)
        return from_classes(pipe, [first_class + label for label in some], size), []
    image = Image.fromarray(shapes.render(scene, size))
    return (pipe.draw(PROMPTS * 2, size=size, steps=25, seed=0),
            [[question, pipe.answer(image, question, size=size, look=look)] for question in questions])


def snapshot_of_held_out(pipe, source, name, size, first_class, look):
    if name == "vae":
        rows = [item["row"] for item in shown(source)[:8]]
        return through_vae(pipe, source.pictures(rows, size)) if rows else [], []
    if name == "llm":
        return [], [[DESCRIBE, "".join(pipe.reply([{"role": "user", "content": DESCRIBE}]))]]
    if name == "mar":
        classes = [first_class + item["class"] for item in shown(source) if item["class"] is not None]
        return from_classes(pipe, classes[:16], size), []
    prompts, answers = [caption for _, caption in captions(pipe, source, size)[:8]], []
    for item in shown(source)[:4]:
        question = item["turns"][0][1] if item["turns"] else DESCRIBE
        if has_room(pipe, question, size):
            image = Image.fromarray(source.pictures([item["row"]], size)[0])
            answers.append([question, pipe.answer(image, question, size=size, look=look)])
    return pipe.draw(prompts, size=size, steps=25, seed=0) if prompts else [], answers


def shown(source):
    """The held-out items of a source, one of each picture, which may have many: with a caption, if one has it. Where
    there are too few pictures to hold any out, of those that it trains on."""
    items = source.held or source.with_picture
    return list({item["row"]: item for item in (*items, *(i for i in items if i["caption"]))}.values())


def captions(pipe, source, size):
    """[(row, caption), ...] of the pictures to show whose caption fits in the context."""
    return [(item["row"] + (item["views"] > 1), item["caption"]) for item in shown(source)
            if item["caption"] and has_room(pipe, item["caption"], size)]


def has_room(pipe, text, size):
    """Whether a text fits in the context beside a picture, with a reply of 64 tokens and what goes around it."""
    used = len(pipe.tokenizer.encode(text)) + pipe.placeholders(size) + 100
    return used <= pipe.model.config.llm.max_position_embeddings


def through_vae(pipe, array):
    """uint8 pictures (n, size, size, 3) -> a list of PIL pictures: all of them, then what the VAE makes of each."""
    return list(map(Image.fromarray, (*array, *reconstruct(pipe, array))))


@torch.no_grad()
def reconstruct(pipe, images):
    """Pictures (N, H, W, 3) uint8, through the VAE and back."""
    vae, (H, W), again = pipe.model.vae, images.shape[1:3], []
    n = at_once(max(H, W))
    for i in range(0, len(images), n):
        latents = vae.encode(pipe.pixels(images[i:i + n]))                       # (n, S, C)
        again += to_pictures(vae.decode(latents, vae.grid_of(H, W)))
    return np.stack(list(map(np.asarray, again)))


def from_classes(pipe, classes, size):
    """Pictures drawn by class-conditional MAR; eight without a class if there are none."""
    model, grid = pipe.model, pipe.model.vae.grid_of(size, size)
    orders = random_orders(len(classes) or 8, grid[0] * grid[1], "cpu", torch.Generator().manual_seed(0))
    tokens = model.mar.class_sample(torch.tensor(classes, device=pipe.device) if classes else None,
                                    orders.to(pipe.device), cfg=2.0 if classes else 1.0, cfg_schedule="constant",
                                    grid=grid, steps=25,
                                    generator=torch.Generator(pipe.device).manual_seed(0))
    return to_pictures(model.vae.decode(tokens, grid))


@torch.no_grad()
def show_final(out, pipe, sources, name="final"):
    """After training on pictures of one's own: 16 held-out ones, each beside a drawing of its caption, as one sheet in
    OUT/samples. Without captions (LLaVA), it shows what the VAE makes of the pictures. Returns {name: figure}, the mean
    PSNR of the VAE on up to 64 held-out pictures of each source, and the captions."""
    size, pairs, decoded, figures = pipe.size, [], [], {}
    for source in sources:
        if rows := [item["row"] for item in shown(source)][:64]:
            pictures = through_vae(pipe, source.pictures(rows, size))
            figures[f"{source.name}/vae_psnr"] = psnr(*np.split(np.stack(list(map(np.asarray, pictures))), 2))
            figures[f"{source.name}/{'held_out' if source.held else 'trained'}_pictures"] = len(rows)
            decoded += pictures
        pairs += [(Image.fromarray(source.pictures([row], size)[0]), caption)
                  for row, caption in captions(pipe, source, size)[:16 // len(sources)]]
    sheet, texts = picture_grid(decoded, 8) if decoded else None, [caption for _, caption in pairs]
    if pairs:
        drawn = pipe.draw(texts, size=size, seed=0)
        both = [picture_grid([picture, ours], 2) for (picture, _), ours in zip(pairs, drawn)]
        sheet = picture_grid([captioned(pair, text, 192) for pair, text in zip(both, texts)], 4)
    if sheet:
        (out / "samples").mkdir(exist_ok=True)
        sheet.save(out / "samples" / f"{name}.png")
    return figures, texts


# what of results.json is printed at the end of a training: a line's beginning, and {word: name of a figure}
MAIN_FIGURES = {
    "drawn right": {task: f"geneval/seen/{task}" for task in
                    ("single_object", "two_object", "counting", "colors", "position", "color_attr", "overall")},
    "answered right": {"existence": "pope/seen/random/accuracy", "questions": "vqa/seen/overall",
                       "captions": "caption/seen"},
    "given back right by the VAE": {"pictures": "vae/right"}}


def summary(figures, most=4):
    """The main figures as lines. most: objects in a training scene; if one, tasks with several are left out."""
    several = () if most > 1 else ("two_object", "counting", "position", "color_attr", "overall")
    found = {start: [f"{word} {figures[name]:.0%}" for word, name in names.items()
                     if name in figures and word not in several]
             for start, names in MAIN_FIGURES.items()}
    return [f"{start}: {', '.join(words)}" for start, words in found.items() if words]
