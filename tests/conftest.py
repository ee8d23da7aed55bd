"""Fixtures that more than one test file uses."""

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared crystals and measured patterns, which only developers and CI have."""
    folder = Path(os.environ.get("HXRD_SHARED", CHECKOUT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("the shared test crystals and patterns are not here (set HXRD_SHARED)")
    return folder / "data"
