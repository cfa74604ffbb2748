"""What an output folder holds, and how a training goes on from there: finished stages, interrupted ones, other flags.

Nothing is guessed: what would silently mix two recipes is an error that names the settings, the rest is printed.

    OUT/train_config.json      the flags and the whole config of the last start
    OUT/stage_NAME/            the model after a finished stage, a checkpoint directory
    OUT/stage_NAME/state/      of an interrupted one: weights, their average, optimizers (weights/states.py)
    OUT/cache/                 the user's pictures, decoded, and the latents of all pictures
"""
import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from ..cli import first_of, typed
from ..files import advising, check_folder, read_json, write_json
from ..pipeline import Pipeline
from ..tokenizer import Tokenizer
from ..weights.checkpoint import open_checkpoint
from ..weights.convert import Assembly, start_from
from ..weights.states import latest_state, load_state, step_of, versions
from ..words import training_words
from ..world.source import training_texts
from .imports import check_sources, find_sources, import_sources, known_folders
from .optim import EMA, make_optimizers, select
from .recipe import ALL_STAGES, JOINT_STAGES, STAGES, check_class_size, check_sizes, parse_mix
from .run import sampled_hash
from .sharding import gathered, like, shard_blocks

# --- the state of a stage ---------------------------------------------------------------------------------------------

@dataclass
class TrainingState:
    """All that changes while a stage is trained, and therefore all that is saved of it."""
    params: dict                                                 # {name: trained parameter}
    optimizers: list
    ema: EMA                                                     # the parameters' moving average
    scaler: torch.amp.GradScaler                                 # does nothing but in float16
    base: str = ""                                               # a hash of the stage that it goes on from, see base_of

    @classmethod
    def of(cls, run, name, model):
        """The state of stage `name` before its first step."""
        params = trained(run, name, model)
        if run.config.optim.fsdp:
            params = shard_blocks(model, run.world_size, run.device.type)
        scaler = torch.amp.GradScaler(run.device.type, enabled=run.amp is torch.float16)
        optimizers = make_optimizers(params, run.config.optim, run.given_parts)
        return cls(params, optimizers, EMA(params, run.config.optim.ema), scaler, base_of(run, name))

    def contents(self, run, step):
        """A nest of tensors and plain values, for save_state. With sharded blocks, all processes must call it."""
        state = {"step": step, "params": {n: p.detach() for n, p in self.params.items()}, "ema": self.ema.shadow,
                 "optimizers": [o.state_dict() for o in self.optimizers], "scaler": self.scaler.state_dict(),
                 "made_by": made_by(run), "base": self.base}
        return gathered(state, run.is_main)

    def restore(self, run, path):
        """Put everything back as it was when the state in `path` was saved. Returns the number of steps done."""
        state = load_state(path)
        if state.get("base", self.base) != self.base:
            raise ValueError(f"{path.parents[1]} went on from another stage than {run.out} has now, and would undo "
                             f"that one; delete {path.parents[1]} to repeat that stage")
        with torch.no_grad():
            for n, p in self.params.items():
                p.copy_(like(state["params"][n], p))
        self.ema.shadow = {n: like(t.to(run.device), self.params[n]) for n, t in state["ema"].items()}
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            held = [p for group in optimizer.param_groups for p in group["params"]]
            for i, moments in saved["state"].items():
                saved["state"][i] = {k: like(v, held[i]) for k, v in moments.items()}
            options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, ours in zip(optimizer.param_groups, options):
                group.update(ours)                               # rates and decay: as told now, not as saved
        self.scaler.load_state_dict(state.get("scaler") or self.scaler.state_dict())
        now = made_by(run)
        changed = [f"{k} {v} -> {now[k]}" for k, v in state.get("made_by", {}).items() if now.get(k, v) != v]
        if changed:
            run.say(f"note: since {path} was written: {', '.join(changed)}; the batches are the same, but results may "
                    f"differ in their last bits")
        return state["step"]


def trained(run, name, model):
    """{name: parameter} that stage `name` trains; all others are frozen."""
    with advising(f"change --stage_{name}.train_parts"):
        return select(model, run.config.stages[name].train_parts)


def base_of(run, name):
    """A hash of the stage that stage `name` trains further; "" of the first three, with parameters of their own."""
    before = [s for s in progress(run.out)[0] if s in run.config.stages]
    return sampled_hash(run.out / f"stage_{before[-1]}") if before and name in JOINT_STAGES else ""


def made_by(run):
    """What decides the last bits of a result."""
    return {"processes": run.world_size, "device": run.device.type, "compiled": run.compile,
            **(versions() if run.is_main else {})}


# --- what there is ----------------------------------------------------------------------------------------------------

def progress(out):
    """The finished stages, and {stage: step of its last state} of the interrupted ones."""
    done = [s for s in ALL_STAGES if (out / f"stage_{s}" / "config.json").exists()]
    states = {s: latest_state(out / f"stage_{s}") for s in ALL_STAGES if s not in done}
    return done, {s: step_of(path) for s, path in states.items() if path}


def to_do(run):
    """The stages that this start trains, in their order."""
    finished, _ = progress(run.out)
    return [s for s in ALL_STAGES if s not in finished and s not in run.given_stages and s in (run.only or STAGES)]


def begin(run, sources):
    """Pipeline of the last finished stage; of a new run, with given or random weights. It decides run.config.model."""
    finished = [s for s in progress(run.out)[0] if s in run.config.stages]       # reca: only if this start names it
    for name in finished if run.is_main else ():         # left by a kill between the end of a stage and its tidying
        shutil.rmtree(run.out / f"stage_{name}" / "state", ignore_errors=True)
    if finished:
        folder = run.out / f"stage_{finished[-1]}"
        with advising_about(folder):
            pipe = Pipeline.load(folder, run.device)
    else:
        model, tokenizer, report = start_from(run.config.model, **run.given, device=run.device,
                                              flags=flags_of_model(run))
        run.say(*report if run.given_stages else ())
        texts = (training_texts(run.config.data) if s.name == "shapes" else s.corpus() for s in sources)
        tokenizer = tokenizer or Tokenizer.train(chain.from_iterable(texts), model.config.llm.vocab_size)
        pipe = Pipeline(model, tokenizer, {})
        if run.is_main and "llm" not in run.given_stages:        # a given LLM knows more words
            pipe.meta["words"] = training_words(run.config, sources)
    run.config.model = pipe.model.config
    return pipe


def flags_of_model(run):
    """The flags of this start that change the model (--model.x, --vae.x, --mar.x, --llm.x), as typed."""
    return [f"--{name}={text}" for name, text in run.changed.items()
            if name.startswith(("model.", "vae.", "mar.", "llm."))]


def count_shards(config, out, world_size):
    """Into how many parts batches are cut: as told, as in the run that OUT holds, or one per process. An interrupted
    stage keeps what it began with; between stages, a number that does not suit the processes is given up."""
    begun_with = 0
    # no run, or one that check_settings will complain about
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        begun_with = int(read_json(out / "train_config.json")["optim"]["shards"])
        if begun_with % world_size and not progress(out)[1]:
            begun_with = 0
    return config.optim.shards or begun_with or world_size


# --- what may go on ---------------------------------------------------------------------------------------------------

SHAPING = "size", "train_parts", "muon", "given", "fsdp", "own_positions"     # what decides what a state holds


def flat(values):
    """{"stage_2.lr": 1.0, ...} from the dict of a Config."""
    parts = {"model": values["model"], **values["model"], "optim": values["optim"], "data": values["data"],
             **{f"stage_{name}": stage for name, stage in values["stages"].items()}}
    return {f"{part}.{field}": value for part, fields in parts.items() if isinstance(fields, dict)
            for field, value in fields.items() if not isinstance(value, dict)}


def check_settings(run, begun, sources):
    """Compare with the run that OUT holds. What would mix two recipes silently is an error, the rest is printed.

    sources: those of the user's files now, as import_source would put them into the cache.
    """
    path = run.out / "train_config.json"
    if not path.exists():
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        old, new = flat(stored), flat(json.loads(json.dumps(asdict(run.config))))
        command = typed(stored.get("command") or [])
        moved = {"data.mix", "data.images"} if same_content(run, old["data.mix"], sources) else set()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f"{path}: not what train.py writes ({e}); delete it, or pass another --out") from None
    changed, wrong = {k: f"{k} {old[k]} -> {new[k]}" for k in new if k in old and old[k] != new[k]}, []
    if stored.get("preset", run.preset) != run.preset:
        wrong = [f"preset {stored['preset']} -> {run.preset}"]
    for key in changed:
        part, _, field = key.partition(".")
        if part == "data":                                       # the cached latents are of those pictures
            fixed = key not in moved
        elif part in ("model", "vae", "mar", "llm"):             # finished stages decide: a flag would be ignored
            fixed = begun or key in run.changed
        else:                                                    # an interrupted stage: only what is asked for by name
            mine = part == "optim" or part.removeprefix("stage_") in begun
            fixed = begun and mine and (key not in run.changed or field in SHAPING)
        if fixed:
            wrong.append(changed[key])
    if wrong:
        settings = first_of(wrong, 8)
        flags = "the flags of its start" + (f" ({command})" if command else "")
        raise ValueError(f"{run.out} holds a run with other settings: {settings}; repeat {flags}, or pass another "
                         f"--out")
    if changed:
        run.say(f"note: changed since the last start: {', '.join(changed.values())}; finished stages, and settings of "
                f"the model with them, stay as they are")


def same_content(run, mix, sources):
    """Whether an earlier --mix meant the same as that of now, whatever the names and places of its files."""
    before, now = known_folders(run.out), {source.name: source.folder for source in sources}
    olds, news = parse_mix(mix), parse_mix(run.config.data.mix)
    return len(olds) == len(news) and all(
        a == b and (before[old] == now.get(new) if old in before else old == new)
        for (old, a), (new, b) in zip(olds, news))


def check_parts(run):
    """Complain about given files that do not fit, and train_parts that name nothing, before anything is written.

    Returns the model on the meta device, and lines that say where its parts come from, if any are given.
    """
    assembly = Assembly(run.config.model, **run.given, flags=flags_of_model(run))
    assembly.load_tokenizer()
    check_sizes(replace(run.config, model=assembly.config))
    for name in to_do(run):
        trained(run, name, assembly.model)
    return assembly.model, assembly.report if run.given_stages else []


def advising_about(stage):
    """An error inside says what helps when the folder of a finished stage cannot be read."""
    return advising(f"put back {stage}, or delete it to repeat that stage")


def check(run):
    """Decide with the user's flags what to do about an earlier run in OUT. Whatever is wrong is said before anything is
    written; --dry-run ends here.

    Returns the sources of the user's files, the model on the meta device, and lines that say where its parts come from.
    """
    out, todo, (finished, begun) = run.out, to_do(run), progress(run.out)
    if run.resume and not (finished or begun or (out / "train_config.json").exists()):
        raise ValueError(f"nothing to resume in {out}, expected the folder of a run; change --out, or drop --resume to "
                         f"begin one")
    check_folder(out, "--out")
    begun = {s: step for s, step in begun.items() if s in (run.only or STAGES)}
    done = finished + [s for s in run.given_stages if s not in finished]
    if not finished:                                             # else they say what the model is
        model, report = check_parts(run)
    if begun and not run.resume:
        name, step = next(iter(begun.items()))
        raise ValueError(f"stage {name} in {out} was interrupted, its last state is of step {step}; pass --resume "
                         f"to go on, or another --out to start anew (or delete {out / f'stage_{name}'})")
    if later := [s for s in todo[1:] if s in begun and s in JOINT_STAGES]:
        raise ValueError(f"stage {later[0]} in {out} went on from another stage {todo[0]}, and would undo the one to "
                         f"come; delete {out / f'stage_{later[0]}'} to repeat both, or put back that stage {todo[0]}")
    if "reca" in todo and "3" not in [*finished, *todo] and not run.given["init"]:
        raise ValueError(f"stage reca goes on with a trained Harmon, and stage 3 in {out} is not finished; run --stage "
                         f"3 first, or give one with --init")
    if any(s not in ("vae", "llm") for s in todo) and "vae" not in [*done, *todo]:
        raise ValueError(f"stage {todo[0]} needs the latents of a trained VAE, {out} has none; run --stage vae first")
    if finished and todo and ALL_STAGES.index(todo[0]) < ALL_STAGES.index(finished[-1]):
        raise ValueError(f"stage {todo[0]} comes before stage {finished[-1]}, which is finished and would not know it; "
                         f"delete {out / f'stage_{finished[-1]}'} to repeat both, or pass another --out")
    names = [name for name, _ in parse_mix(run.config.data.mix) if name != "shapes"]
    if out.resolve() in [Path(name).resolve() for name in names] and not (finished or begun):
        raise ValueError(f"{out} is a folder of pictures, to which those of the training would be added; pass another "
                         f"--out")
    sources = find_sources(run.config, out, has_begun=bool(finished or begun))
    if done or begun:
        check_settings(run, begun, sources)
        if short := [s for s, step in begun.items() if step > run.config.stages[s].steps]:
            raise ValueError(f"stage {short[0]} has done {begun[short[0]]} steps; pass more --stage_{short[0]}.steps")
        if finished:
            folder = out / f"stage_{finished[-1]}"
            with advising_about(folder):                         # now, and without reading all of it
                model, report = open_checkpoint(folder)[0], []
        run.say(f"{out}: finished or given: {', '.join(done) or 'nothing'}" +
                "".join(f"; going on with stage {s} at step {step}" for s, step in begun.items()))
    if run.resume and not begun:
        run.say(f"nothing to resume in {out}: {f'stage {todo[0]} starts' if todo else 'no stage is left'}")
    config = replace(run.config, model=model.config)
    if finished:
        check_sizes(config, todo)
    if "mar" in todo:
        check_class_size(config)
    # a run that is past stage mar, or leaves it out, needs no classes
    may_come = "mar" in todo or "mar" not in done and not {*finished, *todo} & {*JOINT_STAGES}
    check_sources(config, out / "cache", todo, sources, may_come)
    return sources, model, report


def prepare(run, lock):
    """Check a start, import the user's pictures, and note what this start does.

    lock: FolderLock of OUT, taken before anything is written: a mistake must leave nothing behind.
    """
    lock.take(make=False)
    out, todo, (sources, _, _) = run.out, to_do(run), check(run)
    lock.take()
    import_sources(out / "cache", sources)
    path, command = out / "train_config.json", [flag for flag in run.command if flag != "--resume"]
    values = {"preset": run.preset, "command": command, "given": run.given_files,
              "given_content": run.given_content, **asdict(run.config)}
    with suppress(OSError, ValueError):                          # a start that trains nothing is not what made the run
        values = values if todo else read_json(path)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, {**values, "sources": {source.name: source.folder for source in sources}})
    except OSError as e:
        raise ValueError(f"cannot write in {out}: {e.strerror or e}; pass another --out") from None


def recall(run):
    """Complete run.given, the weights of --init, --vae, --llm and --mar, by what the run in OUT was given: a later
    start need not repeat the flags. -> notes; ValueError where it gives other files: stages are made of the first."""
    finished, begun = progress(run.out)
    stored, content = None, {}
    with suppress(OSError, ValueError, TypeError):               # check_settings says what is wrong
        values = read_json(run.out / "train_config.json")
        stored, content = values.get("given"), dict(values.get("given_content") or {})
    if not (finished or begun):
        return []
    for name, path in run.given.items():                         # as typed; of what is remembered, the stages have it
        if path and not Path(path).exists():
            raise ValueError(f"{path}: No such file or folder; change --{name}")
    if not isinstance(stored, dict):
        return []
    notes = []
    for name, now in run.given_files.items():
        then = stored.get(name)
        if now and now != then:
            raise ValueError(f"{run.out} holds a run that was given {f'--{name} {then}' if then else f'no --{name}'}, "
                             f"not {now}; drop --{name} to go on with it, or pass another --out")
        if then and not finished and not Path(then).exists():    # they are read from there until a stage is done
            raise ValueError(f"{then}: No such file or folder, and {run.out} was begun with it; put it back, or a link "
                             f"to it")
        if then and not finished and content.get(name) and content[name] != sampled_hash(Path(then)):
            raise ValueError(f"{then} holds other weights than when {run.out} was begun; put them back, or pass "
                             f"another --out")
        if then and not now:
            run.given[name] = then
            notes.append(f"note: {run.out} was given --{name} {then} at its start, and still is")
    return notes
