"""Write the student's repository: this one, with the bodies of the exercises' functions replaced by their tasks.

    python -m nanoharmon.course handout DIR [--lab see|draw|unify] [--only NAME,...]
    python -m nanoharmon.course solutions DIR        the same with all bodies in place, for the teacher

There is one true source, the working code. What a student gets is made of it here, never edited by hand.
"""
import ast
import hashlib
import json
import re
import shutil
from pathlib import Path

from . import cut, tree
from .table import EXERCISES, LABS

ROOT = tree.PACKAGE.parent
COPIED = ("train.py", "sample.py", "chat.py", "requirements.txt", "LICENSE", ".gitignore", "checkpoints/nano", "docs")
MANIFEST = "exercises/handout.json"
TASKS = Path(__file__).parent / "tasks"
TEMPLATES = Path(__file__).parent / "templates"
ENDINGS = {"see": "your code reads a picture: a table of questions and answers, seconds",
           "draw": "your code learns to draw single objects, and is judged: 9 minutes",
           "unify": "your model draws a prompt, seconds"}
SECTIONS = ("What it is for", "Task", "A tiny example", "Hints")


# --- the texts of an exercise -----------------------------------------------------------------------------------------

def task(exercise):
    """{section: text} of tasks/exNN.md. Raises ValueError when it has not the four sections and three hints."""
    path = TASKS / f"{exercise.id}.md"
    parts = re.split(r"^## (.+)\n", path.read_text(encoding="utf-8"), flags=re.M)
    found = {title.strip(): text.strip() for title, text in zip(parts[1::2], parts[2::2])}
    if tuple(found) != SECTIONS or not parts[0].startswith(f"# {exercise.number:02d} ") or len(hints(found)) != 3:
        raise ValueError(f"{path.name}: expected '# {exercise.number:02d} title', the sections {', '.join(SECTIONS)}, "
                         f"and three numbered hints")
    return found


def hints(found):
    return [" ".join(text.split()) for text in re.split(r"^\d\. ", found["Hints"], flags=re.M)[1:]]


def page(exercise):
    """exercises/NN.md: the task's text without its hints."""
    found, names = task(exercise), ", ".join(f"`{f}`" for f in exercise.functions)
    return "\n".join([
        f"# {exercise.number:02d} {exercise.title}", "",
        f"{names}\nin [{exercise.file}](../nanoharmon/{exercise.file}) · lab *{exercise.lab}* · "
        f"about {exercise.minutes} minutes · {exercise.points} points", "",
        *(f"## {name}\n\n{found[name]}\n" for name in SECTIONS[:3]), "## Commands", "",
        f"```sh\npython -m nanoharmon.course check {exercise.number:02d}    # or: python -m pytest -m {exercise.id}",
        f"python -m nanoharmon.course hint {exercise.number:02d}     # three hints, one at a time\n```", ""])


# --- the repository ---------------------------------------------------------------------------------------------------

def cut_all(files, exercises):
    """The package {path: text} with the exercises' functions replaced by their tasks."""
    files = dict(files)
    for exercise in exercises:
        first = exercise.functions[0]
        for function in exercise.functions:
            words = f"Exercise {exercise.number:02d}: {exercise.title}. " + (
                f"exercises/{exercise.number:02d}.md has an example.\n\n{task(exercise)['Task']}" if function == first
                else f"What to do is said in `{first}`.")
            files[exercise.file] = cut.stub(files[exercise.file], function, words,
                                            f"exercise {exercise.number:02d}: {function} is not done yet")
    return files


def version(files):
    """Eight digits that change when an exercise has another function, or a function other arguments."""
    heads = [[e.id, e.file, f, ast.unparse(cut.locate(ast.parse(files[e.file]), f).args)]
             for e in EXERCISES for f in e.functions]
    return hashlib.sha256(json.dumps(heads).encode()).hexdigest()[:8]


def write_handout(folder, exercises, solved=False):
    """Write a complete repository into a new folder. Raises ValueError when that is impossible."""
    folder = Path(folder)
    if missing := [name for name in COPIED if not (ROOT / name).exists()]:
        raise ValueError(f"{ROOT} has no {missing[0]}, expected a clone of the repository; run this in one")
    if (ROOT / MANIFEST).exists():
        raise ValueError(f"{ROOT} is a handout itself, expected the repository that it was made of; run this there")
    if folder.exists():
        raise ValueError(f"{folder} exists, expected a new folder; pass another DIR, or delete it")
    files = tree.reference()
    result = files if solved else cut_all(files, exercises)
    folder.mkdir(parents=True)
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, folder / name)
    (folder / "docs/TEACHING.md").unlink()                       # it has answers
    log = (folder / "docs/LOG.md").read_text(encoding="utf-8")   # and so have what it says of the open tasks
    answers = r"\n\|[^\n]*five-open-tasks[^\n]*|\n## [^\n]*Five open tasks.*?(?=\n## )"
    write(folder / "docs/LOG.md", re.sub(answers, "", log, flags=re.S))
    shutil.copytree(tree.PACKAGE, folder / "nanoharmon", ignore=shutil.ignore_patterns("__pycache__"))
    tree.write(folder, result)
    for name in "exercises", "tests", ".github/workflows":
        (folder / name).mkdir(parents=True)
    tree.pack(folder / tree.PACKED, files)
    for exercise in exercises:
        write(folder / "exercises" / f"{exercise.number:02d}.md", page(exercise))
        if solved:
            text = files[exercise.file]
            write(folder / "exercises/solutions" / f"{exercise.id}.py", "\n\n\n".join(
                "\n".join(cut.source(text, cut.locate(ast.parse(text), f), "")) for f in exercise.functions) + "\n")
    for path in TASKS.glob("open_*.md"):
        shutil.copy(path, folder / "exercises")
    write(folder / MANIFEST, json.dumps({"version": version(files), "exercises": [e.id for e in exercises]}, indent=1))
    marks = ",\n".join(f'    "{e.id}: {e.title}"' for e in exercises)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.pytest")[0]
    write(folder / "pyproject.toml", f'{project}[tool.pytest.ini_options]\ntestpaths = ["tests"]\npythonpath = ["."]\n'
                                     f"markers = [\n{marks},\n]\n")
    readme = (TEMPLATES / "README.md").read_text(encoding="utf-8")
    endings = [f"python -m nanoharmon.course {lab:13} # {what}" for lab, what in ENDINGS.items()
               if lab in {e.lab for e in exercises}]
    write(folder / "README.md", readme.format(first=exercises[0].number, endings="\n".join(endings),
                                              path=path_table(exercises)))
    whole = (ROOT / "README.md").read_text(encoding="utf-8")
    write(folder / "NANOHARMON.md", re.sub(r"^## Course\n.*?(?=^## )", "", whole, flags=re.M | re.S))
    shutil.copy(TEMPLATES / "test_exercises.py", folder / "tests")
    shutil.copy(TEMPLATES / "check.yml", folder / ".github/workflows")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def path_table(exercises):
    """Markdown: the exercises in their order, by lab."""
    lines = []
    for lab, motto in LABS.items():
        own = [e for e in exercises if e.lab == lab]
        lines += [f"### {lab}: {motto}", "",
                  "| exercise | what you write | file | minutes | points |", "|---|---|---|---|---|",
                  *(f"| [{e.number:02d} {e.name}](exercises/{e.number:02d}.md) | {e.title} | "
                    f"[{e.file}](nanoharmon/{e.file}) | {e.minutes} | {e.points} |" for e in own), ""] if own else []
    return "\n".join(lines).strip()


# --- what a folder is -------------------------------------------------------------------------------------------------

def manifest(folder):
    """The exercises of a student's folder, by its handout.json. Raises ValueError unless it is a handout that this
    repository has written."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        written, names = found["version"], list(found["exercises"])
    except FileNotFoundError:
        raise ValueError(f"{folder} is no handout, it has no {MANIFEST}; put it back, or pass a DIR that `handout` "
                         f"wrote") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} cannot be read, expected the file that `handout` wrote; put it back") from None
    if written != (ours := version(tree.reference())):
        raise ValueError(f"{folder} is a handout of version {str(written)[:20]}, this is version {ours}; grade it with "
                         f"the nanoharmon that wrote it")
    if not (exercises := [e for e in EXERCISES if e.id in names]):
        raise ValueError(f"{path} names no exercise, expected the file that `handout` wrote; put it back")
    return exercises
