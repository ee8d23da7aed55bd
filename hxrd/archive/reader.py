"""Reading an archive: its metadata at once, its intensities slice by slice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import zarr
from numpy.typing import NDArray

from hxrd.archive import schema
from hxrd.errors import InputError

Result = TypeVar("Result")


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
        return int((self._intensity.shards or self._intensity.chunks)[0])

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
        """Identifier of each pattern; empty where not written yet."""
        self._check_present("source_id", 0, self.n_patterns)
        return [str(identifier) for identifier in self._read("source_id", 0, self.n_patterns)]

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """0 not written yet, 1 good, 2 rejected; shape (n_patterns,)."""
        return self._read("status", 0, self.n_patterns).astype(np.uint8)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the intensities of patterns `start` to `stop` (excluded), scaled back where stored scaled.

        Parameters
        ----------
        start, stop : int
            Rows, 0 <= start <= stop <= n_patterns.

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
        intensity = self._read("intensity", start, stop).astype(np.float32, copy=False)
        if "scale" in self.group:
            intensity *= self._read("scale", start, stop).astype(np.float32)[:, None]
        return intensity

    def rejections(self) -> list[Rejection]:
        """Return the rejected patterns with their reasons, in archive order.

        Raises
        ------
        InputError
            A line of ``rejections.jsonl`` is damaged.
        """
        listed = {line.pattern: line for line in read_rejections(self.path)}
        rejected = np.flatnonzero(self.status == schema.REJECTED)
        return [
            listed.get(int(row)) or Rejection(int(row), self.source_id[row], "no reason was recorded")
            for row in rejected
        ]

    @property
    def _intensity(self) -> zarr.Array[Any]:
        return schema.member(self.group, "intensity")

    def _read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        array = schema.member(self.group, name)
        try:
            return np.asarray(array[start:stop])
        except Exception as error:  # the codecs raise errors of many types
            if isinstance(error, MemoryError):
                raise
            size = (array.shards or array.chunks)[0]
            chunk = _first_failing(lambda i: array[max(i * size, start) : (i + 1) * size], start, stop, size)
            raise InputError(
                f"archive {self.path}: chunk {self._chunk_key(name, chunk)} is corrupt "
                f"({schema.one_line(error)}): restore that file, or make the archive again"
            ) from error

    def _check_present(self, name: str, start: int, stop: int) -> None:
        """Raise where the file of patterns that count as good has gone: Zarr would read zeros or blanks."""
        array = schema.member(self.group, name)
        size = int((array.shards or array.chunks)[0])
        for chunk in range(start // size, -(-stop // size)):
            rows = slice(max(start, chunk * size), min(stop, (chunk + 1) * size))
            key = self._chunk_key(name, chunk)
            if np.any(self.status[rows] == schema.GOOD) and not (self.path / key).exists():
                raise InputError(
                    f"archive {self.path}: chunk {key} is missing: restore it, or make the archive again"
                )

    def _chunk_key(self, name: str, chunk: int) -> str:
        array = schema.member(self.group, name)
        coordinates = (chunk,) + (0,) * (array.ndim - 1)
        return f"{name}/{array.metadata.encode_chunk_key(coordinates)}"


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


def read_rejections(path: Path) -> list[Rejection]:
    """Return all lines of ``rejections.jsonl``, less a last one still being written.

    Raises
    ------
    InputError
        A line is damaged.
    """
    file = path / schema.REJECTIONS_FILE
    if not file.is_file():
        return []
    *lines, _ = file.read_bytes().split(b"\n")
    try:
        return [msgspec.json.decode(line, type=Rejection) for line in lines]
    except msgspec.MsgspecError as error:
        raise InputError(f"archive {path}: {schema.REJECTIONS_FILE} is damaged ({error})") from error


def _first_failing(read: Callable[[int], Result], start: int, stop: int, size: int) -> int:
    """Return the first chunk of the rows that cannot be read, or the first of all if each now can."""
    first = start // size
    for chunk in range(first, -(-stop // size)):
        try:
            read(chunk)
        except Exception:
            return chunk
    return first
