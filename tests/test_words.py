"""New words are noted where they are typed, typing mistakes put right.     python -m pytest -q tests/test_words.py"""
import io
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import chat
import sample
from nanoharmon import words
from nanoharmon.training.recipe import Config, quicken
from nanoharmon.wishes import wish_in
from nanoharmon.words import note_changed, note_unseen, put_right, training_words, words_of
from nanoharmon.world import phrases, prompts
from nanoharmon.world.source import ShapesData
from test_pipeline import make_pipeline
from test_shapes import mentions_unseen

UNKNOWN = "note: this checkpoint has not learned what 'house', 'next' mean"


def test_the_words_of_training_are_those_that_its_stages_draw(monkeypatch):
    config, quick = Config.preset("nano"), Config.preset("nano")
    quicken(quick)
    for table in phrases.QUESTIONS, phrases.RELATION_WAYS, phrases.PLACE_WAYS:      # what is held out cannot be drawn
        for name, (known, _) in [*table.items()]:
            monkeypatch.setitem(table, name, (known, ()))
    for module, names in (phrases, "THINGS SMALL_TALK OTHER_COLORS TOO_MANY"), (prompts, "BESIDE ALONE"):
        for name in names.split():
            monkeypatch.setattr(module, name, (getattr(module, name)[0], ()))
    monkeypatch.setattr(phrases, "HELD_OUT_REQUESTS", ())
    found = set(training_words(config, [ShapesData(config.data)]).split())
    source, rng = ShapesData(config.data), random.Random("others")
    for _ in range(1000):
        turns = source.text(rng) + source.conversation(source.understanding_item(rng, 0.2)[1], rng)
        drawn = [source.prompt(rng.randrange(999), rng), *words.met(turns)]
        assert found.issuperset(words_of(" ".join(drawn)))
        assert not any(mentions_unseen(text) for text in [*drawn, *(text for _, text in turns)])
    assert "remove" in found                                         # a request for a part
    assert "house" not in found                                      # it is only ever refused
    monkeypatch.setattr(words, "MOST_DRAWN", 200)
    of_quick = set(words.training_words(quick, [ShapesData(quick.data)]).split())
    assert "below" in found - of_quick and "circle" in found & of_quick          # one object is below nothing


def test_whoever_types_other_words_is_told_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_pipeline(draw={"steps": 1, "iters": 1}, words="a circle is it red to what").save("listed")
    make_pipeline(draw={"steps": 1, "iters": 1}).save("unlisted")
    for ckpt, notes in ("unlisted", []), ("listed", [UNKNOWN]):
        sample.main(["--ckpt", ckpt, "--prompt", "a Red house", "--prompt", "a red circle, next to a house!"])
        assert [line for line in capsys.readouterr().err.splitlines() if "note" in line] == notes
    monkeypatch.setattr(sys, "stdin", io.StringIO("what house is next to it?\na house\n/draw a house\nis it mine\nmake it red"))
    chat.main(["--ckpt", "listed", "--max-new-tokens", "2"])
    one, other, error = capsys.readouterr().err.splitlines()
    assert [one, other] == [UNKNOWN, f"{UNKNOWN[:42]} 'mine' means"] and "type /edit PLACE" in error


def test_what_is_typed_is_put_right_and_searched_for_a_wish_as_is_written_down():
    here = Path(__file__)
    meta = json.loads((here.parents[1] / "checkpoints/nano/config.json").read_text(encoding="utf-8"))["meta"]
    lines, wishes, commands = here.with_name("typed.txt").read_text(encoding="utf-8").strip().split("\n\n")
    for typed, read in (line.split(" => ") for line in lines.split("\n")[1:]):
        assert put_right(meta, typed) == read and put_right({"words": meta["words"]}, typed) == typed
    for typed, wish in (line.split(" =>") for line in wishes.split("\n")[1:]):
        assert wish_in(typed) == wish.strip(), typed
    talk = SimpleNamespace(pipe=SimpleNamespace(meta=meta), pictures=["one"], wish="two rings", noted=set())
    assert all(chat.as_command(talk, typed) == line for typed, line in (c.split(" => ") for c in commands.split("\n")[1:]))
    assert note_changed(["a cirkle", '"ring"'], ["a circle", "ring"]) == "note: read as 'a circle'"
    assert words_of("Is it a cat's toy, or 2?!\n-- größer_als ein дом") == "is it a cat's toy or 2 größer als ein дом".split()
    assert note_unseen({"words": "größer ein"}, ["größer_Ein?!\n--"]) == note_unseen({}, ["house"]) == ""
