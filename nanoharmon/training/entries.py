"""An Entry: one picture with its text, label or conversation, before the picture is opened; and how to read them.

No picture and no text outside of the folder that was named is opened: `..`, absolute names and links that lead out of
it are errors. What an entry has and training does not use is counted by name (`ignored`): nothing vanishes silently.
"""
import io
import re
import tarfile
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

MAX_LIST, MAX_TEXT = 2 * 10**9, 10**6        # bytes of a metadata.jsonl or LLaVA file, of one a.txt: memory holds them
TEXT_FIELDS = "text", "caption", "prompt", "description"         # the first of them that there is


@dataclass(frozen=True)
class Packed:
    """A file in a .tar that stays packed. It has those methods of a Path with which it is read."""
    tar: Path
    name: str
    start: int                               # of its bytes, in the tar
    st_size: int                             # as os.stat calls it

    def __str__(self):
        return f"{self.tar}/{self.name}"

    @property
    def suffix(self):
        return Path(self.name).suffix

    def is_file(self):
        return True

    def stat(self):
        return self

    def read_bytes(self):
        with open(self.tar, "rb") as f:
            f.seek(self.start)
            return f.read(self.st_size)

    def open(self, mode="rb"):
        return io.BytesIO(self.read_bytes())


@dataclass
class Entry:
    path: Path | Packed | None = None        # of the picture; None: a conversation without one
    caption: str | None = None
    label: int | str | None = None           # of its class
    turns: list | None = None                # [("user", text), ("assistant", text), ...]
    ignored: tuple = ()                      # what it has besides, in words


def members(path):
    """([Packed, ...], problem or "", names of links that are not followed, with /@) of a .tar. Of one that is cut
    short, what is whole. A hard link is the file that it is of, which comes before it."""
    found, links, problem, end = {}, [], "", path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:                    # not compressed: compressed ones cannot be sought in
            for m in tar:
                name = m.name.removeprefix("./")                 # of `tar cf x.tar .`
                if m.isreg() and not m.issparse():
                    found[m.name] = Packed(path, name, m.offset_data, m.size)
                elif m.islnk() and m.linkname in found:
                    found[m.name] = replace(found[m.linkname], name=name)
                elif m.islnk() or m.issym():
                    links.append(f"{name}/@")
            if tar.offset >= end:                                # cut between two of them: only the end mark tells
                raise ValueError("no end mark")
    except (tarfile.TarError, OSError, ValueError) as e:
        problem = f"{path}: damaged or cut short ({e})"
    return [m for m in found.values() if m.start + m.st_size <= end], problem, links


def read_bytes(path, most=MAX_LIST):
    """The bytes of a file of a bearable size."""
    if not path.is_file():
        raise ValueError(f"{path}: not a file")                  # a pipe would never end
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{path}: {size / 1e6:,.0f} MB, expected at most {most // 10**6:,} MB")
    return path.read_bytes()


def small_text(path):
    """The text of a small file, as UTF-8."""
    try:
        return read_bytes(path, MAX_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not text in UTF-8; save it so") from None


def locate(name, root):
    """The path of file `name` in the folder `root` (resolved), or ValueError if it leads out of it.

    Lists are written on other systems: with \\ between folders, or with é as e and an accent, where the disk has é.
    """
    slashes = name.replace("\\", "/")
    for spelled in (name, slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))):
        path = (root / spelled).resolve()
        if Path(spelled).is_absolute() or not path.is_relative_to(root):
            raise ValueError(f"{name!r} is outside of the folder {root}, or a link that leads there, expected a file "
                             f"inside; copy it")
        with suppress(OSError):                                  # a name that is too long, for instance
            if path.exists():
                return path
    return (root / name).resolve()


def clean(text, what):
    """A stripped text, None for an empty one or none at all."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{what} is {text!r:.40}, expected a string")
    if text and any("\ud800" <= c <= "\udfff" for c in text):     # JSON can say it, UTF-8 cannot
        raise ValueError(f"{what} is not valid text")
    return text and text.strip() or None


def as_label(text):
    """3 of "3" and of "3.0", as tables have it where some labels are missing; any other text, or None for none."""
    found = re.fullmatch(r"(\d+)(\.0+)?", text)
    return int(found[1]) if found else text or None


def described(item, path=None):
    """An Entry from {"text": TEXT, "label": LABEL, ...}, as lines of metadata.jsonl and a.json beside a.png have it."""
    texts = [field for field in TEXT_FIELDS if item.get(field) not in (None, "")]
    label = item.get("label")
    label = int(label) if isinstance(label, float) and label.is_integer() else label
    if isinstance(label, bool) or not isinstance(label, (int, str, type(None))) or isinstance(label, int) and label < 0:
        raise ValueError(f"label is {label!r:.40}, expected a whole number from 0 or a string")
    ignored = [f'"{field}" beside "{texts[0]}"' for field in texts[1:]]
    ignored += [f'"{key}"' for key in item if key not in ("file_name", "label", *TEXT_FIELDS)]
    return Entry(path, clean(item[texts[0]], texts[0]) if texts else None,
                 clean(label, "label") if isinstance(label, str) else label, ignored=tuple(ignored))
