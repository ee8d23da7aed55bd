"""`hxrd classify` of an archive, from its file to the Parquet file, against reading the archive alone."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

DISTINCT = 4096  # patterns; a larger archive repeats them
SPAN = 4096  # patterns read at once
NEEDED = ("zarr", "numba", "gemmi", "msgspec", "pyarrow", "click", "platformdirs", "filelock")
NEED = 0.5  # of the rate of reading alone


class MissingPackage(Exception):
    """Archives or the command line need a package that is not here."""


def end_to_end(folder: Path, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Return rates in patterns/s; the second of two runs counts, as the first compiles.

    Raises
    ------
    MissingPackage
        Archives or the command line need it.
    RuntimeError
        The command failed.
    """
    for package in NEEDED:
        try:
            import_module(package)
        except ImportError as error:
            raise MissingPackage(f"{package} cannot be imported ({error})") from error
    from hxrd.archive import open_archive
    from hxrd.cli.main import main

    n = 64 if tiny else 200_000 if device.type == "cuda" else 20_000
    archive = _archive(folder / "patterns.zarr", n)
    spans = [(first, min(first + SPAN, n)) for first in range(0, n, SPAN)]
    read_rates = {}
    for threads in sorted({1, 2, 4, min(8, os.cpu_count() or 1)}):
        opened = open_archive(archive)
        with ThreadPoolExecutor(threads) as pool:
            seconds = _timed(lambda: list(pool.map(lambda span: opened.read(*span).shape, spans)))  # noqa: B023
        read_rates[threads] = round(n / seconds)

    def classify() -> None:
        output = folder / "result.parquet"
        command = ["classify", str(archive), "-o", str(output), "--force", "-q", "--model", "neutron-clean"]
        if (code := main([*command, "--device", device.type])) != 0:
            raise RuntimeError(f"hxrd classify ended with exit code {code}")

    first = n / _timed(classify)
    rate = n / _timed(classify)
    share = rate / max(read_rates.values())
    found: dict[str, Any] = {
        "patterns": n,
        "read_alone_by_threads": read_rates,
        "classify_first_run": round(first),
        "classify": round(rate),
        "share_of_reading": round(share, 3),
    }
    return found if device.type == "cpu" else found | {"share_asked_for": NEED, "share_met": share >= NEED}


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _archive(path: Path, n: int) -> Path:
    """Write n patterns of peaks on a little noise, on the bundled model's grid."""
    from hxrd.archive import create_archive

    rng = np.random.default_rng(3)
    two_theta = 3 + 0.05 * np.arange(3041)
    profile = np.exp(-0.5 * (np.arange(-15, 16) / 5.0) ** 2)
    sticks = np.where(rng.random((min(n, DISTINCT), 3041)) < 0.02, rng.random((min(n, DISTINCT), 3041)), 0)
    patterns = np.stack([np.convolve(row, profile, "same") for row in sticks])
    patterns += 1e-3 * rng.random(patterns.shape)
    patterns = (patterns / patterns.max(axis=1, keepdims=True)).astype(np.float32)
    settings = {"probe": "neutron", "wavelength": 2.0775, "instrument": "paper", "normalization": "maximum"}
    with create_archive(
        path, n_patterns=n, two_theta=two_theta, provenance={"command": "benchmark"}, **settings
    ) as writer:
        shard, first = 0, 0
        while first < n:
            rows = writer.rows(shard)
            some = patterns[np.arange(rows.start, rows.stop) % len(patterns)]
            known = np.zeros(len(rows), np.int16)
            writer.write_shard(
                shard, some, known, [str(row) for row in rows], [1] * len(rows), [None] * len(rows)
            )
            shard, first = shard + 1, rows.stop
    return path
