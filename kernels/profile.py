"""The shape of one powder peak, compiled with Numba: width, asymmetry and finite support.

A Thompson–Cox–Hastings pseudo-Voigt convolved with the kernel of axial divergence, on an even 2θ grid.
The convolution is a sum of peaks shifted to the nodes of a quadrature rule; far from the centre, where
only the Lorentzian is left, the kernel's mean and variance stand for it. Patterns are single precision:
every error here is below 1e-4 of the peak's top.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hxrd.kernels.axial import axial_nodes, axial_span
from hxrd.kernels.compiled import compiled, compiled_fastmath

# A profile ends where its Gaussian and its Lorentzian part, each by itself, have fallen to this share
# of its top.
PROFILE_CUT = 1e-3
_LN2 = math.log(2.0)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32((-1) ** n / math.factorial(n)) for n in range(2, 8))
_GAUSS_REACH = 0.5 * math.sqrt(math.log(1 / PROFILE_CUT) / _LN2)  # FWHM
_GAUSS_TOP = 2 * math.sqrt(_LN2 / math.pi)  # of unit area and FWHM
_NEAR = 2.1  # FWHM from its centre a Gaussian has fallen below 5e-6 of its top

# Rules for the kernel √(1/ε) − 1, ε from 0 to 1: how many nodes serve a tail up to so many FWHM long, with
# an error below 3e-5 of the top for a Gaussian peak and 1e-4 for a Lorentzian.
_RULE_SIZES = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32])
_RULE_REACH = np.array([0.004, 0.23, 0.49, 0.75, 1.0, 1.26, 1.74, 2.25, 2.73, 3.77, 4.73, 5.7, 7.6])
_PANEL = 16  # longer tails: nodes of one panel, and how many FWHM it may span
_PANEL_SPAN = 4.0
MOST_NODES = 1024
_BEYOND = 2  # points of a coarser grid before the first of the fine one
_KERNEL_MEAN, _KERNEL_VARIANCE = 1 / 6, 7 / 180  # of the tail, and of its square


def _gauss_rules() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gauss rules for ∫₀¹ (ε^−½ − 1) f(ε) dε, one row a rule: Golub & Welsch (1969) by a Lanczos process."""
    x, w = np.polynomial.legendre.leggauss(128)
    u = (x + 1) / 2
    epsilon, measure = u * u, (1 - u) * w
    size = _RULE_SIZES[-1]
    diagonal, beside = np.zeros(size), np.zeros(size)
    basis = np.zeros((size + 1, len(u)))
    basis[0] = np.sqrt(measure)
    for k in range(size):
        vector = epsilon * basis[k]
        diagonal[k] = vector @ basis[k]
        for _ in range(2):  # the second time against rounding
            vector -= basis[: k + 1].T @ (basis[: k + 1] @ vector)
        beside[k] = np.linalg.norm(vector)
        basis[k + 1] = vector / beside[k]
    nodes, weights = np.zeros((len(_RULE_SIZES), size)), np.zeros((len(_RULE_SIZES), size))
    for row, n in enumerate(_RULE_SIZES):
        matrix = np.diag(diagonal[:n]) + np.diag(beside[: n - 1], 1) + np.diag(beside[: n - 1], -1)
        nodes[row, :n], vectors = np.linalg.eigh(matrix)
        weights[row, :n] = vectors[0] ** 2
    return nodes, weights


_PANEL_NODES, _PANEL_WEIGHTS = np.polynomial.legendre.leggauss(_PANEL)
_NODES, _WEIGHTS = _gauss_rules()


class Resolution(NamedTuple):
    """Peak shape: Gaussian U, V, W (deg²), Lorentzian X, Y (deg), and either model of axial divergence."""

    caglioti_u: float
    caglioti_v: float
    caglioti_w: float
    lorentzian_x: float
    lorentzian_y: float
    axial_divergence: float
    sample_half_height: float
    detector_half_height: float


class Grid(NamedTuple):
    """Even 2θ grid in degrees."""

    start: float
    step: float
    n_points: int


class Canvas(NamedTuple):
    """What peaks are drawn on: a grid, and its pattern.

    Parameters
    ----------
    grid : Grid
    pattern : ndarray of float32, shape (n_points,)
    ramp : ndarray of float32, shape (n_points,)
        0, step, 2 step, …
    shifts, weights : ndarray, shape (1024,)
        Room for the nodes of one peak, in degrees.
    """

    grid: Grid
    pattern: NDArray[np.float32]
    ramp: NDArray[np.float32]
    shifts: NDArray[np.float64]
    weights: NDArray[np.float64]


@compiled
def new_canvas(grid):
    """Return an empty `Canvas` for a grid."""
    ramp = np.empty(grid.n_points, np.float32)
    for i in range(grid.n_points):
        ramp[i] = i * grid.step
    pattern = np.zeros(grid.n_points, np.float32)
    return Canvas(grid, pattern, ramp, np.empty(MOST_NODES), np.empty(MOST_NODES))


@compiled
def peak_widths(sine, cosine, resolution):
    """FWHM in degrees and mixing η of the pseudo-Voigt: Thompson, Cox & Hastings (1987), Eqs 3 and 5.

    `sine` and `cosine` are those of θ.
    """
    tangent = sine / cosine
    variance = resolution.caglioti_u * tangent**2 + resolution.caglioti_v * tangent + resolution.caglioti_w
    g = math.sqrt(max(variance, 1e-8))
    l = max(resolution.lorentzian_x / cosine + resolution.lorentzian_y * tangent, 0.0)
    if l == 0.0:
        return g, 0.0
    fifth = l * (0.07842 * g + l)
    fifth = l * (4.47163 * g * g + fifth)
    fifth = l * (2.42843 * g * g * g + fifth)
    fifth = l * (2.69269 * g * g * g * g + fifth)
    fifth += g * g * g * g * g
    # The fifth root by Newton's steps, from a width good to 1e-3 (Olivero & Longbothum 1977, JQSRT 17, 233).
    fwhm = 0.5346 * l + math.sqrt(0.2166 * l * l + g * g)
    for _ in range(3):
        fourth = fwhm * fwhm * fwhm * fwhm
        fwhm -= 0.2 * (fwhm - fifth / fourth)
    ratio = l / fwhm
    return fwhm, ratio * (1.36603 - ratio * (0.47719 - 0.11116 * ratio))


@compiled
def _reach(fwhm, eta):
    """Half-width in degrees beyond which a peak counts for nothing: see `PROFILE_CUT`."""
    share = eta * 2 / math.pi
    lorentz = share / (PROFILE_CUT * (share + (1 - eta) * _GAUSS_TOP)) - 1
    return fwhm * max(_GAUSS_REACH, 0.5 * math.sqrt(max(0.0, lorentz)))


@compiled
def _set_simple_nodes(tail, length, canvas):
    """Nodes of the kernel √(tail/ε) − 1 for a tail so many FWHM long; return their number.

    Beyond the longest Gauss rule, panels in u with ε = tail · u².
    """
    for row in range(len(_RULE_SIZES)):
        if _RULE_REACH[row] >= length:
            for node in range(_RULE_SIZES[row]):
                canvas.shifts[node] = tail * _NODES[row, node]
                canvas.weights[node] = _WEIGHTS[row, node]
            return _RULE_SIZES[row]
    n_panels = min(MOST_NODES // _PANEL, math.ceil(2 * length / _PANEL_SPAN))
    for panel in range(n_panels):
        for i in range(_PANEL):
            u = (panel + 0.5 * (_PANEL_NODES[i] + 1)) / n_panels
            canvas.shifts[panel * _PANEL + i] = tail * u * u
            canvas.weights[panel * _PANEL + i] = (1 - u) * _PANEL_WEIGHTS[i] / n_panels
    return n_panels * _PANEL


@compiled
def _set_nodes(two_theta, cotangent, fwhm, eta, resolution, canvas):
    """Write the nodes of a peak's asymmetry; return their number, its end, mean and variance."""
    if resolution.axial_divergence > 0:
        tail = -0.5 * math.degrees(resolution.axial_divergence**2) * cotangent
        n_nodes = _set_simple_nodes(tail, abs(tail) / fwhm, canvas)
        return n_nodes, tail, tail * _KERNEL_MEAN, tail * tail * _KERNEL_VARIANCE
    if resolution.sample_half_height + resolution.detector_half_height > 0:
        tail = axial_span(two_theta, resolution.sample_half_height, resolution.detector_half_height)
        n_nodes = min(MOST_NODES, 6 + int((5 + 3 * eta) * abs(tail) / fwhm))
        axial_nodes(
            two_theta,
            resolution.sample_half_height,
            resolution.detector_half_height,
            n_nodes,
            canvas.shifts,
            canvas.weights,
        )
        mean = square = 0.0
        for node in range(n_nodes):
            mean += canvas.weights[node] * canvas.shifts[node]
            square += canvas.weights[node] * canvas.shifts[node] ** 2
        return n_nodes, tail, mean, square - mean * mean
    canvas.shifts[0], canvas.weights[0] = 0.0, 1.0
    return 1, 0.0, 0.0, 0.0


@compiled_fastmath
def _add_near(pattern, ramp, offset, gauss, lorentz, fwhm):
    """Add Gaussian and Lorentzian at ramp + offset: exp(−t) is a series for t/16, to the 16th."""
    gauss, lorentz, offset = np.float32(gauss), np.float32(lorentz), np.float32(offset)
    narrow, wide, one = np.float32(4 * _LN2 / fwhm**2 / 16), np.float32(4 / fwhm**2), np.float32(1)
    for i in range(len(pattern)):
        x = ramp[i] + offset
        x = x * x
        t = narrow * x
        t = t if t < one else one
        e = one + t * (-one + t * (_C2 + t * (_C3 + t * (_C4 + t * (_C5 + t * (_C6 + t * _C7))))))
        e = e * e
        e = e * e
        e = e * e
        e = e * e
        pattern[i] += gauss * e + lorentz / (one + wide * x)


@compiled_fastmath
def _add_far(pattern, ramp, offset, lorentz, fwhm, variance):
    """Add a Lorentzian far from its centre, smeared by a narrow kernel: L + ½ variance · L''."""
    lorentz, offset = np.float32(lorentz), np.float32(offset)
    wide, one, three = np.float32(4 / fwhm**2), np.float32(1), np.float32(3)
    smear = np.float32(variance * 4 / fwhm**2)
    for i in range(len(pattern)):
        x = ramp[i] + offset
        t = wide * x * x
        value = one / (one + t)
        pattern[i] += lorentz * value * (one + smear * (three * t - one) * value * value)


@compiled
def add_peak(canvas, centre, area, fwhm, eta, resolution, two_theta, cotangent):
    """Add one pseudo-Voigt of the given area, convolved with the kernel of axial divergence.

    Parameters
    ----------
    canvas : Canvas
    centre : float
        2θ in degrees where it appears.
    area, fwhm, eta : float
    resolution : Resolution
        For the asymmetry: (√(tail/ε) − 1)/|tail| for ε from 0 to tail, or Finger, Cox & Jephcoat's.
    two_theta, cotangent : float
        2θ of the reflection in degrees, and its cotangent: from them the asymmetry follows.
    """
    n_nodes, tail, mean, variance = _set_nodes(two_theta, cotangent, fwhm, eta, resolution, canvas)
    grid, reach = canvas.grid, _reach(fwhm, eta)
    first = max(0, math.ceil((centre + min(0.0, tail) - reach - grid.start) / grid.step - 1e-9))
    last = min(
        grid.n_points - 1, math.floor((centre + max(0.0, tail) + reach - grid.start) / grid.step + 1e-9)
    )
    if first > last:
        return
    gauss = area * (1 - eta) * _GAUSS_TOP / fwhm
    lorentz = area * eta * 2 / (math.pi * fwhm)
    # The Lorentzian's mean and variance say enough only some tails away from it.
    low = centre - _NEAR * fwhm + (2 * tail if tail < 0 else -abs(tail))
    high = centre + _NEAR * fwhm + (2 * tail if tail > 0 else abs(tail))
    inner = min(max(first, math.ceil((low - grid.start) / grid.step)), last + 1)
    outer = max(min(last, math.floor((high - grid.start) / grid.step)), inner - 1)
    pattern, ramp = canvas.pattern, canvas.ramp
    near, steps = pattern[inner : outer + 1], ramp[: outer + 1 - inner]
    origin = grid.start + inner * grid.step - centre
    for node in range(n_nodes):
        weight = canvas.weights[node]
        _add_near(near, steps, origin - canvas.shifts[node], gauss * weight, lorentz * weight, fwhm)
    if lorentz > 0:
        left, right = pattern[first:inner], pattern[outer + 1 : last + 1]
        middle = grid.start - centre - mean
        _add_far(left, ramp[: len(left)], middle + first * grid.step, lorentz, fwhm, variance)
        _add_far(right, ramp[: len(right)], middle + (outer + 1) * grid.step, lorentz, fwhm, variance)


@compiled
def coarser(grid, factor):
    """Grid of so many steps a step, which begins `_BEYOND` of its own steps early and ends as late."""
    n_points = (grid.n_points - 2) // factor + 2
    start = grid.start - _BEYOND * factor * grid.step
    return Grid(start, factor * grid.step, n_points + 2 * _BEYOND)


@compiled_fastmath
def add_interpolated(canvas, factor, pattern):
    """Add what was drawn on a `coarser` grid, by Lagrange's polynomial through the six nearest points."""
    coarse = canvas.pattern
    for phase in range(factor):
        w0, w1, w2, w3, w4, w5 = _lagrange(phase / factor)
        for i in range((len(pattern) - phase + factor - 1) // factor):
            pattern[i * factor + phase] += (
                w0 * coarse[i]
                + w1 * coarse[i + 1]
                + w2 * coarse[i + 2]
                + w3 * coarse[i + 3]
                + w4 * coarse[i + 4]
                + w5 * coarse[i + 5]
            )


@compiled
def _lagrange(x):
    """Weights of the points −2 … 3 at 0 ≤ x < 1."""
    a, b, c, d, e, f = x + 2, x + 1, x, x - 1, x - 2, x - 3
    return (
        np.float32(b * c * d * e * f / -120),
        np.float32(a * c * d * e * f / 24),
        np.float32(a * b * d * e * f / -12),
        np.float32(a * b * c * e * f / 12),
        np.float32(a * b * c * d * f / -24),
        np.float32(a * b * c * d * e / 120),
    )
