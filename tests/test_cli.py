"""sample.py and chat.py as people use them; misuse: test_bad_input.py.     python -m pytest -q tests/test_cli.py"""
import errno
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

import chat
import sample
from nanoharmon.arguments import threads_asked
from nanoharmon.cli import run_main, text
from nanoharmon.conversation import NO_PICTURE, SORRY
from nanoharmon.pictures import captioned, font_for, open_image
from nanoharmon.tokenizer import LOOK
from nanoharmon.training.parallel import torchrun_says
from test_pipeline import make_pipeline

CONVERSATION = chat.Conversation
P = ["--prompt", "a red circle"]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ckpt")
    make_pipeline(draw={"steps": 2, "iters": 3}).save(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a picture and half of it."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "red").save("red.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    return tmp_path


def call(main, argv):
    """Exit code of a command run in this process."""
    with pytest.raises(SystemExit) as e:
        run_main(lambda: main(argv))
        raise SystemExit(0)
    return e.value.code


@pytest.mark.parametrize("raised, code, message", [
    (KeyboardInterrupt(), 130, "interrupted"), (ValueError("a\nb"), 2, "error: a b\n"),
    (OSError(errno.EACCES, "Permission denied", "f"), 2, "error: f: Permission denied; check that path"),
    (OSError(errno.ENOSPC, "No space left on device", "f"), 2, "error: f: No space left on device; free space"),
    (MemoryError(), 2, "out of memory"), (RuntimeError("CUDA out of memory. Tried"), 2, "out of memory")])
def test_run_ends_politely(raised, code, message, capsys):
    def main(_):
        raise raised
    assert call(main, None) == code and message in capsys.readouterr().err


@pytest.mark.parametrize("error, variable", [(RuntimeError("x"), ""), (TypeError("x"), ""), (ValueError("x"), "1")])
def test_our_own_bugs_keep_their_traceback(error, variable, monkeypatch):
    monkeypatch.setenv("NANOHARMON_TRACEBACK", variable)
    with pytest.raises(type(error)):
        run_main(lambda: (_ for _ in ()).throw(error))


def test_pictures_of_all_kinds_become_upright_rgb(here):
    half, palette, exif = np.full((4, 6), 32896, dtype=np.uint16), Image.new("P", (4, 4), 1), Image.Exif()
    palette.putpalette([9, 9, 9, 200, 0, 0])
    exif[0x0112] = 6                                         # the camera was turned
    turned = Image.fromarray(np.array([[0, 255]], np.uint8).repeat(8, axis=0).repeat(8, axis=1))    # right half white
    for image, name, options, color in [
            (Image.fromarray(half), "half.png", {}, [128] * 3), (Image.fromarray(half), "half.tiff", {}, [128] * 3),
            (Image.fromarray(np.full((4, 6), 0.5, np.float32)), "float.tiff", {}, [128] * 3),
            (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "clear.png", {}, [255] * 3),
            (Image.new("LA", (4, 4), (0, 127)), "la.png", {}, [128] * 3), (palette, "solid.gif", {}, [200, 0, 0]),
            (palette, "palette.png", {"transparency": 1}, [255] * 3), (turned, "turned.png", {"exif": exif}, [0] * 3),
            *[(turned, f"broken{suffix}", {"exif": b"Exif\0\0no TIFF header", "quality": 100}, [0] * 3)
              for suffix in (".png", ".webp", ".jpg")],              # as interfaces of Stable Diffusion write it
            (Image.new("CMYK", (4, 4)), "c.jpg", {}, [255] * 3), (Image.new("1", (4, 4), 1), "1.bmp", {}, [255] * 3)]:
        image.save(name, **options)
        opened = open_image(name)
        assert opened.mode == "RGB" and opened.getpixel((0, 0)) == tuple(color), name
    assert open_image("turned.png").size == (8, 16) and open_image("turned.png").getpixel((0, 15)) == (255,) * 3


def test_the_same_command_writes_the_same_bytes(ckpt, here, capsys, monkeypatch):
    def draw(out, seed):
        sample.main([*P, "--prompt", "zwei Ringe, größer", "--n", "2", "--seed", str(seed), "--ckpt", ckpt,
                     "--out", out, "--gif", out[0] + ".gif", "--save-each", out[0]])
        return [p.read_bytes() for p in [here / out, here / (out[0] + ".gif"), *sorted((here / out[0]).iterdir())]]
    a, b, c = draw("a.png", 1), draw("b.png", 1), draw("c.png", 2)
    assert a == b and all(x != y for x, y in zip(a, c))
    assert len({*a[2:]}) == 4                                # all four pictures differ
    out = capsys.readouterr().out
    assert "wrote a.png, a.gif, a: 2 x 2 pictures of 32x32 in" in out
    assert "cfg 3, constant, iters 3, redraw 0, steps 2, sampler ddpm, temperature 1, think False, seed 1" in out
    sample.main([*P, "--prompt", "x", "--n", "1", "--ckpt", ckpt, "--seed", "1", "--save-each", "rows"])
    sample.main(["--prompt", "y", *P, "--n", "1", "--ckpt", ckpt, "--seed", "1", "--save-each", "swapped"])
    assert Path("rows/000_0.png").read_bytes() == Path("swapped/001_0.png").read_bytes()     # no row depends on others
    sample.main(["--prompt", "y", *P, "--n", "1", "--ckpt", ckpt, "--seed", "1", "--batch", "1", "--save-each", "one"])
    for name in "000_0.png", "001_0.png":                    # nor on the batch, but for rounding
        a, b = (np.asarray(Image.open(Path(folder, name))).astype(int) for folder in ("swapped", "one"))
        assert abs(a - b).max() <= 1
    assert "older" not in capsys.readouterr().err
    sample.main([*P, "--n", "1", "--ckpt", ckpt, "--save-each", "swapped"])
    assert "note: older pictures stay in swapped: 001_0.png" in capsys.readouterr().err
    monkeypatch.setattr(sample, "make_grid", lambda *_: 1 / 0)           # what is drawn is saved at once
    with pytest.raises(ZeroDivisionError):
        sample.main([*P, "--prompt", "x", "--n", "1", "--ckpt", ckpt, "--save-each", "kept"])
    assert len([*(here / "kept").iterdir()]) == 2


def test_a_model_that_thinks_first_says_what_it_draws(here, capsys, monkeypatch):
    pipe = make_pipeline(draw={"steps": 2, "iters": 3, "think": True})
    thoughts = pipe.think(["a red circle"] * 2, seed=7)
    monkeypatch.setattr("nanoharmon.pipeline.load_pipeline", lambda *_: pipe)
    for flags in ([], ["--no-think"]):
        sample.main([*P, "--n", "2", "--seed", "7", "--save-each", "each" + "".join(flags), *flags])
        out = capsys.readouterr().out
        assert all((words in out) != bool(flags) for words in thoughts) and f"think {not flags}" in out
    first, plain = (np.asarray(Image.open(name)) for name in ("each/000_0.png", "each--no-think/000_0.png"))
    assert (first == np.asarray(pipe.draw(["a red circle"] * 2, seed=7)[0])).all() and (first != plain).any()


def test_prompts_come_from_flags_and_files(here):
    Path("good.txt").write_text("\ufeffa red circle\r\n\nein grüner Ring\n", encoding="utf-8")
    assert sample.read_prompts(sample.parse_args([*P, "--prompts-file", "good.txt"])) == [*P[1:] * 2, "ein grüner Ring"]


def test_options_are_taken(ckpt, here, capsys):
    sample.main([*P, "--n", "1", "--ckpt", ckpt, "--dtype", "bfloat16", "--sampler", "dpm++", "--cfg", "1.5",
                 "--cfg-schedule", "linear", "--size", "16x24", "--iters", "4"])
    out = capsys.readouterr().out
    assert "cfg 1.5, linear, iters 4, redraw 0, steps 2, sampler dpm++, temperature 1, think False, seed 0" in out
    assert "pictures of 16x24" in out
    Image.new("RGBA", (320, 160), (0, 255, 0, 128)).save("wide.png")             # any size and mode
    sample.main([*P, "--n", "1", "--ckpt", ckpt, "--image", "wide.png", "--region", "0,0,160,40", "--gif", "a.gif"])
    assert Image.open("a.gif").convert("RGB").getpixel((104, 122))[1] > 200      # begins with what is kept
    assert "iters 2," in capsys.readouterr().out             # cut to the tokens there are: the left half of the top row


def type_in(monkeypatch, ckpt, *lines, flags=()):
    """Run the loop on scripted input; returns the Conversation."""
    made = []
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    monkeypatch.setattr(chat, "Conversation", lambda *args, **options: made.append(CONVERSATION(*args, **options))
                        or made[-1])
    chat.main(["--ckpt", ckpt, "--max-new-tokens", "6", *flags])
    return made[0]


def test_draw_then_ask_about_the_drawing(ckpt, here, capsys, monkeypatch):
    Path("drawing-001.png").write_bytes(b"mine")             # never overwritten
    talk = type_in(monkeypatch, ckpt, "hello", "/Draw\tpls draw a circle", "what color is it?", "", "Draw it again!",
                   "red.png", "which one?", "/save talk.json", "/save talk.txt", "Quit", "not read any more")
    assert [m["content"] for m in talk.messages[::2]] == [
        "hello", [None, "\n", "what color is it?"], [None, "\n", None, "\n", "which one?"]]
    assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 3 and not talk.waiting
    assert talk.names == ["drawing-002.png", "drawing-003.png", "red.png"]
    assert Path("drawing-001.png").read_bytes() == b"mine"
    first, second = (Image.open(n).tobytes() for n in talk.names[:2])
    assert first == talk.pictures[0].tobytes() != second     # asked twice, drawn differently
    out, err = capsys.readouterr()
    assert all(m["content"] in out for m in talk.messages[1::2])
    assert "(drawing-002.png; ask about it)" in out and "error" not in err
    assert json.loads(Path("talk.json").read_text(encoding="utf-8"))[4]["content"][0] == {"image": "drawing-003.png"}
    assert "user: [drawing-002.png]\nwhat color is it?" in Path("talk.txt").read_text(encoding="utf-8")


def test_a_model_that_looks_first_shows_what_it_saw_in_brackets(ckpt, here, capsys, monkeypatch):
    seen, count = "cross: at the top a red ring no, in the middle a red cross yes", "ring: at the top a red ring one"
    replies = [f" {seen}. red", f" {seen}; {count}. above it", " sorry, no.", f" {count}. one", f" {count}; {seen[:22]}"]
    says = iter(replies)

    def stream(*_):
        reply = next(says)
        yield from re.findall(r"\W*\w+|\W+$", reply)
        return reply == replies[-1]                                   # the last one is cut in the middle of its look
    monkeypatch.setattr("nanoharmon.pipeline.stream", stream)
    talk = type_in(monkeypatch, ckpt, "/image red.png", *"abcde", flags=["--look"])
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"({seen}) red", f"({seen}; {count}) above it", "sorry, no.", f"({count}) one", f"({replies[-1][1:]}) ...", ""]
    assert [m["content"] for m in talk.messages[1::2]] == [LOOK + reply for reply in replies]
    says = iter(replies)
    assert [talk.answer("f") for _ in replies] == ["red", "above it", "sorry, no.", "one", ""]


def test_looking_begins_the_reply_and_batches_say_the_same(ckpt, here):
    pipe, pictures = chat.load_pipeline(ckpt), [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    asked = [{"role": "user", "content": [None, "\nwhich?"]}]
    ids = pipe.chat_ids(asked, None, 9)
    assert pipe.chat_ids(asked, None, 9, look=True) == ids + pipe.tokenizer.encode(LOOK)
    [first, *_], [at_once, *_] = (list(pipe.reply(asked, pictures[:1], look=look, max_new_tokens=9)) for look in (True, False))
    assert first == LOOK != at_once and pipe.answers(pictures, ["which?"] * 2, look=True, max_new_tokens=9) == [
        pipe.answer(picture, "which?", look=True, max_new_tokens=9) for picture in pictures]
    assert next(pipe.reply([{"role": "user", "content": "hi"}], look=True)) != LOOK                # there is no picture


def test_what_is_read_of_a_long_conversation(ckpt):
    pipe = chat.load_pipeline(ckpt)
    talk = chat.Conversation(pipe)
    talk.pictures = ["first", "second", "third"]
    turns = ["hi", "ho", [None, "\n", None, "\n", "a"], "b", "c", "d", [None, "\n", "e"], *"fghijklm"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    assert talk.recent(messages) == (messages, talk.pictures)
    pipe.meta["turns"] = 3
    read, pictures = talk.recent(messages)
    assert [m["content"] for m in read] == [[None, "\n", "e"], "f", "k", "l", "m"] and pictures == ["third"]
    read, pictures = talk.recent(messages[:5])
    assert [m["content"] for m in read] == [[None, "\n", "a"], "b", "c"]
    told = {"role": "system", "content": "be short"}
    read, pictures = talk.recent([told, *[messages[i] for i in (0, 1, 4, 5, 4, 5, 4, 5, 4)]])
    assert [m["content"] for m in read] == ["be short", "c"] and not pictures
    refused = [{"role": "assistant", "content": said} for said in ("sorry, no", "look: nothing. sorry, no")]
    read, _ = talk.recent([*messages[6:8], messages[8], refused[0], messages[10], refused[1], *messages[12:15]])
    assert [m["content"] for m in read] == [[None, "\n", "e"], "f", "k", "l", "m"]       # what was refused is left out
    assert [m["content"] for m in talk.recent([messages[6], refused[0], messages[8]])[0]] == [[None, "\n", "g"]]
    assert talk.recent([told, *messages])[0] == [told, *talk.recent(messages)[0]]
    del pipe.meta["turns"]


def test_without_a_picture_nothing_is_said_of_one_and_no_answer_is_empty(ckpt, monkeypatch):
    talk = chat.Conversation(pipe := chat.load_pipeline(ckpt))
    replies = ["a ring", "sorry, no", "a ring", "look: a ring. ", "look: a ring. red"]
    monkeypatch.setattr(pipe, "reply", lambda *_, **__: iter(replies.pop(0).partition(" ")))
    assert talk.answer("what is it?") == "a ring"
    monkeypatch.setitem(pipe.meta, "turns", 3)
    assert "".join(talk.ask("hi")) == "sorry, no" and "".join(talk.ask("what is it?")) == NO_PICTURE
    talk.show(Image.new("RGB", (8, 8)), "x.png")
    assert "".join(talk.ask("what is it?")) == SORRY and "".join(talk.ask("which color?")) == "(a ring) red"


def test_a_request_that_the_model_refuses_is_not_drawn(here, capsys, monkeypatch):
    pipe = make_pipeline(draw={"steps": 2, "iters": 3, "think": True})
    monkeypatch.setattr(pipe, "say", lambda embeds, *_: ["sorry, not this"] * len(embeds))
    monkeypatch.setattr(chat, "load_pipeline", lambda *_: pipe)
    talk = type_in(monkeypatch, "x", "/draw a house")
    assert "sorry, not this" in capsys.readouterr().out and not talk.pictures and not list(here.glob("drawing*"))
    monkeypatch.setattr("nanoharmon.pipeline.load_pipeline", lambda *_: pipe)
    assert call(sample.main, [*P, "--n", "1"]) == 2 and "refused: 'a red circle': sorry, not this; pass --no-think" in capsys.readouterr().err
    assert call(sample.main, [*P, "--prompt", "b"]) == 2 and "refused: 'a red circle', 'b': sorry, not" in capsys.readouterr().err
    sample.main([*P, "--n", "1", "--no-think"])


def test_a_part_of_the_last_picture_is_changed(ckpt, here, capsys, monkeypatch):
    talk = type_in(monkeypatch, ckpt, "/edit 0,0,8,8 a ring", "/image red.png", "/edit", "/edit 0,0,8,8",
                   "/edit 0,0,-8,8 a ring", "/edit 0,0,99,8 a ring", "/edit  0, 0,8, 8  a ring", "/edit here a ring")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 6 and "no picture" in errors[0] and "--" not in "".join(errors)
    assert all("type /edit PLACE TEXT" in line and "or /edit x0,y0,x1,y1 TEXT" in line for line in errors[1:])
    for words in "Bottom  right, a ring", "please add a ring at the bottom right corner.", "64, 40,96,60 a ring":
        assert chat.part(words, (96, 60)) == ((64, 40, 96, 60), "a ring")
    drawn = talk.pipe.draw(["a ring"], image=talk.pictures[0], region=(0, 0, 8, 8))[0]
    assert talk.names == ["red.png", "drawing-001.png"] and talk.pictures[1].tobytes() == drawn.tobytes()
    small = CONVERSATION(talk.pipe, drawing={"size": 16})
    small.draw("a ring")
    assert small.pictures[0].size == (16, 16)                         # drawings are drawn as asked


def test_lines_as_people_type_them_are_drawn_or_asked_as_is_written_down():
    for lines in Path(__file__).with_name("requests.txt").read_text(encoding="utf-8").split("\n[")[1:]:
        title, *lines = filter(None, lines.split("\n"))
        assert len(lines) > 20 and not [x for x in lines if bool(chat.wish_in(x)) != title.startswith("drawn")], title


def test_the_loop_survives_every_mistake(ckpt, here, capsys, monkeypatch):
    mistakes = ["/image", "/image nowhere.png", "/image cut.png", "/draw", "/draw  ", "/draw " + "red " * 999,
                "/save", "/save a.exe", "/save nowhere/a.txt", "/save a.png", "/imgae red.png", "/", "red " * 999]
    talk = type_in(monkeypatch, ckpt, *mistakes, "still there?", "/help", "/quit", "not read any more")
    out, err = capsys.readouterr()
    assert err.count("error: ") == len(err.strip().splitlines()) == len(mistakes)
    assert "did you mean '/image'" in err and "/reset" in err and "/draw TEXT" in out
    assert [m["content"] for m in talk.messages[::2]] == ["still there?"]
    assert not list(here.glob("drawing*")) and not (here / "a.exe").exists()


def test_file_names_are_those_that_people_type_and_pictures_are_not_overwritten(ckpt, here, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    Path("a b.png").write_bytes(before := Path("red.png").read_bytes())
    names = "'a b.png'", "a\\ b.png", "a b.png", '"~/red.png"'
    talk = type_in(monkeypatch, ckpt, *(f"/image {name}" for name in names), "/save ~/red.png", "/save ~/other.png")
    assert talk.waiting == 4 and Path("red.png").read_bytes() == before and Path("other.png").exists()
    assert "red.png is a picture of this conversation, and would be overwritten" in (err := capsys.readouterr().err)
    assert err.count("error") == 1


def test_a_text_only_chat_refuses_pictures_at_once_and_marks_what_was_cut(ckpt, here, capsys, monkeypatch):
    pipe = make_pipeline()
    monkeypatch.setattr(chat, "load_pipeline", lambda *_: chat.TextPipeline(pipe.model.llm, pipe.tokenizer))
    talk = type_in(monkeypatch, ckpt, "/image red.png", "/draw a ring", "/save a.png", "/help", "hello there")
    out, err = capsys.readouterr()
    assert err.count("neither sees nor draws") == 2 and "ending in .json, .txt;" in err and "/image" not in out
    assert talk.messages[1]["content"] + " ...\n" in out and "..." not in talk.messages[1]["content"]


@pytest.mark.parametrize("value, asked", {"": None, "0": None, "x": None, "9" * 30: None, "4,2": 4, " 3 ": 3}.items())
def test_threads_are_those_that_openmp_would_take(value, asked, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads_asked() == asked


def test_a_conversation_that_outgrows_the_context_can_be_reset(ckpt, here, capsys, monkeypatch):
    talk = type_in(monkeypatch, ckpt, "/draw a ring", *(some := ["/image red.png", "what is it?"]) * 15, "/reset", *some)
    assert "type /reset" in capsys.readouterr().err and (len(talk.messages), len(talk.pictures), talk.wish) == (2, 1, "")


def test_ctrl_c_stops_the_answer_and_at_the_prompt_leaves(ckpt, here, capsys, monkeypatch):
    lines = iter(["zero", "one", "two"])

    def read(_):
        for line in lines:
            return line
        raise KeyboardInterrupt

    def reply(self, messages, *_, **__):
        yield "well"
        if said := {"one": KeyboardInterrupt, "zero": RuntimeError("CUDA out of memory")}.get(messages[-1]["content"]):
            raise said
    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("nanoharmon.pipeline.Pipeline.reply", reply)
    talk = type_in(monkeypatch, ckpt)
    assert [m["content"] for m in talk.messages] == ["two", "well"]              # the stopped turn is not kept
    out, err = capsys.readouterr()
    assert "(stopped)" in out and "error: out of memory; pass a smaller" in err


def test_chat_ends_when_nobody_reads_on(ckpt, here, monkeypatch):
    monkeypatch.setattr(CONVERSATION, "ask", lambda *_: (_ for _ in "x").throw(BrokenPipeError))
    with pytest.raises(BrokenPipeError):                     # run_main knows what to do with it
        type_in(monkeypatch, ckpt, "hello")


def test_characters_that_the_terminal_cannot_read_are_no_reason_to_stop(ckpt, here, capfd, monkeypatch):
    lines = b"hi \xff\xfe\n/draw a ring\nwhat?\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    assert call(chat.main, ["--ckpt", ckpt, "--max-new-tokens", "3"]) == 0
    out, err = capfd.readouterr()
    assert not err and "(drawing-001.png; ask about it)" in out
    assert text("gr\udcc3\udcb6\udcc3\udc9fe", "--prompt") == "größe"           # that Python took for ASCII: LC_ALL=C


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_stops_nobody(ckpt, here, closed, monkeypatch):
    """0<&-, >&- and 2>&-, of which Python makes None."""
    monkeypatch.setattr(sys, closed, None)
    said = [] if closed == "stdin" else ["--prompt", "x"]
    assert call(chat.main, ["--ckpt", ckpt, "--max-new-tokens", "2", *said]) == 0
    monkeypatch.setattr(sys, closed, None)
    assert call(sample.main, ["--ckpt", ckpt, "--prompt", "x", "--n", "1"]) == 0 and Path("grid.png").exists()


@pytest.mark.parametrize("size, rank, address", [("abc", "0", "x"), ("2", "", "x"), ("2", "2", "x"), ("2", "0", "")])
def test_an_environment_that_is_not_torchruns_is_named(monkeypatch, size, rank, address):
    for name, value in ("WORLD_SIZE", size), ("RANK", rank), ("MASTER_ADDR", address):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"WORLD_SIZE '{size}' and RANK '{rank}'.*torchrun"):
        torchrun_says()


def test_other_letters_than_ascii_are_set_in_a_font_that_has_them(monkeypatch):
    real, other = ImageFont.truetype, ImageFont.load_default(22)
    before, o = (captioned(Image.new("RGB", (60, 9)), letter, 60).tobytes() for letter in "äö")
    assert all(font_for("a", 11).getmask("a").size)                              # Pillow's own
    if font_for("ä", 11).getname() != font_for("a", 11).getname():               # one of the system
        assert before != o and len({bytes(font_for("ä", 11).getmask(letter)) for letter in "äö"}) == 2
    monkeypatch.setattr(ImageFont, "truetype", lambda font, *args, **options:     # stands for one of the system
                        other if isinstance(font, str) else real(font, *args, **options))
    assert (font_for("ä", 11).size, font_for("a", 11).size) == (22, 11)
    assert captioned(Image.new("RGB", (60, 9)), "ä", 60).tobytes() != before


def test_each_prompts_pictures_are_in_its_row():
    rows = [[Image.new("RGB", (96, 96), (60 * r, 99 * c, 0)) for c in range(2)] for r in range(3)]
    sheet = sample.make_grid(["a", "b", "c"], rows)
    assert [[sheet.getpixel((104 + 200 * c, 122 + 222 * r)) for c in range(2)] for r in range(3)] == [
        [(60 * r, 99 * c, 0) for c in range(2)] for r in range(3)]
