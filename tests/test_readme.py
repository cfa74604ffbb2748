"""What README and docs say is so, and their commands run.     python -m pytest -q tests/test_readme.py"""
import contextlib
import importlib.util
import io
import json
import re
import shlex
from functools import lru_cache
from pathlib import Path

import pytest
from PIL import Image

from nanoharmon.compare.metrics import tables
from nanoharmon.evals import report, study
from nanoharmon.evals.report import cell
from nanoharmon.training.recipe import Config

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "docs/RESULTS.md", "docs/HARDWARE.md", "docs/DATA.md", "docs/WEIGHTS.md", "docs/TEACHING.md",
         "docs/LEADERBOARD.md", "docs/WALK.md", "docs/COMPARE.md")
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
README, RESULTS = TEXTS["README.md"], TEXTS["docs/RESULTS.md"]


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def commands(script):
    """[[argument, ...]] of the python and torchrun commands of a shell script, what they read from <<END left out."""
    script = re.sub(r"^python - << '(\w+)'$.*?^\1$", "", script.replace("\\\n", " "), flags=re.S | re.M)
    parts = (shlex.split(part, comments=True) for line in script.splitlines() for part in line.split("&&"))
    return [part for part in parts if part and part[0] in ("python", "torchrun")]


def main_of(arguments):
    """(what runs, its arguments) of a command: the main of a script or module. Anything else is None."""
    first, *rest = [a for a in arguments[1:] if not a.startswith("--nproc")]
    name = rest.pop(0) if first == "-m" else first.removesuffix(".py")
    if name == "pytest" or name.startswith("tests/"):
        return None, rest
    package = importlib.util.find_spec(name).submodule_search_locations          # its main is in __main__.py
    return importlib.import_module(name + ".__main__" if package else name).main, rest


def run(arguments, monkeypatch):
    main, arguments = main_of(arguments)
    monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(arguments)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with what a clone has beside its code."""
    for name in ("docs", "checkpoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# what trains takes hours, what it would do is printed in test_train.py; main_of is None for pytest itself
RUN = [c for c in map(tuple, commands("\n".join(blocks("bash")))) if c[1] != "train.py" and main_of(c)[0]]
INLINE = [c for text in TEXTS.values() for c in re.findall(r"`((?:python|torchrun) [^`]+)`", text)]
BLOCKS = [block for text in TEXTS.values() for language in ("sh", "bash") for block in blocks(language, text)]
ALL = commands("\n".join(INLINE + BLOCKS))


@pytest.mark.parametrize("command", RUN, ids=" ".join)
def test_a_command_of_the_readme_runs(command, folder, monkeypatch):
    cheap = ["--steps", "2", "--iters", "2", "--redraw", "0"] if command[1] == "sample.py" else []
    run([*command, *cheap], monkeypatch)
    if command[1] == "sample.py":
        assert Image.open(command[command.index("--out") + 1] if "--out" in command else "grid.png").width > 4 * 192


@lru_cache
def help_of(main):
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        main(["--help"])
    return out.getvalue()


@pytest.mark.parametrize("command", sorted(set(map(tuple, ALL))), ids=" ".join)
def test_a_command_has_the_flags_that_it_is_shown_with(command):
    if command[1].startswith("tests/"):
        assert (ROOT / command[1]).is_file()
    elif (main := main_of(command)[0]):
        flags = [re.sub(r"^--stage_\w+\.", "--stage_NAME.", a.split("=")[0]) for a in command[1:] if a.startswith("--")]
        assert [flag for flag in flags if not flag.startswith("--nproc")
                and not re.search(rf"(?<![\w-]){re.escape(flag)}\b", help_of(main))] == []


def test_python_example_prints_what_it_says(folder):
    [block] = blocks("python")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(block, {})
    assert out.getvalue().split() == re.findall(r"print\(.*?#\s*(\w+)\n", block) == ["red"]


def rows(text):
    """The rows of all Markdown tables in a text, as lists of cells without their padding."""
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines()
            if line.startswith("|") and not set(line) <= set("|- ")]


def row(text, *first):
    [found] = [cells for cells in rows(text) if tuple(cells[:len(first)]) == first]
    return found


def stored(name):
    return json.loads((ROOT / "docs" / f"{name}.json").read_text(encoding="utf-8"))["results"]


def section(text, title):
    return re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", text, re.S | re.M)[2]


def test_stage_table_is_the_preset():
    text, stages = section(README, "The stages"), Config.preset("nano").stages
    parts = {"KL-VAE": "vae.", "LLM": "llm.", "MAR": "mar.", "MAR, projectors": "mar.,proj_in.,proj_out.",
             "all but the VAE": "mar.,llm.,proj_in.,proj_out."}
    for name, stage in stages.items():
        [cells] = [cells for cells in rows(text) if cells[0].split()[0] == f"`{name}`"]
        assert [cells[4], cells[5], cells[6]] == [f"{stage.batch} : {stage.understanding_batch}", f"{stage.steps:,}",
                                                  f"{stage.lr:g}"]
        assert parts[cells[1]] == stage.train_parts
        assert cells[3].split()[0] == (str(stage.size) if stage.size else "-")
    assert [f"{stages[name].texts:g}" for name in "123"] == row(text, "`texts`")[1].split(", ")
    assert {stages[name].caption_drop for name in "23"} == {0.1} and "ten percent of the prompts are replaced" in text


def test_results_of_the_readme_are_those_of_the_shipped_checkpoint():
    text, direct = section(README, "Results"), stored("results_no_think")["geneval"]["seen"]
    found = stored("results") | stored("results_reading")
    seen, unseen = found["geneval"]["seen"], found["geneval"]["unseen"]
    for task in ("single_object", "two_object", "counting", "colors", "position", "color_attr", "overall"):
        assert row(text, task)[2:5] == [cell(seen[task]), cell(unseen.get(task)), cell(direct[task])]
    kinds = "color shape count relation where place what overall".split()
    seen, unseen = ({"existence": found["pope"][group]["adversarial"]["accuracy"], "caption": found["caption"][group]} |
                    {f"questions: {kind}": found["vqa"][group][kind] for kind in kinds} for group in ("seen", "unseen"))
    for name in seen:
        assert row(text, name)[2:4] == [cell(seen[name]), cell(unseen[name])]
    talk = stored("results_talking")
    shown = {"questions in other words": talk["phrases"]["questions, held out"],
             "requests in other words": talk["phrases"]["requests, held out"],
             "conversations of eight turns": talk["chat"]["turn"], "a part drawn anew": talk["edit"]}
    for name, rates in shown.items():
        assert row(text, name)[2] == cell(rates["overall"])
    assert row(text, "VAE reconstructions")[2] == cell(found["vae"]["right"])


def test_every_rate_shown_in_full_was_measured():
    def rates(found):
        return {cell(found)} if "rate" in found else set().union(*(rates(v) for v in found.values()
                                                                   if isinstance(v, dict)))
    assert report.tables(stored("results_talking")).strip() in RESULTS
    shown = [rate for part in ("Drawing", "Answering", "Talking")
             for rate in re.findall(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", section(RESULTS, part))]
    assert len(shown) > 150 and set(shown) <= set().union(*(rates(stored(p.stem)) for p in ROOT.glob("docs/results*.json")))


def test_probe_table_is_the_stored_one():
    text, found = section(RESULTS, "Probes"), stored("probe")
    header, *probes = rows(text)
    assert len(probes) == 9
    for name, *cells in probes:
        features, size = re.fullmatch(r"(.*), (\d+) px", name).groups()
        features = features.replace("encoder after ", "encoder stage_")
        entry = found[size][features if features in found[size] else features + ", mean"]
        assert cells == [cell(entry[column]) for column in header[1:]], name


@pytest.mark.parametrize("name", ["shared", "stages", "mar"])
def test_study_tables_are_the_stored_ones(name):
    results, shown = stored(f"study_{name}"), rows(RESULTS)
    for table in (study.table(results), study.table(study.against_first(results))):
        assert [cells for cells in rows(table) if cells not in shown] == []


def test_tables_of_the_comparison_are_the_stored_ones():
    assert [cells for cells in rows(tables(stored("compare"))) if cells not in rows(TEXTS["docs/COMPARE.md"])] == []


def test_checkpoint_is_small():
    files = {p.name: p.stat().st_size for p in (ROOT / "checkpoints" / "nano").iterdir()}
    assert set(files) == {"model.safetensors", "config.json", "tokenizer.json"} and files["model.safetensors"] <= 16e6


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#\s]+)", TEXTS[name]):
        assert target.startswith("http") or ((ROOT / name).parent / target).exists(), target
