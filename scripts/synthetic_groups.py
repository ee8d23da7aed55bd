"""The part of the generator's table that the 230 groups give by themselves: positions, lattices, cosets."""

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.symmetry import bravais_lattice
from hxrd.crystal.wyckoff import GRID, group_operations, wyckoff_positions

FAMILIES = "amothc"
_HOLOHEDRY = {"a": 2, "m": 10, "o": 47, "t": 123, "hP": 191, "hR": 166, "c": 221}
"""A group with all rotations of its lattice, in the reference setting, for each crystal family."""


def group_arrays() -> dict[str, NDArray[Any]]:
    """Return the arrays of `hxrd.crystal.synthetic_table` that depend on no statistics; row 0 is no group."""
    positions = [wyckoff_positions(number) for number in range(1, 231)]
    images = [position for of_group in positions for position in of_group]
    lattices = [_lattice_arrays(number) for number in range(1, 231)]
    centring, coset, primitive, order = zip(*lattices, strict=True)
    return {
        "position_count": np.array([0, *map(len, positions)], np.uint8),
        "multiplicity": np.array([position.multiplicity for position in images], np.uint8),
        "n_free": np.array([position.n_free for position in images], np.uint8),
        "image_matrix": np.concatenate([_three_columns(position.matrix) for position in images]),
        "image_shift": np.concatenate([position.shift for position in images]).astype(np.int8),
        "lattice": np.array([0, *(FAMILIES.index(bravais_lattice(n)[0]) for n in range(1, 231))], np.uint8),
        "lattice_order": np.array([0, *order], np.uint8),
        "primitive": np.stack([np.zeros((3, 3)), *primitive]).astype(np.int8),
        "centring_count": np.array([0, *map(len, centring)], np.uint8),
        "centring": np.concatenate(centring).astype(np.int8),
        "coset_count": np.array([0, *map(len, coset)], np.uint8),
        "coset": np.concatenate(coset).astype(np.int8),
    }


def _three_columns(matrix: NDArray[np.int64]) -> NDArray[np.int8]:
    return np.pad(matrix, ((0, 0), (0, 0), (0, 3 - matrix.shape[2]))).astype(np.int8)


def _lattice_arrays(
    number: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Centring translations and primitive vectors in 24ths, one rotation of each coset, lattice order."""
    rotations, translations = group_operations(number)
    centring = np.unique(translations[(rotations == np.eye(3)).all(axis=(1, 2))], axis=0)
    family = bravais_lattice(number)
    lattice = np.unique(group_operations(_HOLOHEDRY.get(family) or _HOLOHEDRY[family[0]])[0], axis=0)
    own = np.unique(rotations, axis=0)
    known = {_key(rotation) for rotation in own}
    coset = [np.eye(3, dtype=np.int64)]
    for rotation in lattice:
        if _key(rotation) not in known:
            coset.append(rotation)
            known |= {_key(rotation @ other) for other in own}
    if len(known) != len(lattice):
        raise RuntimeError(f"the rotations of group {number} are not among those of its lattice")
    return centring, np.stack(coset), _primitive_vectors(centring), len(lattice)


def _key(rotation: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(rotation.ravel().tolist())


def _primitive_vectors(centring: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return three lattice vectors as columns, in 24ths, whose cell holds one lattice point."""
    whole = GRID * np.array(list(product((-1, 0, 1), repeat=3)))
    vectors = np.unique((centring[:, None] + whole).reshape(-1, 3), axis=0)
    vectors = vectors[np.argsort((vectors**2).sum(axis=1), kind="stable")][1:40]
    for i, j, k in product(range(len(vectors)), repeat=3):
        if i < j < k:
            chosen = vectors[[i, j, k]].T
            if abs(round(np.linalg.det(chosen))) * len(centring) == GRID**3:
                return chosen
    raise RuntimeError("no primitive vectors among the short ones")
