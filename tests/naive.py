"""The slow and obvious powder pattern: an independent truth for `hxrd.physics` and `hxrd.kernels.powder`.

Everything is written from the textbook in plain numpy, with nothing of hxrd's own code: reflections are
a sum over the whole reflection sphere, equivalent reflections are found by applying every operation of the
Laue class, and the axial divergence is a numerical integral. Where hxrd offers a choice (support of a
peak, edges of the range), the definition is stated here and must be the same there.

Angles are 2θ in degrees, lengths Å, scattering lengths fm.
"""

from dataclasses import dataclass
from itertools import pairwise

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


def lorentz_factor(two_theta, probe, ratio=1.0):
    """Lorentz factor of a powder, for X-rays times their polarisation factor.

    `ratio` is the intensity polarised in the plane of diffraction over that perpendicular to it.
    """
    theta = np.radians(two_theta) / 2
    lorentz = 1 / (np.sin(theta) * np.sin(2 * theta))
    return lorentz if probe == "neutron" else lorentz * (1 + ratio * np.cos(2 * theta) ** 2) / (1 + ratio)


def polarization_ratio(instrument):
    """A perfect mosaic monochromator weakens what is polarised in its plane by cos² 2θ_m."""
    perpendicular = instrument.polarization
    in_plane = (1 - perpendicular) * np.cos(np.radians(instrument.monochromator_two_theta)) ** 2
    return in_plane / perpendicular


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
    ratio = polarization_ratio(instrument)
    intensity = counts * mean_square * lorentz_factor(two_theta, instrument.probe, ratio)
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


# --- the sample --------------------------------------------------------------------------------------


def cylinder_absorption(mu_r, two_theta, n_radii=60, n_angles=480):
    """Mean of exp(−μ·path) over the cross-section of a bathed cylinder, by a sum over the disc.

    The radius is r = 1 − u³, which gathers its Gauss–Legendre nodes at the rim, where the paths vary most.
    """
    nodes, weights = np.polynomial.legendre.leggauss(n_radii)
    u = (nodes + 1) / 2
    radius = 1 - u**3
    share = weights / 2 * 3 * u**2 * 2 * radius
    angle = 2 * np.pi * (np.arange(n_angles) + 0.5) / n_angles
    x, y = radius[:, None] * np.cos(angle), radius[:, None] * np.sin(angle)
    cos, sin = np.cos(np.radians(two_theta)), np.sin(np.radians(two_theta))
    along, across = x * cos + y * sin, y * cos - x * sin
    path_in = x + np.sqrt(np.maximum(1 - y**2, 0))
    path_out = np.sqrt(np.maximum(1 - across**2, 0)) - along
    return float(share @ np.exp(-mu_r * (path_in + path_out)).mean(axis=1))


def march_dollase(crystal, hkl, texture):
    """Mean over the distinct equivalents of hkl of (r² cos² α + sin² α/r)^(−3/2)."""
    r, plane = texture[0], np.asarray(texture[1:], dtype=float)
    metric = reciprocal_metric(crystal.cell)
    equivalents = np.unique(np.array(hkl) @ laue_class(crystal.rotations), axis=0)
    cos_squared = (equivalents @ metric @ plane) ** 2 / (plane @ metric @ plane)
    cos_squared /= np.einsum("ni,ij,nj->n", equivalents, metric, equivalents)
    return float(np.mean((r**2 * cos_squared + (1 - cos_squared) / r) ** -1.5))


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
    """ε_m in degrees: how far axial divergence drags a peak, to low angles below 90°.

    With the heights of Finger, Cox & Jephcoat, J. Appl. Cryst. 27 (1994) 892: to the angle 2φ at which the
    Debye–Scherrer cone stands S + H over the plane, cos 2φ = cos 2θ √(1 + (S + H)²), or to the direct beam.
    """
    total = instrument.sample_half_height + instrument.detector_half_height
    if total:
        cos_two_phi = np.cos(np.radians(two_theta)) * np.sqrt(1 + total**2)
        return np.degrees(np.arccos(np.clip(cos_two_phi, -1, 1))) - two_theta
    return -0.5 * np.degrees(instrument.axial_divergence**2 / np.tan(np.radians(two_theta)))


def simple_nodes(two_theta, instrument, n_panels, panel_nodes, panel_weights):
    """The kernel (√(ε_m/ε) − 1)/|ε_m| on 0 … ε_m becomes 2 (1 − u) du with ε = ε_m u², which is smooth."""
    shift = largest_shift(two_theta, instrument)
    for panel in range(n_panels):
        u = (panel + panel_nodes) / n_panels
        yield shift * u**2, 2 * (1 - u) * panel_weights / n_panels


def finger_cox_jephcoat_nodes(two_theta, instrument, n_panels, panel_nodes, panel_weights):
    """D(2φ) = W/(h cos 2φ) as published, of unit area; 2φ = 2θ − v² takes away its infinity at 2θ.

    h = √(cos² 2φ/cos² 2θ − 1); W = 2 min(S, H) where h ≤ |S − H|, S + H − h beyond; above 90° mirrored.
    """
    if abs(largest_shift(two_theta, instrument)) < 1e-9:
        return [(np.zeros(1), np.ones(1))]
    # a point of a sample or detector is the limit of a very small one
    s, d = (max(h, 1e-7) for h in (instrument.sample_half_height, instrument.detector_half_height))
    two_theta_r = np.radians(min(two_theta, 180 - two_theta))
    sign = 1 if two_theta < 90 else -1
    v_of_height = [
        np.sqrt(max(0.0, two_theta_r - np.arccos(min(1.0, np.cos(two_theta_r) * np.sqrt(1 + height**2)))))
        for height in (0.0, abs(s - d), s + d)
    ]
    nodes = []
    for low, high in pairwise(v_of_height):
        width = (high - low) / n_panels
        for panel in range(n_panels if width > 0 else 0):
            v = low + width * (panel + panel_nodes)
            two_phi = two_theta_r - v**2
            height = np.sqrt(np.sin(v**2) * np.sin(two_theta_r + two_phi)) / np.cos(two_theta_r)
            seen = np.where(height <= abs(s - d), 2 * min(s, d), s + d - height)
            density = seen / (height * np.cos(two_phi)) * 2 * v
            nodes.append((-sign * np.degrees(v**2), density * width * panel_weights))
    area = sum(np.sum(weights) for _, weights in nodes)
    return [(shifts, weights / area) for shifts, weights in nodes]


def peak_profile(grid, centre, instrument, two_theta=None):
    """A peak of unit area at every point of `grid`, zero outside its support.

    Its support is that of the symmetric peak, `half_width`, laid at both ends of the asymmetry: at the
    centre and at centre + `largest_shift`. A peak moved by the sample or the zero keeps the width and the
    asymmetry of its own 2θ, which is `centre` where it is not given.
    """
    two_theta = centre if two_theta is None else two_theta
    fwhm, eta = thompson_cox_hastings(two_theta, instrument)
    shift = largest_shift(two_theta, instrument)
    reach = half_width(fwhm, eta)
    inside = (grid >= centre + min(0.0, shift) - reach) & (grid <= centre + max(0.0, shift) + reach)
    profile = np.zeros(len(grid))
    n_panels = 1 + int(np.ceil(8 * abs(shift) / fwhm))
    nodes, weights = np.polynomial.legendre.leggauss(12)
    tall = instrument.sample_half_height > 0 or instrument.detector_half_height > 0
    asymmetry = finger_cox_jephcoat_nodes if tall else simple_nodes
    for shifts, kernel in asymmetry(two_theta, instrument, n_panels, (nodes + 1) / 2, weights / 2):
        profile[inside] += pseudo_voigt(grid[inside, None] - centre - shifts, fwhm, eta) @ kernel
    return profile


def absolute_pattern(crystal, instrument, zero_shift=None, displacement=0.0, absorption=0.0, texture=None):
    """The pattern on the instrument's grid, Σ m|F|²·LP·profile (per degree).

    A line at 2θ appears at 2θ + zero_shift + displacement·cos θ (degrees; the instrument's zero shift where
    none is given). Lines that appear on the grid, its ends included, contribute; those beyond it do not,
    although their flanks would reach in: so the published patterns were made (see test_seed_patterns).
    `absorption` is the μR of a cylinder, `texture` a March coefficient and the preferred plane's h, k, l.
    """
    start, stop, step = instrument.two_theta
    grid = start + step * np.arange(round((stop - start) / step) + 1)
    zero_shift = instrument.zero_shift if zero_shift is None else zero_shift
    margin = abs(zero_shift) + abs(displacement)
    limits = (max(grid[0] - margin, 1e-3), min(grid[-1] + margin, 180.0))
    intensity = np.zeros(len(grid))
    for wavelength, weight in instrument.wavelengths:
        for reflection in reflections(crystal, instrument, wavelength, limits):
            two_theta = reflection.two_theta
            centre = two_theta + zero_shift + displacement * np.cos(np.radians(two_theta / 2))
            if reflection.absent or not grid[0] <= centre <= grid[-1]:
                continue
            height = weight * reflection.intensity
            if absorption:
                height *= cylinder_absorption(absorption, two_theta)
            if texture is not None:
                height *= march_dollase(crystal, reflection.hkl, texture)
            intensity += height * peak_profile(grid, centre, instrument, two_theta)
    return intensity


def pattern(crystal, instrument, **sample):
    """The absolute pattern divided by its maximum."""
    intensity = absolute_pattern(crystal, instrument, **sample)
    return intensity / intensity.max()
