"""Built as a wheel, the package runs among other people's files.     python -m pytest -q tests/test_install.py"""
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = ["evaluate", "probe", "convert", "data", "bench", "evals.study", "evals.contrast", "evals.featuremap",
            "training.memory", "course", "figures"]
DECOY = "open(__file__ + '.ran', 'w').close()\n"             # what happens to be called train.py where the user works
SCRIPT = """
import contextlib, io, runpy, sys
from nanoharmon import Pipeline
print(sys.modules["nanoharmon"].__file__)
for name in sys.argv[1:]:
    out, sys.argv = io.StringIO(), [name, "--help"]
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    print(name, "usage:" in out.getvalue() and "--help" in out.getvalue())
from nanoharmon.pipeline import load_pipeline
try:
    load_pipeline(None)
except ValueError as e:
    print(e)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed package: out of a wheel where setuptools is there, else the files themselves."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "nanoharmon", source / "nanoharmon", ignore=shutil.ignore_patterns("__pycache__"))
    if importlib.util.find_spec("setuptools"):
        for name in "pyproject.toml", "README.md", "LICENSE":
            shutil.copy(ROOT / name, source)
        build = "from setuptools import build_meta; build_meta.build_wheel('.')"
        subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=300)
        with zipfile.ZipFile(next(source.glob("*.whl"))) as wheel:
            wheel.extractall(site)
    else:
        shutil.copytree(source / "nanoharmon", site / "nanoharmon")
    return site


def test_all_modules_are_installed_and_nothing_else(site):
    def modules(folder):
        return {p.relative_to(folder) for p in (folder / "nanoharmon").rglob("*.py")}
    assert modules(site) == modules(ROOT) and {p.name for p in (site / "nanoharmon/course/tasks").iterdir()} == {
        p.name for p in (ROOT / "nanoharmon/course/tasks").iterdir()}
    assert {p.name.split("-")[0] for p in site.iterdir()} == {"nanoharmon"}


def test_commands_run_from_another_folder_and_leave_its_files_alone(site, tmp_path):
    for name in "train.py", "sample.py", "chat.py", "config.py", "data.py":
        (tmp_path / name).write_text(DECOY, encoding="utf-8")
    names = ["nanoharmon", *(f"nanoharmon.{name}" for name in COMMANDS)]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *names], cwd=tmp_path, capture_output=True, encoding="utf-8",
                          timeout=300, env={**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    where, *lines, no_checkpoint = done.stdout.splitlines()
    assert Path(where).parent.parent == site and lines == [f"{name} True" for name in names]
    assert str(site) in no_checkpoint and "pass --ckpt DIR" in no_checkpoint
    assert len(list(tmp_path.iterdir())) == 5                # no decoy ran, nothing was written
    code = "import sys, sample; assert 'torch' not in sys.modules"               # --help takes no second
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
