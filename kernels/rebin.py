"""Numba kernels that remove the background of powder patterns and rebin them to another grid.

Arrays only. Every pattern of a call shares one grid, so what depends on the grid alone is worked out
once, in `Bins` and `Background`, and each pattern costs a few passes over its points.
The plain NumPy oracle stands in ``tests/test_preprocess.py``.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hxrd.kernels.compiled import compiled

NOISE_LIMIT = 4.0  # residuals below this many sigma count as background
PRIOR_BINS = 20.0  # weight of the whole pattern's noise offset against the local one, in bins
NOISE_FLOOR = 0.1  # the noise model's smallest background, as a part of its mean
SHADOW = 0.5  # a pattern that begins below this part of the background beyond begins in shadow
# Standard deviation of a unit white noise: of its second difference; after the kernel (1 4 6 4 1)/16.
SECOND_DIFFERENCE = np.sqrt(6.0)
SMOOTHED = np.sqrt(70.0) / 16.0
NORMAL_MEDIAN = 0.6744897501960817  # median of |x| for a standard normal x


class Bins(NamedTuple):
    """Where the contiguous bins of a target grid lie on the source grid.

    `interval` (n_bins + 1,) and `fraction` (n_bins + 1,) place each edge inside a source interval;
    `width` (n_bins,) is each bin's covered width in degrees; `gain` (n_bins,) its factor, 0 if not covered.
    """

    interval: NDArray[np.int64]
    fraction: NDArray[np.float64]
    width: NDArray[np.float64]
    gain: NDArray[np.float64]


class Background(NamedTuple):
    """The even grid on which peaks are clipped, and the way back to the source's points.

    `bins` (n_coarse) lie on the source grid; `window` (n_coarse,) is the largest half-width in bins,
    never decreasing; `n_start` is the number of bins in which a shadow at the low end is looked for;
    `interval` and `fraction` (n_source,) place the source's points between bin centres.
    """

    bins: Bins
    window: NDArray[np.int64]
    n_start: int
    interval: NDArray[np.int64]
    fraction: NDArray[np.float64]


def bins_on(source: NDArray[np.float64], edges: NDArray[np.float64], gain: NDArray[np.float64]) -> Bins:
    """Place contiguous bins on a source grid.

    Parameters
    ----------
    source : ndarray, shape (n_source,)
        Strictly increasing positions of the source's points, degrees.
    edges : ndarray, shape (n_bins + 1,)
        Increasing edges on the source's axis; those outside the source's range are moved to its ends.
    gain : ndarray, shape (n_bins,)
        Factor of each bin; set to 0 where less than half of the bin is covered.

    Returns
    -------
    Bins
        The plan that `rebin_patterns` reads.
    """
    inside = np.clip(edges, source[0], source[-1])
    index = np.clip(np.searchsorted(source, inside, side="right") - 1, 0, len(source) - 2)
    fraction = (inside - source[index]) / (source[index + 1] - source[index])
    width = np.diff(inside)
    covered = (width > 0) & (width >= 0.5 * np.diff(edges))
    return Bins(index.astype(np.int64), fraction, np.where(covered, width, 1.0), np.where(covered, gain, 0.0))


def background_on(
    source: NDArray[np.float64], edges: NDArray[np.float64], window: NDArray[np.int64], n_start: int
) -> Background:
    """Plan the peak clipping on even bins.

    Parameters
    ----------
    source : ndarray, shape (n_source,)
        Strictly increasing positions of the source's points, degrees.
    edges : ndarray, shape (n_coarse + 1,)
        Edges of the even bins, within the source's range.
    window : ndarray, shape (n_coarse,)
        Largest half-width of the clipping in bins; never decreasing.
    n_start : int
        Number of bins, from the first, in which the shadow of a beam stop is looked for.

    Returns
    -------
    Background
        The plan that `rebin_patterns` reads.
    """
    centres = 0.5 * (edges[1:] + edges[:-1])
    index = np.clip(np.searchsorted(centres, source, side="right") - 1, 0, max(len(centres) - 2, 0))
    span = np.maximum(centres[np.minimum(index + 1, len(centres) - 1)] - centres[index], 1e-12)
    # Beyond the outermost centres the background goes on as it stands there.
    fraction = np.clip((source - centres[index]) / span, 0.0, 1.0)
    bins = bins_on(source, edges, np.ones(len(centres)))
    return Background(bins, window.astype(np.int64), n_start, index.astype(np.int64), fraction)


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
    return sigma * (np.median(difference) / (NORMAL_MEDIAN * SECOND_DIFFERENCE))


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
    beyond = np.median(level[: max(n_start, 1)])
    if not smooth[0] < SHADOW * beyond:
        return False
    for i in range(len(smooth)):
        if smooth[i] >= beyond:
            break
        smooth[i] = beyond
    level[:] = smooth
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
def _row(intensity, source, clipping, target, remove, rebin, out):
    n = len(source)
    values = np.empty(n)
    largest = 0.0
    for j in range(n):
        if not np.isfinite(intensity[j]):
            out[:] = 0.0
            return
        values[j] = intensity[j]
        largest = max(largest, abs(values[j]))
    if largest == 0.0:
        out[:] = 0.0
        return
    for j in range(n):
        values[j] /= largest  # so that no later step can overflow or underflow
    if remove:
        level = np.empty(n)
        _background(values, source, clipping, level)
        for j in range(n):
            values[j] -= level[j]
    if rebin:
        means = np.empty(len(target.width))
        _mean_in_bins(values, source, target, means)
        _normalised(means, out)
    else:
        _normalised(values, out)


@compiled
def _rows(intensity, source, clipping, target, remove, rebin, out):
    for i in range(len(intensity)):
        _row(intensity[i], source, clipping, target, remove, rebin, out[i])


@compiled
def _background_rows(intensity, source, clipping, out):
    for i in range(len(intensity)):
        _background(intensity[i].astype(np.float64), source, clipping, out[i])


def estimate_background(
    intensity: NDArray[np.floating], source: NDArray[np.float64], clipping: Background
) -> NDArray[np.float64]:
    """Return the background under each pattern.

    Parameters
    ----------
    intensity : ndarray, shape (n, n_source)
        Finite intensities.
    source : ndarray, shape (n_source,)
        Strictly increasing 2θ, degrees.
    clipping : Background
        From `background_on`.

    Returns
    -------
    ndarray, shape (n, n_source)
        In the unit of `intensity`.
    """
    out = np.empty(intensity.shape)
    _background_rows(np.ascontiguousarray(intensity), source, clipping, out)
    return out


def rebin_patterns(
    intensity: NDArray[np.floating],
    source: NDArray[np.float64],
    clipping: Background,
    target: Bins,
    *,
    remove_background: bool,
    rebin: bool,
) -> NDArray[np.float32]:
    """Remove the background of patterns, rebin them, clip at zero, and normalise to a maximum of 1.

    One thread, without the GIL: any number of Python threads may call at once.

    Parameters
    ----------
    intensity : ndarray, shape (n, n_source)
        A row with a value that is not finite comes back as zeros.
    source : ndarray, shape (n_source,)
        Strictly increasing 2θ, degrees.
    clipping : Background
        From `background_on`; not read without `remove_background`.
    target : Bins
        From `bins_on`; without `rebin` the patterns stay on the source's grid.
    remove_background, rebin : bool
        Which steps to take.

    Returns
    -------
    ndarray, shape (n, n_bins) or (n, n_source), float32
        Within [0, 1].
    """
    out = np.empty((len(intensity), len(target.width) if rebin else len(source)), dtype=np.float32)
    _rows(np.ascontiguousarray(intensity), source, clipping, target, remove_background, rebin, out)
    return out
