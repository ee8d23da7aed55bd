"""CIF files: what a crystal's cell holds, against gemmi's own expansion, pymatgen and hand-made facts."""

import gzip
import re
import warnings

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hxrd.crystal.cif import crystals_from_cif, read_cif
from hxrd.crystal.species import normalized_species, species_from_label
from hxrd.crystal.symmetry import find_symmetry
from hxrd.errors import InputError, Rejected, UsageError

CUBIC = (5.64, 5.64, 5.64, 90, 90, 90)
HEXAGONAL = (4.76, 4.76, 12.99, 90, 90, 120)
CORUNDUM_R = (5.13, 5.13, 5.13, 55.3, 55.3, 55.3)
ORTHORHOMBIC = (5.5, 7.7, 5.4, 90, 90, 90)
GROUP = "_space_group_name_H-M_alt"


def _cif(
    cell=CUBIC, header="", sites=("Na1 Na 0 0 0 1", "Cl1 Cl 0.5 0.5 0.5 1"), columns=(), name="x", tail=""
):
    tags = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy", *columns)
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{name}"]
    lines += [f"_cell_{tag} {value}" for tag, value in zip(names, cell, strict=True)]
    lines += [header, "loop_", *(f"_atom_site_{tag}" for tag in tags), *sites, tail]
    return "\n".join(lines) + "\n"


def _operations(*triplets):
    return "\n".join(["loop_", "_space_group_symop_operation_xyz", *(f"'{text}'" for text in triplets)])


def _write(tmp_path, text, name="crystal.cif"):
    path = tmp_path / name
    path.write_text(text)
    return path


def _one(tmp_path, text):
    (crystal,) = read_cif(_write(tmp_path, text))
    return crystal


def _rejection(tmp_path, text):
    ((_, outcome),) = crystals_from_cif(_write(tmp_path, text))
    assert isinstance(outcome, Rejected), outcome
    assert "\n" not in str(outcome)
    return str(outcome)


def _content(crystal):
    """Sorted (species, x, y, z, occupancy), to compare crystals whatever their order of atoms."""
    rows = zip(crystal.species, np.round(crystal.positions % 1.0, 4) % 1.0, crystal.occupancy, strict=True)
    return sorted((name, *map(float, place), round(float(share), 4)) for name, place, share in rows)


def test_rock_salt_by_name(tmp_path):
    crystal = _one(tmp_path, _cif(header=f"{GROUP} 'F m -3 m'"))
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
    crystal = _one(tmp_path, _cif(header=header))
    assert crystal.space_group == 225
    assert len(crystal.species) == 8


def test_special_position_counts_once_even_when_rounded(tmp_path):
    """Si of quartz-like sites: 0.3333 stands for 1/3, and a mirror 0.0004 away is the mirror."""
    text = _cif(
        cell=(3.2, 3.2, 5.2, 90, 90, 120),
        header=f"{GROUP} 'P 63/m m c'",
        sites=("Mg Mg 0.3333 0.6667 0.2504 1",),
    )
    crystal = _one(tmp_path, text)
    assert len(crystal.species) == 2
    assert np.allclose(np.sort(crystal.positions[:, 2]), [0.25, 0.75], atol=1e-9)
    assert np.allclose(np.sort(crystal.positions[:, 0]), [1 / 3, 2 / 3], atol=1e-9)


def test_split_site_stays_split(tmp_path):
    """Half atoms 0.3 Å from a mirror are two atoms, not one on the mirror."""
    text = _cif(
        cell=(5, 5, 5, 90, 90, 90),
        header=f"{GROUP} 'P m m m'",
        sites=("Na Na 0.03 0 0 0.5", "Cl Cl 0.5 0.5 0.5 1"),
    )
    assert _one(tmp_path, text).species.count("Na") == 2


def test_partial_occupancy_and_shared_sites(tmp_path):
    sites = ("Na1 Na 0 0 0 0.75(2)", "K1 K 0 0 0 0.25", "Cl1 Cl 0.5 0.5 0.5 .")
    crystal = _one(tmp_path, _cif(header=f"{GROUP} 'F m -3 m'", sites=sites))
    shares = {name: set() for name in crystal.species}
    for name, occupancy in zip(crystal.species, crystal.occupancy, strict=True):
        shares[name].add(float(occupancy))
    assert shares == {"Na": {0.75}, "K": {0.25}, "Cl": {1.0}}
    assert len(crystal.species) == 12


def test_content_agrees_with_gemmi_counting_every_image(tmp_path):
    """gemmi: occupancies made crystallographic, then each operation's image counted."""
    text = _cif(
        cell=ORTHORHOMBIC,
        header=f"{GROUP} 'P n m a'",
        sites=(
            "Ca Ca 0.036 0.25 0.993 0.9",
            "Ti Ti 0 0 0.5 1",
            "O1 O 0.484 0.25 0.071 1",
            "O2 O 0.289 0.037 0.711 0.8",
        ),
    )
    crystal = _one(tmp_path, text)
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
    text = _cif(cell=cell, header=f"{GROUP} '{group}'\n{_operations(*ops)}", sites=sites)
    crystal = _one(tmp_path, text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (structure,) = CifParser.from_str(text).parse_structures(primitive=False)
    expected = sorted(
        (site.specie.symbol, *(float(x) for x in np.round(site.frac_coords % 1.0, 4) % 1.0), 1.0)
        for site in structure
    )
    assert _content(crystal) == expected


def test_rhombohedral_cells_in_both_settings(tmp_path):
    hexagonal = _one(
        tmp_path,
        _cif(cell=HEXAGONAL, header=f"{GROUP} 'R -3 c'", sites=("Al Al 0 0 0.3522 1", "O O 0.3064 0 0.25 1")),
    )
    primitive = _one(
        tmp_path,
        _cif(
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
    crystal = _one(tmp_path, _cif(cell=CORUNDUM_R, header=f"{GROUP} '{name}'", sites=sites))
    assert len(crystal.species) == 10


@pytest.mark.parametrize(
    ("name", "origin"),
    [("F d -3 m :1", 0.0), ("F d -3 m S", 0.0), ("F d -3 m :2", 0.125), ("F d -3 m Z", 0.125)],
)
def test_named_origin(tmp_path, name, origin):
    text = _cif(header=f"{GROUP} '{name}'", sites=(f"C C {origin} {origin} {origin} 1",))
    assert len(_one(tmp_path, text).species) == 8


@pytest.mark.parametrize("origin", [0.0, 0.125])
@pytest.mark.parametrize("header", [f"{GROUP} 'F d -3 m'", "_space_group_IT_number 227"])
def test_unnamed_origin_is_the_one_that_makes_sense(tmp_path, header, origin):
    text = _cif(header=header, sites=(f"C C {origin} {origin} {origin} 1",))
    assert len(_one(tmp_path, text).species) == 8


@pytest.mark.parametrize(("special", "oxygen"), [((0.125, 0.5), 0.2624), ((0.0, 0.625), 0.3874)])
def test_formula_decides_the_origin_of_spinel(tmp_path, special, oxygen):
    sites = (
        "Mg Mg {0} {0} {0} 1".format(special[0]),
        "Al Al {0} {0} {0} 1".format(special[1]),
        f"O O {oxygen} {oxygen} {oxygen} 1",
    )
    header = f"{GROUP} 'F d -3 m'\n_chemical_formula_sum 'Al2 Mg O4'"
    crystal = _one(tmp_path, _cif(cell=(8.08, 8.08, 8.08, 90, 90, 90), header=header, sites=sites))
    assert [crystal.species.count(name) for name in ("Mg", "Al", "O")] == [8, 16, 32]


def test_unusual_setting_by_its_operations(tmp_path):
    """P m m n on a doubled axis, so centred at (1/2, 0, 0): untabulated, so the atoms tell the group."""
    double = gemmi.Op("1/2*x,y,z")
    centring = gemmi.Op("x+1/2,y,z")
    listed = [double * op * double.inverse() for op in gemmi.SpaceGroup("P m m n:2").operations()]
    listed += [centring * op for op in listed]
    text = _cif(
        cell=(8, 4, 5, 90, 90, 90),
        header=_operations(*(op.wrap().triplet() for op in listed)),
        sites=("Na Na 0.125 0.25 0.11 1", "Cl Cl 0.375 0.25 0.37 1"),
    )
    crystal = _one(tmp_path, text)
    assert crystal.space_group == 59
    assert len(crystal.rotations) == 16


def test_file_without_symmetry_is_taken_as_it_stands(tmp_path):
    crystal = _one(tmp_path, _cif())
    assert crystal.space_group == 0
    assert crystal.species == ("Na", "Cl")
    assert len(crystal.rotations) == 1


def test_p1_is_p1(tmp_path):
    crystal = _one(tmp_path, _cif(header=f"{GROUP} 'P 1'\n{_operations('x, y, z')}"))
    assert crystal.space_group == 1


@pytest.mark.parametrize("group", ["P n m a", "R -3 c", "I 41/a c d", "P 63/m m c", "F d -3 c"])
def test_operations_are_kept_in_the_files_setting(tmp_path, group):
    cells = {
        "P n m a": ORTHORHOMBIC,
        "I 41/a c d": (9, 9, 12, 90, 90, 90),
        "F d -3 c": (15, 15, 15, 90, 90, 90),
    }
    text = _cif(
        cell=cells.get(group, HEXAGONAL), header=f"{GROUP} '{group}'", sites=("Na Na 0.07 0.31 0.15 1",)
    )
    crystal = _one(tmp_path, text)
    assert len(crystal.species) == len(crystal.rotations)  # a general position
    turned = np.einsum("nij,aj->nai", crystal.rotations.astype(float), crystal.positions)
    turned += crystal.translations[:, None]
    apart = turned[:, :1] - crystal.positions[None]
    assert np.abs(apart - np.round(apart)).max(axis=-1).min(axis=-1).max() < 1e-6


def test_isotropic_displacement(tmp_path):
    sites = ("Na1 Na 0 0 0 1 0.0127(3) ?", "Cl1 Cl 0.5 0.5 0.5 1 . 0.8")
    text = _cif(header=f"{GROUP} 'F m -3 m'", sites=sites, columns=("U_iso_or_equiv", "B_iso_or_equiv"))
    crystal = _one(tmp_path, text)
    by_name = dict(zip(crystal.species, crystal.b_iso, strict=True))
    assert by_name["Na"] == pytest.approx(8 * np.pi**2 * 0.0127)
    assert by_name["Cl"] == pytest.approx(0.8)


def _tensor(kind, values):
    tags = "\n".join(f"_atom_site_aniso_{kind}_{index}" for index in ("11", "22", "33", "12", "13", "23"))
    return f"loop_\n_atom_site_aniso_label\n{tags}\nNa1 " + " ".join(f"{value:.8f}" for value in values)


@pytest.mark.parametrize("kind", ["U", "B", "beta"])
def test_anisotropic_displacement_uses_the_metric(tmp_path, kind):
    """A sphere of U = 0.02 Å² in a skew cell has U_ij = 0.02 cos(a*_i, a*_j), whatever the axes."""
    cell = (5.0, 6.0, 7.0, 80.0, 97.0, 111.0)
    unit_cell = gemmi.UnitCell(*cell)
    star = np.linalg.inv(np.array(unit_cell.orth.mat))  # rows: reciprocal vectors
    lengths = np.linalg.norm(star, axis=1)
    u_cif = 0.02 * (star @ star.T) / np.outer(lengths, lengths)
    scale = {"U": 1.0, "B": 8 * np.pi**2, "beta": 2 * np.pi**2 * np.outer(lengths, lengths)}[kind]
    tensor = u_cif * scale
    values = tensor[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    crystal = _one(tmp_path, _cif(cell=cell, header=f"{GROUP} 'P -1'", tail=_tensor(kind, values)))
    by_name = dict(zip(crystal.species, crystal.b_iso, strict=True))
    assert by_name["Na"] == pytest.approx(8 * np.pi**2 * 0.02, rel=1e-5)
    assert by_name["Cl"] == 0


def test_stated_equivalent_wins_over_the_tensor(tmp_path):
    sites = ("Na1 Na 0 0 0 1 0.03", "Cl1 Cl 0.5 0.5 0.5 1 ?")
    tail = _tensor("U", (0.01, 0.01, 0.01, 0, 0, 0))
    crystal = _one(tmp_path, _cif(sites=sites, columns=("U_iso_or_equiv",), tail=tail))
    assert crystal.b_iso == pytest.approx([8 * np.pi**2 * 0.03, 0])


def test_deuterium_isotopes_and_charges(tmp_path):
    sites = (
        "D1 D 0 0 0 0.6",
        "H1 H+ 0 0 0 0.4",
        "B1 11B3+ 0.5 0 0 1",
        "Fe1 Fe3+ 0 0.5 0 1",
        "O1 O2- 0 0 0.5 1",
        "H2 2H 0.5 0.5 0.5 1",
    )
    assert _one(tmp_path, _cif(sites=sites)).species == ("D", "H", "11B", "Fe", "O", "D")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Fe3+", "Fe"),
        ("Fe+3", "Fe"),
        ("FE", "Fe"),
        ("O2-", "O"),
        ("Ti3.5+", "Ti"),
        ("Fe3", "Fe"),
        ("D", "D"),
        ("D1+", "D"),
        ("2H", "D"),
        ("11B", "11B"),
        ("B11", "11B"),
        ("B_11", "11B"),
        ("Li7", "7Li"),
        ("62Ni", "62Ni"),
        ("Cval", "C"),
        ("Siva", "Si"),
        ("Na0+", "Na"),
    ],
)
def test_type_symbols(written, meant):
    assert normalized_species(written) == meant


@pytest.mark.parametrize("written", ["Cx", "X", "M", "?", "", "OH", "Wat", "99B", "Rain", "Vac", "Na Cl"])
def test_type_symbols_without_an_element(written):
    with pytest.raises(Rejected, match="unknown"):
        normalized_species(written)


@pytest.mark.parametrize(
    ("label", "formula", "meant"),
    [
        ("Na1", "", "Na"),
        ("OW2", "", "O"),
        ("O", "", "O"),
        ("D3", "", "D"),
        ("C13", "", "C"),
        ("CaM1", "", "Ca"),
        ("SiT", "", "Si"),
        ("CA1", "Ca", "Ca"),
        ("CA1", "C H", "C"),
        ("CO2", "Co O", "Co"),
        ("Fe2+M1", "", "Fe"),
    ],
)
def test_labels_without_type_symbols(label, formula, meant):
    assert species_from_label(label, frozenset(formula.split())) == meant


@pytest.mark.parametrize("label", ["Wat1", "Xx1", "1", "", "Q2"])
def test_labels_without_an_element(label):
    with pytest.raises(Rejected, match="unknown element"):
        species_from_label(label)


def test_several_blocks(tmp_path):
    group = f"{GROUP} 'F m -3 m'\n"
    text = "data_global\n_journal_year 1999\n"
    text += _cif(header=group + "_database_code_ICSD 18189", name="first")
    text += _cif(header=group, name="second", sites=("Xx1 Xx 0 0 0 1",))
    text += _cif(header=group, name="third")
    path = _write(tmp_path, text)
    outcomes = list(crystals_from_cif(path))
    assert [name for name, _ in outcomes] == ["18189", "second", "third"]
    assert [isinstance(outcome, Rejected) for _, outcome in outcomes] == [False, True, False]
    assert outcomes[2][1].identifier == "third"
    with pytest.raises(Rejected, match=r"crystal\.cif: second: unknown element"):
        read_cif(path)


def test_repeated_and_missing_block_names(tmp_path):
    text = _cif(name="") + _cif(name="a") + _cif(name="a")
    assert [name for name, _ in crystals_from_cif(_write(tmp_path, text))] == ["crystal", "a", "a#2"]


def test_gzipped_and_latin_1(tmp_path):
    path = tmp_path / "crystal.cif.gz"
    path.write_bytes(gzip.compress(_cif(header="_publ_author_name 'Müller'").encode("latin-1")))
    assert len(read_cif(path)) == 1


def test_dummy_sites_are_left_out(tmp_path):
    sites = ("Na1 Na 0 0 0 1 d", "Q1 Q ? ? ? 1 dum")
    assert _one(tmp_path, _cif(sites=sites, columns=("calc_flag",))).species == ("Na",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sites": ("X1 Xx 0 0 0 1",)}, "unknown element 'Xx'"),
        ({"sites": ("Na1 Na 0 0 0 1.2",)}, r"occupancy 1.2 of Na"),
        ({"sites": ("Na1 Na 0 0 0 0",)}, "occupancy 0 of Na"),
        ({"sites": ("Na1 Na 0 0 0 -0.5",)}, "occupancy -0.5 of Na"),
        ({"sites": ("Na1 Na 0 0 0 abc",)}, "occupancy nan of Na"),
        ({"sites": ("Na1 Na 0 0 0 1", "K1 K 0 0 0.01 1")}, "overlapping atoms: Na and K"),
        ({"sites": ("Na1 Na 0 ? 0 1",)}, "site Na1 has no coordinates"),
        ({"sites": ("Na1 Na 0 half 0 1",)}, "site Na1 has no coordinates"),
        ({"cell": (0, 5, 5, 90, 90, 90)}, "absurd cell"),
        ({"cell": (5, 5, 5, 120, 120, 120)}, "absurd cell"),
        ({"cell": ("?", 5, 5, 90, 90, 90)}, "absurd cell: a length or angle is missing"),
        ({"header": f"{GROUP} 'F m -3 m'", "cell": HEXAGONAL}, "do not fit the cell"),
        ({"header": f"{GROUP} 'Q 9 9'"}, "unknown space group 'Q 9 9'"),
        ({"header": _operations("x,y,z", "garbage")}, "cannot be read"),
        ({"header": _operations("x,y,z", "-y,x,z")}, "form no group"),
        ({"header": f"{GROUP} 'F m -3 m'\n{_operations('x,y,z')}"}, "contradictory"),
    ],
)
def test_rejections_name_their_reason(tmp_path, changes, reason):
    assert re.search(reason, _rejection(tmp_path, _cif(**changes)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x00\x01\x02\xff binary noise", "is binary"),
        (bytes(range(1, 256)) * 20, "no readable CIF"),
        (b"hello world\n", "no readable CIF"),
        (b"data_x\n_cell_length_a 5\n", "holds no atoms"),
        (_cif().encode()[:-12], "no readable CIF"),
        (_cif(tail="_text\n;unfinished").encode(), "no readable CIF"),
        (gzip.compress(_cif().encode())[:60], "cannot be read"),
        (b"\x1f\x8bnot gzip", "cannot be read"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, words):
    path = tmp_path / "broken.cif"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_cif(path)
    assert "broken.cif" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_directory_missing_file_and_huge_file(tmp_path):
    with pytest.raises(InputError, match="is a directory"):
        read_cif(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        read_cif(tmp_path / "none.cif")
    huge = tmp_path / "huge.cif.gz"
    with gzip.open(huge, "wb", compresslevel=1) as stream:
        for _ in range(51):
            stream.write(b"#" * 1_000_000)
    with pytest.raises(InputError, match="larger than 50 MB"):
        read_cif(huge)


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
    text = _cif(cell=cells[group.crystal_system_str()], header=f"{GROUP} '{group.xhm()}'", sites=sites)
    crystal = _one(tmp_path_factory.mktemp("group"), text)
    assert crystal.space_group == number
    assert len(crystal.rotations) == len(list(group.operations()))
    assert len(crystal.rotations) % len(crystal.species) == 0


def test_a_group_number_that_does_not_exist_is_no_p1(tmp_path):
    header = "_symmetry_Int_Tables_number 999"
    assert "unknown space group '999'" in _rejection(tmp_path, _cif(header=header))


def test_listed_operations_need_no_known_name(tmp_path):
    header = f"{GROUP} 'my own setting'\n" + _operations("x,y,z", "-x,-y,-z")
    assert len(_one(tmp_path, _cif(header=header)).rotations) == 2
