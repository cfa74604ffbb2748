"""Kill a training at random moments, resume it each time, and compare its end with an unbroken run, bit for bit.

    python tests/stress/kill.py                     50 kills with one process and 50 with two
    python tests/stress/kill.py --n 3 --procs 2 --steps 3 --stages llm

A victim is what `python train.py --preset pico` is, all stages, a state written after every step. It runs in a process
group of its own; kill -9 goes to the whole group, after a random number of changes of phase (a step, a write, ...) and
a random part of the next. Some kills come at chosen moments instead: between a finished temporary file and its rename;
and with two processes, one of them dies alone: the other must end at once, with one line that says how to resume.
After every kill nothing that was saved may be lost. It goes on until there were --n kills and every stage was hit by
a fifteenth of them. Printed: in which stage and phase they came.

Simplified: victims are forked from this process, because importing torch takes longer than what is tested here; the
tokenizer learns from few texts; sample pictures and the evaluation at the end are left out.
"""
import argparse
import functools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import torch._dynamo                # noqa: E402, F401: the first optimizer would import it, in every victim anew
import train                                                                    # noqa: E402
from nanoharmon.pipeline import Pipeline                                        # noqa: E402
from nanoharmon.training import resume, run, watch                              # noqa: E402
from nanoharmon.training.recipe import STAGES                                   # noqa: E402
from nanoharmon.world.source import training_texts                              # noqa: E402

# (function of os, part of the path): the group dies when a victim is about to call it
CHOSEN = (("rename", "step_0000002"), ("replace", "state.safetensors"), ("replace", "/model.safetensors"),
          ("replace", "/config.json"), ("rename", ".part.npy"))


# --- what victims tell ---

class Board:
    """Memory shared with the victims, which outlives them."""

    def __init__(self):
        self.changes = multiprocessing.RawValue("q")        # how often the phase changed
        self.saved = multiprocessing.RawValue("q")          # steps of this stage that are saved
        self.pids = multiprocessing.RawArray("q", 8)        # of the processes, by rank
        self.text, self.lengths = multiprocessing.RawArray("c", 100), {}       # lengths: seconds a phase took last time

    def clear(self):
        self.changes.value = self.saved.value = 0
        self.pids[:], self.text.value = [0] * 8, b""

    @property
    def phase(self):
        return self.text.value.decode()

    def tell(self, phase):
        self.text.value = phase.encode()
        self.changes.value += 1


board, is_main = Board(), True


def during(phase, function):
    """`function`, with the board saying so while it runs in the main process. phase: text, or made of the arguments."""
    @functools.wraps(function)
    def wrapped(*args, **options):
        before = board.phase
        if is_main:
            board.tell(phase(*args) if callable(phase) else phase)
        result = function(*args, **options)
        if is_main:
            board.tell(before)
        return result
    return wrapped


def observe():
    """Make train.py say what it does; a light tokenizer, no pictures, no evaluation, processes by fork."""
    real_train, real_stage, save = train.train, train.train_stage, run.save_state
    context = multiprocessing.get_context("fork")

    def begin(this):
        global is_main
        is_main = this.is_main                   # before anything is told: the other process may come here later
        board.pids[this.rank] = os.getpid()
        return during("loading", real_train)(this)

    def stage_and_forget(*args):
        real_stage(*args)
        if is_main:                              # before the next stage is named: this one's steps are not that one's
            board.saved.value = 0

    def save_and_tell(folder, step, state, **options):
        save(folder, step, state, **options)
        board.saved.value = step
    train.train = begin
    train.train_stage = during(lambda run, name, *_: f"stage {name}: training", stage_and_forget)
    train.set_lr = during(lambda *_: board.phase, train.set_lr)                  # once a step
    run.save_state = during(lambda folder, *_: f"stage {folder.name[6:]}: writing a state", save_and_tell)
    train.show = during(lambda run, name, *_: f"stage {name}: curves", train.show)
    train.load_latents = during("latents", train.load_latents)
    Pipeline.save = during(lambda pipe, path, *_: f"writing {Path(path).name}", Pipeline.save)
    resume.training_texts = functools.partial(training_texts, n=60)
    watch.snapshot = lambda *_: (None, [])
    train.evaluate.quick = lambda pipe, **_: {"geneval": 0.5}
    multiprocessing.get_context = lambda kind: context


# --- victims ---

class Victim:
    """A training in its own process group. log: where its output goes. chosen: one of CHOSEN, where it is to die."""

    def __init__(self, flags, log, chosen=None):
        board.clear()
        self.log, self.code = log, None
        self.alive, theirs = os.pipe()                       # read to its end: the last of the group is gone
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.close(self.alive)
            for stream in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC * (stream == 1) | os.O_APPEND), stream)
            code = 1
            try:
                if chosen:
                    die_at(*chosen)
                board.tell("starting")
                train.run_main(lambda: train.main(flags))
                code = 0
            except SystemExit as e:
                code = e.code
            except Exception:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.close(theirs)

    def ended(self):
        if self.code is None and (status := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.code = os.waitstatus_to_exitcode(status[1])
        return self.code is not None

    def wait(self, seconds=600):
        """Until the whole group is gone. Returns the exit code."""
        end = time.time() + seconds
        while not self.ended():
            assert time.time() < end, f"still there after {seconds} s, see {self.log}"
            time.sleep(0.001)
        os.read(self.alive, 1)
        os.close(self.alive)
        return self.code

    def kill(self):
        os.killpg(self.pid, signal.SIGKILL)

    def reach(self, rng, most):
        """Let it run for 1 to `most` changes of phase and a part of the next one. False if it ended before."""
        target, seen, moment, phase = rng.randint(1, most), 0, time.time(), ""
        while seen < target:
            if self.ended():
                return False
            if board.changes.value > seen:
                board.lengths[phase] = time.time() - moment
                seen, moment, phase = board.changes.value, time.time(), board.phase
            time.sleep(0.0003)
        time.sleep(rng.random() * board.lengths.get(phase, 0.01))
        return not self.ended()


def die_at(name, part):
    real = getattr(os, name)

    def dying(path, *rest, **options):
        if part in str(path):
            os.killpg(0, signal.SIGKILL)
        return real(path, *rest, **options)
    setattr(os, name, dying)


# --- the experiment ---

def results(out):
    """The bytes of all files in the folders of stages and in OUT/final."""
    return {str(p.relative_to(out)): p.read_bytes() for folder in ("stage_*", "final") for p in out.glob(f"{folder}/**/*")
            if p.is_file()}


def lose_nothing(out, phase, saved):
    """What was saved before a kill is there after it."""
    stage = phase.removeprefix("stage ").partition(":")[0]
    done, begun = resume.progress(out)
    assert not saved or stage not in STAGES or stage in done or begun.get(stage, 0) >= saved, (
        f"{out}: stage {stage} had saved step {saved}, found {begun}")


def experiment(folder, n, procs, steps, stages, rng):
    """n kills or more of runs with `procs` processes. Returns {phase: kills}. Raises AssertionError."""
    only = [flag for s in stages for flag in ("--stage", s)] if set(stages) != set(STAGES) else []

    def flags(out):
        return ["--preset", "pico", "--save-every", "1", "--sample-every", "0", "--procs", str(procs),
                "--out", str(out), *only, *(f"--stage_{s}.steps={steps}" for s in STAGES)]
    log, kills, runs, out = folder / "log", Counter(), 0, None
    start = time.time()
    unbroken = Victim(flags(folder / "unbroken"), log)
    assert unbroken.wait() == 0, f"{unbroken.code}: {log.read_text()}"
    wanted = results(folder / "unbroken")
    print(f"{procs} processes, {steps} steps a stage: unbroken in {time.time() - start:.1f} s, {len(wanted)} files")
    # chosen moments first in this order, spread among the random ones; a number: that process dies alone
    special = [CHOSEN[0], *range(procs if procs > 1 else 0)[::-1], *CHOSEN[1:4 + (stages == STAGES)]][:1 + n // 2]
    every = max(1, n // len(special))
    while True:
        if out is None:
            runs, out = runs + 1, folder / f"run_{runs}"
        hits = [sum(kills[phase] for phase in kills if phase.startswith(f"stage {s}:")) for s in stages]
        more = kills.total() < n or special or min(hits) < max(1, n // 15)
        chosen = special[0] if special and kills.total() % every == 0 else None
        victim, how = Victim([*flags(out), "--resume"], log, chosen if isinstance(chosen, tuple) else None), ""
        if isinstance(chosen, tuple):                        # dies by itself, if it comes to that place
            how = f", before os.{chosen[0]} of {chosen[1]}"
        elif more and victim.reach(rng, 12):
            if chosen is not None and board.pids[chosen]:
                with suppress(ProcessLookupError):           # it had nothing more to do
                    os.kill(board.pids[chosen], signal.SIGKILL)
                how = f", process {chosen} alone"
            else:
                victim.kill()
        if victim.wait() == 0:
            assert results(out) == wanted, f"{out} is not what the unbroken run wrote"
            out = None
            if not more:
                break
        else:
            if victim.code != -signal.SIGKILL:               # one process was killed: the other one says so
                said = log.read_text()
                assert "Traceback" not in said and "--resume" in said.strip().splitlines()[-1], said
                assert said.strip().splitlines()[-1].startswith(f"error: process {chosen} of {procs} was killed"), said
            lose_nothing(out, board.phase, board.saved.value)
            kills[board.phase + how] += 1
            if how:                                          # else it has not happened: next time
                special.remove(chosen)
    print(f"{kills.total()} kills in {runs} runs, {time.time() - start:.0f} s; after each run all {len(wanted)} "
             f"files are those of the unbroken one, bit for bit")
    return kills


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50, help="kills per number of processes (default 50)")
    parser.add_argument("--procs", type=int, nargs="+", default=[1, 2], help="numbers of processes (default 1 2)")
    parser.add_argument("--steps", type=int, default=8, help="of each stage, at least 2 (default 8)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="only these (default all)")
    args = parser.parse_args()
    observe()
    for procs in args.procs:
        with tempfile.TemporaryDirectory() as folder:
            kills = experiment(Path(folder), args.n, procs, args.steps, args.stages, random.Random(0))
        for phase, count in sorted(kills.items()):
            print(f"{count:4d}  {phase}")


if __name__ == "__main__":
    main()
