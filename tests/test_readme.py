"""The README does what it says: its commands run, its tables are those of the code and of the stored results.

    python -m pytest -q tests/test_readme.py
"""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import train
from nanoharmon.pipeline import Pipeline
from nanoharmon.evals import study, sweep
from nanoharmon.training.recipe import Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands():
    """Every python command of the bash blocks, without comments; `a && b` is two."""
    for block in blocks("bash"):
        for line in block.splitlines():
            for command in line.split("#")[0].split("&&"):
                if command.strip().startswith("python "):
                    yield command.strip()


def run(arguments, cwd, text=""):
    return subprocess.run([sys.executable, *arguments], cwd=cwd, input=text, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("command", list(dict.fromkeys(commands())))
def test_command_runs(command, tmp_path):
    arguments = shlex.split(command)[1:]
    if arguments[:2] == ["-m", "pytest"]:
        pytest.skip("this is that command")
    if arguments[0] == "train.py":
        arguments.append("--dry-run")                # what it trains takes hours; that it trains is test_train.py's
    if "nanoharmon.evaluate" in arguments:
        arguments += ["--n", "1", "--images-per-prompt", "1", "--steps", "3", "--procs", "1"]
    if arguments[0].endswith(".py"):
        arguments[0] = str(ROOT / arguments[0])
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    done = run(arguments, tmp_path, "/quit\n")
    assert done.returncode == 0, done.stderr


def test_python_example_runs(tmp_path):
    for block in blocks("python"):
        (tmp_path / "example.py").write_text(block)
        (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
        done = run(["example.py"], tmp_path)
        assert done.returncode == 0, done.stderr
        printed = re.findall(r"print\(.*?#\s*(\w+)\n", block)
        assert done.stdout.split() == printed        # the README says what it prints


def test_walk_through_with_real_pictures(tmp_path):
    """All of it but the download, here two made-up pictures, and the training."""
    entries = [{"image": "a.png", "name": "TIGER", "category": "Animals & Nature", "subcategory": "animal-mammal"},
               {"image": "b.png", "name": "TACO", "category": "Food & Drink", "subcategory": "food-prepared"},
               {"image": "c.png", "name": "KEYCAP 1", "category": "Symbols", "subcategory": "keycap"}]
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "emoji.json").write_text(json.dumps(entries))
    (tmp_path / "emoji").mkdir()
    for entry in entries:
        Image.new("RGBA", (64, 64)).save(tmp_path / "emoji" / entry["image"])
    lines = [line for line in blocks("sh")[0].splitlines() if not line.startswith(("curl", "tar"))]
    training = next(i for i, line in enumerate(lines) if "train.py" in line)
    script = f'python() {{ "{sys.executable}" "$@"; }}\nset -e\n' + "\n".join(lines[:training])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "emoji: 2 entries, 2 pictures; 0 entries broken" in done.stdout and (tmp_path / "emoji.png").exists()
    args, config = train.parse_args(shlex.split(lines[training], comments=True)[2:])
    assert args.out == "out/emoji" and config.data.mix == ("emoji:1",)


def test_stage_table_is_the_preset():
    rows = {cells[0].split()[0].strip("`"): cells for line in README.splitlines() if line.startswith("| `")
            if len(cells := [c.strip() for c in line.strip("|").split("|")]) >= 7}
    for name, stage in Config.preset("nano").stages.items():
        cells = rows[name]
        assert f"{stage.steps:,}" in cells
        assert f"{stage.batch} : {stage.understanding_batch}" in cells


def test_results_are_those_of_the_shipped_checkpoint():
    """Every figure of the results table is in docs/results.json, as evaluate.py wrote it."""
    results = json.loads((ROOT / "docs" / "results.json").read_text())["results"]
    for task, entry in results["geneval"]["seen"].items():
        if isinstance(entry, dict) and "rate" in entry and task not in ("color", "shape", "number"):
            row = next(line for line in README.splitlines() if line.startswith(f"| {task} "))
            assert f"{100 * entry['rate']:.1f}" in row, row


@pytest.mark.parametrize("name", ["shared", "stages", "mar"])
def test_study_tables_are_the_stored_ones(name):
    results = json.loads((ROOT / "docs" / f"study_{name}.json").read_text())["results"]
    assert study.table(results) in README and study.table(study.against_first(results)) in README


def test_the_sampling_table_is_the_stored_one_and_of_the_shipped_checkpoint(tmp_path, monkeypatch):
    shutil.copy(ROOT / "docs" / "study_sampling.json", tmp_path / "sampling.json")
    monkeypatch.setattr(sweep.evaluate, "draw_scores", lambda *_, **__: pytest.fail("a point is missing"))
    assert sweep.table(sweep.sampling(Pipeline.load(ROOT / "checkpoints" / "nano"), tmp_path, procs=1)) in README


def test_checkpoint_is_small():
    assert (ROOT / "checkpoints" / "nano" / "model.safetensors").stat().st_size <= 16e6
    assert {p.name for p in (ROOT / "checkpoints" / "nano").iterdir()} == {"model.safetensors", "config.json",
                                                                          "tokenizer.json"}


def test_files_in_the_reading_order_exist():
    for name in re.findall(r"\]\(((?:nanoharmon/)?\w+\.py)\)", README):
        assert (ROOT / name).is_file(), name
