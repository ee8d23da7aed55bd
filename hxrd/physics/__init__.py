"""Scattering lengths and form factors, reflections, instruments."""
