"""The shipped table of statistics that synthetic crystals are drawn from, and how it becomes arrays.

`scripts/build_synthetic_statistics.py` makes it; `provenance` says from what. All arrays of the file are
whole numbers or short floats; here they become what `hxrd.kernels.wyckoff_arrays.Tables` describes.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hxrd.kernels.wyckoff_arrays import MOST_SPECIES, Tables

TABLE_PATH = Path(__file__).with_name("synthetic_statistics.npz")
_GRID = 24


@cache
def _file() -> dict[str, NDArray[Any]]:
    with np.load(TABLE_PATH) as archive:
        return {name: archive[name] for name in archive.files}


def provenance() -> dict[str, Any]:
    """Return from which crystals the statistics were taken: counts, date, split, licences."""
    text: dict[str, Any] = json.loads(bytes(_file()["provenance"]).decode())
    return text


@cache
def element_names() -> tuple[str, ...]:
    """Return the species that crystals are made of, in the order of the table's element numbers."""
    return tuple(bytes(_file()["elements"]).decode().split())


@cache
def group_weights() -> NDArray[np.float64]:
    """Return the share of each space group in the training crystals, shape (231,); index 0 is none."""
    counts = _file()["group_count"].astype(np.float64)
    return counts / counts.sum()


@cache
def tables() -> Tables:
    """Return the whole table."""
    return tables_from(_file())


def tables_from(stored: dict[str, NDArray[Any]]) -> Tables:
    """Return the arrays that the kernel reads from those of the file."""
    position_start = _starts(stored["position_count"])
    combination_start = _starts(stored["combination_count"])
    n_images = int(stored["multiplicity"].astype(np.int64).sum())
    images = np.concatenate(
        [stored["image_matrix"].reshape(n_images, 9), stored["image_shift"] / _GRID], axis=1
    )
    site_start = _starts(stored["site_count"])
    group_of_site = np.repeat(np.repeat(np.arange(231), np.diff(combination_start)), np.diff(site_start))
    set_start = _starts(stored["set_count"])
    elements = np.full((int(set_start[-1]), MOST_SPECIES), -1, dtype=np.int64)
    elements[:, : stored["set_elements"].shape[1]] = stored["set_elements"]
    return Tables(
        image_start=_starts(stored["multiplicity"]),
        n_free=stored["n_free"].astype(np.int64),
        images=np.ascontiguousarray(images.T),
        lattice=stored["lattice"].astype(np.int64),
        lattice_order=stored["lattice_order"].astype(np.int64),
        primitive=stored["primitive"] / _GRID,
        centring_start=_starts(stored["centring_count"]),
        centring=stored["centring"] / _GRID,
        coset_start=_starts(stored["coset_count"]),
        coset=stored["coset"].astype(np.float64),
        combination_start=combination_start,
        combination_weight=_cumulative(stored["combination_weight"], combination_start),
        site_start=site_start,
        site_position=stored["site_position"] + position_start[group_of_site],
        site_species=stored["site_species"].astype(np.int64),
        formula=stored["formula"].astype(np.int64),
        shape=stored["shape"].astype(np.float64),
        pool_start=stored["pool_range"][:, 0].astype(np.int64),
        pool_stop=stored["pool_range"][:, 1].astype(np.int64),
        pool=stored["pool"].astype(np.float64),
        set_start=set_start,
        set_weight=_cumulative(stored["set_weight"], set_start),
        set_elements=elements,
        substitute=_cumulative_rows(stored["substitute"]),
        nearest=stored["nearest"].astype(np.float64),
        atom_volume=stored["atom_volume"].astype(np.float64),
        volume_ratio=stored["volume_ratio"].astype(np.float64),
        b_iso=stored["b_iso"].astype(np.float64),
        b_factor=stored["b_factor"].astype(np.float64),
    )


def _starts(counts: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _cumulative(weights: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cumulative shares within each range of `starts`."""
    total = np.concatenate([[0.0], np.cumsum(weights, dtype=np.float64)])
    sizes = np.diff(starts)
    before = np.repeat(total[starts[:-1]], sizes)
    whole = np.repeat(total[starts[1:]] - total[starts[:-1]], sizes)
    return (total[1:] - before) / whole


def _cumulative_rows(counts: NDArray[Any]) -> NDArray[np.float64]:
    total = np.cumsum(counts, axis=1, dtype=np.float64)
    return total / total[:, -1:]
