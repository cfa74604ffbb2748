"""Which words a checkpoint has met: training stores them, and who types another one is told so.

They are in "meta" of config.json, "words": all of them, sorted, with spaces between. Only a language model that was
made by train.py has them: one that was given (--llm, --init) knows words that no text here holds. Letters count as they
are written, for the tokenizer takes "Red" and "red" for two words. A word that is met is not thereby understood.
"""
import random
import re

from .cli import first_of

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MOST_WORDS = 10**5                           # a list of more would say little, and swell config.json
MOST_DRAWN = 2000                            # texts of a stage that are looked at: a word in a thousand is not missed


def words_of(text):
    """The words of a text, in its order: ["is", "it", "a", "cat's", "toy"]."""
    return WORD.findall(text)


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
                yield from (text for _, text in source.text(rng)[0])
        elif name in ("1", "2", "3"):
            for _ in range(min(MOST_DRAWN, stage.steps * stage.batch)):
                yield source.prompt(source.generation_item(rng)[1], rng)
            for _ in range(min(MOST_DRAWN, stage.steps * stage.understanding_batch)):
                _, item = source.understanding_item(rng, stage.thoughts)
                yield from (text for _, text in source.conversation(item, rng))


def note_unseen(meta, texts, noted=None):
    """A line about the words of some texts that a checkpoint has never met, "" if there are none or it has no list.

    meta: of the checkpoint; noted: words that have been noted already, a set that grows.
    """
    if meta.get("words") is None:
        return ""
    met, noted = set(meta["words"].split()), set() if noted is None else noted
    words = [w for w in dict.fromkeys(w for text in texts for w in words_of(text)) if w not in met and w not in noted]
    noted.update(words)
    small, new = [w for w in words if w.lower() in met], [w for w in words if w.lower() not in met]
    said = [f"{shown(new)} never occurred in the training of this checkpoint, so it has not learned what "
            + ("they mean" if len(new) > 1 else "it means")] if new else []
    said += [f"{shown(small)} occurred there in small letters only"] if small else []
    return "note: " + "; ".join(said) if said else ""


def shown(words):
    return first_of([f"{word[:40]!r}" for word in words], 8)
