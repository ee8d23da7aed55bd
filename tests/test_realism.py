"""Patterns as instruments give them: each ingredient shows, and without any nothing changes."""

from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from built_crystals import CARE_CASES

from hxrd.crystal.crystal import Crystal
from hxrd.models.preprocess import Grid, preprocess_batch
from hxrd.physics.instrument import load_instrument
from hxrd.simulate.realism import RealismSettings, measured_like
from hxrd.simulate.simulate import simulate_patterns
from hxrd.sources.prototypes import PrototypeSource

PAPER = load_instrument("paper")
WAVELENGTH = PAPER.wavelength
TARGET = Grid(PAPER.grid(), WAVELENGTH)
SALT, PEROVSKITE = CARE_CASES["special positions"], CARE_CASES["displacement"]
PLAIN = RealismSettings(
    clean_share=0,
    wavelength=(WAVELENGTH, WAVELENGTH),
    start=(3, 3),
    stop=(155, 155),
    steps=(0.05,),
    narrowest_fwhm=(0.3, 0.3),
    focus=(0.6, 0.6),
    caglioti_u=(0.1, 0.1),
    lorentzian_x=(0, 0),
    lorentzian_y=(0, 0),
    axial_divergence=(0, 0),
    zero_shift=0,
    peak_counts=(1e9, 1e9),
    background=(1e-6, 1e-6),
    impurity_probability=0,
    can_probability=0,
    magnetic_probability=0,
)


def made(crystals: list[Crystal], seed: int = 0, **changes) -> np.ndarray:
    """Patterns of an ideal instrument but for what is named."""
    settings = msgspec.structs.replace(PLAIN, **changes)
    return measured_like(crystals, PAPER, settings, TARGET, np.random.default_rng(seed))


def at(two_theta: float) -> int:
    return int(np.argmin(np.abs(TARGET.two_theta - two_theta)))


def angle_of(d_spacing: float, wavelength: float = WAVELENGTH) -> float:
    return float(2 * np.degrees(np.arcsin(wavelength / (2 * d_spacing))))


def centre(pattern: np.ndarray, two_theta: float, half_width: float = 1.5) -> float:
    """Centre of mass of a peak."""
    near = np.abs(TARGET.two_theta - two_theta) < half_width
    return float(np.average(TARGET.two_theta[near], weights=pattern[near]))


@pytest.fixture(scope="module")
def prototypes() -> list[Crystal]:
    source = PrototypeSource()
    names = [name for name in source.identifiers() if name.startswith("A_")]
    crystals = [source.get(name) for name in names[:70]]
    _, reasons = simulate_patterns(crystals, PAPER)
    return [crystal for crystal, reason in zip(crystals, reasons, strict=True) if reason is None]


@pytest.mark.parametrize("seed", [0, 1])
def test_patterns_are_clean_numbers_with_maximum_one(prototypes: list[Crystal], seed: int) -> None:
    patterns = measured_like(prototypes, PAPER, RealismSettings(), TARGET, np.random.default_rng(seed))
    assert patterns.shape == (len(prototypes), 3041)
    assert patterns.dtype == np.float32
    assert np.all(np.isfinite(patterns))
    assert patterns.min() == 0
    np.testing.assert_allclose(patterns.max(axis=1), 1, atol=1e-6)


def test_the_same_seed_gives_the_same_patterns(prototypes: list[Crystal]) -> None:
    one, again, other = (
        measured_like(prototypes[:40], PAPER, RealismSettings(), TARGET, np.random.default_rng(seed))
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max(axis=1).min() > 0.01


def test_the_clean_share_is_the_preset_through_the_same_preprocessing(prototypes: list[Crystal]) -> None:
    settings = RealismSettings(clean_share=1)
    found = measured_like(prototypes[:20], PAPER, settings, TARGET, np.random.default_rng(0))
    simulated, _ = simulate_patterns(prototypes[:20], PAPER)
    expected = preprocess_batch(simulated, TARGET.two_theta, WAVELENGTH, TARGET, background=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_x_rays_stay_x_rays() -> None:
    xray = load_instrument("xray")
    xray = msgspec.structs.replace(xray, wavelengths=((xray.wavelength, 1.0),))
    target = Grid(xray.grid(), xray.wavelength)
    found = measured_like(
        [SALT, PEROVSKITE], xray, RealismSettings(clean_share=1), target, np.random.default_rng(0)
    )
    simulated, _ = simulate_patterns([SALT, PEROVSKITE], xray)
    expected = preprocess_batch(
        simulated, target.two_theta, xray.wavelength, target, background=True, probe="xray"
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_ideal_instrument_shows_the_lines_of_the_crystal() -> None:
    (pattern,) = made([SALT])
    lines = [angle_of(5.64 / np.sqrt(n)) for n in (4, 8, 12, 16, 20)]
    for line in lines[:4]:
        assert centre(pattern, line) == pytest.approx(line, abs=0.05)
    for line, following in pairwise(lines[:4]):
        assert pattern[at((line + following) / 2)] < 1e-3


@pytest.mark.parametrize("wavelength", [1.2, 1.8, 2.4])
def test_another_wavelength_leaves_the_lines_where_they_are(wavelength: float) -> None:
    (pattern,) = made([SALT], wavelength=(wavelength, wavelength), stop=(165, 165))
    (usual,) = made([SALT])
    for d_spacing in (5.64 / 2, 5.64 / np.sqrt(8)):
        angle = angle_of(d_spacing)
        assert centre(pattern, angle) == pytest.approx(centre(usual, angle), abs=0.03)


def test_what_was_not_measured_is_zero() -> None:
    (pattern,) = made([SALT], start=(30, 30), stop=(110, 110))
    measured = TARGET.two_theta[pattern > 0]
    assert measured[0] >= 29.9
    assert measured[-1] <= 110.1
    assert pattern[at(angle_of(5.64 / np.sqrt(8)))] > 0.1
    noisy = {"background": (0.2, 0.2), "peak_counts": (300.0, 300.0)}
    (longer,) = made([SALT], wavelength=(2.5, 2.5), stop=(110, 110), **noisy)
    end = angle_of(2.5 / (2 * np.sin(np.radians(110) / 2)))  # where the last d stands for the model
    assert TARGET.two_theta[longer > 0][-1] == pytest.approx(end, abs=0.4)


def test_widths_are_those_that_were_drawn() -> None:
    def fwhm(pattern: np.ndarray) -> float:
        peak = at(angle_of(5.64 / 2))
        above = pattern[peak - 60 : peak + 61] > pattern[peak] / 2
        return 0.05 * above.sum()

    for width in (0.2, 0.4, 0.6):
        # focused on this very peak, so that it has the narrowest width there is
        focus = float(np.tan(np.radians(angle_of(5.64 / 2)) / 2))
        (pattern,) = made([SALT], narrowest_fwhm=(width, width), focus=(focus, focus))
        assert fwhm(pattern) == pytest.approx(width, abs=0.06)
    (broad,) = made([SALT], lorentzian_x=(0.5, 0.5))
    assert fwhm(broad) > fwhm(made([SALT])[0]) + 0.2


def test_a_zero_shift_moves_all_lines_alike() -> None:
    usual = made([SALT] * 30)
    shifted = made([SALT] * 30, zero_shift=0.1)
    angles = [angle_of(5.64 / 2), angle_of(5.64 / np.sqrt(8))]
    moves = np.array(
        [
            [centre(b, angle) - centre(a, angle) for angle in angles]
            for a, b in zip(usual, shifted, strict=True)
        ]
    )
    np.testing.assert_allclose(moves[:, 0], moves[:, 1], atol=0.05)
    assert 0.05 < np.median(np.abs(moves[:, 0])) < 0.12  # of a normal distribution: 0.067
    assert np.abs(moves[:, 0]).max() > 0.2  # one in ten has it fivefold


def test_an_impurity_adds_the_lines_of_another_crystal_of_the_group() -> None:
    pure = made([SALT, PEROVSKITE])
    mixed = made([SALT, PEROVSKITE], impurity_probability=1, impurity_fraction=(0.1, 0.1))
    for row, other in ((0, 1), (1, 0)):
        added = mixed[row] / mixed[row].max() - pure[row]
        assert np.abs(added).max() > 0.05
        foreign = pure[row] < 0.01
        assert np.corrcoef(added[foreign], pure[other][foreign])[0, 1] > 0.95
    alone = made([SALT], impurity_probability=1, impurity_fraction=(0.1, 0.1))
    np.testing.assert_allclose(alone, made([SALT]), atol=1e-3)  # its own impurity


def test_a_can_adds_the_lines_of_aluminium() -> None:
    pure = made([SALT, PEROVSKITE])
    canned = made([SALT, PEROVSKITE], can_probability=1, can_fraction=(0.3, 0.3))
    lines = [angle_of(4.0496 / np.sqrt(n)) for n in (3, 4, 8, 11)]
    near = np.min(np.abs(TARGET.two_theta[:, None] - lines), axis=1) < 2
    for row in range(2):
        added = canned[row] - pure[row]
        assert 0.2 < added[near].max() < 0.4
        elsewhere = added[~near & (TARGET.two_theta < 120)]
        assert np.abs(elsewhere).max() < 0.05


def test_magnetic_peaks_stand_at_low_angles() -> None:
    added = made([SALT] * 10, magnetic_probability=1) - made([SALT] * 10)
    low = TARGET.two_theta < 67
    assert np.all(added[:, low].max(axis=1) > 0.01)
    assert np.abs(added[:, ~low]).max() < 0.3 * added[:, low].max()


def test_a_background_is_added_and_taken_away_again() -> None:
    usual = made([SALT, PEROVSKITE])
    raised = made([SALT, PEROVSKITE], background=(0.5, 0.5))
    assert np.abs(raised - usual).max() < 0.1
    quiet = (usual < 1e-3) & (TARGET.two_theta > 10)
    assert 0 < raised[quiet].mean() < 0.03  # hardly anything of 0.5 is left


def test_few_counts_are_noisy() -> None:
    quiet = made([PEROVSKITE])[0] < 1e-3
    left = [
        made([PEROVSKITE], background=(0.1, 0.1), peak_counts=(counts, counts))[0][quiet].std()
        for counts in (200.0, 20_000.0, 1e9)
    ]
    assert left[0] > 4 * left[1] > 4 * left[2]
    assert left[0] == pytest.approx(np.sqrt(0.1 / 200) * 0.58, rel=0.4)  # half of a normal distribution


def test_probabilities_are_shares_of_the_patterns() -> None:
    pure = made([SALT, PEROVSKITE] * 100, group_size=200)
    canned = made([SALT, PEROVSKITE] * 100, group_size=200, can_probability=0.3, can_fraction=(0.3, 0.3))
    line = at(angle_of(4.0496 / np.sqrt(3)))
    assert np.mean(canned[:, line] - pure[:, line] > 0.1) == pytest.approx(0.3, abs=0.1)


def test_a_group_shares_its_range_and_groups_differ() -> None:
    patterns = made(
        [PEROVSKITE] * 12, group_size=4, stop=(70, 150), background=(0.2, 0.2), peak_counts=(300, 300)
    )
    ends = np.array([TARGET.two_theta[np.flatnonzero(pattern)[-1]] for pattern in patterns]).reshape(3, 4)
    assert np.ptp(ends, axis=1).max() < 2
    assert np.ptp(ends[:, 0]) > 5


def test_crystals_are_not_changed() -> None:
    crystal = replace(SALT, positions=SALT.positions.copy())
    made([crystal], impurity_probability=1, can_probability=1)
    np.testing.assert_array_equal(crystal.positions, SALT.positions)


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clean_share", 1.5),
        ("impurity_probability", -0.1),
        ("can_probability", float("nan")),
        ("magnetic_probability", 2),
        ("wavelength", (2.0, 1.0)),
        ("wavelength", (0.0, 1.0)),
        ("narrowest_fwhm", (0.0, 0.5)),
        ("caglioti_u", (-1.0, 0.5)),
        ("lorentzian_x", (-0.1, 0.5)),
        ("background", (0.0, 0.5)),
        ("peak_counts", (100.0, float("inf"))),
        ("impurity_fraction", (0.0, 0.1)),
        ("can_fraction", (0.2, 0.1)),
        ("zero_shift", -1),
        ("group_size", 0),
        ("stop", (20.0, 160.0)),
        ("stop", (110.0, 180.0)),
        ("steps", ()),
        ("steps", (0.0,)),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        RealismSettings(**{name: value})


def test_what_is_off_may_be_zero() -> None:
    assert RealismSettings(lorentzian_x=(0, 0), axial_divergence=(0, 0), zero_shift=0, clean_share=0)
