"""Crystals to powder patterns, on as many threads as there are cores."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hxrd.cores import available_cores
from hxrd.crystal.crystal import Crystal
from hxrd.errors import Rejected
from hxrd.kernels import powder
from hxrd.kernels.profile import Grid, Resolution
from hxrd.kernels.reduction import LENIENT
from hxrd.physics.instrument import Instrument
from hxrd.physics.packing import pack, rejections
from hxrd.physics.reflections import lorentz_polarization

Result = TypeVar("Result")

_HANDS = 64  # that crystals are dealt to by size, to even out parts of a batch
_FEWEST_IN_PART, _MOST_IN_PART = 4, 256  # the other threads wait while one packs a part
NO_REFLECTION = "no reflection lies in the 2θ range"


class Simulated(NamedTuple):
    """Patterns as they come from the kernel.

    Parameters
    ----------
    intensity : ndarray of float32, shape (n_crystals, n_points)
        Each row divided by its maximum; a rejected crystal's row is zeros.
    maximum : ndarray, shape (n_crystals,)
        What each row was divided by: the sum of m|F|²·L·P, with |F|² of the cell as listed (fm² or
        electrons²) and the profile P in 1/degree.
    reasons : list of str or None
        Why a crystal was rejected, None where it was not.
    """

    intensity: NDArray[np.float32]
    maximum: NDArray[np.float64]
    reasons: list[str | None]


class Sticks(NamedTuple):
    """Reflections of many crystals, one for each set of equivalents, by 2θ within each crystal.

    Parameters
    ----------
    start : ndarray of int64, shape (n_crystals + 1,)
        Reflections of crystal c are ``start[c]:start[c + 1]`` of the others.
    two_theta : ndarray, shape (n,)
        Degrees, at the instrument's mean wavelength.
    intensity : ndarray, shape (n,)
        multiplicity · f_squared · L (neutrons) or · LP (X-rays), not normalised.
    f_squared : ndarray, shape (n,)
        |F|² of the cell as listed, in fm² (neutrons) or electrons² (X-rays), mean over Friedel mates.
    d_spacing : ndarray, shape (n,)
        Å.
    multiplicity : ndarray of int64, shape (n,)
        Members of the set, Friedel mates included.
    hkl : ndarray of int64, shape (n, 3)
        One member of the set.
    """

    start: NDArray[np.int64]
    two_theta: NDArray[np.float64]
    intensity: NDArray[np.float64]
    f_squared: NDArray[np.float64]
    d_spacing: NDArray[np.float64]
    multiplicity: NDArray[np.int64]
    hkl: NDArray[np.int64]


def simulate_patterns(
    crystals: Sequence[Crystal], instrument: Instrument, threads: int | None = None
) -> tuple[NDArray[np.float32], list[str | None]]:
    """Simulate the powder pattern of each crystal, each divided by its maximum.

    Parameters
    ----------
    crystals : sequence of Crystal
    instrument : Instrument
        Gives probe, wavelengths, resolution, scattering table and the 2θ grid.
    threads : int, optional
        Processor threads; 1 stays on the calling thread.  [default: all]

    Returns
    -------
    intensity : ndarray of float32, shape (n_crystals, n_points)
        A rejected crystal's row is zeros.
    reasons : list of str or None
        Why a crystal was rejected, None where it was not.
    """
    result = simulated(crystals, instrument, threads=threads)
    return result.intensity, result.reasons


def simulated(
    crystals: Sequence[Crystal],
    instrument: Instrument,
    conditions: powder.Conditions | None = None,
    threads: int | None = None,
) -> Simulated:
    """Simulate each crystal under conditions of its own.

    Parameters
    ----------
    crystals : sequence of Crystal
    instrument : Instrument
        Gives probe, polarisation, scattering table and the 2θ grid.
    conditions : powder.Conditions, optional
        One row a crystal.  [default: those of the instrument, see `conditions_of`]
    threads : int, optional
        Processor threads; 1 stays on the calling thread.  [default: all]
    """
    if conditions is None:
        conditions = conditions_of(instrument, len(crystals))
    grid = kernel_grid(instrument)
    intensity = np.empty((len(crystals), grid.n_points), np.float32)
    maximum = np.zeros(len(crystals))
    reasons: list[str | None] = [None] * len(crystals)

    def simulate_part(part: NDArray[np.int64]) -> None:
        chosen = [crystals[index] for index in part]
        try:
            batch = pack(chosen, instrument)
        except Rejected:
            told = rejections(chosen, instrument)
            for index, reason in zip(part, told, strict=True):
                reasons[index] = reason
            refused = np.array([reason is not None for reason in told])
            intensity[part[refused]] = 0
            part = part[~refused]
            if not len(part):
                return
            batch = pack([crystals[index] for index in part], instrument)
        powder.patterns(
            batch,
            part,
            conditions,
            grid,
            instrument.polarization_ratio,
            instrument.probe == "xray",
            intensity,
            maximum,
        )

    in_parts(simulate_part, [len(crystal.species) for crystal in crystals], threads)
    for index in np.flatnonzero(maximum <= 0):
        reasons[index] = reasons[index] or NO_REFLECTION
    return Simulated(intensity, maximum, reasons)


def sticks(crystals: Sequence[Crystal], instrument: Instrument) -> Sticks:
    """Find the reflections of each crystal with 2θ inside the instrument's range.

    Systematic absences are left out; reflections are joined to sets by those of the crystal's operations
    that its atoms obey. `hxrd.physics.reflections.peaks` gives the same as objects, for one crystal.

    Parameters
    ----------
    crystals : sequence of Crystal
    instrument : Instrument
        Gives probe, polarisation, table of scattering lengths, mean wavelength and range.

    Raises
    ------
    Rejected
        A site without a scattering length or form factor.
    """
    start_angle, stop_angle, _ = instrument.two_theta
    wavelength = instrument.wavelength
    s_low, s_high = (float(np.sin(np.radians(angle / 2))) / wavelength for angle in (start_angle, stop_angle))
    start, hkl, s_squared, multiplicity, f_squared = powder.sticks(
        pack(crystals, instrument), s_low, s_high, instrument.probe == "xray", LENIENT
    )
    s = np.sqrt(s_squared)
    sine = np.minimum(s * wavelength, 1.0)
    return Sticks(
        start,
        np.degrees(2 * np.arcsin(sine)),
        multiplicity * f_squared * lorentz_polarization(sine, instrument.polarization_ratio),
        f_squared,
        0.5 / s,
        multiplicity.astype(np.int64),
        hkl,
    )


def in_parts(
    work: Callable[[NDArray[np.int64]], None], costs: Sequence[float], threads: int | None = None
) -> None:
    """Call `work` on parts of the indices, on as many threads.

    Parameters
    ----------
    work : callable
        Takes an array of indices; must release the GIL for most of its time to gain anything.
    costs : sequence of float
        Of each index, by any measure.
    threads : int, optional
        1 stays on the calling thread.  [default: all cores that this process may use]
    """
    n_threads = threads or available_cores()
    if not costs:
        return
    if n_threads == 1 or len(costs) < 2 * _FEWEST_IN_PART:
        work(np.arange(len(costs)))
        return
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(work, _parts(np.asarray(costs), n_threads)))


def _parts(costs: NDArray[np.float64], n_threads: int) -> Iterator[NDArray[np.int64]]:
    """Yield parts of the indices, the last ones ever smaller, so that all threads end at about one time."""
    order = np.argsort(-costs, kind="stable")
    # Dealt out like cards: every part has its share of the costly ones.
    n_hands = min(_HANDS, len(order))
    order = np.concatenate([order[first::n_hands] for first in range(n_hands)])
    start = 0
    while start < len(order):
        share = -(-(len(order) - start) // (2 * n_threads))
        size = min(max(share, _FEWEST_IN_PART), _MOST_IN_PART)
        yield order[start : start + size]
        start += size


def conditions_of(instrument: Instrument, n_crystals: int) -> powder.Conditions:
    """Return the conditions of an instrument for so many crystals: fresh arrays, to be changed at will."""
    texture = np.zeros((n_crystals, 4))
    texture[:, 0] = 1.0
    return powder.Conditions(
        wavelengths=np.tile(np.array(instrument.wavelengths, np.float64), (n_crystals, 1, 1)),
        resolution=np.tile(np.array(resolution_of(instrument)), (n_crystals, 1)),
        zero_shift=np.full(n_crystals, instrument.zero_shift),
        displacement=np.zeros(n_crystals),
        absorption=np.zeros(n_crystals),
        texture=texture,
    )


def kernel_grid(instrument: Instrument) -> Grid:
    """Return the 2θ grid of an instrument in kernel form."""
    start, stop, step = instrument.two_theta
    return Grid(float(start), float(step), round((stop - start) / step) + 1)


def resolution_of(instrument: Instrument) -> Resolution:
    """Return the peak-shape parameters of an instrument in kernel form."""
    return Resolution(
        instrument.caglioti_u,
        instrument.caglioti_v,
        instrument.caglioti_w,
        instrument.lorentzian_x,
        instrument.lorentzian_y,
        instrument.axial_divergence,
        instrument.sample_half_height,
        instrument.detector_half_height,
    )
