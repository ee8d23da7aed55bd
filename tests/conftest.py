"""Fixtures that more than one test file uses."""

import logging
import os
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def quiet_logger() -> Iterator[None]:
    """Undo what a command run inside the test's process did to hxrd's logger."""
    yield
    logger = logging.getLogger("hxrd")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def training_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of simulated patterns to train on; only to be read."""
    from training_archives import simulated_archive

    return simulated_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture
def one_torch_thread(training_archive: Path) -> Iterator[None]:
    """Let torch use one thread, as Numba's parallel simulation sets it to its own number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bundled(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small models in place of the bundled ones; no local models."""
    from classified import make_model

    from hxrd.models import registry

    folder = tmp_path_factory.mktemp("bundled")
    make_model(folder / "neutron-clean.safetensors")
    make_model(folder / "neutron.safetensors", preprocessing="background")
    local = tmp_path_factory.mktemp("local")
    monkeypatch.setattr(registry, "BUNDLED_FOLDER", folder)
    monkeypatch.setattr(registry, "local_folder", lambda: local)
    return folder
