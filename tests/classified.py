"""A small model, small archives and batches of logits for the tests of `hxrd classify`."""

from pathlib import Path

import msgspec
import numpy as np
import torch

from hxrd.archive import create_archive
from hxrd.classify.labels import Labels
from hxrd.classify.results import ClassifiedBatch, Columns
from hxrd.models.registry import ModelMetadata, save_model
from hxrd.models.resnet1d import ResNet1D
from hxrd.physics.instrument import load_instrument

GRID = (10.0, 60.0, 0.1)
TWO_THETA = np.round(10 + 0.1 * np.arange(501), 6)
WAVELENGTH = 2.0775
CLASSES = (2, 14, 62, 92, 96, 152, 154, 166, 194, 225, 227, 229)
N_CLASSES = len(CLASSES)

SIMULATED = {
    "command": "hxrd simulate ids.txt",
    "instrument_settings": msgspec.to_builtins(load_instrument("paper")),
}


def model_metadata(**changes) -> ModelMetadata:
    """Return the metadata of a model of `CLASSES` on `GRID`."""
    fields = {
        "name": "tiny",
        "variant": "paper",
        "task": "space-group",
        "classes": CLASSES,
        "grid": GRID,
        "probe": "neutron",
        "wavelength": WAVELENGTH,
    }
    return ModelMetadata(**(fields | changes))


def make_model(path: Path, **changes: object) -> Path:
    """Write a random model of `CLASSES` (or of those given) on `GRID`."""
    own = {"name": path.stem, "temperature": 1.5, "provenance": {"instrument": "paper"}}
    metadata = model_metadata(**(own | changes))
    torch.manual_seed(7)
    network = ResNet1D(metadata.n_classes, variant=metadata.variant)
    with torch.no_grad():
        network.classifier.weight *= 20  # clear differences between classes and patterns
    save_model(path, network, metadata)
    return path


def make_patterns(n: int, seed: int = 0) -> np.ndarray:
    """Return (n, 501) patterns of a few Gaussian peaks, maximum 1."""
    generator = np.random.default_rng(seed)
    centres, heights = generator.uniform(12, 58, (n, 8)), generator.uniform(0.1, 1, (n, 8))
    offset = TWO_THETA - centres[:, :, None]
    intensity = (heights[:, :, None] * np.exp(-0.5 * (offset / 0.3) ** 2)).sum(axis=1)
    return (intensity / intensity.max(axis=1, keepdims=True)).astype(np.float32)


def make_archive(
    path: Path,
    intensity: np.ndarray,
    *,
    rejected: tuple[int, ...] = (),
    written: int | None = None,
    **changes,
) -> Path:
    """Write an archive with truths cycling through `CLASSES`; only the first `written` rows, if given."""
    n = len(intensity)
    settings = {
        "n_patterns": n,
        "two_theta": TWO_THETA,
        "probe": "neutron",
        "wavelength": WAVELENGTH,
        "instrument": "paper",
        "normalization": "maximum",
        "provenance": SIMULATED,
        "chunk_size": 16,
        "shard_size": 32,
    }
    writer = create_archive(path, **(settings | changes))
    for index in writer.pending_shards():
        start = index * writer.shard_size
        rows = range(start, min(start + writer.shard_size, n))
        if written is not None and start >= written:
            continue
        writer.write_shard(
            index,
            np.where([[row in rejected] for row in rows], 0, intensity[rows.start : rows.stop]),
            np.array([CLASSES[row % len(CLASSES)] for row in rows]),
            [f"crystal {row}" for row in rows],
            np.array([2 if row in rejected else 1 for row in rows]),
            ["no scattering length for Ac" if row in rejected else None for row in rows],
        )
    writer.close()
    return path


def write_xye(path: Path, two_theta: np.ndarray, intensity: np.ndarray, header: str = "") -> Path:
    """Write a measured pattern."""
    lines = [f"{angle:.4f} {value:.6g} 1" for angle, value in zip(two_theta, intensity, strict=True)]
    path.write_text(header + "\n".join(lines) + "\n")
    return path


def columns(topk=5, task="all", logits=False, **changes):
    """Return the columns of a result, for a model with these changes."""
    described = model_metadata(**changes)
    return Columns(described, Labels.of_model(described), topk, task, logits)


def batch_of(made, logits, flag=None, space_group=None, first=0):
    """Return patterns with these logits, ranked for some columns; the true groups unknown if left out."""
    n, logits = len(logits), np.asarray(logits, np.float32)
    return ClassifiedBatch(
        first,
        [f"entry {row}" for row in range(n)],
        flag or [""] * n,
        [""] * n,
        np.zeros(n, np.int16) if space_group is None else np.array(space_group, np.int16),
        made.ranking.ranks(logits, compiled=False),
        logits,
    )


def table_of(made, logits, **about):
    """Return the rows of patterns with these logits (see `batch_of`)."""
    return made.table(batch_of(made, logits, **about))


def random_logits(n=50, n_classes=N_CLASSES, seed=0):
    return 3 * np.random.default_rng(seed).normal(size=(n, n_classes)).astype(np.float32)
