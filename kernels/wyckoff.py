"""Synthetic crystals of a space group, compiled with Numba: atoms on Wyckoff positions, group proven.

A crystal is drawn in attempts. Each takes a combination of Wyckoff positions, elements and a cell, puts
every site at the best of some random places, widens the cell where atoms are still too near each other,
and gives up where the cell would grow too much or where an operation outside the group maps the crystal
onto itself.
"""

import math

import numpy as np

from hxrd.kernels.compiled import compiled
from hxrd.kernels.crowding import (
    FIRST_IMAGE,
    N_FREE,
    SPECIES,
    START,
    WEIGHT,
    X,
    crowding,
    set_images,
    set_lattice,
    set_weights,
)
from hxrd.kernels.extra_symmetry import is_more_symmetric
from hxrd.kernels.lattice import point_group_order, set_metric, set_primitive, volume
from hxrd.kernels.randomness import chosen, normal, start_stream, uniform
from hxrd.kernels.wyckoff_arrays import MOST_IMAGES, MOST_SITES, MOST_SPECIES

MOST_ATTEMPTS = 400
"""After so many, no crystal is made; every one allows a little more growth of the cell."""
SMALLEST_TURN = 0.02
"""A lattice is refused whose metric is so near (relative) to one of higher symmetry."""
SMALLEST_SHIFT = 0.06
"""Å: an operation outside the group must move some atom by more than this."""
_CANDIDATES = 10
_SWEEPS = 2
_LOCAL_MOVES, _LOCAL_MOVE = 6, 0.06  # of the candidates, and how far, in free coordinates
_ROOMY = 1.2  # squared distance over its limit from which on a place is not improved any more
_FIRST_GROWTH, _MORE_GROWTH = 1.15, 0.08  # allowed volume over the drawn one, and more with each attempt
_ATTEMPTS_WITH_ONE_COMBINATION = 4
_LATTICES_TRIED = 50
_LENGTH_JITTER, _COSINE_JITTER = 0.05, 0.03
_SUBSTITUTED = 0.25  # share of the species that another of like habits replaces
_B_JITTER = 0.1


@compiled
def draw_groups(cumulative, seed, numbers, out):
    """Write, for each number (uint64, shape (n,)), which entry of the cumulative shares it draws."""
    state = np.zeros(1, np.uint64)
    for row in range(len(numbers)):
        start_stream(state, seed, numbers[row], np.uint64(0))
        out[row] = chosen(cumulative, 0, len(cumulative), state)


@compiled
def draw_crystals(tables, groups, seeds, numbers, only_combination, most_attempts, drawn):
    """Draw crystals one after another and return how many fitted into the arrays.

    Parameters
    ----------
    tables : Tables
    groups : ndarray of int64, shape (n,)
        Space groups.
    seeds, numbers : ndarray of uint64, shape (n,)
        Together they name the crystal: with its group, nothing else decides what is drawn.
    only_combination : int
        Take this combination and no other; -1: draw it.
    most_attempts : int
        After so many, a row is left without a crystal.
    drawn : Drawn
        Rows that the atoms' arrays have no room for are left out: draw them in another call.
    """
    state = np.zeros(1, np.uint64)
    metric, reduced = np.empty((3, 3)), np.empty((3, 3))
    elements = np.empty(MOST_SPECIES, np.int64)
    free = np.zeros((MOST_SITES + 1, 3))  # the last row is for trials
    sites = np.zeros((MOST_SITES + 1, 4), np.int64)
    lattice = np.empty(10)
    work = np.empty((WEIGHT + MOST_SPECIES, max(len(drawn.element), MOST_IMAGES)))
    place = 0
    drawn.atom_start[0] = 0
    for row in range(len(groups)):
        group = groups[row]
        start_stream(state, seeds[row], numbers[row], np.uint64(group))
        drawn.attempts[row] = 0
        drawn.atom_start[row + 1] = place
        combination = only_combination
        for attempt in range(most_attempts):
            if only_combination < 0 and attempt % _ATTEMPTS_WITH_ONE_COMBINATION == 0:
                first, last = tables.combination_start[group], tables.combination_start[group + 1]
                combination = chosen(tables.combination_weight, first, last, state)
            n_sites = _set_sites(tables, combination, sites)
            n_atoms = sites[n_sites, START]
            if place + n_atoms > len(drawn.element):
                return row
            _choose_elements(tables, combination, elements, state)
            if not _choose_cell(
                tables, group, combination, elements, drawn.cell[row], metric, reduced, state
            ):
                continue
            set_lattice(metric, lattice)
            set_weights(tables.nearest, sites, n_sites, elements, _ROOMY, lattice, work)
            needed = (_FIRST_GROWTH + _MORE_GROWTH * attempt) ** (-2.0 / 3.0)
            closest = _roominess(tables.nearest, elements, min(reduced[0, 0], reduced[1, 1], reduced[2, 2]))
            closest = _place_all(tables.images, sites, n_sites, closest, needed, free, lattice, work, state)
            if closest < needed:
                continue
            if closest < 1.0:
                _widen(drawn.cell[row], metric, 1.0 / math.sqrt(closest) * (1.0 + 1e-9))
            positions = drawn.positions[place : place + n_atoms]
            _wrap(work, positions)
            if is_more_symmetric(
                tables.coset[tables.coset_start[group] : tables.coset_start[group + 1]],
                tables.centring[tables.centring_start[group] : tables.centring_start[group + 1]],
                sites,
                n_sites,
                positions,
                metric,
                SMALLEST_SHIFT,
            ):
                continue
            drawn.combination[row] = combination
            drawn.attempts[row] = attempt + 1
            drawn.closest[row] = math.sqrt(max(closest, 1.0))
            _finish(tables, sites, n_sites, elements, place, drawn, state)
            place += n_atoms
            drawn.atom_start[row + 1] = place
            break
    return len(groups)


@compiled
def _wrap(work, positions):
    """Copy the atoms in place into [0, 1)."""
    for atom in range(len(positions)):
        for i in range(3):
            value = work[X + i, atom] - math.floor(work[X + i, atom])
            positions[atom, i] = 0.0 if value >= 1.0 else value  # a tiny negative coordinate


@compiled
def _set_sites(tables, combination, sites):
    """Write the sites of a combination (see `hxrd.kernels.crowding`) and return how many they are."""
    first = tables.site_start[combination]
    n_sites = tables.site_start[combination + 1] - first
    for site in range(n_sites):
        position = tables.site_position[first + site]
        sites[site, FIRST_IMAGE] = tables.image_start[position]
        sites[site, N_FREE] = tables.n_free[position]
        sites[site, SPECIES] = tables.site_species[first + site]
        size = tables.image_start[position + 1] - tables.image_start[position]
        sites[site + 1, START] = sites[site, START] + size
    return n_sites


@compiled
def _choose_elements(tables, combination, elements, state):
    """Take a set of elements of the combination's formula, with some of them replaced by their like."""
    formula = tables.formula[combination]
    row = chosen(tables.set_weight, tables.set_start[formula], tables.set_start[formula + 1], state)
    n_species = 0
    for site in range(tables.site_start[combination], tables.site_start[combination + 1]):
        n_species = max(n_species, tables.site_species[site] + 1)
    for species in range(n_species):
        elements[species] = tables.set_elements[row, species]
    n_elements = len(tables.atom_volume)
    for species in range(n_species):
        if uniform(state) < _SUBSTITUTED:
            other = chosen(tables.substitute[elements[species]], 0, n_elements, state)
            is_new = True
            for known in range(n_species):
                is_new = is_new and elements[known] != other
            if is_new:
                elements[species] = other
    for species in range(n_species, MOST_SPECIES):
        elements[species] = -1


@compiled
def _quantile(values, share):
    place = share * (len(values) - 1)
    low = min(int(place), len(values) - 2)
    return values[low] + (place - low) * (values[low + 1] - values[low])


@compiled
def _choose_cell(tables, group, combination, elements, cell, metric, reduced, state):
    """Draw a cell whose lattice has the symmetry of the group's and no more; whether one was found."""
    expected = 0.0
    for site in range(tables.site_start[combination], tables.site_start[combination + 1]):
        position = tables.site_position[site]
        size = tables.image_start[position + 1] - tables.image_start[position]
        expected += size * tables.atom_volume[elements[tables.site_species[site]]]
    expected *= _quantile(tables.volume_ratio, uniform(state))
    for _ in range(_LATTICES_TRIED):
        _draw_shape(tables, group, combination, cell, state)
        set_metric(cell, metric)
        present = volume(metric)
        if present < 0.05 * cell[0] * cell[1] * cell[2]:
            continue
        _widen(cell, metric, (expected / present) ** (1.0 / 3.0))
        set_primitive(metric, tables.primitive[group], reduced)
        if point_group_order(reduced, SMALLEST_TURN) == tables.lattice_order[group]:
            return True
    return False


@compiled
def _draw_shape(tables, group, combination, cell, state):
    """Set a cell of edge a = 1 Å, near the combination's known shape or one of its Bravais lattice's."""
    shape = tables.shape[combination]
    if np.isnan(shape[0]):
        first, last = tables.pool_start[group], tables.pool_stop[group]
        shape = tables.pool[first + int(uniform(state) * (last - first))]
    family = tables.lattice[group]
    cell[0] = cell[1] = cell[2] = 1.0
    cell[3] = cell[4] = cell[5] = 90.0
    if family <= 2:
        cell[1] = math.exp(shape[0] + _LENGTH_JITTER * normal(state))
    if family <= 4:
        cell[2] = math.exp(shape[1] + _LENGTH_JITTER * normal(state))
    if family == 4:
        cell[5] = 120.0
    if family == 0:
        for i in range(3):
            cell[3 + i] = _angle(shape[2 + i] + _COSINE_JITTER * normal(state))
    elif family == 1:
        cell[4] = _angle(shape[3] + _COSINE_JITTER * normal(state))


@compiled
def _angle(cosine):
    return math.degrees(math.acos(min(max(cosine, -0.9), 0.9)))


@compiled
def _widen(cell, metric, factor):
    """Scale all lengths of the cell."""
    for i in range(3):
        cell[i] *= factor
    set_metric(cell, metric)


@compiled
def _roominess(nearest, elements, shortest):
    """Return the squared shortest lattice vector over the squared limit of like atoms, at most `_ROOMY`."""
    room = _ROOMY
    for species in range(len(elements)):
        if elements[species] >= 0:
            room = min(room, shortest / nearest[elements[species], elements[species]] ** 2)
    return room


@compiled
def _place_all(images, sites, n_sites, room, needed, free, lattice, work, state):
    """Put all sites somewhere and return the smallest squared distance over its squared limit.

    What is less than needed and cannot be mended is returned at once.
    """
    worst = smallest = room
    for turn in range(1 + _SWEEPS):
        smallest = worst
        for site in range(n_sites):
            known = n_sites if turn > 0 else site
            fit = _place_site(images, sites, site, known, free, lattice, work, state)
            smallest = min(smallest, fit)
            if turn == 0 and sites[site, N_FREE] == 0:
                worst = smallest
            if worst < needed:
                return worst
        if smallest >= 1.0:
            break
    return smallest


@compiled
def _place_site(images, sites, site, known, free, lattice, work, state):
    """Put one site at the best of some places among the sites before `known`, itself left out.

    One that is in place itself stays there unless it is squeezed and another place is better.
    """
    n_free = sites[site, N_FREE]
    is_placed = known > site
    best = -1.0
    for candidate in range(1 if n_free == 0 else _CANDIDATES):
        for i in range(n_free):
            if not is_placed or candidate > _LOCAL_MOVES:
                free[MOST_SITES, i] = uniform(state)
            else:
                free[MOST_SITES, i] = free[site, i] + (_LOCAL_MOVE * normal(state) if candidate > 0 else 0.0)
        fit = crowding(images, sites, site, known, free, MOST_SITES, best, _ROOMY, lattice, work)
        if fit > best:
            best = fit
            for i in range(n_free):
                free[site, i] = free[MOST_SITES, i]
        if best >= (1.0 if is_placed else _ROOMY):
            break
    set_images(images, sites, site, free, site, work, X, sites[site, START])
    return best


@compiled
def _finish(tables, sites, n_sites, elements, place, drawn, state):
    """Write the element and B of every atom: one B for a species, of one crystal's temperature."""
    warmth = uniform(state)
    of_species = np.zeros(MOST_SPECIES)
    for species in range(MOST_SPECIES):
        if elements[species] >= 0:
            share = min(max(warmth + _B_JITTER * normal(state), 0.0), 1.0)
            of_species[species] = _quantile(tables.b_iso, share) * tables.b_factor[elements[species]]
    for site in range(n_sites):
        species = sites[site, SPECIES]
        for atom in range(place + sites[site, START], place + sites[site + 1, START]):
            drawn.element[atom] = elements[species]
            drawn.b_iso[atom] = of_species[species]
