"""Powder patterns, compiled with Numba: reflections, structure factors, profile.

Everything here is plain arrays. s = sinθ/λ = 1/(2d) in Å⁻¹ throughout; a hemisphere of reciprocal
space stands for the sphere, so each reflection counts for itself and its Friedel mate.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

PROFILE_CUT = 1e-3  # a profile ends where its symmetric form has fallen to this part of its top
_MERGE = 1e-9  # reflections whose s² agree to this relative precision are one line
_FAINT = 1e-9  # lines below this part of the strongest are left out
_LN2 = math.log(2.0)

# Numerical integration over the axial-divergence kernel: nodes and weights of Gauss–Jacobi rules for
# ∫₀¹ 2(1 − u) f(u) du, one row a rule, finer ones for tails that are long against the peak's width.
_RULE_SIZES = np.array([3, 5, 8, 12, 20, 32, 64, 128, 256, 512])


def _gauss_jacobi_rules() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from scipy.special import roots_jacobi

    nodes = np.zeros((len(_RULE_SIZES), _RULE_SIZES[-1]))
    weights = np.zeros_like(nodes)
    for row, size in enumerate(_RULE_SIZES):
        x, w = roots_jacobi(size, 1.0, 0.0)
        nodes[row, :size], weights[row, :size] = (x + 1) / 2, w / 2
    return nodes, weights


_NODES, _WEIGHTS = _gauss_jacobi_rules()


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


class Resolution(NamedTuple):
    """Peak shape: Gaussian U, V, W (deg²), Lorentzian X, Y (deg), axial divergence."""

    caglioti_u: float
    caglioti_v: float
    caglioti_w: float
    lorentzian_x: float
    lorentzian_y: float
    axial_divergence: float


class Grid(NamedTuple):
    """Even 2θ grid in degrees."""

    start: float
    step: float
    n_points: int


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
        limits[axis] = int(math.floor(2 * s_high * math.sqrt(metric[axis, axis]) + 1e-9))
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
def _add_group(friedel, amplitude, cosines, sines):
    """Add a group's share to (Re F, Im F) of a reflection and of its Friedel mate."""
    real, imaginary = amplitude.real, amplitude.imag
    friedel[0] += real * cosines - imaginary * sines
    friedel[1] += real * sines + imaginary * cosines
    friedel[2] += real * cosines + imaginary * sines
    friedel[3] += imaginary * cosines - real * sines


@njit(cache=True, nogil=True)
def f_squared(hkl, s_squared, positions, occupancy, group_start, b_iso, scattering, form_factor):
    """Mean of |F|² over each reflection and its Friedel mate, shape (n,).

    F(hkl) = Σ_g b_g exp(−B_g s²) Σ_{j in g} o_j exp 2πi(hx_j + ky_j + lz_j); see
    `hxrd.physics.packing.Atoms` for the arrays.
    """
    result = np.empty(len(hkl))
    friedel = np.empty(4)
    for i in range(len(hkl)):
        friedel[:] = 0.0
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
            _add_group(friedel, amplitude, cosines, sines)
        result[i] = 0.5 * (friedel[0] ** 2 + friedel[1] ** 2 + friedel[2] ** 2 + friedel[3] ** 2)
    return result


@njit(cache=True, nogil=True)
def _lorentz(theta, xray):
    lorentz = 1.0 / (math.sin(theta) * math.sin(2 * theta))
    return lorentz * 0.5 * (1 + math.cos(2 * theta) ** 2) if xray else lorentz


def lorentz_factor(theta: NDArray[np.float64], xray: bool) -> NDArray[np.float64]:
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
        re, im = amplitude.real, amplitude.imag
        friedel = (
            friedel[0] + re * cosines - im * sines,
            friedel[1] + re * sines + im * cosines,
            friedel[2] + re * cosines + im * sines,
            friedel[3] + im * cosines - re * sines,
        )
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
def _widths(theta, resolution):
    """FWHM in degrees and mixing η of the pseudo-Voigt: Thompson, Cox & Hastings (1987), Eqs 3 and 5."""
    tangent = math.tan(theta)
    variance = resolution.caglioti_u * tangent**2 + resolution.caglioti_v * tangent + resolution.caglioti_w
    gauss = math.sqrt(max(variance, 1e-8))
    lorentz = max(resolution.lorentzian_x / math.cos(theta) + resolution.lorentzian_y * tangent, 0.0)
    fwhm = (
        gauss**5
        + 2.69269 * gauss**4 * lorentz
        + 2.42843 * gauss**3 * lorentz**2
        + 4.47163 * gauss**2 * lorentz**3
        + 0.07842 * gauss * lorentz**4
        + lorentz**5
    ) ** 0.2
    ratio = lorentz / fwhm
    return fwhm, 1.36603 * ratio - 0.47719 * ratio**2 + 0.11116 * ratio**3


@njit(cache=True, nogil=True)
def _reach(fwhm, eta):
    """Half-width in degrees beyond which a peak counts for nothing: see `PROFILE_CUT`."""
    lorentz_top = eta * 2 / (math.pi * fwhm)
    top = lorentz_top + (1 - eta) * 2 / fwhm * math.sqrt(_LN2 / math.pi)
    gauss = 0.5 * fwhm * math.sqrt(math.log(1 / PROFILE_CUT) / _LN2)
    lorentz = 0.5 * fwhm * math.sqrt(max(0.0, lorentz_top / (PROFILE_CUT * top) - 1))
    return max(gauss, lorentz)


@njit(cache=True, nogil=True)
def _rule(tail, fwhm):
    """Row of the integration rule that is fine enough for a tail so many widths long."""
    needed = 3 + 5 * abs(tail) / fwhm
    for row in range(len(_RULE_SIZES) - 1):
        if _RULE_SIZES[row] >= needed:
            return row
    return len(_RULE_SIZES) - 1


@njit(cache=True, nogil=True, fastmath=True)
def _add_gaussian(pattern, grid, first, last, centre, height, fwhm):
    """Gaussian on an even grid by recurrence: each point from the last by two multiplications."""
    scale = 4 * _LN2 / fwhm**2
    x = grid.start + first * grid.step - centre
    value = height * math.exp(-scale * x * x)
    ratio = math.exp(-scale * grid.step * (2 * x + grid.step))
    shrink = math.exp(-2 * scale * grid.step**2)
    for i in range(first, last + 1):
        pattern[i] += value
        value *= ratio
        ratio *= shrink


@njit(cache=True, nogil=True, fastmath=True)
def _add_lorentzian(pattern, start, step, first, last, centre, height, fwhm):
    scale = 4 / fwhm**2
    for i in range(first, last + 1):
        x = start + i * step - centre
        pattern[i] += height / (1 + scale * x * x)


@njit(cache=True, nogil=True, fastmath=True)
def _add_lorentzian_tail(pattern, start, step, first, last, centre, height, fwhm, variance):
    """Lorentzian far from its centre, smeared by a narrow kernel: L + ½ variance · L''."""
    scale = 4 / fwhm**2
    for i in range(first, last + 1):
        x = start + i * step - centre
        t = scale * x * x
        value = 1 / (1 + t)
        pattern[i] += height * value * (1 + variance * scale * (3 * t - 1) * value * value)


@njit(cache=True, nogil=True)
def _add_peak(pattern, grid, centre, area, fwhm, eta, tail):
    """Add one pseudo-Voigt, convolved with the axial-divergence kernel.

    The kernel is (√(tail/ε) − 1)/|tail| for ε from 0 to `tail` (degrees, negative below 90°): with
    ε = tail·u² it is the integral over u of 2(1 − u) times the peak shifted by ε. Its mean is
    tail/6 and its variance 7 tail²/180.
    """
    reach = _reach(fwhm, eta)
    first = max(0, math.ceil((centre + min(0.0, tail) - reach - grid.start) / grid.step - 1e-9))
    last = min(
        grid.n_points - 1, math.floor((centre + max(0.0, tail) + reach - grid.start) / grid.step + 1e-9)
    )
    if first > last:
        return
    gauss = area * (1 - eta) * 2 / fwhm * math.sqrt(_LN2 / math.pi)
    lorentz = area * eta * 2 / (math.pi * fwhm)
    near = 2.5 * fwhm + 1.5 * abs(tail)
    inner = min(max(first, math.ceil((centre - near - grid.start) / grid.step)), last + 1)
    outer = max(min(last, math.floor((centre + near - grid.start) / grid.step)), inner - 1)
    row = _rule(tail, fwhm) if tail != 0.0 else 0
    for node in range(_RULE_SIZES[row]):
        shifted = centre + tail * _NODES[row, node] ** 2
        weight = _WEIGHTS[row, node] if tail != 0.0 else 1.0
        # the recurrence would underflow far from the node's own centre, and add nothing there
        left = max(inner, math.ceil((shifted - 2.5 * fwhm - grid.start) / grid.step))
        right = min(outer, math.floor((shifted + 2.5 * fwhm - grid.start) / grid.step))
        _add_gaussian(pattern, grid, left, right, shifted, gauss * weight, fwhm)
        _add_lorentzian(pattern, grid.start, grid.step, inner, outer, shifted, lorentz * weight, fwhm)
        if tail == 0.0:
            break
    middle, variance = centre + tail / 6, 7 * tail * tail / 180
    _add_lorentzian_tail(pattern, grid.start, grid.step, first, inner - 1, middle, lorentz, fwhm, variance)
    _add_lorentzian_tail(pattern, grid.start, grid.step, outer + 1, last, middle, lorentz, fwhm, variance)


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
        fwhm, eta = _widths(theta, resolution)
        tail = -0.5 * math.degrees(resolution.axial_divergence**2) / math.tan(2 * theta)
        _add_peak(pattern, grid, centre, weight * strength[i] * _lorentz(theta, xray), fwhm, eta, tail)


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
