"""The exercises' tests:    python -m pytest -m ex07        python -m pytest        (the same as `check`)"""
from functools import lru_cache

import pytest

from nanoharmon.course import check, tree
from nanoharmon.course.handout import manifest

EXERCISES = manifest(tree.PACKAGE.parent)
TESTS = [pytest.param(e, test, id=f"{e.id}-{test.removeprefix('test_')}", marks=getattr(pytest.mark, e.id))
         for e in EXERCISES for test in check.points_of(check.check_text(e))]


@lru_cache
def results(exercise):
    return {result.test: result.failure for result in check.run(exercise, check.student_files(exercise))}


@pytest.mark.parametrize("exercise, test", TESTS)
def test_exercise(exercise, test):
    if (failure := results(exercise)[test]):
        pytest.fail(failure, pytrace=False)
