"""Elements and isotopes, from type symbols and from labels."""

import pytest

from hxrd.crystal.species import normalized_species, species_from_label
from hxrd.errors import Rejected


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
