"""Crystals from a table with one JSON object a line: ``jsonl:FILE`` or ``jsonl:FILE.gz``.

Fields of a line: `id`, `cell` [a b c α β γ] (Å, degrees), `sites` = the whole content of that cell as
[species, x, y, z, occupancy, B_iso or null] (x, y, z fractional, B_iso in Å²); optional `space_group`
(1 to 230). Other fields are kept in the record and not read.
"""

import gzip
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hxrd.crystal.crystal import Crystal, checked
from hxrd.crystal.species import normalized_species
from hxrd.errors import InputError, Rejected, UsageError
from hxrd.sources.source import UnknownIdentifier

logger = logging.getLogger(__name__)
_GZIP_MAGIC = b"\x1f\x8b"


class _Named(msgspec.Struct):
    """The one field that finding a line needs; the rest is skipped unparsed."""

    id: str


class _Record(msgspec.Struct):
    id: str
    cell: tuple[float, float, float, float, float, float]
    sites: list[tuple[str, float, float, float, float, float | None]]
    space_group: int = 0


_NAME = msgspec.json.Decoder(_Named)
_RECORD = msgspec.json.Decoder(_Record)


def crystal_from_line(line: bytes) -> Crystal:
    """Return the checked crystal of one line of the table.

    Raises
    ------
    Rejected
        The line is not such a record, or its crystal is not physically possible.
    """
    try:
        record = _RECORD.decode(line)
    except msgspec.DecodeError as error:
        raise Rejected(f"not a crystal record: {error}") from error
    if not 0 <= record.space_group <= 230:
        raise Rejected(f"space group {record.space_group} is not between 1 and 230")
    numbers = np.array(
        [(x, y, z, occupancy, b_iso or 0.0) for _, x, y, z, occupancy, b_iso in record.sites],
        dtype=np.float64,
    ).reshape(-1, 5)
    crystal = Crystal(
        identifier=record.id,
        cell=np.array(record.cell, dtype=np.float64),
        species=tuple(normalized_species(site[0]) for site in record.sites),
        positions=numbers[:, :3],
        occupancy=numbers[:, 3],
        b_iso=numbers[:, 4],
        space_group=record.space_group,
    )
    return checked(crystal)


class JsonlSource:
    """A table of crystals, read once; its lines are kept and parsed when asked for.

    Parameters
    ----------
    path : Path
        The file, plain or gzipped. Of lines with the same `id` the first wins; a line that is no
        record is left out and kept in `bad_lines` as (line number, reason).

    Raises
    ------
    UsageError
        There is no such path.
    InputError
        The file cannot be read or has no record.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.bad_lines: list[tuple[int, str]] = []
        self._lines: dict[str, bytes] = {}
        for number, line in _numbered_lines(self.path):
            try:
                identifier = _NAME.decode(line).id
            except msgspec.DecodeError as error:
                self.bad_lines.append((number, f"{self.path} line {number}: {error}"))
                continue
            self._lines.setdefault(identifier, line)
        if not self._lines:
            reason = f": {self.bad_lines[0][1]}" if self.bad_lines else ""
            raise InputError(
                f"{self.path} has no crystal record (one JSON object a line is expected){reason}"
            )
        if self.bad_lines:
            logger.warning(
                "%s: left out %d lines that are no crystal record, the first: %s",
                self.path,
                len(self.bad_lines),
                self.bad_lines[0][1],
            )

    def __len__(self) -> int:
        return len(self._lines)

    def identifiers(self) -> Iterator[str]:
        """Yield the identifiers in file order."""
        return iter(self._lines)

    def get(self, identifier: str) -> Crystal:
        """Return the checked crystal (see `Source.get`)."""
        line = self._lines.get(identifier)
        if line is None:
            raise UnknownIdentifier(f"not in {self.path.name}")
        return crystal_from_line(line)

    def iterate(self) -> Iterator[tuple[dict[str, Any], Crystal | Rejected]]:
        """Yield each record, all its fields, with its crystal or the reason why it is none."""
        for line in self._lines.values():
            record = msgspec.json.decode(line)
            try:
                yield record, crystal_from_line(line)
            except Rejected as rejection:
                yield record, rejection

    def describe(self) -> str:
        """Return the specification of this source."""
        return f"jsonl:{self.path}"


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, with their numbers from 1."""
    if not path.exists():
        raise UsageError(f"{path}: no such file (jsonl: takes a file of crystals)")
    if path.is_dir():
        raise InputError(
            f"{path} is a directory, and jsonl: takes a file (for a tree of CIF files: cif:{path})"
        )
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP_MAGIC
        with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
