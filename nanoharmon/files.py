"""Files: JSON of users, read; places to write, checked before the work; files of ours, written whole or not at all.

Errors name the flag to change.
"""
import errno
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_JSON = 10**7                                                   # bytes; a config.json has a few thousand


def read_json(path):
    """The object in a small JSON file. Raises ValueError for anything else."""
    try:
        if Path(path).stat().st_size > MAX_JSON:
            raise ValueError(f"larger than {MAX_JSON // 10**6} MB")
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: not valid JSON ({e})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a {type(values).__name__}, expected a JSON object")
    return values


def check_output(path, flag, suffixes=()):
    """Complain now, not after minutes of work, about a place where nothing can be written. -> Path"""
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {path.name!r}, expected a name ending in {', '.join(suffixes)}; change {flag}")
    if not path.parent.is_dir():
        raise ValueError(f"no folder {path.parent} to write {path.name} in; make it, or change {flag}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file, expected the name of a file to write; change {flag}")
    if not os.access(path.parent, os.W_OK) or path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} is not writable; change {flag}")
    return path


def check_folder(path, flag):
    """Complain now about a folder that cannot be made or written in. -> Path"""
    try:
        nearest = next(p for p in (Path(path), *Path(path).absolute().parents) if p.exists())
        problem = "" if nearest.is_dir() and os.access(nearest, os.W_OK) else f"{nearest} is no folder to write in"
    except OSError as e:                               # a name that is too long, for instance
        problem = e.strerror
    if problem:
        raise ValueError(f"cannot write in the folder {path}: {problem}; change {flag}")
    return Path(path)


# --- files that are whole or not there --------------------------------------------------------------------------------

def sync_folder(folder):
    """Make renames in it survive a power cut."""
    if os.name != "nt":  # windows cannot open folders
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


@contextmanager
def explained(path):
    """An OSError inside becomes one that says what could not be written, why, and what helps."""
    try:
        yield
    except OSError as e:
        if not e.strerror:  # explained already, by an inner one
            raise
        hint = "check the folder or pass --out elsewhere"
        if e.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            hint = "disk or quota is full; free space or pass --out on another disk"
        raise OSError(f"could not write {path}: {e.strerror}; {hint}") from e


def write_chunks(path, chunks):
    """Write a file of pieces of bytes whole or not at all: beside its destination, fsynced, then renamed. Raises
    OSError that says why not."""
    tmp = Path(f"{path}.tmp-write")  # a fixed name, so the next write replaces a killed one
    try:
        with explained(path):
            with open(tmp, "wb") as f:
                f.writelines(chunks)
                f.flush()
                os.fsync(f.fileno())
            os.replace(tmp, path)
            sync_folder(tmp.parent)
    finally:
        with suppress(OSError):
            tmp.unlink()


def write_json(path: str | Path, obj):
    write_chunks(path, [json.dumps(obj, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"])


def write_bytes(path, data):
    """As `write_chunks`, of one piece."""
    write_chunks(path, [data])
