"""Wyckoff positions of a space group, computed from its operations in the reference setting.

Nothing is copied from a table: a position is a class of points whose stabilisers are conjugate under the
group, and on the grid of 24ths every position of the 230 groups has points that are generic for it.
"""

from dataclasses import dataclass
from functools import cache

import gemmi
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.operations import operations_from_group

GRID = 24
"""Fractions of the cell edge on which positions are told apart; all special coordinates are 24ths."""
_SAME_PLACE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class WyckoffPosition:
    """All images of a point with one kind of site symmetry: image i lies at ``matrix[i] @ v + shift[i]``.

    Parameters
    ----------
    matrix : ndarray of int64, shape (multiplicity, 3, n_free)
        Whole numbers; each free coordinate v in [0, 1) is one column.
    shift : ndarray of int64, shape (multiplicity, 3)
        In units of 1/`GRID`, from 0 to `GRID` - 1.
    pivots : tuple of int, length n_free
        Rows of ``matrix[0]`` that are a unit vector, so that the coordinate there gives v.
    """

    matrix: NDArray[np.int64]
    shift: NDArray[np.int64]
    pivots: tuple[int, ...]

    @property
    def multiplicity(self) -> int:
        """How many atoms of the conventional cell it holds."""
        return len(self.shift)

    @property
    def n_free(self) -> int:
        """How many coordinates are free: 0 to 3."""
        return len(self.pivots)

    def images(self, free: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return all images, shape (multiplicity, 3), for the free coordinates, shape (n_free,)."""
        return (self.matrix @ free + self.shift / GRID) % 1.0

    def free_coordinates(self, points: NDArray[np.float64], tolerance: float) -> NDArray[np.float64] | None:
        """Return the free coordinates of the first of `points` that lies on the first image, or None.

        Parameters
        ----------
        points : ndarray, shape (n, 3)
            Fractional coordinates.
        tolerance : float
            Largest deviation of a fractional coordinate.
        """
        offset = points - self.shift[0] / GRID
        free = offset[:, list(self.pivots)]
        rest = offset - free @ self.matrix[0].T
        lies = np.abs(rest - np.round(rest)).max(axis=1) < tolerance
        return free[int(np.argmax(lies))] % 1.0 if lies.any() else None


@cache
def group_operations(number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rotations (n, 3, 3) and translations (n, 3) in 24ths of the reference setting, with centring."""
    rotations, translations = operations_from_group(
        gemmi.get_spacegroup_reference_setting(number).operations()
    )
    return rotations.astype(np.int64), np.round(translations * GRID).astype(np.int64) % GRID


@cache
def wyckoff_positions(number: int) -> tuple[WyckoffPosition, ...]:
    """Return the Wyckoff positions of a space group, the lowest multiplicity first, the general one last.

    References
    ----------
    *International Tables for Crystallography* A (2016), section 1.4.4 (what a Wyckoff position is).
    """
    rotations, translations = group_operations(number)
    points = _grid_points()
    stabiliser = _stabilisers(rotations, translations, points)
    positions: list[WyckoffPosition] = []
    left = np.ones(len(points), dtype=bool)
    for key in np.unique(stabiliser):
        members = stabiliser == key
        while (rest := np.flatnonzero(members & left)).size:
            position = _position_of(rotations, translations, points[rest[0]])
            positions.append(position)
            left[_indices_of_all_grid_points(position)] = False
    return tuple(sorted(positions, key=lambda one: (one.multiplicity, one.n_free, one.shift[0].tolist())))


@cache
def _grid_points() -> NDArray[np.int64]:
    one = np.arange(GRID)
    return np.stack(np.meshgrid(one, one, one, indexing="ij"), axis=-1).reshape(-1, 3)


def _stabilisers(
    rotations: NDArray[np.int64], translations: NDArray[np.int64], points: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Number the sets of operations that leave each point where it is; larger sets have lower numbers."""
    fixed = np.stack(
        [
            ((points @ rotation.T + translation - points) % GRID == 0).all(axis=1)
            for rotation, translation in zip(rotations, translations, strict=True)
        ]
    )
    _, first, index = np.unique(np.packbits(fixed, axis=0), axis=1, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(-fixed.sum(axis=0)[first], kind="stable"))
    return rank[index.ravel()]


def _position_of(
    rotations: NDArray[np.int64], translations: NDArray[np.int64], point: NDArray[np.int64]
) -> WyckoffPosition:
    images = (rotations @ point + translations) % GRID
    stays = (images == point).all(axis=1)
    basis, pivots = _invariant_directions(rotations[stays])
    anchor = (point - basis @ point[list(pivots)]) % GRID
    _, first = np.unique(images, axis=0, return_index=True)
    chosen = np.sort(first)
    chosen = np.concatenate([[np.flatnonzero(stays)[0]], chosen[~stays[chosen]]])
    return WyckoffPosition(
        matrix=rotations[chosen] @ basis,
        shift=(rotations[chosen] @ anchor + translations[chosen]) % GRID,
        pivots=pivots,
    )


def _invariant_directions(rotations: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Return a whole-number basis (3, n_free) of the vectors that all rotations keep, and its pivot rows."""
    kept = rotations.sum(axis=0)  # the projector onto the invariant vectors, times the order
    n_free = round(np.trace(kept) / len(rotations))
    for pivots in ((), (2,), (1,), (0,), (1, 2), (0, 2), (0, 1), (0, 1, 2)):
        if len(pivots) != n_free:
            continue
        columns = [kept[:, column] for column in range(3) if kept[:, column].any()]
        square = np.stack(columns, axis=1)[list(pivots)] if columns else np.zeros((0, 0))
        solution = np.linalg.lstsq(square, np.eye(n_free), rcond=None)[0] if n_free else np.zeros((0, 0))
        basis = np.stack(columns, axis=1) @ solution if n_free else np.zeros((3, 0))
        whole = np.round(basis).astype(np.int64)
        exact = np.abs(basis - whole).max(initial=0) < 1e-9
        if exact and (whole[list(pivots)] == np.eye(n_free)).all():
            return whole, pivots
    raise RuntimeError("no whole-number basis with unit rows: these rotations are no site symmetry")


def _indices_of_all_grid_points(position: WyckoffPosition) -> NDArray[np.int64]:
    """Return which grid points lie on any image of a position (more special points among them)."""
    steps = (
        np.stack(np.meshgrid(*[np.arange(GRID)] * position.n_free, indexing="ij"), axis=-1).reshape(
            -1, position.n_free
        )
        if position.n_free
        else np.zeros((1, 0), dtype=np.int64)
    )
    if position.n_free == 3:
        return np.arange(GRID**3)
    places = (np.einsum("mif,sf->msi", position.matrix, steps) + position.shift[:, None, :]) % GRID
    return np.unique(places.reshape(-1, 3) @ np.array([GRID**2, GRID, 1]))


def position_of_orbit(
    number: int, points: NDArray[np.float64], tolerance: float = _SAME_PLACE
) -> tuple[int, NDArray[np.float64]] | None:
    """Return which of `wyckoff_positions` an orbit occupies, and its free coordinates.

    Parameters
    ----------
    number : int
        Space group.
    points : ndarray, shape (multiplicity, 3)
        All images in the conventional cell, fractional, in the reference setting.
    tolerance : float
        Largest deviation of a fractional coordinate.

    Returns
    -------
    tuple or None
        Index of the position, and the free coordinates, shape (n_free,); None where it is on none.
    """
    for index, position in enumerate(wyckoff_positions(number)):
        if position.multiplicity == len(points):
            free = position.free_coordinates(points, tolerance)
            if free is not None:
                return index, free
    return None
