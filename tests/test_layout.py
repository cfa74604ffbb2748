"""The map of the repository: who may import whom, how long things are.     python -m pytest -q tests/test_layout.py"""
import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = "config tokenizer attention vae diffusion diffloss mar qwen harmon".split()
WINGS = {p.parent.name for p in (ROOT / "nanoharmon").glob("*/__init__.py")}
SCRIPTS = {"train", "sample", "chat"}
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / "nanoharmon").rglob("*.py")}


def imports(name):
    """The modules of this repository that a module imports, at its top or anywhere inside."""
    package, found = name.split(".")[:-1], set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            base = ".".join(base + (node.module.split(".") if node.module else []))
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {m for m in found if m in MODULES or m.split(".")[0] in SCRIPTS}


def wing(name):
    part = name.split(".")[1] if name.count(".") > 1 else ""
    return part if part in WINGS else ""


def test_no_import_goes_in_a_circle():
    graph = {name: imports(name) for name in MODULES if name != "nanoharmon.__init__"}
    graphlib.TopologicalSorter(graph).prepare()                      # CycleError names the circle


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_what_its_place_allows(name):
    others = imports(name)
    assert not wing(name) or not name.endswith("__init__") or not lines(MODULES[name]), "wings re-export nothing"
    assert not {m.split(".")[0] for m in others} & SCRIPTS, "nothing in the package imports a script"
    if name.removeprefix("nanoharmon.") in CORE:
        assert all(m.removeprefix("nanoharmon.") in CORE for m in others), others
    if wing(name) == "world":
        assert not {wing(m) for m in others} & {"training", "evals"}, others
    if wing(name) == "weights":
        assert not {wing(m) for m in others} & {"training", "evals", "world"}, others


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_what_people_read_stays_short():
    assert sum(lines(MODULES[f"nanoharmon.{name}"]) for name in CORE) <= 1700
    long = {str(p.relative_to(ROOT)): n for p in [*MODULES.values(), *ROOT.glob("*.py")] if (n := lines(p)) > 350}
    assert not long
    # the solutions that prove the course's checks are data, not read from top to bottom
    assert sum(lines(p) for p in (ROOT / "tests").rglob("*.py") if p.parent.name != "course") <= 7958
    assert lines(ROOT / "README.md") <= 220 and len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 2600


def test_text_files_name_their_encoding():                   # on Windows, the usual one is not UTF-8
    for path in [*MODULES.values(), *ROOT.glob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for node in (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
            name, given = getattr(node.func, "attr", getattr(node.func, "id", "")), {k.arg for k in node.keywords}
            if name in ("read_text", "write_text") or "text" in given or \
                    isinstance(node.func, ast.Name) and name == "open" and "b'" not in ast.unparse(node):
                assert "encoding" in given, f"{path}:{node.lineno}: {ast.unparse(node)}"
