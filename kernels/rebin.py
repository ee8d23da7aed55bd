"""Removes the background of powder patterns and rebins them to another grid, in Numba or in NumPy.

Arrays only. Every pattern of a call shares one grid, so what depends on the grid alone is worked out
once, in `Bins` and `Background`, and each pattern costs a few passes over its points.

The Numba kernels (`rebin_kernels`) are two to nine times as quick as the NumPy functions here, but take half
a second to import and some four to compile; the numbers are the same to the last bit. An independent oracle
stands in ``tests/test_preprocess.py``.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


_NONE = np.zeros(0)
NO_BINS = Bins(np.zeros(0, np.int64), _NONE, _NONE, _NONE)
NO_BACKGROUND = Background(NO_BINS, np.zeros(0, np.int64), 0, np.zeros(0, np.int64), _NONE)


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


def rebin_patterns(
    intensity: NDArray[np.floating],
    source: NDArray[np.float64],
    clipping: Background | None,
    target: Bins | None,
    *,
    compiled: bool = True,
) -> NDArray[np.float32]:
    """Remove the background of patterns, rebin them, clip at zero, and normalise to a maximum of 1.

    One thread, without the GIL: any number of Python threads may call at once.

    Parameters
    ----------
    intensity : ndarray, shape (n, n_source)
        A row with a value that is not finite comes back as zeros.
    source : ndarray, shape (n_source,)
        Strictly increasing 2θ, degrees.
    clipping : Background or None
        From `background_on`; the background stays without.
    target : Bins or None
        From `bins_on`; without, the patterns stay on the source's grid.
    compiled : bool
        By the Numba kernels, or in NumPy; both give the same.

    Returns
    -------
    ndarray, shape (n, n_bins) or (n, n_source), float32
        Within [0, 1].
    """
    if clipping is None and target is None:
        return _normalised_alone(intensity)
    if not compiled:
        return _rebinned(intensity, source, clipping, target)
    from hxrd.kernels.rebin_kernels import rebin_rows

    out = np.empty((len(intensity), len(source) if target is None else len(target.width)), np.float32)
    steps = (clipping or NO_BACKGROUND, target or NO_BINS, clipping is not None, target is not None)
    rebin_rows(np.ascontiguousarray(intensity), source, *steps, out)
    return out


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
    return _background(np.asarray(intensity, np.float64), source, clipping)


def _normalised_alone(intensity: NDArray[np.floating]) -> NDArray[np.float32]:
    """Clip and normalise; rows that are so already, as simulated ones, are copied."""
    low, high = intensity.min(axis=1), intensity.max(axis=1)
    good = np.isfinite(low) & np.isfinite(high) & (high > 0)
    if np.all(good & (low >= 0) & (high == 1)):
        return intensity.astype(np.float32)
    out = np.zeros(intensity.shape, np.float32)
    scale = high.astype(np.float64)[:, None]
    np.divide(intensity, scale, out=out, where=good[:, None], dtype=np.float64, casting="same_kind")
    return np.maximum(out, np.float32(0), out=out)


def median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median over the last axis of finite values; `numpy.median` imports masked arrays."""
    n = values.shape[-1]
    sorted_ = np.partition(values, [(n - 1) // 2, n // 2], axis=-1)
    return 0.5 * (sorted_[..., (n - 1) // 2] + sorted_[..., n // 2])


# --- in NumPy: R rows, S points of the source, N bins -------------------------------------------------


def _rebinned(
    intensity_RS: NDArray[np.floating],
    source: NDArray[np.float64],
    clipping: Background | None,
    target: Bins | None,
) -> NDArray[np.float32]:
    largest_R = np.abs(intensity_RS).max(axis=1).astype(np.float64)
    good_R = np.isfinite(largest_R) & (largest_R > 0)
    out = np.zeros((len(intensity_RS), len(source) if target is None else len(target.width)), np.float32)
    # Divided first, so that no later step can overflow or underflow.
    values_RS = intensity_RS[good_R].astype(np.float64) / largest_R[good_R, None]
    if clipping is not None:
        values_RS -= _background(values_RS, source, clipping)
    out[good_R] = _normalised(values_RS if target is None else _mean_in_bins(values_RS, source, target))
    return out


def _mean_in_bins(
    values_RS: NDArray[np.float64], source: NDArray[np.float64], bins: Bins
) -> NDArray[np.float64]:
    """Mean of the piecewise linear intensity over each bin: exact integrals, so nothing is lost between."""
    low_RS, high_RS, step = values_RS[:, :-1], values_RS[:, 1:], np.diff(source)
    cumulative_RS = np.zeros_like(values_RS)
    np.cumsum(0.5 * (low_RS + high_RS) * step, axis=1, out=cumulative_RS[:, 1:])
    k, t = bins.interval, bins.fraction
    partial = low_RS[:, k] * t + 0.5 * (high_RS[:, k] - low_RS[:, k]) * t * t
    here = cumulative_RS[:, k] + partial * step[k]
    return bins.gain * np.diff(here, axis=1) / bins.width


def _smoothed(values_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Binomial smoothing (1 4 6 4 1)/16; the two points at each end are repeated outwards."""
    n = values_RN.shape[1]
    padded = np.pad(values_RN, ((0, 0), (2, 2)), mode="edge")
    two, one, right, far = (padded[:, i : i + n] for i in (0, 1, 3, 4))
    return (6.0 * values_RN + 4.0 * (one + right) + two + far) / 16.0


def _clip_peaks(values_RN: NDArray[np.float64], window: NDArray[np.int64]) -> None:
    """SNIP with a decreasing window, in place: each point at most the mean of its neighbours at ±p."""
    n = len(window)
    for p in range(int(window[-1]), 0, -1):
        start, stop = max(int(np.searchsorted(window, p)), p), n - p
        if start < stop:
            middle = 0.5 * (values_RN[:, start - p : stop - p] + values_RN[:, start + p : n])
            np.minimum(values_RN[:, start:stop], middle, out=values_RN[:, start:stop])


def _noise(counts_RN: NDArray[np.float64], background_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of every bin, taken as proportional to √background, by robust differences."""
    n = counts_RN.shape[1]
    mean_R1 = np.cumsum(np.abs(background_RN) / n, axis=1)[:, -1:]
    if n < 3:
        return np.zeros_like(counts_RN)
    sigma_RN = np.sqrt(np.maximum(background_RN, NOISE_FLOOR * mean_R1))
    sigma_RN[mean_R1[:, 0] <= 0] = 1.0  # rows without any noise, set to zero below
    second = np.abs(counts_RN[:, :-2] - 2.0 * counts_RN[:, 1:-1] + counts_RN[:, 2:]) / sigma_RN[:, 1:-1]
    scale_R1 = median(second)[:, None] / (NORMAL_MEDIAN * SECOND_DIFFERENCE)
    return np.where(mean_R1 > 0, sigma_RN * scale_R1, 0.0)


def _lift_to_middle(
    level_RN: NDArray[np.float64],
    smooth_RN: NDArray[np.float64],
    sigma_RN: NDArray[np.float64],
    window: NDArray[np.int64],
) -> None:
    """Move the lower envelope, in place, to the middle of the noise.

    The offset is the mean residual, in sigma, of the bins without peaks within twice the window;
    where few such bins stand, it leans on the mean of the whole pattern.
    """
    n = len(window)
    residual = np.full_like(level_RN, NOISE_LIMIT)
    np.divide(smooth_RN - level_RN, sigma_RN, out=residual, where=sigma_RN > 0)
    free = residual < NOISE_LIMIT
    total, number = (np.zeros((len(level_RN), n + 1)) for _ in range(2))
    np.cumsum(np.where(free, residual, 0.0), axis=1, out=total[:, 1:])
    np.cumsum(free, axis=1, out=number[:, 1:])
    overall_R1 = total[:, -1:] / np.maximum(number[:, -1:], 1.0)
    low = np.maximum(np.arange(n) - 2 * window, 0)
    high = np.minimum(np.arange(n) + 2 * window + 1, n)
    around = total[:, high] - total[:, low] + PRIOR_BINS * overall_R1
    level_RN += around / (number[:, high] - number[:, low] + PRIOR_BINS) * sigma_RN


def _fill_shadow(smooth_N: NDArray[np.float64], level_N: NDArray[np.float64], plan: Background) -> None:
    """Where a pattern begins in the shadow of the beam stop, raise that run to the background beyond it.

    If so, `level_N` (the clipped curve) is clipped afresh.
    """
    beyond = median(level_N[: max(plan.n_start, 1)])
    if smooth_N[0] < SHADOW * beyond:
        lit = np.flatnonzero(smooth_N >= beyond)
        smooth_N[: lit[0] if len(lit) else None] = beyond
        level_N[:] = smooth_N
        _clip_peaks(level_N[None], plan.window)


def _background(
    values_RS: NDArray[np.float64], source: NDArray[np.float64], plan: Background
) -> NDArray[np.float64]:
    counts_RN = _mean_in_bins(values_RS, source, plan.bins)
    smooth_RN = _smoothed(counts_RN)
    level_RN = smooth_RN.copy()
    _clip_peaks(level_RN, plan.window)
    for smooth_N, level_N in zip(smooth_RN, level_RN, strict=True):
        _fill_shadow(smooth_N, level_N, plan)
    sigma_RN = _noise(counts_RN, level_RN) * SMOOTHED
    _lift_to_middle(level_RN, smooth_RN, sigma_RN, plan.window)
    here_RS = level_RN[:, plan.interval]
    following_RS = level_RN[:, np.minimum(plan.interval + 1, len(plan.window) - 1)]
    return here_RS + plan.fraction * (following_RS - here_RS)


def _normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clip at zero and divide by the maximum of each row; zeros where nothing is positive."""
    clipped = np.maximum(values, 0.0)
    largest_R1 = clipped.max(axis=1, keepdims=True)
    return clipped / np.where(largest_R1 > 0, largest_R1, 1.0)
