"""Grade a student's folder: our tests, our copy of everything that is not the exercise's function.

    python -m nanoharmon.course grade DIR [--out results.json] [--secret N] [--table course.json] [--submitted TIME]

course.json (all of it optional):
    {"due": ["see", "09", "reverse"],                            # labs and exercises that count; default: the handout's
     "points": {"07": 10},                                       # instead of table.py's
     "late": {"deadline": "2026-12-01T23:59:00+00:00", "percent_per_day": 10, "most_percent": 50}}       # default: none

results.json is Gradescope's: score, max_score, output, visibility, tests, leaderboard.
"""
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

from . import check, handout
from .table import EXERCISES, LABS, find


def read_table(path):
    """The settings of a course.json. Raises ValueError that says what is wrong in it."""
    if path is None:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; pass another --table") from None
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} is no JSON file ({e}); mend it, or leave out --table") from None
    if not isinstance(found, dict) or (unknown := set(found) - {"due", "points", "late"}):
        raise ValueError(f"{path} has {', '.join(sorted(unknown)) if isinstance(found, dict) else 'no object'}, "
                         f"expected due, points and late; mend that --table")
    points, late = found.get("points", {}), found.get("late")
    if not isinstance(points, dict) or not all(is_number(p) for p in points.values()):
        raise ValueError(f"{path}: points is {points!r:.60}, expected {{\"07\": 10}}; mend that --table")
    if not isinstance(found.get("due", []), list):
        raise ValueError(f"{path}: due is {found['due']!r:.60}, expected a list of labs and exercises; mend that "
                         f"--table")
    if late is not None and (not isinstance(late, dict) or set(late) != {"deadline", "percent_per_day", "most_percent"}
                             or not is_number(late["percent_per_day"]) or not is_number(late["most_percent"])):
        raise ValueError(f"{path}: late is {late!r:.60}, expected deadline, percent_per_day and most_percent; mend "
                         f"that --table")
    if late is not None:
        moment(late["deadline"], f"{path}: deadline", "--table")
    return {**found, "points": {find(str(name)): worth for name, worth in points.items()}}


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def moment(text, what, flag):
    """An ISO time; without a zone it is UTC."""
    try:
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"{what} is {str(text)[:40]!r}, expected a time such as 2026-12-01T23:59:00+00:00; change "
                         f"{flag}") from None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def due(table, ours):
    """The exercises that count: those that the table names, else those of the handout."""
    if "due" not in table:
        return ours
    names = [str(name) for name in table["due"]]
    wanted = {e for name in names for e in (EXERCISES if name in LABS else [find(name)])
              if name not in LABS or e.lab == name}
    return [e for e in EXERCISES if e in wanted]


def late_share(late, submitted):
    """The share of points that is taken off, from 0 to 1: for each day that has begun after the deadline."""
    if not late:
        return 0.0
    days = math.ceil((submitted - moment(late["deadline"], "deadline", "--table")).total_seconds() / 86400)
    return min(max(0, days) * late["percent_per_day"], late["most_percent"], 100) / 100


def grade(folder, secret="0", table=None, submitted=None, progress=lambda n: None):
    """Gradescope's results as a dict. Never fails because of what a student's code does.

    Raises ValueError when the folder is no handout, or the table is wrong.
    """
    settings = read_table(table)
    inner = [p for p in Path(folder).iterdir() if p.is_dir()] if Path(folder).is_dir() else []
    if len(inner) == 1 and (inner[0] / handout.MANIFEST).is_file():        # a zip of the folder, not of what is in it
        folder = inner[0]
    exercises = due(settings, handout.manifest(folder)["exercises"])
    if not exercises:
        raise ValueError(f"{table or folder}: no exercise is due, expected some; mend --table, or handout.json")
    now = moment(submitted, "time", "--submitted") if submitted else datetime.now(timezone.utc)
    off = late_share(settings.get("late"), now)

    def one(exercise):
        results = check.run(exercise, check.student_files(exercise, Path(folder) / "nanoharmon"), secret, quiet=True)
        progress(1)
        return results
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:          # each thread waits for a process of its own
        found = list(pool.map(one, exercises))
    tests, score, most, done = [], 0.0, 0.0, 0
    for exercise, results in zip(exercises, found):
        worth = settings.get("points", {}).get(exercise, exercise.points)
        earned = worth * sum(r.earned for r in results) / exercise.points
        first = next((r for r in results if r.failure), None)
        tests.append({"name": f"{exercise.number:02d} {exercise.title}", "number": exercise.id,
                      "score": round(earned * (1 - off), 2), "max_score": worth, "visibility": "visible",
                      "output": f"{first.test.removeprefix('test_')}: {first.failure}" if first else "passed"})
        score, most, done = score + tests[-1]["score"], most + worth, done + (first is None)
    words = f"{done} of {len(tests)} exercises done"
    return {"score": round(score, 2), "max_score": most, "visibility": "visible", "tests": tests,
            "output": words + (f"; {100 * off:g} % off, handed in late" if off else ""),
            "leaderboard": [{"name": "points", "value": round(score, 2), "order": "desc"},
                            {"name": "exercises", "value": done, "order": "desc"}]}


def show(results):
    """A table of the results, with the first useful failure of each exercise."""
    for t in results["tests"]:
        output = "" if t["output"] == "passed" else f"   {t['output'][:200]}"
        print(f"{t['score']:>6g} /{t['max_score']:>3g}   {t['name']}{output}")
    print(f"{results['score']:>6g} /{results['max_score']:>3g}   {results['output']}")
