"""nanoharmon: Harmon (arXiv 2503.21979) in plain PyTorch, small enough to read in an afternoon.

Letters used for shapes throughout: B batch, T text tokens, S image tokens (the h x w latent grid), K visible image
tokens, U buffer tokens, D MAR width, E LLM width, C channels of a latent token, L length of the LLM's sequence.
"""
from .pipeline import Pipeline

__all__ = ["Pipeline"]
