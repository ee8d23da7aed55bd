"""What a run of `hxrd simulate` is to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from hxrd.physics.instrument import Instrument
from hxrd.simulate.augmentation import Augmentation
from hxrd.simulate.identifiers import Identifiers


@dataclass(frozen=True)
class Plan:
    """What a run is to do; two runs of equal plans (and shard sizes) give equal arrays.

    Parameters
    ----------
    identifiers : Identifiers
        In order.
    instrument : Instrument
        The diffractometer.
    seed : int
        Of all random numbers.
    sources : sequence of str
        Specifications of the sources, in the order they are tried.
    augmentation : Augmentation, optional
        What is added to clean patterns.
    per_structure : int
        Rows for each identifier, one after the other.
    """

    identifiers: Identifiers
    instrument: Instrument
    seed: int
    sources: Sequence[str]
    augmentation: Augmentation | None = None
    per_structure: int = 1

    @property
    def n_patterns(self) -> int:
        """Number of rows."""
        return len(self.identifiers) * self.per_structure

    @property
    def n_impurities(self) -> int:
        """Most foreign phases of a pattern."""
        impurity = self.augmentation and self.augmentation.impurity
        return impurity.phases if impurity else 0

    @property
    def has_masks(self) -> bool:
        """Whether some points of some patterns may not count."""
        augmentation = self.augmentation
        return augmentation is not None and bool(augmentation.truncation or augmentation.masked_regions)

    def read_identifiers(self, rows: range) -> list[str]:
        """Return the identifier of each row.

        Raises
        ------
        InputError
            Their file cannot be read any more.
        """
        first = rows.start // self.per_structure
        names = self.identifiers.read(first, -(-rows.stop // self.per_structure))
        return [names[row // self.per_structure - first] for row in rows]

    def provenance(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the first, as JSON has it."""
        return {
            "identifiers_sha256": self.identifiers.sha256,
            "instrument_settings": _as_json(self.instrument),
            "seed": self.seed,
            "sources": list(self.sources),
            "augmentation": _as_json(self.augmentation),
            "per_structure": self.per_structure,
        }


def _as_json(settings: msgspec.Struct | None) -> Any:
    """Return settings as they are read back from JSON, where tuples are lists."""
    return msgspec.json.decode(msgspec.json.encode(settings))
