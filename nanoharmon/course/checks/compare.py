"""What the checks share: a comparison whose message points at the mistake.

A check computes what is right by an independent, slow formula, and what the plausible mistakes give; `same` raises
AssertionError with the words of the mistake that the student's result equals.
"""
from contextlib import suppress

import numpy as np
import torch


def array(value):
    """Anything that holds numbers -> float64 numpy array (bool and integers, too)."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy() if value.dtype != torch.bool else value.cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def close(got, expected, rtol=1e-4, atol=1e-5):
    got, expected = array(got), array(expected)
    return got.shape == expected.shape and bool(np.allclose(got, expected, rtol, atol))


def same(what, got, expected, wrong=None, rtol=1e-4, atol=1e-5, dtype=None):
    """Raise AssertionError unless `got` has the shape and the numbers of `expected`.

    what: the result in words, "the latents". wrong: {"what one has to do to get this": a value, or a function that
    gives it}: the message names the first that `got` equals. A plausible mistake that happens to be right for these
    inputs, or that fails, is left out. dtype: of torch, when it matters.
    """
    if got is None:
        raise AssertionError(f"{what}: None, expected a result; is there a return?")
    if isinstance(expected, torch.Tensor) and not isinstance(got, torch.Tensor):
        raise AssertionError(f"{what}: a {type(got).__name__}, expected a tensor of shape {tuple(expected.shape)}")
    if dtype is not None and got.dtype != dtype:
        raise AssertionError(f"{what}: dtype is {str(got.dtype)[6:]}, expected {str(dtype)[6:]}")
    expected = array(expected)
    try:
        right, numbers = close(got, expected, rtol, atol), array(got)
    except (TypeError, ValueError):
        raise AssertionError(f"{what}: got {str(got)[:80]!r}, expected numbers of shape {expected.shape}") from None
    if right:
        return
    for mistake, value in (wrong or {}).items():
        if explains(value, got, expected, rtol, atol):
            raise AssertionError(f"{what}: your result is what one gets when {mistake}")
    if numbers.shape != expected.shape:
        raise AssertionError(f"{what}: the shape is {numbers.shape}, expected {expected.shape}")
    if not np.isfinite(numbers).all():
        raise AssertionError(f"{what}: {int((~np.isfinite(numbers)).sum())} of {numbers.size} numbers are not finite")
    difference = np.abs(numbers - expected)
    at = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
    count = int((difference > atol + rtol * np.abs(expected)).sum())
    raise AssertionError(f"{what}: {count} of {numbers.size} numbers are wrong; "
                         f"at {list(at)} it is {numbers[at]:.5g}, expected {expected[at]:.5g}")


def explains(value, got, expected, rtol=1e-4, atol=1e-5):
    """Whether a plausible mistake gives what we got, and not by luck what was expected."""
    with suppress(Exception):                                    # a mistake need not be possible for every size
        value = value() if callable(value) else value
        return close(got, value, rtol, atol) and not close(expected, value, rtol, atol)
    return False


def unchanged(what, before, after):
    """Raise AssertionError when an argument was changed in place: before is a clone made ahead of the call."""
    if not torch.equal(before, after):
        raise AssertionError(f"your code changes {what} in place; the caller still needs it")
