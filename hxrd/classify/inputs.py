"""What is classified: archives and measured files, behind one small protocol, and their concatenation."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hxrd.archive import schema
from hxrd.errors import InputError, UsageError
from hxrd.formats import MeasuredPattern, read_pattern
from hxrd.models.preprocess import bridge_gaps

if TYPE_CHECKING:
    from hxrd.archive import Archive

REJECTED = "rejected"
_FILES_KEPT = 64  # parsed files remembered between the look at their headers and their use


@dataclass(frozen=True, eq=False)
class PatternSlice:
    """Some consecutive patterns of one input, as they are there.

    Parameters
    ----------
    intensity : ndarray, shape (n, m)
        Any scale; no points (m = 0) where nothing could be read.
    two_theta : ndarray, shape (m,)
        Degrees.
    wavelength : float
        Å.
    source_id, flag, reason : list of str, length n
        Identifier; ``rejected`` or empty; why, in words.
    space_group : ndarray, shape (n,), int16
        0 where unknown.
    """

    intensity: NDArray[np.floating[Any]]
    two_theta: NDArray[np.float64]
    wavelength: float
    source_id: list[str]
    flag: list[str]
    reason: list[str]
    space_group: NDArray[np.int16]


def _nothing_readable(source_id: str, reason: str) -> PatternSlice:
    """Return the one empty row of an input that cannot be used."""
    empty = np.zeros((1, 0), np.float32)
    unknown = np.zeros(1, np.int16)
    return PatternSlice(empty, np.zeros(0), 1.0, [source_id], [REJECTED], [reason], unknown)


class Room:
    """Memory for the patterns of one slice after the other: fresh memory costs more than decoding into it.

    What a slice holds there is lost when the room is used for the next one. For one thread.
    """

    def __init__(self) -> None:
        self._values = np.empty(0, np.float32)

    def array(self, n: int, m: int) -> NDArray[np.float32]:
        """Return an array (n, m) to be filled."""
        if self._values.size < n * m:
            self._values = np.empty(n * m, np.float32)
        return self._values[: n * m].reshape(n, m)


class PatternInput(Protocol):
    """Where patterns come from."""

    name: str
    n_patterns: int
    usable: bool
    probe: str
    wavelength: float

    @property
    def space_group(self) -> NDArray[np.int16]:
        """What is known to be true, shape (n_patterns,); 0 where unknown."""

    def read(self, start: int, stop: int, room: Room | None = None) -> PatternSlice:
        """Return patterns `start` to `stop` (excluded), perhaps in the memory of `room`."""

    def fingerprint(self) -> list[Any]:
        """Return plain values that change when the input does."""


@dataclass
class UnusableInput:
    """An input that exists but cannot be read: one row, flagged ``rejected``."""

    name: str
    reason: str
    n_patterns: int = 1
    usable: bool = False
    probe: str = ""
    wavelength: float = 0.0

    @property
    def space_group(self) -> NDArray[np.int16]:
        """Unknown: [0]."""
        return np.zeros(1, np.int16)

    def read(self, start: int, stop: int, room: Room | None = None) -> PatternSlice:
        """Return the one empty row."""
        return _nothing_readable(self.name, self.reason)

    def fingerprint(self) -> list[Any]:
        """Return the name and why it cannot be read."""
        return [self.name, self.reason]


class ArchiveInput:
    """The patterns of an archive, read slice by slice.

    Parameters
    ----------
    name : str
        As given on the command line.
    archive : Archive
        Opened.
    """

    usable = True

    def __init__(self, name: str, archive: "Archive"):
        self.name = name
        self.archive = archive
        self.n_patterns = archive.n_patterns
        self.probe = archive.probe
        self.wavelength = archive.wavelength

    @property
    def space_group(self) -> NDArray[np.int16]:
        """As the archive has them."""
        return self.archive.space_group

    @cached_property
    def _reasons(self) -> dict[int, str]:
        return {rejection.pattern: rejection.reason for rejection in self.archive.rejections()}

    def read(self, start: int, stop: int, room: Room | None = None) -> PatternSlice:
        """Return patterns `start` to `stop`, gaps bridged; those rejected or not written yet are flagged.

        Raises
        ------
        InputError
            The archive is corrupt.
        """
        status = self.archive.status[start:stop]
        reason = [""] * len(status)
        for row in np.flatnonzero(status != schema.GOOD).tolist():
            reason[row] = self._reason(start + row, int(status[row]))
        out = None if room is None else room.array(stop - start, self.archive.n_points)
        intensity = self.archive.read(start, stop, out)
        if (measured := self.archive.measured(start, stop)) is not None:
            bridge_gaps(intensity, self.archive.two_theta, measured)
        return PatternSlice(
            intensity,
            self.archive.two_theta,
            self.wavelength,
            self.archive.source_ids(start, stop),
            [REJECTED if text else "" for text in reason],
            reason,
            self.archive.space_group[start:stop],
        )

    def _reason(self, pattern: int, status: int) -> str:
        if status == schema.NOT_WRITTEN:
            return "not written yet: finish the archive with --resume of the command that made it"
        return self._reasons.get(pattern, "rejected") if status == schema.REJECTED else ""

    def fingerprint(self) -> list[Any]:
        """Return the path, size and all attributes."""
        return [str(Path(self.name).resolve()), self.n_patterns, dict(self.archive.attributes)]


class MeasuredFile:
    """One measured pattern.

    Parameters
    ----------
    path : Path
        The file; it is parsed only when its pattern is needed.
    probe : str
        ``neutron`` or ``xray``.
    wavelength : float
        Å.
    """

    n_patterns = 1
    usable = True

    def __init__(self, path: Path, probe: str, wavelength: float):
        self.name = _shown(path)
        self.path = path
        self.probe = probe
        self.wavelength = wavelength

    @property
    def space_group(self) -> NDArray[np.int16]:
        """Unknown: [0]."""
        return np.zeros(1, np.int16)

    def read(self, start: int, stop: int, room: Room | None = None) -> PatternSlice:
        """Return the pattern, or an empty row with the reason where it cannot be read."""
        try:
            pattern = _parsed(self.path)
        except InputError as error:
            return _nothing_readable(self.name, _without_name(error, self.path))
        unknown = np.zeros(1, np.int16)
        rows = pattern.intensity[None]
        return PatternSlice(rows, pattern.two_theta, self.wavelength, [self.name], [""], [""], unknown)

    def fingerprint(self) -> list[Any]:
        """Return the path, size and time of change, radiation."""
        status = self.path.stat()
        return [str(self.path.resolve()), status.st_size, status.st_mtime_ns, self.probe, self.wavelength]


def _shown(path: Path) -> str:
    """Return the path as text that every output can hold, whatever bytes the file system has."""
    return os.fsencode(path).decode(errors="replace")


@lru_cache(maxsize=_FILES_KEPT)
def _parsed(path: Path) -> MeasuredPattern:
    return read_pattern(path)


def _without_name(error: InputError, path: Path) -> str:
    return str(error).removeprefix(str(path)).lstrip(": ")


class Concatenation:
    """Several inputs, numbered through.

    Parameters
    ----------
    inputs : sequence of PatternInput
        At least one.
    """

    def __init__(self, inputs: Sequence[PatternInput]):
        self.inputs = list(inputs)
        self._starts = [0, *accumulate(one.n_patterns for one in self.inputs)]

    @property
    def n_patterns(self) -> int:
        """Of all inputs together."""
        return self._starts[-1]

    @property
    def usable(self) -> list[PatternInput]:
        """Those that can be read."""
        return [one for one in self.inputs if one.usable]

    @cached_property
    def space_group(self) -> NDArray[np.int16]:
        """What is known to be true, shape (n_patterns,); 0 where unknown."""
        return np.concatenate([one.space_group for one in self.inputs])

    def read(self, start: int, stop: int, room: Room | None = None) -> Iterator[PatternSlice]:
        """Yield patterns `start` to `stop` (excluded), a slice for each input that they lie in.

        With a room, each slice is to be used before the next one is taken.
        """
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            offset, end = self._starts[index], min(stop, self._starts[index + 1])
            yield self.inputs[index].read(start - offset, end - offset, room)
            start, index = end, index + 1


def open_inputs(
    paths: Sequence[str | Path], *, probe: str | None = None, wavelength: float | None = None
) -> Concatenation:
    """Open archives and measured files, in the order given.

    Parameters
    ----------
    paths : sequence of str or Path
        Folders are taken as archives, all else as measured files.
    probe, wavelength
        Of the measured files, overriding what they state; archives state their own. Å.

    Raises
    ------
    UsageError
        A path does not exist; a file states no probe or wavelength and none is given.
    """
    for path in paths:
        if not Path(path).exists():
            raise UsageError(f"{path} does not exist; give archives or measured pattern files")
    return Concatenation([_open(Path(path), probe, wavelength) for path in paths])


def _open(path: Path, probe: str | None, wavelength: float | None) -> PatternInput:
    try:
        if path.is_dir():
            from hxrd.archive import open_archive

            return ArchiveInput(str(path), open_archive(path))
        if probe is None or wavelength is None:
            pattern = _parsed(path)
            probe, wavelength = probe or pattern.probe, wavelength or pattern.wavelength
    except InputError as error:
        return UnusableInput(_shown(path), _without_name(error, path))
    if wavelength is None:
        raise UsageError(f"{path} states no wavelength; give --wavelength (Å, or a line such as CuKa)")
    if probe is None:
        raise UsageError(f"{path} does not state its radiation; give --probe neutron or --probe xray")
    return MeasuredFile(path, probe, wavelength)
