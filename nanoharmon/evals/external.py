"""Benchmarks with other people's files: GenEval's prompts for its official scorer, and questions in POPE's format.

    python -m nanoharmon.evaluate --ckpt DIR --prompts evaluation_metadata.jsonl --out geneval
    python -m nanoharmon.evaluate --ckpt DIR --pope coco_pope_random.json --images val2014 --out pope

GenEval (github.com/djghosh13/geneval): one JSON object with a "prompt" per line, 553 in the official file. Line i is
drawn --images-per-prompt times into the layout of its README, for its evaluation/evaluate_images.py:

    OUT/00000/metadata.jsonl (line 0)    OUT/00000/samples/0000.png ...    OUT/00000/grid.png (the samples in a column)

Pictures are drawn one by one, each from its own seed, a function of (--seed, line, number of the picture): rounding
depends on who else is in a batch, so only pictures drawn alone are the same bytes after a stop. At nano a batch would
be faster. The same command goes on where it stopped: pictures that are there and readable stay. OUT/settings.json
says how they were drawn, so that pictures of two checkpoints never mix.

POPE (github.com/AoiDragon/POPE): one {"question_id", "image", "text", "label"} per line. OUT/NAME_answers.jsonl gets
a {"question_id", "question", "answer"} for each, in the same order: the official evaluate.py pairs lines by position.
Figures follow that script: "no", "No" or "not" among the words of the first sentence is no, anything else is yes.
Beside them the likelihood of yes and no (reading.py). A picture that cannot be read leaves its answers empty and counts
for nothing here; the official script would take it for yes.
"""
import hashlib
import json
import random
import re
from contextlib import suppress
from pathlib import Path

import torch
from PIL import ImageOps
from tqdm import tqdm

from ..cli import bar, first_of
from ..files import read_json, text_of, write_bytes, write_json
from ..pictures import file_bytes, open_image, picture_grid
from ..pipeline import load_pipeline
from ..plans import OFFICIAL, refuse_idle
from . import report
from .common import BATCH, batches, out_folder, over_processes, rate, workers
from .reading import likeliest, yes_no_scores

MAX_BYTES = 10**8               # of a file of lines; POPE's have half a million
UNREADABLE = 0.05               # the largest share of POPE's pictures that may be missing or broken
MAX_NEW_TOKENS = 32             # of an answer
TOKENS = 8192                   # at most as many image tokens in a batch of questions: 64 pictures at nano, 7 at 512 px
YES_NO = ("yes", "no", "Yes", "No")                            # models differ in how they write it


def read_lines(path, flag, texts, limit=None):
    """The first lines of a file of JSON objects: [(line, object)]. texts: names of entries that must be there."""
    lines, rows = text_of(path, flag, "JSON lines", MAX_BYTES).split("\n"), []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        row = None
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
        for name in texts:
            text = row.get(name) if isinstance(row, dict) else None
            if not isinstance(text, str) or not text.strip() or re.search("[\ud800-\udfff]", text):
                raise ValueError(f"{path}, line {number}: expected a JSON object with a text {name!r}, got "
                                 f"{line[:60]!r}; correct it or pass another {flag}")
        rows.append((line, row))
    if not rows:
        raise ValueError(f"{path}: empty, expected JSON lines; pass another {flag}")
    return rows[:limit]


# --- GenEval ----------------------------------------------------------------------------------------------------------

def draw_file(pipe, path, prompt, seed, options):
    write_bytes(path, file_bytes(pipe.draw([prompt], seed=seed, **options)[0]))


def draw_lines(pipe, lines, out, each=4, seed=0, pool=None, progress=None, **options):
    """Draw what is missing of [(line, {"prompt": ...})] in the folder `out`: (pictures drawn, pictures in all)."""
    plan = pipe.plan([meta["prompt"] for _, meta in lines], **options)
    settings = {"weights": weights_hash(pipe.model), "dtype": str(pipe.dtype), "device": pipe.device.type, "seed": seed,
                "size": list(plan["size"]), **{name: plan[name] for name in OFFICIAL}}
    check_same_pictures(out, settings, lines, each)
    write_json(out / "settings.json", settings)
    folders, jobs = [out / f"{i:05d}" for i in range(len(lines))], []
    for i, (folder, (line, meta)) in enumerate(zip(folders, lines)):
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        if not (folder / "metadata.jsonl").exists():
            write_bytes(folder / "metadata.jsonl", line.encode() + b"\n")
        for k, path in enumerate(samples(folder, each)):
            if not is_picture(path, plan["size"]):
                own = random.Random(f"geneval/{seed}/{i}/{k}").getrandbits(48)
                jobs.append((path, meta["prompt"], own, options))
    over_processes(draw_file, pipe, jobs, pool, progress, "drawing")
    for folder in folders:
        width, height = plan["size"]
        if not is_picture(folder / "grid.png", (width + 4, each * (height + 2) + 2)):
            pictures = [open_image(path, "--out") for path in samples(folder, each)]
            write_bytes(folder / "grid.png", file_bytes(column(pictures)))
    return len(jobs), len(lines) * each


def samples(folder, each):
    return [folder / "samples" / f"{k:04d}.png" for k in range(each)]


def is_picture(path, size):
    """Whether a picture of this size is there, whole."""
    with suppress(ValueError):
        return open_image(path).size == tuple(size)
    return False


def column(pictures):
    """The grid of the official script: one below the other, 2 black pixels between and around."""
    return ImageOps.expand(picture_grid(pictures, 1, background="black"), (2, 2, 0, 0))


def weights_hash(model):
    """A short name of the weights, from the first numbers of every tensor: any training changes it."""
    code = hashlib.sha256()
    for tensor in model.state_dict().values():
        code.update(tensor.flatten()[:64].float().cpu().numpy().tobytes())
    return code.hexdigest()[:16]


def check_same_pictures(out, settings, lines, each):
    """Raises ValueError when the folder holds pictures that this command would not draw."""
    path, stored = out / "settings.json", {}
    if path.exists() or (out / "00000").exists():
        with suppress(ValueError, OSError):
            stored = read_json(path)
        for name, value in settings.items():
            if stored.get(name) != value:
                raise ValueError(f"{out} holds pictures drawn with {name} {stored.get(name)}, not {value}; pass "
                                 f"another --out, or the settings in {path} to go on")
    for i, (line, _) in enumerate(lines):
        path = out / f"{i:05d}" / "metadata.jsonl"
        if path.exists() and path.read_bytes() != line.encode() + b"\n":
            raise ValueError(f"{path} is not line {i} of --prompts; pass another --out, or the file it was drawn from")
    # the scorer counts all that is there, more than this command would
    folders = [path for path in out.iterdir() if path.name.isdigit() and path.is_dir()]
    if more := sorted({path.name for path in folders} - {f"{i:05d}" for i in range(len(lines))}):
        raise ValueError(f"{out} holds prompt {more[0]}, expected 00000 to {len(lines) - 1:05d}: the scorer would "
                         f"count it; pass another --out, or a larger --n")
    for folder in folders:
        there = [path.name for path in folder.glob("samples/*.png") if path.stem.isdigit()]
        if set(there) - {path.name for path in samples(folder, each)}:
            raise ValueError(f"{folder} holds {len(there)} samples, expected at most {each}: the scorer would count "
                             f"all; pass another --out, or a larger --images-per-prompt")


# --- POPE -------------------------------------------------------------------------------------------------------------

def read_pope(path, folder, limit=None, progress=None):
    """The questions in a file, and the names of those of their pictures that cannot be read."""
    rows = [row for _, row in read_lines(path, "--pope", ("image", "text"), limit)]
    for row in rows:
        if row.get("label") not in (None, "yes", "no"):
            raise ValueError(f"{path}: label {row['label']!r} of {row['text'][:40]!r}, expected \"yes\" or \"no\"; "
                             f"correct it or pass another --pope")
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder, expected the one with the pictures of {path}; change --images")
    names, bad = list(dict.fromkeys(row["image"] for row in rows)), []
    for name in names if progress is None else progress(names, desc="pictures"):
        try:
            open_image(Path(folder, name))
        except (ValueError, OSError):                           # OSError: a name that is too long
            bad.append(name)
    if len(bad) > UNREADABLE * len(names):
        raise ValueError(f"{len(bad)} of the {len(names)} pictures of {path} are missing or broken in {folder}, "
                         f"expected at most {UNREADABLE:.0%}: {first_of(bad, 3)}; change --images")
    return rows, bad


def check_fit(pipe, rows, size, most=MAX_NEW_TOKENS, fix="pass a smaller --size, or another --pope"):
    """Raises ValueError when a question, a picture and an answer of `most` tokens are more than the model can read."""
    limit = pipe.model.config.llm.max_position_embeddings - pipe.placeholders(size) - most
    for row in rows:
        asked = len(pipe.tokenizer.chat([{"role": "user", "content": ["\n" + row["text"]]}])[0])
        if asked > limit:
            raise ValueError(f"the question {row['text'][:40]!r}... is {asked} tokens long, expected at most {limit} "
                             f"(the context less picture and answer); {fix}")


def answer_file(pipe, folder, rows, size):
    images, asked = [open_image(Path(folder, row["image"])) for row in rows], [row["text"] for row in rows]
    said = pipe.answers(images, asked, size=size, max_new_tokens=MAX_NEW_TOKENS, look=False)
    return list(zip(said, map(str.lower, likeliest(pipe, images, asked, [YES_NO] * len(asked), size))))


def answer_lines(pipe, rows, bad, folder, size=None, pool=None, progress=None):
    """[(free text, likelier of yes and no)] of the questions; ("", "") where the picture cannot be read."""
    asked = [row for row in rows if row["image"] not in bad]
    limit = min(BATCH, max(1, TOKENS // pipe.placeholders(size)))
    jobs = [(folder, part, size) for part in batches(asked, limit)]
    said = iter([a for part in over_processes(answer_file, pipe, jobs, pool, progress, "pope") for a in part])
    return [("", "") if row["image"] in bad else next(said) for row in rows]


def official_reading(answer):
    """What POPE's evaluate.py makes of an answer."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def pope_figures(rows, said, bad):
    """{"free text" and "likelihood": figures} of the questions that have a label and a picture, or {} without any."""
    known = [(row["label"], *both) for row, both in zip(rows, said) if row.get("label") and row["image"] not in bad]
    if not known:
        return {}
    truth, text, likelier = zip(*known)
    neither = [not re.search(r"\b(yes|no|not)\b", answer.lower()) for answer in text]
    return {"free text": yes_no_scores(list(map(official_reading, text)), truth) | {"neither": rate(neither)},
            "likelihood": yes_no_scores(likelier, truth)}


# --- the command ------------------------------------------------------------------------------------------------------

def run_files(args, options):
    """What evaluate.py does with --prompts or --pope."""
    if args.bench:
        raise ValueError("--bench names benchmarks of the shapes world, expected none beside --prompts and --pope; "
                         "drop --bench")
    if bool(args.pope) != bool(args.images):
        raise ValueError("--pope and --images belong together, got one of them; pass --pope FILE --images DIR")
    lines = read_lines(args.prompts, "--prompts", ("prompt",), args.n) if args.prompts else []
    rows, bad = read_pope(args.pope, args.images, args.n, bar) if args.pope else ([], [])
    pipe = load_pipeline(args.ckpt, args.device, args.dtype)
    torch.set_num_threads(1)                                    # the bytes drawn depend on it
    if lines:                                                   # complain before anything is made
        refuse_idle(pipe.plan([meta["prompt"] for _, meta in lines], args.size, **options), options)
    check_fit(pipe, rows, args.size)
    out = out_folder(args.out)
    with workers(pipe, args.procs) as pool:
        if lines:
            drawn, total = draw_lines(pipe, lines, out, args.images_per_prompt, args.seed, pool, tqdm, size=args.size,
                                      **options)
            print(f"{total} pictures of {len(lines)} prompts in {out}, {drawn} of them drawn now. Score them with "
                  f"GenEval's evaluation/evaluate_images.py {out}")
        if rows:
            said = answer_lines(pipe, rows, bad, args.images, args.size, pool, tqdm)
            write_answers(args.pope, rows, bad, said, out)


def write_answers(path, rows, bad, said, out):
    """OUT/NAME_answers.jsonl and NAME_results.json, and what there is to say about them."""
    name = Path(path).stem
    answers = [{"question_id": row.get("question_id", i), "question": row["text"], "answer": text}
               for i, (row, (text, _)) in enumerate(zip(rows, said), 1)]
    write_bytes(out / f"{name}_answers.jsonl", "".join(json.dumps(a) + "\n" for a in answers).encode())
    figures = pope_figures(rows, said, bad)
    write_json(out / f"{name}_results.json", {"questions": len(rows), "unreadable": bad, "results": figures})
    if figures:
        print(report.titled(f"{name}: %, [low, high]: 95 % Wilson intervals; f1, yes_ratio: fractions", figures))
    if bad:
        print(f"{len(bad)} pictures are missing or broken, their questions have an empty answer and count for nothing "
              f"here: {', '.join(bad)}")
    print(f"wrote {out}/{name}_answers.jsonl, {len(rows)} answers")
