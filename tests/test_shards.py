"""Shards decoded without Zarr: the rows that Zarr gives, or an error."""

import numpy as np
import pytest
import zarr
from classified import TWO_THETA, make_archive, make_patterns

from hxrd.archive import open_archive
from hxrd.archive.schema import member
from hxrd.archive.shards import DamagedShard, ShardReader

N = 150  # four shards of 32 and a short one, two chunks of 16 in each


@pytest.fixture
def archive(tmp_path):
    return open_archive(make_archive(tmp_path / "a.zarr", make_patterns(N)))


def reader_of(archive, name="intensity"):
    reader = ShardReader.of(member(archive.group, name), archive.path)
    assert reader is not None
    return reader


def file_of(archive, shard):
    return archive.path / "intensity" / "c" / str(shard) / "0"


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint16"])
@pytest.mark.parametrize("span", [(0, N), (0, 16), (3, 5), (10, 40), (31, 33), (64, 128), (140, N), (7, 7)])
def test_rows_equal_zarrs(tmp_path, dtype, span):
    scale = 1000 if dtype == "uint16" else 1
    path = make_archive(tmp_path / "a.zarr", np.round(scale * make_patterns(N), 3), dtype=dtype)
    archive = open_archive(path)
    expected = np.asarray(member(archive.group, "intensity")[slice(*span)])
    rows = reader_of(archive).read(*span)
    assert rows.dtype == expected.dtype == dtype
    assert np.array_equal(rows, expected)


def test_shards_not_written_yet_are_filled(tmp_path):
    archive = open_archive(make_archive(tmp_path / "a.zarr", make_patterns(N), written=64))
    rows = reader_of(archive).read(50, 100)
    assert rows[:14].any(axis=1).all()
    assert not rows[14:].any()


def test_chunks_not_written_yet_are_filled(tmp_path):
    archive = open_archive(make_archive(tmp_path / "a.zarr", make_patterns(N), written=32))
    array = zarr.open_array(archive.path / "intensity", mode="r+")
    array[32:48] = 1.0
    rows = reader_of(archive).read(32, 64)
    assert (rows[:16] == 1).all()
    assert not rows[16:].any()


@pytest.mark.parametrize("place", [0.3, 0.9, 0.999], ids=["second half", "chunk", "index"])
def test_a_changed_byte_is_noticed(archive, place):
    content = bytearray(file_of(archive, 1).read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    file_of(archive, 1).write_bytes(content)
    with pytest.raises(DamagedShard):
        reader_of(archive).read(32, 64)
    assert reader_of(archive).read(0, 32).any()


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_cut_file_is_noticed(archive, kept):
    content = file_of(archive, 1).read_bytes()
    file_of(archive, 1).write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(DamagedShard):
        reader_of(archive).read(32, 64)


def test_chunks_of_another_size_are_noticed(tmp_path, archive):
    other = open_archive(make_archive(tmp_path / "b.zarr", make_patterns(N), chunk_size=8, shard_size=32))
    reader = reader_of(archive)
    reader._shard = 64  # as if the metadata were those of another array
    with pytest.raises(DamagedShard):
        reader.read(0, 64)
    assert np.array_equal(reader_of(other).read(0, N), reader_of(archive).read(0, N))


@pytest.mark.parametrize(
    "layout",
    [
        {"chunks": (16, 501)},
        {"chunks": (16, 100), "shards": (32, 600)},
        {"chunks": (16, 501), "shards": (32, 501), "compressors": zarr.codecs.ZstdCodec()},
        {"chunks": (16, 501), "shards": (32, 501), "compressors": zarr.codecs.BloscCodec()},
    ],
    ids=["no shards", "cut along the pattern", "Zstandard", "no checksum"],
)
def test_other_layouts_are_left_to_zarr(tmp_path, layout):
    group = zarr.open_group(tmp_path / "other.zarr", mode="w")
    array = group.create_array("intensity", shape=(64, len(TWO_THETA)), dtype="float32", **layout)
    assert ShardReader.of(array, tmp_path / "other.zarr") is None


def test_columns_are_left_to_zarr(archive):
    assert ShardReader.of(member(archive.group, "source_id"), archive.path) is None


def test_identifiers_come_by_the_slice(archive):
    whole = [f"crystal {row}" for row in range(N)]
    for start, stop in [(0, N), (31, 33), (149, N), (64, 64), (5, 150), (0, 1)]:
        assert archive.source_ids(start, stop) == whole[start:stop]
    assert len(archive._identifiers_held) <= 4
