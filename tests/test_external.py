"""GenEval's prompts and POPE's questions from files.     python -m pytest -q tests/test_external.py"""
import json
import random
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nanoharmon import cli
from nanoharmon.pipeline import Pipeline
from nanoharmon.evals import evaluate, external
from nanoharmon.world import shapes

# as in the official file: other words than ours, and more keys
PROMPTS = [{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
           {"tag": "counting", "include": [{"class": "clock", "count": 3}], "exclude": [{"class": "clock", "count": 4}],
            "prompt": "a photo of three clocks"},
           {"tag": "colors", "include": [{"class": "tv", "count": 1, "color": "red"}], "prompt": "a photo of a red tv"}]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(*flags):
    threads = torch.get_num_threads()
    evaluate.main([*map(str, flags), "--procs", "1"])
    torch.set_num_threads(threads)


def refused(*flags):
    """What the command says when it stops with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        cli.run_main(lambda: command(*flags))
    assert stop.value.code == 2


# --- GenEval ----------------------------------------------------------------------------------------------------------

def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def as_the_official_scorer_reads(folder):
    """Its loop over folders and pictures: [(metadata, picture)]."""
    found = []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()):
        meta = json.loads((sub / "metadata.jsonl").read_text())
        found += [(meta, Image.open(p)) for p in sorted((sub / "samples").iterdir()) if re.match(r"\d+\.png", p.name)]
    return found


@pytest.fixture(scope="module")
def drawn(pico, tmp_path_factory):
    """The prompts file and a finished folder, two pictures each."""
    folder = tmp_path_factory.mktemp("geneval")
    prompts = jsonl(folder / "evaluation_metadata.jsonl", PROMPTS)
    command("--ckpt", pico, "--prompts", prompts, "--images-per-prompt", 2, "--steps", 3, "--out", folder / "out")
    return prompts, folder / "out"


def test_the_folder_is_what_the_official_scorer_expects(drawn):
    found = as_the_official_scorer_reads(drawn[1])
    assert [meta for meta, _ in found] == [meta for meta in PROMPTS for _ in range(2)]
    assert {p.name for p in drawn[1].iterdir()} == {"00000", "00001", "00002", "settings.json"}
    pictures = [np.asarray(picture) for _, picture in found]
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
    command(*again, "--images-per-prompt", 3)                   # one more of each: the first two do not depend on it
    assert "3 of them drawn now" in capsys.readouterr().out
    more = files(out)
    assert all(more[name] == data for name, data in files(whole).items() if not name.endswith("grid.png"))
    assert Image.open(out / "00000" / "grid.png").size == (20, 56)


def test_pictures_depend_on_the_seed_and_not_on_other_prompts(pico, drawn, tmp_path):
    pipe, options = Pipeline.load(pico), {"steps": "3"}
    lines = external.read_lines(drawn[0], "--prompts", ("prompt",))
    assert [line for line, _ in lines] == [json.dumps(row) for row in PROMPTS]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed, others in ((0, PROMPTS[1:]), (1, PROMPTS[1:])):
        (tmp_path / str(seed)).mkdir()
        changed = [lines[0]] + [(json.dumps(row), row) for row in others[::-1]]
        external.draw_lines(pipe, changed, tmp_path / str(seed), 1, seed, **options)
    torch.set_num_threads(threads)
    first = [(out / "00000/samples/0000.png").read_bytes() for out in (drawn[1], tmp_path / "0", tmp_path / "1")]
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize("change, words", [
    (["--seed", 1], "with seed 0, not 1; pass another --out"), (["--cfg", 2], "with cfg 3.0, not 2.0"),
    (["--size", 32], "with size [16, 16], not [32, 32]"), (["--n", 1], "")])
def test_pictures_of_different_settings_never_mix(pico, drawn, change, words, capsys):
    before = files(drawn[1])
    flags = ["--ckpt", pico, "--prompts", drawn[0], "--images-per-prompt", 2, "--steps", 3, "--out", drawn[1], *change]
    refused(*flags) if words else command(*flags)
    assert words in capsys.readouterr().err and files(drawn[1]) == before


def test_another_checkpoint_or_other_prompts_need_another_folder(pico, drawn):
    pipe, options = Pipeline.load(pico), {"steps": 3}
    lines = external.read_lines(drawn[0], "--prompts", ("prompt",))
    with pytest.raises(ValueError, match="is not line 0 of --prompts"):
        external.draw_lines(pipe, lines[::-1], drawn[1], 2, **options)
    with torch.no_grad():
        pipe.model.proj_in[0].weight[0, 0] += 1
    with pytest.raises(ValueError, match="drawn with weights"):
        external.draw_lines(pipe, lines, drawn[1], 2, **options)


@pytest.mark.parametrize("text, words", [
    ('{"prompt": "a"}\n{"prompt" "b"}', "line 2: expected a JSON object with a text 'prompt'"), ("\n \n", "empty"),
    ('{"prompt": ""}', "line 1"), ('["a prompt"]', "line 1"), ('{"prompt": "\\ud800"}', "line 1"),
    (b"\xff\xfe", "not UTF-8"), (None, "No such file"), ('{"prompt": "' + "circle " * 900 + '"}', "tokens long")])
def test_prompts_that_cannot_be_read_are_explained_and_nothing_is_written(pico, tmp_path, capsys, text, words):
    if text is not None:
        (tmp_path / "p.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused("--ckpt", pico, "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "out")
    said = capsys.readouterr().err
    assert words in said and "--prompt" in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


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


def official_scores(answers, questions):
    """POPE's published rule, applied to the two files line by line: accuracy, precision, recall, F1, share of yes."""
    said = []
    for line in answers.read_text().splitlines():
        words = json.loads(line)["answer"].partition(".")[0].replace(",", "").split(" ")
        said.append("no" if "No" in words or "not" in words or "no" in words else "yes")
    truth = [json.loads(line)["label"] for line in questions.read_text().splitlines()]
    pairs = list(zip(said, truth, strict=True))
    tp, fp, fn = (pairs.count(p) for p in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    accuracy = sum(a == b for a, b in pairs) / len(pairs)
    return accuracy, precision, recall, 2 * precision * recall / (precision + recall), said.count("yes") / len(pairs)


SAID = ["Yes", "no", "No, there is not.", "Yes, there is. No doubt.", "There is no person in it", "it is not", "NO",
        "nope", "", "yes, no"]


class Reader:
    """Says what it is told to, in the order it is asked; its likelihoods know the truth."""
    model = SimpleNamespace(config=SimpleNamespace(llm=SimpleNamespace(max_position_embeddings=500)))
    tokenizer = SimpleNamespace(chat=lambda messages: ([0] * 20, None))

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
    path, folder, rows = asked
    said, truth = (SAID * 4)[:40], [row["label"] for row in rows]
    random.Random(0).shuffle(said)
    reader = Reader(said, truth)
    found, bad = external.read_pope(path, folder)
    answers = external.answer_lines(reader, found, bad, folder)
    external.write_answers(path, found, bad, answers, tmp_path)
    assert [q for _, q in reader.seen] == [row["text"] for row in rows] and reader.seen[-1][0] == (59, 30)
    lines = [json.loads(line) for line in (tmp_path / "coco_pope_random_answers.jsonl").read_text().splitlines()]
    assert lines == [{"question_id": r["question_id"], "question": r["text"], "answer": a} for r, a in zip(rows, said)]
    stored = json.loads((tmp_path / "coco_pope_random_results.json").read_text())
    free, likelier = stored["results"]["free text"], stored["results"]["likelihood"]
    figures = [free[k]["rate"] for k in ("accuracy", "precision", "recall")] + [free["f1"], free["yes_ratio"]]
    assert figures == pytest.approx(official_scores(tmp_path / "coco_pope_random_answers.jsonl", path))
    assert free["neither"]["right"] == 8                        # "nope" and "", four times each
    assert likelier["accuracy"]["rate"] == 1 and likelier["accuracy"]["n"] == 40 and stored["unreadable"] == []
    assert "yes_ratio" in capsys.readouterr().out


@pytest.mark.parametrize("answer, read", [
    ("yes", "yes"), ("no", "no"), ("No.", "no"), ("Yes. No.", "yes"), ("NO", "yes"), ("there is not, sorry", "no"),
    ("", "yes"), ("another one", "yes")])
def test_an_answer_is_read_as_officially(answer, read):
    assert external.official_reading(answer) == read


def test_a_missing_picture_is_named_and_left_out(asked, tmp_path, capsys):
    path, folder, rows = asked
    shutil.copytree(folder, tmp_path / "val")
    (tmp_path / "val" / "3.jpg").write_bytes(b"no picture")
    found, bad = external.read_pope(path, tmp_path / "val")
    assert bad == ["3.jpg"]
    reader = Reader(["Yes"] * 38, [row["label"] for row in rows if row["image"] != "3.jpg"])
    answers = external.answer_lines(reader, found, bad, tmp_path / "val")
    assert [a for a, _ in answers] == ["Yes"] * 6 + ["", ""] + ["Yes"] * 32         # in their places
    external.write_answers(path, found, bad, answers, tmp_path)
    results = json.loads((tmp_path / "coco_pope_random_results.json").read_text())["results"]
    assert results["free text"]["accuracy"]["n"] == 38 and results["likelihood"]["accuracy"]["rate"] == 1
    assert "1 pictures are missing or broken" in (said := capsys.readouterr().out) and "3.jpg" in said
    (tmp_path / "val" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"2 of the 20 .* at most 5%: 0.png, 3.jpg; change --images"):
        external.read_pope(path, tmp_path / "val")


def test_the_command_answers_as_the_pipeline_does(pico, asked, tmp_path, capsys):
    path, folder, rows = asked
    unlabelled = jsonl(tmp_path / "q.jsonl", [{"image": r["image"], "text": r["text"]} for r in rows])
    command("--ckpt", pico, "--pope", unlabelled, "--images", folder, "--n", 6, "--out", tmp_path / "out")
    pipe = Pipeline.load(pico)
    lines = [json.loads(line) for line in (tmp_path / "out" / "q_answers.jsonl").read_text().splitlines()]
    for i, (line, row) in enumerate(zip(lines, rows[:6], strict=True)):
        answer = pipe.answer(Image.open(folder / row["image"]), row["text"], max_new_tokens=external.MAX_NEW_TOKENS)
        assert line == {"question_id": i + 1, "question": row["text"], "answer": answer}
    assert "accuracy" not in capsys.readouterr().out           # nothing is known about right and wrong


@pytest.mark.parametrize("row, flags, words", [
    ({"image": "0.png", "text": "x", "label": "Yes"}, [], "label 'Yes'"), ({"image": "0.png"}, [], "'text'"),
    ({"image": 5, "text": "x"}, [], "'image'"), ({"image": "0.png", "text": "x " * 900}, [], "tokens long"),
    ({"image": "0.png", "text": "x"}, ["--size", 17], "--size"), (None, [], "--images belong together"),
    ({"image": "0.png", "text": "x"}, ["--bench", "vqa"], "--bench"),
    ({"image": "a.png", "text": "x"}, [], "1 of the 1 pictures")])
def test_mistakes_are_explained_and_nothing_is_written(pico, asked, tmp_path, capsys, row, flags, words):
    path = ["--pope", jsonl(tmp_path / "q.jsonl", [row])] if row else []
    refused("--ckpt", pico, *path, "--images", asked[1], "--out", tmp_path / "out", *flags)
    said, = capsys.readouterr().err.splitlines()               # no progress bar beside it
    assert words in said and said.startswith("error: ") and not (tmp_path / "out").exists()
