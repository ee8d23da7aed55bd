"""Temperature scaling and the expected calibration error.

Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks", ICML 2017.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hxrd.classify.labels import Grouping, probabilities_from_logits
from hxrd.errors import InputError

COLDEST, HOTTEST = 0.05, 20.0
SMALLEST_PROBABILITY = 1e-300  # keeps the logarithm finite


def fit_temperature(
    logits: NDArray[np.floating], labels: NDArray[np.integer], grouping: Grouping | None = None
) -> float:
    """Return the temperature that minimises the mean negative log-likelihood of validation patterns.

    Parameters
    ----------
    logits : ndarray, shape (n, n_classes)
        Raw outputs for patterns that the model has not learnt from.
    labels : ndarray, shape (n,)
        Index of the true class.
    grouping : Grouping, optional
        Calibrate the summed probabilities of these parts (such as `Labels.entries`, where twins are
        merged) in place of single classes; `labels` still are classes.

    Returns
    -------
    float
        Between 0.05 and 20; above 1 where the model is too sure of itself.

    Raises
    ------
    InputError
        No patterns, shapes that do not fit, a label outside the classes, or logits that are not finite.
    """
    from scipy.optimize import minimize_scalar

    logits, labels = _checked(logits, labels)

    def mean_loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits, labels, float(np.exp(log_temperature)), grouping)

    bounds = (np.log(COLDEST), np.log(HOTTEST))
    found = minimize_scalar(mean_loss, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x))


def negative_log_likelihood(
    logits: NDArray[np.floating],
    labels: NDArray[np.integer],
    temperature: float,
    grouping: Grouping | None = None,
) -> float:
    """Return the mean of −log p(true class), or of the true class's part (see `fit_temperature`)."""
    probabilities = probabilities_from_logits(logits, temperature)
    if grouping is not None:
        probabilities, labels = grouping.summed(probabilities), grouping.part_of_class[labels]
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.mean(np.log(np.maximum(true, SMALLEST_PROBABILITY))))


def expected_calibration_error(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], n_bins: int = 15
) -> float:
    """Return the mean gap between confidence and accuracy, over even bins weighted by their patterns.

    Parameters
    ----------
    confidence : ndarray, shape (n,)
        Probability of the answer given, in [0, 1].
    correct : ndarray, shape (n,)
        Whether it was right.
    n_bins : int
        Number of bins over [0, 1].

    Returns
    -------
    float
        0 where confidence can be taken at its word; at most 1.

    Raises
    ------
    InputError
        No patterns, or shapes that differ.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise InputError("calibration needs one confidence and one outcome for each of at least one pattern")
    bins = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    logits, labels = np.array(logits, dtype=np.float64), np.array(labels, dtype=np.int64)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise InputError(f"logits of shape {logits.shape} do not fit labels of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(f"labels from {labels.min()} to {labels.max()} for {logits.shape[1]} classes")
    if not np.all(np.isfinite(logits)):
        raise InputError("logits that are not finite cannot be calibrated")
    return logits, labels
