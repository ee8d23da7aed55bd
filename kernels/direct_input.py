"""Patterns that are on the network's grid already, checked and scaled in one pass, compiled with Numba.

Arrays only; one thread, without the GIL. It equals, to the last bit, what `hxrd.models.preprocess` and
`hxrd.models.registry.network_input` do one step after the other.
"""

import numpy as np

from .compiled import compiled, compiled_fastmath

FINE, NOT_FINITE, FLAT = 0, 1, 2  # values of `doubt`
_EXPONENT = np.uint32(0x7F800000)  # all of its bits are set in infinities and what is no number


@compiled
def _is_finite(row):
    odd = np.uint32(0)
    bits = row.view(np.uint32)
    for j in range(len(bits)):
        odd |= np.uint32((bits[j] & _EXPONENT) == _EXPONENT)
    return odd == 0


@compiled_fastmath
def _extremes(row):
    low, high = row[0], row[0]
    for j in range(len(row)):
        low = row[j] if row[j] < low else low
        high = row[j] if row[j] > high else high
    return low, high


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
        if not _is_finite(row):
            doubt[i] = NOT_FINITE
        else:
            extremes = _extremes(row)
            low, high = np.float64(extremes[0]), np.float64(extremes[1])
            if high <= 0 or high - low <= least_contrast * max(abs(low), abs(high)):
                doubt[i] = FLAT
            elif low >= 0 and high == 1:
                _transform(row, root, offset, values)
            else:
                _scaled(row, high, values)
                _transform(values, root, offset, values)
        if doubt[i] != FINE:
            values[:] = offset
