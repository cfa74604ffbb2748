"""A small Harmon for the checks of lab *unify*: random sizes, and weights in which every mistake shows."""
import torch

from ...config import HarmonConfig, LLMConfig, MARConfig, VAEConfig
from ...harmon import Harmon


def small_harmon(rng, **mar):
    """A Harmon of random small sizes with weights that are not small, so that every mistake shows in the numbers.

    rng: random.Random. mar: fields of MARConfig that are given. D, E, U and S all differ.
    """
    heads, channels = rng.choice((1, 2)), rng.choice((2, 3, 5))
    D, kv_heads = heads * rng.choice((6, 8)), rng.choice((1, 2))
    E = 2 * kv_heads * rng.choice((10, 12))
    sizes = dict(grid=rng.choice((3, 4)), buffer_size=rng.choice((2, 5))) | mar
    config = HarmonConfig(
        VAEConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=channels, patch_size=2, attn_resolutions=()),
        MARConfig(**sizes, token_dim=channels, encoder_embed_dim=D, encoder_depth=1, encoder_num_heads=heads,
                  decoder_embed_dim=D, decoder_depth=1, decoder_num_heads=heads, class_num=2, attn_dropout=0.0,
                  proj_dropout=0.0, diffloss_d=1, diffloss_w=8, diffusion_batch_mul=1),
        LLMConfig(vocab_size=40, hidden_size=E, intermediate_size=24, num_hidden_layers=2,
                  num_attention_heads=2 * kv_heads, num_key_value_heads=kv_heads, rope_theta=100.0))
    model, generator = Harmon(config).eval(), torch.Generator().manual_seed(rng.getrandbits(48))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * (1.5 * p.shape[-1] ** -0.5 if p.ndim == 2 else 1))
    model.vae.requires_grad_(False)
    return model
