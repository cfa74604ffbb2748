"""A conversation with a model about pictures: what it remembers from turn to turn.     chat.py types into it

A conversation is what the model was trained on: a user's turn may begin with pictures, then a new line, then the words.
What a model says while it looks (replies.py) stays in the conversation.
"""
from pathlib import Path

from .cli import bar
from .files import check_output, write_bytes
from .pictures import file_bytes
from .plans import settled
from .replies import seen_and_said
from .tokenizer import LOOK, REFUSAL
from .world.phrases import SORRY

NO_PICTURE = f"{REFUSAL}there is no picture yet: wish for one, or type /image FILE"


def as_shown(reply, is_whole=False):
    """A reply for people: "(ring: at the top a red ring one) one"; nothing as long as it only looks."""
    seen, said = seen_and_said(reply)
    if not reply.startswith(LOOK):
        return reply
    return f"({seen}) {said}".strip() if seen and (said or is_whole) else said * is_whole


class Conversation:
    """`messages` are {"role", "content"}; None in a content list is the next of `pictures`, `names` are theirs.

    pipe: a Pipeline, or what has its reply, plan, think, draw and meta. folder: where drawings are saved. options: of
    Pipeline.reply, such as temperature; drawing: of Pipeline.draw; seed moves on with every turn and drawing. system: a
    first turn, or None.
    """

    def __init__(self, pipe, folder=".", seed=0, look=None, system=None, drawing=None, **options):
        self.pipe, self.folder, self.seed, self.look, self.options = pipe, Path(folder), seed, look, options
        self.system, self.drawing = system, drawing or {}
        self.noted = set()                   # unseen words that were noted, and are not noted again
        self.drawn = 0                       # moves the seed, so that drawing the same again gives another picture
        self.reset()

    def reset(self):
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.pictures, self.names = [], []
        self.wish = ""                       # what was last asked to be drawn
        self.waiting = 0                     # pictures, the last of `pictures`, that the next question will show

    def show(self, picture, name):
        self.pictures.append(picture)
        self.names.append(str(name))
        self.waiting += 1

    def ask(self, words):
        """Stream the answer, after what was looked at for it in brackets, and " ..." where its length was cut. The turn
        joins the conversation when the answer is there, without the dots, or not at all."""
        content = [None, "\n"] * self.waiting + [words] if self.waiting else words
        messages, answer, shown = self.messages + [{"role": "user", "content": content}], "", ""
        recent, pictures = self.recent(messages)
        learned = bool(self.pipe.meta.get("turns"))          # to talk about a picture, and nothing else
        reply = self.pipe.reply(recent, pictures, seed=self.seed + len(messages) // 2, look=self.look, **self.options)
        is_cut = False
        while True:
            try:
                answer += next(reply)
            except StopIteration as end:
                is_cut = end.value
                break
            if pictures or not learned:      # else it may speak of a picture that is not there
                yield as_shown(answer)[len(shown):]
                shown = as_shown(answer)
        if learned and not pictures and not answer.strip().startswith(REFUSAL):
            answer = NO_PICTURE
        elif learned and not is_cut and not seen_and_said(answer)[1].strip():
            answer = SORRY
        yield as_shown(answer, is_whole=True)[len(shown):] + (" ..." if is_cut else "")
        self.messages, self.waiting = messages + [{"role": "assistant", "content": answer.strip()}], 0

    def answer(self, words):
        """The whole answer at once, without what was looked at."""
        for _ in self.ask(words):
            pass
        return seen_and_said(self.messages[-1]["content"])[1]

    def recent(self, messages):
        """What the model reads, and the pictures in it: everything; or, where the checkpoint has learned to talk about
        one picture for so many "turns" (meta), the first turn about the last picture, and the last ones after it,
        without those that were refused. It has not learned to go on after these, or without a picture."""
        n, shows = self.pipe.meta.get("turns"), [i for i, m in enumerate(messages)
                                                     if not isinstance(m["content"], str)]
        if not n:
            return messages, self.pictures
        first, rest = [m for m in messages[:1] if m["role"] == "system"], [m for m in messages if m["role"] != "system"]
        if not shows:
            return first + rest[-1:], []
        *rest, question = messages[shows[-1]:]
        kept = [turn for turn in zip(rest[::2], rest[1::2])
                if not seen_and_said(turn[1]["content"])[1].startswith(REFUSAL)]
        shown, *kept = [*sum(kept, ()), question]
        words = shown["content"] if isinstance(shown["content"], str) else shown["content"][-1]
        shown = {**shown, "content": [None, "\n", words]}    # moved on where the first question was refused
        return first + [shown] + kept[:1] + kept[1:][3 - 2 * n:], self.pictures[-1:]

    def draw(self, words):
        """Draw, save under the next free number, show. Returns the path (None when the model refuses) and the thought,
        "" if it has none."""
        self.free_path()                     # complains before the work
        plan, seed, thought = self.pipe.plan([words], **self.drawing), self.seed + self.drawn, ""
        if plan["think"]:
            [thought] = self.pipe.think([words], seed)
            if thought.startswith(REFUSAL):
                return None, thought
        self.wish = words
        with bar(total=plan["total"], desc="drawing", unit="iter") as shown:
            [picture] = self.pipe.draw([thought or words], seed=seed, progress=shown.update,
                                       **self.drawing | settled(plan))
        return self.keep(picture), thought

    def edit(self, region, words):
        """Draw a part of the last picture anew. region: x0, y0, x1, y1 in its pixels. Returns the path."""
        last = self.last()
        self.free_path()
        [picture] = self.pipe.draw([words], seed=self.seed + self.drawn, image=last, region=region,
                                   **self.drawing | {"think": False})
        return self.keep(picture)

    def last(self):
        """The last picture, to change or to save."""
        if not self.pictures:
            raise ValueError("no picture yet; type /image FILE or /draw TEXT first")
        return self.pictures[-1]

    def free_path(self):
        """The next drawing-001.png, -002, ... that is not there yet."""
        number = 1
        while (path := self.folder / f"drawing-{number:03d}.png").exists():
            number += 1
        return check_output(path, "the folder you start chat.py in")

    def keep(self, picture):
        path = self.free_path()              # again: another chat may have taken the first one
        write_bytes(path, file_bytes(picture))
        self.drawn += 1
        self.show(picture, path)
        return path
