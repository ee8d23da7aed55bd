"""Variations of known crystals, compiled with Numba: cell strained, free coordinates moved."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hxrd.kernels.compiled import compiled
from hxrd.kernels.crowding import set_lattice
from hxrd.kernels.lattice import set_metric
from hxrd.kernels.randomness import normal, start_stream, uniform

EXCHANGE, SCALE, STRAIN, MOVE, B_PROBABILITY, B_LARGEST = 0, 1, 2, 3, 4, 5
"""Places of `hxrd.simulate.templates.TemplateSettings` in an array of numbers."""
_ATTEMPTS, _WITHOUT_EXCHANGE = 24, 10
_FIRST_GROWTH, _MORE_GROWTH = 1.1, 0.03  # allowed volume over the drawn one, and more with each attempt
_TRIES = 100  # of chance; then the pool is gone through in order
_SHARED = 1.1  # summed occupancy
_INDEX = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


class VariedTemplate(NamedTuple):
    """A crystal and what keeps its symmetry.

    Parameters
    ----------
    basis : ndarray, shape (3, 3)
        Cell vectors as rows, Å.
    average : ndarray, shape (6, 6)
        Takes g11 g22 g33 g23 g13 g12 of any metric to that averaged over the point group.
    is_trusted : int
        0: only the scale may vary, not shape and coordinates.
    positions : ndarray, shape (n_sites, 3)
    orbit : ndarray of int64, shape (n_sites,)
        Sites of one orbit move together.
    n_orbits : int
    move : ndarray, shape (n_sites, 3, 3)
        Takes a Cartesian move of the orbit to the fractional move of the site.
    b_iso : ndarray, shape (n_sites,)
    n_kinds : int
        Different species.
    """

    basis: NDArray[np.float64]
    average: NDArray[np.float64]
    is_trusted: int
    positions: NDArray[np.float64]
    orbit: NDArray[np.int64]
    n_orbits: int
    move: NDArray[np.float64]
    b_iso: NDArray[np.float64]
    n_kinds: int


class Surroundings(NamedTuple):
    """What decides how near atoms may be to each other, and which elements may be put in.

    Parameters
    ----------
    own : ndarray of int64, shape (n_kinds,)
        Element of each species of the template, by number.
    kind_of_site : ndarray of int64, shape (n_sites,)
    occupancy : ndarray, shape (n_sites,)
    amounts : ndarray, shape (n_kinds,)
        Atoms of each species in the cell.
    pool_range : ndarray of int64, shape (n_kinds, 2)
        See `vary`.
    own_room : float
        Least room (see `roominess`) where nothing better is found.
    nearest : ndarray, shape (n_elements, n_elements)
        Limits in Å.
    atom_volume : ndarray, shape (n_elements,)
        Å³.
    """

    own: NDArray[np.int64]
    kind_of_site: NDArray[np.int64]
    occupancy: NDArray[np.float64]
    amounts: NDArray[np.float64]
    pool_range: NDArray[np.int64]
    own_room: float
    nearest: NDArray[np.float64]
    atom_volume: NDArray[np.float64]


@compiled
def vary(template, settings, pool, pool_range, seed, number, attempt, chosen, cell, positions, b_iso):
    """Draw one variation; seed, number and attempt decide all of it.

    Parameters
    ----------
    template : VariedTemplate
    settings : ndarray, shape (6,)
    pool : ndarray of int64, shape (n_pool,)
        Elements to put in, by number, as often as they are to be drawn.
    pool_range : ndarray of int64, shape (n_kinds, 2)
        First and last but one entry of the pool for each species.
    seed, number, attempt : uint64
    chosen : ndarray of int64, shape (n_kinds,)
        Written: the element of each species, or -1 for its own.
    cell, positions, b_iso : ndarray, shape (6,), (n_sites, 3), (n_sites,)
        Written.
    """
    state = np.empty(1, np.uint64)
    start_stream(state, seed, number, np.uint64(attempt))
    exchange = uniform(state) < settings[EXCHANGE]
    for kind in range(template.n_kinds):
        chosen[kind] = _new_element(pool, pool_range, chosen, kind, state) if exchange else -1
    _strain(template, settings, cell, state)
    _move(template, settings, positions, state)
    warm = uniform(state) < settings[B_PROBABILITY]
    value = round(uniform(state) * settings[B_LARGEST], 3)
    for site in range(len(b_iso)):
        b_iso[site] = value if warm else template.b_iso[site]


@compiled
def _new_element(pool, pool_range, chosen, kind, state):
    """Return an element of the species' part of the pool that no species before has; -1: none was found."""
    first, last = pool_range[kind, 0], pool_range[kind, 1]
    for attempt in range(_TRIES + last - first):
        if attempt < _TRIES:
            element = pool[first + int(uniform(state) * (last - first))]
        else:
            element = pool[first + attempt - _TRIES]
        is_new = True
        for known in range(kind):
            is_new = is_new and chosen[known] != element
        if is_new:
            return element
    return -1


@compiled
def _strain(template, settings, cell, state):
    """Write the cell after a random strain and scale, averaged over the point group."""
    strain = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            strain[i, j] = settings[STRAIN] * normal(state)
    scale = math.exp(settings[SCALE] * normal(state))
    if not template.is_trusted:
        strain[:] = 0.0
    strained = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            total = template.basis[i, j]
            for k in range(3):
                total += template.basis[i, k] * (strain[k, j] + strain[j, k]) / 2.0
            strained[i, j] = total
    metric = np.empty(6)
    for index in range(6):
        metric[index] = _product(strained, index)
    kept = np.zeros(6)
    for i in range(6):
        for j in range(6):
            kept[i] += template.average[i, j] * metric[j]
    a, b, c = math.sqrt(kept[0]), math.sqrt(kept[1]), math.sqrt(kept[2])
    cell[0], cell[1], cell[2] = a * scale, b * scale, c * scale
    cell[3] = _degrees(kept[3] / (b * c))
    cell[4] = _degrees(kept[4] / (a * c))
    cell[5] = _degrees(kept[5] / (a * b))


@compiled
def _product(vectors, index):
    i, j = _INDEX[index]
    return vectors[i, 0] * vectors[j, 0] + vectors[i, 1] * vectors[j, 1] + vectors[i, 2] * vectors[j, 2]


@compiled
def _degrees(cosine):
    return math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))


@compiled
def _move(template, settings, positions, state):
    """Write the positions after every orbit has moved along its free coordinates."""
    positions[:] = template.positions
    if settings[MOVE] == 0.0 or not template.is_trusted:
        return
    moves = np.empty((template.n_orbits, 3))
    for orbit in range(template.n_orbits):
        for i in range(3):
            moves[orbit, i] = settings[MOVE] * normal(state)
    for site in range(len(positions)):
        orbit = template.orbit[site]
        for i in range(3):
            for j in range(3):
                positions[site, i] += template.move[site, i, j] * moves[orbit, j]


@compiled
def vary_sanely(template, context, settings, pool, seed, number, chosen, cell, positions, b_iso):
    """Draw variations until one keeps its atoms apart; return after how many attempts, 0 where none does.

    The volume follows the size of the new atoms. A cell may grow to bring atoms apart, with every attempt a
    little more; the last attempts keep the elements, and atoms may be as near as in the template.

    Parameters
    ----------
    template : VariedTemplate
    context : Surroundings
    settings, pool, seed, number, chosen, cell, positions, b_iso
        See `vary`.
    """
    settings = settings.copy()
    elements = np.empty(template.n_kinds, np.int64)
    own_size = _size(context, context.own)
    needed = 1.0
    for attempt in range(_ATTEMPTS):
        if attempt == _WITHOUT_EXCHANGE:
            settings[EXCHANGE] = 0.0
            needed = context.own_room
        vary(
            template,
            settings,
            pool,
            context.pool_range,
            seed,
            number,
            np.uint64(attempt),
            chosen,
            cell,
            positions,
            b_iso,
        )
        if settings[EXCHANGE] > 0.0 and not _are_distinct(context.own, chosen, elements):
            continue
        for kind in range(template.n_kinds):
            elements[kind] = chosen[kind] if chosen[kind] >= 0 else context.own[kind]
        factor = (_size(context, elements) / own_size) ** (1.0 / 3.0)
        for i in range(3):
            cell[i] *= factor
        closest = roominess(template, context, elements, cell, positions, needed) / needed
        if closest ** (-1.5) <= _FIRST_GROWTH + _MORE_GROWTH * attempt:
            if closest < 1.0:
                for i in range(3):
                    cell[i] *= (1.0 + 1e-9) / math.sqrt(closest)
            return attempt + 1
    return 0


@compiled
def _size(context, elements):
    """Return the volume of all atoms, Å³."""
    total = 0.0
    for kind in range(len(elements)):
        total += context.amounts[kind] * context.atom_volume[elements[kind]]
    return total


@compiled
def _are_distinct(own, chosen, elements):
    """Whether the species that chosen elements make are different ones; `elements` is scratch."""
    for kind in range(len(own)):
        elements[kind] = chosen[kind] if chosen[kind] >= 0 else own[kind]
        for known in range(kind):
            if elements[known] == elements[kind]:
                return False
    return True


@compiled
def roominess(template, context, elements, cell, positions, roomy):
    """Return the smallest squared distance of two atoms over its squared limit, at most `roomy`.

    Atoms that can stand in for each other, with occupancies that sum to no more than 1.1, are not held
    against each other. One atom of each orbit is enough, as symmetry makes the others' surroundings equal.

    Parameters
    ----------
    template : VariedTemplate
    context : Surroundings
    elements : ndarray of int64, shape (n_kinds,)
        Element of each species.
    cell, positions : ndarray, shape (6,), (n_sites, 3)
    roomy : float
    """
    metric, lattice = np.empty((3, 3)), np.empty(10)
    set_metric(cell, metric)
    set_lattice(metric, lattice)
    is_seen = np.zeros(template.n_orbits, np.bool_)
    smallest = roomy
    for site in range(len(positions)):
        if is_seen[template.orbit[site]]:
            continue
        is_seen[template.orbit[site]] = True
        own = elements[context.kind_of_site[site]]
        for other in range(len(positions)):
            if context.occupancy[site] + context.occupancy[other] <= _SHARED:
                continue
            limit = context.nearest[own, elements[context.kind_of_site[other]]]
            x = positions[other, 0] - positions[site, 0]
            y = positions[other, 1] - positions[site, 1]
            z = positions[other, 2] - positions[site, 2]
            square = _to_other_copies(x, y, z, lattice, limit * math.sqrt(smallest), other == site)
            smallest = min(smallest, square / (limit * limit))
    return smallest


@compiled
def _to_other_copies(x, y, z, lattice, within, is_same):
    """Return the smallest squared length (Å²) below within² of a vector plus any of the lattice.

    The null vector is left out where it joins an atom with itself.
    """
    smallest = within * within
    u = x - math.floor(x + within * lattice[6])
    while u <= within * lattice[6]:
        v = y - math.floor(y + within * lattice[7])
        while v <= within * lattice[7]:
            w = z - math.floor(z + within * lattice[8])
            while w <= within * lattice[8]:
                square = u * (lattice[0] * u + lattice[5] * v + lattice[4] * w)
                square += v * (lattice[1] * v + lattice[3] * w) + lattice[2] * w * w
                if not (is_same and square < 1e-6):
                    smallest = min(smallest, square)
                w += 1.0
            v += 1.0
        u += 1.0
    return smallest
