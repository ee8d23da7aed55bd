"""The slow and obvious powder pattern: an independent truth for `hxrd.physics` and `hxrd.kernels.powder`.

Everything is written from the textbook in plain numpy, with nothing of hxrd's own code: reflections are
a sum over the whole reflection sphere, equivalent reflections are found by applying every operation of the
Laue class, and the axial divergence is a numerical integral. Where hxrd offers a choice (support of a
peak, edges of the range), the definition is stated here and must be the same there.

Angles are 2θ in degrees, lengths Å, scattering lengths fm.
"""

from dataclasses import dataclass

import gemmi
import numpy as np
import periodictable

SUPPORT_CUT = 1e-3  # a peak ends where both of its components fall below this part of its height
ABSENT = 1e-20  # of (Σ occupancy·|f|)²: below it atoms on special positions cancel exactly
GENERAL_POSITIONS = np.random.default_rng(0).random((8, 3))


@dataclass(frozen=True)
class ReflectionSet:
    """One set of reflections equivalent under the Laue class; `hkl` is its lexicographically largest.

    It is absent by the space group, or by the special positions of its atoms (both are among the
    reflection conditions of International Tables A).
    """

    hkl: tuple[int, int, int]
    multiplicity: int
    d_spacing: float
    two_theta: float
    f_squared: float
    intensity: float
    absent: bool


# --- the lattice -------------------------------------------------------------------------------------


def reciprocal_metric(cell):
    """Reciprocal metric tensor (Å⁻²) from a, b, c, α, β, γ, by Cartesian cell vectors."""
    a, b, c = cell[:3]
    alpha, beta, gamma = np.radians(cell[3:])
    vector_a = np.array([a, 0.0, 0.0])
    vector_b = np.array([b * np.cos(gamma), b * np.sin(gamma), 0.0])
    c_x = np.cos(beta)
    c_y = (np.cos(alpha) - np.cos(beta) * np.cos(gamma)) / np.sin(gamma)
    vector_c = c * np.array([c_x, c_y, np.sqrt(1 - c_x**2 - c_y**2)])
    reciprocal = np.linalg.inv(np.array([vector_a, vector_b, vector_c])).T
    return reciprocal @ reciprocal.T


def reflection_sphere(cell, d_min, d_max):
    """All hkl with d_min ≤ d ≤ d_max, both Friedel mates, shape (n, 3), and their d."""
    limits = np.floor(np.asarray(cell[:3]) / d_min + 1e-9).astype(int)
    axes = [np.arange(-limit, limit + 1) for limit in limits]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    hkl = hkl[np.any(hkl != 0, axis=1)]
    d = 1 / np.sqrt(np.einsum("ni,ij,nj->n", hkl, reciprocal_metric(cell), hkl))
    keep = (d >= d_min) & (d <= d_max)
    return hkl[keep], d[keep]


def laue_class(rotations):
    """The distinct rotations with the inversion added: integer matrices acting as h' = h R."""
    rotations = np.asarray(rotations, dtype=int)
    return np.unique(np.concatenate([rotations, -rotations]), axis=0)


def largest_equivalent(hkl, laue):
    """Label every reflection by the lexicographically largest of its equivalents, shape (n, 3)."""
    base = 4 * int(np.abs(hkl).max()) + 1
    weights = np.array([base**2, base, 1])
    best = None
    for rotation in laue:
        code = hkl @ rotation @ weights
        best = code if best is None else np.maximum(best, code)
    # undo the code: each digit lies in (−base/2, base/2)
    half = base // 2
    shifted = best + half * (base**2 + base + 1)
    return np.stack([shifted // base**2, shifted // base % base, shifted % base], axis=1) - half


# --- the structure factor ----------------------------------------------------------------------------


def scattering_length(species, table):
    """Bound coherent scattering length in fm, complex with the table ``periodictable``."""
    if table == "sears1992":
        return complex(gemmi.Element(species).neutron92.get_coefs()[0])
    digits = "".join(letter for letter in species if letter.isdigit())
    element = getattr(periodictable, species.removeprefix(digits))
    return complex((element[int(digits)] if digits else element).neutron.b_c_complex)


def form_factor(species, s_squared):
    """International Tables 1992, Vol. C, Table 6.1.1.4: Σ a exp(−b s²) + c, in electrons."""
    symbol = species.lstrip("0123456789")
    a1, a2, a3, a4, b1, b2, b3, b4, c = gemmi.Element("H" if symbol == "D" else symbol).it92.get_coefs()
    pairs = ((a1, b1), (a2, b2), (a3, b3), (a4, b4))
    return sum(a * np.exp(-b * s_squared) for a, b in pairs) + c


def scattering_powers(crystal, instrument, s_squared):
    """Occupancy · (b or f) · exp(−B s²) of every site at every reflection, shape (n, n_sites)."""
    columns = {}
    for species in set(crystal.species):
        if instrument.probe == "neutron":
            length = scattering_length(species, instrument.scattering_table)
            columns[species] = np.full(len(s_squared), length)
        else:
            columns[species] = form_factor(species, s_squared).astype(complex)
    power = np.stack([columns[species] for species in crystal.species], axis=1)
    debye_waller = np.exp(-np.outer(s_squared, crystal.b_iso))
    return np.asarray(crystal.occupancy) * debye_waller * power


def f_squared(crystal, instrument, hkl, d, chunk=2**21):
    """|F|² of every reflection and the largest that it could be, both of shape (n,)."""
    step = max(1, chunk // len(crystal.species))
    result, limit = np.empty(len(hkl)), np.empty(len(hkl))
    for start in range(0, len(hkl), step):
        part = slice(start, start + step)
        power = scattering_powers(crystal, instrument, 1 / (4 * d[part] ** 2))
        phase = np.exp(2j * np.pi * (hkl[part] @ np.asarray(crystal.positions).T))
        result[part] = np.abs(np.sum(power * phase, axis=1)) ** 2
        limit[part] = np.sum(np.abs(power), axis=1) ** 2
    return result, limit


def systematically_absent(hkl, crystal):
    """Whether atoms on any general position, repeated by the space group, would scatter nothing."""
    largest = np.zeros(len(hkl))
    for position in GENERAL_POSITIONS:
        images = np.asarray(crystal.rotations) @ position + np.asarray(crystal.translations)
        amplitude = np.abs(np.exp(2j * np.pi * (hkl @ images.T)).mean(axis=1))
        largest = np.maximum(largest, amplitude)
    return largest < 1e-3


def lorentz_factor(two_theta, probe):
    """Lorentz factor of a powder, times the polarisation of an unpolarised beam for X-rays."""
    theta = np.radians(two_theta) / 2
    lorentz = 1 / (np.sin(theta) * np.sin(2 * theta))
    return lorentz if probe == "neutron" else lorentz * (1 + np.cos(2 * theta) ** 2) / 2


def reflections(crystal, instrument, wavelength, limits=None):
    """Every set of equivalent reflections centred within `limits` (2θ), absent ones too, by 2θ."""
    start, stop = limits or instrument.two_theta[:2]
    d_min, d_max = (wavelength / 2 / np.sin(np.radians(angle) / 2) for angle in (stop, start))
    hkl, d = reflection_sphere(crystal.cell, d_min * (1 - 1e-12), d_max * (1 + 1e-12))
    if len(hkl) == 0:
        return []
    squares, limits = f_squared(crystal, instrument, hkl, d)
    labels = largest_equivalent(hkl, laue_class(crystal.rotations))
    names, members, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    members = members.ravel()
    mean_square = np.bincount(members, squares) / counts
    mean_limit = np.bincount(members, limits) / counts
    absent = systematically_absent(names, crystal) | (mean_square < ABSENT * mean_limit)
    mean_d = 1 / np.sqrt(np.bincount(members, d**-2.0) / counts)
    two_theta = 2 * np.degrees(np.arcsin(np.minimum(wavelength / (2 * mean_d), 1)))
    intensity = counts * mean_square * lorentz_factor(two_theta, instrument.probe)
    return [
        ReflectionSet(
            hkl=tuple(int(index) for index in names[i]),
            multiplicity=int(counts[i]),
            d_spacing=float(mean_d[i]),
            two_theta=float(two_theta[i]),
            f_squared=float(mean_square[i]),
            intensity=float(intensity[i]),
            absent=bool(absent[i]),
        )
        for i in np.argsort(two_theta, kind="stable")
    ]


# --- the profile -------------------------------------------------------------------------------------


def thompson_cox_hastings(two_theta, instrument):
    """Full width Γ (deg) and mixing η: Thompson, Cox & Hastings, J. Appl. Cryst. 20 (1987) 79."""
    theta = np.radians(two_theta) / 2
    tan, cos = np.tan(theta), np.cos(theta)
    gauss_squared = instrument.caglioti_u * tan**2 + instrument.caglioti_v * tan + instrument.caglioti_w
    gauss = np.sqrt(max(gauss_squared, 0.0))
    lorentz = instrument.lorentzian_x / cos + instrument.lorentzian_y * tan
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


def pseudo_voigt(x, fwhm, eta):
    """η Lorentzian + (1 − η) Gaussian, each of unit area and of full width `fwhm`."""
    lorentzian = 2 / (np.pi * fwhm) / (1 + 4 * (x / fwhm) ** 2)
    gaussian = 2 / fwhm * np.sqrt(np.log(2) / np.pi) * np.exp(-4 * np.log(2) * (x / fwhm) ** 2)
    return eta * lorentzian + (1 - eta) * gaussian


def half_width(fwhm, eta):
    """How far from its centre a symmetric peak reaches: the farther of the two components."""
    gauss_reach = fwhm / 2 * np.sqrt(np.log2(1 / SUPPORT_CUT))
    height = pseudo_voigt(0.0, fwhm, eta)
    ratio = eta * 2 / (np.pi * fwhm) / (SUPPORT_CUT * height)
    return max(gauss_reach, fwhm / 2 * np.sqrt(max(0.0, ratio - 1)))


def largest_shift(two_theta, instrument):
    """ε_m in degrees: how far axial divergence drags a peak, to low angles below 90°."""
    return -0.5 * np.degrees(instrument.axial_divergence**2 / np.tan(np.radians(two_theta)))


def peak_profile(grid, centre, instrument):
    """A peak of unit area at every point of `grid`, zero outside its support.

    The kernel (√(ε_m/ε) − 1)/|ε_m| on 0 … ε_m becomes 2 (1 − u) du with ε = ε_m u², which is smooth.
    """
    fwhm, eta = thompson_cox_hastings(centre, instrument)
    shift = largest_shift(centre, instrument)
    reach = half_width(fwhm, eta)
    inside = (grid >= centre + min(0.0, shift) - reach) & (grid <= centre + max(0.0, shift) + reach)
    profile = np.zeros(len(grid))
    n_panels = 1 + int(np.ceil(8 * abs(shift) / fwhm))
    nodes, weights = np.polynomial.legendre.leggauss(12)
    for panel in range(n_panels):
        u = (panel + (nodes + 1) / 2) / n_panels
        kernel = 2 * (1 - u) * weights / 2 / n_panels
        offset = grid[inside, None] - centre - shift * u**2
        profile[inside] += pseudo_voigt(offset, fwhm, eta) @ kernel
    return profile


def pattern(crystal, instrument):
    """The pattern on the instrument's grid, divided by its maximum.

    Lines centred on the grid, its ends included, contribute; those centred beyond it do not, although
    their flanks would reach in: so the published patterns were made (see test_seed_patterns).
    """
    start, stop, step = instrument.two_theta
    grid = start + step * np.arange(round((stop - start) / step) + 1)
    intensity = np.zeros(len(grid))
    for wavelength, weight in instrument.wavelengths:
        for reflection in reflections(crystal, instrument, wavelength, (grid[0], grid[-1])):
            if not reflection.absent:
                profile = peak_profile(grid, reflection.two_theta, instrument)
                intensity += weight * reflection.intensity * profile
    return intensity / intensity.max()
