"""Conversations about pictures, in LLaVA's format and its usual variants.

    FILE.json      [{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                   {"from": "gpt", "value": "A cat."}, ...]}, ...]
    FILE.jsonl     one of them in each line

"image" may be a list of one name, also called "images"; without it, the conversation is text only. The turns may be
"messages" with "role" and "content", which may be a list of parts; "user" and "assistant" may speak. As in the official
code, a system turn in front is not used: the template of Harmon has none.
"""
import json

from .entries import Entry, clean, locate, read_bytes

OTHER_MEDIA = "video", "videos", "audio", "audios"               # of entries about something else than a picture
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def list_llava(path, root):
    """[(where, function that makes the Entry), ...]. root: the folder of the pictures, resolved, or None."""
    raw = read_bytes(path)
    if path.suffix.lower() == ".jsonl":
        lines = [(f"{path}, line {i}", line) for i, line in enumerate(raw.splitlines(), 1) if line.strip()]
        found = [(where, lambda line=line: parse_llava(json.loads(line), root)) for where, line in lines]
    else:
        try:
            talks = json.loads(raw)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{path}: not valid JSON ({e})") from None
        if not isinstance(talks, list):
            raise ValueError(f"{path}: a {type(talks).__name__}, expected a list of conversations")
        found = [(f"{path}, entry {i}", lambda talk=talk: parse_llava(talk, root)) for i, talk in enumerate(talks)]
    if not found:
        raise ValueError(f"{path}: empty, expected a list of conversations")
    return found


def parse_llava(talk, root):
    turns = talk.get("conversations") or talk.get("messages") if isinstance(talk, dict) else None
    if not isinstance(turns, list):
        raise ValueError('expected {"image": NAME, "conversations": [...]}')
    image, ignored = one_image(talk), []
    if image and not root:
        raise ValueError(f"{image!r:.40} is in no folder that is known, expected one; pass --images DIR")
    turns = [parse_turn(turn, i) for i, turn in enumerate(turns, 1)]
    if turns and turns[0][0] == "system":
        turns, ignored = turns[1:], ["system turn"]
    for i, (role, _) in enumerate(turns):
        if role != ("user", "assistant")[i % 2]:
            raise ValueError(f"turn {i + 1} is the {role}'s, expected human and gpt (user and assistant) in turns")
    if len(turns) % 2:                                           # it teaches nothing
        turns, ignored = turns[:-1], [*ignored, "question without an answer"]
    if other := [key for key in OTHER_MEDIA if talk.get(key)] or [
            mark for mark in ("<video>", "<audio>") if any(mark in text for _, text in turns)]:
        raise ValueError(f"about {other[0]}, expected one picture (\"image\") or text alone")
    marks = [text.count("<image>") for _, text in turns]
    if sum(marks) > (image is not None) or any(marks[1:]):
        raise ValueError(f"<image> {sum(marks)} times and {'one' if image else 'no'} picture, expected it once "
                         f"at most, in the first turn, and only beside \"image\"")
    if turns and image:                                          # training puts the picture in front of the question
        turns[0] = "user", turns[0][1].replace("<image>", "").strip()
    if not turns or not all(text for _, text in turns):
        raise ValueError("a turn without text, or no turns at all")
    return Entry(image if image is None else locate(image, root), turns=turns, ignored=tuple(ignored))


def one_image(talk):
    """The name of the picture that a conversation is about, or None."""
    images = talk.get("image") or talk.get("images") or [None]          # [] in some files
    images = images if isinstance(images, list) else [images]
    if len(images) > 1:
        raise ValueError(f"about {len(images)} images, expected one picture (\"image\") or text alone")
    if images[0] is not None and not isinstance(images[0], str):
        raise ValueError(f"image is {images[0]!r:.40}, expected one file name")
    return images[0] or None


def parse_turn(turn, i):
    """(role, text) of {"from": ..., "value": ...} or {"role": ..., "content": text or parts}."""
    if not isinstance(turn, dict):
        raise ValueError(f'turn {i} is {turn!r:.40}, expected {{"from": "human", "value": TEXT}}')
    speaker, text = (turn.get(a, turn.get(b)) for a, b in (("from", "role"), ("value", "content")))
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise ValueError(f'turn {i} is from {speaker!r:.40}, expected "human" or "gpt", "user" or "assistant"')
    if isinstance(text, list):                                   # {"type": "image"}, {"type": "text", "text": ...}
        text = "\n".join(part_text(part, i) for part in text)
    return SPEAKERS[speaker], clean(text, "value") or ""


def part_text(part, i):
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if isinstance(part, dict) and part.get("type") == "image":
        return "<image>"
    raise ValueError(f"turn {i} has the part {part!r:.40}, expected text or an image")
