"""From logits to ranks: which entries are likeliest, and the sums over coarser groups of classes.

The same in three forms that give equal ranks: plain NumPy here, which any job can run at once; a compiled
kernel for large jobs on the CPU (`hxrd.kernels.ranking`); torch on the device that has the logits
(`hxrd.classify.backends.torch_device`). Equal probabilities rank in the model's order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hxrd.classify.labels import Grouping, Labels, probabilities_from_logits
from hxrd.models.registry import ModelMetadata

EXTINCTION, LATTICE, SYSTEM = range(3)  # columns of `Ranks.best`


@dataclass(frozen=True, eq=False)
class Ranks:
    """What is likeliest for each of n patterns.

    Parameters
    ----------
    entries : ndarray, shape (n, k), int16
        Index into the entries of `Labels`, likeliest first; k is 0 where the model has no entries.
    probabilities : ndarray, shape (n, k), float64
        Of these.
    best : ndarray, shape (n, 3), int16
        Likeliest extinction group, Bravais lattice and crystal system; −1 where the model knows none.
    best_probabilities : ndarray, shape (n, 3), float64
        Of these, summed over their classes.
    """

    entries: NDArray[np.int16]
    probabilities: NDArray[np.float64]
    best: NDArray[np.int16]
    best_probabilities: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of patterns."""
        return len(self.best)

    @classmethod
    def empty(cls, n: int, k: int) -> "Ranks":
        """Return ranks of n patterns to be filled."""
        return cls(np.empty((n, k), np.int16), np.empty((n, k)), np.empty((n, 3), np.int16), np.empty((n, 3)))

    def after(self, row: int) -> "Ranks":
        """Return the ranks of the patterns from `row` on."""
        return Ranks(
            self.entries[row:], self.probabilities[row:], self.best[row:], self.best_probabilities[row:]
        )

    @classmethod
    def joined(cls, parts: "Sequence[Ranks]") -> "Ranks":
        """Return the ranks of consecutive patterns as one."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.entries for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.best for part in parts]),
            np.concatenate([part.best_probabilities for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class Ranking:
    """How a model's logits become `Ranks`.

    Parameters
    ----------
    temperature : float
        Probabilities are softmax(logits / temperature).
    groupings : tuple of Grouping or None, length 4
        Entries, extinction groups, Bravais lattices, crystal systems.
    n_classes : int
        Of the model.
    k : int
        Entries to rank; at most as many as there are.
    """

    temperature: float
    groupings: tuple[Grouping | None, ...]
    n_classes: int
    k: int

    @classmethod
    def of_model(cls, metadata: ModelMetadata, labels: Labels, topk: int) -> "Ranking":
        """Rank at most `topk` entries of a model with these labels."""
        n_entries = len(labels.entries.names) if labels.entries else 0
        groupings = (labels.entries, labels.extinction, labels.bravais, labels.system)
        return cls(metadata.temperature, groupings, metadata.n_classes, min(topk, n_entries))

    @cached_property
    def part_of_class(self) -> NDArray[np.int64]:
        """Part of each class in each grouping, shape (4, n_classes); zeros for one that is not there."""
        nothing = np.zeros(self.n_classes, np.int64)
        return np.stack([nothing if one is None else one.part_of_class for one in self.groupings])

    @cached_property
    def n_parts(self) -> NDArray[np.int64]:
        """Parts of each grouping, shape (4,); 0 for one that is not there."""
        return np.array([0 if one is None else len(one.names) for one in self.groupings])

    def ranks(self, logits: NDArray[np.float32], *, compiled: bool) -> Ranks:
        """Return the ranks of logits (n, n_classes).

        Parameters
        ----------
        logits : ndarray, shape (n, n_classes), float32
            Rows that are not finite give ranks of no meaning.
        compiled : bool
            By the compiled kernel, else by NumPy.
        """
        return self._by_kernel(logits) if compiled else self._by_numpy(logits)

    def _by_kernel(self, logits: NDArray[np.float32]) -> Ranks:
        from hxrd.kernels.ranking import rank_rows

        out = Ranks.empty(len(logits), self.k)
        rank_rows(
            np.ascontiguousarray(logits, np.float32),
            float(self.temperature),
            self.part_of_class,
            self.n_parts,
            out.entries,
            out.probabilities,
            out.best,
            out.best_probabilities,
        )
        return out

    def _by_numpy(self, logits: NDArray[np.float32]) -> Ranks:
        out = Ranks.empty(len(logits), self.k)
        with np.errstate(invalid="ignore"):  # rows of no meaning may hold anything
            probabilities = probabilities_from_logits(logits, self.temperature)
        entries, *others = self.groupings
        if entries is not None:
            summed = entries.summed(probabilities)
            out.entries[:] = np.argsort(-summed, axis=1, kind="stable")[:, : self.k]
            out.probabilities[:] = np.take_along_axis(summed, out.entries.astype(np.int64), axis=1)
        for place, grouping in enumerate(others):
            if grouping is None:
                out.best[:, place], out.best_probabilities[:, place] = -1, 0.0
                continue
            summed = grouping.summed(probabilities)
            out.best[:, place] = summed.argmax(axis=1)
            out.best_probabilities[:, place] = summed.max(axis=1)
        return out
