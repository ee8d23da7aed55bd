"""Structure factors of columns of reflections, compiled with Numba.

For each column (h, k) the factors of all l are summed at once: exp 2πi(hx + ky) of every site, times its
table of exp 2πi lz, whose rows run along l. Sites that scatter alike at every angle (one form factor, one
displacement parameter) make a group, whose sum takes its factor afterwards.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hxrd.kernels.compiled import compiled, compiled_fastmath
from hxrd.kernels.reflections import LANES

_C2, _C3, _C4, _C5, _C6, _C7, _C8 = ((-1) ** n / math.factorial(n) for n in range(2, 9))


class Tables(NamedTuple):
    """Room for the phases and factors of one crystal.

    Parameters
    ----------
    order, group_start : ndarray of int64
        Sites sorted by group; sites of group g are ``order[group_start[g]:group_start[g + 1]]``.
    group_kind : ndarray of int64, shape (n_groups,)
        Species, for its form factor.
    group_b_iso : ndarray, shape (n_groups,)
    phases : ndarray
        Flat: cosines and sines along h, k and l, one after the other (see `_fill_phases`).
    plane : ndarray, shape (2, n_sites)
        exp 2πi(hx + ky) of the column in hand.
    sums : ndarray, shape (4, longest column)
        Cosine and sine sum of the group in hand, then of all groups.
    factors : ndarray
        Flat: the factor of each group at each reflection.
    """

    order: NDArray[np.int64]
    group_start: NDArray[np.int64]
    group_kind: NDArray[np.int64]
    group_b_iso: NDArray[np.float64]
    phases: NDArray[np.float64]
    plane: NDArray[np.float64]
    sums: NDArray[np.float64]
    factors: NDArray[np.float64]


@compiled
def new_tables(n_sites):
    """Return `Tables` for crystals of up to `n_sites` sites; the rest grows as needed."""
    return Tables(
        np.empty(n_sites, np.int64),
        np.empty(n_sites + 1, np.int64),
        np.empty(n_sites, np.int64),
        np.empty(n_sites),
        np.empty(64 * n_sites),
        np.empty((2, n_sites)),
        np.empty((4, 64)),
        np.empty(1024),
    )


@compiled
def _grouped(kind, b_iso, weight, tables):
    """Sort sites of weight above 0 by group; return the number of groups."""
    n_groups = 0
    n_sites = len(kind)
    group_of = np.empty(n_sites, np.int64)
    counts = np.zeros(n_sites + 1, np.int64)
    for site in range(n_sites):
        group_of[site] = -1
        if weight[site] == 0:
            continue
        group = 0
        while group < n_groups and (
            tables.group_kind[group] != kind[site] or tables.group_b_iso[group] != b_iso[site]
        ):
            group += 1
        if group == n_groups:
            tables.group_kind[group], tables.group_b_iso[group] = kind[site], b_iso[site]
            n_groups += 1
        group_of[site] = group
        counts[group] += 1
    tables.group_start[0] = 0
    for group in range(n_groups):
        tables.group_start[group + 1] = tables.group_start[group] + counts[group]
        counts[group] = tables.group_start[group]
    for site in range(n_sites):
        if group_of[site] >= 0:
            tables.order[counts[group_of[site]]] = site
            counts[group_of[site]] += 1
    return n_groups


@compiled
def _grown(tables, n_phases, longest, n_factors):
    phases, sums, factors = tables.phases, tables.sums, tables.factors
    if n_phases > len(phases):
        phases = np.empty(2 * n_phases)
    if longest > sums.shape[1]:
        sums = np.empty((4, 2 * longest))
    if n_factors > len(factors):
        factors = np.empty(2 * n_factors)
    return Tables(
        tables.order,
        tables.group_start,
        tables.group_kind,
        tables.group_b_iso,
        phases,
        tables.plane,
        sums,
        factors,
    )


@compiled_fastmath
def _powers(x, amplitude, n, cosines, sines, start, stride):
    """amplitude · exp 2πi mx for m = 0…n, at start + m · stride."""
    angle = 2 * math.pi * (x - math.floor(x))
    step_cosine, step_sine = math.cos(angle), math.sin(angle)
    cosine, sine = amplitude, 0.0
    for m in range(n + 1):
        cosines[start + m * stride], sines[start + m * stride] = cosine, sine
        cosine, sine = cosine * step_cosine - sine * step_sine, sine * step_cosine + cosine * step_sine


@compiled
def _fill_phases(positions, amplitudes, limits, tables, n_used):
    """Write the phases: along h and k one row an index (all sites), along l one row a site.

    A row along l runs from −limit to limit, with room for vector code to read beyond.
    Returns where along_k, along_l and the sines begin.
    """
    n_h, n_k = limits[0] + 1, limits[1] + 1
    row = _row_length(limits[2])
    k_start = n_h * n_used
    l_start = k_start + n_k * n_used
    half = l_start + row * n_used
    cosines, sines = tables.phases[:half], tables.phases[half : 2 * half]
    for i in range(n_used):
        site = tables.order[i]
        _powers(positions[0, site], amplitudes[site], limits[0], cosines, sines, i, n_used)
        _powers(positions[1, site], 1.0, limits[1], cosines, sines, k_start + i, n_used)
        middle = l_start + i * row + limits[2]
        _powers(positions[2, site], 1.0, limits[2], cosines, sines, middle, 1)
        for m in range(1, limits[2] + 1):
            cosines[middle - m], sines[middle - m] = cosines[middle + m], -sines[middle + m]
        for m in range(middle + limits[2] + 1, l_start + (i + 1) * row):
            cosines[m] = sines[m] = 0.0
    return k_start, l_start, half


@compiled
def _row_length(limit):
    return 2 * limit + 1 + 2 * LANES


@compiled_fastmath
def _add_exponential(s_squared, coefficient, decay, out):
    """Add coefficient · exp(−decay · s²), by a series that becomes vector code (relative error < 1e-12)."""
    for i in range(len(out)):
        x = decay * s_squared[i]
        x = (x if x < 150.0 else 150.0) * (1 / 256)
        e = 1 + x * (-1 + x * (_C2 + x * (_C3 + x * (_C4 + x * (_C5 + x * (_C6 + x * (_C7 + x * _C8)))))))
        e = e * e
        e = e * e
        e = e * e
        e = e * e
        e = e * e
        e = e * e
        e = e * e
        e = e * e
        out[i] += coefficient * e


@compiled
def _fill_factors(s_squared, n_places, n_groups, form_factor, is_xray, tables):
    """Form factor times exp(−B s²) of each group at each reflection."""
    s_squared = s_squared[:n_places]
    for group in range(n_groups):
        factors = tables.factors[group * n_places : (group + 1) * n_places]
        b_iso = tables.group_b_iso[group]
        if is_xray:
            # exp(−b s²) exp(−B s²) is one exponential.
            a = form_factor[tables.group_kind[group]]
            factors[:] = 0.0
            for term in range(4):
                _add_exponential(s_squared, a[term], a[4 + term] + b_iso, factors)
            _add_exponential(s_squared, a[8], b_iso, factors)
        else:
            factors[:] = 0.0
            _add_exponential(s_squared, 1.0, b_iso, factors)


@compiled_fastmath
def _add_site(a, b, cosines, sines, cosine_sum, sine_sum):
    for j in range(len(cosine_sum)):
        cosine_sum[j] += a * cosines[j] - b * sines[j]
        sine_sum[j] += a * sines[j] + b * cosines[j]


@compiled_fastmath
def _add_centric_site(a, b, cosines, sines, cosine_sum):
    for j in range(len(cosine_sum)):
        cosine_sum[j] += a * cosines[j] - b * sines[j]


@compiled
def _add_sites(plane, first, last, phases, start, half, row, cosine_sum, sine_sum, is_centric):
    """Set the cosine (and sine) sums along l to those of the sites first…last, one group."""
    n = len(cosine_sum)
    cosine_sum[:] = 0.0
    sine_sum[:] = 0.0
    for i in range(first, last):
        a, b = plane[0, i], plane[1, i]
        begin = start + i * row
        cosines, sines = phases[begin : begin + n], phases[half + begin : half + begin + n]
        if is_centric:
            _add_centric_site(a, b, cosines, sines, cosine_sum)
        else:
            _add_site(a, b, cosines, sines, cosine_sum, sine_sum)


@compiled_fastmath
def _multiply(a, b, c, d, sign, real, imaginary):
    for i in range(len(real)):
        real[i] = a[i] * c[i] - sign * b[i] * d[i]
        imaginary[i] = sign * a[i] * d[i] + b[i] * c[i]


@compiled
def _set_plane(plane, phases, h_row, k_row, half, n_used, sign):
    """exp 2πi(hx + ky) of every site."""
    _multiply(
        phases[h_row : h_row + n_used],
        phases[half + h_row : half + h_row + n_used],
        phases[k_row : k_row + n_used],
        phases[half + k_row : half + k_row + n_used],
        sign,
        plane[0, :n_used],
        plane[1, :n_used],
    )


@compiled_fastmath
def _add_weighed(factors, cosine_sum, sine_sum, cosine_total, sine_total):
    for j in range(len(factors)):
        cosine_total[j] += factors[j] * cosine_sum[j]
        sine_total[j] += factors[j] * sine_sum[j]


@compiled_fastmath
def _add_squares(cosine_total, sine_total, out):
    for j in range(len(out)):
        out[j] += cosine_total[j] * cosine_total[j] + sine_total[j] * sine_total[j]


@compiled
def add_f_squared(
    positions,
    weight,
    amplitudes,
    kind,
    b_iso,
    form_factor,
    is_xray,
    is_centric,
    limits,
    columns,
    n,
    tables,
    out,
):
    """Add |Σ amplitude · f exp(−B s²) exp 2πi(hx + ky + lz)|² of every reflection to `out`.

    Parameters
    ----------
    positions : ndarray, shape (3, n_sites)
    weight : ndarray, shape (n_sites,)
        0 where a site is left out.
    amplitudes : ndarray, shape (n_sites,)
        Occupancy times weight, for neutrons times the real or imaginary part of the scattering length:
        the mean of |F|² over Friedel mates is the sum of |F|² for either part.
    kind : ndarray of int64, shape (n_sites,)
        Row of `form_factor`; equal for all where they have none.
    b_iso : ndarray, shape (n_sites,)
    form_factor : ndarray, shape (n_kinds, 9)
    is_xray, is_centric : bool
    limits : ndarray of int64, shape (3,)
    columns : Columns
    n : tuple of int
        Columns and places in use.
    tables : Tables
    out : ndarray, shape (n_places,)

    Returns
    -------
    Tables
        Those given, or larger ones.
    """
    n_columns, n_places = n
    n_groups = _grouped(kind, b_iso, weight, tables)
    n_used = tables.group_start[n_groups]
    row = _row_length(limits[2])
    longest = 2 * limits[2] + 1 + LANES
    n_phases = 2 * n_used * (limits[0] + limits[1] + 2 + row)
    tables = _grown(tables, n_phases, longest, n_groups * n_places)
    k_start, l_start, half = _fill_phases(positions, amplitudes, limits, tables, n_used)
    flat = not is_xray and n_groups == 1 and tables.group_b_iso[0] == 0.0
    if not flat:
        _fill_factors(columns.s_squared, n_places, n_groups, form_factor, is_xray, tables)
    sums, plane = tables.sums, tables.plane
    for column in range(n_columns):
        h, k, offset = columns.h[column], columns.k[column], columns.offset[column]
        length = (columns.length[column] + LANES - 1) // LANES * LANES
        k_row = k_start + abs(k) * n_used
        _set_plane(plane, tables.phases, h * n_used, k_row, half, n_used, 1.0 if k >= 0 else -1.0)
        start = l_start + columns.first_l[column] + limits[2]
        cosine_total, sine_total = sums[2, :length], sums[3, :length]
        if flat:
            _add_sites(
                plane, 0, n_used, tables.phases, start, half, row, cosine_total, sine_total, is_centric
            )
        else:
            cosine_total[:] = 0.0
            sine_total[:] = 0.0
            cosine_sum, sine_sum = sums[0, :length], sums[1, :length]
            for group in range(n_groups):
                first, last = tables.group_start[group], tables.group_start[group + 1]
                _add_sites(
                    plane, first, last, tables.phases, start, half, row, cosine_sum, sine_sum, is_centric
                )
                begin = group * n_places + offset
                factors = tables.factors[begin : begin + length]
                _add_weighed(factors, cosine_sum, sine_sum, cosine_total, sine_total)
        _add_squares(cosine_total, sine_total, out[offset : offset + length])
    return tables
