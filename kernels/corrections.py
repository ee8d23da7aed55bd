"""What turns |F|² into the intensity of a powder line: scalar functions, compiled with Numba."""

import math

from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def cylinder_absorption(mu_r, sin_squared_theta):
    """Part of the diffracted beam that leaves a fully bathed cylinder (Debye–Scherrer geometry), 0 to 1.

    Absolute: 1 without absorption. Fitted by Lobanov & Alte da Veiga (1998), 6th European Powder Diffraction
    Conference, abstract P12-16, as GSAS-II carries it; within 1.5 % of the integral up to μR = 10.

    Parameters
    ----------
    mu_r : float
        Linear absorption coefficient times the radius.
    sin_squared_theta : float
    """
    s = sin_squared_theta
    if mu_r <= 3.0:
        k1 = (25.99978 - 0.01911 * s**0.25) * math.exp(-0.024551 * s) + 0.109561 * math.sqrt(s) - 26.04556
        k2 = -0.02489 - 0.39499 * s + 1.219077 * s**1.5 - 1.31268 * s**2 + 0.871081 * s**2.5 - 0.2327 * s**3
        k3 = 0.003045 + 0.018167 * s - 0.03305 * s**2
        return math.exp(-mu_r * (16.0 / (3.0 * math.pi) + mu_r * (k1 + mu_r * (k2 + mu_r * k3))))
    k1 = 1.433902 + s * (11.07504 + s * (-8.77629 + s * (10.02088 - s * 3.36778)))
    k2 = (0.013869 - 0.01249 * s) * math.exp(3.27094 * s)
    k2 += (0.337894 + 13.77317 * s) / (1.0 + 11.53544 * s) ** 1.555039
    k3 = 1.933433 / (1.0 + 23.12967 * s) ** 1.686715 - 0.13576 * math.sqrt(s) + 1.163198
    k4 = 0.044365 - 0.04259 / (1.0 + 0.41051 * s) ** 148.4202
    return ((k1 - k4) / (1.0 + k2 * (mu_r - 3.0)) ** k3 + k4) / 100.0
