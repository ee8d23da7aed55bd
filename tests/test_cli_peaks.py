"""`hxrd peaks`: the contract's JSON, the table, the choice of a data block."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from written_cifs import GROUP, cif_text

from hxrd.cli.main import main

NACL = cif_text(name="halite", header=f"{GROUP} 'F m -3 m'")
CSCL = NACL.replace("halite", "unlike").replace("F m -3 m", "P m -3 m").replace("5.64", "4.12")


@pytest.fixture
def cif(tmp_path: Path) -> Path:
    file = tmp_path / "halite.cif"
    file.write_text(NACL)
    return file


def peaks_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main(["peaks", *arguments, "--json"]) == 0
    listed: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return listed


def test_json_is_that_of_the_contract(cif: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = peaks_of(capsys, str(cif))
    assert list(listed[0]) == ["hkl", "multiplicity", "d_spacing", "two_theta", "f_squared", "intensity"]
    first, second = listed[:2]
    assert [abs(index) for index in first["hkl"]] == [1, 1, 1]  # type: ignore[attr-defined]
    assert (first["multiplicity"], second["multiplicity"]) == (8, 6)
    assert first["d_spacing"] == pytest.approx(5.64 / np.sqrt(3))
    assert first["two_theta"] == pytest.approx(2 * np.degrees(np.arcsin(2.0775 * np.sqrt(3) / 2 / 5.64)))
    # Sears 1992: b(Na) = 3.63 fm, b(Cl) = 9.577 fm; F = 4 (b(Na) ∓ b(Cl)) for odd and even hkl.
    assert first["f_squared"] == pytest.approx(16 * (3.63 - 9.577) ** 2, rel=1e-3)
    assert second["f_squared"] == pytest.approx(16 * (3.63 + 9.577) ** 2, rel=1e-3)
    theta = np.radians(first["two_theta"]) / 2  # type: ignore[arg-type]
    expected = 8 * first["f_squared"] / (np.sin(theta) * np.sin(2 * theta))  # type: ignore[operator]
    assert first["intensity"] == pytest.approx(expected)
    angles = [peak["two_theta"] for peak in listed]
    assert angles == sorted(angles)  # type: ignore[type-var]


def test_xray_intensity_has_the_polarisation_factor(cif: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = peaks_of(capsys, str(cif), "--probe", "xray", "--wavelength", "1.5406")[1]
    two_theta = np.radians(second["two_theta"])  # type: ignore[arg-type]
    factor = (1 + np.cos(two_theta) ** 2) / (2 * np.sin(two_theta / 2) * np.sin(two_theta))
    assert second["intensity"] == pytest.approx(6 * second["f_squared"] * factor)  # type: ignore[operator]


def test_range_and_threshold_leave_reflections_out(cif: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = peaks_of(capsys, str(cif))
    within = peaks_of(capsys, str(cif), "--two-theta", "40", "100", "0.1")
    assert within == [peak for peak in everything if 40 <= peak["two_theta"] <= 100]  # type: ignore[operator]
    strongest = max(peak["intensity"] for peak in everything)  # type: ignore[type-var]
    strong = peaks_of(capsys, str(cif), "--min-intensity", "0.2")
    assert strong == [peak for peak in everything if peak["intensity"] >= 0.2 * strongest]  # type: ignore[operator]
    assert 0 < len(strong) < len(everything)


@pytest.mark.parametrize("part", ["nan", "-0.1", "2"])
def test_a_threshold_is_a_part_of_the_strongest(
    cif: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["peaks", str(cif), "--min-intensity", part]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--min-intensity" in captured.err


def test_the_table_has_a_line_for_each_reflection_and_stderr_the_instrument(
    cif: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(peaks_of(capsys, str(cif)))
    assert main(["peaks", str(cif)]) == 0
    printed = capsys.readouterr()
    header, *lines = printed.out.splitlines()
    assert header.split()[:4] == ["h", "k", "l", "m"]
    assert "fm²" in header
    assert len(lines) == count
    assert "instrument paper: neutrons, 2.0775 Å" in printed.err


def test_a_data_block_is_chosen_by_name_or_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "two.cif"
    file.write_text(NACL + CSCL)
    first = peaks_of(capsys, str(file))
    assert main(["peaks", str(file), "--json"]) == 0
    assert "2 data blocks, this is halite" in capsys.readouterr().err
    second = peaks_of(capsys, str(file), "--block", "unlike")
    assert second[0]["d_spacing"] == pytest.approx(4.12)
    assert peaks_of(capsys, str(file), "--block", "1") == second
    assert peaks_of(capsys, str(file), "--block", "0") == first
    assert main(["peaks", str(file), "--block", "2"]) == 2
    assert "halite, unlike" in capsys.readouterr().err


def test_an_unusable_block_is_told_and_the_other_still_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "two.cif"
    file.write_text(NACL.replace("Cl 0.5 0.5 0.5 1", "Cl 0.5 0.5 0.5 1.7") + CSCL)
    assert main(["peaks", str(file)]) == 1
    assert "occupancy" in capsys.readouterr().err
    assert peaks_of(capsys, str(file), "--block", "unlike")


def test_a_closed_pipe_ends_the_command_quietly(cif: Path) -> None:
    command = [sys.executable, "-m", "hxrd.cli.main", "peaks", str(cif), "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
