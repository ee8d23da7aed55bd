"""What the outputs of a model mean: merged twins, and the coarser classes that their sums give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.symmetry import (
    bravais_lattice,
    crystal_system,
    extinction_group,
    merged_number,
    merged_symbol,
)
from hxrd.models.registry import ModelMetadata


@dataclass(frozen=True, eq=False)
class Grouping:
    """A partition of a model's classes.

    Parameters
    ----------
    names : tuple
        One name a part, in the order of first appearance.
    part_of_class : ndarray, shape (n_classes,)
        Index into `names`.
    """

    names: tuple[int | str, ...]
    part_of_class: NDArray[np.int64]

    @classmethod
    def of(cls, classes: Sequence[int | str], name_of: Callable[[int | str], int | str]) -> "Grouping":
        """Group `classes` by the name that `name_of` gives each."""
        positions: dict[int | str, int] = {}
        parts = [positions.setdefault(name_of(label), len(positions)) for label in classes]
        return cls(tuple(positions), np.array(parts, dtype=np.int64))

    @cached_property
    def membership(self) -> NDArray[np.float64]:
        """1 where a class belongs to a part, shape (n_classes, n_parts)."""
        return np.eye(len(self.names))[self.part_of_class]

    def summed(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum probabilities (n, n_classes) over each part: (n, n_parts)."""
        return probabilities @ self.membership


@dataclass(frozen=True, eq=False)
class Labels:
    """The groupings of one model's classes.

    For a model of Bravais lattices only `bravais` is there: a lattice does not give the crystal system
    (hP holds trigonal and hexagonal groups).

    Parameters
    ----------
    entries : Grouping or None
        Space groups with enantiomorphs merged under the lower number.
    extinction, system : Grouping or None
        Extinction groups; crystal systems.
    bravais : Grouping
        Bravais lattices.
    """

    entries: Grouping | None
    extinction: Grouping | None
    system: Grouping | None
    bravais: Grouping

    @classmethod
    def of_model(cls, metadata: ModelMetadata) -> "Labels":
        """Group the classes of a model."""
        classes = metadata.classes
        if metadata.task == "bravais":
            return cls(None, None, None, Grouping.of(classes, str))
        return cls(
            entries=Grouping.of(classes, lambda label: merged_number(int(label))),
            extinction=Grouping.of(classes, lambda label: extinction_group(int(label))),
            system=Grouping.of(classes, lambda label: crystal_system(int(label))),
            bravais=Grouping.of(classes, lambda label: bravais_lattice(int(label))),
        )

    @cached_property
    def entry_numbers(self) -> NDArray[np.int16]:
        """Space-group number of each entry, shape (n_entries,)."""
        names = self.entries.names if self.entries else ()
        return np.array(names, dtype=np.int16)

    @cached_property
    def entry_symbols(self) -> NDArray[np.object_]:
        """Hermann–Mauguin symbol, or both of a pair, of each entry, shape (n_entries,)."""
        return np.array([merged_symbol(int(number)) for number in self.entry_numbers], dtype=object)


def probabilities_from_logits(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Return softmax(logits / temperature) over the last axis, in double precision."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    exponentials = np.exp(scaled)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
