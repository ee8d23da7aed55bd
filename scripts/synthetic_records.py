"""What the crystals of a table tell a generator: one small record for each, read by the table's builder."""

from collections import Counter
from dataclasses import dataclass

import moyopy
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.wyckoff import GRID, group_operations, position_of_orbit

LARGEST = 400  # atoms of the conventional cell; larger crystals tell nothing
FAR = 5.0  # Å
_TOLERANCES = (1e-3, 1e-2)
_MATCH = 0.1  # Å


@dataclass
class Observed:
    """One crystal: its group, volume, elements, shortest distances, cell shape and orbits.

    `shape` is ln b/a, ln c/a and the cosines of the conventional cell; `orbits` are (species, Wyckoff
    position) pairs, or None where sites are shared, partly filled, or the symmetry is not the declared one.
    """

    space_group: int
    volume: float
    content: Counter[str]
    distances: dict[tuple[str, str], float]
    shape: NDArray[np.float64] | None
    orbits: list[tuple[str, int]] | None
    b_iso: dict[str, float]


def observed(crystal: Crystal) -> Observed | None:
    """Return what one crystal tells, or None where it is too large or not ordered."""
    if len(crystal.species) > LARGEST or crystal.occupancy.min() < 0.99:
        return None
    basis = np.linalg.cholesky(crystal.metric)
    distances = shortest_distances(crystal, basis)
    if min(distances.values(), default=FAR) < 0.6:
        return None
    shape, orbits = standard_form(crystal, basis)
    b_iso = {name: float(b) for name, b in zip(crystal.species, crystal.b_iso, strict=True) if 0 < b < 8}
    return Observed(
        crystal.space_group, crystal.volume, Counter(crystal.species), distances, shape, orbits, b_iso
    )


def shortest_distances(crystal: Crystal, basis: NDArray[np.float64]) -> dict[tuple[str, str], float]:
    """Return the shortest distance below `FAR` of each pair of elements."""
    heights = 1.0 / np.sqrt(np.diag(np.linalg.inv(crystal.metric)))
    copies = np.ceil(FAR / heights).astype(int)
    ranges = [np.arange(-count, count + 1) for count in copies]
    shifts = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    home = crystal.positions % 1.0
    points = (home[None] + shifts[:, None]).reshape(-1, 3)
    near = np.all((points > -FAR / heights - 1e-9) & (points < 1 + FAR / heights + 1e-9), axis=1)
    owner = np.tile(np.arange(len(home)), len(shifts))[near]
    found = cKDTree(home @ basis).sparse_distance_matrix(
        cKDTree(points[near] @ basis), FAR, output_type="ndarray"
    )
    found = found[found["v"] > 1e-6]
    kinds = np.array(sorted(set(crystal.species)))
    kind = np.searchsorted(kinds, crystal.species)
    one, other = kind[found["i"]], kind[owner[found["j"]]]
    shortest = np.full((len(kinds), len(kinds)), np.inf)
    np.minimum.at(shortest, (np.minimum(one, other), np.maximum(one, other)), found["v"])
    return {
        (str(kinds[i]), str(kinds[j])): float(shortest[i, j]) for i, j in np.argwhere(np.isfinite(shortest))
    }


def standard_form(
    crystal: Crystal, basis: NDArray[np.float64]
) -> tuple[NDArray[np.float64] | None, list[tuple[str, int]] | None]:
    """Return the shape of the conventional cell, and the orbits in it (see `Observed`)."""
    names = sorted(set(crystal.species))
    numbers = [names.index(name) for name in crystal.species]
    cell = moyopy.Cell(basis.tolist(), crystal.positions.tolist(), numbers)
    for tolerance in _TOLERANCES:
        try:
            found = moyopy.MoyoDataset(cell, symprec=tolerance, setting=moyopy.Setting.standard())
        except ValueError:
            continue
        if found.number == crystal.space_group:
            return _form(crystal.space_group, found.std_cell, names)
    return None, None


def _form(
    number: int, cell: moyopy.Cell, names: list[str]
) -> tuple[NDArray[np.float64] | None, list[tuple[str, int]] | None]:
    basis = np.array(cell.basis)
    metric = basis @ basis.T
    a, b, c = np.sqrt(np.diag(metric))
    cosines = [metric[1, 2] / (b * c), metric[0, 2] / (a * c), metric[0, 1] / (a * b)]
    shape = np.array([np.log(b / a), np.log(c / a), *cosines])
    positions, kinds = np.array(cell.positions) % 1.0, np.array(cell.numbers)
    if len(positions) > LARGEST:
        return shape, None
    return shape, _orbits(number, positions, kinds, names, _MATCH / min(a, b, c))


def _orbits(
    number: int, positions: NDArray[np.float64], kinds: NDArray[np.int64], names: list[str], tolerance: float
) -> list[tuple[str, int]] | None:
    rotations, translations = group_operations(number)
    tree = cKDTree(positions % 1.0 % 1.0, boxsize=1.0)
    left = np.ones(len(positions), dtype=bool)
    orbits = []
    while left.any():
        first = int(np.argmax(left))
        images = (rotations @ positions[first] + translations / GRID) % 1.0 % 1.0
        distance, index = tree.query(images)
        members = np.unique(index)
        if distance.max() > tolerance or not left[members].all() or len(set(kinds[members])) > 1:
            return None
        found = position_of_orbit(number, positions[members], tolerance)
        if found is None:
            return None
        orbits.append((names[kinds[first]], found[0]))
        left[members] = False
    return orbits
