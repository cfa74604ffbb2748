"""Which words a checkpoint has met: training stores them, whoever types another is told so, and typing mistakes in the
names of shapes and colors are put right.

They are in "meta" of config.json, "words": all of them, sorted, with spaces between. Only a language model that was
made by train.py has them: one that was given (--llm, --init) knows words that no text here holds. "Red" is "red", as it
is to the tokenizers that train.py makes. A word that is met is not thereby understood.
"""
import os
import random
import re

from .cli import first_of
from .world.language import plural
from .world.phrases import SORRY
from .world.shapes import COLORS, SHAPES

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
                _, item = source.understanding_item(rng, stage.texts)
                yield from met(source.conversation(item, rng))


def met(turns):
    """The texts of a conversation, without questions that are refused: their words are not learned."""
    for (_, asked), (_, said) in zip(turns[::2], turns[1::2]):
        if SORRY not in said:
            yield from (asked, said)


# --- typing mistakes --------------------------------------------------------------------------------------------------

NAMES = {name for name in (*COLORS, *SHAPES, *map(plural, SHAPES), *"color above below bottom middle picture".split())
         if len(name) > 3}                   # three letters are soon another word
# words of their own; "colors" is none of the names, and no slip
OTHERS = {*"while write greek greet greed rang rung rink crops crossed oranges".split(),
          *map(plural, NAMES - {*map(plural, SHAPES)})}
SIGNS = ((r"[^\w\s.,!?:;'/&+()-]|^[-–\s]+(?=\s)|\s[:;]-?[()DP]+$|\.\.+", " "), (r"(?<=[a-z]) *[+&] *(?=\w)", " and "),
         (r"(?<=[a-z])-(?=[a-z])", " "), (r"\bw/ *", "with "), (r"(?<![-\w])1 (?=[a-z])", "one "),
         (r"\b(\d)x(?= )", r"\1"), (r"\b(what|where|that|there|how)s\b", r"\1's"))


def put_right(meta, text):
    """A text as a checkpoint of the shapes world can read it: '"2 redd-circels"...' -> "2 red circles". Without quotes,
    bullets, emoji; names of shapes and colors with one letter wrong, and words that grew together, are put right.
    Another checkpoint's text stays as it is."""
    if not meta.get("words") or not meta.get("board"):
        return text
    right, known = text.replace("’", "'"), set(meta["words"].split())
    for sign, instead in SIGNS:
        right = re.sub(sign, instead, right, flags=re.IGNORECASE)
    return " ".join(WORD.sub(lambda found: spelled(found[0], known), right).split()) or text


def note_changed(typed, read):
    """A line about texts whose words were put right, "" if there are none."""
    changed = [repr(new[:80]) for old, new in zip(typed, read) if words_of(old) != words_of(new)]
    return f"note: read as {first_of(changed, 8)}" if changed else ""


def spelled(word, known):
    """A word that is not known as the name that it is nearly, or as the two known words that it is made of."""
    typed = word.lower()
    if typed in known | OTHERS or not typed.isalpha():
        return word
    for name in sorted(NAMES & known, key=lambda name: (name[-2:] != typed[-2:], name)):
        if name[0] == typed[0] and differ_in_one(typed, name):
            return name
    for i in range(2, len(typed) - 1):
        both = typed[:i], typed[i:]
        if known.issuperset(both) and {*NAMES, "red"}.intersection(both) | {"how", "what", "where", "is"} & {both[0]}:
            return " ".join(both)
    return word


def differ_in_one(a, b):
    """Whether one letter is missing, too many or another, or two are exchanged."""
    same = len(os.path.commonprefix([a, b]))
    a, b = a[same:], b[same:]
    return a[1:] in (b, b[1:]) or a == b[1:] or a[:2] == b[1::-1] and a[2:] == b[2:]


# --- words that are new -----------------------------------------------------------------------------------------------

def note_unseen(meta, texts, noted=None):
    """A line about the words of some texts that a checkpoint has not learned, "" if there are none or it has no list.

    meta: of the checkpoint; noted: words that have been noted already, a set that grows.
    """
    if meta.get("words") is None:
        return ""
    known, noted = set(meta["words"].split()), set() if noted is None else noted
    new = [w for w in dict.fromkeys(w for text in texts for w in words_of(text)) if w not in known and w not in noted]
    noted.update(new)
    return (f"note: this checkpoint has not learned what {first_of([repr(w[:40]) for w in new], 8)} "
            f"{'mean' if len(new) > 1 else 'means'}") if new else ""
