"""The Numba kernels behind `rebin.rebin_patterns`: one pattern after another, without the GIL.

`rebin` does the same in NumPy, number for number: sums are taken here in the order of `numpy.cumsum`.
"""

import numpy as np
from numba import njit

from hxrd.kernels.compiled import compiled
from hxrd.kernels.rebin import (
    NOISE_FLOOR,
    NOISE_LIMIT,
    NORMAL_MEDIAN,
    PRIOR_BINS,
    SECOND_DIFFERENCE,
    SHADOW,
    SMOOTHED,
)


@compiled
def _mean_in_bins(intensity, source, bins, out):
    """Mean of the piecewise linear intensity over each bin: exact integrals, so nothing is lost between."""
    n_source = len(source)
    cumulative = np.empty(n_source)
    cumulative[0] = 0.0
    for j in range(1, n_source):
        cumulative[j] = cumulative[j - 1] + 0.5 * (intensity[j - 1] + intensity[j]) * (
            source[j] - source[j - 1]
        )
    before = 0.0
    for i in range(len(bins.interval)):
        k, t = bins.interval[i], bins.fraction[i]
        partial = intensity[k] * t + 0.5 * (intensity[k + 1] - intensity[k]) * t * t
        here = cumulative[k] + partial * (source[k + 1] - source[k])
        if i > 0:
            out[i - 1] = bins.gain[i - 1] * (here - before) / bins.width[i - 1]
        before = here


@compiled
def _smoothed(values, out):
    """Binomial smoothing (1 4 6 4 1)/16; the two points at each end are repeated outwards."""
    n = len(values)
    for i in range(n):
        one, two = max(i - 1, 0), max(i - 2, 0)
        right, far = min(i + 1, n - 1), min(i + 2, n - 1)
        out[i] = (6.0 * values[i] + 4.0 * (values[one] + values[right]) + values[two] + values[far]) / 16.0


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _clip_peaks(values, window):
    """SNIP with a decreasing window, in place: each point at most the mean of its neighbours at ±p."""
    n = len(values)
    clipped = values.copy()
    first = n
    for p in range(window[n - 1], 0, -1):
        while first > 0 and window[first - 1] >= p:
            first -= 1
        start, stop = max(first, p), n - p
        for i in range(start, stop):
            clipped[i] = min(values[i], 0.5 * (values[i - p] + values[i + p]))
        for i in range(start, stop):
            values[i] = clipped[i]


@compiled
def _median(values):
    """Median by Hoare's selection: `numpy.median` takes Numba longer to compile than all of this file."""
    n = len(values)
    work = values.copy()
    middle, left, right = n // 2, 0, n - 1
    while left < right:
        pivot, i, j = work[(left + right) // 2], left, right
        while i <= j:
            while work[i] < pivot:
                i += 1
            while work[j] > pivot:
                j -= 1
            if i <= j:
                work[i], work[j] = work[j], work[i]
                i, j = i + 1, j - 1
        if j < middle < i:
            break
        left, right = (left, j) if middle <= j else (i, right)
    below = work[middle]
    if n % 2 == 0:
        below = work[0]
        for i in range(1, middle):
            below = max(below, work[i])
    return 0.5 * (below + work[middle])


@compiled
def _noise(counts, background):
    """Standard deviation of every bin, taken as proportional to √background, by robust differences."""
    n = len(counts)
    mean = 0.0
    for i in range(n):
        mean += abs(background[i]) / n
    sigma = np.empty(n)
    for i in range(n):
        sigma[i] = np.sqrt(max(background[i], NOISE_FLOOR * mean))
    if n < 3 or mean <= 0.0:
        return np.zeros(n)
    difference = np.empty(n - 2)
    for i in range(1, n - 1):
        difference[i - 1] = abs(counts[i - 1] - 2.0 * counts[i] + counts[i + 1]) / sigma[i]
    scale = _median(difference) / (NORMAL_MEDIAN * SECOND_DIFFERENCE)
    for i in range(n):
        sigma[i] *= scale
    return sigma


@compiled
def _lift_to_middle(background, smooth, sigma, window):
    """Move the lower envelope, in place, to the middle of the noise.

    The offset is the mean residual, in sigma, of the bins without peaks within twice the window;
    where few such bins stand, it leans on the mean of the whole pattern.
    """
    n = len(background)
    total, number = np.zeros(n + 1), np.zeros(n + 1)
    for i in range(n):
        residual = (smooth[i] - background[i]) / sigma[i] if sigma[i] > 0.0 else NOISE_LIMIT
        free = residual < NOISE_LIMIT
        total[i + 1] = total[i] + (residual if free else 0.0)
        number[i + 1] = number[i] + (1.0 if free else 0.0)
    overall = total[n] / number[n] if number[n] > 0.0 else 0.0
    for i in range(n):
        low, high = max(i - 2 * window[i], 0), min(i + 2 * window[i] + 1, n)
        offset = (total[high] - total[low] + PRIOR_BINS * overall) / (number[high] - number[low] + PRIOR_BINS)
        background[i] += offset * sigma[i]


@compiled
def _shadow_filled(smooth, level, n_start):
    """Where a pattern begins in the shadow of the beam stop, raise that run to the background beyond it.

    If so, `level` (the clipped curve) starts afresh as a copy of the raised `smooth`.
    """
    beyond = _median(level[: max(n_start, 1)])
    if not smooth[0] < SHADOW * beyond:
        return False
    for i in range(len(smooth)):
        if smooth[i] >= beyond:
            break
        smooth[i] = beyond
    for i in range(len(smooth)):
        level[i] = smooth[i]
    return True


@compiled
def _background(intensity, source, plan, out):
    n = len(plan.window)
    counts, smooth = np.empty(n), np.empty(n)
    _mean_in_bins(intensity, source, plan.bins, counts)
    _smoothed(counts, smooth)
    level = smooth.copy()
    _clip_peaks(level, plan.window)
    if _shadow_filled(smooth, level, plan.n_start):
        _clip_peaks(level, plan.window)
    sigma = _noise(counts, level) * SMOOTHED
    _lift_to_middle(level, smooth, sigma, plan.window)
    for j in range(len(source)):
        k = plan.interval[j]
        following = level[min(k + 1, n - 1)]
        out[j] = level[k] + plan.fraction[j] * (following - level[k])


@compiled
def _normalised(values, out):
    """Clip at zero and divide by the maximum; zeros where nothing is positive."""
    largest = 0.0
    for i in range(len(values)):
        largest = max(largest, values[i])
    for i in range(len(values)):
        out[i] = max(values[i], 0.0) / largest if largest > 0.0 else 0.0


@compiled
def _scaled(intensity, values):
    """Divide a row by its largest value, so that no step can overflow; False if it is zero or not finite."""
    largest = 0.0
    for j in range(len(values)):
        if not np.isfinite(intensity[j]):
            return False
        values[j] = intensity[j]
        largest = max(largest, abs(values[j]))
    for j in range(len(values)):
        values[j] /= largest if largest > 0.0 else 1.0
    return largest > 0.0


@compiled
def rebin_rows(intensity, source, clipping, target, remove, rebin, out):
    """Fill `out`, shape (n, n_bins), as `rebin.rebin_patterns` does; `remove` and `rebin` say which steps."""
    values, level, means = np.empty(len(source)), np.empty(len(source)), np.empty(len(target.width))
    for i in range(len(intensity)):
        if not _scaled(intensity[i], values):
            for j in range(out.shape[1]):
                out[i, j] = 0.0
            continue
        if remove:
            _background(values, source, clipping, level)
            for j in range(len(values)):
                values[j] -= level[j]
        if rebin:
            _mean_in_bins(values, source, target, means)
            _normalised(means, out[i])
        else:
            _normalised(values, out[i])
