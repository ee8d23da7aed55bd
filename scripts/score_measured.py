"""How often a model is right on measured patterns, pattern by pattern.

    python scripts/score_measured.py MODEL manifest.csv [neutron|xray]

The manifest has a row for each pattern with the columns `id`, `xy` (file, relative to the manifest),
`probe`, `wavelength_A`, `space_group_number`, `single_phase` (yes or no).
"""

import csv
import sys
from pathlib import Path

import numpy as np

from hxrd.classify.backends import choose_backends
from hxrd.classify.engine import Engine
from hxrd.classify.inputs import open_inputs
from hxrd.classify.labels import Labels, probabilities_from_logits
from hxrd.classify.ranking import Ranking
from hxrd.crystal.symmetry import bravais_lattice, merged_number, merged_symbol
from hxrd.models.registry import load_model


def _cell(group: int) -> str:
    return merged_symbol(group).replace(" | ", " or ")


def main(model: str, manifest: str, probe: str = "neutron") -> None:
    """Print a Markdown table and the counts."""
    loaded = load_model(model)
    labels = Labels.of_model(loaded.metadata)
    ranking = Ranking.of_model(loaded.metadata, labels, topk=1)
    engine = Engine(loaded, choose_backends(loaded), ranking, with_logits=True)
    assert labels.entries is not None
    print(f"Model {loaded.metadata.name}, sha256 {loaded.sha256[:12]}\n")
    print("| pattern | true group | rank | first choice (probability) | lattice true / first | phases |")
    print("|---|---|---|---|---|---|")
    tally: dict[str, list[tuple[bool, bool, bool]]] = {"one": [], "several": []}
    with open(manifest, encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["probe"].replace("-", "") == probe]
    for row in rows:
        path = Path(manifest).parent / row["xy"]
        wavelength = float(row["wavelength_A"].split("/")[0])
        inputs = open_inputs([path], probe=probe, wavelength=wavelength)
        batch = next(engine.classify(inputs))
        assert batch.logits is not None
        probabilities = probabilities_from_logits(batch.logits, loaded.metadata.temperature)
        entries = labels.entries.summed(probabilities)[0]
        lattices = labels.bravais.summed(probabilities)[0]
        order = np.argsort(-entries, kind="stable")
        group = int(row["space_group_number"])
        ranked = [int(labels.entries.names[i]) for i in order]
        place = ranked.index(merged_number(group)) + 1 if merged_number(group) in ranked else 0
        lattice = str(labels.bravais.names[int(lattices.argmax())])
        phases = "one" if row["single_phase"] == "yes" else "several"
        tally[phases].append((place == 1, 1 <= place <= 5, lattice == bravais_lattice(group)))
        first = f"{_cell(ranked[0])} ({entries[order[0]]:.2f}){' ' + batch.flag[0] if batch.flag[0] else ''}"
        print(
            f"| {row['id']} | {_cell(group)} | {place or 'not a class'} | {first} "
            f"| {bravais_lattice(group)} / {lattice} | {phases} |"
        )
    for phases, results in tally.items():
        if results:
            first_right, within_five, lattice_right = np.sum(results, axis=0)
            print(
                f"\n{phases} phase(s): n = {len(results)}, group first {first_right}, "
                f"within five {within_five}, Bravais lattice first {lattice_right}"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
