"""One request, followed through the model: every tensor with its name, shape, range and place in the code.

    python sample.py --explain --n 1 --prompt "a red circle"                 beside the drawing
    python sample.py --explain --dry-run harmon-1.5b --prompt "a red circle" shapes alone: no weights, a few seconds
    python chat.py --explain --image docs/scene.png --prompt "what color is the ring?"

How: a small debugger (`sys.settrace`) runs beside the real code. Whenever a function named in chapters.py assigns
a variable named there, it notes what was assigned, and the line. So names, shapes and lines are those of the code that
runs; only the sentences are written by hand, and the shapes in letters, which are checked against the real ones.
docs/WALK.md is this with pictures (`python -m nanoharmon.figures`).
"""
import ast
import inspect
import math
import re
import shutil
import sys
import textwrap
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from .chapters import LETTERS, chapters
from .cli import markdown_table
from .config import PRESETS, nearest
from .files import advising
from .pipeline import SHIPPED, Pipeline
from .tokenizer import Tokenizer
from .weights.checkpoint import meta_model

ROOT = Path(__file__).parents[1]


# --- following -------------------------------------------------------------------------------------------------------

def code_of(function):
    return inspect.unwrap(function).__code__


@cache
def statements(code):
    """{line: first line of the statement that it belongs to} of a function's source."""
    lines, first = inspect.getsourcelines(code)
    found = {}
    for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):            # outer ones first, then inner ones
        if isinstance(node, ast.stmt):
            found |= dict.fromkeys(range(node.lineno, node.end_lineno + 1), node.lineno)
    return {first - 1 + line: first - 1 + start for line, start in found.items()}


def measure(letters, sizes):
    """"2B, U+K" -> (2, 8) by sizes {letter: number}."""
    def number(term):                                            # "2B*m" -> ["2", "B", "m"]
        return math.prod(int(f) if f.isdigit() else sizes[f] for f in re.findall(r"\d+|[A-Za-z]", term))
    return tuple(sum(map(number, part.split("+"))) for part in letters.split(", "))


@dataclass
class Row:
    """One thing that was assigned, as it is told."""
    name: str
    shape: str                                                   # "(1, 8, 160) = (B, U+K, D)"
    values: str                                                  # "float32 -3.1 .. 4"
    where: tuple                                                 # (path of the file, line, function)
    sentence: str


class Walk:
    """`with Walk(pipe) as walk:` follows what is done inside; then `walk.told` are the chapters, with their rows."""

    def __init__(self, pipe):
        model, self.pipe, self.told, self.open, self.last = pipe.model.config, pipe, [], [], {}
        self.entries = {code_of(chapter.entry): chapter for chapter in chapters()}
        self.watched = {}
        for step in (step for chapter in self.entries.values() for step in chapter.steps):
            self.watched.setdefault(code_of(step.function), set()).add(step.name)
        self.sizes = {"U": model.mar.buffer_size, "D": model.mar.encoder_embed_dim, "E": model.llm.hidden_size,
                      "C": model.mar.token_dim, "V": model.llm.vocab_size, "G": model.llm.num_key_value_heads,
                      "d": model.llm.hidden_size // model.llm.num_attention_heads}

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)
        for chapter in self.told:
            sizes = {letter: n for letter, n in chapter.sizes.items() if letter not in "BRKm"}   # may have changed
            for (owner, step), (value, where) in self.last.items():
                chapter.last += self.rows(step, value, where, sizes) if owner is chapter else ()

    def trace(self, frame, event, arg):
        """For `sys.settrace`, which calls it when a function is called; it returns what each of its lines will call."""
        code, chapter = frame.f_code, self.entries.get(frame.f_code)
        outer = self.open[-1] if self.open else None
        opens = bool(chapter) and chapter not in self.open and chapter.inside is (outer and outer.entry)
        names = self.watched.get(code, ())
        if opens:
            self.open.append(chapter)
            if chapter not in self.told:
                self.told.append(chapter)
                chapter.sizes = dict(outer.sizes if outer else self.sizes)
        elif not (outer and names):
            return None
        lines, at, seen = statements(code), frame.f_lineno, dict(frame.f_locals)
        for name in (name for name in names if name[0] == "("):
            self.tell(code, name, seen[name[1:]], min(lines.values()))

        def line(frame, event, arg):
            nonlocal at
            now = frame.f_locals
            for name in (name for name in names if name in now and now[name] is not seen.get(name)):
                seen[name] = now[name]
                self.tell(code, name, now[name], lines[at])      # assigned by the line before this one
            at = frame.f_lineno
            if event == "return":
                for name in (name for name in names if name[0] == "-" and arg is not None):
                    self.tell(code, name, arg, lines[at])
                if opens:
                    self.open.pop()
            return line
        return line

    def tell(self, code, name, value, line):
        """The first step of the open chapter that waits for this assignment becomes a row, or several."""
        chapter = self.open[-1]
        steps = [step for step in chapter.steps if code_of(step.function) is code and step.name == name]
        for step in steps:
            where = Path(code.co_filename), line, step.function.__qualname__
            if not step.is_told:
                step.is_told = True
                chapter.rows += self.rows(step, value, where, chapter.sizes) if step.sentence else ()
                return
        if steps and steps[-1].again:
            self.last[chapter, steps[-1]] = value, where

    def rows(self, step, value, where, sizes):
        names = step.name.removeprefix("(").removeprefix("-> ").split(", ")
        values = value if len(names) > 1 else [value]
        for name, value, letters, sentence in zip(names, values, step.letters.split(" | "), step.sentence.split(" | ")):
            shape, config = "", self.pipe.model.config
            if letters:
                for letter, n in zip(letters.split(", "), value.shape):
                    if len(letter) == 1:                         # it stands for what it is met with first
                        sizes.setdefault(letter, n)
                assert measure(letters, sizes) == value.shape, f"{where}: {name} is {tuple(value.shape)}, not {letters}"
                shape = f"({', '.join(map(str, value.shape))}{',' * (value.ndim == 1)}) = ({letters})"
            more = step.show(value, self.pipe) if step.show else ""
            yield Row(name, shape, summary(value), where,
                      f"{sentence.format(mar=config.mar, llm=config.llm)} {more}".rstrip())


def summary(value):
    """dtype and range of a tensor; a text, or several, as they are."""
    if not isinstance(value, torch.Tensor):
        texts = [value] if isinstance(value, str) else value
        return "; ".join(map(repr, texts)) if texts and isinstance(texts[0], str) else f"{len(value)} numbers"
    kind = str(value.dtype).removeprefix("torch.")
    if value.is_meta or not value.numel():
        return kind
    if value.dtype == torch.bool:
        return f"{kind}, {int(value.sum())} of {value.numel()} true"
    return f"{kind} {value.min().item():.3g} .. {value.max().item():.3g}"


def place(where):
    path, line, function = where
    return f"{path.relative_to(ROOT).as_posix()}:{line}", function


def legend(walk):
    """What the letters of this walk stand for."""
    sizes = {}
    for chapter in walk.told:
        for letter, n in chapter.sizes.items():
            sizes.setdefault(letter, {})[n] = True
    used = "".join(row.shape for chapter in walk.told for row in chapter.rows)
    return "Letters: " + "; ".join(f"{letter}={' or '.join(map(str, sizes[letter]))} {words}"
                                   for letter, words in LETTERS.items() if letter in used) + "."


def as_text(walk):
    """A walk for the terminal."""
    lines, width = [], min(118, max(20, shutil.get_terminal_size().columns - 2))

    def write(words, indent):
        lines.extend(textwrap.wrap(words, width, initial_indent=" " * indent, subsequent_indent=" " * indent))
    write(legend(walk), 0)
    for chapter in walk.told:
        lines += ["", chapter.title, "-" * len(chapter.title)]
        write(chapter.intro, 0)
        for title, rows in ("", chapter.rows), ("The same in the last iteration", chapter.last):
            lines += ["", title][:2 if title and rows else 0]
            for row in rows:
                what = f"  {row.name:9}  {row.shape:32}  {row.values}".rstrip() if row.shape else \
                       f"  {row.name:9}  {row.values}"
                where = "  ".join(place(row.where))
                lines += [what + where.rjust(width - len(what))] if len(what) + len(where) + 2 < width else \
                    [what, where.rjust(width)]
                write("" if title else row.sentence, 12)
    return "\n".join(lines)


def as_markdown(walk, pictures):
    """A walk for a page in docs/: a table per chapter. pictures {title of a chapter: Markdown for below its title}."""
    parts = [legend(walk)]
    for chapter in walk.told:
        parts += [f"### {chapter.title}", chapter.intro, *filter(None, [pictures.get(chapter.title)])]
        for rows in filter(None, (chapter.rows, chapter.last)):
            parts += ["In the last iteration:"] * (rows is chapter.last)
            table = []
            for row in rows:
                where, function = place(row.where)
                link = f"[{where.removeprefix('nanoharmon/')}](../{where.replace(':', '#L')}) `{function}`"
                cells = f"`{row.name}`", row.shape, row.values, "" if rows is chapter.last else row.sentence, link
                table.append([re.sub(r"[|<*_\\]", r"\\\g<0>", cell) if i in (1, 2, 3) else cell
                              for i, cell in enumerate(cells)])
            parts.append(markdown_table(["tensor", "shape", "type, range", "what it is", "code"], table))
    return "\n\n".join(parts)


# --- without weights -------------------------------------------------------------------------------------------------

class Enough(Exception):
    """The first iteration is over."""


def without_weights(preset, ckpt=None):
    """A Pipeline of a preset whose tensors have shapes but no numbers, and the tokenizer of `ckpt`."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}, expected one of {', '.join(PRESETS)}; "
                         f"pass --dry-run nano")
    with advising("pass another --ckpt, whose tokenizer is used"):
        tokenizer = Tokenizer.load(ckpt or SHIPPED)
    return Pipeline(meta_model(PRESETS[preset]()), tokenizer)


def dry_draw(pipe, prompt, n, plan):
    """The first iteration of a drawing, and the VAE, followed without numbers. plan: of Pipeline.plan."""
    def stop(*_):
        raise Enough
    S = plan["grid"][0] * plan["grid"][1]
    with torch.no_grad(), Walk(pipe) as walk:
        ids, is_real = pipe.prompt_ids([prompt] * n, plan["cfg"] != 1.0)
        with suppress(Enough):
            pipe.model.draw(ids, is_real, plan["iters"], plan["cfg"], plan["grid"], steps=2, on_iteration=stop)
        pipe.model.vae.decode(torch.empty(n, S, pipe.model.config.mar.token_dim, device="meta"), plan["grid"])
    return walk


def dry_answer(pipe, question, images, max_new_tokens=1, system=None):
    """A question about pictures, up to the LLM's output, followed without numbers, with room for a reply."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": [None, "\n"] * len(images) + [question]})
    with torch.no_grad(), Walk(pipe) as walk:
        ids = torch.tensor([pipe.chat_ids(messages, None, max_new_tokens)], device="meta")
        embeds = pipe.model.embed_with_images(pipe.latents(images)[0], ids) if images else pipe.model.llm.embed(ids)
        with suppress(RuntimeError):                             # the first word is picked by numbers
            next(pipe.model.llm.generate(embeds, [pipe.tokenizer.im_end]))
    return walk
