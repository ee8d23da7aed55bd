"""Measured pattern files: one module a format."""

from hxrd.formats.pattern import MeasuredPattern
from hxrd.formats.registry import is_pattern_file, known_formats, read_pattern

__all__ = ["MeasuredPattern", "is_pattern_file", "known_formats", "read_pattern"]
