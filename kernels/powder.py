"""Powder patterns, compiled with Numba: crystals to reflections, and reflections to patterns.

Everything here is plain arrays. s = sinθ/λ = 1/(2d) in Å⁻¹ throughout. The kernels run on the calling
thread and without the GIL, so that several threads can each take a part of a batch.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hxrd.kernels.compiled import compiled, compiled_fastmath
from hxrd.kernels.corrections import (
    CYLINDER_TERMS,
    cylinder_series,
    cylinder_transmission,
    lorentz_polarization,
)
from hxrd.kernels.lattice import inverse
from hxrd.kernels.lines import apply_texture, merge, sorted_places
from hxrd.kernels.profile import Resolution, add_interpolated, add_peak, coarser, new_canvas, peak_widths
from hxrd.kernels.reduction import LENIENT, new_workspace, reduced
from hxrd.kernels.reflections import (
    fill_columns,
    find_columns,
    index_limits,
    new_bounds,
    new_columns,
    set_bounds,
)
from hxrd.kernels.structure_factor import add_f_squared, new_tables

_FAINT = 1e-8  # lines below this part of the strongest are left out
_WEAK = 0.02  # lines lower than this part of the highest may be drawn on a coarser grid …
_COARSE_STEPS = 8.0  # … that has so many steps to their FWHM: interpolation then errs by 5e-5 of their top
_GOLDEN = 0.6180339887498949


class Batch(NamedTuple):
    """Many crystals, end to end.

    Parameters
    ----------
    cells : ndarray, shape (n_crystals, 6)
        a, b, c in Å, α, β, γ in degrees.
    site_start : ndarray of int64, shape (n_crystals + 1,)
        Sites of crystal c are ``site_start[c]:site_start[c + 1]``.
    species : ndarray of int64, shape (n_sites,)
        Row of `scattering` and `form_factor`.
    positions : ndarray, shape (n_sites, 3)
    occupancy, b_iso : ndarray, shape (n_sites,)
    operation_start : ndarray of int64, shape (n_crystals + 1,)
        Operations of crystal c are ``operation_start[c]:operation_start[c + 1]``.
    rotations : ndarray of int8, shape (n_operations, 3, 3)
    translations : ndarray, shape (n_operations, 3)
    scattering : ndarray of complex128, shape (n_species,)
        Scattering length in fm; zero for X-rays.
    form_factor : ndarray, shape (n_species, 9)
        a1…a4, b1…b4, c; zeros for neutrons.
    """

    cells: NDArray[np.float64]
    site_start: NDArray[np.int64]
    species: NDArray[np.int64]
    positions: NDArray[np.float64]
    occupancy: NDArray[np.float64]
    b_iso: NDArray[np.float64]
    operation_start: NDArray[np.int64]
    rotations: NDArray[np.int8]
    translations: NDArray[np.float64]
    scattering: NDArray[np.complex128]
    form_factor: NDArray[np.float64]


class Conditions(NamedTuple):
    """How each pattern of a batch is measured, one row a crystal.

    Parameters
    ----------
    wavelengths : ndarray, shape (n_crystals, n_lines, 2)
        Å, weight.
    resolution : ndarray, shape (n_crystals, 8)
        In the order of `hxrd.kernels.profile.Resolution`.
    zero_shift : ndarray, shape (n_crystals,)
        Degrees: a line at 2θ appears at 2θ + zero_shift …
    displacement : ndarray, shape (n_crystals,)
        … + displacement · cosθ, degrees.
    absorption : ndarray, shape (n_crystals,)
        μR of a cylinder; 0 for none.
    texture : ndarray, shape (n_crystals, 4)
        March coefficient (1 for none), then h, k, l of the preferred plane.
    """

    wavelengths: NDArray[np.float64]
    resolution: NDArray[np.float64]
    zero_shift: NDArray[np.float64]
    displacement: NDArray[np.float64]
    absorption: NDArray[np.float64]
    texture: NDArray[np.float64]


@compiled
def _most_sites(batch):
    most = 1
    for crystal in range(len(batch.cells)):
        most = max(most, batch.site_start[crystal + 1] - batch.site_start[crystal])
    return most


@compiled
def _reflections(batch, crystal, s_low, s_high, is_xray, tolerance, work, bounds, columns, tables, strength):
    """Find the unique reflections of one crystal and their |F|² for the cell as listed."""
    site, end = batch.site_start[crystal], batch.site_start[crystal + 1]
    first, last = batch.operation_start[crystal], batch.operation_start[crystal + 1]
    n_sites = end - site
    species, occupancy = batch.species[site:end], batch.occupancy[site:end]
    b_iso = batch.b_iso[site:end]
    marks = np.empty(n_sites)
    for i in range(n_sites):
        unlike = _GOLDEN * (species[i] + 1)
        marks[i] = occupancy[i] * (0.5 + unlike - math.floor(unlike)) + 0.01 * b_iso[i]
    metric, basis, n_rotations, n_centrings, is_centric = reduced(
        batch.cells[crystal],
        batch.positions[site:end],
        marks,
        batch.rotations[first:last],
        batch.translations[first:last],
        tolerance,
        work,
    )
    sizes = set_bounds(work.rotations, n_rotations, bounds)
    n_columns, n_places, columns = find_columns(metric, s_high, bounds, sizes, columns)
    fill_columns(
        metric,
        s_low,
        s_high,
        bounds,
        sizes,
        n_rotations,
        work.translations,
        work.is_operation,
        columns,
        n_columns,
    )
    if n_places > len(strength):
        strength = np.empty(2 * n_places)
    strength[:n_places] = 0.0
    limits = index_limits(metric, s_high)
    kind = np.zeros(n_sites, np.int64)
    amplitudes = np.empty(n_sites)
    for part in range(1 if is_xray else 2):
        largest = 0.0
        for i in range(n_sites):
            if is_xray:
                kind[i] = species[i]
                value = 1.0
            else:
                length = batch.scattering[species[i]]
                value = length.real if part == 0 else length.imag
            amplitudes[i] = occupancy[i] * work.weight[i] * value * n_centrings
            largest = max(largest, abs(value))
        if largest == 0.0:
            continue
        tables = add_f_squared(
            work.positions,
            work.weight,
            amplitudes,
            kind,
            b_iso,
            batch.form_factor,
            is_xray,
            is_centric,
            limits,
            columns,
            (n_columns, n_places),
            tables,
            strength,
        )
    return metric, basis, n_rotations, n_columns, n_places, columns, tables, strength


@compiled
def _shape_lines(s_squared, strength, n, wavelength, weight, conditions, crystal, polarization, grid, shapes):
    """Write centre, area, FWHM, η, 2θ and cot 2θ of the lines whose centre lies inside the grid.

    Returns their number and the greatest area/FWHM.
    """
    stop = grid.start + (grid.n_points - 1) * grid.step
    resolution = resolution_of(conditions, crystal)
    zero_shift, displacement = conditions.zero_shift[crystal], conditions.displacement[crystal]
    mu_r = conditions.absorption[crystal]
    series = np.empty(CYLINDER_TERMS)
    cylinder_series(mu_r, series)
    faint = _FAINT * strength[:n].max() if n else 0.0
    shaped, highest = 0, 0.0
    for i in range(n):
        sine = math.sqrt(s_squared[i]) * wavelength
        if strength[i] <= faint or sine >= 1:
            continue
        cosine = math.sqrt(1 - sine * sine)
        theta = math.asin(sine)
        two_theta = math.degrees(2 * theta)
        centre = two_theta + zero_shift + displacement * cosine
        if not grid.start <= centre <= stop:
            continue
        area = weight * strength[i] * lorentz_polarization(sine, cosine, polarization)
        if mu_r > 0:
            area *= cylinder_transmission(series, theta)
        fwhm, eta = peak_widths(sine, cosine, resolution)
        row = shapes[shaped]
        row[0], row[1], row[2], row[3], row[4] = centre, area, fwhm, eta, two_theta
        row[5] = (0.5 - sine * sine) / (sine * cosine)
        highest = max(highest, area / fwhm)
        shaped += 1
    return shaped, highest


@compiled
def resolution_of(conditions, crystal):
    """Return the `Resolution` of one crystal."""
    row = conditions.resolution[crystal]
    return Resolution(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7])


@compiled
def _draw_lines(shapes, n, highest, resolution, canvases):
    """Draw lines, weak ones that are broad against the step on a coarser grid."""
    fine, half, quarter = canvases
    for i in range(n):
        centre, area, fwhm, eta, two_theta, cotangent = shapes[i]
        steps = fwhm / fine.grid.step if area < _WEAK * highest * fwhm else 0.0
        if steps < _COARSE_STEPS * 2:
            add_peak(fine, centre, area, fwhm, eta, resolution, two_theta, cotangent)
        elif steps < _COARSE_STEPS * 4:
            add_peak(half, centre, area, fwhm, eta, resolution, two_theta, cotangent)
        else:
            add_peak(quarter, centre, area, fwhm, eta, resolution, two_theta, cotangent)


@compiled
def _s_range(wavelengths, grid, zero_shift, displacement):
    """Least and greatest s of a line that may lie on the grid."""
    slack = abs(zero_shift) + abs(displacement) + 1e-6
    stop = grid.start + (grid.n_points - 1) * grid.step
    low = max(grid.start - slack, 1e-3) / 2
    high = min(stop + slack, 180.0) / 2
    return (
        math.sin(math.radians(low)) / wavelengths[:, 0].max(),
        math.sin(math.radians(high)) / wavelengths[:, 0].min(),
    )


@compiled
def patterns(batch, rows, conditions, grid, polarization, is_xray, out, maximum):
    """Simulate a batch on the calling thread, each pattern divided by its maximum.

    Parameters
    ----------
    batch : Batch
    rows : ndarray of int64, shape (n_crystals,)
        Where each crystal of the batch stands in the arrays that follow.
    conditions : Conditions
    grid : Grid
    polarization : float
        See `hxrd.kernels.corrections.lorentz_polarization`.
    is_xray : bool
        Whether form factors scatter, or scattering lengths.
    out : ndarray of float32, shape (n_rows, n_points)
        Written; a crystal without a reflection in range gives zeros.
    maximum : ndarray, shape (n_rows,)
        Written: the maximum that was divided by, Σ m|F|²·L·P with P in 1/degree.
    """
    n_sites = _most_sites(batch)
    work, bounds, tables = new_workspace(n_sites), new_bounds(), new_tables(n_sites)
    columns, shapes = new_columns(256, 4096), np.empty((1024, 6))
    canvases = new_canvas(grid), new_canvas(coarser(grid, 2)), new_canvas(coarser(grid, 4))
    strength = np.empty(4096)
    order = np.empty(4096, np.int64)
    line_s_squared, line_strength = np.empty(4096), np.empty(4096)
    for crystal in range(len(batch.cells)):
        row = rows[crystal]
        wavelengths = conditions.wavelengths[row]
        s_low, s_high = _s_range(wavelengths, grid, conditions.zero_shift[row], conditions.displacement[row])
        metric, basis, n_rotations, n_columns, n_places, columns, tables, strength = _reflections(
            batch, crystal, s_low, s_high, is_xray, LENIENT, work, bounds, columns, tables, strength
        )
        if conditions.texture[row, 0] != 1:
            apply_texture(
                metric, basis, conditions.texture[row], n_rotations, work, columns, n_columns, strength
            )
        if n_places > len(order):
            order = np.empty(2 * n_places, np.int64)
            line_s_squared, line_strength = np.empty(2 * n_places), np.empty(2 * n_places)
        n = sorted_places(columns, n_places, strength, order, s_low, s_high)
        n = merge(columns, strength, order, n, line_s_squared, line_strength)
        for canvas in canvases:
            canvas.pattern[:] = 0
        if n > len(shapes):
            shapes = np.empty((2 * n, 6))
        for line in range(len(wavelengths)):
            n_shaped, highest = _shape_lines(
                line_s_squared,
                line_strength,
                n,
                wavelengths[line, 0],
                wavelengths[line, 1],
                conditions,
                row,
                polarization,
                grid,
                shapes,
            )
            _draw_lines(shapes, n_shaped, highest, resolution_of(conditions, row), canvases)
        add_interpolated(canvases[1], 2, canvases[0].pattern)
        add_interpolated(canvases[2], 4, canvases[0].pattern)
        top = _highest(canvases[0].pattern)
        maximum[row] = top
        _divide(canvases[0].pattern, top if top > 0 else np.float32(1), out[row])


@compiled_fastmath
def _highest(pattern):
    top = np.float32(0)
    for i in range(len(pattern)):
        top = pattern[i] if pattern[i] > top else top
    return top


@compiled  # not fastmath: the top itself must become 1
def _divide(pattern, top, out):
    for i in range(len(pattern)):
        out[i] = pattern[i] / top


@compiled
def sticks(batch, s_low, s_high, is_xray, tolerance):
    """Find the unique reflections of a batch, by s² within each crystal.

    Parameters
    ----------
    batch : Batch
    s_low, s_high : float
        Range of sinθ/λ in Å⁻¹.
    is_xray : bool
    tolerance : float
        How exactly the atoms must obey the operations that join reflections to sets; see `reduced`.

    Returns
    -------
    start : ndarray of int64, shape (n_crystals + 1,)
        Reflections of crystal c are ``start[c]:start[c + 1]`` of the others.
    hkl : ndarray of int64, shape (n, 3)
        One of each set of equivalents, in the cell as listed.
    s_squared, multiplicity, f_squared : ndarray, shape (n,)
        Å⁻²; members of the set; |F|² of the cell as listed, in fm² or electrons².
    """
    n_sites = _most_sites(batch)
    work, bounds, tables = new_workspace(n_sites), new_bounds(), new_tables(n_sites)
    columns, strength = new_columns(256, 4096), np.empty(4096)
    order = np.empty(4096, np.int64)
    n_crystals = len(batch.cells)
    start = np.zeros(n_crystals + 1, np.int64)
    hkl, values = np.empty((64 * n_crystals, 3), np.int64), np.empty((64 * n_crystals, 3))
    for crystal in range(n_crystals):
        _, basis, _, n_columns, n_places, columns, tables, strength = _reflections(
            batch, crystal, s_low, s_high, is_xray, tolerance, work, bounds, columns, tables, strength
        )
        if n_places > len(order):
            order = np.empty(2 * n_places, np.int64)
        n = sorted_places(columns, n_places, strength, order, s_low, s_high)
        first = start[crystal]
        start[crystal + 1] = first + n
        if first + n > len(hkl):
            hkl = _more_rows(hkl, first, 2 * (first + n))
            values = _more_rows(values, first, 2 * (first + n))
        _write_sticks(columns, n_columns, inverse(basis), strength, order[:n], first, hkl, values)
    total = start[n_crystals]
    return start, hkl[:total], values[:total, 0].copy(), values[:total, 1].copy(), values[:total, 2].copy()


@compiled
def _more_rows(rows, n_used, n):
    result = np.empty((n, 3), rows.dtype)
    result[:n_used] = rows[:n_used]
    return result


@compiled
def _write_sticks(columns, n_columns, back, strength, order, first, hkl, values):
    for i in range(len(order)):
        place = order[i]
        column = np.searchsorted(columns.offset[:n_columns], place, side="right") - 1
        h, k = columns.h[column], columns.k[column]
        l = columns.first_l[column] + place - columns.offset[column]
        for axis in range(3):
            hkl[first + i, axis] = round(h * back[0, axis] + k * back[1, axis] + l * back[2, axis])
        values[first + i, 0] = columns.s_squared[place]
        values[first + i, 1] = columns.multiplicity[place]
        values[first + i, 2] = strength[place]
