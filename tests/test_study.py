"""Studies: arms differ in what they say and in nothing else, train through train.py, and go on where they were.

    python -m pytest -q tests/test_study.py
"""
import json
import statistics
from types import SimpleNamespace

import pytest
import torch

from nanoharmon import config, mar
from nanoharmon.evals import arm, evaluate, study, sweep
from nanoharmon.evals.baselines import L2Loss, raster_orders, swapped_in
from nanoharmon.evals.common import rate
from nanoharmon.flags import override
from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.training.recipe import Config


@pytest.fixture(scope="module")
def base(pico, tmp_path_factory):
    """What looks like the first three stages of a run."""
    out = tmp_path_factory.mktemp("study") / "base"
    for stage in "vae", "llm", "mar":
        Pipeline.load(pico).save(out / f"stage_{stage}")
    return out


def job_of(base, out, title, name, seed=1):
    """One step of stage 1, two of stage 2, four of mar."""
    chosen = next(a for a in study.arms(title, 0.008, "pico") if a.name == name)
    return arm.Job(base, out, chosen, seed, "pico", 40)


def weights(folder):
    return Pipeline.load(folder).model.state_dict()


@pytest.mark.parametrize("name, moved, kept", [
    ("drawing only", ["mar.encoder_norm.weight", "mar.decoder_norm.weight"], ["vae.encoder.conv_in.weight"]),
    ("reading only", ["mar.encoder_norm.weight"], ["mar.decoder_norm.weight", "proj_out.0.weight"]),
    ("separate encoders", ["mar.encoder_norm.weight", "mar_read.encoder_norm.weight"],
     ["mar_read.decoder_norm.weight", "mar_read.class_emb.weight"])])
def test_an_arm_trains_what_it_says(base, tmp_path, monkeypatch, name, moved, kept):
    monkeypatch.setattr(arm, "arm_figures", lambda pipe, arm: {"generation loss": 0.5})
    job, other = (job_of(base, tmp_path, "shared", n) for n in (name, "joint"))
    other.folder.mkdir()
    arm.prepare(other, Pipeline.load(base / "stage_mar"))
    arm.train_arm(job)
    with swapped_in(job.arm.baseline):
        before, after = weights(job.folder / "stage_mar"), weights(job.folder / "stage_2")
    for joint in weights(base / "stage_mar"), weights(other.folder / "stage_mar"):
        assert all(torch.equal(before[k], joint[k]) for k in joint if not k.startswith("proj_"))
    assert all(torch.equal(before[k], joint[k]) for k in joint)  # and new layers are the same in all arms
    if job.arm.baseline:
        assert torch.equal(before["mar.z_proj.weight"], before["mar_read.z_proj.weight"])
    assert all(not torch.equal(before[k], after[k]) for k in moved)
    assert all(torch.equal(before[k], after[k]) for k in kept)
    figures = json.loads((job.folder / "study.json").read_text(encoding="utf-8"))
    assert figures.keys() == {"generation loss", "minutes"}
    arm.borrow_latents(other)                                    # the same seed, so the same pictures: encoded once
    mine, theirs = (sorted((j.folder / "cache").iterdir()) for j in (other, job))
    assert mine and all(path.samefile(o) for path, o in zip(mine, theirs, strict=True))
    arm.borrow_latents(third := job_of(base, tmp_path, "shared", "joint", seed=2))
    assert not third.folder.exists()


@pytest.mark.parametrize("left_out", ["mar", "llm"])
def test_leaving_a_stage_out_means_random_weights_there(base, tmp_path, left_out):
    job = job_of(base, tmp_path, "stages", f"without {left_out}")
    arm.prepare(job, Pipeline.load(base / "stage_mar"))
    ours, theirs = weights(job.folder / "stage_mar"), weights(base / "stage_mar")
    for part in "vae", "llm", "mar":
        same = [torch.equal(ours[k], theirs[k]) for k in ours if k.startswith(f"{part}.")]
        assert all(same) == (part != left_out)


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
    arm.note(jobs[0])
    with pytest.raises(ValueError, match="steps .*, not .*; pass another --out"):
        arm.note(jobs[1])


# --- baselines --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["raster order", "l2 loss"])
def test_mar_variants_train_and_draw(base, tmp_path, monkeypatch, name):
    monkeypatch.setattr(arm.shapes, "SEEN_CLASSES", arm.shapes.SEEN_CLASSES[:16])
    arm.train_arm(job := job_of(base, tmp_path, "mar", name))
    figures = json.loads((job.folder / "study.json").read_text(encoding="utf-8"))
    assert set(figures) == {"random, 4 iterations", "random, 4", "random, 1", "raster, 4", "minutes"}


def test_a_baseline_is_there_inside_the_block_only():
    core, small = (mar.random_split, mar.DiffLoss, Harmon.__init__, Harmon.see), config.pico()
    with swapped_in("raster order"):
        visible, hidden = mar.random_split(small.mar, 2, 9, "cpu", torch.Generator().manual_seed(1))
        assert torch.cat([visible, hidden], dim=1).tolist() == [list(range(9))] * 2 and 0 < visible.shape[1] < 9
        assert raster_orders(1, 4, "cpu").tolist() == [[3, 2, 1, 0]]             # the last one is drawn first
    with swapped_in("l2 loss"):
        model, orders = mar.MAR(small.mar), raster_orders(1, 4, "cpu")
        drawn = [model.class_sample(torch.tensor([0]), 4, orders=orders, generator=torch.Generator().manual_seed(s))
                 for s in (0, 1)]
        assert isinstance(model.diffloss, L2Loss) and torch.equal(*drawn)        # nothing is random, given the order
        assert model.diffloss(torch.zeros(3, 4), torch.zeros(3, 32)).shape == (3,)
    with pytest.raises(ValueError), swapped_in("separate encoders"):
        model = Harmon(small)
        latents, some = torch.randn(1, 4, 4), torch.tensor([[1, 2]])
        assert torch.equal(model.see(latents)[0], model.mar_read.encode(latents))
        assert torch.equal(model.see(latents, some)[0], model.mar.encode(latents, some))
        raise ValueError
    assert core == (mar.random_split, mar.DiffLoss, Harmon.__init__, Harmon.see)


# --- figures and tables -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("think", [False, True])
def test_sampling_draws_no_point_twice(base, tmp_path, monkeypatch, think):
    def draw_scores(pipe, n, images, unseen, pool, **options):
        drawn.append(options)
        return {"seen": {"overall": rate([True, False])}}, {}
    pipe, drawn = Pipeline.load(base / "stage_mar"), []
    pipe.meta["draw"] = {"think": think}
    monkeypatch.setattr(sweep, "draw_scores", draw_scores)
    sweeps = {"iters": (1, 4, 5), "steps": (25, 5), "temperature": (1.0,), "cfg": (3.0,),
              "cfg, linear schedule": (3.0,)}
    curves = sweep.sampling(pipe, tmp_path, procs=1, sweeps=sweeps)
    assert drawn == [{"think": t, **options} for t in ([True, False] if think else [False]) for options in (
        {"steps": 25, "iters": 1}, {"steps": 25, "iters": 4}, {"steps": 5},
        {"steps": 25, "cfg": 3.0, "cfg_schedule": "linear"})]
    seen = len(drawn)
    assert curves == sweep.sampling(pipe, tmp_path, procs=1, sweeps=sweeps) and len(drawn) == seen
    assert list(curves["iters"]) == ["thinking first"] * think + ["the prompt itself"]
    assert [value for value, _ in curves["iters"]["the prompt itself"]] == [1, 4]
    assert (tmp_path / "sampling.png").exists() and sweep.table(curves).count("50.0 [9.5, 90.5]") == 7 * (1 + think)


def test_figures_are_of_what_the_arm_has_learned(base):
    pipe = Pipeline.load(base / "stage_mar")
    pipe.meta["size"] = 16
    drawn, read = (arm.arm_figures(pipe, job_of(base, base, "shared", name).arm, n=1, scenes=64)
                   for name in ("drawing only", "reading only"))
    assert list(drawn) == ["prompts right", "generation loss"]
    assert list(read) == ["answers right", "captions right", "understanding loss"]


def test_tables_and_differences_are_of_one_seed_each():
    text = study.table({"joint": [{"a": 0.5}, {"a": 0.7}], "drawing only": [{"b": 1.0}, {"b": 1.0}]})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[2:] == [["joint", f"0.600 ± {statistics.stdev([0.5, 0.7]):.3f}", "-"],
                        ["drawing only", "-", "1.000 ± 0.000"]]
    results = {"joint": [{"a": 0.5, "b": 1.0}, {"a": 0.75, "b": 2.0}], "x": [{"a": 0.25}, {"a": 1.0}],
               "once": [{"a": 1}]}
    assert study.against_first(results) == {"x - joint": [{"a": -0.25}, {"a": 0.25}]}


def test_what_stops_a_study_is_said(tmp_path, monkeypatch, capsys):
    class Context:                                               # a process that fails
        def Process(self, **_):
            return SimpleNamespace(start=lambda: None, join=lambda: None, exitcode=2)
    monkeypatch.setattr(arm.multiprocessing, "get_context", lambda _: Context())
    with pytest.raises(ValueError, match="exit code 2.*train.log"):
        arm.run_apart(print, (), tmp_path / "study.json")
    (tmp_path / "study.json").write_text("{}", encoding="utf-8")
    assert arm.run_apart(print, (), tmp_path / "study.json") == {}               # done already
    monkeypatch.setattr(study, "TRAIN", tmp_path / "train.py")
    with pytest.raises(ValueError, match="expected train.py .* clone"):
        evaluate.main(["--study", "shared", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
