"""As many shards, the same model, for any number of processes.     python -m pytest -q tests/test_distributed.py"""
import contextlib
import functools
import json
import os
import random
import shutil
import socket
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import train
from nanoharmon.training import imports, losses, resume, run
from nanoharmon.training.imports import views_of
from nanoharmon.training.losses import stage_losses
from nanoharmon.training.parallel import launch
from nanoharmon.training.recipe import Config, StageConfig
from nanoharmon.weights.safetensors import open_tensors
from nanoharmon.weights.states import save_state
from nanoharmon.world.source import training_texts

STEPS = {"vae": 1, "llm": 2, "mar": 2, "2": 4}                   # one stage for each kind of loss
SAVED = 2                                                        # the step of stage 2 where a state is saved
FSDP = ["--optim.muon", "false", "--optim.shards", "4", "--optim.checkpointing", "true"]


def flags(out, *more, stages=STEPS):
    return ["--preset", "pico", "--sample-every", "0", "--save-every", str(SAVED), "--data.scenes", "60", "--out",
            str(out), *more, "--stage_2.batch", "8", "--stage_2.understanding_batch", "4",
            *(flag for s in stages for flag in ("--stage", s)), *(f"--stage_{s}.steps={n}" for s, n in STEPS.items())]


def test_a_stage_asks_for_its_shares_and_a_part_is_learned_among_tokens_that_stay():
    config, asked, learned = Config.preset("nano"), [], []
    config.optim.shards, config.stages["3"].parts, config.stages["3"].hide_all = 2, 1.0, 0.3
    before, ids = torch.zeros(2, 4, 1), torch.ones(2, 3)
    split = torch.tensor([[0, 2, 3]] * 2), torch.tensor([[1]] * 2)

    def giving(result):
        return lambda rng, *given: asked.append(given) or result
    batches = SimpleNamespace(shapes=True, generation=giving([(before + 2, ids, ids)]), understanding=giving(()),
                              reconstruction=giving([(before + 3, ids, ids)]),
                              parts=giving((before, before + 1, ids, ids, split)))
    model = SimpleNamespace(vae=SimpleNamespace(grid_of=lambda *_: (2, 2), encode=lambda x: x),
                            generation_loss=lambda latents, *given, hide_all, pictures=None, **_: learned.append(
                                (latents[0, :, 0].tolist(), given[3] is split, hide_all, pictures is latents)) or
                            latents.mean())
    for name in "3", "reca":
        list(stage_losses(config, name, model, batches, random.Random(0), None))
    assert learned == [([0, 1, 0, 0], True, 0.3, False), ([3] * 4, False, 0, True)]
    assert asked == [(32, 96, 0.1, 0.2), (2, 96, 0.1), (16, 96, 0.4), (32, 96, 0.1, 0.2), (16, 96, 0.4)]


def record(argv, copy=None):
    """Run train.main, lightly; {stage: seeds of its shards}. copy: a folder for the run as it was when it saved."""
    seeds, real = {}, train.stage_losses

    def noted(config, name, model, batches, rng, generator):
        seeds.setdefault(name, []).append(generator.initial_seed())
        return real(config, name, model, batches, rng, generator)

    def save_and_copy(folder, *rest, **options):
        save_state(folder, *rest, **options)
        if copy:
            shutil.copytree(folder.parent, copy)
    def joined(*args):                                           # or the others would give up waiting for a long import
        assert torch.distributed.is_initialized()
        return views_of(*args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imports, "views_of", joined)
        patch.setattr(resume, "training_texts", functools.partial(training_texts, n=60))
        patch.setattr(train, "show", lambda *_: None)
        patch.setattr(train, "stage_losses", noted)
        patch.setattr(run, "save_state", save_and_copy)
        train.main(argv)
    return seeds


def as_torchrun(rank, world_size, store, stop, ports, *commands):
    """In each of the processes: what torchrun's environment makes of `python train.py`, for (command, copy or None)."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank),
                   "MASTER_ADDR": "127.0.0.1"}
    for port, (argv, copy) in zip(ports, commands):
        os.environ["MASTER_PORT"] = str(port)
        record(argv, None if rank else copy)


def free_ports(n):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [s.getsockname()[1] for s in sockets]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: folder} and the seeds of `one`: one and two processes, two from the middle of the one; sharded (FSDP2)."""
    tmp = tmp_path_factory.mktemp("runs")
    out = {name: tmp / name for name in ("one", "two", "two_resumed", "whole", "sharded", "sharded_resumed", "own")}
    (tmp / "photos").mkdir()
    for i in range(9):
        Image.new("RGB", (16, 16), (i * 20, 0, 0)).save(tmp / "photos" / f"{i}.png")
        (tmp / "photos" / f"{i}.txt").write_text("a text", encoding="utf-8")
    sharded = [*FSDP, "--optim.fsdp", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        seeds = record(flags(out["one"], "--procs", "1", "--optim.shards", "2"), out["two_resumed"])
        for name in "whole", "sharded":                          # go on from one's first stages
            shutil.copytree(out["one"], out[name], ignore=shutil.ignore_patterns("stage_2", "train_config.json"))
        record(flags(out["whole"], "--procs", "1", *FSDP, stages=["2"]))
        launch(as_torchrun, 2, free_ports(5), (flags(out["two"]), None), (flags(out["two_resumed"], "--resume"), None),
               (flags(out["sharded"], *sharded, stages=["2"]), out["sharded_resumed"]),
               (flags(out["sharded_resumed"], *sharded, "--resume", stages=["2"]), None),
               (flags(out["own"], "--data", str(tmp / "photos"), stages=["vae"]), None))
    return out, seeds


def test_own_pictures_are_imported_when_all_processes_have_met(runs):
    assert (runs[0]["own"] / "stage_vae" / "config.json").exists() and [*runs[0]["own"].glob("cache/*/about.json")]


def distance(a, b):
    """Mean difference of the weights. Single ones may differ more: AdamW steps by the sign of a rounding."""
    a, b = (dict(open_tensors(out / "stage_2").items()) for out in (a, b))
    assert {name: t.shape for name, t in a.items()} == {name: t.shape for name, t in b.items()}
    a, b = (torch.cat([end[name].flatten() for name in sorted(a)]) for end in (a, b))
    return (a - b).abs().mean().item()


def same_log(a, b):
    """Whether two logs tell the same losses, of the whole batch and not of rank 0's part."""
    a, b = ([json.loads(line) for line in (out / "log.jsonl").read_bytes().splitlines()] for out in (a, b))
    numbers = {"text", "mse", "generation", "understanding", "grad"}
    return [e["stage"] for e in a] == [e["stage"] for e in b] and all(
        x[key] == pytest.approx(y[key], rel=1e-3) for x, y in zip(a, b) for key in numbers & set(x))


def test_two_processes_train_the_same_model_as_one_from_the_start_and_from_the_middle(runs):
    out, seeds = runs
    assert {name: len(shards) for name, shards in seeds.items()} == {s: 2 * n for s, n in STEPS.items()}
    assert all(len(set(shards)) == len(shards) for shards in seeds.values())     # never the same batch
    assert seeds["llm"][3] == random.Random("0/llm/1/1").getrandbits(48)
    assert distance(out["one"], out["two"]) < 1e-5 and distance(out["one"], out["two_resumed"]) < 1e-5
    assert same_log(out["one"], out["two"])


def test_sharded_blocks_train_the_same_model_and_resume(runs):
    out, _ = runs
    assert distance(out["whole"], out["sharded"]) < 1e-5 and distance(out["sharded"], out["sharded_resumed"]) < 1e-6
    assert same_log(out["whole"], out["sharded"])


def test_a_stage_keeps_the_shards_it_began_with(tmp_path, monkeypatch):
    started = []                                          # (processes, shards)
    monkeypatch.setattr(train, "worker", lambda *args: started.append((args[1], args[4].config.optim.shards)))
    monkeypatch.setattr(train, "launch", lambda _, procs, run: started.append((procs, run.config.optim.shards)))
    monkeypatch.setattr(train, "cores", lambda: 1)
    monkeypatch.setattr(resume, "check_parts", lambda run: (SimpleNamespace(config=run.config.model), []))

    def start(*more):
        resumed = ["--resume"] * (tmp_path / "train_config.json").exists()
        train.main(["--preset", "pico", "--device", "cpu", *resumed, "--out", str(tmp_path), *more])
        return started[-1]
    assert start("--out", str(tmp_path / "other")) == (1, 2)          # one core makes the model that two make
    monkeypatch.setattr(train, "cores", lambda: 8)
    assert start("--procs", "1") == (1, 1)
    save_state(tmp_path / "stage_vae", 3, {})             # as if it had been interrupted
    assert start() == (1, 1)
    with pytest.raises(ValueError, match="--optim.shards 1 cannot be shared by 2"):
        start("--procs", "2")
    shutil.rmtree(tmp_path / "stage_vae")                 # the next stage may be cut in another way
    assert start("--procs", "2") == (2, 2)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_halves_of_a_shard_count_by_their_size_and_understanding_by_its_weight(n, monkeypatch):
    """The parts of a shard's loss add up to the mean over its texts: a text's loss is its number, the VAE's its KL."""
    config, value, asked = Config.preset("pico"), torch.arange(1.0, n + 1), set()
    config.optim.shards = 1
    config.stages |= {"vae": StageConfig(kl_weight=value.mean().item(), batch=n), "llm": StageConfig(batch=n),
                      "2": StageConfig(batch=n, understanding_batch=n, understanding_weight=0.25)}
    monkeypatch.setattr(losses, "vae_loss", lambda vae, image, kl_weight: (torch.tensor(kl_weight), {}))

    def rows_of(width, ids):
        return lambda rng, n, *_: ([half if i == ids else None for i in range(width)]
                                   for half in (value[:n // 2], value[n // 2:]) if len(half))
    batches = SimpleNamespace(texts=rows_of(3, 0), generation=rows_of(3, 1), understanding=rows_of(4, 1), shapes=(),
                              images=lambda rng, *given: asked.add(given))
    model = SimpleNamespace(vae=SimpleNamespace(grid_of=lambda *_: None),
                            understanding_loss=lambda latents, ids, *_: ids.mean(),
                            generation_loss=lambda latents, ids, *_, **__: 100 * ids.mean())
    for name, expected in ("vae", 1.0), ("llm", 1.0), ("2", 100.25):
        for seed in range(20):
            found = [loss for loss, _ in stage_losses(config, name, model, batches, train.random.Random(seed), None)]
            assert sum(found).item() == pytest.approx(expected * value.mean().item())
    assert asked == {(n, 48), (9 * n, 16)}                           # half of the VAE's batches: more, smaller pictures
