"""Files: JSON of users, read; places to write, checked before the work; files of ours, written whole or not at all.

ValueErrors say what helps; an OSError names its file, and cli.in_words adds what helps.
"""
import hashlib
import json
import os
import platform
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:                                                # Windows
    import msvcrt
    fcntl = None

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


def cannot_write(folder, name="x"):
    """Why no file of this name could be made in a folder, "" if it could. Tried: rights do not tell (/proc)."""
    try:
        with suppress(FileNotFoundError):
            os.stat(Path(folder, name))                # a name that is too long
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        return e.strerror
    return ""


def check_output(path, flag, suffixes=()):
    """Complain now, not after minutes of work, about a place where nothing can be written. -> Path"""
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {path.name!r}, expected a name ending in {', '.join(suffixes)}; change {flag}")
    if not path.parent.is_dir():
        raise ValueError(f"no folder {path.parent} to write {path.name} in; make it, or change {flag}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file, expected the name of a file to write; change {flag}")
    problem = cannot_write(path.parent, f"{path.name}.tmp-write")
    if problem or path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{path} is not writable{problem and f' ({problem})'}; change {flag}")
    return path


def check_folder(path, flag):
    """Complain now about a folder that cannot be made or written in. -> Path"""
    try:
        nearest = next((p for p in (Path(path), *Path(path).absolute().parents) if p.exists()), Path(path))
        problem = (why := cannot_write(nearest)) and f"{nearest}: {why}"
    except OSError as e:                               # a name that is too long, for instance
        problem = e.strerror
    if problem:
        raise ValueError(f"cannot write in the folder {path}: {problem}; change {flag}")
    return Path(path)


class FolderLock:
    """Keeps a second process out of an output folder, from `take` to the end of the with block.

    It is kept by the operating system, which lets go of it however the process ends; the file is only its place, and
    says whose it is. File systems that know no locks go without.
    """
    def __init__(self, folder, name="in_use"):
        self.folder, self.path, self.file, self.made = Path(folder), Path(folder, name), None, False

    def take(self, make=True):
        """Raises ValueError while another process has it. make: also where no process ever had; if not, such a folder
        is left as it is, and not locked."""
        if self.file or not (make or self.path.exists()):
            return
        for _ in range(10):                            # again when its owner has just ended, and taken the file away
            file = self.open_and_lock()
            with suppress(OSError):
                if not fcntl or os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    break
            file.close()
        else:
            raise ValueError(f"cannot lock {self.path}, a file that comes and goes; pass another --out")
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        self.file = file

    def open_and_lock(self):
        try:
            self.made = self.made or not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.path, "a+", encoding="utf-8")
        except OSError as e:
            raise ValueError(f"cannot write in {self.folder}: {e.strerror or e}; pass another --out") from None
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                file.seek(10**6)                       # far behind the text, which others may read
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            file.close()
            raise ValueError(f"{self.folder} is in use by {owner}, expected one run at a time; wait for its end, or "
                             f"pass another --out") from None
        except OSError:                                # no locks here
            pass
        return file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.file:
            if not fcntl:                              # Windows removes no open file
                self.file.close()
            with suppress(OSError):
                self.path.unlink()                     # elsewhere while it is locked, or it might be another's by now
                if self.made:
                    self.folder.rmdir()                # where nothing came of it
            self.file.close()
            self.file = None


def text_of(path, flag, what, most=10**7):
    """The text of a small file that a flag names, UTF-8. what: is expected in it. Raises ValueError."""
    try:
        with open(path, "rb") as f:
            raw = f.read(most + 1)
        if len(raw) > most:
            raise ValueError(f"{path}: more than {most // 10**6} MB, expected {what}; pass another {flag}")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text (byte {e.start}), expected {what}; pass another {flag}") from None
    except OSError as e:
        raise ValueError(f"{path}: {e.strerror}, expected {what}; pass another {flag}") from None


def content_hash(path):
    """A hash of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def advising(fix):
    """A ValueError inside ends with what helps: "...; change --vae"."""
    try:
        yield
    except ValueError as e:
        raise ValueError(f"{e}; {fix}") from None


# --- files that are whole or not there --------------------------------------------------------------------------------

def sync_folder(folder):
    """Make renames in it survive a power cut."""
    with suppress(OSError):  # windows opens no folders, some file systems do not sync them
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def explained(path):
    """An OSError inside names the file that could not be written; cli.in_words says what helps."""
    try:
        yield
    except OSError as e:
        e.filename = str(path)
        raise


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
    text = json.dumps(obj, indent=2, ensure_ascii=False) + "\n"
    write_chunks(path, [text.encode("utf-8", "backslashreplace")])     # of file names that are not UTF-8: \udce9


def write_bytes(path, data):
    """As `write_chunks`, of one piece."""
    write_chunks(path, [data])
