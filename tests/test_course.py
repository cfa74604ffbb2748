"""The course: what is handed out is cut from the real code, its checks are right, and grading survives everything.
`python -m pytest -q tests/test_course.py`, with -m stress the proof in full: every solution of every exercise."""
import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanoharmon.course import __main__ as course
from nanoharmon.course import check, cut, grade, handout, progress, speedrun, tree
from nanoharmon.course.table import EXERCISES, LABS, chosen, find
from test_bad_input import rows_of

ROOT = Path(__file__).parents[1]
RMSNORM, CHAT = find("rmsnorm"), find("chat")
GOOD = """
        h = x.float()
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)
"""
STUB = "raise NotImplementedError('exercise 04: RMSNorm.forward is not done yet')"


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    """A handout of two exercises."""
    folder = tmp_path_factory.mktemp("course") / "handout"
    handout.write_handout(folder, [RMSNORM, CHAT])
    return folder


@pytest.fixture
def student(handed_out, tmp_path):
    """A student's copy of it, of what is graded."""
    for name in "nanoharmon", "exercises":
        shutil.copytree(handed_out / name, tmp_path / name)
    return tmp_path


def edit(folder, new, old=STUB, file="qwen.py"):
    path = folder / "nanoharmon" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new.strip()), encoding="utf-8")


def points(results):
    return {t["number"]: t["score"] for t in results["tests"]}


# --- the table and the texts ------------------------------------------------------------------------------------------

def test_the_table_names_functions_of_the_code():
    files = tree.reference()
    for e in EXERCISES:
        places = [cut.locate(ast.parse(files[e.file]), f).lineno for f in e.functions]
        assert places == sorted(places) and e.lab in LABS and e.minutes > 0
    assert sum(e.points for e in EXERCISES) == 100
    assert len({(e.file, f) for e in EXERCISES for f in e.functions}) == sum(len(e.functions) for e in EXERCISES)
    assert len({e.name for e in EXERCISES}) == len(EXERCISES) and chosen("see", "7,rope") == [find("05"), find("ex07")]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_task_and_checks_are_complete(exercise):
    assert len(handout.hints(handout.task(exercise))) == 3
    points = check.points_of(check.check_text(exercise))
    assert sum(points.values()) == exercise.points and 2 <= len(points) <= 5
    assert max(map(len, handout.page(exercise).splitlines())) <= 120
    assert max(map(len, handout.task(exercise)["Task"].splitlines())) <= 112     # in a method's docstring: 8 more


def test_open_tasks_have_a_baseline_its_command_and_a_note_for_teachers():
    notes, pages = (ROOT / "docs/TEACHING.md").read_text(encoding="utf-8"), list(handout.TASKS.glob("open_*.md"))
    wanted = r"## The baseline\n[\s\S]+\npython (-m nanoharmon|train.py)[\s\S]+[\d\]]\s%[\s\S]+## Rules"
    assert len(pages) >= 5 and all(f"({p.stem})" in notes for p in pages)
    assert all(re.search(wanted, p.read_text(encoding="utf-8")) for p in pages)


def test_a_handout_is_the_real_code_without_the_bodies(handed_out):
    files = tree.reference()
    assert tree.sources(handed_out / "nanoharmon").keys() == files.keys()
    for name, text in tree.sources(handed_out / "nanoharmon").items():
        assert (text != files[name]) == (name in ("qwen.py", "tokenizer.py")), name
    stub = cut.locate(ast.parse((handed_out / "nanoharmon/tokenizer.py").read_text(encoding="utf-8")), "Tokenizer.chat")
    words = ast.get_docstring(stub)
    assert words.startswith("Ids and labels of a conversation") and handout.task(CHAT)["Task"].split("\n")[0] in words
    names = {p.relative_to(handed_out).as_posix() for p in handed_out.rglob("*")}
    assert {"README.md", "exercises/04.md", "tests/test_exercises.py", "checkpoints/nano/config.json", "train.py",
            ".github/workflows/check.yml"} <= names
    assert not names & {"docs/TEACHING.md", "tests/course"}
    readme = (handed_out / "README.md").read_text(encoding="utf-8")
    assert all(command in readme for command in ("course check 04 ", "course hint 04 ", "-m ex04 ", "course see "))
    assert "course draw" not in readme and "course unify" not in readme          # there is nothing of these labs in it
    for page in [handed_out / "README.md", handed_out / "NANOHARMON.md", *handed_out.glob("exercises/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), target


# --- surgery ----------------------------------------------------------------------------------------------------------

def test_helpers_and_imports_of_the_student_count_and_other_changes_do_not():
    ours = "import math\nLIMIT = 3\n\n\ndef other():\n    return LIMIT\n\n\nclass A:\n    def f(self):\n        pass\n"
    theirs = Path(__file__).with_name("course_student.txt").read_text(encoding="utf-8")
    theirs = theirs.replace("import os", "import os  # \f \x85 \u2028 end a line for str.splitlines, not for Python")
    space = {}
    exec(cut.transplant(ours, theirs, ["A.f"]), space)
    assert space["A"]().f() == pytest.approx(13.14159, 1e-5)
    assert space["other"]() == 3 and space["math"].__name__ == "math" and space["LIMIT"] == 3


# --- grading ----------------------------------------------------------------------------------------------------------

def test_grading_counts_only_what_is_done(student, capsys, tmp_path):
    """Untouched, nothing; solved, everything, whatever else is broken; and the files say the same as the screen."""
    assert points(grade.grade(student)) == {"ex04": 0, "ex08": 0}
    edit(student, GOOD)
    (student / "nanoharmon/harmon.py").write_text("broken(", encoding="utf-8")   # no exercise's: ours is used
    (student / "nanoharmon/course/checks/ex04.py").write_text("POINTS = {}", encoding="utf-8")
    course.main(["grade", str(student), "--out", str(tmp_path / "results.json"), "--secret", "teacher"])
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert points(found) == {"ex04": 3, "ex08": 0} and found["score"] == 3 and found["max_score"] == 7
    assert "3 /  7   1 of 2 exercises done" in capsys.readouterr().out


def test_a_handout_json_that_a_student_lost_or_edited_stops_nothing(student):
    """With a table that says what is due it is not needed; without one the results say what is wrong."""
    table, out, path = student / "course.json", student / "results.json", student / handout.MANIFEST
    table.write_text('{"due": ["04"]}', encoding="utf-8")
    edit(student, GOOD)
    for text, words in ((None, "has no exercises/handout.json"), ("[" * 10**5, "cannot be read"),
                        ('{"version": "1", "exercises": []}', "version 1, this is")):
        path.unlink() if text is None else path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"nothing was graded; .*{words}"):
            course.main(["grade", str(student), "--out", str(out)])
        found = json.loads(out.read_text(encoding="utf-8"))
        assert found["score"] == found["max_score"] == 0 and words in found["output"]
    course.main(["grade", str(student), "--out", str(out), "--table", str(table)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert points(found) == {"ex04": 3} and "1 of 1 exercises done; " in found["output"] and words in found["output"]


def test_a_zip_may_hold_the_folder_itself_and_links_do_not_count(student):
    zipped = student / "zip" / "maria"
    zipped.mkdir(parents=True)
    (student / "zip/__MACOSX").mkdir()
    (zipped / "nanoharmon").symlink_to(tree.PACKAGE)             # a copy of the solution that need not be written
    shutil.move(student / "exercises", zipped)
    output = grade.grade(student / "zip")["tests"][0]["output"]
    assert "qwen.py is a link" in output


def test_course_json_sets_points_what_is_due_and_late_rules(student, tmp_path):
    table = tmp_path / "course.json"
    table.write_text(json.dumps({"due": ["04", 8], "points": {"chat": 10}, "late": {
        "deadline": "2026-12-01T12:00:00+00:00", "percent_per_day": 10, "most_percent": 50}}), encoding="utf-8")
    found = grade.grade(student, table=table, submitted="2026-12-02T13:00:00Z")
    assert found["max_score"] == 13 and "20 % off" in found["output"]
    late = grade.read_table(table)["late"]
    for day, share in (1, 0.0), (3, 0.2), (30, 0.5):
        assert grade.late_share(late, grade.moment(f"2026-12-{day:02d}T12:00:00", "time", "")) == share
    assert grade.late_share(None, None) == 0


def test_inputs_depend_on_the_secret():
    seeds = [check.seeds(RMSNORM, "test_numbers", secret) for secret in ("public", "0", "1")]
    assert len({s for group in seeds for s in group}) == 6


@pytest.mark.parametrize("body, words", [pytest.param(*row, marks=[pytest.mark.stress] * (i > 0)) for i, row in enumerate(
    rows_of("hostile.txt", PACKAGE=tree.PACKAGE.as_posix()))], ids=lambda value: value[:30])
def test_hostile_code_gets_no_points_and_a_reason(student, body, words, monkeypatch):
    monkeypatch.setattr(check, "TEST", 5)
    edit(student, body)
    begin = time.monotonic()
    results = check.run(RMSNORM, check.student_files(RMSNORM, student / "nanoharmon"), quiet=True)
    assert all(r.earned == 0 for r in results) and words in results[0].failure
    assert time.monotonic() - begin < check.EXERCISE + 10


@pytest.mark.parametrize("damage, words", [(lambda path: path.unlink(), "qwen.py is missing"),
    (lambda path: path.write_text("def f(:", encoding="utf-8"), "qwen.py cannot be read, line 1"),
    (lambda path: path.write_text("x = 1", encoding="utf-8"), "has no RMSNorm.forward"),
    (lambda path: path.write_bytes(b"\xff\xfe\0"), "qwen.py cannot be read")])
def test_a_broken_file_costs_only_its_exercises(student, damage, words):
    damage(student / "nanoharmon/qwen.py")
    results = grade.grade(student)
    assert points(results) == {"ex04": 0, "ex08": 0} and words in results["tests"][0]["output"]


def test_deep_nesting_stops_no_grading(student):
    edit(student, f"raise {'-' * 500}1")
    assert tree.begun(RMSNORM, student / "nanoharmon")


def test_a_busy_machine_is_not_the_students_mistake(student, monkeypatch):
    monkeypatch.setattr(check, "START", 0)
    edit(student, GOOD)
    results = check.run(RMSNORM, check.student_files(RMSNORM, student / "nanoharmon"), quiet=True)
    assert all("the machine is too busy" in r.failure for r in results)
    with pytest.raises(ValueError, match="exercise 04: torch was not there after 0 seconds: the machine is too busy"):
        grade.grade(student)


@pytest.mark.stress
def test_a_block_does_not_fail_for_the_modulate_beside_it(student):
    edit(student, "return x * scale + shift", "return torch.addcmul(x + shift, x, scale)", "diffloss.py")
    adaln = find("adaln")
    results = check.run(adaln, check.student_files(adaln, student / "nanoharmon"))
    assert [r.earned for r in results] == [0, 1, 1] and "the 1 is missing" in results[0].failure


@pytest.mark.stress
def test_mine_says_which_other_exercise_is_missing_and_why(student):
    residual = find("residual")
    results = check.run(residual, check.student_files(residual, student / "nanoharmon", mine=True))
    assert results[0].failure.startswith("exercise 04: RMSNorm.forward is not done yet") and \
        "leave out --mine" in results[0].failure


# --- bad input --------------------------------------------------------------------------------------------------------

def test_bad_input_is_one_line(handed_out, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(handed_out / "exercises", odd / "exercises")
    (odd / handout.MANIFEST).write_text('{"version": "00000000", "exercises": []}', encoding="utf-8")
    for name, text in ("course", '{"points": {"99": 1}}'), ("due", '{"due": ["see", "sea"]}'):
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    for typed, words in rows_of("course_input.txt", HERE=tmp_path, GOOD=handed_out):
        with pytest.raises(ValueError, match=words) as e:
            course.main(shlex.split(typed))
        assert "\n" not in str(e.value)


def test_damaged_progress_counts_as_nothing(student, monkeypatch):
    monkeypatch.setattr(handout, "ROOT", student)
    for text in "", "{", "[]", '{"hints": 3, "done": [1]}', '{"hints": {"ex04": "x"}, "done": {"ex04": ["a", 99]}}':
        (student / "exercises/progress.json").write_text(text, encoding="utf-8")
        assert progress.load() == {"hints": {}, "done": {}}
        assert progress.hint(RMSNORM).startswith("hint 1 of 3")
    assert progress.hint(RMSNORM).startswith("hint 2 of 3") and progress.load()["hints"] == {"ex04": 2}


# --- the leaderboard --------------------------------------------------------------------------------------------------

def test_a_speedrun_row_is_made_of_the_runs_own_files(tmp_path):
    times = [(10.0, "vae", 1000), (600.0, "3", 50), (5.0, "3", 100), (300.0, "3", 500)]  # stopped after ten minutes
    lines = "".join(json.dumps({"time": t, "stage": s, "step": n, "lr": 1}) + "\n" for t, s, n in times)
    (tmp_path / "log.jsonl").write_text(lines + "{dam", encoding="utf-8")
    (tmp_path / "results.json").write_text(json.dumps(dict.fromkeys(speedrun.FIGURES, 0.5)), encoding="utf-8")
    (tmp_path / "train_config.json").write_text(json.dumps({"command": ["--quick"], "data": {"seed": 7}, "stages": {
        "vae": {"steps": 1000}, "3": {"steps": 500}}}), encoding="utf-8")
    row = speedrun.row(tmp_path).splitlines()[-1]
    for name, old, new in ("train_config.json", "--quick", "--stage"), ("log.jsonl", "500", "499"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ValueError, match="one command"):
            speedrun.row(tmp_path)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert [cell.strip() for cell in row.strip("|").split("|")][:6] == [
        "15.0", "50.0", "50.0", "50.0", "7", "`python train.py --quick`"] and "1,500" in row
    assert f"| {' | '.join(speedrun.HEADER)} |" in (ROOT / "docs/LEADERBOARD.md").read_text(encoding="utf-8")


# --- the proof in full ------------------------------------------------------------------------------------------------

@pytest.mark.stress
@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_right_solutions_earn_everything_and_wrong_ones_are_caught(exercise):
    done = subprocess.run([sys.executable, str(ROOT / "tests/course/prove.py"), exercise.id], capture_output=True,
                          encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stdout


@pytest.mark.stress
def test_each_solution_alone_earns_exactly_its_points_and_all_of_them_everything(tmp_path):
    solved, empty = tmp_path / "solved", tmp_path / "empty"
    handout.write_handout(solved, EXERCISES, solved=True)
    handout.write_handout(empty, EXERCISES)
    begin = time.monotonic()
    assert grade.grade(solved)["score"] == 100 and time.monotonic() - begin < 300        # two cores, five minutes
    assert grade.grade(empty)["score"] == 0
    for exercise in EXERCISES:
        path = empty / "nanoharmon" / exercise.file
        text = path.read_text(encoding="utf-8")
        theirs = (solved / "nanoharmon" / exercise.file).read_text(encoding="utf-8")
        path.write_text(cut.transplant(text, theirs, exercise.functions), encoding="utf-8")
        assert {k: v for k, v in points(grade.grade(empty)).items() if v} == {exercise.id: exercise.points}
        path.write_text(text, encoding="utf-8")


@pytest.mark.stress
def test_a_student_can_work_in_a_handout(handed_out, tmp_path):
    """Its own commands: the path, a failing and a passing check, hints one by one, pytest."""
    folder = shutil.copytree(handed_out, tmp_path / "mine")

    def run(*arguments):
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, capture_output=True, encoding="utf-8")
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout
    assert "0 of 7 points; next: exercises/04.md" in run("nanoharmon.course", "check")[1]
    assert [run("nanoharmon.course", "hint", "4")[1][:6] for _ in range(4)] == ["hint 1", "hint 2", "hint 3", "hint 3"]
    assert run("nanoharmon.course", "check", "04")[0] == 1
    edit(folder, GOOD)
    assert run("nanoharmon.course", "check", "04")[0] == 0
    assert "3 of 7 points; next: exercises/08.md" in run("nanoharmon.course", "check")[1]
    assert run("pytest", "-q", "-m", "ex04")[0] == 0 and run("pytest", "-q", "-m", "ex08")[0] == 1
    assert "your code, where it passes all its tests: 04; the finished code: 01" in run("nanoharmon.course", "see")[1]
    assert run("nanoharmon.course", "see", "--image", "none.png")[0] == 2
