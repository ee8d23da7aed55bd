"""Crystals: the frozen `Crystal`, CIF files, and the tables of symmetry."""
