"""Crystals off their listed values within their symmetry: cells strained, displacement parameters moved."""

import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.symmetry import crystal_system
from hxrd.kernels import poisson
from hxrd.simulate.augmentation import Augmentation
from hxrd.simulate.draws import Stream, between, log_between, normals, uniforms
from hxrd.simulate.effects import LARGEST_B_ISO

_ALIKE = 1e-3  # relative, or degrees: edges and angles that a file means to be equal

# Which of six drawn strains each of a, b, c, α, β, γ takes up: equal numbers keep edges and angles equal,
# -1 keeps an angle as it is.
_ISOTROPIC = (0, 0, 0, -1, -1, -1)
_UNIQUE_C = (0, 0, 2, -1, -1, -1)
_RHOMBOHEDRAL = (0, 0, 0, 3, 3, 3)
_RIGHT_ANGLES = (0, 1, 2, -1, -1, -1)
_MONOCLINIC = ((0, 1, 2, 3, -1, -1), (0, 1, 2, -1, 4, -1), (0, 1, 2, -1, -1, 5))
_TRICLINIC = (0, 1, 2, 3, 4, 5)


def varied(
    crystals: Sequence[Crystal], augmentation: Augmentation, seeds: NDArray[np.uint64]
) -> list[Crystal]:
    """Return each crystal with its cell and displacement parameters as drawn for it.

    Parameters
    ----------
    crystals : sequence of Crystal
    augmentation : Augmentation
        `lattice_strain`, `thermal_expansion` and `displacement_parameters` count.
    seeds : ndarray of uint64, shape (n_crystals,)
    """
    cells: Sequence[NDArray[np.float64]] = [crystal.cell for crystal in crystals]
    b_iso: Sequence[NDArray[np.float64]] = [crystal.b_iso for crystal in crystals]
    moved_cells = augmentation.lattice_strain is not None or augmentation.thermal_expansion is not None
    if moved_cells:
        cells = list(strained_cells(crystals, augmentation, seeds))
    if augmentation.displacement_parameters is not None:
        b_iso = displaced(crystals, augmentation, seeds)
    elif not moved_cells:
        return list(crystals)
    return [
        Crystal(  # dataclasses.replace takes three times as long
            crystal.identifier,
            cell,
            crystal.species,
            crystal.positions,
            crystal.occupancy,
            b,
            crystal.space_group,
            crystal.rotations,
            crystal.translations,
        )
        for crystal, cell, b in zip(crystals, cells, b_iso, strict=True)
    ]


def strained_cells(
    crystals: Sequence[Crystal], augmentation: Augmentation, seeds: NDArray[np.uint64]
) -> NDArray[np.float64]:
    """Cells after lattice strain and thermal expansion, each within its crystal system, shape (n, 6).

    Where the cell does not have the form that its system has in a conventional setting, or the space group is
    unknown, or the system is cubic, the strain is isotropic, which no symmetry forbids.
    """
    cells = np.array([crystal.cell for crystal in crystals])
    strain, thermal = augmentation.lattice_strain, augmentation.thermal_expansion
    if strain is not None:
        free = np.array([_free_strains(crystal) for crystal in crystals])
        drawn = strain.sigma * normals(seeds, Stream.LATTICE_STRAIN, 6)
        drawn[uniforms(seeds, Stream.LATTICE_STRAIN, 7)[:, 6] >= strain.probability] = 0
        taken = np.where(free >= 0, np.take_along_axis(drawn, np.maximum(free, 0), axis=1), 0.0)
        cells[:, :3] *= 1 + taken[:, :3]
        cells[:, 3:] += np.degrees(2 * taken[:, 3:])
    if thermal is not None:
        u = uniforms(seeds, Stream.THERMAL_EXPANSION, 3)
        change = between(thermal.temperature, u[:, 0]) - thermal.reference
        expansion = log_between(thermal.coefficient, u[:, 1]) * change
        cells[:, :3] *= 1 + np.where(u[:, 2] < thermal.probability, expansion, 0.0)[:, None]
    return cells


def _free_strains(crystal: Crystal) -> tuple[int, ...]:
    if not crystal.space_group:
        return _ISOTROPIC
    a, b, c, alpha, beta, gamma = crystal.cell.tolist()
    tolerance = _ALIKE * a
    right = (abs(alpha - 90) < _ALIKE, abs(beta - 90) < _ALIKE, abs(gamma - 90) < _ALIKE)
    square = abs(a - b) < tolerance
    match _system(crystal.space_group):
        case "triclinic":
            return _TRICLINIC
        case "monoclinic" if sum(right) >= 2:
            return _RIGHT_ANGLES if all(right) else _MONOCLINIC[right.index(False)]
        case "orthorhombic" if all(right):
            return _RIGHT_ANGLES
        case "tetragonal" if all(right) and square:
            return _UNIQUE_C
        case "trigonal" | "hexagonal" if right[0] and right[1] and abs(gamma - 120) < _ALIKE and square:
            return _UNIQUE_C
        case "trigonal" if (
            square and abs(a - c) < tolerance and max(abs(alpha - beta), abs(alpha - gamma)) < _ALIKE
        ):
            return _RHOMBOHEDRAL
        case _:
            return _ISOTROPIC


@cache
def _system(space_group: int) -> str:
    return crystal_system(space_group)


def displaced(
    crystals: Sequence[Crystal], augmentation: Augmentation, seeds: NDArray[np.uint64]
) -> list[NDArray[np.float64]]:
    """Displacement parameters in Å² of each crystal's sites, jittered by species.

    All atoms of a species move by one factor, so that symmetry-equivalent atoms stay alike.
    """
    settings = augmentation.displacement_parameters
    assert settings is not None
    sizes = np.array([len(crystal.b_iso) for crystal in crystals])
    b_iso = np.concatenate([crystal.b_iso for crystal in crystals])
    numbers = np.array([_number(name) for crystal in crystals for name in crystal.species], dtype=np.int64)
    words = np.empty(len(b_iso))
    poisson.uniforms_at(np.repeat(seeds, sizes), int(Stream.DISPLACEMENT_OF_SPECIES), numbers, words)
    u = uniforms(seeds, Stream.DISPLACEMENT, 2)
    base = np.where(b_iso == 0, np.repeat(between(settings.missing, u[:, 0]), sizes), b_iso)
    moved = np.minimum(base * np.exp(settings.sigma * ndtri(words)), np.maximum(base, LARGEST_B_ISO))
    moved = np.where(np.repeat(u[:, 1] < settings.probability, sizes), moved, b_iso)
    return np.split(moved, np.cumsum(sizes)[:-1])


@cache
def _number(species: str) -> int:
    """Return a number that is the species' own, in every process and every version."""
    return zlib.crc32(species.encode())
