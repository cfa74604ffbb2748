"""What runs inside a check's own process: the tests of one exercise, one after the other, against a student's code.

It is copied beside a package made by tree.py and started there; the job comes as one line of JSON on stdin (the tests,
too, which are in no file), and one line per test goes back. What the student prints goes to stderr.

Limits: memory by the operating system; files outside, other processes and the network by an audit hook, which Python
code cannot take off; changed functions of torch, numpy or builtins are found by comparing. The time is kept by the
parent. This stops accidents and simple tricks, and is no sandbox: code that calls C past Python can still read, write
and start things. So solutions of strangers are graded in a container, as Gradescope does, and a teacher reads them.
"""
import inspect
import json
import os
import re
import sys
import traceback
import types
from contextlib import suppress

FORBIDDEN = ("subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "os.kill",
             "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.putenv", "pty.",
             "socket.", "_winapi.CreateProcess", "resource.set", "resource.prlimit", "ctypes.dlopen", "ctypes.dlsym",
             "shutil.rmtree")


def limit_memory(gigabytes):
    with suppress(ImportError, ValueError, OSError):             # Windows has none; there the parent's clock remains
        import resource
        resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30),) * 2)


def guard(folder):
    """From here on, Python code may read only its own folder and what is installed, write and start nothing."""
    own, opening = os.path.realpath(folder), [False]
    installed = {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, *sys.path)}
    readable = (own, "/dev/null", "/dev/urandom", *installed)
    reference = re.compile(r"[/\\]nanoharmon[/\\](\w+[/\\]){0,3}[\w.-]+$")       # a file of another copy of this code
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event, args):
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"a solution may not use {event}")
        if event == "open" and isinstance(args[0], (str, bytes)) and not opening[0]:
            opening[0] = True                                    # realpath may open something itself
            try:
                path = os.path.realpath(os.fsdecode(args[0]))
            finally:
                opening[0] = False
            if not path.startswith(readable) or reference.search(path) and not path.startswith(own) or \
                    (args[2] or 0) & writing and path != "/dev/null":
                raise PermissionError(f"a solution may not open {path}")
    sys.addaudithook(hook)


def close_back_doors(torch):
    """Functions that open files or start processes without telling the audit hook."""
    def refuse(*_, **__):
        raise PermissionError("a solution may neither open files by torch nor start processes")
    doors = [(torch, "from_file"), (torch.UntypedStorage, "from_file")]
    with suppress(ImportError):                                  # Windows: its own way tells the hook
        import _posixsubprocess
        doors.append((_posixsubprocess, "fork_exec"))
    for owner, name in doors:
        setattr(owner, name, refuse)


def snapshot(owners):
    """[(module or class, {name: (function, class or module in it, its code)})]; of a class with what it inherits."""
    def names(o):
        for name in list(dir(o) if isinstance(o, type) else vars(o)):
            value = getattr(o, name, None)
            if (not name.startswith("__") or o.__name__ == "Tensor") and (             # a tensor's operators, too
                    callable(value) or isinstance(value, types.ModuleType)):
                yield name, (value, getattr(value, "__code__", None))
    return [(o, dict(names(o))) for o in owners]


def changed(before):
    """The first name, of a library, that means something else than before."""
    for owner, names in before:
        for name, (value, code) in names.items():
            now = getattr(owner, name, None)
            if now is not value and now != value or getattr(now, "__code__", None) is not code:
                return f"{owner.__name__}.{name}"                # != for a bound method, which is made anew, but equal
    return None


def describe(error, folder, own):
    """One line for a student: what went wrong, and in which line of their code. own: "exercise 07", which is tested."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(folder)
              and not re.search("runner.py|course", f.filename.removeprefix(folder))]
    where = f", in {os.path.relpath(frames[-1].filename, folder)}, {frames[-1].name}: `{frames[-1].line}`" \
        if frames else ""
    words = " ".join(str(error).split())
    if isinstance(error, AssertionError) and not where:          # of the check: already a sentence
        return words[:600] or "the check failed"
    if isinstance(error, NotImplementedError) and words.startswith("exercise "):
        return words if words.startswith(own) else \
            f"{words}. The model needs it here, and --mine uses your version: do it first, or leave out --mine"
    if isinstance(error, SystemExit):
        return f"your code ends the program: sys.exit({error.code})"
    return f"{type(error).__name__}: {words[:300]}{where}"


def main():
    job = json.loads(sys.stdin.readline())
    folder = os.path.dirname(os.path.abspath(__file__))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdin = open(os.devnull, encoding="utf-8")
    import builtins
    import math
    import random

    import numpy as np
    import torch
    import torch.utils.checkpoint                                # now, not lazily by the model

    from nanoharmon.course.checks import compare
    torch.set_num_threads(1)
    limit_memory(job["gigabytes"])
    close_back_doors(torch)
    guard(folder)
    inner = sys.modules[inspect.unwrap(np.allclose).__globals__["__name__"]]     # where allclose looks for isclose
    before = snapshot([builtins, math, random, np, inner, np.ndarray, torch, torch.nn, torch.nn.functional,
                       torch.nn.Module, torch.Tensor, compare])
    module, error = types.ModuleType("check"), None
    out.write(json.dumps({"nonce": job["nonce"]}) + "\n")        # ready: from now on the parent's clock is a test's
    out.flush()
    try:
        exec(compile(job["check"], "<check>", "exec"), vars(module))
    except BaseException as e:                                   # the student's file does not import
        error = describe(e, folder, job["exercise"])
    before += snapshot([module])
    for test, seeds in job["tests"]:
        failure = error
        for seed in seeds if failure is None else ():
            try:
                random.seed(seed)
                torch.manual_seed(seed)
                getattr(module, test)(seed)
            except BaseException as e:                           # SystemExit and KeyboardInterrupt as well
                failure = describe(e, folder, job["exercise"])
            if (name := changed(before)) is not None:            # nothing that follows could be trusted
                failure = error = f"your code replaces {name}, which others use, too; give yours another name"
            if failure is not None:
                break
        out.write(json.dumps({"nonce": job["nonce"], "test": test, "failure": failure}) + "\n")
        out.flush()
    os._exit(0)                                                  # threads that were left running do not hold it up


if __name__ == "__main__":
    main()
