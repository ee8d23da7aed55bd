"""The arrays that synthetic crystals are drawn from and written to (see `hxrd.kernels.wyckoff`)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_SITES = 64
"""Orbits in one combination."""
MOST_IMAGES = 192
"""Of one Wyckoff position."""
MOST_SPECIES = 8
"""Species in one combination."""


class Tables(NamedTuple):
    """What crystals are drawn from; made by `hxrd.crystal.synthetic_table`.

    Parameters
    ----------
    image_start : ndarray of int64, shape (n_positions + 1,)
        Images of Wyckoff position p are ``image_start[p]:image_start[p + 1]``.
    n_free : ndarray of int64, shape (n_positions,)
    images : ndarray, shape (12, n_images)
        The nine elements of a matrix and the three of a shift: image = matrix · free coordinates + shift.
    lattice : ndarray of int64, shape (231,)
        Crystal family of a group: 0 triclinic, monoclinic, orthorhombic, tetragonal, hexagonal, 5 cubic.
    lattice_order : ndarray of int64, shape (231,)
        Order of the point group of its lattice.
    primitive : ndarray, shape (231, 3, 3)
        Columns: primitive vectors in the conventional ones.
    centring_start, centring : ndarray, shape (232,) and (n, 3)
        Translations of the conventional cell, zero among them.
    coset_start, coset : ndarray, shape (232,) and (n, 3, 3)
        Rotations of the lattice that the group lacks, one of each coset, after the identity.
    combination_start, combination_weight : ndarray, shape (232,) and (n_combinations,)
        Combinations of a group, and their cumulative weights within it.
    site_start, site_position, site_species : ndarray, shape (n_combinations + 1,), (n_sites,), (n_sites,)
        Wyckoff positions of a combination, those without free coordinates first; species from 0 on,
        the rarest first.
    formula, shape : ndarray, shape (n_combinations,) and (n_combinations, 5)
        Class of element sets; ln b/a, ln c/a, cos α, cos β, cos γ of its cells (not a number: unknown).
    pool_start, pool_stop, pool : ndarray, shape (231,), (231,) and (n, 5)
        Shapes of the cells of a group's Bravais lattice.
    set_start, set_weight, set_elements : ndarray, shape (n_formulas + 1,), (n_sets,), (n_sets, MOST_SPECIES)
        Element sets of a class of formulas, the rarest element first.
    substitute : ndarray, shape (n_elements, n_elements)
        Cumulative probabilities of what stands where an element may stand.
    nearest : ndarray, shape (n_elements, n_elements)
        Smallest distance in Å.
    atom_volume : ndarray, shape (n_elements,)
        Å³.
    volume_ratio, b_iso : ndarray, shape (n_quantiles,)
        Evenly spaced quantiles of the volume over the sum of the atoms', and of B in Å².
    b_factor : ndarray, shape (n_elements,)
        B of an element relative to others.
    """

    image_start: NDArray[np.int64]
    n_free: NDArray[np.int64]
    images: NDArray[np.float64]
    lattice: NDArray[np.int64]
    lattice_order: NDArray[np.int64]
    primitive: NDArray[np.float64]
    centring_start: NDArray[np.int64]
    centring: NDArray[np.float64]
    coset_start: NDArray[np.int64]
    coset: NDArray[np.float64]
    combination_start: NDArray[np.int64]
    combination_weight: NDArray[np.float64]
    site_start: NDArray[np.int64]
    site_position: NDArray[np.int64]
    site_species: NDArray[np.int64]
    formula: NDArray[np.int64]
    shape: NDArray[np.float64]
    pool_start: NDArray[np.int64]
    pool_stop: NDArray[np.int64]
    pool: NDArray[np.float64]
    set_start: NDArray[np.int64]
    set_weight: NDArray[np.float64]
    set_elements: NDArray[np.int64]
    substitute: NDArray[np.float64]
    nearest: NDArray[np.float64]
    atom_volume: NDArray[np.float64]
    volume_ratio: NDArray[np.float64]
    b_iso: NDArray[np.float64]
    b_factor: NDArray[np.float64]


class Drawn(NamedTuple):
    """Crystals end to end; arrays are written in place.

    Parameters
    ----------
    cell : ndarray, shape (n, 6)
        a, b, c in Å, α, β, γ in degrees.
    atom_start : ndarray of int64, shape (n + 1,)
    combination, attempts : ndarray of int64, shape (n,)
        Which combination was used, and after how many attempts; 0 attempts: none succeeded, no atoms.
    closest : ndarray, shape (n,)
        Smallest distance of two atoms over its limit.
    positions : ndarray, shape (capacity, 3)
    element : ndarray of int64, shape (capacity,)
    b_iso : ndarray, shape (capacity,)
    """

    cell: NDArray[np.float64]
    atom_start: NDArray[np.int64]
    combination: NDArray[np.int64]
    attempts: NDArray[np.int64]
    closest: NDArray[np.float64]
    positions: NDArray[np.float64]
    element: NDArray[np.int64]
    b_iso: NDArray[np.float64]


def empty_drawn(n_crystals: int, capacity: int) -> Drawn:
    """Return arrays for so many crystals of so many atoms in all."""
    return Drawn(
        cell=np.empty((n_crystals, 6)),
        atom_start=np.zeros(n_crystals + 1, np.int64),
        combination=np.zeros(n_crystals, np.int64),
        attempts=np.zeros(n_crystals, np.int64),
        closest=np.zeros(n_crystals),
        positions=np.empty((capacity, 3)),
        element=np.empty(capacity, np.int64),
        b_iso=np.empty(capacity),
    )
