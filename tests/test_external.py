"""GenEval's prompts and POPE's questions from files.     python -m pytest -q tests/test_external.py"""
import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from nanoharmon.evals import evaluate, external
from nanoharmon.pipeline import Pipeline
from test_folder import add_lines

# as in the official file: other words than ours, and more keys
PROMPTS = [{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
           {"tag": "counting", "include": [{"class": "tv", "count": 3}], "exclude": [], "prompt": "a photo of tvs"},
           {"tag": "colors", "include": [{"class": "tv", "count": 1, "color": "red"}], "prompt": "a photo of a red tv"}]
FAR = {"cfg": 30.0}                                              # else random weights hardly heed a prompt


def command(ckpt, *flags):
    evaluate.main(list(map(str, ("--ckpt", ckpt, "--procs", 1, *flags))))


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def drawn(pico, tmp_path_factory):
    """The prompts file and a finished folder, two pictures each."""
    folder = tmp_path_factory.mktemp("geneval")
    add_lines(prompts := folder / "evaluation_metadata.jsonl", PROMPTS)
    command(pico, "--prompts", prompts, "--images-per-prompt", 2, "--steps", 3, "--out", folder / "out")
    return prompts, folder / "out"


def test_the_folder_is_what_the_official_scorer_expects(drawn):
    found = []
    for folder in sorted(p for p in drawn[1].iterdir() if p.is_dir() and p.name.isdigit()):        # the scorer's loop
        meta = json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8"))
        found += [(meta, np.asarray(Image.open(p))) for p in sorted((folder / "samples").iterdir())]
    assert [meta for meta, _ in found] == [meta for meta in PROMPTS for _ in range(2)]
    assert {p.shape for _, p in found} == {(16, 16, 3)} and len({p.tobytes() for _, p in found}) == 6


def test_a_stopped_run_goes_on_with_the_same_pictures(pico, drawn, tmp_path):
    prompts, whole = drawn
    shutil.copytree(whole, out := tmp_path / "out")
    shutil.rmtree(out / "00002")                                # not begun
    (out / "00001" / "samples" / "0001.png").unlink()           # half done
    broken, kept = (out / "00000" / "samples" / f"000{i}.png" for i in (0, 1))
    broken.write_bytes(broken.read_bytes()[:100])
    before = kept.stat().st_mtime_ns
    command(pico, "--prompts", prompts, "--images-per-prompt", 2, "--steps", 3, "--out", out)
    assert files(out) == files(whole) and kept.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="drop --temperature"):
        command(pico, "--prompts", prompts, "--sampler", "ddim", "--temperature", 0.5, "--out", tmp_path / "new")


def test_pictures_depend_on_weights_seed_and_prompt_only_and_never_mix(pico, drawn, tmp_path):
    pipe, lines = Pipeline.load(pico), external.read_lines(drawn[0], "--prompts", ("prompt",))
    for name, seed, which, more in ("0", 0, (0, 2), {}), ("1", 1, (0, 2), {}), ("a", 0, [0], FAR), ("b", 0, [2], FAR):
        (tmp_path / name).mkdir()
        external.draw_lines(pipe, [lines[k] for k in which], tmp_path / name, 1, seed, steps=3, **more)
    first = [(out / "00000/samples/0000.png").read_bytes() for out in (drawn[1], tmp_path / "0", tmp_path / "1")]
    assert first[0] == first[1] != first[2]
    assert files(tmp_path / "a")["00000/samples/0000.png"] != files(tmp_path / "b")["00000/samples/0000.png"]
    other, before = Pipeline.load(pico), files(drawn[1])
    torch.nn.init.ones_(other.model.proj_in[0].weight)
    for pipe, rows, seed, words in ((pipe, lines, 1, "with seed 0, not 1; pass another --out"),
                                    (pipe, lines[::-1], 0, "is not line 0 of --prompts"),
                                    (other, lines, 0, "drawn with weights")):
        with pytest.raises(ValueError, match=words):
            external.draw_lines(pipe, rows, drawn[1], 2, seed, steps=3)
    for rows, each, words in (lines, 1, "holds 2 samples, expected at most 1"), (lines[:2], 2, "prompt 00002, expected 0"):
        with pytest.raises(ValueError, match=words):             # or the scorer would count more than was drawn
            external.draw_lines(Pipeline.load(pico), rows, drawn[1], each, steps=3)
    assert files(drawn[1]) == before


# answers, and what POPE's evaluate.py makes of them: "No", "no" or "not" as a word of the first sentence is no
SAID = {"Yes": "yes", "no": "no", "No, there is not.": "no", "Yes, there is. No doubt.": "yes", "it is not": "no",
        "There is no person in it": "no", "NO": "yes", "nope": "yes", "": "yes", "yes, no": "no"}


class Reader:
    """Says what it is told to, in the order it is asked; its likelihoods know the truth."""

    def __init__(self, said, truth):
        self.said, self.truth, self.seen = iter(said), iter(truth), []
        self.placeholders = lambda size: 1000                   # 8 questions per batch

    def answers(self, images, questions, size, max_new_tokens, look=None):
        self.seen += [(image.width, q) for image, q in zip(images, questions)]
        return [next(self.said) for _ in questions]

    def likelihoods(self, images, questions, candidates, size):
        return [[float(c == word.title()) for c in row] for row, word in zip(candidates, self.truth)]


def test_figures_are_those_of_the_official_script(tmp_path):
    """One of the 20 pictures is broken: its two questions have an empty answer and count for nothing."""
    (tmp_path / "val").mkdir()
    for i in range(20):
        Image.new("RGB", (40 + i, 30)).save(tmp_path / "val" / f"{i}.png")
    rows = [{"question_id": 100 + i, "image": f"{i // 2}.png", "label": ("yes", "no")[i % 2],
             "text": f"Is there a {'dog' if i % 3 else 'cat'} in the image?"} for i in range(40)]
    (tmp_path / "val" / "3.png").write_bytes(b"no picture")
    add_lines(path := tmp_path / "coco_pope_random.json", rows)
    found, bad = external.read_pope(path, tmp_path / "val")
    said, known = (list(SAID) * 4)[:38], [row for row in rows if row["image"] != "3.png"]
    random.Random(0).shuffle(said)
    reader = Reader(said, truth := [row["label"] for row in known])
    external.write_answers(path, found, bad, external.answer_lines(reader, found, bad, tmp_path / "val"), tmp_path)
    assert reader.seen == [(40 + int(row["image"][:-4]), row["text"]) for row in known]
    lines = (tmp_path / "coco_pope_random_answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == [{"question_id": row["question_id"], "question": row["text"], "answer": a}
                                            for row, a in zip(rows, said[:6] + ["", ""] + said[6:], strict=True)]
    stored = json.loads((tmp_path / "coco_pope_random_results.json").read_text(encoding="utf-8"))
    free, likelier = stored["results"]["free text"], stored["results"]["likelihood"]
    pairs = [(SAID[answer], label) for answer, label in zip(said, truth)]
    tp, fp, fn = (pairs.count(p) for p in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
    assert [free[k]["rate"] for k in ("accuracy", "precision", "recall")] + [free["f1"], free["yes_ratio"]] == (
        pytest.approx([sum(a == b for a, b in pairs) / 38, tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn),
                       (tp + fp) / 38]))
    assert free["neither"]["right"] == said.count("") + said.count("nope")
    assert likelier["accuracy"]["rate"] == 1 and likelier["accuracy"]["n"] == 38 and stored["unreadable"] == ["3.png"]
    (tmp_path / "val" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"2 of the 20 .* at most 5%: 0.png, 3.png; change --images"):
        external.read_pope(path, tmp_path / "val")
