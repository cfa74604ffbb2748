"""The exercises: which functions of the real code a student writes anew, and what they are worth.

This table is all that the code knows about the course: no file of the model has a marker in it. What belongs to a row:
tasks/exNN.md (text and hints), checks/exNN.py (the tests of student and grader), tests/course/exNN.py (wrong and right
solutions that prove the tests). docs/TEACHING.md says how to add a row.
"""
from dataclasses import dataclass

from ..config import nearest

LABS = {"see": "a picture becomes words", "draw": "noise becomes a picture", "unify": "one encoder does both"}


@dataclass(frozen=True)
class Exercise:
    number: int
    name: str
    lab: str
    file: str                                                    # beneath nanoharmon/
    functions: tuple                                             # qualified names in it, in the order of the file
    minutes: int                                                 # an estimate, for who has read the files before
    points: int
    title: str

    @property
    def id(self):
        return f"ex{self.number:02d}"


EXERCISES = tuple(Exercise(i, *row) for i, row in enumerate((
    ("latents", "see", "vae.py", ("VAE.encode", "VAE.decode"), 20, 4, "Pixels to latents and back"),
    ("attention", "see", "mar.py", ("Attention.forward",), 35, 5, "Attention with heads"),
    ("positions", "see", "mar.py", ("MAR.pos_embed",), 25, 4, "Learned positions on another grid"),
    ("rmsnorm", "see", "qwen.py", ("RMSNorm.forward",), 10, 3, "RMSNorm"),
    ("rope", "see", "qwen.py", ("rope_tables", "rotate"), 35, 4, "Rotary positions"),
    ("gqa", "see", "qwen.py", ("SelfAttention.forward",), 40, 5, "Grouped-query attention"),
    ("cache", "see", "qwen.py", ("KVCache.extend", "causal_mask"), 35, 5, "A KV cache that changes nothing"),
    ("chat", "see", "tokenizer.py", ("Tokenizer.chat",), 30, 4, "The chat template, and what is supervised"),
    ("noise", "draw", "diffusion.py", ("cosine_betas", "Diffusion.q_sample"), 20, 3,
     "Cosine schedule and noised tokens"),
    ("loss", "draw", "diffusion.py", ("Diffusion.loss", "Diffusion.variational_bound"), 40, 4,
     "The eps loss and the learned variance"),
    ("reverse", "draw", "diffusion.py", ("Diffusion.q_posterior", "Diffusion.predict_x0", "Diffusion.p_mean_variance"),
     35, 4, "One reverse step"),
    ("guidance", "draw", "diffloss.py", ("DiffLoss.guide",), 20, 3, "Classifier-free guidance"),
    ("adaln", "draw", "diffloss.py", ("modulate", "ResBlock.forward"), 15, 3, "A block that the condition modulates"),
    ("split", "draw", "mar.py", ("mask_ratio_at", "random_split"), 30, 4, "How many tokens are hidden, and which"),
    ("hide", "draw", "mar.py", ("MAR.encode", "MAR.decode"), 50, 6, "Hide tokens, and restore their places"),
    ("unmasking", "draw", "mar.py", ("unmasking_schedule",), 20, 3, "Cosine unmasking"),
    ("drawing", "draw", "mar.py", ("MAR.draw",), 50, 6, "The drawing loop"),
    ("buffers", "unify", "harmon.py", ("Harmon.see",), 15, 4, "Buffers go to the end"),
    ("residual", "unify", "harmon.py", ("Harmon.through_llm",), 50, 7, "Through the LLM and back"),
    ("splice", "unify", "harmon.py", ("Harmon.embed_with_images",), 30, 6, "Pictures among the words"),
    ("stages", "unify", "training/optim.py", ("select",), 20, 4, "Which parameters a stage trains"),
    ("ema", "unify", "training/optim.py", ("EMA.update", "EMA.swap"), 25, 4, "A moving average of the weights"),
    ("muon", "unify", "training/optim.py", ("orthogonalize", "lr_factor"), 40, 5, "Muon and the learning rate"),
), start=1))


def find(text):
    """The exercise with that number or name: "7", "07", "ex07", "cache". Raises ValueError that names the nearest."""
    for exercise in EXERCISES:
        if text.removeprefix("ex").lstrip("0") == str(exercise.number) or text == exercise.name:
            return exercise
    raise ValueError(f"unknown exercise {text!r}{nearest(text, [e.name for e in EXERCISES])}, expected 01 to "
                     f"{EXERCISES[-1].number:02d} or a name; python -m nanoharmon.course check lists them")


def chosen(lab=None, only=None):
    """The exercises of a lab, or those that `only`, comma-separated, names; all of them without either."""
    if lab is not None and lab not in LABS:
        raise ValueError(f"unknown lab {lab!r}{nearest(lab, LABS)}, expected one of {', '.join(LABS)}; pass --lab see")
    picked = {find(name.strip()) for name in only.split(",")} if only else set(EXERCISES)
    found = [e for e in EXERCISES if e in picked and lab in (None, e.lab)]
    if not found:
        raise ValueError(f"no exercise of --only {only} is in lab {lab}; drop --lab")
    return found
