"""The 230 space groups: symbols, Bravais lattices, twins and extinction groups; symmetry of a crystal.

Everything is computed from gemmi's operations of the reference settings (International Tables A: unique
axis b and cell choice 1, origin 2, hexagonal axes for R); no table of groups is copied.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import permutations

import gemmi
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal, cell_from_metric
from hxrd.errors import Rejected

BRAVAIS_LATTICES: tuple[str, ...] = (
    *("cF", "cI", "cP", "hP", "mC", "mP", "oC"),
    *("oF", "oI", "oP", "hR", "tI", "tP", "aP"),
)
"""The 14 Bravais lattices, in the label order of Lolla et al. (2022)."""

# fmt: off
SPACE_GROUPS_144: tuple[int, ...] = (
    1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 18, 19, 20, 26, 29, 31, 33, 34, 36, 38, 40, 41,
    42, 43, 44, 45, 46, 47, 51, 52, 53, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 69, 70,
    71, 72, 73, 74, 82, 85, 86, 87, 88, 92, 96, 99, 100, 107, 109, 113, 114, 119, 121, 122, 123,
    125, 126, 127, 128, 129, 130, 131, 135, 136, 137, 139, 140, 141, 142, 143, 144, 146, 147, 148,
    150, 152, 154, 155, 156, 157, 159, 160, 161, 162, 163, 164, 165, 166, 167, 173, 174, 175, 176,
    180, 182, 185, 186, 187, 189, 190, 191, 192, 193, 194, 197, 198, 199, 200, 201, 203, 204, 205,
    206, 212, 213, 215, 216, 217, 218, 220, 221, 223, 224, 225, 226, 227, 229, 230,
)
# fmt: on
"""The space groups with more than 50 patterns in Lolla et al. (2022), Table 1, in label order."""

logger = logging.getLogger(__name__)

_ALL_GROUPS = range(1, 231)
_FAMILY_LETTERS = {
    "triclinic": "a",
    "monoclinic": "m",
    "orthorhombic": "o",
    "tetragonal": "t",
    "trigonal": "h",
    "hexagonal": "h",
    "cubic": "c",
}
# Conditions reach 6n (6_1 axes) and 4n (d glides), so a cube of this half-width shows every one of them.
_LARGEST_INDEX = 8
_ROUNDING = 2e-5  # fractional, or relative of the metric: five digits, as many files have
_SHARED_POSITION = 1e-4  # fractional; species nearer than this are one mixed atom


@cache
def _reference(number: int) -> gemmi.SpaceGroup:
    if number not in _ALL_GROUPS:
        raise ValueError(f"space group {number} is not between 1 and 230")
    return gemmi.get_spacegroup_reference_setting(int(number))


def crystal_system(number: int) -> str:
    """Return the crystal system (``triclinic`` … ``cubic``; trigonal groups are ``trigonal``).

    Raises
    ------
    ValueError
        `number` is not between 1 and 230; so for all functions of this module that take a number.
    """
    return _reference(number).crystal_system_str()


@cache
def bravais_lattice(number: int) -> str:
    """Return the Bravais lattice of a space group, one of `BRAVAIS_LATTICES`."""
    centring = _reference(number).hm[0]
    one_face = {"A": "C", "B": "C"}
    return _FAMILY_LETTERS[crystal_system(number)] + one_face.get(centring, centring)


@cache
def symbol(number: int) -> str:
    """Return the short Hermann–Mauguin symbol of the reference setting.

    Screw axes have an underscore, and a blank stands only where two digits would touch otherwise:
    ``Fm-3m``, ``P2_1/c``, ``P6_3/mmc``, ``P-4 2_1m``, ``P4_1 2_1 2``.
    """
    lattice, *directions = _reference(number).hm.split()
    if crystal_system(number) == "monoclinic":
        directions = [part for part in directions if part != "1"]
    text = lattice
    for part in directions:
        separator = " " if text[-1].isdigit() and part[0].isdigit() else ""
        text += separator + re.sub(r"^([2346])([1-5])", r"\1_\2", part)
    return text


@cache
def enantiomorph(number: int) -> int | None:
    """Return the number of the other hand's group, or None for a group that is its own mirror image.

    The twin has the same rotations and the same absences; only the sense of its screw axes differs.
    """
    if not _reference(number).is_enantiomorphic():
        return None
    own = _rotation_set(number)
    twins = [
        other
        for other in _ALL_GROUPS
        if other != number
        and _reference(other).is_enantiomorphic()
        and _rotation_set(other) == own
        and np.array_equal(_absences(other), _absences(number))
    ]
    (twin,) = twins
    return twin


def _rotation_set(number: int) -> frozenset[tuple[int, ...]]:
    return frozenset(tuple(np.ravel(op.rot).tolist()) for op in _reference(number).operations().sym_ops)


def merged_number(number: int) -> int:
    """Return the number under which a group and its enantiomorph are counted: the lower of the two."""
    return min(number, enantiomorph(number) or number)


def merged_symbol(number: int) -> str:
    """Return the symbol, or both symbols of an enantiomorphic pair, lower number first."""
    twin = enantiomorph(number)
    if twin is None:
        return symbol(number)
    return " | ".join(symbol(member) for member in sorted((number, twin)))


@cache
def _indices() -> NDArray[np.int32]:
    """All hkl of a cube around the origin, shape ((2 n + 1)³, 3)."""
    one = np.arange(-_LARGEST_INDEX, _LARGEST_INDEX + 1, dtype=np.int32)
    return np.stack(np.meshgrid(one, one, one, indexing="ij"), axis=-1).reshape(-1, 3)


@cache
def _absences(number: int) -> NDArray[np.bool_]:
    """Which of `_indices` the group extinguishes, shape ((2 n + 1)³,)."""
    return np.asarray(_reference(number).operations().systematic_absences(_indices()), dtype=bool)


def _absence_key(number: int) -> tuple[str, bytes, tuple[str, ...]]:
    """Crystal family, absences (orthorhombic axes in any order), own screw axes that show."""
    family = bravais_lattice(number)[0]
    width = 2 * _LARGEST_INDEX + 1
    cube = _absences(number).reshape(width, width, width)
    if family == "o":
        return (
            family,
            min(np.packbits(cube.transpose(order)).tobytes() for order in permutations(range(3))),
            (),
        )
    return family, np.packbits(cube).tobytes(), tuple(filter(None, _visible_screws(number)))


@cache
def extinction_groups() -> dict[str, tuple[int, ...]]:
    """Return the 99 classes of space groups with one extinction symbol each.

    Two groups share a class when they belong to one crystal family and extinguish the same reflections,
    whatever their Laue class: a powder pattern's line positions cannot tell them apart. As in the tables,
    ``hP 3_1 - -`` stands beside ``hP 6_2 - -`` and ``cP 2_1 - -`` beside ``cP 4_2 - -``: these two pairs
    extinguish the same reflections by different axes (counted by absences alone, there are 97 classes).

    Returns
    -------
    dict of str to tuple of int
        Label (see `extinction_group`) → its space groups, ascending; in the order of the lowest member.

    References
    ----------
    Looijenga-Vos & Buerger, *International Tables for Crystallography* A, Table 3.1.4.1 (symbols).
    """
    members: dict[tuple[str, bytes, tuple[str, ...]], list[int]] = {}
    for number in _ALL_GROUPS:
        members.setdefault(_absence_key(number), []).append(number)
    return {_extinction_label(numbers): tuple(numbers) for numbers in members.values()}


def extinction_group(number: int) -> str:
    """Return the family letter and extinction symbol of a group's class, such as ``oP n - a``.

    The symbol keeps the glide planes and those screw axes whose absences neither the centring nor a
    glide plane explains, in the reference setting of the class's most symmetric group; a dash is a
    direction without absences of its own.
    """
    _reference(number)
    return _label_by_number()[number]


@cache
def _label_by_number() -> dict[int, str]:
    return {number: label for label, numbers in extinction_groups().items() for number in numbers}


def _extinction_label(numbers: list[int]) -> str:
    highest = numbers[-1]
    model = min((highest, enantiomorph(highest) or highest), key=symbol)  # 4_1 rather than 4_3
    family = bravais_lattice(model)[0]
    lattice, *directions = _reference(model).hm.split()
    screws = _visible_screws(model)
    parts = []
    for direction, screw in zip(directions, screws, strict=True):
        plane = direction.rsplit("/", 1)[-1]
        glide = plane if plane in "abcden" else ""
        parts.append(
            "/".join(filter(None, (screw, glide))) or ("1" if family == "m" and plane == "1" else "-")
        )
    if family != "a":
        parts += ["-"] * ((2 if lattice == "R" else 3) - len(parts))
    return f"{family}{lattice} {' '.join(parts)}"


def _visible_screws(number: int) -> list[str]:
    """For each direction of the symbol, its screw axis (the hand of lower index) if absences show it.

    An axis shows when it extinguishes reflections of its own row that no centring vector and no glide
    plane extinguishes already.
    """
    family = bravais_lattice(number)[0]
    operations = _reference(number).operations()
    planes = [op for op in operations if _is_plane_or_translation(op)]
    directions = _reference(number).hm.split()[1:]
    screws = []
    for direction, row in zip(directions, _ROWS[family], strict=False):
        match = re.match(r"([2346])([1-5])", direction)
        if match is None:
            screws.append("")
            continue
        own = [[order * index for index in row] for order in range(1, 7)]
        shows = any(
            operations.is_systematically_absent(hkl) and not any(_extinguishes(op, hkl) for op in planes)
            for hkl in own
        )
        order, pitch = int(match[1]), int(match[2])
        screws.append(f"{order}_{min(pitch, order - pitch)}" if shows else "")
    return screws


_ROWS = {
    "a": [(1, 0, 0)],
    "m": [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
    "o": [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
    "t": [(0, 0, 1), (1, 0, 0), (1, 1, 0)],
    "h": [(0, 0, 1), (1, 0, 0), (1, 1, 0)],
    "c": [(1, 0, 0), (1, 1, 1), (1, 1, 0)],
}
"""Reciprocal rows along the symmetry directions, in the order of the Hermann–Mauguin symbol."""


def _is_plane_or_translation(op: gemmi.Op) -> bool:
    rotation = np.array(op.rot) // op.DEN
    return bool(np.trace(rotation) == 3 or (np.trace(rotation) == 1 and np.linalg.det(rotation) < 0))


def _extinguishes(op: gemmi.Op, hkl: list[int]) -> bool:
    return op.apply_to_hkl(hkl) == hkl and np.dot(hkl, op.tran) % op.DEN != 0


def find_symmetry(crystal: Crystal, tolerance: float = 1e-3) -> Crystal:
    """Return the crystal with the space group and operations that its own atoms obey.

    Parameters
    ----------
    crystal : Crystal
        Positions are compared within `tolerance`; atoms are alike when their species, occupancies and
        displacement parameters agree, and species that share a position count as one atom.
    tolerance : float
        Largest distance in Å between an atom and its image.

    Returns
    -------
    Crystal
        The same cell and sites, with `space_group`, `rotations` and `translations` in that cell. Where
        the cell is a supercell whose lattice lacks some rotations of the group, the operations are those
        that its lattice keeps, so fewer than the group's.

    Raises
    ------
    Rejected
        The symmetry search failed.

    References
    ----------
    Shinohara, Togo & Tanaka (2023), *Acta Cryst.* A79, 390 (the algorithm of moyo).
    """
    import dataclasses

    import moyopy

    if not crystal.species:
        raise Rejected("no atoms")
    positions, kinds = _atoms_by_position(crystal)
    basis = np.linalg.cholesky(crystal.metric)
    cell = moyopy.Cell(basis.tolist(), positions.tolist(), kinds)
    try:
        with _moyo_messages_as_details():
            found = moyopy.MoyoDataset(cell, symprec=tolerance)
    except ValueError as error:
        raise Rejected(f"no symmetry found within {tolerance:g} Å ({error})") from error
    return dataclasses.replace(
        crystal,
        space_group=int(found.number),
        rotations=np.asarray(found.operations.rotations, dtype=np.int8),
        translations=np.asarray(found.operations.translations, dtype=np.float64) % 1.0,
    )


def symmetrized(crystal: Crystal) -> Crystal:
    """Return the crystal with cell and positions averaged over its operations, so that it obeys them exactly.

    Files round their numbers: 0.33333 for 1/3. Where an operation brings some atom upon no other within
    `_ROUNDING`, or changes the cell by as much, the crystal is returned as it is.
    """
    import dataclasses

    from scipy.spatial import cKDTree

    rotations, translations = crystal.rotations.astype(np.float64), crystal.translations
    metrics = np.einsum("nki,kl,nlj->nij", rotations, crystal.metric, rotations)
    if np.abs(metrics - crystal.metric).max() > _ROUNDING * np.diag(crystal.metric).max():
        return crystal
    wrapped = crystal.positions % 1.0 % 1.0
    positions, owner = np.unique(np.round(wrapped, 5) % 1.0, axis=0, return_inverse=True)
    images = np.einsum("nij,pj->npi", rotations, crystal.positions) + translations[:, None]
    distance, nearest = cKDTree(positions, boxsize=1.0).query(images % 1.0 % 1.0)
    if distance.max() > _ROUNDING:
        return crystal
    # Each position becomes the mean of all images that fall on it, counted from where it stands.
    offsets = images - positions[nearest]
    offsets -= np.round(offsets)
    total, count = np.zeros_like(positions), np.bincount(nearest.ravel(), minlength=len(positions))
    np.add.at(total, nearest.ravel(), offsets.reshape(-1, 3))
    averaged = positions + total / count[:, None]
    return dataclasses.replace(
        crystal, cell=cell_from_metric(metrics.mean(axis=0)), positions=averaged[owner.ravel()]
    )


@contextmanager
def _moyo_messages_as_details() -> Iterator[None]:
    """Tell moyo's warnings (a supercell lacks operations of its primitive cell) as details of hxrd."""

    def as_detail(record: logging.LogRecord) -> bool:
        logger.debug("moyo: %s", record.getMessage())
        return False

    moyo = logging.getLogger("moyo")
    moyo.addFilter(as_detail)
    try:
        yield
    finally:
        moyo.removeFilter(as_detail)


def _atoms_by_position(crystal: Crystal) -> tuple[NDArray[np.float64], list[int]]:
    """Join species that share a position; number the different mixtures.

    Returns
    -------
    positions : ndarray, shape (n_atoms, 3)
        One row for each different position.
    kinds : list of int, length n_atoms
        Equal numbers for equal mixtures of species, occupancy and displacement.
    """
    from scipy.spatial import cKDTree

    wrapped = crystal.positions % 1.0
    wrapped[wrapped >= 1.0] = 0.0  # a tiny negative coordinate wraps to 1 exactly
    owner = np.arange(len(wrapped))
    for first, second in sorted(cKDTree(wrapped, boxsize=1.0).query_pairs(_SHARED_POSITION)):
        owner[second] = min(owner[first], owner[second])
    mixtures: dict[int, list[tuple[str, float, float]]] = {}
    for index, name in enumerate(crystal.species):
        content = (name, round(float(crystal.occupancy[index]), 3), round(float(crystal.b_iso[index]), 2))
        mixtures.setdefault(int(owner[index]), []).append(content)
    numbers: dict[tuple[tuple[str, float, float], ...], int] = {}
    kinds = [numbers.setdefault(tuple(sorted(content)), len(numbers) + 1) for content in mixtures.values()]
    return crystal.positions[list(mixtures)], kinds
