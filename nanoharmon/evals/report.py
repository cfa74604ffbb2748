"""What the benchmarks show: Markdown tables, and grids of pictures with the judge's verdict under each."""
from PIL import Image, ImageOps

from ..cli import markdown_table
from ..pictures import captioned, picture_grid
from ..world import prompts
from .geneval import REASONS

RIGHT, WRONG = (60, 200, 90), (230, 60, 60)                     # frames of pictures


# --- tables -----------------------------------------------------------------------------------------------------------

def cell(value):
    """"87.5 [84.1, 90.3]" for a rate in percent and its interval, other numbers as they are."""
    if isinstance(value, dict):
        return f"{100 * value['rate']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def markdown(rows):
    """A Markdown table of {row name: {column name: value}}."""
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    return markdown_table(["", *columns], [[name, *(cell(row.get(c)) for c in columns)] for name, row in rows.items()])


def titled(title, rows):
    """A Markdown table below its title."""
    return f"{title}\n\n{markdown(rows)}\n"


def tables(results):
    """All tables of what evaluate.run_benchmarks measured, as one text."""
    parts = []
    for bench, found in results.items():
        if bench == "geneval":
            columns = {title: rates for group in found for title, rates in (
                (group, found[group]), (f"{group}, the thought", found[group].get("words", {})))}
            rows = {name: {title: rates.get(name) for title, rates in columns.items() if rates}
                    for name in found["seen"] if name not in ("reasons", "words")}
            for name in ("color", "shape", "number"):        # single objects, not whole pictures
                rows[f"{name} right"] = rows.pop(name)
            parts.append(titled("shapes-GenEval: pictures right, %; and the thought, said before drawing",
                                rows))
            for group in found:
                wrong = found[group]["reasons"]
                rows = {"(right)": {task: found[group][task]["right"] for task in wrong}}
                rows |= {r: {task: wrong[task].get(r, 0) for task in wrong} for r in REASONS}
                parts.append(titled(f"what goes wrong, {group} pairs: number of pictures", rows))
        elif bench == "ours":
            parts.append(titled("tasks that GenEval has not: pictures right, %", {
                task: {"right": found[task], "the thought": found.get("words", {}).get(task)}
                for task in (*prompts.OURS, "overall")}))
        elif bench == "vae":
            parts.append(titled("VAE reconstructions", {"all objects right, %": {"": found["right"]},
                                                        "before the VAE, %": {"": found["original"]},
                                                        "PSNR, dB": {"": found["psnr"]}}))
        elif bench == "pope":
            parts.append(titled("shapes-POPE: free text; likelihood: how often the likelier of yes and no is right",
                                {f"{sampling}, {group}": figures for group, by in found.items()
                                 for sampling, figures in by.items()}))
        elif bench == "vqa":
            columns = {name: by for group in found for name, by in (
                (group, found[group]), (f"{group}, likelihood", found[group]["likelihood"]))}
            parts.append(titled("shapes-VQA: free text, and likeliest candidate, right, %",
                                {kind: {name: by.get(kind) for name, by in columns.items()}
                                 for kind in found["seen"] if kind != "likelihood"}))
        elif bench == "caption":
            parts.append(titled("captions right, %", {"caption": found}))
        elif bench == "phrases":
            for what in "questions", "requests":
                columns = {title: found[title] for title in found if title.startswith(what)}
                parts.append(titled(f"{what} in the wordings of training and in others, right, %",
                                    {kind: {title: by.get(kind) for title, by in columns.items()}
                                     for kind in next(iter(columns.values()))}))
            parts.append(titled("refused, %: of what the world has (0 is right), of what it does not (100 is)",
                                {name: {"refused": found["refused"][name]} for name in found["refused"]}))
        elif bench == "chat":
            parts.append(titled("conversations, right, %", {f"turn {k}" if k.isdigit() else k: {"right": v} for k, v in
                                                            found["turn"].items()}))
            parts.append(titled("conversations by kind of turn, right, %", {k: {"right": v} for k, v in
                                                                            found["kind"].items()}))
            parts.append(titled("replies that are sentences, %", {"": {"sentences": found["sentences"]}}))
        elif bench == "edit":
            parts.append(titled("one cell drawn anew, right, %", {k: {"right": v} for k, v in found.items()}))
        elif bench == "quality":
            parts.append(titled("distribution of the pictures in the eye's feature space (quality.py); not FID", found))
        else:
            parts.append(titled("linear probe: held-out pictures right, %", found))
    return "\n".join(parts)


# --- picture grids ----------------------------------------------------------------------------------------------------

def saw(objects):
    """What the judge found, in words, left to right; ? is what it could not name."""
    return ", ".join(f"{o.color or '?'} {o.shape or '?'}" for o in sorted(objects, key=lambda o: o.x)) or "nothing"


def tile(verdict, meta, picture):
    """A picture (H, W, 3) in a green or red frame; below it the prompt, what the model said first, what the judge saw,
    and why it is wrong."""
    said = f"said: {meta['said']}" if "said" in meta else ""
    text = "; ".join(filter(None, (meta["prompt"], said, f"saw: {saw(verdict['objects'])}", verdict["reason"])))
    color = RIGHT if verdict["correct"] else WRONG
    framed = ImageOps.expand(Image.fromarray(picture), max(1, len(picture) // 24), color)
    return captioned(framed, text, 150, lines=9)


def save_grids(folder, pictures, each=8):
    """GROUP.png, an unpicked sample (the first ones of each task), and GROUP_failures.png.

    pictures: {group: [(verdict, meta, picture)]}, of groups such as geneval_unseen.
    """
    for group, kept in pictures.items():
        for suffix, chosen in (("", kept), ("_failures", [p for p in kept if not p[0]["correct"]])):
            by_task = {}
            for p in chosen:
                by_task.setdefault(p[1]["tag"], []).append(p)
            path = folder / f"{group}{suffix}.png"
            path.unlink(missing_ok=True)                         # else failures of an earlier checkpoint stay
            if by_task:
                rows = [p for task in by_task.values() for p in (task[:each] if len(by_task) > 1 else task[:4 * each])]
                picture_grid([tile(*p) for p in rows], each).save(path)
