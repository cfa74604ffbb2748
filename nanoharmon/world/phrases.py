"""The many ways in which people ask and request the same thing.

Every kind of question, relation, place and request has two lists: ways that training uses, and ways that it never sees
("held out": other words, another order). So `--bench phrases` can tell whether a way of asking was understood or
learned by heart. The first of each list is the plain way, as in other benchmarks. What has only one list is in both.

In the patterns, {thing} is "red circle", {a} "a red circle", {s} "red circles", {the} "the red circle", {other} "the
blue ring", {rel} "left of", {place} "at the top left", {spot} "the top left", {color} "red", {two} "red or blue", {n}
"two", {hue} the color of what is named by that alone ("the red object"), and {x} what is drawn.
"""
import random
import re

from ..tokenizer import REFUSAL
from .language import NUMBERS, OPEN, phrase, plural
from .shapes import SEEN

QUESTIONS = {
    "exist": (
        ("is there {a}?", "is there {a} in the image?", "is {a} there?", "do you see {a}?", "can you see {a}?",
         "are there any {s}?", "does the picture show {a}?", "does the image contain {a}?", "any {s}?",
         "is there {a} in the picture?", "do you see any {s}?", "are there {s}?", "can you find {a}?",
         "tell me if there is {a}", "does it have {a}?", "do you find {a}?", "is {a} among them?",
         "can you see if there are {s}?"),
        ("are there any {s} in the picture?", "does the image show any {s}?", "is {a} in the image?",
         "can you find any {s}?", "do you see {a} in the picture?", "is there any {thing}?", "can i see {a} here?",
         "does the picture contain {a}?", "are some {s} there?", "you see {a}, don't you?", "{a}, is it there?",
         "could you tell me if there are any {s}?")),
    "none": (
        ("are there no {s}?", "is there no {thing}?", "is it true that there are no {s}?", "does it show no {s}?",
         "is {a} missing?", "there are no {s}, right?", "does it have no {s}?"),
        ("are there no {s} in the picture?", "is it true that you see no {s}?", "does the picture have no {s}?",
         "no {s} there, right?", "do you see no {s}?", "the picture has no {s}, right?")),
    "exist at": (
        ("is there {a} {place}?", "do you see {a} {place}?", "is {a} {place}?", "can you see {a} {place}?",
         "{place}, is there {a}?", "does it have {a} {place}?", "tell me if there is {a} {place}",
         "does the picture show {a} {place}?", "is there {a} {place} or not?", "is {a} to be seen {place}?"),
        ("do you find {a} {place}?", "does the image contain {a} {place}?", "can you find {a} {place}?",
         "{place}, do you see {a}?", "is it true that there is {a} {place}?", "would you say there is {a} {place}?")),
    "empty": (
        ("is {spot} empty?", "is it empty {place}?", "is {spot} free?", "is there nothing {place}?",
         "{spot} is empty, right?", "tell me if {spot} is empty", "do you see nothing {place}?"),
        ("is nothing {place}?", "can you see if {spot} is empty?", "would you say {spot} is empty?",
         "{spot}: empty or not?", "is it true that {spot} is empty?", "does it show nothing {place}?")),
    "count": (
        ("how many {s} are there?", "how many {s}?", "how many {s} are in the image?", "how many {s} do you see?",
         "how many {s} can you see?", "count the {s}", "what is the number of {s}?", "number of {s}?",
         "how many {s} does the picture show?", "tell me how many {s} there are", "how many {s} can you count?",
         "what's the number of {s}?", "what number of {s} does it have?", "{s}: what number?", "count how many {s}"),
        ("how many {s} are in the picture?", "how many {s} does the image contain?", "can you count the {s}?",
         "the number of {s} in the image?", "count all {s}", "tell me the number of {s}", "{s}: how many?",
         "how many of them are {s}?", "what number of {s} do you see?", "how many {s} can you find?",
         "how many {s} in the picture?", "{s}, how many are there?")),
    "color": (
        ("what color is {the}?", "what colour is {the}?", "which color is {the}?", "which color does {the} have?",
         "what is the color of {the}?", "what's the color of {the}?", "tell me the color of {the}",
         "what color does {the} have?", "color of {the}?", "{the} is what color?", "which colour is {the}?",
         "in what color is {the}?", "i want to know the color of {the}", "say what color {the} has",
         "what color do you think {the} is?", "can you see in what color {the} is?", "is {the} {two}?",
         "{the}: {two}?"),
        ("what's the colour of {the}?", "which colour does {the} have?", "the colour of {the}?", "{the}: which color?",
         "can you see what color {the} has?", "what is the colour of {the} in the picture?", "{the} has which color?",
         "tell me which color {the} is", "do you see the color of {the}?", "what color would you say {the} is?",
         "the color that {the} has?", "{the}, what color is it?")),
    "shape": (
        ("what shape is {the}?", "which shape is {the}?", "what is the shape of {the}?", "what is {the}?",
         "what shape does {the} have?", "what's the shape of {the}?", "tell me the shape of {the}", "shape of {the}?",
         "what kind of shape is {the}?", "{the} is what shape?", "which shape does {the} have?", "what's {the}?",
         "i want to know the shape of {the}", "say what shape {the} has", "what shape do you think {the} is?",
         "what sort of thing is {the}?", "which one is {hue}?", "which of them is {hue}?", "which object is {hue}?"),
        ("the shape of {the}?", "{the}: which shape?", "{the} has which shape?", "what shape would you say {the} is?",
         "tell me which shape {the} is", "tell me what {the} is", "can you see what shape {the} has?",
         "what kind of object is {the}?", "do you see the shape of {the}?", "in the picture, what shape is {the}?",
         "the shape that {the} has?", "{the}, what shape is it?")),
    "is color": (
        ("is {the} {color}?", "is the color of {the} {color}?", "is it true that {the} is {color}?",
         "{the} is {color}, right?", "would you say {the} is {color}?", "does {the} look {color}?",
         "is {the} {color} or not?", "{the}: {color} or not?", "tell me: is {the} {color}?",
         "do you see {color} as the color of {the}?", "say if {the} is {color}", "can you see if {the} is {color}?"),
        ("do you see that {the} is {color}?", "{the} is {color}: yes or no?", "is {color} the color of {the}?",
         "{the}, is it {color}?", "tell me if {the} is {color}", "would you say that {the} is {color}?")),
    "is not color": (
        ("is {the} not {color}?", "is it true that {the} is not {color}?", "{the} is not {color}, right?",
         "would you say {the} is not {color}?", "say if {the} is not {color}"),
        ("{the} is not {color}: yes or no?", "tell me if {the} is not {color}", "{the}: not {color}?",
         "do you see that {the} is not {color}?", "can you see if {the} is not {color}?",
         "in the picture, is {the} not {color}?")),
    "is place": (
        ("is {the} {place}?", "is it true that {the} is {place}?", "{the} is {place}, right?",
         "do you see {the} {place}?", "does {the} lie {place}?", "tell me if {the} is {place}",
         "would you say {the} is {place}?", "can you see {the} {place}?", "say if {the} is {place}",
         "is {the} placed {place}?"),
        ("{the} is {place}: yes or no?", "{the}, is it {place}?", "would you say that {the} is {place}?",
         "can you tell me if {the} is {place}?", "do you think {the} is {place}?", "{the} lies {place}, right?")),
    "is count": (
        ("are there {n} {s}?", "do you see {n} {s}?", "are there {n} {s} in the image?", "does it show {n} {s}?",
         "is it true that there are {n} {s}?", "there are {n} {s}, right?", "can you see {n} {s}?",
         "does the picture show {n} {s}?", "are there {n} {s} or not?", "is the number of {s} {n}?",
         "are there exactly {n} {s}?"),
        ("are there {n} {s} in the picture?", "does the image contain {n} {s}?", "does the picture have {n} {s}?",
         "do you count {n} {s}?", "would you say there are {n} {s}?", "is it true that you see {n} {s}?")),
    "relation": (
        ("is {the} {rel} {other}?", "is it true that {the} is {rel} {other}?", "would you say {the} is {rel} {other}?",
         "{the} is {rel} {other}, right?", "do you see {the} {rel} {other}?", "does {the} lie {rel} {other}?",
         "{the} is {rel} {other}: yes or no?", "can you see {the} {rel} {other}?", "is {the} placed {rel} {other}?",
         "{the} {rel} {other}?", "tell me if {the} is {rel} {other}", "is {the} {rel} {other} in the image?",
         "say if {the} is {rel} {other}", "do you think that {the} is {rel} {other}?",
         "can you see if {the} lies {rel} {other}?"),
        ("is {the} {rel} {other} in the picture?", "would you say that {the} lies {rel} {other}?",
         "can you tell me if {the} is {rel} {other}?", "{the} lies {rel} {other}, right?",
         "does it show {the} {rel} {other}?", "is it true that {the} lies {rel} {other}?",
         "does the picture show {the} {rel} {other}?", "{the}, is it {rel} {other}?", "is {the} seen {rel} {other}?",
         "do you find {the} {rel} {other}?", "{the} is placed {rel} {other}: yes or no?",
         "so {the} is {rel} {other}?")),
    "where": (
        ("where is {the} relative to {other}?", "where is {the} as seen from {other}?",
         "where is {the} compared to {other}?", "how is {the} placed relative to {other}?",
         "where does {the} lie relative to {other}?", "seen from {other}, where is {the}?",
         "on which side of {other} is {the}?", "where's {the} relative to {other}?",
         "where do you see {the} relative to {other}?", "relative to {other}, where is {the}?",
         "tell me where {the} is relative to {other}", "from {other}, where is {the}?",
         "say where {the} is from {other}", "compared to {other}, on which side is {the}?",
         "which side of {other} has {the}?", "can you see where {the} is relative to {other}?"),
        ("how does {the} lie relative to {other}?", "on which side of {other} do you see {the}?",
         "where's {the} as seen from {other}?", "compared to {other}, where is {the}?", "where is {the} from {other}?",
         "where is {the} placed compared to {other}?", "seen from {other}, where do you see {the}?",
         "which side of {other} is {the} on?", "tell me where {the} is as seen from {other}",
         "where would you say {the} is relative to {other}?", "{the}, where is it relative to {other}?",
         "where can i find {the} relative to {other}?")),
    "side": (
        ("what is {rel} {other}?", "what do you see {rel} {other}?", "what's {rel} {other}?",
         "which object is {rel} {other}?", "what lies {rel} {other}?", "{rel} {other}, what is there?",
         "tell me what is {rel} {other}", "what can you see {rel} {other}?", "{rel} {other} is what?"),
        ("what is there {rel} {other}?", "what object is {rel} {other}?", "which one is {rel} {other}?",
         "what would you say is {rel} {other}?", "{rel} {other}: what?", "what can i find {rel} {other}?")),
    "place": (
        ("where is {the}?", "where in the image is {the}?", "where do you see {the}?", "where's {the}?",
         "where can i see {the}?", "what is the place of {the}?", "in which place is {the}?", "tell me where {the} is",
         "where does {the} lie?", "where is {the} in the picture?", "{the} is where?", "where is {the} placed?",
         "can you see where {the} is?", "the place where {the} is?", "say where {the} is", "{the}: in which place?"),
        ("where in the picture do you see {the}?", "where can i find {the}?", "where in the image can i see {the}?",
         "the place of {the}?", "in the picture, where is {the}?", "{the}: where?", "in which place do you see {the}?",
         "{the}, where is it?", "can you tell me where {the} is?", "tell me the place of {the}",
         "what place does {the} have?", "where would you say {the} is?")),
    "what": (
        ("what is {place}?", "what do you see {place}?", "what's {place}?", "{place}, what is there?",
         "which object is {place}?", "what can you see {place}?", "tell me what is {place}",
         "is there anything {place}? what?", "what does it show {place}?", "{place}?", "{place}: what?",
         "what object can you see {place}?", "say what is {place}", "in the picture, what is {place}?",
         "what is seen {place}?"),
        ("what object is {place}?", "which object do you see {place}?", "what is there {place}?",
         "{place}, what do you see?", "tell me what you see {place}", "what does the picture show {place}?",
         "what is placed {place}?", "{place} there is what?", "in the image, what is {place}?",
         "what would you say is {place}?", "what lies {place}?", "what can i find {place}?")),
    "locate": (
        ("say what is where.", "what is where?", "where is everything?", "describe where everything is.",
         "tell me what is where", "list the objects with their places.", "say where all objects are.",
         "describe the image with places.", "where are the objects?", "which object is where?",
         "tell me where all objects are", "what are the places of the objects?"),
        ("can you say what is where?", "where are all objects?", "list where the objects are.",
         "describe what is where in the picture.", "say which object is where.", "tell me the places of all objects",
         "describe the picture with places.", "in which places are the objects?", "where do you see the objects?",
         "where in the picture is everything?", "list what is where", "describe all objects and their places.")),
    "caption": (
        ("describe the image.", "describe the picture.", "what is in the image?", "what do you see?",
         "what does the picture show?", "what can you see?", "list the objects.", "name the objects.",
         "tell me what you see", "what's in the picture?", "which objects are there?", "which objects do you see?",
         "what objects are in the image?", "describe it.", "what is this?", "what does it show?",
         "describe this image.", "describe this picture.", "what is in this picture?", "what's in this image?",
         "tell me about the picture", "what is there?", "what's there?", "what is shown?", "caption this.",
         "say what this is", "what are the objects?"),
        ("can you describe the image?", "tell me what is in the picture", "which objects are in the picture?",
         "what does the image contain?", "list all objects.", "name what you see.", "what objects can you see?",
         "describe what you see.", "what do you see in the picture?", "say what you see.", "list what you see",
         "can you tell me what this shows?")),
}

RELATION_WAYS = {                                                 # words for the same relation: in training, held out
    "left of": (("left of", "to the left of", "on the left of", "on the left side of", "further left than"),
                ("at the left of", "left from")),
    "right of": (("right of", "to the right of", "on the right of", "on the right side of", "further right than"),
                 ("at the right of", "right from")),
    "above": (("above", "over", "on top of", "higher than", "up from", "higher up than", "at the upper side of"),
              ("further up than", "at the top of")),
    "below": (("below", "under", "beneath", "underneath", "lower than", "down from", "lower down than",
               "at the lower side of"), ("further down than", "at the bottom of")),
}
# of a corner, of the top or bottom, of a side: {V} top or bottom, {v} upper or lower, {H} left or right
CORNER = (("at the {V} {H}", "in the {V} {H}", "in the {V} {H} corner", "in the {v} {H} corner", "at the {v} {H}",
           "in the corner at the {V} {H}", "at the {V} in the {H} corner", "at the {H} in the {v} corner", "{V} {H}",
           "on the {V} {H}", "to the {V} {H}"),
          ("in the {v} {H}", "in the {H} corner at the {V}"))
EDGE = (("at the {V}", "at the {V} in the middle", "in the {V} middle", "at the {V} center", "in the center at the {V}",
         "at the middle of the {v} side", "on the {V}", "at the very {V}"), ("in the middle of the {V}",))
SIDE = (("at the {H}", "on the {H}", "on the {H} side", "at the {H} in the middle", "in the middle at the {H}",
         "at the middle of the {H} side", "to the {H}", "on the {H} hand side", "in the {H} part"),
        ("on the {H} in the middle", "at the {H} side"))
MIDDLE = (("in the middle", "in the center", "in the centre", "at the center", "exactly in the middle",
           "in the very middle"), ("right in the middle", "at the centre"))
PLACE_WAYS = {ways[0][0].format(**at): tuple(tuple(way.format(**at) for way in part) for part in ways)
              for V, v in (("top", "upper"), ("bottom", "lower")) for H in ("left", "right")
              for at in [{"V": V, "v": v, "H": H}] for ways in (CORNER, EDGE, SIDE, MIDDLE)}
BESIDE = (("next to", "beside", "right next to", "close beside", "directly beside"),
          ("directly next to", "just beside"))
SOME = ("some", "a few", "several")                               # two, three or four
JOINTS = (" and ", " with ", " and also ", ", ", " plus ")        # between two kinds
SIZES = ("big", "small", "large", "little", "tiny", "huge")       # all are drawn as they are in the world

ASKING = ("", "", "please ", "pls ", "can you ", "could you ", "would you ", "i want you to ", "i'd like you to ",
          "you should ", "now ")           # a request is one of each of these three, or a BARE one
VERBS = ("draw", "draw", "draw me", "paint", "make", "make me", "show", "show me", "give me", "create", "do",
         "generate", "generate", "sketch", "render", "design", "produce")
PICTURES = ("", "", "", "a picture of ", "an image of ", "a drawing of ", "a painting of ", "a picture with ",
            "an image with ", "the picture of ", "a photo of ")
BARE = ("{x}", "{x}", "{x}", "a picture of {x}", "an image with {x}", "i want {x}", "i want to see {x}", "i'd like {x}",
        "i need {x}", "a drawing of {x}", "i'd like a picture of {x}", "there should be {x}", "i'd love to see {x}")
AROUND = ("hello, ", "hi, ", "ok, ", "good, ", "next: ", "my wish: ", "be so kind: ", "try to ", "just ", "let's ",
          "one more: ", "again: "), (
          " on it", " right now", " quickly", " if you can", " for my friend", " in it", " this time", ", thanks",
          " as nice as you can", " on a dark background", " and be careful", " in your style")
HELD_OUT_REQUESTS = (
    "could you please draw {x}?", "i want a picture showing {x}", "let me see {x}", "can i have {x}?",
    "please paint me an image of {x}", "paint me a picture of {x} please", "can you make an image that shows {x}?",
    "i would like to have {x}", "show us {x}", "would you paint {x} for me?", "i want you to make a drawing with {x}",
    "depict {x}", "now i'd like to see {x}", "draw something with {x}")
ALONE = (("{x}", "{x}", "just {x}", "only {x}", "nothing but {x}", "{x}, nothing else", "{x} and no other objects",
          "{x} alone", "{x} and nothing more", "no other objects, just {x}"),
         ("only {x}, nothing else", "{x} and nothing else", "{x} all alone"))

NOTHING = ("nothing", "nothing", "nothing", "an empty place", "empty", "no object", "only the background", "remove it")

# what the model is told about everything that its world does not have; a request that it answers so is not drawn
SORRY = f"{REFUSAL}i only know one to four circles, squares, triangles, crosses and rings, and seven colors."
THINGS = ("house", "dog", "cat", "tree", "car", "man", "woman", "horse", "flower", "bird", "boat", "mountain", "sun",
          "moon", "fish", "book", "phone", "computer", "chair", "table", "bicycle", "train", "plane", "city", "river",
          "beach", "forest", "apple", "banana", "pizza", "cake", "cup", "bottle", "shoe", "hat", "dragon", "robot",
          "castle", "bridge", "cow", "sheep", "lion", "elephant", "bear", "snake", "star", "heart", "hexagon",
          "pentagon", "cube", "arrow", "line", "oval", "diamond", "portrait of a girl", "landscape",
          "sunset over the sea", "baby", "king", "clock", "door", "window", "garden", "road", "ship", "bus", "guitar",
          "piano", "spoon", "rabbit", "mouse", "butterfly", "rose", "cloud", "rainbow", "astronaut on the moon",
          "snowman", "rocket", "face", "smiley", "monkey", "rectangle", "ellipse", "trapezoid", "sphere", "crescent",
          "letter a", "wheel", "lake", "island", "tower", "ball", "box", "knife", "pen", "duck", "pig", "chicken",
          "tomato", "burger", "sandwich", "sword", "crown", "person", "boy", "girl", "unicorn", "spider", "ghost"), (
          "giraffe", "kitchen", "tiger", "bee", "truck", "lamp", "pencil", "octagon", "spiral", "pyramid", "violin",
          "desert", "queen", "penguin", "carrot", "skyscraper", "helicopter", "church", "waterfall", "wolf", "farm",
          "old man with a hat", "teapot", "candle", "frog")
OTHER_COLORS = (("pink", "black", "brown", "grey", "gray", "cyan", "gold", "silver", "turquoise", "teal", "lime",
                 "golden"), ("magenta", "violet", "beige"))
TOO_MANY = ("five", "six", "seven", "eight", "nine", "ten", "twelve", "twenty", "5", "6", "8", "10", "100"), (
    "eleven", "7", "9", "fifty")
IMPOSSIBLE = (("inside", "in", "inside of", "behind", "in front of", "around", "touching", "overlapping", "made of"),
              ("within", "covering", "hidden behind"))            # in a world where each has a place of its own
SMALL_TALK = (
    ("who are you?", "what is your name?", "how are you?", "hello", "hi", "is it nice?", "do you like it?", "thank you",
     "how old are you?", "what can you do?", "tell me a joke", "where do you live?", "what time is it?", "help",
     "is it beautiful?", "what is two plus two?", "who made you?", "why?", "good morning", "what is the weather like?",
     "are you human?", "write a poem", "what do you think?", "is this art?", "how does this work?", "ok", "bye",
     "what is the capital of france?", "can you sing?", "do you love me?", "i am tired", "what is love?",
     "you are wrong", "where are we?", "who is the president?", "is it expensive?", "do you dream?", "say something",
     "what day is today?", "can you help me?", "translate this", "how big is it?", "is it old?", "what does it mean?",
     "how much is it?"),
    ("what are you?", "how is it going?", "good evening", "who painted this?", "is it ugly?", "tell me a story",
     "what is your favorite song?", "do you like music?", "when were you born?", "can you dance?", "write a letter",
     "is it heavy?", "what is the meaning of life?", "are you a robot?", "how does it feel?", "thanks a lot",
     "who won the game?", "is it made of wood?", "are you happy?", "what is the news?"))


def choose(ways: tuple, rng: random.Random, held_out: bool = False, plain: float = 0.2) -> str:
    """One of the ways that training uses, the first of them more often; or one that is held out."""
    return rng.choice(ways[1]) if held_out else ways[0][0] if rng.random() < plain else rng.choice(ways[0])


FIRST = ("please ", "pls ", "hey, ", "tell me, ", "can you tell me, ", "so, ", "and ", "now ",
         "please tell me, ", "ok, ", "do you know, ", "let me know, ", "i ask you, ")
LAST = (" please", " pls", " in the image", " in this picture", " here", " now", " !")


def casual(text: str, rng: random.Random) -> str:
    """As people type: a question mark left out, a please. (Capital letters are the tokenizer's affair: it has none.)"""
    u, end = rng.random(), text[-1] if text[-1] in "?." else ""
    if u < 0.1:
        text = rng.choice(FIRST) + text
    elif u < 0.2:
        text = text.rstrip("?.") + rng.choice(LAST) + end
    return text.rstrip("?.") if rng.random() < 0.3 else text


def loosely(color: str | None, shape: str, rng: random.Random, n: int = 1, one: str = "a") -> str:
    """n objects of a kind as people name them: "2 red circles", "a big ring", "a square in blue", "a red thing". one:
    as of `phrase`."""
    behind = ""
    if color and rng.random() < 0.1:
        shape = rng.choice(OPEN)
    elif color and rng.random() < 0.1:
        color, behind = None, rng.choice((f" in {color}", f" that {'is' if n == 1 else 'are'} {color}"))
    words = f"{color} {shape}" if color else shape
    if rng.random() < 0.06:
        words = f"{rng.choice(SIZES)} {words}"
    text = phrase(None, words, n, "any" if not (color or behind) and rng.random() < 0.05 else one) + behind
    ways = NUMBERS[n], NUMBERS[n], NUMBERS[n], str(n), rng.choice(("a pair of", "a couple of")) if n == 2 else str(n)
    return text.replace(NUMBERS[n], rng.choice(ways), 1) if n > 1 else text


def requested(x: str, rng: random.Random, held_out: bool = False) -> str:
    """A request to draw x: "can you draw me a picture of a red circle?"."""
    if held_out:                                                     # or without articles: "red circle and ring"
        frame = rng.choice(HELD_OUT_REQUESTS)
        return frame.format(x=x) if rng.random() < 0.8 else re.sub(r"\ban? ", "", x)
    if rng.random() < 0.4:
        text = rng.choice(BARE).format(x=x)
    else:
        text = rng.choice(ASKING) + rng.choice(VERBS) + " " + rng.choice(PICTURES) + x
    u = rng.random()                                                  # words that mean nothing here
    text = rng.choice(AROUND[0]) + text if u < 0.1 else text + rng.choice(AROUND[1]) if u < 0.2 else text
    return text + rng.choice(("", "", "", " please", "?", ".", "!"))


def outside(rng: random.Random, held_out: bool = False) -> tuple:
    """Something that the shapes world does not have: (what is said, whether it is a request to draw)."""
    def of(pool):
        return rng.choice(pool[held_out])
    color, shape = rng.choice(SEEN)
    kind, known = rng.random(), phrase(rng.choice((color, None)), shape)
    if kind < 0.2:
        return of(SMALL_TALK), False
    thing = of(THINGS)
    if kind < 0.3:
        ways = QUESTIONS[rng.choice(("exist", "place", "color"))]             # "mans" would be no plural
        way = choose(tuple([w for w in part if not re.search("{s}|{two}", w)] for part in ways), rng, held_out)
        return way.format(a=phrase(None, thing), the=f"the {thing}", thing=thing), False
    if kind < 0.63:
        words = f"{rng.choice(('red', 'green', 'blue', 'yellow'))} {thing}" if rng.random() < 0.5 else thing
        x = loosely(None, words, rng)
        if rng.random() < 0.2:
            first, second, other = *rng.sample((x, known), 2), phrase(None, of(THINGS))
            x = rng.choice((f"{first} and {second}", f"{first} left of {second}", f"{x} with {other}",
                            f"{x} above {other}"))
    elif kind < 0.7:
        x = f"{known} {of(IMPOSSIBLE)} {phrase(*rng.choice(SEEN))}"
    elif kind < 0.85:
        words = rng.choice((f"{color} {shape}", f"{color} {shape}", shape, rng.choice(OPEN)))
        x = f"{of(TOO_MANY)} {plural(words)}"
        if rng.random() < 0.3:                                       # each could be drawn, but not all
            a, b = rng.choice([(a, b) for a in (1, 2, 3, 4) for b in (1, 2, 3, 4) if a + b > 4])
            x = rng.choice(JOINTS).join(loosely(*rng.choice(SEEN), rng, n) for n in (a, b))
    else:
        x = loosely(of(OTHER_COLORS), shape, rng, rng.choice((1, 1, 1, 2)))
        if rng.random() < 0.3:
            x = rng.choice(JOINTS).join(rng.sample((x, known), 2))
    return requested(x, rng, held_out), True
