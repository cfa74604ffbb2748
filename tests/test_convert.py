"""Downloaded weights: parity through the public loader, memory, damaged files.

    python -m pytest -q tests/test_convert.py

NANOHARMON_QWEN_TOKENIZER=path/to/tokenizer.json (Qwen2.5's or Qwen3's) also compares prompts with the real tokenizer.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as HFTokenizer

import parity
from golden import Golden
from nanoharmon.cli import run_main
from nanoharmon.config import PRESETS, LLMConfig, MARConfig, pico
from nanoharmon.mar import MAR
from nanoharmon.pipeline import Pipeline, TextPipeline
from nanoharmon.qwen import Qwen
from nanoharmon.tokenizer import IMAGE, Tokenizer
from nanoharmon.evals import bench
from nanoharmon.weights import convert
from nanoharmon.weights.convert import Assembly, llm_config, load_llm, start_from
from nanoharmon.weights.safetensors import open_tensors, save_safetensors

ROOT = Path(__file__).parents[1]


# --- official numbers ------------------------------------------------------------------------------------------------

def test_all_golden_outputs_through_the_public_loader(tmp_path):
    rows = parity.compare(tmp_path)
    assert len(rows) == 68 and not parity.failed(rows), parity.table(rows)
    assert "0 outside" in parity.table(rows)
    broken = parity.Rows([*rows, ("llm", "nan", float("nan"), 1.0)])
    assert "1 outside" in parity.table(broken) and parity.failed(broken)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """harmon.pth without VAE, kl16.ckpt, an LLM directory: (paths by flag, flags for sizes that shapes do not tell)."""
    return parity.harmon_files(tmp_path_factory.mktemp("official"))


def argv(files, flags=(), **more):
    return [str(x) for name, path in {**files, **more}.items() for x in ("--" + name, path)] + list(flags)


def test_a_hugging_face_directory_of_harmon_holds_everything(files, tmp_path):
    """config.json {"llm": ..., "mar": ...}, the VAE among the weights, in shards, other dtype."""
    weights, flags = Golden("harmon").state_dict(), files[1]
    folder = parity.qwen_directory(tmp_path / "hf", Golden("harmon").config["llm"], {})
    inner = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "harmon", "llm": inner, "mar": {"type": "mar_base"}}))
    (folder / "model.safetensors").unlink()
    shard(weights, folder, 3)
    plan = Assembly(pico(), folder, flags=flags)
    assert set(plan.sources) == set(convert.PARTS) and plan.meta["size"] == 512 and plan.config.grad_scale == 0.1
    convert.main(argv({"harmon": folder, "out": tmp_path / "a"}, flags))
    convert.main(argv(files[0], flags, out=tmp_path / "b"))
    a, b = (open_tensors(tmp_path / name) for name in "ab")
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == torch.bfloat16 for k in a)
    pipe = Pipeline.load(tmp_path / "a", dtype=torch.bfloat16)
    assert pipe.meta == {"size": 512, "draw": {"cfg": 3.0, "iters": 64, "steps": 100}}
    assert torch.equal(pipe.model.mar.fake_latent, weights["mar.fake_latent"].bfloat16())
    convert.main(argv({"harmon": tmp_path / "a", "out": tmp_path / "c"}, ["--dtype", "float16"]))     # one of ours
    assert Pipeline.load(tmp_path / "c").model.config == pipe.model.config


def shard(weights, folder, n):
    names, index = list(weights), {}
    for i in range(n):
        name, part = f"model-{i + 1:05d}-of-{n:05d}.safetensors", names[i::n]
        save_safetensors({k: weights[k] for k in part}, folder / name, {"format": "pt"})
        index |= {k: name for k in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_sharded_llm_is_the_same_llm(tmp_path, name):
    folder, weights = parity.qwen_files(tmp_path, name), Golden("qwen2", name + "/").state_dict()
    whole = load_llm(folder)[0]
    (folder / "model.safetensors").unlink()
    shard(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, folder, 3)     # old files have it
    for k, v in load_llm(folder)[0].state_dict().items():
        assert torch.equal(v, whole.state_dict()[k])
    assert (whole.lm_head.weight is whole.model.embed_tokens.weight) == (name == "tied")


OFFICIAL = [("lth14_mar_base", "mar", (768, 12, 12, 6, 1024)), ("lth14_mar_large", "mar", (1024, 16, 16, 8, 1280)),
            ("lth14_mar_huge", "mar", (1280, 20, 16, 12, 1536)), ("kl16_vae", "vae", None),
            ("harmon_0.5b_train_state_dict_no_vae", "harmon", "harmon-0.5b"),
            ("harmon_1.5b_train_state_dict_no_vae", "harmon", "harmon-1.5b")]


@pytest.mark.parametrize("name, kind, sizes", OFFICIAL)
def test_sizes_of_the_official_files_are_read_off_their_shapes(name, kind, sizes):
    keys = json.loads((ROOT / "tests/golden/keys" / f"{name}.json").read_text())
    source = convert.Source.__new__(convert.Source)
    dict.__init__(source, {k.removeprefix("mar."): torch.empty(s, device="meta") for k, s in keys.items()})
    source.path, source.prefix = Path(name), ""
    if kind == "vae":
        c = convert.vae_config(source)
        assert (c.ch, c.ch_mult, c.num_res_blocks, c.z_channels, c.patch_size, c.attn_resolutions, c.scale) == (
            128, (1, 1, 2, 2, 4), 2, 16, 1, (16,), 0.2325)
        return
    c = convert.mar_config(source)
    if kind == "harmon":
        assert c == PRESETS[sizes]().mar
        return
    assert (c.encoder_embed_dim, c.encoder_depth, c.encoder_num_heads, c.diffloss_d, c.diffloss_w) == sizes
    assert (c.grid, c.buffer_size, c.class_num, c.mlp_ratio, c.token_dim) == (16, 64, 1000, 4.0, 16)


QWEN = {"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
        "rms_norm_eps": 1e-06, "max_position_embeddings": 32768, "use_sliding_window": False,
        "max_window_layers": 21, "sliding_window": 32768, "torch_dtype": "bfloat16"}


def test_llm_config_of_transformers_4_and_5():
    """The published config.json of Qwen2.5-0.5B-Instruct, and how transformers 5 writes the same."""
    old = QWEN | {"rope_theta": 1000000.0, "tie_word_embeddings": True}
    new = QWEN | {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "tie_word_embeddings": True,
                  "rope_scaling": None, "layer_types": ["full_attention"] * 24}
    assert llm_config(old, "x") == llm_config(new, "x") == LLMConfig() == PRESETS["harmon-0.5b"]().llm
    untied = llm_config(QWEN, "x")
    assert untied.rope_theta == 1e4 and untied.tie_word_embeddings is False    # Hugging Face's defaults
    large = llm_config(QWEN | {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
                               "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064}, "x")
    with torch.device("meta"):
        assert round(sum(p.numel() for p in Qwen(large).parameters()) / 1e9, 1) == 72.7      # Qwen2.5-72B


@pytest.mark.parametrize("change, message", [
    ({"model_type": "qwen3"}, "model_type 'qwen3'"), ({"hidden_act": "gelu"}, "'gelu'"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_scaling"),
    ({"use_sliding_window": True}, "use_sliding_window"), ({"hidden_size": "896"}, "hidden_size is '896'"),
    ({"hidden_size": None}, "hidden_size is None"), ({"vocab_size": -1}, "vocab_size is -1"),
    ({"num_attention_heads": 13}, "do not divide"), ({"num_key_value_heads": 3}, "do not divide"),
    ({"rope_scaling": "yes"}, "rope_scaling"), ({"hidden_size": 896.0}, "hidden_size"),
    ({"num_hidden_layers": True}, "num_hidden_layers")])
def test_llms_that_are_not_qwen2_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        llm_config(QWEN | change, "config.json")


# --- pieces, projectors, starts for training -------------------------------------------------------------------------

def test_pieces_are_joined_by_new_projectors_and_the_report_says_so(files, tmp_path, capsys):
    mar = MAR(MARConfig(grid=2, token_dim=4, encoder_embed_dim=768, encoder_depth=1, decoder_embed_dim=768,
                        decoder_depth=1, buffer_size=3, class_num=5, diffloss_d=1, diffloss_w=32))
    torch.save({"model": mar.state_dict(), "optimizer": {"state": {}}, "epoch": 400}, tmp_path / "mar.pth")
    pieces = {"llm": files[0]["llm"], "vae": files[0]["vae"], "mar": tmp_path / "mar.pth"}
    llm = {k.removeprefix("llm."): v for k, v in Golden("harmon").state_dict().items() if k.startswith("llm.")}
    pieces["llm"] = parity.qwen_directory(tmp_path / "llm", Golden("harmon").config["llm"], llm)
    for name in "ab":
        convert.main(argv(pieces, ["--report"], out=tmp_path / name))
    out = capsys.readouterr().out
    assert "proj_in     -       0.05M parameters   initialised: in none of the files" in out
    assert "mar.z_proj.weight (768, 4) <- float32 z_proj.weight" in out
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    pipe = Pipeline.load(tmp_path / "a")
    assert pipe.model.config.mar.encoder_num_heads == 12 and pipe.size == 4 and pipe.model.proj_in[0].weight.any()
    torch.testing.assert_close(pipe.model.mar.z_proj.weight, mar.z_proj.weight.bfloat16().float(), rtol=0, atol=0)
    assert pipe.draw(["a cat"], steps=2)[0].size == (4, 4)


def test_training_starts_from_pieces_or_from_a_whole(files, tmp_path):
    paths, flags = files
    vae, base = convert.read(paths["vae"]), pico()
    config, model, tokenizer, report = start_from(base, vae=paths["vae"])
    assert tokenizer is None and config.llm == base.llm and config.vae.ch == 32 and "initialised" in report[1]
    assert torch.equal(model.vae.quant_conv.weight, vae["quant_conv.weight"])
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    convert.main(argv(paths, flags, out=tmp_path / "whole", dtype="float32"))
    before = (tmp_path / "whole/model.safetensors").read_bytes()
    config, model, tokenizer, report = start_from(pico(), init=tmp_path / "whole", flags=["--mar.mask_ratio=cosine"])
    assert config.mar.mask_ratio == "cosine"
    assert len(tokenizer) <= 300 and config.grad_scale == 0.1 and not any("initialised" in line for line in report)
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    ids = torch.ones(2, 3, dtype=torch.long)
    loss = model.generation_loss(torch.randn(2, 36, 4), ids, torch.ones(2, 3, dtype=torch.bool))
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert (tmp_path / "whole/model.safetensors").read_bytes() == before       # not a view of the file
    again = start_from(pico(), init=tmp_path / "whole", dtype=torch.bfloat16)[1]
    assert again.mar.fake_latent.dtype == torch.bfloat16
    assert not torch.equal(model.mar.fake_latent.bfloat16(), again.mar.fake_latent)


def test_a_bare_llm_chats_and_neither_sees_nor_draws(tmp_path):
    folder = parity.qwen_files(tmp_path, "tied")
    pipe = TextPipeline(*load_llm(folder))
    messages = [{"role": "user", "content": "hi"}]
    said = "".join(pipe.reply(messages, max_new_tokens=5))
    ids, _ = pipe.tokenizer.chat([{"role": "system", "content": "You are Qwen, created by Alibaba Cloud. You are a "
                                   "helpful assistant."}, *messages])
    assert pipe.chat_ids(messages, None, 5) == ids
    stop = [pipe.tokenizer.im_end, pipe.tokenizer.pad]
    ref = [t.item() for t in pipe.model.llm.generate(pipe.model.llm.embed(torch.tensor([ids])), stop, 5)]
    assert said == pipe.tokenizer.decode(ref)
    for ask in (lambda: "".join(pipe.reply([{"role": "user", "content": [None, "\nhi"]}], ["picture"])), pipe.plan):
        with pytest.raises(ValueError, match="neither sees nor draws"):
            ask()


# --- transformers, the real tokenizer --------------------------------------------------------------------------------

@pytest.mark.parametrize("tied, max_shard", [(True, "1GB"), (False, "60KB")])
def test_logits_and_greedy_words_are_those_of_transformers(tmp_path, tied, max_shard):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=300, hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.1)
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (not tied)
    Tokenizer.train(["hello"], 300).save(tmp_path / "tokenizer.json")
    ours, _ = load_llm(tmp_path)
    assert ours.config.rope_theta == 5e5
    ids = torch.randint(0, 300, (2, 20))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-5
        expected = theirs.generate(ids, max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 20:]
        said = torch.stack(list(ours.generate(ours.embed(ids), {-1}, 32)), dim=1)
    assert torch.equal(said, expected)


@pytest.mark.skipif("NANOHARMON_QWEN_TOKENIZER" not in os.environ, reason="needs NANOHARMON_QWEN_TOKENIZER")
def test_prompts_are_those_of_the_real_tokenizer():
    path = os.environ["NANOHARMON_QWEN_TOKENIZER"]
    real, ours = HFTokenizer.from_file(path), Tokenizer.load(path)
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"             # the template of the official scripts
    assert (ours.pad, ours.im_start, ours.im_end, ours.newline) == (151643, 151644, 151645, [198])
    for prompt in ("a dog on the left and a cat on the right.", "  two  spaces", "日本語 🦊", "a\n\nb"):
        assert ours.drawing(prompt) == real.encode(turn.format("Generate an image: " + prompt)).ids
    assert ours.drawing() == real.encode(turn.format("Generate an image.")).ids
    # reading: "<image>\n" + question, the picture's tokens in the place of <image>
    ids, _ = ours.chat([{"role": "user", "content": [3, "\nDescribe the image in detail."]}])
    head, tail = turn.split("{}")
    assert ids == real.encode(head).ids + [IMAGE] * 3 + real.encode("\nDescribe the image in detail." + tail).ids
    assert ours.decode(ours.encode("naïve 日本語\n")) == "naïve 日本語\n"


# --- memory ----------------------------------------------------------------------------------------------------------

STREAM = """
import sys, torch
from nanoharmon.weights import convert
from nanoharmon.evals.bench import peak_memory
before = peak_memory(torch.device("cpu"))
convert.main(sys.argv[1:])
print("PEAK", before, peak_memory(torch.device("cpu")))
"""


@pytest.fixture(scope="module")
def large(files, tmp_path_factory):
    """A Qwen2.5 directory with 200M parameters in float32."""
    config = json.loads((files[0]["llm"] / "config.json").read_text())
    config |= {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 13, "num_attention_heads": 8,
               "num_key_value_heads": 8, "tie_word_embeddings": False}
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((files[0]["llm"] / "tokenizer.json").read_bytes())
    with torch.device("meta"):
        shapes = Qwen(llm_config(config, "x")).state_dict()
    save_safetensors(shapes, folder / "model.safetensors", None,
                     lambda name: torch.ones_like(shapes[name], device="cpu"))
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_conversion_streams(files, large, tmp_path, dtype):
    """Writing never holds the model, not even the mapped file's pages."""
    code = [sys.executable, "-c", STREAM, *argv({"llm": large, "vae": files[0]["vae"], "out": tmp_path / "out"},
                                                ["--preset", "pico", "--dtype", dtype])]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "out/model.safetensors").stat().st_size
    before, peak = map(int, done.stdout.split()[-2:])
    print(f"{dtype}: {before / 2**20:.0f} MiB at the start, peak {peak / 2**20:.0f}, output {size / 2**20:.0f}")
    assert 10 * 2**20 < peak - before < 0.8 * size and peak < 1.3 * size     # seen: 0.5 to 0.65


# --- what goes wrong -------------------------------------------------------------------------------------------------

def call(capsys, arguments):
    with pytest.raises(SystemExit) as e:
        run_main(lambda: convert.main(arguments))
    out, err = capsys.readouterr()
    assert e.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def spoil(path, keep=None, data=None):
    path.write_bytes(path.read_bytes()[:keep] if data is None else data)


def edit_pth(path, **changes):
    weights = torch.load(path)
    for name, value in changes.items():
        weights[name.replace("__", ".")] = value
    torch.save({k: v for k, v in weights.items() if v is not None}, path)


DAMAGE = [
    ("harmon", lambda p: spoil(p, 5000), "truncated or damaged"),
    ("harmon", lambda p: spoil(p, data=b"<!DOCTYPE html><html>404"), "an HTML page"),
    ("vae", lambda p: spoil(p, data=b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), "Git LFS pointer"),
    ("vae", lambda p: p.unlink(), "No such file"),
    ("vae", lambda p: torch.save({"model": {"a": 1}}, p), "holds no tensors"),
    ("vae", lambda p: torch.save({"model": {"encoder.conv_in.weight": torch.ones(3)}}, p), "expected 4 dimensions"),
    ("vae", lambda p: torch.save(pytest.approx, p), "contains code"),
    ("harmon", lambda p: edit_pth(p, mar__mask_token=None), "1 missing: mask_token"),
    ("harmon", lambda p: edit_pth(p, llm__model__norm__weight=torch.ones(9)), "weight is (9,) in the file, (64,)"),
    ("harmon", lambda p: edit_pth(p, mar__extra=torch.ones(9)), "1 unexpected: extra"),
    ("harmon", lambda p: edit_pth(p, other__extra=torch.ones(9)), "has other, expected a Harmon"),
    ("harmon", lambda p: edit_pth(p, mar__z_proj__weight=None), "mar.z_proj.weight is missing"),
    ("llm", lambda p: (p / "config.json").unlink(), "no config.json here"),
    ("llm", lambda p: (p / "config.json").write_text("{"), "not valid JSON"),
    ("llm", lambda p: (p / "config.json").write_text("[1]"), "expected a JSON object"),
    ("llm", lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json"),
    ("llm", lambda p: HFTokenizer.from_str(NO_CHAT).save(str(p / "tokenizer.json")), "no <|endoftext|>, <|im_start|>"),
    ("llm", lambda p: (p / "config.json").write_text(json.dumps(QWEN)), "the projector of"),
]
NO_CHAT = json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})


@pytest.mark.parametrize("flag, damage, message", DAMAGE)
def test_damaged_files_are_one_line_errors(tmp_path, capsys, flag, damage, message):
    files, flags = parity.harmon_files(tmp_path)
    damage(files[flag])
    err = call(capsys, argv(files, flags, out=tmp_path / "out"))
    assert message in err and not (tmp_path / "out/config.json").exists()


@pytest.mark.parametrize("damage, message", [
    (lambda raw: raw[:-1], "truncated"), (lambda raw: raw[:20], "truncated"), (lambda raw: b"", "truncated"),
    (lambda raw: (10**9).to_bytes(8, "little") + raw[8:], "header of 1000000000 bytes"),
    (lambda raw: (10**7).to_bytes(8, "little") + raw[8:], "header needs 10000008 bytes"),
    (lambda raw: b"<html>" + raw, "an HTML page"), (lambda raw: raw.replace(b'"F32"', b'"F99"', 1), "bad dtype")])
def test_damaged_safetensors_are_one_line_errors(tmp_path, damage, message):
    path = parity.qwen_files(tmp_path, "tied") / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        load_llm(path.parent)


def test_flags_that_do_not_go_together_are_refused(files, tmp_path, capsys):
    paths, flags = files
    out = {"out": tmp_path / "out"}

    def error(*names, flags=flags, **more):
        return call(capsys, argv({k: paths[k] for k in names}, flags, **more))
    assert "pass --llm" in error("harmon", "vae", **out)
    assert "pass --vae kl16.ckpt" in error("harmon", "llm", **out)
    assert "--mar.encoder_num_heads" in error(*paths, flags=[], **out)
    assert "leave out --mar" in error(*paths, mar=paths["harmon"], **out)
    assert "the right kind of file" in error("llm", mar=paths["vae"], **out)
    assert "is it for --mar or --vae" in error("llm", harmon=paths["vae"], **out)
    assert "no tokenizer" in error("vae", flags=["--preset", "pico"], **out)
    assert "pass --out" in error(*paths)
    assert "unknown flag --mar.depth; did you mean" in error(*paths, flags=["--mar.depth", "3"], **out)
    assert "channels per token" in error(*paths, flags=[*flags, "--vae.z_channels", "8"], **out)


# --- the benchmark ---------------------------------------------------------------------------------------------------

def test_the_benchmark_runs_and_its_plan_has_the_official_sizes(capsys):
    bench.main(["--dry-run"])
    out = capsys.readouterr().out
    assert "771.40M" in out and "2561.23M" in out
    bench.main(["--preset", "pico", "--steps", "2", "--tokens", "3", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "iteration 4 of 4: 3 tokens visible, 1 drawn" in out and "3 tokens after" in out and "not finite" not in out
    model = bench.random_model("pico", torch.bfloat16, torch.device("cpu"))
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
