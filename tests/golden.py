"""Golden tensors for the tests: what the official Harmon, MAR and Hugging Face code computes (tests/golden/*.npz).

Every file has a JSON `config`, weights `sd/...`, inputs `in/...` and outputs `out/...`. An output matches if it is
within max(10 x its noise floor, 1e-4 x max(1, max|ref|)); the noise floor is how far rounding all weights moves it.
"""
import json
from pathlib import Path

import numpy as np
import torch

from nanoharmon.config import HarmonConfig, LLMConfig, MARConfig, VAEConfig

FOLDER = Path(__file__).parent / "golden"


class Golden:
    def __init__(self, name, prefix=""):
        self.z, self.prefix = np.load(FOLDER / f"{name}.npz"), prefix        # prefix: the variant, for instance "rand/"
        self.config = json.loads(str(self.z["config"]))

    def tensor(self, key):
        value = torch.from_numpy(np.array(self.z[key]))
        return value.float() if value.dtype == torch.float16 else value       # stored as float16 only where lossless

    def has(self, key):
        return "out/" + self.prefix + key in self.z.files

    def input(self, key):
        return self.tensor("in/" + self.prefix + key)

    def output(self, key):
        return self.tensor("out/" + self.prefix + key)

    def outputs(self, start):
        """{rest of the name: tensor} of the outputs whose names begin with `start`."""
        start = "out/" + self.prefix + start
        return {key.removeprefix(start): self.tensor(key) for key in self.z.files if key.startswith(start)}

    def state_dict(self):
        start = "sd/" + self.prefix
        return {key.removeprefix(start): self.tensor(key) for key in self.z.files if key.startswith(start)}

    def check(self, key, got, where=...):
        """got is the golden output `key`, of which only `where` is compared."""
        ref = self.output(key)
        floor = self.config.get("noise_floor", {}).get(self.prefix + key, 0.0)
        check(key, got[where], ref[where], max(10 * floor, 1e-4 * max(1.0, ref[where].abs().max().item())))


def check(name, got, ref, tolerance=None):
    ref = torch.as_tensor(ref)
    assert got.shape == ref.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(ref.shape)}"
    tolerance = 1e-4 * max(1.0, ref.abs().max().item()) if tolerance is None else tolerance
    error = (got.detach().double() - ref.double()).abs().max().item()
    assert error <= tolerance, f"{name}: off by {error:.2e}, tolerance {tolerance:.1e}"      # NaN fails, too


def check_gradients(golden, key, module):
    """The norm of each gradient, and the gradients stored whole."""
    params = dict(module.named_parameters())
    norms = {name: norm.item() for name, norm in golden.outputs(key + "gradnorm/").items()}
    for name, norm in norms.items():
        check(name, params[name].grad.norm(), norm, min(1e-4 * max(1.0, *norms.values()), 1e-3 * norm + 1e-5))
    for name, grad in golden.outputs(key + "grad/").items():
        check(name, params[name].grad, grad)


def vae_config(c, z_channels, scale):
    return VAEConfig(ch=c["ch"], ch_mult=tuple(c["ch_mult"]), num_res_blocks=c["num_res_blocks"], z_channels=z_channels,
                     resolution=c["resolution"], scale=scale)


def mar_config(c):
    names = MARConfig.__dataclass_fields__
    return MARConfig(grid=c["img_size"] // c["vae_stride"], token_dim=c["vae_embed_dim"], attn_dropout=0.0,
                     proj_dropout=0.0, **{k: v for k, v in c.items() if k in names})


def llm_config(c):
    return LLMConfig(**{k: v for k, v in c.items() if k in LLMConfig.__dataclass_fields__})


def harmon_config(c):
    return HarmonConfig(vae_config(c["vae"], c["vae"]["embed_dim"], c["vae_scale"]), mar_config(c["mar"]),
                        llm_config(c["llm"]), grad_scale=c["grad_scale"])


def pixels(uint8):
    return uint8.float() / 255 * 2 - 1


def split(mask):
    """The official float mask (1 = hidden) as (visible, hidden) indices in raster order."""
    index = torch.arange(mask.shape[1]).expand_as(mask)
    return index[mask == 0].view(len(mask), -1), index[mask == 1].view(len(mask), -1)


def loss_rows(mask, mul):
    """Where the hidden tokens are in the official loss's rows, which are all B*S tokens, tiled `mul` times."""
    rows = mask.flatten().nonzero().flatten()
    return torch.cat([rows + i * mask.numel() for i in range(mul)])


def replay(*tensors):
    """A randn(shape) that hands out the rows of the given tensors one after the other, and checks the shapes."""
    numbers = iter([row for t in tensors for row in t])

    def randn(shape):
        noise = next(numbers)
        assert noise.shape == tuple(shape)
        return noise
    return randn


def drawing_noise(golden, folder, iters):
    """The noise of a whole drawing, as the head asks for it: in each iteration the initial noise, then each step's."""
    tensors = []
    for i in range(iters):
        start, steps = golden.input(f"{folder}init_{i}"), golden.input(f"{folder}steps_{i}")
        tensors += [start[None], steps[:, :len(start)]]
    return replay(*tensors)
