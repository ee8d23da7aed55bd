"""The AFLOW prototypes that pymatgen carries: ``prototypes``, without licence or network.

Identifiers are AFLOW labels such as ``AB_cF8_225_a_b`` (rock salt); the second crystal with one label
is ``LABEL#2``, and so on, in pymatgen's order. The cell is kept as pymatgen has it,
AFLOW's primitive cell, but for rounding in the fifth digit. Its peaks are those of the conventional cell,
with |F|² smaller by the square of the number of lattice points; relative intensities are the same.

Hicks et al. (2019), *Comput. Mater. Sci.* 161, S1–S1011; Mehl et al. (2017), *ibid.* 136, S1–S828.
"""

import gzip
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hxrd.crystal.crystal import Crystal, checked
from hxrd.crystal.species import normalized_species
from hxrd.crystal.symmetry import enantiomorph, find_symmetry, symmetrized
from hxrd.errors import HxrdError
from hxrd.sources.source import UnknownIdentifier

# pymatgen moved its table; reading the file costs 0.1 s, importing pymatgen seconds.
_PLACES = ("analysis/prototypes/aflow_prototypes.json.gz", "analysis/aflow_prototypes.json")
_TOLERANCES = (1e-3, 1e-2, 5e-2, 0.2)  # Å; labels stand for idealised positions given to 3–5 digits


class PrototypeSource:
    """The AFLOW prototypes by label."""

    def identifiers(self) -> Iterator[str]:
        """Yield the labels in pymatgen's order."""
        return iter(_records())

    def __len__(self) -> int:
        return len(_records())

    def get(self, identifier: str) -> Crystal:
        """Return the checked crystal (see `Source.get`), with its label's space group."""
        record = _records().get(identifier)
        if record is None:
            raise UnknownIdentifier("no AFLOW prototype of this label")
        return _crystal(identifier, record)

    def describe(self) -> str:
        """Return the specification of this source."""
        return "prototypes"


@cache
def _records() -> dict[str, dict[str, Any]]:
    path = _table_path()
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        table = json.load(stream)
    seen: dict[str, int] = {}
    records: dict[str, dict[str, Any]] = {}
    for record in table:
        label = record["tags"]["aflow"]
        seen[label] = seen.get(label, 0) + 1
        records[label if seen[label] == 1 else f"{label}#{seen[label]}"] = record
    return records


def _table_path() -> Path:
    spec = importlib.util.find_spec("pymatgen")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for place in _PLACES:
            if (path := Path(folder, place)).is_file():
                return path
    raise HxrdError("pymatgen's table of AFLOW prototypes is not here: reinstall with `pip install pymatgen`")


def _crystal(identifier: str, record: dict[str, Any]) -> Crystal:
    snl = record["snl"]
    lattice = snl["lattice"]
    cell = [lattice[name] for name in ("a", "b", "c", "alpha", "beta", "gamma")]
    sites = [
        (species["element"], site["abc"], species["occu"])
        for site in snl["sites"]
        for species in site["species"]
    ]
    crystal = checked(
        Crystal(
            identifier=identifier,
            cell=np.array(cell, dtype=np.float64),
            species=tuple(normalized_species(element) for element, _, _ in sites),
            positions=np.array([place for _, place, _ in sites], dtype=np.float64),
            occupancy=np.array([occupancy for _, _, occupancy in sites], dtype=np.float64),
            b_iso=np.zeros(len(sites)),
        )
    )
    return _with_label_group(crystal, int(identifier.split("_")[2]))


def _with_label_group(crystal: Crystal, number: int) -> Crystal:
    """Return the crystal with the operations of the label's group, found at the least tolerance.

    Where no tolerance gives the label's group or its mirror image (two of 288), the atoms win: the
    group found at the least tolerance is kept.
    """
    for tolerance in _TOLERANCES:
        symmetric = find_symmetry(crystal, tolerance)
        if symmetric.space_group in (number, enantiomorph(number)):
            return symmetrized(symmetric)
    return find_symmetry(crystal, _TOLERANCES[0])
