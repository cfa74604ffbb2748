"""python -m nanoharmon.bench: the command is in evals/bench.py."""
from .cli import run_main
from .evals.bench import main

if __name__ == "__main__":
    run_main(main)
