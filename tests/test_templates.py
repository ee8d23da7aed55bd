"""Varied crystals keep what their label stands for: the space group, and who shares a place."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from built_crystals import CARE_CASES, built

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.symmetry import crystal_system, find_symmetry
from hxrd.errors import Rejected
from hxrd.simulate.templates import TemplateSampler, TemplateSettings, make_template, templates_from
from hxrd.sources.prototypes import PrototypeSource

USUAL = TemplateSettings()
STILL = TemplateSettings(
    exchange_probability=0, scale_sigma=0, strain_sigma=0, displacement=0, b_iso_probability=0
)
POOL = ["Fe", "O", "Na", "Cl", "Ti", "Sr", "D", "Zr", "Fe", "O", "O"]


@pytest.fixture(scope="module")
def prototypes() -> list[Crystal]:
    source = PrototypeSource()
    return [source.get(identifier) for identifier in source.identifiers()]


@pytest.fixture(scope="module")
def sampler(prototypes: list[Crystal]) -> TemplateSampler:
    templates, pool = templates_from(prototypes)
    return TemplateSampler(templates, TemplateSettings(), pool)


def sampler_of(crystal: Crystal, settings: TemplateSettings = USUAL) -> TemplateSampler:
    return TemplateSampler([make_template(crystal)], settings, POOL)


def drawn(sampler: TemplateSampler, index: int = 0, seed: int = 0) -> Crystal:
    return sampler.draw(index, np.random.default_rng(seed))


def trusted(sampler: TemplateSampler) -> list[int]:
    return [index for index, template in enumerate(sampler.templates) if template.image is not None]


def test_nearly_all_prototypes_are_trusted(sampler: TemplateSampler) -> None:
    assert len(sampler.templates) >= 280
    assert len(trusted(sampler)) >= 0.9 * len(sampler.templates)


def test_every_drawn_prototype_keeps_its_space_group(sampler: TemplateSampler) -> None:
    changed = []
    for index in trusted(sampler):
        template = sampler.templates[index]
        found = find_symmetry(drawn(sampler, index, seed=index))
        if found.space_group != template.crystal.space_group:
            changed.append((template.crystal.identifier, template.crystal.space_group, found.space_group))
    assert changed == []


def test_draws_differ_from_their_template_and_from_each_other(sampler: TemplateSampler) -> None:
    index = trusted(sampler)[0]
    cells = np.array([drawn(sampler, index, seed).cell for seed in range(20)])
    scale = cells[:, 0] / sampler.templates[index].crystal.cell[0]
    assert len(np.unique(scale)) == 20
    assert 0.02 < np.std(np.log(scale)) < 0.2


def metric_freedom(cell: np.ndarray) -> set[str]:
    """What a conventional cell's edges and angles must satisfy, seen in the cell itself."""
    a, b, c, alpha, beta, gamma = cell

    def same(one: float, other: float) -> bool:
        return abs(one - other) < 1e-6

    relations = {"a=b": same(a, b), "b=c": same(b, c)}
    relations |= {"α=90": same(alpha, 90), "β=90": same(beta, 90), "γ=90": same(gamma, 90)}
    relations |= {"γ=120": same(gamma, 120), "α=β=γ": same(alpha, beta) and same(beta, gamma)}
    return {name for name, holds in relations.items() if holds}


RIGHT = {"α=90", "β=90", "γ=90", "α=β=γ"}
FREEDOM = {
    "special positions": {"a=b", "b=c", *RIGHT},
    "cubic, lower Laue class": {"a=b", "b=c", *RIGHT},
    "R cell, hexagonal": {"a=b", "α=90", "β=90", "γ=120"},
    "R cell, rhombohedral": {"a=b", "b=c", "α=β=γ"},
    "trigonal, Laue class -3m1": {"a=b", "α=90", "β=90", "γ=120"},
    "absorber without a centre": {"a=b", "α=90", "β=90", "γ=120"},
    "lines at very low angles": RIGHT,
    "monoclinic, no centre": {"α=90", "γ=90"},
    "triclinic": set(),
}


@pytest.mark.parametrize(("case", "relations"), FREEDOM.items())
def test_the_cell_keeps_its_system_and_no_more(case: str, relations: set[str]) -> None:
    sampler = sampler_of(CARE_CASES[case])
    for seed in range(5):
        assert metric_freedom(drawn(sampler, seed=seed).cell) == relations


def test_strain_and_scale_are_as_large_as_asked_for() -> None:
    ratio = cells_relative_to_template(TemplateSettings(**{**vars_of(STILL), "strain_sigma": 0.03}))
    assert np.std(ratio[:, :3], axis=0) == pytest.approx(0.03, rel=0.25)
    ratio = cells_relative_to_template(TemplateSettings(**{**vars_of(STILL), "scale_sigma": 0.05}))
    np.testing.assert_allclose(ratio[:, 3:], 1, rtol=1e-9)
    np.testing.assert_allclose(ratio[:, 1:3], ratio[:, :1].repeat(2, axis=1), rtol=1e-9)
    assert np.std(np.log(ratio[:, 0])) == pytest.approx(0.05, rel=0.25)


def cells_relative_to_template(settings: TemplateSettings) -> np.ndarray:
    template = CARE_CASES["triclinic"]
    sampler = sampler_of(template, settings)
    return np.array([drawn(sampler, seed=seed).cell for seed in range(200)]) / template.cell


def vars_of(settings: TemplateSettings) -> dict[str, float]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


def test_without_variation_a_draw_is_its_template(
    prototypes: list[Crystal], sampler: TemplateSampler
) -> None:
    still = TemplateSampler(sampler.templates, STILL, POOL)
    for index in range(0, len(prototypes), 29):
        crystal, found = prototypes[index], drawn(still, index)
        np.testing.assert_allclose(found.cell, crystal.cell, rtol=1e-7, atol=1e-6)
        np.testing.assert_array_equal(found.positions, crystal.positions)
        np.testing.assert_array_equal(found.b_iso, crystal.b_iso)
        assert found.species == crystal.species


def test_the_same_seed_gives_the_same_crystal(sampler: TemplateSampler) -> None:
    for index in (0, 17, 100):
        one, again, other = (drawn(sampler, index, seed) for seed in (5, 5, 6))
        for name in ("cell", "positions", "b_iso", "occupancy"):
            np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
        assert one.species == again.species
        assert not np.array_equal(one.cell, other.cell)


def test_a_seed_alone_decides_a_draw(sampler: TemplateSampler) -> None:
    one, again = sampler.draw_seeded(17, 2**64 - 1), sampler.draw_seeded(17, 2**64 - 1)
    np.testing.assert_array_equal(one.positions, again.positions)
    np.testing.assert_array_equal(one.cell, again.cell)
    assert not np.array_equal(sampler.draw_seeded(17, 0).cell, one.cell)


def test_a_rare_element_is_found_when_the_others_are_taken() -> None:
    sampler = TemplateSampler([make_template(SHARED)], USUAL, ["O"] * 10_000 + ["Na", "Cl", "Sr"])
    for seed in range(30):
        assert len(set(sampler.draw_seeded(0, seed).species)) == 4


# Places -------------------------------------------------------------------------------------------

SHARED = built(
    "P m n a",
    (7.1, 6.2, 5.3, 90, 90, 90),
    [
        ("Na", (0, 0.13, 0.21), 0.6), ("Sr", (0, 0.13, 0.21), 0.4),
        ("O", (0.25, 0.31, 0.75), 0.9, 1.2), ("Cl", (0.11, 0.4, 0.62)),
    ],
)  # fmt: skip
MOVED = TemplateSettings(**{**vars_of(STILL), "displacement": 0.1})


def test_species_that_share_a_place_still_share_it() -> None:
    found = drawn(sampler_of(SHARED))
    np.testing.assert_array_equal(found.occupancy, SHARED.occupancy)
    first, second = SHARED.species.index("Na"), SHARED.species.index("Sr")
    for offset in range(4):
        np.testing.assert_allclose(
            found.positions[first + offset], found.positions[second + offset], atol=1e-12
        )
    assert find_symmetry(found).space_group == SHARED.space_group == 53


def test_free_coordinates_move_and_fixed_ones_stay() -> None:
    sampler = sampler_of(SHARED, MOVED)
    moves = np.array([drawn(sampler, seed=seed).positions for seed in range(200)])
    moves = (moves - SHARED.positions) * SHARED.cell[:3]
    on_mirror = [index for index, name in enumerate(SHARED.species) if name in ("Na", "Sr")]  # 4h: 0 y z
    on_axis = [index for index, name in enumerate(SHARED.species) if name == "O"]  # 4g: ¼ y ¼
    free = [index for index, name in enumerate(SHARED.species) if name == "Cl"]  # 8i: x y z
    assert np.abs(moves[:, on_mirror, 0]).max() < 1e-9
    assert np.abs(moves[:, on_axis][..., [0, 2]]).max() < 1e-9
    # an orbit's move is as large as asked for along each free coordinate, however large the orbit
    assert moves[:, on_mirror, 1:].std(axis=0) == pytest.approx(0.1, rel=0.25)
    assert moves[:, on_axis, 1].std(axis=0) == pytest.approx(0.1, rel=0.25)
    assert moves[:, free].std(axis=0) == pytest.approx(0.1, rel=0.25)


def test_a_crystal_without_free_coordinates_does_not_move() -> None:
    rock_salt = CARE_CASES["special positions"]
    found = drawn(sampler_of(rock_salt, MOVED))
    np.testing.assert_allclose(found.positions, rock_salt.positions, atol=1e-12)


def test_every_operation_still_maps_the_drawn_crystal_onto_itself() -> None:
    found = find_symmetry(SHARED)
    moved = drawn(sampler_of(SHARED), seed=3)
    images = np.einsum("nij,aj->nai", found.rotations.astype(float), moved.positions)
    images += found.translations[:, None, :]
    apart = images[:, :, None, :] - moved.positions
    apart -= np.round(apart)
    assert np.linalg.norm(apart, axis=-1).min(axis=-1).max() < 1e-9


def test_positions_beyond_the_cell_move_with_their_equals() -> None:
    cells = np.arange(len(SHARED.species))[:, None] % 3 - 1.0
    shifted = replace(SHARED, positions=SHARED.positions + cells)
    inside, outside = drawn(sampler_of(SHARED, MOVED)), drawn(sampler_of(shifted, MOVED))
    moves = outside.positions - shifted.positions
    np.testing.assert_allclose(moves, inside.positions - SHARED.positions, atol=1e-9)


# Elements -----------------------------------------------------------------------------------------


def test_exchange_keeps_distinct_species_distinct_and_equal_ones_equal(sampler: TemplateSampler) -> None:
    for index in range(0, len(sampler.templates), 7):
        before = sampler.templates[index].crystal.species
        for seed in range(10):
            after = drawn(sampler, index, seed).species
            assert len(set(zip(before, after, strict=True))) == len(set(before)) == len(set(after))


def test_as_many_are_exchanged_as_asked_for_and_only_from_the_pool() -> None:
    rock_salt = CARE_CASES["special positions"]
    sampler = sampler_of(rock_salt)
    species = [drawn(sampler, seed=seed).species for seed in range(300)]
    assert {name for names in species for name in names} <= set(POOL)
    unchanged = np.mean([names == rock_salt.species for names in species])
    assert unchanged == pytest.approx(0.3 + 0.7 / 60, abs=0.08)
    first = [names[0] for names in species if names != rock_salt.species]
    assert first.count("O") > first.count("Ti")  # as often as they stand in the pool


def test_displacement_parameters_are_drawn_or_kept() -> None:
    sampler = sampler_of(SHARED)
    draws = [drawn(sampler, seed=seed).b_iso for seed in range(200)]
    kept = [np.array_equal(b_iso, SHARED.b_iso) for b_iso in draws]
    assert np.mean(kept) == pytest.approx(0.5, abs=0.12)
    values = np.array([b_iso for b_iso, same in zip(draws, kept, strict=True) if not same])
    assert np.all(values == values[:, :1])
    assert 0 <= values.min() < 0.2
    assert 1.8 < values.max() <= 2.0


# Doubtful templates -------------------------------------------------------------------------------

SALT = CARE_CASES["special positions"]
DOUBLED = Crystal(  # along c: its lattice lacks the threefold axes
    identifier="doubled",
    cell=SALT.cell * [1, 1, 2, 1, 1, 1],
    species=SALT.species * 2,
    positions=np.concatenate([SALT.positions, np.add(SALT.positions, [0, 0, 1])]) / [1, 1, 2],
    occupancy=np.ones(16),
    b_iso=np.zeros(16),
    space_group=225,
)


def test_a_supercell_keeps_the_operations_of_its_lattice_and_says_so_only_as_a_detail() -> None:
    told: dict[str, list[str]] = {"moyo": [], "hxrd.crystal.symmetry": []}

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told[record.name].append(f"{record.levelname} {record.getMessage()}")

    listener, own = Listener(), logging.getLogger("hxrd.crystal.symmetry")
    level = own.level
    for name in told:
        logging.getLogger(name).addHandler(listener)
    own.setLevel(logging.DEBUG)
    found = find_symmetry(DOUBLED)
    own.setLevel(level)
    for name in told:
        logging.getLogger(name).removeHandler(listener)
    assert told["moyo"] == []
    assert [line.startswith("DEBUG moyo: Omitted 3") for line in told["hxrd.crystal.symmetry"]] == [True]
    assert logging.getLogger("moyo").filters == []
    assert found.space_group == 225
    assert len(np.unique(found.rotations, axis=0)) == 16  # of 48: those of 4/mmm
    for rotation in found.rotations.astype(float):
        np.testing.assert_allclose(rotation.T @ DOUBLED.metric @ rotation, DOUBLED.metric, atol=1e-9)


def test_a_template_whose_group_is_not_the_one_found_only_scales() -> None:
    declared = replace(CARE_CASES["triclinic"], space_group=1)  # its atoms have P -1
    assert make_template(declared).image is None
    sampler = sampler_of(declared, TemplateSettings(exchange_probability=0))
    for seed in range(5):
        found = drawn(sampler, seed=seed)
        np.testing.assert_array_equal(found.positions, declared.positions)
        np.testing.assert_allclose(found.cell[3:], declared.cell[3:], rtol=1e-12)
        scale = found.cell[:3] / declared.cell[:3]
        np.testing.assert_allclose(scale, scale[0], rtol=1e-12)
        assert scale[0] != 1


def test_a_supercell_without_all_rotations_of_its_group_only_scales() -> None:
    assert make_template(DOUBLED).image is None
    assert find_symmetry(drawn(sampler_of(DOUBLED), seed=1)).space_group == 225


def test_there_is_nothing_to_draw_from_no_crystals() -> None:
    with pytest.raises(Rejected, match="no crystals"):
        templates_from([])


@pytest.mark.parametrize("name", ["exchange_probability", "b_iso_probability"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_impossible_shares_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        TemplateSettings(**{name: value})


@pytest.mark.parametrize("name", ["scale_sigma", "strain_sigma", "displacement", "b_iso_max"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_impossible_sizes_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        TemplateSettings(**{name: value})


def test_the_prototypes_cover_every_crystal_system(prototypes: list[Crystal]) -> None:
    assert len({crystal_system(crystal.space_group) for crystal in prototypes}) == 7
