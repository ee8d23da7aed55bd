"""The protocol that every source of crystals follows."""

from typing import Protocol

from hxrd.crystal.crystal import Crystal
from hxrd.errors import Rejected


class UnknownIdentifier(Rejected):
    """No source knows the identifier."""


class Source(Protocol):
    """Where an identifier becomes a crystal."""

    def get(self, identifier: str) -> Crystal:
        """Return the checked crystal of an identifier.

        Raises
        ------
        UnknownIdentifier
            The source has no such entry.
        Rejected
            It has, but the entry is no usable crystal.
        """
        ...

    def describe(self) -> str:
        """Return the specification that opens this source again, such as ``cif:DIR``."""
        ...
