"""The archive's optional members, its slices, how it is cut into files, and archives made before."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from test_archive import create, fill, patterns
from zarr.codecs import Crc32cCodec, ZstdCodec

from hxrd.archive import open_archive, open_writer
from hxrd.archive.layout import default_shard_size
from hxrd.errors import InputError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with create(tmp_path / "patterns.zarr") as writer:
        fill(writer)
    return tmp_path / "patterns.zarr"


def test_foreign_phases_and_measured_points_come_back_and_are_otherwise_absent(
    path: Path, tmp_path: Path
) -> None:
    plain = open_archive(path)
    assert plain.measured(0, 10) is None
    assert plain.impurities(2, 4) == [[], []]
    names = np.array([["salt", ""], ["", ""], ["a b", "ü"]], dtype=object)
    fractions = np.array([[0.25, 0], [0, 0], [0.5, 0.125]], np.float32)
    points = np.random.default_rng(3).random((3, 21)) < 0.5
    columns = (0, patterns(3), [1, 2, 3], list("abc"), [1, 2, 1], [None, "no", None])
    with create(tmp_path / "rich.zarr", n_patterns=3, n_impurities=2, measured=True) as writer:
        with pytest.raises(ValueError, match="not the members"):
            writer.write_shard(*columns)
        writer.write_shard(*columns, impurity_id=names, impurity_fraction=fractions, measured=points)
    archive = open_archive(tmp_path / "rich.zarr")
    assert archive.impurities(0, 3) == [[("salt", 0.25)], [], [("a b", 0.5), ("ü", 0.125)]]
    points[1] = False  # rejected
    np.testing.assert_array_equal(archive.measured(1, 3), points[1:])
    (tmp_path / "rich.zarr" / "measured" / "c" / "0" / "0").unlink()
    with pytest.raises(InputError, match=r"measured/c/0/0 is missing"):
        archive.measured(0, 1)


def test_slices_of_the_identifiers_read_no_other_shard(path: Path) -> None:
    (path / "source_id" / "c" / "1").unlink()
    archive = open_archive(path)
    assert archive.source_ids(8, 10) == ["crystal 8 ü", "crystal 9 ü"]
    with pytest.raises(InputError, match="source_id/c/1 is missing"):
        archive.source_ids(3, 5)


def test_reasons_of_rows_that_are_not_there_are_damage(path: Path) -> None:
    with (path / "rejections.jsonl").open("a") as file:
        file.write('{"pattern": 10, "source_id": "x", "reason": "y"}\n')
    with pytest.raises(InputError, match="row 10"):
        open_writer(path)


@pytest.mark.parametrize(("n_points", "expected"), [(21, 4096), (3041, 4096), (7601, 2048), (200_000, 64)])
def test_a_shard_is_bounded_in_bytes(n_points: int, expected: int) -> None:
    assert default_shard_size(n_points) == expected


def test_archives_compressed_with_zstandard_are_read(path: Path) -> None:
    codecs = (ZstdCodec(level=3), Crc32cCodec())
    settings = {"shards": (4, 21), "chunks": (2, 21), "compressors": codecs, "overwrite": True}
    group = zarr.open_group(path)
    group.create_array("intensity", shape=(10, 21), dtype="float32", **settings)[:] = patterns()
    np.testing.assert_array_equal(open_archive(path).read(0, 10), patterns())
