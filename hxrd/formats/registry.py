"""Which reader takes a file."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol

from hxrd.errors import InputError, UsageError
from hxrd.formats import columns
from hxrd.formats.pattern import MeasuredPattern


class Reader(Protocol):
    """What a format's module offers."""

    DESCRIPTION: str

    def understands(self, path: Path) -> bool:
        """Tell cheaply whether the file seems to be of this format."""

    def read(self, path: Path) -> MeasuredPattern:
        """Read the file."""


READERS: Sequence[Reader] = (columns,)


def known_formats() -> str:
    """Return the known formats in one line, for help and errors."""
    return "; ".join(reader.DESCRIPTION for reader in READERS)


def is_pattern_file(path: str | PathLike[str]) -> bool:
    """Tell cheaply whether some reader takes the file."""
    file = Path(path)
    return any(reader.understands(file) for reader in READERS)


def read_pattern(path: str | PathLike[str]) -> MeasuredPattern:
    """Read a measured pattern of any known format.

    Parameters
    ----------
    path : str or path-like
        The file.

    Returns
    -------
    MeasuredPattern
        At least 10 points in degrees, sorted.

    Raises
    ------
    UsageError
        The path does not exist.
    InputError
        It cannot be read as a pattern; one line that names the file and says why.
    """
    file = Path(path)
    if not file.exists():
        raise UsageError(f"{file} does not exist")
    if file.is_dir():
        raise InputError(f"{file} is a directory; give the pattern files in it")
    if not file.is_file():
        raise InputError(f"{file} is not a regular file")
    for reader in READERS:
        if reader.understands(file):
            return reader.read(file)
    raise InputError(f"{file} is of no known pattern format; hxrd reads {known_formats()}")
