"""The reflections of one crystal, one for each set of equivalents under its Laue class."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.kernels import powder
from hxrd.kernels.reduction import STRICT
from hxrd.physics.instrument import Instrument
from hxrd.physics.packing import pack
from hxrd.physics.scattering import form_factor_coefficients, scattering_lengths

_CANCELLED = 1e-20  # of the largest possible |F|²; rounding leaves 1e-29, real reflections begin at 1e-13
_LARGEST_INDEX = 1 << 16  # of h, k, l: three of them and a count fit 64 bits
_EQUAL_PHASE = 0.02  # cycles; a real shift is at least 1/24, and files round their translations


@dataclass(frozen=True, slots=True)
class Reflection:
    """A set of equivalent reflections.

    Parameters
    ----------
    hkl : tuple of int
        Its representative: of the set the triple with fewest minus signs, then the greatest.
    multiplicity : int
        Number of reflections in the set, Friedel mates included.
    d_spacing : float
        Å.
    two_theta : float
        Degrees, at the instrument's mean wavelength.
    f_squared : float
        Mean of |F|² over the set, fm² (neutrons) or electrons² (X-rays), Debye–Waller factor included.
    intensity : float
        multiplicity · f_squared · L (neutrons) or · L·P (X-rays), not normalised.
    """

    hkl: tuple[int, int, int]
    multiplicity: int
    d_spacing: float
    two_theta: float
    f_squared: float
    intensity: float


def peaks(crystal: Crystal, instrument: Instrument) -> list[Reflection]:
    """Reflections with 2θ inside the instrument's range, sorted by 2θ, absences left out.

    Parameters
    ----------
    crystal : Crystal
    instrument : Instrument
        Gives the probe, the table of scattering lengths, the mean wavelength and the range.

    Raises
    ------
    Rejected
        A site without a scattering length or form factor.
    """
    start, stop, _ = instrument.two_theta
    wavelength = instrument.wavelength
    s_low, s_high = (math.sin(math.radians(angle / 2)) / wavelength for angle in (start, stop))
    _, hkl, s_squared, members, f_squared = powder.sticks(
        pack([crystal], instrument), s_low, s_high, instrument.probe == "xray", STRICT
    )
    # Atoms on special positions can cancel exactly: against their sum in phase, what is left is rounding.
    cancelled = f_squared <= _CANCELLED * _largest_f_squared(crystal, instrument, s_squared)
    present = ~(_absent(hkl, crystal) | cancelled)
    hkl, s_squared, members, f_squared = (values[present] for values in (hkl, s_squared, members, f_squared))
    # The kernel's sets are those of the space group, or parts of them where the atoms break it a little.
    representatives, sets = np.unique(_representatives(hkl, crystal.rotations), axis=0, return_inverse=True)
    sets = sets.ravel()
    multiplicity = np.bincount(sets, members)
    mean_f_squared = np.bincount(sets, members * f_squared) / multiplicity
    mean_s = np.sqrt(np.bincount(sets, members * s_squared) / multiplicity)
    sine = np.minimum(mean_s * wavelength, 1.0)
    intensity = multiplicity * mean_f_squared * lorentz_polarization(sine, instrument.polarization_ratio)
    found = [
        Reflection(
            (int(h), int(k), int(l)),
            int(multiplicity[i]),
            float(0.5 / mean_s[i]),
            float(np.degrees(2 * np.arcsin(sine[i]))),
            float(mean_f_squared[i]),
            float(intensity[i]),
        )
        for i, (h, k, l) in enumerate(representatives)
    ]
    return sorted(found, key=lambda reflection: (reflection.two_theta, reflection.hkl))


def lorentz_polarization(sine: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    """Lorentz and polarisation factors (1 + A cos²2θ)/((1 + A) sinθ sin2θ), shape of `sine`.

    Parameters
    ----------
    sine : ndarray
        Of θ.
    ratio : float
        A, see `Instrument.polarization_ratio`.
    """
    cosine_squared = (1 - 2 * sine * sine) ** 2  # of 2θ
    return (1 + ratio * cosine_squared) / ((1 + ratio) * 2 * sine * sine * np.sqrt(1 - sine * sine))


def _largest_f_squared(
    crystal: Crystal, instrument: Instrument, s_squared: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Square of the sum of all amplitudes, were they in phase, shape (n,)."""
    species = tuple(dict.fromkeys(crystal.species))
    if instrument.probe == "xray":
        a = form_factor_coefficients(species)
        powers = np.einsum("st,nst->ns", a[:, :4], np.exp(-s_squared[:, None, None] * a[:, 4:8])) + a[:, 8]
    else:
        powers = np.tile(
            np.abs(scattering_lengths(species, instrument.scattering_table)), (len(s_squared), 1)
        )
    total = np.zeros(len(s_squared))
    for name, occupancy, b_iso in zip(crystal.species, crystal.occupancy, crystal.b_iso, strict=True):
        total += occupancy * powers[:, species.index(name)] * np.exp(-b_iso * s_squared)
    return total**2


def _absent(hkl: NDArray[np.int64], crystal: Crystal) -> NDArray[np.bool_]:
    """Systematic absences: an operation leaves hkl in place but shifts its phase."""
    absent = np.zeros(len(hkl), dtype=bool)
    for rotation, translation in zip(crystal.rotations, crystal.translations, strict=True):
        fixed = np.all(hkl @ rotation.astype(np.int64) == hkl, axis=1)
        phase = hkl @ translation
        absent |= fixed & (np.abs(phase - np.round(phase)) > _EQUAL_PHASE)
    return absent


def _representatives(hkl: NDArray[np.int64], rotations: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return of each reflection's equivalents the one with fewest minus signs, then greatest h, k, l."""
    best, best_rank = hkl.copy(), _rank(hkl)
    for rotation in np.unique(rotations.astype(np.int64), axis=0):
        for candidate in (hkl @ rotation, -(hkl @ rotation)):
            rank = _rank(candidate)
            better = rank > best_rank
            best[better], best_rank[better] = candidate[better], rank[better]
    return best


def _rank(hkl: NDArray[np.int64]) -> NDArray[np.int64]:
    base = 2 * _LARGEST_INDEX
    h, k, l = (hkl + _LARGEST_INDEX).T
    return ((3 - (hkl < 0).sum(axis=1)) * base + h) * base * base + k * base + l
