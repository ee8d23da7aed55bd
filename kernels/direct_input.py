"""Patterns that are on the network's grid already, checked and scaled in one pass, compiled with Numba.

Arrays only; one thread, without the GIL. It equals, to the last bit, what `hxrd.models.preprocess` and
`hxrd.models.registry.network_input` do one step after the other.
"""

import numpy as np

from .compiled import compiled

FINE, NOT_FINITE, FLAT = 0, 1, 2  # values of `doubt`
_INFINITY = np.int32(0x7F800000)  # bits of a float32; those of a NaN are greater
_MAGNITUDE = np.int32(0x7FFFFFFF)


@compiled
def _extreme_keys(row):
    """Return the least and the greatest key of a row: integers in the order of the floats they stand for.

    The minimum of floats is no vector code, for the sake of NaN; that of integers is, ten times as quick.
    """
    bits = row.view(np.int32)
    low, high = _MAGNITUDE, np.int32(-_MAGNITUDE)
    for j in range(len(bits)):
        key = bits[j] ^ ((bits[j] >> np.int32(31)) & _MAGNITUDE)
        low, high = min(low, key), max(high, key)
    return low, high


@compiled
def _value_of(key):
    bits = np.empty(1, np.int32)
    bits[0] = key ^ ((key >> np.int32(31)) & _MAGNITUDE)
    return np.float64(bits.view(np.float32)[0])


@compiled
def _scaled(row, largest, out):
    for j in range(len(row)):
        value = np.float32(np.float64(row[j]) / largest)
        out[j] = value if value > 0 else np.float32(0)


@compiled
def _transform(row, root, offset, out):
    if root:
        for j in range(len(row)):
            out[j] = np.sqrt(row[j])
    else:
        out[:] = row
    if offset != 0:
        for j in range(len(row)):
            out[j] += offset


@compiled
def direct_rows(intensity, least_contrast, root, offset, out, doubt):
    """Clip patterns at zero, divide them by their maximum, transform them, and say what is wrong with them.

    Parameters
    ----------
    intensity : ndarray, shape (n, n_points), float32
        On the network's grid; any scale.
    least_contrast : float
        A span of values below this part of the largest is flat.
    root : bool
        Whether to take the square root.
    offset : float32
        Added last.
    out : ndarray, shape (n, n_points), float32
        Filled; a doubtful row as if it were zeros.
    doubt : ndarray, shape (n,), uint8
        Filled with `FINE`, `NOT_FINITE` or `FLAT`.
    """
    for i in range(len(intensity)):
        row, values = intensity[i], out[i]
        doubt[i] = FINE
        extremes = _extreme_keys(row)
        if extremes[1] >= _INFINITY or extremes[0] <= ~_INFINITY:
            doubt[i] = NOT_FINITE
        else:
            low, high = _value_of(extremes[0]), _value_of(extremes[1])
            if high <= 0 or high - low <= least_contrast * max(abs(low), abs(high)):
                doubt[i] = FLAT
            elif low >= 0 and high == 1:
                _transform(row, root, offset, values)
            else:
                _scaled(row, high, values)
                _transform(values, root, offset, values)
        if doubt[i] != FINE:
            values[:] = offset
