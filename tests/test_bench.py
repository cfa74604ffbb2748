"""The benchmark's instruments and tables.     python -m pytest -q tests/test_bench.py"""
import json
import time

import torch
import torch.nn.functional as F

from nanoharmon import bench
from nanoharmon.config import nano
from nanoharmon.evals import growth
from nanoharmon.evals.measure import Parts, measure
from nanoharmon.mar import Mlp
from nanoharmon.weights.checkpoint import meta_model

CPU = torch.device("cpu")


def test_flops_parts_and_memory_are_those_of_the_work(monkeypatch):
    monkeypatch.setattr("nanoharmon.evals.measure.matmul_peak", lambda *_: 1e9)
    parts, (B, h, L, d) = Parts(CPU), (2, 3, 20, 16)
    weight, q = torch.randn(32, 128, requires_grad=True), torch.randn(B, h, L, d, requires_grad=True)

    def work():
        with parts("sleep"):
            time.sleep(0.02)
        held = torch.ones(2**24)                                                 # 64 MiB
        x = torch.randn(64, 128) @ weight.T                                      # backward: the weight's gradient alone
        (x.sum() + F.scaled_dot_product_attention(q, q, q).sum() + held[0]).backward()
    found = measure(work, parts, torch.float32, 1)
    assert found["flops"] == 2 * (2 * 64 * 128 * 32) + (4 + 10) * B * h * L * L * d
    assert 0.02 < found["parts"]["sleep"] < min(found["seconds"])
    if found["memory"] is not None:
        assert 60 < found["memory"] / 2**20 < 200


def test_counting_flops_leaves_what_is_compiled_compiled(monkeypatch):
    """What torch first meets under a FLOP counter it never compiles: the figures of --compile were those without."""
    monkeypatch.setattr("nanoharmon.evals.measure.matmul_peak", lambda *_: 1e9)
    layer, graphs = Mlp(8, 32, 0.0), []
    layer.compile(dynamic=True, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    found = measure(lambda: layer(torch.ones(3, 8)), Parts(CPU), torch.float32, 1, compiled=True)
    assert graphs and found["flops"] == 2 * (2 * 3 * 8 * 32)


def test_a_run_is_kept_and_compared(tmp_path, capsys):
    path = tmp_path / "a.json"
    bench.main(["--preset", "pico", "--repeat", "1", "--only", "draw", "--only", "generation", "--only", "stage 2",
                "--steps", "3", "--iters", "2", "--batch", "2", "--json", str(path), "--mar.grid", "2"])
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["model"]["mar"]["grid"] == 2 and list(found["workloads"]) == ["draw", "generation", "stage 2"]
    assert {"MAR encoder", "LLM, prompt", "LLM, on its cache", "MAR decoder", "diffusion MLP"} == set(
        found["workloads"]["draw"]["parts"])
    assert {"data", "backward", "optimizer", "averaging"} < set(found["workloads"]["stage 2"]["parts"])
    capsys.readouterr()
    for f in found["workloads"].values():
        f["seconds"] = [2 * s for s in f["seconds"]]
    (tmp_path / "b.json").write_text(json.dumps(found), encoding="utf-8")
    bench.main(["--compare", str(path), str(tmp_path / "b.json")])
    assert [line.split("|")[4].strip() for line in capsys.readouterr().out.splitlines()[2:]] == ["2.00"] * 3


def test_memory_of_drawing_grows_like_the_tokens_and_no_faster():
    model = meta_model(nano())
    sizes = [growth.cost(model, growth.draw, tokens=n, batch=1, prompt=8, iters=2, steps=2)[1] for n in (256, 1024)]
    assert sizes[1] < 5 * sizes[0] < 5e8                     # 16 times as much, if a matrix of weights were kept
    growth.cost(model, growth.converse, length=9)            # with the layout that attention has on a GPU
