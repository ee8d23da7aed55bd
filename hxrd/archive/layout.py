"""How the arrays of an archive are cut into files and compressed."""

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from hxrd.archive import schema

CHUNK_SIZE = 64  # patterns that are compressed, and can be read, together
SHARD_SIZE = 4096  # patterns in one file, fewer where they are long
LARGEST_SHARD = 2**26  # bytes before compression; a writer holds a few of them

# Bytes of equal weight side by side, then LZ4: against Zstandard a tenth smaller and half the time.
_PATTERN_CODECS = (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), Crc32cCodec())
_COLUMN_CODECS = (ZstdCodec(level=3), Crc32cCodec())


def default_shard_size(n_points: int) -> int:
    """Return how many patterns of `n_points` points one file takes, so that memory is bounded by bytes."""
    size = SHARD_SIZE
    while size > CHUNK_SIZE and 4 * size * n_points > LARGEST_SHARD:
        size //= 2
    return size


def make_patterns(
    group: zarr.Group,
    two_theta: NDArray[np.float64],
    n_patterns: int,
    dtype: str,
    chunk: int,
    shard: int,
    measured: bool,
) -> None:
    """Make the arrays that have a value for each point: `intensity`, `two_theta`, perhaps `measured`.

    Parameters
    ----------
    group : zarr.Group
        New and empty.
    two_theta : ndarray, shape (n_points,)
        Degrees.
    n_patterns : int
        Number of rows.
    dtype : str
        Of `intensity`.
    chunk, shard : int
        Patterns compressed together, and patterns in one file.
    measured : bool
        Whether to make `measured`.
    """
    n_points = len(two_theta)
    for name, kind in ({"intensity": dtype} | ({"measured": "bool"} if measured else {})).items():
        group.create_array(
            name,
            shape=(n_patterns, n_points),
            dtype=kind,
            chunks=(chunk, n_points),
            shards=(shard, n_points),
            compressors=_PATTERN_CODECS,
        )
    angles = group.create_array(
        "two_theta", shape=(n_points,), dtype="float64", chunks=(n_points,), compressors=_COLUMN_CODECS
    )
    angles[:] = two_theta


def make_columns(group: zarr.Group, n_patterns: int, dtype: str, shard: int, n_impurities: int) -> None:
    """Make the arrays that have a value, or a few, for each pattern: one chunk a shard.

    Parameters
    ----------
    group : zarr.Group
        As `make_patterns` left it.
    n_patterns : int
        Number of rows.
    dtype : str
        Of `intensity`; uint16 needs `scale`.
    shard : int
        Patterns in one file.
    n_impurities : int
        Foreign phases for which there is room.
    """
    columns: dict[str, tuple[str, Any, tuple[int, ...]]] = {
        "space_group": ("int16", 0, ()),
        "source_id": ("string", "", ()),
        "status": ("uint8", schema.NOT_WRITTEN, ()),
    }
    if dtype == "uint16":
        columns["scale"] = ("float32", 1.0, ())
    if n_impurities:
        columns["impurity_id"] = ("string", "", (n_impurities,))
        columns["impurity_fraction"] = ("float32", 0.0, (n_impurities,))
    for name, (kind, fill, width) in columns.items():
        group.create_array(
            name,
            shape=(n_patterns, *width),
            dtype=kind,
            chunks=(shard, *width),
            compressors=_COLUMN_CODECS,
            fill_value=fill,
        )
