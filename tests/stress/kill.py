"""Kill a training at random moments, resume it each time, and compare its end with an unbroken run, bit for bit.
`python tests/stress/kill.py`: 50 kills with one process and 50 with two; --help.

A victim is what `python train.py --preset pico` is, all stages, a state written after every step. It runs in a process
group of its own, and kill -9 goes to the whole group. Some kills come at chosen moments: between a finished temporary
file and its rename; and with two processes, one of them dies alone: the other must end at once, with one line that
says how to resume. After every kill nothing that was saved may be lost.

Simplified: victims are forked from this process; the tokenizer learns from few texts; no pictures, no evaluation."""
import argparse
import functools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import torch._dynamo                # noqa: E402, F401: the first optimizer would import it, in every victim anew
import train                                                                    # noqa: E402
from nanoharmon.training import resume, run                                     # noqa: E402
from nanoharmon.training.recipe import STAGES                                   # noqa: E402
from nanoharmon.world.source import training_texts                              # noqa: E402

# (function of os, part of the path): the group dies when a victim is about to call it
CHOSEN = (("replace", "step_0000002"), ("unlink", "step_0000001"), ("replace", "/model.safetensors"),
          ("replace", "/config.json"), ("rename", ".part.npy"))
FORK = multiprocessing.get_context("fork")

phase = FORK.RawArray("c", 100)             # what the main process is doing
saved = FORK.RawValue("q")                  # steps of the present stage that are saved
pids = FORK.RawArray("q", 8)                # of the processes, by rank


def during(stage, what, function):
    """`function`, with `phase` saying so while it runs in the main process. stage: its name from the arguments."""
    def wrapped(*args, **options):
        if os.getpid() != pids[0]:
            return function(*args, **options)
        before, phase.value = phase.value, f"stage {stage(*args)}: {what}".encode()
        function(*args, **options)
        phase.value = before
    return wrapped


def observe():
    """Make train.py say what it does; a light tokenizer, no pictures, no evaluation, processes by fork."""
    real_train, real_stage, save = train.train, train.train_stage, run.save_state

    def begin(this):
        pids[this.rank] = os.getpid()
        return real_train(this)

    def stage_and_forget(*args):
        real_stage(*args)
        if os.getpid() == pids[0]:               # before the next stage is named: this one's steps are not that one's
            saved.value = 0

    def save_and_tell(folder, step, state, **options):
        save(folder, step, state, **options)
        saved.value = step
    train.train = begin
    train.train_stage = during(lambda run, name, *_: name, "training", stage_and_forget)
    run.save_state = during(lambda folder, *_: folder.name[6:], "writing a state", save_and_tell)
    train.show = lambda *_: None
    resume.training_texts = functools.partial(training_texts, n=60)
    train.evaluate.quick = lambda pipe, **_: {"geneval": 0.5}
    multiprocessing.get_context = lambda kind: FORK


class Victim:
    """A training in its own process group. chosen: one of CHOSEN, where it is to die."""

    def __init__(self, flags, log, chosen=None):
        self.flags, self.log, self.chosen = flags, log, chosen
        phase.value, saved.value, pids[:] = b"", 0, [0] * len(pids)
        self.alive, self.theirs = os.pipe()                  # read to its end: the last of the group is gone
        self.process = FORK.Process(target=self.run)
        self.process.start()
        os.close(self.theirs)

    def run(self):
        os.setsid()
        os.close(self.alive)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        if self.chosen:
            real, (name, part) = getattr(os, self.chosen[0]), self.chosen

            def dying(path, *rest, **options):
                if part in str(path):
                    os.killpg(0, signal.SIGKILL)
                return real(path, *rest, **options)
            setattr(os, name, dying)
        phase.value = b"starting"
        train.run_main(lambda: train.main(self.flags))

    def lives(self, seconds):
        """Whether it still runs after some seconds, in its own group."""
        self.process.join(seconds)
        while self.process.is_alive() and not phase.value:
            time.sleep(0.001)
        return self.process.is_alive()

    def wait(self):
        """Until the whole group is gone. Returns the exit code."""
        self.process.join(600)
        assert not self.process.is_alive(), f"still there after 600 s, see {self.log}"
        os.read(self.alive, 1)
        os.close(self.alive)
        return self.process.exitcode


def results(out):
    """The bytes of all files in the folders of stages and in OUT/final."""
    return {str(p.relative_to(out)): p.read_bytes()
            for folder in ("stage_*", "final") for p in out.glob(f"{folder}/**/*") if p.is_file()}


def check_what_is_left(out, victim, chosen, procs):
    """What was saved before a kill is there after it; a process that was left alone said why it ended."""
    stage, (done, begun) = phase.value.decode().removeprefix("stage ").partition(":")[0], resume.progress(out)
    assert not saved.value or stage in done or begun.get(stage, 0) >= saved.value, (
        f"{out}: stage {stage} had saved step {saved.value}, found {begun}")
    if victim.process.exitcode != -signal.SIGKILL:
        said = victim.log.read_text(encoding="utf-8")
        last = said.strip().splitlines()[-1]
        assert last.startswith(f"error: process {chosen} of {procs} was killed by signal 9"), said
        assert "--resume" in last and "Traceback" not in said, said


def experiment(folder, n, procs, steps, stages, rng):
    """n kills or more of runs with `procs` processes. Returns {phase: kills}. Raises AssertionError."""
    def flags(out):
        return ["--preset", "pico", "--save-every", "1", "--sample-every", "0", "--procs", str(procs),
                "--out", str(out), *(f"--stage_{s}.steps={steps}" for s in STAGES),
                *(flag for s in (stages if set(stages) != set(STAGES) else ()) for flag in ("--stage", s))]
    log, kills, runs, out, start = folder / "log", Counter(), 0, None, time.time()
    assert Victim(flags(folder / "unbroken"), log).wait() == 0, log.read_text(encoding="utf-8")
    seconds, wanted = time.time() - start, results(folder / "unbroken")
    # chosen moments first in this order, spread among the random ones; a number: that process dies alone
    special = [CHOSEN[0], *range(procs if procs > 1 else 0)[::-1], *CHOSEN[1:4 + (stages == STAGES)]][:1 + n // 2]
    every = max(1, n // len(special))
    while True:
        if out is None:
            runs, out = runs + 1, folder / f"run_{runs}"
        more = kills.total() < n or special
        chosen = special[0] if special and kills.total() % every == 0 else None
        resumed = ["--resume"] * (out / "train_config.json").exists()
        victim, how = Victim([*flags(out), *resumed], log, chosen if isinstance(chosen, tuple) else None), ""
        if isinstance(chosen, tuple):                        # dies by itself, if it comes to that place
            how = f", before os.{chosen[0]} of {chosen[1]}"
        elif more and victim.lives(rng.random() * seconds / 2):
            if chosen is not None and pids[chosen]:
                with suppress(ProcessLookupError):           # it had nothing more to do
                    os.kill(pids[chosen], signal.SIGKILL)
                how = f", process {chosen} alone"
            else:
                os.killpg(victim.process.pid, signal.SIGKILL)
        if victim.wait() == 0:
            assert results(out) == wanted, f"{out} is not what the unbroken run wrote"
            out = None
            if not more:
                break
        else:
            check_what_is_left(out, victim, chosen, procs)
            kills[phase.value.decode() + how] += 1
            special = special[bool(how):]                    # else it has not happened: next time
    print(f"{kills.total()} kills in {runs} runs: all {len(wanted)} files are those of the unbroken one, bit for bit")
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
        print("\n".join(f"{count:4d}  {words}" for words, count in sorted(kills.items())))


if __name__ == "__main__":
    main()
