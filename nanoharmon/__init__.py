"""nanoharmon: Harmon (arXiv 2503.21979) in plain PyTorch, small enough to read in an afternoon.

Letters used for shapes throughout: B batch, T text tokens, S image tokens (the h x w latent grid), K visible image
tokens, U buffers, D MAR width, E LLM width, C channels of an image token, L length of a sequence, N number of rows.
"""
import contextlib
import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3           # malloc.h

# idle threads sleep instead of spinning, which beside a busy program makes all slower (docs/HARDWARE.md).
# Torch reads this when it is imported, so import nanoharmon first; a user's own value stays
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# glibc gives freed memory back to the system, which hands it out again page by page, zeroed: for large tensors that
# can take as long as the arithmetic (docs/LOG.md). Keep up to 1 GiB; a user's own setting stays
if "MALLOC_TRIM_THRESHOLD_" not in os.environ and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
    with contextlib.suppress(AttributeError, OSError, TypeError):                # systems without glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_MMAP_THRESHOLD, 2**25)     # the most that it takes

__all__ = ["Pipeline"]


def __getattr__(name):
    """`from nanoharmon import Pipeline` loads torch and the model; what needs neither, such as --help, does not."""
    if name != "Pipeline":
        raise AttributeError(f"module 'nanoharmon' has no attribute {name!r}")
    from .pipeline import Pipeline
    return Pipeline
