"""What the data block of a CIF says about its sites: species, positions, occupancy, displacement."""

import re
from dataclasses import dataclass
from itertools import compress

import gemmi
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.species import normalized_species, species_from_label
from hxrd.errors import Rejected

_ISO_TAGS = (("U_iso_or_equiv", 8 * np.pi**2), ("B_iso_or_equiv", 1.0))
_ANISO_INDICES = ("11", "22", "33", "12", "13", "23")


@dataclass(frozen=True, slots=True)
class Sites:
    """The sites as a file lists them, before symmetry.

    Parameters
    ----------
    species : tuple of str, length n_sites
        Element symbol, ``D`` or an isotope.
    positions : ndarray, shape (n_sites, 3)
        Fractional coordinates.
    occupancy : ndarray, shape (n_sites,)
        Crystallographic occupancy.
    b_iso : ndarray, shape (n_sites,)
        B in Å², from B, U or the anisotropic tensor; 0 where the file has none.
    """

    species: tuple[str, ...]
    positions: NDArray[np.float64]
    occupancy: NDArray[np.float64]
    b_iso: NDArray[np.float64]


def sites_of(block: gemmi.cif.Block, metric: NDArray[np.float64]) -> Sites:
    """Return the sites of a data block; dummy sites (``_atom_site_calc_flag dum``) are left out.

    Parameters
    ----------
    block : gemmi.cif.Block
        A block with fractional coordinates.
    metric : ndarray, shape (3, 3)
        Metric tensor of the cell in Å², for the mean of anisotropic tensors.

    Raises
    ------
    Rejected
        Columns of different length, a coordinate that is no number, or an unknown element.
    """
    n_sites = len(values_of(block, "_atom_site_fract_x"))
    kept = [flag.lower() != "dum" for flag in _column(block, "_atom_site_calc_flag", n_sites)]
    labels = _column(block, "_atom_site_label", n_sites)
    symbols = _column(block, "_atom_site_type_symbol", n_sites)
    positions = np.column_stack([_numbers(block, f"_atom_site_fract_{axis}", n_sites) for axis in "xyz"])
    formula = frozenset(re.findall(r"[A-Z][a-z]?", text_of(block, "_chemical_formula_sum")))
    species = []
    for label, symbol, position in compress(zip(labels, symbols, positions, strict=True), kept):
        if not np.all(np.isfinite(position)):
            raise Rejected(f"site {label} has no coordinates, or some that are not numbers")
        species.append(_species(label, symbol, formula))
    return Sites(
        species=tuple(species),
        positions=positions[kept],
        occupancy=_numbers(block, "_atom_site_occupancy", n_sites, default=1.0)[kept],
        b_iso=_b_iso(block, labels, metric)[kept],
    )


def _species(label: str, symbol: str, formula: frozenset[str]) -> str:
    """Species of a site; a type symbol copied from the label (``C13``) is no isotope."""
    if symbol in ("", "?", ".") or (symbol == label and re.search(r"\d$", symbol)):
        return species_from_label(label, formula)
    return normalized_species(symbol)


def _column(block: gemmi.cif.Block, tag: str, n_sites: int) -> list[str]:
    values = values_of(block, tag) or [""] * n_sites
    if len(values) != n_sites:
        raise Rejected(f"{tag} has {len(values)} values for {n_sites} sites")
    return [value.strip() for value in values]


def _numbers(block: gemmi.cif.Block, tag: str, n_sites: int, default: float = np.nan) -> NDArray[np.float64]:
    """Values of a numeric column; `default` where one is not given, nan where it is not a number."""
    return np.array(
        [
            default if text in ("", "?", ".") else gemmi.cif.as_number(text)
            for text in _column(block, tag, n_sites)
        ]
    )


def _b_iso(block: gemmi.cif.Block, labels: list[str], metric: NDArray[np.float64]) -> NDArray[np.float64]:
    """B in Å² of each site: its isotropic or equivalent value, else from its tensor, else 0."""
    b_iso = np.full(len(labels), np.nan)
    for tag, factor in _ISO_TAGS:
        values = factor * _numbers(block, f"_atom_site_{tag}", len(labels))
        b_iso = np.where(np.isnan(b_iso), values, b_iso)
    tensors = _b_equivalents(block, metric)
    for index, label in enumerate(labels):
        if (not b_iso[index] and label in tensors) or np.isnan(b_iso[index]):
            b_iso[index] = tensors.get(label, 0.0)
    return b_iso


def _b_equivalents(block: gemmi.cif.Block, metric: NDArray[np.float64]) -> dict[str, float]:
    """B_eq = 8π² U_eq of each label with an anisotropic tensor (U, B or β).

    U_eq = ⅓ Σᵢⱼ Uᵢⱼ a*ᵢ a*ⱼ (aᵢ·aⱼ): Fischer & Tillmanns (1988), *Acta Cryst.* C44, 775.
    """
    labels = [label.strip() for label in values_of(block, "_atom_site_aniso_label")]
    reciprocal = np.sqrt(np.diag(np.linalg.inv(metric)))
    stars = np.outer(reciprocal, reciprocal)
    to_b = {"U": 8 * np.pi**2 * stars, "B": stars, "beta": 4.0 * np.ones((3, 3))}
    found: dict[str, float] = {}
    for kind, factor in to_b.items():
        columns = [values_of(block, f"_atom_site_aniso_{kind}_{index}") for index in _ANISO_INDICES]
        if not labels or any(len(column) != len(labels) for column in columns):
            continue
        for row, label in enumerate(labels):
            u11, u22, u33, u12, u13, u23 = (gemmi.cif.as_number(column[row]) for column in columns)
            tensor = np.array([[u11, u12, u13], [u12, u22, u23], [u13, u23, u33]])
            b_equivalent = float((tensor * factor * metric).sum() / 3.0)
            if np.isfinite(b_equivalent):
                found.setdefault(label, b_equivalent)
    return found


def values_of(block: gemmi.cif.Block, tag: str) -> list[str]:
    """Values of a looped or single item, by its classic or its dotted (DDLm) name."""
    for name in (tag, _dotted(tag)):
        if values := [gemmi.cif.as_string(value) for value in block.find_values(name)]:
            return values
    return []


def _dotted(tag: str) -> str:
    categories = ("_atom_site_aniso", "_atom_site", "_cell", "_space_group_symop", "_space_group")
    for category in categories:
        if tag.startswith(category + "_"):
            return f"{category}.{tag[len(category) + 1 :]}"
    return tag


def text_of(block: gemmi.cif.Block, *tags: str) -> str:
    """First value that is given, of several tags."""
    for tag in tags:
        for value in values_of(block, tag)[:1]:
            if value.strip() not in ("", "?", "."):
                return value.strip()
    return ""
