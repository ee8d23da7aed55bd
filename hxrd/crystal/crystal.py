"""The frozen `Crystal` that every source yields and the simulator reads."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hxrd.errors import Rejected

SHORTEST_DISTANCE = 0.5  # Å; nearer atoms must share one position by partial occupancy
FULLEST_POSITION = 1.1  # summed occupancy; refinements overshoot 1 a little
LARGEST_EDGE = 500.0  # Å
LARGEST_VOLUME = 1.0e6  # Å³
_FEW_SITES = 24  # up to here all pairs are quicker than a tree


def _identity_rotations() -> NDArray[np.int8]:
    return np.eye(3, dtype=np.int8)[None]


@dataclass(frozen=True, slots=True, eq=False)
class Crystal:
    """The whole content of one unit cell.

    Parameters
    ----------
    identifier : str
        The name under which its source knows it.
    cell : ndarray, shape (6,)
        a, b, c in Å, then α, β, γ in degrees.
    species : tuple of str, length n_sites
        Element symbol, ``D``, or an isotope such as ``11B``; several species may share a position.
    positions : ndarray, shape (n_sites, 3)
        Fractional coordinates, every atom of the cell (symmetry expanded).
    occupancy : ndarray, shape (n_sites,)
        Crystallographic occupancy, in (0, 1].
    b_iso : ndarray, shape (n_sites,)
        Isotropic displacement parameter B = 8π²⟨u²⟩ in Å²; 0 where the record has none.
    space_group : int
        1 to 230; 0 where unknown.
    rotations : ndarray, shape (n_operations, 3, 3)
        Rotation parts of the space group's operations in this cell, for fractional coordinates;
        the identity alone where the record is P 1 or its symmetry is not known.
    translations : ndarray, shape (n_operations, 3)
        Translation parts, in the order of `rotations` (centring included).
    """

    identifier: str
    cell: NDArray[np.float64]
    species: tuple[str, ...]
    positions: NDArray[np.float64]
    occupancy: NDArray[np.float64]
    b_iso: NDArray[np.float64]
    space_group: int = 0
    rotations: NDArray[np.int8] = field(default_factory=_identity_rotations)
    translations: NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, 3)))

    @property
    def metric(self) -> NDArray[np.float64]:
        """Metric tensor of the direct lattice in Å², shape (3, 3)."""
        lengths = self.cell[:3]
        cos_alpha, cos_beta, cos_gamma = np.cos(np.radians(self.cell[3:]))
        cosines = np.array(
            [[1, cos_gamma, cos_beta], [cos_gamma, 1, cos_alpha], [cos_beta, cos_alpha, 1]], dtype=float
        )
        return cosines * np.outer(lengths, lengths)

    @property
    def volume(self) -> float:
        """Volume of the cell in Å³."""
        return float(np.sqrt(max(np.linalg.det(self.metric), 0.0)))


def cell_from_metric(metric: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a, b, c in Å and α, β, γ in degrees from a metric tensor in Å², shape (3, 3)."""
    a, b, c = np.sqrt(np.diag(metric))
    cosines = np.array([metric[1, 2] / (b * c), metric[0, 2] / (a * c), metric[0, 1] / (a * b)])
    return np.array([a, b, c, *np.degrees(np.arccos(np.clip(cosines, -1, 1)))])


def checked(crystal: Crystal) -> Crystal:
    """Return the crystal if it is physically possible.

    Raises
    ------
    Rejected
        An absurd cell, no atoms, an occupancy outside (0, 1], a coordinate or displacement parameter
        that is not a number, or overlapping atoms.
    """
    check_cell(crystal)
    _check_sites(crystal)
    _check_distances(crystal)
    return crystal


def check_cell(crystal: Crystal) -> None:
    """Refuse a cell that no crystal has.

    Raises
    ------
    Rejected
        An edge or the volume is out of bounds, or the angles span no volume.
    """
    # Plain floats throughout: a tenth of the time of arrays, and every crystal comes through here.
    values = [float(value) for value in crystal.cell]
    edges, angles = values[:3], values[3:]
    text = " ".join(f"{value:g}" for value in values)
    if not all(map(math.isfinite, values)) or min(edges) < 0.5 or max(edges) > LARGEST_EDGE:
        raise Rejected(f"absurd cell ({text}): edges must lie between 0.5 and {LARGEST_EDGE:g} Å")
    flatness = _unit_volume(angles)
    if min(angles) <= 1 or max(angles) >= 179 or flatness <= 1e-6:
        raise Rejected(f"absurd cell ({text}): its angles span no volume")
    volume = math.prod(edges) * math.sqrt(flatness)
    if volume > LARGEST_VOLUME:
        raise Rejected(f"absurd cell ({text}): volume {volume:.3g} Å³ is above {LARGEST_VOLUME:g}")


def _unit_volume(angles: list[float]) -> float:
    """Square of the volume that edges of length 1 span; below 0 where the angles are impossible."""
    alpha, beta, gamma = (math.cos(math.radians(angle)) for angle in angles)
    return 1 - alpha**2 - beta**2 - gamma**2 + 2 * alpha * beta * gamma


def _heights(crystal: Crystal) -> NDArray[np.float64]:
    """Distances between opposite faces of the cell in Å, shape (3,)."""
    values = [float(value) for value in crystal.cell]
    root = math.sqrt(_unit_volume(values[3:]))
    sines = (math.sin(math.radians(angle)) for angle in values[3:])
    return np.array([edge * root / sine for edge, sine in zip(values[:3], sines, strict=True)])


def _check_sites(crystal: Crystal) -> None:
    if not crystal.species:
        raise Rejected("no atoms")
    if not np.isfinite(crystal.positions).all():
        raise Rejected("a coordinate is not a number")
    occupancy, b_iso = crystal.occupancy, crystal.b_iso
    possible = (occupancy > 0) & (occupancy <= 1 + 1e-6)
    for bad in np.flatnonzero(~(possible & np.isfinite(b_iso))):
        if not possible[bad]:
            raise Rejected(f"occupancy {occupancy[bad]:g} of {crystal.species[bad]} lies outside (0, 1]")
        raise Rejected(f"displacement parameter of {crystal.species[bad]} is not a number")


def _check_distances(crystal: Crystal) -> None:
    """Refuse atoms nearer than `SHORTEST_DISTANCE` unless they share a place by partial occupancy."""
    heights = _heights(crystal)
    # Below, the nearest image of an atom need not be the one that rounding finds.
    if heights.min() <= 2 * SHORTEST_DISTANCE or _nearly_touch(crystal, heights):
        _check_exact_distances(crystal)


def _nearly_touch(crystal: Crystal, heights: NDArray[np.float64]) -> bool:
    """Whether two atoms too many for one place lie within `SHORTEST_DISTANCE` along each face's normal.

    Two atoms are at least as far apart as the planes through them, so that atoms further apart along any
    normal need no exact look; hardly a crystal does.
    """
    positions, occupancy = crystal.positions, crystal.occupancy
    if len(positions) <= _FEW_SITES:
        steps = positions[:, None] - positions
        steps -= np.rint(steps)
        near = np.all(np.abs(steps) * heights <= SHORTEST_DISTANCE, axis=2)
        first, second = np.nonzero(np.triu(near, 1))
    else:
        from scipy.spatial import cKDTree

        places = positions % 1.0 * heights
        places[places >= heights] = 0.0  # the remainder of a tiny negative number is 1
        tree = cKDTree(places, boxsize=heights, balanced_tree=False, compact_nodes=False)
        first, second = tree.query_pairs(SHORTEST_DISTANCE, p=np.inf, output_type="ndarray").T
    return bool(np.any(occupancy[first] + occupancy[second] > FULLEST_POSITION))


def _check_exact_distances(crystal: Crystal) -> None:
    from scipy.spatial import cKDTree

    wrapped = crystal.positions % 1.0
    edges = crystal.cell[:3]
    orthogonal = np.linalg.cholesky(crystal.metric)  # rows: cell vectors in Cartesian Å
    # Each atom near a face gets an image on the far side; a margin in fractional units covers any angle.
    heights = 1.0 / np.sqrt(np.diag(np.linalg.inv(crystal.metric)))
    margin = np.minimum(SHORTEST_DISTANCE / heights, 0.5)
    images, owners = [wrapped], [np.arange(len(wrapped))]
    for axis in range(3):
        points, index = np.concatenate(images), np.concatenate(owners)
        low, high = points[:, axis] < margin[axis], points[:, axis] >= 1 - margin[axis]
        step = np.eye(3)[axis]
        images += [points[low] + step, points[high] - step]
        owners += [index[low], index[high]]
    points, index = np.concatenate(images), np.concatenate(owners)
    pairs = cKDTree(points @ orthogonal).query_pairs(SHORTEST_DISTANCE, output_type="ndarray")
    first, second = index[pairs[:, 0]], index[pairs[:, 1]]
    shared = crystal.occupancy[first] + crystal.occupancy[second]
    clash = (shared > FULLEST_POSITION) & ((pairs[:, 0] < len(wrapped)) | (pairs[:, 1] < len(wrapped)))
    if clash.any():
        one, other = first[clash][0], second[clash][0]
        raise Rejected(
            f"overlapping atoms: {crystal.species[one]} and {crystal.species[other]} "
            f"lie within {SHORTEST_DISTANCE:g} Å with a summed occupancy of {shared[clash][0]:.3g} "
            f"(cell edges {edges[0]:g} {edges[1]:g} {edges[2]:g} Å)"
        )
