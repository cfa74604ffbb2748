"""Grade a student's folder: our tests, our copy of everything that is not the exercise's function.

    python -m nanoharmon.course grade DIR [--out results.json] [--secret N] [--table course.json] [--submitted TIME]

course.json (all of it optional):
    {"due": ["see", "09", "reverse"],                            # labs and exercises that count; default: the handout's
     "points": {"07": 10},                                       # instead of table.py's
     "late": {"deadline": "2026-12-01T23:59:00+00:00", "percent_per_day": 10, "most_percent": 50}}       # default: none

results.json is Gradescope's: score, max_score, output, visibility, tests, leaderboard. It is written whatever a student
handed in, and says what is wrong. What is wrong in the teacher's flags or files, or with a machine that has no time
to start torch, is an error, and no student's zero.
"""
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

from ..arguments import cores
from ..files import advising, read_json
from . import check, handout
from .table import EXERCISES, LABS, find


def read_table(path):
    """{"points": {exercise: worth}, "due": [exercise] or None, "late": rules or None} of a course.json, or without one.
    Raises ValueError that says what is wrong in it."""
    if path is not None and not Path(path).is_file():
        raise ValueError(f"{path}: no such file; pass another --table")
    with advising("mend it, or leave out --table"):
        found = {} if path is None else read_json(path)
    if unknown := set(found) - {"due", "points", "late"}:
        raise ValueError(f"{path} has {', '.join(sorted(unknown))}, expected due, points and late; mend that --table")
    points, late, names = found.get("points", {}), found.get("late"), found.get("due", [*LABS])
    if not isinstance(points, dict) or not all(is_number(p) for p in points.values()):
        raise ValueError(f"{path}: points is {points!r:.60}, expected {{\"07\": 10}}; mend that --table")
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: due is {names!r:.60}, expected a list of labs and exercises; mend that --table")
    if late is not None and (not isinstance(late, dict) or set(late) != {"deadline", "percent_per_day", "most_percent"}
                             or not is_number(late["percent_per_day"]) or not is_number(late["most_percent"])):
        raise ValueError(f"{path}: late is {late!r:.60}, expected deadline, percent_per_day and most_percent; mend "
                         f"that --table")
    if late is not None:
        moment(late["deadline"], f"{path}: deadline", "--table")
    try:
        points = {find(name): worth for name, worth in points.items()}
        wanted = [name if name in LABS else find(name) for name in map(str, names)]
    except ValueError as e:
        raise ValueError(f"{path}: {e}; mend that --table") from None
    return {"points": points, "late": late,
            "due": [e for e in EXERCISES if e in wanted or e.lab in wanted] if "due" in found else None}


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def moment(text, what, flag):
    """An ISO time; without a zone it is UTC."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        raise ValueError(f"{what} is {str(text)[:40]!r}, expected a time such as 2026-12-01T23:59:00+00:00; change "
                         f"{flag}") from None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def late_share(late, submitted):
    """The share of points that is taken off, from 0 to 1: for each day that has begun after the deadline."""
    if not late:
        return 0.0
    days = math.ceil((submitted - moment(late["deadline"], "deadline", "--table")).total_seconds() / 86400)
    return min(max(0, days) * late["percent_per_day"], late["most_percent"], 100) / 100


def grade(folder, secret="0", table=None, submitted=None, progress=lambda found, total: found):
    """Gradescope's results as a dict. Never fails because of what a student handed in: `output` says what is wrong.

    The student's handout.json is needed only when the table does not say what is due. Without both there is nothing to
    grade: no tests, no points. Raises ValueError when there is no such folder, or the table or the time is wrong.
    progress: a bar around an iterator over `total` exercises.
    """
    settings, folder, wrong = read_table(table), Path(folder), ""
    now = moment(submitted, "time", "--submitted") if submitted else datetime.now(timezone.utc)
    off = late_share(settings["late"], now)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder, expected that of a student; pass another DIR")
    inner = [p for p in folder.iterdir() if (p / "nanoharmon").is_dir() and not p.is_symlink()]
    if len(inner) == 1 and not (folder / "nanoharmon").exists():           # a zip of the folder, not of what is in it
        folder = inner[0]
    try:
        ours = handout.manifest(folder)
    except ValueError as e:
        ours, wrong = [], f"; {e}"
    exercises = settings["due"] or ours

    def one(exercise):
        results = check.run(exercise, check.student_files(exercise, folder / "nanoharmon"), secret, quiet=True)
        if check.was_busy(results):
            raise ValueError(f"exercise {exercise.number:02d}: {results[0].failure}")
        return results
    with ThreadPoolExecutor(min(2, cores())) as pool:          # each thread waits for a process of its own
        found = list(progress(pool.map(one, exercises), len(exercises)))
    tests, score, most, done = [], 0.0, 0.0, 0
    for exercise, results in zip(exercises, found):
        worth = settings["points"].get(exercise, exercise.points)
        earned = worth * sum(r.earned for r in results) / exercise.points
        first = next((r for r in results if r.failure), None)
        tests.append({"name": f"{exercise.number:02d} {exercise.title}", "number": exercise.id,
                      "score": round(earned * (1 - off), 2), "max_score": worth, "visibility": "visible",
                      "output": f"{first.test.removeprefix('test_')}: {first.failure}" if first else "passed"})
        score, most, done = score + tests[-1]["score"], most + worth, done + (first is None)
    words = f"{done} of {len(tests)} exercises done" if tests else "nothing was graded"
    return {"score": round(score, 2), "max_score": most, "visibility": "visible", "tests": tests,
            "output": words + (f"; {100 * off:g} % off, handed in late" if off else "") + wrong,
            "leaderboard": [{"name": "points", "value": round(score, 2), "order": "desc"},
                            {"name": "exercises", "value": done, "order": "desc"}]}


def show(results):
    """A table of the results, with the first useful failure of each exercise."""
    for t in results["tests"]:
        output = "" if t["output"] == "passed" else f"   {t['output'][:200]}"
        print(f"{t['score']:>6g} /{t['max_score']:>3g}   {t['name']}{output}")
    print(f"{results['score']:>6g} /{results['max_score']:>3g}   {results['output']}")
