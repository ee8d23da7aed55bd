"""Archives of patterns: a Zarr 3 group that is valid and readable at every moment of a run.

Zarr is imported with the first name that is used: measured files are classified without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hxrd.archive.reader import Archive, Rejection, open_archive
    from hxrd.archive.writer import ArchiveWriter, create_archive, open_writer

__all__ = ["Archive", "ArchiveWriter", "Rejection", "create_archive", "open_archive", "open_writer"]

_IN_READER = ("Archive", "Rejection", "open_archive")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{'reader' if name in _IN_READER else 'writer'}")
    return getattr(module, name)
