"""The part of the generator's table that tells which Wyckoff positions are occupied together."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from synthetic_chemistry import Formula, reduced
from synthetic_records import LARGEST, Observed

from hxrd.crystal.symmetry import bravais_lattice
from hxrd.crystal.wyckoff import WyckoffPosition, wyckoff_positions
from hxrd.kernels.wyckoff_arrays import MOST_SITES, MOST_SPECIES

_PRIOR_STRENGTH = 10.0  # orbits: a group's own occupation counts fully only well above so many
_LEAST_ATOMS = 2
_UNKNOWN_FORMULA = 0.15  # share of the drawn combinations kept whose formula no crystal has
_POOL = 300  # cell shapes kept for one Bravais lattice

Site = tuple[int, int]
"""(species, Wyckoff position); species are numbered from the rarest on."""


@dataclass(frozen=True)
class Combination:
    """Which positions are occupied together in one cell."""

    sites: tuple[Site, ...]
    formula: Formula
    weight: float
    shape: tuple[float, ...] | None = None


def combination_of(number: int, orbits: Sequence[tuple[Any, int]]) -> tuple[tuple[Site, ...], Formula]:
    """Return the sites in standard order (fixed ones first, then the larger orbits) and the formula."""
    positions = wyckoff_positions(number)
    amount: Counter[Any] = Counter()
    places: dict[Any, list[int]] = defaultdict(list)
    for name, index in orbits:
        amount[name] += positions[index].multiplicity
        places[name].append(index)
    order = sorted(amount, key=lambda name: (amount[name], sorted(places[name])))
    sites = [(species, index) for species, name in enumerate(order) for index in sorted(places[name])]

    def hardest_first(site: Site) -> tuple[int, int, Site]:
        position = positions[site[1]]
        return min(position.n_free, 1), -position.multiplicity, site

    return tuple(sorted(sites, key=hardest_first)), reduced(list(amount.values()))


def observed_combinations(records: Sequence[Observed]) -> dict[int, list[Combination]]:
    """Return the combinations of all crystals by space group, weighted by √(how many crystals)."""
    shapes: dict[tuple[int, tuple[Site, ...]], list[NDArray[np.float64]]] = defaultdict(list)
    formulas: dict[tuple[Site, ...], Formula] = {}
    for record in records:
        if record.orbits is None or len(record.orbits) > MOST_SITES or len(record.content) > MOST_SPECIES:
            continue
        sites, formula = combination_of(record.space_group, record.orbits)
        shapes[(record.space_group, sites)].append(record.shape)
        formulas[sites] = formula
    found: dict[int, list[Combination]] = defaultdict(list)
    for (number, sites), seen in sorted(shapes.items(), key=lambda item: item[0]):
        middle = tuple(np.median(np.stack(seen), axis=0).tolist())
        found[number].append(Combination(sites, formulas[sites], len(seen) ** 0.5, middle))
    return found


def shape_pools(records: Sequence[Observed], rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Return up to 300 cell shapes of each Bravais lattice, shape (n, 5)."""
    shapes = defaultdict(list)
    for record in records:
        if record.shape is not None:
            shapes[bravais_lattice(record.space_group)].append(record.shape)
    pools = {}
    for lattice, seen in sorted(shapes.items()):
        chosen = rng.permutation(len(seen))[:_POOL]
        pools[lattice] = np.stack([seen[index] for index in chosen])
    return pools


class CombinationSampler:
    """Draws new combinations with the occupation statistics of crystals.

    Parameters
    ----------
    records : sequence of Observed
    formulas : container of Formula
        Those that crystals have often enough.
    """

    def __init__(self, records: Sequence[Observed], formulas: dict[Formula, int]):
        self._formulas = formulas
        usable = [record for record in records if record.orbits is not None]
        self._own: dict[int, Counter[int]] = defaultdict(Counter)
        totals: dict[str, list[int]] = defaultdict(list)
        for record in usable:
            self._own[record.space_group].update(index for _, index in record.orbits or [])
            total = sum(
                wyckoff_positions(record.space_group)[index].multiplicity for _, index in record.orbits or []
            )
            totals[bravais_lattice(record.space_group)].append(total)
        self._atoms = {lattice: np.array(seen) for lattice, seen in totals.items()}
        self._n_species = np.array([min(len(record.content), MOST_SPECIES - 1) for record in usable])
        self._kinds = self._occupation_by_kind()

    def _occupation_by_kind(self) -> dict[tuple[int, int], float]:
        """How often a position of (site-symmetry order, free coordinates) is occupied, over all groups."""
        times: Counter[tuple[int, int]] = Counter()
        chances: Counter[tuple[int, int]] = Counter()
        for number, own in self._own.items():
            for index, position in enumerate(wyckoff_positions(number)):
                kind = kind_of(number, position)
                times[kind] += own[index]
                chances[kind] += own.total()
        return {kind: (times[kind] + 0.1) / (chances[kind] + 10.0) for kind in chances}

    def position_weights(self, number: int) -> NDArray[np.float64]:
        """Return how likely an orbit of the group is to be on each position; sums to 1."""
        positions = wyckoff_positions(number)
        prior = np.array([self._kinds.get(kind_of(number, position), 0.01) for position in positions])
        own = np.array([self._own[number][index] for index in range(len(positions))], dtype=np.float64)
        weights = own + _PRIOR_STRENGTH * prior / prior.sum()
        return weights / weights.sum()

    def draw(self, number: int, rng: np.random.Generator, largest: int = LARGEST) -> Combination | None:
        """Return a combination of at most so many atoms, or None where the draw went astray."""
        positions, weights = wyckoff_positions(number), self.position_weights(number)
        wanted = max(_LEAST_ATOMS, int(_any_of(self._atoms[bravais_lattice(number)], rng)))
        chosen: list[int] = []
        total = 0
        for index in np.searchsorted(np.cumsum(weights[:-1]), rng.random(4 * MOST_SITES)):
            position = positions[int(index)]
            if position.n_free == 0 and index in chosen:
                continue
            if total + position.multiplicity > min(max(1.3 * wanted, positions[0].multiplicity), largest):
                continue
            chosen.append(int(index))
            total += position.multiplicity
            if total >= wanted or len(chosen) == MOST_SITES:
                break
        if not chosen:
            return None
        n_species = min(int(_any_of(self._n_species, rng)), len(chosen))
        species = np.concatenate([np.arange(n_species), rng.integers(0, n_species, len(chosen) - n_species)])
        sites, formula = combination_of(
            number, list(zip(rng.permutation(species).tolist(), chosen, strict=True))
        )
        if formula not in self._formulas and rng.random() > _UNKNOWN_FORMULA:
            return None
        return Combination(sites, formula, 1.0)


def kind_of(number: int, position: WyckoffPosition) -> tuple[int, int]:
    """Return the order of the site symmetry and the number of free coordinates."""
    return wyckoff_positions(number)[-1].multiplicity // position.multiplicity, position.n_free


def _any_of(values: NDArray[np.int64], rng: np.random.Generator) -> np.int64:
    return values[rng.integers(len(values))]
