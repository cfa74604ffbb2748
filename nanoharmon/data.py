"""python -m nanoharmon.data: the command is in training/folder.py."""
from .cli import run_main
from .training.folder import main

if __name__ == "__main__":
    run_main(main)
