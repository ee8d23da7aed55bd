"""A seed of its own for every row of a run."""

import numpy as np
from numpy.typing import NDArray


def row_seeds(seed: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a seed for each row, which depends on nothing but the run's seed and the row.

    The output function of SplitMix64 (Steele, Lea & Flood 2014, *OOPSLA*, Fig. 17), of the seed and
    again of each row's multiple of the golden ratio: different rows never share a seed.

    Parameters
    ----------
    seed : int
        Of the run; its lowest 64 bits count.
    rows : ndarray of int, shape (n,)
        Rows of the archive.

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    start = _mixed(np.array([seed % 2**64], np.uint64))
    return _mixed(start + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
