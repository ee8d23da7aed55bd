"""Draw how synthetic crystals compare with the training crystals of a table.

python scripts/plot_synthetic_statistics.py crystals.jsonl.gz docs/images/generated_statistics.png
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import moyopy
import numpy as np
from numpy.typing import NDArray
from synthetic_records import shortest_distances

from hxrd.crystal.crystal import Crystal
from hxrd.crystal.symmetry import bravais_lattice
from hxrd.crystal.synthetic import Generator, SyntheticSettings
from hxrd.crystal.synthetic_table import element_names, tables
from hxrd.sources.jsonl import JsonlSource

N_CRYSTALS = 4000
KNOWN, MADE = "#4c72b0", "#dd8452"


def training_crystals(table: str) -> Iterator[Crystal]:
    """Yield the ordered training crystals whose elements the generator has."""
    for record, crystal in JsonlSource(Path(table)).iterate():
        if (
            record["split"] == "train"
            and isinstance(crystal, Crystal)
            and crystal.occupancy.min() >= 0.99
            and len(crystal.species) <= 400
            and set(crystal.species) <= set(element_names())
        ):
            yield crystal


def features(crystal: Crystal) -> dict[str, float]:
    """Return what the panels show of one crystal."""
    names = element_names()
    kinds = [names.index(name) for name in crystal.species]
    pairs = shortest_distances(crystal, np.linalg.cholesky(crystal.metric))
    limits = {pair: tables().nearest[names.index(pair[0]), names.index(pair[1])] for pair in pairs}
    ratios = [distance / limits[pair] for pair, distance in pairs.items()]
    basis = np.linalg.cholesky(crystal.metric).tolist()
    found = moyopy.MoyoDataset(
        moyopy.Cell(basis, crystal.positions.tolist(), kinds),
        symprec=1e-3,
        setting=moyopy.Setting.standard(),
    )
    edges = np.linalg.norm(found.std_cell.basis, axis=1)
    return {
        "atoms": float(len(found.prim_std_cell.numbers)),
        "species": float(len(set(crystal.species))),
        "density": crystal.volume / float(tables().atom_volume[kinds].sum()),
        "shortest": min(pairs.values(), default=5.0),
        "ratio": min(ratios, default=2.0),
        "axes": float(edges[2] / edges[0]) if bravais_lattice(found.number)[0] in "tho" else np.nan,
    }


PANELS = {
    "atoms": ("atoms in the primitive cell", np.geomspace(0.95, 250, 31)),
    "species": ("elements", np.arange(0.5, 8)),
    "density": ("volume over the sum of its atoms'", np.linspace(0.6, 2, 36)),
    "shortest": ("shortest distance, Å", np.linspace(0.6, 4, 35)),
    "ratio": ("shortest distance over its limit", np.linspace(0.8, 1.8, 41)),
    "axes": ("c/a (t, h, o lattices)", np.linspace(0, 6, 49)),
}


def columns(crystals: list[Crystal]) -> dict[str, NDArray[np.float64]]:
    """Return the features of all crystals, each of shape (n,)."""
    rows = [features(crystal) for crystal in crystals]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in PANELS}


def main(table: str, picture: str) -> None:
    """Draw the picture."""
    rng = np.random.default_rng(0)
    every = list(training_crystals(table))
    known = columns([every[index] for index in rng.permutation(len(every))[:N_CRYSTALS]])
    settings = SyntheticSettings(weights="training")
    made = columns(Generator(settings).draw_many(range(N_CRYSTALS)))
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 5.6), layout="constrained")
    for axis, (name, (label, bins)) in zip(axes.flat, PANELS.items(), strict=True):
        for values, colour, legend in (
            (known[name], KNOWN, "training crystals"),
            (made[name], MADE, "generated"),
        ):
            values = values[np.isfinite(values)]
            weights = np.full(len(values), 100 / len(values))
            axis.hist(values, bins, weights=weights, histtype="stepfilled", color=colour, alpha=0.25)
            axis.hist(values, bins, weights=weights, histtype="step", color=colour, label=legend)
            print(f"{name:9s} {legend:18s} median {np.median(values):.3f}")
        if name == "atoms":
            axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.set_ylabel("% of crystals")
    axes[0, 1].legend(frameon=False, fontsize=8)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
