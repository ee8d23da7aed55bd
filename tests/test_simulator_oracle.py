"""Simulated patterns against the slow oracle, within 1e-4 of the maximum at every point."""

import dataclasses

import gemmi
import msgspec
import naive
import numpy as np
import pytest
from built_crystals import CARE_CASES
from scipy.integrate import quad

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.symmetry import BRAVAIS_LATTICES, bravais_lattice
from hxrd.errors import Rejected
from hxrd.physics.instrument import Instrument, load_instrument
from hxrd.simulate.simulate import simulate_patterns

TOLERANCE = 1e-4
PAPER = load_instrument("paper")


def varied(base: Instrument, **changes) -> Instrument:
    return msgspec.structs.replace(base, **changes)


XRAY = varied(load_instrument("xray"), wavelengths=((1.5405929, 1.0),))
INSTRUMENTS = {
    "paper": PAPER,
    "paper without axial divergence": varied(PAPER, axial_divergence=0.0),
    "complex scattering lengths": varied(PAPER, scattering_table="periodictable"),
    "BT-1": varied(
        PAPER,
        wavelengths=((1.5398, 1.0),),
        caglioti_u=0.133,
        caglioti_v=-0.165,
        caglioti_w=0.100,
        lorentzian_x=0.0,
        axial_divergence=0.05,
        two_theta=(3.0, 160.0, 0.05),
    ),
    "all Lorentzian": varied(PAPER, caglioti_u=0.0, lorentzian_x=0.2, lorentzian_y=0.3),
    "sharp, strongly asymmetric": varied(
        PAPER,
        caglioti_u=0.01,
        caglioti_w=0.01,
        lorentzian_x=0.01,
        axial_divergence=0.12,
        two_theta=(2.0, 178.0, 0.05),
    ),
    "other grid": varied(PAPER, two_theta=(10.0, 90.02, 0.03)),
    "X-rays": XRAY,
    "X-ray doublet": load_instrument("xray"),
    "X-ray doublet with axial divergence": varied(load_instrument("xray"), axial_divergence=0.08),
}
QUICK_CASES = [case for case in CARE_CASES if case not in ("isotope", "strong absorbers", "triclinic")]


def assert_patterns_agree(crystals: list[Crystal], instrument: Instrument) -> None:
    patterns, reasons = simulate_patterns(crystals, instrument)
    assert reasons == [None] * len(crystals)
    assert patterns.dtype == np.float32
    for crystal, pattern in zip(crystals, patterns, strict=True):
        difference = np.abs(pattern - naive.pattern(crystal, instrument))
        worst = int(difference.argmax())
        where = f"{crystal.identifier} ({crystal.space_group}) at {instrument.grid()[worst]:.2f}°"
        assert difference[worst] < TOLERANCE, f"{where}: {difference[worst]:.2e}"


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_instrument_against_the_oracle(name):
    assert_patterns_agree([CARE_CASES[case] for case in QUICK_CASES], INSTRUMENTS[name])


def test_low_symmetry_against_the_oracle():
    assert_patterns_agree([CARE_CASES["triclinic"]], PAPER)


@pytest.mark.parametrize("start", [0.5, 3.0])
def test_long_tails_at_low_angles_against_the_oracle(start):
    """At 3° the tail of axial divergence is some fifty widths long."""
    crystal = CARE_CASES["lines at very low angles"]
    assert_patterns_agree([crystal], varied(PAPER, two_theta=(start, 30.0, 0.01)))


@pytest.fixture(scope="module")
def shared_crystals(shared) -> list[Crystal]:
    """Two crystals of each Bravais lattice, of at most 400 Å³, taken evenly from the table."""
    from hxrd.sources.jsonl import JsonlSource

    found: dict[str, list[Crystal]] = {lattice: [] for lattice in BRAVAIS_LATTICES}
    for index, (_, crystal) in enumerate(JsonlSource(shared / "crystals.jsonl.gz").iterate()):
        if index % 37 or isinstance(crystal, Rejected) or crystal.volume > 400:
            continue
        taken = found[bravais_lattice(crystal.space_group)]
        if len(taken) < 2 and all(naive.scattering_length(name, "sears1992") for name in crystal.species):
            taken.append(crystal)
        if all(len(taken) == 2 for taken in found.values()):
            break
    assert min(len(taken) for taken in found.values()) >= 1
    return [crystal for taken in found.values() for crystal in taken]


@pytest.mark.parametrize("name", ["paper", "X-ray doublet"])
def test_all_lattices_against_the_oracle(shared_crystals, name):
    assert_patterns_agree(shared_crystals, INSTRUMENTS[name])


# --- the oracle itself --------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [5.0, 40.0, 90.0, 140.0])
def test_oracle_convolves_with_the_kernel_as_written(centre):
    """∫ (√(ε_m/ε) − 1)/|ε_m| P(x − ε) dε by scipy, which knows nothing of the oracle's substitution."""
    fwhm, eta = naive.thompson_cox_hastings(centre, PAPER)
    shift = naive.largest_shift(centre, PAPER)
    assert np.sign(shift) == np.sign(centre - 90.0) or abs(shift) < 1e-12
    width = abs(shift)

    def integrand(size, offset):
        kernel = (np.sqrt(width / size) - 1) / width
        return kernel * naive.pseudo_voigt(offset - np.sign(shift) * size, fwhm, eta)

    breaks = np.geomspace(1e-6, 0.99, 60) * width
    for offset in (-0.7 * fwhm, 0.4 * shift, 0.0, 0.3 * fwhm):
        truth = naive.pseudo_voigt(offset, fwhm, eta)
        if width > 1e-12:
            truth, _ = quad(integrand, 0, width, args=(offset,), limit=2000, points=breaks)
        profile = naive.peak_profile(np.array([centre + offset]), centre, PAPER)[0]
        assert profile == pytest.approx(truth, rel=1e-6)


def test_oracle_profile_has_unit_area_and_full_width():
    fine = np.arange(30.0, 50.0, 0.001)
    symmetric = varied(PAPER, axial_divergence=0.0, lorentzian_x=0.0)
    profile = naive.peak_profile(fine, 40.0, symmetric)
    assert profile.sum() * 0.001 == pytest.approx(1, abs=1e-3)
    above = fine[profile > profile.max() / 2]
    assert above[-1] - above[0] == pytest.approx(np.sqrt(0.2917) * np.tan(np.radians(20.0)), abs=2e-3)


# --- what must hold whatever the formulas ------------------------------------------------------------


def one_pattern(crystal: Crystal, instrument: Instrument = PAPER) -> np.ndarray:
    patterns, reasons = simulate_patterns([crystal], instrument)
    assert reasons == [None]
    return patterns[0]


@pytest.fixture
def perovskite() -> Crystal:
    return CARE_CASES["displacement"]


def without_symmetry(crystal: Crystal, **changes) -> Crystal:
    return dataclasses.replace(
        crystal, rotations=np.eye(3, dtype=np.int8)[None], translations=np.zeros((1, 3)), **changes
    )


def test_known_symmetry_changes_nothing(perovskite):
    np.testing.assert_allclose(one_pattern(without_symmetry(perovskite)), one_pattern(perovskite), atol=2e-6)


def test_origin_shift_changes_nothing(perovskite):
    shifted = without_symmetry(perovskite, positions=perovskite.positions + np.array([0.137, 0.29, 0.71]))
    np.testing.assert_allclose(one_pattern(shifted), one_pattern(perovskite), atol=2e-6)


def test_supercell_changes_nothing(perovskite):
    halves = perovskite.positions * np.array([1, 1, 0.5])
    double = without_symmetry(
        perovskite,
        cell=perovskite.cell * np.array([1, 1, 2, 1, 1, 1]),
        species=perovskite.species * 2,
        positions=np.concatenate([halves, halves + np.array([0, 0, 0.5])]),
        occupancy=np.tile(perovskite.occupancy, 2),
        b_iso=np.tile(perovskite.b_iso, 2),
    )
    np.testing.assert_allclose(one_pattern(double), one_pattern(perovskite), atol=2e-6)


def test_order_of_atoms_and_axes_changes_nothing():
    crystal = CARE_CASES["monoclinic, no centre"]
    order = np.arange(len(crystal.species))[::-1]
    turned = without_symmetry(
        crystal,
        cell=crystal.cell[[1, 2, 0, 4, 5, 3]],
        species=tuple(crystal.species[index] for index in order),
        positions=crystal.positions[order][:, [1, 2, 0]],
        occupancy=crystal.occupancy[order],
        b_iso=crystal.b_iso[order],
    )
    np.testing.assert_allclose(one_pattern(turned), one_pattern(crystal), atol=2e-6)


def test_scaling_every_occupancy_changes_nothing(perovskite):
    thinned = dataclasses.replace(perovskite, occupancy=perovskite.occupancy * 0.5)
    np.testing.assert_allclose(one_pattern(thinned), one_pattern(perovskite), atol=2e-6)


def test_scaling_cell_and_wavelength_moves_no_peak():
    crystal = CARE_CASES["special positions"]
    larger = dataclasses.replace(crystal, cell=crystal.cell * np.array([1.5, 1.5, 1.5, 1, 1, 1]))
    longer = varied(PAPER, wavelengths=((PAPER.wavelength * 1.5, 1.0),))
    np.testing.assert_allclose(one_pattern(larger, longer), one_pattern(crystal), atol=2e-6)


def test_mirror_image_gives_the_same_pattern():
    crystal = CARE_CASES["absorber without a centre"]
    mirrored = without_symmetry(crystal, positions=-crystal.positions)
    instrument = INSTRUMENTS["complex scattering lengths"]
    np.testing.assert_allclose(one_pattern(mirrored, instrument), one_pattern(crystal, instrument), atol=2e-6)


def test_line_weights_are_relative():
    crystal, doublet = CARE_CASES["special positions"], load_instrument("xray")
    doubled = tuple((wavelength, 2 * weight) for wavelength, weight in doublet.wavelengths)
    pattern = one_pattern(crystal, varied(doublet, wavelengths=doubled))
    np.testing.assert_allclose(pattern, one_pattern(crystal, doublet), atol=2e-6)


def test_rows_follow_the_crystals_and_a_rejected_one_is_zeros():
    good, other = CARE_CASES["special positions"], CARE_CASES["triclinic"]
    silent = dataclasses.replace(good, species=tuple("Po" if name == "Na" else name for name in good.species))
    small = dataclasses.replace(good, cell=good.cell * np.array([0.15, 0.15, 0.15, 1, 1, 1]))
    patterns, reasons = simulate_patterns([other, silent, small, good], PAPER)
    assert [reason is None for reason in reasons] == [True, False, False, True]
    assert "Po" in str(reasons[1])
    assert not patterns[1:3].any()
    assert patterns[0].max() == patterns[3].max() == 1
    np.testing.assert_array_equal(patterns[3], one_pattern(good))
    np.testing.assert_array_equal(patterns[0], one_pattern(other))


def test_no_peak_centred_outside_the_range_contributes():
    """Halite's 200 is at 43.2°: a range that ends just below it shows nothing of it."""
    crystal = CARE_CASES["special positions"]
    angle = 2 * np.degrees(np.arcsin(PAPER.wavelength / 5.64))
    below = varied(PAPER, two_theta=(angle - 8.01, angle - 0.01, 0.05))
    above = varied(PAPER, two_theta=(angle - 8.01, angle + 0.04, 0.05))
    assert one_pattern(crystal, below)[-1] == 0
    assert one_pattern(crystal, above)[-1] > 0.5


def test_gemmi_elements_have_the_lengths_that_the_paper_used():
    lengths = {name: gemmi.Element(name).neutron92.get_coefs()[0] for name in ("B", "N", "Ge", "Te")}
    assert lengths == pytest.approx({"B": 5.30, "N": 9.36, "Ge": 8.185, "Te": 5.80}, abs=1e-3)
