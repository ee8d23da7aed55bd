"""Temperature scaling finds the temperature that made the labels; ECE on cases worked out by hand."""

import numpy as np
import pytest

from hxrd.classify.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from hxrd.classify.labels import Grouping, probabilities_from_logits
from hxrd.errors import InputError


def labelled_logits(temperature, n=6000, n_classes=8, seed=0):
    """Logits whose labels were drawn from softmax(logits / temperature)."""
    generator = np.random.default_rng(seed)
    logits = 4 * generator.normal(size=(n, n_classes))
    cumulative = probabilities_from_logits(logits, temperature).cumsum(axis=1)
    labels = (generator.random((n, 1)) > cumulative[:, :-1]).sum(axis=1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_true_temperature_is_found(temperature):
    logits, labels = labelled_logits(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.06)


def test_the_temperature_found_is_the_minimum():
    logits, labels = labelled_logits(1.7)
    best = fit_temperature(logits, labels)
    loss = negative_log_likelihood(logits, labels, best)
    for other in (0.9 * best, 1.1 * best):
        assert loss < negative_log_likelihood(logits, labels, other)


def test_fitting_lowers_the_calibration_error():
    logits, labels = labelled_logits(2.5)

    def error(temperature):
        probabilities = probabilities_from_logits(logits, temperature)
        return expected_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)

    assert error(fit_temperature(logits, labels)) < 0.03
    assert error(1.0) > 0.1


def test_twins_count_as_one_when_grouped():
    twins = Grouping.of(("a", "A", "b"), lambda name: str(name).lower())
    logits = np.log([[0.3, 0.3, 0.4]])
    loss = negative_log_likelihood(logits, np.array([1]), 1.0, twins)
    assert loss == pytest.approx(-np.log(0.6))
    assert negative_log_likelihood(logits, np.array([1]), 1.0) == pytest.approx(-np.log(0.3))


def test_a_temperature_far_from_one_stays_finite():
    logits = np.array([[2000.0, 0.0], [0.0, 2000.0]])
    probabilities = probabilities_from_logits(logits, 1.0)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert np.isfinite(negative_log_likelihood(logits, np.array([1, 0]), 1.0))
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(20, rel=1e-3)


def test_calibration_error_by_hand():
    # Two bins of [0, 0.5] and (0.5, 1]: gaps |0.4 - 0| and |0.8 - 0.5|, weights 1/3 and 2/3.
    confidence, correct = np.array([0.4, 0.8, 0.8]), np.array([False, True, False])
    assert expected_calibration_error(confidence, correct, n_bins=2) == pytest.approx(0.4 / 3 + 0.3 * 2 / 3)


def test_perfect_and_worst_calibration():
    ones = np.ones(5)
    assert expected_calibration_error(ones, ones.astype(bool)) == 0
    assert expected_calibration_error(ones, np.zeros(5, dtype=bool)) == 1


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, dtype=int)),
        (np.zeros((2, 3)), np.array([0])),
        (np.zeros((2, 3)), np.array([0, 3])),
        (np.full((1, 3), np.nan), np.array([0])),
    ],
)
def test_impossible_input_is_refused(logits, labels):
    with pytest.raises(InputError):
        fit_temperature(logits, labels)


def test_calibration_error_needs_patterns():
    with pytest.raises(InputError):
        expected_calibration_error(np.array([]), np.array([], dtype=bool))
