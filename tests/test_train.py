"""train.py at preset pico: whole runs and interrupted ones.     python -m pytest -q tests/test_train.py"""
import functools
import json
import os
import random
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import train
from nanoharmon.cli import run_main
from nanoharmon.files import FolderLock
from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.training import resume, run, watch
from nanoharmon.training.parallel import SIGNALS, Stop
from nanoharmon.training.recipe import STAGES, Config, check_sizes
from nanoharmon.weights.safetensors import open_tensors
from nanoharmon.weights.states import latest_state, load_state
from nanoharmon.world.source import ShapesData, training_texts

STEPS = [f"--stage_{s}.steps=4" for s in STAGES]
BASE = ["--preset", "pico", "--procs", "1", "--save-every", "2", "--sample-every", "0"]


@pytest.fixture(autouse=True, scope="module")
def light():
    """One thread, a tokenizer from fewer texts, fewer pictures on the way, no final evaluation."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setattr(resume, "training_texts", functools.partial(training_texts, n=60))
    patch.setattr(watch, "PROMPTS", watch.PROMPTS[:1])
    patch.setattr(train.evaluate, "quick", lambda pipe, **_: {"geneval": 0.5, "n": 3})
    yield
    patch.undo()


@pytest.fixture(scope="module")
def done(light, tmp_path_factory):
    """A finished run, four steps a stage, pictures at the end of each."""
    out = tmp_path_factory.mktemp("run")
    train.main([*BASE, *STEPS, "--sample-every", "2", "--out", str(out)])
    return out


@pytest.fixture
def unseen(monkeypatch):
    """No pictures and answers on the way, which take longer than the few steps here."""
    monkeypatch.setattr(train, "show", lambda *_: None)


def test_words_of_training_are_stored_where_the_llm_was_made_here(done, tmp_path, unseen):
    made = Pipeline.load(done / "final").meta["words"].split()
    assert {"generate", "circle", "what"} < set(made) and "house" not in made
    train.main([*BASE, "--init", str(done / "final"), "--stage", "1", "--stage_1.steps=1", "--out", str(tmp_path)])
    assert "words" not in Pipeline.load(tmp_path / "stage_1").meta


def llm(out, *more, steps=4):
    """Flags for the stage that needs nothing before it."""
    return [*BASE, "--stage", "llm", f"--stage_llm.steps={steps}", "--out", str(out), *more]


def weights(folder, part=""):
    return {k: v.clone() for k, v in open_tensors(folder).items() if k.startswith(part)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def entries(out):
    return [json.loads(line, parse_constant=pytest.fail) for line in (out / "log.jsonl").read_bytes().splitlines()]


def failing(argv, capsys):
    """What a command says that must end with exit code 2 and one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        run_main(lambda: train.main([str(a) for a in argv]))
    *before, err, end = capsys.readouterr().err.split("\n")            # before: progress bars
    assert e.value.code == 2 and err.startswith("error: ") and end == ""
    return err


def at_call(n, name, act, monkeypatch):
    """Call act() before the n-th call of train.NAME."""
    calls, real = iter(range(1, 99)), getattr(train, name)
    monkeypatch.setattr(train, name, lambda *args, **options: (next(calls) == n and act(), real(*args, **options))[1])


def test_a_run_ends_with_a_model_that_draws_and_answers_a_log_and_pictures(done):
    pipe = Pipeline.load(done / "final")
    picture = pipe.draw(["a red circle"], steps=2, iters=2)[0]
    assert all(Pipeline.load(done / f"stage_{name}").meta["board"] == 2 for name in STAGES)
    assert [pipe.meta[k] for k in ("look", "turns", "parts", "board", "max_objects")] == [True, 4, False, 2, 4]
    assert picture.size == (32, 32) and pipe.size == 32 and isinstance(pipe.answer(picture, "what is it?"), str)
    assert pipe.model.config.mar.grid == 4                           # that of stage 3 (own_positions)
    assert {t.dtype for t in weights(done / "final").values()} == {torch.float16}
    assert pipe.model.config.vae.scale != 1.0 and json.loads((done / "results.json").read_bytes())["geneval"] == 0.5
    losses = {e["stage"]: set(e) & {"mse", "text", "generation", "understanding"} for e in entries(done) if "lr" in e}
    assert losses == {"vae": {"mse"}, "llm": {"text"}, "mar": {"generation"},
                      **dict.fromkeys("123", {"generation", "understanding"})}
    assert (done / "curves.png").exists() and not [*done.glob("stage_*/state")]    # a finished stage needs none


def test_a_picture_that_fails_is_a_note_and_without_any_none_is_drawn(tmp_path, capsys, monkeypatch):
    flags = [*BASE, "--stage", "vae", "--stage_vae.steps=2", "--out", str(tmp_path / "way")]
    (tmp_path / "way").mkdir()
    (tmp_path / "way" / "samples").touch()
    train.main([*flags, "--sample-every", "1"])
    assert capsys.readouterr().out.count("note: no pictures of stage vae, step ") == 2
    monkeypatch.setattr(watch, "snapshot", lambda *_: pytest.fail("draws"))
    train.main([*flags, "--out", str(tmp_path / "none")])
    assert all((tmp_path / out / "stage_vae" / "config.json").exists() for out in ("way", "none"))


def test_each_stage_moves_its_own_parameters_only(done):
    torch.manual_seed(0)
    before, moved = Harmon(Config.preset("pico").model).state_dict(), {}
    for name in STAGES:
        after = weights(done / f"stage_{name}")
        moved[name] = {k.split(".")[0] for k in after if not torch.equal(after[k], before[k])}
        before = after
    rest = {"mar", "llm", "proj_in", "proj_out"}
    assert moved == {"vae": {"vae"}, "llm": {"llm"}, "mar": {"mar"}, "1": rest - {"llm"}, "2": rest, "3": rest}


def test_a_finished_run_is_left_as_it_is(done, capsys, monkeypatch):
    monkeypatch.setattr(train, "train_stage", lambda *_: pytest.fail("trains again"))
    train.main([*BASE, *STEPS, "--out", str(done), "--resume"])
    assert "nothing to resume" in capsys.readouterr().out
    err = failing([*BASE, *STEPS, "--out", f"{done}2", "--resume"], capsys)           # a mistyped one
    assert f"nothing to resume in {done}2" in err and "--out" in err and not Path(f"{done}2").exists()
    err = failing([*BASE, *STEPS, "--out", done, "--init", "nowhere"], capsys)
    assert "nowhere: No such file or folder; change --init" in err
    for flag, words in ("--vae.ch=64", "vae.ch 32 -> 64"), ("--data.seed=1", "data.seed 0 -> 1"):
        assert words in (err := failing([*BASE, *STEPS, "--out", done, flag], capsys)) and "--out" in err
    for plan in [], ["--dry-run"]:
        err = failing([*BASE, *STEPS, "--out", done, "--preset", "micro", *plan], capsys)
        assert "preset pico -> micro" in err and "--out" in err


def test_a_run_that_goes_on_is_not_called_interrupted(tmp_path, capsys):
    with FolderLock(tmp_path) as lock:
        lock.take()
        assert "is in use by process" in failing(llm(tmp_path, "--dry-run"), capsys)


def test_a_stage_is_not_trained_behind_one_that_would_not_know_it(done, tmp_path, capsys):
    for name in "vae", "mar":
        shutil.copytree(done / f"stage_{name}", tmp_path / f"stage_{name}")
    shutil.copy(done / "train_config.json", tmp_path)
    err = failing([*BASE, *STEPS, "--out", tmp_path], capsys)        # stage 1 would begin from stage_mar, without it
    assert "stage llm comes before stage mar" in err and f"delete {tmp_path / 'stage_mar'}" in err


def test_a_run_remembers_what_it_was_given(done, tmp_path, capsys, monkeypatch, unseen):
    base, final = [*BASE, "--data.scenes", "60", "--stage_1.steps=2", "--stage_2.steps=2"], str(done / "final")
    flags = [*base, "--out", str(tmp_path)]
    mine = str(shutil.copytree(done / "final", tmp_path / "mine"))
    train.main([*flags, "--vae", final, "--llm", final, "--mar", mine, "--stage", "1"])
    for other, words in ("llm", f"was given --llm {final}, not "), ("init", "was given no --init, not "):
        assert words in failing([*flags, f"--{other}", done / "stage_2", "--stage", "2"], capsys)
    train.main([*flags, "--stage_2.train_parts=mar.decoder,llm", "--dry-run"])    # given: gentle rates
    table = capsys.readouterr().out
    assert "| mar.decoder, llm (" in table and table.count("| 0.002 / 0.01; llm, mar 0.0001 / 0.0005 |") > 1
    assert table.count("| given") == 3 and "pictures never" in table
    train.main([*flags, "--stage", "2"])
    assert f"was given --llm {final} at its start, and still is" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.glob("stage_*")) == ["stage_1", "stage_2"]
    llm = [{k: v for k, v in weights(folder).items() if k.startswith("llm.")}
           for folder in (done / "final", tmp_path / "stage_1", tmp_path / "stage_2")]
    moved = [max((a[k].float() - b[k].float()).abs().max() for k in a) for a, b in zip(llm, llm[1:])]
    assert moved[0] == 0 and 0 < moved[1] < 2e-3                 # two steps of at most 0.0005, and of 0.01 without
    config = tmp_path / "train_config.json"                      # once a stage is finished, no given file is needed
    config.write_text(config.read_text(encoding="utf-8").replace(final, f"{final}_gone"), encoding="utf-8")
    train.main([*flags, "--dry-run"])
    shutil.copy(done / "stage_2" / "model.safetensors", mine)    # until then, it must hold what it held
    monkeypatch.setattr(resume, "progress", lambda _: ([], {"1": 1}))
    assert "was begun with it; put it back" in failing([*flags, "--stage", "1", "--resume"], capsys)
    shutil.copytree(final, f"{final}_gone")
    assert f"{mine} holds other weights than when" in failing([*flags, "--stage", "1", "--resume"], capsys)


def test_reca_goes_on_with_a_finished_run_and_leaves_it_as_it_is(done, tmp_path, capsys, monkeypatch, unseen):
    flags = [*BASE, *STEPS, "--out", str(shutil.copytree(done, tmp_path, dirs_exist_ok=True))]
    train.main([*flags, "--dry-run"])
    assert "| reca" not in capsys.readouterr().out
    train.main([*flags, "--stage", "reca", "--dry-run"])
    assert re.search(r"\| reca .*\| 20 .* to do", capsys.readouterr().out)
    assert "stage reca runs only when it is named; pass --stage reca" in failing([*flags, "--stage_reca.lr=1"], capsys)
    (tmp_path / "stage_3").rename(tmp_path / "3")
    assert "stage 3 in" in failing([*flags, "--stage", "reca"], capsys)
    (tmp_path / "3").rename(tmp_path / "stage_3")
    shutil.copytree(tmp_path, tmp_path / "whole")
    args, real = [], train.stage_losses
    with monkeypatch.context() as m:
        m.setattr(train, "stage_losses", lambda *given: args.append(given) or real(*given))
        train.main([*BASE, *STEPS, "--stage", "reca", "--out", str(tmp_path / "whole")])
    save = run.save_state
    with monkeypatch.context() as m, pytest.raises(ZeroDivisionError):
        m.setattr(run, "save_state", lambda *args, **options: (save(*args, **options), 1 / 0))
        train.main([*flags, "--stage", "reca"])
    train.main([*flags, "--stage", "reca", "--resume"])
    before, after = weights(tmp_path / "stage_3"), weights(tmp_path / "stage_reca")
    assert same(after, weights(tmp_path / "whole" / "stage_reca"))
    moved = {k.split(".")[0] for k in after if not torch.equal(after[k], before[k])}
    assert moved == {"mar", "llm", "proj_in", "proj_out"}
    assert same(weights(tmp_path / "final"), weights(done / "final")) and (tmp_path / "results_reca.json").exists()
    train.main(flags)                                                # what does not name reca is not about it
    assert f"see {tmp_path / 'results.json'}; nothing to do" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "final")
    train.main(flags)                                                # made again
    os.utime(tmp_path / "results.json", (1, 1))                      # as if a stage had been repeated since
    train.main(flags)
    assert (tmp_path / "results.json").stat().st_mtime > 1
    final, reca = (Pipeline.load(tmp_path / name) for name in ("final", "final_reca"))
    assert final.meta == reca.meta and reca.draw(["a ring"], steps=1, iters=1)[0].size == (32, 32)

    def losses(name):
        """Of drawing what is shown, and of understanding; of batches that no step had."""
        (config, stage, _, batches, *_), found = args[-1], {"generation": 0.0, "understanding": 0.0}
        model = Pipeline.load(tmp_path / name).model
        for seed in range(16):
            generator = torch.Generator().manual_seed(seed)
            for _, logged in real(config, stage, model, batches, random.Random(seed), generator):
                found.update({label: found[label] + value.item() for label, value in logged.items()})
        return found
    old, new = losses("stage_3"), losses("stage_reca")
    assert len(args) == 20 and all(new[label] < 0.95 * old[label] for label in old), (old, new)


def test_fine_tuning_starts_from_a_directory_and_trains_only_the_named_parts(done, tmp_path, unseen, monkeypatch):
    calls, real = set(), torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda block, *args, **options: (
        calls.add(type(block).__name__), real(block, *args, **options))[1])
    train.main([*BASE, "--init", str(done / "stage_2"), "--stage", "2", "--stage_2.steps=2", "--optim.checkpointing",
                "true", "--train-parts", "mar.decoder,proj_out", "--out", str(tmp_path)])
    before, after = weights(done / "stage_2"), weights(tmp_path / "stage_2")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("mar.decoder", "proj_out")) for name in moved)
    assert calls == {"Block", "DecoderLayer"}                        # both were recomputed


def test_a_run_that_died_resumes_bit_for_bit(done, tmp_path, capsys, monkeypatch, unseen):
    for name in ("stage_vae", "stage_llm", "stage_mar", "cache"):
        shutil.copytree(done / name, tmp_path / name)
    shutil.copy(done / "train_config.json", tmp_path)
    flags, save = [*BASE, *STEPS, "--stage", "1", "--out", str(tmp_path)], run.save_state
    with monkeypatch.context() as m, pytest.raises(ZeroDivisionError):
        m.setattr(run, "save_state", lambda *args, **options: (save(*args, **options), 1 / 0))
        train.main(flags)
    err = failing(flags, capsys)                                      # hours of work must not be started over silently
    assert "interrupted" in err and "step 2" in err and "--resume" in err and "--out" in err
    mar = tmp_path / "stage_mar" / "model.safetensors"                 # of another stage mar, which the state would undo
    shutil.copy(done / "stage_1" / "model.safetensors", mar)
    assert f"delete {tmp_path / 'stage_1'} to repeat" in failing([*flags, "--resume"], capsys)
    shutil.copy(done / "stage_mar" / "model.safetensors", mar)
    mar.parent.rename(tmp_path / "away")
    assert "would undo the one to come" in failing([*BASE, *STEPS, "--resume", "--out", tmp_path], capsys)
    (tmp_path / "away").rename(mar.parent)
    for flag in ("stage_1.train_parts=mar.", "stage_1.size=32", "stage_1.own_positions=true", "optim.muon=false",
                 "optim.given=1"):
        assert flag.split("=")[0] in failing([*flags, "--resume", f"--{flag}"], capsys)
    assert "stage 1 has done 2 steps" in failing([*flags, "--resume", "--stage_1.steps=1"], capsys)
    assert "stage_1.steps 4 -> 20" in failing([*BASE, *flags[-4:], "--resume"], capsys)
    train.main([*flags, "--resume"])
    assert "stage 1 at step 2" in capsys.readouterr().out
    assert same(weights(tmp_path / "stage_1"), weights(done / "stage_1"))
    assert [e["step"] for e in entries(tmp_path) if "lr" in e] == [4]


@pytest.mark.parametrize("number, code, keep", [*zip(SIGNALS, (130, 143, 129), (1, 3, 1))])
def test_a_signal_saves_and_says_how_to_go_on(done, tmp_path, capsys, monkeypatch, unseen, number, code, keep):
    before = signal.getsignal(number)
    with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
        at_call(3, "set_lr", lambda: os.kill(os.getpid(), number), m)
        run_main(lambda: train.main(llm(tmp_path, "--keep", str(keep))))
    assert e.value.code == code and signal.getsignal(number) is before
    kept = sorted(p.name for p in (tmp_path / "stage_llm" / "state").iterdir())
    assert kept == ["step_0000002.safetensors", "step_0000003.safetensors"][-keep:]
    train.main(re.search("go on with: python train.py (.*)", capsys.readouterr().err)[1].split())
    assert same(weights(tmp_path / "stage_llm", "llm."), weights(done / "stage_llm", "llm."))


def test_output_that_nobody_reads_and_a_model_of_other_sizes_end_no_later_stage(tmp_path, capsys, monkeypatch, unseen):
    flags = [*BASE, "--out", str(tmp_path), "--stage_vae.steps=1", "--stage_llm.steps=1"]
    with monkeypatch.context() as m:
        for name in "stdout", "stderr":
            m.setattr(sys, name, SimpleNamespace(write=lambda text: os.fsync(10**6), flush=lambda: os.fsync(10**6)))
        train.main([*flags, "--stage", "vae", "--stage", "llm", "--vae.patch_size=2", "--stage_mar.size=8"])
    assert (tmp_path / "stage_llm" / "config.json").exists() and "--stage_mar.size 16, expected 8" in failing(flags, capsys)


def test_a_full_disk_costs_no_state_and_the_average_is_what_ships(tmp_path, capsys, monkeypatch, unseen):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with monkeypatch.context() as m:                              # from now on no file may be as large as a state
            at_call(3, "set_lr", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1])), m)
            err = failing(llm(tmp_path, "--optim.ema=0.35", steps=6), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    good = tmp_path / "stage_llm" / "state" / "step_0000002.safetensors"
    assert "step_0000004" in err and "free space" in err and f"last good state is {good}" in err and "--resume" in err
    assert latest_state(tmp_path / "stage_llm") == good and [*good.parent.iterdir()] == [good]
    state = load_state(good)
    train.main(llm(tmp_path, "--resume", "--optim.ema=0.35", "--optim.lr=0", "--optim.muon_lr=0", steps=6))
    assert "optim.lr 0.002 -> 0" in capsys.readouterr().out
    average, shipped = state["ema"], weights(tmp_path / "stage_llm")
    for step in range(2, 6):                                          # the weights stand still, their average goes on
        decay = min(0.35, (1 + step) / (10 + step))
        average = {n: decay * value + (1 - decay) * state["params"][n] for n, value in average.items()}
    assert all(torch.allclose(shipped[n], value, atol=1e-6) for n, value in average.items())
    assert not all(torch.allclose(state["params"][n], value, atol=1e-6) for n, value in average.items())


def test_a_loss_that_is_not_finite_is_skipped_and_in_the_end_stops_the_run(tmp_path, capsys, monkeypatch, unseen):
    real, step = train.stage_losses, []

    def losses(*args):
        step.append(1)
        for loss, logged in real(*args):
            yield loss * (float("inf") if len(step) in {2, 5, 6, 7, 8, 9} else 1), logged
    with monkeypatch.context() as m:
        m.setattr(train, "stage_losses", losses)
        err = failing(llm(tmp_path, steps=10), capsys)
    assert "5 steps in a row" in err and "step 9" in err
    assert [e["skipped"] for e in entries(tmp_path) if "skipped" in e] == [1, 2, 3, 4, 5, 6]
    named, advice = re.search(r"last good state is (\S+); go on with (.*) \(now", err).groups()
    before, state = load_state(named.replace("08", "06")), load_state(named)
    assert state["step"] == 8 and same(before["params"], state["params"])         # nothing moved in bad steps
    assert all(torch.isfinite(t).all() for part in ("params", "ema") for t in state[part].values())
    train.main(llm(tmp_path, *advice.split(), steps=10))
    assert "stage_llm.lr 1.0 -> 0.5" in capsys.readouterr().out
    assert entries(tmp_path)[-1]["lr"] == pytest.approx(2e-3 * 0.5 * 0.216)
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "stage_llm").values())


def test_a_signal_between_steps_ends_at_once_and_a_second_one_always():
    with Stop(), pytest.raises(SystemExit) as e:
        signal.raise_signal(signal.SIGINT)
    assert e.value.code == 130
    with Stop() as stop:
        stop.polite = True
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)                            # the same, by way of the process group
        assert stop.code == 130
        stop.when -= 2
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)


def test_the_end_tells_the_main_figures():
    figures = json.loads((Path(train.__file__).parent / "docs/results.json").read_text(encoding="utf-8"))["results"]
    names = [name for line in watch.MAIN_FIGURES.values() for name in line.values()]
    assert set(names) <= set(train.evaluate.flatten(figures))        # that is how an evaluation calls them
    assert watch.summary(dict(zip(names, (1, 0.991, 0.972, 0.998, 0.962, 0.99, 0.985, 1, 0.941, 0.96, 0.99)))) == [
        "drawn right: single_object 100%, two_object 99%, counting 97%, colors 100%, position 96%, color_attr 99%, "
        "overall 98%", "answered right: existence 100%, questions 94%, captions 96%",
        "given back right by the VAE: pictures 99%"]
    assert not watch.summary({}) and not watch.summary({"geneval/seen/overall": 0.3}, most=1)


def test_quick_shortens_what_is_not_given():
    run, full = train.parse_args(["--quick", "--stage_2.steps", "7", "--stage", "reca"])[0], train.parse_args([])[0]
    stages = run.config.stages
    assert stages["2"].steps == 7 and stages["3"].steps == int(full.config.stages["3"].steps / 4.8)
    assert {stage.size for name, stage in stages.items() if name != "llm"} == {2 * full.config.stages["3"].size // 3}
    assert all(stage.warmup <= stage.steps // 4 for name, stage in stages.items() if name != "2")
    assert str(run.out) == "out/nano-quick" and run.config.data.board == 2 and run.changed == {"stage_2.steps": "7"}
    assert set(stages) - set(full.config.stages) == {"reca"} and stages["vae"].kl_weight == 5e-3


def test_parts_need_a_board_that_fits_but_only_in_the_shapes_world():
    config = Config.preset("nano")
    config.data.board, config.data.mix = 4, ("my/shapes:1", "shapes2")
    check_sizes(config)
    config.data.mix = "my/shapes:1", " shapes:2"                 # typed with a blank behind the comma
    with pytest.raises(ValueError, match="6 tokens a side do not fit; pass --stage_3.parts 0"):
        check_sizes(config)


def test_the_classes_of_shapes_may_be_numbered_after_those_of_others(monkeypatch):
    monkeypatch.setattr(watch, "from_classes", lambda pipe, classes, size: classes)
    first, later = (watch.snapshot_of_shapes(None, ShapesData(Config.preset("nano").data), "mar", 48, n, True)[0]
                    for n in (0, 7))
    assert later == [label + 7 for label in first] and len(first) == 16


def test_pictures_of_ones_own_are_judged_by_their_psnr(tmp_path, monkeypatch):
    source = SimpleNamespace(name="photos", held=[{"row": n, "caption": ""} for n in (3, 3, 4)],       # two of one picture
                             pictures=lambda rows, size: np.full((len(rows), size, size, 3), 100, np.uint8))
    monkeypatch.setattr(watch, "through_vae", lambda pipe, array: [
        Image.fromarray(a) for a in np.concatenate([array, array + 1])])                # off by one everywhere
    figures, captions = watch.show_final(tmp_path, SimpleNamespace(size=16), [source])
    assert figures == {"photos/vae_psnr": pytest.approx(20 * np.log10(255)), "photos/held_out_pictures": 2}
    assert (tmp_path / "samples" / "final.png").exists() and captions == []
