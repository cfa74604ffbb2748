"""A training run: what was asked for, where it goes, and which of its processes this one is."""
import hashlib
import json
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from ..cli import in_words
from ..files import explained
from ..weights.states import latest_state, save_state
from .parallel import Stop
from .recipe import Config


@dataclass
class Run:
    """Made from the command line by train.py; each process has its own copy, with its rank."""
    config: Config
    out: Path                                                    # everything is written there
    preset: str
    command: list                                                # the flags as typed
    changed: dict                                                # {"stage_2.lr": "0.5"}: fields that flags changed
    given: dict                                                  # {"init", "vae", "llm", "mar": path or None}
    only: tuple                                                  # stages named by --stage; () = all
    resume: bool
    save_every: int
    keep: int
    sample_every: int
    device: torch.device
    compile: bool = False                                        # torch.compile the model's blocks
    rank: int = 0
    world_size: int = 1
    stop: Stop | None = None                                     # what a signal has asked for
    bar: tqdm | None = None                                      # of the stage that is being trained
    start: float = field(default_factory=time.time)
    logged: tuple = (0.0, 0)                                     # when losses were logged last, and after which step
    skipped: int = 0                                             # steps of this stage without a finite gradient

    def __post_init__(self):
        if self.config.optim.fsdp and self.amp is torch.float16:
            raise ValueError("--optim.fsdp true needs GPUs that compute in bfloat16; pass --optim.fsdp false")

    @property
    def amp(self):
        """The dtype of autocast, None = float32: on CPU, bfloat16 took half as long again (docs/LOG.md)."""
        if self.device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16

    def autocast(self):
        if not self.amp:
            return nullcontext()
        # a cache of weights would hold all that FSDP has gathered
        return torch.autocast(self.device.type, self.amp, cache_enabled=not self.config.optim.fsdp)

    @property
    def is_main(self):
        return self.rank == 0

    @property
    def takes_part(self):
        """In saving and drawing: the first process; all of them where blocks are sharded, to gather the weights."""
        return self.is_main or self.config.optim.fsdp

    @property
    def given_stages(self):
        """The stages whose result is given by a file: --vae, --llm, --mar, or all three by --init."""
        return [name for name in ("vae", "llm", "mar") if self.given[name] or self.given["init"]]

    @property
    def given_files(self):
        """`given` with absolute paths, which mean the same in any folder."""
        return {name: path and str(Path(path).absolute()) for name, path in self.given.items()}

    @property
    def given_content(self):
        """A hash of each of the `given` files: those of the same name may be others later."""
        return {name: sampled_hash(Path(path)) if path and Path(path).exists() else None
                for name, path in self.given.items()}

    @property
    def given_parts(self):
        """What the names of given weights begin with."""
        parts = "vae", "llm", "mar", "proj_in", "proj_out"
        return tuple(f"{part}." for part in parts if self.given["init"] or self.given.get(part))

    def shows(self, step):
        """Whether sample pictures are due, and this process helps to draw them."""
        return bool(self.takes_part and self.sample_every and step % self.sample_every == 0)

    def wait(self):
        """Block until every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def say(self, *lines):
        """Print, in the first process."""
        for line in lines if self.is_main else ():
            print(line)

    def steps(self, name, first):
        """The steps of stage `name` from `first` on, with a progress bar in the first process."""
        steps = self.config.stages[name].steps
        self.bar = tqdm(range(first, steps), initial=first, total=steps, desc=f"{name:>5}", disable=not self.is_main,
                        mininterval=1.0, dynamic_ncols=True)
        self.logged, self.skipped = (time.time(), first), 0
        return self.bar

    def log_means(self, name, step, means, **values):
        """Means of losses since the last call, {label: mean}, into the log and behind the progress bar."""
        (then, before), stage = self.logged, self.config.stages[name]
        speed = (step - before) * (stage.batch + stage.understanding_batch) / max(1e-3, time.time() - then)
        self.log(stage=name, step=step, **values, images_per_s=round(speed, 1),
                 **{label: round(mean, 5) for label, mean in means.items()})
        self.bar.set_postfix_str(" ".join(f"{k} {v:.4f}" for k, v in means.items()) + f" {speed:.0f} img/s")
        self.logged = time.time(), step

    def end_line(self):
        """Close the progress bar, so that what is written next has a line of its own."""
        if self.bar is not None:
            self.bar.close()

    def log(self, **values):
        """One line of OUT/log.jsonl."""
        finite = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}    # JSON has no NaN
        path = self.out / "log.jsonl"
        if self.is_main:
            with explained(path), open(path, "a", encoding="utf-8") as f:
                f.write(json.dumps({"time": round(time.time() - self.start, 1), **finite}) + "\n")

    def last_good(self, name):
        """Where stage `name` goes on after an error."""
        return latest_state(self.out / f"stage_{name}") or "that of the stage before"

    def skip(self, name, step, give_up):
        """Note a step without a finite gradient; several in a row end the run."""
        self.skipped += 1
        self.log(stage=name, step=step, skipped=self.skipped)
        if give_up:
            lr = self.config.stages[name].lr
            raise ValueError(f"stage {name}: no finite gradient for 5 steps in a row, up to step {step}; the last "
                             f"good state is {self.last_good(name)}; go on with --resume "
                             f"--stage_{name}.lr {lr / 2:g} (now {lr:g})")

    def save_if_due(self, state, name, step):
        """Save a state every `save_every` steps, and when a signal asks to stop: then end the process."""
        due = bool(self.stop.code or self.save_every and step % self.save_every == 0)
        if self.config.optim.fsdp:           # all gather what rank 0 writes; it decides, for Ctrl-C reaches it alone
            answer = torch.tensor(float(due), device=self.device)
            dist.broadcast(answer, 0)
            due = bool(answer)
        if not (due and self.takes_part):
            return
        contents = state.contents(self, step)
        if not self.is_main:
            return
        try:
            save_state(self.out / f"stage_{name}", step, contents, keep=self.keep)
        except OSError as e:
            raise OSError(f"{in_words(e)}; the last good state is {self.last_good(name)}, go on from there with "
                          f"--resume") from e
        if self.stop.code:
            sys.exit(self.stop.code)


def sampled_hash(path):
    """A hash of the weights in a file or directory: of their sizes and of 64 places in each, for they may be large."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with open(file, "rb") as f:
            for k in range(64):
                f.seek(size * k // 64)
                digest.update(f.read(4096))
    return digest.hexdigest()[:16]
