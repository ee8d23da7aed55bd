"""Background removal and the way to a model's grid, against a plain NumPy oracle and known patterns."""

import csv
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hxrd.errors import InputError
from hxrd.models.preprocess import (
    Grid,
    background_of,
    bridge_gaps,
    coverage,
    doubts,
    preprocess_batch,
    to_model_grid,
)

MODEL = Grid.of_range(3, 155, 0.05, 2.0775)
SPLIT = 75.0  # degrees, between the two peaks of the integral's test
SPACINGS = np.geomspace(1.2, 9.0, 12)  # Å


def lorentz(two_theta):
    theta = np.radians(two_theta) / 2
    return 1 / (np.sin(theta) * np.sin(2 * theta))


def polarisation(two_theta):
    return (1 + np.cos(np.radians(two_theta)) ** 2) / 2


def bragg(d_spacing, wavelength):
    return 2 * np.degrees(np.arcsin(wavelength / (2 * d_spacing)))


def gaussians(two_theta, centres, areas, fwhm):
    sigma = np.broadcast_to(fwhm, np.shape(centres)) / np.sqrt(8 * np.log(2))
    shape = np.exp(-0.5 * ((two_theta[:, None] - centres) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return shape @ areas


def simulated(two_theta, d_spacing, strength, wavelength, width, probe="neutron"):
    """Peaks of constant width in sin θ/λ, so that patterns of two wavelengths are comparable."""
    centres = bragg(d_spacing, wavelength)
    areas = strength * lorentz(centres) * (polarisation(centres) if probe == "xray" else 1)
    fwhm = np.degrees(2 * wavelength * width / np.cos(np.radians(centres) / 2))
    return gaussians(two_theta, centres, areas, fwhm)


# --- the plain oracle -------------------------------------------------------------------------------


def naive_bin_means(source, intensity, edges):
    """Means of the piecewise linear intensity by summing trapezoids between all knots in each bin."""
    means = np.zeros(len(edges) - 1)
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        start, stop = max(low, source[0]), min(high, source[-1])
        if stop - start <= 0 or stop - start < 0.5 * (high - low):
            continue
        knots = np.concatenate([[start], source[(source > start) & (source < stop)], [stop]])
        means[i] = np.trapezoid(np.interp(knots, source, intensity), knots) / (stop - start)
    return means


def naive_background(source, intensity):
    step = max(0.1, np.median(np.diff(source)))
    edges = np.linspace(source[0], source[-1], int((source[-1] - source[0]) / step) + 1)
    step, centres = edges[1] - edges[0], (edges[1:] + edges[:-1]) / 2
    counts = naive_bin_means(source, intensity, edges)
    smooth = np.convolve(np.pad(counts, 2, mode="edge"), np.array([1, 4, 6, 4, 1]) / 16, mode="valid")
    width = np.minimum(2.5 + 1.2 * np.tan(np.radians(centres / 2)), 8.0)
    window = np.maximum(np.round(width / step), 1).astype(int)
    level = naive_snip(smooth, window)
    beyond = np.median(level[: round(30 / step)])
    if smooth[0] < 0.5 * beyond:
        lit = np.flatnonzero(smooth >= beyond)
        smooth[: lit[0] if len(lit) else None] = beyond
        level = naive_snip(smooth, window)
    shape = np.sqrt(np.maximum(level, 0.1 * np.mean(np.abs(level))))
    difference = np.abs(counts[:-2] - 2 * counts[1:-1] + counts[2:]) / shape[1:-1]
    sigma = shape * np.median(difference) / 0.6744897501960817 / np.sqrt(6) * np.sqrt(70) / 16
    residual = (smooth - level) / sigma
    free = residual < 4
    overall = residual[free].mean()
    for i in range(len(level)):
        near = slice(max(i - 2 * window[i], 0), i + 2 * window[i] + 1)
        total, number = residual[near][free[near]].sum(), free[near].sum()
        level[i] += (total + 20 * overall) / (number + 20) * sigma[i]
    return np.interp(source, centres, level)


def naive_snip(values, window):
    level = values.copy()
    for p in range(window.max(), 0, -1):
        previous = level.copy()
        for i in range(p, len(level) - p):
            if window[i] >= p:
                level[i] = min(previous[i], (previous[i - p] + previous[i + p]) / 2)
    return level


def naive_prepared(source, intensity, wavelength, target, background):
    values = intensity - (naive_background(source, intensity) if background else 0)
    sine = np.sin(np.radians(target.edges / 2)) * wavelength / target.wavelength
    edges = np.where(sine <= 1, 2 * np.degrees(np.arcsin(np.minimum(sine, 1))), 180 + 10 * sine)
    out = np.maximum(naive_bin_means(source, values, edges), 0)
    return out / out.max()


def noisy_pattern(two_theta, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.sort(rng.uniform(two_theta[0] + 2, two_theta[-1] - 3, 40))
    fwhm = 0.25 + 0.4 * np.tan(np.radians(centres / 2))
    clean = gaussians(two_theta, centres, rng.uniform(50, 900, 40), fwhm)
    return rng.poisson(clean + 150 + 0.6 * two_theta + 300 * np.exp(-two_theta / 6)).astype(float)


AXES = {
    "longer": (np.arange(3, 165, 0.05), 1.5402),
    "coarse": (np.arange(8, 128, 0.1), 2.4067),
    "fine": (np.arange(5, 110, 0.013), 1.5406),
    "uneven": (10 + 0.06 * np.arange(2000) + 0.02 * np.sin(np.arange(2000)), 1.909),
    "short": (np.arange(0, 25, 0.05), 1.2),
}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("two_theta", "wavelength"), AXES.values(), ids=AXES)
def test_kernel_equals_the_plain_oracle(two_theta, wavelength, background):
    intensity = noisy_pattern(two_theta)
    got = preprocess_batch(intensity[None], two_theta, wavelength, MODEL, background)[0]
    np.testing.assert_allclose(
        got, naive_prepared(two_theta, intensity, wavelength, MODEL, background), atol=2e-6
    )


def awkward_rows(two_theta):
    """Patterns with noise, in the beam stop's shadow, negative, empty, constant, tiny, huge, not finite."""
    good = noisy_pattern(two_theta)
    rows = [noisy_pattern(two_theta, 1), good * np.clip((two_theta - two_theta[0]) / 4, 0.02, 1), good - 300]
    rows += [np.zeros_like(good), np.full_like(good, 3.0), -good, good * 1e-30, good * 1e30]
    rows += [np.where(np.arange(len(good)) == 7, bad, good) for bad in (np.nan, np.inf, -np.inf)]
    rows += [np.where(np.arange(len(good)) == 70, 1.0, 0.0)]
    return np.array(rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("two_theta", "wavelength"),
    [*AXES.values(), (MODEL.two_theta, MODEL.wavelength), (np.arange(5, 150, 14.0), 2.0)],
    ids=[*AXES, "own", "few"],
)
def test_without_a_compiler_the_numbers_are_the_same_to_the_last_bit(
    two_theta, wavelength, background, dtype
):
    rows = awkward_rows(two_theta).astype(dtype)
    one, other = (
        preprocess_batch(rows, two_theta, wavelength, MODEL, background, compiled=compiled)
        for compiled in (False, True)
    )
    np.testing.assert_array_equal(one, other)
    assert one.any(axis=1).sum() >= 4


def test_patterns_that_need_nothing_are_copied():
    rows = noisy_pattern(MODEL.two_theta)[None].astype(np.float32)
    rows /= rows.max()
    got = preprocess_batch(rows, MODEL.two_theta, MODEL.wavelength, MODEL, False)
    np.testing.assert_array_equal(got, rows)
    assert not np.shares_memory(got, rows)


def test_background_equals_the_plain_oracle_in_a_beam_stops_shadow():
    two_theta = np.arange(0, 150, 0.05)
    intensity = noisy_pattern(two_theta) * np.clip((two_theta - 3) / 2, 0.02, 1)
    background = background_of(two_theta, intensity)
    np.testing.assert_allclose(background, naive_background(two_theta, intensity), rtol=1e-9)
    assert background[0] > 100  # raised to that beyond the shadow


# --- physics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["neutron", "xray"])
@pytest.mark.parametrize("wavelength", [1.2, 1.5406, 1.909, 2.0775, 2.4067])
def test_a_pattern_of_another_wavelength_becomes_the_models(wavelength, probe):
    strength = np.linspace(1, 3, len(SPACINGS))
    two_theta = np.arange(2, 170, 0.02)
    reached = wavelength / (2 * SPACINGS) < 0.77
    d_spacing, strength = SPACINGS[reached], strength[reached]
    source = simulated(two_theta, d_spacing, strength, wavelength, 0.002, probe)
    direct = simulated(MODEL.two_theta, d_spacing, strength, MODEL.wavelength, 0.002, probe)
    got = to_model_grid(two_theta, source, wavelength, MODEL, False, probe=probe)
    low, high = np.searchsorted(MODEL.two_theta, [got.start, got.stop])
    assert got.flag == ""
    np.testing.assert_allclose(got.intensity[low:high], (direct / direct.max())[low:high], atol=0.01)


@pytest.mark.parametrize(("wavelength", "step"), [(1.2251, 0.05), (1.5402, 0.1), (2.4067, 0.065)])
def test_peak_positions_are_right_within_a_hundredth_of_a_degree(wavelength, step):
    two_theta = np.arange(5, 165, step)
    for d_spacing in (8.0, 4.0, 2.5, 1.6):
        source = gaussians(two_theta, np.array([bragg(d_spacing, wavelength)]), np.ones(1), 0.4)
        got = preprocess_batch(source[None], two_theta, wavelength, MODEL, False)[0]
        centre = np.sum(got * MODEL.two_theta) / got.sum()
        assert centre == pytest.approx(bragg(d_spacing, MODEL.wavelength), abs=0.01)


@given(
    wavelength=st.floats(1.6, 2.6),
    step=st.floats(0.02, 0.12),
    centre=st.floats(30, 60),
    fwhm=st.floats(0.3, 2.0),
)
@settings(max_examples=40, deadline=None)
def test_the_lorentz_free_integral_is_conserved(wavelength, step, centre, fwhm):
    """A peak's area over its Lorentz factor is the same on both axes (before normalisation)."""
    two_theta = np.arange(20, 120, step)
    peaks = gaussians(two_theta, np.array([centre, 80.0]), np.array([1.0, 1.0]), np.array([fwhm, 1.0]))
    got = preprocess_batch(peaks[None], two_theta, wavelength, MODEL, False)[0].astype(float)
    split = np.degrees(2 * np.arcsin(np.sin(np.radians(SPLIT / 2)) * MODEL.wavelength / wavelength))
    weight_model = got / lorentz(MODEL.two_theta)
    one, other = weight_model[MODEL.two_theta < split].sum(), weight_model[MODEL.two_theta >= split].sum()
    weight = peaks / lorentz(two_theta)
    expected = weight[two_theta < SPLIT].sum() / weight[two_theta >= SPLIT].sum()
    assert one / other == pytest.approx(expected, rel=0.005)


def test_at_the_same_wavelength_the_plain_integral_is_conserved():
    two_theta = np.arange(3.013, 155, 0.031)
    intensity = noisy_pattern(two_theta)
    got = preprocess_batch(intensity[None], two_theta, MODEL.wavelength, MODEL, False)[0].astype(float)
    inner = slice(50, 2950)
    edges = MODEL.edges[50], MODEL.edges[2950]
    knots = np.concatenate(
        [[edges[0]], two_theta[(two_theta > edges[0]) & (two_theta < edges[1])], [edges[1]]]
    )
    integral = np.trapezoid(np.interp(knots, two_theta, intensity), knots)
    ratio = got[inner].sum() * 0.05 / integral
    scale = 1 / naive_bin_means(two_theta, intensity, MODEL.edges).max()
    assert ratio == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 7.0, 1e9, 1e30])
def test_scale_does_not_matter(scale):
    two_theta = np.arange(5, 150, 0.05)
    intensity = noisy_pattern(two_theta)
    one = preprocess_batch(intensity[None], two_theta, 1.8, MODEL, True)
    np.testing.assert_allclose(
        preprocess_batch(intensity[None] * scale, two_theta, 1.8, MODEL, True), one, atol=1e-6
    )


# --- background -------------------------------------------------------------------------------------


def test_background_runs_through_the_middle_of_the_noise():
    two_theta = np.arange(5, 160, 0.05)
    true = 200 + two_theta + 400 * np.exp(-two_theta / 5)
    for seed in range(3):
        counts = np.random.default_rng(seed).poisson(true)
        background = background_of(two_theta, counts)
        # The noise has a sigma of about 17 a point.
        assert np.mean(background - true) == pytest.approx(0, abs=3.5)
        assert np.abs(background - true)[100:-100].max() < 12


def test_noisy_peaks_on_a_sloping_background_come_back():
    """Within 6 % of each isolated peak's area, from 20 to 145 degrees, at neutron widths."""
    two_theta = np.arange(3, 155.01, 0.05)
    centres = np.array([21.0, 34, 47, 61, 75, 88, 101, 114, 128, 144])
    fwhm = np.array([0.25, 0.25, 0.27, 0.3, 0.32, 0.4, 0.5, 0.7, 1.0, 1.9])
    clean = gaussians(two_theta, centres, np.full(10, 3000.0), fwhm)
    background = 400 + 2 * two_theta + 500 * np.exp(-two_theta / 6)
    counts = np.random.default_rng(3).poisson(clean + background)
    net = counts - background_of(two_theta, counts)
    for centre, width in zip(centres, fwhm, strict=True):
        near = np.abs(two_theta - centre) < 2 * width
        assert net[near].sum() * 0.05 == pytest.approx(3000, rel=0.06)


def test_a_clean_pattern_keeps_its_peaks():
    centres = np.arange(20.0, 150, 9)
    fwhm = 0.54 * np.tan(np.radians(centres / 2))
    clean = gaussians(MODEL.two_theta, centres, np.ones(len(centres)), fwhm)
    got = preprocess_batch(clean[None], MODEL.two_theta, MODEL.wavelength, MODEL, True)[0]
    np.testing.assert_allclose(got, clean / clean.max(), atol=0.002)


def test_background_is_not_asked_for_on_the_same_grid():
    intensity = noisy_pattern(MODEL.two_theta)
    got = preprocess_batch(intensity[None], MODEL.two_theta, MODEL.wavelength, MODEL, False)[0]
    np.testing.assert_allclose(got, intensity / intensity.max(), rtol=1e-6)


# --- flags, coverage, errors ------------------------------------------------------------------------


def test_only_what_was_measured_is_filled():
    two_theta = np.arange(20, 100, 0.05)
    got = to_model_grid(two_theta, noisy_pattern(two_theta), 1.8, MODEL, False)
    inside = (MODEL.two_theta > got.start + 0.1) & (MODEL.two_theta < got.stop - 0.1)
    outside = (MODEL.two_theta < got.start - 0.1) | (MODEL.two_theta > got.stop + 0.1)
    assert np.all(got.intensity[inside] > 0)
    assert np.all(got.intensity[outside] == 0)
    sines = np.sin(np.radians([20, 99.95, 3, 155]) / 2) / [1.8, 1.8, 2.0775, 2.0775]
    assert got.covered == pytest.approx((sines[1] - sines[0]) / (sines[3] - sines[2]))
    assert got.flag == ""


def test_a_longer_range_than_the_models_covers_it_all():
    covered, start, stop = coverage(np.array([0.5, 179.0]), 1.2, MODEL)
    assert (covered, start, stop) == (1.0, pytest.approx(3), pytest.approx(155))


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (lambda y: y, ""),
        (lambda y: y - 500, ""),
        (lambda y: np.where(np.arange(len(y)) == 7, np.nan, y), "not-finite"),
        (lambda y: np.where(np.arange(len(y)) == 7, np.inf, y), "not-finite"),
        (lambda y: np.full_like(y, 3.0), "flat"),
        (lambda y: np.zeros_like(y), "flat"),
        (lambda y: -np.full_like(y, 2.0), "flat"),
    ],
    ids=["good", "negative", "nan", "inf", "constant", "zero", "negative-constant"],
)
@pytest.mark.parametrize("background", [False, True])
def test_flags(change, flag, background):
    two_theta = np.arange(5, 150, 0.05)
    got = to_model_grid(two_theta, change(noisy_pattern(two_theta)), 1.9, MODEL, background)
    assert got.flag == flag
    assert got.intensity.dtype == np.float32
    assert got.intensity.max() == (0 if flag else 1)
    assert got.intensity.min() >= 0


@pytest.mark.parametrize(
    ("start", "stop", "wavelength"),
    [(5, 20, 2.0775), (60, 160, 0.5), (5, 150, 60.0)],
    ids=["short", "beyond", "long-wave"],
)
def test_off_the_models_range(start, stop, wavelength):
    two_theta = np.arange(start, stop, 0.05)
    got = to_model_grid(two_theta, noisy_pattern(two_theta), wavelength, MODEL, True)
    assert got.flag == "out-of-range"
    assert got.covered < 0.25
    assert not got.intensity.any()


def test_a_bad_row_leaves_the_others_alone():
    two_theta = np.arange(5, 150, 0.05)
    rows = np.array([noisy_pattern(two_theta, seed) for seed in range(3)], dtype=np.float32)
    alone = preprocess_batch(rows, two_theta, 1.9, MODEL, True)
    rows[1, 5] = np.nan
    got = preprocess_batch(rows, two_theta, 1.9, MODEL, True)
    assert not got[1].any()
    np.testing.assert_array_equal(got[[0, 2]], alone[[0, 2]])


def test_the_doubts_of_a_batch_are_those_of_its_patterns():
    two_theta = np.arange(5, 150, 0.05)
    rows = np.array([noisy_pattern(two_theta)] * 3)
    rows[1], rows[2, 9] = 4.0, np.nan
    prepared = preprocess_batch(rows, two_theta, 1.9, MODEL, True)
    assert doubts(rows, prepared, 0.9) == ["", "flat", "not-finite"]
    assert doubts(rows, prepared, 0.1) == ["out-of-range", "flat", "not-finite"]


def test_the_single_form_is_the_batch_form():
    two_theta = np.arange(5, 150, 0.05)
    intensity = noisy_pattern(two_theta)
    one = to_model_grid(two_theta, intensity, 1.9, MODEL, True).intensity
    np.testing.assert_array_equal(one, preprocess_batch(intensity[None], two_theta, 1.9, MODEL, True)[0])


GOOD = np.arange(5, 150, 0.05)


@pytest.mark.parametrize(
    ("two_theta", "n_points", "wavelength", "words"),
    [
        (GOOD, 7, 1.5, "do not fit"),
        (GOOD[:9], 9, 1.5, "too short"),
        (GOOD[::-1], len(GOOD), 1.5, "increase strictly"),
        (GOOD + 40, len(GOOD), 1.5, "leaves 0 to 180"),
        (GOOD, len(GOOD), -1.5, "impossible"),
        (GOOD, len(GOOD), np.nan, "impossible"),
    ],
)
def test_what_cannot_be_done_is_said(two_theta, n_points, wavelength, words):
    with pytest.raises(InputError, match=words):
        to_model_grid(two_theta, np.ones(n_points), wavelength, MODEL, True)


def test_measured_neutron_patterns(shared):
    """Strong peaks come back, low angles hold no hump of background, and everything is finite."""
    from hxrd.formats import read_pattern

    with open(shared / "measured" / "manifest.csv", newline="") as manifest:
        rows = [row for row in csv.DictReader(manifest) if row["probe"] == "neutron"]
    assert len(rows) == 16
    for row in rows:
        pattern = read_pattern(shared / "measured" / row["xy"])
        got = to_model_grid(pattern.two_theta, pattern.intensity, float(row["wavelength_A"]), MODEL, True)
        assert got.flag == "", row["id"]
        assert got.covered > 0.7, row["id"]
        assert np.isfinite(got.intensity).all()
        assert np.median(got.intensity[(got.intensity > 0)]) < 0.06, row["id"]
        beginning = (MODEL.two_theta > got.start) & (MODEL.two_theta < got.start + 5)
        assert got.intensity[beginning].max() < 0.1, row["id"]


def test_masked_gaps_leave_no_line_behind():
    two_theta = MODEL.two_theta
    whole = 20 + simulated(two_theta, SPACINGS, np.ones(12), 2.0775, 0.003)
    measured = np.ones((3, len(two_theta)), bool)
    measured[0, (two_theta < 9) | (two_theta > 140)] = False
    measured[0, (two_theta > 100) & (two_theta < 104)] = False
    measured[2] = False
    patterns = np.where(measured, whole, 0.0)
    bridge_gaps(patterns, two_theta, measured)
    np.testing.assert_array_equal(patterns[1], whole)
    assert not patterns[2].any()
    np.testing.assert_array_equal(patterns[0, measured[0]], whole[measured[0]])
    prepared = preprocess_batch(patterns[:2], two_theta, 2.0775, MODEL, background=True)
    at_edges = [np.abs(two_theta - edge) < 1 for edge in (9, 140, 100, 104)]
    assert max(np.abs(prepared[0] - prepared[1])[edge].max() for edge in at_edges) < 0.02
