"""Tables of crystals, one JSON object a line, as `jsonl:` reads them."""

import gzip
import zlib
from pathlib import Path
from typing import Any, Protocol

import msgspec

from hxrd.crystal.crystal import Crystal
from hxrd.errors import InputError, Rejected, UsageError

_AT_ONCE = 1024  # crystals looked up together
_DIGITS = 12  # of a coordinate; enough for special positions to stay exact within the tolerance of any search


class Names(Protocol):
    """Identifiers, asked for piece by piece."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def read(self, start: int, stop: int) -> list[str]:
        """Return identifiers `start` to `stop` (excluded)."""
        ...


class _Identified(msgspec.Struct):
    """What a line is asked for."""

    id: str


class ManyCrystals(Protocol):
    """Where the crystals of many identifiers come from at once."""

    def get_many(self, identifiers: list[str]) -> list[Crystal]:
        """Return a crystal for each identifier."""
        ...


def record_of(crystal: Crystal) -> dict[str, Any]:
    """Return the fields of a crystal's line."""
    sites = zip(
        crystal.species,
        crystal.positions.round(_DIGITS).tolist(),
        crystal.occupancy.tolist(),
        crystal.b_iso.round(4).tolist(),
        strict=True,
    )
    return {
        "id": crystal.identifier,
        "space_group": crystal.space_group,
        "cell": crystal.cell.round(_DIGITS).tolist(),
        "sites": [[name, *place, occupancy, b_iso or None] for name, place, occupancy, b_iso in sites],
    }


def check_table(path: Path, names: Names, overwrite: bool, resume: bool = False) -> None:
    """Refuse a table that cannot be written.

    Parameters
    ----------
    path : Path
        The table to write.
    names : Names
        Of the crystals it is to hold.
    overwrite : bool
        Whatever is there may go.
    resume : bool
        What an earlier run for the same crystals wrote may go.

    Raises
    ------
    InputError
        It is there already, and may not go.
    UsageError
        Its ending is neither ``.jsonl`` nor ``.jsonl.gz``, or its folder does not exist.
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise UsageError(f"{path}: a table of crystals ends with .jsonl or .jsonl.gz")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder")
    if path.exists() and not overwrite and not (resume and _is_table_of(path, names)):
        raise InputError(f"{path} exists: overwrite it with --force")


def _is_table_of(path: Path, names: Names) -> bool:
    """Whether the crystals of a table are some of these, in their order."""
    remaining = (
        name for start in range(0, len(names), _AT_ONCE) for name in names.read(start, start + _AT_ONCE)
    )
    decoder = msgspec.json.Decoder(_Identified)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return all(decoder.decode(line).id in remaining for line in stream)
    except (OSError, EOFError, zlib.error, msgspec.DecodeError):
        return False


def write_table(path: Path, names: Names, source: ManyCrystals) -> None:
    """Write the crystals of all names, first as ``NAME.part``; those that are rejected are left out.

    Raises
    ------
    OSError
        The disk is full or not writable.
    """
    part = path.with_name(path.name + ".part")
    encoder = msgspec.json.Encoder()
    with gzip.open(part, "wb", compresslevel=6) if path.suffix == ".gz" else part.open("wb") as stream:
        for start in range(0, len(names), _AT_ONCE):
            for crystal in _usable(names.read(start, start + _AT_ONCE), source):
                stream.write(encoder.encode(record_of(crystal)) + b"\n")
    part.replace(path)


def _usable(identifiers: list[str], source: ManyCrystals) -> list[Crystal]:
    try:
        return source.get_many(identifiers)
    except Rejected:
        if len(identifiers) == 1:
            return []
    return [crystal for identifier in identifiers for crystal in _usable([identifier], source)]
