"""The part of the generator's table that tells of elements: sets, exchanges, volumes, distances, B."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from synthetic_records import Observed

from hxrd.errors import Rejected
from hxrd.kernels.wyckoff_arrays import MOST_SPECIES
from hxrd.physics.scattering import form_factor_coefficients, scattering_lengths

Formula = tuple[int, ...]

RAREST_ELEMENT = 10  # crystals; elements of fewer are not drawn
FEWEST_SETS = 25  # a formula with fewer element sets uses those of all formulas of as many species
QUANTILES = 201
_SHORT_QUANTILE = 0.05
_PRIOR_STRENGTH = 4.0  # a pair's own quantile counts fully only well above so many crystals
_ALLOWANCE = 0.9  # of the short quantile: the smallest distance that is drawn
_FLOOR, _HYDROGEN_FLOOR = 1.05, 0.65  # Å
_EDGE = 0.03  # share of the volume ratios left out at either end


def drawn_elements(records: Sequence[Observed]) -> list[str]:
    """Return the species that enough crystals hold and that scatter neutrons and X-rays by every table."""
    count = Counter(name for record in records for name in record.content)
    return sorted(name for name, number in count.items() if number >= RAREST_ELEMENT and _scatters(name))


def _scatters(name: str) -> bool:
    try:
        scattering_lengths((name,), "sears1992")
        scattering_lengths((name,), "periodictable")
        form_factor_coefficients((name,))
    except Rejected:
        return False
    return True


def reduced(amounts: Sequence[int]) -> Formula:
    """Return amounts in ascending order without a common factor."""
    divisor = math.gcd(*amounts)
    return tuple(sorted(amount // divisor for amount in amounts))


def element_sets(
    records: Sequence[Observed], elements: list[str], rng: np.random.Generator
) -> tuple[dict[str, NDArray[Any]], dict[Formula, int], dict[int, int]]:
    """Return the arrays of element sets, the class of each frequent formula, and of each species count.

    Elements of equal amount stand in random order.
    """
    by_formula: dict[Formula, Counter[tuple[int, ...]]] = defaultdict(Counter)
    by_count: dict[int, Counter[tuple[int, ...]]] = defaultdict(Counter)
    number = {name: index for index, name in enumerate(elements)}
    for record in records:
        if len(record.content) > MOST_SPECIES or not set(record.content) <= set(elements):
            continue
        order = sorted(record.content, key=lambda name: (record.content[name], rng.random()))
        chosen = tuple(number[name] for name in order)
        by_formula[reduced(list(record.content.values()))][chosen] += 1
        by_count[len(chosen)][chosen] += 1
    frequent = {formula: sets for formula, sets in by_formula.items() if len(sets) >= FEWEST_SETS}
    classes = [*by_count.values(), *frequent.values()]
    flat = [(row, weight) for sets in classes for row, weight in sorted(sets.items())]
    table = np.full((len(flat), MOST_SPECIES), -1, np.int8)
    for index, (row, _) in enumerate(flat):
        table[index, : len(row)] = row
    arrays = {
        "set_count": np.array([len(sets) for sets in classes], np.uint16),
        "set_elements": table,
        "set_weight": np.array([weight for _, weight in flat], np.uint16),
        "substitute": _substitutes(by_formula, len(elements)),
    }
    of_count = {n_species: index for index, n_species in enumerate(by_count)}
    of_formula = {formula: len(by_count) + index for index, formula in enumerate(frequent)}
    return arrays, of_formula, of_count


def _substitutes(by_formula: dict[Formula, Counter[tuple[int, ...]]], n_elements: int) -> NDArray[np.uint16]:
    """How often one element stands where another does, all others and the formula being the same.

    After Hautier, Fischer, Ehrlacher, Jain & Ceder (2011), Inorg. Chem. 50, 656, without its weights.
    """
    counts = np.zeros((n_elements, n_elements))
    for sets in by_formula.values():
        alike: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for row in sets:
            for place, element in enumerate(row):
                alike[(place, *row[:place], *row[place + 1 :])].add(element)
        for members in alike.values():
            index = np.array(sorted(members))
            counts[np.ix_(index, index)] += 1.0
    np.fill_diagonal(counts, 1.0)
    return np.round(counts).clip(max=65535).astype(np.uint16)


def volumes(records: Sequence[Observed], elements: list[str]) -> dict[str, NDArray[Any]]:
    """Return the volume of an atom of each element (Å³, least squares) and quantiles of the deviation."""
    number = {name: index for index, name in enumerate(elements)}
    usable = [record for record in records if set(record.content) <= set(elements)]
    content = np.zeros((len(usable), len(elements)))
    for row, record in enumerate(usable):
        for name, amount in record.content.items():
            content[row, number[name]] = amount
    total = np.array([record.volume for record in usable])
    atoms = content.sum(axis=1)
    mean = np.median(total / atoms)
    keep = np.ones(len(usable), dtype=bool)
    for _ in range(4):  # zeolites and molecular crystals are open: they must not make the others' atoms large
        scaled = content[keep] / atoms[keep, None]
        prior = 3.0 * np.eye(len(elements))
        solution = nnls(
            np.concatenate([scaled, prior / 10]),
            np.concatenate([total[keep] / atoms[keep], np.full(len(elements), 0.3 * mean)]),
        )[0]
        ratio = total / (content @ solution)
        keep = (ratio > 0.6) & (ratio < 1.6)
    quantiles = np.quantile(ratio, np.linspace(_EDGE, 1 - _EDGE, QUANTILES))
    return {"atom_volume": solution.astype(np.float32), "volume_ratio": quantiles.astype(np.float32)}


def smallest_distances(records: Sequence[Observed], elements: list[str]) -> NDArray[np.float16]:
    """Return the smallest distance in Å that is drawn for each pair of elements.

    It is 0.9 of the 5 % quantile of the shortest distances in crystals of both, for rare pairs drawn
    towards the sum of two radii that fit all pairs, and at least 1.05 Å (0.65 Å with hydrogen).
    """
    number = {name: index for index, name in enumerate(elements)}
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    for record in records:
        for (one, other), distance in record.distances.items():
            if one in number and other in number:
                found[(min(number[one], number[other]), max(number[one], number[other]))].append(distance)
    short = {pair: np.quantile(values, _SHORT_QUANTILE) for pair, values in found.items()}
    radii = _radii(found, short, len(elements))
    nearest = radii[:, None] + radii[None]
    for (one, other), quantile in short.items():
        weight = len(found[(one, other)])
        shrunk = (weight * quantile + _PRIOR_STRENGTH * nearest[one, other]) / (weight + _PRIOR_STRENGTH)
        nearest[one, other] = nearest[other, one] = shrunk
    light = np.array([name in ("H", "D") for name in elements])
    floor = np.where(light[:, None] | light, _HYDROGEN_FLOOR, _FLOOR)
    return np.maximum(_ALLOWANCE * nearest, floor).astype(np.float16)


def _radii(
    found: dict[tuple[int, int], list[float]], short: dict[tuple[int, int], Any], n_elements: int
) -> NDArray[np.float64]:
    pairs = list(short)
    rows = np.zeros((len(pairs), n_elements))
    for index, (one, other) in enumerate(pairs):
        rows[index, one] += 1
        rows[index, other] += 1
    weight = np.sqrt([len(found[pair]) for pair in pairs])
    target = np.array([short[pair] for pair in pairs])
    radii: NDArray[np.float64] = nnls(rows * weight[:, None], target * weight)[0]
    return radii


def displacement_parameters(records: Sequence[Observed], elements: list[str]) -> dict[str, NDArray[Any]]:
    """Return quantiles of B (Å²) and each element's B relative to the median, drawn towards 1 if rare."""
    of_element: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for name, b_iso in record.b_iso.items():
            of_element[name].append(b_iso)
    every = np.array([b for values in of_element.values() for b in values])
    middle = np.median(every)
    factor = np.array(
        [
            np.exp(_log_ratio(of_element.get(name, []), middle) * _trust(of_element.get(name, [])))
            for name in elements
        ]
    )
    typical = np.concatenate([np.array(of_element[n]) / f for n, f in _pairs(elements, factor, of_element)])
    quantiles = np.quantile(typical, np.linspace(_EDGE, 1 - _EDGE, QUANTILES))
    return {"b_iso": quantiles.astype(np.float32), "b_factor": factor.astype(np.float32)}


def _log_ratio(values: list[float], middle: float) -> float:
    return float(np.log(np.median(values) / middle)) if values else 0.0


def _trust(values: list[float]) -> float:
    return len(values) / (len(values) + 10.0)


def _pairs(
    elements: list[str], factor: NDArray[np.float64], of_element: dict[str, list[float]]
) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in zip(elements, factor, strict=True) if of_element.get(name))
