"""How much slower the commands are on a machine that is never idle: each alone, and beside N busy processes.

    python -m nanoharmon.evals.busy              alone and beside one: eight minutes on two cores
    python -m nanoharmon.evals.busy --n 2 --only sample --only chat

Times are those of whole commands, start included: medians of --repeat runs, alone and beside others in turns. In a
clone of the repository only, since the scripts are what is measured.
"""
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..cli import Parser, markdown_table, number, run_main

ROOT = Path(__file__).parents[2]
PICO = ["--preset", "pico", "--sample-every", "0", "--stage", "vae", "--stage", "llm", "--stage", "mar", "--stage", "1",
        "--stage_vae.steps", "200", "--stage_1.steps", "200"]
COMMANDS = {
    "sample": ["sample.py", "--prompt", "a red circle", "--iters", "9", "--steps", "25"],
    "sample, defaults": ["sample.py", "--prompt", "a red circle", "--n", "1"],
    "Pipeline": ["-c", "from nanoharmon import Pipeline; "
                       "Pipeline.load('checkpoints/nano').draw(['a red circle'] * 4, iters=9, steps=25)"],
    "chat": ["chat.py", "--image", "docs/scene.png", "--prompt", "what color is the ring?"],
    "evaluate": ["-m", "nanoharmon.evaluate", "--bench", "vqa", "--n", "20"],
    "train, one process": ["train.py", *PICO, "--procs", "1"],
    "train, two processes": ["train.py", *PICO, "--procs", "2"]}


def seconds(command):
    """How long one run of a command takes, which writes into a folder that is then thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        out = {"sample.py": ["--out", f"{folder}/grid.png"], "chat.py": [], "-c": []}.get(
            command[0], ["--out", f"{folder}/out"])
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *command, *out], cwd=ROOT, capture_output=True, encoding="utf-8")
        if done.returncode:
            raise ValueError(f"{command[0]} failed: {done.stderr.strip()[-200:]}")
        return time.perf_counter() - start


def beside(command, n):
    """How long it takes beside n processes that compute all the time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        return seconds(command)
    finally:
        for process in others:
            process.kill()
            process.wait()


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.evals.busy", description=__doc__)
    parser.add_argument("--n", type=number(int, 1, 64), default=1, help="busy processes (default 1)")
    parser.add_argument("--repeat", type=number(int, 1, 100), default=3, help="runs of each command (default 3)")
    parser.add_argument("--only", action="append", choices=COMMANDS, help="some of the commands (default: all)")
    args = parser.parse_args(argv)
    if not (ROOT / "sample.py").exists():
        raise ValueError(f"no sample.py in {ROOT}, expected a clone of the repository; run this in one")
    rows = []
    for name in args.only or COMMANDS:
        pairs = [(seconds(COMMANDS[name]), beside(COMMANDS[name], args.n)) for _ in range(args.repeat)]
        alone, busy = map(statistics.median, zip(*pairs))
        rows.append((name, f"{alone:.1f}", f"{busy:.1f}", f"{busy / alone:.2f}"))
    print(markdown_table(["command", "alone, s", f"beside {args.n} busy, s", "ratio"], rows))


if __name__ == "__main__":
    run_main(main)
