"""hxrd: space groups and Bravais lattices from powder diffraction patterns, at scale."""

__version__ = "0.1.0"
