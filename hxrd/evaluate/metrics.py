"""Shares of right answers, and how sure one can be of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hxrd.errors import InputError

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Share:
    """A share of right answers with its 95 % bootstrap interval, all in percent, among n patterns."""

    percent: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.percent:.1f} ({self.low:.1f}-{self.high:.1f})"


def hits_within(scores: NDArray[np.floating], truth: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Tell for each pattern whether the true class is among the k best.

    Parameters
    ----------
    scores : ndarray, shape (n, n_classes)
        Logits or probabilities. Of equal ones the true class counts as the last.
    truth : ndarray, shape (n,)
        Index of the true class.
    k : int

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    own = scores[np.arange(len(truth)), truth]
    better_or_equal = (scores >= own[:, None]).sum(axis=1)
    return better_or_equal <= k


def share(hits: NDArray[np.bool_], seed: int = 0) -> Share:
    """Return the share of hits with its 95 % percentile-bootstrap interval (Efron 1979).

    Raises
    ------
    InputError
        There is nothing to score.
    """
    n = len(hits)
    if n == 0:
        raise InputError("no pattern can be scored: none has a space group that the model knows")
    resampled = np.random.default_rng(seed).binomial(n, hits.mean(), _RESAMPLES) / n
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Share(100 * float(hits.mean()), 100 * float(low), 100 * float(high), n)
