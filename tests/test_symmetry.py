"""The tables of space groups, against facts that a crystallographer knows by heart."""

import re

import gemmi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.symmetry import (
    BRAVAIS_LATTICES,
    SPACE_GROUPS_144,
    bravais_lattice,
    crystal_system,
    enantiomorph,
    extinction_group,
    extinction_groups,
    find_symmetry,
    merged_number,
    merged_symbol,
    symbol,
)
from hxrd.errors import Rejected

ALL_GROUPS = range(1, 231)
TWELVE = (143, 147, 150, 156, 157, 162, 164, 174, 175, 187, 189, 191)


def test_lattices_and_classes_are_complete():
    assert len(BRAVAIS_LATTICES) == 14
    assert {bravais_lattice(number) for number in ALL_GROUPS} == set(BRAVAIS_LATTICES)
    assert len(SPACE_GROUPS_144) == 144
    assert list(SPACE_GROUPS_144) == sorted(set(SPACE_GROUPS_144))


@pytest.mark.parametrize(
    ("number", "system", "lattice", "text"),
    [
        (1, "triclinic", "aP", "P1"),
        (14, "monoclinic", "mP", "P2_1/c"),
        (15, "monoclinic", "mC", "C2/c"),
        (19, "orthorhombic", "oP", "P2_1 2_1 2_1"),
        (38, "orthorhombic", "oC", "Amm2"),
        (62, "orthorhombic", "oP", "Pnma"),
        (70, "orthorhombic", "oF", "Fddd"),
        (92, "tetragonal", "tP", "P4_1 2_1 2"),
        (141, "tetragonal", "tI", "I4_1/amd"),
        (152, "trigonal", "hP", "P3_1 2 1"),
        (166, "trigonal", "hR", "R-3m"),
        (194, "hexagonal", "hP", "P6_3/mmc"),
        (205, "cubic", "cP", "Pa-3"),
        (225, "cubic", "cF", "Fm-3m"),
        (229, "cubic", "cI", "Im-3m"),
    ],
)
def test_known_groups(number, system, lattice, text):
    assert (crystal_system(number), bravais_lattice(number), symbol(number)) == (system, lattice, text)


def test_symbols_are_unique_and_read_back_by_gemmi():
    symbols = [symbol(number) for number in ALL_GROUPS]
    assert len(set(symbols)) == 230
    for number, text in zip(ALL_GROUPS, symbols, strict=True):
        assert gemmi.find_spacegroup_by_name(re.sub("[_ ]", "", text)).number == number


def test_twins_of_the_contract():
    assert merged_symbol(96) == merged_symbol(92) == "P4_1 2_1 2 | P4_3 2_1 2"
    assert merged_number(96) == merged_number(92) == 92
    assert merged_symbol(225) == "Fm-3m"
    assert merged_number(225) == 225


def test_eleven_enantiomorphic_pairs():
    pairs = {(number, enantiomorph(number)) for number in ALL_GROUPS if enantiomorph(number)}
    lower = {pair for pair in pairs if pair[0] < pair[1]}
    assert pairs == lower | {(second, first) for first, second in lower}
    assert len(lower) == 11
    assert {(92, 96), (152, 154), (180, 181), (212, 213)} <= lower


def test_ninety_nine_extinction_groups_cover_all_groups_once():
    groups = extinction_groups()
    assert len(groups) == 99
    assert sorted(number for members in groups.values() for number in members) == list(ALL_GROUPS)
    assert all(extinction_group(number) == label for label, members in groups.items() for number in members)


def test_extinction_groups_of_the_144():
    classes = [[n for n in members if n in SPACE_GROUPS_144] for members in extinction_groups().values()]
    classes = [members for members in classes if members]
    assert len(classes) == 77
    assert sum(len(members) == 1 for members in classes) == 39
    assert tuple(max(classes, key=len)) == TWELVE


@pytest.mark.parametrize(
    ("number", "label"),
    [
        (2, "aP -"),
        (14, "mP 1 2_1/c 1"),
        (15, "mC 1 c 1"),
        (33, "oP n - a"),
        (62, "oP n - a"),
        (26, "oP - - a"),
        (40, "oC - c -"),
        (17, "oP - - 2_1"),
        (96, "tP 4_1 2_1 -"),
        (113, "tP - 2_1 -"),
        (86, "tP 4_2/n - -"),
        (141, "tI a - d"),
        (152, "hP 3_1 - -"),
        (180, "hP 6_2 - -"),
        (167, "hR - c"),
        (198, "cP 2_1 - -"),
        (208, "cP 4_2 - -"),
        (212, "cP 4_1 - -"),
        (230, "cI a - d"),
    ],
)
def test_extinction_symbols_of_the_tables(number, label):
    assert extinction_group(number) == label


def test_members_of_a_class_share_lattice_and_powder_lines():
    """The number of lines that a class leaves in a general cell of its lattice is one number."""
    cells = {
        **{"aP": (5, 6, 7, 80, 85, 95), "mP": (5, 6, 7, 90, 97, 90), "mC": (5, 6, 7, 90, 97, 90)},
        **dict.fromkeys(("oP", "oC", "oF", "oI"), (5, 6, 7, 90, 90, 90)),
        **dict.fromkeys(("tP", "tI"), (5, 5, 7, 90, 90, 90)),
        **dict.fromkeys(("hP", "hR"), (5, 5, 7, 90, 90, 120)),
        **dict.fromkeys(("cP", "cF", "cI"), (5, 5, 5, 90, 90, 90)),
    }
    for members in extinction_groups().values():
        assert len({bravais_lattice(number) for number in members}) == 1
        if bravais_lattice(members[0])[0] == "o":
            continue  # settings differ by the order of the axes, so a fixed cell says nothing
        cell = gemmi.UnitCell(*cells[bravais_lattice(members[0])])
        lines = set()
        for number in members:
            group = gemmi.get_spacegroup_reference_setting(number)
            hkl = gemmi.make_miller_array(cell, group, 1.2)
            lines.add(tuple(sorted({round(float(d), 6) for d in cell.calculate_d_array(hkl)})))
        assert len(lines) == 1, members


@given(st.integers(1, 230))
def test_twins_share_everything_a_powder_pattern_shows(number):
    twin = enantiomorph(number)
    if twin is not None:
        assert bravais_lattice(twin) == bravais_lattice(number)
        assert crystal_system(twin) == crystal_system(number)
        assert extinction_group(twin) == extinction_group(number)
        assert enantiomorph(twin) == number
    assert merged_number(number) <= number


@pytest.mark.parametrize("function", [symbol, bravais_lattice, extinction_group, crystal_system])
@pytest.mark.parametrize("number", [0, 231, -1])
def test_no_such_group(function, number):
    with pytest.raises(ValueError, match="between 1 and 230"):
        function(number)


def _rock_salt(second="Cl", occupancy=1.0):
    face_centred = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Crystal(
        identifier="rock salt",
        cell=np.array([5.64, 5.64, 5.64, 90, 90, 90]),
        species=("Na",) * 4 + (second,) * 4,
        positions=np.concatenate([face_centred, face_centred + 0.5]) % 1.0,
        occupancy=np.full(8, occupancy),
        b_iso=np.zeros(8),
    )


def test_symmetry_of_rock_salt():
    found = find_symmetry(_rock_salt())
    assert found.space_group == 225
    assert found.rotations.shape == (192, 3, 3)
    assert found.translations.shape == (192, 3)
    assert found.rotations.dtype == np.int8


def test_alike_sites_make_a_smaller_primitive_cell():
    found = find_symmetry(_rock_salt(second="Na"))
    assert found.space_group == 221
    assert len(found.rotations) == 8 * 48


def test_operations_map_the_crystal_onto_itself():
    found = find_symmetry(_rock_salt())
    images = np.einsum("nij,aj->nai", found.rotations.astype(float), found.positions)
    images += found.translations[:, None, :]
    apart = images[:, :, None, :] - found.positions[None, None]
    apart -= np.round(apart)
    assert np.all(np.linalg.norm(apart, axis=-1).min(axis=-1) < 1e-9)


def test_species_that_share_a_position_count_as_one_atom():
    whole = _rock_salt(occupancy=0.5)
    mixed = Crystal(
        identifier="mixed",
        cell=whole.cell,
        species=whole.species + ("K",) * 4,
        positions=np.concatenate([whole.positions, whole.positions[:4]]),
        occupancy=np.full(12, 0.5),
        b_iso=np.zeros(12),
    )
    assert find_symmetry(mixed).space_group == 225


def test_occupancy_breaks_symmetry():
    crystal = _rock_salt()
    crystal.occupancy[0] = 0.5
    assert find_symmetry(crystal).space_group == 221


def test_symmetry_search_that_fails_is_a_rejection():
    with pytest.raises(Rejected, match="no symmetry found"):
        find_symmetry(_rock_salt(), tolerance=-1.0)


def test_no_atoms_have_no_symmetry():
    empty = Crystal(
        "empty", np.array([5.0, 5, 5, 90, 90, 90]), (), np.zeros((0, 3)), np.zeros(0), np.zeros(0)
    )
    with pytest.raises(Rejected, match="no atoms"):
        find_symmetry(empty)
