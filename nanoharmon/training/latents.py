"""The latents of all pictures, encoded once by the frozen VAE and kept in OUT/cache, as float16.

    OUT/cache/latents_NAME_SIZE_HASH.npy      (N, S, C): N rows of the source NAME, at SIZE pixels

After stage vae, training reads latents only: the VAE is frozen, so a picture's latents never change.

Simplified: no augmentation after encoding; crops of the user's own pictures are made before (imports.py).
"""
import hashlib
import random
import shutil

import numpy as np
import torch
from tqdm import tqdm

from ..pictures import at_once, to_pixels


def measure_scale(config, model, batches):
    """vae.scale = 1 / std of the VAE's means: the diffusion schedule expects unit variance. config: Config."""
    rng = random.Random(f"{config.data.seed}/scale")             # the same pictures in every process
    size = config.stages["vae"].size
    with torch.no_grad():
        latents = torch.cat([model.vae.moments(part)[0] for _ in range(8)
                             for part in batches.images(rng, 64, size).split(at_once(size))])
    config.model.vae.scale = model.vae.config.scale = round(1 / latents.std().item(), 4)


def load_latents(run, pipe, batches, size):
    """Give every source its latents of this size; what OUT/cache does not hold is encoded now."""
    cache = run.out / "cache"
    for source in batches.sources:
        path = latents_path(cache, source, size, pipe.model.vae)
        if not path.exists():
            encode_together(run, pipe.model.vae, source, size, path)
        source.latents[size] = np.load(path, mmap_mode="r")


def encode_together(run, vae, source, size, path):
    """Each process encodes a share of a source's pictures into one file, which is renamed when it is whole."""
    (h, w), part = vae.grid_of(size, size), path.with_suffix(".part.npy")
    if run.is_main:
        for stale in path.parent.glob(f"latents_{source.cache_name}_{size}_*"):  # of other pictures or another VAE
            stale.unlink()
        new_cache(part, source.rows, h * w, vae.config.z_channels)
    run.wait()
    encode_share(vae, source, size, part, run.rank, run.world_size)
    run.wait()
    if run.is_main:
        part.rename(path)
    run.wait()


def latents_path(cache, source, size, vae):
    """Where the latents of a source's pictures are kept. The name depends on the pictures, their size and the VAE, so
    latents of anything else are not found."""
    parts = hashlib.sha256(f"{source.content} {vae.config.scale}".encode())
    for name, tensor in vae.state_dict().items():
        if not name.startswith(("decoder.", "post_quant_conv.")):                # latents do not depend on these
            parts.update(tensor.float().cpu().contiguous().numpy())
    return cache / f"latents_{source.cache_name}_{size}_{parts.hexdigest()[:12]}.npy"


def new_cache(path, n, tokens, channels):
    """An empty file for `encode_share`: float16 (n, tokens, channels)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    need, free = n * tokens * channels * 2, shutil.disk_usage(path.parent).free
    if need > free:                          # writing into a mapped file on a full disk would be a bus error
        raise ValueError(f"the latents of {n} pictures need {need / 1e6:.0f} MB, {path.parent} has only "
                         f"{free / 1e6:.0f} MB; free space, or pass --out on another disk")
    np.lib.format.open_memmap(path, "w+", np.float16, (n, tokens, channels)).flush()


def encode_share(vae, source, size, path, rank, world_size):
    """Encode every world_size-th batch of a source's pictures, from the rank-th on, into the file of `new_cache`."""
    out, device = np.load(path, mmap_mode="r+"), next(vae.parameters()).device
    batch = at_once(size)
    starts = range(rank * batch, len(out), world_size * batch)
    for start in tqdm(starts, desc=f"encode {size} px", disable=rank > 0):
        rows = range(start, min(start + batch, len(out)))
        images = to_pixels(torch.from_numpy(source.pictures(rows, size))).to(device)       # (batch, 3, size, size)
        with torch.no_grad():
            latents = vae.encode(images)                                                   # (batch, S, C)
        out[start:start + len(rows)] = latents.half().cpu().numpy()
    out.flush()
