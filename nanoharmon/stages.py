"""What train.py is going to do: the table of stages, what an earlier run has left, and what may go on from there."""
import json
import shlex
import shutil
from contextlib import contextmanager, suppress

import torch

from .checkpoint import latest_state, outline
from .cli import bar
from .config import STAGES, to_dict
from .convert import Plan, start_from
from .data import open_sources, parse_mix
from .files import write_json
from .folder import import_source
from .harmon import Harmon
from .limits import check_training
from .memory import measure
from .optim import select

# what each stage reads (nanoharmon/data.py)
READS = {"vae": "pictures", "llm": "texts only: descriptions, questions, answers", "mar": "pictures with class labels",
         "1": "prompts; captions, questions", "2": "prompts; captions, questions", "3": "prompts; captions, questions"}


def given(args):
    """The stages whose result is given by a file: --vae, --llm, --mar, or all three by --init."""
    return [name for name in ("vae", "llm", "mar") if getattr(args, name) or args.init]


def begin(config, args, device):
    """The model of a new run: (its config, model, tokenizer or None, report lines), given by files or random."""
    if not given(args):
        return config.model, Harmon(config.model).to(device), None, []
    return start_from(config.model, args.vae, args.llm, args.mar, args.init, device=device, flags=size_flags(args))


def size_flags(args):
    """Those of the flags that change sizes."""
    flags, rest = [], list(args.rest)
    while rest:                                                  # "--mar.x 1" and "--mar.x=1" alike
        flag = rest.pop(0)
        flag = flag if "=" in flag else f"{flag}={rest.pop(0)}"
        if flag.startswith(("--vae.", "--mar.", "--llm.")):
            flags.append(flag)
    return flags


def plan(config, out):
    """What --dry-run prints: the stages as a Markdown table."""
    with torch.device("meta"):
        model = Harmon(config.model)
    print(", ".join(f"{part} {sum(p.numel() for p in child.parameters()) / 1e6:.2f}M"
                    for part, child in model.named_children()) + " parameters\n")
    mix = parse_mix(config.data.mix)
    if mix != [("shapes", 1.0)]:
        print("data: " + ", ".join(f"{name} {weight / sum(w for _, w in mix):.1%}" for name, weight in mix) + "\n")
    done, begun = progress(out)
    rows = [("stage", "data", "px", "trained", "batch draw : read", "lr AdamW / Muon", "steps", "GB state + work", out)]
    for name, s in config.stages.items():
        size = sum(p.numel() for p in select(model, s.train_parts.split(",")).values()) / 1e6
        rate = f"{config.optim.lr * s.lr:g}" + f" / {config.optim.muon_lr * s.lr:g}" * config.optim.muon
        memory = "-" if name in done else "{:.2f} + {:.2f}".format(
            *measure(config, name, config.optim.shards or 1, config.optim.checkpointing))
        state = "finished" if name in done else f"at step {begun[name]}" if name in begun else "to do"
        trained = f"{s.train_parts.replace('.', '').replace(',', ', ')} ({size:.2f}M)"
        rows.append((name, READS[name], s.size or "-", trained, f"{s.draw_batch} : {s.read_batch}" if s.read_batch
                     else s.draw_batch, rate, s.steps, memory, state))
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * w for w in widths])
    for row in rows:
        print("| " + " | ".join(str(cell).ljust(w) for cell, w in zip(row, widths)) + " |")


def progress(out):
    """The finished stages, and {stage: step of its last state} of the interrupted ones."""
    done = [s for s in STAGES if (out / f"stage_{s}" / "config.json").exists()]
    states = {s: latest_state(out / f"stage_{s}") for s in STAGES if s not in done}
    return done, {s: int(path.name.removeprefix("step_").removesuffix(".old")) for s, path in states.items() if path}


def count_shards(config, out, world):
    """Into how many parts batches are cut: as told, as in the run that OUT holds, or one per process. An interrupted
    stage keeps what it began with; between stages, a number that does not suit the processes is given up."""
    begun_with = 0
    # no run, or one that check_same will complain about
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        begun_with = int(json.loads((out / "train_config.json").read_text())["optim"]["shards"])
        if begun_with % world and not progress(out)[1]:
            begun_with = 0
    return config.optim.shards or begun_with or world


def check(config, world, only=()):
    """Complain now, not after an hour of other stages. only: the stages that --stage names."""
    check_training(config)
    if config.optim.fsdp:
        for wrong, fix in ((world < 2, "several processes; start it with torchrun --nproc_per_node=2, or --procs 2"),
                           (config.optim.muon, "AdamW for all parameters; pass --optim.muon false"),
                           (len(only) != 1, "one stage per start; pass --stage with the one that is next")):
            if wrong:
                raise ValueError(f"--optim.fsdp true needs {fix}")
    stages, stride, shards = config.stages, config.model.vae.stride, config.optim.shards
    if shards % world:
        raise ValueError(f"--optim.shards {shards} cannot be shared by {world} processes, expected a multiple of "
                         f"{world}; pass another --procs (a stage keeps the shards it began with) or "
                         f"--optim.shards {world}")
    for name, stage in stages.items():
        for field in ("draw_batch", "read_batch"):
            if (n := getattr(stage, field)) % shards:
                raise ValueError(f"--stage_{name}.{field} {n} cannot be cut into {shards} shards, expected a multiple "
                                 f"of {shards}; change it, or pass --procs 1 --optim.shards 1")
        if stage.draw_batch + stage.read_batch * (name in "123") < 1 or stage.steps < 0:
            raise ValueError(f"stage {name} has {stage.steps} steps and an empty batch or less, expected at least 1 "
                             f"each; pass --stage_{name}.draw_batch 16")
        if name != "llm" and (stage.size < stride or stage.size % stride):
            raise ValueError(f"--stage_{name}.size {stage.size}, expected a multiple of {stride}, the VAE's stride")
    if not (names := [name for name, _ in parse_mix(config.data.mix)]):
        raise ValueError("--mix names no source, expected some; pass --mix shapes:1,DIR:3")
    if config.data.images and not any(name.lower().endswith(".json") for name in names):
        raise ValueError(f"--images {config.data.images} is for the pictures of a LLaVA file, got none; pass "
                         f"--llava FILE.json besides, or drop --images")
    if stages["vae"].size < stages["1"].size:
        raise ValueError(f"--stage_vae.size {stages['vae'].size} is smaller than --stage_1.size {stages['1'].size}, "
                         f"expected the larger of the two: the vae is trained on both")


SHAPING = "size", "train_parts", "muon", "fsdp", "own_positions"     # settings that decide what a state consists of


def flat(values):
    """{"stage_2.lr": 1.0, ...} from the dict of a Config."""
    parts = {"model": values["model"], **values["model"], "optim": values["optim"], "data": values["data"],
             **{f"stage_{name}": stage for name, stage in values["stages"].items()}}
    return {f"{part}.{field}": value for part, fields in parts.items() if isinstance(fields, dict)
            for field, value in fields.items() if not isinstance(value, dict)}


def check_same(config, args, out, begun):
    """Compare with the run that OUT holds. What would mix two recipes silently is an error, the rest is printed."""
    path = out / "train_config.json"
    if not path.exists():
        return
    try:
        stored = json.loads(path.read_text())
        old, new = flat(stored), flat(json.loads(json.dumps(to_dict(config))))
        command = shlex.join(stored.get("command") or [])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f"{path}: not what train.py writes ({e}); delete it, or pass another --out") from None
    changed, wrong = {k: f"{k} {old[k]} -> {new[k]}" for k in new if k in old and old[k] != new[k]}, []
    if stored.get("preset", args.preset) != args.preset:
        wrong = [f"preset {stored['preset']} -> {args.preset}"]
    for key in changed:
        part, _, field = key.partition(".")
        if part == "data":                                       # the cached latents are of these pictures
            fixed = True
        elif part in ("model", "vae", "mar", "llm"):             # finished stages decide: a flag would be ignored
            fixed = begun or key in args.given
        else:                                                    # an interrupted stage: only what is asked for by name
            mine = part == "optim" or part.removeprefix("stage_") in begun
            fixed = begun and mine and (key not in args.given or field in SHAPING)
        if fixed:
            wrong.append(changed[key])
    if wrong:
        flags = "the flags of its start" + (f" ({command})" if command else "")
        raise ValueError(f"{out} holds a run with other settings: {', '.join(wrong[:8])}{', ...' * (len(wrong) > 8)}; "
                         f"repeat {flags}, or pass another --out")
    if changed:
        print(f"note: changed since the last start: {', '.join(changed.values())}; finished stages stay as they are")


def check_parts(config, args):
    """Complain about given files that do not fit, and train_parts that name nothing, before anything is written."""
    if given(args):
        model = Plan(config.model, args.init, args.vae, args.llm, args.mar, size_flags(args)).model
    else:
        with torch.device("meta"):
            model = Harmon(config.model)
    for name in args.stage or [s for s in STAGES if s not in given(args)]:
        try:
            select(model, config.stages[name].train_parts.split(","))
        except ValueError as e:
            raise ValueError(str(e).replace("NAME", name)) from None


@contextmanager
def as_stage(folder):
    """An error inside about a checkpoint becomes one about this finished stage, from which the next one starts."""
    try:
        yield folder
    except ValueError as e:
        problem = str(e).partition("; pass")[0]                  # --ckpt is no flag of train.py
        raise ValueError(f"{problem}; put back {folder}, or delete it to repeat that stage") from None


def prepare(config, args, out):
    """Decide with the user's flags what to do about an earlier run in OUT, and note what this one does."""
    finished, begun = progress(out)
    if not finished:                                             # else they say what the model is
        check_parts(config, args)
    done = finished + [s for s in given(args) if s not in finished]
    begun = {s: step for s, step in begun.items() if not args.stage or s in args.stage}
    todo = [s for s in STAGES if s not in done and s in (args.stage or STAGES)]
    for name, step in begun.items():
        if not args.resume:
            raise ValueError(f"stage {name} in {out} was interrupted, its last state is of step {step}; pass --resume "
                             f"to go on, or another --out to start anew (or delete {out / f'stage_{name}'})")
    if any(s not in ("vae", "llm") for s in todo) and "vae" not in [*done, *todo]:
        raise ValueError(f"stage {todo[0]} needs the latents of a trained VAE, {out} has none; run --stage vae first")
    if done or begun:
        check_same(config, args, out, begun)
        if finished:
            with as_stage(out / f"stage_{finished[-1]}") as folder:        # now, and without reading all of it
                outline(folder)
        print(f"{out}: finished or given: {', '.join(done) or 'nothing'}" +
              "".join(f"; going on with stage {s} at step {step}" for s, step in begun.items()))
    import_sources(config, out, todo, frozen=bool(set(done) - set(given(args)) or begun))
    if args.resume and not begun:
        print(f"nothing to resume in {out}: {f'stage {todo[0]} starts' if todo else 'no stage is left'}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        command = [flag for flag in args.command if flag != "--resume"]
        write_json(out / "train_config.json", {"preset": args.preset, "command": command, **to_dict(config)})
    except OSError as e:
        raise ValueError(f"cannot write in {out}: {e.strerror or e}; pass another --out") from None


def import_sources(config, out, todo, frozen):
    """Decode the user's own pictures into OUT/cache (folder.py), and check that the stages can use them."""
    size, cache = max(stage.size for stage in config.stages.values()), out / "cache"
    new = not cache.exists()
    try:
        for name, _ in parse_mix(config.data.mix):
            if name != "shapes" and (found := import_source(name, config.data.images, cache, size, config.data.crops,
                                                            frozen, bar)):
                print(found)
        sources = open_sources(config.data, cache)
        classes, names = sum(source.classes for source in sources), ", ".join(source.name for source in sources)
        if "mar" in todo and classes > config.model.mar.class_num:
            raise ValueError(f"the labels of {names} need {classes} classes, the model has "
                             f"{config.model.mar.class_num}; pass --mar.class_num {classes}")
        if not any(source.seen for source in sources):
            raise ValueError(f"{names}: no pictures, expected some; pass --data DIR, or --mix shapes:1 besides")
        if needs := [name for name in todo if name not in ("vae", "mar") and not any(s.told for s in sources)]:
            raise ValueError(f"{names}: no texts, which stage {needs[0]} needs; add \"text\" to metadata.jsonl, or "
                             f"pass --stage vae --stage mar")
    except (ValueError, OSError):
        if new:                                                  # nothing is left behind
            shutil.rmtree(cache, ignore_errors=True)
            with suppress(OSError):
                out.rmdir()
        raise
