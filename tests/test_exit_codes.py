"""The exit codes of simulate, peaks, info and plot: each row of the contract's table, told in one line."""

import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from written_cifs import GROUP, cif_text

from hxrd.archive import create_archive
from hxrd.cli import main as command_line
from hxrd.cli.main import main

COPPER = {
    "id": "copper",
    "space_group": 225,
    "cell": [3.61, 3.61, 3.61, 90, 90, 90],
    "sites": [
        ["Cu", *where, 1.0, None] for where in ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
    ],
}
CIF = cif_text((3.36, 3.36, 3.36, 90, 90, 90), f"{GROUP} 'P m -3 m'", ("Pb1 Pb 0 0 0 1",), name="polonium")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with one of everything, good and bad."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HXRD_SOURCES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-configuration"))
    Path("crystals.jsonl").write_text(json.dumps(COPPER) + "\n")
    Path("ids.txt").write_text("copper\n")
    Path("mixed.txt").write_text("copper\nunheard of\n")
    Path("unknown.txt").write_text("unheard of\nneither this\n")
    Path("comments.txt").write_text("# nothing\n\n")
    Path("empty").touch()
    Path("empty.cif").touch()
    Path("empty.safetensors").touch()
    Path("empty.parquet").touch()
    Path("folder").mkdir()
    noise = np.random.default_rng(3).bytes(3000)
    for name in ("noise", "noise.cif", "noise.safetensors", "noise.parquet", "noise.csv", "noise.toml"):
        Path(name).write_bytes(noise)
    Path("noise.zarr").mkdir()
    Path("noise.zarr", "zarr.json").write_bytes(noise)
    Path("good.cif").write_text(CIF)
    Path("truncated.cif").write_text(CIF[: CIF.index("_atom_site_fract_y") + 5])
    Path("foreign.toml").write_text('name = "mine"\ncolour = "blue"\n')
    Path("taken.zarr").mkdir()
    Path("taken.png").write_text("mine")
    with create_archive(
        "good.zarr",
        n_patterns=3,
        two_theta=[10.0, 11.0, 12.0],
        probe="neutron",
        wavelength=1.5,
        instrument="mine",
        normalization="maximum",
        provenance={"command": "test"},
    ) as writer:
        intensity = np.array([[0, 1, 0], [1, 0, 0.5], [0, 0, 0]], np.float32)
        writer.write_shard(0, intensity, [225, 0, 0], list("abc"), [1, 1, 2], [None, None, "unknown"])
    return tmp_path


JSONL = "--source jsonl:crystals.jsonl"


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        # 0: done
        (f"simulate ids.txt {JSONL}", 0, "1 patterns"),
        ("peaks good.cif", 0, "instrument"),
        ("info good.zarr", 0, ""),
        ("info --instruments", 0, ""),
        ("plot good.zarr 0 1 -o new.png", 0, ""),
        ("plot good.zarr 0 -o new.svg", 0, ""),
        ("plot good.zarr 0 -o taken.png --force", 0, ""),
        ("plot good.zarr --class-distribution -o new.png", 0, ""),
        # 1: an input that exists but cannot be used
        (f"simulate empty {JSONL}", 1, "empty"),
        (f"simulate comments.txt {JSONL}", 1, "no identifiers"),
        (f"simulate folder {JSONL}", 1, "folder"),
        (f"simulate noise {JSONL}", 1, "not text"),
        ("simulate ids.txt --source jsonl:noise", 1, "noise"),
        ("simulate ids.txt --source jsonl:empty", 1, "empty"),
        ("simulate ids.txt --source jsonl:folder", 1, "folder"),
        (f"simulate ids.txt {JSONL} --instrument noise.toml", 1, "noise.toml"),
        (f"simulate ids.txt {JSONL} --instrument foreign.toml", 1, "foreign.toml"),
        ("peaks empty.cif", 1, "empty.cif"),
        ("peaks noise.cif", 1, "noise.cif"),
        ("peaks truncated.cif", 1, "truncated.cif"),
        ("peaks folder", 1, "folder"),
        ("peaks good.cif --two-theta 3 4 0.1", 1, "no reflection"),
        ("info empty", 1, "empty"),
        ("info noise", 1, "noise"),
        ("info folder", 1, "no hxrd archive"),
        ("info noise.zarr", 1, "no readable Zarr group"),
        ("info noise.safetensors", 1, "noise.safetensors"),
        ("info empty.safetensors", 1, "empty.safetensors"),
        ("info noise.parquet", 1, "noise.parquet"),
        ("info empty.parquet", 1, "empty.parquet"),
        ("info noise.csv", 1, "noise.csv"),
        ("plot folder 0", 1, "no hxrd archive"),
        ("plot empty 0 -o new.png", 1, "is a file"),
        ("plot noise.zarr 0", 1, "no readable Zarr group"),
        # 1: nothing usable in it
        (f"simulate unknown.txt {JSONL}", 1, "every one of the 2 identifiers was rejected"),
        ("plot good.zarr 2 -o new.png", 1, "nothing to draw"),
        # 1: output exists
        (f"simulate ids.txt -o good.zarr {JSONL}", 1, "--force"),
        (f"simulate ids.txt -o taken.zarr {JSONL}", 1, "--force"),
        (f"simulate ids.txt -o taken.zarr --force {JSONL}", 1, "no hxrd archive"),
        (f"simulate ids.txt -o good.zarr --resume {JSONL}", 1, "not made by hxrd simulate"),
        (f"simulate ids.txt -o taken.zarr --resume {JSONL}", 1, "no hxrd archive"),
        ("plot good.zarr 0 -o taken.png", 1, "--force"),
        # 2: wrong usage
        ("", 2, "Usage"),
        ("fly", 2, "fly"),
        ("simulate", 2, "Usage"),
        ("simulate ids.txt --fast", 2, "--fast"),
        (f"simulate absent.txt {JSONL}", 2, "absent.txt"),
        (f"simulate ids.txt -o nowhere/a.zarr {JSONL}", 2, "nowhere"),
        (f"simulate - {JSONL}", 2, "-o"),
        (f"simulate ids.txt --force --resume {JSONL}", 2, "one of them"),
        (f"simulate ids.txt {JSONL} --wavelength -1", 2, "-1"),
        (f"simulate ids.txt {JSONL} --wavelength 0", 2, "wavelength"),
        (f"simulate ids.txt {JSONL} --wavelength nan", 2, "wavelength"),
        (f"simulate ids.txt {JSONL} --wavelength XyKa", 2, "XyKa"),
        (f"simulate ids.txt {JSONL} --probe muon", 2, "muon"),
        (f"simulate ids.txt {JSONL} --two-theta 90 10 0.1", 2, "2θ"),
        (f"simulate ids.txt {JSONL} --two-theta 10 90 0", 2, "2θ"),
        (f"simulate ids.txt {JSONL} --two-theta 10 190 1", 2, "2θ"),
        (f"simulate ids.txt {JSONL} --two-theta 10 90 nan", 2, "2θ"),
        (f"simulate ids.txt {JSONL} --two-theta 10 90", 2, "two-theta"),
        (f"simulate ids.txt {JSONL} --instrument unheard-of", 2, "unheard-of"),
        (f"simulate ids.txt {JSONL} --instrument absent.toml", 2, "absent.toml"),
        (f"simulate ids.txt {JSONL} --seed -1", 2, "seed"),
        (f"simulate ids.txt {JSONL} --workers 0", 2, "workers"),
        (f"simulate ids.txt {JSONL} --workers 100000", 2, "workers"),
        (f"simulate ids.txt {JSONL} --shard-size 0", 2, "shard-size"),
        (f"simulate ids.txt {JSONL} --log-file nowhere/log.txt", 2, "nowhere"),
        ("simulate ids.txt --source jsonl:absent.jsonl", 2, "absent.jsonl"),
        ("simulate ids.txt --source cif:absent", 2, "absent"),
        ("simulate ids.txt --source oracle", 2, "oracle"),
        ("peaks absent.cif", 2, "absent.cif"),
        ("peaks good.cif --min-intensity 2", 2, "min-intensity"),
        ("peaks good.cif --block second", 2, "second"),
        ("peaks good.cif --wavelength -2", 2, "-2"),
        ("info", 2, "Usage"),
        ("info absent.zarr", 2, "absent.zarr"),
        ("info -v", 2, "--system"),
        ("plot absent.zarr 0", 2, "absent.zarr"),
        ("plot good.zarr", 2, "INDEX"),
        ("plot good.zarr 0 --class-distribution", 2, "either"),
        ("plot good.zarr 3 -o new.png", 2, "no pattern 3"),
        ("plot good.zarr -- -1", 2, "-1"),
        ("plot good.zarr first", 2, "first"),
        ("plot good.zarr 0 -o new.jpeg", 2, "new.jpeg"),
        ("plot good.zarr 0 -o nowhere/new.png", 2, "nowhere"),
        ("plot good.zarr 0 -o new.png --source cif:absent", 2, "absent"),
        # 3: done, but some inputs were rejected
        (f"simulate mixed.txt {JSONL}", 3, "unheard of"),
        ("plot good.zarr 0 2 -o new.png", 3, "pattern 2 (c): unknown"),
    ],
)
def test_exit_code(
    place: Path, command: str, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(command)) == code
    printed = capsys.readouterr()
    assert told in printed.err
    assert "Traceback" not in printed.err
    if code in (1, 2) and told != "Usage":
        assert printed.out == ""
        assert sum(line.startswith("hxrd: error: ") for line in printed.err.splitlines()) == 1
    assert not list(place.glob("*.part*"))
    assert not list(place.glob("*.lock"))


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_leaves_only_errors(place: Path, quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peaks", "good.cif", *(["-q"] if quiet else [])]) == 0
    assert (capsys.readouterr().err == "") is quiet
    assert main(["peaks", "noise.cif", *(["-q"] if quiet else [])]) == 1
    assert "hxrd: error: " in capsys.readouterr().err


def test_a_traceback_only_with_vv(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, wanted in (([], False), (["-v"], False), (["-vv"], True), (["-v", "-v"], True)):
        assert main(["peaks", "noise.cif", *flags]) == 1
        assert ("Traceback" in capsys.readouterr().err) is wanted


def test_the_log_file_gets_every_message_with_its_time(place: Path) -> None:
    assert main(["peaks", "noise.cif", "-q", "--log-file", "log.txt"]) == 1
    logged = Path("log.txt").read_text()
    assert "ERROR" in logged
    assert "noise.cif" in logged
    assert main(["peaks", "good.cif", "--log-file", "log.txt"]) == 0
    assert Path("log.txt").read_text().startswith(logged)
    assert "instrument paper" in Path("log.txt").read_text()


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (command_line.Terminated(), 143, "terminated"),
        (MemoryError(), 1, "not enough memory"),
        (OSError(28, "No space left on device", "a.zarr"), 1, "the disk is full for a.zarr"),
        (PermissionError(13, "Permission denied", "a.zarr"), 1, "a.zarr: Permission denied"),
        (RuntimeError("two\nlines"), 1, "internal error, RuntimeError: two lines (rerun with -vv"),
    ],
)
def test_whatever_a_command_raises_ends_in_one_line(
    place: Path,
    error: BaseException,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hxrd.physics import reflections

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(reflections, "peaks", fail)
    assert main(["peaks", "good.cif", "-q" if code == 1 else "-v"]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if told in line]
    assert len(lines) == 1
    assert lines[0].startswith("hxrd: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").chmod(0o500)
    assert main(shlex.split(f"simulate ids.txt -o folder/a.zarr {JSONL}")) == 1
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["simulate .", "simulate /", "plot . 0"])
def test_an_input_without_a_name_gives_the_output_none(
    place: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(command)) == 2
    assert "-o" in capsys.readouterr().err


def test_a_closed_stderr_does_not_stop_the_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert main(shlex.split(f"simulate ids.txt -o unseen.zarr {JSONL}")) == 0
    assert Path("unseen.zarr").is_dir()


def test_a_home_that_may_not_be_read_is_no_obstacle(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hxrd.models import registry
    from hxrd.sources import default_specs

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", refuse)
        assert default_specs() == ["prototypes"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", refuse)
        assert registry.list_models() == []


def test_some_command_lines_are_helped_by_the_program_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hxrd 0.")
    assert main(["fly"]) == 2
    assert "see 'hxrd --help'" in capsys.readouterr().err
