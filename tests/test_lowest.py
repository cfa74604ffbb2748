"""The lowest versions that pyproject.toml declares have every name that the code uses.     pytest tests/test_lowest.py
`python tests/test_lowest.py`, with those versions installed, looks each name up, and writes lowest.txt."""
import ast
import importlib
import re
from importlib.metadata import version
from pathlib import Path

ROOT, LOOKED_UP = Path(__file__).parents[1], Path(__file__).with_name("lowest.txt")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PACKAGES = {"torch": "torch", "numpy": "numpy", "tokenizers": "tokenizers", "PIL": "pillow", "tqdm": "tqdm"}


def names_used(path):
    """{"torch.nn.Module", ...}: what a file takes from the packages: imports, and the attributes of what it imports."""
    tree, known, found = ast.parse(path.read_text(encoding="utf-8")), {}, set()
    for node in ast.walk(tree):
        module = getattr(node, "module", None) or ""
        if isinstance(node, ast.Import):
            known |= {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0]
                      for a in node.names}
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {a.asname or a.name: f"{module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", text := ast.unparse(node)):
            first, _, rest = text.partition(".")
            found |= {f"{known[first]}.{rest}"} if first in known else set()
    return {name for name in found | set(known.values()) if name.split(".")[0] in PACKAGES}


def look_up(name):
    """A module, or what a module or class holds. Raises ImportError or AttributeError."""
    try:
        return importlib.import_module(name)
    except ImportError:
        owner, _, last = name.rpartition(".")
        if not owner:
            raise
        return getattr(look_up(owner), last)


def all_names():
    files = [*(ROOT / "nanoharmon").rglob("*.py"), *ROOT.glob("*.py")]
    return sorted(set().union(*map(names_used, files)))


def declared():
    """["torch>=2.8", ...]"""
    return re.findall(r'"([\w.>=]+)"', re.search(r"dependencies = \[(.*?)\]", PYPROJECT, re.S)[1])


def test_every_name_was_there_in_the_lowest_versions():
    versions, *names = LOOKED_UP.read_text(encoding="utf-8").splitlines()
    for package, found in (entry.split(" ") for entry in versions.split(", ")):
        [lowest] = [d for d in declared() if d.startswith(f"{package}>=")]
        assert f"{found}.".startswith(lowest.split("=")[1] + "."), "run this file with the declared versions"
    assert len(declared()) == len(PACKAGES)
    new = set(all_names()) - set(names)
    assert not new, f"not looked up yet, run this file with the lowest versions: {sorted(new)}"


if __name__ == "__main__":
    for name in all_names():
        look_up(name)
    versions = ", ".join(f"{package} {version(package).split('+')[0]}" for package in PACKAGES.values())
    LOOKED_UP.write_text("\n".join([versions, *all_names()]) + "\n", encoding="utf-8")
    print(f"{versions}: all {len(all_names())} names are there")
