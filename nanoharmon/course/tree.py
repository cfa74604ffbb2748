"""Where code comes from when an exercise is run: a copy of the package with a student's function put into it.

The copy holds the reference's version of everything else, so that nobody is stuck, and neither the reference's version
of the function nor the tests: a check runs in a folder where there is nothing to copy from.

In a handout the reference lies in exercises/reference.zip. That is no secret (the repository is public); it is packed
so that nobody meets a solution by accident.
"""
import os
import re
import zipfile
from pathlib import Path

from . import cut

PACKAGE = Path(__file__).parents[1]                              # nanoharmon/
PACKED = "exercises/reference.zip"
TEACHERS = re.compile(r"course/(?!__init__|checks/)|course/checks/ex\d+\.py")   # the course, but what checks import


def sources(package):
    """{path beneath the package: text} of its modules, but of the course only what checks need."""
    found = {p.relative_to(package).as_posix(): p for p in sorted(package.rglob("*.py"))}
    return {name: p.read_text(encoding="utf-8") for name, p in found.items() if not TEACHERS.match(name)}


def reference():
    """`sources` of the solved code: this package's own, or in a handout the packed ones."""
    if not is_handout():
        return sources(PACKAGE)
    with zipfile.ZipFile(PACKAGE.parent / PACKED) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def is_handout():
    """Whether this code is a student's repository."""
    return (PACKAGE.parent / PACKED).is_file()


def pack(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)      # no dates: the same bytes always


def read(package, name):
    """The text of a student's file in their package. Raises ValueError that says what is wrong with it."""
    path = package / name
    if not path.is_file():
        raise ValueError(f"{path.name} is missing: it was deleted or renamed")
    if Path(os.path.realpath(path)) != Path(os.path.realpath(package.parent), package.name, name):
        raise ValueError(f"{path.name} is a link, expected the file itself")     # it may lead to the grader's own code
    try:
        return path.read_text(encoding="utf-8-sig")              # some editors put a mark in front
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path.name} cannot be read: {e}") from None


def begun(exercise, package):
    """Whether a student has changed at least one of the exercise's stubs. What cannot be read was changed."""
    try:
        text = read(package, exercise.file)
        return not all(cut.is_stub(text, f, exercise.file) for f in exercise.functions)
    except (ValueError, RecursionError):                         # a raise of something that is nested without end
        return True


def mixed(files, exercises, package):
    """`files` with the student's versions, from `package`, of the functions of some exercises. Raises ValueError."""
    files = dict(files)
    for exercise in exercises:
        text = read(package, exercise.file)
        files[exercise.file] = cut.transplant(files[exercise.file], text, exercise.functions, exercise.file)
    return files


def write(folder, files):
    """Write a package where it can be imported from."""
    for name, text in files.items():
        path = Path(folder) / "nanoharmon" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
