"""torch.compile: the same numbers, nothing compiled twice.     python -m pytest -q tests/test_compiling.py -m stress"""
import copy

import pytest
import torch

from nanoharmon import compiling
from nanoharmon.compiling import compile_blocks
from nanoharmon.config import pico
from nanoharmon.harmon import Harmon
from test_pipeline import make_pipeline


def losses(model, B, T, grid):
    """Both losses of B pictures of grid x grid tokens with texts of T, and a gradient."""
    host, S = torch.Generator().manual_seed(B * T), grid ** 2
    latents, ids = torch.randn(B, S, 4, generator=host), torch.randint(0, 384, (B, T), generator=host)
    is_real = torch.arange(T) < T - torch.arange(B)[:, None] % 3
    split = torch.arange(S).expand(B, S).split([S // 2, S - S // 2], dim=1)
    model.zero_grad()
    drawn = model.generation_loss(latents, ids, is_real, (grid, grid), split, generator=host)
    read = model.understanding_loss(None, ids, ids)
    (drawn + read).backward()
    return drawn.detach(), read.detach(), model.proj_in[0].weight.grad.clone()


@pytest.mark.stress
def test_other_lengths_compile_nothing_again_and_the_numbers_stay(monkeypatch):
    real = torch.compile                         # how often something is compiled does not depend on the backend
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="eager", **options))
    plain = make_pipeline().model.requires_grad_(True).train()       # none of its layers is zero
    model = copy.deepcopy(plain)
    compile_blocks(model)
    graphs = torch._dynamo.utils.counters["stats"]
    for B, T, grid in (3, 7, 3), (4, 11, 4):
        losses(model, B, T, grid)
    before = graphs["unique_graphs"]
    for B, T, grid in (5, 9, 5), (9, 5, 2), (2, 30, 4), (6, 6, 6):
        for a, b in zip(losses(model, B, T, grid), losses(plain, B, T, grid)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert before > 3 and graphs["unique_graphs"] == before


def test_without_a_compiler_nothing_changes_and_a_note_says_so(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler\nfound")
    monkeypatch.setattr(compiling.torch, "compile", broken)
    model = Harmon(pico())
    assert "does not work here: RuntimeError: no compiler found" in compile_blocks(model)
    assert all(module._compiled_call_impl is None for module in model.modules())
