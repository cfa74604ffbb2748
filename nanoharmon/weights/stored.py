"""The weights of one part of a model: from a file of its own, or from a whole Harmon, ours or as published. Its sizes,
too: of an LLM from its config.json, of a MAR or a VAE from the shapes of its weights, where no number of heads shows.
"""
import math
import re
from pathlib import Path

import torch

from ..config import HarmonConfig, LLMConfig, MARConfig, VAEConfig, from_dict
from ..files import read_json
from ..flags import check_fields
from .checkpoint import match_weights
from .recognise import in_config, in_place_of_a_folder
from .safetensors import load_foreign, open_tensors

IGNORE = {"vae": ("loss.*",), "llm": ("*.rotary_emb.inv_freq",)}           # in some files, of no use to anyone
MAPPED = 2**27                                       # bytes read from a mapped file before it is mapped anew
HEADS = {768: 12, 1024: 16, 1280: 16}                # MAR width: heads, of base, large and huge; 0 for others


def read(path):
    """{name: tensor} of a safetensors file, index or directory, or of a .pth/.ckpt: mapped, not read."""
    path = Path(path)
    if path.is_dir() or path.suffix in (".safetensors", ".json"):
        return open_tensors(path)
    found = load_foreign(path)
    found = found if isinstance(found, dict) else {}
    found = next((found[k] for k in ("model_ema", "model", "state_dict") if isinstance(found.get(k), dict)), found)
    found = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)}
    if not found:
        raise ValueError(f"{path}: holds no tensors by name, expected a PyTorch checkpoint of Harmon, MAR or KL-16")
    return found


class Stored(dict):
    """The weights of one part: those of a file whose names begin with `prefix`, without it. flag: names the file."""

    def __init__(self, path, prefix="", flag=""):
        self.path, self.prefix, self.flag = Path(path), prefix, flag
        self.open()

    @classmethod
    def of(cls, part, path):
        """A part as a file of its own, or taken from a whole Harmon, ours or as published."""
        is_whole = any(name.startswith(f"{part}.") for name in read(path))
        return cls(path, f"{part}." if is_whole else "", f"--{part}")

    def open(self):
        self.clear()                                 # lets go of the old mapping, and so of the pages read through it
        self.update({k.removeprefix(self.prefix): t for k, t in read(self.path).items() if k.startswith(self.prefix)})
        self.used = 0

    def copy(self, name, dtype):
        """One tensor, in memory of its own."""
        if self.used > MAPPED:
            self.open()
        self.used += self[name].nbytes
        return self[name].to(dtype, copy=True)

    def shape(self, name, dims):
        shape = tuple(self[name].shape) if name in self else None
        if shape is None or len(shape) != dims or 0 in shape:
            raise ValueError(f"{self.path}: {self.prefix + name} is {shape or 'missing'}, expected {dims} dimensions, "
                             f"as in the right kind of file")
        return shape

    def count(self, pattern):
        """One more than the largest number that fits the group of a pattern, 0 if nothing does."""
        return max([int(m[1]) + 1 for m in map(re.compile(pattern).match, self) if m], default=0)


def read_config(folder):
    """The config.json of a downloaded directory."""
    if not Path(folder, "config.json").is_file():
        raise ValueError(f"{folder}: {in_place_of_a_folder(folder)}")
    return read_json(Path(folder, "config.json"))


def stored_sizes(part, path):
    """The config of one part, from the config.json of a directory that we wrote; None for any other path."""
    stored = read_config(path) if Path(path, "config.json").is_file() else {}
    where = f"{path}/config.json: \"model\""
    return getattr(from_dict(HarmonConfig, stored["model"], where), part) if "model" in stored else None


def read_llm_config(folder):
    """LLMConfig of a Qwen2.5 directory, or of the LLM in a whole Harmon, ours or as published."""
    stored = read_config(folder)
    return stored_sizes("llm", folder) or llm_config(stored.get("llm", stored), Path(folder) / "config.json")


def match_part(part, module, stored, config):
    """match_weights for one part of a model, and a note ("" mostly). Where an LLM's config ties what its file holds
    twice and differently, the embedding counts, as for Hugging Face."""
    ignore, note, (embed, head) = IGNORE.get(part, ()), "", ("model.embed_tokens.weight", "lm_head.weight")
    if part == "llm" and config.tie_word_embeddings and stored.keys() >= {embed, head} and \
            not torch.equal(stored[embed], stored[head]):
        ignore, note = (*ignore, head), f"{head} differs from the embedding, to which config.json ties it"
    return match_weights(module, stored, ignore), note


# --- sizes ------------------------------------------------------------------------------------------------------------

def llm_config(values, where):
    """LLMConfig from Hugging Face's config.json of a Qwen2 model, of transformers 4 or 5."""
    if not isinstance(values, dict) or not isinstance(values.get("rope_parameters") or {}, dict):
        raise ValueError(f"{where}: {values!r:.80}, expected an object; rope_parameters, too")
    kind, act = values.get("model_type", "qwen2"), values.get("hidden_act", "silu")
    if found := in_config(values):
        raise ValueError(f"{where}: {found}")
    rope = values.get("rope_parameters") or {}                       # transformers 5 keeps all about RoPE in here
    scaling = values.get("rope_scaling") or rope
    if kind != "qwen2" or act != "silu":
        raise ValueError(f"{where}: model_type {kind!r} with {act!r}, expected 'qwen2' with 'silu' (Qwen2 or Qwen2.5)")
    if not isinstance(scaling, dict) or scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise ValueError(f"{where}: rope_scaling {scaling} is not supported, expected none")
    if values.get("use_sliding_window"):
        raise ValueError(f"{where}: use_sliding_window is not supported, expected false")
    # what Hugging Face takes for entries that are not there
    values = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 32768,
              "rope_theta": rope.get("rope_theta", 1e4)} | values
    c = LLMConfig(**{name: values.get(name) for name in LLMConfig.__dataclass_fields__})
    try:
        check_fields("llm", c)
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None
    if c.hidden_size % (2 * c.num_attention_heads) or c.num_attention_heads % c.num_key_value_heads:
        raise ValueError(f"{where}: hidden_size {c.hidden_size}, {c.num_attention_heads} heads and "
                         f"{c.num_key_value_heads} key/value heads do not divide one another")
    return c


def mar_config(stored):
    """MARConfig from the shapes of a MAR. stored: Stored. Heads are 0 = unknown for unofficial widths."""
    width, channels = stored.shape("z_proj.weight", 2)
    S, decoder_width = stored.shape("diffusion_pos_embed_learned", 3)[1:]
    return MARConfig(
        grid=math.isqrt(S), token_dim=channels, encoder_embed_dim=width, decoder_embed_dim=decoder_width,
        encoder_depth=stored.count(r"encoder_blocks\.(\d+)\."), encoder_num_heads=HEADS.get(width, 0),
        decoder_depth=stored.count(r"decoder_blocks\.(\d+)\."), decoder_num_heads=HEADS.get(decoder_width, 0),
        mlp_ratio=stored.shape("encoder_blocks.0.mlp.fc1.weight", 2)[0] / width,
        buffer_size=stored.shape("encoder_pos_embed_learned", 3)[1] - S,
        class_num=stored.shape("class_emb.weight", 2)[0],
        diffloss_d=stored.count(r"diffloss\.net\.res_blocks\.(\d+)\."),
        diffloss_w=stored.shape("diffloss.net.input_proj.weight", 2)[0])


def vae_config(stored):
    """VAEConfig from the shapes of a KL autoencoder. stored: Stored."""
    ch, inputs = stored.shape("encoder.conv_in.weight", 4)[:2]
    levels = range(stored.count(r"encoder\.down\.(\d+)\."))
    widths = [stored.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in levels]
    return VAEConfig(
        ch=ch, ch_mult=tuple(w // ch for w in widths), patch_size=max(1, math.isqrt(inputs // 3)),
        num_res_blocks=stored.count(r"encoder\.down\.0\.block\.(\d+)\."),
        z_channels=stored.shape("quant_conv.weight", 4)[0] // 2,
        attn_resolutions=tuple(256 >> i for i in levels if f"encoder.down.{i}.attn.0.q.weight" in stored))
