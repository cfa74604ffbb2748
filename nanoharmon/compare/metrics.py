"""What is measured of each system, all by the existing judge and benchmarks, one system at a time, and the tables.

Drawing, reading, captions and the Frechet distance come from evals/geneval.py, reading.py and quality.py, on scenes and
prompts that are the same for all systems and seeds. The linear probe is evals/probe.py's, of what each system knows of
a picture before its LLM: Harmon's encoded tokens without its buffers, code vectors, or TokLIP's features.
"""
import time

import torch

from ..cli import markdown_table
from ..evals import probe
from ..evals.common import fresh_scene, placement, rate
from ..evals.evaluate import vae_score
from ..evals.geneval import COLORED, draw_scores
from ..evals.quality import quality_scores, train_eye
from ..evals.reading import answer_scores
from ..evals.report import cell
from ..files import read_json, write_bytes, write_json
from ..pictures import captioned, file_bytes, picture_grid
from ..tokenizer import DESCRIBE
from ..world import shapes
from .systems import HARMON, System
from .teacher import zero_shot
from .vq import kl_bits, usage

# by preset: prompts per task (a fourth of it of unseen pairs), scenes to read, pictures for the Frechet distance and
# steps of its eye, scenes to fit a probe on
SIZES = {"nano": {"prompts": 100, "scenes": 200, "quality": 300, "eye": 200, "probe": 600},
         "pico": {"prompts": 1, "scenes": 4, "quality": 6, "eye": 2, "probe": 20}}
PAGE = ("a red circle", "a white ring", "three green crosses", "a circle and a square", "a blue ring above a red cross",
        "a yellow circle left of a purple square", "a purple cross", "a white triangle and a red ring")


def measure(system, preset):
    """All figures of a trained System, and a row of pictures: (nested dict of rates and numbers, PIL picture)."""
    pipe, size = system.pipeline(), SIZES[preset]
    drawn, thought = (draw_scores(pipe, size["prompts"], 1, think=think)[0] for think in (False, True))
    placed = draw_scores(pipe, size["prompts"], 1, tasks=("place",), unseen=False)[0]["seen"]["overall"]
    anew = draw_scores(pipe, size["prompts"], 1, redraw=2)[0] if system.name in HARMON else None
    seen = answer_scores(pipe, size["scenes"])
    unseen = answer_scores(pipe, max(4, size["scenes"] // 4), unseen=True)
    at_once = answer_scores(pipe, size["scenes"], benches=("vqa",), look=False)
    quality = quality_scores(pipe, size["quality"], eye=train_eye(system.size, placement(pipe), size["eye"]))
    found = {
        "drawing": {task: drawn["seen"][task] for task in drawn["seen"]["reasons"]} | {
            "one object at a place": placed} | {
            f"{task}, unseen pairs": drawn["unseen"][task] for task in COLORED} | overall(drawn) | overall(
            thought, "thinking first: ") | (overall(anew, "two rounds of --redraw: ") if anew else {}),
        "reading, looking first": seen["vqa"] | {
            "overall, unseen": unseen["vqa"]["overall"], "overall, at once": at_once["vqa"]["overall"],
            "existence (random)": seen["pope"]["random"]["accuracy"],
            "captions of other scenes": seen["caption"], "captions of other scenes, unseen": unseen["caption"]},
        "linear probe": probe_rates(system, pipe, size["probe"]),
        "tokens": token_figures(system, pipe, size["scenes"]),
        "Frechet distance": {name: quality[name]["Frechet"] for name in ("drawn", "VAE reconstructions",
                                                                         "other renders")},
        "cost": {"parameters, millions": sum(p.numel() for p in system.model.parameters()) / 1e6, **seconds(pipe)}}
    del found["reading, looking first"]["likelihood"]
    if system.teacher:
        vq, toklip = system.model.vae, system.model.toklip
        for name, features in (("teacher", system.teacher.features), ("TokLIP", lambda image: toklip.features(
                vq.vectors(vq.encode(image).squeeze(-1))))):
            hits = zero_shot(features, system.teacher.text, system.tokenizer, system.size, placement(pipe),
                             size["scenes"])
            found[f"zero-shot, {name}"] = {task: rate(h) for task, h in hits.items()}
    tiles = [captioned(picture, f"{system.name}: {prompt}", 96)
             for prompt, picture in zip(PAGE, pipe.draw(list(PAGE), think=False))]
    return found, picture_grid(tiles, len(tiles))


def overall(scores, title=""):
    """Rates of all pictures of `draw_scores`. Unseen pairs can be asked for in the tasks that name colors alone, so
    seen pairs have a row of the same tasks."""
    right, n = (sum(scores["seen"][task][key] for task in COLORED) for key in ("right", "n"))
    words = {f"{title}the thought": scores["seen"]["words"]["overall"]} if "words" in scores["seen"] else {}
    return {f"{title}overall": scores["seen"]["overall"], **words,
            f"{title}the four tasks with colors": rate([i < right for i in range(n)]),
            f"{title}the four, unseen pairs": scores["unseen"]["overall"]}


def token_features(system, images):
    """Pixels (N, 3, H, W) -> what is known of each place before the LLM, (N, S, d)."""
    latents = system.model.vae.encode(images)
    if system.name in HARMON:
        return system.model.mar.encode(latents)[:, system.config.model.mar.buffer_size:]
    return system.model.features(latents.squeeze(-1))


@torch.no_grad()
def probe_rates(system, pipe, n):
    """{task: rate}: a linear layer on all tokens, fitted on few labels (see evals/probe.py); n scenes to fit, n / 2 to
    test, of each kind."""
    side, out = pipe.grid_of(None), {}
    for kind, tasks in ("single", ("shape", "color", "place")), ("pair", ("bound", "relation")):
        scenes = [probe.probe_scene(pipe, 0, kind, i) for i in range(n + max(1, n // 2))]
        labels = [probe.labels(scene, kind, placement(pipe)["board"]) for scene in scenes]
        where = torch.tensor([(scene.objects[0].x, scene.objects[0].y) for scene in scenes])
        images = [shapes.render(scene, system.size) for scene in scenes]
        tokens = torch.cat([token_features(system, pipe.pixels(images[k:k + 64])) for k in range(0, len(images), 64)])
        x = probe.views(tokens, side, where)["all"]
        out |= probe.fit(x[:n], x[n:], tasks, labels[:n], labels[n:])
    return out


@torch.no_grad()
def token_figures(system, pipe, n):
    """The picture tokenizer: pictures right after it, PSNR, bits per token, and how the codebook is used."""
    score, vae = vae_score(pipe, n), system.model.vae
    images = pipe.pixels([shapes.render(fresh_scene(pipe, 0, i), system.size) for i in range(n)])
    out = {"reconstructions right": score["right"], "of unseen pairs": vae_score(pipe, n, unseen=True)["right"],
           "PSNR, dB": score["psnr"]}
    if system.name in HARMON:
        return out | {"bits per token": kl_bits(*vae.moments(images)).mean().item()}
    used = usage(vae.encode(images), vae.codes)
    return out | {"bits per token": used["bits"], "codes used, %": 100 * used["used"], "perplexity": used["perplexity"]}


def seconds(pipe, n=16):
    """Seconds of processor time for a picture and for an answer, in batches of n."""
    def timed(function):
        began = time.process_time()
        function()
        return (time.process_time() - began) / n
    images = [shapes.render(fresh_scene(pipe, 0, i), pipe.size) for i in range(n)]
    return {"seconds per picture": timed(lambda: pipe.draw(["a red circle"] * n, think=False)),
            "seconds per answer": timed(lambda: pipe.answers(images, ["is there a ring?"] * n)),
            "seconds per caption": timed(lambda: pipe.answers(images, [DESCRIBE] * n))}


# --- one system, in a process of its own (__main__.py) ----------------------------------------------------------------

def run_one(name, seed, preset, steps, scenes, folder):
    """Train what is missing of a system, then measure it: FOLDER/metrics.json. steps: {part: steps}; scenes: how many
    different pictures."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(steps)
    system = System(name, preset, seed, scenes)
    done = [part for part in parts if (folder / f"{part}.safetensors").exists()]
    if done:
        system.load(folder / f"{done[-1]}.safetensors")
    took = read_json(folder / "seconds.json") if done else {}
    for part in parts[parts.index(done[-1]) + 1 if done else 0:]:
        system.prepare(part)
        began = time.process_time()
        system.train(part, steps[part])
        took[part] = time.process_time() - began
        write_json(folder / "seconds.json", took)
        system.save(folder / f"{part}.safetensors")
        for earlier in parts[:parts.index(part)]:                # the last file holds all of the system
            (folder / f"{earlier}.safetensors").unlink(missing_ok=True)
    figures, pictures = measure(system, preset)
    figures["cost"]["minutes of training"] = sum(took.values()) / 60
    write_bytes(folder / "pictures.png", file_bytes(pictures))
    write_json(folder / "metrics.json", figures)


# --- tables -----------------------------------------------------------------------------------------------------------

def over_seeds(values):
    """One cell of several seeds: the rate of all with its interval (of pictures, for seeds are too few for one), then
    each seed's own; of other numbers, the mean and each seed's."""
    if not isinstance(values[0], dict):
        mean, own = f"{sum(values) / len(values):.3g}", [f"{value:.3g}" for value in values]
    else:
        if "draws" in values[0]:             # the probe's interval allows for its draws; all seeds have its scenes
            mean = {key: sum(v[key] for v in values) / len(values) for key in ("rate", "low", "high")}
        else:
            mean = rate([i < round(v["rate"] * v["n"]) for v in values for i in range(v["n"])])
        mean, own = cell(mean), [f"{100 * v['rate']:.0f}" for v in values]
    return f"{mean}: {', '.join(own)}" if len(set(own)) > 1 else mean


def tables(results):
    """Markdown of {system: [figures of each seed]}: one table for each group of figures, systems side by side."""
    parts = []
    for group in dict.fromkeys(g for seeds in results.values() for figures in seeds for g in figures):
        groups = {name: [figures.get(group, {}) for figures in seeds] for name, seeds in results.items()}
        rows = dict.fromkeys(row for seeds in groups.values() for found in seeds for row in found)
        parts.append(markdown_table([group, *groups], [
            [row, *(over_seeds([found[row] for found in seeds]) if all(row in found for found in seeds) else "-"
                    for seeds in groups.values())] for row in rows]))
    return "\n\n".join(parts)
