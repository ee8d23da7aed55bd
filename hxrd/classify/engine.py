"""From patterns to ranks, in a bounded stream: threads read and prepare ahead while the network runs.

Readers bring the patterns of a span (some hundred consecutive ones) to the network's input; workers, two for
each device so that one prepares while the other computes, put spans through the network and rank the
classes; the caller takes the spans in their order, and writes. Each stage waits when the next is
a few spans behind, so memory does not grow with the number of patterns.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from queue import Empty, SimpleQueue
from threading import local

import numpy as np
from numpy.typing import NDArray

from hxrd.classify.backends import Backend, PinnedInput, RanksOnDevice, Shrinking
from hxrd.classify.inputs import REJECTED, Concatenation, PatternSlice, Room
from hxrd.classify.prepare import prepare
from hxrd.classify.ranking import Ranking, Ranks
from hxrd.classify.results import ClassifiedBatch, Columns
from hxrd.cores import available_cores
from hxrd.errors import InputError
from hxrd.kernels.compiled import worth_compiling
from hxrd.models.preprocess import Grid
from hxrd.models.registry import LoadedModel

LEAST_SPAN = 512  # patterns read at a time
HOT = 128  # patterns that are decoded and prepared together: they stay in the processor's own cache
WORKERS_A_DEVICE = 2
MOST_READERS = 16

REASONS = {
    "not-finite": "an intensity is not a finite number",
    "flat": "no peak stands out",
    "out-of-range": "too little of the model's range is covered",
}

logger = logging.getLogger("hxrd")


@dataclass(frozen=True, eq=False)
class Engine:
    """A model on its devices, ready to classify.

    Parameters
    ----------
    loaded : LoadedModel
        The model; its metadata say how patterns are prepared.
    backends : sequence of Backend
        One for each device.
    ranking : Ranking
        What to rank.
    with_logits : bool
        Keep the logits as well.
    compiled : bool
        Prepare and rank by compiled kernels, which is worth it for more than a few patterns.
    readers : int, optional
        Threads that read and prepare; one for each core, at most 16, where left out.
    """

    loaded: LoadedModel
    backends: Sequence[Backend]
    ranking: Ranking
    with_logits: bool = False
    compiled: bool = False
    readers: int | None = None

    @classmethod
    def of(
        cls, loaded: LoadedModel, backends: Sequence[Backend], columns: Columns, n_patterns: int
    ) -> "Engine":
        """Return an engine for the columns of a result of `n_patterns` patterns."""
        return cls(loaded, backends, columns.ranking, columns.logits, worth_compiling(n_patterns))

    @property
    def span(self) -> int:
        """Patterns that are read and classified together: whole batches."""
        batch = max(backend.batch_size for backend in self.backends)
        return -(-LEAST_SPAN // batch) * batch

    def classify(
        self, patterns: Concatenation, *, start: int = 0, stop: int | None = None
    ) -> Iterator[ClassifiedBatch]:
        """Classify patterns in their order.

        A pattern stands at the same place of an equal span however a run is cut into ranges, so a resumed
        run gives the same numbers as an uninterrupted one.

        Parameters
        ----------
        patterns : Concatenation
            Where they come from.
        start, stop : int
            The first pattern and the one after the last; all of them where left out.

        Yields
        ------
        ClassifiedBatch
            A span of patterns each, in order.

        Raises
        ------
        InputError
            An archive turns out to be corrupt.
        """
        stop = patterns.n_patterns if stop is None else stop
        size = self.span
        first_stop = min(stop, (start // size + 1) * size)
        bounds = [start, *range(first_stop, stop, size), stop] if start < stop else []
        yield from _Work(self, patterns).run(list(pairwise(bounds)))


class _Work:
    """One run of an engine: its threads and what they do."""

    def __init__(self, engine: Engine, patterns: Concatenation):
        metadata = engine.loaded.metadata
        self._engine = engine
        self._size = engine.span  # which changes where a back end has to shrink
        self._patterns = patterns
        self._target = Grid.of_range(*metadata.grid, metadata.wavelength)
        self._own = local()  # each worker's backend, each reader's room
        self._used: SimpleQueue[NDArray[np.float32]] = SimpleQueue()  # inputs whose memory is free again
        self._free: SimpleQueue[Backend] = SimpleQueue()
        for backend in list(engine.backends) * WORKERS_A_DEVICE:
            self._free.put(backend)

    def run(self, spans: list[tuple[int, int]]) -> Iterator[ClassifiedBatch]:
        """Yield the spans in order, a few of them begun before they are asked for."""
        n_workers = min(WORKERS_A_DEVICE * len(self._engine.backends), len(spans))
        n_readers = min(self._engine.readers or min(available_cores(), MOST_READERS), len(spans))
        if not spans:
            return
        waiting: deque[Future[ClassifiedBatch]] = deque()
        with (
            ThreadPoolExecutor(n_readers, "hxrd-read") as readers,
            ThreadPoolExecutor(n_workers, "hxrd-network", self._take_backend) as workers,
        ):
            try:
                for span in spans:
                    waiting.append(workers.submit(self._classify, readers.submit(self._load, *span)))
                    if len(waiting) >= n_workers + n_readers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
                workers.shutdown(wait=False, cancel_futures=True)

    def _take_backend(self) -> None:
        self._own.backend = self._free.get()

    def _load(self, first: int, end: int) -> "_Loaded":
        loaded = _Loaded(first, end, self._free_memory())
        if not hasattr(self._own, "room"):
            self._own.room = Room()
        bounds = [*range(first, end, HOT), end]
        parts = (part for span in pairwise(bounds) for part in self._patterns.read(*span, self._own.room))
        for part in parts:
            row = len(loaded.flag)
            flag, reason = self._prepare(part, loaded.x[row : row + len(part.source_id)])
            loaded.source_id += part.source_id
            loaded.flag += flag
            loaded.reason += reason
            loaded.space_group.append(part.space_group)
        return loaded

    def _free_memory(self) -> NDArray[np.float32]:
        """Return memory for the inputs of a span, if possible what an earlier one has left."""
        try:
            return self._used.get_nowait()
        except Empty:
            shape = (self._size, self._engine.loaded.metadata.n_points)
            backend = self._engine.backends[0]
            if isinstance(backend, PinnedInput):
                return backend.empty_input(shape)
            return np.empty(shape, np.float32)

    def _prepare(self, part: PatternSlice, out: NDArray[np.float32]) -> tuple[list[str], list[str]]:
        """Fill `out` with network inputs; return flags and reasons."""
        try:
            flags = prepare(
                part, self._engine.loaded.metadata, self._target, out, compiled=self._engine.compiled
            )
        except InputError as error:  # a grid that no pattern can have
            out[:] = 0
            return [REJECTED] * len(out), [str(error)] * len(out)
        if not any(flags):
            return flags, part.reason
        return flags, [
            reason or REASONS.get(flag, "") for reason, flag in zip(part.reason, flags, strict=True)
        ]

    def _classify(self, loading: "Future[_Loaded]") -> ClassifiedBatch:
        loaded, backend = loading.result(), self._own.backend
        lead = loaded.first % backend.batch_size  # where a range begins within a batch
        x = np.concatenate([np.zeros((lead, loaded.x.shape[1]), np.float32), loaded.x]) if lead else loaded.x
        ranks, logits = self._ranked(backend, x)
        self._used.put(loaded.memory)
        if lead:
            ranks, logits = ranks.after(lead), None if logits is None else logits[lead:]
        return ClassifiedBatch(
            loaded.first,
            loaded.source_id,
            loaded.flag,
            loaded.reason,
            np.concatenate(loaded.space_group),
            ranks,
            logits,
        )

    def _ranked(self, backend: Backend, x: NDArray[np.float32]) -> tuple[Ranks, NDArray[np.float32] | None]:
        """Put a span through the network, in smaller batches where memory does not suffice."""
        engine = self._engine
        while True:
            size = backend.batch_size
            try:
                if isinstance(backend, RanksOnDevice):
                    return backend.ranks(x, engine.ranking, engine.with_logits)
                logits = backend.logits(x)
                ranks = engine.ranking.ranks(logits, compiled=engine.compiled)
                return ranks, logits if engine.with_logits else None
            except MemoryError:
                if not (isinstance(backend, Shrinking) and backend.shrink(size)):
                    raise
                logger.warning(
                    "not enough memory on %s for %d patterns at a time: going on with %d",
                    backend.device,
                    size,
                    backend.batch_size,
                )


@dataclass(eq=False)
class _Loaded:
    """A span as the network takes it; `space_group` in the pieces of the inputs."""

    first: int
    end: int
    memory: NDArray[np.float32]
    source_id: list[str] = field(default_factory=list)
    flag: list[str] = field(default_factory=list)
    reason: list[str] = field(default_factory=list)
    space_group: list[NDArray[np.int16]] = field(default_factory=list)

    @property
    def x(self) -> NDArray[np.float32]:
        """Network inputs, shape (end - first, n_points)."""
        return self.memory[: self.end - self.first]
