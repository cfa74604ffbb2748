"""What train.py --dry-run prints: the stages as a Markdown table, and all that flags say beside it."""
from dataclasses import replace

from ..cli import markdown_table
from .memory import step_memory
from .optim import prefixes, select
from .recipe import HARMON_STAGES, STAGES, parse_mix
from .resume import check, progress

# what each stage learns from (batches.py)
LEARNS_FROM = {"vae": "pictures", "llm": "texts only: thoughts, questions, answers",
               "mar": "pictures with class labels", **dict.fromkeys(HARMON_STAGES, "prompts; {}"),
               "reca": "pictures shown; {}"}


def print_stages(run):
    """What --dry-run prints: the stages as a Markdown table. What the start itself would refuse is an error."""
    _, model, report = check(run)
    out, (finished, begun), optim = run.out, progress(run.out), run.config.optim
    config, rows = replace(run.config, model=model.config), []
    if report:
        print(*report, sep="\n", end="\n\n")
    print(", ".join(f"{part} {sum(p.numel() for p in child.parameters()) / 1e6:.2f}M"
                    for part, child in model.named_children()) + " parameters\n")
    mix = parse_mix(config.data.mix)
    if mix != [("shapes", 1.0)]:
        print("data: " + ", ".join(f"{name} {weight / sum(w for _, w in mix):.1%}" for name, weight in mix) + "\n")
    for name, s in config.stages.items():
        params = select(model, s.train_parts)
        size = sum(p.numel() for p in params.values()) / 1e6
        rates = [optim.lr * s.lr, optim.muon_lr * s.lr] if optim.muon else [optim.lr * s.lr]
        replies = ["captions, questions"] * (s.texts < 1 or set(dict(mix)) != {"shapes"})
        replies += ["texts as of llm"] * (s.texts > 0 and "shapes" in dict(mix))    # only the shapes world has some
        memory = "-"
        given = name in run.given_stages
        if name not in finished and not given:
            memory = "{:.2f} + {:.2f}".format(*step_memory(model, config, name, optim.shards, optim.checkpointing))
        rows.append((name, LEARNS_FROM[name].format(", ".join(replies)), s.size or "-",
                     f"{', '.join(part.removesuffix('.') for part in prefixes(s.train_parts))} ({size:.2f}M)",
                     f"{s.batch} : {s.understanding_batch}" if s.understanding_batch else s.batch,
                     " / ".join(f"{rate:g}" for rate in rates) + slower(run, [] if given else params, rates),
                     s.steps, memory,
                     "finished" if name in finished else f"at step {begun[name]}" if name in begun else
                     "given" if given else "to do" if name in (run.only or STAGES) else "not now"))
    every = [f"every {n} steps" if n else "never" for n in (run.save_every, run.sample_every)]
    each = f"a state {every[0]}, the last {run.keep} are kept; pictures {every[1]}"
    print(f"{run.world_size} process{'es' * (run.world_size > 1)} on {run.device}{', compiled' * run.compile}; {each}")
    if run.changed:
        print("changed: " + ", ".join(f"{name} {value}" for name, value in run.changed.items()))
    print()
    print(markdown_table(("stage", "data", "px", "trained", "batch generation : understanding", "lr AdamW / Muon",
                          "steps", "GB state + work", out), rows))


def slower(run, trained, rates):
    """The rates of those parts of a stage that were given, for its line of the table. trained: names of parameters."""
    factor = run.config.optim.given
    parts = [part[:-1] for part in run.given_parts if any(name.startswith(part) for name in trained)]
    if not parts or factor == 1:
        return ""
    return f"; {', '.join(parts)} {' / '.join(f'{rate * factor:g}' for rate in rates)}"
