"""Studies: arms differ in what they say and in nothing else.     python -m pytest -q tests/test_study.py"""
import functools
import statistics

import pytest
import torch

from nanoharmon import config, mar
from nanoharmon.evals import arm, study, sweep
from nanoharmon.evals.baselines import L2Loss, raster_orders, swapped_in
from nanoharmon.evals.common import rate
from nanoharmon.flags import override
from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.training.recipe import Config
from nanoharmon.weights.safetensors import open_tensors


@pytest.fixture(scope="module")
def base(pico, tmp_path_factory):                                # what looks like the first three stages of a run
    out = tmp_path_factory.mktemp("study") / "base"
    for stage in "vae", "llm", "mar":
        Pipeline.load(pico).save(out / f"stage_{stage}")
    return out


def job_of(base, out, title, name):
    """One step of stage 1, two of stage 2, four of mar."""
    return arm.Job(base, out, next(a for a in study.arms(title, 0.008, "pico") if a.name == name), 1, "pico", 40)


@pytest.mark.parametrize("name, moved, kept", [
    ("drawing only", ["mar.encoder_norm.weight", "mar.decoder_norm.weight"], ["vae.encoder.conv_in.weight"]),
    ("reading only", ["mar.encoder_norm.weight"], ["mar.decoder_norm.weight", "proj_out.0.weight"]),
    ("separate encoders", ["mar.encoder_norm.weight", "mar_read.encoder_norm.weight"],
     ["mar_read.decoder_norm.weight", "mar_read.class_emb.weight"])])
def test_an_arm_trains_what_it_says(base, tmp_path, monkeypatch, short_replies, name, moved, kept):
    monkeypatch.setattr(arm, "arm_figures", functools.partial(arm.arm_figures, n=1, scenes=64))
    job, other = (job_of(base, tmp_path, "shared", n) for n in (name, "joint"))
    other.folder.mkdir()
    arm.prepare(other, Pipeline.load(base / "stage_mar"))
    arm.train_arm(job)
    before, after = open_tensors(job.folder / "stage_mar"), open_tensors(job.folder / "stage_2")
    for joint in open_tensors(base / "stage_mar"), open_tensors(other.folder / "stage_mar"):
        assert all(torch.equal(before[k], joint[k]) for k in joint if not k.startswith("proj_"))
    assert all(torch.equal(before[k], joint[k]) for k in joint)  # and new layers are the same in all arms
    if job.arm.baseline:
        assert torch.equal(before["mar.z_proj.weight"], before["mar_read.z_proj.weight"])
    assert all(torch.equal(before[k], after[k]) == (k in kept) for k in moved + kept)
    figures = arm.run_apart(print, (), job.folder / "study.json")                # done already
    assert ("generation loss" in figures) == (name != "reading only")
    assert ("answers right" in figures) == (name != "drawing only")


def test_leaving_a_stage_out_means_random_weights_there(base, tmp_path):
    for left_out in "mar", "llm":
        job = job_of(base, tmp_path, "stages", f"without {left_out}")
        arm.prepare(job, Pipeline.load(base / "stage_mar"))
        ours, theirs = open_tensors(job.folder / "stage_mar"), open_tensors(base / "stage_mar")
        changed = {k.split(".")[0] for k in ours if not torch.equal(ours[k], theirs[k])}
        assert changed - {"proj_in", "proj_out"} == {left_out}


def test_arms_have_equal_batches_and_steps():
    for a in study.arms("shared") + study.arms("stages"):
        recipe, usual = Config.preset("nano"), Config.preset("nano").stages["2"]
        override(recipe, a.flags)
        first, second = (recipe.stages[s] for s in "12")
        assert (first.batch, first.understanding_batch) == (second.batch, second.understanding_batch)
        assert sum(a.steps.values()) == study.STEPS["1"] + study.STEPS["2"] or a.name == "stage 1 only"
        for task in ("batch", "understanding_batch"):
            assert getattr(second, task) == getattr(usual, task) * a.learns(task)


def test_an_arm_of_another_budget_is_not_mixed_in(base, tmp_path):
    jobs = [arm.Job(base, tmp_path, study.arms("shared", budget)[0], 1) for budget in (1, 2)]
    arm.note(jobs[0])
    with pytest.raises(ValueError, match="steps .*, not .*; pass another --out"):
        arm.note(jobs[1])


def test_a_variant_of_mar_trains_and_draws(base, tmp_path, monkeypatch):
    monkeypatch.setattr(arm.shapes, "SEEN_CLASSES", arm.shapes.SEEN_CLASSES[:16])
    arm.train_arm(job := job_of(base, tmp_path, "mar", "l2 loss"))
    assert "mar.diffloss.net.0.weight" in open_tensors(job.folder / "stage_mar")


def test_a_baseline_is_there_inside_the_block_only():
    core, small = (mar.random_orders, mar.DiffLoss, Harmon.__init__, Harmon.see), config.pico()
    with swapped_in("raster order"):
        visible, hidden = mar.random_split(small.mar, 2, 9, "cpu", torch.Generator().manual_seed(1))
        assert torch.cat([visible, hidden], dim=1).tolist() == [list(range(9))] * 2 and 0 < visible.shape[1] < 9
        assert raster_orders(1, 4, "cpu").tolist() == [[3, 2, 1, 0]]             # the last one is drawn first
    with pytest.raises(ValueError), swapped_in("l2 loss"):
        model, orders = mar.MAR(small.mar), raster_orders(1, 4, "cpu")
        drawn = [model.class_sample(torch.tensor([0]), orders, 4) for _ in range(2)]
        assert isinstance(model.diffloss, L2Loss) and torch.equal(*drawn)        # nothing is random, given the order
        raise ValueError
    assert core == (mar.random_orders, mar.DiffLoss, Harmon.__init__, Harmon.see)


def test_sampling_draws_no_point_twice(base, tmp_path, monkeypatch):
    def draw_scores(pipe, n, images, seed, unseen, pool, **options):
        drawn.append(options)
        return {"seen": {"overall": rate([True, False])}}, {}
    pipe, drawn = Pipeline.load(base / "stage_mar"), []
    monkeypatch.setattr(sweep, "draw_scores", draw_scores)
    sweeps = {"iters": (1, 4, 5), "steps": (25, 5), "cfg": (3.0,)}
    for _ in range(2):
        sweep.sampling(pipe, tmp_path, procs=1, sweeps=sweeps)
        assert drawn == [{"think": False, **options} for options in (
            {"steps": 25, "iters": 1}, {"steps": 25, "iters": 4}, {"steps": 5})]


def test_tables_and_differences_are_of_one_seed_each():
    text = study.table({"joint": [{"a": 0.5}, {"a": 0.7}], "drawing only": [{"b": 1.0}, {"b": 1.0}]})
    assert f"0.600 ± {statistics.stdev([0.5, 0.7]):.3f}" in text and "1.000 ± 0.000" in text
    results = {"joint": [{"a": 0.5, "b": 1.0}, {"a": 0.75, "b": 2.0}], "x": [{"a": 0.25}, {"a": 1.0}]}
    assert study.against_first(results) == {"x - joint": [{"a": -0.25}, {"a": 0.25}]}
