"""What people really have where a model was expected: recognised, and said in words, with what to do.

Each function returns the end of an error, "" for what it does not know. A flag to change is added by who has one.
"""
import os
import re
from pathlib import Path

from ..files import read_json

ORIGINAL = "expected float32, float16 or bfloat16; get the model as it was before"
QUANTIZED = {r"\.(qweight|qzeros)$": "GPTQ or AWQ", r"\.(absmax|quant_map)$|\.quant_state\.": "bitsandbytes",
             r"\.weight_scale(_inv)?$": "float8 or int8"}                    # {pattern of a tensor's name: made by}


def in_place_of_a_folder(path):
    """What to say about a path, file or folder, that is no directory with a config.json."""
    path = Path(path)
    if path.is_file():
        return f"a file, expected the directory with the model in it; is it {path.parent}?"
    if not path.exists():
        name = path.as_posix()
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or path.parent.exists():
            return "No such file or folder"
        local = snapshots(cache() / f"models--{name.replace('/', '--')}")
        return f"no such folder here, but it reads like a name on Hugging Face's hub: " + (
            f"there is a download of it in {local[-1]}" if local else
            f"first run  hf download {name} --local-dir {path.name}  and then pass {path.name}")
    if found := snapshots(path):
        return f"a place in Hugging Face's cache, which keeps the model in {found[-1]}"
    if found := [s for model in sorted(path.glob("models--*")) for s in snapshots(model)]:
        return f"the whole cache of Hugging Face; a model in it is {found[0]}"
    if (path / "adapter_config.json").is_file():
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path", "its model")
        return f"a LoRA adapter for {base!s:.80}, expected a whole model; first merge them (merge_and_unload of peft)"
    if any(path.glob("*.gguf")):
        return "GGUF, for llama.cpp, expected safetensors; get the directory that it was made from"
    runs = [*path.glob("final/config.json"), *sorted(path.glob("stage_*/config.json"), key=os.path.getmtime)[::-1]]
    if runs:
        return f"the folder of a training, which keeps the model in {runs[0].parent}"
    return "no config.json here, expected the whole directory of a model"


def in_place_of_weights(path):
    """What to say about a directory without model.safetensors and without its index."""
    if any(path.glob("model-*-of-*.safetensors")):
        return "parts of the weights, but no model.safetensors.index.json, expected both; complete the download"
    if any(path.glob("*.bin")):
        return "PyTorch's .bin only, expected model.safetensors; load it with transformers, and save_pretrained it"
    if any(path.glob("*.safetensors")) or any(path.glob("*.gguf")):
        return "no model.safetensors here, expected a file of that name"
    if found := [*path.glob("*.ckpt"), *path.glob("*.pth")]:
        return f"no model.safetensors here; is it {found[0]}?"
    return "" if (path / "config.json").is_file() else in_place_of_a_folder(path)


def in_config(values):
    """What to say about a config.json (a dict) whose weights cannot be read."""
    how = values.get("quantization_config") or values.get("quantization")
    if not how:
        return ""
    kind = how.get("quant_method") or f"{how.get('bits')} bits, as MLX does" if isinstance(how, dict) else how
    return f"its weights are quantized ({kind!s:.40}), {ORIGINAL}"


def in_names(names):
    """What to say about tensors that are no weights of a model."""
    if any("lora_" in name for name in names):
        return "a LoRA adapter, expected a whole model; merge the two first (merge_and_unload of peft)"
    for pattern, kind in QUANTIZED.items():
        if any(re.search(pattern, name) for name in names):
            return f"quantized weights ({kind}), {ORIGINAL}"
    return ""


def cache():
    """Where Hugging Face's programs keep what they download."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def snapshots(folder):
    """The versions of a model in the cache, the newest last."""
    return sorted((p for p in folder.glob("snapshots/*") if p.is_dir()), key=os.path.getmtime)
