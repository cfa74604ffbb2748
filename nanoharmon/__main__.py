"""python -m nanoharmon: the parts of every preset and their parameters, counted without making them."""
from .cli import Parser, run_main
from .config import PRESETS
from .harmon import Harmon
from .weights.checkpoint import blank


def main(argv=None):
    Parser(prog="python -m nanoharmon", description=__doc__).parse_args(argv)
    for name, make in PRESETS.items():
        with blank():
            model = Harmon(make())
        millions = {part: sum(p.numel() for p in child.parameters()) / 1e6 for part, child in model.named_children()}
        print(f"{name:12s} {sum(millions.values()):8.2f}M = "
              + " + ".join(f"{part} {n:.2f}M" for part, n in millions.items()))


if __name__ == "__main__":
    run_main(main)
