"""Small lattices, compiled with Numba: 3 × 3 algebra, metric tensors, reduction, point symmetry.

A lattice is its metric tensor (Å², shape (3, 3)).
"""

import math

import numpy as np

from hxrd.kernels.compiled import compiled

_REDUCTION_STEPS = 200


@compiled
def inverse(matrix):
    """Inverse of a matrix of shape (3, 3)."""
    result = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            a, b = (j + 1) % 3, (j + 2) % 3
            c, d = (i + 1) % 3, (i + 2) % 3
            result[i, j] = matrix[a, c] * matrix[b, d] - matrix[a, d] * matrix[b, c]
    scale = matrix[0, 0] * result[0, 0] + matrix[0, 1] * result[1, 0] + matrix[0, 2] * result[2, 0]
    for i in range(3):
        for j in range(3):
            result[i, j] /= scale
    return result


@compiled
def product(left, right):
    """Product of two matrices of shape (3, 3)."""
    result = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            for k in range(3):
                result[i, j] += left[i, k] * right[k, j]
    return result


@compiled
def congruent(matrix, metric):
    """Metric in another basis, whose vectors are the columns of `matrix`."""
    result = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            for k in range(3):
                for l in range(3):
                    result[i, j] += matrix[k, i] * metric[k, l] * matrix[l, j]
    return result


@compiled
def determinant(m):
    """Determinant of a matrix of shape (3, 3)."""
    return (
        m[0, 0] * (m[1, 1] * m[2, 2] - m[1, 2] * m[2, 1])
        - m[0, 1] * (m[1, 0] * m[2, 2] - m[1, 2] * m[2, 0])
        + m[0, 2] * (m[1, 0] * m[2, 1] - m[1, 1] * m[2, 0])
    )


@compiled
def set_metric(cell, metric):
    """Set the metric tensor of a cell (a, b, c in Å, α, β, γ in degrees); exact at 90 and 120°."""
    for i in range(3):
        metric[i, i] = cell[i] * cell[i]
        j, k = (i + 1) % 3, (i + 2) % 3
        angle = cell[3 + i]
        cosine = 0.0 if angle == 90.0 else -0.5 if angle == 120.0 else math.cos(math.radians(angle))
        metric[j, k] = cell[j] * cell[k] * cosine
        metric[k, j] = metric[j, k]


@compiled
def volume(metric):
    """Return the volume in Å³, 0 where the metric is none."""
    a, b, c = metric[0, 0], metric[1, 1], metric[2, 2]
    d, e, f = metric[1, 2], metric[0, 2], metric[0, 1]
    return math.sqrt(max(a * b * c + 2.0 * d * e * f - a * d * d - b * e * e - c * f * f, 0.0))


@compiled
def squared_length(x, y, z, metric):
    """Return the squared length in Å² of a fractional vector."""
    return (
        metric[0, 0] * x * x
        + metric[1, 1] * y * y
        + metric[2, 2] * z * z
        + 2.0 * (metric[1, 2] * y * z + metric[0, 2] * x * z + metric[0, 1] * x * y)
    )


@compiled
def set_primitive(metric, basis, reduced):
    """Set the metric of the lattice that the columns of `basis` span, reduced to its shortest vectors.

    Pairs of vectors are shortened in turn until none gets shorter (Semaev 2001, Algorithm 3 without the
    last sum, which is tried as well): the first is then the shortest of the lattice.
    """
    for i in range(3):
        for j in range(3):
            total = 0.0
            for k in range(3):
                for n in range(3):
                    total += basis[k, i] * metric[k, n] * basis[n, j]
            reduced[i, j] = total
    for _ in range(_REDUCTION_STEPS):
        if not (_shortened_by_pairs(reduced) or _shortened_by_sum(reduced)):
            return


@compiled
def _shortened_by_pairs(reduced):
    """Take from each vector its nearest multiple of another; whether any got shorter."""
    changed = False
    for i in range(3):
        for j in range(3):
            if i == j:
                continue
            multiple = np.rint(reduced[i, j] / reduced[j, j])
            if multiple != 0.0 and abs(reduced[i, j]) > 0.5000001 * reduced[j, j]:
                _add_multiple(reduced, i, j, -multiple)
                changed = True
    return changed


@compiled
def _shortened_by_sum(reduced):
    """Replace the longest vector by a sum or difference of all three that is shorter; whether one is."""
    i = 0
    for k in range(1, 3):
        if reduced[k, k] > reduced[i, i]:
            i = k
    j, k = (i + 1) % 3, (i + 2) % 3
    for one in (-1.0, 1.0):
        for other in (-1.0, 1.0):
            length = reduced[i, i] + reduced[j, j] + reduced[k, k]
            length += 2.0 * (one * reduced[i, j] + other * reduced[i, k] + one * other * reduced[j, k])
            if length < reduced[i, i] * (1.0 - 1e-7):
                _add_multiple(reduced, i, j, one)
                _add_multiple(reduced, i, k, other)
                return True
    return False


@compiled
def _add_multiple(reduced, i, j, multiple):
    """Add a multiple of vector j to vector i, in the metric."""
    for k in range(3):
        reduced[i, k] += multiple * reduced[j, k]
    for k in range(3):
        reduced[k, i] += multiple * reduced[k, j]


@compiled
def point_group_order(reduced, tolerance):
    """Return how many rotations (improper ones too) a reduced lattice has within a tolerance.

    Parameters
    ----------
    reduced : ndarray, shape (3, 3)
        Metric of reduced vectors (`set_primitive`): a rotation sends each of them to a sum of them with
        coefficients -1, 0, 1.
    tolerance : float
        Largest change of g_ij, relative to √(g_ii g_jj).
    """
    vectors = np.empty((3, 26, 3), np.float64)
    count = np.zeros(3, np.int64)
    for x in range(-1, 2):
        for y in range(-1, 2):
            for z in range(-1, 2):
                length = squared_length(float(x), float(y), float(z), reduced)
                for i in range(3):
                    if abs(length - reduced[i, i]) <= tolerance * reduced[i, i]:
                        vectors[i, count[i], 0] = x
                        vectors[i, count[i], 1] = y
                        vectors[i, count[i], 2] = z
                        count[i] += 1
    order = 0
    for i in range(count[0]):
        for j in range(count[1]):
            if not _same_product(vectors[0, i], vectors[1, j], reduced, 0, 1, tolerance):
                continue
            for k in range(count[2]):
                if _same_product(vectors[0, i], vectors[2, k], reduced, 0, 2, tolerance) and _same_product(
                    vectors[1, j], vectors[2, k], reduced, 1, 2, tolerance
                ):
                    order += 1
    return order


@compiled
def _same_product(one, other, reduced, i, j, tolerance):
    product = 0.0
    for k in range(3):
        for n in range(3):
            product += one[k] * reduced[k, n] * other[n]
    return abs(product - reduced[i, j]) <= tolerance * math.sqrt(reduced[i, i] * reduced[j, j])
