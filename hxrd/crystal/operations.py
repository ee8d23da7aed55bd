"""Symmetry operations: from the names a CIF gives, checked against the cell, applied to sites."""

import re
from collections.abc import Sequence

import gemmi
import numpy as np
from numpy.typing import NDArray

from hxrd.errors import Rejected

# Images of one site that are nearer than this lie on a special position whose coordinates were rounded.
SPECIAL_POSITION_TOLERANCE = 0.15  # Å
_SAME_POINT = 1e-3  # Å
_METRIC_TOLERANCE = 0.02  # relative: a measured cell may break its group's metric a little

Operations = tuple[NDArray[np.int8], NDArray[np.float64]]
"""Rotations (n, 3, 3) and translations (n, 3) for fractional coordinates, centring included."""


def operations_from_group(group: gemmi.GroupOps) -> Operations:
    """Return all operations of a gemmi group, centring included."""
    return operations_from_list(list(group))


def operations_from_list(ops: Sequence[gemmi.Op]) -> Operations:
    """Return rotations (n, 3, 3) and translations (n, 3), in [0, 1), of gemmi operations."""
    rotations = np.array([op.rot for op in ops], dtype=np.int64) // gemmi.Op.DEN
    translations = np.array([op.tran for op in ops], dtype=np.float64) / gemmi.Op.DEN
    return rotations.astype(np.int8), translations % 1.0


def group_from_triplets(triplets: Sequence[str]) -> gemmi.GroupOps:
    """Return the group of listed operations such as ``-x, y+1/2, -z``.

    Raises
    ------
    Rejected
        A triplet cannot be read, or the list is not closed under multiplication.
    """
    try:
        ops = {gemmi.Op(text).wrap().triplet(): gemmi.Op(text).wrap() for text in triplets}
        group = gemmi.GroupOps(list(ops.values()))
    except (RuntimeError, ValueError) as error:
        raise Rejected(f"a listed symmetry operation cannot be read ({error})") from error
    if {op.wrap().triplet() for op in group} != set(ops):
        raise Rejected("the listed symmetry operations form no group")
    if gemmi.find_spacegroup_by_ops(group) is None and not _is_closed(list(ops.values())):
        raise Rejected("the listed symmetry operations form no group")
    return group


def _is_closed(ops: Sequence[gemmi.Op]) -> bool:
    known = {op.triplet() for op in ops}
    return all((one * other).wrap().triplet() in known for one in ops for other in ops)


def settings_by_name(name: str, cell: NDArray[np.float64]) -> list[gemmi.SpaceGroup]:
    """Return the settings that a Hermann–Mauguin symbol may mean, the likeliest first.

    One setting where the symbol says which (``:2``, ``:R``, or the ICSD's ``Z``, ``S``, ``H``, ``R``);
    both origins or both sets of axes where it does not; none where gemmi does not know the symbol.
    """
    qualifiers = {"S": "1", "Z": "2", "O1": "1", "O2": "2"}
    text = " ".join(name.replace("_", "").split())
    qualifier = ""
    if match := re.fullmatch(r"(.*?)(?:\s*:\s*([12HR])|\s+([HR])|\s*([SZH]|O[12]))", text, re.IGNORECASE):
        text = match[1]
        found = (match[2] or match[3] or match[4]).upper()
        qualifier = qualifiers.get(found, found)
    group = gemmi.find_spacegroup_by_name(text, cell[3], cell[5], prefer="2")
    if group is None:
        return []
    same = [other for other in gemmi.spacegroup_table() if other.hm == group.hm]
    if qualifier:
        return [other for other in same if other.ext == qualifier] or same
    return sorted(same, key=lambda other: other.ext != group.ext)


def settings_by_number(number: int) -> list[gemmi.SpaceGroup]:
    """Return all tabulated settings of a space-group number, the reference setting first."""
    same = [group for group in gemmi.spacegroup_table() if group.number == number]
    return sorted(same, key=lambda group: not group.is_reference_setting())


def fits_cell(rotations: NDArray[np.int8], metric: NDArray[np.float64]) -> bool:
    """Whether all rotations leave the metric tensor (Å², shape (3, 3)) unchanged, within 2 %."""
    turned = np.einsum("nji,jk,nkl->nil", rotations.astype(float), metric, rotations.astype(float))
    return bool(np.abs(turned - metric).max() <= _METRIC_TOLERANCE * np.diag(metric).max())


def images_of_site(
    position: NDArray[np.float64], operations: Operations, metric: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the different images of a site under the group.

    Parameters
    ----------
    position : ndarray, shape (3,)
        Fractional coordinates; nearer than `SPECIAL_POSITION_TOLERANCE` to a special position they
        are moved onto it, so that ``0.3333`` counts as 1/3.
    operations : tuple of ndarray
        Rotations (n, 3, 3) and translations (n, 3).
    metric : ndarray, shape (3, 3)
        Metric tensor in Å².

    Returns
    -------
    ndarray, shape (multiplicity, 3)
        Fractional coordinates in [0, 1); the first is the site itself.
    """
    rotations, translations = operations
    for _ in range(3):
        shifts = rotations @ position + translations - position
        shifts -= np.round(shifts)
        near = _lengths(shifts, metric) < SPECIAL_POSITION_TOLERANCE
        correction = shifts[near].mean(axis=0)
        position = position + correction
        if np.abs(correction).max() < 1e-12:
            break
    images = (rotations @ position + translations) % 1.0
    apart = images[:, None] - images[None]
    apart -= np.round(apart)
    repeated = np.tril(_lengths(apart, metric) < _SAME_POINT, -1).any(axis=1)
    return images[~repeated] % 1.0


def _lengths(vectors: NDArray[np.float64], metric: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(np.einsum("...i,ij,...j->...", vectors, metric, vectors), 0.0))
