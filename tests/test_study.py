"""Studies: arms differ in what they say and in nothing else, train through train.py, and go on where they were."""
import json
import random
import statistics
import subprocess
import sys
import time

import pytest
import torch

import train
from nanoharmon.flags import override
from nanoharmon.pipeline import Pipeline
from nanoharmon.evals import study, sweep
from nanoharmon.evals.common import rate
from nanoharmon.training.recipe import Config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The first three stages of a pico run, one step each."""
    out = tmp_path_factory.mktemp("study") / "base"
    train.main(["--preset", "pico", "--out", str(out), "--procs", "1", "--data.scenes=40", "--sample-every", "0",
                *(f"--stage_{s}.steps=1" for s in ("vae", "llm", "mar")), *(f"--stage={s}" for s in ("vae", "llm", "mar"))])
    return out


def weights(folder):
    return Pipeline.load(folder).model.state_dict()


def arm(title, name):
    return next(a for a in study.arms(title, 1e-9, "pico") if a.name == name)


@pytest.mark.parametrize("title, name, moved, kept", [
    ("shared", "drawing only", ["mar.encoder_norm.weight", "mar.decoder_norm.weight"], ["vae.encoder.conv_in.weight"]),
    ("shared", "reading only", ["mar.encoder_norm.weight"], ["mar.decoder_norm.weight", "proj_out.0.weight"]),
    ("shared", "separate encoders", ["mar.encoder_norm.weight", "mar_read.encoder_norm.weight"],
     ["mar_read.decoder_norm.weight", "mar_read.class_emb.weight"])])
def test_an_arm_trains_what_it_says(base, tmp_path, title, name, moved, kept):
    study.start(base, tmp_path, chosen := arm(title, name), seed=1)
    before = weights(tmp_path / "stage_mar")
    assert torch.equal(before["mar.encoder_norm.weight"], weights(base / "stage_mar")["mar.encoder_norm.weight"])
    if chosen.separate:
        assert torch.equal(before["mar.z_proj.weight"], before["mar_read.z_proj.weight"])
        study.start(base, tmp_path / "joint", arm(title, "joint"), seed=1)       # new layers are the same in all arms
        joint = weights(tmp_path / "joint" / "stage_mar")
        assert all(torch.equal(before[k], joint[k]) for k in joint)
    train.main(["--preset", "pico", "--out", str(tmp_path), "--procs", "1", "--resume", "--sample-every", "0",
                "--data.seed=1", "--data.scenes=40", *(f"--stage_{s}.steps=2" for s in chosen.steps), *chosen.flags,
                *(f"--stage={s}" for s in chosen.steps)])
    after = weights(tmp_path / "stage_2")
    assert all(not torch.equal(before[k], after[k]) for k in moved)
    assert all(torch.equal(before[k], after[k]) for k in kept)


@pytest.mark.parametrize("part", ["mar", "llm"])
def test_leaving_a_stage_out_means_random_weights_there(base, tmp_path, part):
    study.start(base, tmp_path, arm("stages", f"without {part}"), seed=1)
    ours, theirs = weights(tmp_path / "stage_mar"), weights(base / "stage_mar")
    same = {p: all(torch.equal(ours[k], theirs[k]) for k in ours if k.startswith(f"{p}.")) for p in ("vae", "llm", "mar")}
    assert same == {p: p != part for p in same}


def test_arms_have_equal_batches_and_steps():
    for title in "shared", "stages":
        for a in study.arms(title):
            config = Config.preset("nano")
            override(config, a.flags)
            first, second = (config.stages[s] for s in "12")
            assert (first.batch, first.understanding_batch) == (second.batch, second.understanding_batch) or "1" not in a.steps
            assert sum(a.steps.values()) == study.STEPS["1"] + study.STEPS["2"] or a.name == "stage 1 only"
            for task in ("batch", "understanding_batch"):
                assert getattr(second, task) in (0, getattr(Config.preset("nano").stages["2"], task))


def test_an_arm_of_another_budget_is_not_mixed_in(base, tmp_path):
    jobs = [(str(base), str(tmp_path), study.arms("shared", budget)[0], 1, "nano", 40) for budget in (1, 2)]
    study.note(jobs[0])
    study.note(jobs[0])
    with pytest.raises(ValueError, match="steps .* -> .*; pass another --out"):
        study.note(jobs[1])


@pytest.mark.parametrize("think", [False, True])
def test_sampling_draws_no_point_twice(base, tmp_path, monkeypatch, think):
    def draw_scores(pipe, n, images, unseen, pool, **options):
        drawn.append(options)
        return {"seen": {"overall": rate([True, False])}}, {}
    pipe, drawn = Pipeline.load(base / "stage_mar"), []
    if think:
        pipe.meta["draw"] = {"think": True}
    monkeypatch.setattr(sweep.evaluate, "draw_scores", draw_scores)
    sweeps = {"iters": (1, 4, 5), "steps": (25, 5), "temperature": (1.0,), "cfg": (3.0,), "cfg, linear schedule": (3.0,)}
    curves = sweep.sampling(pipe, tmp_path, procs=1, sweeps=sweeps)
    assert drawn == [{"think": t, **options} for t in ([True, False] if think else [False]) for options in (
        {"steps": 25, "iters": 1}, {"steps": 25, "iters": 4}, {"steps": 5},
        {"steps": 25, "cfg": 3.0, "cfg_schedule": "linear"})]
    seen = len(drawn)
    assert curves == sweep.sampling(pipe, tmp_path, procs=1, sweeps=sweeps) and len(drawn) == seen
    assert list(curves["iters"]) == ["thinking first"] * think + ["the prompt itself"]
    assert [value for value, _ in curves["iters"]["the prompt itself"]] == [1, 4]
    assert (tmp_path / "sampling.png").exists()
    table = sweep.table(curves)
    assert table.count("50.0 [9.5, 90.5]") == 7 * (1 + think) and "| iters | 4 | 50.0" in table


def test_an_arm_is_measured_once(base, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "measure", lambda pipe, arm: {"draw loss": random.random()})
    job = (str(base), str(tmp_path), arm("shared", "joint"), 1, "pico", 40)
    first = study.train_arm(job)
    assert first == study.train_arm(job) and first["minutes"] > 0
    assert json.loads((tmp_path / "joint-1" / "study.json").read_text()) == first
    second = arm("shared", "drawing only")              # the same seed, so the same pictures: encoded once
    study.borrow_latents(tmp_path, second, 1)
    mine, theirs = (list((tmp_path / f"{name}-1" / "cache").iterdir()) for name in ("drawing_only", "joint"))
    assert mine and all(path.samefile(other) for path, other in zip(sorted(mine), sorted(theirs), strict=True))
    study.borrow_latents(tmp_path, second, 2)
    assert not (tmp_path / "drawing_only-2").exists()


def test_the_base_itself_is_measured_once_per_weights(base, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "measure", lambda pipe, arm: {"draw loss": random.random()})
    first = study.after_figures((str(base), str(tmp_path), "mar"))
    assert first == study.after_figures((str(base), str(tmp_path), "mar"))
    assert first["draw loss"] != study.after_figures((str(base), str(tmp_path), "llm"))["draw loss"]
    assert len(list(tmp_path.glob("after_*.json"))) == 2


@pytest.mark.parametrize("name", ["raster order", "l2 loss"])
def test_mar_variants_train_and_draw(base, tmp_path, monkeypatch, name):
    monkeypatch.setattr(study.shapes, "SEEN_CLASSES", study.shapes.SEEN_CLASSES[:16])
    figures = study.train_arm((str(base), str(tmp_path), arm("mar", name), 1, "pico", 40))
    assert set(figures) == {"random, 4 iterations", "random, 4", "random, 1", "raster, 4", "minutes"}
    model = Pipeline.load(study.folder(tmp_path, arm("mar", name), 1) / "stage_mar").model
    if name == "l2 loss":                               # no randomness is left once the order is given
        draw = [model.mar.class_sample(torch.tensor([0]), 4, order="raster", generator=torch.Generator().manual_seed(s))
                for s in (0, 1)]
        assert torch.equal(*draw)


def test_measure_reports_what_the_arm_learned(base):
    pipe = Pipeline.load(base / "stage_mar")
    pipe.meta["size"] = 16
    assert set(study.arm_figures(pipe, arm("shared", "joint"), n=1, scenes=64)) == {
        "prompts right", "draw loss", "answers right", "captions right", "read loss"}
    assert "read loss" not in study.arm_figures(pipe, arm("shared", "drawing only"), n=1, scenes=64)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_workers_end_with_a_killed_parent():
    code = ("import os, time, torch.multiprocessing as mp; from nanoharmon import study\n"
            "pool = mp.get_context('fork').Pool(1, study.start_worker)\n"
            "pid = pool.apply(os.getpid); pool.apply_async(time.sleep, (60,)); time.sleep(1)\n"
            "print(pid, flush=True); time.sleep(60)")
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with open(f"/proc/{int(parent.stdout.readline())}/stat") as stat:        # stays that process, also when it is gone
        parent.kill()
        parent.wait()
        for _ in range(100):
            try:
                stat.seek(0)
                if stat.read().split()[2] == "Z":
                    return
            except ProcessLookupError:
                return
            time.sleep(0.1)
    pytest.fail("a worker outlived its parent by 10 seconds")


def test_table():
    text = study.table({"joint": [{"a": 0.5}, {"a": 0.7}], "drawing only": [{"b": 1.0}, {"b": 1.0}]})
    assert f"| joint | 0.600 ± {statistics.stdev([0.5, 0.7]):.3f} | - |" in text
    assert "| drawing only | - | 1.000 ± 0.000 |" in text


def test_differences_are_those_of_one_seed():
    results = {"joint": [{"a": 0.5, "b": 1.0}, {"a": 0.75, "b": 2.0}], "x": [{"a": 0.25}, {"a": 1.0}], "once": [{"a": 1}]}
    assert study.against_first(results) == {"x - joint": [{"a": -0.25}, {"a": 0.25}]}


def test_unknown_study():
    with pytest.raises(ValueError, match="shard.*--study"):
        study.arms("shard")
