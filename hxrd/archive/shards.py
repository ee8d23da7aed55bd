"""Rows of an array of hxrd's own layout, decoded straight into one array.

Zarr reads any layout, chunk by chunk and by way of several copies. The one that `hxrd.archive.layout` writes
(shards of Blosc chunks with checksums) is read here at twice to three times its rate; `ShardReader.of` says
which arrays these are.
"""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zarr
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_ABSENT = 2**64 - 1  # offset of a chunk that was never written
_CHECKSUM = 4  # bytes
_BLOSC_HEADER = 16  # bytes; the second four are the size of what was compressed


class DamagedShard(ValueError):
    """A file that does not hold what its index or its checksums say."""


class ShardReader:
    """Reads rows of a two-dimensional sharded array; any number of threads may do so at once.

    Parameters
    ----------
    array : zarr.Array
        One that `of` accepts.
    folder : Path
        The archive's.
    """

    def __init__(self, array: zarr.Array[Any], folder: Path):
        self._folder = folder
        self._key = array.metadata.encode_chunk_key  # type: ignore[union-attr]
        self._name = array.basename
        self._n_points = int(array.shape[1])
        self._dtype = array.dtype
        self._fill = array.fill_value
        self._chunk = int(array.chunks[0])
        self._shard = int(array.shards[0])  # type: ignore[index]

    @classmethod
    def of(cls, array: zarr.Array[Any], folder: Path) -> "ShardReader | None":
        """Return a reader, or None where the array is laid out in another way or a package is missing."""
        try:
            import google_crc32c  # noqa: F401
            import numcodecs.blosc  # noqa: F401
        except ImportError:
            return None
        return cls(array, folder) if _is_ours(array) else None

    def read(self, start: int, stop: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return rows `start` to `stop` (excluded), in `out` where that has their shape and type.

        Raises
        ------
        DamagedShard, RuntimeError, OSError
            A file is damaged or cannot be read.
        """
        shape = (stop - start, self._n_points)
        if out is None or out.shape != shape or out.dtype != self._dtype:
            out = np.empty(shape, self._dtype)
        for shard in range(start // self._shard, -(-stop // self._shard)):
            base = shard * self._shard
            first, end = max(start, base), min(stop, base + self._shard)
            rows = out[first - start : end - start]
            file = self._folder / self._name / self._key((shard, 0))
            try:
                with file.open("rb", buffering=0) as opened:
                    self._read_shard(opened, first - base, end - base, rows)
            except FileNotFoundError:
                rows[:] = self._fill
        return out

    def _read_shard(self, file: BinaryIO, start: int, stop: int, out: NDArray[Any]) -> None:
        index = self._index(file)
        buffer = np.empty(0, np.uint8)
        whole = np.empty((0, 0), self._dtype)
        for chunk in range(start // self._chunk, -(-stop // self._chunk)):
            base = chunk * self._chunk
            first, end = max(start, base), min(stop, base + self._chunk)
            rows = out[first - start : end - start]
            offset, size = (int(value) for value in index[chunk])
            if offset == _ABSENT:
                rows[:] = self._fill
                continue
            if len(buffer) < size:
                buffer = np.empty(size, np.uint8)
            content = buffer[:size]
            _read_at(file, offset, content)
            if len(rows) == self._chunk:
                self._decode(content, rows)
                continue
            if not whole.size:
                whole = np.empty((self._chunk, self._n_points), self._dtype)
            self._decode(content, whole)
            rows[:] = whole[first - base : end - base]

    def _index(self, file: BinaryIO) -> NDArray[np.uint64]:
        """Return offset and size of each chunk, shape (n_chunks, 2)."""
        size = 16 * (self._shard // self._chunk) + _CHECKSUM
        length = file.seek(0, 2)
        if length < size:
            raise DamagedShard("the file is shorter than its index")
        content = np.empty(size, np.uint8)
        _read_at(file, length - size, content)
        index = _checked(content).view("<u8").reshape(-1, 2)
        offset, extent = index[index[:, 0] != _ABSENT].T
        if ((offset > length) | (extent > length - np.minimum(offset, np.uint64(length)))).any():
            raise DamagedShard("the index points beyond the end of the file")
        return index

    def _decode(self, content: Bytes, out: NDArray[Any]) -> None:
        from numcodecs import blosc

        compressed = _checked(content)
        if len(compressed) < _BLOSC_HEADER or int(compressed[4:8].view("<u4")[0]) != out.nbytes:
            raise DamagedShard("a chunk has another size than the array says")
        blosc.decompress(compressed, out)


def _read_at(file: BinaryIO, offset: int, content: Bytes) -> None:
    file.seek(offset)
    filled = 0
    while filled < len(content):
        count = file.readinto(content[filled:])  # type: ignore[attr-defined]
        if not count:
            raise DamagedShard("the file ends within a chunk")
        filled += count


def _checked(content: Bytes) -> Bytes:
    """Return the content without its checksum.

    Raises
    ------
    DamagedShard
        It is another one.
    """
    import google_crc32c

    body, stored = content[:-_CHECKSUM], content[-_CHECKSUM:].tobytes()
    if len(content) < _CHECKSUM or google_crc32c.value(body) != int.from_bytes(stored, "little"):
        raise DamagedShard("a checksum does not match")
    return body


def _is_ours(array: zarr.Array[Any]) -> bool:
    """Tell whether an array has the layout of `hxrd.archive.layout.make_patterns`."""
    if array.ndim != 2 or array.shards is None or array.metadata.zarr_format != 3:
        return False
    if array.chunks[1] != array.shape[1] or array.shards[1] != array.shape[1]:
        return False
    return _names(array.metadata.to_dict()["codecs"]) == [
        ("sharding_indexed", "end", [("bytes",), ("blosc",), ("crc32c",)], [("bytes",), ("crc32c",)])
    ]


def _names(codecs: Any) -> list[tuple[Any, ...]]:
    return [_name_of(codec) for codec in codecs]


def _name_of(codec: Any) -> tuple[Any, ...]:
    settings = codec.get("configuration") or {}
    if settings.get("endian", "little") != "little":
        return ("big-endian",)
    if codec["name"] != "sharding_indexed":
        return (codec["name"],)
    inner, index = _names(settings["codecs"]), _names(settings["index_codecs"])
    return (codec["name"], settings.get("index_location", "end"), inner, index)
