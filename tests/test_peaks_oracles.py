"""`peaks` against three independent truths, for every prototype: the whole sphere, gemmi, pymatgen."""

import dataclasses
import itertools

import gemmi
import msgspec
import naive
import numpy as np
import pytest
from built_crystals import CARE_CASES, built
from pymatgen.analysis.diffraction import core, neutron, xrd
from pymatgen.core import Lattice, Structure

from hxrd.crystal.crystal import Crystal
from hxrd.errors import Rejected
from hxrd.physics import scattering
from hxrd.physics.instrument import Instrument, load_instrument, with_overrides
from hxrd.physics.reflections import Reflection, peaks
from hxrd.sources.prototypes import PrototypeSource

PAPER = load_instrument("paper")
XRAY = with_overrides(load_instrument("xray"), wavelength="CuKa1")
INSTRUMENTS = {"neutron": PAPER, "xray": XRAY}


@pytest.fixture(scope="module")
def prototypes() -> list[Crystal]:
    source = PrototypeSource()
    crystals = [source.get(identifier) for identifier in source.identifiers()]
    assert len(crystals) > 250
    return crystals


def scatters(crystal: Crystal, instrument: Instrument) -> bool:
    """Whether every site has a scattering length (Po, Pu and Cf have none in Sears's table)."""
    if instrument.probe == "xray":
        return True
    return all(naive.scattering_length(name, instrument.scattering_table) for name in crystal.species)


def scattering_only(crystals: list[Crystal], instrument: Instrument) -> list[Crystal]:
    kept = [crystal for crystal in crystals if scatters(crystal, instrument)]
    assert len(kept) > 0.95 * len(crystals)
    return kept


def assert_same(crystal: Crystal, instrument: Instrument) -> None:
    """2θ within 1e-6°, intensity within 1e-5 of the largest, absences and multiplicities identical."""
    found = peaks(crystal, instrument)
    truth = naive.reflections(crystal, instrument, instrument.wavelength)
    expected = {reflection.hkl: reflection for reflection in truth if not reflection.absent}
    label = f"{crystal.identifier} (space group {crystal.space_group})"
    laue = naive.laue_class(crystal.rotations)
    names = [
        tuple(name) for name in naive.largest_equivalent(np.array([r.hkl for r in found]), laue).tolist()
    ]
    assert len(set(names)) == len(names), label
    assert set(names) == set(expected), label
    largest = max(reflection.intensity for reflection in truth)
    for name, ours in zip(names, found, strict=True):
        theirs = expected[name]
        assert ours.multiplicity == theirs.multiplicity, (label, name)
        assert ours.two_theta == pytest.approx(theirs.two_theta, abs=1e-6), (label, name)
        assert ours.d_spacing == pytest.approx(theirs.d_spacing, rel=1e-8), (label, name)
        assert ours.intensity == pytest.approx(theirs.intensity, abs=1e-5 * largest), (label, name)
        scale = largest / naive.lorentz_factor(theirs.two_theta, instrument.probe) / theirs.multiplicity
        assert ours.f_squared == pytest.approx(theirs.f_squared, abs=1e-5 * scale), (label, name)
    angles = [reflection.two_theta for reflection in found]
    assert angles == sorted(angles), label


# --- every prototype ---------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["neutron", "xray"])
def test_every_prototype_against_the_whole_sphere(prototypes, probe):
    instrument = INSTRUMENTS[probe]
    for crystal in scattering_only(prototypes, instrument):
        assert_same(crystal, instrument)


def test_every_prototype_with_complex_scattering_lengths(prototypes):
    instrument = msgspec.structs.replace(PAPER, scattering_table="periodictable")
    kept = [
        crystal for crystal in prototypes if not {"Po", "Pu", "Cf", "Ac", "At", "Cm"} & set(crystal.species)
    ]
    for crystal in kept[::2]:
        assert_same(crystal, instrument)


def test_prototypes_without_a_scattering_length_are_rejected(prototypes):
    silent = [crystal for crystal in prototypes if not scatters(crystal, PAPER)]
    assert silent
    for crystal in silent:
        with pytest.raises(Rejected, match=r"Po|Pu|Cf"):
            peaks(crystal, PAPER)


@pytest.mark.parametrize("probe", ["neutron", "xray"])
def test_every_prototype_against_gemmi(prototypes, probe):
    instrument = INSTRUMENTS[probe]
    for crystal in scattering_only(prototypes, instrument):
        structure = small_structure(crystal)
        calculator = (
            gemmi.StructureFactorCalculatorN if probe == "neutron" else gemmi.StructureFactorCalculatorX
        )(structure.cell)
        found = peaks(crystal, instrument)
        theirs = [
            np.mean(
                [
                    abs(calculator.calculate_sf_from_small_structure(structure, hkl)) ** 2
                    for hkl in equivalents(reflection, crystal)
                ]
            )
            for reflection in found
        ]
        weights = [r.multiplicity * naive.lorentz_factor(r.two_theta, probe) for r in found]
        intensity = np.array(weights) * theirs
        ours = np.array([r.intensity for r in found])
        np.testing.assert_allclose(
            ours, intensity, rtol=0, atol=1e-5 * ours.max(), err_msg=crystal.identifier
        )
        d_spacing = [structure.cell.calculate_d(r.hkl) for r in found]
        np.testing.assert_allclose([r.d_spacing for r in found], d_spacing, rtol=1e-5)


@pytest.mark.parametrize("probe", ["neutron", "xray"])
def test_every_prototype_against_pymatgen(prototypes, probe, monkeypatch):
    monkeypatch.setattr(core.AbstractDiffractionPatternCalculator, "TWO_THETA_TOL", 1e-7)
    monkeypatch.setattr(core.AbstractDiffractionPatternCalculator, "SCALED_INTENSITY_TOL", -1.0)
    monkeypatch.setattr(neutron, "ATOMIC_SCATTERING_LEN", OurScatteringLengths())
    monkeypatch.setattr(xrd, "ATOMIC_SCATTERING_PARAMS", OurFormFactors())
    instrument = INSTRUMENTS[probe]
    # their Lorentz factor is 1/(sin²θ cosθ), without the polarisation's ½
    calculator, their_scale = {
        "neutron": (neutron.NDCalculator(instrument.wavelength), 2.0),
        "xray": (xrd.XRDCalculator(instrument.wavelength), 4.0),
    }[probe]
    for crystal in scattering_only(prototypes, instrument):
        theirs = calculator.get_pattern(
            pymatgen_structure(crystal), scaled=False, two_theta_range=instrument.two_theta[:2]
        )
        ours = peaks(crystal, instrument)
        difference = summed_by_angle(
            np.concatenate([theirs.x, [r.two_theta for r in ours]]),
            np.concatenate([np.array(theirs.y) / their_scale, [-r.intensity for r in ours]]),
        )
        assert np.abs(difference).max() < 1e-5 * max(r.intensity for r in ours), crystal.identifier


# --- cases that need care ----------------------------------------------------------------------------

BY_TABLE = {
    "sears1992": PAPER,
    "periodictable": msgspec.structs.replace(PAPER, scattering_table="periodictable"),
    "it92": XRAY,
}


@pytest.mark.parametrize(("case", "table"), list(itertools.product(CARE_CASES, BY_TABLE)))
def test_case_that_needs_care(case, table):
    if case == "isotope" and table == "sears1992":
        pytest.skip("Sears's table in gemmi holds no isotope but D")
    assert_same(CARE_CASES[case], BY_TABLE[table])


def strengths(crystal: Crystal, instrument: Instrument) -> dict[tuple[int, int, int], float]:
    return {reflection.hkl: reflection.f_squared for reflection in peaks(crystal, instrument)}


def test_silicon_shows_neither_200_nor_222():
    """200 is absent by the d glide, 222 by the special position; International Tables A lists both."""
    silicon = strengths(CARE_CASES["reflections absent by special positions"], PAPER)
    assert not {(2, 0, 0), (2, 2, 2)} & set(silicon)
    assert silicon[(1, 1, 1)] == pytest.approx(32 * 4.149**2, rel=1e-3)  # |F|² = 32 b²
    assert silicon[(2, 2, 0)] == pytest.approx(64 * 4.149**2, rel=1e-3)


def test_halite_by_hand():
    """F = 4 (b_Na ± b_Cl): 3.63 and 9.577 fm in Sears's table; multiplicities 8, 6, 12, 24."""
    found = {r.hkl: r for r in peaks(CARE_CASES["special positions"], PAPER)}
    assert found[(1, 1, 1)].f_squared == pytest.approx(16 * (3.63 - 9.577) ** 2, rel=1e-6)
    assert found[(2, 0, 0)].f_squared == pytest.approx(16 * (3.63 + 9.577) ** 2, rel=1e-6)
    assert [found[hkl].multiplicity for hkl in ((1, 1, 1), (2, 0, 0), (2, 2, 0), (3, 1, 1))] == [8, 6, 12, 24]
    angle = np.degrees(2 * np.arcsin(2.0775 * np.sqrt(3) / 5.64 / 2))
    assert found[(1, 1, 1)].two_theta == pytest.approx(angle, abs=1e-9)


@pytest.mark.parametrize("probe", ["neutron", "xray"])
def test_rhombohedral_and_hexagonal_settings_agree(probe):
    """The hexagonal cell holds three times as much, so its |F|² is nine times as large."""
    calcite = built(
        "R -3 c:H",
        (4.9896, 4.9896, 17.0610, 90, 90, 120),
        [("Ca", (0, 0, 0)), ("C", (0, 0, 0.25)), ("O", (0.2568, 0, 0.25))],
    )
    to_hexagonal = np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3  # rows: a_R, b_R, c_R in a_H, b_H, c_H
    metric = to_hexagonal @ calcite.metric @ to_hexagonal.T
    edge = np.sqrt(metric[0, 0])
    alpha = np.degrees(np.arccos(metric[0, 1] / metric[0, 0]))
    primitive = built(
        "R -3 c:R",
        (edge,) * 3 + (alpha,) * 3,
        [("Ca", (0, 0, 0)), ("C", (0.25,) * 3), ("O", (0.2568 + 0.25, -0.2568 + 0.25, 0.25))],
    )
    assert len(calcite.species) == 3 * len(primitive.species) == 30
    hexagonal, rhombohedral = (peaks(crystal, INSTRUMENTS[probe]) for crystal in (calcite, primitive))
    assert len(hexagonal) == len(rhombohedral)
    largest = max(r.intensity for r in hexagonal)
    difference = summed_by_angle(
        np.array([r.two_theta for r in hexagonal + rhombohedral]),
        np.array([r.intensity for r in hexagonal] + [-9 * r.intensity for r in rhombohedral]),
    )
    assert np.abs(difference).max() < 1e-9 * largest
    assert sorted(r.multiplicity for r in hexagonal) == sorted(r.multiplicity for r in rhombohedral)
    assert all((-r.hkl[0] + r.hkl[1] + r.hkl[2]) % 3 == 0 for r in hexagonal)  # obverse setting


def test_deuterium_is_not_hydrogen():
    """With neutrons b(H) = −3.74 and b(D) = 6.67 fm; X-rays see no difference."""
    deuteride = CARE_CASES["deuterium"]
    hydride = dataclasses.replace(
        deuteride, species=tuple("H" if name == "D" else name for name in deuteride.species)
    )
    heavy, light = strengths(deuteride, PAPER), strengths(hydride, PAPER)
    assert heavy[(1, 1, 1)] == pytest.approx(16 * (-1.90 - 6.671) ** 2, rel=1e-3)
    assert light[(1, 1, 1)] == pytest.approx(16 * (-1.90 + 3.739) ** 2, rel=1e-3)
    assert strengths(deuteride, XRAY) == strengths(hydride, XRAY)


def test_isotope_differs():
    enriched = CARE_CASES["isotope"]
    natural = dataclasses.replace(enriched, species=tuple(name.lstrip("1") for name in enriched.species))
    by_isotope = strengths(enriched, BY_TABLE["periodictable"])[(2, 2, 0)]
    by_element = strengths(natural, BY_TABLE["periodictable"])[(2, 2, 0)]
    assert by_isotope == pytest.approx(16 * (6.65 + 9.36) ** 2, rel=5e-3)
    assert by_element == pytest.approx(16 * abs(5.30 - 0.213j + 9.36) ** 2, rel=5e-3)


def test_friedel_mates_of_an_absorber_are_averaged():
    crystal, instrument = CARE_CASES["absorber without a centre"], BY_TABLE["periodictable"]
    mates = np.array([[1, 0, 3], [-1, 0, -3]])
    (plus, minus), _ = naive.f_squared(crystal, instrument, mates, np.array([1.9, 1.9]))
    assert abs(plus - minus) > 0.05 * plus  # the case tests something
    assert strengths(crystal, instrument)[(1, 0, 3)] == pytest.approx((plus + minus) / 2, rel=1e-9)


def test_displacement_damps_by_exp_minus_2bs2():
    still = CARE_CASES["special positions"]
    moving = dataclasses.replace(still, b_iso=np.full(len(still.species), 1.7))
    for resting, shaken in zip(peaks(still, XRAY), peaks(moving, XRAY), strict=True):
        s_squared = 1 / (2 * resting.d_spacing) ** 2
        assert shaken.f_squared == pytest.approx(resting.f_squared * np.exp(-2 * 1.7 * s_squared), rel=1e-9)


# --- other people's structures -----------------------------------------------------------------------


def small_structure(crystal: Crystal) -> gemmi.SmallStructure:
    """The whole cell as gemmi's P 1 structure."""
    structure = gemmi.SmallStructure()
    structure.cell = gemmi.UnitCell(*crystal.cell)
    structure.spacegroup_hm = "P 1"
    structure.determine_and_set_spacegroup("h.")
    structure.setup_cell_images()
    for name, position, occupancy, b_iso in zip(
        crystal.species, crystal.positions, crystal.occupancy, crystal.b_iso, strict=True
    ):
        site = gemmi.SmallStructure.Site()
        site.element = gemmi.Element(name)
        site.fract = gemmi.Fractional(*position)
        site.occ, site.u_iso = occupancy, b_iso / (8 * np.pi**2)
        structure.add_site(site)
    return structure


def equivalents(reflection: Reflection, crystal: Crystal) -> list[list[int]]:
    images = np.array(reflection.hkl) @ np.asarray(crystal.rotations, dtype=int)
    return np.unique(np.concatenate([images, -images]), axis=0).tolist()


def pymatgen_structure(crystal: Crystal) -> Structure:
    mixtures: dict[tuple[float, ...], dict[str, float]] = {}
    for name, position, occupancy in zip(crystal.species, crystal.positions, crystal.occupancy, strict=True):
        mixtures.setdefault(tuple(position.tolist()), {})[name] = float(occupancy)
    return Structure(Lattice.from_parameters(*crystal.cell), list(mixtures.values()), list(mixtures))


class OurScatteringLengths(dict):
    """pymatgen's table of neutrons, answered from ours."""

    def __missing__(self, symbol):
        return scattering.scattering_lengths((symbol,), "sears1992")[0].real


class OurFormFactors(dict):
    """pymatgen's table of X-rays, answered from ours.

    pymatgen computes f = Z − 41.78214 x Σ A exp(−B x) with x = s². Ours is f = Σ a exp(−b x) + c, and
    (1 − exp(−b x))/x = ∫₀ᵇ exp(−t x) dt, 1/x = ∫₀^∞ exp(−t x) dt: by quadrature both become such sums.
    """

    def __missing__(self, symbol):
        coefficients = scattering.form_factor_coefficients((symbol,))[0]
        a, b, c = coefficients[:4], coefficients[4:8], coefficients[8]
        rows = [self.integral(0, width) * (1, height) for height, width in zip(a, b, strict=True)]
        rest = gemmi.Element(symbol).atomic_number - a.sum() - c
        edges = [0, *4.0 ** np.arange(0, 10)]
        rows += [self.integral(low, high) * (1, rest) for low, high in itertools.pairwise(edges)]
        exponents, weights = np.concatenate(rows).T
        self[symbol] = np.column_stack([weights / 41.78214, exponents])
        return self[symbol]

    @staticmethod
    def integral(low, high):
        nodes, weights = np.polynomial.legendre.leggauss(30)
        return np.column_stack([low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2])


def summed_by_angle(two_theta: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum the values of all peaks that lie together within 2e-6°."""
    order = np.argsort(two_theta)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(two_theta[order]) > 2e-6) + 1])
    return np.add.reduceat(values[order], starts)
