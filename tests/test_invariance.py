"""What a pattern does not depend on: origin, setting of the cell, supercell, hand, scale of occupancy."""

import dataclasses
import itertools
from fractions import Fraction

import gemmi
import numpy as np
import pytest
from built_crystals import CARE_CASES, built
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hxrd.crystal.crystal import Crystal
from hxrd.physics.instrument import load_instrument, with_overrides
from hxrd.simulate.simulate import simulated, sticks

NEUTRONS = with_overrides(load_instrument("bt1-cu311"), two_theta=(10.0, 120.0, 0.1))  # complex lengths
XRAYS = with_overrides(load_instrument("cu-ka"), two_theta=(10.0, 100.0, 0.05))
SAME = 5e-6  # of the maximum: patterns are single precision
FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# One group of each centring and Laue class, symmorphic or not, with a centre or not.
SYMBOLS = [
    *["P 1", "P -1", "P 1 21 1", "P 1 21/c 1", "C 1 2/c 1", "C 1 c 1", "P 21 21 21", "P n m a", "C m c 21"],
    *["A b m 2", "I m m a", "F d d 2", "P 41 21 2", "P 42/m n m", "I 41/a", "I -4 2 d", "P 31 2 1", "R 3:H"],
    *["R -3 c:H", "P 63 m c", "P 63/m", "P a -3", "I a -3", "F -4 3 m", "F d -3 m:2", "P 43 3 2"],
]
PAIRS = [
    *[("P 41", "P 43"), ("P 41 2 2", "P 43 2 2"), ("P 41 21 2", "P 43 21 2"), ("P 31", "P 32")],
    *[("P 31 1 2", "P 32 1 2"), ("P 31 2 1", "P 32 2 1"), ("P 61", "P 65"), ("P 62", "P 64")],
    *[("P 61 2 2", "P 65 2 2"), ("P 62 2 2", "P 64 2 2"), ("P 43 3 2", "P 41 3 2")],
]
SPECIES = ["Na", "Ti", "O", "Cd", "Cl"]  # one of negative and one of complex length among them
# Of 240 places along each axis many are special; none lies so near to another that they might be one.
POSITIONS = st.tuples(*[st.integers(0, 239).map(lambda place: place / 240)] * 3)
SITES = st.lists(
    st.tuples(st.sampled_from(SPECIES), POSITIONS, st.floats(0.2, 1), st.floats(0, 2)),
    min_size=1,
    max_size=3,
    unique_by=lambda site: site[2],  # so that no two sites become one when their images are counted
)


@st.composite
def cells(draw, system: str) -> tuple[float, ...]:
    """A cell that a crystal system allows (rhombohedral groups in hexagonal axes)."""
    a, b, c = (draw(st.floats(4, 7)) for _ in range(3))
    alpha, beta, gamma = (draw(st.floats(75, 110)) for _ in range(3))
    return {
        "triclinic": (a, b, c, alpha, beta, gamma),
        "monoclinic": (a, b, c, 90, beta, 90),
        "orthorhombic": (a, b, c, 90, 90, 90),
        "tetragonal": (a, a, c, 90, 90, 90),
        "trigonal": (a, a, c, 90, 90, 120),
        "hexagonal": (a, a, c, 90, 90, 120),
        "cubic": (a, a, a, 90, 90, 90),
    }[system]


@st.composite
def crystals(draw, symbols: list[str]) -> Crystal:
    symbol = draw(st.sampled_from(symbols))
    cell = draw(cells(gemmi.SpaceGroup(symbol).crystal_system_str()))
    return built(symbol, cell, draw(SITES), identifier=symbol)


def in_basis(crystal: Crystal, basis: list[list[Fraction | int]]) -> Crystal:
    """The same crystal with the columns of `basis` as cell vectors: a smaller, equal or larger cell."""
    p = np.array([[float(value) for value in row] for row in basis])
    inverse = np.linalg.inv(p)
    metric = p.T @ crystal.metric @ p
    edges = np.sqrt(np.diag(metric))
    cosines = metric / np.outer(edges, edges)
    angles = np.degrees(np.arccos([cosines[1, 2], cosines[0, 2], cosines[0, 1]]))
    reach = int(np.abs(p).sum(axis=1).max()) + 1
    lattice = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3))) @ inverse.T
    lattice = lattice[np.all((lattice > -1e-9) & (lattice < 1 - 1e-9), axis=1)]  # old points in the new cell
    sites = {}
    for species, position, occupancy, b_iso in zip(
        crystal.species, crystal.positions, crystal.occupancy, crystal.b_iso, strict=True
    ):
        for point in inverse @ position + lattice:
            place = np.round(point % 1, 9) % 1
            sites[(species, *place, occupancy, b_iso)] = None
    operations = {}
    for rotation, translation in zip(crystal.rotations, crystal.translations, strict=True):
        turned = inverse @ rotation @ p
        if np.abs(turned - np.round(turned)).max() < 1e-9:  # a supercell may have less symmetry
            for point in inverse @ translation + lattice:
                key = (*np.round(turned).astype(int).ravel(), *(np.round(point % 1, 9) % 1))
                operations[key] = None
    table = np.array(list(operations))
    return dataclasses.replace(
        crystal,
        cell=np.array([*edges, *angles]),
        species=tuple(site[0] for site in sites),
        positions=np.array([site[1:4] for site in sites]),
        occupancy=np.array([site[4] for site in sites]),
        b_iso=np.array([site[5] for site in sites]),
        rotations=table[:, :9].reshape(-1, 3, 3).astype(np.int8),
        translations=table[:, 9:],
    )


def without_symmetry(crystal: Crystal) -> Crystal:
    return dataclasses.replace(
        crystal, rotations=np.eye(3, dtype=np.int8)[None], translations=np.zeros((1, 3))
    )


def assert_same(one: Crystal, other: Crystal, volume_ratio: float = 1.0) -> None:
    """Equal patterns; what they were divided by goes with the square of the cell's content."""
    for instrument in (NEUTRONS, XRAYS):
        result = simulated([one, other], instrument)
        assert result.reasons[0] == result.reasons[1]
        np.testing.assert_allclose(result.intensity[1], result.intensity[0], atol=SAME)
        np.testing.assert_allclose(result.maximum[1], result.maximum[0] * volume_ratio**2, rtol=2e-5)


@FEW
@given(crystals(SYMBOLS), POSITIONS)
def test_choice_of_origin(crystal, origin):
    shift = np.array(origin)
    moved = dataclasses.replace(
        crystal,
        positions=crystal.positions + shift,
        translations=crystal.translations + shift - crystal.rotations @ shift,
    )
    assert_same(crystal, moved)
    assert_same(crystal, without_symmetry(moved))


@FEW
@given(crystals([symbol for symbol in SYMBOLS if symbol[0] != "P"]))
def test_primitive_and_conventional_cell(crystal):
    """Centred cells against their primitive ones; for R that is hexagonal against rhombohedral axes."""
    operation = gemmi.SpaceGroup(crystal.identifier).centred_to_primitive()
    basis = [[Fraction(value, operation.DEN) for value in row] for row in operation.inverse().rot]
    if abs(np.linalg.det(np.array(basis, dtype=float))) > 1:
        basis = [[Fraction(value, operation.DEN) for value in row] for row in operation.rot]
    primitive = in_basis(crystal, basis)
    fold = crystal.volume / primitive.volume
    assert round(fold) in (2, 3, 4)
    assert len(primitive.species) * round(fold) == len(crystal.species)
    assert_same(primitive, crystal, fold)


def test_rhombohedral_axes_with_operations_of_their_own():
    """Calcite in both settings of R -3 c, each built from the tables' own operations."""
    hexagonal, other = CARE_CASES["R cell, hexagonal"], CARE_CASES["R cell, rhombohedral"]
    a, _, c = hexagonal.cell[:3]
    edge = np.sqrt(a**2 / 3 + c**2 / 9)
    angle = np.degrees(2 * np.arcsin(a / (2 * edge)))
    np.testing.assert_allclose(other.cell, [edge] * 3 + [angle] * 3, rtol=1e-3)
    assert_same(dataclasses.replace(other, cell=np.array([edge] * 3 + [angle] * 3)), hexagonal, 3)


@FEW
@given(crystals(SYMBOLS), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(-1, 1))
def test_supercell(crystal, along_a, along_b, along_c, shear):
    large = in_basis(crystal, [[along_a, shear, 0], [0, along_b, shear], [0, 0, along_c]])
    fold = along_a * along_b * along_c
    assert len(large.species) == fold * len(crystal.species)
    assert_same(crystal, large, fold)
    assert_same(crystal, without_symmetry(large), fold)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_enantiomorphic_pair(one, other):
    system = gemmi.SpaceGroup(one).crystal_system_str()
    cell = (5.1, 5.1, 5.1, 90, 90, 90) if system == "cubic" else (5.1, 5.1, 6.3, 90, 90, 90)
    if system in ("trigonal", "hexagonal"):
        cell = (*cell[:3], 90, 90, 120)
    sites = [("Cd", (0.11, 0.27, 0.38), 0.8, 0.5), ("O", (0.42, 0.05, 0.17), 1.0, 1.1)]
    hand = built(one, cell, sites)
    mirrored = built(other, cell, [(name, tuple(-np.array(place)), *rest) for name, place, *rest in sites])
    assert hand.space_group != mirrored.space_group
    assert_same(hand, mirrored)


@FEW
@given(crystals(SYMBOLS), st.floats(0.05, 1))
def test_scaled_occupancy_scales_every_structure_factor(crystal, scale):
    thinned = dataclasses.replace(crystal, occupancy=crystal.occupancy * scale)
    for instrument in (NEUTRONS, XRAYS):
        full, thin = sticks([crystal], instrument), sticks([thinned], instrument)
        np.testing.assert_array_equal(thin.hkl, full.hkl)
        for thinner, fuller in ((thin.f_squared, full.f_squared), (thin.intensity, full.intensity)):
            rounding = 1e-12 * fuller.max(initial=0)
            np.testing.assert_allclose(thinner, fuller * scale**2, rtol=1e-9, atol=rounding)
    assert_same(crystal, thinned, scale)


@FEW
@given(crystals(SYMBOLS))
def test_sets_of_equivalents_share_out_the_same_total(crystal):
    """In P 1 a set is a Friedel pair: smaller sets, and more of them."""
    for instrument in (NEUTRONS, XRAYS):
        known, unknown = (sticks([one], instrument) for one in (crystal, without_symmetry(crystal)))
        assert len(known.hkl) <= len(unknown.hkl)
        totals = [np.sum(found.multiplicity * found.f_squared) for found in (known, unknown)]
        assert totals[0] == pytest.approx(totals[1], rel=1e-9)
        if len(known.hkl):
            assert known.multiplicity.max() <= 2 * len(crystal.rotations)
            np.testing.assert_array_less(9.99, known.two_theta)
