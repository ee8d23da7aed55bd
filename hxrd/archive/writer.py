"""Writing an archive shard by shard, so that a killed writer loses only the shards in hand.

Every small array is chunked by shard, and Zarr replaces a chunk's file as a whole. The `status` of a
shard is written last: a shard whose status is there is complete, any other is written again on resume.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import msgspec
import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from hxrd.archive import schema
from hxrd.archive.layout import CHUNK_SIZE, default_shard_size, make_columns, make_patterns
from hxrd.archive.reader import Archive, Rejection, read_rejections
from hxrd.errors import InputError, UsageError


class ArchiveWriter:
    """The one writer of an archive, holding its lock until closed.

    Made by `create_archive` or `open_writer`; use it as a context manager.

    Parameters
    ----------
    path : Path
        The archive's folder.
    group : zarr.Group
        Its group, open for writing.
    lock : filelock.FileLock
        Already acquired.
    """

    def __init__(self, path: Path, group: zarr.Group, lock: filelock.BaseFileLock) -> None:
        self.path = path
        self._group = group
        self._lock = lock
        # Opened once: each opening reads metadata, which small shards would feel.
        names = [*schema.REQUIRED, *(name for name in schema.OPTIONAL if name in group)]
        self._members = {name: schema.member(group, name) for name in names}
        self._intensity = self._members["intensity"]

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""
        self.close()

    def close(self) -> None:
        """Release the lock; the archive stays as it is."""
        _release(self._lock)

    @property
    def archive(self) -> Archive:
        """The archive as it now stands, for reading."""
        return Archive(self.path, self._group)

    @property
    def n_patterns(self) -> int:
        """Number of rows, written or not."""
        return int(self._intensity.shape[0])

    @property
    def shard_size(self) -> int:
        """Patterns of a shard; the last one may have fewer."""
        return int((self._intensity.shards or self._intensity.chunks)[0])

    def rows(self, index: int) -> range:
        """Return the rows of shard `index`."""
        return range(index * self.shard_size, min((index + 1) * self.shard_size, self.n_patterns))

    def pending_shards(self) -> list[int]:
        """Return the shards that are not written yet, in order."""
        status = self.archive.status
        count = -(-self.n_patterns // self.shard_size)
        return [
            index
            for index in range(count)
            if np.any(status[self.rows(index).start : self.rows(index).stop] == schema.NOT_WRITTEN)
        ]

    def write_shard(
        self,
        index: int,
        intensity: NDArray[Any],
        space_group: ArrayLike,
        source_id: Sequence[str],
        status: ArrayLike,
        reasons: Sequence[str | None],
        *,
        impurity_id: NDArray[Any] | None = None,
        impurity_fraction: NDArray[Any] | None = None,
        measured: NDArray[np.bool_] | None = None,
    ) -> None:
        """Write all that belongs to one shard; it counts once its status is on disk.

        Parameters
        ----------
        index : int
            Which shard.
        intensity : ndarray, shape (n, n_points)
            Rows of rejected patterns are stored as zeros, whatever they hold.
        space_group : array_like of int, shape (n,)
            1 to 230; 0 where unknown.
        source_id : sequence of str, length n
            Identifiers.
        status : array_like of int, shape (n,)
            1 good, 2 rejected.
        reasons : sequence of (str or None), length n
            Why each rejected pattern was rejected.
        impurity_id : ndarray of str, shape (n, k), optional
            Identifiers of foreign phases, empty where there is none; in an archive made for k of them.
        impurity_fraction : ndarray, shape (n, k), optional
            Their weight fractions.
        measured : ndarray of bool, shape (n, n_points), optional
            Which points count; in an archive made with this member.

        Raises
        ------
        ValueError
            The lengths do not fit the shard, a status is neither 1 nor 2, or an optional member that
            the archive has is missing, or the other way round.
        InputError
            Intensities that the archive's type cannot hold.
        OSError
            The disk is full or not writable.
        """
        rows = self.rows(index)
        marks = np.asarray(status, dtype=np.uint8)
        lengths = {len(intensity), len(np.atleast_1d(space_group)), len(source_id), len(marks), len(reasons)}
        if lengths != {len(rows)} or not np.isin(marks, (schema.GOOD, schema.REJECTED)).all():
            raise ValueError(f"shard {index} takes {len(rows)} rows of status 1 or 2")
        good = (marks == schema.GOOD)[:, None]
        stored, scale = _encode(_blanked(intensity, good), str(self._intensity.dtype))
        columns: dict[str, Any] = {
            "scale": scale,
            "space_group": np.asarray(space_group, dtype=np.int16),
            "source_id": np.array(list(source_id), dtype=object),
            "impurity_id": impurity_id,
            "impurity_fraction": impurity_fraction,
            "measured": None if measured is None else _blanked(measured, good),
        }
        written = {name: column for name, column in columns.items() if column is not None}
        if columns.keys() & self._members.keys() != written.keys():
            raise ValueError(f"shard {index} brings {', '.join(written)}, not the members of the archive")
        where = slice(rows.start, rows.stop)
        # A chunk of zeros has a file too: one that is missing can then only be a lost one.
        with zarr.config.set({"array.write_empty_chunks": True}):
            self._intensity[where] = stored
            for name, column in written.items():
                self._members[name][where] = column
            self._append_rejections(rows, source_id, marks, reasons)
            self._members["status"][where] = marks

    def _append_rejections(
        self, rows: range, source_id: Sequence[str], marks: NDArray[np.uint8], reasons: Sequence[str | None]
    ) -> None:
        lines = b"".join(
            msgspec.json.encode(Rejection(row, name, reason or "unknown reason")) + b"\n"
            for row, name, mark, reason in zip(rows, source_id, marks, reasons, strict=True)
            if mark == schema.REJECTED
        )
        if lines:
            with open(self.path / schema.REJECTIONS_FILE, "ab") as file:
                file.write(lines)

    def _drop_unfinished(self) -> None:
        """Remove what a killed writer left behind: half-written files and reasons of pending shards."""
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink()
        file = self.path / schema.REJECTIONS_FILE
        if not file.is_file():
            return
        status = self.archive.status
        part = file.with_name(file.name + ".part")
        with part.open("wb") as kept:
            for line in read_rejections(self.path):
                if not 0 <= line.pattern < len(status):
                    raise InputError(f"archive {self.path}: {file.name} tells of a row {line.pattern}")
                if status[line.pattern] == schema.REJECTED:
                    kept.write(msgspec.json.encode(line) + b"\n")
        os.replace(part, file)


def create_archive(
    path: str | Path,
    *,
    n_patterns: int,
    two_theta: ArrayLike,
    probe: str,
    wavelength: schema.Wavelength,
    instrument: str,
    normalization: str,
    provenance: Mapping[str, Any],
    dtype: str = "float32",
    n_impurities: int = 0,
    measured: bool = False,
    force: bool = False,
    chunk_size: int = CHUNK_SIZE,
    shard_size: int | None = None,
) -> ArchiveWriter:
    """Make an archive with every row still to be written, and return its writer.

    Parameters
    ----------
    path : path
        Folder to make.
    n_patterns : int
        Number of rows.
    two_theta : array_like, shape (n_points,)
        Degrees, strictly increasing.
    probe : {"neutron", "xray"}
        The radiation.
    wavelength : float or sequence of (float, float)
        Å, or the (wavelength, weight) of each line.
    instrument : str
        Its name.
    normalization : str
        What was done to the intensities: ``maximum``, ``none``…
    provenance : mapping
        Command, version, seed, sources, time; JSON values.
    dtype : {"float32", "float16", "uint16"}
        Storage type; uint16 keeps whole counts below 65536 as they are and scales other patterns.
    n_impurities : int
        Most foreign phases of a pattern: with any, the archive has `impurity_id` and
        `impurity_fraction`.
    measured : bool
        Whether the archive has a member `measured`.
    force : bool
        Replace an existing archive (never anything else).
    chunk_size : int
        Patterns compressed together.
    shard_size : int, optional
        Patterns in one file, rounded to a multiple of the chunk.  [default: by `default_shard_size`]

    Raises
    ------
    InputError
        The path exists (and is no archive, with `force`), or another process is writing it.
    UsageError
        The folder that should hold it does not exist.
    ValueError
        A grid, probe, type or wavelength that no archive can have.
    """
    path = Path(path).absolute()
    grid = schema.checked_two_theta(two_theta)
    if dtype not in schema.INTENSITY_TYPES or probe not in schema.PROBES or n_patterns < 1:
        raise ValueError(f"an archive cannot hold {n_patterns} patterns of {dtype} from {probe}")
    attributes = {
        "hxrd_schema": schema.SCHEMA,
        "probe": probe,
        "wavelength": schema.wavelength_attribute(wavelength),
        "instrument": instrument,
        "normalization": normalization,
        "provenance": dict(provenance),
    }
    schema.wavelength_lines(attributes["wavelength"])
    check_output(path, force)
    lock = _acquire(path)
    try:
        check_output(path, force)  # again: another writer may have made it meanwhile
        # Made aside and renamed, so that whoever looks finds a whole archive or none.
        part = path.with_name(path.name + ".part")
        _remove(part)
        shard_size = shard_size or default_shard_size(len(grid))
        chunk = min(chunk_size, shard_size, n_patterns)
        shard = chunk * min(max(shard_size // chunk, 1), -(-n_patterns // chunk))
        group = zarr.create_group(part, zarr_format=3, attributes=attributes)
        make_patterns(group, grid, n_patterns, dtype, chunk, shard, measured)
        make_columns(group, n_patterns, dtype, shard, n_impurities)
        _remove(path)
        os.rename(part, path)
        return ArchiveWriter(path, schema.open_group(path, "r+"), lock)
    except BaseException:
        _release(lock)
        raise


def open_writer(path: str | Path) -> ArchiveWriter:
    """Open an existing archive to write the shards that are still pending.

    Raises
    ------
    UsageError
        The path does not exist.
    InputError
        It is not an archive, is damaged, or another process is writing it.
    """
    path = Path(path).absolute()
    schema.open_group(path)  # complain before a lock file is made beside something else
    lock = _acquire(path)
    try:
        writer = ArchiveWriter(path, schema.open_group(path, "r+"), lock)
        writer._drop_unfinished()
        return writer
    except BaseException:
        _release(lock)
        raise


def check_output(path: str | Path, force: bool = False) -> None:
    """Raise where `create_archive` would: before any long work has begun.

    Raises
    ------
    InputError
        The path exists, and `force` is not given or it is no archive.
    UsageError
        The folder that should hold it does not exist.
    """
    path = Path(path).absolute()
    if not path.parent.is_dir():
        raise UsageError(f"folder {path.parent} does not exist: make it first, or choose another output")
    if not path.exists() and not path.is_symlink():
        return
    if not force:
        raise InputError(
            f"{path} exists: --force overwrites it, --resume finishes it, -o names another output"
        )
    if not schema.is_archive(path):
        raise InputError(f"{path} is no hxrd archive, so --force does not delete it: choose another output")


def _blanked(rows: NDArray[Any], good: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the rows, zeros where they are not good; copied only where that changes them."""
    return np.where(good, rows, rows.dtype.type(0)) if np.any(rows[~good[:, 0]]) else rows


def _encode(intensity: NDArray[Any], dtype: str) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return the intensities as stored, and each pattern's scale where the type is uint16."""
    if dtype == "float32":
        return intensity.astype(np.float32, copy=False), None
    if dtype == "float16":
        if np.any(np.abs(intensity) > np.finfo(np.float16).max):
            raise InputError("intensities above 65504 do not fit float16: use float32")
        return intensity.astype(np.float16), None
    if not np.all(intensity >= 0):  # false for NaN as well
        raise InputError("negative or missing intensities do not fit uint16: use float32")
    largest = np.iinfo(np.uint16).max
    peak = intensity.max(axis=1)
    lossless = (peak <= largest) & np.all(intensity == np.round(intensity), axis=1)
    scale = np.where(lossless, 1.0, peak / largest).astype(np.float32)
    return np.minimum(np.round(intensity / scale[:, None]), largest).astype(np.uint16), scale


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _acquire(path: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(f"another process is writing {path}: wait for it to end, or stop it") from error
    return lock


def _release(lock: filelock.BaseFileLock) -> None:
    if lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is still held: nobody else can own it
        lock.release()
