"""Nothing is ever lost: kills, a full disk, a loss that is not finite.     python -m pytest -q tests/test_kill.py

The long version of the first test is `python tests/kill.py`.
"""
import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from nanoharmon.cli import run_main
from nanoharmon.training import batches as data
from nanoharmon.weights.states import latest_state, load_state
from nanoharmon.weights.safetensors import open_tensors

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """One thread, a tokenizer from fewer texts, no answers on the way."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(train, "training_texts", functools.partial(data.training_texts, n=60))
    monkeypatch.setattr(train, "show", lambda *_: None)
    yield
    torch.set_num_threads(threads)


def flags(out, *more):
    """The stage that needs nothing before it."""
    return ["--preset", "pico", "--procs", "1", "--stage", "llm", "--stage_llm.steps=7", "--save-every", "2",
            "--out", str(out), *more]


def weights(out):
    return {k: v.clone() for k, v in open_tensors(out / "stage_llm").items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def error_of(argv, capsys):
    """The one line of a command that must fail."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        run_main(lambda: train.main(argv))
    *before, err, end = capsys.readouterr().err.split("\n")
    assert e.value.code == 2 and err.startswith("error: ") and end == "" and "Traceback" not in "".join(before)
    return err


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Weights after seven steps in one go."""
    out = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(train, "training_texts", functools.partial(data.training_texts, n=60))
        patch.setattr(train, "show", lambda *_: None)
        train.main(flags(out))
    return weights(out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_two_process_runs_end_as_the_unbroken_one():
    """One kill between a state's last byte and its rename, one of a single process, one at a random moment."""
    short = ["--n", "3", "--procs", "2", "--steps", "3", "--stages", "llm"]
    done = subprocess.run([sys.executable, "tests/kill.py", *short], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stdout and "writing a state, before os.rename of step_0000002" in done.stdout
    assert re.search(r"process \d alone", done.stdout), done.stdout


def test_a_full_disk_is_said_and_costs_no_state(tmp_path, unbroken, capsys, monkeypatch):
    resource = pytest.importorskip("resource")
    steps, real = [], train.set_lr

    def set_lr(*args):
        steps.append(1)
        if len(steps) == 3:                               # from now on no file may be as large as a state
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        real(*args)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with monkeypatch.context() as m:
            m.setattr(train, "set_lr", set_lr)
            err = error_of(flags(tmp_path), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    good = tmp_path / "stage_llm" / "state" / "step_0000002"
    assert "step_0000004" in err and "free space" in err and f"last good state is {good}" in err and "--resume" in err
    assert latest_state(tmp_path / "stage_llm") == good and [*good.parent.iterdir()] == [good]
    train.main(flags(tmp_path, "--resume"))
    assert same(weights(tmp_path), unbroken)


def test_a_loss_that_is_not_finite_names_a_state_and_flags_that_go_on(tmp_path, capsys, monkeypatch):
    real, step = train.stage_losses, []

    def losses(*args):
        step.append(1)
        for label, loss, weight in real(*args):
            yield label, loss * (float("inf") if len(step) > 3 else 1), weight
    with monkeypatch.context() as m:
        m.setattr(train, "stage_losses", losses)
        err = error_of(flags(tmp_path, "--stage_llm.steps=12"), capsys)
    assert "5 steps in a row" in err and "step 8" in err
    named, advice = re.search(r"last good state is (\S+); go on with (.*) \(now", err).groups()
    state = load_state(named)
    assert state["step"] == 6
    assert all(torch.isfinite(t).all() for part in ("params", "ema") for t in state[part].values())
    assert state["config"]["stages"]["llm"]["lr"] == 1.0 and state["made_by"]["torch"] == torch.__version__
    train.main(flags(tmp_path, "--stage_llm.steps=12", *advice.split()))
    assert "stage_llm.lr 1.0 -> 0.5" in capsys.readouterr().out
    assert all(torch.isfinite(t).all() for t in weights(tmp_path).values())


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_states_are_kept_and_a_signal_says_how_to_go_on(tmp_path, unbroken, capsys, monkeypatch, keep):
    steps, real = [], train.set_lr

    def set_lr(*args):
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        real(*args)
    with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
        m.setattr(train, "set_lr", set_lr)
        run_main(lambda: train.main(flags(tmp_path, "--keep", str(keep))))
    assert e.value.code == 143
    kept = sorted(p.name for p in (tmp_path / "stage_llm" / "state").iterdir())
    assert kept == [f"step_000000{i}" for i in (2, 4, 5)[-keep:]]
    command = re.search("go on with: python train.py (.*)", capsys.readouterr().err)[1]
    train.main(command.split())
    assert same(weights(tmp_path), unbroken)
