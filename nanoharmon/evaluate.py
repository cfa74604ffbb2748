"""python -m nanoharmon.evaluate: the command is in evals/evaluate.py."""
from .cli import run_main
from .evals.evaluate import main

if __name__ == "__main__":
    run_main(main)
