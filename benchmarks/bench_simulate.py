"""Rates of the simulator against its peers, one thread each, taken in turn within one run.

    python benchmarks/bench_simulate.py [--quick] [--only WORD] [--json OUT]
    pytest benchmarks/bench_simulate.py -s

What each line means, and where a comparison flatters one side, stands in benchmarks/README.md. No ratio is
given before the two results were seen to agree.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import breakdown
import crystals as made
import msgspec
import numpy as np
import peers
import pytest
from agreement import Disagreement, agreement_of_patterns, agreement_of_sticks
from interleaved import Clock, Ratio, ratio_of, timed, times_in_turn
from report import Line, record, table

from hxrd.crystal.crystal import Crystal
from hxrd.physics.instrument import Instrument, load_instrument, with_overrides
from hxrd.simulate.simulate import simulate_patterns, sticks

NEUTRONS = with_overrides(load_instrument("paper"), wavelength="1.5403")
XRAYS = with_overrides(
    load_instrument("paper"), probe="xray", wavelength="CuKa1", two_theta=(5.0, 90.0, 0.02)
)
XRAY_PATTERNS = with_overrides(load_instrument("paper"), probe="xray", wavelength="CuKa1")
STICKS_APART = 1e-4  # of the largest
HASHED = bytes(2**21)
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
_BLAS_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Effort:
    """How to measure: seconds a comparison, rounds over which prototypes, sizes of batches, the clock."""

    seconds: float
    rounds: int
    every: int
    copies: int
    mixed: int
    clock: Clock = time.perf_counter


FULL = Effort(seconds=10.0, rounds=5, every=1, copies=64, mixed=4000)
QUICK = Effort(seconds=0.5, rounds=1, every=12, copies=16, mixed=400)


def known_to_both(crystals: list[Crystal]) -> tuple[list[Crystal], list[peers.PymatgenNeutrons]]:
    """Leave out what either side rejects: elements without a scattering length."""
    _, reasons = simulate_patterns(crystals, NEUTRONS, threads=1)
    kept, calculators = [], []
    for crystal, reason in zip(crystals, reasons, strict=True):
        calculator = peers.PymatgenNeutrons(crystal, NEUTRONS)
        try:
            calculator.sticks()
        except ValueError:
            continue
        if reason is None:
            kept.append(crystal)
            calculators.append(calculator)
    return kept, calculators


def prototypes(effort: Effort, in_conventional_cells: bool = False) -> list[Line]:
    """Whole patterns of all AFLOW prototypes against pymatgen's sticks."""
    readable, _ = made.prototypes()
    chosen = readable[:: effort.every]
    if in_conventional_cells:
        chosen = [made.conventional(crystal) for crystal in chosen]
    crystals, calculators = known_to_both(chosen)
    apart = max(
        agreement_of_sticks(crystal, peer, NEUTRONS, STICKS_APART)
        for crystal, peer in zip(crystals, calculators, strict=True)
    )
    rounds = 1 if in_conventional_cells else effort.rounds

    def whole_batch() -> object:
        return simulate_patterns(crystals, NEUTRONS, threads=1)

    batch = np.empty(rounds)
    single, other = np.empty((rounds, len(crystals))), np.empty((rounds, len(crystals)))
    for i in range(rounds):
        batches = []
        for j, (crystal, peer) in enumerate(zip(crystals, calculators, strict=True)):
            if j % 28 == 0:  # within the round, so that both sides see the same minute of the machine
                batches.append(timed(whole_batch, 1, effort.clock))
            single[i, j] = timed(
                lambda one=crystal: simulate_patterns([one], NEUTRONS, threads=1), 3, effort.clock
            )
            other[i, j] = timed(peer, 1, effort.clock)
        batch[i] = np.median(batches)
    total = ratio_of(other.sum(axis=1), batch)
    each = np.median(other / single, axis=0)
    low, median, high = np.percentile(each, [25, 50, 75])
    n = len(crystals)
    cells = "conventional" if in_conventional_cells else "primitive"
    name = f"pattern of {n} of {len(chosen)} prototypes, {cells} cells, against pymatgen's sticks"
    return [
        Line(
            f"{name}: total of one batch",
            150 if effort.every == 1 and not in_conventional_cells else None,
            total,
            float(np.median(batch)) / n,
            float(np.median(other.sum(axis=1))) / n,
            f"sticks within {apart:.0e}",
        ),
        Line(
            f"{name}: total of single calls",
            None,
            ratio_of(other.sum(axis=1), single.sum(axis=1)),
            float(np.median(single.sum(axis=1))) / n,
            float(np.median(other.sum(axis=1))) / n,
        ),
        Line(
            f"{name}: single calls, crystal by crystal, quartiles over crystals",
            None,
            Ratio(float(median), float(low), float(high), rounds),
            float(np.median(single)),
            float(np.median(other)),
        ),
    ]


def conventional_prototypes(effort: Effort) -> list[Line]:
    """As `prototypes`, each in its conventional cell."""
    return prototypes(effort, in_conventional_cells=True)


def against_one(
    name: str,
    need: float | None,
    crystal: Crystal,
    peer: Callable[[], object],
    call: Callable[[list[Crystal]], object],
    effort: Effort,
) -> list[Line]:
    """Compare `call` of one crystal, and of a batch of its copies, with a peer."""
    batch = made.copies_of(crystal, effort.copies)
    times = times_in_turn(
        {"single": lambda: call([crystal]), "batch": lambda: call(batch), "peer": peer},
        effort.seconds,
        clock=effort.clock,
    )
    times["batch"] /= len(batch)
    medians = {key: float(np.median(value)) for key, value in times.items()}
    return [
        Line(f"{name}: {how}", need, ratio_of(times["peer"], times[key]), medians[key], medians["peer"])
        for key, how in (("single", "a call for one crystal"), ("batch", f"a batch of {len(batch)} copies"))
    ]


def p1_and_garnet(effort: Effort) -> list[Line]:
    """Whole patterns of cells without symmetry, and with the most, against pymatgen's sticks."""
    lines = []
    for crystal, need in (
        (made.triclinic_p1(40, 600.0, seed=1), 10.0),
        (made.triclinic_p1(60, 1500.0, seed=2), 10.0),
        (made.garnet(), 300.0),
    ):
        peer = peers.PymatgenNeutrons(crystal, NEUTRONS)
        apart = agreement_of_sticks(crystal, peer, NEUTRONS, STICKS_APART)
        found = against_one(
            f"pattern of {crystal.identifier} against pymatgen's sticks",
            need,
            crystal,
            peer,
            lambda batch: simulate_patterns(batch, NEUTRONS, threads=1),
            effort,
        )
        lines += [replace(line, agreement=f"sticks within {apart:.0e}") for line in found]
    return lines


def xray_sticks(effort: Effort) -> list[Line]:
    """Sticks against xrd-rust's."""
    lines = []
    for crystal in (made.silicon(), made.perovskite(), made.monoclinic(), made.garnet()):
        peer = peers.RustXrays(crystal, XRAYS)
        apart = agreement_of_sticks(crystal, peer, XRAYS, 0.02)
        found = against_one(
            f"X-ray sticks of {crystal.identifier} against xrd-rust's",
            5.0,
            crystal,
            peer,
            lambda batch: sticks(batch, XRAYS),
            effort,
        )
        lines += [
            replace(line, agreement=f"sticks within {apart:.0e}, form factors differ") for line in found
        ]
    return lines


def sticks_and_profile(effort: Effort) -> list[Line]:
    """Whole patterns against phasesmith's, in three ways that favour us less and less."""
    same_lengths = msgspec.structs.replace(NEUTRONS, scattering_table="periodictable")
    symmetric = msgspec.structs.replace(same_lengths, axial_divergence=0.0)
    ways: tuple[tuple[str, type[peers.Phasesmith], Instrument, float | None], ...] = (
        ("derivatives, axial asymmetry", peers.PhasesmithWhole, same_lengths, 1.0),
        ("values only, symmetric peaks", peers.PhasesmithValues, symmetric, 1.0),
        ("values only, symmetric peaks, without finding reflections", peers.PhasesmithKept, symmetric, None),
    )
    lines = []
    for crystal in (made.perovskite(), made.monoclinic(), made.garnet(), made.triclinic_p1(40, 600.0, 1)):
        for way, kind, instrument, need in ways:
            peer = kind(crystal, instrument)
            correlation = agreement_of_patterns(crystal, peer, instrument)
            found = against_one(
                f"pattern of {crystal.identifier} against phasesmith's ({way})",
                need,
                crystal,
                peer,
                lambda batch, instrument=instrument: simulate_patterns(batch, instrument, threads=1),
                effort,
            )
            lines += [replace(line, agreement=f"correlation {correlation:.5f}") for line in found]
    return lines


def two_threads(effort: Effort) -> list[Line]:
    """Two threads against one, on crystals of all sizes."""
    crystals = made.mixed(effort.mixed, NEUTRONS)
    one, _ = simulate_patterns(crystals, NEUTRONS, threads=1)
    two, _ = simulate_patterns(crystals, NEUTRONS, threads=2)
    if not np.array_equal(one, two):
        raise Disagreement("two threads give other patterns than one")
    calls = {n: lambda n=n: simulate_patterns(crystals, NEUTRONS, threads=int(n)) for n in ("1", "2")}
    calls |= {f"machine {n}": lambda n=n: hash_on_threads(int(n)) for n in ("1", "2")}
    times = times_in_turn(calls, effort.seconds)
    medians = {key: float(np.median(value)) / len(crystals) for key, value in times.items()}
    name = f"two threads against one, {len(crystals)} patterns of prototypes (hxrd with hxrd)"
    limit = "what this machine gives two threads: SHA-256 of 64 blocks, no memory shared, no Python between"
    machine = ratio_of(times["machine 1"], times["machine 2"])
    return [
        Line(name, 1.85, ratio_of(times["1"], times["2"]), medians["2"], medians["1"], "equal"),
        Line(limit, None, machine, medians["machine 2"], medians["machine 1"], "-"),
    ]


def hash_on_threads(n_threads: int) -> None:
    """Keep threads busy with what depends on the processor alone."""
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda _: hashlib.sha256(HASHED).digest(), range(64)))


def augmented_patterns(effort: Effort) -> list[Line]:
    """Augmented patterns against plain ones: the ratio is the share of the plain rate."""
    from hxrd.simulate.augment import augmented
    from hxrd.simulate.augmentation import augmentation_names, load_augmentation

    crystals = made.mixed(effort.mixed, NEUTRONS)
    seeds = np.arange(len(crystals), dtype=np.uint64)
    lines = []
    for preset in augmentation_names():
        augmentation = load_augmentation(preset)
        instrument = XRAY_PATTERNS if "xray" in preset else NEUTRONS
        found = augmented(crystals, instrument, augmentation, seeds, threads=1)
        if not np.isfinite(found.intensity).all():
            raise Disagreement(f"augmentation {preset} gives intensities that are no numbers")
        times = times_in_turn(
            {
                "plain": lambda instrument=instrument: simulate_patterns(crystals, instrument, threads=1),
                "augmented": lambda instrument=instrument, settings=augmentation: augmented(
                    crystals, instrument, settings, seeds, threads=1
                ),
            },
            effort.seconds,
            clock=effort.clock,
        )
        medians = {key: float(np.median(value)) / len(crystals) for key, value in times.items()}
        lines.append(
            Line(
                f"rate of patterns augmented with {preset} over the plain rate (hxrd with hxrd)",
                0.5,
                ratio_of(times["plain"], times["augmented"]),
                medians["augmented"],
                medians["plain"],
            )
        )
    return lines


def generated_crystals(effort: Effort) -> list[Line]:
    """Drawing a crystal against simulating its pattern."""
    from hxrd.crystal.synthetic import Generator

    generator = Generator()
    seeds = list(range(effort.mixed))
    crystals = generator.draw_many(seeds)
    times = times_in_turn(
        {
            "draw": lambda: generator.draw_many(seeds),
            "simulate": lambda: simulate_patterns(crystals, NEUTRONS, threads=1),
        },
        effort.seconds,
        clock=effort.clock,
    )
    medians = {key: float(np.median(value)) / len(seeds) for key, value in times.items()}
    name = f"drawing {len(seeds)} crystals against simulating their patterns (hxrd with hxrd)"
    return [Line(name, 1.0, ratio_of(times["simulate"], times["draw"]), medians["draw"], medians["simulate"])]


def parts(effort: Effort) -> dict[str, dict[str, Any]]:
    """Return where the time goes: crystals of all kinds, a large cell without symmetry, one with much."""
    kinds = {
        "prototypes": made.mixed(effort.mixed, NEUTRONS),
        "P1, 60 atoms": made.copies_of(made.triclinic_p1(60, 1500.0, seed=2), effort.copies),
        "garnet": made.copies_of(made.garnet(), effort.copies),
    }
    return {
        name: breakdown.measured(crystals, NEUTRONS, effort.seconds, effort.clock)
        for name, crystals in kinds.items()
    }


SECTIONS: dict[str, Callable[[Effort], list[Line]]] = {
    function.__name__: function
    for function in (
        prototypes,
        conventional_prototypes,
        p1_and_garnet,
        xray_sticks,
        sticks_and_profile,
        two_threads,
        augmented_patterns,
        generated_crystals,
    )
}


@pytest.mark.parametrize("section", SECTIONS)
def test_section(section: str) -> None:
    """Print a section's ratios; agreement is asserted, speed is not."""
    for package in ("pymatgen", "xrd_rust_calculator", "phasesmith"):
        pytest.importorskip(package)
    lines = SECTIONS[section](QUICK)
    print("\n" + table(lines))
    assert lines


def test_breakdown() -> None:
    """Print where the time goes; the parts make up the whole."""
    for name, found in parts(QUICK).items():
        print(f"\n{name}: {breakdown.text(found)}")
        assert sum(part["share"] for part in found["parts"].values()) == pytest.approx(1, abs=0.05)


def compile_kernels() -> None:
    """Call everything that is timed here once, so that Numba keeps it on disk."""
    from hxrd.crystal.synthetic import Generator
    from hxrd.simulate.augment import augmented
    from hxrd.simulate.augmentation import augmentation_names, load_augmentation

    crystals = [*Generator().draw_many(range(8)), made.garnet(), made.perovskite()]
    for instrument in (NEUTRONS, XRAYS, XRAY_PATTERNS):
        sticks(crystals, instrument)
        simulate_patterns(crystals, instrument, threads=1)
    for preset in augmentation_names():
        augmented(crystals, NEUTRONS, load_augmentation(preset), np.arange(10, dtype=np.uint64), threads=1)
    breakdown.measured(crystals[-2:], NEUTRONS, seconds=0.0)


def main() -> None:
    """Run the sections that were asked for, print them, and write JSON."""
    if any(os.environ.get(name) != "1" for name in _BLAS_THREADS[:2]):  # read when numpy is loaded
        environment = os.environ | dict.fromkeys(_BLAS_THREADS, "1")
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write figures, hardware, versions and commit to this file")
    parser.add_argument("--quick", action="store_true", help="a minute's worth: few rounds, a twelfth of all")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine in use by others")
    parser.add_argument("--only", default="", help="sections whose name contains this word")
    parser.add_argument("--compile", action="store_true", help="compile what is timed, and stop")
    options = parser.parse_args()
    if options.compile:
        compile_kernels()
        return
    # In another process: code that Numba reads from disk is quicker than what it has just compiled.
    subprocess.run([sys.executable, __file__, "--compile"], check=True)
    effort = replace(QUICK if options.quick else FULL, clock=CLOCKS[options.clock])
    lines: list[Line] = []
    for name, section in SECTIONS.items():
        if options.only in name:
            found = section(effort)
            print(table(found), flush=True)
            lines += found
    shares = parts(effort) if options.only in "breakdown" else {}
    print(*(f"{name}: {breakdown.text(found)}" for name, found in shares.items()), sep="\n")
    if options.json:
        options.json.write_text(
            json.dumps(record(lines, shares, options.clock), indent=1, ensure_ascii=False) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main()
