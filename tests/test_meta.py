"""Names and shapes of the official models, and no waiting for the GPU.     python -m pytest -q tests/test_meta.py

On the meta device tensors have shapes but no data, so even Harmon-1.5B costs nothing. It stands for a GPU: whatever
needs a number on the host (`.item()`, a boolean index, a copy back) and would stall a GPU is an error there.
"""
import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from golden import FOLDER
from nanoharmon.config import PRESETS
from nanoharmon.harmon import Harmon
from nanoharmon.mar import MAR
from nanoharmon.vae import vae_loss
import test_convert


# KL-16's names are those behind vae., MAR-B's and MAR-H's those behind mar., Qwen2.5's those behind llm.
OFFICIAL = {"harmon_0.5b_inference_with_vae": lambda: Harmon(PRESETS["harmon-0.5b"]()),
            "harmon_1.5b_inference_with_vae": lambda: Harmon(PRESETS["harmon-1.5b"]()),
            "lth14_mar_large": lambda: MAR(test_convert.OFFICIAL["lth14_mar_large"])}


@pytest.mark.parametrize("name", OFFICIAL)
def test_names_and_shapes_are_those_of_the_official_checkpoint(name):
    with torch.device("meta"):
        ours = {key: list(t.shape) for key, t in OFFICIAL[name]().state_dict().items()}
    assert ours == json.loads((FOLDER / "keys" / f"{name}.json").read_text(encoding="utf-8"))


class Watch(TorchDispatchMode):
    """Counts the host-to-device copies, and refuses everything that would need data from the device, and float64,
    which MPS does not have."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim")

    def __init__(self):
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        def device(x):
            return {t.device.type for t in tree_leaves(x) if isinstance(t, torch.Tensor)}
        name, before = op.overloadpacket.__name__, device((args, kwargs))
        assert not ("meta" in before and name in self.WAITS), f"{op} waits for the device"
        out = op(*args, **(kwargs or {}))
        assert not (before == {"meta"} and "cpu" in device(out)), f"{op} copies from the device to the host"
        assert not any(t.dtype == torch.float64 and t.device.type == "meta" for t in tree_leaves(out)
                       if isinstance(t, torch.Tensor)), f"{op} gives float64"
        if name in ("_to_copy", "copy_") and "cpu" in before and "meta" in device(out):
            self.copies += 1
        return out


def test_the_watch_notices_float64():                    # what waits for the device, torch refuses by itself
    with pytest.raises(AssertionError, match="float64"), Watch():
        torch.empty(3, device="meta").double()


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


def test_training_steps_wait_for_nothing(model):
    mar, stride = model.config.mar, model.config.vae.stride
    latents, L = empty(B, mar.grid ** 2, mar.token_dim), mar.grid ** 2 + mar.buffer_size + T
    with Watch():
        llm = model.llm.model(model.llm.embed(ids(B, T)), is_real=ids(B, T).bool())
        for loss in (vae_loss(model.vae, empty(B, 3, stride * mar.grid, stride * mar.grid), 1e-6)[0],
                     model.llm.loss(llm, ids(B, T), ids(5)), model.mar.class_loss(latents, ids(B)),
                     model.generation_loss(latents, ids(B, T), ids(B, T).bool()),
                     model.understanding_loss(latents, ids(B, L), ids(B, L), ids(5))):
            assert loss.shape == () and loss.device.type == "meta" and loss.requires_grad
            loss.backward()


@pytest.mark.parametrize("cfg, sampler", [(1.0, "ddpm"), (3.0, "ddim"), (3.0, "dpm++")])
def test_drawing_waits_for_nothing_and_once_the_schedule_is_there_nothing_crosses_over(model, cfg, sampler):
    rows, S = (B if cfg == 1 else 2 * B, T), model.config.mar.grid ** 2
    for iters in 1, 1, 2:
        with Watch() as watch:
            model.mar.class_sample(ids(B), ids(B, S), 2, steps=3)
            drawn = model.draw(ids(*rows), ids(*rows).bool(), iters, cfg, orders=ids(B, S), steps=2, sampler=sampler)
            image = model.vae.decode(drawn, (model.config.mar.grid,) * 2)
        assert image.device.type == "meta" and drawn.shape == (B, S, model.config.mar.token_dim)
    assert watch.copies == 0
