"""Talk with the model about pictures, yours and the ones it draws.

    python chat.py                                                  type to ask, /help for the commands
    python chat.py --image photo.png                                start with a picture
    python chat.py --image photo.png --prompt "is there a circle?"  one answer, nothing else
    python chat.py --explain --image photo.png --prompt "is there a circle?"     what happens inside, step by step
    python chat.py --llm Qwen2.5-0.5B-Instruct                      a language model alone, text only
    python chat.py --llm DIR --system "Answer in one word."         what it is told before all else

    > show me a red circle left of a blue square
    (a red circle at the left and a blue square in the middle; drawing-001.png; ask about it)
    > what color is the square?
    (square: at the left a red circle no, in the middle a blue square yes) blue

What a conversation is, and how much of it the model reads: nanoharmon/conversation.py. Which lines are drawn, and which
answered: nanoharmon/wishes.py. Where the model knows nothing but the shapes world, "a cirkle" is read as "a circle",
with a note: nanoharmon/words.py.
"""
import json
import os
import re
import sys
from argparse import BooleanOptionalAction
from contextlib import nullcontext, suppress
from pathlib import Path

import nanoharmon          # noqa: F401, before torch: it sets how idle threads wait
import torch

from nanoharmon import explain
from nanoharmon.cli import (Parser, explain_flags, in_words, model_flags, number, out_of_memory, refuse_beside,
                            run_main, text)
from nanoharmon.config import nearest
from nanoharmon.conversation import Conversation
from nanoharmon.files import advising, check_output, write_bytes
from nanoharmon.pictures import file_bytes, open_image
from nanoharmon.pipeline import load_pipeline, pick_device, pick_dtype
from nanoharmon.replies import check_length, check_sampling, stream
from nanoharmon.weights.convert import load_llm
from nanoharmon.wishes import AGAIN, CHANGE, POLITE, is_request, wish_in
from nanoharmon.words import note_changed, note_unseen, put_right
from nanoharmon.world.language import CELLS

SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."      # in Qwen2.5's own chat template
HELP = """\
  /image FILE   show a picture (its name alone does so, too); the next question is about it, and so are those after
  /draw TEXT    draw a picture, save it as drawing-001.png, -002, ..., and talk about it (so do "red ring", "again")
  /edit PART TEXT  draw a part of the last picture anew: /edit top left a ring, or /edit 32,0,64,32 nothing (pixels)
  /save FILE    .json or .txt: the conversation; .png: the last picture
  /reset        forget everything so far
  /help         this list
  /quit         leave (so do Ctrl-D and Ctrl-C)
  anything else is said to the model"""
# how an error of the library begins, and what helps those who typed a line
FIXES = {"conversation is ": "type /reset, or start again with a smaller --max-new-tokens",
         "region is ": "type /edit PLACE TEXT, or /edit x0,y0,x1,y1 TEXT, in pixels of the last picture",
         "prompt is ": "type a shorter text"}
# what /edit is told: a box in pixels, or the ninth of the picture that is meant, and what shall be there
NINTHS = {place.split("the ")[1]: cell for place, cell in CELLS.items()}         # "top left": (0, 0)
NINTH = f"(?:(?:at|in|on|to) )?(?:the )?({'|'.join(sorted(NINTHS, key=len, reverse=True))})"
PART = re.compile(rf"(?:(\d+) *, *(\d+) *, *(\d+) *, *(\d+)|{NINTH}(?: corner)?)(?: *[:,] *| +)"
                  r"(?!(?:left|right|top|bottom|middle|corner|side|of)\b)(.+)", re.IGNORECASE)
ADDED = re.compile(rf"{POLITE}add ((?:(?!\b(?:at|in|on|to) the\b).)+?),? {NINTH}(?: corner| side)?"
                   r"(?:,? (?:please|pls))?[.!?]*", re.IGNORECASE)               # "add a ring at the top"
A_PICTURE = re.compile(r"\S+\.(?:png|jpe?g|webp|gif|bmp|tiff?)", re.IGNORECASE)      # also one that is not there


def parse_args(argv=None):
    parser = Parser(prog="chat.py", description=__doc__, epilog="commands while chatting:\n" + HELP)
    add = parser.add_argument
    add("--image", action="append", default=[], metavar="FILE", help="start with this picture; may be repeated")
    add("--prompt", metavar="TEXT", help="ask this, print the answer, leave")
    add("--temperature", type=number(float, 0, 100), default=0.0, help="0: the likeliest words; 1: random (default 0)")
    add("--top-p", type=number(float, 0.01, 1), default=1.0, help="choose among the likeliest of this mass (default 1)")
    add("--max-new-tokens", type=number(int, 1, 10**6), help="longest answer, in tokens (default: an eighth of "
        "the model's context, 64 to 512)")
    add("--system", metavar="TEXT", help="a system turn, before the first question (default: none; Qwen2.5's own with "
        "--llm, where the directory's chat template has it)")
    add("--fast", action="store_true", help="/draw and /edit with few iterations: a measured choice (docs/RESULTS.md)")
    add("--look", action=BooleanOptionalAction, help="about a picture: first say what is seen, in brackets, until what "
        "was asked for is found (default: as the checkpoint has learned)")
    add("--llm", metavar="DIR", help="instead of --ckpt: a bare Qwen2.5 directory, to chat in text only")
    explain_flags(parser, "with --prompt: ")
    model_flags(parser)
    args = parser.parse_args(argv)
    if args.explain and (args.prompt is None or args.llm):
        parser.error("--explain follows one question to a Harmon, expected --prompt and no --llm; pass --prompt TEXT")
    if args.dry_run and not args.explain:
        parser.error("--dry-run is for --explain, expected both; pass --explain")
    if args.dry_run:
        refuse_beside(parser, args, "--dry-run", ("temperature", "top_p", "seed", "device", "dtype", "look"),
                      "says nothing")
    if args.llm and (args.ckpt or args.image):
        parser.error("--llm is a language model alone, expected neither --ckpt nor --image beside it; pass one of them")
    if args.fast and (args.llm or args.prompt is not None):
        parser.error("--fast is for /draw, which neither --prompt nor --llm leads to; drop it")
    if args.look is not None and (args.llm or args.prompt is not None and not args.image):
        parser.error("--look is about a picture, and there is none; pass --image FILE")
    if args.top_p < 1 and not args.temperature:
        parser.error("--top-p is for random words, and --temperature is 0; pass --temperature 0.7 besides, or drop it")
    return args


class TextPipeline:
    """A bare LLM behind what a Conversation needs of a Pipeline: text only, no pictures. system: its own system prompt,
    put first where a conversation has none; None = nothing."""

    meta = {}                                # nothing is known of its training

    def __init__(self, llm, tokenizer, system=None):
        self.llm, self.tokenizer, self.system = llm, tokenizer, system

    def reply(self, messages, images=(), temperature=0.0, top_p=1.0, max_new_tokens=None, seed=0, look=None):
        """As Pipeline.reply; there is nothing to look at."""
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        sampling = check_sampling(self.llm.config, temperature, top_p, max_new_tokens, seed)
        ids = check_length(self.tokenizer.chat(messages)[0], self.llm.config, sampling[2])
        embeds = self.llm.embed(torch.tensor([ids], device=self.llm.lm_head.weight.device))      # (1, L, E)
        return (yield from stream(self.llm, self.tokenizer, embeds, *sampling))

    def plan(self, *_, **__):
        raise ValueError("a bare language model neither sees nor draws, expected a Harmon directory; pass --ckpt DIR "
                         "instead of --llm")


def load_text_pipeline(path, device, dtype):
    """A bare Qwen2.5 directory of Hugging Face, to chat in text only."""
    with advising("pass another --llm"):
        device = pick_device(device)
        llm, tokenizer, note = load_llm(path, device, pick_dtype(dtype, device))
    if note:
        print(f"note: {note}", file=sys.stderr)
    return TextPipeline(llm, tokenizer, own_system(path))


def own_system(folder):
    """Qwen2.5's own system prompt, where the chat template of a directory has it; other models have others, or none."""
    for name in "tokenizer_config.json", "chat_template.jinja":
        with suppress(OSError):
            if SYSTEM in Path(folder, name).read_text(encoding="utf-8", errors="replace"):
                return SYSTEM
    return None


def cannot(pipe):
    """The commands that this model cannot obey."""
    return ("/image", "/draw", "/edit") if isinstance(pipe, TextPipeline) else ()


def help_for(pipe):
    """The help text: the commands that this model can obey."""
    lines = "\n".join(line for line in HELP.splitlines() if line.split()[0] not in cannot(pipe))
    return lines.replace("; .png: the last picture", "") if cannot(pipe) else lines


def read(chat, words):
    """Words as the model can read them; says which were put right, and which it has not learned."""
    right = put_right(chat.pipe.meta, words)
    for note in filter(None, (note_changed([words], [right]), note_unseen(chat.pipe.meta, [right], chat.noted))):
        print(note, file=sys.stderr)
    return right


def save(chat, name):
    """Write the conversation, or its last picture, into a file."""
    path = check_output(name, "/save FILE", (".json", ".txt", ".png")[:2 if cannot(chat.pipe) else 3])
    if path.resolve() in [Path(shown).resolve() for shown in chat.names]:
        raise ValueError(f"{path} is a picture of this conversation, and would be overwritten; pass another name")
    if path.suffix.lower() == ".png":
        write_bytes(path, file_bytes(chat.last()))
        return
    names = iter(chat.names)
    turns = [{**m, "content": [{"image": next(names)} if part is None else part for part in
                               (m["content"] if isinstance(m["content"], list) else [m["content"]])]}
             for m in chat.messages]
    if path.suffix.lower() == ".json":
        words = json.dumps(turns, indent=2, ensure_ascii=False)
    else:
        words = "\n".join(m["role"] + ": " + "".join(f"[{part['image']}]" if isinstance(part, dict) else part
                                                     for part in m["content"]) for m in turns)
    write_bytes(path, (words + "\n").encode("utf-8", "replace"))


def file_name(words):
    """A file's name as people type it, or drop it into a terminal: with ~, in quotes, or with \\ before its spaces."""
    if words[0] == words[-1] and words[0] in "'\"":
        words = words[1:-1]
    return words if Path(words).exists() else os.path.expanduser(words).replace("\\ ", " ")


def part(words, size):
    """What to change of a picture of this size, and into what: "top left a ring" or "0,0,32,32 a ring" -> (x0, y0, x1,
    y1), "a ring"."""
    words = " ".join(words.split())
    if added := ADDED.fullmatch(words):
        words = f"{added[2]} {added[1]}"
    if not (found := PART.fullmatch(words)):
        raise ValueError(f"/edit needs a part and a text, got {words!r:.80}; type /edit PLACE TEXT (places: "
                         f"{', '.join(NINTHS)}), or /edit x0,y0,x1,y1 TEXT, in pixels of the last picture "
                         f"({size[0]}x{size[1]}), or wish for a whole one")
    *box, place, words = found.groups()
    if place:                    # rounded inwards: a pixel of the next ninth would have its whole token drawn anew
        x, y = NINTHS[place.lower()]
        box = -(-x * size[0] // 3), -(-y * size[1] // 3), (x + 1) * size[0] // 3, (y + 1) * size[1] // 3
    return tuple(map(int, box)), words


def command(chat, line):
    """Obey one line that begins with a slash. Returns False when it is time to leave."""
    name, rest = [*line.split(None, 1), ""][:2]
    name = name.lower()                                          # a phone's keyboard begins lines with capitals
    if "\0" in line:
        raise ValueError(f"{name}: a NUL character in {rest!r:.80}, expected text; type it again")
    if name in cannot(chat.pipe):
        chat.pipe.plan()                                         # says why not
    if name in ("/image", "/draw", "/save") and not rest:
        raise ValueError(f"{name} needs {'a text' if name == '/draw' else 'a file name'}; see /help")
    if name in ("/image", "/save"):
        rest = file_name(rest)
    if name == "/image":
        chat.show(open_image(rest, "/image FILE"), rest)
        print(f"({rest}; ask about it)")
    elif name == "/draw":
        rest = read(chat, rest)
        path, thought = chat.draw(rest)
        print(f"({thought and f'{thought}; '}{path}; ask about it)" if path else thought)
    elif name == "/edit":
        region, words = part(rest, chat.last().size)
        print(f"({chat.edit(region, read(chat, words))}; ask about it)")
    elif name == "/save":
        save(chat, rest)
        print(f"(wrote {rest})")
    elif name == "/reset":
        chat.reset()
        print("(forgotten)")
    elif name == "/help":
        print(help_for(chat.pipe))
    elif name in ("/quit", "/exit"):
        return False
    else:
        known = re.findall("/[a-z]+", help_for(chat.pipe))
        raise ValueError(f"unknown command {name}{nearest(name, known)}; see /help")
    return True


def wished(pipe, line):
    """What of a line is to be drawn, "" if nothing is. Where train.py made the language model (words.py), it knows its
    own world alone, and whatever names a shape is a wish; another one may be asked for anything."""
    return wish_in(line) if "words" in pipe.meta else line if is_request(line) else ""


def as_command(chat, line):
    """What is typed, as the command that is meant: "quit", a picture's file, "again", "make it red" (/edit says what it
    needs), a wish for a picture."""
    if (word := line.lower().rstrip(".!")) in ("quit", "exit", "help"):
        return f"/{word}"
    if cannot(chat.pipe):
        return line
    with suppress(OSError, ValueError):                          # too long for a file's name, or none that can be
        if Path(name := file_name(line)).suffix and Path(name).is_file() or A_PICTURE.fullmatch(line):
            return f"/image {line}"                              # which complains if there is none
    if line.startswith("/"):
        return line
    if chat.wish and AGAIN.fullmatch(line):
        return f"/draw {chat.wish}"
    if "words" in chat.pipe.meta and chat.pictures and CHANGE.fullmatch(line):
        return f"/edit {line}"
    line = read(chat, line)
    wish = wished(chat.pipe, line)
    return f"/draw {wish}" if wish else line


def talk(chat):
    """Read, answer, repeat, until /quit or the end of input. Mistakes are reported, and the talk goes on."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline                  # noqa: F401: arrow keys and history for input()
        known = "/image FILE", "/draw TEXT", "/edit PART TEXT", "/reset", "/save FILE", "/help", "/quit"
        print("Ask something, or:", ", ".join(c for c in known if c.split()[0] not in cannot(chat.pipe)))
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print("\nbye" if sys.stdin.isatty() else "")
            return
        line = as_command(chat, line) if line else line
        try:
            if line.startswith("/"):
                if not command(chat, line):
                    return
            elif line:
                for piece in chat.ask(line):
                    print(piece, end="", flush=True)
                print()
        except BrokenPipeError:              # `| head`: nobody reads on
            raise
        except (ValueError, OSError, MemoryError, RuntimeError) as e:
            if isinstance(e, RuntimeError) and not out_of_memory(e):
                raise
            print("error:", in_words(e, FIXES), file=sys.stderr)
        except KeyboardInterrupt:            # stops a long answer or drawing; once more at the prompt leaves
            print("\n(stopped)")


def main(argv=None):
    args = parse_args(argv)
    for name in "prompt", "system":
        if getattr(args, name) is not None:
            setattr(args, name, text(getattr(args, name), f"--{name}"))
    pictures = [open_image(name) for name in args.image]
    if args.dry_run:
        pipe = explain.without_weights(args.dry_run, args.ckpt)
        most = check_sampling(pipe.model.llm.config, max_new_tokens=args.max_new_tokens)[2]
        return print(explain.as_text(explain.dry_answer(pipe, args.prompt, pictures, most, args.system)))
    if args.llm:
        pipe = load_text_pipeline(args.llm, args.device, args.dtype)
    else:
        pipe = load_pipeline(args.ckpt, args.device, args.dtype)
    chat = Conversation(pipe, seed=args.seed, look=args.look, system=args.system, drawing={"fast": args.fast},
                        temperature=args.temperature, top_p=args.top_p, max_new_tokens=args.max_new_tokens)
    for picture, name in zip(pictures, args.image):
        chat.show(picture, name)
    if len(pictures) > 1 and pipe.meta.get("turns"):
        print(f"note: this checkpoint looks at one picture at a time, here at {args.image[-1]}", file=sys.stderr)
    if args.prompt is None:
        return talk(chat)
    if not cannot(pipe) and (is_request(args.prompt) or not pictures and wished(pipe, args.prompt)):
        print("note: --prompt is answered in words; sample.py --prompt draws", file=sys.stderr)
    prompt = read(chat, args.prompt)
    with explain.Walk(pipe) if args.explain else nullcontext() as walk:
        for piece in chat.ask(prompt):
            print(piece, end="", flush=True)
    print("\n\n" + explain.as_text(walk) if args.explain else "")


if __name__ == "__main__":
    run_main(main)
