"""Which words a checkpoint has met: training stores them, and who types another one is told so.

They are in "meta" of config.json, "words": all of them, sorted, with spaces between. Only a language model that was
made by train.py has them: one that was given (--llm, --init) knows words that no text here holds. "Red" is "red", as it
is to the tokenizers that train.py makes. A word that is met is not thereby understood.
"""
import random
import re

from .cli import first_of
from .world.phrases import SORRY

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MOST_WORDS = 10**5                           # a list of more would say little, and swell config.json
MOST_DRAWN = 2000                            # texts of a stage that are looked at: a word in a thousand is not missed


def words_of(text):
    """The words of a text, in its order: ["is", "it", "a", "cat's", "toy"]."""
    return WORD.findall(text.lower())


def training_words(config, sources):
    """What becomes "words" of a checkpoint: those that training draws from its sources (training/batches.py), or None
    if they are too many. config: the Config of training."""
    found = set()
    for source in sources:
        for text in drawn_texts(config, source) if source.name == "shapes" else source.corpus():
            found.update(words_of(text))
    return " ".join(sorted(found)) if len(found) <= MOST_WORDS else None


def drawn_texts(config, source):
    """The texts of a sample as large as what the stages draw, or MOST_DRAWN."""
    rng = random.Random(f"{config.data.seed}/words")
    for name, stage in config.stages.items():
        if name == "llm":
            for _ in range(min(MOST_DRAWN, stage.steps * stage.batch)):
                yield from met(source.text(rng))
        elif name in ("1", "2", "3"):
            for _ in range(min(MOST_DRAWN, stage.steps * stage.batch)):
                yield source.prompt(source.generation_item(rng)[1], rng)
            for _ in range(min(MOST_DRAWN, round(stage.steps * stage.batch * stage.parts))):
                yield source.part(rng, 1, 1)[-1]
            for _ in range(min(MOST_DRAWN, stage.steps * stage.understanding_batch)):
                _, item = source.understanding_item(rng, stage.thoughts)
                yield from met(source.conversation(item, rng))


def met(turns):
    """The texts of a conversation, without questions that are refused: their words are not learned."""
    for (_, asked), (_, said) in zip(turns[::2], turns[1::2]):
        if SORRY not in said:
            yield from (asked, said)


def note_unseen(meta, texts, noted=None):
    """A line about the words of some texts that a checkpoint has never met, "" if there are none or it has no list.

    meta: of the checkpoint; noted: words that have been noted already, a set that grows.
    """
    if meta.get("words") is None:
        return ""
    known, noted = set(meta["words"].split()), set() if noted is None else noted
    new = [w for w in dict.fromkeys(w for text in texts for w in words_of(text)) if w not in known and w not in noted]
    noted.update(new)
    meaning = "they mean" if len(new) > 1 else "it means"
    return (f"note: {first_of([repr(w[:40]) for w in new], 8)} never occurred in the training of this checkpoint, "
            f"so it has not learned what {meaning}") if new else ""
