"""The course: what is handed out is cut from the real code, its checks are right, and grading survives everything.

    python -m pytest -q tests/test_course.py
    python -m pytest -q tests/test_course.py -m stress           the proof in full: every solution of every exercise
"""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

from nanoharmon.course import check, cut, handout, tree
from nanoharmon.course.table import EXERCISES, LABS, chosen, find

ROOT = Path(__file__).parents[1]
WRITTEN = [e for e in EXERCISES if (ROOT / "tests/course" / f"{e.id}.py").exists()]


def test_the_table_names_functions_of_the_code():
    files = tree.reference()
    for e in EXERCISES:
        places = [cut.locate(ast.parse(files[e.file]), f).lineno for f in e.functions]
        assert places == sorted(places) and e.lab in LABS and e.minutes > 0
    assert sum(e.points for e in EXERCISES) == 100 and len({(e.file, f) for e in EXERCISES for f in e.functions}) == 35
    assert len({e.name for e in EXERCISES}) == 23 and chosen("see", "7,rope") == [find("05"), find("ex07")]


@pytest.mark.parametrize("exercise", WRITTEN, ids=lambda e: e.id)
def test_task_and_checks_are_complete(exercise):
    assert len(handout.hints(handout.task(exercise))) == 3
    points = check.points_of(check.check_source(exercise))
    assert sum(points.values()) == exercise.points and 2 <= len(points) <= 5
    assert max(map(len, handout.page(exercise).splitlines())) <= 120


@pytest.mark.stress
@pytest.mark.parametrize("exercise", WRITTEN, ids=lambda e: e.id)
def test_right_solutions_earn_everything_and_wrong_ones_are_caught(exercise):
    done = subprocess.run([sys.executable, str(ROOT / "tests/course/prove.py"), exercise.id], capture_output=True,
                          encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stdout
