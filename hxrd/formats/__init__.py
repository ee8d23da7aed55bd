"""Measured pattern files: one module a format."""
