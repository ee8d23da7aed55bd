"""What is in a cell, as far as mixing by weight and scattering without structure need it."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.physics.scattering import filled_periodictable

_SPECIES = re.compile(r"(\d*)([A-Z][a-z]?)")
_FM2_OF_BARN = 100.0


class Composition(NamedTuple):
    """One entry a crystal, of the cell as listed.

    Parameters
    ----------
    mass : ndarray, shape (n_crystals,)
        Atomic mass units.
    volume : ndarray, shape (n_crystals,)
        Å³.
    incoherent : ndarray, shape (n_crystals,)
        Σ σ_inc/4π of its atoms, bound, in fm² per steradian.
    """

    mass: NDArray[np.float64]
    volume: NDArray[np.float64]
    incoherent: NDArray[np.float64]


def composition_of(crystals: Sequence[Crystal]) -> Composition:
    """Sum up mass, volume and incoherent cross-section of each cell; unknown species count nothing.

    Masses and cross-sections are those of periodictable (natural isotopes, or the isotope named).
    """
    names = list(chain.from_iterable([crystal.species for crystal in crystals]))
    rows = {name: row for row, name in enumerate(dict.fromkeys(names))}
    table = np.array([_mass_and_incoherent(name) for name in rows])
    occupancy = np.concatenate([crystal.occupancy for crystal in crystals])
    sums = np.add.reduceat(
        table[[rows[name] for name in names]] * occupancy[:, None],
        np.cumsum([0] + [len(crystal.species) for crystal in crystals[:-1]]),
    )
    return Composition(sums[:, 0], _volumes(crystals), sums[:, 1] * _FM2_OF_BARN / (4 * np.pi))


def _volumes(crystals: Sequence[Crystal]) -> NDArray[np.float64]:
    cells = np.array([crystal.cell for crystal in crystals])
    cosines = np.cos(np.radians(cells[:, 3:]))
    flatness = 1 - (cosines**2).sum(axis=1) + 2 * cosines.prod(axis=1)
    return cells[:, :3].prod(axis=1) * np.sqrt(np.maximum(flatness, 0.0))


@cache
def _mass_and_incoherent(species: str) -> tuple[float, float]:
    """Atomic mass, and incoherent cross-section of the bound atom in barn."""
    match = _SPECIES.fullmatch(species)
    try:
        number, symbol = match.groups() if match else ("", "")
        element = filled_periodictable().elements.symbol(symbol)
        atom = element[int(number)] if number else element
    except (ValueError, KeyError):  # a species that no table of scattering knows either
        return 0.0, 0.0
    incoherent = getattr(atom.neutron, "incoherent", None)
    return float(atom.mass), float(incoherent or 0.0)
