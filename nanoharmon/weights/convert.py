"""Downloaded weights -> our checkpoint directory: Harmon, or its pieces KL-16, MAR and Qwen2.5.

    python -m nanoharmon.convert --harmon harmon_1.5b.pth --vae kl16.ckpt --llm Qwen2.5-1.5B-Instruct --out DIR
    python -m nanoharmon.convert --harmon Harmon-1_5B --out DIR              the Hugging Face directory: all in one
    python -m nanoharmon.convert --vae kl16.ckpt --mar checkpoint-last.pth --llm Qwen2.5-0.5B-Instruct --out DIR

    file                                  holds                                 sizes come from
    harmon_*.pth                          mar. llm. proj_in. proj_out.          its shapes; llm: DIR/config.json
    kl16.ckpt                             {"model": vae}                        its shapes
    MAR checkpoint-last.pth               {"model_ema": mar, "model": mar}      its shapes
    Qwen2.5 directory                     llm, config.json, tokenizer.json      its config.json
    Hugging Face directory of Harmon      everything                            its config.json, its shapes

The modules carry the official names, so a part's prefix is all the renaming there is, and the loading is strict: what
is missing, superfluous or of another shape is an error that names it. Parts that no file holds (the projectors, when
pieces are joined) are initialised, and the report says so. Number of heads and the scale of the latents are in no
shape: they are known for the official sizes, for others pass --mar.encoder_num_heads and the like.

Weights are mapped, never unpickled, and written one by one: memory stays far below the size of the model.
"""
import copy
from pathlib import Path

import torch

from ..cli import DTYPES, Parser
from ..config import PRESETS, HarmonConfig, from_dict
from ..files import advising, check_folder, read_json
from ..flags import check_model, override
from ..harmon import projector
from ..mar import MAR
from ..qwen import Qwen
from ..tokenizer import Tokenizer
from ..vae import VAE
from .checkpoint import blank, load_weights, meta_model, write_checkpoint
from .recognise import in_place_of_a_folder
from .stored import (Stored, llm_config, mar_config, match_part, read, read_config, read_llm_config, stored_sizes,
                     vae_config)

PARTS = ("vae", "mar", "llm", "proj_in", "proj_out")


# --- joining parts ---------------------------------------------------------------------------------------------------

class Assembly:
    """Which part of a model comes from which file. Checked: every tensor is there, nothing is left over, sizes agree.

    base: HarmonConfig for the parts that no file decides. init: a whole Harmon, a .pth, Hugging Face directory, or a
    directory of ours; vae, llm, mar: pieces, which take the place of those in `init` (an llm only gives it sizes and
    tokenizer). flags: what overrides sizes, as on the command line. init_flag: the one that names `init` there.
    `config`, `stored` {part: Stored}, `tokenizer` (a path or None), `report` (lines) result.
    """

    def __init__(self, base, init=None, vae=None, llm=None, mar=None, flags=(), init_flag="--init"):
        self.config, self.stored, self.report = copy.deepcopy(base), {}, []
        self.tokenizer, self.tokenizer_flag = None, ""
        self.meta = {"draw": {"cfg": 3.0, "iters": 64, "steps": 100}}
        if init and mar:
            raise ValueError("a MAR besides a whole Harmon, expected one of them; leave out --mar")
        for flag, path in (init_flag, init), ("--vae", vae), ("--llm", llm), ("--mar", mar):
            if path and not Path(path).exists():
                raise ValueError(f"{path}: {in_place_of_a_folder(path)}; change {flag}")
        if llm:
            with advising("change --llm"):
                self.config.llm = read_llm_config(llm)
            self.tokenizer, self.tokenizer_flag = Path(llm) / "tokenizer.json", "--llm"
        if init:
            self.add_whole(Path(init), init_flag, bool(vae), bool(llm))
        elif llm:
            with advising("change --llm"):
                self.stored["llm"] = Stored.of("llm", llm)
        for part, path, sizes in ("mar", mar, mar_config), ("vae", vae, vae_config):
            if path:
                with advising(f"change --{part}"):
                    self.stored[part] = Stored.of(part, path)
                    setattr(self.config, part, stored_sizes(part, path) or sizes(self.stored[part]))
        override(self.config, flags)
        self.build()
        self.match()

    def add_whole(self, path, flag, has_vae, has_llm):
        config = self.config
        with advising(f"change {flag}"):
            stored = read_config(path) if path.is_dir() else {}
            if "model_type" in stored and "llm" not in stored:
                raise ValueError(f"{path}: a language model alone, expected a whole Harmon; pass it as --llm")
            if "model" in stored:                                    # a directory of ours
                self.config = config = from_dict(HarmonConfig, stored["model"], f"{path / 'config.json'}: \"model\"")
                self.meta = stored.get("meta", {})
            elif "llm" in stored:
                config.llm = llm_config(stored["llm"], f"{path / 'config.json'}: llm")
        if has_llm and ("model" in stored or "llm" in stored):
            raise ValueError(f"{path}: has a language model and a tokenizer of its own; drop --llm")
        if not ("model" in stored or "llm" in stored or has_llm):
            whole = f", or {flag} {path.parent}" if (path.parent / "config.json").is_file() else ""
            raise ValueError(f"{path}: has neither tokenizer nor the LLM's config.json; pass --llm with the "
                             f"Qwen2.5-...-Instruct directory{whole}")
        if path.is_dir() and (path / "tokenizer.json").exists():
            self.tokenizer, self.tokenizer_flag = path / "tokenizer.json", flag
        with advising(f"change {flag}"):
            names = {name.partition(".")[0] for name in read(path)}
        if names - set(PARTS):
            raise ValueError(f"{path}: has {', '.join(sorted(names - set(PARTS))[:4])}, expected a Harmon checkpoint, "
                             f"with names that begin with mar., llm., proj_in., proj_out.; is it for --mar or --vae?")
        if "vae" not in names and not has_vae:
            raise ValueError(f"{path}: has no VAE inside; pass --vae kl16.ckpt")
        with advising(f"change {flag}"):
            for part in PARTS:
                if part in names or part != "vae":                   # a missing one is an error of its own
                    self.stored[part] = Stored(path, part + ".", flag)
            if "model" not in stored:                                # the sizes of an official one are in its shapes
                config.mar, config.grad_scale = mar_config(self.stored["mar"]), HarmonConfig.grad_scale
                self.meta["size"] = 512                              # what its last stage saw, and its scripts draw
                if "vae" in names:
                    config.vae = vae_config(self.stored["vae"])
            width = self.stored["proj_in"].shape("0.weight", 2)[0]
        if config.llm.hidden_size != width:
            raise ValueError(f"the LLM's config.json says width {config.llm.hidden_size}, but the projector of {path} "
                             f"needs {width}; pass the --llm it was trained with (896: 0.5B, 1536: 1.5B)")

    def build(self):
        """The model on the meta device: names and shapes, no memory."""
        config = self.config
        if not (config.mar.encoder_num_heads and config.mar.decoder_num_heads):
            raise ValueError(f"a MAR of width {config.mar.encoder_embed_dim} is no official one and shapes do not tell "
                             f"its heads; pass --mar.encoder_num_heads N and --mar.decoder_num_heads N")
        try:
            check_model(config)
            self.model = meta_model(config)
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as e:
            raise ValueError(f"these sizes make no model: {e}; pass another --vae or --mar, or other "
                             f"--vae.x, --mar.x, --llm.x") from None

    def match(self):
        """Compare each part of the model with its file, and say where it comes from."""
        self.matched = {}
        for part, module in self.model.named_children():
            n = f"{sum(p.numel() for p in module.parameters()) / 1e6:9.2f}M parameters"
            if part not in self.stored:
                self.report.append(f"{part:9s}   -  {n}   initialised: in none of the files")
                continue
            stored = self.stored[part]
            with advising(f"change {stored.flag}"):
                match, note = match_part(part, module, stored, self.config.llm)
                self.matched[part] = match
                stored.open()                                        # comparing tied weights has read them
            self.report.append(f"{part:9s}{len(match.mapped):4d}  {n}   {stored.path}" + (
                f", not used: {', '.join(match.unexpected[:3])}" if match.unexpected else "") + (note and f": {note}"))

    def details(self):
        """One line per tensor: our name, shape, and the dtype and name in the file."""
        for name, target in self.model.state_dict().items():
            part, _, rest = name.partition(".")
            stored = self.stored.get(part, {})
            origin = f"{stored[rest].dtype} {stored.prefix}{rest}" if rest in stored else "(initialised, or tied)"
            yield f"{name} {tuple(target.shape)} <- {origin}".replace("torch.", "")

    def fresh(self, part):
        """A newly initialised part."""
        c, D, E = self.config, self.config.mar.encoder_embed_dim, self.config.llm.hidden_size
        return {"vae": lambda: VAE(c.vae), "mar": lambda: MAR(c.mar), "llm": lambda: Qwen(c.llm),
                "proj_in": lambda: projector(D, E, E), "proj_out": lambda: projector(E, E, D)}[part]()

    def load_tokenizer(self):
        """The tokenizer that belongs to the LLM, None if there is none in these files."""
        if self.tokenizer is None:
            return None
        with advising(f"change {self.tokenizer_flag}"):
            tokenizer, most = Tokenizer.load(self.tokenizer), self.config.llm.vocab_size
            if len(tokenizer) > most:
                raise ValueError(f"{self.tokenizer}: {len(tokenizer)} tokens, expected at most the {most} of the LLM")
        return tokenizer


def check_out(out, *files):
    """Complain about a folder that cannot be written, or whose loss someone would regret."""
    check_folder(out, "--out")
    for path in files:
        if path and Path(out).exists() and Path(out).samefile(path if Path(path).is_dir() else Path(path).parent):
            raise ValueError(f"{out} is the folder that is read, and would be overwritten; pass another --out")
    if Path(out, "config.json").exists() and "model" not in read_json(Path(out, "config.json")):
        raise ValueError(f"{out} holds another model, not one that convert wrote; pass another --out")


def write(assembly, out, dtype=torch.bfloat16):
    """Write the directory that Pipeline.load reads, tensor by tensor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = {part: assembly.fresh(part).state_dict() for part in PARTS if part not in assembly.stored}

    def get(name):
        part, _, rest = name.partition(".")
        if part in fresh:
            return fresh[part][rest]
        stored = assembly.stored[part]                           # a tied LLM may be stored under its other name
        return stored.copy(rest if rest in stored else "lm_head.weight", dtype)
    write_checkpoint(out, assembly.config, assembly.meta, Path(assembly.tokenizer).read_bytes(),
                     assembly.model.state_dict(), get, dtype)


# --- for train.py and chat.py ----------------------------------------------------------------------------------------

def start_from(config, vae=None, llm=None, mar=None, init=None, device="cpu", flags=()):
    """A model to train further: (model, tokenizer or None, report lines).

    config: HarmonConfig of the preset, for what the files do not decide. init: a whole Harmon (.pth, Hugging Face
    directory, or a directory of ours). Parts that no file holds are initialised. flags: --mar.x, --vae.x, --llm.x,
    --model.x.
    """
    assembly = Assembly(config, init, vae, llm, mar, flags)
    tokenizer, model = assembly.load_tokenizer(), assembly.model
    for part in PARTS:
        if part not in assembly.stored:
            setattr(model, part, assembly.fresh(part))
            continue
        # with memory of its own: the file may go away
        load_weights(getattr(model, part), assembly.stored[part], assembly.matched[part], torch.float32, copy=True)
    return model.to(device), tokenizer, assembly.report


def load_llm(path, device="cpu", dtype=torch.float32):
    """A bare Qwen2.5 directory of Hugging Face -> (Qwen, Tokenizer, a note or ""), for chat.py."""
    config, tokenizer = read_llm_config(path), Tokenizer.load(path)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"{path}: {len(tokenizer)} tokens in tokenizer.json, expected at most the {config.vocab_size} "
                         f"of config.json")
    with blank():
        llm = Qwen(config)
    stored = Stored.of("llm", path)
    report, note = match_part("llm", llm, stored, config)
    load_weights(llm, stored, report, dtype)
    return llm.to(device).eval(), tokenizer, note


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.convert", description=__doc__)
    add = parser.add_argument
    add("--harmon", metavar="FILE", help="harmon_*.pth, or Harmon's Hugging Face directory")
    add("--vae", metavar="FILE", help="kl16.ckpt")
    add("--mar", metavar="FILE", help="MAR's checkpoint-last.pth")
    add("--llm", metavar="DIR", help="a Qwen2.5 directory (with --harmon: for its config.json and tokenizer.json)")
    add("--out", metavar="DIR", help="the directory to write")
    add("--dtype", choices=DTYPES, help="of the written weights (default bfloat16)")
    add("--preset", choices=PRESETS, help="of pieces: sizes of parts that no file holds (default harmon-0.5b)")
    add("--report", action="store_true", help="list every tensor with its shape; without --out, stop")
    args, flags = parser.parse_known_args(argv)
    if not (args.out or args.report):
        raise ValueError("nothing to do; pass --out DIR, or --report to list what is in the files")
    for flag, needless in ("preset", args.harmon and "--harmon"), ("dtype", not args.out and "--report without --out"):
        if getattr(args, flag) and needless:
            raise ValueError(f"--{flag} means nothing with {needless}; drop it")
    files = args.harmon, args.vae, args.llm, args.mar
    if not any(files):
        raise ValueError("nothing to read; pass --harmon, or pieces: --vae, --mar, --llm")
    assembly = Assembly(PRESETS[preset := args.preset or "harmon-0.5b"](), *files, flags, init_flag="--harmon")
    if args.out:
        check_out(args.out, *files)
        if assembly.load_tokenizer() is None:
            raise ValueError("no tokenizer in these files; pass --llm with a Qwen2.5 directory (train.py takes pieces "
                             "without an LLM: --vae, --mar)")
        if lost := [f"--{part}" for part in ("vae", "mar") if part not in assembly.stored]:
            raise ValueError(f"nothing would draw, {' and '.join(lost)} would be random numbers; pass them, too "
                             f"(train.py makes what is missing, chat.py takes an LLM alone: --llm {args.llm})")
    print(*assembly.report, *(assembly.details() if args.report else ()), sep="\n")
    if args.out:
        write(assembly, args.out, getattr(torch, args.dtype or "bfloat16"))
        new = [part for part in PARTS if part not in assembly.stored]
        print(f"wrote {args.out}.", f"{' and '.join(new)} are random numbers: train it with python train.py --preset "
              f"{preset} --init {args.out}" if new else f"Try: python sample.py --ckpt {args.out} --prompt \"a cat\"")
