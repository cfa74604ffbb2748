"""What is in a folder of pictures with texts, or in a LLaVA file, before training on it.

    python -m nanoharmon.data DIR                        counts, sizes, texts, all that is broken,
    python -m nanoharmon.data FILE.json --images DIR     and five pictures with their texts as data.png
"""
from collections import Counter
from pathlib import Path

from .cli import Parser, bar, first_of, one_line, run_main
from .files import advising, check_output, write_bytes
from .pictures import captioned, file_bytes, pad_square, picture_grid, read_image
from .training import formats
from .training.imports import MOST_BROKEN, try_all


def report(entries, problems):
    """Lines of text about what `read_entries` has found, and the entries whose pictures can be decoded."""
    total, users, sizes = len(entries) + len(problems), Counter(e.path for e in entries if e.path), {}
    found = try_all({path: path for path in users}, lambda path: read_image(path).size)
    for path, size in bar(found, total=len(users), desc="decode"):
        if isinstance(size, ValueError):
            problems = problems + [str(size)] * users[path]
        else:
            sizes[path] = size
    entries = [e for e in entries if e.path is None or e.path in sizes]
    lines = [f"{total} entries, {len(sizes)} pictures; {len(problems)} entries broken, "
             f"{len(problems) / total:.1%} (training stops above {MOST_BROKEN:.0%})"]
    if sizes:
        by_area = sorted(sizes.values(), key=lambda size: size[0] * size[1])
        small, middle, large = ("{}x{}".format(*by_area[i]) for i in (0, len(by_area) // 2, -1))
        lines.append(f"sizes: {small} to {large} pixels, median {middle}; {sum(w == h for w, h in by_area)} square")
    if captions := sorted(len(e.caption) for e in entries if e.caption):
        lines.append(f"texts: {len(captions)}, of {captions[0]} to {captions[-1]} characters, "
                     f"median {captions[len(captions) // 2]}")
    if without := sum(not (e.caption or e.turns) for e in entries):
        lines.append(f"without text: {without}, of use to the stages vae and mar")
    if turns := sorted(len(e.turns) // 2 for e in entries if e.turns):
        lines.append(f"conversations: {len(turns)}, of {turns[0]} to {turns[-1]} questions; "
                     f"{sum(e.path is None for e in entries)} without a picture")
    if labels := Counter(e.label for e in entries if e.label is not None):
        lines.append(f"labels: {len(labels)}; " +
                     one_line(first_of([f"{label} {n}" for label, n in labels.most_common()], 10)))
    if problems:
        lines += ["broken:", *(f"  {one_line(problem)}" for problem in dict.fromkeys(problems))]
    return lines, entries


def sheet(entries):
    """Up to five entries, evenly spread, as one picture; None if none has a picture."""
    entries = [e for e in entries if e.path]
    if not entries:
        return None
    n = min(5, len(entries))
    shown = [entries[i * len(entries) // n] for i in range(n)]
    texts = [e.caption or " / ".join(text for _, text in (e.turns or [])[:2]) or f"label {e.label}" for e in shown]
    return picture_grid([captioned(pad_square(read_image(e.path)), text, 192) for e, text in zip(shown, texts)], 5)


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.data", description=f"{__doc__}\n{formats.__doc__}")
    parser.add_argument("source", metavar="DIR|FILE", help="a folder of pictures with texts, or a file of them")
    parser.add_argument("--images", metavar="DIR", help="the folder of the pictures that FILE.json names")
    parser.add_argument("--out", default="data.png", metavar="FILE", help="five pictures as a PNG (default data.png)")
    args = parser.parse_args(argv)
    if args.images and Path(args.source).suffix.lower() not in formats.TALKS:
        raise ValueError(f"--images {args.images} is for the pictures of a LLaVA file, {args.source} is none; "
                         f"drop --images")
    out, inside = check_output(args.out, "--out", (".png",)), Path(args.images or args.source).resolve()
    if inside.is_dir() and out.resolve().is_relative_to(inside):
        raise ValueError(f"{out} would lie in {inside}, and be one of its pictures the next time; pass --out FILE "
                         f"elsewhere")
    with advising("name another DIR or FILE.json, or pass --images DIR"):
        found = formats.read_entries(args.source, args.images)
    lines, entries = report(found.entries, found.problems)
    print(f"{args.source}: {lines[0]}", *map(one_line, found.notes), *lines[1:], sep="\n")
    if picture := sheet(entries):
        write_bytes(out, file_bytes(picture))
        print(f"wrote {out}")


if __name__ == "__main__":
    run_main(main)
