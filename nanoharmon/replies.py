"""What an LLM says, as text: piece by piece, sampled within bounds, no longer than the context.

And how it looks before it answers (ours; the mirror image of thinking before drawing): its reply is begun with LOOK.
It has learned to go on with what it looks for and what is where, each with a verdict, until it is found, and then
with the answer (world/questions.py).
"""
import re

import torch

from . import arguments
from .tokenizer import LOOK, REFUSAL


@torch.no_grad()
def stream(llm, tokenizer, embeds, temperature, top_p, max_new_tokens, seed):
    """Continue one conversation, embeds (1, L, E), as pieces of text. Returns whether max_new_tokens cut it."""
    generator = torch.Generator(embeds.device).manual_seed(seed)
    said, shown, stop = [], "", [tokenizer.im_end, tokenizer.pad]
    for token in llm.generate(embeds, stop, max_new_tokens, temperature, top_p, generator):
        said.append(token.item())
        text = readable(tokenizer, said)
        yield text[len(shown):]
        shown = text
    return said[-1] not in stop


def readable(tokenizer, ids):
    """Ids as text, without the character of several bytes that they may end inside."""
    return tokenizer.decode(ids).rstrip("\ufffd")


def check_sampling(config, temperature=0.0, top_p=1.0, max_new_tokens=None, seed=0):
    """How an LLM (LLMConfig) is sampled, as numbers of Python, or ValueError for what they cannot be. max_new_tokens:
    by default an eighth of the context, 64 to 512."""
    temperature = arguments.number("temperature", temperature, 0, 100)
    temperature = 0.0 if temperature < 1e-4 else temperature             # dividing by less overflows
    if max_new_tokens is None:
        max_new_tokens = min(512, max(64, config.max_position_embeddings // 8))
    return (temperature, arguments.number("top_p", top_p, 0.01, 1),
            arguments.whole("max_new_tokens", max_new_tokens, 1), arguments.whole("seed", seed, 0, arguments.SEEDS))


def check_length(ids, config, max_new_tokens):
    """The ids of a conversation, or ValueError when the context (LLMConfig) is too short for them and a reply."""
    limit = config.max_position_embeddings
    if len(ids) + max_new_tokens > limit:
        raise ValueError(f"conversation is {len(ids)} tokens long, expected at most {limit} (the context) less "
                         f"{max_new_tokens} for the reply")
    return ids


LOOKED = re.compile(rf"{LOOK}(.*?)\. (.*)", re.DOTALL)                    # the first sentence is the look


def seen_and_said(reply):
    """The reply "look: cross: at the top a red ring no, in the middle a blue cross yes. blue" -> what was looked at,
    and the answer "blue", which is "" where the reply ends in the middle of the look."""
    if found := LOOKED.fullmatch(reply):
        return found[1].strip(), found[2].strip()
    rest = reply.removeprefix(LOOK).strip()
    is_cut = reply.startswith(LOOK) and not rest.startswith(REFUSAL)           # what the world has not needs no look
    return (rest, "") if is_cut else ("", rest)
