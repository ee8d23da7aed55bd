"""`hxrd simulate` at scale: memory that does not grow, work that overlaps, and nothing done twice."""

import errno
import json
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hxrd.archive import ArchiveWriter, Rejection, open_archive
from hxrd.cli.main import main
from hxrd.errors import InputError, Rejected
from hxrd.physics.instrument import load_instrument, with_overrides
from hxrd.simulate.augmentation import Augmentation, load_augmentation
from hxrd.simulate.plan import Plan
from hxrd.simulate.run import simulate_archive
from hxrd.simulate.seeds import row_seeds
from hxrd.sources import SourceChain, UnknownIdentifier
from hxrd.sources.jsonl import JsonlSource

EDGES = {"copper": ("Cu", 3.61), "aluminium": ("Al", 4.05), "nickel": ("Ni", 3.52), "unreal": ("Cx", 4.0)}
FACE_CENTRED = [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]
GRID = ("--two-theta", "20", "150", "1")


def record(name: str, element: str, edge: float) -> dict[str, object]:
    sites = [[element, *position, 1.0, 0.3] for position in FACE_CENTRED]
    return {"id": name, "space_group": 225, "cell": [edge, edge, edge, 90, 90, 90], "sites": sites}


def table(file: Path, names: dict[str, tuple[str, float]] = EDGES) -> Path:
    file.write_text("".join(json.dumps(record(name, *what)) + "\n" for name, what in names.items()))
    return file


class CountingSource:
    """A table whose look-ups are noted."""

    def __init__(self, file: Path) -> None:
        self._source = JsonlSource(file)
        self.asked: list[str] = []

    def get(self, identifier: str):
        self.asked.append(identifier)
        return self._source.get(identifier)

    def describe(self) -> str:
        return self._source.describe()


@pytest.fixture
def source(tmp_path: Path) -> CountingSource:
    return CountingSource(table(tmp_path / "crystals.jsonl"))


class Names:
    """Identifiers that are made up as they are asked for."""

    sha256 = "0" * 64

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, start: int, stop: int) -> list[str]:
        return self.names[start:stop]


def plan(names: list[str], augmentation: Augmentation | None = None, per_structure: int = 1) -> Plan:
    instrument = with_overrides(load_instrument("paper"), two_theta=(20, 150, 1))
    return Plan(Names(names), instrument, 7, ["here"], augmentation, per_structure)


# Memory -------------------------------------------------------------------------------------------

_PEAK = """
import re, sys
from hxrd.cli.main import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def peak_megabytes(folder: Path, n_patterns: int) -> float:
    """Peak memory of a process that simulates patterns whose identifiers are a thousand characters long."""
    long_names = {f"{name}{'-' * 1000}": what for name, what in EDGES.items()}
    source = table(folder / "crystals.jsonl", long_names)
    ids = folder / "ids.txt"
    ids.write_text("\n".join(long_names) + "\n")
    ids.write_text(ids.read_text() * (n_patterns // len(long_names)))
    command = ["simulate", str(ids), "--source", f"jsonl:{source}", "--shard-size", "1024", "--force", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *command, *GRID], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 3, done.stderr
    assert open_archive(folder / "ids.zarr").n_rejected == n_patterns // 4
    return int(done.stdout) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_does_not_grow_with_the_number_of_patterns(tmp_path: Path) -> None:
    peak_megabytes(tmp_path, 8)  # compiles what is not compiled yet, which takes memory of its own
    # A list of the identifiers alone, or of the rejections, would be another 80 MB, or 20 MB.
    few, many = peak_megabytes(tmp_path, 8_000), peak_megabytes(tmp_path, 80_000)
    assert many < 1.1 * few
    assert many < 1500


# Sources ------------------------------------------------------------------------------------------


def test_a_crystal_asked_for_again_is_not_parsed_again(source: CountingSource) -> None:
    chain = SourceChain([source])
    assert chain.get("copper") is chain.get("copper")
    for _ in range(2):
        with pytest.raises(Rejected, match="Cx"):
            chain.get("unreal")
        with pytest.raises(UnknownIdentifier):
            chain.get("unheard of")
    assert source.asked == ["copper", "unreal", "unheard of"]


def test_only_the_last_crystals_are_kept(source: CountingSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hxrd.sources.chain._KEPT", 4)
    chain = SourceChain([source])
    for number in range(50):
        chain.get("copper")
        with pytest.raises(UnknownIdentifier):
            chain.get(f"unheard of {number}")
        assert len(chain._recent) <= 4
    assert source.asked.count("copper") == 1
    monkeypatch.setattr("hxrd.sources.chain._LARGEST_KEPT", 3)
    assert chain.get("nickel") is not chain.get("nickel")


def test_the_first_of_equal_identifiers_wins_even_where_digests_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hxrd.sources.jsonl._digest", lambda identifier: b"collides")
    file = table(tmp_path / "crystals.jsonl")
    with file.open("a") as more:
        more.write(json.dumps(record("copper", "Ag", 4.09)) + "\n")
    source = JsonlSource(file)
    assert list(source.identifiers()) == list(EDGES)
    assert (len(source), source.get("copper").species[0]) == (4, "Cu")
    assert source.get("nickel").species[0] == "Ni"
    with pytest.raises(UnknownIdentifier):
        source.get("silver")


def test_a_table_reaches_another_process_and_notices_a_change(tmp_path: Path) -> None:
    file = table(tmp_path / "crystals.jsonl")
    source = JsonlSource(file)
    assert pickle.loads(pickle.dumps(source)).get("copper").species == ("Cu",) * 4
    file.write_text(file.read_text() + "\n")
    with pytest.raises(InputError, match="changed"):
        source.get("copper")


# Shards -------------------------------------------------------------------------------------------


def test_resume_looks_up_only_what_is_missing(
    tmp_path: Path, source: CountingSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["copper"] * 4 + ["nickel"] * 4 + ["aluminium"] * 4
    write = ArchiveWriter.write_shard

    def write_first(self, index, *columns, **optional):
        if index:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, index, *columns, **optional)

    monkeypatch.setattr(ArchiveWriter, "write_shard", write_first)
    with pytest.raises(OSError, match="No space"):
        simulate_archive(plan(names), tmp_path / "a.zarr", SourceChain([source]), shard_size=4)
    monkeypatch.undo()
    source.asked.clear()
    told: list[int] = []
    simulate_archive(
        plan(names), tmp_path / "a.zarr", SourceChain([source]), resume=True, advance=told.append
    )
    assert source.asked == ["nickel", "aluminium"]
    assert (told[0], sum(told)) == (4, 12)
    assert np.all(open_archive(tmp_path / "a.zarr").status == 1)


def test_a_failed_write_ends_the_run_at_once(
    tmp_path: Path, source: CountingSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self, *columns, **optional):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ArchiveWriter, "write_shard", full)
    told: list[int] = []
    names = ["copper", "nickel"] * 5000
    with pytest.raises(OSError, match="No space"):
        simulate_archive(
            plan(names), tmp_path / "a.zarr", SourceChain([source]), shard_size=64, advance=told.append
        )
    assert sum(told) <= 3 * 64
    assert not (tmp_path / "a.zarr.lock").exists()


def test_shards_are_written_in_order_one_at_a_time_while_the_next_is_simulated(
    tmp_path: Path, source: CountingSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, main_thread = ArchiveWriter.write_shard, threading.get_ident()
    begun: list[int] = []
    done: list[int] = []
    progress_meanwhile: list[bool] = []
    told: list[int] = []

    def slowly(self, index, *columns, **optional):
        assert threading.get_ident() != main_thread
        assert begun == done
        begun.append(index)
        before = len(told)
        time.sleep(0.3)
        progress_meanwhile.append(len(told) > before)
        write(self, index, *columns, **optional)
        done.append(index)

    monkeypatch.setattr(ArchiveWriter, "write_shard", slowly)
    simulate_archive(
        plan(["copper"] * 256), tmp_path / "a.zarr", SourceChain([source]), shard_size=64, advance=told.append
    )
    assert done == [0, 1, 2, 3]
    assert progress_meanwhile[0]


def test_seeds_of_rows_are_those_of_splitmix64() -> None:
    first_of_seed_0 = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    np.testing.assert_array_equal(row_seeds(0, np.arange(3)), np.array(first_of_seed_0, np.uint64))
    rows = row_seeds(3, np.arange(100_000))
    assert len(np.unique(rows)) == len(rows)
    np.testing.assert_array_equal(row_seeds(3, np.array([4096, 17])), rows[[4096, 17]])
    assert not np.isin(row_seeds(4, np.arange(100_000)), rows).any()


def test_rejections_are_told_in_order_even_where_a_shard_was_written_again(
    tmp_path: Path, source: CountingSource
) -> None:
    names = ["unreal", "copper", "unheard of", "copper"]
    archive = simulate_archive(plan(names), tmp_path / "a.zarr", SourceChain([source]), shard_size=2)
    expected = archive.rejections()
    assert [line.pattern for line in expected] == [0, 2]
    file = tmp_path / "a.zarr" / "rejections.jsonl"
    file.write_bytes(b"".join(reversed(file.read_bytes().splitlines(keepends=True))))
    assert list(open_archive(tmp_path / "a.zarr").iterate_rejections()) == expected
    file.write_bytes(msgspec.json.encode(expected[1]) + b"\n")
    lost = Rejection(0, "unreal", "no reason was recorded")
    assert open_archive(tmp_path / "a.zarr").rejections() == [lost, expected[1]]


# Augmentation -------------------------------------------------------------------------------------


@pytest.fixture
def augmented_command(tmp_path: Path) -> list[str]:
    ids = tmp_path / "ids.txt"
    ids.write_text("copper\nunreal\naluminium\nnickel\n" * 20)
    command = ["simulate", str(ids), "--source", f"jsonl:{table(tmp_path / 'crystals.jsonl')}", *GRID]
    toml = tmp_path / "mine.toml"
    toml.write_text(
        "[impurity]\nprobability = 0.5\nweight_fraction = [0.05, 0.2]\nphases = 2\n"
        "[truncation]\nlow = [5.0, 30.0]\n[counting]\ntotal = [1e5, 1e6]\n"
    )
    return [*command, "--augment", str(toml), "--per-structure", "3", "--shard-size", "64"]


def assert_same(path: Path, other: Path) -> None:
    one, two = open_archive(path), open_archive(other)
    n = one.n_patterns
    np.testing.assert_array_equal(one.read(0, n), two.read(0, n))
    np.testing.assert_array_equal(one.measured(0, n), two.measured(0, n))
    np.testing.assert_array_equal(one.space_group, two.space_group)
    assert one.impurities(0, n) == two.impurities(0, n)
    assert (one.source_id, one.rejections()) == (two.source_id, two.rejections())


def test_augmented_patterns_carry_their_foreign_phases_and_gaps(
    augmented_command: list[str], tmp_path: Path
) -> None:
    assert main(augmented_command) == 3
    archive = open_archive(tmp_path / "ids.zarr")
    assert archive.source_id[:9] == ["copper"] * 3 + ["unreal"] * 3 + ["aluminium"] * 3
    assert archive.n_patterns == 240
    assert archive.n_rejected == 60
    intensity, measured = archive.read(0, 240), archive.measured(0, 240)
    assert measured is not None
    good = archive.status == 1
    assert not intensity[~measured].any()
    assert not measured[~good].any()
    assert np.all(measured[good, -1])
    assert not measured[good, 0].any()
    assert len(np.unique(intensity[good], axis=0)) == 180
    impurities = archive.impurities(0, 240)
    shares = [share for row in impurities for _, share in row]
    assert min(shares) > 0.04
    assert max(shares) < 0.21
    assert 40 < sum(map(bool, impurities)) < 160
    for own, row, is_good in zip(archive.source_id, impurities, good, strict=True):
        assert not {name for name, _ in row} & {own, "unreal"}
        assert is_good or not row
    settings = archive.provenance["augmentation"]
    assert msgspec.convert(settings, Augmentation) == load_augmentation(str(tmp_path / "mine.toml"))
    assert archive.provenance["per_structure"] == 3


def test_augmented_patterns_depend_on_the_seed_and_not_on_workers_or_interruption(
    augmented_command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut, other = (tmp_path / f"{name}.zarr" for name in ("whole", "cut", "other"))
    assert main([*augmented_command, "-o", str(whole), "--workers", "1"]) == 3
    write = ArchiveWriter.write_shard

    def interrupted(self, index, *columns, **optional):
        if index == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, index, *columns, **optional)

    monkeypatch.setattr(ArchiveWriter, "write_shard", interrupted)
    assert main([*augmented_command, "-o", str(cut)]) == 1
    monkeypatch.undo()
    assert np.count_nonzero(open_archive(cut).status) == 128
    assert main([*augmented_command, "-o", str(cut), "--resume"]) == 3
    assert_same(whole, cut)
    assert main([*augmented_command, "-o", str(other), "--seed", "1"]) == 3
    assert not np.array_equal(open_archive(whole).read(0, 3), open_archive(other).read(0, 3))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--augment", "mild"], "other augmentation"),
        (["--per-structure", "2"], "other per_structure (3, now 2)"),
    ],
)
def test_resume_refuses_another_augmentation(
    augmented_command: list[str], changes: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(augmented_command) == 3
    assert main([*augmented_command, *changes, "--resume"]) == 1
    assert told in capsys.readouterr().err


def test_several_patterns_of_a_structure_need_an_augmentation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "ids.txt", "--per-structure", "2"]) == 2
    assert "--augment" in capsys.readouterr().err


def test_archives_of_the_first_version_are_resumed(tmp_path: Path, source: CountingSource) -> None:
    chain, wanted = SourceChain([source]), plan(["copper", "nickel"])
    archive = simulate_archive(wanted, tmp_path / "a.zarr", chain)
    metadata = tmp_path / "a.zarr" / "zarr.json"
    content = json.loads(metadata.read_text())
    provenance = content["attributes"]["provenance"]
    del provenance["augmentation"], provenance["per_structure"]
    del provenance["instrument_settings"]["zero_shift"]
    metadata.write_text(json.dumps(content))
    resumed = simulate_archive(wanted, tmp_path / "a.zarr", chain, resume=True)
    np.testing.assert_array_equal(resumed.read(0, 2), archive.read(0, 2))
    with pytest.raises(InputError, match="other augmentation"):
        simulate_archive(
            plan(["copper", "nickel"], load_augmentation("mild")), tmp_path / "a.zarr", chain, resume=True
        )
