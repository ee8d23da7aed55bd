"""Softmax, sums over groups of classes and the likeliest of each, compiled with Numba.

Arrays only; one thread, without the GIL. The plain equal stands in `hxrd.classify.ranking`.
"""

import numpy as np

from .compiled import compiled


@compiled
def _probabilities(logits, temperature, out):
    """Fill `out` with softmax(logits / temperature) in double precision."""
    highest = -np.inf
    for c in range(len(logits)):
        out[c] = logits[c] / temperature
        highest = max(highest, out[c])
    total = 0.0
    for c in range(len(out)):
        out[c] = np.exp(out[c] - highest)
        total += out[c]
    for c in range(len(out)):
        out[c] /= total


@compiled
def _sum_parts(probabilities, part_of_class, sums):
    sums[:] = 0.0
    for c in range(len(probabilities)):
        sums[part_of_class[c]] += probabilities[c]


@compiled
def _take_largest(sums):
    """Return the place of the largest sum, the first of equal ones; 0 where none is a number."""
    place, largest = 0, -np.inf
    for part in range(len(sums)):
        if sums[part] > largest:
            place, largest = part, sums[part]
    return place


@compiled
def rank_rows(logits, temperature, part_of_class, n_parts, entries, entry_probabilities, best, best_sums):
    """Rank the parts of the first grouping and find the likeliest part of each of the others.

    Parameters
    ----------
    logits : ndarray, shape (n, n_classes), float32
        Rows may hold anything; those that are not finite give places within bounds and no more.
    temperature : float
        Probabilities are softmax(logits / temperature).
    part_of_class : ndarray, shape (n_groupings, n_classes), int64
        Part of each class in each grouping.
    n_parts : ndarray, shape (n_groupings,), int64
        Parts of each grouping; 0 leaves it out.
    entries, entry_probabilities : ndarray, shape (n, k)
        Filled: parts of the first grouping, likeliest first, k ≤ n_parts[0], and their probabilities.
    best, best_sums : ndarray, shape (n, n_groupings - 1)
        Filled: the likeliest part of each further grouping and its probability; −1 and 0 where left out.
    """
    n_groupings, n_classes = part_of_class.shape
    probabilities = np.empty(n_classes)
    room = np.empty(n_classes)
    for i in range(len(logits)):
        _probabilities(logits[i], temperature, probabilities)
        for grouping in range(n_groupings):
            sums = room[: n_parts[grouping]]
            if len(sums) == 0:
                if grouping > 0:
                    best[i, grouping - 1], best_sums[i, grouping - 1] = -1, 0.0
                continue
            _sum_parts(probabilities, part_of_class[grouping], sums)
            if grouping > 0:
                place = _take_largest(sums)
                best[i, grouping - 1], best_sums[i, grouping - 1] = place, sums[place]
                continue
            for rank in range(entries.shape[1]):
                place = _take_largest(sums)
                entries[i, rank], entry_probabilities[i, rank] = place, sums[place]
                sums[place] = -np.inf
