"""Where an identifier becomes a crystal: one module a source, one small protocol."""

from hxrd.sources.chain import SourceChain, default_specs, icsd_hint, open_sources
from hxrd.sources.source import Source, UnknownIdentifier

__all__ = [
    "Source",
    "SourceChain",
    "UnknownIdentifier",
    "default_specs",
    "icsd_hint",
    "open_sources",
]
