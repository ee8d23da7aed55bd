"""Synthetic crystals of any space group, drawn with the statistics of real ones.

A crystal is its name: group, seed and number decide it wholly, whatever is drawn before or beside it. The
drawing itself is compiled (`hxrd.kernels.wyckoff`); here its arrays become `Crystal` objects.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.synthetic_table import element_names, group_weights, tables
from hxrd.crystal.wyckoff import GRID, group_operations
from hxrd.errors import Rejected, UsageError
from hxrd.kernels.wyckoff import MOST_ATTEMPTS, draw_crystals, draw_groups
from hxrd.kernels.wyckoff_arrays import Drawn, empty_drawn

_NAME = re.compile(r"syn-(\d{1,3})-(\d{1,20})-(\d{1,20})")
_BATCH = 256  # crystals drawn into one set of arrays
_NAMES_AT_ONCE = 4096
_LARGEST_NUMBER = 2**64 - 1


class SyntheticSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which crystals are drawn.

    Parameters
    ----------
    seed : int
        Of all random numbers.
    groups : tuple of int
        Space groups, each as often as it stands here where the weights are even.
    weights : {"even", "training"}
        ``even``: the groups take turns. ``training``: as often as among the training crystals.
    """

    seed: int = 0
    groups: tuple[int, ...] = tuple(range(1, 231))
    weights: Literal["even", "training"] = "even"

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn; msgspec reports a ValueError as a validation error."""
        if not 0 <= self.seed <= _LARGEST_NUMBER:
            raise ValueError(f"seed must lie between 0 and {_LARGEST_NUMBER}")
        if not self.groups or not all(1 <= number <= 230 for number in self.groups):
            raise ValueError("groups must be one or more numbers from 1 to 230")


def identifier_of(group: int, seed: int, number: int) -> str:
    """Return the name of a synthetic crystal: ``syn-GROUP-SEED-NUMBER``."""
    return f"syn-{group}-{seed}-{number}"


def parsed_identifier(identifier: str) -> tuple[int, int, int] | None:
    """Return space group, seed and number of a name, or None where it is not that of a synthetic crystal."""
    match = _NAME.fullmatch(identifier)
    if match is None:
        return None
    group, seed, number = map(int, match.groups())
    is_one = 1 <= group <= 230 and max(seed, number) <= _LARGEST_NUMBER
    return (group, seed, number) if is_one and identifier_of(group, seed, number) == identifier else None


class NumberedNames:
    """Names made from numbers, piece by piece: a million take no memory.

    Parameters
    ----------
    named : callable
        Takes a range of numbers and returns their names.
    numbers : range
        In steps of 1.
    """

    def __init__(self, named: Callable[[range], list[str]], numbers: range) -> None:
        self._named = named
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @cached_property
    def sha256(self) -> str:
        """Digest of all of them, joined by line feeds."""
        digest = hashlib.sha256()
        for first in range(0, len(self), _NAMES_AT_ONCE):
            names = self.read(first, first + _NAMES_AT_ONCE)
            digest.update((("\n" if first else "") + "\n".join(names)).encode())
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> list[str]:
        """Return names `start` to `stop` (excluded)."""
        return self._named(self._numbers[start:stop])


class Generator:
    """Draws synthetic crystals; which one is decided by the settings and its number alone.

    Every crystal is the conventional cell of the reference setting of its space group, with the group's
    operations. No two atoms are nearer than the smallest distance of their elements (see
    `smallest_distance`), and no operation outside the group maps the crystal onto itself within 0.06 Å.

    Parameters
    ----------
    settings : SyntheticSettings, optional
    """

    def __init__(self, settings: SyntheticSettings | None = None) -> None:
        self.settings = settings or SyntheticSettings()
        self._groups = np.array(self.settings.groups, dtype=np.int64)
        share = group_weights()[self._groups]
        if self.settings.weights == "training" and share.sum() == 0:
            raise UsageError("no training crystal has any of these space groups: take even weights")
        self._cumulative = np.cumsum(share / share.sum()) if share.sum() else np.ones(len(share))

    def groups_of(self, numbers: Sequence[int] | NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the space group of each number, shape (n,)."""
        numbers = np.asarray(numbers, dtype=np.uint64)
        if self.settings.weights == "even":
            return self._groups[(numbers % np.uint64(len(self._groups))).astype(np.int64)]
        index = np.empty(len(numbers), dtype=np.int64)
        draw_groups(self._cumulative, np.uint64(self.settings.seed), numbers, index)
        return self._groups[index]

    def identifiers(self, n_crystals: int) -> NumberedNames:
        """Return the names of the crystals from number 0 on."""
        return NumberedNames(self._named, range(n_crystals))

    def _named(self, numbers: range) -> list[str]:
        groups = self.groups_of(np.arange(numbers.start, numbers.stop, dtype=np.uint64)).tolist()
        seed = self.settings.seed
        return [identifier_of(group, seed, number) for group, number in zip(groups, numbers, strict=True)]

    def draw(self, number: int) -> Crystal:
        """Return one crystal.

        Raises
        ------
        Rejected
            No attempt succeeded (not seen in 10⁵ crystals).
        """
        return self.draw_many([number])[0]

    def draw_many(self, numbers: Sequence[int] | NDArray[np.uint64]) -> list[Crystal]:
        """Return a crystal for each number, cheaper than one by one.

        Parameters
        ----------
        numbers : sequence of int or ndarray of uint64, shape (n,)
            From 0 on; the same number gives the same crystal, alone or among any others.

        Raises
        ------
        Rejected
            No attempt succeeded for one of them.
        """
        numbers = np.asarray(numbers, dtype=np.uint64)
        seeds = np.full(len(numbers), self.settings.seed, dtype=np.uint64)
        return drawn_crystals(self.groups_of(numbers), seeds, numbers)


def crystals_named(identifiers: Sequence[str]) -> list[Crystal]:
    """Return the crystals of names such as ``syn-62-0-17``.

    Raises
    ------
    Rejected
        A name is not that of a synthetic crystal, or no attempt to draw it succeeded.
    """
    parsed = [parsed_identifier(identifier) for identifier in identifiers]
    if None in parsed:
        raise Rejected(f"{identifiers[parsed.index(None)]} is no name of a synthetic crystal")
    groups, seeds, numbers = np.array(parsed, dtype=np.uint64).T
    return drawn_crystals(groups.astype(np.int64), seeds, numbers)


def drawn_crystals(
    groups: NDArray[np.int64], seeds: NDArray[np.uint64], numbers: NDArray[np.uint64]
) -> list[Crystal]:
    """Draw the crystals that space groups, seeds and numbers name, all of shape (n,).

    Raises
    ------
    Rejected
        No attempt succeeded for one of them.
    """
    crystals: list[Crystal] = []
    largest = most_atoms()
    while (first := len(crystals)) < len(groups):
        rows = slice(first, min(first + _BATCH, len(groups)))
        n_rows = rows.stop - first
        drawn = empty_drawn(n_rows, largest + 48 * n_rows)
        done = draw_crystals(tables(), groups[rows], seeds[rows], numbers[rows], -1, MOST_ATTEMPTS, drawn)
        crystals += _crystals(groups[rows][:done], seeds[rows], numbers[rows], drawn)
    return crystals


@cache
def most_atoms() -> int:
    """Return how many atoms the largest crystal may have."""
    table = tables()
    sizes = np.diff(table.image_start)[table.site_position]
    return int(np.add.reduceat(sizes, table.site_start[:-1]).max())


def _crystals(
    groups: NDArray[np.int64], seeds: NDArray[np.uint64], numbers: NDArray[np.uint64], drawn: Drawn
) -> list[Crystal]:
    crystals = []
    names = np.array(element_names(), dtype=object)[drawn.element[: drawn.atom_start[len(groups)]]]
    starts = drawn.atom_start.tolist()
    for row, (group, seed, number) in enumerate(
        zip(groups.tolist(), seeds.tolist(), numbers.tolist(), strict=False)
    ):
        identifier = identifier_of(group, seed, number)
        start, stop = starts[row], starts[row + 1]
        if start == stop:
            raise Rejected(f"{identifier}: no crystal was found after {MOST_ATTEMPTS} attempts")
        rotations, translations = _operations(group)
        crystals.append(
            Crystal(
                identifier,
                drawn.cell[row].copy(),  # a view would keep the whole batch in memory
                tuple(names[start:stop].tolist()),
                drawn.positions[start:stop].copy(),
                np.ones(stop - start),
                drawn.b_iso[start:stop].copy(),
                group,
                rotations,
                translations,
            )
        )
    return crystals


@cache
def _operations(group: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    rotations, translations = group_operations(group)
    return rotations.astype(np.int8), translations / GRID


def smallest_distance(one: str, other: str) -> float:
    """Return the smallest distance in Å at which atoms of two elements are placed.

    It is 0.9 of the 5 % quantile of the shortest distances in training crystals of both elements (for rare
    pairs drawn towards a sum of two radii), at least 1.05 Å, with hydrogen 0.65 Å.
    """
    names = element_names()
    return float(tables().nearest[names.index(one), names.index(other)])
