"""Linear probes on planted features and real scenes.     python -m pytest -q tests/test_probe.py"""
import json

import numpy as np
import pytest
import torch

from nanoharmon.evals import probe
from nanoharmon.evals.common import wilson
from nanoharmon.harmon import Harmon
from nanoharmon.mar import MAR
from nanoharmon.pipeline import Pipeline
from nanoharmon.world import shapes


@pytest.fixture(scope="module")
def pipe(pico):
    return Pipeline.load(pico)


def planted(n, d, classes, strength, rng):
    y, x = rng.integers(0, classes, n), rng.normal(size=(n, d)).astype(np.float32)
    x[:, :classes] += strength * np.eye(classes)[y]
    return x, [{"count": int(c)} for c in y]


def test_a_probe_reads_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    for d, strength, low, high in ((30, 6, 0.98, 1.0), (600, 0, 0.15, 0.35), (100, 20, 0.9, 1.0)):
        x, rows = planted(400, d, 4, strength, rng)
        found = probe.fit(x[:300], x[300:], ("count",), rows[:300], rows[300:], draws=3, inputs=d)["count"]
        assert low <= found["rate"] <= high and found["n"] == 100 and found["draws"] == 3


def test_an_unseen_task_is_fitted_on_the_seen_one_and_asks_only_its_own_rows():
    x, rows = planted(120, 10, 3, 8, np.random.default_rng(0))
    tests = rows[80:100] + [{"count, unseen": (row["count"] + (i < 5)) % 3} for i, row in enumerate(rows[100:])]
    found = probe.fit(x[:80], x[80:], ("count", "count, unseen"), rows[:80], tests, draws=2)
    assert found["count"]["n"] == 20 and found["count"]["rate"] == 1
    assert found["count, unseen"]["n"] == 20 and found["count, unseen"]["rate"] == 0.75       # five labels are wrong


def test_the_error_when_one_row_is_left_out_is_that_of_plain_least_squares():
    g = torch.Generator().manual_seed(0)
    x, y, penalty = torch.randn(20, 6, generator=g).double(), torch.arange(20) % 3, 0.01
    inner, onehot, error = x @ x.T, torch.nn.functional.one_hot(y).double(), 0
    targets = onehot - onehot.mean(dim=0)
    for i in range(20):
        rest = [j for j in range(20) if j != i]
        weights = torch.linalg.solve(inner[rest][:, rest] + penalty * inner.trace() * torch.eye(19), targets[rest])
        error += (inner[i, rest] @ weights - targets[i]).square().sum().item()
    assert probe.left_out_error(inner, y, penalty) == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("n, d", [(40, 12), (12, 40)])           # more scenes than numbers, and the other way round
def test_components_are_the_principal_ones_of_the_training_rows(n, d):
    g = torch.Generator().manual_seed(0)
    train, test = torch.randn(n, d, generator=g) + 3, torch.randn(5, d, generator=g)
    train[:, 0] = 7                                              # a constant says nothing, and does not divide by zero
    a, b = probe.components(train, test, 4)
    standard = (train - train.mean(0)) * torch.tensor([0.0] + [1.0] * (d - 1)) / train.std(0).clamp(min=1e-6)
    _, s, v = torch.linalg.svd(standard)
    assert a.shape == (n, 4) and b.shape == (5, 4)
    assert torch.allclose(a.norm(dim=0).flip(0), s[:4], rtol=1e-3)
    assert torch.allclose(a @ a.T, (standard @ v[:4].T) @ (standard @ v[:4].T).T, atol=1e-2)


def test_the_interval_counts_scenes_and_draws():
    half, again, apart = (probe.over_draws(torch.tensor(rows)) for rows in (
        [[True, False] * 50], [[True, False] * 50] * 4, [[True] * 100, [False] * 100]))
    assert (half["low"], half["high"]) == (again["low"], again["high"]) == pytest.approx(wilson(50, 100))
    assert apart["low"] < 0.2 and apart["high"] > 0.8            # one draw says nothing about another


def test_labels_are_true():
    ring = shapes.Object("ring", "blue", 0.9, 0.5, 0.1, (0, 0, 0))
    circle = shapes.Object("circle", "red", 0.2, 0.5, 0.1, (0, 0, 0))
    one, two = shapes.Scene((ring,), 30), shapes.Scene((circle, ring), 30)
    assert probe.labels(one, "single", 3) == {"shape": 4, "color": 2, "place": 5, "count": 0}
    assert probe.labels(one, "unseen", 3) == {"shape, unseen": 4, "color, unseen": 2}
    assert probe.labels(two, "many", 3)["count"] == 1
    assert probe.labels(two, "pair", 3) == {"bound": 0, "relation": shapes.RELATIONS.index("left of")}


def test_views_pick_the_token_under_the_point():
    tokens = torch.arange(2 * 6 * 3.0).view(2, 6, 3)             # a grid of 2 rows and 3 columns
    found = probe.views(tokens, (2, 3), torch.tensor([[0.1, 0.9], [0.99, 0.1]]))
    assert torch.equal(found["one"], torch.stack([tokens[0, 3], tokens[1, 2]]))
    assert torch.equal(found["mean"], tokens.mean(dim=1))
    assert torch.equal(found["all"], tokens.transpose(1, 2).flatten(1))


class Same(MAR):
    def encode(self, latents, visible, grid):                    # hands on the latents
        return torch.cat([latents[:, :self.config.buffer_size], latents], dim=1)


def test_scores_of_known_features(pipe):
    found = probe.probe_scores(pipe, 60, encoders={"same": Same(pipe.model.config.mar)}, draws=2)
    tasks = {task for tasks in probe.KINDS.values() for task in tasks}
    assert set(found) == {"most common answer", "pixels, all", "pixels, one"} | {
        f"{name}, {view}" for name in ("VAE latents", "random encoder", "same") for view in ("all", "mean", "one")}
    for row in found.values():
        assert set(row) - {"inputs"} == tasks and all(row[task]["n"] == 30 for task in tasks)
    assert found["pixels, one"]["color"]["rate"] > 0.6 > found["most common answer"]["color"]["rate"]
    for view in ("all", "mean", "one"):                          # every encoder sees the same scenes and labels
        assert found[f"same, {view}"] == found[f"VAE latents, {view}"] != found[f"random encoder, {view}"]


def test_the_command_compares_the_stages_of_a_run_if_their_vaes_are_the_same(pipe, tmp_path, capsys):
    for stage, size in ("mar", 16), ("3", 32):
        pipe.meta["size"] = size
        pipe.save(tmp_path / f"stage_{stage}")
    probe.main(["--run", str(tmp_path), "--n", "10", "--procs", "1", "--out", str(tmp_path)])
    said, stored = capsys.readouterr().out, json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    at = {size: {name.split(",")[0] for name in rows} for size, rows in stored["results"].items()}
    assert "encoder stage_mar" in at["16"] and "encoder stage_3" not in at["16"]            # at its own size only
    assert {"encoder stage_mar", "encoder stage_3", "random encoder"} <= at["32"]           # and all at the largest
    value = stored["results"]["32"]["encoder stage_3, one"]["color"]
    row = next(line for line in said.splitlines() if line.startswith("| encoder stage_3, one, 32 px "))
    assert f"{100 * value['rate']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]" in row
    Pipeline(Harmon(pipe.model.config), pipe.tokenizer, pipe.meta).save(tmp_path / "other")
    with pytest.raises(ValueError, match="other has another VAE than .*--ckpt .*other alone"):
        probe.main(["--ckpt", f"{tmp_path}/stage_mar", "--ckpt", f"{tmp_path}/other"])
