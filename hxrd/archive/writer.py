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
from zarr.codecs import Crc32cCodec, ZstdCodec

from hxrd.archive import schema
from hxrd.archive.reader import Archive, Rejection, read_rejections
from hxrd.errors import InputError, UsageError

CHUNK_SIZE = 64  # patterns that are compressed, and can be read, together
SHARD_SIZE = 4096  # patterns in one file
COMPRESSION_LEVEL = 3


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
        self._intensity = schema.member(group, "intensity")

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

        Raises
        ------
        ValueError
            The lengths do not fit the shard, or a status is neither 1 nor 2.
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
        kept = np.where((marks == schema.GOOD)[:, None], intensity, 0)
        stored, scale = _encode(kept, str(self._intensity.dtype))
        where = slice(rows.start, rows.stop)
        # A chunk of zeros has a file too: one that is missing can then only be a lost one.
        with zarr.config.set({"array.write_empty_chunks": True}):
            self._intensity[where] = stored
            if scale is not None:
                schema.member(self._group, "scale")[where] = scale
            schema.member(self._group, "space_group")[where] = np.asarray(space_group, dtype=np.int16)
            schema.member(self._group, "source_id")[where] = np.array(list(source_id), dtype=object)
            self._append_rejections(rows, source_id, marks, reasons)
            schema.member(self._group, "status")[where] = marks

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
        kept = [line for line in read_rejections(self.path) if status[line.pattern] == schema.REJECTED]
        part = file.with_name(file.name + ".part")
        part.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in kept))
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
    force: bool = False,
    chunk_size: int = CHUNK_SIZE,
    shard_size: int = SHARD_SIZE,
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
    force : bool
        Replace an existing archive (never anything else).
    chunk_size, shard_size : int
        Patterns compressed together, and patterns in one file; a shard is a multiple of the chunk.

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
        chunk = min(chunk_size, shard_size, n_patterns)
        shard = chunk * min(max(shard_size // chunk, 1), -(-n_patterns // chunk))
        _make_group(part, attributes, grid, n_patterns, dtype, chunk, shard)
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


def _make_group(
    path: Path,
    attributes: Mapping[str, Any],
    two_theta: NDArray[np.float64],
    n_patterns: int,
    dtype: str,
    chunk: int,
    shard: int,
) -> None:
    group = zarr.create_group(path, zarr_format=3, attributes=dict(attributes))
    codecs: Any = (ZstdCodec(level=COMPRESSION_LEVEL), Crc32cCodec())
    group.create_array(
        "intensity",
        shape=(n_patterns, len(two_theta)),
        dtype=dtype,
        chunks=(chunk, len(two_theta)),
        shards=(shard, len(two_theta)),
        compressors=codecs,
    )
    columns: dict[str, tuple[str, Any]] = {
        "space_group": ("int16", 0),
        "source_id": ("string", ""),
        "status": ("uint8", schema.NOT_WRITTEN),
    }
    if dtype == "uint16":
        columns["scale"] = ("float32", 1.0)
    for name, (kind, fill) in columns.items():
        group.create_array(
            name, shape=(n_patterns,), dtype=kind, chunks=(shard,), compressors=codecs, fill_value=fill
        )
    angles = group.create_array(
        "two_theta",
        shape=two_theta.shape,
        dtype="float64",
        chunks=two_theta.shape,
        compressors=codecs,
    )
    angles[:] = two_theta


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
