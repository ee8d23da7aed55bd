"""Crystals from a table with one JSON object a line: ``jsonl:FILE`` or ``jsonl:FILE.gz``.

Fields of a line: `id`, `cell` [a b c α β γ] (Å, degrees), `sites` = the whole content of that cell as
[species, x, y, z, occupancy, B_iso or null] (x, y, z fractional, B_iso in Å²); optional `space_group`
(1 to 230). Other fields are kept in the record and not read.
"""

import gzip
import hashlib
import logging
import os
import weakref
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal, checked
from hxrd.crystal.species import normalized_species
from hxrd.errors import InputError, Rejected, UsageError
from hxrd.sources.source import UnknownIdentifier
from hxrd.sources.spool import temporary_copy

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
    """A table of crystals on disk; its lines are found by their identifiers and parsed when asked for.

    Memory holds 24 bytes a line, so a table may have millions; a gzipped one is unpacked into a temporary
    file that vanishes with the source.

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
        self._stream = _opened(self.path)
        weakref.finalize(self, self._stream.close)
        self._state = self._stamp()
        # Of the lines in the order of their identifiers' digests: digest, byte offset, length.
        self._digests, self._offsets, self._lengths = self._index()

    def __len__(self) -> int:
        return len(self._offsets)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        """Return how another process opens the table: by itself."""
        return JsonlSource, (self.path,)

    def identifiers(self) -> Iterator[str]:
        """Yield the identifiers in file order."""
        return (_NAME.decode(line).id for line in self._kept_lines())

    def get(self, identifier: str) -> Crystal:
        """Return the checked crystal (see `Source.get`).

        Raises
        ------
        InputError
            The file has changed meanwhile.
        """
        digest = np.frombuffer(_digest(identifier), np.uint64)[0]
        place = int(np.searchsorted(self._digests, digest))
        while place < len(self) and self._digests[place] == digest:
            line = self._read(place)
            if _NAME.decode(line).id == identifier:
                return crystal_from_line(line)
            place += 1
        raise UnknownIdentifier(f"not in {self.path.name}")

    def iterate(self) -> Iterator[tuple[dict[str, Any], Crystal | Rejected]]:
        """Yield each record, all its fields, with its crystal or the reason why it is none."""
        for line in self._kept_lines():
            record = msgspec.json.decode(line)
            try:
                yield record, crystal_from_line(line)
            except Rejected as rejection:
                yield record, rejection

    def describe(self) -> str:
        """Return the specification of this source."""
        return f"jsonl:{self.path}"

    def _index(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        digests, offsets, lengths = bytearray(), array("q"), array("q")
        offset = 0
        for number, line in enumerate(_lines(self._stream, self.path), start=1):
            if line.strip():
                try:
                    digests += _digest(_NAME.decode(line).id)
                    offsets.append(offset)
                    lengths.append(len(line))
                except msgspec.DecodeError as error:
                    self.bad_lines.append((number, f"{self.path} line {number}: {error}"))
            offset += len(line)
        if not offsets:
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
        return self._sorted(np.frombuffer(digests, np.uint64), np.array(offsets), np.array(lengths))

    def _sorted(
        self, digests: NDArray[np.uint64], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """Sort the lines by digest and drop the later ones of each identifier."""
        order = np.argsort(digests, kind="stable")
        digests, offsets, lengths = digests[order], offsets[order], lengths[order]
        kept = np.ones(len(digests), bool)
        seen: set[str] = set()
        for place in np.flatnonzero(digests[1:] == digests[:-1]) + 1:
            for one in (place - 1, place):
                name = _NAME.decode(_read_at(self._stream, int(offsets[one]), int(lengths[one]))).id
                if one == place:
                    kept[place] = name not in seen
                seen.add(name)
        return digests[kept], offsets[kept], lengths[kept]

    def _kept_lines(self) -> Iterator[bytes]:
        return (self._read(int(place)) for place in np.argsort(self._offsets))

    def _read(self, place: int) -> bytes:
        if self._stamp() != self._state:
            raise InputError(f"{self.path} changed while it was in use: repeat the command once it is whole")
        return _read_at(self._stream, int(self._offsets[place]), int(self._lengths[place]))

    def _stamp(self) -> tuple[int, int]:
        state = os.fstat(self._stream.fileno())
        return state.st_size, state.st_mtime_ns


def _digest(identifier: str) -> bytes:
    return hashlib.blake2b(identifier.encode(errors="surrogatepass"), digest_size=8).digest()


def _opened(path: Path) -> IO[bytes]:
    """Open the file, or an unpacked copy of a gzipped one."""
    if not path.exists():
        raise UsageError(f"{path}: no such file (jsonl: takes a file of crystals)")
    if path.is_dir():
        raise InputError(
            f"{path} is a directory, and jsonl: takes a file (for a tree of CIF files: cif:{path})"
        )
    try:
        stream = path.open("rb")
        zipped = stream.read(2) == _GZIP_MAGIC
        stream.seek(0)
        if not zipped:
            return stream
        with stream, gzip.open(stream) as content:
            return temporary_copy(content, str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _lines(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    try:
        stream.seek(0)
        yield from stream
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_at(stream: IO[bytes], offset: int, length: int) -> bytes:
    """Read without moving the stream's place, which forked processes share."""
    return os.pread(stream.fileno(), length, offset)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read: {error}")
