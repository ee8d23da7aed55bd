"""The archive: schema, round trips, resume, locks, and what happens when it is damaged."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from hxrd.archive import ArchiveWriter, create_archive, open_archive, open_writer
from hxrd.errors import InputError, UsageError

TWO_THETA = np.linspace(10, 20, 21)
MEMBERS = ("intensity", "two_theta", "space_group", "source_id", "status")
WAVELENGTHS = [(1.5406, 2 / 3), (1.5444, 1 / 3)]


def create(path: Path, n_patterns: int = 10, **changes: object) -> ArchiveWriter:
    settings: dict[str, object] = {
        "n_patterns": n_patterns,
        "two_theta": TWO_THETA,
        "probe": "neutron",
        "wavelength": 2.0775,
        "instrument": "paper",
        "normalization": "maximum",
        "provenance": {"command": "hxrd simulate", "seed": 0},
        "chunk_size": 2,
        "shard_size": 4,
    }
    return create_archive(path, **(settings | changes))  # type: ignore[arg-type]


def patterns(n_patterns: int = 10) -> np.ndarray:
    return np.random.default_rng(1).random((n_patterns, len(TWO_THETA)), dtype=np.float32)


def fill(writer: ArchiveWriter, shards: list[int] | None = None, rejected: tuple[int, ...] = (5,)) -> None:
    intensity = patterns(writer.n_patterns)
    for index in writer.pending_shards() if shards is None else shards:
        rows = writer.rows(index)
        status = [2 if row in rejected else 1 for row in rows]
        writer.write_shard(
            index,
            intensity[rows.start : rows.stop],
            [row + 1 for row in rows],
            [f"crystal {row} ü" for row in rows],
            status,
            ["no scattering length for Ac" if mark == 2 else None for mark in status],
        )


@pytest.fixture
def archive_path(tmp_path: Path) -> Path:
    path = tmp_path / "patterns.zarr"
    with create(path) as writer:
        fill(writer)
    return path


def all_arrays(path: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(path, mode="r")
    return {name: np.asarray(group[name][:]) for name in MEMBERS}


def test_members_and_attributes_are_those_of_schema_1(archive_path: Path) -> None:
    group = zarr.open_group(archive_path, mode="r", zarr_format=3)
    shapes = {name: (group[name].shape, str(group[name].dtype)) for name in MEMBERS}
    assert shapes == {
        "intensity": ((10, 21), "float32"),
        "two_theta": ((21,), "float64"),
        "space_group": ((10,), "int16"),
        "source_id": ((10,), "StringDType()"),
        "status": ((10,), "uint8"),
    }
    assert group["intensity"].shards == (4, 21)
    assert group["intensity"].chunks == (2, 21)
    assert "crc32c" in (archive_path / "intensity" / "zarr.json").read_text()
    assert dict(group.attrs) == {
        "hxrd_schema": 1,
        "probe": "neutron",
        "wavelength": 2.0775,
        "instrument": "paper",
        "normalization": "maximum",
        "provenance": {"command": "hxrd simulate", "seed": 0},
    }


def test_what_was_written_is_read(archive_path: Path) -> None:
    archive = open_archive(archive_path)
    assert (archive.n_patterns, archive.n_points, archive.shard_size) == (10, 21, 4)
    expected = patterns()
    expected[5] = 0
    np.testing.assert_array_equal(archive.read(0, 10), expected)
    np.testing.assert_array_equal(archive.read(3, 9), expected[3:9])
    assert archive.read(4, 4).shape == (0, 21)
    np.testing.assert_array_equal(archive.two_theta, TWO_THETA)
    np.testing.assert_array_equal(archive.space_group, np.arange(1, 11))
    assert archive.source_id[3] == "crystal 3 ü"
    assert list(archive.status) == [1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    assert json.loads((archive_path / "rejections.jsonl").read_text()) == {
        "pattern": 5,
        "source_id": "crystal 5 ü",
        "reason": "no scattering length for Ac",
    }
    assert [rejection.pattern for rejection in archive.rejections()] == [5]


def test_rows_outside_the_archive_are_refused(archive_path: Path) -> None:
    with pytest.raises(IndexError):
        open_archive(archive_path).read(8, 11)


def test_a_multiplet_keeps_its_lines_and_has_a_mean(tmp_path: Path) -> None:
    path = tmp_path / "xray.zarr"
    create(path, probe="xray", wavelength=WAVELENGTHS).close()
    archive = open_archive(path)
    np.testing.assert_allclose(archive.wavelengths, WAVELENGTHS)
    assert archive.wavelength == pytest.approx((2 * 1.5406 + 1.5444) / 3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 5e-4), ("uint16", 1e-5)])
def test_storage_types_lose_no_more_than_their_resolution(
    tmp_path: Path, dtype: str, tolerance: float
) -> None:
    path = tmp_path / "patterns.zarr"
    with create(path, dtype=dtype) as writer:
        fill(writer, rejected=())
    archive = open_archive(path)
    assert archive.dtype == dtype
    np.testing.assert_allclose(archive.read(0, 10), patterns(), rtol=0, atol=tolerance)


def test_whole_counts_in_uint16_are_lossless(tmp_path: Path) -> None:
    counts = np.random.default_rng(2).integers(0, 65536, (4, 21)).astype(np.float64)
    with create(tmp_path / "counts.zarr", n_patterns=4, dtype="uint16", normalization="none") as writer:
        writer.write_shard(0, counts, [0] * 4, list("abcd"), [1] * 4, [None] * 4)
        np.testing.assert_array_equal(writer.archive.read(0, 4), counts)
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "counts.zarr")["scale"][:], np.ones(4))


@pytest.mark.parametrize(("dtype", "value"), [("uint16", -1.0), ("uint16", np.nan), ("float16", 1e5)])
def test_intensities_that_the_type_cannot_hold_are_refused(tmp_path: Path, dtype: str, value: float) -> None:
    with create(tmp_path / "patterns.zarr", n_patterns=1, dtype=dtype) as writer:
        with pytest.raises(InputError, match="float32"):
            writer.write_shard(0, np.full((1, 21), value), [1], ["a"], [1], [None])
        assert writer.pending_shards() == [0]


def test_wrong_lengths_and_marks_are_refused(tmp_path: Path) -> None:
    with create(tmp_path / "patterns.zarr", n_patterns=2) as writer:
        with pytest.raises(ValueError, match="2 rows"):
            writer.write_shard(0, patterns(2), [1], ["a", "b"], [1, 1], [None, None])
        with pytest.raises(ValueError, match="status"):
            writer.write_shard(0, patterns(2), [1, 1], ["a", "b"], [1, 0], [None, None])


def test_an_unfinished_archive_is_readable_and_knows_what_is_pending(tmp_path: Path) -> None:
    path = tmp_path / "patterns.zarr"
    with create(path) as writer:
        fill(writer, [1])
    archive = open_archive(path)
    assert list(archive.status) == [0, 0, 0, 0, 1, 2, 1, 1, 0, 0]
    assert archive.source_id[0] == ""
    np.testing.assert_array_equal(archive.read(0, 4), np.zeros((4, 21)))
    np.testing.assert_array_equal(archive.read(6, 8), patterns()[6:8])
    with open_writer(path) as writer:
        assert writer.pending_shards() == [0, 2]


class Killed(Exception):
    pass


@pytest.mark.parametrize("lost", ["source_id", "status"])
def test_resume_after_a_death_inside_a_shard_equals_an_uninterrupted_run(
    tmp_path: Path, archive_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    path = tmp_path / "killed.zarr"
    with create(path) as writer:
        fill(writer, [0])
        write = zarr.Array.__setitem__

        def die(array: zarr.Array, where: object, values: object) -> None:
            if array.basename == lost:
                raise Killed
            write(array, where, values)

        monkeypatch.setattr(zarr.Array, "__setitem__", die)
        with pytest.raises(Killed):
            fill(writer, [1])
        monkeypatch.undo()
    (path / "intensity" / "c" / "2.0123.partial").write_bytes(b"half")
    with (path / "rejections.jsonl").open("ab") as file:
        file.write(b'{"pattern": 6, "sou')
    assert list(open_archive(path).status) == [1, 1, 1, 1] + [0] * 6
    with open_writer(path) as writer:
        assert writer.pending_shards() == [1, 2]
        fill(writer)
    for name, array in all_arrays(archive_path).items():
        np.testing.assert_array_equal(all_arrays(path)[name], array)
    assert (path / "rejections.jsonl").read_text() == (archive_path / "rejections.jsonl").read_text()
    assert not list(path.rglob("*.partial"))


def test_a_second_writer_is_refused_until_the_first_has_gone(archive_path: Path) -> None:
    with open_writer(archive_path):
        with pytest.raises(InputError, match="another process is writing"):
            open_writer(archive_path)
        with pytest.raises(InputError, match="another process is writing"):
            create(archive_path, force=True)
        assert open_archive(archive_path).n_patterns == 10
    with open_writer(archive_path) as writer:
        assert writer.pending_shards() == []
    assert not archive_path.with_name("patterns.zarr.lock").exists()


def test_the_lock_dies_with_its_holder(archive_path: Path) -> None:
    program = (
        "import sys, time, hxrd.archive\n"
        "writer = hxrd.archive.open_writer(sys.argv[1])\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(archive_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is writing"):
            open_writer(archive_path)
        holder.kill()
    open_writer(archive_path).close()


def test_only_force_overwrites_and_only_archives(archive_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--force"):
        create(archive_path)
    assert open_archive(archive_path).n_patterns == 10
    create(archive_path, n_patterns=3, force=True).close()
    assert open_archive(archive_path).n_patterns == 3
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.txt").write_text("…")
    with pytest.raises(InputError, match="no hxrd archive"):
        create(precious, force=True)
    assert (precious / "chapter1.txt").exists()
    other = tmp_path / "other.zarr"
    zarr.create_group(other)
    with pytest.raises(InputError, match="no hxrd archive"):
        create(other, force=True)


def test_an_output_in_a_folder_that_does_not_exist_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        create(tmp_path / "nowhere" / "patterns.zarr")


def edit_metadata(path: Path, **changes: object) -> None:
    metadata = json.loads((path / "zarr.json").read_text())
    for name, value in changes.items():
        if value is None:
            del metadata["attributes"][name]
        else:
            metadata["attributes"][name] = value
    (path / "zarr.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hxrd_schema": None}, "no hxrd archive"),
        ({"hxrd_schema": 2}, "schema 2"),
        ({"probe": None}, "lacks the attribute probe"),
        ({"probe": "muon"}, "muon"),
        ({"wavelength": None}, "lacks the attribute wavelength"),
        ({"wavelength": "long"}, "wavelength 'long'"),
        ({"wavelength": []}, "wavelength"),
        ({"wavelength": -1.0}, "wavelength -1.0"),
        ({"wavelength": [[1.5, 1.0, 2.0]]}, "wavelength"),
        ({"provenance": None}, "provenance"),
    ],
)
def test_wrong_attributes_are_told_in_one_line(
    archive_path: Path, changes: dict[str, object], told: str
) -> None:
    edit_metadata(archive_path, **changes)
    with pytest.raises(InputError, match=told) as caught:
        open_archive(archive_path)
    assert "\n" not in str(caught.value)
    assert str(archive_path) in str(caught.value)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_archive(tmp_path / "absent.zarr")
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="is a file"):
        open_archive(tmp_path / "empty")
    with pytest.raises(InputError, match="no hxrd archive"):
        open_archive(tmp_path)
    (tmp_path / "zarr.json").write_bytes(np.random.default_rng(0).bytes(300))
    with pytest.raises(InputError, match="no readable Zarr group"):
        open_archive(tmp_path)


@pytest.mark.parametrize("name", ["intensity", "two_theta", "space_group", "source_id", "status"])
def test_a_lost_member_is_named(archive_path: Path, name: str) -> None:
    (archive_path / name / "zarr.json").unlink()
    with pytest.raises(InputError, match=name):
        open_archive(archive_path)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [("intensity", (10,), "float32"), ("intensity", (10, 21), "float64"), ("status", (9,), "uint8")],
)
def test_a_member_of_another_shape_or_type_is_named(
    archive_path: Path, name: str, shape: tuple[int, ...], dtype: str
) -> None:
    zarr.open_group(archive_path).create_array(name, shape=shape, dtype=dtype, overwrite=True)
    with pytest.raises(InputError, match=name):
        open_archive(archive_path)


def test_a_grid_that_does_not_increase_is_refused(archive_path: Path) -> None:
    zarr.open_group(archive_path)["two_theta"][3] = 10.0
    with pytest.raises(InputError, match="strictly increasing"):
        _ = open_archive(archive_path).two_theta


def corrupt(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(content)


def test_a_corrupt_chunk_is_named_and_the_others_still_read(archive_path: Path) -> None:
    corrupt(archive_path / "intensity" / "c" / "1" / "0")
    archive = open_archive(archive_path)
    with pytest.raises(InputError, match=r"intensity/c/1/0 is corrupt") as caught:
        archive.read(0, 10)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(archive.read(0, 4), patterns()[:4])
    np.testing.assert_array_equal(archive.read(8, 10), patterns()[8:])


def test_a_truncated_chunk_is_named(archive_path: Path) -> None:
    file = archive_path / "intensity" / "c" / "2" / "0"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InputError, match=r"intensity/c/2/0 is corrupt"):
        open_archive(archive_path).read(0, 10)


def test_a_lost_chunk_is_not_read_as_zeros(archive_path: Path) -> None:
    (archive_path / "intensity" / "c" / "1" / "0").unlink()
    with pytest.raises(InputError, match=r"intensity/c/1/0 is missing"):
        open_archive(archive_path).read(4, 6)


def test_lost_identifiers_are_not_read_as_blanks(archive_path: Path) -> None:
    (archive_path / "source_id" / "c" / "1").unlink()
    with pytest.raises(InputError, match=r"source_id/c/1 is missing"):
        assert open_archive(archive_path).source_id


@pytest.mark.parametrize("name", ["status", "space_group", "source_id", "two_theta"])
def test_a_corrupt_small_array_is_named(archive_path: Path, name: str) -> None:
    corrupt(archive_path / name / "c" / "0")
    with pytest.raises(InputError, match=rf"{name}/c/0 is corrupt"):
        getattr(open_archive(archive_path), name)


def test_damaged_reasons_are_told(archive_path: Path) -> None:
    (archive_path / "rejections.jsonl").write_bytes(b"\x00\x01\n")
    with pytest.raises(InputError, match=r"rejections\.jsonl is damaged"):
        open_archive(archive_path).rejections()


@pytest.mark.parametrize(
    "changes",
    [
        {"n_patterns": 0},
        {"dtype": "float64"},
        {"probe": "muon"},
        {"two_theta": [3, 2, 1]},
        {"two_theta": [1, np.nan]},
        {"wavelength": 0.0},
    ],
)
def test_impossible_archives_are_not_made(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        create(tmp_path / "patterns.zarr", **changes)
    assert list(tmp_path.iterdir()) == []
