"""FSDP2: each process keeps only its part of the transformer blocks, for models that do not fit on one GPU.

    torchrun --nproc_per_node=4 train.py --preset harmon-1.5b --init h15 --stage 3 --optim.fsdp true

`fully_shard` turns a block's parameters into DTensors, of which each of N processes holds 1/N; they are gathered when
the block is computed, and dropped again. Gradients, Adam's moments and the average (EMA) are DTensors, too.

Only blocks are sharded (82 % of harmon-1.5b's parameters). The rest, embeddings, projectors, the heads and the VAE, is
whole in every process, and averaged as without sharding (parallel.py): FSDP's hooks sit on `forward`, our losses are
methods. Whatever runs a block or gathers weights must be done by all processes: saving, and drawing on the way.

Simplified: one stage per start, because what is frozen may not change after the first forward; AdamW, since Muon needs
whole matrices; no fp16; every process first builds the whole model. Tests use gloo on CPU, and one process on a GPU
(nccl); several GPUs were never at hand.
"""
import torch
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm


def shard_blocks(model, world_size, device_type):
    """Shard the blocks of a Harmon over all processes, in place. Returns its trained {name: parameter}."""
    from torch.distributed.device_mesh import init_device_mesh     # only here: it takes half as long as torch itself
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh(device_type, (world_size,))
    for block in (*model.mar.encoder_blocks, *model.mar.decoder_blocks, *model.llm.model.layers):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def is_sharded(tensor):
    return hasattr(tensor, "placements")                         # a DTensor


def apart(tensors):
    """The whole and the sharded ones of some tensors, as two lists: torch's batched functions want one kind."""
    kinds = [[t for t in tensors if is_sharded(t) == kind] for kind in (False, True)]
    return [kind for kind in kinds if kind]


def like(value, p):
    """A full tensor, sharded over the processes as parameter p is; unchanged if p is not, or has another shape."""
    if is_sharded(p) and value.shape == p.shape:                 # an optimizer's step count has no dimensions
        from torch.distributed.tensor import distribute_tensor
        return distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
    return value


def gathered(x, keep=True):
    """A nest of dicts and lists with its DTensors made whole, on the host. All processes must call it; without `keep`,
    in those that write no file, None stands for them."""
    if isinstance(x, dict):
        return {k: gathered(v, keep) for k, v in x.items()}
    if isinstance(x, list):
        return [gathered(v, keep) for v in x]
    if not is_sharded(x):
        return x
    full = x.full_tensor()
    return full.cpu() if keep else None


def clip_gradients(params, limit):
    """torch's clip_grad_norm_, also for a mixture of whole and sharded parameters. Returns the norm before."""
    if not any(map(is_sharded, params)):
        return clip_grad_norm_(params, limit)
    kinds = apart([p for p in params if p.grad is not None])
    norms = [get_total_norm([p.grad for p in kind]) for kind in kinds]
    norm = torch.stack([n.full_tensor() if is_sharded(n) else n for n in norms]).norm()
    for kind in kinds:
        clip_grads_with_norm_(kind, limit, norm)
    return norm
