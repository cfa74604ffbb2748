"""python -m nanoharmon.probe: the command is in evals/probe.py."""
from .cli import run_main
from .evals.probe import main

if __name__ == "__main__":
    run_main(main)
