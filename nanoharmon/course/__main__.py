"""The course: exercises cut from the real code.

for students, in a handout:
  check                  your path: what is done, what is next, points
  check 07 [--mine]      the tests of one exercise; with the finished version of all others, or with yours
  hint 07 [N]            the next of three hints, or hint N
  see [--image FILE]     your code reads pictures: questions, answers, the truth
  draw [--steps N]       your code learns to draw, from scratch, and is judged: about 9 minutes
  unify [--prompt TEXT]  your model draws a prompt
  speedrun [OUT]         the leaderboard's row of a finished run of train.py; without OUT, of no model

for teachers, in a clone of the repository:
  handout DIR [--lab see|draw|unify] [--only NAME,...]    write the students' repository
  solutions DIR          the same with everything solved, and each solution by itself in exercises/solutions
  grade DIR [--out results.json] [--secret N] [--table course.json] [--submitted TIME]    grade a student's folder
"""
from ..cli import Parser, bar, number, run_main
from ..files import check_output, write_json
from . import endings, grade, handout, progress, speedrun
from .table import LABS, chosen, find

NAME = "python -m nanoharmon.course"
PROMPT = "a red circle left of a blue square"                    # README's
STEPS = 1250                                                     # of draw: about 9 minutes on one core


def parse_args(argv=None):
    parser = Parser(prog=NAME, description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in "check", "hint", "see", "draw", "unify", "speedrun", "handout", "solutions", "grade":
        about = {"handout": handout, "solutions": handout, "grade": grade, "speedrun": speedrun}.get(name)
        sub = commands.add_parser(name, description=about and about.__doc__)
        if name == "check":
            sub.add_argument("exercise", nargs="?", metavar="EXERCISE", help="a number or name; left out: the path")
            sub.add_argument("--mine", action="store_true", help="with your version of all other exercises, too")
        elif name == "hint":
            sub.add_argument("exercise", metavar="EXERCISE", help="a number or name")
            sub.add_argument("number", nargs="?", metavar="N", type=number(int, 1, 3), help="hint 1, 2 or 3")
        elif name == "see":
            sub.add_argument("--image", metavar="FILE", help="a picture of yours (default: three scenes)")
        elif name == "draw":
            sub.add_argument("--steps", metavar="N", type=number(int, 1), default=STEPS,
                             help=f"steps of training (default {STEPS})")
            sub.add_argument("--keep", action="store_true", help="for the repository: this is the reference's score")
        elif name == "unify":
            sub.add_argument("--prompt", metavar="TEXT", default=PROMPT, help=f"what to draw (default {PROMPT!r})")
        elif name == "speedrun":
            sub.add_argument("out", nargs="?", metavar="OUT", help="the folder of a finished run (left out: no model)")
        elif name == "grade":
            sub.add_argument("dir", metavar="DIR", help="the folder of a student, which `handout` wrote")
            sub.add_argument("--out", metavar="FILE", help="write the results there, as Gradescope reads them")
            sub.add_argument("--secret", metavar="N", default="0", help="what the tests' inputs are made from: "
                             "any text (default 0; `check` uses others)")
            sub.add_argument("--table", metavar="FILE", help="points, exercises that are due, late rules: course.json")
            sub.add_argument("--submitted", metavar="TIME", help="when it was handed in, for late rules (default now)")
        else:
            sub.add_argument("dir", metavar="DIR", help="a new folder")
            sub.add_argument("--lab", metavar="LAB", help="only the exercises of one lab: see, draw or unify")
            sub.add_argument("--only", metavar="NAME,...", help="only these exercises, by number or name")
    return parser.parse_args(argv)


def show_results(exercise, results):
    for r in results:
        print(f"{'passed' if r.failure is None else 'FAILED'}  {r.earned:>2} /{r.points:>2}  "
              f"{r.test.removeprefix('test_')}" + (f"\n              {r.failure}" if r.failure else ""))
    print(f"{exercise.number:02d} {exercise.title}: {sum(r.earned for r in results)} of {exercise.points} points")


def main(argv=None):
    args = parse_args(argv)
    if args.command == "check" and args.exercise is None:
        if args.mine:
            raise ValueError("--mine needs an exercise; pass its number: check 07 --mine")
        progress.path_table()
    elif args.command == "check":
        exercise = find(args.exercise)
        results = progress.check_one(exercise, args.mine)
        show_results(exercise, results)
        if any(r.failure for r in results):
            raise SystemExit(1)
    elif args.command == "hint":
        print(progress.hint(find(args.exercise), args.number))
    elif args.command in LABS:
        status = endings.run_ending(args.command, {k: v for k, v in vars(args).items() if k != "command"})
        if status:
            raise SystemExit(status)
    elif args.command == "speedrun":
        print(speedrun.row(args.out) if args.out else speedrun.naive())
    elif args.command == "grade":
        out = args.out and check_output(args.out, "--out", (".json",))
        results = grade.grade(args.dir, args.secret, args.table, args.submitted,
                              lambda found, total: bar(found, total=total, desc="exercises"))
        if out:
            write_json(out, results)
        if not results["tests"]:                                     # no handout, and no --table that says what is due
            raise ValueError(results["output"])
        grade.show(results)
    else:
        exercises = chosen(args.lab, args.only)
        handout.write_handout(args.dir, exercises, solved=args.command == "solutions")
        print(f"{args.dir}: {len(exercises)} exercises, {sum(e.points for e in exercises)} points, about "
              f"{sum(e.minutes for e in exercises)} minutes; start with its README.md")


if __name__ == "__main__":
    run_main(main)
