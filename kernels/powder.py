"""Powder patterns, compiled with Numba: reflections, structure factors, patterns.

Everything here is plain arrays. s = sinθ/λ = 1/(2d) in Å⁻¹ throughout; a hemisphere of reciprocal
space stands for the sphere, so each reflection counts for itself and its Friedel mate.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from hxrd.kernels.profile import Grid, Resolution, add_peak, peak_widths

_MERGE = 1e-9  # reflections whose s² agree to this relative precision are one line
_FAINT = 1e-9  # lines below this part of the strongest are left out


class Batch(NamedTuple):
    """Many crystals, end to end.

    Parameters
    ----------
    reciprocal_metrics : ndarray, shape (n_crystals, 3, 3)
        Å⁻².
    crystal_start : ndarray of int64, shape (n_crystals + 1,)
        Groups of crystal c are ``crystal_start[c]:crystal_start[c + 1]``.
    group_start : ndarray of int64, shape (n_groups + 1,)
        Sites of group g are ``group_start[g]:group_start[g + 1]``.
    group_b_iso, group_scattering, group_form_factor
        Per group: B in Å², complex scattering length in fm, (n_groups, 9) form-factor coefficients.
    positions : ndarray, shape (n_sites, 3)
    occupancy : ndarray, shape (n_sites,)
    """

    reciprocal_metrics: NDArray[np.float64]
    crystal_start: NDArray[np.int64]
    group_start: NDArray[np.int64]
    group_b_iso: NDArray[np.float64]
    group_scattering: NDArray[np.complex128]
    group_form_factor: NDArray[np.float64]
    positions: NDArray[np.float64]
    occupancy: NDArray[np.float64]


@njit(cache=True, nogil=True)
def _s_squared(reciprocal_metric, h, k, l):
    g = reciprocal_metric
    return 0.25 * (
        h * h * g[0, 0]
        + k * k * g[1, 1]
        + l * l * g[2, 2]
        + 2 * (h * k * g[0, 1] + h * l * g[0, 2] + k * l * g[1, 2])
    )


@njit(cache=True, nogil=True)
def _index_limits(reciprocal_metric, s_high):
    metric = np.linalg.inv(reciprocal_metric)
    limits = np.empty(3, np.int64)
    for axis in range(3):
        limits[axis] = math.floor(2 * s_high * math.sqrt(metric[axis, axis]) + 1e-9)
    return limits


@njit(cache=True, nogil=True)
def _first_l(h, k, limit):
    """Where l begins in the hemisphere: h > 0, or h = 0 and k > 0, or h = k = 0 and l > 0."""
    return -limit if h > 0 or k > 0 else 1


@njit(cache=True, nogil=True)
def _count_reflections(reciprocal_metric, limits, low, high):
    count = 0
    for h in range(limits[0] + 1):
        for k in range(-limits[1] if h > 0 else 0, limits[1] + 1):
            for l in range(_first_l(h, k, limits[2]), limits[2] + 1):
                if low <= _s_squared(reciprocal_metric, h, k, l) <= high:
                    count += 1
    return count


@njit(cache=True, nogil=True)
def reflections_in_range(reciprocal_metric, s_low, s_high):
    """Reflections of the hemisphere with s_low ≤ s ≤ s_high.

    Parameters
    ----------
    reciprocal_metric : ndarray, shape (3, 3)
        Å⁻².
    s_low, s_high : float
        sinθ/λ in Å⁻¹.

    Returns
    -------
    hkl : ndarray of int64, shape (n, 3)
    s_squared : ndarray, shape (n,)
        Å⁻².
    """
    limits = _index_limits(reciprocal_metric, s_high)
    low, high = s_low * s_low, s_high * s_high
    n_reflections = _count_reflections(reciprocal_metric, limits, low, high)
    hkl = np.empty((n_reflections, 3), np.int64)
    s_squared = np.empty(n_reflections)
    found = 0
    for h in range(limits[0] + 1):
        for k in range(-limits[1] if h > 0 else 0, limits[1] + 1):
            for l in range(_first_l(h, k, limits[2]), limits[2] + 1):
                value = _s_squared(reciprocal_metric, h, k, l)
                if low <= value <= high:
                    hkl[found, 0], hkl[found, 1], hkl[found, 2] = h, k, l
                    s_squared[found] = value
                    found += 1
    return hkl, s_squared


@njit(cache=True, nogil=True)
def _amplitude(scattering, form_factor, b_iso, s_squared):
    """Scattering length or form factor, times the Debye–Waller factor exp(−B s²)."""
    value = scattering
    if form_factor[8] != 0.0 or form_factor[0] != 0.0:
        total = form_factor[8]
        for term in range(4):
            total += form_factor[term] * math.exp(-form_factor[4 + term] * s_squared)
        value = value + total
    return value * math.exp(-b_iso * s_squared)


@njit(cache=True, nogil=True)
def _plus_group(friedel, amplitude, cosines, sines):
    """Return (Re F, Im F) of a reflection and of its Friedel mate with a group's share added."""
    re, im = amplitude.real, amplitude.imag
    return (
        friedel[0] + re * cosines - im * sines,
        friedel[1] + re * sines + im * cosines,
        friedel[2] + re * cosines + im * sines,
        friedel[3] + im * cosines - re * sines,
    )


@njit(cache=True, nogil=True)
def f_squared(hkl, s_squared, positions, occupancy, group_start, b_iso, scattering, form_factor):
    """Mean of |F|² over each reflection and its Friedel mate, shape (n,).

    F(hkl) = Σ_g b_g exp(−B_g s²) Σ_{j in g} o_j exp 2πi(hx_j + ky_j + lz_j); see
    `hxrd.physics.packing.Atoms` for the arrays.
    """
    result = np.empty(len(hkl))
    for i in range(len(hkl)):
        friedel = (0.0, 0.0, 0.0, 0.0)
        for group in range(len(b_iso)):
            cosines = sines = 0.0
            for site in range(group_start[group], group_start[group + 1]):
                phase = 0.0
                for axis in range(3):
                    phase += hkl[i, axis] * positions[site, axis]
                phase = 2 * math.pi * (phase - math.floor(phase))
                cosines += occupancy[site] * math.cos(phase)
                sines += occupancy[site] * math.sin(phase)
            amplitude = _amplitude(scattering[group], form_factor[group], b_iso[group], s_squared[i])
            friedel = _plus_group(friedel, amplitude, cosines, sines)
        result[i] = 0.5 * (friedel[0] ** 2 + friedel[1] ** 2 + friedel[2] ** 2 + friedel[3] ** 2)
    return result


@njit(cache=True, nogil=True)
def lorentz_factor(theta, xray):
    """Lorentz factor 1/(sinθ sin2θ); for X-rays times the polarisation (1 + cos²2θ)/2.

    Parameters
    ----------
    theta : ndarray
        Half the scattering angle, in radians.
    xray : bool
        Without a monochromator.
    """
    lorentz = 1.0 / (np.sin(theta) * np.sin(2 * theta))
    return lorentz * 0.5 * (1 + np.cos(2 * theta) ** 2) if xray else lorentz


@njit(cache=True, nogil=True)
def _phase_table(positions, axis, limit):
    """exp(2πi n x) for n = 0…limit, shape (limit + 1, n_sites)."""
    table = np.empty((limit + 1, len(positions)), np.complex128)
    for site in range(len(positions)):
        angle = 2 * math.pi * positions[site, axis]
        for n in range(limit + 1):
            table[n, site] = complex(math.cos(n * angle), math.sin(n * angle))
    return table


@njit(cache=True, nogil=True, fastmath=True)
def _friedel_mean(plane, along_l, conjugate, groups, occupancy, s_squared):
    group_start, b_iso, scattering, form_factor = groups
    friedel = (0.0, 0.0, 0.0, 0.0)
    for group in range(len(b_iso)):
        cosines = sines = 0.0
        for site in range(group_start[group], group_start[group + 1]):
            a, b = plane[site], along_l[site]
            imaginary = -b.imag if conjugate else b.imag
            cosines += a.real * b.real - a.imag * imaginary
            sines += a.real * imaginary + a.imag * b.real
        amplitude = _amplitude(scattering[group], form_factor[group], b_iso[group], s_squared)
        friedel = _plus_group(friedel, amplitude, cosines, sines)
    return 0.5 * (friedel[0] ** 2 + friedel[1] ** 2 + friedel[2] ** 2 + friedel[3] ** 2)


@njit(cache=True, nogil=True)
def _lines(reciprocal_metric, positions, occupancy, groups, s_low, s_high):
    """s² and Σ|F|² of every line, sorted by s², lines at equal s² added up."""
    limits = _index_limits(reciprocal_metric, s_high)
    low, high = s_low * s_low, s_high * s_high
    n_reflections = _count_reflections(reciprocal_metric, limits, low, high)
    s_squared, strength = np.empty(n_reflections), np.empty(n_reflections)
    along_h = _phase_table(positions, 0, limits[0])
    along_k = _phase_table(positions, 1, limits[1])
    along_l = _phase_table(positions, 2, limits[2])
    plane = np.empty(len(positions), np.complex128)
    found = 0
    for h in range(limits[0] + 1):
        for k in range(-limits[1] if h > 0 else 0, limits[1] + 1):
            for site in range(len(positions)):
                step = along_k[abs(k), site]
                step = step.conjugate() if k < 0 else step
                plane[site] = occupancy[site] * along_h[h, site] * step
            for l in range(_first_l(h, k, limits[2]), limits[2] + 1):
                value = _s_squared(reciprocal_metric, h, k, l)
                if low <= value <= high:
                    s_squared[found] = value
                    strength[found] = 2 * _friedel_mean(
                        plane, along_l[abs(l)], l < 0, groups, occupancy, value
                    )
                    found += 1
    return _merged(s_squared, strength)


@njit(cache=True, nogil=True)
def _merged(s_squared, strength):
    order = np.argsort(s_squared)
    merged_s, merged_strength = np.empty(len(order)), np.empty(len(order))
    last = -1
    for i in order:
        if last >= 0 and s_squared[i] - merged_s[last] <= _MERGE * merged_s[last]:
            merged_strength[last] += strength[i]
        else:
            last += 1
            merged_s[last], merged_strength[last] = s_squared[i], strength[i]
    return merged_s[: last + 1], merged_strength[: last + 1]


@njit(cache=True, nogil=True)
def _add_lines(pattern, grid, s_squared, strength, wavelength, weight, resolution, xray):
    """Add every line whose 2θ lies inside the grid."""
    stop = grid.start + (grid.n_points - 1) * grid.step
    strongest = strength.max() if len(strength) else 0.0
    for i in range(len(s_squared)):
        sine = math.sqrt(s_squared[i]) * wavelength
        if strength[i] <= _FAINT * strongest or sine >= 1:
            continue
        theta = math.asin(sine)
        centre = math.degrees(2 * theta)
        if not grid.start <= centre <= stop:
            continue
        fwhm, eta = peak_widths(theta, resolution)
        tail = -0.5 * math.degrees(resolution.axial_divergence**2) / math.tan(2 * theta)
        add_peak(pattern, grid, centre, weight * strength[i] * lorentz_factor(theta, xray), fwhm, eta, tail)


@njit(cache=True, nogil=True)
def _pattern(batch, crystal, wavelengths, resolution, grid, xray, out):
    """Write the pattern of one crystal, divided by its maximum."""
    pattern = np.zeros(grid.n_points)
    stop = grid.start + (grid.n_points - 1) * grid.step
    s_low = math.sin(math.radians(grid.start / 2)) / wavelengths[:, 0].max()
    s_high = math.sin(math.radians(stop / 2)) / wavelengths[:, 0].min()
    first, last = batch.crystal_start[crystal], batch.crystal_start[crystal + 1]
    site, end = batch.group_start[first], batch.group_start[last]
    groups = (
        batch.group_start[first : last + 1] - site,
        batch.group_b_iso[first:last],
        batch.group_scattering[first:last],
        batch.group_form_factor[first:last],
    )
    s_squared, strength = _lines(
        batch.reciprocal_metrics[crystal],
        batch.positions[site:end],
        batch.occupancy[site:end],
        groups,
        s_low,
        s_high,
    )
    for line in range(len(wavelengths)):
        _add_lines(
            pattern, grid, s_squared, strength, wavelengths[line, 0], wavelengths[line, 1], resolution, xray
        )
    top = pattern.max()
    for i in range(grid.n_points):
        out[i] = pattern[i] / top if top > 0 else 0.0


@njit(cache=True, nogil=True, parallel=True)
def patterns(batch, wavelengths, resolution, grid, xray, out):
    """Simulate a batch in parallel over its crystals, each pattern divided by its maximum.

    Parameters
    ----------
    batch : Batch
    wavelengths : ndarray, shape (n_lines, 2)
        Wavelength in Å and weight.
    resolution : Resolution
    grid : Grid
    xray : bool
        Whether the polarisation factor applies.
    out : ndarray of float32, shape (n_crystals, n_points)
        Written in place; a crystal without a reflection in range gives zeros.
    """
    for crystal in prange(len(batch.reciprocal_metrics)):
        _pattern(batch, crystal, wavelengths, resolution, grid, xray, out[crystal])


@njit(cache=True, nogil=True)
def patterns_varied(batch, wavelengths, resolutions, shifts, grid, xray, out):
    """Simulate a batch on the calling thread, each crystal as its own instrument shows it.

    As `patterns`, with for each crystal a wavelength, shape (n_crystals,), a row of `resolutions`, shape
    (n_crystals, 6), in the order of `Resolution`, and a 2θ zero shift in degrees, shape (n_crystals,).
    """
    for crystal in range(len(batch.reciprocal_metrics)):
        row = resolutions[crystal]
        resolution = Resolution(row[0], row[1], row[2], row[3], row[4], row[5])
        lines = np.array([[wavelengths[crystal], 1.0]])
        shifted = Grid(grid.start - shifts[crystal], grid.step, grid.n_points)
        _pattern(batch, crystal, lines, resolution, shifted, xray, out[crystal])
