"""What symmetry saves, compiled with Numba: the primitive cell, the Laue class, half the atoms.

Operations are used only where the atoms obey them. Fractional coordinates are columns, x' = R x + t;
reflections are rows, h' = h R.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hxrd.kernels.compiled import compiled, compiled_fastmath
from hxrd.kernels.lattice import congruent, determinant, inverse, product, set_metric

MOST_ROTATIONS = 48
LENIENT = 1e-5  # how exactly atoms and cell must obey an operation for patterns: well below 1e-4 of the top
STRICT = 1e-9  # and where every digit counts
_LARGEST_ENTRY = 8  # of a rotation matrix, in any sensible cell
_MOST_CENTRINGS = 64
_BORDER = 1e-6  # fractional; atoms nearer than this to a plane lie on it
_ORIGINS = np.array([[0.0137, 0.0271, 0.0331], [0.1153, 0.0711, 0.1391], [0.0619, 0.1447, 0.0893]])

# Reflections whose structure factors show whether atoms obey an operation. Every centring (A, B, C, I, F, R
# either way round) allows two of the first six or more, and forbids one; even indices alone would not see
# an atom that stands half a cell away from where it should.
_PROBES = np.array([[1, 2, 5], [1, 3, 5], [1, 3, 4], [2, 1, 5], [1, 3, 7], [3, 1, 4], [4, 2, 8]])
_FEW_ROTATIONS = 8
_PROBES_OF_FEW, _PROBES_OF_MANY = 4, 2  # that are tried on each rotation; many rotations look many ways

# cos 2πx = Σ c x²ⁿ and sin 2πx = x Σ s x²ⁿ, for |x| ≤ ½
_COSINE = tuple((-1) ** n * (2 * math.pi) ** (2 * n) / math.factorial(2 * n) for n in range(13))
_SINE = tuple((-1) ** n * (2 * math.pi) ** (2 * n + 1) / math.factorial(2 * n + 1) for n in range(13))


class Workspace(NamedTuple):
    """Room for one crystal at a time.

    Parameters
    ----------
    positions : ndarray, shape (3, n_sites)
        Fractional coordinates.
    side : ndarray, shape (n_sites,)
        Scratch.
    weight : ndarray, shape (n_sites,)
        How often a kept site counts: 0 (dropped), 1 or 2.
    rotations : ndarray, shape (48, 3, 3)
        The Laue class, the identity first.
    translations : ndarray, shape (48, 3)
    is_operation : ndarray of bool, shape (48,)
        Whether the rotation belongs to an operation, and not only to one followed by the inversion.
    centrings : ndarray, shape (64, 3)
    """

    positions: NDArray[np.float64]
    side: NDArray[np.float64]
    weight: NDArray[np.float64]
    rotations: NDArray[np.float64]
    translations: NDArray[np.float64]
    is_operation: NDArray[np.bool_]
    centrings: NDArray[np.float64]


@compiled
def new_workspace(n_sites):
    """Return a `Workspace` for crystals of up to `n_sites` sites."""
    return Workspace(
        np.empty((3, n_sites)),
        np.empty(n_sites),
        np.empty(n_sites),
        np.empty((MOST_ROTATIONS, 3, 3)),
        np.empty((MOST_ROTATIONS, 3)),
        np.empty(MOST_ROTATIONS, np.bool_),
        np.empty((_MOST_CENTRINGS, 3)),
    )


@compiled
def reduced(cell, positions, marks, rotations, translations, tolerance, work):
    """Bring one crystal to its primitive cell and find its Laue class, by the operations it obeys.

    Parameters
    ----------
    cell : ndarray, shape (6,)
    positions : ndarray, shape (n_sites, 3)
    marks : ndarray, shape (n_sites,)
        A number for each site that tells apart what scatters differently.
    rotations, translations : ndarray, shape (n_operations, 3, 3) and (n_operations, 3)
    tolerance : float
        How exactly the atoms (in parts of the heaviest atom's structure factor) and the cell (in parts of
        its metric) must obey an operation: `LENIENT` is some 3e-7 of the cell's edges.
    work : Workspace
        Gets positions, weights and the Laue class, all in the basis that `basis` gives.

    Returns
    -------
    metric : ndarray, shape (3, 3)
        Reciprocal metric of that basis, Å⁻².
    basis : ndarray, shape (3, 3)
        Its columns are the new basis vectors in the old basis; a reflection h there was h basis⁻¹.
    n_rotations : int
        Order of the Laue class (2 where the atoms obey nothing).
    n_centrings : int
        Primitive cells in the cell given.
    is_centric : bool
        An inversion centre lies at the origin, and `weight` counts half of the atoms twice.
    """
    n_sites = len(positions)
    _start(positions, work)
    metric, listed = np.empty((3, 3)), _inner_axis_last(cell)
    set_metric(cell, metric)
    n_rotations, n_centrings = _gather_operations(rotations, translations, work)
    fits = _average_metric(metric, n_rotations, tolerance, work) and _obeyed(
        marks, n_rotations, n_centrings, tolerance, work
    )
    basis = listed
    if fits and n_centrings > 1:
        basis = _primitive_basis(listed, n_centrings, work)
        fits = _keep_one_of_each(basis, listed, n_centrings, n_sites, work)
    if not (fits and _change_basis(basis, n_rotations, n_sites, work)):
        # As listed: of all operations only the identity.
        n_rotations = n_centrings = 1
        basis = listed
        set_metric(cell, metric)
        _start(positions, work)
        _change_basis(basis, 1, n_sites, work)
    n_rotations, centre = _with_inversion(n_rotations, work)
    if centre >= 0:
        _move_origin(centre, n_rotations, n_sites, work)
        _keep_half(n_sites, work)
    return inverse(congruent(basis, metric)), basis, n_rotations, n_centrings, centre >= 0


@compiled
def _start(positions, work):
    for site in range(len(positions)):
        work.weight[site] = 1.0
        for axis in range(3):
            work.positions[axis, site] = positions[site, axis]


@compiled
def _inner_axis_last(cell):
    """Even permutation of the axes that puts the longest last, where loops run longest."""
    longest = 2
    for axis in range(2):
        if cell[axis] > cell[longest] * (1 + 1e-9):
            longest = axis
    basis = np.zeros((3, 3))
    for column in range(3):
        basis[(longest + 1 + column) % 3, column] = 1.0
    return basis


@compiled
def _key(rotation):
    key = 0
    for i in range(3):
        for j in range(3):
            key = key * (2 * _LARGEST_ENTRY) + int(rotation[i, j]) + _LARGEST_ENTRY
    return key


@compiled
def _gather_operations(rotations, translations, work):
    """Write the different rotations, identity first, and the translations of the identity."""
    keys = np.empty(MOST_ROTATIONS, np.int64)
    for i in range(3):
        work.translations[0, i] = work.centrings[0, i] = 0.0
        for j in range(3):
            work.rotations[0, i, j] = 1.0 if i == j else 0.0
    identity = keys[0] = _key(work.rotations[0])
    n_rotations, n_centrings = 1, 1
    for index in range(len(rotations)):
        key = _key(rotations[index])
        if key == identity:
            shift = 0.0
            for axis in range(3):
                shift += abs(translations[index, axis] - round(translations[index, axis]))
            if shift > _BORDER:
                if n_centrings == _MOST_CENTRINGS:
                    return 1, 1
                for axis in range(3):
                    work.centrings[n_centrings, axis] = translations[index, axis]
                n_centrings += 1
            continue
        known = False
        for other in range(n_rotations):
            if keys[other] == key:
                known = True
                break
        if known:
            continue
        if n_rotations == MOST_ROTATIONS:
            return 1, 1
        keys[n_rotations] = key
        for i in range(3):
            work.translations[n_rotations, i] = translations[index, i]
            for j in range(3):
                work.rotations[n_rotations, i, j] = rotations[index, i, j]
        n_rotations += 1
    if len(rotations) != n_rotations * n_centrings:
        return 1, 1
    return n_rotations, n_centrings


@compiled
def _average_metric(metric, n_rotations, tolerance, work):
    """Average the cell's metric over the rotations; tell whether every one of them leaves it alone."""
    largest = max(metric[0, 0], metric[1, 1], metric[2, 2])
    total = metric.copy()
    for index in range(1, n_rotations):
        rotation = work.rotations[index]
        turned = congruent(rotation, metric)
        for i in range(3):
            for j in range(3):
                if abs(turned[i, j] - metric[i, j]) > tolerance * largest:
                    return False
                total[i, j] += turned[i, j]
    for i in range(3):
        for j in range(3):
            metric[i, j] = total[i, j] / n_rotations
    return True


@compiled_fastmath
def _structure_factor(h, k, l, x, y, z, marks):
    """Σ mark exp 2πi(hx + ky + lz), by series (to 1e-11) that become vector code."""
    real = imaginary = 0.0
    for site in range(len(marks)):
        turns = h * x[site] + k * y[site] + l * z[site]
        turns -= np.floor(turns + 0.5)
        q = turns * turns
        cosine, sine = _COSINE[12], _SINE[12]
        for term in range(11, -1, -1):
            cosine = _COSINE[term] + q * cosine
            sine = _SINE[term] + q * sine
        real += marks[site] * cosine
        imaginary += marks[site] * turns * sine
    return real, imaginary


@compiled
def _obeyed(marks, n_rotations, n_centrings, tolerance, work):
    """Whether F(hR) = F(h) exp(−2πi h·t) for every operation: do the atoms obey them?"""
    if n_rotations == 1 and n_centrings == 1:
        return True
    tolerance = tolerance * marks.max()
    n_sites = len(marks)
    x, y, z = work.positions[0, :n_sites], work.positions[1, :n_sites], work.positions[2, :n_sites]
    wanted = _PROBES_OF_FEW if n_rotations <= _FEW_ROTATIONS else _PROBES_OF_MANY
    tried = 0
    for probe in range(len(_PROBES)):
        h, k, l = _PROBES[probe, 0], _PROBES[probe, 1], _PROBES[probe, 2]
        real, imaginary = _structure_factor(h, k, l, x, y, z, marks)
        forbidden = False
        for index in range(1, n_centrings):
            shift = work.centrings[index]
            turns = h * shift[0] + k * shift[1] + l * shift[2]
            forbidden = forbidden or abs(turns - round(turns)) > _BORDER
        if forbidden and abs(real) + abs(imaginary) > tolerance:
            return False
        if forbidden or tried == wanted:
            continue
        tried += 1
        for index in range(1, n_rotations):
            r, shift = work.rotations[index], work.translations[index]
            image, image_imaginary = _structure_factor(
                h * r[0, 0] + k * r[1, 0] + l * r[2, 0],
                h * r[0, 1] + k * r[1, 1] + l * r[2, 1],
                h * r[0, 2] + k * r[1, 2] + l * r[2, 2],
                x,
                y,
                z,
                marks,
            )
            angle = -2 * math.pi * (h * shift[0] + k * shift[1] + l * shift[2])
            cosine, sine = math.cos(angle), math.sin(angle)
            off = abs(real * cosine - imaginary * sine - image)
            off += abs(real * sine + imaginary * cosine - image_imaginary)
            if off > tolerance:
                return False
    return tried > 0


@compiled
def _primitive_basis(basis, n_centrings, work):
    """Basis of the lattice that the centring vectors add to: triangular in the order of `basis`."""
    result = basis.copy()
    left = np.ones(n_centrings, np.bool_)
    n_left = n_centrings
    for column in range(3):
        axis = 0
        for row in range(3):
            if basis[row, column] != 0:
                axis = row
        n_flat = 0
        for index in range(n_centrings):
            part = work.centrings[index, axis] - round(work.centrings[index, axis])
            if left[index] and abs(part) < _BORDER:
                n_flat += 1
        share = n_flat / n_left
        if n_flat < n_left:
            for index in range(n_centrings):
                part = work.centrings[index, axis] - math.floor(work.centrings[index, axis] + _BORDER)
                if left[index] and abs(part - share) < _BORDER:
                    for row in range(3):
                        value = work.centrings[index, row]
                        result[row, column] = value - round(value) if row != axis else share
                    # earlier axes are flat by construction; their rounding noise would tilt the basis
                    break
        for index in range(n_centrings):
            part = work.centrings[index, axis] - round(work.centrings[index, axis])
            left[index] = left[index] and abs(part) < _BORDER
        n_left = n_flat
    return result


@compiled
def _keep_one_of_each(finer, basis, n_centrings, n_sites, work):
    """Give weight 0 to all but one of the atoms that centring repeats; False where that cannot be."""
    if abs(determinant(finer)) * n_centrings > 1.001:
        return False
    for origin in _ORIGINS:
        kept, safe = 0, True
        for site in range(n_sites):
            inside = True
            for column in range(3):
                axis = 0
                for row in range(3):
                    if basis[row, column] != 0:
                        axis = row
                width = abs(finer[axis, column])
                if width > 0.999:
                    continue
                place = work.positions[axis, site] + origin[column]
                place -= math.floor(place)
                cells = place / width
                safe = safe and abs(cells - round(cells)) > _BORDER
                inside = inside and place < width
            work.weight[site] = 1.0 if inside else 0.0
            kept += inside
        if safe and kept * n_centrings == n_sites:
            return True
    return False


@compiled
def _change_basis(basis, n_rotations, n_sites, work):
    """Bring positions and operations to a new basis; False where a rotation would not be integer."""
    back = inverse(basis)
    for index in range(n_rotations):
        turned = product(product(back, work.rotations[index]), basis)
        for i in range(3):
            for j in range(3):
                if abs(turned[i, j] - round(turned[i, j])) > 1e-6:
                    return False
                work.rotations[index, i, j] = round(turned[i, j])
        x, y, z = work.translations[index]
        for axis in range(3):
            work.translations[index, axis] = back[axis, 0] * x + back[axis, 1] * y + back[axis, 2] * z
    for site in range(n_sites):
        x, y, z = work.positions[0, site], work.positions[1, site], work.positions[2, site]
        for axis in range(3):
            work.positions[axis, site] = back[axis, 0] * x + back[axis, 1] * y + back[axis, 2] * z
    return True


@compiled
def _with_inversion(n_rotations, work):
    """Complete the Laue class; return its order and the index of an inversion among the operations."""
    centre = -1
    for index in range(n_rotations):
        work.is_operation[index] = True
        r = work.rotations[index]
        if r[0, 0] == -1 and r[1, 1] == -1 and r[2, 2] == -1:
            off = abs(r[0, 1]) + abs(r[0, 2]) + abs(r[1, 0]) + abs(r[1, 2]) + abs(r[2, 0]) + abs(r[2, 1])
            if off == 0:
                centre = index
    if centre >= 0 or 2 * n_rotations > MOST_ROTATIONS:
        return n_rotations, centre
    for index in range(n_rotations):
        for i in range(3):
            work.translations[n_rotations + index, i] = 0.0
            for j in range(3):
                work.rotations[n_rotations + index, i, j] = -work.rotations[index, i, j]
        work.is_operation[n_rotations + index] = False
    return 2 * n_rotations, centre


@compiled
def _move_origin(centre, n_rotations, n_sites, work):
    """Put the origin on the inversion centre."""
    origin = work.translations[centre] / 2
    for index in range(n_rotations):
        r = work.rotations[index]
        for i in range(3):
            work.translations[index, i] += (
                r[i, 0] * origin[0] + r[i, 1] * origin[1] + r[i, 2] * origin[2] - origin[i]
            )
    for site in range(n_sites):
        for axis in range(3):
            work.positions[axis, site] -= origin[axis]


@compiled
def _keep_half(n_sites, work):
    """Let one atom of each pair about the origin count twice, where the atoms pair off cleanly."""
    kept = doubled = 0
    for site in range(n_sites):
        if work.weight[site] == 0:
            continue
        kept += 1
        side = 0
        for axis in range(3):
            part = work.positions[axis, site] - round(work.positions[axis, site])
            if abs(part) > _BORDER and abs(part) < 0.5 - _BORDER:
                side = 1 if part > 0 else -1
                break
        work.side[site] = 1.0 + side
        doubled += side
    if doubled != 0:
        return  # some atom lies on the border by rounding: all count once, which is as right
    for site in range(n_sites):
        if work.weight[site] != 0:
            work.weight[site] = work.side[site]
