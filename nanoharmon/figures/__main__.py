"""Draw docs/figures/*.png and write docs/WALK.md anew, from today's code and checkpoint. Half a minute.

    python -m nanoharmon.figures

One prompt is drawn and one question answered with the shipped checkpoint while both are watched; everything that a
figure shows comes from there, or from the code. After a new checkpoint, or when lines of the core have moved, run it.
"""
from pathlib import Path

from PIL import Image

from ..cli import Parser, run_main
from ..config import PRESETS
from ..explain import ROOT, Walk, as_markdown
from ..files import check_folder, content_hash, write_bytes
from ..pictures import read_image
from ..pipeline import SHIPPED, load_pipeline
from ..training.recipe import Config
from . import plates, spy

PROMPT, QUESTION = "a red circle left of a blue square", "what color is the ring?"       # README's
PRESET, SHARE = "nano", 1 / 3                           # of the model; of the tokens that are visible at a moment
ITERS = 64, 18                                          # of the official model, and of the shipped checkpoint
ALT = {
    "architecture": "The parts of Harmon and the shapes between them: understanding and generation pass through the "
                    "same MAR encoder and LLM; generation goes on through proj_out, a sum with the encoder's output, "
                    "the MAR decoder and the diffusion MLP, whose new token joins the picture",
    "masking": "Share of hidden tokens in training, for Harmon and nano, and the number of tokens that each drawing "
               "iteration uncovers: few at first, many at the end",
    "uncovering": "Seven moments of one drawing: grey places are hidden, and fewer each time",
    "attention": "Three matrices of attention: the MAR encoder's, full; the LLM's, a lower triangle of prompt, visible "
                 "tokens and buffers; the MAR decoder's, full",
    "buffers": "For each of the buffers, the places of a picture that it attends to in the encoder, and the words of "
               "the prompt that it attends to in the LLM",
    "diffusion": "Eight moments of one token's diffusion, decoded: the token from noise to a piece of the picture, and "
                 "the clean token predicted at each of them; below, its numbers",
}
TEACHES = {
    "uncovering": "Tokens are uncovered in random order. With the prompt, visible tokens decide what goes beside "
                  "them, so the first ones weigh most.",
    "masking": "A drawing begins with everything hidden, so training hides most of a picture, too. While drawing, few "
               "tokens are uncovered as long as little is known, and many at the end. (The drawing here is the "
               "one of 36 tokens in 18 iterations.)",
    "attention": "Encoder and decoder look both ways, the LLM only at earlier tokens. That is why the buffers, first "
                 "everywhere else, are last there: they see the prompt and all visible tokens.",
    "diffusion": "z says what belongs at a place; given z, a token is drawn from noise: in every step the "
                 "diffusion MLP predicts the noise; that implies a clean token, and the noisy one moves towards it.",
    "buffers": "All buffers start as the same vector but for their positions. Above, what they gather from a picture; "
               "below, from a prompt, which they alone bring to the decoder when everything is hidden.",
}
FIXED = "architecture", "masking"                       # these do not depend on the checkpoint
# the pictures of WALK.md, by the chapter that they stand in
SHOWN_IN = {"An iteration: some tokens are drawn": ("uncovering", "masking", "attention", "diffusion"),
            "The encoder sees all of it": ("buffers",)}
WALK = """# One request, followed through the model

`python -m nanoharmon.figures` writes this page and its pictures. For a request of your own, or another size of model:

```sh
{draw}
{answer}
{dry}
```

A small debugger runs beside the real code and notes what is assigned where. So each row below has the name of a
variable, its shape in numbers and in letters, its type and range, and the line that assigned it. The words are those of
the README's glossary.

![{alt}](figures/architecture.png)

## A drawing

`{draw}`

{drawing}

## An answer

`{answer}`

{answering}

The reply: "{reply}".
"""


def fixed_plates():
    """{name: Canvas} of the figures that do not depend on the checkpoint."""
    size = Config.preset(PRESET).stages["3"].size
    scene = read_image(ROOT / "docs" / "scene.png").resize((size, size), Image.Resampling.BICUBIC)
    return {"architecture": plates.architecture(PRESET, scene, SHARE),
            "masking": plates.masking(PRESET, size // PRESETS[PRESET]().vae.stride, ITERS)}


def figures(pipe):
    """All figures, {name: Canvas}, and the text of WALK.md."""
    scene = read_image(ROOT / "docs" / "scene.png")
    with Walk(pipe) as drawn:
        kept = spy.drawing(pipe, PROMPT, seed=0)
    with Walk(pipe) as answered:
        reply = pipe.answer(scene, QUESTION)
    moment = spy.moment(pipe, kept.thought, kept.latents[-1], kept.grid, SHARE)
    found = {"uncovering": plates.uncovering(pipe, kept, PROMPT), "attention": plates.attention(moment),
             "buffers": plates.buffers(spy.seen_by_buffers(pipe, scene), scene, moment),
             "diffusion": plates.diffusion(pipe, kept)}
    return fixed_plates() | found, page(drawn, answered, reply)


def page(drawn, answered, reply):
    """The text of WALK.md."""
    commands = {"draw": f'python sample.py --explain --n 1 --redraw 0 --prompt "{PROMPT}"',
                "answer": f'python chat.py --explain --image docs/scene.png --prompt "{QUESTION}"',
                "dry": f'python sample.py --explain --dry-run harmon-1.5b --prompt "{PROMPT}"'}
    pictures = {title: "\n\n".join(f"![{ALT[name]}](figures/{name}.png)\n\n{TEACHES[name]}" for name in names)
                for title, names in SHOWN_IN.items()}
    return WALK.format(**commands, alt=ALT["architecture"], drawing=as_markdown(drawn, pictures),
                       answering=as_markdown(answered, pictures), reply=reply)


def checkpoint_id(path):
    """What a figure that depends on a checkpoint says about its weights."""
    return "checkpoint " + content_hash(Path(path, "model.safetensors"))[:16]


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.figures", description=__doc__)
    parser.add_argument("--out", metavar="DIR", default=str(ROOT / "docs"),
                        help="DIR/figures/*.png and DIR/WALK.md are written (default docs, beside the code)")
    args = parser.parse_args(argv)
    out = check_folder(args.out, "--out")
    found, text = figures(load_pipeline(SHIPPED, "cpu"))
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, canvas in found.items():
        canvas.save(out / "figures" / f"{name}.png", "code" if name in FIXED else checkpoint_id(SHIPPED))
    write_bytes(out / "WALK.md", text.encode())
    print(f"wrote {out / 'WALK.md'} and {len(found)} pictures in {out / 'figures'}")


if __name__ == "__main__":
    run_main(main)
