"""`hxrd simulate`: what it writes, what it refuses, and that no interruption loses or changes anything."""

import errno
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from hxrd.archive import open_archive, open_writer
from hxrd.cli.main import main
from hxrd.simulate.identifiers import IdentifierFile

CELLS = {
    "copper": ("Cu", 3.61, 225, [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]),
    "iron": ("Fe", 2.87, 229, [(0, 0, 0), (0.5, 0.5, 0.5)]),
    "polonium": ("Pb", 3.36, 221, [(0, 0, 0)]),
    "with inner spaces": ("Al", 4.05, 225, [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]),
    "unreal": ("Cx", 4.0, 221, [(0, 0, 0)]),
}
GOOD = [name for name in CELLS if name != "unreal"]


@pytest.fixture
def crystals(tmp_path: Path) -> str:
    """Write a source of a few cubic crystals, one of an element that does not exist."""
    file = tmp_path / "crystals.jsonl"
    lines = [
        {
            "id": name,
            "space_group": group,
            "cell": [edge, edge, edge, 90, 90, 90],
            "sites": [[element, *position, 1.0, 0.3] for position in positions],
        }
        for name, (element, edge, group, positions) in CELLS.items()
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"jsonl:{file}"


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    file = tmp_path / "ids.txt"
    file.write_text("# four crystals\n\n  copper  \niron\nwith inner spaces\ncopper\n")
    return file


def arrays(path: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(path, mode="r")
    names = ("intensity", "two_theta", "space_group", "source_id", "status")
    return {name: np.asarray(group[name][:]) for name in names}


def assert_same_archive(path: Path, other: Path) -> None:
    for name, array in arrays(other).items():
        np.testing.assert_array_equal(arrays(path)[name], array, err_msg=name)
    reasons = [folder / "rejections.jsonl" for folder in (path, other)]
    assert reasons[0].exists() == reasons[1].exists()
    if reasons[0].exists():
        assert reasons[0].read_bytes() == reasons[1].read_bytes()


def test_each_line_becomes_a_row_in_order(
    ids: Path, crystals: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(ids), "--source", crystals]) == 0
    archive = open_archive(tmp_path / "ids.zarr")
    assert archive.source_id == ["copper", "iron", "with inner spaces", "copper"]
    assert list(archive.space_group) == [225, 229, 225, 225]
    assert list(archive.status) == [1, 1, 1, 1]
    intensity = archive.read(0, 4)
    np.testing.assert_array_equal(intensity[0], intensity[3])
    np.testing.assert_array_equal(intensity.max(axis=1), np.ones(4))
    assert archive.n_points == 3041
    np.testing.assert_allclose(archive.two_theta[[0, 1, -1]], [3, 3.05, 155])
    assert (archive.probe, archive.wavelength, archive.instrument) == ("neutron", 2.0775, "paper")
    provenance = archive.provenance
    assert {"command", "version", "seed", "sources", "time"} <= set(provenance)
    assert provenance["sources"] == [crystals]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "instrument paper: neutrons, 2.0775 Å, 2θ 3 to 155 by 0.05 degrees" in printed.err


def test_the_strongest_line_of_copper_is_where_bragg_puts_it(
    ids: Path, crystals: str, tmp_path: Path
) -> None:
    assert main(["simulate", str(ids), "--source", crystals]) == 0
    archive = open_archive(tmp_path / "ids.zarr")
    expected = 2 * np.degrees(np.arcsin(2.0775 / (2 * 3.61 / np.sqrt(3))))  # 111
    assert archive.two_theta[archive.read(0, 1)[0].argmax()] == pytest.approx(expected, abs=0.05)


def test_explicit_options_override_the_instrument(ids: Path, crystals: str, tmp_path: Path) -> None:
    output = tmp_path / "xray.zarr"
    command = ["simulate", str(ids), "-o", str(output), "--source", crystals, "--probe", "xray"]
    assert main([*command, "--wavelength", "CuKa1", "--two-theta", "20", "60", "0.1"]) == 0
    archive = open_archive(output)
    assert archive.probe == "xray"
    assert archive.wavelength == pytest.approx(1.5406, abs=1e-4)
    assert archive.n_points == 401


def test_rejected_entries_are_listed_and_the_rest_goes_on(
    tmp_path: Path, crystals: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("copper\nunreal\nunheard of\niron\n")
    assert main(["simulate", str(ids), "--source", crystals]) == 3
    archive = open_archive(tmp_path / "ids.zarr")
    assert list(archive.status) == [1, 2, 2, 1]
    assert not archive.read(1, 3).any()
    assert [(line.pattern, line.source_id) for line in archive.rejections()] == [
        (1, "unreal"),
        (2, "unheard of"),
    ]
    assert "Cx" in archive.rejections()[0].reason
    printed = capsys.readouterr().err
    assert "unheard of" in printed
    assert "2 identifiers rejected" in printed


def test_many_rejected_entries_are_counted_rather_than_all_told(
    tmp_path: Path, crystals: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("copper\n" + "unheard of\n" * 30)
    assert main(["simulate", str(ids), "--source", crystals]) == 3
    printed = capsys.readouterr().err
    assert printed.count("unheard of") == 10
    assert "… and 20 more" in printed


def test_all_rejected_is_a_failure(tmp_path: Path, crystals: str, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("unreal\nunheard of\n")
    assert main(["simulate", str(ids), "--source", crystals]) == 1
    assert "every one of the 2 identifiers was rejected" in capsys.readouterr().err


def test_dry_run_says_what_it_would_do_and_does_nothing(
    ids: Path, crystals: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert main(["simulate", str(ids), "--source", crystals, "--dry-run"]) == 0
    assert "would simulate 4 of 4 patterns of 3041 points" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_force_and_only_force_overwrites(ids: Path, crystals: str, tmp_path: Path) -> None:
    command = ["simulate", str(ids), "--source", crystals]
    assert main(command) == 0
    ids.write_text("iron\n")
    assert main(command) == 1
    assert main([*command, "--dry-run"]) == 1
    assert open_archive(tmp_path / "ids.zarr").n_patterns == 4
    assert main([*command, "--force"]) == 0
    assert open_archive(tmp_path / "ids.zarr").n_patterns == 1


def test_resume_starts_afresh_where_there_is_nothing(ids: Path, crystals: str, tmp_path: Path) -> None:
    assert main(["simulate", str(ids), "--source", crystals, "--resume"]) == 0
    assert list(open_archive(tmp_path / "ids.zarr").status) == [1, 1, 1, 1]


def test_resume_of_a_finished_run_changes_nothing_and_keeps_its_exit_code(
    tmp_path: Path, crystals: str
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("copper\nunheard of\n")
    command = ["simulate", str(ids), "--source", crystals, "--resume"]
    assert main(command) == 3
    before = {file: file.read_bytes() for file in (tmp_path / "ids.zarr").rglob("*") if file.is_file()}
    assert main(command) == 3
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--seed", "1"], "other seed (0, now 1)"),
        (["--wavelength", "1.54"], "other instrument"),
        (["--two-theta", "5", "100", "0.1"], "other instrument"),
    ],
)
def test_resume_refuses_another_run(
    ids: Path, crystals: str, changes: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["simulate", str(ids), "--source", crystals]
    assert main(command) == 0
    assert main([*command, "--resume", *changes]) == 1
    assert told in capsys.readouterr().err


def test_resume_refuses_other_identifiers(
    ids: Path, crystals: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["simulate", str(ids), "--source", crystals]
    assert main(command) == 0
    ids.write_text("iron\ncopper\nwith inner spaces\ncopper\n")
    assert main([*command, "--resume"]) == 1
    assert "other identifiers" in capsys.readouterr().err


def test_one_writer_at_a_time(
    ids: Path, crystals: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["simulate", str(ids), "--source", crystals]
    assert main(command) == 0
    with open_writer(tmp_path / "ids.zarr"):
        assert main([*command, "--force"]) == 1
        assert main([*command, "--resume"]) == 1
    assert capsys.readouterr().err.count("another process is writing") == 2


def test_a_full_disk_is_told_in_one_line_and_the_run_can_be_resumed(
    ids: Path,
    crystals: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from zarr.storage import _local

    put = _local._put

    def put_until_full(path: Path, *args: object, **kwargs: object) -> int:
        if path.match("intensity/c/1/0"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return put(path, *args, **kwargs)

    monkeypatch.setattr(_local, "_put", put_until_full)
    command = ["simulate", str(ids), "--source", crystals, "--shard-size", "2"]
    assert main(command) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert "disk is full" in errors[0]
    assert list(open_archive(tmp_path / "ids.zarr").status) == [1, 1, 0, 0]
    monkeypatch.undo()
    assert main([*command, "--resume"]) == 0
    assert main([*command, "-o", str(tmp_path / "whole.zarr")]) == 0
    assert_same_archive(tmp_path / "ids.zarr", tmp_path / "whole.zarr")


def test_identifiers_come_from_stdin(tmp_path: Path, crystals: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"copper\r\n# a comment\r\niron\r\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    output = tmp_path / "stdin.zarr"
    assert main(["simulate", "-", "-o", str(output), "--source", crystals]) == 0
    assert open_archive(output).source_id == ["copper", "iron"]


def test_identifier_files_keep_order_repeats_and_inner_spaces(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_bytes("\ufeffb 1\n  # no\n\n a\tx \r\nb 1\nü#2".encode())
    with IdentifierFile(file) as identifiers:
        assert identifiers.read(0, len(identifiers)) == ["b 1", "a\tx", "b 1", "ü#2"]


# Real processes, interrupted ----------------------------------------------------------------------

LONG = 20_000


@pytest.fixture
def long_command(tmp_path: Path, crystals: str) -> list[str]:
    """Return a command that takes several seconds and writes many small shards."""
    ids = tmp_path / "long.txt"
    ids.write_text("\n".join([*GOOD, "unheard of"] * (LONG // 5)))
    command = [sys.executable, "-m", "hxrd.cli.main", "simulate", str(ids), "--source", crystals]
    return [*command, "--shard-size", "64", "--two-theta", "3", "155", "0.1"]


@pytest.fixture
def running(long_command: list[str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the long command and halt it once its third shard is there, with many still to come."""
    with subprocess.Popen(
        [*long_command, "-o", str(tmp_path / "cut.zarr")], stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "cut.zarr" / "status" / "c" / "2").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no shard was written in two minutes"
            time.sleep(0.005)
        process.send_signal(signal.SIGSTOP)
        yield process
        process.kill()


def finish(long_command: list[str], tmp_path: Path) -> None:
    """Resume the interrupted run, make an uninterrupted one, and compare."""
    status = open_archive(tmp_path / "cut.zarr").status
    assert 0 < np.count_nonzero(status) < LONG
    cut, whole = str(tmp_path / "cut.zarr"), str(tmp_path / "whole.zarr")
    assert main([*long_command[3:], "-o", cut, "--resume"]) == 3
    assert main([*long_command[3:], "-o", whole]) == 3
    assert_same_archive(tmp_path / "cut.zarr", tmp_path / "whole.zarr")


@pytest.mark.slow
def test_kill_9_and_resume_equal_an_uninterrupted_run(
    running: subprocess.Popen[str], long_command: list[str], tmp_path: Path
) -> None:
    running.kill()
    assert running.wait() == -signal.SIGKILL
    finish(long_command, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_cleanly(
    running: subprocess.Popen[str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    running.send_signal(number)
    running.send_signal(signal.SIGCONT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == code, told
    assert "--resume finishes it" in told
    assert "Traceback" not in told
    assert not (tmp_path / "cut.zarr.lock").exists()
    assert not list(tmp_path.rglob("*.part*"))
    archive = open_archive(tmp_path / "cut.zarr")
    written = np.flatnonzero(archive.status == 1)
    assert 0 < len(written) < LONG
    assert np.all(archive.read(0, int(written[-1]) + 1)[written].max(axis=1) == 1)


@pytest.mark.slow
def test_two_processes_never_write_one_archive(
    running: subprocess.Popen[str], long_command: list[str], tmp_path: Path
) -> None:
    second = subprocess.run(
        [*long_command, "-o", str(tmp_path / "cut.zarr"), "--resume"], capture_output=True, text=True
    )
    assert second.returncode == 1
    assert "another process is writing" in second.stderr


def test_the_papers_own_identifiers_without_an_icsd_export_are_answered_within_seconds(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HXRD_SOURCES", raising=False)
    start = time.monotonic()
    output = tmp_path / "icsd.zarr"
    assert main(["simulate", str(shared / "icsd_ids.txt"), "-o", str(output)]) == 1
    assert time.monotonic() - start < 30
    told = capsys.readouterr().err
    assert "ICSD" in told
    assert "--source cif:" in told
    assert not output.exists()
