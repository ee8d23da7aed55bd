"""The shape of one powder peak, compiled with Numba: width, asymmetry and finite support.

A Thompson–Cox–Hastings pseudo-Voigt convolved with an axial-divergence kernel, on an even 2θ grid.
Numba's cache on disk looks at one file at a time: after a change here, touch powder.py as well.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

# A profile ends where its Gaussian and its Lorentzian part, each by itself, have fallen to this share
# of its top.
PROFILE_CUT = 1e-3
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
def peak_widths(theta, resolution):
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
def add_peak(pattern, grid, centre, area, fwhm, eta, tail):
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
