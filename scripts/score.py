"""How often a model is right on archives whose space groups are known.

    python scripts/score.py MODEL ARCHIVE.zarr [ARCHIVE.zarr ...]

Prints a Markdown table: top-1 and top-5 in percent with 95 % bootstrap intervals, over the patterns whose
group is one of the model's classes. `space group` counts enantiomorphs apart, as the paper does; the
coarser rows are sums of the calibrated probabilities. ECE is the expected calibration error (15 bins).
"""

import sys

import numpy as np
from numpy.typing import NDArray

from hxrd.classify.backends import choose_backends
from hxrd.classify.calibration import expected_calibration_error
from hxrd.classify.engine import Engine
from hxrd.classify.inputs import open_inputs
from hxrd.classify.labels import Labels, probabilities_from_logits
from hxrd.classify.ranking import Ranking
from hxrd.evaluate.metrics import hits_within, share
from hxrd.models.registry import LoadedModel, load_model


def logits_and_truth(loaded: LoadedModel, path: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits and class index of every good pattern of a group that the model knows."""
    ranking = Ranking.of_model(loaded.metadata, Labels.of_model(loaded.metadata), topk=1)
    engine = Engine(loaded, choose_backends(loaded), ranking, with_logits=True, compiled=True)
    index = {group: label for label, group in enumerate(loaded.metadata.classes)}
    logits, truth = [], []
    for batch in engine.classify(open_inputs([path])):
        assert batch.logits is not None
        labels = np.array([index.get(int(group), -1) for group in batch.space_group])
        known = (labels >= 0) & np.array([not flag for flag in batch.flag])
        logits.append(batch.logits[known])
        truth.append(labels[known])
    return np.concatenate(logits), np.concatenate(truth)


def main(model: str, *archives: str) -> None:
    """Print the table."""
    loaded = load_model(model)
    labels = Labels.of_model(loaded.metadata)
    print(f"Model {loaded.metadata.name}, sha256 {loaded.sha256[:12]}\n")
    print("| archive | n | what | top-1 % | top-5 % |")
    print("|---|---|---|---|---|")
    for path in archives:
        logits, truth = logits_and_truth(loaded, path)
        rows = {"space group": (logits, truth)}
        probabilities = probabilities_from_logits(logits, loaded.metadata.temperature)
        for name, grouping in [
            ("enantiomorphs merged", labels.entries),
            ("extinction group", labels.extinction),
            ("Bravais lattice", labels.bravais),
            ("crystal system", labels.system),
        ]:
            if grouping is not None:
                rows[name] = (grouping.summed(probabilities), grouping.part_of_class[truth])
        for name, (scores, right) in rows.items():
            first, five = share(hits_within(scores, right, 1)), share(hits_within(scores, right, 5))
            print(f"| {path} | {first.n} | {name} | {first} | {five} |")
        right = probabilities.argmax(axis=1) == truth
        error = expected_calibration_error(probabilities.max(axis=1), right)
        print(f"| {path} | {len(truth)} | ECE | {100 * error:.1f} | |")


if __name__ == "__main__":
    main(*sys.argv[1:])
