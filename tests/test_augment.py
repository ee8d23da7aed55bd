"""What augmented patterns show: each effect against an oracle of its own, and who depends on whom."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from built_crystals import CARE_CASES, HALITE, built
from scipy import stats

from hxrd.crystal.crystal import Crystal
from hxrd.physics.instrument import load_instrument
from hxrd.physics.reflections import peaks
from hxrd.simulate.augment import augmented, drawn_conditions
from hxrd.simulate.augmentation import Augmentation, load_augmentation
from hxrd.simulate.composition import composition_of
from hxrd.simulate.simulate import simulate_patterns, simulated

INSTRUMENT = load_instrument("paper")
XRAY = load_instrument("xray")
TWO_THETA = INSTRUMENT.grid()
SEEDS = np.random.default_rng(5).integers(0, 2**63, 600).astype(np.uint64)
ROCK_SALT = built("F m -3 m", HALITE, [("Na", (0, 0, 0)), ("Cl", (0.5, 0.5, 0.5))], "rock salt")
FLUORITE = built("F m -3 m", (5.463,) * 3 + (90,) * 3, [("Ca", (0, 0, 0)), ("F", (0.25,) * 3)], "fluorite")
HYDRIDE = built("F m -3 m", (4.083,) * 3 + (90,) * 3, [("Li", (0, 0, 0)), ("H", (0.5,) * 3)], "hydride")
VANADIUM = built("I m -3 m", (3.03,) * 3 + (90,) * 3, [("V", (0, 0, 0))], "vanadium")
LAYERED = built(
    "P -3 m 1", (3.95, 3.95, 6.06, 90, 90, 120), [("Cd", (0, 0, 0)), ("I", (1 / 3, 2 / 3, 0.249))]
)
STRANGE = Crystal(
    "strange", np.array([4.0, 4, 4, 90, 90, 90]), ("Ac",), np.zeros((1, 3)), np.ones(1), np.zeros(1), 221
)
CASES = [replace(crystal, identifier=name) for name, crystal in CARE_CASES.items()]


def made(**tables):
    return msgspec.convert(tables, Augmentation)


def one(crystal, instrument=INSTRUMENT, seed=0, **tables):
    return augmented([crystal], instrument, made(**tables), SEEDS[seed : seed + 1], threads=1).intensity[0]


# --- no effect, and who depends on whom


def test_without_effects_patterns_are_the_plain_ones():
    found = augmented(CASES, INSTRUMENT, Augmentation(), SEEDS[: len(CASES)])
    plain, reasons = simulate_patterns(CASES, INSTRUMENT)
    np.testing.assert_allclose(found.intensity, plain, atol=1e-7)
    assert found.reasons == reasons
    assert found.impurity_index.shape == found.impurity_fraction.shape == (len(CASES), 0)
    assert found.mask is None


@pytest.mark.parametrize("name", ["realistic-neutron", "realistic-xray"])
def test_a_seed_gives_the_same_pattern_on_any_number_of_threads(name):
    crystals, seeds = CASES * 3, SEEDS[: 3 * len(CASES)]
    instrument = INSTRUMENT if name.endswith("neutron") else XRAY
    first, second = (
        augmented(crystals, instrument, load_augmentation(name), seeds, threads=threads) for threads in (1, 3)
    )
    for field in ("intensity", "impurity_index", "impurity_fraction", "mask"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
    assert first.reasons == second.reasons
    assert (first.impurity_index >= 0).sum() >= 3
    assert not np.array_equal(first.intensity[0], first.intensity[len(CASES)])  # another seed
    assert np.isfinite(first.intensity).all()
    assert first.intensity.min() == 0
    assert first.intensity.max(axis=1) == pytest.approx(1)


def test_a_row_without_impurities_depends_on_its_seed_and_crystal_alone():
    settings = msgspec.structs.replace(load_augmentation("realistic-neutron"), impurity=None)
    together = augmented(CASES, INSTRUMENT, settings, SEEDS[: len(CASES)])
    for row in (0, 3, 8):
        alone = augmented([CASES[row]], INSTRUMENT, settings, SEEDS[row : row + 1])
        np.testing.assert_array_equal(alone.intensity[0], together.intensity[row])
    turned = augmented(CASES[::-1], INSTRUMENT, settings, SEEDS[: len(CASES)][::-1])
    np.testing.assert_array_equal(turned.intensity[::-1], together.intensity)


def test_rejected_crystals_stay_empty_and_foreign_to_all():
    settings = made(
        impurity={"weight_fraction": [0.1, 0.2]}, counting={"total": [1e6, 1e6]}, truncation={"low": [1, 2]},
        incoherent={}, background={"level": [0.1, 0.1]},
    )  # fmt: skip
    found = augmented([ROCK_SALT, STRANGE, FLUORITE], INSTRUMENT, settings, SEEDS[:3])
    assert found.reasons[0] is found.reasons[2] is None
    assert "Ac" in found.reasons[1]
    assert not found.intensity[1].any()
    assert not found.mask[1].any()
    assert found.impurity_index[:, 0].tolist() == [2, -1, 0]


# --- the sample


def strongest_alone(crystal):
    """2θ of a strong line that has no other near it."""
    lines = peaks(crystal, INSTRUMENT)
    return next(
        line.two_theta
        for line in sorted(lines, key=lambda line: -line.intensity)
        if sum(abs(line.two_theta - other.two_theta) < 8 for other in lines) == 1
    )


def areas(crystals, settings):
    """Area of each whole pattern before it is divided by its maximum."""
    conditions = drawn_conditions(INSTRUMENT, settings, SEEDS[: len(crystals)])
    found = augmented(crystals, INSTRUMENT, settings, SEEDS[: len(crystals)])
    return found.intensity.sum(axis=1) * simulated(crystals, INSTRUMENT, conditions).maximum


@pytest.mark.parametrize(
    "tables",
    [{"size": {"size": [400, 2000]}}, {"microstrain": {"strain": [5e-4, 4e-3]}}],
    ids=["size", "microstrain"],
)
def test_broadening_conserves_the_area_of_the_lines(tables):
    crystals = [ROCK_SALT] * 40
    plain, broad = areas(crystals, Augmentation()), areas(crystals, made(**tables))
    heights = augmented(crystals, INSTRUMENT, made(**tables), SEEDS[:40]).intensity.sum(axis=1)
    assert heights.max() > 1.3 * heights.min()
    np.testing.assert_allclose(broad, plain, rtol=0.03)  # a Lorentzian cut at 0.001 of its top lacks 2 %


def half_height_angles(angles, line):
    top = line.argmax()
    left = np.interp(0.5, line[: top + 1] / line[top], angles[: top + 1])
    return left, np.interp(-0.5, -line[top:] / line[top], angles[top:])


def test_small_crystallites_have_the_width_of_scherrer():
    """Far beyond the instrument's own width, a line's FWHM is K λ/(L cosθ)."""
    sharp = msgspec.structs.replace(INSTRUMENT, caglioti_u=1e-4, lorentzian_x=0.0, axial_divergence=0.0)
    centre = strongest_alone(VANADIUM)
    pattern = one(VANADIUM, sharp, size={"size": [150, 150]})
    near = np.abs(TWO_THETA - centre) < 6
    left, right = half_height_angles(TWO_THETA[near], pattern[near])
    expected = np.degrees(0.9 * 2.0775 / (150 * np.cos(np.radians(centre / 2))))
    assert right - left == pytest.approx(expected, rel=0.01)


def test_texture_averages_out_over_all_directions():
    """March and Dollase's weight is normalised: plates lying in every direction are a powder again."""
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(600, 3))
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    # directions of reciprocal space, as planes of a crystal whose reciprocal lattice is fine and cubic
    planes = np.round(40 * vectors).astype(int).tolist()
    cubic = built("P m -3", (4.2,) * 3 + (90,) * 3, [("Re", (0, 0, 0)), ("O", (0.5, 0, 0.5))])
    settings = made(texture={"march": [0.6, 0.6], "planes": planes})
    crystals = [cubic] * len(SEEDS)
    found = augmented(crystals, INSTRUMENT, settings, SEEDS)
    tops = simulated(crystals, INSTRUMENT, drawn_conditions(INSTRUMENT, settings, SEEDS)).maximum
    unscaled = found.intensity * tops[:, None]
    plain = simulated([cubic], INSTRUMENT)
    reference = plain.intensity[0] * plain.maximum[0]
    assert unscaled.std(axis=0).max() > 0.05 * reference.max()
    assert np.abs(unscaled.mean(axis=0) - reference).max() < 0.03 * reference.max()


def test_plates_lying_flat_strengthen_their_own_lines():
    lines = {line.hkl: line.two_theta for line in peaks(LAYERED, INSTRUMENT)}
    plain = simulate_patterns([LAYERED], INSTRUMENT)[0][0]
    flat = one(LAYERED, texture={"march": [0.7, 0.7], "planes": [[0, 0, 1]]})

    def height(pattern, hkl):
        return pattern[np.argmin(np.abs(TWO_THETA - lines[hkl]))]

    gain = {hkl: height(flat, hkl) / height(plain, hkl) for hkl in ((0, 0, 1), (1, 1, 0))}
    # along the normal r⁻³, in the plane r^(3/2)
    assert gain[0, 0, 1] / gain[1, 1, 0] == pytest.approx(0.7**-4.5, rel=0.02)


def test_a_warm_crystal_is_the_larger_one():
    warm = one(ROCK_SALT, thermal_expansion={"temperature": [495, 495], "coefficient": [2e-5, 2e-5]})
    larger = built("F m -3 m", (5.64 * 1.004,) * 3 + (90,) * 3, [("Na", (0, 0, 0)), ("Cl", (0.5,) * 3)])
    np.testing.assert_allclose(warm, simulate_patterns([larger], INSTRUMENT)[0][0], atol=1e-5)


def test_zero_shift_and_displacement_move_lines_as_written():
    draws = 40
    centre = strongest_alone(ROCK_SALT)
    near = np.abs(TWO_THETA - centre) < 3

    def places(**tables):
        found = augmented([ROCK_SALT] * draws, INSTRUMENT, made(**tables), SEEDS[:draws]).intensity[:, near]
        return np.array([np.mean(half_height_angles(TWO_THETA[near], line)) for line in found])

    still = places()[0]
    zero = {"zero_shift": {"sigma": 0.1}}
    drawn = drawn_conditions(INSTRUMENT, made(**zero), SEEDS[:draws]).zero_shift
    np.testing.assert_allclose(places(**zero) - still, drawn, atol=2e-3)
    moved = {"sample_displacement": {"sigma": 0.1}}
    drawn = drawn_conditions(INSTRUMENT, made(**moved), SEEDS[:draws]).displacement
    np.testing.assert_allclose(places(**moved) - still, drawn * np.cos(np.radians(centre / 2)), atol=2e-3)


def test_absorption_weakens_low_angles_most():
    plain = simulate_patterns([ROCK_SALT], INSTRUMENT)[0][0]
    absorbed = one(ROCK_SALT, absorption={"mu_r": [2, 2]})
    lines = [int(np.argmin(np.abs(TWO_THETA - line.two_theta))) for line in peaks(ROCK_SALT, INSTRUMENT)]
    gain = absorbed[lines] / plain[lines]
    assert np.all(np.diff(gain) > -0.02 * gain[:-1])
    assert gain[-1] > 1.5 * gain[0]


# --- the measurement


def test_incoherent_scattering_is_at_its_physical_level():
    """Integrated over the sphere, lines and floor are as their cross-sections.

    Squires (1978), Eq. 3.103: a cone has λ³/(4V sinθ) m|F|² a cell; the floor has Σ σ_inc.
    """
    barn = 100.0
    for crystal, sigma in ((VANADIUM, 2 * 5.08), (HYDRIDE, 4 * (80.26 + 0.92))):
        pattern = one(crystal, incoherent={}).astype(float)
        floor = np.median(pattern[:200])
        angle = np.radians(TWO_THETA)
        lines_area = 2 * np.pi * ((pattern - floor) * np.sin(angle)).sum() * np.radians(0.05)
        cones = sum(
            2.0775**3 / (4 * crystal.volume * np.sin(np.radians(line.two_theta / 2)))
            * line.multiplicity * line.f_squared
            for line in peaks(crystal, INSTRUMENT)
        )  # fmt: skip
        assert 4 * np.pi * floor / lines_area == pytest.approx(sigma * barn / cones, rel=0.02)


def test_x_rays_have_no_incoherent_floor():
    np.testing.assert_array_equal(one(HYDRIDE, XRAY, incoherent={}), one(HYDRIDE, XRAY))


def test_masses_volumes_and_cross_sections_are_those_of_the_cell():
    found = composition_of([HYDRIDE, CARE_CASES["isotope"], CARE_CASES["triclinic"]])
    assert found.mass[0] == pytest.approx(4 * (6.94 + 1.008), rel=1e-3)
    assert found.mass[1] == pytest.approx(4 * (11.0093 + 14.007), rel=1e-4)
    assert found.volume == pytest.approx(
        [crystal.volume for crystal in (HYDRIDE, CARE_CASES["isotope"], CARE_CASES["triclinic"])]
    )
    assert found.incoherent[0] * 4 * np.pi / 100 == pytest.approx(4 * (80.26 + 0.92), rel=1e-3)


def test_weight_fractions_are_recovered_by_quantitative_phase_analysis():
    """Hill & Howard (1987): w = S·M·V/Σ S·M·V, with S fitted to the patterns of the pure phases."""
    settings = made(impurity={"weight_fraction": [0.05, 0.3]})
    crystals = [ROCK_SALT, FLUORITE] * 10
    found = augmented(crystals, INSTRUMENT, settings, SEEDS[:20])
    pure = simulated([ROCK_SALT, FLUORITE], INSTRUMENT)
    patterns = (pure.intensity * pure.maximum[:, None]).astype(float).T
    composition = composition_of([ROCK_SALT, FLUORITE])
    assert (found.impurity_index >= 0).sum() >= 15
    for row, pattern in enumerate(found.intensity):
        scale = np.linalg.lstsq(patterns, pattern.astype(float), rcond=None)[0]
        weight = scale * composition.mass * composition.volume
        other = 1 - row % 2
        assert weight[other] / weight.sum() == pytest.approx(found.impurity_fraction[row, 0], abs=1e-4)


def test_impurities_are_other_crystals_with_the_fractions_written_down():
    crystals = [CASES[row % 12] for row in range(600)]
    settings = made(impurity={"weight_fraction": [0.01, 0.1], "phases": 2, "probability": 0.4})
    found = augmented(crystals, INSTRUMENT, settings, SEEDS)
    there = found.impurity_index >= 0
    assert there.shape == (600, 2)
    np.testing.assert_array_equal(there, found.impurity_fraction > 0)
    assert 0.3 < there.mean() <= 0.42  # some are left out: they would outshine their host
    for row, slot in np.argwhere(there):
        partner = found.impurity_index[row, slot]
        assert crystals[partner] is not crystals[row]
        assert partner != found.impurity_index[row, 1 - slot]
    fractions = found.impurity_fraction[there]
    assert fractions.min() >= 0.01
    assert fractions.max() <= 0.1
    assert stats.kstest(fractions, stats.loguniform(0.01, 0.1).cdf).pvalue > 1e-3


def test_an_impurity_that_would_outshine_its_host_is_left_out():
    settings = made(impurity={"weight_fraction": [0.3, 0.3]})
    found = augmented([VANADIUM, FLUORITE], INSTRUMENT, settings, SEEDS[:2])
    assert found.impurity_index[:, 0].tolist() == [-1, 0]
    assert found.impurity_fraction[:, 0].tolist() == [0, pytest.approx(0.3)]
    np.testing.assert_allclose(found.intensity[0], simulate_patterns([VANADIUM], INSTRUMENT)[0][0], atol=1e-6)


def test_a_crystal_is_no_impurity_of_itself():
    found = augmented([ROCK_SALT] * 5, INSTRUMENT, made(impurity={"weight_fraction": [0.1, 0.1]}), SEEDS[:5])
    assert np.all(found.impurity_index == -1)


def test_counts_are_poisson_about_the_expected_pattern():
    n = 400
    settings = made(counting={"total": [2e5, 2e5]}, background={"level": [0.05, 0.05]})
    counted = augmented([ROCK_SALT] * n, INSTRUMENT, settings, SEEDS[:n]).intensity.astype(float)
    expected = one(ROCK_SALT, background={"level": [0.05, 0.05]}).astype(float)
    expected *= 2e5 / expected.sum()
    # divided by a row's highest count, which is one over the smallest step between values
    highest = np.array([np.round(1 / np.diff(np.unique(row)).min()) for row in counted])
    counts = counted * highest[:, None]
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-2)
    z = (counts.mean(axis=0) - expected) / np.sqrt(expected / n)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    dispersion = counts.var(axis=0, ddof=1) / expected
    assert dispersion.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / n / len(TWO_THETA)))


def test_totals_are_even_in_the_logarithm():
    settings = made(counting={"total": [1e4, 1e6]}, background={"level": [0.2, 0.2]})
    counted = augmented([ROCK_SALT] * 300, INSTRUMENT, settings, SEEDS[:300]).intensity
    totals = [row.sum() / np.diff(np.unique(row)).min() for row in counted]
    assert stats.kstest(totals, stats.loguniform(1e4, 1e6).cdf).pvalue > 1e-3


def test_masked_points_are_zero_and_the_rest_is_as_without_a_mask():
    tables = {"truncation": {"low": [5, 9], "high": [5, 9]}, "masked_regions": {"width": [2, 4], "most": 2}}
    settings = msgspec.structs.replace(made(**tables), least_left=0.8)
    found = augmented([ROCK_SALT] * 60, INSTRUMENT, settings, SEEDS[:60])
    plain = simulate_patterns([ROCK_SALT], INSTRUMENT)[0][0]
    whole = found.mask.all(axis=1)
    assert 0 < whole.sum() < 30  # those that would have kept too little
    for pattern, mask in zip(found.intensity, found.mask, strict=True):
        assert not pattern[~mask].any()
        kept = np.where(mask, plain, 0)
        assert kept.sum() >= 0.8 * plain.sum()
        np.testing.assert_allclose(pattern, kept / kept.max(), atol=1e-6)
