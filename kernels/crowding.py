"""How near atoms are to each other in a cell that is being filled, compiled with Numba.

Squared distances are told over the squared limit of their pair of elements, so 1 is just allowed. One atom
is held against a run of others at once, which the compiler turns into vector instructions; all arrays are
plain arguments and never sliced, since counting references to them would take as long as the distances.

Arrays of a cell
----------------
sites : ndarray of int64, shape (n_sites + 1, 4)
    Columns `FIRST_IMAGE` (column of `images`), `N_FREE`, `SPECIES`, `START` (first atom; of the row after
    the last site: the number of atoms).
lattice : ndarray, shape (10,)
    Metric g11 g22 g33 2·g23 2·g13 2·g12 (Å²), lengths of the reciprocal vectors (Å⁻¹), and from which
    distance on all are alike (Å).
work : ndarray, shape (6 + most species, capacity)
    Rows `X`, `Y`, `Z`: fractional coordinates of the atoms in place, in any cell. Three rows from `TRIAL`
    on: those of one site on trial. From `WEIGHT` on: 1/limit² (Å⁻²) of every atom, for each species.
images : ndarray, shape (12, n_images)
    Of all Wyckoff positions: rows of the matrix by which free coordinates become x, y and z, and shifts.
"""

import math

import numpy as np

from hxrd.kernels.compiled import compiled, compiled_fastmath

FIRST_IMAGE, N_FREE, SPECIES, START = 0, 1, 2, 3
X, Y, Z, TRIAL, WEIGHT = 0, 1, 2, 3, 6
_WITHIN = 9
_RUN = 64  # atoms looked at before it is asked whether a better place is known


@compiled
def set_lattice(metric, lattice):
    """Write the metric and the lengths of the reciprocal vectors."""
    determinant = (
        metric[0, 0] * (metric[1, 1] * metric[2, 2] - metric[1, 2] ** 2)
        - metric[0, 1] * (metric[0, 1] * metric[2, 2] - metric[1, 2] * metric[0, 2])
        + metric[0, 2] * (metric[0, 1] * metric[1, 2] - metric[1, 1] * metric[0, 2])
    )
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        lattice[i] = metric[i, i]
        lattice[3 + i] = 2.0 * metric[j, k]
        lattice[6 + i] = math.sqrt((metric[j, j] * metric[k, k] - metric[j, k] ** 2) / determinant)


@compiled
def set_weights(nearest, sites, n_sites, elements, roomy, lattice, work):
    """Write the weights of all atoms, and from which distance on all are alike.

    Parameters
    ----------
    nearest : ndarray, shape (n_elements, n_elements)
        Limits in Å.
    sites, lattice, work
        See the module.
    n_sites : int
    elements : ndarray of int64
        Element of each species, -1 after the last.
    roomy : float
        Squared distances of so many squared limits, and above, are all alike.
    """
    largest = 0.0
    for species in range(len(elements)):
        if elements[species] < 0:
            break
        for site in range(n_sites):
            limit = nearest[elements[species], elements[sites[site, SPECIES]]]
            largest = max(largest, limit)
            weight = 1.0 / (limit * limit)
            for atom in range(sites[site, START], sites[site + 1, START]):
                work[WEIGHT + species, atom] = weight
    lattice[_WITHIN] = largest * math.sqrt(roomy)


@compiled_fastmath
def set_images(images, sites, site, free, row, work, first_row, start):
    """Write the atoms of a site, whose free coordinates are `free[row]`, into three rows from `start` on."""
    first = sites[site, FIRST_IMAGE]
    n_images = sites[site + 1, START] - sites[site, START]
    u, v, w = free[row, 0], free[row, 1], free[row, 2]
    for axis in range(3):
        for i in range(n_images):
            j = first + i
            work[first_row + axis, start + i] = (
                images[3 * axis, j] * u
                + images[3 * axis + 1, j] * v
                + images[3 * axis + 2, j] * w
                + images[9 + axis, j]
            )


@compiled
def crowding(images, sites, site, known, free, row, beaten, roomy, lattice, work):
    """Return the smallest squared distance over its squared limit of a site at a place, at most `roomy`.

    One atom of the site is enough, as symmetry makes the others' surroundings equal.

    Parameters
    ----------
    images, sites, lattice, work
        See the module.
    site, known : int
        Which site; those before `known`, itself left out, are in place.
    free : ndarray, shape (n, 3)
        Row `row` holds the free coordinates.
    beaten : float
        As soon as the value is no more than this, what is returned need not be exact.
    roomy : float
    """
    set_images(images, sites, site, free, row, work, TRIAL, 0)
    start, stop, end = sites[site, START], sites[site + 1, START], sites[known, START]
    weights = WEIGHT + sites[site, SPECIES]
    smallest = _smallest(TRIAL, 1, stop - start, weights, start, lattice, work, roomy)
    for first in range(0, end, _RUN):
        if smallest <= beaten:
            break
        last = min(first + _RUN, end)
        if first < start:
            smallest = _smallest(X, first, min(last, start), weights, 0, lattice, work, smallest)
        if last > stop:
            smallest = _smallest(X, max(first, stop), last, weights, 0, lattice, work, smallest)
    return smallest


@compiled
def _smallest(row, start, stop, weights, shift, lattice, work, smallest):
    """Return the smallest weighted square of the distances from the atom on trial to a run of others.

    Parameters
    ----------
    row, start, stop : int
        The atoms' x in `work`, and which of them count.
    weights, shift : int
        Atom i weighs ``work[weights, i + shift]``.
    lattice, work
        See the module.
    smallest : float
        Returned where none is smaller.
    """
    within = lattice[_WITHIN]
    farthest = within * max(lattice[6], lattice[7], lattice[8])
    if farthest <= 0.5:
        return _to_nearest_copy(row, start, stop, weights, shift, lattice, work, smallest)
    if farthest <= 1.0:
        return _to_eight_copies(row, start, stop, weights, shift, lattice, work, smallest)
    for i in range(start, stop):
        square = _to_all_copies(row, i, lattice, work)
        smallest = min(smallest, square * work[weights, i + shift])
    return smallest


@compiled_fastmath
def _to_nearest_copy(row, start, stop, weights, shift, lattice, work, smallest):
    """Where only the copy in [-½, ½) along each axis can be near enough."""
    x, y, z = work[TRIAL, 0], work[TRIAL + 1, 0], work[TRIAL + 2, 0]
    xx, yy, zz, yz, xz, xy = lattice[0], lattice[1], lattice[2], lattice[3], lattice[4], lattice[5]
    for i in range(start, stop):
        u, v, w = work[row, i] - x, work[row + 1, i] - y, work[row + 2, i] - z
        u -= np.floor(u + 0.5)
        v -= np.floor(v + 0.5)
        w -= np.floor(w + 0.5)
        square = u * (xx * u + xy * v + xz * w) + v * (yy * v + yz * w) + zz * w * w
        smallest = min(smallest, square * work[weights, i + shift])
    return smallest


@compiled_fastmath
def _to_eight_copies(row, start, stop, weights, shift, lattice, work, smallest):
    """Where along each axis only two copies can be near enough: the one above the point, the one below."""
    x, y, z = work[TRIAL, 0], work[TRIAL + 1, 0], work[TRIAL + 2, 0]
    xx, yy, zz, yz, xz, xy = lattice[0], lattice[1], lattice[2], lattice[3], lattice[4], lattice[5]
    for i in range(start, stop):
        u, v, w = work[row, i] - x, work[row + 1, i] - y, work[row + 2, i] - z
        u -= np.floor(u)
        v -= np.floor(v)
        w -= np.floor(w)
        p, q, r = u - 1.0, v - 1.0, w - 1.0
        # in the plane w = 0 the four corners, then each of them up to w and down to w - 1
        one, two = xx * u * u + v * (xy * u + yy * v), xx * p * p + v * (xy * p + yy * v)
        three, four = xx * u * u + q * (xy * u + yy * q), xx * p * p + q * (xy * p + yy * q)
        one_slope, two_slope = xz * u + yz * v, xz * p + yz * v
        three_slope, four_slope = xz * u + yz * q, xz * p + yz * q
        above = min(min(one + w * one_slope, two + w * two_slope), three + w * three_slope)
        below = min(min(one + r * one_slope, two + r * two_slope), three + r * three_slope)
        above = min(above, four + w * four_slope) + zz * w * w
        below = min(below, four + r * four_slope) + zz * r * r
        smallest = min(smallest, work[weights, i + shift] * min(above, below))
    return smallest


@compiled
def _to_all_copies(row, i, lattice, work):
    """Return the smallest squared distance (Å²) of one atom, in a cell that is small against it."""
    within = lattice[_WITHIN]
    smallest = within * within
    x, y, z = (
        work[row, i] - work[TRIAL, 0],
        work[row + 1, i] - work[TRIAL + 1, 0],
        work[row + 2, i] - work[TRIAL + 2, 0],
    )
    u = x - math.floor(x + within * lattice[6])
    while u <= within * lattice[6]:
        v = y - math.floor(y + within * lattice[7])
        while v <= within * lattice[7]:
            in_plane = lattice[0] * u * u + v * (lattice[1] * v + lattice[5] * u)
            slope = lattice[3] * v + lattice[4] * u
            w = z - math.floor(z + within * lattice[8])
            while w <= within * lattice[8]:
                smallest = min(smallest, in_plane + w * (lattice[2] * w + slope))
                w += 1.0
            v += 1.0
        u += 1.0
    return smallest
