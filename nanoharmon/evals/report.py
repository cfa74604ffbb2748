"""What evaluate.py shows: aligned tables, and grids of pictures with the judge's verdict under each."""
import textwrap

from PIL import Image, ImageDraw, ImageFont

RIGHT, WRONG, PAPER, INK, GREY = (60, 200, 90), (230, 60, 60), (24, 24, 26), (235, 235, 235), (160, 160, 165)


# --- tables -----------------------------------------------------------------------------------------------------------

def cell(value):
    """"87.5 [84.1, 90.3]" for a rate in percent and its interval, other numbers as they are."""
    if isinstance(value, dict):
        return f"{100 * value['rate']:5.1f} [{100 * value['low']:5.1f}, {100 * value['high']:5.1f}]"
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def table(title, rows):
    """Text of {row name: {column name: value}}, aligned."""
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    lines = [["", *columns]] + [[name, *(cell(row.get(c)) for c in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join([title, *("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
                               for line in lines), ""])


def markdown(rows):
    """A Markdown table of {row name: {column name: value}}."""
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    return markdown_table(["", *columns], [[name, *map(row.get, columns)] for name, row in rows.items()])


def markdown_table(header, rows):
    """The same of a list of lists: what `cell` makes of the values, without its padding."""
    lines = [[" ".join(cell(value).split()).replace("[ ", "[") for value in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(results, reasons):
    """All tables of what evaluate.run_benchmarks measured, as one text."""
    parts = []
    for bench, found in results.items():
        if bench == "geneval":
            columns = {title: rates for group in found for title, rates in (
                (group, found[group]), (f"{group}, in words", found[group].get("words", {})))}
            rows = {name: {title: rates.get(name) for title, rates in columns.items() if rates}
                    for name in found["seen"] if name not in ("reasons", "words")}
            for name in ("color", "shape", "number"):        # single objects, not whole pictures
                rows[f"  {name} right"] = rows.pop(name)
            parts.append(table("shapes-GenEval: pictures right, %; in words: what the model said before it drew", rows))
            for group in found:
                wrong = found[group]["reasons"]
                rows = {"(right)": {task: found[group][task]["right"] for task in wrong}}
                rows |= {r: {task: wrong[task].get(r, 0) for task in wrong} for r in reasons}
                parts.append(table(f"what goes wrong, {group} pairs: number of pictures", rows))
        elif bench == "vae":
            parts.append(table("VAE reconstructions", {"all objects right, %": {"": found["right"]},
                                                       "before the VAE, %": {"": found["original"]},
                                                       "PSNR, dB": {"": found["psnr"]}}))
        elif bench == "pope":
            parts.append(table("shapes-POPE: free text; likelihood: how often the likelier of yes and no is right",
                               {f"{sampling}, {group}": figures for group, by in found.items()
                                for sampling, figures in by.items()}))
        elif bench == "vqa":
            columns = {name: by for group in found for name, by in (
                (group, found[group]), (f"{group}, likelihood", found[group]["likelihood"]))}
            parts.append(table("shapes-VQA: free text, and likeliest candidate, right, %",
                               {kind: {name: by.get(kind) for name, by in columns.items()}
                                for kind in found["seen"]["likelihood"]}))
        elif bench == "caption":
            parts.append(table("captions right, %", {"caption": found}))
        elif bench == "quality":
            parts.append(table("distribution of the pictures in the eye's feature space (quality.py); not FID", found))
        else:
            parts.append(table("linear probe: held-out pictures right, %", found))
    return "\n".join(parts)


# --- picture grids ----------------------------------------------------------------------------------------------------

def saw(objects):
    """What the judge found, in words, left to right; ? is what it could not name."""
    return ", ".join(f"{o.color or '?'} {o.shape or '?'}" for o in sorted(objects, key=lambda o: o.x)) or "nothing"


def tile(verdict, meta, picture, side=140):
    """A picture in a green or red frame; under it the prompt, what the model said first, what the judge saw, and why it
    is wrong."""
    texts = ((meta["prompt"], INK), (meta.get("said", ""), GREY), ("saw: " + saw(verdict["objects"]), GREY),
             (verdict["reason"], WRONG))
    lines = [(line, ink) for text, ink in texts for line in textwrap.wrap(text, 27)]
    out = Image.new("RGB", (side + 16, side + 24 + 12 * len(lines)), PAPER)
    draw, font = ImageDraw.Draw(out), ImageFont.load_default()
    draw.rectangle((4, 4, side + 11, side + 11), fill=RIGHT if verdict["correct"] else WRONG)
    out.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC), (8, 8))
    for i, (line, ink) in enumerate(lines):
        draw.text((6, side + 14 + 12 * i), line, ink, font)
    return out


def grid(pictures, columns=8):
    """[(verdict, meta, picture)] -> one PIL picture of tiles, row by row."""
    tiles = [tile(*p) for p in pictures]
    rows = [tiles[i:i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(t.height for t in row) for row in rows]
    out = Image.new("RGB", (max(len(row) for row in rows) * tiles[0].width, sum(heights)), PAPER)
    for i, row in enumerate(rows):
        for j, t in enumerate(row):
            out.paste(t, (j * t.width, sum(heights[:i])))
    return out


def save_grids(folder, pictures, each=8):
    """geneval_{seen,unseen}.png, an unpicked sample (the first ones of each task), and *_failures.png."""
    for group, kept in pictures.items():
        for suffix, chosen in (("", kept), ("_failures", [p for p in kept if not p[0]["correct"]])):
            by_task = {}
            for p in chosen:
                by_task.setdefault(p[1]["tag"], []).append(p)
            if by_task:
                rows = [p for task in by_task.values() for p in (task[:each] if len(by_task) > 1 else task[:4 * each])]
                grid(rows, each).save(folder / f"geneval_{group}{suffix}.png")
