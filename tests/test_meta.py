"""Names and shapes of the official models, and no waiting for the GPU.     python -m pytest -q tests/test_meta.py

On the meta device tensors have shapes but no data, so even Harmon-1.5B costs nothing. It stands for a GPU: whatever
needs a number on the host (`.item()`, a boolean index, a copy back) and would stall a GPU is an error there.
"""
import json
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from golden import FOLDER
from nanoharmon.config import PRESETS, MARConfig
from nanoharmon.diffloss import DiffLoss
from nanoharmon.harmon import Harmon
from nanoharmon.mar import MAR
from nanoharmon.qwen import Qwen
from nanoharmon.tokenizer import IMAGE
from nanoharmon.vae import VAE, vae_loss


def meta(make):
    with torch.device("meta"):
        return make()


# --- names and shapes ------------------------------------------------------------------------------------------------

def mar_large():
    return MAR(MARConfig(encoder_embed_dim=1024, encoder_depth=16, encoder_num_heads=16, decoder_embed_dim=1024,
                         decoder_depth=16, decoder_num_heads=16, diffloss_d=8, diffloss_w=1280))


def parts(size):
    config = PRESETS["harmon-" + size]
    return lambda: Harmon(config()), lambda: MAR(config().mar), lambda: Qwen(config().llm)


half, large = parts("0.5b"), parts("1.5b")
OFFICIAL = {                                             # file: (model, number of names, ours that are not in it)
    "harmon_0.5b_inference_with_vae": (half[0], 975, ()), "harmon_1.5b_inference_with_vae": (large[0], 1263, ()),
    "harmon_0.5b_train_state_dict_no_vae": (half[0], 663, "vae."),
    "harmon_1.5b_train_state_dict_no_vae": (large[0], 951, "vae."),
    "lth14_mar_base": (half[1], 364, ()), "lth14_mar_large": (mar_large, 476, ()),
    "lth14_mar_huge": (large[1], 604, ()),
    "qwen2.5_0.5b_state_dict": (half[2], 291, ()), "qwen2.5_1.5b_state_dict": (large[2], 339, ()),
    "qwen2.5_0.5b_safetensors": (half[2], 290, "lm_head."), "qwen2.5_1.5b_safetensors": (large[2], 338, "lm_head."),
    "kl16_vae": (lambda: VAE(PRESETS["harmon-0.5b"]().vae), 312, ())}


@pytest.mark.parametrize("name", OFFICIAL)
def test_names_and_shapes_are_those_of_the_official_checkpoint(name):
    make, count, without = OFFICIAL[name]
    expected = {k: tuple(shape) for k, shape in json.loads((FOLDER / "keys" / f"{name}.json").read_text()).items()}
    got = {k: tuple(v.shape) for k, v in meta(make).state_dict().items() if not without or not k.startswith(without)}
    assert len(got) == count and got == expected


def test_every_list_of_official_names_is_compared():
    assert {p.stem for p in (FOLDER / "keys").glob("*.json")} == set(OFFICIAL)


@pytest.mark.parametrize("preset, millions", [("harmon-0.5b", 771.40), ("harmon-1.5b", 2561.23)])
def test_parameter_counts_are_official(preset, millions):
    """Each tied weight counted once."""
    n = sum(p.numel() for p in meta(lambda: Harmon(PRESETS[preset]())).parameters())
    assert round(n / 1e6, 2) == millions


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
    lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool((x > 0).all()), lambda x: x.cpu(),
    lambda x: (x > 0).nonzero(), lambda x: x.masked_select(x > 0), lambda x: x.tolist(),
    lambda x: torch.equal(x, x), lambda x: x.unique(), lambda x: int(x.argmax()), lambda x: float(x[0])])
def test_the_watch_notices_what_waits(code):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), Watch():
        code(torch.empty(3, device="meta"))


SIZES = pytest.mark.parametrize("preset", ["nano", "micro", "harmon-1.5b"])
B, T = 2, 9


@pytest.fixture(scope="module")
def models():
    made = {}
    return lambda preset: made.setdefault(preset, meta(lambda: Harmon(PRESETS[preset]())).train())


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def sizes(model):
    c = model.config
    return c.mar.grid ** 2, c.mar.token_dim, c.mar.grid ** 2 + c.mar.buffer_size   # S, C, placeholders of a picture


def vae_step(model):
    side = model.config.vae.stride * model.config.mar.grid
    return vae_loss(model.vae, empty(B, 3, side, side), 1e-6)[0]


def llm_step(model):
    ids = empty(B, T, dtype=torch.long)
    hidden = model.llm.model(model.llm.embed(ids), is_real=empty(B, T, dtype=torch.bool))
    return model.llm.loss(hidden, ids, empty(5, dtype=torch.long))


def class_step(model):
    S, C, _ = sizes(model)
    return model.mar.class_loss(empty(B, S, C), empty(B, dtype=torch.long))


def generation_step(model):
    S, C, _ = sizes(model)
    return model.generation_loss(empty(B, S, C), empty(B, T, dtype=torch.long), empty(B, T, dtype=torch.bool))


def understanding_step(model):
    S, C, n = sizes(model)
    ids = empty(B, n + T, dtype=torch.long)
    is_real, label_index = empty(B, n + T, dtype=torch.bool), empty(5, dtype=torch.long)
    return model.understanding_loss(empty(B, S, C), ids, ids, is_real, label_index)


@SIZES
@pytest.mark.parametrize("step", [vae_step, llm_step, class_step, generation_step, understanding_step])
def test_a_training_step_waits_for_nothing(models, preset, step):
    model = models(preset)
    with Watch():
        loss = step(model)
        assert loss.shape == () and loss.device.type == "meta" and loss.requires_grad
        loss.backward()


def draw(model, iters, cfg=3.0, sampler="ddpm"):
    """Draw under the watch; returns how many tensors went from the host to the device."""
    S, C, _ = sizes(model)
    rows = B if cfg == 1 else 2 * B
    with Watch() as watch:
        out = model.draw(empty(rows, T, dtype=torch.long), empty(rows, T, dtype=torch.bool), iters, cfg, steps="2",
                         orders=empty(B, S, dtype=torch.long), sampler=sampler)
    assert out.shape == (B, S, C) and out.device.type == "meta"
    return watch.copies.total()


@pytest.mark.parametrize("preset, cfg, sampler", [
    ("nano", 1.0, "ddpm"), ("nano", 3.0, "ddim"), ("nano", 3.0, "dpm++"), ("harmon-1.5b", 3.0, "ddpm")])
def test_the_drawing_loop_waits_for_nothing(models, preset, cfg, sampler):
    draw(models(preset), 2, cfg, sampler)


def test_once_the_schedule_is_on_the_device_nothing_crosses_over(models):
    draw(models("nano"), 1)
    assert draw(models("nano"), 1) == draw(models("nano"), 2) == 0


@SIZES
def test_class_sampling_and_decoding_wait_for_nothing(models, preset):
    model = models(preset)
    S, C, _ = sizes(model)
    with Watch():
        tokens = model.mar.class_sample(empty(B, dtype=torch.long), 2, orders=empty(B, S, dtype=torch.long), steps="3")
        image = model.vae.decode(tokens, (model.config.mar.grid,) * 2)
    side = model.config.vae.stride * model.config.mar.grid
    assert image.shape == (B, 3, side, side)


def test_a_model_follows_its_inputs_device():
    """Nothing inside makes a tensor on the host by itself: timesteps, noise, masks, orders are born on the device."""
    head = meta(lambda: DiffLoss(4, 8, 32, 1))
    assert head(empty(6, 4), empty(6, 8)).device.type == "meta"
    assert head.sample(empty(6, 8), steps="2").device.type == "meta"


def test_placeholders_must_be_ids_below_zero():
    assert IMAGE < 0                                     # `ids.clamp(min=0)` makes them harmless for the embedding
