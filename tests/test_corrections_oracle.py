"""Every correction against its own truth: an integral done numerically, an analytic norm, a kept area."""

import math

import msgspec
import naive
import numpy as np
import pytest
from built_crystals import CARE_CASES
from scipy.integrate import quad

from hxrd.kernels import corrections
from hxrd.kernels.axial import axial_nodes, axial_span
from hxrd.physics.instrument import Instrument, load_instrument
from hxrd.simulate.simulate import conditions_of, simulated

TOLERANCE = 1e-4
PAPER = load_instrument("paper")
MONOCHROMATED = msgspec.structs.replace(load_instrument("cu-ka"), monochromator_two_theta=26.6)
HEIGHTS = [(0.04, 0.03), (0.03, 0.03), (0.02, 0.06), (0.08, 0.08), (0.001, 0.03), (0.03, 0.0), (1e-7, 1e-7)]
ANGLES = [1.0, 3.0, 8.0, 25.0, 60.0, 89.9, 90.0, 91.0, 130.0, 172.0]


def with_heights(sample: float, detector: float, **changes) -> Instrument:
    """The preset `paper` with the asymmetry of Finger, Cox & Jephcoat instead of its own."""
    heights = {"sample_half_height": sample, "detector_half_height": detector, "axial_divergence": 0.0}
    return msgspec.structs.replace(PAPER, **(heights | changes))


def nodes_of(two_theta: float, sample: float, detector: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    shifts, weights = np.full(n + 1, np.nan), np.full(n + 1, np.nan)
    axial_nodes(two_theta, sample, detector, n, shifts, weights)
    assert np.isnan([shifts[n], weights[n]]).all()  # nothing is written beyond the n asked for
    return shifts[:n], weights[:n]


# --- axial divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("sample", "detector"), HEIGHTS)
@pytest.mark.parametrize("two_theta", ANGLES)
def test_asymmetry_nodes_against_the_integrated_profile(two_theta, sample, detector):
    instrument = with_heights(sample, detector)
    fwhm, eta = naive.thompson_cox_hastings(two_theta, instrument)
    span = axial_span(two_theta, sample, detector)
    shifts, weights = nodes_of(two_theta, sample, detector, 8 + int(7 * abs(span) / fwhm))
    grid = np.linspace(two_theta + min(span, 0) - 1.5 * fwhm, two_theta + max(span, 0) + 1.5 * fwhm, 61)
    truth = naive.peak_profile(grid, two_theta, instrument)
    profile = naive.pseudo_voigt(grid[:, None] - two_theta - shifts, fwhm, eta) @ weights
    assert np.abs(profile - truth).max() < TOLERANCE * truth.max()


@pytest.mark.parametrize(("sample", "detector"), HEIGHTS)
@pytest.mark.parametrize("n", [2, 3, 7, 24, 25, 130])
def test_asymmetry_is_a_weighted_mean(sample, detector, n):
    for two_theta in ANGLES:
        shifts, weights = nodes_of(two_theta, sample, detector, n)
        span = axial_span(two_theta, sample, detector)
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        assert weights.min() >= 0
        assert np.all(shifts * np.sign(two_theta - 90) >= 0)
        assert np.abs(shifts).max() <= abs(span) + 1e-12
        assert span == pytest.approx(naive.largest_shift(two_theta, with_heights(sample, detector)), abs=1e-7)


def test_asymmetry_above_90_mirrors_that_below():
    below, weights = nodes_of(35.0, 0.03, 0.05, 12)
    above, mirrored = nodes_of(145.0, 0.03, 0.05, 12)
    np.testing.assert_allclose(above, -below, rtol=1e-12)
    np.testing.assert_allclose(mirrored, weights, rtol=1e-12)


@pytest.mark.parametrize(("two_theta", "sample", "detector"), [(90.0, 0.05, 0.05), (40.0, 0.0, 0.0)])
def test_no_asymmetry_is_one_node(two_theta, sample, detector):
    shifts, weights = nodes_of(two_theta, sample, detector, 5)
    np.testing.assert_array_equal(shifts, 0)
    np.testing.assert_array_equal(weights, [1, 0, 0, 0, 0])


def test_sample_and_detector_exchanged_give_the_same_asymmetry():
    for one, other in zip(nodes_of(20.0, 0.02, 0.05, 16), nodes_of(20.0, 0.05, 0.02, 16), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")  # the infinity at 2θ, as published
@pytest.mark.parametrize(("two_theta", "sample", "detector"), [(12.0, 0.04, 0.03), (40.0, 0.05, 0.05)])
def test_oracle_convolves_with_the_published_kernel(two_theta, sample, detector):
    """D(2φ) = W/(h cos 2φ) over 2φ by scipy, which knows nothing of the oracle's substitution."""
    instrument = with_heights(sample, detector)
    fwhm, eta = naive.thompson_cox_hastings(two_theta, instrument)
    theta_r = np.radians(two_theta)
    least, kink = (
        np.arccos(np.cos(theta_r) * np.sqrt(1 + height**2))
        for height in (sample + detector, sample - detector)
    )

    def integrand(two_phi, offset):
        height = np.sqrt((np.cos(two_phi) / np.cos(theta_r)) ** 2 - 1)
        seen = 2 * min(sample, detector) if two_phi > kink else sample + detector - height
        value = (
            1.0 if offset is None else naive.pseudo_voigt(offset - np.degrees(two_phi - theta_r), fwhm, eta)
        )
        return seen / (height * np.cos(two_phi)) * value

    # the last part, where D is infinite, as far as its square root reaches
    end = theta_r - 1e-14
    points = sorted({kink, *(theta_r - np.geomspace(1e-12, 0.9, 40) * (theta_r - least))} - {theta_r})
    area, _ = quad(integrand, least, end, args=(None,), points=points, limit=500)
    for offset in (-0.5, -0.1, 0.0, 0.1):
        truth, _ = quad(integrand, least, end, args=(offset,), points=points, limit=500)
        profile = naive.peak_profile(np.array([two_theta + offset]), two_theta, instrument)[0]
        assert profile == pytest.approx(truth / area, rel=3e-6)


@pytest.mark.parametrize("two_theta", [8.0, 30.0, 150.0])
def test_asymmetry_conserves_the_area(two_theta):
    fine = np.arange(two_theta - 8, two_theta + 8, 0.002)
    instrument = with_heights(0.05, 0.03, lorentzian_x=0.0, caglioti_u=0.0, caglioti_w=0.04)
    profile = naive.peak_profile(fine, two_theta, instrument)
    assert profile.sum() * 0.002 == pytest.approx(1, abs=1e-3)
    assert (fine @ profile) / profile.sum() < two_theta if two_theta < 90 else fine @ profile > two_theta


# --- intensity ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.0101, 0.8, 1.0])
def test_lorentz_and_polarisation(ratio):
    for two_theta in (0.5, 20.0, 90.0, 150.0, 179.0):
        theta = math.radians(two_theta / 2)
        factor = corrections.lorentz_polarization(math.sin(theta), math.cos(theta), ratio)
        assert factor == pytest.approx(naive.lorentz_factor(two_theta, "xray", ratio), rel=1e-12)
    assert naive.lorentz_factor(50.0, "neutron") == naive.lorentz_factor(50.0, "xray", 0.0)


@pytest.mark.parametrize("r", [0.1, 0.4, 0.9, 1.0, 1.3, 3.0, 10.0])
def test_texture_takes_as_much_as_it_gives(r):
    """∫ P(α) sin α dα = 1 from 0 to 90°, analytically."""
    total, _ = quad(lambda cosine: corrections.march_dollase(cosine**2, r), 0, 1, points=[0.01, 0.1, 0.5])
    assert total == pytest.approx(1, abs=1e-7)
    assert corrections.march_dollase(1.0, r) == pytest.approx(r**-3)
    assert corrections.march_dollase(0.0, r) == pytest.approx(r**1.5)


def transmission(mu_r: float, two_theta: float) -> float:
    series = np.full(corrections.CYLINDER_TERMS, np.nan)
    corrections.cylinder_series(mu_r, series)
    return corrections.cylinder_transmission(series, math.radians(two_theta / 2))


@pytest.mark.parametrize("mu_r", [0.02, 0.3, 1.0, 2.7, 6.0, 10.0])
def test_absorption_against_the_integral_over_the_cylinder(mu_r):
    for two_theta in (0.0, 2.0, 9.0, 33.0, 75.0, 121.0, 166.0, 180.0):
        truth = naive.cylinder_absorption(mu_r, two_theta, 160, 1600)
        assert transmission(mu_r, two_theta) == pytest.approx(truth, rel=1.2e-4 if mu_r > 3 else 2e-5)


def test_absorption_has_its_limits():
    assert transmission(0.0, 40.0) == 1
    mean_path = 16 / (3 * math.pi)  # of a cylinder, in radii
    assert -math.log(transmission(1e-4, 70.0)) / 1e-4 == pytest.approx(mean_path, rel=1e-3)
    angles = np.linspace(0, 180, 50)
    for stronger in (0.5, 2.0, 8.0):
        values = np.array([transmission(stronger, angle) for angle in angles])
        assert np.all(np.diff(values) > 0)  # the farther back, the shorter the paths
        assert np.all(values < [transmission(stronger / 2, angle) for angle in angles])
    assert transmission(50.0, 30.0) == transmission(corrections.LARGEST_MU_R, 30.0)


@pytest.mark.parametrize("mu_r", [0.5, 4.0, 10.0])
def test_oracle_absorption_of_the_straight_beam(mu_r):
    """At 2θ = 0 the path is the chord: one integral, by scipy."""
    chord, _ = quad(
        lambda a: 2 / math.pi * math.cos(a) ** 2 * math.exp(-2 * mu_r * math.cos(a)),
        -math.pi / 2,
        math.pi / 2,
    )
    assert naive.cylinder_absorption(mu_r, 0.0, 160, 1600) == pytest.approx(chord, rel=2e-6)


# --- whole patterns -------------------------------------------------------------------------------------

INSTRUMENTS = {
    "BT-1": load_instrument("bt1-cu311"),
    "equal heights": msgspec.structs.replace(
        load_instrument("echidna"), sample_half_height=0.08, detector_half_height=0.08
    ),
    "sharp, tall": with_heights(0.05, 0.02, caglioti_u=0.01, caglioti_w=0.01, two_theta=(2.0, 178.0, 0.05)),
    "monochromator": MONOCHROMATED,
    "synchrotron": msgspec.structs.replace(
        load_instrument("synchrotron"), caglioti_w=0.0004, two_theta=(1.0, 30.0, 0.005)
    ),
    "zero shift": msgspec.structs.replace(PAPER, zero_shift=-0.31),
}
SAMPLES = {
    "zero shift": {"zero_shift": 0.23},
    "displacement": {"displacement": -0.4},
    "weak absorption": {"absorption": 0.4},
    "strong absorption": {"absorption": 7.0},
    "plates": {"texture": (0.6, 0.0, 0.0, 1.0)},
    "needles": {"texture": (1.5, 1.0, 1.0, 0.0)},
    "all": {"zero_shift": 0.1, "displacement": 0.2, "absorption": 1.2, "texture": (0.8, 1.0, -1.0, 2.0)},
}
CASES = ["special positions", "R cell, hexagonal", "monoclinic, no centre", "cubic, lower Laue class"]


def assert_agrees(name: str, instrument: Instrument, **sample) -> None:
    crystal = CARE_CASES[name]
    conditions = conditions_of(instrument, 1)
    for field, value in sample.items():
        getattr(conditions, field)[0] = value
    result = simulated([crystal], instrument, conditions)
    truth = naive.absolute_pattern(crystal, instrument, **sample)
    difference = np.abs(result.intensity[0] - truth / truth.max())
    worst = int(difference.argmax())
    assert difference[worst] < TOLERANCE, (
        f"{name} at {instrument.grid()[worst]:.2f}°: {difference[worst]:.2e}"
    )
    assert result.maximum[0] == pytest.approx(truth.max(), rel=2 * TOLERANCE)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", INSTRUMENTS)
def test_instruments_against_the_oracle(name, case):
    assert_agrees(case, INSTRUMENTS[name])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_against_the_oracle(name, case):
    assert_agrees(case, PAPER, **SAMPLES[name])


def test_lines_enter_and_leave_by_where_they_appear():
    """Halite's 200 is at 43.2°: the grid's end decides on its shifted place."""
    angle = 2 * np.degrees(np.arcsin(PAPER.wavelength / 5.64))
    instrument = msgspec.structs.replace(PAPER, two_theta=(angle - 8.0, angle - 0.1, 0.05))
    assert_agrees("special positions", instrument, zero_shift=-0.2)
    assert_agrees("special positions", instrument, displacement=-0.3)
    conditions = conditions_of(instrument, 2)
    conditions.zero_shift[:] = (0.0, -0.2)
    intensity = simulated([CARE_CASES["special positions"]] * 2, instrument, conditions).intensity
    assert intensity[0, -1] == 0
    assert intensity[1, -1] > 0.5
