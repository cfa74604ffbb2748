"""On a GPU: the CPU's numbers.     python -m pytest -q tests/test_cuda.py -m cuda

Without a GPU what is marked cuda is skipped. The rest runs the same code on the CPU, in bf16 against float32.
"""
import contextlib
import functools
import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import train
from conftest import fill_zeros
from nanoharmon.compiling import compile_blocks
from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.tokenizer import Tokenizer
from nanoharmon.training import memory, resume
from nanoharmon.training.batches import make_batches
from nanoharmon.training.losses import stage_losses
from nanoharmon.training.optim import EMA, make_optimizers, select
from nanoharmon.training.parallel import average_gradients
from nanoharmon.training.recipe import ALL_STAGES, Config
from nanoharmon.training.sharding import clip_gradients, gathered, shard_blocks
from nanoharmon.weights.checkpoint import meta_model
from nanoharmon.weights.safetensors import open_tensors
from nanoharmon.world.source import ShapesData, training_texts

NANO = Path(__file__).parents[1] / "checkpoints" / "nano"
gpu = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(autouse=True)
def one_source_of_noise(monkeypatch):
    """Random numbers come from the host's one stream, whatever the device and generator; no TF32."""
    def on_host(make):
        return lambda *args, device="cpu", generator=None, **options: make(*args, **options).to(device)
    for name in "rand", "randn", "randint":
        monkeypatch.setattr(torch, name, on_host(getattr(torch, name)))
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.randn(x.shape, device=x.device).to(x.dtype))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def nano(device, name, rows=4):
    """(Config of small batches, model with random weights, batches) on a device, in stage `name`."""
    config, tokenizer = Config.preset("nano"), Tokenizer.load(NANO)
    torch.manual_seed(0)
    model = fill_zeros(Harmon(config.model), std=0.02)
    config.data.scenes, config.optim.shards, stage = 40, 1, config.stages[name]
    stage.batch, stage.understanding_batch = rows, rows * bool(stage.understanding_batch)
    batches = make_batches(config, [ShapesData(config.data)], tokenizer, device)
    for size in 48, 96:
        shape = config.data.scenes, (size // 16) ** 2, 16
        batches.sources[0].latents[size] = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
    return config, model.to(device).train(), batches


def step(device, name, amp=None, prepare=lambda model: None):
    """The loss and {name: gradient} of a training step, on the host."""
    config, model, batches = nano(device, name)
    config.stages[name].parts = float(name == "3")       # what only this stage has
    select(model, config.stages[name].train_parts)
    prepare(model)
    scaler = torch.amp.GradScaler(device, init_scale=2.0 ** 10, enabled=amp is torch.float16)
    torch.manual_seed(0)
    total = 0.0
    with torch.autocast(device, amp or torch.bfloat16, enabled=amp is not None):
        for loss, _ in stage_losses(config, name, model, batches, random.Random(0), None):
            scaler.scale(loss).backward()
            total += loss.item()
    gradients = gathered({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    return total, {n: g.cpu() / scaler.get_scale() for n, g in gradients.items()}


def close(a, b, limit):
    """Whether two losses and their gradients as wholes differ by less than a share."""
    (loss_a, a), (loss_b, b) = a, b
    distance = sum((a[n] - b[n]).square().sum() for n in b).sqrt() / sum(g.square().sum() for g in b.values()).sqrt()
    return a.keys() == b.keys() and abs(loss_a - loss_b) < limit * abs(loss_b) and distance < limit


@pytest.mark.parametrize("device, amp, limit", [
    ("cpu", torch.bfloat16, 0.1), *(pytest.param("cuda", *case, marks=gpu) for case in (
        (None, 1e-3), (torch.bfloat16, 0.1), (torch.float16, 0.05)))])
@pytest.mark.parametrize("name", ALL_STAGES)
def test_losses_and_gradients_of_every_stage(name, device, amp, limit):
    if device == "cpu" and name not in ("mar", "2", "3"):
        pytest.skip("one stage of each kind is enough")
    assert close(step(device, name, amp), step("cpu", name), limit)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
def test_compiled_blocks(device):
    notes = []
    assert close(step(device, "3", prepare=lambda m: notes.append(compile_blocks(m))), step("cpu", "3"), 1e-3)
    assert "are compiled" in notes[0]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
def test_drawn_pictures_and_answers(device):
    """Drawn without a thought: its words are picked by noise that no fixture makes equal on both devices."""
    pipes, drawn = [Pipeline.load(NANO), Pipeline.load(NANO, device)], []
    for pipe in pipes:
        torch.manual_seed(0)
        drawn.append(pipe.draw(["a red circle", "a blue ring"], iters=6, steps=10, think=False))
    for x, y in zip(*drawn):
        difference = [abs(p - q) for p, q in zip(x.tobytes(), y.tobytes())]
        assert sum(d > 2 for d in difference) < len(difference) / 1000
    assert [pipe.answer(drawn[0][0], "what shape is the red object?") for pipe in pipes] == ["circle"] * 2


@contextlib.contextmanager
def group(device, folder):
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=0, world_size=1,
                            store=dist.FileStore(str(folder / "store"), 1))
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.stress), pytest.param("cuda", marks=gpu)])
def test_gradients_and_sharded_blocks_in_a_process_group(device, tmp_path):
    """As much of data parallel training and of FSDP2 as one device can run."""
    with group(device, tmp_path):
        alone, shared = step(device, "2"), step(device, "2", prepare=lambda m: shard_blocks(m, 1, device))
        assert close(shared, alone, 1e-3)
        p = torch.nn.Parameter(torch.zeros(3, device=device))
        p.grad = torch.ones_like(p)
        average_gradients({"p": p}, world_size=2, shards=4)
        assert p.grad.tolist() == [0.25] * 3


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
def test_a_run_is_resumed_on_the_other_device(device, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "training_texts", functools.partial(training_texts, n=60))
    monkeypatch.setattr(train, "show", lambda *_: None)
    flags = ["--preset", "pico", "--stage", "llm", "--stage_llm.steps", "4", "--save-every", "2", "--sample-every", "0",
             "--procs", "1", "--optim.shards", "1"]
    train.main([*flags, "--device", "cpu", "--out", str(tmp_path / "whole")])
    for first, second in (device, "cpu"), ("cpu", device):
        out = tmp_path / f"{first}_{second}"
        with monkeypatch.context() as patch:
            patch.setattr(train, "average_values", lambda *_: 1 / 0)             # at the end: the states stay
            with pytest.raises(ZeroDivisionError):
                train.main([*flags, "--device", first, "--out", str(out)])
        train.main([*flags, "--device", second, "--out", str(out), "--resume"])
        a, b = (open_tensors(folder / "stage_llm") for folder in (out, tmp_path / "whole"))
        assert max((a[n].float() - b[n].float()).abs().max() for n in dict(b.items())) < 0.02        # bf16 on a GPU


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
def test_a_step_does_not_wait_for_the_gpu_and_needs_the_memory_that_was_said(device, monkeypatch):
    """It waits where batches are copied, to ask if the gradient is finite, and, on an H200, in torch 2.11's backward."""
    monkeypatch.undo()                                   # the host's noise, for which a GPU has to wait
    config = Config.preset("micro")
    torch.manual_seed(0)
    model = Harmon(config.model).to(device).train()
    params = select(model, config.stages["2"].train_parts)
    optimizers, ema = make_optimizers(params, config.optim), EMA(params, 0.9)
    monkeypatch.setattr(memory, "unfilled", functools.partial(torch.zeros, device=device))
    config.optim.shards = 1
    for i in range(3):                                   # the first one fills caches: tables, states of the optimizers
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_sync_debug_mode("error" if i else "default")
        for loss, _ in stage_losses(config, "2", model, memory.Blank(model), random.Random(0), None):
            torch.cuda.set_sync_debug_mode("default")
            loss.backward()
            torch.cuda.set_sync_debug_mode("error" if i else "default")
            del loss
        clip_gradients(list(params.values()), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        ema.update(params, i)
    torch.cuda.set_sync_debug_mode("default")
    measured = torch.cuda.max_memory_allocated() * 1e-9
    monkeypatch.undo()
    said = sum(memory.step_memory(meta_model(config.model), config, "2", 1, False))
    assert 0.85 * said < measured < 1.15 * said
