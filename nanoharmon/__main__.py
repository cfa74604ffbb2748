"""python -m nanoharmon: the parts of every preset and their parameters, counted without making them."""
from .cli import Parser, run_main
from .config import PRESETS
from .weights.checkpoint import meta_model


def main(argv=None):
    Parser(prog="python -m nanoharmon", description=__doc__).parse_args(argv)
    for name, make in PRESETS.items():
        millions = {part: sum(p.numel() for p in child.parameters()) / 1e6
                    for part, child in meta_model(make()).named_children()}
        print(f"{name:12s} {sum(millions.values()):8.2f}M = "
              + " + ".join(f"{part} {n:.2f}M" for part, n in millions.items()))


if __name__ == "__main__":
    run_main(main)
