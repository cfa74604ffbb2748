"""torch.compile for the blocks of a model: a minute or more to start. What it gains depends on the machine: try it.

    python train.py --compile                            or, in Python: print(compile_blocks(pipe.model))

Compiled in place are MAR's blocks, the diffusion MLP's, and of the LLM's layers what does not see the KV cache, a
Python object that changes in every step. Parameters, their names and checkpoints stay what they are; numbers agree up
to rounding. Lengths are symbols from the start (`dynamic`): another batch or prompt compiles nothing again. Only what
is new in kind does: a stage that trains other parameters, drawing instead of training.

On a CPU, nano gained nothing from it (docs/LOG.md). On an H200 the numbers agree (tests/test_cuda.py); what it gains
there is not known. Left out: CUDA graphs (mode="reduce-overhead"), which would record each length anew.
"""
import torch


def compile_blocks(model):
    """Compile the blocks of a Harmon in place. Returns a line for the user: what was done, or why nothing was."""
    device = next(model.parameters()).device
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as e:                   # of many kinds: a C++ compiler is missing, or triton, or Python is too new
        reason = " ".join(str(e).split())[:150]
        return f"note: nothing is compiled, torch.compile does not work here: {type(e).__name__}: {reason}"
    torch._dynamo.config.cache_size_limit = 64           # kinds of calls: training or not, trained or frozen, ...
    mar, layers = model.mar, model.llm.model.layers
    parts = [*mar.encoder_blocks, *mar.decoder_blocks, *mar.diffloss.net.res_blocks, mar.diffloss.net.final_layer]
    for layer in layers:
        parts += layer.mlp, layer.input_layernorm, layer.post_attention_layernorm
    for part in parts:
        part.compile(dynamic=True)
    return f"{len(parts)} parts of the model are compiled when they first run: the first steps take long"
