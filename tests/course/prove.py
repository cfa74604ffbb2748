"""The proof of an exercise's checks: the reference and all right solutions earn everything, every wrong one is caught.

    python tests/course/prove.py 04            what became of each solution of tests/course/ex04.py
    python tests/course/prove.py               all exercises that have such a file

A solution is the text of the exercise's functions, written as if they stood at the top of a file; what else is in it
(imports, helpers) goes to the top of the file. Functions that it leaves out are the reference's.

torch is imported once, and each solution runs in a fork of this process, with the runner that `check` and `grade` use.
"""
import ast
import importlib.util
import json
import os
import runpy
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import torch                             # noqa: E402, F401: before the forks
import torch.utils.checkpoint            # noqa: E402, F401

from nanoharmon.course import check, cut, handout, tree     # noqa: E402
from nanoharmon.course.table import EXERCISES, find     # noqa: E402


def solutions(exercise):
    """The module tests/course/exNN.py: WRONG = [(name, source, part of the message)], RIGHT = [(name, source)]."""
    spec = importlib.util.spec_from_file_location(exercise.id, HERE / f"{exercise.id}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def placed(text, exercise, solution):
    """The text of a file with a solution in the places of the exercise's functions."""
    solution = textwrap.dedent(solution)
    lines, new, others = text.splitlines(), ast.parse(solution), []
    by_name = {f.rpartition(".")[2]: f for f in exercise.functions}
    edits = []
    for node in new.body:
        if isinstance(node, ast.FunctionDef) and node.name in by_name:
            old = cut.locate(ast.parse(text), by_name[node.name])
            assert ast.unparse(node.args) == ast.unparse(old.args), f"{exercise.id}: {node.name} has other arguments now"
            edits.append((cut.first_line(old), old.end_lineno, cut.source(solution, node, " " * old.col_offset)))
        else:
            others += cut.source(solution, node)
    top = next(n for n in ast.parse(text).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)))
    edits.append((cut.first_line(top), cut.first_line(top), others))
    for start, end, replacement in sorted(edits, reverse=True):
        lines[start:end] = replacement
    return "\n".join(lines) + "\n"


def forked(exercise, files, secret):
    """check.run in a fork: {test: failure}."""
    text = check.check_text(exercise)
    job = {"nonce": "", "exercise": f"exercise {exercise.number:02d}", "check": text, "gigabytes": check.GIGABYTES,
           "tests": [(test, check.seeds(exercise, test, secret)) for test in check.points_of(text)]}
    with tempfile.TemporaryDirectory() as folder:
        tree.write(folder, files)
        shutil.copy(check.HERE / "runner.py", folder)
        Path(folder, "job").write_text(json.dumps(job), encoding="utf-8")
        pid = os.fork()
        if pid == 0:
            try:
                for fd, name, flags in (0, "job", os.O_RDONLY), (1, "out", os.O_CREAT | os.O_WRONLY):
                    os.dup2(os.open(f"{folder}/{name}", flags), fd)
                sys.stdin = open(0, encoding="utf-8", closefd=False)
                sys.path.insert(0, folder)
                for name in [n for n in sys.modules if n.split(".")[0] == "nanoharmon"]:
                    del sys.modules[name]
                runpy.run_path(f"{folder}/runner.py", run_name="__main__")
            finally:
                os._exit(1)
        os.waitpid(pid, 0)
        said = [json.loads(line) for line in Path(folder, "out").read_text(encoding="utf-8").splitlines()]
    found = {line["test"]: line["failure"] for line in said if "test" in line}
    return {test: found.get(test, "the process ended") for test in check.points_of(text)}


def prove(exercise, secret="public", show=print):
    """What is wrong with an exercise's checks or solutions: a list of sentences, empty when all is as it should be."""
    module, files, problems = solutions(exercise), tree.reference(), []
    points = check.points_of(check.check_text(exercise))
    if sum(points.values()) != exercise.points:
        problems.append(f"POINTS add up to {sum(points.values())}, the table says {exercise.points}")
    if len(module.WRONG) < 4 or len(module.RIGHT) < 2:
        problems.append("expected at least 4 wrong and 2 right solutions")
    untouched = handout.cut_all(files, [exercise])
    if not all(forked(exercise, untouched, secret).values()):
        problems.append("the untouched stub passes a test")
    named = 0
    for name, source, *fragment in [("the reference", ""), *module.RIGHT, *module.WRONG]:
        student = placed(files[exercise.file], exercise, source)
        mixed = cut.transplant(files[exercise.file], student, exercise.functions, exercise.file)
        failures = [words for words in forked(exercise, files | {exercise.file: mixed}, secret).values() if words]
        show(f"{exercise.id} {'wrong' if fragment else 'right'}: {name}: {failures or 'full points'}")
        if bool(failures) != bool(fragment):
            problems.append(f"{name}: {failures[0] if failures else 'earns full points'}")
        named += bool(fragment and fragment[0] and any(fragment[0] in words for words in failures))
        if fragment and fragment[0] and not any(fragment[0] in words for words in failures):
            problems.append(f"{name}: no message has {fragment[0]!r}: {failures}")
    if named < 0.75 * len(module.WRONG):
        problems.append(f"only {named} of {len(module.WRONG)} messages name the mistake")
    return problems


def main(argv):
    chosen = [find(text) for text in argv] or [e for e in EXERCISES if (HERE / f"{e.id}.py").exists()]
    problems = [f"{e.id}: {problem}" for e in chosen for secret in ("public", "another")
                for problem in prove(e, secret)]
    print("\n".join(["", *problems]) if problems else "\nall as it should be")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(sys.argv[1:])
