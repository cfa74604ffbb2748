"""A student's path: what is done and what is next, and which hints were opened. Kept in exercises/progress.json.

A finished exercise is not run again until its function changes.
"""
import hashlib
import json
from contextlib import suppress

from ..files import write_json
from . import check, cut, handout, tree


def load():
    with suppress(OSError, ValueError):
        found = json.loads((handout.ROOT / "exercises/progress.json").read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {"hints": {}, "done": {}} | found
    return {"hints": {}, "done": {}}


def save(state):
    if (handout.ROOT / "exercises").is_dir():                    # not in the repository itself
        write_json(handout.ROOT / "exercises/progress.json", state)


def digest(exercise):
    """Of the student's file: what was right for it stays right."""
    files = check.student_files(exercise)
    return "" if isinstance(files, ValueError) else hashlib.sha256(files[exercise.file].encode()).hexdigest()[:16]


def exercises():
    """Those of this handout; in the repository itself, all."""
    if tree.is_handout():
        return handout.manifest(handout.ROOT)["exercises"]
    return list(handout.EXERCISES)


def check_one(exercise, mine=False):
    """[Result] of an exercise; remembers what was earned."""
    results = check.run(exercise, check.student_files(exercise, mine=mine))
    if not mine:
        state = load()
        state["done"][exercise.id] = [digest(exercise), sum(r.earned for r in results)]
        save(state)
    return results


def earned(exercise):
    """Its points. Runs the tests if it was begun and has changed since its last check."""
    if not tree.begun(exercise, tree.PACKAGE):
        return 0
    seen, points = load()["done"].get(exercise.id, ["", 0])
    if seen and seen == digest(exercise):
        return points
    return sum(r.earned for r in check_one(exercise))


def path_table(show=print):
    """Print the path as a table."""
    ours, sum_earned, total, following = exercises(), 0, 0, None
    show(f"{'':4}{'exercise':11}{'lab':7}{'points':>8}   {'minutes':>7}   what you write")
    for exercise in ours:
        points = earned(exercise)
        done = points == exercise.points
        if not done and following is None:
            following = exercise
        mark = "done" if done else "next" if exercise is following else "part" if points else "    "
        show(f"{exercise.number:02d}  {exercise.name:11}{exercise.lab:7}{points:>4} /{exercise.points:>2}   "
             f"{exercise.minutes:>7}   {mark}   {exercise.title}")
        sum_earned, total = sum_earned + points, total + exercise.points
    show(f"{sum_earned} of {total} points" + (f"; next: exercises/{following.number:02d}.md, {following.file}, "
                                           f"{' and '.join(following.functions)}" if following else "; all done"))


def hint(exercise, number=None):
    """One of the three hints: that number, or the next that was not opened yet."""
    texts = handout.hints(handout.task(exercise))
    state = load()
    number = number or min(3, state["hints"].get(exercise.id, 0) + 1)
    state["hints"][exercise.id] = max(number, state["hints"].get(exercise.id, 0))
    save(state)
    rest = f"python -m nanoharmon.course hint {exercise.number:02d} {number + 1} opens the next" if number < 3 else \
        "that was the last"
    return f"hint {number} of 3 for {exercise.number:02d} {exercise.title}:\n\n{texts[number - 1]}\n\n({rest})"
