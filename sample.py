"""Draw pictures from text.

    python sample.py --prompt "a red circle left of a blue square"
    python sample.py --prompt "two green rings" --prompt "a white cross" --n 8 --seed 7 --out rings.png
    python sample.py --prompt "a yellow circle" --gif unmask.gif              watch the tokens being uncovered
    python sample.py --prompt "a circle and a ring" --no-think                without saying first what will be where
    python sample.py --prompt "a red square" --image in.png --region 0,0,48,48        a part anew, and nothing else
    python sample.py --prompts-file prompts.txt --fast --save-each out/       a measured faster way, and one file each
    python sample.py --explain --n 1 --prompt "a red circle"                  what happens inside, step by step

Drawing starts with every token hidden. --iters times some are picked at random (cosine schedule: few at first, many
at the end), and a diffusion of --steps steps draws each of them given all that is visible. Then come
--redraw rounds: each half is drawn anew, given the other. --cfg is the strength of guidance. Where the checkpoint can
--think, it first says in words what will be where, and draws that.
"""
import sys
import time
from argparse import ArgumentTypeError
from contextlib import nullcontext
from pathlib import Path

from PIL import Image, ImageDraw

from nanoharmon.cli import (Parser, bar, drawing_flags, explain_flags, first_of, model_flags, number, refuse_beside,
                            run_main, text)
from nanoharmon.files import check_folder, check_output, text_of, write_bytes
from nanoharmon.pictures import file_bytes, font_for, open_image

SHOWN = 192                                  # smaller pictures are enlarged to at least this side in the grid
MARGIN, LABEL = 8, 22                        # pixels of the grid: around pictures, and above a row for its prompt
COLUMNS = 4                                  # at most so many prompts side by side, when each has a single picture
EACH = "{:03d}_{}.png".format                # a file of --save-each: number of the prompt, and of its picture
DRAWS = ("batch", "out", "save_each", "gif", "image", "region", "cfg_schedule", "redraw", "steps", "sampler",
         "temperature", "think", "seed", "device", "dtype")             # of the drawing itself: --dry-run has none
HOLD, FRAME = 2000, 120                      # milliseconds of the last and the other frames of a GIF


def parse_args(argv=None):
    parser = Parser(prog="sample.py", description=__doc__)
    add = parser.add_argument
    add("--prompt", action="append", default=[], metavar="TEXT", help="what to draw; several times for several rows")
    add("--prompts-file", metavar="FILE", help="one prompt per line, UTF-8")
    add("--n", type=number(int, 1, 256), default=4, help="pictures per prompt, drawn as one batch (default 4)")
    add("--batch", type=number(int, 1, 256), help="prompts drawn at once: changes pictures by rounding only "
        "(default: 16 pictures' worth)")
    add("--out", default="grid.png", metavar="FILE", help="all pictures in a grid, prompts above the rows (default "
        "grid.png)")
    add("--save-each", metavar="DIR", help="also write every picture by itself, at its own size")
    add("--gif", metavar="FILE", help="also write how the pictures come about; hidden places are grey")
    add("--size", type=size, metavar="N|WxH", help="pixels, multiples of the VAE's stride (default: the checkpoint's)")
    add("--image", metavar="FILE", help="with --region: the picture to change; it is resized to --size")
    add("--region", type=box, metavar="x0,y0,x1,y1", help="the part to draw anew, in pixels of --image; whole tokens")
    drawing_flags(parser)
    explain_flags(parser)
    model_flags(parser)
    args = parser.parse_args(argv)
    if args.image and not args.region:
        parser.error("--image without the part to draw anew, expected a part of the image; pass --region x0,y0,x1,y1 "
                     "(chat.py --image asks about a picture)")
    if args.fast and None not in (args.iters, args.steps, args.redraw):
        parser.error("--fast chooses --iters, --steps and --redraw, and all are given; drop --fast")
    if args.dry_run and not args.explain:
        parser.error("--dry-run is for --explain, expected both; pass --explain")
    if args.dry_run:
        refuse_beside(parser, args, "--dry-run", DRAWS, "draws nothing")
    return args


def size(words):
    """"96" or "96x64" -> (width, height)."""
    sides = [int(n) if n.isascii() and n.isdigit() and len(n) < 6 else 0 for n in words.lower().split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise ArgumentTypeError(f"got {words!r}, expected pixels below 100000 such as 96 or 96x64")
    return sides[0], sides[-1]


def box(words):
    """"x0,y0,x1,y1" -> a part of a picture, in pixels."""
    try:
        x0, y0, x1, y1 = map(int, words.split(","))
    except ValueError:
        raise ArgumentTypeError(f"got {words!r}, expected four pixel numbers such as 0,0,48,48") from None
    return x0, y0, x1, y1


def read_prompts(args):
    prompts = [text(p, "--prompt") for p in args.prompt]
    if args.prompts_file:
        lines = text_of(args.prompts_file, "--prompts-file", "one prompt per line").splitlines()
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"no prompt {f'in {args.prompts_file}' if args.prompts_file else 'given'}, expected what to "
                         f"draw; pass --prompt TEXT or --prompts-file FILE")
    return prompts


def check_outputs(args, rows):
    """Complain about what cannot be written, and about what would overwrite --image, or one another."""
    check_output(args.out, "--out", (".png",))
    if args.gif:
        check_output(args.gif, "--gif", (".gif",))
    if args.save_each:
        check_folder(args.save_each, "--save-each")          # made later, when there is something to put in it
    folder = args.save_each and Path(args.save_each).resolve()
    files = {flag: Path(path).resolve() for flag, path in (("--image", args.image), ("--out", args.out),
                                                           ("--gif", args.gif)) if path}
    for flag, path in files.items():
        if flag != "--image" and path == files.get("--image"):
            raise ValueError(f"{path.name} is the picture that --image reads, and would be overwritten; pass another "
                             f"{flag}")
        if path.parent == folder and any(path.name == EACH(r, c) for r in range(rows) for c in range(args.n)):
            raise ValueError(f"{path.name} of {flag} would be overwritten; pass another --save-each")


# --- pictures -------------------------------------------------------------------------------------------------------

def make_grid(prompts, rows):
    """One row of n pictures per prompt, the prompt above it; with n = 1, rows stand side by side."""
    n, (width, height) = len(rows[0]), rows[0][0].size
    zoom = -(-SHOWN // min(width, height))                       # a whole number keeps pixels square
    width, height, step = width * zoom, height * zoom, LABEL + height * zoom + MARGIN
    columns, block = min(COLUMNS, len(rows)) if n == 1 else 1, n * (width + MARGIN)
    sheet = Image.new("RGB", (columns * block + MARGIN, -(-len(rows) // columns) * step + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    # not a picture_grid of tiles: letters may reach over their edges, and old seeds must keep their bytes
    for r, (prompt, row) in enumerate(zip(prompts, rows)):
        left, top, font = MARGIN + r % columns * block, r // columns * step, font_for(prompt)
        pen.text((left, top + 5), fit(prompt, pen, font, block - MARGIN), "black", font)
        for c, picture in enumerate(row):
            picture = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + c * (width + MARGIN), LABEL + top + MARGIN // 2))
    return sheet


def fit(words, pen, font, width):
    """Words on one line, cut with dots where they would be wider than the grid."""
    words = " ".join(words.split())[:1000]
    if pen.textlength(words, font) <= width:
        return words
    while words and pen.textlength(words + "...", font) > width:
        words = words[:-1]
    return words + "..."


def save_row(folder, r, row):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for c, picture in enumerate(row):
        write_bytes(Path(folder) / EACH(r, c), file_bytes(picture))


def write_pictures(args, prompts, rows, films, image):
    """The grid of all pictures, and what --gif asks for; says what else --save-each holds. image: --image's or None."""
    write_bytes(args.out, file_bytes(make_grid(prompts, rows)))
    if args.gif:
        size = rows[0][0].size                                   # first all is hidden, or as it was
        first = image.resize(size) if image else Image.new("RGB", size, (128, 128, 128))
        frames = [make_grid(prompts, frame) for frame in ([[first] * args.n] * len(rows), *zip(*films))]
        write_bytes(args.gif, file_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0,
                                         optimize=False, duration=[FRAME] * (len(frames) - 1) + [HOLD]))
    if args.save_each:
        new = {EACH(r, c) for r in range(len(rows)) for c in range(args.n)}
        if old := sorted(p.name for p in Path(args.save_each).glob("[0-9]*_[0-9]*.png") if p.name not in new):
            print(f"note: older pictures stay in {args.save_each}: {first_of(old, 3)}", file=sys.stderr)


# --- the run ----------------------------------------------------------------------------------------------------------

def think(pipe, prompts, n, seed):
    """{prompt: a thought for each of its n pictures}. Raises ValueError for what the model refuses."""
    from nanoharmon.tokenizer import REFUSAL
    thoughts = {prompt: pipe.think([prompt] * n, seed) for prompt in dict.fromkeys(prompts)}
    if refused := [(p, thought) for p, said in thoughts.items() for thought in said if thought.startswith(REFUSAL)]:
        names = list(dict.fromkeys(repr(prompt[:40]) for prompt, _ in refused))
        raise ValueError(f"refused: {first_of(names, 8)}: {refused[0][1]}")
    return thoughts


def main(argv=None):
    args = parse_args(argv)
    prompts = read_prompts(args)
    if args.dry_run and len(prompts) > 1:
        raise ValueError(f"--dry-run follows one prompt, got {len(prompts)}; pass one of them")
    image = open_image(args.image) if args.image else None           # first: it says so if no file can have that name
    check_outputs(args, len(prompts))
    from nanoharmon.plans import OFFICIAL, refuse_idle, settled
    from nanoharmon.pipeline import load_pipeline            # only now: torch takes a second, --help needs none of it
    from nanoharmon.words import note_changed, note_unseen, put_right
    if args.explain:
        from nanoharmon import explain
    pipe = explain.without_weights(args.dry_run, args.ckpt) if args.dry_run else \
        load_pipeline(args.ckpt, args.device, args.dtype)
    typed, prompts = prompts, [put_right(pipe.meta, prompt) for prompt in prompts]
    options = {"size": args.size, "image": image, "region": args.region, **{k: getattr(args, k) for k in OFFICIAL}}
    plan = pipe.plan(prompts, **options)      # complains about any prompt before the first is drawn
    refuse_idle(plan, options)
    for note in filter(None, (note_changed(typed, prompts), note_unseen(pipe.meta, prompts))):
        print(note, file=sys.stderr)
    if args.dry_run:
        return print(explain.as_text(explain.dry_draw(pipe, prompts[0], args.n, plan)))
    walk = explain.Walk(pipe) if args.explain else nullcontext()

    start, rows, films = time.time(), [], []
    options |= settled(plan)                 # thinking is done here, to be shown
    n, batch = args.n, args.batch or max(1, 16 // args.n)
    with walk, bar(total=len(prompts) * plan["total"], desc="drawing", unit="iter") as shown:
        thoughts = think(pipe, prompts, n, args.seed) if plan["think"] else {}       # all, before any is drawn
        for part in (prompts[i:i + batch] for i in range(0, len(prompts), batch)):
            for prompt in part if thoughts else ():
                shown.write("\n".join([f"{prompt}:", *(f"  {thought}" for thought in thoughts[prompt])]))
            film, texts = [], [words for prompt in part for words in thoughts.get(prompt, [prompt] * n)]
            # the same seed for every prompt: rows do not depend on each other
            drawn = pipe.draw(texts, seed=args.seed, group=n, on_iteration=film.append if args.gif else None,
                              progress=lambda: shown.update(len(part)), **options)
            for i in range(0, len(drawn), n):
                if args.save_each:                               # at once: the rest may take hours
                    save_row(args.save_each, len(rows), drawn[i:i + n])
                rows.append(drawn[i:i + n])
                films.append([pictures[i:i + n] for pictures in film])
    seconds = time.time() - start
    if args.explain:
        print(explain.as_text(walk), end="\n\n")

    write_pictures(args, prompts, rows, films, image)
    settings = [f"{name} {plan[name]:g}" if isinstance(plan[name], float) else f"{name} {plan[name]}"
                for name in ("cfg", "cfg_schedule", "iters", "redraw", "steps", "sampler", "temperature", "think")]
    print(f"wrote {', '.join(filter(None, (args.out, args.gif, args.save_each)))}: {len(prompts)} x {args.n} pictures "
          f"of {'x'.join(map(str, plan['size']))} in {seconds:.1f} s on {pipe.device}")
    print(f"settings: {', '.join(settings)}, seed {args.seed}".replace("cfg_schedule ", ""))


if __name__ == "__main__":
    run_main(main)
