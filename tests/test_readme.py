"""README and docs say what is so: commands run, flags and files exist, tables are those of the code and of the results.

    python -m pytest -q tests/test_readme.py

Commands run in this process, with little drawn: starting Python and torch anew for each would take most of the time.
"""
import contextlib
import importlib
import io
import json
import re
import shlex
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
from PIL import Image

from nanoharmon.evals import study, sweep
from nanoharmon.pipeline import Pipeline
from nanoharmon.training.recipe import Config

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "docs/RESULTS.md", "docs/HARDWARE.md", "docs/DATA.md", "docs/WEIGHTS.md")
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
    return importlib.import_module(name + ".__main__" if name == "nanoharmon" else name).main, rest


def run(arguments, monkeypatch, text="/quit\n"):
    """Run a command here; its output."""
    main, arguments = main_of(arguments)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
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


# --- commands ---------------------------------------------------------------------------------------------------------

# what trains takes hours, what it would do is printed in test_train.py; main_of is None for pytest itself
RUN = [c for c in map(tuple, commands("\n".join(blocks("bash")))) if c[1] != "train.py" and main_of(c)[0]]
INLINE = [c for text in TEXTS.values() for c in re.findall(r"`((?:python|torchrun) [^`]+)`", text)]
BLOCKS = [block for text in TEXTS.values() for language in ("sh", "bash") for block in blocks(language, text)]
ALL = commands("\n".join(INLINE + BLOCKS))


@pytest.mark.parametrize("command", RUN, ids=" ".join)
def test_a_command_of_the_readme_runs(command, folder, monkeypatch):
    cheap = ["--steps", "5", "--iters", "9"] if command[1] == "sample.py" else []
    said = run([*command, *cheap], monkeypatch)
    if command[1] == "sample.py":
        assert Image.open(command[command.index("--out") + 1] if "--out" in command else "grid.png").width > 4 * 192
    if "what color is the ring?" in command:
        assert said.split()[-1] in ("red", "green", "blue", "yellow", "purple", "orange", "white")


def test_the_benchmark_command_runs(folder, monkeypatch):
    [command] = [c for c in commands("\n".join(blocks("sh", RESULTS))) if "geneval,vae,pope,vqa,caption" in c]
    cheap = ["--n", "1", "--images-per-prompt", "1", "--steps", "3", "--iters", "4", "--procs", "1", "--out", "here"]
    assert "color_attr" in run([*command, *cheap], monkeypatch) and (folder / "here" / "results.json").exists()


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
        unknown = [a for a in command[1:] if a.startswith("--") and not a.startswith("--nproc")
                   and not re.search(rf"(?<![\w-]){re.escape(a.split('=')[0])}\b", help_of(main))]
        assert not unknown


def test_settings_that_are_named_are_flags_of_train():
    known = set(re.findall(r"--[\w.]+", help_of(main_of(["python", "train.py"])[0])))
    for name, text in TEXTS.items():
        for flag in re.findall(r"--(?:optim|data|stage_\w+|mar|llm|vae)\.\w+", text):
            assert flag.replace("stage_NAME", "stage_1") in known, (name, flag)


def test_python_example_prints_what_it_says(folder, monkeypatch):
    [block] = blocks("python")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(block, space := {})
    assert out.getvalue().split() == re.findall(r"print\(.*?#\s*(\w+)\n", block) == ["red"]
    shapes = [str(tuple(value.shape)) for name in re.search(r"^(.+) = pipe.features", block, re.M)[1].split(", ")
              for value in [space[name]]]
    assert all(shape in block for shape in shapes)


def test_walk_through_with_real_pictures(folder, monkeypatch):
    """All of it but the download, here three made-up pictures, and the training."""
    entries = [{"image": "a.png", "name": "TIGER", "category": "Animals & Nature", "subcategory": "animal-mammal"},
               {"image": "b.png", "name": "TACO", "category": "Food & Drink", "subcategory": "food-prepared"},
               {"image": "c.png", "name": "KEYCAP 1", "category": "Symbols", "subcategory": "keycap"}]
    for name in ("package", "emoji"):
        (folder / name).mkdir()
    (folder / "package" / "emoji.json").write_text(json.dumps(entries), encoding="utf-8")
    for entry in entries:
        Image.new("RGBA", (64, 64)).save(folder / "emoji" / entry["image"])
    [script] = [block for block in blocks("sh", TEXTS["docs/DATA.md"]) if "npm pack" in block]
    exec(re.search(r"<< 'END'\n(.*?)^END$", script, re.S | re.M)[1], {})
    [look] = [c for c in commands(script) if "nanoharmon.data" in c]
    said = run(look, monkeypatch)
    assert "emoji: 2 entries, 2 pictures; 0 entries broken" in said and "texts: 2," in said and "labels: 2;" in said
    assert (folder / "emoji.png").exists()


# --- tables -----------------------------------------------------------------------------------------------------------

def rows(text):
    """The rows of all Markdown tables in a text, as lists of cells without their padding."""
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines()
            if line.startswith("|") and not set(line) <= set("|- ")]


def row(text, *first):
    [found] = [cells for cells in rows(text) if tuple(cells[:len(first)]) == first]
    return found


def percent(rate):
    return f"{100 * rate['rate']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]" if rate else ""


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
    late = [stages[name] for name in "23"]
    assert {s.caption_drop for s in late} == {0.1} and "ten percent of the prompts are dropped" in text
    assert row(text, "`thoughts`", *{f"{s.thoughts:g}" for s in late})
    assert row(text, "`understanding_weight`", *{f"{stages[name].understanding_weight:g}" for name in "123"})
    for setting in ("hide_all", "pairs"):
        assert row(text, f"`{setting}`", ", ".join(f"{getattr(stages[name], setting):g}" for name in "123"))


def test_results_of_the_readme_are_those_of_the_shipped_checkpoint():
    text, found, direct = section(README, "Results"), stored("results"), stored("results_no_think")["geneval"]["seen"]
    seen, unseen = found["geneval"]["seen"], found["geneval"]["unseen"]
    for task in ("single_object", "two_object", "counting", "colors", "position", "color_attr", "overall"):
        assert row(text, task)[2:5] == [percent(seen[task]), percent(unseen.get(task)), percent(direct[task])]
    seen, unseen = ({f"existence, {s}": found["pope"][group][s]["accuracy"] for s in found["pope"][group]} |
                    {f"questions: {k}": found["vqa"][group][k] for k in "color shape count relation overall".split()} |
                    {"caption": found["caption"][group]} for group in ("seen", "unseen"))
    for name in seen:
        assert row(text, name)[2:4] == [percent(seen[name]), percent(unseen[name])]
    assert row(text, "VAE reconstructions")[2] == percent(found["vae"]["right"])


def test_results_in_full_are_those_of_the_shipped_checkpoint():
    """Every rate with an interval is one that was measured, and the rows about drawing are the right ones."""
    def rates(found):
        return {percent(found)} if "rate" in found else set().union(*(rates(v) for v in found.values()
                                                                      if isinstance(v, dict)))
    thinking, direct = stored("results"), stored("results_no_think")
    text = section(RESULTS, "Drawing")
    shown = re.findall(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", text + section(RESULTS, "Answering"))
    assert len(shown) > 90 and set(shown) <= rates(thinking) | rates(direct)
    text, wrong = text.split("| seen pairs |")
    header, *wrong = rows("| seen pairs |" + wrong)
    for task, way, total, *counts in wrong:
        found = (thinking if way == "thinking first" else direct)["geneval"]["seen"]
        assert total == f"{found[task]['n'] - found[task]['right']} of {found[task]['n']}"
        assert dict(zip(header[3:], map(int, counts))) == dict.fromkeys(header[3:], 0) | found["reasons"][task]
    text = text.split("| of single objects")[0]
    for group, end in (("seen", ""), ("unseen", ", unseen")):
        said = thinking["geneval"][group]["words"]
        for task in said:
            assert row(text, task + end)[1:4] == [percent(x[task]) for x in (thinking["geneval"][group], said,
                                                                             direct["geneval"][group])]


def test_probe_table_is_the_stored_one():
    text, found = section(RESULTS, "Probes"), stored("probe")
    header, *probes = rows(text)
    assert len(probes) == 9
    for name, *cells in probes:
        features, size = re.fullmatch(r"(.*), (\d+) px", name).groups()
        features = features.replace("encoder after ", "encoder stage_")
        entry = found[size][features if features in found[size] else features + ", mean"]
        assert cells == [percent(entry[column]) for column in header[1:]], name


@pytest.mark.parametrize("name", ["shared", "stages", "mar"])
def test_study_tables_are_the_stored_ones(name):
    results, shown = stored(f"study_{name}"), rows(RESULTS)
    for table in (study.table(results), study.table(study.against_first(results))):
        assert [cells for cells in rows(table) if cells not in shown] == []


def test_the_sampling_table_is_the_stored_one_and_of_the_shipped_checkpoint(tmp_path, monkeypatch):
    shutil.copy(ROOT / "docs" / "study_sampling.json", tmp_path / "sampling.json")
    monkeypatch.setattr(sweep, "draw_sweeps", lambda *_: None)
    pipe = Pipeline.load(ROOT / "checkpoints" / "nano")
    pipe.draw = lambda *_, **__: pytest.fail("a point is missing")
    printed, shown = rows(sweep.table(sweep.sampling(pipe, tmp_path, procs=1))), rows(section(RESULTS, "How to sample"))
    assert [[c.replace("[ ", "[") for c in cells] for cells in printed] == shown


# --- files, words and size --------------------------------------------------------------------------------------------

def test_checkpoint_is_small():
    files = {p.name: p.stat().st_size for p in (ROOT / "checkpoints" / "nano").iterdir()}
    assert set(files) == {"model.safetensors", "config.json", "tokenizer.json"} and files["model.safetensors"] <= 16e6


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], target


@pytest.mark.parametrize("name", NAMES)
def test_code_that_is_named_exists(name):
    files = ["/" + str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if ".git" not in p.parts]
    for path in re.findall(r"[\w/]+\.py\b", TEXTS[name]):
        assert any(file.endswith("/" + path.removeprefix("/")) for file in files), path


def test_reading_order_is_the_core():
    table = rows(section(README, "Reading order"))[1:]
    order = [re.search(r"\(nanoharmon/(\w+)\.py\)", cells[0])[1] for cells in table]
    assert order == "config tokenizer attention vae diffusion diffloss mar qwen harmon".split()


def test_readme_stays_short():
    lines = README.splitlines()
    assert len(lines) <= 220 and len(README.split()) <= 2600
    assert len(re.findall(r"^- ", section(README, "Glossary"), re.M)) <= 14
    for name, text in TEXTS.items():
        long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "!["))]
        assert not long, name


@pytest.mark.parametrize("name", NAMES)
def test_no_old_names(name):
    """Commands, flags and files as they were called once, and hosts of package registries."""
    old = (r"nanoharmon\.(contrast|memory|quality|featuremap|language|shapes|study|sweep)\b|--study\b|--parity\b|"
           r"draw_batch|read_batch|read_weight|Pipeline\.plan|[^/(\[]LOG\.md|tests/kill|"
           r"registry\.|pypi\.|npmjs|download\.pytorch")
    assert [m[0] for m in re.finditer(old, TEXTS[name])] == []
