"""Several processes train the same model as one.     python -m pytest -q tests/test_distributed.py

What is trained depends on the number of shards of a batch, not on the number of processes that go through them.
"""
import functools
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch

import train
from nanoharmon.cli import run_main
from nanoharmon.training import batches as data
from nanoharmon.training.parallel import launch
from nanoharmon.weights.states import save_state
from nanoharmon.weights.safetensors import open_tensors

STEPS = {"vae": 1, "llm": 3, "mar": 3, "2": 20}


def flags(out, *more):
    """Four stages, one for each kind of loss, with small batches."""
    return ["--preset", "pico", "--sample-every", "0", "--save-every", "15", "--data.scenes", "60", "--out", str(out),
            "--stage_2.batch", "4", "--stage_2.understanding_batch", "2", *more,
            *(flag for s in STEPS for flag in ("--stage", s)), *(f"--stage_{s}.steps={n}" for s, n in STEPS.items())]


def record(argv, shown=False):
    """Run train.main, lightly, and return {stage: [losses of one shard, in the order they are computed]}."""
    losses, real = {}, train.stage_losses

    def noted(run, name, *rest):
        shard = losses.setdefault(name, [])
        shard.append(0.0)
        for label, loss, weight in real(run, name, *rest):
            shard[-1] += weight * loss.item()
            yield label, loss, weight
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "training_texts", functools.partial(data.training_texts, n=60))
        patch.setattr(train, "show", train.show if shown else lambda *_: None)
        patch.setattr(train, "stage_losses", noted)
        train.main(argv)
    return losses


def as_torchrun(rank, world_size, store, stop, ports, notes, *commands):
    """In each of the processes: what torchrun's environment makes of `python train.py`."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    for i, (port, argv) in enumerate(zip(ports, commands)):
        os.environ["MASTER_PORT"] = str(port)
        Path(f"{notes}{i}{rank}").write_text(json.dumps(record(argv, shown="--optim.fsdp" in argv)))


def free_ports(n):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def distance(a, b):
    """Mean difference of the weights. Single ones may differ more: a gradient of zero but for rounding makes AdamW step
    by the sign of the rounding."""
    a, b = (torch.cat([out[name].flatten() for name in sorted(a)]) for out in (a, b))
    return (a - b).abs().mean().item()


def test_two_processes_train_the_same_model_as_one_from_the_start_and_from_the_middle(tmp_path, monkeypatch):
    one, two, rest = (tmp_path / name for name in ("one", "two", "rest"))
    save = train.save_state

    def save_and_copy(folder, step, state, **options):
        save(folder, step, state, **options)
        if folder.name == "stage_2":                      # where two processes will go on, after 15 steps
            shutil.copytree(one, rest)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with monkeypatch.context() as m:
        m.setattr(train, "save_state", save_and_copy)
        wanted = record(flags(one, "--procs", "1", "--optim.shards", "2"))
    assert {name: len(values) for name, values in wanted.items()} == {s: 2 * n for s, n in STEPS.items()}
    launch(as_torchrun, 2, free_ports(2), str(tmp_path / "losses"), flags(two), flags(rest, "--resume"))
    for rank in range(2):
        got, after = (json.loads((tmp_path / f"losses{i}{rank}").read_text()) for i in range(2))
        for name, values in wanted.items():
            assert got[name] == pytest.approx(values[rank::2], abs=1e-5), name
        assert list(after) == ["2"] and after["2"] == pytest.approx(wanted["2"][30 + rank::2], abs=1e-5)
    end = {out: dict(open_tensors(out / "stage_2").items()) for out in (one, two, rest)}
    assert distance(end[one], end[two]) < 1e-5 and distance(end[one], end[rest]) < 1e-5
    logs = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (one, two)]
    for a, b in zip(*logs, strict=True):                  # the log is of the whole batch, not of rank 0's part
        assert a["stage"] == b["stage"] and a.get("draw", 0) == pytest.approx(b.get("draw", 0), abs=2e-5)
        assert a["grad"] == pytest.approx(b["grad"], rel=1e-3)


def sharded(rank, world_size, store, stop, ports, notes, copy, *commands):
    """As `as_torchrun`; the first state that is saved is copied, with what belongs to it, to go on from there."""
    def save_and_copy(folder, *rest, **options):
        save_state(folder, *rest, **options)
        if not Path(copy).exists():
            shutil.copytree(folder.parent, copy)
    train.save_state = save_and_copy
    as_torchrun(rank, world_size, store, stop, ports, notes, *commands)


def test_sharded_blocks_train_the_same_model_and_resume(tmp_path, monkeypatch):
    """FSDP2, two gloo processes with two shards each: 20 steps, saved after 15, and the last five again from there."""
    def command(out, *more, stages=("2",)):
        return ["--preset", "pico", "--sample-every", "10", "--save-every", "15", "--data.scenes", "60", "--out", str(out),
                "--optim.shards", "4", "--optim.muon", "false", "--optim.checkpointing", "true", "--stage_2.batch",
                "8", "--stage_2.understanding_batch", "4", *more, *(f for s in stages for f in ("--stage", s)),
                *(f"--stage_{s}.steps={n}" for s, n in STEPS.items())]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, two, rest = (tmp_path / name for name in ("one", "two", "rest"))
    record(command(one, "--procs", "1", stages=("vae", "llm", "mar")))
    shutil.copytree(one, two)
    wanted, fsdp = record(command(one, "--procs", "1"))["2"], ("--optim.fsdp", "true")
    launch(sharded, 2, free_ports(2), str(tmp_path / "losses"), str(rest), command(two, *fsdp),
           command(rest, *fsdp, "--resume"))
    for rank in range(2):
        got, after = (json.loads((tmp_path / f"losses{i}{rank}").read_text())["2"] for i in range(2))
        assert got == pytest.approx(wanted[rank::2], abs=1e-5)
        assert len(got) == 40 and after == pytest.approx(got[30:], abs=1e-6)
    end = {out: dict(open_tensors(out / "stage_2").items()) for out in (one, two, rest)}
    assert distance(end[one], end[two]) < 1e-5 and distance(end[two], end[rest]) < 1e-6
    assert {name: t.shape for name, t in end[one].items()} == {name: t.shape for name, t in end[two].items()}
    assert list((two / "samples").glob("stage_2*"))       # drawn by both processes together


@pytest.mark.parametrize("more, words", [
    (["--procs", "2", "--optim.shards", "3"], ["--optim.shards 3", "2 processes", "--optim.shards 2"]),
    (["--optim.shards", "-2"], ["--optim.shards", "-2"]),
    (["--procs", "1", "--optim.shards", "3"], ["--stage_vae.batch 8", "3 shards", "multiple of 3"])])
def test_shards_that_do_not_come_out_even(tmp_path, capsys, more, words):
    with pytest.raises(SystemExit) as e:
        run_main(lambda: train.main(["--preset", "pico", "--out", str(tmp_path / "out"), *more]))
    err = capsys.readouterr().err
    assert e.value.code == 2 and all(word in err for word in words) and not (tmp_path / "out").exists()


def test_a_stage_keeps_the_shards_it_began_with(tmp_path, monkeypatch):
    worlds = []
    monkeypatch.setattr(train, "worker", lambda rank, world_size, store, stop, config, args: worlds.append(
        (world_size, config.optim.shards)))
    monkeypatch.setattr(train, "launch", lambda target, world_size, config, args: worlds.append(
        (world_size, config.optim.shards)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    flags = ["--preset", "pico", "--device", "cpu", "--resume"]
    for name, *more in (["a"], ["a", "--procs", "1"], ["b", "--procs", "1"], ["c", "--optim.shards", "4"],
                        ["c", "--procs", "4"], ["c"]):
        train.main([*flags, "--out", str(tmp_path / name), *more])
    assert worlds == [(2, 2), (1, 2), (1, 1), (2, 4), (4, 4), (2, 4)]
    save_state(tmp_path / "b" / "stage_vae", 3, {})       # as if it had been interrupted
    train.main([*flags, "--out", str(tmp_path / "b")])
    assert worlds[-1] == (1, 1)
    with pytest.raises(ValueError, match="--optim.shards 1 cannot be shared by 2"):
        train.main([*flags, "--out", str(tmp_path / "b"), "--procs", "2"])
    shutil.rmtree(tmp_path / "b" / "stage_vae")           # the next stage may be cut in another way
    train.main([*flags, "--out", str(tmp_path / "b"), "--procs", "2"])
    assert worlds[-1] == (2, 2)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_halves_of_a_shard_count_by_their_size(tmp_path, n):
    """A shard of a single text has one "half": its loss must count fully."""
    args, config = train.parse_args(["--preset", "pico", "--out", str(tmp_path), "--procs", "1",
                                     f"--stage_llm.batch={n}"])
    this = train.Run(config, args, 0, 1, torch.device("cpu"), None)

    class Texts:
        def texts(self, rng, n):
            yield from ((torch.zeros(k, 3), None, None, None) for k in (n // 2, n - n // 2) if k)

    class Model:
        def understanding_loss(self, *_):
            return torch.zeros(())
    parts = list(train.stage_losses(this, "llm", config.stages["llm"], Model(), Texts(), train.random.Random(0), None))
    assert sum(weight for *_, weight in parts) == pytest.approx(1)
