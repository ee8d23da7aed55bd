"""The reflections of one crystal, one for each set of equivalents under its Laue class."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.kernels import powder
from hxrd.physics.instrument import Instrument
from hxrd.physics.packing import pack

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
    packed = pack(crystal, instrument)
    start, stop, _ = instrument.two_theta
    wavelength = instrument.wavelength
    hkl, s_squared = powder.reflections_in_range(
        packed.reciprocal_metric, *(np.sin(np.radians(np.array([start, stop]) / 2)) / wavelength)
    )
    allowed = ~_absent(hkl, crystal)
    hkl, s_squared = hkl[allowed], s_squared[allowed]
    f_squared = powder.f_squared(hkl, s_squared, *packed.atoms)
    representatives, sets = np.unique(_representatives(hkl, crystal.rotations), axis=0, return_inverse=True)
    sets = sets.ravel()
    # Only one of each Friedel pair is in hkl, so a set has twice as many members.
    members = np.bincount(sets)
    mean_f_squared = np.bincount(sets, f_squared) / members
    # Atoms on special positions can cancel exactly: against their sum in phase, what is left is rounding.
    in_phase = packed.atoms._replace(
        positions=np.zeros_like(packed.atoms.positions),
        group_scattering=np.abs(packed.atoms.group_scattering).astype(np.complex128),
    )
    limit = np.bincount(sets, powder.f_squared(hkl, s_squared, *in_phase)) / members
    present = mean_f_squared > _CANCELLED * limit
    mean_s = np.sqrt(np.bincount(sets, s_squared) / members)
    theta = np.arcsin(np.minimum(mean_s * wavelength, 1.0))
    intensity = 2 * members * mean_f_squared * powder.lorentz_factor(theta, instrument.probe == "xray")
    found = [
        Reflection(
            (int(h), int(k), int(l)),
            int(2 * members[i]),
            float(0.5 / mean_s[i]),
            float(np.degrees(2 * theta[i])),
            float(mean_f_squared[i]),
            float(intensity[i]),
        )
        for i, (h, k, l) in enumerate(representatives)
        if present[i]
    ]
    return sorted(found, key=lambda reflection: (reflection.two_theta, reflection.hkl))


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
