"""Archives of patterns: a Zarr 3 group that is valid and readable at every moment of a run."""

from hxrd.archive.reader import Archive, Rejection, open_archive
from hxrd.archive.writer import ArchiveWriter, create_archive, open_writer

__all__ = ["Archive", "ArchiveWriter", "Rejection", "create_archive", "open_archive", "open_writer"]
