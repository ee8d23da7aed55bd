"""Peak memory and rate of `hxrd simulate` end to end, for runs of different lengths.

    python benchmarks/bench_simulate_memory.py 100000 1000000 --scratch /a/disk/with/12/GB -o memory.json

Each run is a process of its own that simulates the AFLOW prototypes of pymatgen, repeated as often as need
be, with the options given after `--`. The archive of a run is deleted before the next begins.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path

# The kernel's high-water mark of this very process; `ru_maxrss` would include what its parent had.
_PROGRAM = """
import re, sys, time
from hxrd.cli.main import main
code = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(int(peak[1]) * 1024, time.process_time())
sys.exit(code)
"""


def run(n_patterns: int, scratch: Path, options: list[str]) -> dict[str, float]:
    """Simulate `n_patterns` patterns and return what that took."""
    from hxrd.sources.prototypes import PrototypeSource

    identifiers, archive = scratch / "identifiers.txt", scratch / "patterns.zarr"
    with identifiers.open("w", encoding="utf-8") as file:
        file.writelines(f"{name}\n" for name in islice(cycle(PrototypeSource().identifiers()), n_patterns))
    command = [sys.executable, "-c", _PROGRAM, "simulate", str(identifiers), "-o", str(archive), "-q"]
    try:
        begin = time.perf_counter()
        done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - begin
        if done.returncode not in (0, 3):  # some prototypes hold elements without a scattering length
            raise SystemExit(f"hxrd simulate ended with {done.returncode}")
        peak, processor_seconds = done.stdout.split()
        size = sum(file.stat().st_size for file in archive.rglob("*") if file.is_file())
    finally:
        shutil.rmtree(archive, ignore_errors=True)
        identifiers.unlink(missing_ok=True)
    return {
        "n_patterns": n_patterns,
        "seconds": round(seconds, 2),
        "patterns_per_second": round(n_patterns / seconds, 1),
        "processor_microseconds_per_pattern": round(1e6 * float(processor_seconds) / n_patterns, 1),
        "peak_resident_bytes": int(peak),
        "archive_bytes_per_pattern": round(size / n_patterns, 1),
    }


def main() -> None:
    """Measure the runs one after the other, print each, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="+", help="patterns of each run")
    parser.add_argument("--scratch", type=Path, default=Path("."), help="folder for the archives")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the figures")
    own, options = sys.argv[1:], []
    if "--" in own:
        cut = own.index("--")
        own, options = own[:cut], own[cut + 1 :]
    chosen = parser.parse_args(own)
    run(100, chosen.scratch, options)  # compiles what is not compiled yet, which takes memory of its own
    runs = []
    for size in chosen.sizes:
        runs.append(run(size, chosen.scratch, options))
        print(json.dumps(runs[-1]), flush=True)
    if len(runs) > 1:
        growth = runs[-1]["peak_resident_bytes"] / runs[0]["peak_resident_bytes"] - 1
        print(f"peak memory of the last run against the first: {growth:+.1%}")
    if chosen.output:
        report = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "options": options,
            "runs": runs,
        }
        chosen.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
