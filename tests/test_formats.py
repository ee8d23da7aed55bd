"""Readers of measured pattern files: what they take, what they say of the rest."""

import csv
import gzip

import numpy as np
import pytest

from hxrd.errors import InputError, UsageError
from hxrd.formats import is_pattern_file, known_formats, read_pattern

TWO_THETA = 10 + 0.05 * np.arange(40)
INTENSITY = 100 + np.arange(40.0)


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def columns(*values, separator=" ", form="{:.4f}"):
    return "".join(separator.join(form.format(x) for x in row) + "\n" for row in zip(*values, strict=True))


def test_reads_two_columns(tmp_path):
    pattern = read_pattern(write(tmp_path / "sample.xy", columns(TWO_THETA, INTENSITY)))
    np.testing.assert_allclose(pattern.two_theta, TWO_THETA)
    np.testing.assert_allclose(pattern.intensity, INTENSITY)
    assert (pattern.sigma, pattern.wavelength, pattern.probe) == (None, None, None)
    assert pattern.name == "sample"
    assert pattern.notes == ()


def test_reads_three_columns_gzipped_with_upper_case_suffix(tmp_path):
    text = columns(TWO_THETA, INTENSITY, np.sqrt(INTENSITY))
    pattern = read_pattern(write(tmp_path / "run.5.XYE.gz", gzip.compress(text.encode())))
    np.testing.assert_allclose(pattern.sigma, np.sqrt(INTENSITY), atol=1e-4)
    assert pattern.name == "run.5"


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", ";", "  ;  "])
def test_separators(tmp_path, separator):
    pattern = read_pattern(write(tmp_path / "a.xy", columns(TWO_THETA, INTENSITY, separator=separator)))
    np.testing.assert_allclose(pattern.two_theta, TWO_THETA)
    np.testing.assert_allclose(pattern.intensity, INTENSITY)


@pytest.mark.parametrize("separator", [" ", "\t", ";"])
def test_decimal_comma(tmp_path, separator):
    text = columns(TWO_THETA, INTENSITY, separator=separator).replace(".", ",")
    pattern = read_pattern(write(tmp_path / "a.xy", text))
    np.testing.assert_allclose(pattern.two_theta, TWO_THETA)


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: ("# Probe Grün, T = 20 °C\n" + text).encode("latin-1"),
        lambda text: text.encode() + b"\x1a",
        lambda text: text.encode() + b"\n\n   \n",
    ],
    ids=["crlf", "cr", "bom", "utf-16", "latin-1", "dos-end", "blank-end"],
)
def test_encodings_and_line_ends(tmp_path, encode):
    pattern = read_pattern(write(tmp_path / "a.xy", encode(columns(TWO_THETA, INTENSITY))))
    np.testing.assert_allclose(pattern.two_theta, TWO_THETA)


def test_comments_headers_and_a_leading_count_are_skipped(tmp_path):
    points = columns(TWO_THETA, INTENSITY).splitlines(keepends=True)
    header = "# one\n! two\n; three\n'four\n// five\n2theta counts\nXYDATA\n40\n"
    text = header + "".join(points[:20]) + "# between\n\n" + "".join(points[20:])
    np.testing.assert_allclose(read_pattern(write(tmp_path / "a.xy", text)).two_theta, TWO_THETA)


def test_fortran_doubles(tmp_path):
    text = columns(TWO_THETA, INTENSITY, form="{:.6E}").replace("E", "D")
    np.testing.assert_allclose(read_pattern(write(tmp_path / "a.xy", text)).intensity, INTENSITY)


@pytest.mark.parametrize(
    ("line", "wavelength"),
    [
        ("# wavelength = 1.54", 1.54),
        ("! Wavelength (A): 2.0775 A", 2.0775),
        ("# lambda: 1.909", 1.909),
        ("; T = 300 K, λ=1.494, slit 3", 1.494),
        ("' wavelength: 0.154 nm", 1.54),
        ("wave length = 2.4", 2.4),
        ("# 1.54", None),
        ("# wavelength 1.54", None),
        ("# wavelength = 154000", None),
        ("# wavelength = 1.54056 and wavelength = 1.54439", None),
        ("# mylambda = 1.5", None),
        ("# wavelength = 1,54", None),
    ],
)
def test_wavelength_only_where_labelled(tmp_path, line, wavelength):
    text = line + "\n" + columns(TWO_THETA, INTENSITY)
    assert read_pattern(write(tmp_path / "a.xy", text)).wavelength == (
        None if wavelength is None else pytest.approx(wavelength)
    )


@pytest.mark.parametrize(
    ("line", "probe"),
    [("# probe: neutron", "neutron"), ("# Radiation type = X-ray", "xray"), ("# a neutron star", None)],
)
def test_probe_only_where_labelled(tmp_path, line, probe):
    assert read_pattern(write(tmp_path / "a.xy", line + "\n" + columns(TWO_THETA, INTENSITY))).probe == probe


def test_reversed_order_is_sorted_and_said(tmp_path):
    pattern = read_pattern(write(tmp_path / "a.xy", columns(TWO_THETA[::-1], INTENSITY[::-1])))
    np.testing.assert_allclose(pattern.intensity, INTENSITY)
    assert "sorted" in pattern.notes[0]


def test_repeated_points_are_averaged(tmp_path):
    two_theta = np.append(TWO_THETA, TWO_THETA[5])
    intensity, sigma = np.append(INTENSITY, INTENSITY[5] + 10), np.full(41, 2.0)
    pattern = read_pattern(write(tmp_path / "a.xye", columns(two_theta, intensity, sigma)))
    assert len(pattern.two_theta) == 40
    assert pattern.intensity[5] == pytest.approx(INTENSITY[5] + 5)
    assert pattern.sigma[5] == pytest.approx(np.sqrt(2))
    assert any("1 repeated" in note for note in pattern.notes)


def test_even_centidegrees_are_divided_and_said(tmp_path):
    pattern = read_pattern(write(tmp_path / "a.xy", columns(TWO_THETA * 100, INTENSITY)))
    np.testing.assert_allclose(pattern.two_theta, TWO_THETA)
    assert any("centidegrees" in note for note in pattern.notes)


def test_flight_times_are_refused(tmp_path):
    times = 5000 * 1.001 ** np.arange(40)
    with pytest.raises(InputError, match="beyond 180 degrees"):
        read_pattern(write(tmp_path / "a.xy", columns(times, INTENSITY)))


def test_negative_angles_are_left_out_and_said(tmp_path):
    pattern = read_pattern(write(tmp_path / "a.xy", columns(TWO_THETA - 10.5, INTENSITY)))
    assert len(pattern.two_theta) == 30
    assert any("10 points at negative" in note for note in pattern.notes)


def test_nan_and_negative_intensities_are_kept(tmp_path):
    text = columns(TWO_THETA, INTENSITY).replace("101.0000", "nan").replace("102.0000", "-5")
    pattern = read_pattern(write(tmp_path / "a.xy", text))
    assert np.isnan(pattern.intensity[1])
    assert pattern.intensity[2] == -5


def test_a_third_column_that_is_no_uncertainty_is_dropped(tmp_path):
    pattern = read_pattern(write(tmp_path / "a.xy", columns(TWO_THETA, INTENSITY, INTENSITY - 120)))
    assert pattern.sigma is None


def test_a_last_line_cut_short_is_left_out_and_said(tmp_path):
    pattern = read_pattern(write(tmp_path / "a.xy", columns(TWO_THETA, INTENSITY) + "12.0"))
    assert len(pattern.two_theta) == 40
    assert any("last line" in note for note in pattern.notes)


NOISE = np.random.default_rng(7).integers(0, 256, 4000, dtype=np.uint8).tobytes()
PACKED = gzip.compress(columns(TWO_THETA, INTENSITY).encode())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n\t\n", "is empty"),
        (gzip.compress(b""), "is empty"),
        (NOISE, "is binary"),
        (b"\x1f\x8b" + NOISE, "damaged"),
        (PACKED[: len(PACKED) // 2], "truncated"),
        (PACKED[:12], "truncated"),
        ("only words\nand more\n", "no columns of numbers"),
        ("# only a comment\n", "no columns of numbers"),
        (columns(TWO_THETA), "one column"),
        ("7\n", "one column"),
        (columns(TWO_THETA, INTENSITY, INTENSITY, INTENSITY), "has 4 columns"),
        (columns(TWO_THETA[:9], INTENSITY[:9]), "only 9 points"),
        (columns(TWO_THETA, INTENSITY) + "12.0\n12.05\n", "line 41 is not a point of 2 numbers"),
        (columns(TWO_THETA, INTENSITY) + "the\nend\n", "line 41 is not a point"),
        (columns(TWO_THETA, INTENSITY) + "nan 5\n", "not a finite number"),
        (columns(TWO_THETA * 3000, INTENSITY), "beyond 180 degrees"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_with_the_name(tmp_path, content, words):
    path = write(tmp_path / "broken.xy", content)
    with pytest.raises(InputError, match=words) as caught:
        read_pattern(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


def test_too_large_a_file(tmp_path, monkeypatch):
    from hxrd.formats import columns as module

    monkeypatch.setattr(module, "LARGEST_SIZE", 100)
    path = write(tmp_path / "a.xy.gz", gzip.compress(columns(TWO_THETA, INTENSITY).encode()))
    with pytest.raises(InputError, match="larger than"):
        read_pattern(path)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read_pattern(tmp_path / "missing.xy")
    with pytest.raises(InputError, match="directory"):
        read_pattern(tmp_path)


def test_unknown_format_names_the_known_ones(tmp_path):
    path = write(tmp_path / "a.docx", columns(TWO_THETA, INTENSITY))
    assert not is_pattern_file(path)
    with pytest.raises(InputError, match=r"\.xye") as caught:
        read_pattern(path)
    assert known_formats() in str(caught.value)


def manifest(shared):
    with open(shared / "measured" / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_reads_the_whole_shared_table(shared):
    rows = manifest(shared)
    assert len(rows) == 129
    for row in rows:
        path = shared / "measured" / row["xy"]
        assert is_pattern_file(path)
        pattern = read_pattern(path)
        assert len(pattern.two_theta) == int(row["n_points"]), row["id"]
        assert pattern.name == row["id"]
        assert pattern.two_theta[0] == pytest.approx(float(row["two_theta_min"]), abs=1e-3)


def test_reads_the_shared_originals_of_columns(shared):
    folder = shared / "measured"
    rows = [row for row in manifest(shared) if row["file"] and is_pattern_file(folder / row["file"])]
    assert len(rows) > 40
    for row in rows:
        if row["id"] in ("pv06_I4Imcm", "pv07_I4Imcm"):  # numbers run together at the strongest peak
            with pytest.raises(InputError, match="is not a point of 2 numbers"):
                read_pattern(folder / row["file"])
            continue
        table, pattern = read_pattern(folder / row["xy"]), read_pattern(folder / row["file"])
        np.testing.assert_allclose(pattern.two_theta, table.two_theta, atol=1e-4, err_msg=row["id"])
        np.testing.assert_allclose(pattern.intensity, table.intensity, rtol=1e-4, atol=0.51)
