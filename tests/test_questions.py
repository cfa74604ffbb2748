"""Questions, conversations and the many ways to ask.     python -m pytest -q tests/test_questions.py"""
import random
import re
from collections import Counter

from nanoharmon.replies import seen_and_said
from nanoharmon.wishes import is_request, wish_in
from nanoharmon.world import phrases
from nanoharmon.world.conversations import AND, IT, dialogue, sorry
from nanoharmon.world.language import CELLS, NUMBERS, locate, phrase, place_of
from nanoharmon.world.questions import (DIRECTIONS, KINDS, NOT_PLAIN, QA, SUBJECT, is_right, is_sentence, matches,
                                        questions, sides)
from nanoharmon.world.shapes import COLORS, RELATIONS, SHAPES, random_scene
from test_shapes import scenes


def truth(question, scene):
    """The answer from the scene, the plain question read word by word."""
    words = [w if w == "cross" else "cross" if w == "crosses" else w.removesuffix("s")
             for w in question.rstrip("?").removeprefix("where ").split()]

    def find(words):
        return [o for o in scene.objects if all(w == "object" or w in (o.color, o.shape) for w in words)]

    if question.startswith("is there"):
        return "yes" if find(words[3:]) else "no"
    if question.startswith("how many"):
        return NUMBERS[len(find(words[2:-2]))]
    if match := re.match("what is ((?:at|in) .+)[?]", question):
        there = [phrase(o.color, o.shape) for o in scene.objects if place_of(o) == match[1]]
        return there[0] if there else "nothing"
    if question.startswith("what"):
        return getattr(*find(words[4:]), words[1])
    if question.startswith("where is") and "relative" not in question:
        return place_of(*find(words[2:]))
    the = [i for i, w in enumerate(words) if w == "the"]
    (a,), (b,) = find(words[the[0] + 1:the[0] + 3]), find(words[the[1] + 1:])
    side = {"above": a.y < b.y - 1 / 8, "below": a.y > b.y + 1 / 8, "left of": a.x < b.x - 1 / 8,
            "right of": a.x > b.x + 1 / 8}
    if question.startswith("where is"):
        return " and ".join(name for name in side if side[name]) + " it"
    return "yes" if side[" ".join(words[the[0] + 3:the[1]])] else "no"


def test_answers_are_true_and_balanced_and_checked_by_their_content():
    rng, asked, exist = random.Random(9), Counter(), Counter()
    for scene in scenes(600, 9):
        for qa in questions(scene, rng):
            if qa.kind not in ("locate", "caption"):
                assert truth(qa.question, scene) == qa.answer, qa
            assert is_right(f" {qa.answer.upper()}. ", qa) and is_sentence(qa.answer)
            assert qa.kind != "count" or is_right(str(NUMBERS.index(qa.answer)), qa)
            wrong = {"yes", "no", "two", "red", "circle", "left of it", "", qa.answer + " ring"} - {qa.answer}
            assert not any(is_right(answer, qa) for answer in wrong)
            asked[qa.kind] += 1
            exist[qa.answer] += qa.kind == "exist"
    assert set(asked) == set(KINDS) - set(NOT_PLAIN) and abs(exist["yes"] - exist["no"]) < 0.02 * exist.total()
    for scene in (random_scene(rng, n=1, board=board) for board in (2, 3) * 99):     # at the top left it is at the top, too
        empty = [set(qa.question[8:-1].split()) for qa in questions(scene, rng) if qa.answer == "nothing"]
        assert not any(place <= set(place_of(scene.objects[0]).split()) for place in empty)


def test_other_words_have_the_same_answers():
    """All ways to ask one kind of question leave the same gaps; yes is as frequent as no, but of what is at a place."""
    for kind, (known, held_out) in phrases.QUESTIONS.items():
        assert len(known) + len(held_out) >= (12 if kind not in NOT_PLAIN else 6) and not set(known) & set(held_out)
        gaps = [set(re.findall(r"{(\w+)}", w.replace("{hue}", "{the}").replace("{spot}", "{place}"))) &
                {"the", "other", "rel", "place", "color"} for w in known + held_out]
        assert all(found == gaps[0] for found in gaps), kind
    def bare(text):
        return re.sub(r"[?.!,]", "", text).strip()
    for known, held_out in phrases.QUESTIONS.values():                # nor does what is added around a way make another
        added = [first + way for way in known for first in phrases.FIRST]
        added += [way.rstrip("?.") + last for way in known for last in phrases.LAST]
        assert not set(map(bare, known + tuple(added))) & set(map(bare, held_out))
    known, held_out = phrases.ALONE
    around = [(first, "") for first in phrases.AROUND[0]] + [("", last) for last in phrases.AROUND[1]]
    assert not {bare(first + way + last) for way in known for first, last in around} & set(map(bare, held_out))
    core = {f"{asking}{verb} {picture}{{x}}" for asking in phrases.ASKING for verb in phrases.VERBS
            for picture in phrases.PICTURES}
    known = {bare(first + text + last + end) for text in core.union(phrases.BARE) for first, last in [("", "")] + around
             for end in ("", " please")}
    assert not known & set(map(bare, phrases.HELD_OUT_REQUESTS))
    assert not [text for text in known.union(phrases.HELD_OUT_REQUESTS) if not wish_in(text.format(x=(
        "a red ring", "3 rings", "on the left a ring", "only a ring")[sum(map(ord, text)) % 4]))]
    assert not any(wish_in(text) for ways in phrases.SMALL_TALK for text in ways) and not is_request("a cat")
    assert not any(map(wish_in, ("show me where it is", "do two rings touch", "give me a short caption", "a ring?")))
    for table in (phrases.RELATION_WAYS, phrases.PLACE_WAYS):
        words = [w for known, held_out in table.values() for w in {*known, *held_out}]
        assert len(words) == len(set(words))                          # no words with two meanings
    spots, near = ({w: name for name, both in table.items() for way in sum(both, ()) for w in (way, way[way.find("the "):])}
                   for table in (phrases.PLACE_WAYS, phrases.RELATION_WAYS))
    def named(question, words):                                       # what is asked for, by whatever words
        return words[max((w for w in words if w in question), key=len)]
    yes, rng = Counter(), random.Random(2)
    for scene in scenes(600, 4):
        for ways in ("training", "held out"):
            for qa in questions(scene, rng, ways=ways):
                if qa.kind.startswith("is "):                         # is what is asked for what was found?
                    words = spots if qa.kind == "is place" else {w: w for w in (COLORS if "color" in qa.kind else NUMBERS[2:])}
                    found = qa.about.color if "color" in qa.kind else qa.look.split("; ")[1].rpartition(" ")[0]
                    assert (qa.answer == "yes") == ((named(qa.question, words) == found) == (qa.kind != "is not color")), qa
                assert qa.name not in CELLS or named(qa.question, spots) == qa.name, qa
                assert qa.kind != "side" or qa.look.split("; ")[1].startswith(named(qa.question, near) + ":"), qa
                assert qa.kind != "color" or " or " not in qa.question or qa.answer in re.findall(r"\w+", qa.question), qa
                yes[qa.kind, qa.answer] += 1
                assert not wish_in(qa.question), qa
    for kind in ("none", "is color", "is not color", "relation", "is place", "is count"):
        assert 0.8 < yes[kind, "yes"] / yes[kind, "no"] < 1.25, (kind, yes[kind, "yes"], yes[kind, "no"])


def test_conversations_go_on_from_the_question_before():
    rng, follow = random.Random(3), Counter()
    for scene in scenes(400, 3):
        talk = dialogue(scene, rng, 6)
        assert len(talk) <= 6 and len({(qa.kind, qa.name) for qa in talk}) == len(talk)
        assert not any(wish_in(qa.question) for qa in talk)
        for before, qa in zip(talk, talk[1:]):
            said, o = qa.question.rstrip("?").replace(",", ""), qa.about
            if qa.subject and said in [way.format(subject=qa.subject).rstrip("?") for way in AND]:
                assert qa.kind == before.kind and (o is None or o is not before.about)
                called = qa.name.removeprefix(f"{qa.asked_for} ") if qa.kind == "is color" else qa.name
                assert said.split()[-1] not in SHAPES or said.endswith(called)        # as the look calls it
                assert qa.asked_for == before.asked_for and (qa.kind != "is color" or qa.name.startswith(qa.asked_for))
                follow[qa.kind] += 1
            elif said in [w.format(color=c, two=f"{c} or {d}").rstrip("?").replace(",", "")
                          for w in sum(IT.values(), ()) for c in COLORS for d in COLORS]:
                assert o is before.about
                follow["it", qa.kind] += 1
            answers = o and {"color": o.color, "shape": o.shape, "place": place_of(o),
                             "is color": "yes" if o.color in qa.name.split() else "no"}
            assert not o or qa.answer == answers.get(qa.kind, qa.answer)
    assert set(follow) == {*SUBJECT, *(("it", kind) for kind in IT)} and min(follow.values()) > 3, follow


def test_a_look_names_what_it_looks_for_and_says_of_each_place_whether_it_is_there_until_it_is():
    rng, ends = random.Random(5), Counter()
    for scene in scenes(200, 5)[::2]:                                 # on a board no place has two objects
        objects = sorted(scene.objects, key=lambda o: (int(o.y * 3), int(o.x * 3)))
        for qa in questions(scene, rng, ways="training") + dialogue(scene, rng, 6):
            looks, sought = qa.look.split("; "), [o for o in (qa.about, qa.other) if o] or [None]
            sought *= 1 + (qa.kind == "side")
            for _ in sought:
                name, _, part = looks.pop(0).rpartition(": ")
                words, verdicts = set(re.sub("^(no|not) ", "", name).split()), []
                assert (name.split(" ")[0] in ("no", "not")) == (qa.kind in ("none", "is not color"))
                for o, item in zip(objects, part.split(", ")):
                    place, thing = place_of(o), phrase(*o.pair)
                    assert item.startswith(place) and (item.endswith(thing) if name in ("", *CELLS, *RELATIONS) else
                                                       item.startswith(f"{place} {thing}"))
                    rest = item.removeprefix(place).replace(thing, "", 1).split()
                    again = words & set(COLORS) and words & set(SHAPES) <= {o.shape}     # the color decides
                    assert len(rest) == bool(name) + bool(again) and rest[:-1] == [o.color] * bool(again)
                    verdicts += rest[-1:]
                if not name or qa.kind.endswith("count"):
                    about_it = len(objects) == 1 and qa.kind in IT and not qa.subject          # "where is it?"
                    assert part.count(",") == len(objects) - 1
                    assert bool(name) == (qa.kind not in ("locate", "caption")) or about_it
                is_it = [name == place_of(o) or matches(" ".join(words), o) or qa.kind == "side" and o is not qa.about and
                         name in sides(o, qa.about) for o in objects[:len(verdicts)]]
                if qa.kind.endswith("count"):                         # counted on the way
                    assert verdicts == [NUMBERS[sum(is_it[:k + 1])] if it else "no" for k, it in enumerate(is_it)]
                    n = next((v for v in reversed(verdicts) if v != "no"), "zero")
                    assert n == qa.answer or qa.kind == "is count" and looks == [f"{n} {qa.answer}"]
                elif name:
                    assert verdicts == ["yes" if it else "no" for it in is_it] and "yes" not in verdicts[:-1]
                    assert verdicts[-1] == "yes" or len(verdicts) == len(objects)
                    ends[qa.kind, len(verdicts) < len(objects)] += 1
                    if qa.kind in ("exist", "is color", "none", "is not color"):
                        assert (qa.answer == verdicts[-1]) == (qa.kind in ("exist", "is color"))
                    else:
                        assert verdicts[-1] == "yes" or qa.answer == "nothing" or qa.kind in ("exist at", "empty")
            if qa.kind in ("exist at", "empty"):                      # what is there, then whether that is so
                asked, seen, answer = re.fullmatch("(.+): (.+) (yes|no)", looks.pop(0)).groups()
                assert answer == qa.answer and (seen == "nothing") == (verdicts[-1] == "no")
                assert asked == (qa.asked_for or "empty")
                is_so = seen != "nothing" and {*qa.asked_for.split()} <= {*seen.split(), "object", "anything"}
                assert (answer == "yes") == (is_so if qa.kind == "exist at" else seen == "nothing")
                assert seen == "nothing" or item.endswith(f"{name} yes {phrase(*seen.split())}")
            elif qa.kind == "side":
                assert item.endswith(f" yes {qa.answer}") or qa.answer == "nothing"
            if qa.other:
                found = dict(side.rsplit(" ", 1) for side in looks.pop(0).split(", "))
                assert [side for side in found if found[side] == "yes"] == sorted(sides(qa.about, qa.other),
                                                                                  key=list(found).index)
                assert list(found) == list(phrases.RELATION_WAYS)
            if qa.kind in ("relation", "is place", "is count"):       # what decides, then whether it is so
                related, _, answer = looks.pop(0).rpartition(" ")
                assert answer == qa.answer == (found[related] if qa.other else answer)
            assert not looks and seen_and_said(qa.reply) == (qa.look, qa.answer)
    assert seen_and_said("look: at the top a red") == ("at the top a red", "")           # cut in the middle of it
    assert seen_and_said("look: sorry, no.") == ("", "sorry, no.")
    assert ends["exist", True] > 20 and ends["relation", True] > 10 and ends["place", True] > 20


def test_only_sentences_of_the_world_are_sentences():
    for reply in ("yes", "three", "in the middle", "a red circle", "two red circles and a blue ring", phrases.SORRY,
                  *(f"{direction} it" for direction in DIRECTIONS), locate(scenes(1, 1)[0])):
        assert is_sentence(reply), reply
    for reply in ("", "left of the", "yes blue square", "a yellow cross and ayes", "ayes", "at the", "a red", "sorry"):
        assert not is_sentence(reply), reply
    said = [sorry(random.Random(i), held_out) for i in range(50) for held_out in (False, True)]
    assert all(qa.answer == phrases.SORRY and qa.kind == "outside" for qa in said)
    for known, held_out in (phrases.THINGS, phrases.SMALL_TALK, phrases.OTHER_COLORS, phrases.TOO_MANY,
                            phrases.IMPOSSIBLE):
        assert not set(known) & set(held_out)
    assert not is_right("sorry", QA("", phrases.SORRY, "outside"))
