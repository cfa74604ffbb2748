"""What `--explain` tells: chapters of steps, each an assignment somewhere in the code, with a sentence about it.

explain.py waits for these assignments while a request runs. A chapter is told once, in the order in which they happen.
LETTERS are those of nanoharmon/__init__.py, and some more.
"""
import functools
import re
from dataclasses import dataclass, field

import torch

from .diffloss import DiffLoss
from .diffusion import Diffusion
from .harmon import Harmon
from .mar import MAR
from .pipeline import Pipeline
from .qwen import KVCache, Qwen, sample_token
from .tokenizer import IMAGE, Tokenizer
from .vae import VAE


LETTERS = {"B": "pictures or questions at once", "R": "rows (README: N): B, plus B unconditional with guidance",
           "T": "text tokens", "S": "image tokens", "K": "visible ones", "m": "drawn in this iteration", "U": "buffers",
           "D": "width of the MAR",
           "E": "width of the LLM", "C": "numbers of an image token", "L": "places in the LLM", "V": "vocabulary",
           "G": "key/value heads", "d": "width of a head", "h": "tokens down", "w": "tokens across", "H": "pixels down",
           "W": "pixels across"}


def tokens(ids, pipe):
    """Ids as the text tokens that they stand for, spaces as _; the places of a picture are counted."""
    if isinstance(ids, torch.Tensor):
        if ids.is_meta:
            return ""
        ids = ids.flatten().tolist()
    decode = functools.partial(pipe.tokenizer.inner.decode, skip_special_tokens=False)
    words = " ".join("<picture>" if i == IMAGE else decode([i]).replace("\n", "\\n").replace(" ", "_") for i in ids)
    return re.sub(r"<picture>(?: <picture>)+", lambda m: f"<{m[0].count('<')} places for the picture>", words)


def likeliest(logits, pipe):
    """The three likeliest next tokens, with their probabilities."""
    if logits.is_meta:
        return ""
    probs, ids = logits[0].softmax(-1).topk(3)
    return ", ".join(f"{tokens([i], pipe)} {p:.1%}" for p, i in zip(probs.tolist(), ids.tolist()))


def countdown(counts, pipe):
    """A long list of numbers, its middle left out."""
    return " ".join(map(str, counts if len(counts) < 20 else [*counts[:10], "...", *counts[-5:]]))


@dataclass(eq=False)
class Step:
    """name: a local variable of `function`; "(name" one of its parameters, "-> name, name" what it returns.
    letters: its shape. sentence: None where an assignment is not worth telling. show: more about the value.
    again: told once more as it is in the end, in the last iteration."""
    function: object
    name: str
    letters: str = ""
    sentence: str | None = None
    show: object = None
    again: bool = False
    is_told: bool = False


@dataclass(eq=False)
class Chapter:
    title: str
    entry: object                       # it begins when this function is called, and ends when that returns
    intro: str
    steps: list
    inside: object = None               # the entry of the chapter that it is a part of
    rows: list = field(default_factory=list)
    last: list = field(default_factory=list)                     # rows of the steps that are told again
    sizes: dict = field(default_factory=dict)                    # what the letters stand for


def next_token(choice):
    """The steps in which the LLM says a thought or an answer. choice: how a token is picked."""
    return [Step(Qwen.generate, "states", "B, E", "What the LLM's {llm.num_hidden_layers} layers make of the last "
                 "token: all that they know about the next one."),
            Step(sample_token, "(logits", "B, V", "A score for every token of the vocabulary; the likeliest to come "
                 "next:", likeliest),
            Step(Qwen.generate, "ids", "B", f"{choice} It is appended, and so on until <|im_end|>:", tokens)]


def chapters():
    """New ones for every walk, to be filled."""
    return [
        Chapter("Thinking first", Pipeline.think, "The LLM says in words what it will draw. This thought is the prompt "
                "from here on (--no-think leaves it out).", [
            Step(Tokenizer.drawing_request, "-> ids", "", "The request in lower case, as tokens (_: a space):", tokens),
            Step(Pipeline.think, "ids", "B, T", "The number of each token in the vocabulary."),
            Step(Qwen.embed, "-> embeds", "B, T, E", "Each number picks its row of the embedding table."),
            *next_token("One is picked at random, hardly ever an unlikely one."),
            Step(Pipeline.think, "thoughts", "", "What the LLM has said."),
        ]),
        Chapter("The prompt becomes numbers", Pipeline.prompt_ids, "With guidance, every iteration runs for two "
                "prompts at once, the picture's own and the unconditional one, and compares the two.", [
            Step(Tokenizer.drawing_request, "text", "", "The prompt goes into the sentence that training used."),
            Step(Tokenizer.drawing_request, "-> ids", "", "It is cut into tokens:", tokens),
            Step(Pipeline.prompt_ids, "-> ids, is_real", "R, T | R, T", "The number of each token in the vocabulary; "
                 "with guidance, the last B rows are \"Generate an image.\" | Which of them count: shorter rows are "
                 "padded at the end."),
        ]),
        Chapter("The LLM reads the prompt once", Harmon.draw, "The prompt stays the same while the picture grows. So "
                "its keys and values are computed once and kept.", [
            Step(Qwen.embed, "-> embeds", "R, T, E", "Each number picks its row of the embedding table."),
            Step(KVCache.extend, "-> k, v", "R, G, T, d | R, G, T, d", "The keys of the first layer, which later "
                 "tokens will compare themselves with | and the values that they will read there."),
        ]),
        Chapter("An iteration: some tokens are drawn", MAR.draw, "At first all tokens are hidden, or all of a "
                "--region. Each iteration draws one or more of them, given the prompt and all that is visible. At the "
                "end, --redraw hides and redraws one half, and then the other.", [
            Step(MAR.draw, "latents", "B, S, C", "The picture to be: S tokens of C numbers."),
            Step(MAR.draw, "counts", "", "How many tokens are hidden before each iteration, and after the last:",
                 countdown),
            Step(MAR.draw, "visible", "B, K", "The places that are visible: none yet, or those around a --region.",
                 again=True),
            Step(MAR.draw, "to_draw", "B, m", "The places that this iteration draws, picked at random.", again=True),
            Step(MAR.encode, "buffers", "B, U, D", "The buffers: tokens that are always there, with positions."),
            Step(MAR.encode, "x", "B, K, D", "The visible tokens, as wide as the encoder, with positions."),
            Step(MAR.encode, "x", "B, U+K, D", "Buffers and visible tokens as one sequence."),
            Step(Harmon.see, "encoded", "B, U+K, D", "After the encoder's {mar.encoder_depth} blocks, in which every "
                 "token attends to every other."),
            Step(Harmon.see, "embeds", "B, U+K, E", "Projected to the width of the LLM."),
            Step(Harmon.see, "-> encoded, embeds", "B, U+K, D | B, K+U, E", "The same for the decoder later | and for "
                 "the LLM with the buffers at the end, where they see all before them.", again=True),
            Step(Harmon.through_llm, "positions", "R, T+K+U", "The picture's positions go on where the prompt ends."),
            Step(Harmon.through_llm, "states", "R, K+U, E", "The LLM's last states: it has read the prompt (from its "
                 "cache), then the picture so far."),
            Step(Harmon.through_llm, "states", "R, K+U, D", "Projected back to the width of the MAR."),
            Step(Harmon.through_llm, "-> summed", "R, U+K, D", "Encoder plus LLM: this is where the prompt reaches the "
                 "picture.", again=True),
            Step(MAR.decode, "x", "R, U+K, D"),
            Step(MAR.decode, "canvas", "R, S, D", "One learned vector, the mask token, at every place of the picture."),
            Step(MAR.decode, "canvas", "R, S, D", "The visible tokens are put over it."),
            Step(MAR.decode, "x", "R, U+S, D", "The buffers before them: the decoder's input."),
            Step(MAR.decode, "-> z", "R, m, D", "After {mar.decoder_depth} blocks: at each place to draw, a vector "
                 "that says what belongs there.", again=True),
            Step(Diffusion.sample, "(x", "B*m, C", "A token begins as pure noise."),
            Step(DiffLoss.guide, "cond", "B*m, 2C", "What the diffusion MLP makes of this noise and z: the noise it "
                 "finds there (C numbers), and how much new noise the step adds (C more)."),
            Step(DiffLoss.guide, "eps", "B*m, C", "Guidance: away from what the row without a prompt says, and past "
                 "what the one with it says."),
            Step(Diffusion.sample, "mean", "B*m, C", "One diffusion step: what would be left without new noise. In the "
                 "first step nearly all of the old noise goes,"),
            Step(Diffusion.sample, "x", "B*m, C", "and ddpm adds new noise: much now, less in each later "
                 "step."),
            Step(DiffLoss.sample, "-> tokens", "B*m, C", "After the last diffusion step: the tokens."),
            Step(MAR.draw, "new", "B*m, C"),
            Step(MAR.draw, "new", "B, m, C", "The same, by picture."),
            Step(MAR.draw, "latents", "B, S, C", "They are put at their places. The next iteration sees them.",
                 again=True),
        ], Harmon.draw),
        Chapter("Latents become pixels", VAE.decode, "When nothing is hidden any more, the VAE makes a picture of the "
                "tokens.", [
            Step(VAE.decode, "mean", "B, C, h, w", "Divided by vae.scale, on the grid."),
            Step(VAE.decode, "-> image", "B, 3, H, W", "The VAE's decoder: red, green and blue, from -1 to 1."),
        ]),
        Chapter("The words around the picture", Pipeline.chat_ids, "A question is a turn of a chat; the picture takes "
                "one place for each of its tokens and buffers. Where the row ends in \"look :\", the reply was begun "
                "for the model: it first says what it looks for and what is where, and the answer last.", [
            Step(Pipeline.chat_ids, "-> ids", "", "The conversation as tokens; IMAGE (" + str(IMAGE) + ") keeps "
                 "the picture's places.", tokens),
        ]),
        Chapter("The picture becomes latents", Pipeline.latents, "The VAE turns the picture into tokens.", [
            Step(Pipeline.pixels, "-> pixels", "B, 3, H, W", "The picture, red, green and blue, from -1 to 1."),
            Step(VAE.moments, "-> mean, logvar", "B, C, h, w | B, C, h, w", "The VAE's encoder: for each place of the "
                 "grid the mean of C numbers | and how unsure they are, which only its training uses."),
            Step(VAE.encode, "-> latents", "B, S, C", "The means as a row of tokens, scaled to a variance of 1."),
        ]),
        Chapter("The encoder sees all of it", Harmon.embed_with_images, "The encoder that "
                "also draws, with nothing hidden.", [
            Step(Harmon.embed_with_images, "embeds", "B, L, E", "Each number of the question picks its row of the "
                 "embedding table."),
            Step(MAR.encode, "buffers", "B, U, D", "The buffers: tokens that are always there, with positions."),
            Step(MAR.encode, "x", "B, S, D", "All tokens of the picture, made as wide as the encoder."),
            Step(MAR.encode, "x", "B, U+S, D", "Buffers and tokens as one sequence."),
            Step(Harmon.see, "encoded", "B, U+S, D", "After the encoder's {mar.encoder_depth} blocks: what Harmon "
                 "sees."),
            Step(Harmon.see, "embeds", "B, U+S, E", "Projected to the width of the LLM."),
            Step(Harmon.embed_with_images, "-> embeds", "B, L, E", "Put into the places that were kept, buffers last."),
        ]),
        Chapter("The LLM answers", Qwen.generate, "From here on it is a language model like any other.", [
            *next_token("The likeliest is taken; with --temperature, one at random."),
        ]),
    ]
