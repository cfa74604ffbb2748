"""train.py at preset pico: whole runs, kills, resumes, mistakes.     python -m pytest -q tests/test_train.py"""
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import train
from nanoharmon.cli import run_main
from nanoharmon.harmon import Harmon
from nanoharmon.pipeline import Pipeline
from nanoharmon.training import batches as data
from nanoharmon.training.parallel import Stop, average_gradients, launch
from nanoharmon.training.recipe import STAGES, Config
from nanoharmon.weights import states
from nanoharmon.weights.states import latest_state, load_state
from nanoharmon.weights.safetensors import open_tensors

ROOT = Path(__file__).parents[1]
STEPS = [f"--stage_{s}.steps=3" for s in STAGES]
BASE = ["--preset", "pico", "--save-every", "2", "--sample-every", "0"]
ONE = [*BASE, "--procs", "1", *STEPS]
LONG = [*BASE, "--stage", "1", *STEPS[:3], "--stage_1.steps=7", *STEPS[4:]]     # one stage, worth interrupting


@pytest.fixture(autouse=True, scope="module")
def light():
    """One thread, a tokenizer from fewer texts, no final evaluation."""
    patch, threads = pytest.MonkeyPatch(), torch.get_num_threads()
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setattr(train, "training_texts", functools.partial(data.training_texts, n=60))
    patch.setattr(train.evaluate, "quick", lambda pipe, **_: {"geneval": 0.5, "n": 3})
    yield
    patch.undo()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def done(light, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("run")
    train.main([*ONE, "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def start(done, tmp_path_factory):
    """Makes folders in which vae, llm and mar are finished."""
    def make():
        out = tmp_path_factory.mktemp("start")
        for name in ("stage_vae", "stage_llm", "stage_mar", "cache"):
            shutil.copytree(done / name, out / name)
        shutil.copy(done / "train_config.json", out)
        return out
    return make


@pytest.fixture(scope="module")
def unbroken(start):
    """Weights of stage 1 after seven steps in one go."""
    out = start()
    train.main([*LONG, "--procs", "1", "--out", str(out)])
    return weights(out / "stage_1")


def weights(folder):
    return {k: v.clone() for k, v in open_tensors(folder).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def entries(out):
    return [json.loads(line, parse_constant=pytest.fail) for line in (out / "log.jsonl").read_text().splitlines()]


def failing(argv, capsys):
    """What a command says that must end with exit code 2 and one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        run_main(lambda: train.main([str(a) for a in argv]))
    *before, err, end = capsys.readouterr().err.split("\n")            # before: progress bars
    assert e.value.code == 2 and err.startswith("error: ") and end == "" and "Traceback" not in "".join(before)
    return err


# --- a whole run -------------------------------------------------------------------------------------------------------

def test_a_run_ends_with_a_model_that_draws_and_answers(done):
    pipe = Pipeline.load(done / "final")
    picture = pipe.draw(["a red circle"], steps=2, iters=2)[0]
    assert picture.size == (32, 32) and pipe.size == 32 and isinstance(pipe.answer(picture, "what is it?"), str)
    assert {t.dtype for t in weights(done / "final").values()} == {torch.float16}
    assert pipe.model.config.vae.scale != 1.0 and json.loads((done / "results.json").read_text())["geneval"] == 0.5


def test_a_run_leaves_a_log_pictures_and_nothing_else(done):
    losses = {e["stage"]: set(e) & {"mse", "text", "draw", "read"} for e in entries(done) if "lr" in e}
    assert losses == {"vae": {"mse"}, "llm": {"text"}, "mar": {"draw"}, **dict.fromkeys("123", {"draw", "read"})}
    assert {e["stage"]: len(e["answers"]) for e in entries(done) if "answers" in e} == {
        "vae": 0, "llm": 4, "mar": 0, "1": 4, "2": 4, "3": 4}
    assert sorted(p.name for p in (done / "samples").iterdir()) == [
        f"stage_{s}_000003.png" for s in sorted(set(STAGES) - {"llm"})]
    assert sorted(p.name for p in done.iterdir()) == sorted([
        "cache", "curves.png", "final", "log.jsonl", "results.json", "samples", "train_config.json",
        *(f"stage_{s}" for s in STAGES)])
    assert not [*done.glob("stage_*/state")]                          # a finished stage needs none


def test_each_stage_moves_its_own_parameters_only(done):
    torch.manual_seed(0)
    before, moved = Harmon(Config.preset("pico").model).state_dict(), {}
    for name in STAGES:
        after = weights(done / f"stage_{name}")
        moved[name] = {k.split(".")[0] for k in after if not torch.equal(after[k], before[k])}
        before = after
    everything = {"mar", "llm", "proj_in", "proj_out"}
    assert moved == {"vae": {"vae"}, "llm": {"llm"}, "mar": {"mar"}, "1": everything - {"llm"}, "2": everything,
                     "3": everything}


def test_a_second_call_has_nothing_to_do(done, capsys, monkeypatch):
    monkeypatch.setattr(train, "train_stage", lambda *_: pytest.fail("trains again"))
    train.main([*ONE, "--out", str(done)])
    assert "nothing to do" in capsys.readouterr().out
    train.main([*ONE, "--out", str(done), "--resume"])
    assert "nothing to resume" in capsys.readouterr().out


def test_the_plan_is_a_table_that_knows_what_is_done(done, capsys):
    train.main([*ONE, "--dry-run", "--out", str(done), "--stage_2.lr=0.5"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "|" in line]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in table[2:]] == list(STAGES) and {row[-1] for row in table[2:]} == {"finished"}
    assert table[6][2] == "16" and table[6][4:7] == ["8 : 4", "0.001 / 0.005", "3"]


# --- interrupted -------------------------------------------------------------------------------------------------------

KILLS_ITSELF = """
import os, signal, sys, train
save = train.save_state
def save_and_die(folder, step, state, **options):
    save(folder, step, state, **options)
    if step == 4:
        os.killpg(0, signal.SIGKILL)
train.save_state = save_and_die
train.main(sys.argv[1:])
"""


def test_a_killed_run_resumes_bit_for_bit(start, unbroken, capsys):
    out = start()
    flags = [*LONG, "--procs", "1", "--out", str(out)]
    dead = subprocess.run([sys.executable, "-c", KILLS_ITSELF, *flags], cwd=ROOT, start_new_session=True,
                          capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    err = failing(flags, capsys)                                      # hours of work must not be started over silently
    assert "interrupted" in err and "step 4" in err and "--resume" in err and "--out" in err
    err = failing([*flags, "--resume", "--stage_1.train_parts=mar."], capsys)
    assert "stage_1.train_parts" in err
    err = failing([f for f in flags if "stage_1" not in f] + ["--resume"], capsys)
    assert "stage_1.steps 7 -> 20" in err and "--stage_1.steps=7" in err
    train.main([*flags, "--resume"])
    assert "stage 1 at step 4" in capsys.readouterr().out
    assert same(weights(out / "stage_1"), unbroken)
    assert [e["step"] for e in entries(out) if "lr" in e] == [7]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(start, unbroken, capsys, monkeypatch, number, code):
    out, before, steps = start(), signal.getsignal(number), []

    def step_3(*_):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), number)
    flags = [*LONG, "--procs", "1", "--out", str(out)]
    with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
        m.setattr(train, "average_gradients", step_3)
        run_main(lambda: train.main(flags))
    assert e.value.code == code and signal.getsignal(number) is before
    assert "--resume" in capsys.readouterr().err and latest_state(out / "stage_1").name == "step_0000003"
    train.main([*flags, "--resume", "--stage_1.lr=1"])
    assert same(weights(out / "stage_1"), unbroken)


def test_what_is_changed_by_name_is_said_and_obeyed(start, capsys, monkeypatch):
    out = start()
    flags = [*LONG, "--procs", "1", "--out", str(out)]
    with monkeypatch.context() as m, pytest.raises(OSError, match="disk or quota is full.*--out"):
        real = os.fsync
        m.setattr(states.os, "fsync", lambda fd: real(fd) if not list(out.glob("stage_1/state/step_0000004.tmp*"))
                  else (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        train.main(flags)
    assert load_state(latest_state(out / "stage_1"))["step"] == 2     # the last good one is still there
    assert not list(out.glob("stage_1/state/*tmp*"))
    monkeypatch.setattr(train, "show", lambda *_: None)
    train.main([*flags, "--resume", "--optim.lr=0", "--optim.muon_lr=0"])
    assert "optim.lr 0.002 -> 0" in capsys.readouterr().out
    assert [e["step"] for e in entries(out) if "lr" in e] == [7]


def test_a_loss_that_is_not_finite_is_skipped_and_stops_the_run_in_the_end(start, capsys, monkeypatch):
    out, real, step = start(), train.stage_losses, []
    bad = {2, 5, 6, 7, 8, 9}

    def losses(*args):
        step.append(1)
        for label, loss, weight in real(*args):
            yield label, loss * (float("nan") if len(step) in bad else 1), weight
    monkeypatch.setattr(train, "stage_losses", losses)
    err = failing([*LONG, "--procs", "1", "--out", out, "--stage_1.steps=20"], capsys)
    assert "5 steps in a row" in err and "step 9" in err and "step_0000008" in err and "--stage_1.lr 0.5" in err
    assert [e["skipped"] for e in entries(out) if "skipped" in e] == [1, 2, 3, 4, 5, 6]
    good, later = (load_state(out / "stage_1" / "state" / f"step_000000{i}")["params"] for i in (6, 8))
    assert all(torch.isfinite(t).all() for t in later.values()) and same(good, later)


# --- two processes -----------------------------------------------------------------------------------------------------

def two(rank, world_size, store, stop, flags, outs):
    """In each of two processes: check the mean of gradients, then the same stage in two folders."""
    args, config = train.parse_args(flags)
    dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
    torch.manual_seed(0)
    net, x = torch.nn.Linear(5, 3), torch.randn(2, 4, 5)
    params = dict(net.named_parameters())
    single = [torch.autograd.grad(net(part).square().mean(), params.values()) for part in x]
    net(x[rank]).square().mean().backward()
    average_gradients(params, world_size)
    for p, a, b in zip(params.values(), *single):
        assert torch.allclose(p.grad, (a + b) / 2, atol=1e-7)
    dist.destroy_process_group()
    args.device, args.command = "cpu", flags
    for i, out in enumerate(outs):
        args.out, args.resume = out, i == 1
        train.worker(rank, world_size, f"{store}{i}", stop, train.parse_args(flags)[1], args)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=120):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_two_processes_end_with_their_parent_and_resume_bit_for_bit(start, unbroken):
    killed, whole = start(), start()
    flags = [*LONG, "--stage_1.steps=30", "--procs", "2", "--optim.shards", "2"]
    parent = subprocess.Popen([sys.executable, "train.py", *flags, "--out", str(killed)], cwd=ROOT,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: latest_state(killed / "stage_1") or parent.poll() is not None)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    finally:
        parent.kill()                                                 # no handler runs: the children are on their own
        parent.wait()
    assert len(children) >= 2
    wait_for(lambda: not any(alive(pid) for pid in children), 30)
    assert not (killed / "stage_1" / "config.json").exists() and not list(killed.glob(".*"))
    launch(two, 2, [*flags, "--save-every", "0"], (str(whole), str(killed)))
    assert same(weights(whole / "stage_1"), weights(killed / "stage_1"))


def fails_on_rank_1(rank, world_size, store, stop):
    dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
    if rank == 1:
        raise ValueError("the reason")
    dist.barrier()


def test_an_error_of_any_process_is_raised_in_the_first():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="^the reason$"):
        launch(fails_on_rank_1, 2)
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


def waits(rank, world_size, store, stop, path, polite):
    stop.polite = polite
    Path(path).write_text("ready")
    while not stop.code:
        time.sleep(0.01)
    Path(path).write_text(f"saved {stop.code}")
    sys.exit(stop.code)


def test_a_signal_to_the_parent_is_passed_on(tmp_path):
    path = tmp_path / "file"
    def terminate():
        wait_for(path.exists)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=terminate).start()
    with pytest.raises(SystemExit) as e:
        launch(waits, 1, str(path), True)
    assert e.value.code == 143 and path.read_text() == "saved 143"


def test_a_signal_between_steps_ends_at_once_and_a_second_one_always():
    with Stop() as stop, pytest.raises(SystemExit) as e:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert e.value.code == 130
    with Stop() as stop:
        stop.polite = True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)                           # the same, by way of the process group
        assert stop.code == 130
        stop.when -= 2
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)


# --- mistakes ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, words", [
    (["--data.scenes=100"], ["data.scenes 200 -> 100", "--out"]), (["--vae.ch=64"], ["vae.ch 32 -> 64"]),
    (["--preset=nano"], ["preset pico -> nano"]), (["--quick"], ["data.scenes 200 -> 66"])])
def test_a_folder_of_another_recipe_is_refused(start, capsys, flags, words):
    out = start()
    err = failing([*ONE, "--out", out, *flags], capsys)
    assert all(word in err for word in words), err


def test_help_lists_all_flags_with_the_values_of_the_preset(capsys):
    with pytest.raises(SystemExit) as e:
        train.main(["--preset", "pico", "--help"])
    text = capsys.readouterr().out
    assert e.value.code == 0 and "--resume" in text and "--stage_2.steps 20\n" in text and "--data.scenes 200\n" in text


def test_quick_shortens_what_is_not_given():
    args, config = train.parse_args(["--quick", "--stage_2.steps", "7"])
    full = train.parse_args([])[1]
    assert config.stages["2"].steps == 7 and config.stages["3"].steps == full.stages["3"].steps // 4
    assert {config.stages[name].size for name in ("vae", "mar", "1", "2", "3")} == {full.stages["2"].size}
    config.optim.shards = 2
    train.check(config, 2)                                          # all of it can be trained
    assert args.out == "out/nano-quick"
    assert [train.parse_args(flags)[0].out for flags in ([], ["--preset", "pico"])] == ["out/nano", "out/pico"]


def test_fine_tuning_starts_from_a_directory_and_trains_only_the_named_parts(done, tmp_path):
    train.main([*BASE, "--procs", "1", "--init", str(done / "stage_2"), "--stage", "2", "--stage_2.steps=2",
                "--train-parts", "mar.decoder,proj_out", "--optim.checkpointing", "true", "--out", str(tmp_path)])
    before, after = weights(done / "stage_2"), weights(tmp_path / "stage_2")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("mar.decoder", "proj_out")) for name in moved)
    assert not (tmp_path / "stage_vae").exists()                     # given stages are not trained
