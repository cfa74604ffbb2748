"""Names and shapes of the official models, and no waiting for the GPU.     python -m pytest -q tests/test_meta.py

On the meta device tensors have shapes but no data, so even Harmon-1.5B costs nothing. It stands for a GPU: whatever
needs a number on the host (`.item()`, a boolean index, a copy back) and would stall a GPU is an error there.
"""
import functools
import json
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from golden import FOLDER
from nanoharmon.config import PRESETS, MARConfig
from nanoharmon.harmon import Harmon
from nanoharmon.mar import MAR
from nanoharmon.vae import vae_loss


# --- names and shapes ------------------------------------------------------------------------------------------------

@functools.cache
def shapes(size):
    """{name: shape} of a whole model, or of MAR-L, which no Harmon has."""
    with torch.device("meta"):
        model = Harmon(PRESETS[size]()) if size != "large" else torch.nn.ModuleDict({"mar": MAR(MARConfig(
            encoder_embed_dim=1024, encoder_depth=16, encoder_num_heads=16, decoder_embed_dim=1024, decoder_depth=16,
            decoder_num_heads=16, diffloss_d=8, diffloss_w=1280))})
    return {name: list(t.shape) for name, t in model.state_dict().items()}


HALF, WHOLE = "harmon-0.5b", "harmon-1.5b"
OFFICIAL = {                                             # file: (model, prefix of the part, ours that are not in it)
    "harmon_0.5b_inference_with_vae": (HALF, "", "none"), "harmon_1.5b_inference_with_vae": (WHOLE, "", "none"),
    "harmon_0.5b_train_state_dict_no_vae": (HALF, "", "vae."),
    "harmon_1.5b_train_state_dict_no_vae": (WHOLE, "", "vae."),
    "lth14_mar_base": (HALF, "mar.", "none"), "lth14_mar_large": ("large", "mar.", "none"),
    "lth14_mar_huge": (WHOLE, "mar.", "none"), "kl16_vae": (HALF, "vae.", "none"),
    "qwen2.5_0.5b_state_dict": (HALF, "llm.", "none"), "qwen2.5_1.5b_state_dict": (WHOLE, "llm.", "none"),
    "qwen2.5_0.5b_safetensors": (HALF, "llm.", "lm_head."), "qwen2.5_1.5b_safetensors": (WHOLE, "llm.", "lm_head.")}


@pytest.mark.parametrize("path", sorted((FOLDER / "keys").glob("*.json")), ids=lambda path: path.stem)
def test_names_and_shapes_are_those_of_the_official_checkpoint(path):
    size, prefix, without = OFFICIAL[path.stem]
    got = {name.removeprefix(prefix): shape for name, shape in shapes(size).items() if name.startswith(prefix)}
    assert {k: v for k, v in got.items() if not k.startswith(without)} == json.loads(path.read_text(encoding="utf-8"))


# --- nothing waits for the device ------------------------------------------------------------------------------------

class Watch(TorchDispatchMode):
    """Counts the host-to-device copies, and refuses everything that would need data from the device."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim")

    def __init__(self):
        super().__init__()
        self.copies = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        def device(x):
            return {t.device.type for t in tree_leaves(x) if isinstance(t, torch.Tensor)}
        name, before = op.overloadpacket.__name__, device((args, kwargs))
        assert not ("meta" in before and name in self.WAITS), f"{op} waits for the device"
        out = op(*args, **(kwargs or {}))
        assert not (before == {"meta"} and "cpu" in device(out)), f"{op} copies from the device to the host"
        if name in ("_to_copy", "copy_") and "cpu" in before and "meta" in device(out):
            self.copies[name] += 1
        return out


@pytest.mark.parametrize("code", [
    lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.cpu(), lambda x: x.masked_select(x > 0), torch.nonzero,
    lambda x: x.tolist(), lambda x: torch.equal(x, x)])
def test_the_watch_notices_what_waits(code):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), Watch():
        code(torch.empty(3, device="meta"))


B, T = 2, 9


@pytest.fixture(scope="module", params=["nano", "harmon-1.5b"])
def model(request):
    """One layer of each kind: the same code as with all of them, in a fraction of the time."""
    config = PRESETS[request.param]()
    config.mar.encoder_depth = config.mar.decoder_depth = config.mar.diffloss_d = config.llm.num_hidden_layers = 1
    with torch.device("meta"):
        return Harmon(config).train()


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def ids(*shape):
    return empty(*shape, dtype=torch.long)


def mask(*shape):
    return empty(*shape, dtype=torch.bool)


def latents(model):
    return empty(B, model.config.mar.grid ** 2, model.config.mar.token_dim)      # (B, S, C)


def vae_step(model):
    side = model.config.vae.stride * model.config.mar.grid
    return vae_loss(model.vae, empty(B, 3, side, side), 1e-6)[0]


def llm_step(model):
    return model.llm.loss(model.llm.model(model.llm.embed(ids(B, T)), is_real=mask(B, T)), ids(B, T), ids(5))


def understanding_step(model):
    L = model.config.mar.grid ** 2 + model.config.mar.buffer_size + T
    return model.understanding_loss(latents(model), ids(B, L), ids(B, L), mask(B, L), ids(5))


STEPS = {"vae": vae_step, "llm": llm_step, "mar": lambda model: model.mar.class_loss(latents(model), ids(B)),
         "generation": lambda model: model.generation_loss(latents(model), ids(B, T), mask(B, T)),
         "understanding": understanding_step}


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_waits_for_nothing(model, name):
    with Watch():
        loss = STEPS[name](model)
        assert loss.shape == () and loss.device.type == "meta" and loss.requires_grad
        loss.backward()


def draw(model, iters, cfg=3.0, sampler="ddpm"):
    """Draw under the watch; returns how many tensors went from the host to the device."""
    rows, S = B if cfg == 1 else 2 * B, model.config.mar.grid ** 2
    with Watch() as watch:
        out = model.draw(ids(rows, T), mask(rows, T), iters, cfg, steps=2, orders=ids(B, S), sampler=sampler)
    assert out.shape == latents(model).shape and out.device.type == "meta"
    return watch.copies.total()


@pytest.mark.parametrize("cfg, sampler", [(1.0, "ddpm"), (3.0, "ddim"), (3.0, "dpm++")])
def test_drawing_waits_for_nothing_and_once_the_schedule_is_there_nothing_crosses_over(model, cfg, sampler):
    draw(model, 1, cfg, sampler)
    assert draw(model, 1, cfg, sampler) == draw(model, 2, cfg, sampler) == 0


def test_class_sampling_and_decoding_wait_for_nothing(model):
    S = model.config.mar.grid ** 2
    with Watch():
        drawn = model.mar.class_sample(ids(B), 2, orders=ids(B, S), steps=3)
        image = model.vae.decode(drawn, (model.config.mar.grid,) * 2)
    assert image.device.type == "meta"
