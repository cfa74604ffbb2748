"""Words that training never held are noted where they are typed.     python -m pytest -q tests/test_words.py"""
import io
import random
import sys

import pytest

import chat
import sample
from nanoharmon import words
from nanoharmon.training.recipe import Config, quicken
from nanoharmon.words import note_unseen, training_words, words_of
from nanoharmon.world import phrases
from nanoharmon.world.source import ShapesData
from test_pipeline import make_pipeline
from test_shapes import mentions_unseen

UNKNOWN = "'house', 'next' never occurred in the training of this checkpoint, so it has not learned what they mean"


def test_the_words_of_training_are_those_that_its_stages_draw(monkeypatch):
    config, quick = Config.preset("nano"), Config.preset("nano")
    quicken(quick)
    for table in phrases.QUESTIONS, phrases.RELATION_WAYS, phrases.PLACE_WAYS:      # what is held out cannot be drawn
        for name, (known, _) in [*table.items()]:
            monkeypatch.setitem(table, name, (known, ()))
    for name in "THINGS", "SMALL_TALK", "OTHER_COLORS", "TOO_MANY":
        monkeypatch.setattr(phrases, name, (getattr(phrases, name)[0], ()))
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
    for ckpt, notes in ("unlisted", []), ("listed", [f"note: {UNKNOWN}"]):
        sample.main(["--ckpt", ckpt, "--prompt", "a Red house", "--prompt", "a red circle, next to a house!"])
        assert [line for line in capsys.readouterr().err.splitlines() if "note" in line] == notes
    monkeypatch.setattr(sys, "stdin", io.StringIO("what house is next to it?\n/draw a house\nis it mine\nmake it red"))
    chat.main(["--ckpt", "listed", "--max-new-tokens", "2"])
    one, other, error = capsys.readouterr().err.splitlines()
    assert [one, other] == [f"note: {UNKNOWN}", f"note: 'mine' {UNKNOWN[16:-9]}it means"] and "type /edit x0" in error


@pytest.mark.parametrize("text, found", [("Is it a cat's toy, or 2 toys?", "is it a cat's toy or 2 toys"),
                                         ("größer_als ein дом\n", "größer als ein дом"), ("!? --", "")])
def test_words_in_any_script_are_found(text, found):
    assert " ".join(words_of(text)) == found
    assert note_unseen({"words": found}, [text]) == note_unseen({}, [text]) == ""
