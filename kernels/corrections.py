"""What turns |F|² into the intensity of a powder line: scalar functions, compiled with Numba."""

import math

import numpy as np

from hxrd.kernels.compiled import compiled

LARGEST_MU_R = 10.0
# −ln(transmission)/μR of a cylinder as a double Chebyshev series over x = 1.8 μR/(μR + 8), one row a degree,
# and y = (1 + 2/π) θ/(θ + 1), both mapped from 0 … 1, with θ in radians: fitted to the integral of
# tests/naive.py, from which it differs by less than 1.2e-4 up to LARGEST_MU_R, by 2e-5 up to μR = 3.
# (The usual closed form, of Lobanov & Alte da Veiga, differs by up to 1.4 % and jumps at μR = 3.)
_MU_R_SCALE, _THETA_SCALE = 8.0, 1.0
_CYLINDER = 1e-6 * np.array([
    [1113044, -234575, -12700, 11100, 1030, 3909, 315, 689, 185, 53, 84, -9, 22, -1, 2, 1, -1, 1],
    [-585804, -104363, 32283, 3445, -5626, 2070, -1499, 496, -31, 0, 107, -28, 40, -2, 6, 4, -1, 2],
    [11952, 122990, 24312, -13404, -1989, -139, -1456, 201, -295, -43, 16, -43, 23, -8, 5, 2, 0, 2],
    [13502, -18426, -21069, -1260, 5300, 341, 217, 417, -145, 67, -10, -23, 11, -12, 3, -1, -1, 1],
    [179, -8504, 3075, 4501, -809, -1428, 179, -36, -80, 76, -21, 5, 7, -6, 3, -2, 0, 0],
    [-787, 3276, 2616, -985, -1249, 408, 291, -138, 19, 17, -25, 11, -2, -2, 2, -1, 1, 0],
    [-511, 433, -1152, -739, 492, 358, -165, -49, 53, -15, -3, 8, -5, 1, 1, -1, 1, 0],
    [218, -221, -152, 382, 191, -212, -86, 66, 3, -16, 8, 0, -2, 2, -1, 0, 0, 0],
    [85, -103, 166, 60, -149, -45, 79, 14, -24, 3, 4, -3, 1, 1, -1, 0, 0, 0],
    [-43, 6, 11, -74, -14, 60, 7, -28, 1, 8, -2, -1, 1, 0, 0, 0, 0, 0],
    [-9, 34, -18, -1, 31, 0, -23, 1, 9, -2, -2, 1, 0, 0, 0, 0, 0, 0],
    [4, -3, -6, 11, -1, -13, 3, 8, -2, -3, 1, 0, 0, 0, 0, 0, 0, 0],
    [2, -7, 3, 1, -5, 2, 5, -2, -3, 1, 1, -1, 0, 0, 0, 0, 0, 0],
    [0, 1, 2, -2, 0, 2, -1, -2, 1, 1, -1, 0, 0, 0, 0, 0, 0, 0],
])  # fmt: skip
CYLINDER_TERMS = _CYLINDER.shape[1]


@compiled
def lorentz_polarization(sin_theta, cos_theta, ratio):
    """Lorentz and polarisation factors of a powder: (1 + A cos² 2θ)/((1 + A) sin θ sin 2θ).

    Parameters
    ----------
    sin_theta, cos_theta : float
    ratio : float
        A, the intensity polarised in the plane of diffraction over that perpendicular to it: 0 for
        neutrons, 1 for a tube, cos² 2θ_m behind a monochromator (Azaroff 1955, Acta Cryst. 8, 701).
    """
    cos_two_theta = 1.0 - 2.0 * sin_theta * sin_theta
    polarization = (1.0 + ratio * cos_two_theta * cos_two_theta) / (1.0 + ratio)
    return polarization / (2.0 * sin_theta * sin_theta * cos_theta)


@compiled
def march_dollase(cos_squared, r):
    """Weight of a reflection in a textured sample of rotational symmetry: (r² cos² α + sin² α/r)^(−3/2).

    Averaged over all directions it is 1. Source: March (1932), Z. Kristallogr. 81, 285; Dollase (1986),
    J. Appl. Cryst. 19, 267.

    Parameters
    ----------
    cos_squared : float
        Of the angle α between the reflection and the preferred plane's normal.
    r : float
        March coefficient: below 1 plates that lie flat in reflection geometry, above 1 needles, 1 no texture.
    """
    x = r * r * cos_squared + (1.0 - cos_squared) / r
    return 1.0 / (x * math.sqrt(x))


@compiled
def cylinder_series(mu_r, series):
    """Prepare `cylinder_transmission` for all lines of one sample.

    Parameters
    ----------
    mu_r : float
        Linear absorption coefficient times the cylinder's radius; above `LARGEST_MU_R` that counts.
    series : ndarray, shape (CYLINDER_TERMS,)
        Written.
    """
    mu_r = min(mu_r, LARGEST_MU_R)
    x = 2.0 * (1.0 + _MU_R_SCALE / LARGEST_MU_R) * mu_r / (mu_r + _MU_R_SCALE) - 1.0
    for j in range(CYLINDER_TERMS):
        last, before, series[j] = 1.0, x, 0.0  # T₀ and T₋₁, then Tₙ₊₁ = 2xTₙ − Tₙ₋₁
        for i in range(len(_CYLINDER)):
            series[j] -= mu_r * _CYLINDER[i, j] * last
            last, before = 2.0 * x * last - before, last


@compiled
def cylinder_transmission(series, theta):
    """Part of a diffracted beam that leaves a fully bathed cylinder (Debye–Scherrer geometry), 0 to 1.

    Absolute, 1 without absorption: the mean over the cylinder's cross-section of exp(−μ·path), in and out;
    *International Tables* C (1992), Section 6.3.3.

    Parameters
    ----------
    series : ndarray, shape (CYLINDER_TERMS,)
        Of `cylinder_series`.
    theta : float
        Radians.
    """
    y = 2.0 * (1.0 + _THETA_SCALE / (0.5 * math.pi)) * theta / (theta + _THETA_SCALE) - 1.0
    logarithm = 0.0
    last, before = 1.0, y
    for term in series:
        logarithm += term * last
        last, before = 2.0 * y * last - before, last
    return math.exp(logarithm)
