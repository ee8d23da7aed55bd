"""The columns of a result, one row for each pattern, from a model's logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hxrd.classify.labels import Grouping, Labels, probabilities_from_logits
from hxrd.models.registry import ModelMetadata

Task = Literal["space-group", "bravais", "all"]

LOW_CONFIDENCE = "low-confidence"


@dataclass(frozen=True, eq=False)
class ClassifiedBatch:
    """Consecutive patterns and what the network says of them.

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
    logits : ndarray, shape (n, n_classes), float32
        Meaningless in rows with a flag.
    """

    first: int
    source_id: list[str]
    flag: list[str]
    reason: list[str]
    space_group: NDArray[np.int16]
    logits: NDArray[np.float32]

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

    @property
    def _ranks(self) -> range:
        return range(1, self.topk + 1)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns, in order."""
        fields: list[tuple[str, pa.DataType]] = [("pattern", pa.int64()), ("source_id", pa.string())]
        if self.task != "bravais":
            fields += [(f"space_group_{rank}", pa.int16()) for rank in self._ranks]
            fields += [(f"symbol_{rank}", pa.string()) for rank in self._ranks]
            fields += [(f"probability_{rank}", pa.float32()) for rank in self._ranks]
            fields += [("extinction_group", pa.string()), ("extinction_probability", pa.float32())]
        if self.task != "space-group":
            fields += [("bravais_lattice", pa.string()), ("bravais_probability", pa.float32())]
        fields += [("crystal_system", pa.string()), ("flag", pa.string())]
        if self.logits:
            fields += [("logits", pa.list_(pa.float32()))]
        return pa.schema(fields)

    def table(self, batch: ClassifiedBatch) -> pa.Table:
        """Return the rows of a batch, shape of `schema`; rows with a flag have empty predictions."""
        blank = np.array([bool(flag) for flag in batch.flag], dtype=bool)
        probabilities = probabilities_from_logits(
            np.where(blank[:, None], 0, batch.logits), self.metadata.temperature
        )
        columns: dict[str, Any] = {
            "pattern": np.arange(batch.first, batch.first + len(batch)),
            "source_id": batch.source_id,
        }
        columns |= self._space_groups(probabilities, blank)
        columns |= _best(
            self.labels.extinction, probabilities, blank, "extinction_group", "extinction_probability"
        )
        columns |= _best(self.labels.bravais, probabilities, blank, "bravais_lattice", "bravais_probability")
        columns |= _best(self.labels.system, probabilities, blank, "crystal_system", "")
        columns["flag"] = self._flags(batch.flag, probabilities, blank)
        if self.logits:
            columns["logits"] = [
                None if empty else row for row, empty in zip(batch.logits, blank, strict=True)
            ]
        return pa.table({field.name: columns[field.name] for field in self.schema}, schema=self.schema)

    def _space_groups(
        self, probabilities: NDArray[np.float64], blank: NDArray[np.bool_]
    ) -> dict[str, pa.Array]:
        """Rank the entries, likeliest first; equal ones by the model's order."""
        entries = self.labels.entries
        n_entries = len(entries.names) if entries else 0
        summed = entries.summed(probabilities) if entries else probabilities
        order = np.argsort(-summed, axis=1, kind="stable")
        columns: dict[str, pa.Array] = {}
        for rank in self._ranks:
            names = (f"space_group_{rank}", f"symbol_{rank}", f"probability_{rank}")
            if rank > n_entries:
                types = (pa.int16(), pa.string(), pa.float32())
                columns |= {name: pa.nulls(len(blank), kind) for name, kind in zip(names, types, strict=True)}
                continue
            entry = order[:, rank - 1]
            probability = np.take_along_axis(summed, entry[:, None], axis=1)[:, 0]
            values = (
                pa.array(self.labels.entry_numbers[entry], mask=blank),
                pa.array(self.labels.entry_symbols[entry], pa.string(), mask=blank),
                pa.array(probability.astype(np.float32), mask=blank),
            )
            columns |= dict(zip(names, values, strict=True))
        return columns

    def _flags(
        self, flags: Sequence[str], probabilities: NDArray[np.float64], blank: NDArray[np.bool_]
    ) -> list[str]:
        ranked = self.labels.entries if self.task != "bravais" else None
        confidence = (ranked or self.labels.bravais).summed(probabilities).max(axis=1)
        doubtful = (confidence < self.metadata.low_confidence) & ~blank
        return [LOW_CONFIDENCE if doubt else flag for flag, doubt in zip(flags, doubtful, strict=True)]


def _best(
    grouping: Grouping | None,
    probabilities: NDArray[np.float64],
    blank: NDArray[np.bool_],
    name: str,
    probability_name: str,
) -> dict[str, pa.Array]:
    """Return the likeliest part of a grouping and, under `probability_name`, its summed probability."""
    if grouping is None:
        return {name: pa.nulls(len(blank), pa.string()), probability_name: pa.nulls(len(blank), pa.float32())}
    summed = grouping.summed(probabilities)
    names = np.array(grouping.names, dtype=object)[summed.argmax(axis=1)]
    return {
        name: pa.array(names, pa.string(), mask=blank),
        probability_name: pa.array(summed.max(axis=1).astype(np.float32), mask=blank),
    }
