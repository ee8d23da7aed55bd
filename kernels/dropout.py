"""The dropout mask that every implementation of the network's kernels computes: a hash of a counter.

Nothing is stored between the forward and the backward pass, and the mask depends on no launch geometry.
The hash is SplitMix64's (see `hashing`).
"""

import torch
from torch import Tensor

from .hashing import FIRST_FACTOR, GOLDEN, SECOND_FACTOR


def threshold(dropout: float) -> int:
    """Return the least value of the hash's upper 32 bits for which an element is kept."""
    return round(dropout * 2**32)


def keep_mask(seed: Tensor, shape: tuple[int, int, int], dropout: float) -> Tensor:
    """Return which elements of a convolution's output dropout keeps.

    Parameters
    ----------
    seed : Tensor, shape (1,), int64
        On any device.
    shape : tuple of int
        (batch, L_out, channels); elements are numbered in this order.
    dropout : float
        Probability of losing an element, in [0, 1).

    Returns
    -------
    Tensor of bool, of that shape
        On the seed's device.
    """
    counter = torch.arange(1, shape[0] * shape[1] * shape[2] + 1, device=seed.device)
    z = seed + counter * _signed(GOLDEN)
    z = (z ^ _shifted(z, 30)) * _signed(FIRST_FACTOR)
    z = (z ^ _shifted(z, 27)) * _signed(SECOND_FACTOR)
    z = z ^ _shifted(z, 31)
    return (_shifted(z, 32) >= threshold(dropout)).reshape(shape)


def apply(x_BLN: Tensor, seed: Tensor | None, dropout: float) -> Tensor:
    """Zero the elements that are lost and divide the others by 1 − `dropout`.

    Raises
    ------
    ValueError
        Dropout without a seed.
    """
    if not dropout:
        return x_BLN
    if seed is None:
        raise ValueError("dropout needs a seed: an int64 tensor of shape (1,)")
    kept = keep_mask(seed, (x_BLN.shape[0], x_BLN.shape[1], x_BLN.shape[2]), dropout)
    return torch.where(kept, x_BLN * (1 / (1 - dropout)), 0)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
