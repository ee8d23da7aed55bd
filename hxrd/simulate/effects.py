"""The effects of a measurement on a pattern, each with the distributions that it is drawn from.

An effect is one small struct. A pair is a range: drawn evenly, or evenly in the logarithm where its
description says "log".
"""

from typing import ClassVar

import msgspec

Range = tuple[float, float]

LARGEST_IMPURITY = 0.45  # summed weight: the labelled phase must stay the main one
LARGEST_B_ISO = 8.0  # Å²; beyond it, hardly a line is left
SMALLEST_TOTAL = 1000.0  # counts; below it, a pattern may have no count at all


def check(name: str, value: float | Range, least: float, most: float) -> None:
    """Raise ValueError where a value, or an end of a range, lies outside [least, most]."""
    if isinstance(value, tuple):
        if not least <= value[0] <= value[1] <= most:
            raise ValueError(f"{name} must be a range [low, high] within [{least:g}, {most:g}]")
    elif not least <= value <= most:
        raise ValueError(f"{name} must lie in [{least:g}, {most:g}]")


class _Effect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of an augmentation: applied to each pattern with a probability."""

    probability: float = 1.0

    limits: ClassVar[dict[str, Range]] = {}

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn; msgspec reports a ValueError as a validation error."""
        for name, (least, most) in {"probability": (0.0, 1.0), **self.limits}.items():
            check(name, getattr(self, name), least, most)


class CrystalliteSize(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lorentzian broadening K λ/(L cosθ) by small crystallites, K = 0.9 (Scherrer 1918; Patterson 1939).

    Parameters
    ----------
    size : Range
        L in Å, log.
    """

    size: Range

    limits: ClassVar = {"size": (10, 1e6)}


class Microstrain(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lorentzian broadening 4 ε tanθ by a spread of d-spacings (Stokes & Wilson 1944).

    Parameters
    ----------
    strain : Range
        ε, the apparent strain, log.
    """

    strain: Range

    limits: ClassVar = {"strain": (1e-7, 0.05)}


class Texture(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Preferred orientation (March 1932; Dollase 1986).

    Parameters
    ----------
    march : Range
        March coefficient r, log; 1 is no texture, below 1 plates, above 1 needles.
    planes : tuple of (h, k, l)
        Preferred planes to choose from, all equally likely.
    """

    march: Range
    planes: tuple[tuple[int, int, int], ...] = ((0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 1))

    limits: ClassVar = {"march": (0.1, 10)}

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        _Effect.__post_init__(self)
        if not self.planes or any(plane == (0, 0, 0) for plane in self.planes):
            raise ValueError("planes must name at least one plane, and none of them 0 0 0")


class LatticeStrain(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Edges and angles off their listed values, as solid solution, stress or a calculated cell make them.

    Parameters
    ----------
    sigma : float
        Standard deviation of the relative change of each edge that the crystal system leaves free, and, in
        radians, of half the change of each free angle (which is the shear strain).
    """

    sigma: float

    limits: ClassVar = {"sigma": (0, 0.05)}


class ThermalExpansion(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every edge times 1 + α (T − T₀).

    Parameters
    ----------
    temperature : Range
        T in K.
    coefficient : Range
        α, the linear coefficient in 1/K, log.
    reference : float
        T₀ in K.
    """

    temperature: Range
    coefficient: Range
    reference: float = 295.0

    limits: ClassVar = {"temperature": (0, 3000), "coefficient": (1e-8, 1e-4), "reference": (0, 3000)}


class DisplacementJitter(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Displacement parameters B off their listed values, alike for all atoms of a species.

    Parameters
    ----------
    sigma : float
        Standard deviation of ln B, drawn for each species of a crystal; B grows to `LARGEST_B_ISO` at most.
    missing : Range
        Å²: what stands for a B of 0 (a record without one); one value a pattern, before the jitter.
    """

    sigma: float
    missing: Range = (0.0, 0.0)

    limits: ClassVar = {"sigma": (0, 1), "missing": (0, LARGEST_B_ISO)}


class ZeroShift(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The 2θ zero off: all lines shifted alike.

    Parameters
    ----------
    sigma : float
        Standard deviation in degrees.
    """

    sigma: float

    limits: ClassVar = {"sigma": (0, 1)}


class SampleDisplacement(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sample off the axis: lines shifted by an angle times cosθ.

    Parameters
    ----------
    sigma : float
        Standard deviation of that angle, (180/π)·2s/R for a sample s off at a radius R, in degrees.
    """

    sigma: float

    limits: ClassVar = {"sigma": (0, 1)}


class Absorption(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Absorption in a cylindrical sample (Debye–Scherrer geometry).

    Parameters
    ----------
    mu_r : Range
        Linear absorption coefficient times the radius.
    """

    mu_r: Range

    limits: ClassVar = {"mu_r": (0, 10)}


class Impurity(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Other crystals of the same batch mixed in.

    Parameters
    ----------
    weight_fraction : Range
        Of each impurity, log.
    phases : int
        The most impurities of a pattern; each of them is there with `probability`.
    """

    weight_fraction: Range
    phases: int = 1

    limits: ClassVar = {"weight_fraction": (1e-5, LARGEST_IMPURITY)}

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        _Effect.__post_init__(self)
        if not 1 <= self.phases <= 8:
            raise ValueError("phases must lie in [1, 8]")
        if self.phases * self.weight_fraction[1] > LARGEST_IMPURITY:
            raise ValueError(
                f"weight_fraction times phases must not pass {LARGEST_IMPURITY:g}: the labelled phase leads"
            )


class Background(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Smooth background: level · (1 + Σ cₙ Tₙ(x) + hump + rise), with x from −1 to 1 over the range.

    Parameters
    ----------
    level : Range
        Relative to the highest point of the diffraction pattern, log.
    curve : float
        Chebyshev coefficients c₁…c₄ are drawn evenly within ± curve/n².
    hump : Range
        Height of a broad Gaussian, as of glass or a short-range order.
    hump_d_spacing : Range
        Å: λ = 2d sinθ is its centre.
    hump_fwhm : Range
        Degrees.
    rise : Range
        Height of the exponential rise to low angles, as of air and small-angle scattering.
    rise_decay : Range
        Degrees in which the rise falls to 1/e.
    """

    level: Range
    curve: float = 0.0
    hump: Range = (0.0, 0.0)
    hump_d_spacing: Range = (2.0, 5.0)
    hump_fwhm: Range = (5.0, 20.0)
    rise: Range = (0.0, 0.0)
    rise_decay: Range = (2.0, 10.0)

    limits: ClassVar = {
        "level": (1e-6, 100),
        "curve": (0, 0.7),  # the sum of the four, 205/144 times it, stays below 1
        "hump": (0, 100),
        "hump_d_spacing": (0.1, 100),
        "hump_fwhm": (0.5, 180),
        "rise": (0, 1000),
        "rise_decay": (0.1, 180),
    }


class Incoherent(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Incoherent neutron scattering of all elements (large for H), at its physical level; none for X-rays.

    Parameters
    ----------
    factor : Range
        Of the tabulated (bound-atom) cross sections.
    """

    factor: Range = (1.0, 1.0)

    limits: ClassVar = {"factor": (0, 10)}


class Counting(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Poisson noise.

    Parameters
    ----------
    total : Range
        Expected counts of all measured points together, log.
    """

    total: Range

    limits: ClassVar = {"total": (SMALLEST_TOTAL, 1e12)}


class Truncation(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The range cut at its ends; the points beyond are zero, and masked.

    Parameters
    ----------
    low, high : Range
        Degrees cut off at either end.
    """

    low: Range = (0.0, 0.0)
    high: Range = (0.0, 0.0)

    limits: ClassVar = {"low": (0, 180), "high": (0, 180)}


class MaskedRegions(_Effect, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gaps, as where a detector bank is dead or a line of the sample holder was cut out.

    Parameters
    ----------
    most : int
        1 to `most` gaps, all numbers equally likely, placed evenly over the range.
    width : Range
        Degrees, log.
    """

    width: Range
    most: int = 1

    limits: ClassVar = {"width": (1e-3, 90)}

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        _Effect.__post_init__(self)
        if not 1 <= self.most <= 16:
            raise ValueError("most must lie in [1, 16]")
