"""What people have where a model was expected: named for what it is.     python -m pytest -q tests/test_recognise.py"""
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import chat
from nanoharmon.config import pico
from nanoharmon.pipeline import Pipeline, load_pipeline
from nanoharmon.weights.convert import Assembly, load_llm
from nanoharmon.weights.safetensors import open_tensors, save_safetensors
from test_bad_input import rows_of
from test_pipeline import make_pipeline

HUB = "hub/models--Qwen--Qwen2.5-9B/snapshots"
# {folder: (entries of config.json, how tensors are named, what else to do in it)}
FOLDERS = {"gptq": ({"quantization_config": {"quant_method": "gptq"}}, {}, None),
    "mlx": ({"quantization": {"bits": 4}}, {}, None), "awq": ({}, {"q_proj.weight": "q_proj.qweight"}, None),
    "bnb": ({}, {"model.norm.weight": "model.norm.weight.absmax"}, None),
    "merged": ({}, {"q_proj.weight": "q_proj.lora_A.weight"}, None),
    "float8": ({}, {}, lambda p: replace(p / "model.safetensors", b'"F32"', b'"F8_E4M3"')),
    "u32": ({}, {}, lambda p: replace(p / "model.safetensors", b'"F32"', b'"U32"')),
    "bin": ({}, {}, lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin")),
    "parts": ({}, {}, lambda p: (p / "model.safetensors").rename(p / "model-00001-of-00002.safetensors")),
    "half": ({}, {}, lambda p: (p / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-2.safetensors"}}', encoding="utf-8")),
    "gguf": ({}, {}, lambda p: [(p / "config.json").unlink(), (p / "q4.gguf").touch()]),
    "lora": ({}, {}, lambda p: (p / "config.json").rename(p / "adapter_config.json")),
    "no--words": ({}, {}, lambda p: (p / "tokenizer.json").unlink()), f"{HUB}/abc": ({}, {}, None)}
AS_LLM, AS_CKPT = ({name: words for f, name, words in rows_of("recognise.txt", HUB=HUB) if f == flag} for flag in ("--llm", "--ckpt"))


def replace(path, old, new):
    """In the header of a safetensors file."""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header = raw[8:8 + n].replace(old, new)
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + n:])


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with all of them, a sound LLM "qwen" and a checkpoint "ckpt"."""
    root, pipe = tmp_path_factory.mktemp("given"), make_pipeline()
    pipe.save(root / "ckpt")
    llm = {k: v for k, v in pipe.model.llm.state_dict().items() if k != "lm_head.weight"}
    config = {"model_type": "qwen2", **asdict(pipe.model.config.llm)}
    head = {"lm_head.weight": llm["model.embed_tokens.weight"] + 1}
    for name, (entries, names, change) in {"qwen": ({}, {}, None), "tied": ({}, head, None), **FOLDERS}.items():
        (folder := root / name).mkdir(parents=True)
        weights = llm | head if names is head else {
            next((k.replace(old, new) for old, new in names.items() if old in k), k): v for k, v in llm.items()}
        save_safetensors(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config | entries), encoding="utf-8")
        shutil.copy(root / "ckpt" / "tokenizer.json", folder)
        if change:
            change(folder)
    shutil.copytree(root / "ckpt", root / "run" / "final")
    for name in "empty", "hf":
        (root / name).mkdir()
    (root / "hf" / "config.json").write_text('{"llm": {}, "mar": {}}', encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def inside(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_CACHE", "hub")


@pytest.mark.parametrize("name", AS_LLM)
def test_what_is_no_llm_is_named_and_the_flag_with_it(name):
    with pytest.raises(ValueError, match=f"{AS_LLM[name]}.*; pass another --llm$"):
        chat.load_text_pipeline(name, "cpu", "float32")
    with pytest.raises(ValueError, match=f"{AS_LLM[name]}.*; change --llm$"):
        Assembly(pico(), llm=name).load_tokenizer()


@pytest.mark.parametrize("name", AS_CKPT)
def test_what_is_no_checkpoint_is_named(name):
    with pytest.raises(ValueError, match=f"{AS_CKPT[name]}.*--ckpt"):
        load_pipeline(name)


def test_an_llm_whose_head_differs_from_the_embedding_it_is_tied_to_loads_with_a_note():
    llm, _, note = load_llm("tied")
    assert "lm_head.weight differs" in note and not load_llm("qwen")[2]
    assert llm.lm_head.weight is llm.model.embed_tokens.weight
    assert llm.lm_head.weight.equal(open_tensors("qwen")["model.embed_tokens.weight"])
    assert any("lm_head.weight differs" in line for line in Assembly(pico(), llm="tied").report)


def test_parts_are_taken_from_whole_models_too():
    whole, assembly = Pipeline.load("ckpt").model, Assembly(pico(), vae="ckpt", mar="ckpt", llm="ckpt")
    assert assembly.config == whole.config and len(assembly.load_tokenizer()) == 384
    for part in "vae", "mar", "llm":
        assert {k: v.tolist() for k, v in assembly.stored[part].items()} == {
            k: v.tolist() for k, v in getattr(whole, part).state_dict().items() if k != "lm_head.weight"}
    assert load_llm("ckpt")[0].model.norm.weight.equal(whole.llm.model.norm.weight)


def test_weights_in_another_dtype_leave_no_pages_of_the_file_in_memory(tmp_path):
    """Converted one by one, float32 weights need half their size, not their size and a half."""
    def mapped():
        with open("/proc/self/smaps", encoding="utf-8") as f:
            blocks = f.read().split(f"{tmp_path}/m.safetensors")[1:]
        return sum(int(b.split("Rss:")[1].split()[0]) for b in blocks) / 1024
    if not Path("/proc/self/smaps").exists():
        pytest.skip("no /proc/self/smaps here")
    save_safetensors({"a": torch.zeros(2**22), "b": torch.zeros(2**22)}, tmp_path / "m.safetensors")       # 16 MB each
    file = open_tensors(tmp_path / "m.safetensors")
    kept = [file["a"].sum()]
    assert mapped() > 15
    kept += [file.copy("a", torch.bfloat16), file.copy("b", torch.bfloat16)]
    assert mapped() < 2 and kept[1].dtype == torch.bfloat16 and not file["b"].any()
