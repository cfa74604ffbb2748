"""GenEval's prompts and POPE's questions from files.     python -m pytest -q tests/test_external.py"""
import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from nanoharmon import cli
from nanoharmon.evals import evaluate, external
from nanoharmon.pipeline import Pipeline
from nanoharmon.world import shapes

# as in the official file: other words than ours, and more keys
PROMPTS = [{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
           {"tag": "counting", "include": [{"class": "clock", "count": 3}], "exclude": [{"class": "clock", "count": 4}],
            "prompt": "a photo of three clocks"},
           {"tag": "colors", "include": [{"class": "tv", "count": 1, "color": "red"}], "prompt": "a photo of a red tv"}]


@pytest.fixture(autouse=True)
def same_threads():
    """The commands set one thread."""
    threads = torch.get_num_threads()
    yield torch.set_num_threads(1)
    torch.set_num_threads(threads)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command(*flags):
    evaluate.main([*map(str, flags), "--procs", "1"])


def refused(capsys, *flags):
    """The one line that the command says when it stops with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        cli.run_main(lambda: command(*flags))
    line, = capsys.readouterr().err.splitlines()               # no progress bar beside it
    assert stop.value.code == 2 and line.startswith("error: ")
    return line


# --- GenEval ----------------------------------------------------------------------------------------------------------

def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def drawn(pico, tmp_path_factory):
    """The prompts file and a finished folder, two pictures each."""
    folder = tmp_path_factory.mktemp("geneval")
    prompts = jsonl(folder / "evaluation_metadata.jsonl", PROMPTS)
    torch.set_num_threads(1)
    command("--ckpt", pico, "--prompts", prompts, "--images-per-prompt", 2, "--steps", 3, "--out", folder / "out")
    return prompts, folder / "out"


def test_the_folder_is_what_the_official_scorer_expects(drawn):
    found = []
    for folder in sorted(p for p in drawn[1].iterdir() if p.is_dir() and p.name.isdigit()):        # the scorer's loop
        meta = json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8"))
        found += [(meta, np.asarray(Image.open(p))) for p in sorted((folder / "samples").iterdir())]
    assert [meta for meta, _ in found] == [meta for meta in PROMPTS for _ in range(2)]
    pictures = [picture for _, picture in found]
    assert {p.shape for p in pictures} == {(16, 16, 3)} and len({p.tobytes() for p in pictures}) == 6
    for i in range(3):                                          # torchvision's make_grid(nrow=1, padding=2)
        grid = np.asarray(Image.open(drawn[1] / f"0000{i}" / "grid.png")).copy()
        assert grid.shape == (38, 20, 3)
        for k in range(2):
            place = grid[2 + 18 * k:18 + 18 * k, 2:18]
            assert (place == pictures[2 * i + k]).all()
            place[:] = 0
        assert not grid.any()


def test_a_stopped_run_goes_on_with_the_same_pictures(pico, drawn, tmp_path, capsys):
    prompts, whole = drawn
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "00002")                                # not begun
    (out / "00001" / "samples" / "0001.png").unlink()           # half done
    (out / "00001" / "grid.png").unlink()
    broken = out / "00000" / "samples" / "0000.png"
    broken.write_bytes(broken.read_bytes()[:100])
    kept = out / "00000" / "samples" / "0001.png"
    before = kept.stat().st_mtime_ns
    again = ["--ckpt", pico, "--prompts", prompts, "--steps", 3, "--out", out]
    command(*again, "--images-per-prompt", 2)
    assert files(out) == files(whole) and kept.stat().st_mtime_ns == before
    assert "4 of them drawn now" in capsys.readouterr().out


@pytest.mark.parametrize("change, words", [(["--seed", 1], "with seed 0, not 1; pass another --out"), (["--n", 1], ""),
                                           (["--size", 32], "with size [16, 16], not [32, 32]")])
def test_pictures_of_different_settings_never_mix(pico, drawn, change, words, capsys):
    before = files(drawn[1])
    flags = ["--ckpt", pico, "--prompts", drawn[0], "--images-per-prompt", 2, "--steps", 3, "--out", drawn[1], *change]
    assert words in refused(capsys, *flags) if words else command(*flags) is None
    assert files(drawn[1]) == before


def test_pictures_depend_on_weights_seed_and_prompt_only(pico, drawn, tmp_path):
    pipe, lines = Pipeline.load(pico), external.read_lines(drawn[0], "--prompts", ("prompt",))
    for seed in 0, 1:
        (tmp_path / str(seed)).mkdir()
        external.draw_lines(pipe, [lines[0], lines[2]], tmp_path / str(seed), 1, seed, steps=3)
    first = [(out / "00000/samples/0000.png").read_bytes() for out in (drawn[1], tmp_path / "0", tmp_path / "1")]
    assert first[0] == first[1] != first[2]
    with pytest.raises(ValueError, match="is not line 0 of --prompts"):
        external.draw_lines(pipe, lines[::-1], drawn[1], 2, steps=3)
    with torch.no_grad():
        pipe.model.proj_in[0].weight[0, 0] += 1
    with pytest.raises(ValueError, match="drawn with weights"):
        external.draw_lines(pipe, lines, drawn[1], 2, steps=3)


# --- POPE -------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """40 questions about 20 pictures of different sizes, as a POPE file, and the folder of the pictures."""
    folder, rng, rows = tmp_path_factory.mktemp("pope"), random.Random(0), []
    (folder / "val").mkdir()
    for i in range(20):
        name, picture = f"{i}.{'jpg' if i % 2 else 'png'}", shapes.render(shapes.random_scene(rng), 48)
        Image.fromarray(picture).resize((40 + i, 30)).save(folder / "val" / name)
        rows += [{"question_id": 100 + 2 * i + k, "image": name, "label": ("yes", "no")[k],
                  "text": f"Is there a {rng.choice(shapes.SHAPES)} in the image?"} for k in range(2)]
    return jsonl(folder / "coco_pope_random.json", rows), folder / "val", rows


# answers, and what POPE's evaluate.py makes of them: "No", "no" or "not" as a word of the first sentence is no
SAID = {"Yes": "yes", "no": "no", "No, there is not.": "no", "Yes, there is. No doubt.": "yes", "it is not": "no",
        "There is no person in it": "no", "NO": "yes", "nope": "yes", "": "yes", "yes, no": "no"}


class Reader:
    """Says what it is told to, in the order it is asked; its likelihoods know the truth."""

    def __init__(self, said, truth):
        self.said, self.truth, self.seen = iter(said), iter(truth), []

    def placeholders(self, size):
        return 1000                                             # 8 questions per batch

    def answers(self, images, questions, size, max_new_tokens):
        self.seen += [(image.size, q) for image, q in zip(images, questions)]
        return [next(self.said) for _ in questions]

    def likelihoods(self, images, questions, candidates, size):
        return [[float(c == word.title()) for c in row] for row, word in zip(candidates, self.truth)]


def test_figures_are_those_of_the_official_script(asked, tmp_path, capsys):
    """One of the 20 pictures is broken: its two questions have an empty answer and count for nothing."""
    path, folder, rows = asked
    shutil.copytree(folder, tmp_path / "val")
    (tmp_path / "val" / "3.jpg").write_bytes(b"no picture")
    found, bad = external.read_pope(path, tmp_path / "val")
    said, known = (list(SAID) * 4)[:38], [row for row in rows if row["image"] != "3.jpg"]
    random.Random(0).shuffle(said)
    reader, truth = Reader(said, [row["label"] for row in known]), [row["label"] for row in known]
    external.write_answers(path, found, bad, external.answer_lines(reader, found, bad, tmp_path / "val"), tmp_path)
    assert [q for _, q in reader.seen] == [row["text"] for row in known] and reader.seen[-1][0] == (59, 30)
    lines = (tmp_path / "coco_pope_random_answers.jsonl").read_text(encoding="utf-8").splitlines()
    in_places = said[:6] + ["", ""] + said[6:]
    assert list(map(json.loads, lines)) == [{"question_id": r["question_id"], "question": r["text"], "answer": a}
                                            for r, a in zip(rows, in_places, strict=True)]
    stored = json.loads((tmp_path / "coco_pope_random_results.json").read_text(encoding="utf-8"))
    free, likelier = stored["results"]["free text"], stored["results"]["likelihood"]
    pairs = [(SAID[answer], label) for answer, label in zip(said, truth)]
    tp, fp, fn = (pairs.count(p) for p in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
    assert [free[k]["rate"] for k in ("accuracy", "precision", "recall")] + [free["f1"], free["yes_ratio"]] == (
        pytest.approx([sum(a == b for a, b in pairs) / 38, tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn),
                       (tp + fp) / 38]))
    assert free["neither"]["right"] == said.count("") + said.count("nope")
    assert likelier["accuracy"]["rate"] == 1 and likelier["accuracy"]["n"] == 38 and stored["unreadable"] == ["3.jpg"]
    assert "yes_ratio" in (text := capsys.readouterr().out) and "1 pictures are missing or broken" in text
    (tmp_path / "val" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"2 of the 20 .* at most 5%: 0.png, 3.jpg; change --images"):
        external.read_pope(path, tmp_path / "val")


@pytest.mark.parametrize("text, words", [
    ('{"prompt": "a"}\n{"prompt" "b"}', "line 2: expected a JSON object with a text 'prompt'"), ("\n \n", "empty"),
    ('{"prompt": "\\ud800"}', "line 1"), ('{"prompt": "' + "circle " * 900 + '"}', "tokens long"),
    ('{"image": "0.png", "text": "x", "label": "Yes"}', "label 'Yes'"), ('{"image": 5, "text": "x"}', "'image'"),
    ('{"image": "0.png", "text": "' + "x " * 900 + '"}', "tokens long"),
    ('{"image": "a.png", "text": "x"}', "1 of the 1 pictures")])
def test_mistakes_are_explained_and_nothing_is_written(pico, asked, tmp_path, capsys, text, words):
    (tmp_path / "lines").write_text(text, encoding="utf-8")
    flags = ["--pope", "--images", asked[1]] if "image" in text else ["--prompts"]
    flags.insert(1, tmp_path / "lines")
    assert words in refused(capsys, "--ckpt", pico, *flags, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
