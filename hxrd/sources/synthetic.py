"""Synthetic crystals by name: ``synthetic`` makes ``syn-62-0-17`` (space group, seed, number) afresh."""

from collections.abc import Sequence

from hxrd.crystal.crystal import Crystal
from hxrd.sources.source import UnknownIdentifier


class SyntheticSource:
    """Every synthetic crystal that there can be: a name says all that its drawing needs."""

    def get(self, identifier: str) -> Crystal:
        """Return the crystal of a name (see `Source.get`)."""
        return self.get_many([identifier])[0]

    def get_many(self, identifiers: Sequence[str]) -> list[Crystal]:
        """Return the crystals of many names, cheaper than one by one.

        Raises
        ------
        UnknownIdentifier
            One of them is not the name of a synthetic crystal.
        Rejected
            One of them could not be drawn.
        """
        from hxrd.crystal.synthetic import crystals_named, parsed_identifier

        for identifier in identifiers:
            if parsed_identifier(identifier) is None:
                raise UnknownIdentifier("not the name of a synthetic crystal (syn-GROUP-SEED-NUMBER)")
        return crystals_named(identifiers)

    def describe(self) -> str:
        """Return the specification of this source."""
        return "synthetic"
