"""What a run was given: weights from outside, by --init, --vae, --llm and --mar. A run remembers them.

OUT/train_config.json names their files. A later start need not repeat the flags; one that gives other files is an
error, for the finished stages are made of the first ones. Given weights are trained at gentle rates (--optim.given).
"""
from contextlib import suppress
from pathlib import Path

from ..files import read_json
from .resume import progress
from .run import sampled_hash


def recall(run):
    """Complete run.given by what the run in OUT was given. -> notes, or ValueError where this start differs."""
    finished, begun = progress(run.out)
    stored, content = None, {}
    with suppress(OSError, ValueError, TypeError):               # check_settings says what is wrong
        values = read_json(run.out / "train_config.json")
        stored, content = values.get("given"), dict(values.get("given_content") or {})
    if not (finished or begun):
        return []
    for name, path in run.given.items():                         # as typed; of what is remembered, the stages have it
        if path and not Path(path).exists():
            raise ValueError(f"{path}: No such file or folder; change --{name}")
    if not isinstance(stored, dict):
        return []
    notes = []
    for name, now in run.given_files.items():
        then = stored.get(name)
        if now and now != then:
            raise ValueError(f"{run.out} holds a run that was given {f'--{name} {then}' if then else f'no --{name}'}, "
                             f"not {now}; drop --{name} to go on with it, or pass another --out")
        if then and not finished and content.get(name) and Path(then).exists() and \
                content[name] != sampled_hash(Path(then)):        # they are read from there until a stage is done
            raise ValueError(f"{then} holds other weights than when {run.out} was begun; put them back, or pass "
                             f"another --out")
        if then and not now:
            run.given[name] = then
            notes.append(f"note: {run.out} was given --{name} {then} at its start, and still is")
    return notes
