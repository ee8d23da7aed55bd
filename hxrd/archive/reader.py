"""Reading an archive: its metadata at once, its intensities slice by slice."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import zarr
from numpy.typing import NDArray

from hxrd.archive import schema
from hxrd.archive.shards import ShardReader
from hxrd.errors import InputError

Result = TypeVar("Result")

_CHUNKS_HELD = 4  # of identifiers, some 4096 each
_HOLDING = threading.Lock()  # several threads may read one archive


class Rejection(msgspec.Struct, frozen=True):
    """A line of ``rejections.jsonl``.

    Parameters
    ----------
    pattern : int
        Row of the archive.
    source_id : str
        Identifier of the crystal or file.
    reason : str
        Why it was rejected.
    """

    pattern: int
    source_id: str
    reason: str


@dataclass(frozen=True)
class Archive:
    """An archive opened for reading.

    Parameters
    ----------
    path : Path
        Its folder.
    group : zarr.Group
        Its Zarr group, already checked.
    """

    path: Path
    group: zarr.Group

    @property
    def n_patterns(self) -> int:
        """Number of rows, written or not."""
        return int(self._intensity.shape[0])

    @property
    def n_points(self) -> int:
        """Number of points of each pattern."""
        return int(self._intensity.shape[1])

    @property
    def dtype(self) -> str:
        """How intensities are stored: float32, float16 or uint16."""
        return str(self._intensity.dtype)

    @property
    def shard_size(self) -> int:
        """Patterns in one file of the archive: the cheapest unit to read."""
        return _rows_of_a_chunk(self._intensity)

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """All attributes of the group."""
        return self.group.attrs.asdict()

    @property
    def probe(self) -> str:
        """``neutron`` or ``xray``."""
        return str(self.attributes["probe"])

    @property
    def wavelengths(self) -> tuple[tuple[float, float], ...]:
        """Wavelength in Å and weight of each line."""
        return schema.wavelength_lines(self.attributes["wavelength"])

    @property
    def wavelength(self) -> float:
        """Weighted mean wavelength in Å."""
        lines = np.array(self.wavelengths)
        return float(np.average(lines[:, 0], weights=lines[:, 1]))

    @property
    def instrument(self) -> str:
        """Name of the instrument."""
        return str(self.attributes["instrument"])

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Command, version, seed, sources, time, and what else the writer noted."""
        return dict(self.attributes["provenance"])

    @cached_property
    def two_theta(self) -> NDArray[np.float64]:
        """Scattering angles 2θ in degrees, shape (n_points,).

        Raises
        ------
        InputError
            They are damaged or not strictly increasing.
        """
        grid = self._read("two_theta", 0, self.n_points)
        try:
            return schema.checked_two_theta(grid)
        except ValueError as error:
            raise InputError(f"archive {self.path}: {error}") from error

    @cached_property
    def space_group(self) -> NDArray[np.int16]:
        """Space group of each pattern, shape (n_patterns,); 0 where unknown."""
        return self._read("space_group", 0, self.n_patterns).astype(np.int16)

    @cached_property
    def source_id(self) -> list[str]:
        """Identifier of each pattern; empty where not written yet.

        All of them are kept in memory, some 100 bytes each: of a large archive read slices, by
        `source_ids`.
        """
        return self.source_ids(0, self.n_patterns)

    def source_ids(self, start: int, stop: int) -> list[str]:
        """Return the identifiers of patterns `start` to `stop` (excluded); empty where not written yet.

        Raises
        ------
        InputError
            A chunk is corrupt or missing; it is named.
        """
        self._check_present("source_id", start, stop)
        size = _rows_of_a_chunk(self._member("source_id"))
        names: list[str] = []
        for chunk in range(start // size, -(-stop // size)):
            base = chunk * size
            names += self._identifiers(base, min(base + size, self.n_patterns))[
                max(start - base, 0) : stop - base
            ]
        return names

    def _identifiers(self, start: int, stop: int) -> list[str]:
        """Return those of a chunk: it is decoded as a whole, so the last ones are kept."""
        held = self._identifiers_held
        names = held.get(start)
        if names is None:
            names = [str(identifier) for identifier in self._read("source_id", start, stop)]
            with _HOLDING:
                while len(held) >= _CHUNKS_HELD:
                    del held[next(iter(held))]
                held[start] = names
        return names

    @cached_property
    def _identifiers_held(self) -> dict[int, list[str]]:
        return {}

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """0 not written yet, 1 good, 2 rejected; shape (n_patterns,)."""
        return self._read("status", 0, self.n_patterns).astype(np.uint8)

    @property
    def n_rejected(self) -> int:
        """Number of rejected patterns."""
        return int(np.count_nonzero(self.status == schema.REJECTED))

    def read(self, start: int, stop: int, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return the intensities of patterns `start` to `stop` (excluded), scaled back where stored scaled.

        Parameters
        ----------
        start, stop : int
            Rows, 0 <= start <= stop <= n_patterns.
        out : ndarray, shape (stop - start, n_points), float32, optional
            Memory that may be used for them, and is where the archive is stored as float32.

        Returns
        -------
        ndarray, shape (stop - start, n_points), float32

        Raises
        ------
        IndexError
            Rows outside the archive.
        InputError
            A chunk is corrupt or missing; it is named.
        """
        if not 0 <= start <= stop <= self.n_patterns:
            raise IndexError(f"patterns {start} to {stop} of an archive of {self.n_patterns}")
        self._check_present("intensity", start, stop)
        intensity = self._read("intensity", start, stop, out).astype(np.float32, copy=False)
        if "scale" in self._optional:
            intensity *= self._read("scale", start, stop).astype(np.float32)[:, None]
        return intensity

    def measured(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Return which points of patterns `start` to `stop` (excluded) count, or None where all do.

        Returns
        -------
        ndarray of bool, shape (stop - start, n_points), or None
            False where a pattern was masked or its range had ended; its intensities are 0 there.

        Raises
        ------
        InputError
            A chunk is corrupt or missing; it is named.
        """
        if "measured" not in self._optional:
            return None
        self._check_present("measured", start, stop)
        return self._read("measured", start, stop).astype(bool, copy=False)

    def impurities(self, start: int, stop: int) -> list[list[tuple[str, float]]]:
        """Return the foreign phases of patterns `start` to `stop` (excluded).

        Returns
        -------
        list of list of (str, float)
            For each pattern the identifier and weight fraction of each foreign phase; empty where there
            is none.

        Raises
        ------
        InputError
            A chunk is corrupt or missing; it is named.
        """
        if "impurity_id" not in self._optional:
            return [[] for _ in range(start, stop)]
        self._check_present("impurity_id", start, stop)
        self._check_present("impurity_fraction", start, stop)
        names = self._read("impurity_id", start, stop)
        fractions = self._read("impurity_fraction", start, stop)
        return [
            [(str(name), float(part)) for name, part in zip(row, parts, strict=True) if name]
            for row, parts in zip(names, fractions, strict=True)
        ]

    def iterate_rejections(self) -> Iterator[Rejection]:
        """Yield the rejected patterns with their reasons, in archive order, however many there are.

        Raises
        ------
        InputError
            A line of ``rejections.jsonl`` is damaged.
        """
        listed = _in_order(self.path)
        line = next(listed, None)
        for row in map(int, np.flatnonzero(self.status == schema.REJECTED)):
            while line is not None and line.pattern < row:
                line = next(listed, None)
            if line is not None and line.pattern == row:
                yield line
            else:
                yield Rejection(row, self.source_ids(row, row + 1)[0], "no reason was recorded")

    def rejections(self) -> list[Rejection]:
        """Return the rejected patterns with their reasons, in archive order (see `iterate_rejections`)."""
        return list(self.iterate_rejections())

    @property
    def _intensity(self) -> zarr.Array[Any]:
        return self._member("intensity")

    def _member(self, name: str) -> zarr.Array[Any]:
        """Return an array, whose metadata Zarr would read anew each time."""
        members = self._members
        if name not in members:
            members[name] = schema.member(self.group, name)
        return members[name]

    @cached_property
    def _members(self) -> dict[str, zarr.Array[Any]]:
        return {}

    def _shards(self, name: str) -> ShardReader | None:
        readers = self._readers
        if name not in readers:
            readers[name] = ShardReader.of(self._member(name), self.path)
        return readers[name]

    @cached_property
    def _readers(self) -> dict[str, ShardReader | None]:
        return {}

    @cached_property
    def _optional(self) -> frozenset[str]:
        return frozenset(name for name in schema.OPTIONAL if name in self.group)

    def _read(self, name: str, start: int, stop: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        array = self._member(name)
        shards = self._shards(name)
        try:
            return shards.read(start, stop, out) if shards else np.asarray(array[start:stop])
        except Exception as error:  # the codecs raise errors of many types
            if isinstance(error, MemoryError):
                raise
            size = _rows_of_a_chunk(array)
            chunk = _first_failing(lambda i: array[max(i * size, start) : (i + 1) * size], start, stop, size)
            raise InputError(
                f"archive {self.path}: chunk {self._chunk_key(name, chunk)} is corrupt "
                f"({schema.one_line(error)}): restore that file, or make the archive again"
            ) from error

    def _check_present(self, name: str, start: int, stop: int) -> None:
        """Raise where the file of patterns that count as good has gone: Zarr would read zeros or blanks."""
        array = self._member(name)
        size = _rows_of_a_chunk(array)
        for chunk in range(start // size, -(-stop // size)):
            rows = slice(max(start, chunk * size), min(stop, (chunk + 1) * size))
            key = self._chunk_key(name, chunk)
            if np.any(self.status[rows] == schema.GOOD) and not (self.path / key).exists():
                raise InputError(
                    f"archive {self.path}: chunk {key} is missing: restore it, or make the archive again"
                )

    def _chunk_key(self, name: str, chunk: int) -> str:
        array = self._member(name)
        coordinates = (chunk,) + (0,) * (array.ndim - 1)
        return f"{name}/{array.metadata.encode_chunk_key(coordinates)}"


def _rows_of_a_chunk(array: zarr.Array[Any]) -> int:
    """Return the rows that lie in one file."""
    return int((array.shards or array.chunks)[0])


_REJECTION = msgspec.json.Decoder(Rejection)


def open_archive(path: str | Path) -> Archive:
    """Open an archive for reading; it may still be growing.

    Raises
    ------
    UsageError
        The path does not exist.
    InputError
        It is not an archive, is damaged or incomplete, or is of another schema.
    """
    path = Path(path)
    return Archive(path, schema.open_group(path))


def read_rejections(path: Path) -> Iterator[Rejection]:
    """Yield the lines of ``rejections.jsonl`` as they stand, less a last one still being written.

    Raises
    ------
    InputError
        A line is damaged.
    """
    file = path / schema.REJECTIONS_FILE
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            try:
                yield _REJECTION.decode(line)
            except msgspec.MsgspecError as error:
                raise InputError(f"archive {path}: {schema.REJECTIONS_FILE} is damaged ({error})") from error


def _in_order(path: Path) -> Iterator[Rejection]:
    """Yield the lines by row: as they stand, unless a shard was lost and written again after others."""
    last = -1
    for line in read_rejections(path):
        if line.pattern < last:
            return iter(sorted(read_rejections(path), key=lambda line: line.pattern))
        last = line.pattern
    return read_rejections(path)


def _first_failing(read: Callable[[int], Result], start: int, stop: int, size: int) -> int:
    """Return the first chunk of the rows that cannot be read, or the first of all if each now can."""
    first = start // size
    for chunk in range(first, -(-stop // size)):
        try:
            read(chunk)
        except Exception:
            return chunk
    return first
