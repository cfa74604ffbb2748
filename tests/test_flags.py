"""A flag that is given is used or refused, never ignored.     python -m pytest -q tests/test_flags.py

Each flag of flags.txt is given once beside what its command needs: what that prints, writes or trains must differ, or
be an error. `-m stress` gives all pairs: neither of the two may be ignored because of the other.
"""
import ast
import contextlib
import hashlib
import io
import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import chat
import sample
import train
from nanoharmon import cli
from nanoharmon.pipeline import Pipeline
from nanoharmon.plans import OFFICIAL
from nanoharmon.training import table
from nanoharmon.weights import convert
from test_bad_input import LOAD, MAIN
from test_pipeline import make_pipeline

def table_of(text):
    """{command: (main, what it needs, {flag: a value that is not its default})}, {(command, flag) that is an error}"""
    mains, found, refused = {"sample": sample, "chat": chat, "convert": convert, "train": train}, {}, set()
    for title, *rows in (block.strip().split("\n") for block in text.split("\n[")[1:]):
        name, needs = title.split("] ")
        refused |= {(name, r.split()[0]) for r in rows if r.endswith(" => error")}
        typed = (r.removesuffix(" => error").partition(" ") for r in rows)
        found[name] = mains[name.split()[0]].main, needs, {flag: value or None for flag, _, value in typed}
    return found, refused


COMMANDS, REFUSED = table_of(Path(__file__).with_name("flags.txt").read_text(encoding="utf-8"))
COMMANDS["train"][2].update(COMMANDS["train --dry-run"][2])
REFUSED |= {("train", flag) for command, flag in REFUSED if command == "train --dry-run"}
# what cannot show: a first start has nothing to resume; one prompt is a batch of its own
NEVER = {("train", "--resume"), ("train --dry-run", "--resume"), ("sample", "--batch")}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    path, heard = tmp_path_factory.mktemp("flags"), make_pipeline(draw={"cfg": 3.0})
    for p in heard.model.proj_out.parameters():                  # so that pictures depend on what is asked for
        torch.nn.init.normal_(p, std=0.5)
    heard.save(path / "heard")
    make_pipeline(draw={"cfg": 3.0}).save(path / "ckpt")
    pipe = make_pipeline(draw={"cfg": 2.0})
    for p in pipe.model.parameters():
        p.data *= 1.5
    pipe.save(path / "other")
    Image.new("RGB", (32, 32), "red").save(path / "red.png")
    (path / "p.txt").write_text("a ring\n", encoding="utf-8")
    (path / "pictures").mkdir()
    for i in range(8):
        Image.new("RGB", (32, 32), (30 * i, 0, 99)).save(path / "pictures" / f"{i}.png")
        (path / "pictures" / f"{i}.txt").write_text(f"number {i}", encoding="utf-8")
    return path


@pytest.fixture
def outcome(here, monkeypatch):
    """What a command does: a function of (command, flags as a list) -> text."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(Pipeline, "load", LOAD)
    monkeypatch.setattr(train, "pick_device", lambda name: torch.device("cpu" if name == "auto" else name))
    kept = set(os.listdir(here))

    def trains(*args):
        run, size = next(a for a in args if hasattr(a, "config")), [a for a in args if isinstance(a, int)]
        print(size, re.sub(r"command=\[.*?\]|start=[\d.]+", "", repr(run)))
    monkeypatch.setattr(train, "worker", trains)
    monkeypatch.setattr(train, "launch", trains)
    monkeypatch.setattr(table, "step_memory", lambda model, config, name, shards, _: (shards, 0))         # takes long

    def run(command, flags):
        main, needs, _ = COMMANDS[command]
        said, errors, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            try:
                cli.run_main(lambda: main(needs.split() + flags))
            except SystemExit as e:
                code = e.code
        made = {}
        for name in sorted(set(os.listdir(here)) - kept):
            for path in [here / name, *sorted((here / name).rglob("*"))]:
                if path.is_file() and path.name != "train_config.json":
                    made[str(path.relative_to(here))] = hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.rmtree(here / name) if (here / name).is_dir() else (here / name).unlink()
        assert code in (0, 2), errors.getvalue()
        assert not made or "--dry-run" not in [*needs.split(), *flags]
        return "error" if code else re.sub(r"in [\d.]+ s", "", f"{said.getvalue()} {made}")
    return run


def words(flag, value):
    return [flag] if value is None else [flag, value]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_flag_changes_something_or_is_an_error(command, outcome):
    def made(*flags):
        return re.sub("settings: .*", "", outcome(command, [*flags]))         # that it is printed is not enough
    usual = made()
    assert usual != "error"
    for flag, value in COMMANDS[command][2].items():
        now = made(*words(flag, value))
        assert (now == "error") == ((command, flag) in REFUSED), flag
        assert now != usual or (command, flag) in NEVER, f"{flag} is ignored"


@pytest.mark.stress
@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_is_ignored_because_of_another(command, outcome):
    flags, ignored = COMMANDS[command][2], []
    alone = {flag: outcome(command, words(flag, value)) for flag, value in flags.items()}
    for a, b in itertools.combinations(flags, 2):
        both = outcome(command, words(a, flags[a]) + words(b, flags[b]))
        ignored += [(lost, beside) for lost, beside in ((a, b), (b, a)) if both != "error" and both == alone[beside]
                    and (command, lost) not in NEVER]
    assert not ignored


def actions(main, monkeypatch):
    parsers = []
    monkeypatch.setattr(cli.Parser, "parse_known_args", lambda self, *_: parsers.append(self) or sys.exit())
    with pytest.raises(SystemExit):
        main([])
    return parsers[0]._actions


def test_the_table_names_every_flag(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for command in "sample", "chat", "convert", "train":
        main = COMMANDS[command][0]
        known = {name for a in actions(main, monkeypatch) for name in a.option_strings if name.startswith("--")}
        listed = {f for m, _, flags in COMMANDS.values() if m is main for f in flags}
        others = {"sample": {"--no-think"}, "chat": {"--no-look"}}
        assert known - listed == {"--help"} | others.get(command, set())


@pytest.mark.parametrize("name", MAIN)
def test_every_flag_of_every_command_is_read(name, monkeypatch):
    """As args.NAME in the module of the command, or by a name in OFFICIAL or for the parts that can be given."""
    text = Path(sys.modules[MAIN[name].__module__].__file__).read_text(encoding="utf-8")
    read = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)
            and ast.unparse(node.value).split(".")[-1] in ("args", "parse_args(argv)")}
    known = {action.dest for action in actions(MAIN[name], monkeypatch)} - {"help"}
    assert known <= {*read, *OFFICIAL, "init", "vae", "llm", "mar"}
