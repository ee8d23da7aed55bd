"""A tree of CIF files, such as an ICSD export: ``cif:DIR``.

An identifier is a file's own name with or without a database's prefix (``icsd_000123.cif`` answers to
``icsd_000123``, ``000123`` and ``123``; but ``mp-149.cif`` never to ``149``), a path inside the tree, or
a collection code written in the file (`_database_code_ICSD`, `_cod_database_code`, …). The names are
listed when the source is opened, which is quick; the files are read for their codes only when a name
is not found.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from hxrd.crystal.cif import CODE_TAGS, cif_bytes, crystals_from_cif
from hxrd.crystal.crystal import Crystal
from hxrd.errors import InputError, Rejected, UsageError
from hxrd.sources.source import UnknownIdentifier

_SUFFIX = re.compile(r"\.cif(\.gz)?$", re.IGNORECASE)
_PREFIXED = re.compile(
    r"(?:(?:icsd[ _-]*)?(?:entrywith)?coll(?:ection)?code|icsd|cod|amcsd|ccdc)"
    r"(?:[ _-]+(?P<rest>.+)|(?P<number>\d.*))",
    re.IGNORECASE,
)
_CODE = re.compile(
    rb"^[ \t]*(?:" + "|".join(map(re.escape, CODE_TAGS)).encode() + rb")[ \t]+('[^']+'|\"[^\"]+\"|\S+)",
    re.IGNORECASE | re.MULTILINE,
)


class CifTree:
    """CIF files below a folder, by file name or collection code.

    Parameters
    ----------
    folder : Path
        Searched with all folders below it; files ending in ``.cif`` or ``.cif.gz``.

    Raises
    ------
    UsageError
        There is no such folder.
    InputError
        It is not a folder, or holds no CIF file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.folder.exists():
            raise UsageError(f"{folder}: no such folder (cif: takes a folder of CIF files)")
        if not self.folder.is_dir():
            raise InputError(f"{folder} is no folder: cif: takes a folder of CIF files")
        self.paths = sorted(_cif_files(self.folder))
        if not self.paths:
            raise InputError(f"{folder} holds no .cif or .cif.gz file")
        self._by_name = _index_by_name(self.folder, self.paths)
        self._by_code: dict[str, Path] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def identifiers(self) -> Iterator[str]:
        """Yield the files' own names, without suffix."""
        return (_SUFFIX.sub("", path.name) for path in self.paths)

    def get(self, identifier: str) -> Crystal:
        """Return the checked crystal (see `Source.get`).

        Of a file with several data blocks, the block with that collection code or name, else the
        first one.
        """
        path = self._path(identifier)
        if path is None:
            raise UnknownIdentifier(f"no file or collection code of this name in {self.folder}")
        try:
            blocks = list(crystals_from_cif(path))
        except (InputError, UsageError) as error:
            raise Rejected(str(error)) from error
        keys = _keys(identifier)
        chosen = next((block for name, block in blocks if keys & _keys(name)), blocks[0][1])
        if isinstance(chosen, Rejected):
            raise Rejected(f"{path.name}: {chosen}") from chosen
        return chosen

    def describe(self) -> str:
        """Return the specification of this source."""
        return f"cif:{self.folder}"

    def _path(self, identifier: str) -> Path | None:
        for key in _lookup_keys(identifier):
            if key in self._by_name:
                return self._by_name[key]
        if self._by_code is None:
            self._by_code = _index_by_code(self.paths)
        return next((self._by_code[key] for key in _lookup_keys(identifier) if key in self._by_code), None)


def _cif_files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if _SUFFIX.search(name))


def _lookup_keys(name: str) -> list[str]:
    """Forms under which a name is known, the exact one first: as is, its number, bare of zeros."""
    keys = [name]
    if match := _PREFIXED.fullmatch(name):
        keys.append(match["rest"] or match["number"])
    if keys[-1].isdigit():
        keys.append(keys[-1].lstrip("0") or "0")
    return list(dict.fromkeys(keys))


def _keys(name: str) -> set[str]:
    return set(_lookup_keys(name))


def _index_by_name(folder: Path, paths: list[Path]) -> dict[str, Path]:
    """Exact names win over derived forms, and of equal names the first path in order."""
    exact: dict[str, Path] = {}
    derived: dict[str, Path] = {}
    for path in paths:
        stem = _SUFFIX.sub("", path.name)
        relative = path.relative_to(folder).as_posix()
        for key in (stem, path.name, relative, _SUFFIX.sub("", relative)):
            exact.setdefault(key, path)
        for key in _lookup_keys(stem)[1:]:
            derived.setdefault(key, path)
    return derived | exact


def _index_by_code(paths: list[Path]) -> dict[str, Path]:
    """Collection codes written in the files; a file that cannot be read has none here."""
    index: dict[str, Path] = {}
    for path in paths:
        try:
            content = cif_bytes(path)
        except (InputError, UsageError):
            continue
        for code in _CODE.findall(content):
            for key in _lookup_keys(code.decode("latin-1").strip("'\"")):
                index.setdefault(key, path)
    return index
