"""How long hxrd takes to begin: its help against importing click, one pattern against importing torch.

    python benchmarks/bench_startup.py                         # half a minute
    python benchmarks/bench_startup.py --json startup.json
    pytest benchmarks/bench_startup.py -s

Every figure is the wall time of a process of its own, from its start to its end, the contestants in turn. The
archives hold one pattern many times, so that all of a run but its patterns is seen.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from interleaved import Times, ratio_of, times_in_turn
from report import CHECKOUT, Line, record, table

PATTERN = CHECKOUT / "scripts" / "examples" / "corundum_1.5403.xye"
RADIATION = ("--probe", "neutron", "--wavelength", "1.5403")
MOST_TIMES_TORCH = 2.0  # the time of one pattern over that of importing torch
MOST_TIMES_CLICK = 2.0
_HXRD = "import sys; from hxrd.cli.main import main; sys.exit(main())"

Contestant = Callable[[], object]


def python(program: str, *arguments: str, **environment: str) -> Contestant:
    """Return a call that runs a program to its end, in a process of its own."""

    def call() -> None:
        command = [sys.executable, "-c", program, *arguments]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})

    return call


def hxrd(*arguments: str, **environment: str) -> Contestant:
    """Return a call of the command line."""
    return python(_HXRD, *arguments, **environment)


def repeated_pattern(folder: Path, n_patterns: int) -> str:
    """Write an archive of the measured pattern, `n_patterns` times, and return its path."""
    from hxrd.archive import create_archive
    from hxrd.formats import read_pattern

    measured = read_pattern(PATTERN)
    path = folder / f"{n_patterns}.zarr"
    with create_archive(
        path,
        n_patterns=n_patterns,
        two_theta=measured.two_theta,
        probe="neutron",
        wavelength=1.5403,
        instrument="measured",
        normalization="none",
        provenance={},
    ) as writer:
        rows = np.tile(measured.intensity.astype(np.float32), (n_patterns, 1))
        names = [f"{measured.name} {row}" for row in range(n_patterns)]
        writer.write_shard(
            0, rows, np.zeros(n_patterns, np.int16), names, np.ones(n_patterns), [None] * n_patterns
        )
    return str(path)


def difference_from_torch() -> float:
    """Return how far the pattern's logits by NumPy, which a small job uses, are from torch's."""
    import torch

    from hxrd.formats import read_pattern
    from hxrd.kernels.numpy_network import numpy_logits
    from hxrd.models.layout import pool_of
    from hxrd.models.preprocess import Grid, to_model_grid
    from hxrd.models.registry import load_model, network_input

    loaded, measured = load_model("neutron"), read_pattern(PATTERN)
    grid = Grid.of_range(*loaded.metadata.grid, loaded.metadata.wavelength)
    prepared = to_model_grid(measured.two_theta, measured.intensity, 1.5403, grid, background=True)
    x = network_input(prepared.intensity[None], loaded.metadata)
    with torch.inference_mode():
        truth = loaded.model(torch.from_numpy(x)[:, None]).numpy()
    return float(np.abs(numpy_logits(loaded.weights, x, pool_of(loaded.metadata.variant)) - truth).max())


def contestants(folder: Path) -> dict[str, Contestant]:
    """Return what is timed, by name."""
    one = ("classify", str(PATTERN), *RADIATION)
    small, large = (repeated_pattern(folder, n) for n in (199, 200))
    return {
        "nothing": python("pass"),
        "click": python("import click"),
        "help": hxrd("--help"),
        "torch": python("import torch"),
        "one": hxrd(*one),
        "cold": hxrd(*one, NUMBA_CACHE_DIR=str(folder / "empty")),
        "to_file": hxrd(*one, "-o", str(folder / "result.parquet"), "--force"),
        "small": hxrd("classify", small, "-o", str(folder / "small.parquet"), "--force"),
        "large": hxrd("classify", large, "-o", str(folder / "large.parquet"), "--force"),
    }


def lines_of(times: Times, agreement: str) -> list[Line]:
    """Return the comparisons."""

    def line(name: str, ours: str, other: str, most_times: float | None) -> Line:
        ratio, need = ratio_of(times[other], times[ours]), None if most_times is None else 1 / most_times
        seconds = (float(np.median(times[contestant])) for contestant in (ours, other))
        return Line(name, need, ratio, *seconds, agreement if ours in ("one", "cold", "to_file") else "")

    return [
        line("hxrd --help : import click", "help", "click", MOST_TIMES_CLICK),
        line("one .xye to a table : import torch", "one", "torch", MOST_TIMES_TORCH),
        line("one .xye, no compiled code on disk : import torch", "cold", "torch", MOST_TIMES_TORCH),
        line("one .xye to Parquet : import torch", "to_file", "torch", MOST_TIMES_TORCH),
        line("199 patterns (NumPy) : import torch", "small", "torch", None),
        line("200 patterns (compiled before) : import torch", "large", "torch", None),
        line("an empty program : import torch", "nothing", "torch", None),
    ]


def seconds_to_compile(folder: Path) -> float:
    """Return how long the first large job of a machine takes."""
    begun = time.perf_counter()
    large = ("classify", str(folder / "200.zarr"), "-o", str(folder / "first.parquet"))
    hxrd(*large, NUMBA_CACHE_DIR=str(folder / "new"))()
    return time.perf_counter() - begun


def run(rounds: int, first_large_job: bool = True) -> tuple[list[Line], dict[str, float]]:
    """Time everything, and return the lines and the times of single runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agreement = f"logits within {difference_from_torch():.1e} of torch's"
        times = times_in_turn(contestants(folder), seconds=0, least_rounds=rounds)
        single = {"first_large_job_seconds": round(seconds_to_compile(folder), 2)} if first_large_job else {}
    return lines_of(times, agreement), single


def test_startup() -> None:
    """Print the figures; assert that what a start computes is what torch would."""
    assert difference_from_torch() < 1e-4
    print("\n" + table(run(rounds=3, first_large_job=False)[0]))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="processes of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    arguments = parser.parse_args()
    lines, single = run(arguments.rounds)
    print(table(lines))
    print(*(f"{name}: {value}" for name, value in single.items()), sep="\n")
    if arguments.json is not None:
        content = record(lines, single, "wall")
        arguments.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
