"""The frozen `MeasuredPattern` that every reader yields."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hxrd.errors import InputError

FEWEST_POINTS = 10
LARGEST_TWO_THETA = 180.0  # degrees
EVEN_STEP = 0.02  # relative; centidegrees are believed only of evenly spaced points


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredPattern:
    """One measured powder pattern.

    Parameters
    ----------
    two_theta : ndarray, shape (n_points,)
        Degrees, strictly increasing.
    intensity : ndarray, shape (n_points,)
        As in the file; NaN and negative values are kept.
    sigma : ndarray, shape (n_points,), or None
        Standard uncertainties, where the file has them.
    wavelength : float or None
        Å, where the file labels one explicitly.
    probe : str or None
        ``neutron`` or ``xray``, where the file says so explicitly.
    name : str
        The file's name without its suffixes.
    notes : tuple of str
        What the reader did beyond reading: points sorted, merged, left out, or units changed.
    """

    two_theta: NDArray[np.float64]
    intensity: NDArray[np.float64]
    sigma: NDArray[np.float64] | None
    wavelength: float | None
    probe: str | None
    name: str
    notes: tuple[str, ...] = ()


def tidied(pattern: MeasuredPattern) -> MeasuredPattern:
    """Return the pattern in degrees, sorted, without repeated or negative 2θ.

    Points at the same 2θ are averaged, their sigma as that of a mean. Values above 180 are taken as
    centidegrees if they are evenly spaced and fit below 180° then.

    Raises
    ------
    InputError
        A 2θ that is not finite, or beyond 180° in degrees and in centidegrees; fewer than 10 points.
        The message does not name the file.
    """
    if not np.all(np.isfinite(pattern.two_theta)):
        raise InputError("a 2θ is not a finite number")
    for step in (_sorted, _in_degrees, _without_negative, _merged):
        pattern = step(pattern)
    if len(pattern.two_theta) < FEWEST_POINTS:
        raise InputError(f"only {len(pattern.two_theta)} points; a pattern needs at least {FEWEST_POINTS}")
    return pattern


def _taken(pattern: MeasuredPattern, which: NDArray[np.generic], note: str) -> MeasuredPattern:
    sigma = None if pattern.sigma is None else pattern.sigma[which]
    return replace(
        pattern,
        two_theta=pattern.two_theta[which],
        intensity=pattern.intensity[which],
        sigma=sigma,
        notes=(*pattern.notes, note),
    )


def _sorted(pattern: MeasuredPattern) -> MeasuredPattern:
    if np.all(np.diff(pattern.two_theta) >= 0):
        return pattern
    order = np.argsort(pattern.two_theta, kind="stable")
    return _taken(pattern, order, "points sorted by 2θ")


def _in_degrees(pattern: MeasuredPattern) -> MeasuredPattern:
    two_theta = pattern.two_theta
    if two_theta[-1] <= LARGEST_TWO_THETA:
        return pattern
    steps = np.diff(two_theta)
    even = np.ptp(steps) <= EVEN_STEP * abs(np.median(steps))
    if two_theta[-1] / 100 > LARGEST_TWO_THETA or not even:
        raise InputError(
            f"its first column reaches {two_theta[-1]:g}, beyond 180 degrees 2θ; "
            "only angle-dispersive patterns in degrees (or even centidegrees) can be read"
        )
    return replace(pattern, two_theta=two_theta / 100, notes=(*pattern.notes, "2θ read as centidegrees"))


def _without_negative(pattern: MeasuredPattern) -> MeasuredPattern:
    kept = pattern.two_theta >= 0
    if kept.all():
        return pattern
    return _taken(pattern, kept, f"{np.count_nonzero(~kept)} points at negative 2θ left out")


def _merged(pattern: MeasuredPattern) -> MeasuredPattern:
    two_theta, group, number = np.unique(pattern.two_theta, return_inverse=True, return_counts=True)
    if len(two_theta) == len(pattern.two_theta):
        return pattern
    intensity = np.bincount(group, pattern.intensity) / number
    sigma = None
    if pattern.sigma is not None:
        sigma = np.sqrt(np.bincount(group, pattern.sigma**2)) / number
    repeated = len(pattern.two_theta) - len(two_theta)
    note = f"{repeated} repeated 2θ averaged"
    return replace(
        pattern, two_theta=two_theta, intensity=intensity, sigma=sigma, notes=(*pattern.notes, note)
    )
