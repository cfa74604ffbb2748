"""Memory, measured before anything is trained.     python -m pytest -q tests/test_memory.py"""
import pytest
import torch
import torch.nn.functional as F

from nanoharmon.attention import attention
from nanoharmon.harmon import Harmon
from nanoharmon.training.memory import Peak, fused, step_memory, unfilled
from nanoharmon.training.optim import EMA, make_optimizers, select
from nanoharmon.training.recipe import Config
from nanoharmon.weights.checkpoint import meta_model


def test_the_peak_is_that_of_what_is_alive_at_one_time():
    x = unfilled(10)                                             # 40 bytes, known
    with Peak([x]) as peak:
        a = x + 1
        a.view(2, 5).mul_(2)                                     # the same memory
        b = a.exp()
        del a
        c = b + torch.ones(10**6).sum().item()                   # of the host, not of the device
        assert (peak.now, peak.peak) == (80, 80)
        del b, c
        assert (peak.now, peak.peak) == (0, 80)


def test_attention_is_counted_as_a_gpu_does_it(monkeypatch):
    """Four times as long: about four times the memory, not sixteen times."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)

    def need(L):
        q, k, v = (unfilled(2, 4, L, 16).requires_grad_() for _ in range(3))
        with Peak([q, k, v]) as peak:
            attention(q, k, v).sum().backward()
        return peak.peak
    assert need(1024) < 5 * need(256)


@pytest.mark.parametrize("muon", [True, False])
def test_the_state_is_what_a_step_leaves_behind(muon):
    config = Config.preset("pico")
    config.optim.muon, config.stages["2"].understanding_batch = muon, 4 * muon            # 0: nothing to understand
    model = Harmon(config.model)
    params = select(model, config.stages["2"].train_parts)
    optimizers, ema = make_optimizers(params, config.optim), EMA(params, 0.9)
    for p in params.values():
        p.grad = torch.zeros_like(p)
    for optimizer in optimizers:
        optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in params.values()), *ema.shadow.values(),
               *(t for o in optimizers for values in o.state.values() for t in values.values() if t.ndim)]
    state = step_memory(meta_model(config.model), config, "2", 1, False)[0]
    assert state == pytest.approx(1e-9 * sum(t.nbytes for t in tensors))


def test_checkpointing_and_shards_need_less():
    config = Config.preset("pico")
    config.model.mar.encoder_depth = config.model.llm.num_hidden_layers = 4
    work = [step_memory(meta_model(config.model), config, "2", *options)[1]
            for options in ((1, False), (1, True), (4, True))]
    assert work[0] > 2 * work[1] > 3 * work[2]
