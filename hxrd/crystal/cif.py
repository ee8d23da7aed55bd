"""Crystals from CIF files, read by gemmi: symmetry expanded, displacement as B, isotopes kept.

The file's own occupancy (crystallographic: the share of a position that an atom fills) is kept, and
coincident images of a site are counted once. gemmi's own expansion expects
`change_occupancies_to_crystallographic()` and counts every image; both ways give the same content,
which the tests check.
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.cif_sites import Sites, sites_of, text_of, values_of
from hxrd.crystal.crystal import Crystal, check_cell, checked
from hxrd.crystal.operations import (
    Operations,
    fits_cell,
    group_from_triplets,
    images_of_site,
    operations_from_group,
    settings_by_name,
    settings_by_number,
)
from hxrd.crystal.symmetry import find_symmetry
from hxrd.errors import InputError, Rejected, UsageError

LARGEST_FILE = 50_000_000  # bytes, unpacked
CODE_TAGS = (
    "_database_code_ICSD",
    "_cod_database_code",
    "_database_code_amcsd",
    "_database_code_CSD",
    "_database_code_depnum_ccdc_archive",
)
"""Tags that hold the collection code by which a database knows the entry."""
_NAME_TAGS = ("_space_group_name_H-M_alt", "_symmetry_space_group_name_H-M", "_space_group_name_H-M_full")
_NUMBER_TAGS = ("_space_group_IT_number", "_symmetry_Int_Tables_number")


def read_cif(path: str | Path) -> list[Crystal]:
    """Return the crystals of a CIF file, one for each data block with atoms.

    Raises
    ------
    UsageError
        There is no such file.
    InputError
        The file is empty, too large, binary, truncated, not CIF, or holds no atoms.
    Rejected
        A block's crystal is not usable; the reason names the file and the block.
    """
    crystals = []
    for identifier, crystal in crystals_from_cif(path):
        if isinstance(crystal, Rejected):
            raise Rejected(f"{path}: {identifier}: {crystal}") from crystal
        crystals.append(crystal)
    return crystals


def crystals_from_cif(path: str | Path) -> Iterator[tuple[str, Crystal | Rejected]]:
    """Yield (identifier, crystal or the reason why it is none) for each data block with atoms.

    The identifier is the block's collection code, else the name of the block, else the name of the
    file; a repeated one gets ``#2`` and so on.

    Raises
    ------
    UsageError
        There is no such file.
    InputError
        The file is empty, too large, binary, truncated, not CIF, or holds no atoms.
    """
    path = Path(path)
    document = _document(path)
    seen: dict[str, int] = {}
    for block in document:
        if not values_of(block, "_atom_site_fract_x"):
            continue
        name = collection_code(block) or block.name.strip() or _stem(path)
        seen[name] = seen.get(name, 0) + 1
        identifier = name if seen[name] == 1 else f"{name}#{seen[name]}"
        try:
            yield identifier, _crystal_from_block(block, identifier)
        except Rejected as rejection:
            yield identifier, rejection
    if not seen:
        raise InputError(f"{path} holds no atoms: no data block with _atom_site_fract_x (is it cut off?)")


def collection_code(block: gemmi.cif.Block) -> str:
    """Return the block's collection code, or an empty string."""
    return next((code for tag in CODE_TAGS if (code := text_of(block, tag))), "")


def cif_bytes(path: Path) -> bytes:
    """Return the unpacked content of a CIF file, plain or gzipped.

    Raises
    ------
    UsageError
        There is no such file.
    InputError
        A directory, a file that cannot be read, empty, binary, or above `LARGEST_FILE`.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path} is a directory, and one CIF file is expected")
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if len(content) > LARGEST_FILE:
        raise InputError(
            f"{path} is larger than {LARGEST_FILE // 1_000_000} MB: split it into its data blocks"
        )
    if not content.strip():
        raise InputError(f"{path} is empty")
    if b"\0" in content:
        raise InputError(f"{path} is binary, not a CIF file")
    return content


def _document(path: Path) -> gemmi.cif.Document:
    content = cif_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    try:
        document = gemmi.cif.read_string(text, 0)
    except (ValueError, RuntimeError) as error:
        where = re.sub(r"\s+", " ", str(error)).removeprefix("string:")
        raise InputError(f"{path} is no readable CIF (cut off?): line {where}") from error
    if len(document) == 0:
        raise InputError(f"{path} has no data block")
    return document


def _stem(path: Path) -> str:
    return re.sub(r"\.cif(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _crystal_from_block(block: gemmi.cif.Block, identifier: str) -> Crystal:
    cell = _cell(block)
    bare = Crystal(identifier, cell, (), np.zeros((0, 3)), np.zeros(0), np.zeros(0))
    check_cell(bare)
    sites = sites_of(block, bare.metric)
    choices = _operation_choices(block, cell)
    fitting = [choice for choice in choices if fits_cell(choice[1][0], bare.metric)]
    if not fitting:
        raise Rejected(f"its symmetry operations do not fit the cell ({' '.join(f'{x:g}' for x in cell)})")
    expanded = [_expanded(bare, sites, number, operations) for number, operations in fitting]
    if len(expanded) > 1:
        formula = text_of(block, "_chemical_formula_sum")
        expanded.sort(key=lambda crystal: (_formula_mismatch(crystal, formula), len(crystal.species)))
    crystal = checked(expanded[0])
    if crystal.space_group == 0 and len(crystal.rotations) > 1:
        number = _number(block) or find_symmetry(crystal).space_group
        crystal = replace(crystal, space_group=number)
    return crystal


def _cell(block: gemmi.cif.Block) -> NDArray[np.float64]:
    lengths = [gemmi.cif.as_number(text_of(block, f"_cell_length_{axis}")) for axis in "abc"]
    angle_texts = [text_of(block, f"_cell_angle_{angle}") for angle in ("alpha", "beta", "gamma")]
    angles = [gemmi.cif.as_number(text) if text else 90.0 for text in angle_texts]  # the CIF default
    if not np.all(np.isfinite(lengths + angles)):
        raise Rejected("absurd cell: a length or angle is missing or not a number")
    return np.array(lengths + angles, dtype=np.float64)


def _number(block: gemmi.cif.Block) -> int:
    """Space-group number as the file states it; 0 where it states none."""
    text = text_of(block, *_NUMBER_TAGS)
    return int(text) if text.isdecimal() and 1 <= int(text) <= 230 else 0


def _operation_choices(block: gemmi.cif.Block, cell: NDArray[np.float64]) -> list[tuple[int, Operations]]:
    """Space-group number and operations: as listed, else by Hall, by Hermann–Mauguin, by number.

    Several where a name leaves the setting open; a file that says nothing has the identity, number 0.
    """
    named = _named_groups(block, cell)
    triplets = values_of(block, "_space_group_symop_operation_xyz") or values_of(
        block, "_symmetry_equiv_pos_as_xyz"
    )
    triplets = [text for text in triplets if text.strip() not in ("", "?", ".")]
    if triplets:
        group = group_from_triplets(triplets)
        found = gemmi.find_spacegroup_by_ops(group)
        if len(triplets) == 1 and named and named[0][0] > 1:
            raise Rejected(
                f"lists the identity as its only operation but names space group {named[0][0]}: contradictory"
            )
        return [(found.number if found else 0, operations_from_group(group))]
    if named:
        return [(number, operations_from_group(group)) for number, group in named]
    if stated := text_of(block, *_NAME_TAGS, *_NUMBER_TAGS):
        raise Rejected(f"unknown space group {stated!r}, and no symmetry operations are listed")
    return [(0, operations_from_group(gemmi.GroupOps([gemmi.Op("x,y,z")])))]


def _named_groups(block: gemmi.cif.Block, cell: NDArray[np.float64]) -> list[tuple[int, gemmi.GroupOps]]:
    hall = text_of(block, "_space_group_name_Hall", "_symmetry_space_group_name_Hall")
    if hall:
        try:
            group = gemmi.symops_from_hall(hall.replace("_", " "))
        except RuntimeError:
            group = None
        if group is not None:
            found = gemmi.find_spacegroup_by_ops(group)
            return [(found.number if found else 0, group)]
    name = text_of(block, *_NAME_TAGS)
    settings = settings_by_name(name, cell) if name else []
    if not settings:
        settings = settings_by_number(_number(block))
    return [(setting.number, setting.operations()) for setting in settings]


def _expanded(bare: Crystal, sites: Sites, number: int, operations: Operations) -> Crystal:
    images = [images_of_site(position, operations, bare.metric) for position in sites.positions]
    counts = [len(block) for block in images]
    return Crystal(
        identifier=bare.identifier,
        cell=bare.cell,
        species=tuple(name for name, count in zip(sites.species, counts, strict=True) for _ in range(count)),
        positions=np.concatenate(images) if images else np.zeros((0, 3)),
        occupancy=np.repeat(sites.occupancy, counts),
        b_iso=np.repeat(sites.b_iso, counts),
        space_group=number,
        rotations=operations[0],
        translations=operations[1],
    )


def _formula_mismatch(crystal: Crystal, formula: str) -> float:
    """Largest difference between the shares of an element in the cell and in the stated formula."""
    stated = {
        element: float(count or 1) for element, count in re.findall(r"([A-Z][a-z]?)\s*(\d*\.?\d*)", formula)
    }
    if not stated:
        return 0.0
    found: dict[str, float] = {}
    for name, occupancy in zip(crystal.species, crystal.occupancy, strict=True):
        element = re.sub(r"^\d+", "", name)
        found[element] = found.get(element, 0.0) + float(occupancy)
    total_stated, total_found = sum(stated.values()), sum(found.values())
    differences = [
        abs(stated.get(element, 0.0) / total_stated - found.get(element, 0.0) / total_found)
        for element in stated.keys() | found.keys()
    ]
    return round(max(differences), 3)
