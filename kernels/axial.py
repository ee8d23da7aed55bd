"""The asymmetry that axial divergence gives a powder peak, after Finger, Cox & Jephcoat, compiled with Numba.

A Debye–Scherrer cone of angle 2θ, seen by a detector slit of half height H from a sample of half height S on
a diffractometer of radius L, shows at every 2φ between 2θ and the angle where the cone leaves the slit
(nearer to 0° or 180°). With h the height over the equatorial plane, in units of L,

    cos 2φ = cos 2θ √(1 + h²)
    D(2φ) ∝ W(h)/(h cos 2φ),  W = 2 min(H, S) up to h = |H − S|, then H + S − h

which is infinite at 2φ = 2θ. As a density in h it is W/((1 + h²) sin 2φ), and with h = tan 2θ sin t

    D(2φ) d2φ ∝ W(h)/(1 + h²) dt,    sin 2φ = sin 2θ cos t,

which is smooth in both halves of W even where the cone closes on the beam (2φ = 0, h = tan 2θ).

Source: Finger, Cox & Jephcoat (1994), *J. Appl. Cryst.* **27**, 892–900.
"""

import math

import numpy as np

from hxrd.kernels.compiled import compiled

_LARGEST_RULE = 24  # nodes of one Gauss–Legendre rule; more nodes make several panels
_NARROW = 1e-9  # degrees; a shorter tail is none
_NO_PIECE = 1e-6  # of the whole range of t; a shorter piece is none


def _gauss_legendre_rules():
    """Rules for ∫₀¹, of 1 to `_LARGEST_RULE` nodes, one row a rule."""
    nodes = np.zeros((_LARGEST_RULE + 1, _LARGEST_RULE))
    weights = np.zeros_like(nodes)
    for size in range(1, _LARGEST_RULE + 1):
        x, w = np.polynomial.legendre.leggauss(size)
        nodes[size, :size], weights[size, :size] = (x + 1) / 2, w / 2
    return nodes, weights


_NODES, _WEIGHTS = _gauss_legendre_rules()


@compiled
def _shift_at(sine, cosine, sin_t):
    """How far below 2θ (degrees, positive) the cone is seen at height h = tan 2θ sin t, for 2θ ≤ 90°.

    tan(2θ − 2φ) from sin 2φ = sin 2θ cos t, without the cancellation that 2θ − 2φ itself would bring.
    """
    sin_phi = sine * math.sqrt(1.0 - sin_t * sin_t)
    rise = sine * sine * sin_t * sin_t  # cos² 2φ − cos² 2θ
    cos_phi = math.sqrt(cosine * cosine + rise)
    # sin(2θ − 2φ) = sin 2θ cos 2φ − cos 2θ sin 2φ, its difference of squares divided by the sum
    difference = rise / (sine * cos_phi + cosine * sin_phi)
    return math.degrees(math.atan2(difference, cosine * cos_phi + sine * sin_phi))


@compiled
def _reach(sine, cosine, height):
    """The sine of t where the cone leaves a height (of the radius), or closes on the beam below it."""
    return min(1.0, height * cosine / sine)


@compiled
def axial_span(two_theta, sample_half_height, detector_half_height):
    """Tell how far the asymmetry carries intensity away from 2θ, at most.

    Parameters
    ----------
    two_theta : float
        Degrees.
    sample_half_height, detector_half_height : float
        S/L and H/L, as parts of the radius.

    Returns
    -------
    float
        Degrees; negative (to low angles) below 90°, positive above, 0 where there is no asymmetry.
    """
    sine, cosine = math.sin(math.radians(two_theta)), abs(math.cos(math.radians(two_theta)))
    span = _shift_at(sine, cosine, _reach(sine, cosine, sample_half_height + detector_half_height))
    return -span if two_theta < 90.0 else span


@compiled
def _fill_piece(first, end, start, stop, total, flat, sine, cosine, sign, shifts, weights):
    """Nodes `first` to `end` over t from `start` to `stop`; `total` is H + S.

    `flat` is 2 min(H, S) where W falls, 0 where it is level. Returns the sum of the weights, which are
    not yet divided by it.
    """
    n_nodes = end - first
    n_panels = (n_nodes + _LARGEST_RULE - 1) // _LARGEST_RULE
    tangent = sine / cosine
    added = 0.0
    node = first
    for panel in range(n_panels):
        size = (n_nodes * (panel + 1)) // n_panels - (n_nodes * panel) // n_panels
        width = (stop - start) / n_panels
        for i in range(size):
            sin_t = math.sin(start + width * (panel + _NODES[size, i]))
            height = tangent * sin_t
            seen = (total - height) / flat if flat > 0.0 else 1.0
            shifts[node] = sign * _shift_at(sine, cosine, sin_t)
            weights[node] = seen * width * _WEIGHTS[size, i] / (1.0 + height * height)
            added += weights[node]
            node += 1
    return added


@compiled
def axial_nodes(two_theta, sample_half_height, detector_half_height, n, shifts, weights):
    """Fill a rule of n nodes for the convolution with the asymmetry: Σ weight · f(x − shift).

    Parameters
    ----------
    two_theta : float
        Degrees, between 0 and 180.
    sample_half_height, detector_half_height : float
        S/L and H/L, as parts of the radius, at least 0.
    n : int
        Number of nodes, at least 2.
    shifts : ndarray, shape (>= n,)
        Written: degrees from 2θ, negative below 90°. Zeros where there is no asymmetry to speak of.
    weights : ndarray, shape (>= n,)
        Written: they sum to 1. Where there is no asymmetry the first is 1 and the others are 0.
    """
    sine, cosine = math.sin(math.radians(two_theta)), abs(math.cos(math.radians(two_theta)))
    total = sample_half_height + detector_half_height
    flat = 2.0 * min(sample_half_height, detector_half_height)
    span = axial_span(two_theta, sample_half_height, detector_half_height)
    if abs(span) < _NARROW:
        shifts[:n], weights[:n] = 0.0, 0.0
        weights[0] = 1.0
        return
    sign = math.copysign(1.0, span)
    kink = math.asin(_reach(sine, cosine, total - flat))
    end = math.asin(_reach(sine, cosine, total))
    n_level = n  # where the cone closes before the kink, or the slit or the sample is a point
    if kink <= _NO_PIECE * end:
        n_level = 0
    elif end - kink > _NO_PIECE * end:
        # shifts go as t²: how fast they pass at a piece's end tells how many nodes it needs
        least = min(4, n // 3) if n > 2 else 1
        share = kink * kink / (kink * kink + (end - kink) * end)
        n_level = least + round((n - 2 * least) * share)
    summed = _fill_piece(0, n_level, 0.0, kink, total, 0.0, sine, cosine, sign, shifts, weights)
    summed += _fill_piece(n_level, n, kink, end, total, flat, sine, cosine, sign, shifts, weights)
    for i in range(n):
        weights[i] /= summed
