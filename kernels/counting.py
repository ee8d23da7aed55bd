"""From diffracted patterns to measured ones, compiled with Numba: phases mixed, background, gaps, counts."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hxrd.kernels.compiled import compiled, compiled_fastmath
from hxrd.kernels.corrections import CYLINDER_TERMS, cylinder_series, cylinder_transmission
from hxrd.kernels.poisson import count_row, largest, stream_key

BACKGROUND_TERMS = 10  # see `add_background`
_NEGLIGIBLE = 1e-4  # of a hump or rise: beyond, it is left out
_LN2 = math.log(2.0)
_SMOOTH_STEP = 100  # points between which absorption and shifts are taken as linear in 2θ


@compiled_fastmath
def add_background(terms, start, step, out):
    """Smooth background of mean level near 1, on an even 2θ grid.

    Parameters
    ----------
    terms : ndarray, shape (BACKGROUND_TERMS,)
        Level; coefficients c₁…c₄ of Chebyshev polynomials over the range; height, centre (deg) and FWHM
        (deg) of a Gaussian hump; height and decay length (deg) of the rise to low angles:
        level · (1 + Σ cₙ Tₙ(x) + hump + rise), with x from −1 to 1.
    start, step : float
        Degrees.
    out : ndarray of float32, shape (n_points,)
        Added to.
    """
    level, c1, c2, c3, c4 = terms[0], terms[1], terms[2], terms[3], terms[4]
    # As a plain polynomial: T₂ = 2x² − 1, T₃ = 4x³ − 3x, T₄ = 8x⁴ − 8x² + 1
    a0, a1, a2, a3, a4 = 1 - c2 + c4, c1 - 3 * c3, 2 * c2 - 8 * c4, 4 * c3, 8 * c4
    n_points = len(out)
    delta = 2.0 / max(n_points - 1, 1)
    for i in range(n_points):
        x = i * delta - 1.0
        out[i] += level * (a0 + x * (a1 + x * (a2 + x * (a3 + x * a4))))
    _add_hump(level * terms[5], terms[6], terms[7], start, step, out)
    _add_rise(level * terms[8], terms[9], step, out)


@compiled_fastmath
def _add_hump(height, centre, fwhm, start, step, out):
    """Gaussian by recurrence from its middle outwards, as far as it counts."""
    if height == 0.0:
        return
    scale = 4 * _LN2 / fwhm**2
    reach = fwhm * math.sqrt(math.log(1 / _NEGLIGIBLE) / (4 * _LN2))
    first = max(0, math.ceil((centre - reach - start) / step))
    last = min(len(out) - 1, math.floor((centre + reach - start) / step))
    x = start + first * step - centre
    value = height * math.exp(-scale * x * x)
    ratio = math.exp(-scale * step * (2 * x + step))
    shrink = math.exp(-2 * scale * step**2)
    for i in range(first, last + 1):
        out[i] += value
        value *= ratio
        ratio *= shrink


@compiled_fastmath
def _add_rise(height, decay, step, out):
    if height == 0.0:
        return
    value, shrink = height, math.exp(-step / decay)
    for i in range(min(len(out), math.ceil(math.log(1 / _NEGLIGIBLE) * decay / step))):
        out[i] += value
        value *= shrink


@compiled_fastmath
def _add_incoherent(level, mu_r, start, step, out):
    """Scattering without structure, weakened by a cylinder like the lines."""
    if mu_r == 0.0:
        for i in range(len(out)):
            out[i] += level
        return
    series = np.empty(CYLINDER_TERMS)
    cylinder_series(mu_r, series)
    left = cylinder_transmission(series, math.radians(start / 2))
    for first in range(0, len(out), _SMOOTH_STEP):
        last = min(first + _SMOOTH_STEP, len(out))
        right = cylinder_transmission(series, math.radians((start + last * step) / 2))
        slope = (right - left) / (last - first)
        for i in range(first, last):
            out[i] += level * (left + slope * (i - first))
        left = right


@compiled_fastmath
def _interpolate(pattern, place, slope, strength, change, out):
    """Cubic interpolation of a pattern at places that move evenly (Keys 1981, IEEE Trans. ASSP 29, 1153)."""
    for i in range(len(out)):
        position = place + slope * i
        left = math.floor(position)
        u = np.float32(position - left)
        k = left if 1 <= left <= len(pattern) - 3 else 1
        before, here, after, beyond = pattern[k - 1], pattern[k], pattern[k + 1], pattern[k + 2]
        half = np.float32(0.5)
        cubic = np.float32(3.0) * (here - after) + beyond - before
        square = np.float32(2.0) * before - np.float32(5.0) * here + np.float32(4.0) * after - beyond
        value = here + half * u * (after - before + u * (square + u * cubic))
        inside = (left == k) & (value > np.float32(0.0))
        out[i] = np.float32(strength + change * i) * value if inside else np.float32(0.0)


@compiled
def realigned(patterns, source, shift, displacement, mu_r, start, step, rows, out):
    """Show patterns as they would be with another alignment and absorption, on the calling thread.

    A line's shift is taken as constant over its width; what moves in over the ends of the range is 0.

    Parameters
    ----------
    patterns : ndarray of float32, shape (n, n_points)
    source : ndarray of int64, shape (m,)
        Row of `patterns` that each row of `out` is made of.
    shift, displacement : ndarray, shape (m,)
        Degrees: lines move by shift + displacement · cosθ.
    mu_r : ndarray, shape (m, 2)
        μR of the cylinder, as it was and as it is to be.
    start, step : float
        Of the 2θ grid, degrees.
    rows : ndarray of int64
        Which rows of `out` are to be done.
    out : ndarray of float32, shape (m, n_points)
        Written in place.
    """
    was, now = np.empty(CYLINDER_TERMS), np.empty(CYLINDER_TERMS)
    n_points = patterns.shape[1]
    for row in rows:
        cylinder_series(mu_r[row, 0], was)
        cylinder_series(mu_r[row, 1], now)
        left, left_ratio = _realignment(0, shift[row], displacement[row], was, now, start, step)
        for first in range(0, n_points, _SMOOTH_STEP):
            last = min(first + _SMOOTH_STEP, n_points)
            right, right_ratio = _realignment(last, shift[row], displacement[row], was, now, start, step)
            slope = 1.0 - (right - left) / (last - first)
            change = (right_ratio - left_ratio) / (last - first)
            _interpolate(patterns[source[row]], first - left, slope, left_ratio, change, out[row, first:last])
            left, left_ratio = right, right_ratio


@compiled
def _realignment(point, shift, displacement, was, now, start, step):
    """Return how many points a line at a point moves, and the factor of its intensity."""
    theta = math.radians(start + point * step) / 2
    moved = (shift + displacement * math.cos(theta)) / step
    return moved, cylinder_transmission(now, theta) / cylinder_transmission(was, theta)


class Measurement(NamedTuple):
    """What happens to each row between the diffracted pattern and the archive.

    Parameters
    ----------
    impurity_row : ndarray of int64, shape (n, k)
        Row of the patterns of impurities, -1 for none.
    impurity_scale : ndarray, shape (n, k)
    incoherent : ndarray, shape (n,)
        Level of scattering without structure, before absorption, on the scale of the row's own pattern.
    absorption : ndarray, shape (n,)
        μR of the cylinder that absorbs it (the lines have been absorbed already); 0 for none.
    background : ndarray, shape (n, BACKGROUND_TERMS)
        For `add_background`; its level is relative to the highest point of the mixed pattern.
    hidden : ndarray of int64, shape (n, r, 2)
        Intervals [first, stop) of points that are not measured.
    least_left : float
        Share of the row's own diffracted intensity that must be seen: where less would be, nothing is hidden.
    total : ndarray, shape (n,)
        Expected counts of the whole row; 0 for a pattern without noise.
    """

    impurity_row: NDArray[np.int64]
    impurity_scale: NDArray[np.float64]
    incoherent: NDArray[np.float64]
    absorption: NDArray[np.float64]
    background: NDArray[np.float64]
    hidden: NDArray[np.int64]
    least_left: float
    total: NDArray[np.float64]


@compiled_fastmath
def _mix(row, patterns, impurities, measurement, out):
    """Add the impurities to a row's own pattern; returns the highest point."""
    for i in range(len(out)):
        out[i] = patterns[row, i]
    for slot in range(measurement.impurity_row.shape[1]):
        other = measurement.impurity_row[row, slot]
        if other >= 0:
            scale = np.float32(measurement.impurity_scale[row, slot])
            for i in range(len(out)):
                out[i] += scale * impurities[other, i]
    return largest(out)


@compiled_fastmath
def _mark_measured(pattern, hidden, least_left, measured):
    """Mark the points that are measured; returns whether any is not."""
    measured[:] = True
    for interval in range(len(hidden)):
        for i in range(hidden[interval, 0], hidden[interval, 1]):
            measured[i] = False
    whole = left = np.float32(0.0)
    for i in range(len(pattern)):
        whole += pattern[i]
        left += pattern[i] if measured[i] else np.float32(0.0)
    if left < least_left * whole:
        measured[:] = True
        return False
    return True


@compiled_fastmath
def _sum(values):
    total = np.float32(0.0)
    for i in range(len(values)):
        total += values[i]
    return total


@compiled
def measure(patterns, impurities, measurement, start, step, seeds, stream, rows, measured):
    """Turn diffracted patterns into measured ones, in place, on the calling thread.

    Parameters
    ----------
    patterns : ndarray of float32, shape (n, n_points)
        Overwritten: divided by its maximum, 0 where not measured.
    impurities : ndarray of float32, shape (m, n_points)
    measurement : Measurement
    start, step : float
        Of the 2θ grid, degrees.
    seeds : ndarray of uint64, shape (n,)
    stream : int
        Of the counting noise.
    rows : ndarray of int64
        Which rows are to be done.
    measured : ndarray of bool, shape (n, n_points), or (0, n_points) where nothing is hidden
        Written in place: True where a point is measured; a row of zeros is left alone.
    """
    expected = np.empty(patterns.shape[1], np.float32)
    for row in rows:
        pattern = patterns[row]
        top = _mix(row, patterns, impurities, measurement, expected)
        if top <= 0.0:
            continue
        has_gaps = len(measured) > 0 and _mark_measured(
            pattern, measurement.hidden[row], measurement.least_left, measured[row]
        )
        if measurement.incoherent[row] > 0.0:
            _add_incoherent(measurement.incoherent[row], measurement.absorption[row], start, step, expected)
        if measurement.background[row, 0] > 0.0:
            terms = measurement.background[row].copy()
            terms[0] *= top
            add_background(terms, start, step, expected)
        if has_gaps:
            for i in range(len(expected)):
                expected[i] = expected[i] if measured[row, i] else np.float32(0.0)
        _finish(expected, measurement.total[row], stream_key(seeds[row], stream), pattern)


@compiled
def _finish(expected, total, key, out):
    """Count if asked to, and divide by the maximum."""
    if total > 0.0:
        count_row(expected, total / _sum(expected), key, out)
    else:
        out[:] = expected
    top = largest(out)
    if top > 0.0:
        for i in range(len(out)):
            out[i] /= top
    else:
        out[:] = np.float32(0.0)
