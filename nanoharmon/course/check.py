"""Run the tests of one exercise in a process of its own, and say what they found.

A hang, a crash, `sys.exit` or endless output of the code under test costs the test in which it happens. The tests after
it are run in a new process, while the exercise has time left.
"""
import ast
import hashlib
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import tree

HERE = Path(__file__).parent
TEST, EXERCISE = 20, 90                  # seconds: of one test, of an exercise
BUSY = "torch was not there after"                              # no failure of the student: not remembered, no points
START = 120                              # of importing torch, before a student's code runs: longer on a busy machine
GIGABYTES = 4
MOST_OUTPUT = 20_000_000                 # bytes that a solution may print when it is graded
SEEDS = 2                                # inputs per test


@dataclass
class Result:
    test: str
    points: float
    failure: str | None                  # None = passed

    @property
    def earned(self):
        return 0 if self.failure else self.points


def was_busy(results):
    return any((r.failure or "").startswith(BUSY) for r in results)


def check_text(exercise):
    return (HERE / "checks" / f"{exercise.id}.py").read_text(encoding="utf-8")


def points_of(text):
    """{test: points} of a check, read without running it."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "POINTS":
            return ast.literal_eval(node.value)
    raise ValueError("a check has no POINTS = {test: points}")


def seeds(exercise, test, secret):
    """The inputs of a test depend on the secret: a table of the answers for one is worth nothing for another."""
    digests = (hashlib.sha256(f"{secret}/{exercise.id}/{test}/{i}".encode()).digest() for i in range(SEEDS))
    return [int.from_bytes(digest[:4], "big") // 2 for digest in digests]


def student_files(exercise, package=tree.PACKAGE, mine=False):
    """The package to check an exercise in: the reference with the student's functions of this exercise put into it, or
    with `mine` their package as it is. A ValueError, returned, says what is wrong with their file."""
    try:
        if not tree.begun(exercise, package):
            return ValueError(f"exercise {exercise.number:02d} is not done yet")     # no process is needed to see it
        return tree.sources(package) if mine else tree.mixed(tree.reference(), [exercise], package)
    except ValueError as e:
        return e


def run(exercise, files, secret="public", quiet=False):
    """The exercise's tests against a package {path: text}. Returns [Result]. quiet: what the code prints is not shown.

    files may also be a ValueError, of a student's file that could not be read: every test fails with its words.
    """
    text = check_text(exercise)
    points, results = points_of(text), []
    if isinstance(files, ValueError):
        return [Result(test, worth, str(files)) for test, worth in points.items()]
    todo = [(test, seeds(exercise, test, secret)) for test in points]
    left = EXERCISE
    with tempfile.TemporaryDirectory(prefix="nanoharmon-", ignore_cleanup_errors=True) as folder:
        tree.write(folder, files)
        shutil.copy(HERE / "runner.py", folder)
        while todo:
            job = {"nonce": secrets.token_hex(16), "exercise": f"exercise {exercise.number:02d}", "check": text,
                   "tests": todo, "gigabytes": GIGABYTES}
            found, reason, used = run_process(job, folder, left, quiet)
            left -= used
            for test, _ in todo[:len(found)]:
                results.append(Result(test, points[test], found[test]))
            todo = todo[len(found):]
            if todo:                                             # the test that was running when the process ended
                results.append(Result(todo[0][0], points[todo[0][0]], reason))
                todo = todo[1:]
            if todo and left <= 0:
                results += [Result(test, points[test], "not run: those before it took too long") for test, _ in todo]
                break
    return results


def run_process(job, folder, left, quiet):
    """One process over job["tests"], for at most `left` seconds from when torch is there. Returns {test: failure} as
    far as it came, why not further, and the seconds that it used."""
    process = subprocess.Popen(
        [sys.executable, str(Path(folder) / "runner.py")], cwd=folder, env=environment(folder), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None, start_new_session=os.name == "posix")
    lines, printed, found = queue.Queue(), [0], {}
    threading.Thread(target=collect, args=(process.stdout, lines), daemon=True).start()
    if quiet:
        threading.Thread(target=discard, args=(process, printed), daemon=True).start()
    reason, end = None, None
    try:
        with suppress(OSError):                                  # it may have died already
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.close()
        while len(found) < len(job["tests"]):
            try:
                line = lines.get(timeout=max(0.1, min(TEST, end - time.monotonic())) if end else START)
            except queue.Empty:
                reason = "no answer in time: an endless loop, or far too slow" if end else \
                    f"{BUSY} {START} seconds: the machine is too busy; run this again"
                break
            if line is None:                                     # its end of the pipe is closed
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                reason = ending(process.returncode, printed[0])
                break
            test, failure = answer(line, job["nonce"])
            end = end or time.monotonic() + left
            if test == job["tests"][len(found)][0]:
                found[test] = failure
    finally:
        kill(process)
    return found, reason, left - (end - time.monotonic()) if end else 0


def answer(line, nonce):
    """(test, failure) of a line; (None, None) of one that the runner has not written."""
    with suppress(ValueError, KeyError, TypeError):
        said = json.loads(line)
        if said["nonce"] == nonce:
            return said["test"], said["failure"]
    return None, None


def ending(code, printed):
    if printed > MOST_OUTPUT:
        return f"it printed more than {MOST_OUTPUT // 10**6} MB"
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"the process was ended by {signal.Signals(-code).name}: a crash, or too much memory"
    return f"the process ended with exit code {code} in the middle of the test"


def collect(pipe, lines):
    with suppress(OSError, ValueError):
        while line := pipe.readline(10**6):
            lines.put(line)
    lines.put(None)


def discard(process, printed):
    """Read what the code prints, so that it does not block, and stop it when it prints without end."""
    with suppress(OSError, ValueError):
        while data := process.stderr.read1(65536):
            printed[0] += len(data)
            if printed[0] > MOST_OUTPUT:
                return kill(process)


def kill(process):
    """End a process, with all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def environment(folder):
    """The parent's environment variables, without a path to another nanoharmon."""
    path = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep)
            if p and not (Path(p) / "nanoharmon").exists()]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
            "PWD": folder}
