"""Whether a crystal has operations beyond those of its group, compiled with Numba."""

import math

import numpy as np

from hxrd.kernels.compiled import compiled
from hxrd.kernels.crowding import SPECIES, START
from hxrd.kernels.lattice import squared_length


@compiled
def is_more_symmetric(coset, centring, sites, n_sites, positions, metric, tolerance):
    """Whether some operation outside the group maps every atom upon one of its species.

    A larger group on the same lattice holds, with an operation, its whole coset of the group; so one
    rotation of each coset suffices, with every translation that brings an atom of the rarest species upon
    another. With the identity, they show a smaller cell.

    Parameters
    ----------
    coset : ndarray, shape (n_cosets, 3, 3)
        The identity, then one rotation of the lattice from each coset of the point group.
    centring : ndarray, shape (n, 3)
        Translations of the group.
    sites : ndarray of int64, shape (n_sites + 1 or more, 4)
        See `hxrd.kernels.crowding`; species 0 is the rarest.
    n_sites : int
    positions : ndarray, shape (n_atoms, 3)
    metric : ndarray, shape (3, 3)
    tolerance : float
        Å; a mapping counts when no atom misses by more.
    """
    start = 0
    for site in range(n_sites):
        if sites[site, SPECIES] == 0:
            start = sites[site, START]
            break
    turned = np.empty(3)
    shift = np.empty(3)
    for index in range(len(coset)):
        for i in range(3):
            turned[i] = (
                coset[index, i, 0] * positions[start, 0]
                + coset[index, i, 1] * positions[start, 1]
                + coset[index, i, 2] * positions[start, 2]
            )
        for site in range(n_sites):
            if sites[site, SPECIES] != 0:
                continue
            for atom in range(sites[site, START], sites[site + 1, START]):
                for i in range(3):
                    shift[i] = positions[atom, i] - turned[i]
                if index == 0 and _is_translation(shift, centring):
                    continue
                if _maps(coset, index, shift, sites, n_sites, positions, metric, tolerance):
                    return True
    return False


@compiled
def _is_translation(shift, centring):
    for row in range(len(centring)):
        off = 0.0
        for i in range(3):
            difference = shift[i] - centring[row, i]
            off = max(off, abs(difference - math.floor(difference + 0.5)))
        if off < 1e-6:
            return True
    return False


@compiled
def _maps(coset, index, shift, sites, n_sites, positions, metric, tolerance):
    """Whether the operation sends every atom near one of its own species."""
    squared = tolerance * tolerance
    for site in range(n_sites):
        for atom in range(sites[site, START], sites[site + 1, START]):
            x, y, z = positions[atom, 0], positions[atom, 1], positions[atom, 2]
            u = coset[index, 0, 0] * x + coset[index, 0, 1] * y + coset[index, 0, 2] * z + shift[0]
            v = coset[index, 1, 0] * x + coset[index, 1, 1] * y + coset[index, 1, 2] * z + shift[1]
            w = coset[index, 2, 0] * x + coset[index, 2, 1] * y + coset[index, 2, 2] * z + shift[2]
            if not _meets(u, v, w, sites[site, SPECIES], sites, n_sites, positions, metric, squared):
                return False
    return True


@compiled
def _meets(u, v, w, species, sites, n_sites, positions, metric, squared):
    for site in range(n_sites):
        if sites[site, SPECIES] != species:
            continue
        for atom in range(sites[site, START], sites[site + 1, START]):
            x, y, z = positions[atom, 0] - u, positions[atom, 1] - v, positions[atom, 2] - w
            x -= math.floor(x + 0.5)
            y -= math.floor(y + 0.5)
            z -= math.floor(z + 0.5)
            if squared_length(x, y, z, metric) <= squared:
                return True
    return False
