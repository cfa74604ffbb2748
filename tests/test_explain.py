"""--explain and docs/WALK.md tell what the code does, line by line.     python -m pytest -q tests/test_explain.py"""
import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

import chat
import sample
from nanoharmon import explain
from nanoharmon.config import PRESETS
from test_pipeline import make_pipeline

ROOT = Path(__file__).parents[1]
PROMPT, QUESTION = "a red circle left of a blue square", "what color is the ring?"
AGAIN = "python -m nanoharmon.figures draws the page and the pictures anew"


@cache
def assigned(path):
    """{(line, function): names} of a file: what is assigned or taken there; None where it returns."""
    found = {}

    def visit(node, name):
        for child in ast.iter_child_nodes(node):
            inner = f"{name}.{child.name}".lstrip(".") if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else name
            names = {a.arg for a in child.args.args} if isinstance(child, ast.FunctionDef) else ()
            if isinstance(child, ast.Assign):
                names = {n.id for n in ast.walk(ast.Tuple(child.targets)) if isinstance(n, ast.Name)}
            if isinstance(child, ast.stmt):
                found.setdefault((child.lineno, inner), None if isinstance(child, ast.Return) else names)
            visit(child, inner)
    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


def assigns(path, line, function, name):
    """Whether that line of that function assigns, returns or takes such a variable."""
    names = assigned(path).get((line, function), ())
    return names is None or name in names


def told(walk):
    """[(tensor, file, line, function)] of a walk."""
    return [(row.name, row.where[0].name, row.where[1], row.where[2])
            for chapter in walk.told for row in chapter.rows + chapter.last]


@cache
def dry(preset):
    pipe = explain.without_weights(preset)
    drawn = explain.dry_draw(pipe, PROMPT, 2, pipe.plan([PROMPT]))
    return drawn, explain.dry_answer(pipe, QUESTION, [Image.new("RGB", (32, 32))])


@pytest.mark.parametrize("preset", [pytest.param(name, marks=[pytest.mark.stress] * (name not in ("pico", "nano")))
                                    for name in PRESETS])
def test_every_preset_is_walked_through_without_weights(preset):
    """Shapes in letters fit those in numbers (Walk asserts it), and only what needs numbers is not met."""
    drawn, answered = dry(preset)
    missing = {(c.title, s.name) for c in drawn.told + answered.told for s in c.steps if not s.is_told}
    assert missing == {("The LLM answers", "ids")} and sys.gettrace() is None
    assert len(told(drawn)) > 30 and len(told(answered)) > 12
    for name, file, line, function in told(drawn) + told(answered):
        assert assigns(ROOT / "nanoharmon" / file, line, function, name), (name, file, line)
    text, config = explain.as_text(drawn), PRESETS[preset]()
    assert f"U={config.mar.buffer_size} buffers" in text and f"encoder's {config.mar.encoder_depth} blocks" in text


def test_a_wrong_line_or_name_would_be_noticed():
    name, file, line, function = next(row for row in told(dry("nano")[0]) if row[1] == "mar.py")
    path = ROOT / "nanoharmon" / file
    assert assigns(path, line, function, name)
    assert not assigns(path, line + 1, function, name) and not assigns(path, line, function, "canvas")
    assert not assigns(path, line, "MAR.encode", name)


def test_letters_that_do_not_fit_are_refused():
    walk = explain.Walk(explain.without_weights("pico"))
    step = next(s for c in walk.entries.values() for s in c.steps if s.letters == "B, U, D")
    with pytest.raises(AssertionError, match="not B, U, D"):
        list(walk.rows(step, torch.empty(1, 3, 32), (ROOT, 1, "f"), dict(walk.sizes)))


def test_scripts_explain_what_they_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    pipe = make_pipeline(draw={"steps": 2, "iters": 3})
    monkeypatch.setattr("nanoharmon.pipeline.load_pipeline", lambda *_: pipe)
    monkeypatch.setattr(chat, "load_pipeline", lambda *_: pipe)
    sample.main(["--prompt", "a ring", "--n", "1", "--out", "plain.png"])
    assert "Letters:" not in capsys.readouterr().out
    sample.main([*["--prompt", "a ring"] * 3, "--n", "1", "--batch", "2", "--explain"])      # the last batch is smaller
    assert "The same in the last iteration" in capsys.readouterr().out
    sample.main(["--prompt", "a ring", "--n", "1", "--explain"])
    out = capsys.readouterr().out
    assert Path("plain.png").read_bytes() == Path("grid.png").read_bytes()       # to watch changes nothing
    assert "Letters: B=1 pictures" in out and "The same in the last iteration" in out and "wrote grid.png" in out
    where = re.search(r"summed .* float32 \S+ \.\. \S+ +nanoharmon/harmon.py:(\d+)  Harmon.through_llm", out)
    assert assigns(ROOT / "nanoharmon" / "harmon.py", int(where[1]), "Harmon.through_llm", "summed")
    Image.new("RGB", (32, 32)).save("a.png")
    chat.main(["--image", "a.png", "--prompt", "what is it?", "--explain"])
    assert "places for the picture>" in (out := " ".join(capsys.readouterr().out.split())) and "The LLM answers" in out
    monkeypatch.setenv("COLUMNS", "1")
    for main, flags in (sample.main, ["--dry-run", "pico"]), (chat.main, ["--image", "a.png", "--dry-run"]):
        before = set(Path().iterdir())
        main(["--prompt", "a ring", "--explain", *flags])
        assert "Letters:" in capsys.readouterr().out and set(Path().iterdir()) == before


def test_the_page_tells_what_the_code_does():
    page = (ROOT / "docs" / "WALK.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` .*\[([\w/]+\.py):(\d+)\]\(\.\./nanoharmon/\2#L\3\) `([\w.]+)`", page, re.M)
    assert len(rows) == len(re.findall(r"^\| `", page, re.M)) > 50
    for name, file, line, function in rows:
        assert assigns(ROOT / "nanoharmon" / file, int(line), function, name), f"{name} {file}:{line}; {AGAIN}"
    rows = [(name, file, int(line), function) for name, file, line, function in rows]
    for walk in dry("nano"):
        for row in (row for chapter in walk.told for row in chapter.rows):
            assert (row.name, row.where[0].name, *row.where[1:]) in rows, f"{row.where}; {AGAIN}"
            assert row.sentence[:30] in page.replace("\\", ""), f"{row.sentence}; {AGAIN}"
