"""Random numbers that belong to a row: even, normal and Poisson, compiled with Numba.

All of them are counter-based: they depend on the row's own seed, on the stream (which effect draws) and on
their position in it, never on other rows or on how rows are shared out among threads.
"""

import math

import numpy as np
from numpy.typing import NDArray

from hxrd.kernels.compiled import compiled
from hxrd.kernels.randomness import mixed

# Steele, Lea & Flood (2014), OOPSLA, Fig. 17 (SplitMix64): the increment and the mixing function.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)

# Below this mean the Poisson distribution is drawn exactly; from it on by Giles (2016), ACM Trans. Math.
# Softw. 42, 7, Eq. 6 (Q_N3), whose distribution function is off by at most 8e-6 there, less beyond.
EXACT_BELOW = 24.0
_TABLES_PER_COUNT = 8  # alias tables at means 0, ⅛, ¼ …; what is left of a mean is drawn by itself
_COLUMNS = 64  # P(more than 63 counts) is 4e-12 at a mean of 24
_REMAINDER_TERMS = 7  # P(more than 7 counts) is 1e-12 at a mean of ⅛

# The normal distribution's lower half, u from 0 to ½: one quadratic a cell.
_CELLS = 1024
_TAIL_CELLS = 16  # the first ones, where u < 1/128, are too steep and have a table of their own
_TAIL_TABLE = 512

_BLOCK = 128  # points drawn together; divides no work between threads
_LN2 = math.log(2.0)


def _alias_tables() -> NDArray[np.uint64]:
    """Walker's alias method for Poisson numbers, one row a mean (Vose 1991, IEEE Trans. Softw. Eng. 17, 972).

    An entry is a threshold of 58 bits whose lowest six are the alias (and so much it is rounded).
    """
    from scipy.stats import poisson

    means = np.arange(int(EXACT_BELOW) * _TABLES_PER_COUNT) / _TABLES_PER_COUNT
    table = np.empty((len(means), _COLUMNS), np.uint64)
    for row, mean in enumerate(means):
        share = poisson.pmf(np.arange(_COLUMNS), mean) * _COLUMNS
        poor = [k for k in range(_COLUMNS) if share[k] < 1]
        rich = [k for k in range(_COLUMNS) if share[k] >= 1]
        kept, alias = np.ones(_COLUMNS), np.arange(_COLUMNS)
        while poor and rich:
            low, high = poor.pop(), rich.pop()
            kept[low], alias[low] = share[low], high
            share[high] -= 1 - share[low]
            (poor if share[high] < 1 else rich).append(high)
        threshold = np.minimum(kept * 2.0**52, 2.0**52 - 1).astype(np.uint64)
        table[row] = (threshold << np.uint64(6)) | alias.astype(np.uint64)
    return table


def _normal_quantiles() -> NDArray[np.float32]:
    """Coefficients of the quantile in each cell of u, exact at its ends and its middle, shape (3, _CELLS)."""
    from scipy.special import ndtri

    edges = np.maximum(np.arange(_CELLS), _TAIL_CELLS) / (2 * _CELLS)  # the tail's own cells are never read
    low, middle, high = (ndtri(edges + share / (2 * _CELLS)) for share in (0.0, 0.5, 1.0))
    return np.array([low, 4 * middle - 3 * low - high, 2 * (low + high - 2 * middle)], np.float32)


def _tail_quantiles() -> NDArray[np.float64]:
    """Quantiles at even steps of √(−2 ln u), in which the tail is nearly straight."""
    from scipy.special import ndtri_exp

    steps = _TAIL_FIRST + _TAIL_STEP * np.arange(_TAIL_TABLE + 2)
    return ndtri_exp(-0.5 * steps**2)


_TAIL_FIRST = math.sqrt(-2 * math.log(_TAIL_CELLS / (2 * _CELLS)))
_TAIL_STEP = (math.sqrt(2 * 56 * _LN2) - _TAIL_FIRST) / _TAIL_TABLE  # down to u = 2⁻⁵⁶
_ALIAS = _alias_tables()
_QUANTILE_0, _QUANTILE_1, _QUANTILE_2 = _normal_quantiles()
_TAIL = _tail_quantiles()


@compiled
def stream_key(seed, stream):
    """Where the numbers of one stream of one row begin."""
    return mixed(mixed(seed + _GAMMA) ^ ((np.uint64(stream) + np.uint64(1)) * _MULTIPLIER_2))


@compiled
def _word(key, position):
    """Return the 64 random bits at a position of a stream."""
    return mixed(key + np.uint64(position) * _GAMMA)


@compiled
def uniforms(seeds, stream, out):
    """Even random numbers in [0, 1), for each row its own.

    Parameters
    ----------
    seeds : ndarray of uint64, shape (n,)
    stream : int
        Which effect draws.
    out : ndarray of float64, shape (n, k)
        Written in place.
    """
    for row in range(len(seeds)):
        key = stream_key(seeds[row], stream)
        for position in range(out.shape[1]):
            out[row, position] = np.float64(_word(key, position) >> np.uint64(11)) * 2.0**-53


@compiled
def uniforms_at(seeds, stream, positions, out):
    """Even random numbers in (0, 1), each at a position of its own in the stream of its own seed.

    Parameters
    ----------
    seeds : ndarray of uint64, shape (n,)
    stream : int
    positions : ndarray of int64, shape (n,)
    out : ndarray of float64, shape (n,)
        Written in place.
    """
    for i in range(len(seeds)):
        word = _word(stream_key(seeds[i], stream), positions[i])
        out[i] = (np.float64(word >> np.uint64(12)) + 0.5) * 2.0**-52


@compiled
def _normal(word):
    """Return the normal number that 64 random bits stand for: its sign, a cell of u, the place in it."""
    cell = (word >> np.uint64(53)) & np.uint64(_CELLS - 1)
    place = np.float64(np.int64(word & np.uint64(0x1FFFFFFFFFFFFF))) * 2.0**-53
    value = _QUANTILE_0[cell] + place * (_QUANTILE_1[cell] + place * _QUANTILE_2[cell])
    return -value if word >> np.uint64(63) else value


@compiled
def _normal_in_tail(word):
    """Return the same for a word whose cell is one of the first `_TAIL_CELLS`."""
    u = (np.float64(np.int64(word & np.uint64(0x7FFFFFFFFFFFFFFF))) + 0.5) * 2.0**-64
    place = min((math.sqrt(-2.0 * math.log(u)) - _TAIL_FIRST) / _TAIL_STEP, float(_TAIL_TABLE))
    cell = int(place)
    value = _TAIL[cell] + (place - cell) * (_TAIL[cell + 1] - _TAIL[cell])
    return -value if word >> np.uint64(63) else value


@compiled
def _poisson_at_quantile(mean, w):
    """Poisson number at the quantile of a normal number w, for a mean of at least `EXACT_BELOW`."""
    root = math.sqrt(mean)
    square = w * w
    correction = (-8.0 / 405.0 + square * (7.0 / 810.0 + square * (1.0 / 270.0))) / root
    correction -= w * (1.0 / 36.0 + square * (1.0 / 72.0))
    return math.floor(mean + root * w + (1.0 / 3.0 + square * (1.0 / 6.0)) + correction / root)


@compiled
def _count_large(expected, scale, key, first, words, out):
    """Counts of a block of points, right where the mean is at least `EXACT_BELOW`."""
    for i in range(len(expected)):
        words[i] = _word(key, first + i)
    for i in range(len(expected)):
        mean = max(scale * expected[i], EXACT_BELOW)
        out[i] = _poisson_at_quantile(mean, _normal(words[i]))
    for i in range(len(expected)):
        if (words[i] >> np.uint64(53)) & np.uint64(_CELLS - 1) < np.uint64(_TAIL_CELLS):
            mean = max(scale * expected[i], EXACT_BELOW)
            out[i] = _poisson_at_quantile(mean, _normal_in_tail(words[i]))


@compiled
def _remainder(mean, word):
    """Poisson number of a mean below 1 / `_TABLES_PER_COUNT`, by inversion without a branch."""
    u = np.float64(np.int64(word >> np.uint64(11))) * 2.0**-53
    # e^−δ to 2e-14 by its Taylor series, as δ < ⅛; reciprocals of constants, as division is slow
    share = 1.0
    for k in range(8, 0, -1):
        share = 1.0 - mean * (1.0 / k) * share
    below, count = share, 0.0
    for k in range(1, _REMAINDER_TERMS + 1):
        count += 1.0 if u >= below else 0.0
        share *= mean * (1.0 / k)
        below += share
    return count


@compiled
def _count_small(expected, scale, key, first, out):
    """Counts of a block of points where the mean is below `EXACT_BELOW`; the others are left alone.

    A mean is split, λ = λ₀ + δ: the sum of a Poisson number of λ₀ (alias table) and one of δ
    (inversion) has exactly the distribution asked for.
    """
    for i in range(len(expected)):
        mean = scale * expected[i]
        inside = min(mean, EXACT_BELOW - 1e-9)
        table = np.uint64(np.int64(inside * _TABLES_PER_COUNT))
        word, second = _word(key, 2 * (first + i)), _word(key, 2 * (first + i) + 1)
        column = word >> np.uint64(58)
        entry = _ALIAS[table, column]
        kept = (word & np.uint64(0x3FFFFFFFFFFFFFF)) < entry
        count = np.int64(column if kept else entry & np.uint64(63))
        count += _remainder(inside - np.float64(np.int64(table)) / _TABLES_PER_COUNT, second)
        out[i] = count if mean < EXACT_BELOW else out[i]


@compiled
def count(expected, seeds, stream, out):
    """Count patterns: each point a Poisson number of its own mean.

    Parameters
    ----------
    expected : ndarray of float32, shape (n, n_points)
        Mean counts, not negative.
    seeds : ndarray of uint64, shape (n,)
    stream : int
    out : ndarray of float32, shape (n, n_points)
        Written in place; another array than `expected`.
    """
    for row in range(len(expected)):
        count_row(expected[row], 1.0, stream_key(seeds[row], stream), out[row])


@compiled
def count_row(expected, scale, key, out):
    """Draw the counts of one row."""
    words = np.empty(_BLOCK, np.uint64)
    second = mixed(key)
    for first in range(0, len(expected), _BLOCK):
        block = expected[first : first + _BLOCK]
        least, most = _ends(block)
        if scale * most >= EXACT_BELOW:
            _count_large(block, scale, key, first, words, out[first : first + _BLOCK])
        if scale * least < EXACT_BELOW:
            _count_small(block, scale, second, first, out[first : first + _BLOCK])


@compiled
def _ends(values):
    """Smallest and largest of numbers that are not negative: their bits, as integers, are ordered alike.

    Integers become vector code, floats (which may be NaN) would not: a tenth of the time.
    """
    bits = values.view(np.int32)
    least, most = bits[0], bits[0]
    for value in bits:
        least, most = min(least, value), max(most, value)
    ends = np.array([least, most]).view(np.float32)
    return ends[0], ends[1]


@compiled
def largest(values):
    """Largest of numbers that are not negative, of type float32."""
    return _ends(values)[1]
