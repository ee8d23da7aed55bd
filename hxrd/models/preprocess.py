"""The one preprocessing that brings a constant-wavelength pattern to a model's grid.

Training and use run the very same code. In order:

1. **Background** (if asked for), on the measured axis. The pattern is averaged in even bins of
   0.1° (its own step where that is coarser), smoothed by the binomial (1 4 6 4 1)/16, and its peaks are
   clipped by SNIP with a decreasing window (Ryan et al., Nucl. Instrum. Methods B 34 (1988) 396; Morháč &
   Matoušek, Appl. Spectrosc. 62 (2008) 91; without their log-log-square-root, which is not scale
   invariant). The half-window grows with the resolution, w = 2.5° + 1.2°·tan θ, at most 8°. The clipped
   curve is the noise's lower envelope; the mean residual of the peak-free bins around, in units
   of a Poisson-like noise √background, lifts it to the middle. It is then subtracted.
   A pattern that begins in the shadow of the beam stop, below half of the background's median over its
   first 30°, has that dark run raised to the median first; else the shadow's end would stay as a hump.
2. **Wavelength**. Equal d means equal sin θ/λ, so sin θ' = sin θ·λ'/λ: each bin of the model's grid has its
   edges on the measured axis, and the mean of the measured intensity (piecewise linear between its
   points) between these edges is the exact integral over the width: conservative, and an average
   where the source is finer.
   With the Lorentz factor L = 1/(sin θ sin 2θ) a reflection's area is m|F|²L, and the density per
   degree scales with J = d2θ'/d2θ = (λ'/λ)(cos θ/cos θ'), so the factor of a bin is

   J · L(θ)/L(θ') = (λ'/λ)³,

   the same for all angles: the cosines cancel. X-rays add (1 + cos²2θ)/(1 + cos²2θ').
3. **Clip and normalise**. Negative values (noise about a background removed, or measured ones)
   become 0 only after rebinning, when the noise is already averaged; then the maximum is 1. Bins of
   which less than half was measured are 0.

A gap inside the measured range is bridged by a straight line and counts as measured; for patterns that mark
their gaps with a mask, `bridge_gaps` does so, and holds the last measured value beyond the ends.
On the model's own grid and wavelength step 2 is left out, so points keep their values. Peak widths
are left as measured: a model must have learnt from varied resolution.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hxrd.errors import InputError
from hxrd.kernels.rebin import (
    Background,
    Bins,
    background_on,
    bins_on,
    estimate_background,
    median,
    rebin_patterns,
)

BACKGROUND_STEP = 0.1  # degrees
WINDOW_BASE, WINDOW_SLOPE, WINDOW_LARGEST = 2.5, 1.2, 8.0  # degrees
SHADOW_RANGE = 30.0  # degrees
LEAST_COVERED = 0.25  # of the model's range of sin θ/λ; below, the pattern is `out-of-range`
LEAST_CONTRAST = 1e-6  # of the largest value; below, the pattern is `flat`
FEWEST_POINTS = 10
LARGEST_BACKGROUND_BINS = 20_000
SAME_TWO_THETA = 1e-6  # degrees
SAME_WAVELENGTH = 1e-9  # relative

Probe = Literal["neutron", "xray"]


@dataclass(frozen=True, eq=False)
class Grid:
    """The points and the wavelength that a model reads.

    Parameters
    ----------
    two_theta : ndarray, shape (n_points,)
        Strictly increasing, degrees, within (0, 180).
    wavelength : float
        Å.
    """

    two_theta: NDArray[np.float64]
    wavelength: float

    @classmethod
    def of_range(cls, start: float, stop: float, step: float, wavelength: float) -> "Grid":
        """Return the even grid from `start` to `stop` degrees, both ends included."""
        n_points = round((stop - start) / step) + 1
        return cls(np.asarray(start + step * np.arange(n_points), dtype=np.float64), wavelength)

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the points' bins in degrees, shape (n_points + 1,): midway between the points."""
        return _edges_between(self.two_theta)


@dataclass(frozen=True, eq=False)
class Prepared:
    """One pattern on a model's grid.

    Parameters
    ----------
    intensity : ndarray, shape (n_points,), float32
        Within [0, 1], maximum 1; zeros where not measured, and everywhere with a flag.
    covered : float
        The part of the model's range of sin θ/λ that was measured, 0 to 1.
    start, stop : float
        First and last measured 2θ on the model's axis, degrees; NaN where nothing is covered.
    flag : str
        Empty, ``not-finite`` (a value is NaN or infinite), ``flat`` (no peak stands out of a
        constant) or ``out-of-range`` (`covered` below `LEAST_COVERED`).
    """

    intensity: NDArray[np.float32]
    covered: float
    start: float
    stop: float
    flag: str


def preprocess_batch(
    intensity: NDArray[np.floating],
    two_theta: NDArray[np.float64],
    wavelength: float,
    target: Grid,
    background: bool,
    *,
    probe: Probe = "neutron",
    compiled: bool = True,
) -> NDArray[np.float32]:
    """Bring patterns of one measured grid to the model's grid.

    One thread, without the GIL: any number of Python threads may call at once.

    Parameters
    ----------
    intensity : ndarray, shape (n, m)
        Any scale; a row with a value that is not finite, or with nothing above its background, gives zeros.
    two_theta : ndarray, shape (m,)
        Measured 2θ in degrees, strictly increasing, evenly spaced or not.
    wavelength : float
        Measured wavelength in Å.
    target : Grid
        The model's points and wavelength.
    background : bool
        Whether to remove the background.
    probe : {"neutron", "xray"}
        Whether the polarisation factor takes part.
    compiled : bool
        By Numba kernels, or by NumPy, which needs no compiler; the numbers are the same.

    Returns
    -------
    ndarray, shape (n, n_points), float32
        Clipped at zero, each row's maximum 1.

    Raises
    ------
    InputError
        Shapes that do not fit, fewer than 10 points, 2θ not increasing or outside [0, 180], an
        impossible wavelength.
    """
    intensity = np.asarray(intensity)
    source = _checked_source(intensity, two_theta, wavelength)
    if intensity.dtype not in (np.float32, np.float64):
        intensity = intensity.astype(np.float64)
    clipping = _background_plan(source) if background else None
    bins = None
    if not same_grid(source, wavelength, target):
        bins = _target_plan(source, wavelength, target, probe)
    return rebin_patterns(intensity, source, clipping, bins, compiled=compiled)


def to_model_grid(
    two_theta: NDArray[np.float64],
    intensity: NDArray[np.floating],
    wavelength: float,
    target: Grid,
    background: bool,
    *,
    probe: Probe = "neutron",
) -> Prepared:
    """Bring one pattern to the model's grid and say how far it can be trusted.

    Parameters
    ----------
    two_theta, intensity : ndarray, shape (m,)
        Degrees, strictly increasing; any scale.
    wavelength : float
        Measured wavelength in Å.
    target : Grid
        The model's points and wavelength.
    background : bool
        Whether to remove the background.
    probe : {"neutron", "xray"}
        Whether the polarisation factor takes part.

    Returns
    -------
    Prepared
        The pattern, its coverage and a flag.

    Raises
    ------
    InputError
        As `preprocess_batch`.
    """
    rows = np.asarray(intensity)[None]
    source = _checked_source(rows, two_theta, wavelength)
    covered, start, stop = coverage(source, wavelength, target)
    prepared = preprocess_batch(rows, source, wavelength, target, background, probe=probe, compiled=False)[
        0
    ]  # one pattern is worth no compiler
    flag = doubts(rows, prepared[None], covered)[0]
    return Prepared(np.zeros_like(prepared) if flag else prepared, covered, start, stop, flag)


def bridge_gaps(
    intensity: NDArray[np.floating], two_theta: NDArray[np.float64], measured: NDArray[np.bool_]
) -> None:
    """Replace, in place, what was not measured, so that the end of a gap is no line and no shadow.

    Parameters
    ----------
    intensity : ndarray, shape (n, m)
        Any value where not measured.
    two_theta : ndarray, shape (m,)
        Strictly increasing.
    measured : ndarray of bool, shape (n, m)
        A row without any measured point is left as it is.
    """
    for row in np.flatnonzero(measured.any(axis=1) & ~measured.all(axis=1)):
        known = measured[row]
        intensity[row, ~known] = np.interp(two_theta[~known], two_theta[known], intensity[row, known])


def same_grid(two_theta: NDArray[np.float64], wavelength: float, target: Grid) -> bool:
    """Tell whether points, degrees, and wavelength, Å, are those of a model, so that nothing is rebinned."""
    return (
        len(two_theta) == len(target.two_theta)
        and abs(wavelength / target.wavelength - 1) < SAME_WAVELENGTH
        and bool(np.max(np.abs(two_theta - target.two_theta)) < SAME_TWO_THETA)
    )


def coverage(two_theta: NDArray[np.float64], wavelength: float, target: Grid) -> tuple[float, float, float]:
    """Return how much of the model's range a measured range covers.

    Returns
    -------
    covered : float
        Part of the model's range of sin θ/λ, 0 to 1.
    start, stop : float
        The common range in degrees 2θ on the model's axis; NaN if there is none.
    """
    measured = np.sin(np.radians(two_theta[[0, -1]]) / 2) / wavelength
    wanted = np.sin(np.radians(target.two_theta[[0, -1]]) / 2) / target.wavelength
    low, high = max(measured[0], wanted[0]), min(measured[1], wanted[1])
    if high <= low:
        return 0.0, float("nan"), float("nan")
    start, stop = 2 * np.degrees(np.arcsin(np.array([low, high]) * target.wavelength))
    return float((high - low) / (wanted[1] - wanted[0])), float(start), float(stop)


def doubts(intensity: NDArray[np.floating], prepared: NDArray[np.float32], covered: float) -> list[str]:
    """Return the first reason against each pattern of a batch.

    Parameters
    ----------
    intensity : ndarray, shape (n, m)
        As measured.
    prepared : ndarray, shape (n, n_points)
        From `preprocess_batch`.
    covered : float
        From `coverage`.

    Returns
    -------
    list of str, length n
        ``not-finite``, ``flat``, ``out-of-range`` or empty, as in `Prepared`.
    """
    low, high = (extreme.astype(np.float64) for extreme in (intensity.min(axis=1), intensity.max(axis=1)))
    finite = np.isfinite(low) & np.isfinite(high)  # a NaN is its row's minimum and maximum
    low, high = np.where(finite, low, 0.0), np.where(finite, high, 0.0)
    with np.errstate(over="ignore"):  # the span of ±1e308
        flat = high - low <= LEAST_CONTRAST * np.maximum(np.abs(low), np.abs(high))
    outside = np.full(len(finite), covered < LEAST_COVERED)
    reasons = [~finite, flat, outside, prepared.max(axis=1) <= 0]
    return np.select(reasons, ["not-finite", "flat", "out-of-range", "flat"], "").tolist()


def background_of(two_theta: NDArray[np.float64], intensity: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the background that `to_model_grid` would subtract, for pictures and checks.

    Parameters
    ----------
    two_theta, intensity : ndarray, shape (m,)
        Degrees, strictly increasing; finite intensities of any scale.

    Returns
    -------
    ndarray, shape (m,)
        In the unit of `intensity`.
    """
    rows = np.asarray(intensity, dtype=np.float64)[None]
    source = _checked_source(rows, two_theta, 1.0)
    return estimate_background(rows, source, _background_plan(source))[0]


def _checked_source(
    intensity: NDArray[np.floating], two_theta: NDArray[np.float64], wavelength: float
) -> NDArray[np.float64]:
    source = np.ascontiguousarray(two_theta, dtype=np.float64)
    if intensity.ndim != 2 or intensity.shape[1:] != source.shape:
        raise InputError(f"intensities of shape {intensity.shape} do not fit {source.shape} values of 2θ")
    if len(source) < FEWEST_POINTS:
        raise InputError(
            f"a pattern of {len(source)} points is too short; at least {FEWEST_POINTS} are needed"
        )
    if not np.all(np.diff(source) > 0):
        raise InputError("2θ must increase strictly; sort the pattern and merge repeated points")
    if source[0] < 0 or source[-1] > 180:
        raise InputError(f"2θ from {source[0]:g} to {source[-1]:g} leaves 0 to 180 degrees")
    if not (np.isfinite(wavelength) and wavelength > 0):
        raise InputError(f"a wavelength of {wavelength:g} Å is impossible")
    return source


def _edges_between(points: NDArray[np.float64]) -> NDArray[np.float64]:
    middle = 0.5 * (points[1:] + points[:-1])
    return np.concatenate([[2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]])


def _background_plan(source: NDArray[np.float64]) -> Background:
    span = source[-1] - source[0]
    step = max(BACKGROUND_STEP, float(median(np.diff(source))), span / LARGEST_BACKGROUND_BINS)
    edges = np.linspace(source[0], source[-1], max(int(span / step), 1) + 1)
    step = edges[1] - edges[0]
    centres = 0.5 * (edges[1:] + edges[:-1])
    # tan θ grows without bound towards 180°; the largest window is reached long before.
    width = WINDOW_BASE + WINDOW_SLOPE * np.tan(np.radians(np.minimum(centres, 170.0)) / 2)
    window = np.maximum(np.round(np.minimum(width, WINDOW_LARGEST) / step), 1)
    return background_on(source, edges, window.astype(np.int64), round(SHADOW_RANGE / step))


def _target_plan(source: NDArray[np.float64], wavelength: float, target: Grid, probe: Probe) -> Bins:
    ratio = wavelength / target.wavelength
    gain = np.full(len(target.two_theta), ratio**3)
    if probe == "xray":
        measured = _measured_two_theta(target.two_theta, ratio)
        gain *= _polarisation(target.two_theta) / _polarisation(measured)
    return bins_on(source, _measured_two_theta(target.edges, ratio), gain)


def _measured_two_theta(two_theta: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    """2θ' of equal sin θ/λ in degrees; 180 and evenly beyond where that wavelength cannot reach."""
    sine = np.sin(np.radians(two_theta) / 2) * ratio
    beyond = np.maximum(sine - 1, 0)
    return 2 * np.degrees(np.arcsin(np.clip(sine, -1, 1))) + beyond


def _polarisation(two_theta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half of 1 + cos² 2θ: an unpolarised beam, no monochromator."""
    return (1 + np.cos(np.radians(two_theta)) ** 2) / 2
