"""Random numbers in kernels, decided by whole numbers that name them, compiled with Numba.

A stream is the one element of a uint64 array, so that what is drawn depends on its first value alone.
"""

import math

import numpy as np

from hxrd.kernels.compiled import compiled
from hxrd.kernels.hashing import FIRST_FACTOR, GOLDEN, SECOND_FACTOR

_GAMMA, _FIRST_FACTOR, _SECOND_FACTOR = np.uint64(GOLDEN), np.uint64(FIRST_FACTOR), np.uint64(SECOND_FACTOR)
_FIRST_SHIFT, _SECOND_SHIFT, _THIRD_SHIFT = np.uint64(30), np.uint64(27), np.uint64(31)
_TO_53_BITS = np.uint64(11)


@compiled
def mixed(value):
    """Return 64 well-mixed bits of 64: the finaliser of SplitMix64 (Steele, Lea & Flood 2014, Fig. 16)."""
    value = (value ^ (value >> _FIRST_SHIFT)) * _FIRST_FACTOR
    value = (value ^ (value >> _SECOND_SHIFT)) * _SECOND_FACTOR
    return value ^ (value >> _THIRD_SHIFT)


@compiled
def start_stream(state, seed, number, purpose):
    """Set the stream (uint64, shape (1,)) that three whole numbers name."""
    key = mixed(np.uint64(seed) + _GAMMA)
    key = mixed((key ^ np.uint64(number)) + _GAMMA)
    state[0] = mixed((key ^ np.uint64(purpose)) + _GAMMA)


@compiled
def uniform(state):
    """Return the next number of the stream, evenly distributed in [0, 1)."""
    state[0] += _GAMMA
    return float(mixed(state[0]) >> _TO_53_BITS) * 1.1102230246251565e-16


@compiled
def normal(state):
    """Return the next number of the stream, normally distributed (Box & Muller 1958)."""
    radius = math.sqrt(-2.0 * math.log(1.0 - uniform(state)))
    return radius * math.cos(2.0 * math.pi * uniform(state))


@compiled
def chosen(cumulative, start, stop, state):
    """Return an index from start to stop - 1; `cumulative` grows to 1 there."""
    target = uniform(state)
    low, high = start, stop - 1
    while low < high:
        middle = (low + high) // 2
        if cumulative[middle] > target:
            high = middle
        else:
            low = middle + 1
    return low
