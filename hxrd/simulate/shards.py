"""The shards of a run: crystals looked up ahead, simulated, and written behind.

While the patterns of one batch are simulated on all processors, one thread looks up the crystals of the
next batch and another writes the shard before this one. No more than that is ever ahead or behind, so a
run of any length needs the memory of two shards.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hxrd.archive import ArchiveWriter, schema
from hxrd.crystal.crystal import Crystal
from hxrd.errors import Rejected
from hxrd.simulate.augmentation import Augmentation
from hxrd.simulate.plan import Plan
from hxrd.simulate.seeds import row_seeds
from hxrd.simulate.simulate import simulate_patterns
from hxrd.sources import SourceChain

BATCH_SIZE = 512  # crystals simulated together: enough for all cores, few enough for a lively progress bar

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


def simulate_shards(
    writer: ArchiveWriter,
    plan: Plan,
    source: SourceChain,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Simulate and write every pending shard of an archive, in order.

    Parameters
    ----------
    writer : ArchiveWriter
        Of an archive made for the plan.
    plan : Plan
        What to simulate.
    source : SourceChain
        Where crystals come from.
    threads : int, optional
        Processors that simulate; None for all.
    advance : callable
        Told the number of patterns that have been done since the last call.

    Raises
    ------
    InputError
        The identifiers cannot be read any more.
    OSError
        The disk is full or not writable. The shards written before stay good.
    """
    stopping = threading.Event()
    with ThreadPoolExecutor(1, "hxrd-lookup") as lookups, ThreadPoolExecutor(1, "hxrd-writer") as writes:
        behind = _WriteBehind(writes)
        try:
            for batch in _ahead(lookups, _looked_up(writer, plan, source, stopping)):
                batch.shard.simulate(batch, threads)
                behind.check()
                advance(len(batch.places))
                if batch.is_last:
                    behind.write(batch.shard, writer)
            behind.wait()
        finally:
            stopping.set()


class _Batch(NamedTuple):
    """Rows that are simulated together."""

    shard: "_Shard"
    places: NDArray[np.intp]  # of the rows, inside the shard
    entries: list[Crystal | Rejected]  # one for each place
    is_last: bool


class _Shard:
    """One shard in the making."""

    def __init__(self, index: int, rows: range, plan: Plan) -> None:
        self.index = index
        self.rows = rows
        self.identifiers = plan.read_identifiers(rows)
        self._plan = plan
        n_rows, n_points = len(rows), len(plan.instrument.grid())
        self._intensity = np.zeros((n_rows, n_points), np.float32)
        self._space_group = np.zeros(n_rows, np.int16)
        self._reasons: list[str | None] = [None] * n_rows
        self._optional: dict[str, NDArray[Any]] = {}
        if phases := plan.n_impurities:
            self._optional["impurity_id"] = np.full((n_rows, phases), "", dtype=object)
            self._optional["impurity_fraction"] = np.zeros((n_rows, phases), np.float32)
        if plan.has_masks:
            self._optional["measured"] = np.zeros((n_rows, n_points), bool)

    def simulate(self, batch: _Batch, threads: int | None) -> None:
        """Fill in the rows of a batch."""
        crystals, places = [], []
        for place, entry in zip(batch.places.tolist(), batch.entries, strict=True):
            if isinstance(entry, Rejected):
                self._reasons[place] = str(entry)
            else:
                crystals.append(entry)
                places.append(place)
        if not crystals:
            return
        where = np.array(places)
        if (augmentation := self._plan.augmentation) is None:
            intensity, reasons = simulate_patterns(crystals, self._plan.instrument, threads=threads)
        else:
            intensity, reasons = self._augmented(crystals, where, augmentation, threads)
        self._intensity[where] = intensity
        for place, crystal, reason in zip(places, crystals, reasons, strict=True):
            self._reasons[place] = reason
            self._space_group[place] = crystal.space_group

    def _augmented(
        self,
        crystals: list[Crystal],
        where: NDArray[np.intp],
        augmentation: Augmentation,
        threads: int | None,
    ) -> tuple[NDArray[np.float32], list[str | None]]:
        from hxrd.simulate.augment import augmented  # imports half of scipy

        seeds = row_seeds(self._plan.seed, self.rows.start + where)
        made = augmented(crystals, self._plan.instrument, augmentation, seeds, threads=threads)
        if "impurity_id" in self._optional:
            names = np.array([*(self.identifiers[place] for place in where), ""], dtype=object)
            self._optional["impurity_id"][where] = names[made.impurity_index]  # −1, none, is the last
            self._optional["impurity_fraction"][where] = made.impurity_fraction
        if "measured" in self._optional:
            self._optional["measured"][where] = True if made.mask is None else made.mask
        return made.intensity, made.reasons

    def write(self, writer: ArchiveWriter) -> None:
        """Write the finished shard into its archive."""
        status = [schema.GOOD if reason is None else schema.REJECTED for reason in self._reasons]
        writer.write_shard(
            self.index,
            self._intensity,
            self._space_group,
            self.identifiers,
            status,
            self._reasons,
            **self._optional,
        )
        logger.debug("rows %d to %d are written", self.rows.start, self.rows.stop - 1)


def _looked_up(
    writer: ArchiveWriter, plan: Plan, source: SourceChain, stopping: threading.Event
) -> Iterator[_Batch]:
    """Yield the batches of all pending shards with their crystals; ends early once told to stop.

    Every k-th row of a shard makes a batch, not rows that follow one another: these are often patterns
    of one structure, and the batch is where a pattern finds its foreign phases.
    """
    for index in writer.pending_shards():
        shard = _Shard(index, writer.rows(index), plan)
        n_batches = -(-len(shard.rows) // BATCH_SIZE)
        for first in range(n_batches):
            places = np.arange(first, len(shard.rows), n_batches)
            entries: list[Crystal | Rejected] = []
            for place in places.tolist():
                if stopping.is_set():
                    return
                try:
                    entries.append(source.get(shard.identifiers[place]))
                except Rejected as rejection:
                    entries.append(rejection)
            yield _Batch(shard, places, entries, is_last=first == n_batches - 1)


def _ahead(pool: ThreadPoolExecutor, items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, each made by the pool's one thread while the item before it is in use."""
    iterator = iter(items)
    coming = pool.submit(next, iterator, None)
    while (item := coming.result()) is not None:
        coming = pool.submit(next, iterator, None)
        yield item


class _WriteBehind:
    """Writes at most one shard at a time, in the thread of its pool; the next call raises its error."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._running: Future[None] | None = None

    def check(self) -> None:
        """Raise the error of a write that has failed."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the write under way and raise its error."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def write(self, shard: _Shard, writer: ArchiveWriter) -> None:
        """Begin to write a shard once the one before it is written."""
        self.wait()
        self._running = self._pool.submit(shard.write, writer)
