"""python -m nanoharmon.convert: the command is in weights/convert.py."""
from .cli import run_main
from .weights.convert import main

if __name__ == "__main__":
    run_main(main)
