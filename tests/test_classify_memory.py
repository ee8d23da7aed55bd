"""`hxrd classify` of ten times the patterns takes the same memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from classified import make_archive, make_model, make_patterns

_PEAK = """
import re, sys
from hxrd.cli.main import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""
FEW = 6_000  # patterns; fewer would not fill the queues


def peak_megabytes(folder: Path, n_patterns: int) -> float:
    """Peak memory of a process that classifies an archive of so many patterns."""
    archive, output = folder / f"{n_patterns}.zarr", folder / f"{n_patterns}.parquet"
    shard = np.tile(make_patterns(512), (n_patterns // 512 + 1, 1))[:n_patterns]
    make_archive(archive, shard, chunk_size=64, shard_size=1024)
    options = ["--model", str(folder / "tiny.safetensors"), "--device", "cpu", "--workers", "1", "-q"]
    command = ["classify", str(archive), "-o", str(output), *options]
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *command], capture_output=True, text=True, timeout=600, check=True
    )
    assert pyarrow.parquet.read_metadata(output).num_rows == n_patterns
    return int(done.stdout) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_does_not_grow_with_the_number_of_patterns(tmp_path: Path) -> None:
    make_model(tmp_path / "tiny.safetensors")
    peak_megabytes(tmp_path, 1_000)  # compiles what is not compiled yet, which takes memory of its own
    few, many = peak_megabytes(tmp_path, FEW), peak_megabytes(tmp_path, 10 * FEW)
    assert many < 1.05 * few, (few, many)
    assert many < 1000
