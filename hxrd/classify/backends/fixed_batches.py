"""Batches of one fixed size, shared out among threads: what the back ends of other engines have in common."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class FixedBatches:
    """Logits of any number of patterns from a network that takes `batch_size` of them.

    An engine plans for one size, and may add up in another order for another: with one size a row's logits do
    not depend on how many stand beside it. So the last batch is filled up with zeros.

    Parameters
    ----------
    run : callable
        Logits (batch_size, n_classes) of network inputs (batch_size, 1, n_points); it lets other threads run.
    batch_size : int
        Patterns of a batch.
    threads : int
        Batches in work at a time.
    """

    def __init__(self, run: Run, batch_size: int, threads: int):
        self._run = run
        self._size = batch_size
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="hxrd-batch")

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits (n, n_classes) of network inputs (n, n_points), n above 0."""
        starts = range(0, len(x), self._size)
        logits = list(self._threads.map(lambda start: self._run(self._batch(x, start)), starts))
        return np.concatenate(logits)[: len(x)]

    def _batch(self, x: NDArray[np.float32], start: int) -> NDArray[np.float32]:
        part = np.ascontiguousarray(x[start : start + self._size], np.float32)
        if len(part) < self._size:
            part = np.concatenate([part, np.zeros((self._size - len(part), x.shape[1]), np.float32)])
        return part[:, None]
