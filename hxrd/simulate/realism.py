"""What instruments really give: drawn resolution, wavelength, range, background, noise, foreign lines.

A group of patterns shares wavelength, range and step, as the patterns of one experiment do; all else is
drawn for each pattern. Then the same preprocessing that measured patterns go through brings the group
to the model's grid.
"""

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.kernels import profile
from hxrd.models.preprocess import Grid, preprocess_batch
from hxrd.physics.instrument import Instrument
from hxrd.simulate.simulate import conditions_of, kernel_grid, simulated

Range = tuple[float, float]

# Drawn evenly in the logarithm, or meaningless at 0.
_POSITIVE = (
    *("wavelength", "start", "narrowest_fwhm", "caglioti_u"),
    *("peak_counts", "background", "impurity_fraction", "can_fraction"),
)

# Aluminium of sample cans and cryostats: Straumanis & Woodward (1971), Acta Cryst. A27, 549.
_ALUMINIUM_EDGE = 4.0496


class RealismSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Distributions of what a measurement adds; a pair is a range, drawn evenly (or evenly in the logarithm).

    Parameters
    ----------
    clean_share : float
        Share of the groups left as the preset gives them (still brought through the preprocessing).
    group_size : int
        Patterns that share wavelength, range and step.
    wavelength : Range
        Å.
    start, stop, steps
        2θ range in degrees, and the steps to choose from.
    narrowest_fwhm : Range
        Smallest Gaussian FWHM in degrees (log), reached at ...
    focus : Range
        ... this tanθ: FWHM² = U (tanθ − focus)² + narrowest².
    caglioti_u : Range
        U in deg² (log).
    lorentzian_x, lorentzian_y : Range
        Degrees.
    axial_divergence : Range
    zero_shift : float
        Standard deviation in degrees of the 2θ zero; one in ten patterns has it fivefold.
    peak_counts : Range
        Counts of the highest peak (log).
    background : Range
        Level relative to the highest peak (log).
    impurity_probability, impurity_fraction
        Share of patterns with a second phase, and its weight (log).
    can_probability, can_fraction
        The same for lines of aluminium.
    magnetic_probability : float
        Share of patterns with up to five extra peaks at low angle.
    """

    clean_share: float = 0.2
    group_size: int = 32
    wavelength: Range = (1.1, 2.5)
    start: Range = (2.0, 20.0)
    stop: Range = (110.0, 168.0)
    steps: tuple[float, ...] = (0.05, 0.05, 0.1)
    narrowest_fwhm: Range = (0.08, 0.5)
    focus: Range = (0.0, 1.2)
    caglioti_u: Range = (0.04, 0.6)
    lorentzian_x: Range = (0.0, 0.15)
    lorentzian_y: Range = (0.0, 0.15)
    axial_divergence: Range = (0.0, 0.1)
    zero_shift: float = 0.06
    peak_counts: Range = (200.0, 30_000.0)
    background: Range = (0.005, 0.6)
    impurity_probability: float = 0.25
    impurity_fraction: Range = (0.01, 0.15)
    can_probability: float = 0.1
    can_fraction: Range = (0.03, 0.4)
    magnetic_probability: float = 0.15

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn; msgspec reports a ValueError as a validation error."""
        for name in ("clean_share", "impurity_probability", "can_probability", "magnetic_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]")
        for name, (low, high) in self._ranges().items():
            if not low <= high < np.inf:
                raise ValueError(f"{name} must be a range [least, greatest]")
            if not (low > 0 if name in _POSITIVE else low >= 0):
                raise ValueError(f"{name} must be {'above' if name in _POSITIVE else 'at least'} 0")
        if not 0 <= self.zero_shift < np.inf:
            raise ValueError("zero_shift must be at least 0")
        if self.group_size < 1:
            raise ValueError("group_size must be at least 1")
        if not self.start[1] + 10 <= self.stop[0] <= self.stop[1] < 180:
            raise ValueError("stop must lie 10 degrees above start, and below 180")
        if not self.steps or not all(0.001 <= step <= 1 for step in self.steps):
            raise ValueError("steps must be 0.001 to 1 degree")

    def _ranges(self) -> dict[str, Range]:
        values = {name: getattr(self, name) for name in self.__struct_fields__ if name != "steps"}
        return {name: value for name, value in values.items() if isinstance(value, tuple)}


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the patterns of one group share."""

    wavelength: float
    grid: profile.Grid

    @property
    def two_theta(self) -> NDArray[np.float64]:
        """Shape (n_points,), degrees."""
        return self.grid.start + self.grid.step * np.arange(self.grid.n_points)

    @property
    def two_theta_range(self) -> tuple[float, float, float]:
        """Start, stop and step in degrees."""
        return self.grid.start, float(self.two_theta[-1]), self.grid.step


def measured_like(
    crystals: list[Crystal],
    instrument: Instrument,
    settings: RealismSettings,
    target: Grid,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Simulate crystals as a diffractometer might have measured them, on the model's grid.

    Parameters
    ----------
    crystals : list of Crystal
    instrument : Instrument
        The preset; its probe and scattering table are used throughout, its resolution for the clean share.
        Of a multiplet the mean wavelength stands for all lines.
    settings : RealismSettings
    target : Grid
        Of the model.
    rng : Generator

    Returns
    -------
    ndarray of float32, shape (n_crystals, n_points)
    """
    groups = [
        _group(crystals[first : first + settings.group_size], instrument, settings, target, rng)
        for first in range(0, len(crystals), settings.group_size)
    ]
    return np.concatenate(groups)


def _group(
    crystals: list[Crystal],
    instrument: Instrument,
    settings: RealismSettings,
    target: Grid,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    clean = rng.random() < settings.clean_share
    measurement = _preset_measurement(instrument) if clean else _drawn_measurement(settings, rng)
    aluminium = [] if clean else [_aluminium()]
    samples = crystals + aluminium
    conditions = conditions_of(instrument, len(samples))
    if not clean:
        conditions.resolution[:, :6] = _drawn_resolutions(len(samples), settings, rng)
        conditions.resolution[:, 6:] = 0
        conditions.zero_shift[:] = _zero_shifts(len(samples), settings, rng)
    conditions = conditions._replace(wavelengths=np.full((len(samples), 1, 2), (measurement.wavelength, 1.0)))
    measured = msgspec.structs.replace(instrument, two_theta=measurement.two_theta_range)
    intensity = simulated(samples, measured, conditions, threads=1).intensity
    if not clean:
        phases, can = intensity[:-1], intensity[-1]
        intensity = _with_foreign_lines(phases, can, measurement, settings, rng)
        intensity = _counted(intensity, measurement, settings, rng)
    return preprocess_batch(
        intensity,
        measurement.two_theta,
        measurement.wavelength,
        target,
        background=True,
        probe=instrument.probe,
    )


def _aluminium() -> Crystal:
    face_centred = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    edge = _ALUMINIUM_EDGE
    cell = np.array([edge, edge, edge, 90, 90, 90])
    return Crystal("aluminium", cell, ("Al",) * 4, face_centred, np.ones(4), np.full(4, 0.8), 225)


def _preset_measurement(instrument: Instrument) -> Measurement:
    return Measurement(instrument.wavelength, kernel_grid(instrument))


def _drawn_measurement(settings: RealismSettings, rng: np.random.Generator) -> Measurement:
    start, stop = rng.uniform(*settings.start), rng.uniform(*settings.stop)
    step = float(rng.choice(settings.steps))
    return Measurement(
        rng.uniform(*settings.wavelength), profile.Grid(round(start, 2), step, int((stop - start) / step) + 1)
    )


def _log_uniform(bounds: Range, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]), size))


def _drawn_resolutions(
    n_patterns: int, settings: RealismSettings, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Caglioti and Lorentzian parameters in the order of `profile.Resolution`, shape (n_patterns, 6)."""
    u = _log_uniform(settings.caglioti_u, n_patterns, rng)
    focus = rng.uniform(*settings.focus, n_patterns)
    narrowest = _log_uniform(settings.narrowest_fwhm, n_patterns, rng)
    return np.column_stack(
        [
            u,
            -2 * u * focus,
            u * focus**2 + narrowest**2,
            rng.uniform(*settings.lorentzian_x, n_patterns),
            rng.uniform(*settings.lorentzian_y, n_patterns),
            rng.uniform(*settings.axial_divergence, n_patterns),
        ]
    )


def _zero_shifts(n_patterns: int, settings: RealismSettings, rng: np.random.Generator) -> NDArray[np.float64]:
    widths = np.where(rng.random(n_patterns) < 0.1, 5.0, 1.0)
    return rng.normal(0.0, settings.zero_shift, n_patterns) * widths


def _with_foreign_lines(
    phases: NDArray[np.float32],
    can: NDArray[np.float32],
    measurement: Measurement,
    settings: RealismSettings,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Add another phase of the group, lines of the can, and peaks of magnetic order.

    An impurity keeps the resolution and zero shift drawn for it as a phase of its own, and one can serves
    the whole group: coarser than nature, where all phases share one instrument.
    """
    n_patterns = len(phases)
    impurity = _log_uniform(settings.impurity_fraction, n_patterns, rng)
    impurity *= (rng.random(n_patterns) < settings.impurity_probability) & (n_patterns > 1)
    can_height = _log_uniform(settings.can_fraction, n_patterns, rng)
    can_height *= rng.random(n_patterns) < settings.can_probability
    mixed = phases + impurity[:, None] * np.roll(phases, 1, axis=0) + can_height[:, None] * can
    for row in np.flatnonzero(rng.random(n_patterns) < settings.magnetic_probability):
        mixed[row] += _low_angle_peaks(measurement.two_theta, rng)
    return mixed.astype(np.float32)


def _low_angle_peaks(two_theta: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    n_peaks = int(rng.integers(1, 6))
    centre = rng.uniform(two_theta[0], 65.0, n_peaks)
    height = _log_uniform((0.02, 0.5), n_peaks, rng)
    fwhm = rng.uniform(0.2, 0.6)
    return (height * np.exp(-4 * np.log(2) * ((two_theta[:, None] - centre) / fwhm) ** 2)).sum(axis=1)


def _counted(
    intensity: NDArray[np.float32],
    measurement: Measurement,
    settings: RealismSettings,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Put patterns on a smooth background and add counting noise."""
    n_patterns, two_theta = len(intensity), measurement.two_theta
    x = (two_theta - two_theta[0]) / (two_theta[-1] - two_theta[0])
    level, slope, hump, rise = (
        _log_uniform(settings.background, n_patterns, rng)[:, None],
        rng.uniform(-0.5, 0.5, (n_patterns, 1)),
        rng.uniform(0.0, 0.5, (n_patterns, 1)) ** 2,
        rng.uniform(0.0, 1.5, (n_patterns, 1)) ** 2,
    )
    centre, width = rng.uniform(0.1, 0.9, (n_patterns, 1)), rng.uniform(0.08, 0.3, (n_patterns, 1))
    shape = 1 + slope * (x - 0.5) + hump * np.exp(-(((x - centre) / width) ** 2)) + rise * np.exp(-x / 0.05)
    counts = _log_uniform(settings.peak_counts, n_patterns, rng)[:, None]
    expected = counts * (intensity + level * shape)
    noise = rng.standard_normal(expected.shape, dtype=np.float32)
    return (expected + np.sqrt(expected) * noise).astype(np.float32)
