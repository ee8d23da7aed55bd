"""Sources by specification (``KIND`` or ``KIND:WHERE``), tried in order."""

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import platformdirs

from hxrd.crystal.crystal import Crystal
from hxrd.errors import InputError, Rejected, UsageError
from hxrd.sources.cif_tree import CifTree
from hxrd.sources.jsonl import JsonlSource
from hxrd.sources.prototypes import PrototypeSource
from hxrd.sources.source import Source, UnknownIdentifier
from hxrd.sources.synthetic import SyntheticSource

SOURCES_VARIABLE = "HXRD_SOURCES"
_KEPT = 4096  # crystals that are not asked for again
_LARGEST_KEPT = 500  # sites; a larger crystal is not kept, so that all together stay below some 100 MB
_KINDS_TEXT = "cif:DIR, prototypes, jsonl:FILE, jsonl:FILE.gz or synthetic"
_ICSD_NUMBER = re.compile(r"(?:icsd[ _-]*(?:collcode)?[ _-]*)?\d{1,7}", re.IGNORECASE)


class SourceChain:
    """Sources that are asked in order; the first that knows an identifier answers.

    Parameters
    ----------
    sources : sequence of Source
        In order of preference.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self._recent: dict[str, Crystal | Rejected] = {}  # the one not asked for longest comes first

    def get(self, identifier: str) -> Crystal:
        """Return the checked crystal of an identifier; the last few thousand are kept.

        Raises
        ------
        UnknownIdentifier
            No source knows it.
        Rejected
            The first source that knows it holds no usable crystal for it.
        """
        # Taken out and put back last, each in one operation: two threads at once look it up twice at worst.
        entry = self._recent.pop(identifier, None)
        if entry is None:
            entry = self._asked(identifier)
        if isinstance(entry, Rejected) or len(entry.species) <= _LARGEST_KEPT:
            self._recent[identifier] = entry
            if len(self._recent) > _KEPT:
                self._recent = dict(list(self._recent.items())[_KEPT // 2 :])
        if isinstance(entry, Rejected):
            raise type(entry)(*entry.args)
        return entry

    def _asked(self, identifier: str) -> Crystal | Rejected:
        for source in self.sources:
            try:
                return source.get(identifier)
            except UnknownIdentifier:
                continue
            except Rejected as rejection:
                return type(rejection)(*rejection.args)  # bare of the frames it went through
        return UnknownIdentifier(f"unknown to {', '.join(self.describe())}")

    def describe(self) -> list[str]:
        """Return the specifications of the sources, in order."""
        return [source.describe() for source in self.sources]


def open_sources(specs: Sequence[str] | None = None) -> SourceChain:
    """Return the sources that the specifications name.

    Parameters
    ----------
    specs : sequence of str, optional
        Such as ``cif:DIR``, ``prototypes``, ``jsonl:FILE``. Without any: the environment variable
        `HXRD_SOURCES` (comma-separated), else `sources` in the user's configuration file (see
        `config_path`), else the prototypes.

    Raises
    ------
    UsageError
        An unknown kind or a path that does not exist.
    InputError
        A path that cannot be used, or a broken configuration file.
    """
    return SourceChain([_open_source(spec) for spec in specs or default_specs()])


def default_specs() -> list[str]:
    """Return the specifications that hold without the option `--source` (see `open_sources`)."""
    variable = [spec.strip() for spec in os.environ.get(SOURCES_VARIABLE, "").split(",")]
    return list(filter(None, variable)) or _configured_specs() or ["prototypes"]


def config_path() -> Path:
    """Return where the user's configuration file is looked for: ``config.toml`` with `sources = [...]`."""
    return Path(platformdirs.user_config_dir("hxrd"), "config.toml")


class _Config(msgspec.Struct, forbid_unknown_fields=True):
    sources: list[str] = []


def _configured_specs() -> list[str]:
    path = config_path()
    try:
        if not path.is_file():
            return []
    except PermissionError:  # a home that is another user's, as in some containers
        return []
    try:
        with path.open("rb") as stream:
            return msgspec.convert(tomllib.load(stream), _Config).sources
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise InputError(
            f'{path} is no configuration (`sources = ["cif:DIR", …]` is expected): {error}'
        ) from error


def _open_source(spec: str) -> Source:
    kind, separator, where = spec.partition(":")
    if kind in _LATER:
        raise UsageError(f"source {spec!r}: {_LATER[kind]}")
    if kind not in _KINDS:
        raise UsageError(f"unknown source {spec!r}: it must be one of {_KINDS_TEXT}")
    if kind in ("prototypes", "synthetic"):
        if separator:
            raise UsageError(f"source {spec!r}: `{kind}` takes no path")
        return _KINDS[kind]()
    if not where:
        raise UsageError(f"source {spec!r} names no path: it must be one of {_KINDS_TEXT}")
    return _KINDS[kind](Path(where).expanduser())


_KINDS: dict[str, Callable[..., Source]] = {
    "cif": CifTree,
    "prototypes": PrototypeSource,
    "jsonl": JsonlSource,
    "synthetic": SyntheticSource,
}
_LATER = {
    "optimade": "OPTIMADE is not available in this version; download CIF files and use cif:DIR",
    "mp": "the Materials Project is not available in this version; download CIF files and use cif:DIR",
}


def icsd_hint(unknown: Iterable[str], n_identifiers: int) -> str | None:
    """Return how to supply an ICSD export, where that is what is missing.

    Parameters
    ----------
    unknown : iterable of str
        Identifiers that no source knew; only counted, so there may be millions.
    n_identifiers : int
        How many were asked for.

    Returns
    -------
    str or None
        One line, when nearly all identifiers are unknown and look like ICSD numbers.
    """
    n_unknown = icsd_like = 0
    for identifier in unknown:
        n_unknown += 1
        icsd_like += _ICSD_NUMBER.fullmatch(identifier) is not None
    if not n_unknown or n_unknown < 0.9 * n_identifiers or icsd_like < 0.9 * n_unknown:
        return None
    return (
        f"{n_unknown} of {n_identifiers} identifiers look like ICSD numbers and no source knows them: "
        "the ICSD is licensed and not part of hxrd; point to a folder with its CIF export, "
        "`--source cif:DIR`, or to a table of crystals, `--source jsonl:FILE`"
    )
