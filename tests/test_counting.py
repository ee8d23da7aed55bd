"""Random numbers of rows, Poisson statistics, and what lies between diffracted and measured patterns."""

import numpy as np
import pytest
from built_crystals import CARE_CASES
from scipy import stats

from hxrd.kernels import corrections, counting, poisson
from hxrd.physics.instrument import load_instrument
from hxrd.simulate.simulate import conditions_of, simulated

SEEDS = np.random.default_rng(7).integers(0, 2**63, 400).astype(np.uint64)
N_POINTS = 3041
START, STEP = 3.0, 0.05
TWO_THETA = START + STEP * np.arange(N_POINTS)


def uniforms(seeds, stream, count):
    out = np.empty((len(seeds), count))
    poisson.uniforms(seeds, stream, out)
    return out


def counted(expected, seeds=SEEDS, stream=14):
    out = np.empty_like(expected)
    poisson.count(expected, seeds, stream, out)
    return out


def test_even_numbers_are_even_and_unrelated_between_rows_streams_and_positions():
    near = np.arange(2000, dtype=np.uint64)  # the worst seeds: consecutive
    first, second = uniforms(near, 3, 50), uniforms(near, 4, 50)
    assert stats.kstest(first.ravel(), "uniform").pvalue > 1e-3
    for one, other in ((first, second), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.015


def test_numbers_of_a_seed_are_pinned():
    """A seed must give the same patterns in every version."""
    found = uniforms(np.array([0, 12345, 2**64 - 1], np.uint64), 10, 2)
    expected = [
        [0.6464802213389492, 0.9572781027791996],
        [0.2628908864073535, 0.9420210896680018],
        [0.17374231695015707, 0.211258610083924],
    ]
    np.testing.assert_array_equal(found, expected)


def test_numbers_at_positions_are_those_of_the_stream():
    positions = np.array([0, 5, 11], dtype=np.int64)
    out = np.empty(3)
    poisson.uniforms_at(SEEDS[:3], 6, positions, out)
    row = uniforms(SEEDS[:3], 6, 12)
    np.testing.assert_allclose(out, [row[0, 0], row[1, 5], row[2, 11]], atol=2**-51)


def test_alias_tables_hold_the_poisson_distribution():
    threshold = (poisson._ALIAS >> np.uint64(6)).astype(float) / 2.0**52
    alias = (poisson._ALIAS & np.uint64(63)).astype(int)
    for row in range(len(threshold)):
        share = np.zeros(64)
        np.add.at(share, alias[row], (1 - threshold[row]) / 64)
        share += threshold[row] / 64
        mean = row / poisson._TABLES_PER_COUNT
        np.testing.assert_allclose(share, stats.poisson.pmf(np.arange(64), mean), atol=1e-11)


@pytest.mark.parametrize("mean", [0.0, 1e-4, 0.05, 0.1249])
def test_the_remainder_of_a_mean_is_drawn_by_inversion(mean):
    u = (np.arange(20_000) + 0.5) / 20_000
    u = np.concatenate([u, 1 - 2.0 ** -np.arange(12, 36)])
    words = (u * 2.0**53).astype(np.uint64) << np.uint64(11)
    found = np.array([poisson._remainder(mean, word) for word in words])
    np.testing.assert_array_equal(found, stats.poisson.ppf(np.maximum(u, 1e-12), mean))


def test_normal_numbers_are_the_quantiles_of_their_words():
    words = np.random.default_rng(1).integers(0, 2**64, 40_000, dtype=np.uint64)
    cells = (words >> np.uint64(53)) & np.uint64(1023)
    tail = cells < poisson._TAIL_CELLS
    assert tail.sum() > 500
    lower = stats.norm.ppf((words & np.uint64(2**63 - 1)).astype(float) * 2.0**-64)
    expected = np.where(words >> np.uint64(63), -lower, lower)
    found = np.array(
        [
            poisson._normal_in_tail(word) if far else poisson._normal(word)
            for word, far in zip(words, tail, strict=True)
        ]
    )
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_least_words_give_finite_numbers():
    for word in (0, 1, 2**63, 2**63 + 1):
        assert 7.5 < abs(poisson._normal_in_tail(np.uint64(word))) < 10


@pytest.mark.parametrize("mean", [24.0, 40.0, 300.0, 2e4])
def test_large_means_follow_the_poisson_distribution_function(mean):
    u = (np.arange(400_000) + 0.5) / 400_000
    w = stats.norm.ppf(u)
    found = np.array([poisson._poisson_at_quantile(mean, number) for number in w])
    counts = np.arange(found.min(), found.max() + 1)
    below = np.searchsorted(found, counts, side="right") / len(u)
    np.testing.assert_allclose(below, stats.poisson.cdf(counts, mean), atol=1.2e-5)


@pytest.mark.parametrize("mean", [0.04, 0.9, 6.3, 23.99, 24.01, 130.0, 5000.0])
def test_counts_of_an_even_pattern_pass_the_chi_square_test(mean):
    found = counted(np.full((len(SEEDS), N_POINTS), mean, np.float32)).ravel()
    mean = float(np.float32(mean))
    assert np.array_equal(found, np.round(found))
    edges = np.unique(stats.poisson.ppf(np.linspace(0.001, 0.999, 60), mean))
    share = np.diff(np.concatenate([[0], stats.poisson.cdf(edges, mean), [1]]))
    observed = np.bincount(np.searchsorted(edges, found, side="left"), minlength=len(share))
    full = share > 1e-6
    assert (
        stats.chisquare(observed[full], share[full] / share[full].sum() * observed[full].sum()).pvalue > 1e-4
    )


def test_points_of_unlike_means_side_by_side_are_each_poisson():
    """Blocks that hold both small and large means take both ways."""
    mean = np.where(np.arange(N_POINTS) % 3 == 0, 60.0, np.linspace(0, 30, N_POINTS)).astype(np.float32)
    found = counted(np.tile(mean, (len(SEEDS), 1))).astype(float)
    n = len(SEEDS)
    z = (found.mean(axis=0) - mean) / np.sqrt(np.maximum(mean, 1e-9) / n)
    assert abs(z[1:].mean()) < 0.08
    assert z[1:].std() == pytest.approx(1, abs=0.06)
    dispersion = found[:, mean > 1].var(axis=0, ddof=1) / mean[mean > 1]
    assert dispersion.mean() == pytest.approx(1, abs=0.01)
    neighbours = np.corrcoef(found[:, 300], found[:, 301])[0, 1]
    assert abs(neighbours) < 0.2
    assert np.all(found[:, 0] < 150)


def test_background_is_chebyshev_polynomials_a_hump_and_a_rise():
    terms = np.array([0.3, 0.4, -0.1, 0.05, 0.02, 0.7, 62.0, 18.0, 1.5, 4.0])
    out = np.zeros(N_POINTS, np.float32)
    counting.add_background(terms, START, STEP, out)
    x = np.linspace(-1, 1, N_POINTS)
    hump = 0.7 * np.exp(-4 * np.log(2) * ((TWO_THETA - 62.0) / 18.0) ** 2)
    rise = 1.5 * np.exp(-(TWO_THETA - START) / 4.0)
    expected = 0.3 * (np.polynomial.chebyshev.chebval(x, [1, *terms[1:5]]) + hump + rise)
    np.testing.assert_allclose(out, expected, atol=0.3 * 2e-4)


def measurement(n, **changes):
    plain = counting.Measurement(
        impurity_row=np.zeros((n, 0), np.int64),
        impurity_scale=np.zeros((n, 0)),
        incoherent=np.zeros(n),
        absorption=np.zeros(n),
        background=np.zeros((n, counting.BACKGROUND_TERMS)),
        hidden=np.zeros((n, 0, 2), np.int64),
        least_left=0.0,
        total=np.zeros(n),
    )
    return plain._replace(**changes)


def measured(patterns, settings, hides=False, impurities=None, rows=None):
    out = patterns.copy()
    mask = np.zeros((len(out) if hides else 0, N_POINTS), bool)
    rows = np.arange(len(out)) if rows is None else rows
    others = np.zeros((0, N_POINTS), np.float32) if impurities is None else impurities
    counting.measure(out, others, settings, START, STEP, SEEDS[: len(out)], 14, rows, mask)
    return out, mask


@pytest.fixture(scope="module")
def peaky():
    """Two patterns of a few lines, each with maximum 1."""
    centres = np.array([[30.0, 50.0, 90.0], [35.0, 70.0, 120.0]])
    heights = np.array([[1.0, 0.4, 0.2], [0.3, 1.0, 0.5]])
    patterns = (heights[:, :, None] * np.exp(-(((TWO_THETA - centres[:, :, None]) / 0.3) ** 2))).sum(axis=1)
    return patterns.astype(np.float32)


def test_nothing_asked_for_changes_nothing(peaky):
    found, mask = measured(peaky, measurement(2))
    np.testing.assert_allclose(found, peaky / peaky.max(axis=1, keepdims=True), rtol=1e-6)
    assert mask.shape == (0, N_POINTS)


def test_phases_are_added_with_their_scales(peaky):
    settings = measurement(
        2, impurity_row=np.array([[1, 0], [-1, -1]]), impurity_scale=np.array([[0.3, 0.2], [9, 9]])
    )
    found, _ = measured(peaky, settings, impurities=peaky[::-1].copy())
    expected = peaky[0] + 0.3 * peaky[0] + 0.2 * peaky[1]
    np.testing.assert_allclose(found[0], expected / expected.max(), atol=1e-6)
    np.testing.assert_allclose(found[1], peaky[1] / peaky[1].max(), atol=1e-6)


def test_scattering_without_structure_is_flat_and_absorbed_like_the_lines(peaky):
    found, _ = measured(
        peaky, measurement(2, incoherent=np.array([0.5, 0.5]), absorption=np.array([0.0, 1.3]))
    )
    flat = peaky[0] + 0.5
    np.testing.assert_allclose(found[0], flat / flat.max(), atol=1e-6)
    series = np.empty(corrections.CYLINDER_TERMS)
    corrections.cylinder_series(1.3, series)
    weakened = [corrections.cylinder_transmission(series, np.radians(angle / 2)) for angle in TWO_THETA]
    absorbed = peaky[1] + 0.5 * np.array(weakened)
    np.testing.assert_allclose(found[1], absorbed / absorbed.max(), atol=2e-4)


def test_background_is_relative_to_the_highest_point(peaky):
    background = np.zeros((2, counting.BACKGROUND_TERMS))
    background[:, 0] = [0.25, 0.0]
    found, _ = measured(0.5 * peaky, measurement(2, background=background))
    np.testing.assert_allclose(found[0, 1800], 0.25 / 1.25, rtol=1e-3)
    np.testing.assert_allclose(found[1], peaky[1] / peaky[1].max(), atol=1e-6)


def test_expected_counts_sum_to_the_total(peaky):
    patterns = np.tile(peaky[0] + np.float32(0.1), (300, 1))
    found, _ = measured(patterns, measurement(300, total=np.full(300, 1e5)))
    assert np.all(found.max(axis=1) == pytest.approx(1))
    # divided by a row's highest count, which the smallest step between values tells
    step = np.array([np.diff(np.unique(row)).min() for row in found])
    totals = found.sum(axis=1) / step
    assert totals.mean() == pytest.approx(1e5, abs=5 * np.sqrt(1e5 / 300))
    assert totals.var() == pytest.approx(1e5, rel=0.35)


def test_hidden_points_are_zero_and_told_unless_too_little_would_be_left(peaky):
    hidden = np.array([[[0, 700], [3000, N_POINTS]], [[600, 1000], [0, 0]]])
    settings = measurement(2, hidden=hidden, least_left=0.5, total=np.full(2, 1e6))
    settings.background[:, 0] = 0.1
    found, mask = measured(peaky, settings, hides=True)
    assert mask[0].all()  # the highest line, half of all intensity and more, lies at point 540
    expected = np.ones(N_POINTS, bool)
    expected[600:1000] = False
    np.testing.assert_array_equal(mask[1], expected)
    assert not found[1, ~mask[1]].any()
    assert found[1, mask[1]].min() > 0
    assert found.max(axis=1) == pytest.approx(1)


def test_a_row_without_a_line_stays_zero(peaky):
    settings = measurement(2, total=np.full(2, 1e5), incoherent=np.ones(2))
    found, mask = measured(np.stack([np.zeros_like(peaky[0]), peaky[0]]), settings, hides=True)
    assert not found[0].any()
    assert not mask[0].any()
    assert mask[1].all()


def test_rows_do_not_depend_on_their_company(peaky):
    patterns = np.concatenate([peaky] * 5)
    settings = measurement(10, total=np.full(10, 1e5))
    settings.background[:, 0] = 0.1
    together, _ = measured(patterns, settings)
    alone = np.concatenate(
        [measured(patterns, settings, rows=np.array([row]))[0][[row]] for row in range(10)]
    )
    np.testing.assert_array_equal(together, alone)
    assert not np.array_equal(together[0], together[2])


def test_a_realigned_pattern_is_the_one_simulated_with_that_alignment():
    crystals = [CARE_CASES["special positions"], CARE_CASES["displacement"]]
    instrument = load_instrument("paper")
    rows = conditions_of(instrument, 2)
    rows.absorption[:] = 0.4
    before = simulated(crystals, instrument, rows)
    shift, displacement = np.array([0.13, -0.07]), np.array([-0.05, 0.11])
    mu_r = np.array([[0.4, 1.2], [0.4, 0.0]])
    moved = np.empty_like(before.intensity)
    counting.realigned(
        before.intensity, np.array([0, 1]), shift, displacement, mu_r, START, STEP, np.arange(2), moved
    )
    rows.zero_shift[:], rows.displacement[:], rows.absorption[:] = shift, displacement, mu_r[:, 1]
    after = simulated(crystals, instrument, rows)
    truth = after.intensity * (after.maximum / before.maximum)[:, None]
    inside = slice(20, -200)  # the last line may come in or go out over the end
    assert np.abs(moved - truth)[:, inside].max() < 0.006 * truth.max()
    np.testing.assert_allclose(moved[:, inside].sum(axis=1), truth[:, inside].sum(axis=1), rtol=2e-3)
