"""The sizes of a downloaded model: of an LLM from its config.json, of a MAR and a VAE from the shapes of their weights.

Simplified: the number of heads is in no shape. It is known for the widths of the official models, and 0 for others.
"""
import math

from ..config import LLMConfig, MARConfig, VAEConfig
from ..flags import check_fields
from .recognise import in_config

HEADS = {768: 12, 1024: 16, 1280: 16}                # MAR width: heads, of base, large and huge


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
    """MARConfig from the shapes of a MAR. stored: stored.Stored. Heads are 0 = unknown for unofficial widths."""
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
    """VAEConfig from the shapes of a KL autoencoder. stored: stored.Stored."""
    ch, inputs = stored.shape("encoder.conv_in.weight", 4)[:2]
    levels = range(stored.count(r"encoder\.down\.(\d+)\."))
    widths = [stored.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in levels]
    return VAEConfig(
        ch=ch, ch_mult=tuple(w // ch for w in widths), patch_size=max(1, math.isqrt(inputs // 3)),
        num_res_blocks=stored.count(r"encoder\.down\.0\.block\.(\d+)\."),
        z_channels=stored.shape("quant_conv.weight", 4)[0] // 2,
        attn_resolutions=tuple(256 >> i for i in levels if f"encoder.down.{i}.attn.0.q.weight" in stored))
