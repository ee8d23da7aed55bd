"""The columns of a result, one row for each pattern, from what the model says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hxrd.classify.arrow import lists, numbers, texts
from hxrd.classify.labels import Grouping, Labels
from hxrd.classify.ranking import EXTINCTION, LATTICE, SYSTEM, Ranking, Ranks
from hxrd.models.registry import ModelMetadata

Task = Literal["space-group", "bravais", "all"]

LOW_CONFIDENCE = "low-confidence"


@dataclass(frozen=True, eq=False)
class ClassifiedBatch:
    """Consecutive patterns and what the model says of them.

    Parameters
    ----------
    first : int
        Number of the first pattern.
    source_id : list of str, length n
        Identifier of each.
    flag : list of str, length n
        Empty where the pattern was classified, else why not.
    reason : list of str, length n
        The same in words, for the log; empty where `flag` is.
    space_group : ndarray, shape (n,)
        What the archive says is true; 0 where unknown.
    ranks : Ranks
        Meaningless in rows with a flag.
    logits : ndarray, shape (n, n_classes), float32, or None
        Meaningless in rows with a flag; None where not asked for.
    """

    first: int
    source_id: list[str]
    flag: list[str]
    reason: list[str]
    space_group: NDArray[np.int16]
    ranks: Ranks
    logits: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Return the number of patterns."""
        return len(self.source_id)


@dataclass(frozen=True, eq=False)
class Columns:
    """Makes the columns of a result for one model and one choice of options.

    Parameters
    ----------
    metadata : ModelMetadata
        Its classes, temperature and threshold of low confidence.
    labels : Labels
        The groupings of its classes.
    topk : int
        Entries to rank; places beyond the last entry stay empty.
    task : {"space-group", "bravais", "all"}
        Which columns.
    logits : bool
        Add a column ``logits``, a list in the order of the model's classes.
    """

    metadata: ModelMetadata
    labels: Labels
    topk: int = 5
    task: Task = "all"
    logits: bool = False

    @cached_property
    def ranking(self) -> Ranking:
        """How logits become the ranks of these columns."""
        return Ranking.of_model(self.metadata, self.labels, self.topk)

    @property
    def _places(self) -> range:
        return range(1, self.topk + 1)

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns, in order."""
        fields: list[tuple[str, pa.DataType]] = [("pattern", pa.int64()), ("source_id", pa.string())]
        if self.task != "bravais":
            fields += [(f"space_group_{place}", pa.int16()) for place in self._places]
            fields += [(f"symbol_{place}", pa.string()) for place in self._places]
            fields += [(f"probability_{place}", pa.float32()) for place in self._places]
            fields += [("extinction_group", pa.string()), ("extinction_probability", pa.float32())]
        if self.task != "space-group":
            fields += [("bravais_lattice", pa.string()), ("bravais_probability", pa.float32())]
        fields += [("crystal_system", pa.string()), ("flag", pa.string())]
        if self.logits:
            fields += [("logits", pa.list_(pa.float32()))]
        return pa.schema(fields)

    def table(self, batch: ClassifiedBatch) -> pa.Table:
        """Return the rows of a batch, shape of `schema`; rows with a flag have empty predictions."""
        blank = np.fromiter(map(bool, batch.flag), bool, len(batch))
        columns: dict[str, Any] = {
            "pattern": numbers(np.arange(batch.first, batch.first + len(batch)), pa.int64()),
            "source_id": texts(batch.source_id),
            "flag": texts(self._flags(batch.flag, batch.ranks, blank)),
        }
        columns |= self._of_entries(batch.ranks, blank)
        columns |= self._of_groups(batch.ranks, blank)
        if self.logits:
            if batch.logits is None:
                raise ValueError("these columns hold logits, which the patterns were classified without")
            columns["logits"] = lists(batch.logits, blank)
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)

    def _of_entries(self, ranks: Ranks, blank: NDArray[np.bool_]) -> dict[str, pa.Array]:
        """Return the columns of ranked entries; those beyond the last entry are empty."""
        columns: dict[str, pa.Array] = {}
        for place in self._places:
            number, symbol, likely = (f"{name}_{place}" for name in ("space_group", "symbol", "probability"))
            if place > ranks.entries.shape[1]:
                columns[number] = pa.nulls(len(blank), pa.int16())
                columns[symbol] = pa.nulls(len(blank), pa.string())
                columns[likely] = pa.nulls(len(blank), pa.float32())
                continue
            entry = ranks.entries[:, place - 1]
            columns[number] = numbers(self.labels.entry_numbers[entry], pa.int16(), blank)
            columns[symbol] = self._symbols.take(numbers(entry, pa.int16(), blank))
            columns[likely] = numbers(ranks.probabilities[:, place - 1], pa.float32(), blank)
        return columns

    def _of_groups(self, ranks: Ranks, blank: NDArray[np.bool_]) -> dict[str, pa.Array]:
        """Return the columns of the coarser groups; empty where the model knows none."""
        columns: dict[str, pa.Array] = {}
        for place, name, likely in (
            (EXTINCTION, "extinction_group", "extinction_probability"),
            (LATTICE, "bravais_lattice", "bravais_probability"),
            (SYSTEM, "crystal_system", "system_probability"),
        ):
            absent = blank | (ranks.best[:, place] < 0)
            columns[name] = self._group_names[place].take(numbers(ranks.best[:, place], pa.int16(), absent))
            columns[likely] = numbers(ranks.best_probabilities[:, place], pa.float32(), absent)
        return columns

    def _flags(self, flags: Sequence[str], ranks: Ranks, blank: NDArray[np.bool_]) -> Sequence[str]:
        by_entries = self.labels.entries is not None and self.task != "bravais"
        confidence = ranks.probabilities[:, 0] if by_entries else ranks.best_probabilities[:, LATTICE]
        doubtful = (confidence < self.metadata.low_confidence) & ~blank
        if not doubtful.any():
            return flags
        return [
            LOW_CONFIDENCE if doubt else flag for flag, doubt in zip(flags, doubtful.tolist(), strict=True)
        ]

    @cached_property
    def _symbols(self) -> pa.Array:
        return texts(self.labels.entry_symbols.tolist())

    @cached_property
    def _group_names(self) -> list[pa.Array]:
        return [_names_of(one) for one in (self.labels.extinction, self.labels.bravais, self.labels.system)]


def _names_of(grouping: Grouping | None) -> pa.Array:
    return texts([] if grouping is None else [str(name) for name in grouping.names])
