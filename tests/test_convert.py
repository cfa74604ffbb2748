"""Downloaded weights.     python -m pytest -q tests/test_convert.py"""
import json
import weakref
from pathlib import Path

import pytest
import torch

import parity
from chat import TextPipeline, own_system
from golden import FOLDER, Golden
from nanoharmon.config import PRESETS, LLMConfig, MARConfig, VAEConfig, pico
from nanoharmon.files import write_json
from nanoharmon.mar import MAR
from nanoharmon.pipeline import Pipeline
from nanoharmon.weights import convert
from nanoharmon.weights.convert import Assembly, Stored, load_llm, start_from
from nanoharmon.weights.safetensors import open_tensors, save_safetensors
from nanoharmon.weights.stored import llm_config, mar_config, vae_config


def test_all_golden_outputs_through_the_public_loader(tmp_path):
    rows = parity.compare(tmp_path)
    assert len(rows) == 70 and not parity.failed(rows), parity.table(rows)


OFFICIAL = {"lth14_mar_base": PRESETS["harmon-0.5b"]().mar, "lth14_mar_huge": PRESETS["harmon-1.5b"]().mar,
            "lth14_mar_large": MARConfig(encoder_embed_dim=1024, encoder_depth=16, encoder_num_heads=16,
                                         decoder_embed_dim=1024, decoder_depth=16, decoder_num_heads=16,
                                         diffloss_d=8, diffloss_w=1280), "kl16_vae": VAEConfig()}


@pytest.mark.parametrize("name", OFFICIAL)
def test_sizes_of_the_official_files_are_read_off_their_shapes(name):
    stored = Stored.__new__(Stored, Path(name))
    stored.path, stored.prefix = Path(name), ""
    for key, shape in json.loads((FOLDER / "keys" / f"{name}.json").read_text(encoding="utf-8")).items():
        stored[key] = torch.empty(shape, device="meta")
    assert (vae_config if name == "kl16_vae" else mar_config)(stored) == OFFICIAL[name]


QWEN = {"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 32768, "vocab_size": 151936}


def test_llm_config_of_transformers_4_and_5():
    """The published config.json of Qwen2.5-0.5B-Instruct, and how transformers 5 writes the same."""
    old = QWEN | {"rope_theta": 1000000.0, "tie_word_embeddings": True}
    new = QWEN | {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "tie_word_embeddings": True}
    assert llm_config(old, "x") == llm_config(new, "x") == LLMConfig()
    untied = llm_config(QWEN, "x")
    assert untied.rope_theta == 1e4 and untied.tie_word_embeddings is False              # Hugging Face's defaults


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """harmon.pth without VAE, kl16.ckpt, an LLM directory: (paths by flag, flags for sizes that shapes do not tell)."""
    return parity.harmon_files(tmp_path_factory.mktemp("official"))


def argv(files, flags=(), **more):
    return [str(x) for name, path in {**files, **more}.items() for x in ("--" + name, path)] + list(flags)


def shard(weights, folder, n):
    names, index = list(weights), {}
    for i in range(n):
        name, part = f"model-{i + 1:05d}-of-{n:05d}.safetensors", names[i::n]
        save_safetensors({k: weights[k] for k in part}, folder / name, {"format": "pt"})
        index |= {k: name for k in part}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def test_a_hugging_face_directory_of_harmon_holds_everything(official, tmp_path):
    """config.json {"llm": ..., "mar": ...}, the VAE among the weights, in shards, other dtype."""
    weights, flags = Golden("harmon").state_dict(), official[1]
    folder = parity.qwen_directory(tmp_path / "hf", Golden("harmon").config["llm"], {})
    inner = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {"llm": inner, "mar": {"type": "mar_base"}})
    (folder / "model.safetensors").unlink()
    shard(weights, folder, 3)
    convert.main(argv({"harmon": folder, "out": tmp_path / "a"}, flags))
    convert.main(argv(official[0], flags, out=tmp_path / "b"))
    a, b = (open_tensors(tmp_path / name) for name in "ab")
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == torch.bfloat16 for k in a)
    pipe = Pipeline.load(tmp_path / "a", dtype=torch.bfloat16)
    assert pipe.meta == {"size": 512, "draw": {"cfg": 3.0, "iters": 64, "steps": 100}}
    assert torch.equal(pipe.model.mar.fake_latent, weights["mar.fake_latent"].bfloat16())
    convert.main(argv({"harmon": tmp_path / "a", "out": tmp_path / "c"}, ["--dtype", "float16"]))        # one of ours
    assert Pipeline.load(tmp_path / "c").model.config == pipe.model.config and pipe.model.config.grad_scale == 0.1


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_bare_llm_in_shards_chats(tmp_path, name):
    folder, weights = parity.qwen_files(tmp_path, name), Golden("qwen2", name + "/").state_dict()
    (folder / "model.safetensors").unlink()
    shard(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, folder, 3)      # old files have it
    llm, tokenizer, _ = load_llm(folder)
    assert all(torch.equal(v, llm.state_dict()[k]) for k, v in weights.items())
    assert (llm.lm_head.weight is llm.model.embed_tokens.weight) == (name == "tied")
    qwen = {"chat_template": "{%- else %}You are Qwen, created by Alibaba Cloud. You are a helpful assistant.{%"}
    for template, system in ({}, ""), ({"chat_template": "You are"}, ""), (qwen, qwen["chat_template"][11:-2]):
        write_json(folder / "tokenizer_config.json", template)
        talk = [{"role": "user", "content": "hi"}]
        said = "".join(TextPipeline(llm, tokenizer, own_system(folder)).reply(talk, max_new_tokens=5))
        ids, _ = tokenizer.chat([{"role": "system", "content": system}] * bool(system) + talk)
        whole = llm.generate(llm.embed(torch.tensor([ids])), [tokenizer.im_end, tokenizer.pad], 5)
        assert said == tokenizer.decode([t.item() for t in whole]).rstrip("\ufffd")


def test_pieces_are_joined_by_new_projectors_and_the_report_says_so(official, tmp_path, capsys):
    mar = MAR(MARConfig(grid=2, token_dim=4, encoder_embed_dim=768, encoder_depth=1, decoder_embed_dim=768,
                        decoder_depth=1, buffer_size=3, class_num=5, diffloss_d=1, diffloss_w=32))
    torch.save({"model": mar.state_dict(), "optimizer": {"state": {}}, "epoch": 400}, tmp_path / "mar.pth")
    pieces = {"llm": parity.qwen_files(tmp_path, "tied"), "vae": official[0]["vae"], "mar": tmp_path / "mar.pth"}
    weights = pieces["llm"] / "model.safetensors"
    for name in "ab":
        torch.manual_seed(ord(name))                                                     # has no influence
        if name == "b":                                                                  # nor has which tied name is stored
            save_safetensors({k.replace("model.embed_tokens", "lm_head"): v.clone() for k, v in open_tensors(weights).items()}, weights)
        convert.main(argv(pieces, ["--report"], out=tmp_path / name))
    assert "mar.z_proj.weight (768, 4) <- float32 z_proj.weight" in capsys.readouterr().out
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    pipe = Pipeline.load(tmp_path / "a")
    assert pipe.model.config.mar.encoder_num_heads == 12 and pipe.size == 4 and pipe.model.proj_in[0].weight.any()
    assert torch.equal(pipe.model.mar.z_proj.weight, mar.z_proj.weight.bfloat16().float())


def test_training_starts_from_pieces_or_from_a_whole(official, tmp_path):
    paths, flags = official
    model, tokenizer, report = start_from(pico(), vae=paths["vae"])
    assert tokenizer is None and model.config.llm == pico().llm and model.config.vae.ch == 32
    assert "initialised" in report[1]
    assert torch.equal(model.vae.quant_conv.weight, convert.read(paths["vae"])["quant_conv.weight"])
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    convert.main(argv(paths, flags, out=tmp_path / "whole", dtype="float32"))
    before = (tmp_path / "whole/model.safetensors").read_bytes()
    model, tokenizer, report = start_from(pico(), init=tmp_path / "whole", flags=["--mar.mask_ratio=cosine",
                                                                                  "--model.grad_scale=0.5"])
    assert model.config.mar.mask_ratio == "cosine" and model.config.grad_scale == 0.5 and len(tokenizer) <= 300
    assert "initialised" not in str(report) and model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    with torch.no_grad():
        model.mar.fake_latent += 1                                                       # no view of the file
    assert (tmp_path / "whole/model.safetensors").read_bytes() == before


def test_conversion_streams(official, tmp_path, monkeypatch):
    """Never two tensors in memory."""
    alive, copy = [], Stored.copy

    def watched(stored, name, dtype):
        assert not any(ref() is not None for ref in alive)
        t = copy(stored, name, dtype)
        alive.append(weakref.ref(t))
        return t
    assembly = Assembly(pico(), *(official[0][k] for k in ("harmon", "vae", "llm")), flags=official[1])
    monkeypatch.setattr(Stored, "copy", watched)
    convert.write(assembly, tmp_path / "out")
    assert len(alive) > 100


def test_flags_that_do_not_go_together_are_refused(official, tmp_path):
    paths, flags = official
    for words, files, given in [
            ("pass --llm", {"harmon": 0, "vae": 0}, flags), ("pass --vae kl16.ckpt", {"harmon": 0, "llm": 0}, flags),
            ("--mar.encoder_num_heads", paths, []), ("no tokenizer", {"vae": 0}, ["--preset", "pico"]),
            ("the right kind of file; change --mar", {"llm": 0, "mar": paths["vae"]}, flags)]:
        with pytest.raises(ValueError, match=words):
            convert.main(argv({k: v or paths[k] for k, v in files.items()}, given, out=tmp_path / "out"))
