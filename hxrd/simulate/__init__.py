"""Crystals to patterns."""
