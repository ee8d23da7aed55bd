"""A whole classification: to a file, resumable, or to a table on the terminal."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hxrd import __version__
from hxrd.classify.engine import Engine
from hxrd.classify.inputs import Concatenation
from hxrd.classify.preview import SHOWN, Summary, first_rows
from hxrd.classify.results import ClassifiedBatch, Columns
from hxrd.errors import InputError

if TYPE_CHECKING:
    from hxrd.classify.output import ResultStore

FLUSH_SECONDS = 15.0  # the most work that a kill costs
FLUSH_ROWS = 16_384  # rows held in memory, some 250 bytes each
MOST_LISTED = 20  # patterns named one by one on stderr

logger = logging.getLogger("hxrd")


@dataclass(frozen=True)
class Classification:
    """All that decides the rows of a result.

    Parameters
    ----------
    patterns : Concatenation
        What is classified.
    engine : Engine
        The model on its devices; it ranks what the columns hold.
    columns : Columns
        Of the result.
    start, stop : int
        The first pattern and the one after the last.
    command : str
        As typed, for the file's metadata.
    """

    patterns: Concatenation
    engine: Engine
    columns: Columns
    start: int
    stop: int
    command: str = ""

    def batches(self, start: int) -> Iterator[ClassifiedBatch]:
        """Classify from `start` on, listing the patterns that cannot be."""
        n_listed = 0
        for batch in self.engine.classify(self.patterns, start=start, stop=self.stop):
            n_listed += _list_rejected(batch, n_listed)
            yield batch
        if n_listed > MOST_LISTED:
            logger.warning("… and %d more; the column `flag` has all", n_listed - MOST_LISTED)

    def description(self) -> dict[str, Any]:
        """Return what must be the same for an interrupted run to be resumed; plain values."""
        first = self.engine.backends[0]
        return {
            "hxrd": __version__,
            "inputs": [one.fingerprint() for one in self.patterns.inputs],
            "model": self.engine.loaded.sha256,
            "range": [self.start, self.stop],
            "columns": [self.columns.topk, self.columns.task, self.columns.logits],
            "backend": [first.name, first.device.split(":")[0], first.precision, first.batch_size],
        }

    def file_metadata(self) -> dict[str, str]:
        """Return the metadata of a result file."""
        usable = self.patterns.usable
        wavelengths = sorted({one.wavelength for one in usable})
        loaded = self.engine.loaded
        metadata = loaded.metadata
        return {
            "hxrd_version": __version__,
            "model_name": metadata.name,
            "model_sha256": loaded.sha256,
            "command": self.command,
            "probe": usable[0].probe if usable else metadata.probe,
            "wavelength": ", ".join(f"{wavelength:.6g}" for wavelength in wavelengths),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "task": metadata.task,
            "classes": " ".join(str(label) for label in metadata.classes),
            "temperature": f"{metadata.temperature:.6g}",
        }


def _list_rejected(batch: ClassifiedBatch, already: int) -> int:
    rejected = [row for row, flag in enumerate(batch.flag) if flag]
    for row in rejected[: max(MOST_LISTED - already, 0)]:
        logger.warning(
            "pattern %d (%s): %s: %s",
            batch.first + row,
            batch.source_id[row],
            batch.flag[row],
            batch.reason[row],
        )
    return len(rejected)


def classify_to_file(
    run: Classification,
    path: Path,
    *,
    resume: bool = False,
    force: bool = False,
    advance: Callable[[int], None] = lambda count: None,
    flush_seconds: float = FLUSH_SECONDS,
) -> Summary:
    """Classify into a Parquet, CSV or JSON-lines file.

    Parameters
    ----------
    run : Classification
        What to do.
    path : Path
        The output; its suffix is the format.
    resume : bool
        Go on where an interrupted run stopped.
    force : bool
        Overwrite an existing output.
    advance : callable
        Told how many patterns were done since its last call.
    flush_seconds : float
        How often rows are made safe against a kill.

    Returns
    -------
    Summary
        Over all rows, those of the interrupted run included.

    Raises
    ------
    HxrdError
        The output exists or is being written, or nothing could be classified (no output is left then).
    """
    from hxrd.classify.output import ResultStore

    store = ResultStore(
        path, run.description(), run.columns.schema, start=run.start, resume=resume, force=force
    )
    try:
        if store.next_pattern > run.start:
            logger.info("resuming at pattern %d", store.next_pattern)
            advance(store.next_pattern - run.start)
        _fill(store, run, advance, flush_seconds)
        summary = _summary_of(store, run)
        if not summary.n_classified:
            store.discard()
        _check_any_classified(summary)
        store.finish(run.file_metadata())
    finally:
        store.close()
    return summary


def _fill(
    store: "ResultStore", run: Classification, advance: Callable[[int], None], flush_seconds: float
) -> None:
    held: list[pa.Table] = []
    flushed = time.monotonic()
    try:
        for batch in run.batches(store.next_pattern):
            held.append(run.columns.table(batch))
            advance(len(batch))
            due = time.monotonic() - flushed >= flush_seconds
            if due or sum(table.num_rows for table in held) >= FLUSH_ROWS:
                store.append(pa.concat_tables(held))
                held, flushed = [], time.monotonic()
    finally:  # an interruption keeps what is done
        if held:
            store.append(pa.concat_tables(held))


def _summary_of(store: "ResultStore", run: Classification) -> Summary:
    summary, first = Summary(run.columns), run.start
    for table in store.tables():
        stop = first + table.num_rows
        summary.update(table, run.patterns.space_group[first:stop])
        first = stop
    return summary


def _check_any_classified(summary: Summary) -> None:
    if not summary.n_classified:
        flags = ", ".join(f"{count} {flag}" for flag, count in sorted(summary.flags.items()))
        raise InputError(f"none of the {summary.n_patterns} patterns can be classified ({flags})")


def classify_to_table(
    run: Classification, width: int, advance: Callable[[int], None] = lambda count: None
) -> tuple[str, Summary]:
    """Classify all patterns and return a table of the first ones, for people.

    Parameters
    ----------
    run : Classification
        What to do.
    width : int
        Of the terminal.
    advance : callable
        Told how many patterns were done since its last call.

    Returns
    -------
    table : str
        Several lines.
    summary : Summary
        Over all patterns.

    Raises
    ------
    InputError
        Nothing could be classified.
    """
    summary, shown = Summary(run.columns), []
    for batch in run.batches(run.start):
        table = run.columns.table(batch)
        summary.update(table, batch.space_group)
        if batch.first < run.start + SHOWN:
            shown.append(table.slice(0, run.start + SHOWN - batch.first))
        advance(len(batch))
    _check_any_classified(summary)
    first = pa.concat_tables(shown).combine_chunks()
    truth = np.asarray(run.patterns.space_group[run.start : run.start + first.num_rows])
    return first_rows(first, truth, run.columns, width), summary
