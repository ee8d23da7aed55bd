"""Times of several contestants taken in turn, so that what disturbs the machine disturbs all alike."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A sample shorter than this (s) is repeated within itself: the clock and the call of the timer cost 0.1 µs.
_SHORTEST_SAMPLE = 1e-3

Clock = Callable[[], float]
Times = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Ratio:
    """How many times quicker one contestant is: median and quartiles of the ratios of each round."""

    median: float
    low: float
    high: float
    rounds: int


def timed(call: Callable[[], object], repeats: int = 1, clock: Clock = time.perf_counter) -> float:
    """Seconds that one of `repeats` calls takes on average, garbage collection held back."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats
    finally:
        if collecting:
            gc.enable()


def times_in_turn(
    contestants: Mapping[str, Callable[[], object]],
    seconds: float,
    least_rounds: int = 5,
    clock: Clock = time.perf_counter,
) -> Times:
    """Time all contestants in turn, round by round; the order turns round with each round.

    Parameters
    ----------
    contestants : mapping of str to callable
        Each is called once or twice beforehand, so that compiling and filling caches is not timed.
    seconds : float
        No round begins after that time, but for the first `least_rounds`.
    least_rounds : int
    clock : callable
        What the contestants are timed with; `time.process_time` on a machine that others use too.

    Returns
    -------
    dict of str to ndarray, shape (n_rounds,)
        Seconds for one call of each contestant in each round.
    """
    repeats = {}
    for name, call in contestants.items():
        call()
        repeats[name] = max(1, round(_SHORTEST_SAMPLE / max(timed(call), 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    end = time.perf_counter() + seconds
    n_rounds = 0
    while n_rounds < least_rounds or time.perf_counter() < end:
        for name in order:
            found[name].append(timed(contestants[name], repeats[name], clock))
        order.reverse()
        n_rounds += 1
        gc.collect()
    return {name: np.array(values) for name, values in found.items()}


def ratio_of(slower: NDArray[np.float64], quicker: NDArray[np.float64]) -> Ratio:
    """How many times `quicker` beats `slower`, from times of the same rounds."""
    low, median, high = np.percentile(slower / quicker, [25, 50, 75])
    return Ratio(float(median), float(low), float(high), len(slower))
