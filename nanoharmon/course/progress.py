"""A student's path: what is done and what is next, and which hints were opened. Kept in exercises/progress.json.

A finished exercise is not run again until its function changes.
"""
import hashlib
import json
from contextlib import suppress

from ..files import write_json
from . import check, handout, tree
from .table import EXERCISES


def load():
    """{"hints": {id: how many were opened}, "done": {id: [digest, points]}}; what is damaged counts as nothing."""
    found = {}
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((handout.ROOT / "exercises/progress.json").read_text(encoding="utf-8"))
    hints, done = ((found.get(name) if isinstance(found, dict) else None) for name in ("hints", "done"))
    return {"hints": {e.id: hints[e.id] for e in EXERCISES if hints.get(e.id) in (1, 2, 3)}
            if isinstance(hints, dict) else {},
            "done": {e.id: done[e.id] for e in EXERCISES if isinstance(done.get(e.id), list) and len(done[e.id]) == 2
                     and done[e.id][1] in range(e.points + 1)} if isinstance(done, dict) else {}}


def save(state):
    if (handout.ROOT / "exercises").is_dir():                    # not in the repository itself
        write_json(handout.ROOT / "exercises/progress.json", state)


def digest(exercise):
    """A hash of what is tested, our file with the student's functions: what was right for it stays right."""
    files = check.student_files(exercise)
    return "" if isinstance(files, ValueError) else hashlib.sha256(files[exercise.file].encode()).hexdigest()[:16]


def exercises():
    """The exercises of this handout; in the repository itself, all."""
    return handout.manifest(handout.ROOT) if tree.is_handout() else list(EXERCISES)


def check_one(exercise, mine=False):
    """[Result] of an exercise; remembers what was earned."""
    results = check.run(exercise, check.student_files(exercise, mine=mine))
    if not mine and not check.was_busy(results):
        state = load()
        state["done"][exercise.id] = [digest(exercise), sum(r.earned for r in results)]
        save(state)
    return results


def earned(exercise):
    """The points of an exercise. Runs the tests if it was begun and has changed since its last check."""
    if not tree.begun(exercise, tree.PACKAGE):
        return 0
    seen, points = load()["done"].get(exercise.id, ["", 0])
    if seen and seen == digest(exercise):
        return points
    return sum(r.earned for r in check_one(exercise))


def path_table():
    """Print the path as a table: what is done, what is next, points."""
    ours, points, following = exercises(), {}, None
    print(f"{'':4}{'exercise':11}{'lab':7}{'points':>8}   {'minutes':>7}   what you write")
    for e in ours:
        points[e] = earned(e)
        done = points[e] == e.points
        if not done and following is None:
            following = e
        mark = "done" if done else "next" if e is following else "part" if points[e] else ""
        print(f"{e.number:02d}  {e.name:11}{e.lab:7}{points[e]:>4} /{e.points:>2}   {e.minutes:>7}   {mark:4}   "
              f"{e.title}", flush=True)
    print(f"{sum(points.values())} of {sum(e.points for e in ours)} points; " + ("all done" if following is None else
          f"next: exercises/{following.number:02d}.md, {following.file}, {' and '.join(following.functions)}"))


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
