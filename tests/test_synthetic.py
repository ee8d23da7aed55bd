"""Synthetic crystals: in the very space group asked for, sane, reproducible, and as crystals are."""

import hashlib

import gemmi
import moyopy
import numpy as np
import pytest

from hxrd.crystal.crystal import Crystal, checked
from hxrd.crystal.synthetic import (
    Generator,
    SyntheticSettings,
    crystals_named,
    identifier_of,
    parsed_identifier,
    smallest_distance,
)
from hxrd.crystal.synthetic_table import element_names, group_weights, provenance, tables
from hxrd.crystal.wyckoff import GRID, group_operations, position_of_orbit, wyckoff_positions
from hxrd.errors import Rejected, UsageError
from hxrd.kernels.extra_symmetry import is_more_symmetric
from hxrd.kernels.lattice import point_group_order, set_metric, set_primitive
from hxrd.sources import UnknownIdentifier, open_sources

ROUND = range(230)  # one crystal of each space group


@pytest.fixture(scope="module")
def crystals() -> list[Crystal]:
    return Generator(SyntheticSettings(seed=11)).draw_many(range(460))


def found_group(crystal: Crystal, tolerance: float) -> int:
    names = sorted(set(crystal.species))
    cell = moyopy.Cell(
        np.linalg.cholesky(crystal.metric).tolist(),
        crystal.positions.tolist(),
        [names.index(name) for name in crystal.species],
    )
    return int(moyopy.MoyoDataset(cell, symprec=tolerance).number)


# The group ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [1e-3, 1e-2])
def test_every_group_is_found_in_its_crystals(crystals: list[Crystal], tolerance: float) -> None:
    wrong = [one.identifier for one in crystals if found_group(one, tolerance) != one.space_group]
    assert {one.space_group for one in crystals} == set(range(1, 231))
    assert len(wrong) <= 0.005 * len(crystals), wrong


def test_every_operation_maps_the_atoms_exactly(crystals: list[Crystal]) -> None:
    for crystal in crystals[:230]:
        kinds = np.unique(crystal.species, return_inverse=True)[1]
        for rotation, translation in zip(crystal.rotations, crystal.translations, strict=True):
            image = crystal.positions @ rotation.T.astype(float) + translation
            apart = image[:, None] - crystal.positions[None]
            apart = np.abs(apart - np.round(apart)).max(axis=2)
            partner = apart.argmin(axis=1)
            assert apart.min(axis=1).max() < 1e-12
            np.testing.assert_array_equal(kinds[partner], kinds)


def test_the_operations_are_those_of_the_reference_setting(crystals: list[Crystal]) -> None:
    for crystal in crystals[:230]:
        group = gemmi.get_spacegroup_reference_setting(crystal.space_group).operations()
        assert len(crystal.rotations) == len(list(group))
        turned = np.einsum(
            "nki,kl,nlj->nij", crystal.rotations, crystal.metric, crystal.rotations, optimize=True
        )
        np.testing.assert_allclose(turned, np.broadcast_to(crystal.metric, turned.shape), atol=1e-9)


def rock_salt(*shifts: float) -> tuple[np.ndarray, np.ndarray]:
    """Sites and atoms of a primitive tetragonal cell with two species, the second moved along c."""
    sites = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 2]], dtype=np.int64)
    return sites, np.array([[0.0, 0, 0], [0.5, 0.5, 0.5 + sum(shifts)]])


@pytest.mark.parametrize(("shift", "expected"), [(0.0, True), (0.005, True), (0.1, False)])
def test_a_mirror_that_the_group_lacks_is_seen(shift: float, expected: bool) -> None:
    sites, positions = rock_salt(shift)
    coset = np.stack([np.eye(3), np.diag([1.0, 1.0, -1.0])])  # P4mm in P4/mmm
    metric = np.diag([16.0, 16.0, 25.0])
    assert is_more_symmetric(coset, np.zeros((1, 3)), sites, 2, positions, metric, 0.06) is expected


def test_a_smaller_cell_is_seen() -> None:
    sites = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]], dtype=np.int64)
    positions = np.array([[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]])
    arguments = (sites, 2, positions, np.diag([16.0, 20.0, 25.0]), 0.06)
    assert is_more_symmetric(np.eye(3)[None], np.zeros((1, 3)), *arguments)
    assert not is_more_symmetric(np.eye(3)[None], np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]), *arguments)


@pytest.mark.parametrize(
    ("cell", "primitive", "order"),
    [
        ((4, 5, 6, 81, 95, 101), "P", 2),
        ((4, 5, 6, 90, 97, 90), "P", 4),
        ((4, 5, 6, 90, 90, 90), "P", 8),
        ((4, 4.02, 6, 90, 90, 90), "P", 16),  # within 2 %
        ((4, 4.2, 6, 90, 90, 90), "P", 8),
        ((4, 4, 6, 90, 90, 120), "P", 24),
        ((4, 4, 4, 90, 90, 90), "P", 48),
        ((4, 4, 4 * 2**0.5, 90, 90, 90), "I", 48),  # is face-centred cubic
        ((4, 4, 6, 90, 90, 90), "I", 16),
        ((4, 4 * 3**0.5, 6, 90, 90, 90), "C", 24),  # is hexagonal
        ((6, 5, 4, 90, 120, 90), "P", 4),
        ((4, 5, 4, 90, 104, 90), "P", 8),  # is face-centred orthorhombic
    ],
)
def test_the_symmetry_of_lattices(cell: tuple[float, ...], primitive: str, order: int) -> None:
    bases = {
        "P": np.eye(3),
        "I": np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]]),
        "C": np.array([[0.5, 0.5, 0], [-0.5, 0.5, 0], [0, 0, 1]]),
    }
    metric, reduced = np.empty((3, 3)), np.empty((3, 3))
    set_metric(np.array(cell, dtype=float), metric)
    set_primitive(metric, bases[primitive], reduced)
    assert point_group_order(reduced, 0.02) == order


# Sanity -------------------------------------------------------------------------------------------


def shortest(crystal: Crystal) -> float:
    """Smallest distance of two atoms over the limit of their elements, by brute force."""
    shifts = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    basis = np.linalg.cholesky(crystal.metric)
    names = sorted(set(crystal.species))
    limits = np.array([[smallest_distance(one, other) for one in names] for other in names])
    kinds = np.array([names.index(name) for name in crystal.species])
    least = np.inf
    for position, kind in zip(crystal.positions, kinds, strict=True):
        apart = crystal.positions - position
        apart -= np.round(apart)
        distance = np.linalg.norm((apart[:, None] + shifts) @ basis, axis=2)
        ratio = distance / limits[kind, kinds][:, None]
        least = min(least, ratio[distance > 1e-9].min())
    return least


def test_no_two_atoms_are_nearer_than_their_limit(crystals: list[Crystal]) -> None:
    assert min(shortest(crystal) for crystal in crystals[:230] if len(crystal.species) < 80) >= 1 - 1e-6
    for crystal in crystals:
        checked(crystal)


def test_the_limits_have_a_floor_and_sensible_values() -> None:
    names = list(element_names())
    light = np.array([name == "H" for name in names])
    nearest = tables().nearest
    np.testing.assert_array_equal(nearest, nearest.T)
    assert nearest.min() >= 0.65 - 1e-3
    assert nearest[~light][:, ~light].min() >= 1.05 - 1e-3
    assert 2.2 < smallest_distance("Na", "Cl") < 2.82  # 2.82 Å in halite
    assert 1.3 < smallest_distance("Si", "O") < 1.61  # 1.61 Å in quartz


def test_densities_are_those_of_crystals(crystals: list[Crystal]) -> None:
    names = list(element_names())
    own = np.array([sum(tables().atom_volume[names.index(name)] for name in one.species) for one in crystals])
    ratio = np.array([crystal.volume for crystal in crystals]) / own
    assert 0.9 < np.median(ratio) < 1.2
    assert ratio.min() > 0.7
    assert np.quantile(ratio, 0.95) < 1.8


def test_displacement_parameters_are_usual(crystals: list[Crystal]) -> None:
    b_iso = np.concatenate([crystal.b_iso for crystal in crystals])
    assert b_iso.min() > 0.05
    assert 0.5 < np.median(b_iso) < 2
    assert b_iso.max() < 15


# Names --------------------------------------------------------------------------------------------


def equal(one: Crystal, other: Crystal) -> bool:
    return (
        one.identifier == other.identifier
        and one.species == other.species
        and all(
            np.array_equal(getattr(one, name), getattr(other, name))
            for name in ("cell", "positions", "b_iso", "occupancy")
        )
    )


def test_a_number_gives_the_same_crystal_alone_and_among_others() -> None:
    generator = Generator()
    many = generator.draw_many(range(600))  # more than one batch
    for number in (0, 17, 255, 256, 599):
        assert equal(many[number], generator.draw(number))
    shuffled = generator.draw_many([599, 3, 17])
    assert all(equal(one, many[number]) for one, number in zip(shuffled, (599, 3, 17), strict=True))


def test_other_seeds_and_numbers_give_other_crystals() -> None:
    cells = [
        Generator(SyntheticSettings(seed=seed, groups=(62,))).draw(number).cell
        for seed in range(3)
        for number in range(20)
    ]
    assert len(np.unique(np.round(cells, 6), axis=0)) == 60


def test_a_name_rebuilds_its_crystal() -> None:
    generator = Generator(SyntheticSettings(seed=5, groups=(14, 62, 225), weights="training"))
    crystals = generator.draw_many(range(40))
    names = [crystal.identifier for crystal in crystals]
    assert generator.identifiers(40).read(0, 40) == names
    assert all(equal(one, other) for one, other in zip(crystals, crystals_named(names), strict=True))
    chain = open_sources(["synthetic"])
    assert equal(chain.get(names[7]), crystals[7])
    assert chain.describe() == ["synthetic"]


def test_the_largest_seed_and_number_have_a_name() -> None:
    largest = 2**64 - 1
    crystal = Generator(SyntheticSettings(seed=largest, groups=(2,))).draw(largest)
    assert parsed_identifier(crystal.identifier) == (2, largest, largest)
    assert equal(crystals_named([crystal.identifier])[0], crystal)


@pytest.mark.parametrize(
    "name", ["syn-0-1-1", "syn-231-1-1", "syn-62-1", "syn-062-1-1", "halite", f"syn-62-0-{2**64}"]
)
def test_what_is_no_name_is_unknown(name: str) -> None:
    assert parsed_identifier(name) is None
    with pytest.raises(UnknownIdentifier):
        open_sources(["synthetic"]).get(name)
    with pytest.raises(Rejected, match="no name"):
        crystals_named([name])


def test_names_are_read_in_pieces_with_one_digest() -> None:
    names = Generator(SyntheticSettings(seed=2)).identifiers(10_000)
    assert len(names) == 10_000
    assert names.read(4_095, 4_098) == [
        identifier_of(number % 230 + 1, 2, number) for number in range(4095, 4098)
    ]
    assert names.read(9_999, 10_050) == [identifier_of(9_999 % 230 + 1, 2, 9_999)]
    assert names.sha256 == hashlib.sha256("\n".join(names.read(0, 10_000)).encode()).hexdigest()


def test_weights_choose_the_groups() -> None:
    groups = Generator(SyntheticSettings(groups=(62, 225))).groups_of(np.arange(10))
    np.testing.assert_array_equal(groups, [62, 225] * 5)
    drawn = Generator(SyntheticSettings(weights="training")).groups_of(np.arange(50_000))
    share = np.bincount(drawn, minlength=231) / 50_000
    assert np.abs(share - group_weights()).max() < 0.005
    with pytest.raises(UsageError, match="no training crystal"):
        Generator(SyntheticSettings(groups=(89,), weights="training"))


@pytest.mark.parametrize("settings", [{"groups": (0,)}, {"groups": ()}, {"seed": -1}, {"groups": (231,)}])
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        SyntheticSettings(**settings)


# The table ----------------------------------------------------------------------------------------


def test_the_table_says_where_it_comes_from() -> None:
    told = provenance()
    assert told["split"] == "train"
    assert told["crystals_used"] > 20_000
    assert sum(told["licences"].values()) == told["crystals_used"]


def test_every_group_has_many_combinations() -> None:
    assert np.diff(tables().combination_start)[1:].min() >= 30
    for group in range(1, 231):
        last = tables().combination_start[group + 1] - 1
        assert tables().combination_weight[last] == pytest.approx(1, abs=1e-6)


def test_wyckoff_positions_are_as_many_as_in_the_tables() -> None:
    assert sum(len(wyckoff_positions(number)) for number in (1, 2, 47, 62, 167, 225, 227, 230)) == (
        1 + 9 + 27 + 4 + 6 + 12 + 9 + 8
    )
    spinel = [position.multiplicity for position in wyckoff_positions(227)]
    assert spinel == [8, 8, 16, 16, 32, 48, 96, 96, 192]


@pytest.mark.parametrize("number", [2, 14, 62, 88, 148, 167, 194, 205, 227, 230])
def test_an_orbit_is_recognised_on_its_position(number: int) -> None:
    rng = np.random.default_rng(number)
    rotations, translations = group_operations(number)
    for index, position in enumerate(wyckoff_positions(number)):
        free = rng.random(position.n_free)
        images = position.images(free)
        assert len(np.unique(np.round(images, 9) % 1, axis=0)) == position.multiplicity
        whole = (rotations @ images[0] + translations / GRID) % 1
        apart = whole[:, None] - images
        assert np.abs(apart - np.round(apart)).max(axis=2).min(axis=1).max() < 1e-9
        found = position_of_orbit(number, rng.permutation(images))
        assert found is not None
        assert found[0] == index
    assert position_of_orbit(number, images[:0]) is None
