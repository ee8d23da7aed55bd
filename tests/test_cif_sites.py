"""The sites of a CIF file: occupancies, species and displacements."""

import gemmi
import numpy as np
import pytest
from written_cifs import GROUP, cif_text, crystal_of


def test_partial_occupancy_and_shared_sites(tmp_path):
    sites = ("Na1 Na 0 0 0 0.75(2)", "K1 K 0 0 0 0.25", "Cl1 Cl 0.5 0.5 0.5 .")
    crystal = crystal_of(tmp_path, cif_text(header=f"{GROUP} 'F m -3 m'", sites=sites))
    shares = {name: set() for name in crystal.species}
    for name, occupancy in zip(crystal.species, crystal.occupancy, strict=True):
        shares[name].add(float(occupancy))
    assert shares == {"Na": {0.75}, "K": {0.25}, "Cl": {1.0}}
    assert len(crystal.species) == 12


def test_dummy_sites_are_left_out(tmp_path):
    sites = ("Na1 Na 0 0 0 1 d", "Q1 Q ? ? ? 1 dum")
    assert crystal_of(tmp_path, cif_text(sites=sites, columns=("calc_flag",))).species == ("Na",)


def test_deuterium_isotopes_and_charges(tmp_path):
    sites = (
        "D1 D 0 0 0 0.6",
        "H1 H+ 0 0 0 0.4",
        "B1 11B3+ 0.5 0 0 1",
        "Fe1 Fe3+ 0 0.5 0 1",
        "O1 O2- 0 0 0.5 1",
        "H2 2H 0.5 0.5 0.5 1",
    )
    assert crystal_of(tmp_path, cif_text(sites=sites)).species == ("D", "H", "11B", "Fe", "O", "D")


def test_isotropic_displacement(tmp_path):
    sites = ("Na1 Na 0 0 0 1 0.0127(3) ?", "Cl1 Cl 0.5 0.5 0.5 1 . 0.8")
    text = cif_text(header=f"{GROUP} 'F m -3 m'", sites=sites, columns=("U_iso_or_equiv", "B_iso_or_equiv"))
    crystal = crystal_of(tmp_path, text)
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
    crystal = crystal_of(tmp_path, cif_text(cell=cell, header=f"{GROUP} 'P -1'", tail=_tensor(kind, values)))
    by_name = dict(zip(crystal.species, crystal.b_iso, strict=True))
    assert by_name["Na"] == pytest.approx(8 * np.pi**2 * 0.02, rel=1e-5)
    assert by_name["Cl"] == 0


def test_stated_equivalent_wins_over_the_tensor(tmp_path):
    sites = ("Na1 Na 0 0 0 1 0.03", "Cl1 Cl 0.5 0.5 0.5 1 ?")
    tail = _tensor("U", (0.01, 0.01, 0.01, 0, 0, 0))
    crystal = crystal_of(tmp_path, cif_text(sites=sites, columns=("U_iso_or_equiv",), tail=tail))
    assert crystal.b_iso == pytest.approx([8 * np.pi**2 * 0.03, 0])
