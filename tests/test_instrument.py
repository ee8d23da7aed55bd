"""Instruments: presets, a user's file, overrides, and what is refused."""

import math
from pathlib import Path
from typing import Any

import msgspec
import naive
import numpy as np
import pytest
from built_crystals import CARE_CASES

from hxrd.errors import InputError, UsageError
from hxrd.physics.instrument import (
    LARGEST_GRID,
    Instrument,
    load_instrument,
    parse_wavelength,
    preset_names,
    with_overrides,
)
from hxrd.simulate.simulate import simulate_patterns

PAPER = load_instrument("paper")
OWN = {
    "name": '"mine"',
    "description": '"a test"',
    "source": '"invented"',
    "probe": '"neutron"',
    "wavelengths": "[[1.5, 1.0]]",
    "scattering_table": '"sears1992"',
    "caglioti_u": "0.1",
    "caglioti_v": "-0.1",
    "caglioti_w": "0.1",
    "lorentzian_x": "0.02",
    "lorentzian_y": "0.0",
    "axial_divergence": "0.03",
    "two_theta": "[5.0, 150.0, 0.1]",
}


def written(folder: Path, **changes: str) -> str:
    """Write an instrument file; an empty value leaves its line out."""
    file = folder / "mine.toml"
    fields = {name: value for name, value in (OWN | changes).items() if value}
    file.write_text("".join(f"{name} = {value}\n" for name, value in fields.items()), encoding="utf-8")
    return str(file)


PRESETS = [
    *["bt1-cu311", "bt1-ge311", "bt1-ge733", "cu-ka", "d2b", "echidna", "hrpt", "mo-ka"],
    *["paper", "synchrotron", "xray"],
]


def test_presets_are_listed() -> None:
    assert preset_names() == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_it_is_and_whence(name: str) -> None:
    instrument = load_instrument(name)
    assert instrument.name == name
    assert instrument.description
    assert instrument.source
    assert ("estimated" in instrument.description) == instrument.source.startswith("Estimated")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_simulates_a_crystal(name: str) -> None:
    instrument = load_instrument(name)
    start, _, step = instrument.two_theta
    short = with_overrides(instrument, two_theta=(start, start + 1000 * step, step))
    crystal = CARE_CASES["lines at very low angles"]
    patterns, reasons = simulate_patterns([crystal], short if name == "synchrotron" else instrument)
    assert reasons == [None]
    assert patterns.max() == 1
    assert np.all(np.isfinite(patterns))


@pytest.mark.parametrize(
    ("name", "two_theta", "fwhm"),
    [
        ("bt1-cu311", 77.2, 0.221),  # corundum measured on BT-1
        ("bt1-cu311", 121.95, 0.486),
        ("bt1-ge311", 31.1, 0.243),  # Lu(Fe,Mn)O3 measured on BT-1
        ("hrpt", 66.4, 0.334),  # La0.5Ba0.5CoO3 measured on HRPT
        ("echidna", 71.7, 0.535),  # LaB6 measured on ECHIDNA
        ("echidna", 126.8, 0.351),
        ("cu-ka", 43.51, 0.0665),  # LaB6 measured at NIST
        ("cu-ka", 107.75, 0.0946),
    ],
)
def test_a_preset_is_as_sharp_as_its_instrument(name: str, two_theta: float, fwhm: float) -> None:
    assert naive.thompson_cox_hastings(two_theta, load_instrument(name))[0] == pytest.approx(fwhm, rel=0.08)


def test_the_preset_paper_is_that_of_the_published_patterns() -> None:
    assert PAPER.probe == "neutron"
    assert PAPER.scattering_table == "sears1992"
    assert PAPER.wavelengths == ((2.0775, 1.0),)
    assert math.sqrt(PAPER.caglioti_u) == pytest.approx(0.540, abs=1e-3)
    assert (PAPER.caglioti_v, PAPER.caglioti_w) == (0.0, 0.0)
    assert (PAPER.lorentzian_x, PAPER.lorentzian_y, PAPER.axial_divergence) == (0.0525, 0.0, 0.0793)
    grid = PAPER.grid()
    assert grid.shape == (3041,)
    np.testing.assert_array_equal(grid, np.round(3 + 0.05 * np.arange(3041), 10))


def test_a_multiplet_has_its_weighted_mean_wavelength() -> None:
    xray = load_instrument("xray")
    assert (xray.probe, xray.scattering_table) == ("xray", "it92")
    assert xray.wavelength == pytest.approx((2 * 1.5405929 + 1.5444274) / 3, abs=1e-6)


def test_a_file_of_ones_own_loads(tmp_path: Path) -> None:
    instrument = load_instrument(written(tmp_path))
    assert instrument.wavelength == 1.5
    assert instrument.grid()[-1] == 150.0
    assert len(instrument.grid()) == 1451


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("1.5", [(1.5, 1)]),
        ("2.0775", [(2.0775, 1)]),
        ("CuKa1", [(1.5405929, 1)]),
        ("MoKa2", [(0.713607, 1)]),
        ("CuKa", [(1.5405929, 2 / 3), (1.5444274, 1 / 3)]),
        ("AgKa", [(0.5594218, 2 / 3), (0.5638131, 1 / 3)]),
    ],
)
def test_wavelengths_and_line_names(text: str, lines: list[tuple[float, float]]) -> None:
    np.testing.assert_allclose(parse_wavelength(text), lines, rtol=1e-12)


@pytest.mark.parametrize("element", ["Cr", "Fe", "Co", "Cu", "Mo", "Ag"])
def test_the_lines_of_a_doublet_stand_in_order(element: str) -> None:
    ((first, _),), ((second, _),) = parse_wavelength(f"{element}Ka1"), parse_wavelength(f"{element}Ka2")
    assert 0.002 < second - first < 0.006  # spin-orbit splitting of the 2p level: 3.8 to 4.4 mÅ


@pytest.mark.parametrize(
    "text", ["", "K", "CuKb", "CuKa3", "XyKa", "cuka", "-1", "0", "nan", "inf", "1e9", "1,5"]
)
def test_impossible_wavelengths_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="wavelength"):
        parse_wavelength(text)


def test_overrides_replace_only_what_was_named() -> None:
    assert with_overrides(PAPER) is PAPER
    assert with_overrides(PAPER, probe="neutron") is PAPER
    longer = with_overrides(PAPER, wavelength="2.4")
    assert longer.wavelengths == ((2.4, 1.0),)
    assert longer.two_theta == PAPER.two_theta
    narrower = with_overrides(PAPER, two_theta=(10.0, 90.0, 0.1))
    assert len(narrower.grid()) == 801
    assert narrower.wavelengths == PAPER.wavelengths


def test_another_probe_brings_its_own_scattering_table() -> None:
    xray = with_overrides(PAPER, probe="xray", wavelength="CuKa")
    assert (xray.probe, xray.scattering_table, len(xray.wavelengths)) == ("xray", "it92", 2)
    back = with_overrides(xray, probe="neutron")
    assert (back.probe, back.scattering_table) == ("neutron", "sears1992")


@pytest.mark.parametrize(
    "two_theta",
    [
        *[(90, 10, 0.1), (0, 90, 0.1), (-5, 90, 0.1), (10, 180, 0.1), (10, 90, 0), (10, 90, -1), (10, 11, 2)],
        *[(10, 90, math.nan), (math.nan, 90, 1), (10, math.inf, 1), (1, 179, 178 / (2 * LARGEST_GRID))],
    ],
)
def test_impossible_ranges_are_refused(two_theta: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="2θ range"):
        with_overrides(PAPER, two_theta=two_theta)


def test_a_range_of_broken_steps_is_refused_and_the_last_whole_one_told() -> None:
    with pytest.raises(UsageError, match=r"2θ range 10 90 0\.3 .*whole steps: give 89\.8 as STOP"):
        with_overrides(PAPER, two_theta=(10.0, 90.0, 0.3))
    told = with_overrides(PAPER, two_theta=(10.0, 89.8, 0.3))
    assert told.grid()[-1] == 89.8


@pytest.mark.parametrize(
    "two_theta",
    [(3, 155, 0.05), (10, 90.01, 0.03), (10, 20, 0.3333333), (2.95, 155, 0.05), (0.1, 179.9, 0.01)],
)
def test_rounding_does_not_break_a_range_of_whole_steps(two_theta: tuple[float, float, float]) -> None:
    start, stop, step = two_theta
    grid = with_overrides(PAPER, two_theta=two_theta).grid()
    assert grid[0] == start
    assert grid[-1] == pytest.approx(stop, abs=2e-3 * step)
    assert np.all(np.abs(np.diff(grid) - step) < 1e-9)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"colour": '"blue"'}, "colour"),
        ({"caglioti_u": ""}, "caglioti_u"),
        ({"caglioti_u": '"wide"'}, "caglioti_u"),
        ({"caglioti_w": "nan"}, "caglioti_w"),
        ({"lorentzian_x": "inf"}, "lorentzian_x"),
        ({"axial_divergence": "-0.1"}, "axial_divergence"),
        ({"axial_divergence": "nan"}, "axial_divergence"),
        ({"sample_half_height": "0.02"}, "axial_divergence and sample_half_height"),
        ({"axial_divergence": "", "sample_half_height": "-0.01"}, "sample_half_height"),
        ({"axial_divergence": "", "sample_half_height": "nan"}, "sample_half_height"),
        ({"axial_divergence": "", "detector_half_height": "0.6"}, "detector_half_height"),
        ({"zero_shift": "nan"}, "zero_shift"),
        ({"zero_shift": "-6.0"}, "zero_shift"),
        ({"zero_shift": '"small"'}, "zero_shift"),
        ({"polarization": "0.0"}, "polarization"),
        ({"polarization": "1.01"}, "polarization"),
        ({"polarization": "nan"}, "polarization"),
        ({"monochromator_two_theta": "-26.6"}, "monochromator_two_theta"),
        ({"monochromator_two_theta": "180.0"}, "monochromator_two_theta"),
        ({"probe": '"muon"'}, "probe"),
        ({"probe": '"xray"'}, "scattering_table sears1992"),
        ({"scattering_table": '"it92"'}, "scattering_table it92"),
        ({"wavelengths": "[]"}, "wavelengths"),
        ({"wavelengths": "[[-1.5, 1.0]]"}, "wavelengths"),
        ({"wavelengths": "[[1.5, 0.0]]"}, "wavelengths"),
        ({"wavelengths": "[[1.5, nan]]"}, "wavelengths"),
        ({"wavelengths": "[[1.5]]"}, "wavelengths"),
        ({"two_theta": "[5.0, 150.0, 0.4]"}, "whole steps"),
        ({"two_theta": "[150.0, 5.0, 0.1]"}, "2θ range"),
        ({"name": "unquoted text"}, "mine.toml"),
    ],
)
def test_a_file_that_is_no_instrument_is_told_by_file_and_field(
    tmp_path: Path, changes: dict[str, str], told: str
) -> None:
    with pytest.raises(InputError, match=told) as caught:
        load_instrument(written(tmp_path, **changes))
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_file_leaves_out_is_absent_from_the_instrument(tmp_path: Path) -> None:
    plain = load_instrument(written(tmp_path, axial_divergence=""))
    heights = (plain.axial_divergence, plain.sample_half_height, plain.detector_half_height)
    assert heights == (0.0, 0.0, 0.0)
    assert (plain.zero_shift, plain.polarization, plain.monochromator_two_theta) == (0.0, 0.5, 0.0)
    tall = load_instrument(
        written(tmp_path, axial_divergence="", sample_half_height="0.03", detector_half_height="0.02")
    )
    assert (tall.sample_half_height, tall.detector_half_height) == (0.03, 0.02)


def test_provenance_written_before_there_were_corrections_still_loads() -> None:
    recorded = msgspec.to_builtins(PAPER)
    for name in (
        *("sample_half_height", "detector_half_height"),
        *("zero_shift", "polarization", "monochromator_two_theta"),
    ):
        del recorded[name]
    assert msgspec.convert(recorded, Instrument) == PAPER


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ({}, 1.0),  # (1 + cos² 2θ)/2
        ({"polarization": 1.0}, 0.0),
        ({"polarization": 0.95}, 0.05 / 0.95),
        ({"monochromator_two_theta": 26.6}, math.cos(math.radians(26.6)) ** 2),
        ({"monochromator_two_theta": 60.0, "polarization": 0.8}, 0.25 / 4),
        ({"probe": "neutron", "scattering_table": "sears1992"}, 0.0),
    ],
)
def test_polarization_ratio(changes: dict[str, Any], ratio: float) -> None:
    xray = msgspec.structs.replace(load_instrument("xray"), **changes)
    assert xray.polarization_ratio == pytest.approx(ratio, abs=1e-12)


def test_what_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"choose one of bt1-cu311, .*paper, .*xray"):
        load_instrument("unheard-of")
    with pytest.raises(UsageError, match="does not exist"):
        load_instrument(str(tmp_path / "absent.toml"))


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "noise.toml"
    file.write_bytes(b"\xff\xfe\x00noise")
    with pytest.raises(InputError, match=r"noise\.toml cannot be read as text"):
        load_instrument(str(file))


def test_instruments_are_immutable() -> None:
    with pytest.raises(AttributeError):
        PAPER.probe = "xray"  # type: ignore[misc]
    assert isinstance(PAPER, Instrument)


@pytest.mark.parametrize(
    ("field", "value"), [("caglioti_u", "-5"), ("caglioti_v", "-0.9"), ("lorentzian_y", "-1")]
)
def test_a_negative_width_is_refused(field: str, value: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, UsageError), match="negative width"):
        load_instrument(written(tmp_path, **{field: value}))


def test_peaks_without_width_are_refused(tmp_path: Path) -> None:
    nothing = dict.fromkeys(["caglioti_u", "caglioti_v", "caglioti_w", "lorentzian_x"], "0.0")
    with pytest.raises((InputError, UsageError), match="without any width"):
        load_instrument(written(tmp_path, **nothing))
