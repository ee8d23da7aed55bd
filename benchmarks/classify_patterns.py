"""Patterns that the classifiers are compared on: real crystals, simulated as the bundled models expect."""

import gzip
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from crystals import prototypes
from numpy.typing import NDArray

from hxrd.archive import create_archive
from hxrd.crystal.crystal import Crystal
from hxrd.errors import Rejected
from hxrd.models.registry import LoadedModel, network_input
from hxrd.physics.instrument import load_instrument
from hxrd.simulate.simulate import simulate_patterns
from hxrd.sources.jsonl import crystal_from_line

CHECKOUT = Path(__file__).resolve().parent.parent
INSTRUMENT = "paper"


@dataclass(frozen=True)
class Patterns:
    """Simulated patterns and what is true of them.

    Parameters
    ----------
    origin : str
        What crystals they are of.
    intensity : ndarray, shape (n, n_points)
        Maximum 1.
    space_group : ndarray, shape (n,)
    """

    origin: str
    intensity: NDArray[np.float32]
    space_group: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.intensity)

    def inputs(self, loaded: LoadedModel) -> NDArray[np.float32]:
        """Return what the network is given."""
        return network_input(self.intensity, loaded.metadata)

    def labels(self, loaded: LoadedModel) -> NDArray[np.int64]:
        """Return the number of the true class; -1 where the model does not know it."""
        numbers = {group: number for number, group in enumerate(loaded.metadata.classes)}
        return np.array([numbers.get(int(group), -1) for group in self.space_group])


def real_patterns(loaded: LoadedModel, at_most: int) -> Patterns:
    """Return patterns of the shared crystals of unseen structure types, or else of the AFLOW prototypes.

    Crystals whose space group the model does not know are left out.
    """
    return _patterns(loaded.metadata.classes, at_most)


@cache
def _patterns(groups: tuple[int | str, ...], at_most: int) -> Patterns:
    shared = Path(os.environ.get("HXRD_SHARED", CHECKOUT.parent / "shared")) / "data" / "crystals.jsonl.gz"
    crystals = _unseen_types(shared) if shared.is_file() else prototypes()[0]
    known = [crystal for crystal in crystals if crystal.space_group in groups]
    chosen = known[:: max(1, len(known) // at_most)][:at_most]
    intensity, reasons = simulate_patterns(chosen, load_instrument(INSTRUMENT))
    good = [reason is None for reason in reasons]
    origin = "crystals of unseen structure types" if shared.is_file() else "AFLOW prototypes"
    true_groups = np.array([crystal.space_group for crystal in chosen], np.int16)[good]
    return Patterns(origin, np.maximum(intensity[good], 0), true_groups)


class _Split(msgspec.Struct):
    split: str


def _unseen_types(table: Path) -> list[Crystal]:
    decode = msgspec.json.Decoder(_Split).decode
    crystals = []
    with gzip.open(table) as lines:
        for line in lines:
            with suppress(Rejected):
                if decode(line).split == "test_type":
                    crystals.append(crystal_from_line(line))
    return crystals


def write_archive(path: Path, patterns: Patterns, n: int) -> Path:
    """Write n patterns, the same ones over and over, as `hxrd simulate` would."""
    instrument = load_instrument(INSTRUMENT)
    writer = create_archive(
        path,
        n_patterns=n,
        two_theta=instrument.grid(),
        probe=instrument.probe,
        wavelength=instrument.wavelength,
        instrument=INSTRUMENT,
        normalization="maximum",
        provenance={"command": "benchmark"},
    )
    with writer:
        for shard in writer.pending_shards():
            rows = writer.rows(shard)
            these = np.arange(rows.start, rows.stop) % len(patterns)
            writer.write_shard(
                shard,
                patterns.intensity[these],
                patterns.space_group[these],
                [f"crystal {row}" for row in rows],
                np.ones(len(rows), np.uint8),
                [None] * len(rows),
            )
    return path
