"""A flag that is given is used or refused, never ignored.     python -m pytest -q tests/test_flags.py

Each flag of sample, chat, convert and train is given once beside what a command needs: what it prints, writes or trains
must differ, or be an error. `-m stress` gives all pairs: neither of the two may be ignored because of the other.
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

# {command: (main, what it needs, {flag: a value that is not its default})}
COMMANDS = {"sample": (sample.main, "--ckpt heard --prompt x --n 1 --iters 3 --steps 2", {
        "--prompt": "ring", "--prompts-file": "p.txt", "--n": "2", "--out": "b.png", "--save-each": "each",
        "--gif": "b.gif", "--size": "16", "--image": "red.png", "--region": "0,0,8,8", "--cfg": "1",
        "--cfg-schedule": "linear", "--iters": "2", "--steps": "3", "--sampler": "ddim", "--temperature": "0.5",
        "--redraw": "1", "--think": None, "--fast": None, "--explain": None, "--dry-run": None, "--batch": "2",
        "--ckpt": "other", "--seed": "3", "--device": "cuda:9", "--dtype": "bfloat16"}),
    "chat": (chat.main, "--ckpt ckpt --prompt hello", {
        "--image": "red.png", "--prompt": "two", "--temperature": "3", "--top-p": "0.5", "--max-new-tokens": "1",
        "--llm": "ckpt", "--ckpt": "other", "--device": "cuda:9", "--system": "ring", "--fast": None,
        "--explain": None, "--dry-run": None}),
    "chat about a picture": (chat.main, "--ckpt ckpt --image red.png --prompt x", {"--look": None}),
    "chat at random": (chat.main, "--ckpt ckpt --prompt x --temperature 2", {
        "--seed": "5", "--top-p": "0.5", "--temperature": "3", "--dtype": "bfloat16"}),
    "convert": (convert.main, "--vae ckpt --mar ckpt --llm ckpt --out new", {
        "--harmon": "ckpt", "--vae": "other", "--mar": "other", "--llm": "other", "--out": "b", "--dtype": "float32",
        "--preset": "pico", "--report": None}),
    "train": (train.main, "--preset pico --procs 1", {}),        # its flags: TRAIN
    "train --dry-run": (train.main, "--preset pico --procs 1 --dry-run", {})}
TRAIN = {"--preset": "nano", "--out": "b", "--stage": "vae", "--quick": None, "--data": "pictures",
         "--mix": "shapes:2", "--llava": "p.txt", "--images": "pictures", "--init": "ckpt", "--vae": "other",
         "--llm": "other", "--mar": "other", "--train-parts": "mar.", "--procs": "2", "--device": "cuda:9",
         "--save-every": "3", "--keep": "3", "--sample-every": "3", "--resume": None, "--compile": None,
         "--stage_2.steps": "3", "--optim.beta1": "0.8", "--mar.clip_x0": "3"}
ONLY = {"train": {"--dry-run": None} | TRAIN, "train --dry-run": TRAIN}
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


def flags_of(command):
    return ONLY.get(command) or COMMANDS[command][2]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_flag_changes_something_or_is_an_error(command, outcome):
    def made(*flags):
        return re.sub("settings: .*", "", outcome(command, [*flags]))         # that it is printed is not enough
    usual, ignored = made(), []
    assert usual != "error"
    for flag, value in flags_of(command).items():
        if (command, flag) not in NEVER and made(*words(flag, value)) == usual:
            ignored.append(flag)
    assert not ignored


@pytest.mark.stress
@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_is_ignored_because_of_another(command, outcome):
    flags, ignored = flags_of(command), []
    alone = {flag: outcome(command, words(flag, value)) for flag, value in flags.items()}
    for a, b in itertools.combinations(flags, 2):
        both = outcome(command, words(a, flags[a]) + words(b, flags[b]))
        ignored += [(lost, beside) for lost, beside in ((a, b), (b, a)) if both != "error" and both == alone[beside]
                    and (command, lost) not in NEVER]
    assert not ignored


def test_the_tables_above_name_every_flag(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for command in "sample", "chat", "convert", "train":
        main, parsers = COMMANDS[command][0], []
        monkeypatch.setattr(cli.Parser, "parse_known_args", lambda self, *_: parsers.append(self) or sys.exit())
        with pytest.raises(SystemExit):
            main([])
        known = {name for action in parsers[0]._actions for name in action.option_strings if name.startswith("--")}
        listed = {f for c, (m, _, _) in COMMANDS.items() if m is main for f in flags_of(c)}
        others = {"sample": {"--no-think"}, "chat": {"--no-look"}}
        assert known - listed == {"--help"} | others.get(command, set())


@pytest.mark.parametrize("name", MAIN)
def test_every_flag_of_every_command_is_read(name, monkeypatch):
    """As args.NAME in the module of the command, or by a name in OFFICIAL or for the parts that can be given."""
    monkeypatch.setattr(cli.Parser, "parse_known_args", lambda self, *_: parsers.append(self) or sys.exit())
    parsers, text = [], Path(sys.modules[MAIN[name].__module__].__file__).read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        MAIN[name]([])
    read = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)
            and ast.unparse(node.value).split(".")[-1] in ("args", "parse_args(argv)")}
    assert {action.dest for action in parsers[0]._actions} - {"help"} <= {*read, *OFFICIAL, "init", "vae", "llm", "mar"}
