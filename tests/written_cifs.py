"""CIF files by hand, and what is read from them."""

from hxrd.crystal.cif import crystals_from_cif, read_cif
from hxrd.errors import Rejected

CUBIC = (5.64, 5.64, 5.64, 90, 90, 90)
HEXAGONAL = (4.76, 4.76, 12.99, 90, 90, 120)
CORUNDUM_R = (5.13, 5.13, 5.13, 55.3, 55.3, 55.3)
ORTHORHOMBIC = (5.5, 7.7, 5.4, 90, 90, 90)
GROUP = "_space_group_name_H-M_alt"


def cif_text(
    cell=CUBIC, header="", sites=("Na1 Na 0 0 0 1", "Cl1 Cl 0.5 0.5 0.5 1"), columns=(), name="x", tail=""
):
    """Return a CIF file of one data block; `columns` are further tags of the sites."""
    tags = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy", *columns)
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{name}"]
    lines += [f"_cell_{tag} {value}" for tag, value in zip(names, cell, strict=True)]
    lines += [header, "loop_", *(f"_atom_site_{tag}" for tag in tags), *sites, tail]
    return "\n".join(lines) + "\n"


def operations_loop(*triplets):
    """Return the loop of symmetry operations, to stand in a header."""
    return "\n".join(["loop_", "_space_group_symop_operation_xyz", *(f"'{text}'" for text in triplets)])


def written(tmp_path, text, name="crystal.cif"):
    path = tmp_path / name
    path.write_text(text)
    return path


def crystal_of(tmp_path, text):
    """Return the one crystal of a CIF file."""
    (crystal,) = read_cif(written(tmp_path, text))
    return crystal


def rejection_of(tmp_path, text):
    """Return why the one data block of a CIF file holds no crystal."""
    ((_, outcome),) = crystals_from_cif(written(tmp_path, text))
    assert isinstance(outcome, Rejected), outcome
    assert "\n" not in str(outcome)
    return str(outcome)
