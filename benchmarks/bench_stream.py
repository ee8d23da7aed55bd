"""Rate of the endless stream, by threads and by processes, beside the plain simulator's.

    python benchmarks/bench_stream.py --json stream.json

All ways take turns, round by round, and a figure is the median over the rounds: a machine that slows down
slows all of them. The plain simulator is given its crystals drawn beforehand, on one thread; the
stream draws them. Before anything is timed, all ways are seen to give the same patterns. Workers are warm:
each has made a block before the clock starts, and the blocks that were waiting at the start are made up
for by those waiting at the end.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Generator
from itertools import islice
from pathlib import Path

import numpy as np
import report

from hxrd.crystal.symmetry import SPACE_GROUPS_144
from hxrd.crystal.synthetic import SyntheticSettings
from hxrd.physics.instrument import load_instrument
from hxrd.simulate.augmentation import load_augmentation
from hxrd.simulate.simulate import simulate_patterns
from hxrd.simulate.stream import Block, PatternStream
from hxrd.simulate.supply import SyntheticCrystals

WAYS = {
    "stream, calling thread": None,
    "stream, 1 thread": (1, False),
    "stream, 2 threads": (2, False),
    "stream, 1 process": (1, True),
    "stream, 2 processes": (2, True),
}


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def open_ways(stream: PatternStream) -> dict[str, Generator[Block, None, None]]:
    """Start every way of reading the stream, and see that all give the same first block."""
    ways = {
        name: (stream.block(number, threads=1) for number in range(10**9))
        if workers is None
        else stream.blocks(workers=workers[0], processes=workers[1])
        for name, workers in WAYS.items()
    }
    first = stream.block(0)
    for name, blocks in ways.items():
        if not np.array_equal(next(blocks).intensity, first.intensity):
            raise SystemExit(f"{name}: its patterns differ")
    return ways


def measure(augmentation: str | None, rounds: int, n_blocks: int) -> dict[str, float]:
    """Median patterns per second of the plain simulator and of every way."""
    instrument = load_instrument("paper")
    supply = SyntheticCrystals(SyntheticSettings(groups=SPACE_GROUPS_144))
    stream = PatternStream(supply, instrument, augmentation and load_augmentation(augmentation))
    crystals = supply.crystals(np.arange(n_blocks * stream.block_size), 0)
    n_patterns = len(crystals)
    simulate_patterns(crystals[:8], instrument, threads=1)
    ways = open_ways(stream)
    times: dict[str, list[float]] = {name: [] for name in ("plain simulator, crystals at hand", *ways)}
    for turn in range(rounds):
        names = list(times)[:: 1 if turn % 2 else -1]
        for name in names:
            if name in ways:
                # Workers stand still while other ways are timed, so what they have ahead is taken first.
                for _ in islice(ways[name], 3):
                    pass
                times[name].append(seconds(lambda blocks=ways[name]: list(islice(blocks, n_blocks))))
            else:
                times[name].append(seconds(lambda: simulate_patterns(crystals, instrument, threads=1)))
    for blocks in ways.values():
        blocks.close()
    return {name: round(n_patterns / float(np.median(spent)), 1) for name, spent in times.items()}


def main() -> None:
    """Measure clean and augmented streams, print a table and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=8, help="blocks of 256 patterns in a round")
    parser.add_argument("--json", type=Path, help="file for the figures")
    chosen = parser.parse_args()
    results = {}
    for augmentation in (None, "realistic-neutron"):
        results[augmentation or "clean"] = rates = measure(augmentation, chosen.rounds, chosen.blocks)
        plain = next(iter(rates.values()))
        print(f"\n{augmentation or 'clean'}: patterns/s, and relative to the plain simulator on one thread")
        for name, rate in rates.items():
            print(f"{rate:10.0f}  {rate / plain:5.2f}  {name}", flush=True)
    if chosen.json:
        figures = {
            "patterns_per_second": results,
            "hardware": report.hardware(),
            "versions": report.versions(),
            "load_average": os.getloadavg(),
        }
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
