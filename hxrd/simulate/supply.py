"""Where the crystals of an endless stream come from: drawn, varied, or taken in turn."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.synthetic import Generator, SyntheticSettings, drawn_crystals
from hxrd.errors import InputError, Rejected
from hxrd.simulate.seeds import row_seeds
from hxrd.simulate.templates import TemplateSampler, TemplateSettings, templates_from


class CrystalSupply(Protocol):
    """A crystal for every number, always the same one."""

    @property
    def space_groups(self) -> tuple[int, ...]:
        """Space groups that the crystals may have."""
        ...

    def crystals(self, numbers: NDArray[np.int64], seed: int) -> list[Crystal]:
        """Return the crystal of each number.

        Parameters
        ----------
        numbers : ndarray of int64, shape (n,)
            From 0 on. Which other numbers are asked for at the same time must not matter.
        seed : int
            Of all random choices.
        """
        ...

    def describe(self) -> str:
        """Return what tells this supply from others, in few characters."""
        ...


class SyntheticCrystals:
    """Synthetic crystals without end; they need no data.

    Space groups are drawn independently of each other, so that every batch is a fair mixture.

    Parameters
    ----------
    settings : SyntheticSettings, optional
        Space groups and their weights.  [default: all 230, evenly]
    """

    def __init__(self, settings: SyntheticSettings | None = None) -> None:
        self._generator = Generator(settings)

    @property
    def space_groups(self) -> tuple[int, ...]:
        """Space groups that are drawn."""
        return self._generator.settings.groups

    def crystals(self, numbers: NDArray[np.int64], seed: int) -> list[Crystal]:
        """Draw crystals (see `CrystalSupply.crystals`)."""
        # Scattered over all numbers of the generator, where neighbours have neighbouring space groups.
        names = row_seeds(seed, numbers)
        return synthetic_crystals(self._generator.groups_of(names), self._generator.settings.seed, names)

    def describe(self) -> str:
        """Return the settings."""
        return f"synthetic {msgspec.json.encode(self._generator.settings).decode()}"


def synthetic_crystals(groups: NDArray[np.int64], seed: int, numbers: NDArray[np.uint64]) -> list[Crystal]:
    """Draw a synthetic crystal of each space group, another of that group where one was not found.

    Parameters
    ----------
    groups : ndarray of int64, shape (n,)
    seed : int
        Of the names of the crystals.
    numbers : ndarray of uint64, shape (n,)
    """
    try:
        return drawn_crystals(groups, np.full(len(numbers), seed, np.uint64), numbers)
    except Rejected:  # one of them: it is found by halves
        if len(numbers) == 1:
            return synthetic_crystals(groups, seed, row_seeds(1, numbers.view(np.int64)))
        first, second = slice(len(numbers) // 2), slice(len(numbers) // 2, None)
        return [
            *synthetic_crystals(groups[first], seed, numbers[first]),
            *synthetic_crystals(groups[second], seed, numbers[second]),
        ]


class CrystalsInTurn:
    """Given crystals, all of them once in each round, every round in another order.

    Parameters
    ----------
    crystals : sequence of Crystal

    Raises
    ------
    InputError
        There is none.
    """

    def __init__(self, crystals: Sequence[Crystal]) -> None:
        if not crystals:
            raise InputError("no crystals to make patterns of")
        self._crystals = tuple(crystals)

    @property
    def space_groups(self) -> tuple[int, ...]:
        """Space groups of the crystals."""
        return tuple(sorted({crystal.space_group for crystal in self._crystals}))

    def crystals(self, numbers: NDArray[np.int64], seed: int) -> list[Crystal]:
        """Return crystals by turn (see `CrystalSupply.crystals`)."""
        return [self._crystals[index] for index in _in_turn(numbers, seed, len(self._crystals))]

    def describe(self) -> str:
        """Return a digest of the crystals."""
        return f"crystals {_digest(self._crystals)}"


class VariedCrystals:
    """Variations of given crystals: elements exchanged, cells strained, free coordinates moved.

    All crystals take part once in each round, every round in another order.

    Parameters
    ----------
    crystals : sequence of Crystal
        Their symmetry is looked for, which takes some milliseconds each.
    settings : TemplateSettings, optional

    Raises
    ------
    InputError
        There is no crystal.
    """

    def __init__(self, crystals: Sequence[Crystal], settings: TemplateSettings | None = None) -> None:
        if not crystals:
            raise InputError("no crystals to make patterns of")
        self._settings = settings or TemplateSettings()
        templates, elements = templates_from(list(crystals))
        self._sampler = TemplateSampler(templates, self._settings, elements)

    @property
    def space_groups(self) -> tuple[int, ...]:
        """Space groups of the crystals, which variation does not change."""
        return tuple(sorted({template.crystal.space_group for template in self._sampler.templates}))

    def crystals(self, numbers: NDArray[np.int64], seed: int) -> list[Crystal]:
        """Return varied crystals (see `CrystalSupply.crystals`)."""
        indices = _in_turn(numbers, seed, len(self._sampler.templates))
        return [
            self._sampler.draw(index, np.random.default_rng([seed, number]))
            for index, number in zip(indices, numbers.tolist(), strict=True)
        ]

    def describe(self) -> str:
        """Return the settings and a digest of the crystals."""
        crystals = [template.crystal for template in self._sampler.templates]
        return f"varied {_digest(crystals)} {msgspec.json.encode(self._settings).decode()}"


def _in_turn(numbers: NDArray[np.int64], seed: int, n_crystals: int) -> list[int]:
    """Return the index of the crystal whose turn it is at each number."""
    rounds, places = np.divmod(numbers, n_crystals)
    return [
        int(_order(seed, turn, n_crystals)[place])
        for turn, place in zip(rounds.tolist(), places.tolist(), strict=True)
    ]


@lru_cache(maxsize=32)
def _order(seed: int, turn: int, n_crystals: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, turn, n_crystals]).permutation(n_crystals)


def _digest(crystals: Sequence[Crystal]) -> str:
    digest = hashlib.sha256()
    for crystal in crystals:
        digest.update(f"{crystal.identifier}\n{crystal.species}\n{crystal.space_group}\n".encode())
        for values in (crystal.cell, crystal.positions, crystal.occupancy, crystal.b_iso):
            digest.update(np.asarray(values, dtype=np.float64).tobytes())
    return digest.hexdigest()[:16]
