"""Make the table of statistics that `hxrd generate` draws from, from the training crystals of a table.

    python scripts/build_synthetic_statistics.py crystals.jsonl.gz hxrd/crystal/synthetic_statistics.npz

Only records whose field `split` is `train` are read. What is written are statistics and combinations of
Wyckoff positions: no coordinates, and no crystal can be rebuilt from it. The same input gives the same table.
"""

import json
import logging
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from synthetic_chemistry import (
    Formula,
    displacement_parameters,
    drawn_elements,
    element_sets,
    smallest_distances,
    volumes,
)
from synthetic_combinations import Combination, CombinationSampler, observed_combinations, shape_pools
from synthetic_groups import group_arrays
from synthetic_records import Observed, observed

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.symmetry import bravais_lattice
from hxrd.crystal.synthetic_table import tables_from
from hxrd.kernels.wyckoff import draw_crystals
from hxrd.kernels.wyckoff_arrays import Tables, empty_drawn
from hxrd.sources.jsonl import JsonlSource

SEED = 20261122
NEW_COMBINATIONS = 250  # in each group, beside those of crystals
MOST_PROPOSED = 60 * NEW_COMBINATIONS
TRIALS = 4  # crystals drawn of a combination before it is taken
MOST_TRIAL_ATTEMPTS = {True: 25, False: 6}  # of one of them, for combinations that crystals have and others
OWN_STRENGTH = 30.0  # crystals: a group's own combinations have half the weight at so many

logger = logging.getLogger("build_synthetic_statistics")


def training_records(table: str) -> tuple[list[Observed], dict[str, Any]]:
    """Return what the training crystals tell, and the provenance to write beside it."""
    records, licences, n_train = [], Counter[str](), 0
    for record, crystal in JsonlSource(Path(table)).iterate():
        if record["split"] != "train":
            continue
        n_train += 1
        if isinstance(crystal, Crystal) and (seen := observed(crystal)) is not None:
            records.append(seen)
            licences[record["licence"]] += 1
    provenance = {
        "made_by": "scripts/build_synthetic_statistics.py",
        "date": datetime.now(UTC).date().isoformat(),
        "split": "train",
        "crystals_of_the_split": n_train,
        "crystals_used": len(records),
        "crystals_with_orbits": sum(record.orbits is not None for record in records),
        "licences": dict(licences.most_common()),
        "content": "statistics only: no coordinates, no cells, no crystals",
    }
    return records, provenance


def build(records: list[Observed], provenance: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Return all arrays of the table."""
    rng = np.random.default_rng(SEED)
    elements = drawn_elements(records)
    sets, of_formula, of_count = element_sets(records, elements, rng)
    arrays = {
        **group_arrays(),
        **sets,
        **volumes(records, elements),
        **displacement_parameters(records, elements),
        "nearest": smallest_distances(records, elements),
        "elements": _text(" ".join(elements)),
        "group_count": np.bincount([record.space_group for record in records], minlength=231).astype(
            np.uint16
        ),
        **_pool_arrays(shape_pools(records, rng)),
    }

    def class_of(formula: Formula) -> int:
        return of_formula.get(formula, of_count[len(formula)])

    seen = observed_combinations(records)
    sampler = CombinationSampler(records, of_formula)
    chosen: dict[int, list[Combination]] = {}
    for number in range(1, 231):
        chosen[number] = _combinations_of(number, seen.get(number, []), sampler, arrays, class_of, rng)
    provenance["combinations_of_crystals"] = sum(c.shape is not None for own in chosen.values() for c in own)
    provenance["combinations"] = sum(map(len, chosen.values()))
    provenance["seed"] = SEED
    arrays.update(_combination_arrays(chosen, class_of))
    arrays["provenance"] = _text(json.dumps(provenance))
    return arrays


def _combinations_of(
    number: int,
    seen: list[Combination],
    sampler: CombinationSampler,
    arrays: dict[str, NDArray[Any]],
    class_of: Any,
    rng: np.random.Generator,
) -> list[Combination]:
    """Return the combinations of a group that make crystals of this very group, with their weights."""
    own = _proven(number, seen, arrays, class_of)
    known = {combination.sites for combination in own}
    new: list[Combination] = []
    proposed = 0
    while len(new) < NEW_COMBINATIONS and proposed < MOST_PROPOSED:
        batch = []
        for _ in range(NEW_COMBINATIONS):
            combination = sampler.draw(number, rng)
            proposed += 1
            if combination is not None and combination.sites not in known:
                batch.append(combination)
                known.add(combination.sites)
        new += _proven(number, batch, arrays, class_of)
    new = new[:NEW_COMBINATIONS]
    n_crystals = sum(round(combination.weight**2) for combination in own)
    share = n_crystals / (n_crystals + OWN_STRENGTH) if new else 1.0
    logger.info("%3d: %d of %d seen, %d of %d proposed", number, len(own), len(seen), len(new), proposed)
    if not own and not new:
        raise RuntimeError(f"no combination of group {number} makes crystals of it")
    return [*_weighted(own, share), *_weighted(new, 1.0 - share)]


def _weighted(combinations: list[Combination], share: float) -> list[Combination]:
    total = sum(combination.weight for combination in combinations)
    return [
        Combination(one.sites, one.formula, share * one.weight / total, one.shape) for one in combinations
    ]


def _proven(
    number: int, combinations: list[Combination], arrays: dict[str, NDArray[Any]], class_of: Any
) -> list[Combination]:
    """Return those of which crystals can be drawn without undue effort."""
    if not combinations:
        return []
    trial = tables_from({**arrays, **_combination_arrays({number: combinations}, class_of)})
    return [
        one
        for index, one in enumerate(combinations)
        if _is_easy(trial, number, index, MOST_TRIAL_ATTEMPTS[one.shape is not None])
    ]


def _is_easy(trial: Tables, number: int, index: int, most_attempts: int) -> bool:
    numbers = np.arange(TRIALS, dtype=np.uint64)
    drawn = empty_drawn(TRIALS, TRIALS * 400)
    draw_crystals(
        trial, np.full(TRIALS, number), np.full(TRIALS, SEED, np.uint64), numbers, index, most_attempts, drawn
    )
    return bool(drawn.attempts.min() > 0)


def _combination_arrays(chosen: dict[int, list[Combination]], class_of: Any) -> dict[str, NDArray[Any]]:
    flat = [combination for number in range(231) for combination in chosen.get(number, [])]
    unknown = (np.nan,) * 5
    return {
        "combination_count": np.array([len(chosen.get(number, [])) for number in range(231)], np.uint16),
        "combination_weight": np.array([one.weight for one in flat], np.float32),
        "site_count": np.array([len(one.sites) for one in flat], np.uint8),
        "site_species": np.array([site[0] for one in flat for site in one.sites], np.uint8),
        "site_position": np.array([site[1] for one in flat for site in one.sites], np.uint8),
        "formula": np.array([class_of(one.formula) for one in flat], np.uint8),
        "shape": np.array([one.shape or unknown for one in flat], np.float16),
    }


def _pool_arrays(pools: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[Any]]:
    stops = dict(zip(pools, np.cumsum([len(pool) for pool in pools.values()]).tolist(), strict=True))
    ranges = [(0, 0)]
    for number in range(1, 231):
        lattice = bravais_lattice(number)
        ranges.append((stops[lattice] - len(pools[lattice]), stops[lattice]))
    return {
        "pool": np.concatenate(list(pools.values())).astype(np.float16),
        "pool_range": np.array(ranges, np.uint16),
    }


def _text(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def main(table: str, output: str) -> None:
    """Write the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("moyo").setLevel(logging.ERROR)
    arrays = build(*training_records(table))
    np.savez_compressed(output, **arrays)
    logger.info("%s: %.2f MB", output, Path(output).stat().st_size / 1e6)


if __name__ == "__main__":
    main(*sys.argv[1:])
