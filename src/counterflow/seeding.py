"""Deterministic seeding, in one place.

Every experiment draws from generators made here, so that a result depends on its seeds and on nothing
that ran before it in the same process.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from counterflow.exceptions import InputError

__all__ = ["numpy_generator", "seed_of", "torch_generator"]


def seed_of(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, independent of the seeds of all other purposes.

    Args:
        seed: The experiment's seed, a whole number >= 0.
        purpose: What the numbers are for, such as ``"weights"``: equal seeds with other purposes give
            unrelated streams.

    Raises:
        InputError: If the seed is not a whole number >= 0.

    Example:
        >>> seed_of(0, "weights") == seed_of(0, "weights"), seed_of(0, "weights") == seed_of(0, "order")
        (True, False)
    """
    text = "\x1f".join([str(_whole(seed)), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _whole(seed: object) -> int:
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool) and seed >= 0:
        return int(seed)
    raise InputError(f"seed must be a whole number >= 0, got {seed!r}")


def torch_generator(seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for one purpose.

    Example:
        >>> a, b = torch_generator(0, "weights"), torch_generator(0, "order")
        >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
        False
    """
    return torch.Generator(device=device).manual_seed(seed_of(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose.

    Example:
        >>> int(numpy_generator(0, "noise").integers(100)) == int(numpy_generator(0, "noise").integers(100))
        True
    """
    return np.random.default_rng(seed_of(seed, *purpose))
