"""Which lines of a chat ask for a picture, and which about one: chat.py has the first drawn, the others answered.

A line asks for a picture if it says so ("draw ...", "can you show me two ..."), or if it names a shape and nothing in
it asks or tells ("red circle", "my daughter needs a ring"). A wish names "a ring", not "the ring", and nothing made of
words ("an explanation"). These are rules, and not learned: the model answers whatever it is asked. Lines as people type
them, and which of them go the wrong way: tests/requests.txt
"""
import re

from .world.phrases import OTHER_COLORS, SIZES
from .world.shapes import COLORS, SHAPES

# what may stand before a wish
POLITE = (r"(?:(?:please|plz|pls|now|next|ok|okay|good(?: morning| evening)?|great|nice|cool|well|hello|hi|hi there|"
          r"hey|just|kindly|let's|lets|try to|thanks|thank you|sorry|also|then|and|so|yes|no|why don't you|"
          r"(?:can|could|would|will) (?:you|u|we)|i (?:want|need) you to|i(?:'d| would) like you to|"
          r"you (?:should|can|could|must))[,.!:;]* )*")
DRAW = r"(?:draw|paint|sketch|depict)"
# verbs of wishing; "do" also begins questions: "do they touch", "do any rings ..."
WISH = (r"(?:(?:make|create|generate|show|give|render|design|produce|put|place|display|visuali[sz]e|illustrate|imagine|"
        r"get|do(?! any|.*\b(?:touch|overlap|have|share|look|lie|match)\b))(?: me| us)?|gimme|i wanna(?: see| have)?|"
        r"(?:there|it|the (?:picture|image)) (?:should|must) (?:be|show|have|contain)|how about|"
        r"(?:let (?:me|us)|let'?s|lemme) see|(?:can|could|may) (?:i|we) (?:please )?(?:have|get)|"
        r"would it be possible to (?:have|get|see)|"
        r"(?:could|may) (?:i|we) see|(?:i|we)(?: (?:want(?:ed)?|meant?|need|wish|like(?= to))|"
        r"(?:'d| would) (?:like|love))(?: to (?:see|have|get))?)")
PICTURE = (r"(?:(?:an?|another|the) (?:\w+ )?)?(?:picture|image|drawing|painting|photo|pic) "
           r"(?:of|with|showing|where|in which)\b")
COLOR = "|".join((*COLORS, *sum(OTHER_COLORS, ())))
SHAPE = rf"(?:{'|'.join(SHAPES)})(?:e?s)?\b"
# what is said, and not drawn: "show me a description"
OF_WORDS = (r"(?:description|caption|list|name|summary|number|answer|word|sentence|hint|joke|story|poem|question|"
            r"example|reason|guess|idea|look|minute|moment|time|explanation|overview|help|information|detail|clue|"
            r"break|count|yes|no|test|mistake|error|text|table|bit|lot(?! of)|(?:second|sec|colou?r)(?! \w))s?\b")
# what one wishes for begins so: "two ...", "red ring", "something blue"; not "one more", nor "a description"
SOME = (r"(?:(?:in|at|on) the [a-z ]+ |just |only )?(?:(?:an?|another|one|two|three|four|five|six|seven|eight|nine|ten|"
        rf"twenty|\d+|some|several) (?!more\W*(?:please\W*)?$)(?!(?:more )?(?:\w+ )?{OF_WORDS})|"
        rf"(?:any )?(?:(?:{COLOR}|{'|'.join(SIZES)}) ){{0,3}}{SHAPE}|"
        rf"something(?: (?:{COLOR}|with|else|new|nice|different|other)\b|\W*$)|{PICTURE} )")
WISHED = re.compile(rf"{POLITE}(?:{DRAW}\b[ :].|{WISH} {SOME}|{PICTURE} .)", re.IGNORECASE)
DRAWING = re.compile(                        # "i'd be glad if you could draw me a ...", but not "did you draw a ..."
    r"(?!(?:did|do|does|don't|why|what(?! about)|who|how(?! about)|when|was|were|is(?! it possible)|are|have)\b)"
    rf"(?!.*\b(?:don't|never|stop) {DRAW}).*\b"
    rf"(?:{DRAW}|(?<=if you )drew)(?:ing)? (?:me |us )?{SOME}", re.IGNORECASE)
# without a verb of wishing: whether there is something to draw, and whether the line asks or tells
NAMED = re.compile(rf"{POLITE}{SOME}|.*\b{SHAPE}", re.IGNORECASE)
ASKS = re.compile(
    r"^(?:(?:and|so) (?!now|then)|it(?!'d| would)|that|both(?! an? )|yes(?! *,))\b|\?|"
    r"\w+n't(?! mind)|\b(?:is|are|was|were|has|have|does|do|did|wheres?|whats?|theres|there's|which|who|how|why|true|"
    r"or|tell|say|name|list|describe|count|find|looks?|guess|check|see|search|touch|explain|spell|compare|think|know|"
    r"believe|learned|drew|forgot|asked|thank you for|never(?! mind)|stop (?:drawing|it|that)|i (?:like|love|hate)|"
    r"these|those|this(?! time)|the last|the \w+ one|any(?! chance)|add up|^total|locate|"
    r"(?:colou?r|number|amount|place|position|location|size|word)s? (?:of|for)|"
    rf"(?:no|the|^nice|^cool|^good) (?:(?:{COLOR}) )?{SHAPE}|"
    rf"{SHAPE} (?:colou?r|count|number|position|location|place|size))\b", re.IGNORECASE)
NO_VERB = re.compile(                        # of the line: "a ring that is red", "my wish is", "i want to see"
    r"(?<=\w )(?:(?:that|which|wish|want) (?:is|are|has|have)|to (?:see|have))\b|, both are\b|"
    r"\b(?:(?:let'?s|i'll|rather) have|what i (?:want|need)(?: now)? is|here is)\b", re.IGNORECASE)
DRAW_ONLY = re.compile(rf"{POLITE}(?:{DRAW}\b[ :].|(?:{WISH} )?{PICTURE} .)", re.IGNORECASE)

# once more, or "it" without more; and what is to be done to a picture that is there, which only /edit can do
AGAIN = re.compile(rf"{POLITE}(?:(?:draw|paint|do|make|show me|try)(?: (?:it|that|them|the same))? ?)?(?:again|"
                   r"once (?:again|more)|same again|redo(?: it)?|redraw(?: it)?|repeat|retry|another(?: one)?|"
                   r"one more(?: time)?|(?:draw|paint|sketch) (?:it|that|them)(?: now| for me)?)"
                   r"(?:,? (?:please|pls))?[.!?]*", re.IGNORECASE)
CHANGE = re.compile(rf"{POLITE}(?:(?:make|turn|paint|colou?r|move|change|swap|flip|replace|put|place|get rid of|take|"
                    rf"draw(?! th(?:e|is)\b)) (?!{PICTURE}|(?:it|that) (?:in|into|to) words)"
                    r"(?:it|them|this|that|the|everything)\b|"
                    rf"(?:it|this|the (?:{COLOR})? ?{SHAPE}) (?:should|must) be (?!an? |{SOME}|.*\?)|"
                    rf"i want it (?!(?:to (?:be|have|show) |with )?{SOME})|get rid of (?:an?|one|all)\b|"
                    r"(?:add (?!up)|remove|delete|erase)\b).*", re.IGNORECASE)


def bare(line):
    """Without the quotes, dots and brackets around it, with single blanks; "dont" is "don't"."""
    line = re.sub(r"\b(do|does|did|is|are|was|has|have|ca|wo)nt\b", r"\1n't", line, flags=re.IGNORECASE)
    return " ".join(line.replace("’", "'").split()).strip("\"'“”«»()… ->")


def is_request(line):
    """Whether a line says that it wants a picture drawn, and nothing else can be meant: of a model that knows more than
    the shapes world one may wish "a recipe"."""
    return DRAW_ONLY.match(bare(line)) is not None


def wish_in(line):
    """What a line asks a model of the shapes world to draw: all of it, or what follows a stop or "i meant"; "" if it
    wants nothing drawn."""
    parts, whole = re.split(r"(?<=[,.!;:]) +", line), bare(line)
    rests = [" ".join(parts[i:]) for i in range(len(parts)) if "?" not in " ".join(parts[:i])]
    if NAMED.match(whole) and not ASKS.search(NO_VERB.sub("", whole)):
        wish = line
    else:
        wish = next((rest for rest in rests if WISHED.match(bare(rest))), line if DRAWING.match(whole) else "")
    return re.sub(rf"^{POLITE}(?:i|we) (?:meant?|wanted) ", "", wish, flags=re.IGNORECASE)
