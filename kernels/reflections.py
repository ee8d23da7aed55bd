"""The reflections of one crystal, one for each set of equivalents, compiled with Numba.

Of each set the member with the greatest w·h is taken, w = (M², M, 1): first the greatest h, then k, then
l. For a given h and k, each rotation R of the Laue class then bounds l from one side (n·h ≥ 0 with
n = w − R w), so the members taken form columns along l, and no equivalent is ever looked at. Columns
start at multiples of `LANES`, with room to the next multiple, for vector code.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hxrd.kernels.compiled import compiled

LANES = 8
_ORDER = 4096.0  # M: above twice any index
_SLACK = 1e-9  # rational bounds on l have denominators below M², 3e-8 apart from whole numbers
_EQUAL_PHASE = 0.02  # cycles; a real shift is at least 1/24, and files round their translations


class Bounds(NamedTuple):
    """What the Laue class says of l in a column: rows (a_h, a_k, index of the rotation).

    Parameters
    ----------
    lower, upper : ndarray, shape (48, 3)
        l ≥ a_h h + a_k k, and l ≤ a_h h + a_k k.
    column : ndarray, shape (48, 3)
        Whatever l, 0 ≤ a_h h + a_k k.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    column: NDArray[np.float64]


class Columns(NamedTuple):
    """Reflections in columns along l.

    Parameters
    ----------
    h, k, first_l, length, offset : ndarray of int64, shape (n_columns,)
        Reflection j of a column has l = first_l + j and stands at offset + j of the other arrays.
    s_squared : ndarray, shape (n_places,)
        Å⁻².
    multiplicity : ndarray, shape (n_places,)
        Members of the set, Friedel mates included; 0 for absences and for the room between columns.
    """

    h: NDArray[np.int64]
    k: NDArray[np.int64]
    first_l: NDArray[np.int64]
    length: NDArray[np.int64]
    offset: NDArray[np.int64]
    s_squared: NDArray[np.float64]
    multiplicity: NDArray[np.float64]


@compiled
def new_bounds():
    """Return empty `Bounds`."""
    return Bounds(np.empty((48, 3)), np.empty((48, 3)), np.empty((48, 3)))


@compiled
def new_columns(n_columns, n_places):
    """Return empty `Columns`."""
    return Columns(
        np.empty(n_columns, np.int64),
        np.empty(n_columns, np.int64),
        np.empty(n_columns, np.int64),
        np.empty(n_columns, np.int64),
        np.empty(n_columns, np.int64),
        np.empty(n_places),
        np.empty(n_places),
    )


@compiled
def index_limits(metric, s_high):
    """Greatest |h|, |k|, |l| of a reflection with s ≤ s_high, from the reciprocal metric (Å⁻²)."""
    limits = np.empty(3, np.int64)
    determinant = (
        metric[0, 0] * (metric[1, 1] * metric[2, 2] - metric[1, 2] ** 2)
        - metric[0, 1] * (metric[0, 1] * metric[2, 2] - metric[1, 2] * metric[0, 2])
        + metric[0, 2] * (metric[0, 1] * metric[1, 2] - metric[1, 1] * metric[0, 2])
    )
    for axis in range(3):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        edge_squared = (metric[a, a] * metric[b, b] - metric[a, b] ** 2) / determinant
        limits[axis] = math.floor(2 * s_high * math.sqrt(edge_squared) + 1e-6)
    return limits


@compiled
def set_bounds(rotations, n_rotations, bounds):
    """Write the bounds that a Laue class sets; return how many of each kind there are."""
    n_lower = n_upper = n_column = 0
    for index in range(1, n_rotations):
        r = rotations[index]
        nh = _ORDER * _ORDER - (r[0, 0] * _ORDER * _ORDER + r[0, 1] * _ORDER + r[0, 2])
        nk = _ORDER - (r[1, 0] * _ORDER * _ORDER + r[1, 1] * _ORDER + r[1, 2])
        nl = 1.0 - (r[2, 0] * _ORDER * _ORDER + r[2, 1] * _ORDER + r[2, 2])
        if nl > 0:
            target, place = bounds.lower, n_lower
            n_lower += 1
        elif nl < 0:
            target, place = bounds.upper, n_upper
            n_upper += 1
        else:
            target, place = bounds.column, n_column
            n_column += 1
            nl = -1.0
        target[place, 0], target[place, 1], target[place, 2] = -nh / nl, -nk / nl, index
    return n_lower, n_upper, n_column


@compiled
def find_columns(metric, s_high, bounds, sizes, columns):
    """Find the columns of the unique reflections with s ≤ s_high (without their contents).

    Returns
    -------
    n_columns, n_places : int
    columns : Columns
        Those given, or larger ones.
    """
    n_lower, n_upper, n_column = sizes
    limit = 4 * s_high * s_high * (1 + 1e-12)
    g = metric
    flat00 = g[0, 0] - g[0, 2] * g[0, 2] / g[2, 2]
    flat01 = g[0, 1] - g[0, 2] * g[1, 2] / g[2, 2]
    flat11 = g[1, 1] - g[1, 2] * g[1, 2] / g[2, 2]
    limits = index_limits(metric, s_high)
    found = places = 0
    for h in range(limits[0] + 1):
        spread = (h * flat01) ** 2 - flat11 * (h * h * flat00 - limit)
        if spread < 0:
            continue
        middle, half = -h * flat01 / flat11, math.sqrt(spread) / flat11
        for k in range(math.ceil(middle - half - _SLACK), math.floor(middle + half + _SLACK) + 1):
            taken = True
            for index in range(n_column):
                value = bounds.column[index, 0] * h + bounds.column[index, 1] * k
                if value < 0:
                    taken = False
                    break
            if not taken:
                continue
            room = limit - (h * h * flat00 + 2 * h * k * flat01 + k * k * flat11)
            if room < 0:
                continue
            centre, reach = -(h * g[0, 2] + k * g[1, 2]) / g[2, 2], math.sqrt(room / g[2, 2])
            low, high = centre - reach, centre + reach
            for index in range(n_lower):
                low = max(low, bounds.lower[index, 0] * h + bounds.lower[index, 1] * k)
            for index in range(n_upper):
                high = min(high, bounds.upper[index, 0] * h + bounds.upper[index, 1] * k)
            first, last = math.ceil(low - _SLACK), math.floor(high + _SLACK)
            if h == 0 and k == 0:
                first = max(first, 1)
            if last < first:
                continue
            if found == len(columns.h):
                columns = _longer(columns, found)
            columns.h[found], columns.k[found] = h, k
            columns.first_l[found], columns.length[found] = first, last - first + 1
            columns.offset[found] = places
            found += 1
            places += (last - first + LANES) // LANES * LANES
    if places > len(columns.s_squared):
        columns = Columns(
            columns.h,
            columns.k,
            columns.first_l,
            columns.length,
            columns.offset,
            np.empty(2 * places),
            np.empty(2 * places),
        )
    return found, places, columns


@compiled
def _longer(columns, found):
    result = new_columns(2 * found, len(columns.s_squared))
    for new, old in zip(result[:5], columns[:5]):  # noqa: B905 (Numba knows no strict)
        new[:found] = old
    return result


@compiled
def fill_columns(metric, s_low, s_high, bounds, sizes, n_rotations, translations, is_operation, columns, n):
    """Write s² and multiplicity of every reflection of the first `n` columns; absences get 0."""
    n_lower, n_upper, n_column = sizes
    low, high = s_low * s_low, s_high * s_high
    g = metric
    active = np.empty(48, np.int64)
    for column in range(n):
        h, k = columns.h[column], columns.k[column]
        first, length, offset = columns.first_l[column], columns.length[column], columns.offset[column]
        plane = 0.25 * (h * h * g[0, 0] + k * k * g[1, 1] + 2 * h * k * g[0, 1])
        tilt = 0.5 * (h * g[0, 2] + k * g[1, 2])
        n_active = 0
        for index in range(n_column):
            if bounds.column[index, 0] * h + bounds.column[index, 1] * k == 0:
                active[n_active] = int(bounds.column[index, 2])
                n_active += 1
        always = n_active
        for j in range((length + LANES - 1) // LANES * LANES):
            place, l = offset + j, first + j
            columns.s_squared[place] = plane + tilt * l + 0.25 * l * l * g[2, 2]
            columns.multiplicity[place] = 0.0
        for j in range(length):
            place, l = offset + j, first + j
            if not low <= columns.s_squared[place] <= high:
                continue
            n_active = always
            if j == 0:
                for index in range(n_lower):
                    edge = bounds.lower[index, 0] * h + bounds.lower[index, 1] * k
                    if abs(edge - l) < _SLACK:
                        active[n_active] = int(bounds.lower[index, 2])
                        n_active += 1
            if j == length - 1:
                for index in range(n_upper):
                    edge = bounds.upper[index, 0] * h + bounds.upper[index, 1] * k
                    if abs(edge - l) < _SLACK:
                        active[n_active] = int(bounds.upper[index, 2])
                        n_active += 1
            allowed = True
            for index in range(n_active):
                operation = active[index]
                if is_operation[operation]:
                    t = translations[operation]
                    phase = h * t[0] + k * t[1] + l * t[2]
                    if abs(phase - round(phase)) > _EQUAL_PHASE:
                        allowed = False
                        break
            if allowed:
                columns.multiplicity[place] = n_rotations / (1 + n_active)
