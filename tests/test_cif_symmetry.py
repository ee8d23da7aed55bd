"""The whole cell of a CIF file: groups, settings and special positions, against gemmi and pymatgen."""

import warnings

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_cifs import (
    CORUNDUM_R,
    GROUP,
    HEXAGONAL,
    ORTHORHOMBIC,
    cif_text,
    crystal_of,
    operations_loop,
    rejection_of,
)

from hxrd.crystal.symmetry import find_symmetry


def _content(crystal):
    """Sorted (species, x, y, z, occupancy), to compare crystals whatever their order of atoms."""
    rows = zip(crystal.species, np.round(crystal.positions % 1.0, 4) % 1.0, crystal.occupancy, strict=True)
    return sorted((name, *map(float, place), round(float(share), 4)) for name, place, share in rows)


def test_rock_salt_by_name(tmp_path):
    crystal = crystal_of(tmp_path, cif_text(header=f"{GROUP} 'F m -3 m'"))
    assert crystal.species.count("Na") == crystal.species.count("Cl") == 4
    assert crystal.space_group == 225
    assert crystal.rotations.shape == (192, 3, 3)
    assert np.allclose(crystal.occupancy, 1)
    assert np.all(crystal.b_iso == 0)


@pytest.mark.parametrize(
    "header",
    [
        "_symmetry_space_group_name_H-M 'F m -3 m'",
        "_space_group_name_Hall '-F 4 2 3'",
        "_space_group_IT_number 225",
        "_symmetry_Int_Tables_number 225",
        "_space_group_name_H-M_alt Fm-3m",
        "_space_group.name_H-M_alt 'F m -3 m'",
        "\n".join(
            ["loop_", "_symmetry_equiv_pos_as_xyz"]
            + [f"'{op.triplet()}'" for op in gemmi.SpaceGroup("F m -3 m").operations()]
        ),
    ],
)
def test_every_way_to_state_the_group(tmp_path, header):
    crystal = crystal_of(tmp_path, cif_text(header=header))
    assert crystal.space_group == 225
    assert len(crystal.species) == 8


def test_special_position_counts_once_even_when_rounded(tmp_path):
    """Si of quartz-like sites: 0.3333 stands for 1/3, and a mirror 0.0004 away is the mirror."""
    text = cif_text(
        cell=(3.2, 3.2, 5.2, 90, 90, 120),
        header=f"{GROUP} 'P 63/m m c'",
        sites=("Mg Mg 0.3333 0.6667 0.2504 1",),
    )
    crystal = crystal_of(tmp_path, text)
    assert len(crystal.species) == 2
    assert np.allclose(np.sort(crystal.positions[:, 2]), [0.25, 0.75], atol=1e-9)
    assert np.allclose(np.sort(crystal.positions[:, 0]), [1 / 3, 2 / 3], atol=1e-9)


def test_split_site_stays_split(tmp_path):
    """Half atoms 0.3 Å from a mirror are two atoms, not one on the mirror."""
    text = cif_text(
        cell=(5, 5, 5, 90, 90, 90),
        header=f"{GROUP} 'P m m m'",
        sites=("Na Na 0.03 0 0 0.5", "Cl Cl 0.5 0.5 0.5 1"),
    )
    assert crystal_of(tmp_path, text).species.count("Na") == 2


def test_content_agrees_with_gemmi_counting_every_image(tmp_path):
    """gemmi: occupancies made crystallographic, then each operation's image counted."""
    text = cif_text(
        cell=ORTHORHOMBIC,
        header=f"{GROUP} 'P n m a'",
        sites=(
            "Ca Ca 0.036 0.25 0.993 0.9",
            "Ti Ti 0 0 0.5 1",
            "O1 O 0.484 0.25 0.071 1",
            "O2 O 0.289 0.037 0.711 0.8",
        ),
    )
    crystal = crystal_of(tmp_path, text)
    structure = gemmi.make_small_structure_from_block(gemmi.cif.read_string(text)[0])
    structure.change_occupancies_to_crystallographic()
    operations = list(structure.spacegroup.operations())
    expected: dict[str, float] = {}
    for site in structure.sites:
        name = site.element.name
        expected[name] = expected.get(name, 0.0) + site.occ * len(operations)
    found = {name: 0.0 for name in crystal.species}
    for name, occupancy in zip(crystal.species, crystal.occupancy, strict=True):
        found[name] += float(occupancy)
    assert found == pytest.approx(expected)
    assert found == pytest.approx({"Ca": 3.6, "Ti": 4.0, "O": 4 + 6.4})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("cell", "group", "sites"),
    [
        (ORTHORHOMBIC, "P n m a", ("Ca Ca 0.48 0.25 0.01 1", "Ti Ti 0 0 0 1", "O2 O 0.29 0.46 0.71 1")),
        (HEXAGONAL, "R -3 c", ("Al Al 0 0 0.3522 1", "O O 0.3064 0 0.25 1")),
        ((4.6, 4.6, 2.95, 90, 90, 90), "P 42/m n m", ("Ti Ti 0 0 0 1", "O O 0.3053 0.3053 0 1")),
        ((5.1, 5.2, 5.3, 90, 99, 90), "P 1 21/c 1", ("Zr Zr 0.2754 0.0395 0.2083 1", "O O 0.07 0.33 0.34 1")),
        ((5.1, 5.2, 5.3, 90, 99, 90), "P 1 21/n 1", ("Zr Zr 0.2754 0.0395 0.2083 1", "O O 0.07 0.33 0.34 1")),
    ],
)
def test_content_agrees_with_pymatgen(tmp_path, cell, group, sites):
    from pymatgen.io.cif import CifParser

    ops = [f"{op.triplet()}" for op in gemmi.SpaceGroup(group).operations()]
    text = cif_text(cell=cell, header=f"{GROUP} '{group}'\n{operations_loop(*ops)}", sites=sites)
    crystal = crystal_of(tmp_path, text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (structure,) = CifParser.from_str(text).parse_structures(primitive=False)
    expected = sorted(
        (site.specie.symbol, *(float(x) for x in np.round(site.frac_coords % 1.0, 4) % 1.0), 1.0)
        for site in structure
    )
    assert _content(crystal) == expected


def test_rhombohedral_cells_in_both_settings(tmp_path):
    hexagonal = crystal_of(
        tmp_path,
        cif_text(
            cell=HEXAGONAL, header=f"{GROUP} 'R -3 c'", sites=("Al Al 0 0 0.3522 1", "O O 0.3064 0 0.25 1")
        ),
    )
    primitive = crystal_of(
        tmp_path,
        cif_text(
            cell=CORUNDUM_R,
            header=f"{GROUP} 'R -3 c'",
            sites=("Al Al 0.3522 0.3522 0.3522 1", "O O 0.5564 0.9436 0.25 1"),
        ),
    )
    assert hexagonal.space_group == primitive.space_group == 167
    assert (len(hexagonal.species), len(primitive.species)) == (30, 10)
    assert (len(hexagonal.rotations), len(primitive.rotations)) == (36, 12)
    for crystal in (hexagonal, primitive):
        assert find_symmetry(crystal).space_group == 167


@pytest.mark.parametrize("name", ["R -3 c :R", "R -3 c R", "R -3 c:R"])
def test_rhombohedral_axes_may_be_named(tmp_path, name):
    sites = ("Al Al 0.3522 0.3522 0.3522 1", "O O 0.5564 0.9436 0.25 1")
    crystal = crystal_of(tmp_path, cif_text(cell=CORUNDUM_R, header=f"{GROUP} '{name}'", sites=sites))
    assert len(crystal.species) == 10


@pytest.mark.parametrize(
    ("name", "origin"),
    [("F d -3 m :1", 0.0), ("F d -3 m S", 0.0), ("F d -3 m :2", 0.125), ("F d -3 m Z", 0.125)],
)
def test_named_origin(tmp_path, name, origin):
    text = cif_text(header=f"{GROUP} '{name}'", sites=(f"C C {origin} {origin} {origin} 1",))
    assert len(crystal_of(tmp_path, text).species) == 8


@pytest.mark.parametrize("origin", [0.0, 0.125])
@pytest.mark.parametrize("header", [f"{GROUP} 'F d -3 m'", "_space_group_IT_number 227"])
def test_unnamed_origin_is_the_one_that_makes_sense(tmp_path, header, origin):
    text = cif_text(header=header, sites=(f"C C {origin} {origin} {origin} 1",))
    assert len(crystal_of(tmp_path, text).species) == 8


@pytest.mark.parametrize(("special", "oxygen"), [((0.125, 0.5), 0.2624), ((0.0, 0.625), 0.3874)])
def test_formula_decides_the_origin_of_spinel(tmp_path, special, oxygen):
    sites = (
        "Mg Mg {0} {0} {0} 1".format(special[0]),
        "Al Al {0} {0} {0} 1".format(special[1]),
        f"O O {oxygen} {oxygen} {oxygen} 1",
    )
    header = f"{GROUP} 'F d -3 m'\n_chemical_formula_sum 'Al2 Mg O4'"
    crystal = crystal_of(tmp_path, cif_text(cell=(8.08, 8.08, 8.08, 90, 90, 90), header=header, sites=sites))
    assert [crystal.species.count(name) for name in ("Mg", "Al", "O")] == [8, 16, 32]


def test_unusual_setting_by_its_operations(tmp_path):
    """P m m n on a doubled axis, so centred at (1/2, 0, 0): untabulated, so the atoms tell the group."""
    double = gemmi.Op("1/2*x,y,z")
    centring = gemmi.Op("x+1/2,y,z")
    listed = [double * op * double.inverse() for op in gemmi.SpaceGroup("P m m n:2").operations()]
    listed += [centring * op for op in listed]
    text = cif_text(
        cell=(8, 4, 5, 90, 90, 90),
        header=operations_loop(*(op.wrap().triplet() for op in listed)),
        sites=("Na Na 0.125 0.25 0.11 1", "Cl Cl 0.375 0.25 0.37 1"),
    )
    crystal = crystal_of(tmp_path, text)
    assert crystal.space_group == 59
    assert len(crystal.rotations) == 16


def test_file_without_symmetry_is_taken_as_it_stands(tmp_path):
    crystal = crystal_of(tmp_path, cif_text())
    assert crystal.space_group == 0
    assert crystal.species == ("Na", "Cl")
    assert len(crystal.rotations) == 1


def test_p1_is_p1(tmp_path):
    crystal = crystal_of(tmp_path, cif_text(header=f"{GROUP} 'P 1'\n{operations_loop('x, y, z')}"))
    assert crystal.space_group == 1


@pytest.mark.parametrize("group", ["P n m a", "R -3 c", "I 41/a c d", "P 63/m m c", "F d -3 c"])
def test_operations_are_kept_in_the_files_setting(tmp_path, group):
    cells = {
        "P n m a": ORTHORHOMBIC,
        "I 41/a c d": (9, 9, 12, 90, 90, 90),
        "F d -3 c": (15, 15, 15, 90, 90, 90),
    }
    text = cif_text(
        cell=cells.get(group, HEXAGONAL), header=f"{GROUP} '{group}'", sites=("Na Na 0.07 0.31 0.15 1",)
    )
    crystal = crystal_of(tmp_path, text)
    assert len(crystal.species) == len(crystal.rotations)  # a general position
    turned = np.einsum("nij,aj->nai", crystal.rotations.astype(float), crystal.positions)
    turned += crystal.translations[:, None]
    apart = turned[:, :1] - crystal.positions[None]
    assert np.abs(apart - np.round(apart)).max(axis=-1).min(axis=-1).max() < 1e-6


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(1, 230),
    position=st.tuples(*[st.floats(0.05, 0.2)] * 3),
)
def test_general_positions_fill_every_group(tmp_path_factory, number, position):
    """Any of the 230 groups, by symbol: as many atoms as operations, or fewer on a special position."""
    group = gemmi.get_spacegroup_reference_setting(number)
    cells = {
        "triclinic": (13, 14, 15, 85, 95, 105),
        "monoclinic": (13, 14, 15, 90, 105, 90),
        "orthorhombic": (13, 14, 15, 90, 90, 90),
        "tetragonal": (14, 14, 17, 90, 90, 90),
        "trigonal": (14, 14, 17, 90, 90, 120),
        "hexagonal": (14, 14, 17, 90, 90, 120),
        "cubic": (30, 30, 30, 90, 90, 90),
    }
    sites = ("Na Na {:.5f} {:.5f} {:.5f} 0.01".format(*position),)
    text = cif_text(cell=cells[group.crystal_system_str()], header=f"{GROUP} '{group.xhm()}'", sites=sites)
    crystal = crystal_of(tmp_path_factory.mktemp("group"), text)
    assert crystal.space_group == number
    assert len(crystal.rotations) == len(list(group.operations()))
    assert len(crystal.rotations) % len(crystal.species) == 0


def test_a_group_number_that_does_not_exist_is_no_p1(tmp_path):
    header = "_symmetry_Int_Tables_number 999"
    assert "unknown space group '999'" in rejection_of(tmp_path, cif_text(header=header))


def test_listed_operations_need_no_known_name(tmp_path):
    header = f"{GROUP} 'my own setting'\n" + operations_loop("x,y,z", "-x,-y,-z")
    assert len(crystal_of(tmp_path, cif_text(header=header)).rotations) == 2
