"""Where the time of a simulated pattern goes, and how near the arithmetic comes to the processor's peak.

Parts are differences of whole calls, taken in turn: the packing by itself; the sticks of the same cells with
one orbit of atoms only (reflections, hardly any structure factors); the sticks; the patterns.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from interleaved import timed, times_in_turn
from numpy.typing import DTypeLike
from peers import asymmetric_unit, orbit_of

from hxrd.crystal.crystal import Crystal
from hxrd.physics.instrument import Instrument
from hxrd.physics.packing import pack
from hxrd.simulate.simulate import simulate_patterns, sticks

_GEMM_SIZE = 1024


def peak_gflops(dtype: DTypeLike, rounds: int = 15) -> float:
    """GFLOP/s of a large matrix product on one thread: what fused multiply-adds reach here."""
    left = np.random.default_rng(0).random((_GEMM_SIZE, _GEMM_SIZE)).astype(dtype)
    out = np.empty_like(left)
    np.matmul(left, left, out=out)
    seconds = min(timed(lambda: np.matmul(left, left, out=out)) for _ in range(rounds))
    return 2 * _GEMM_SIZE**3 / seconds / 1e9


def bare(crystal: Crystal) -> Crystal:
    """Return the crystal with the smallest of its orbits alone: the same reflections, few atoms."""
    orbits = [orbit_of(crystal, site) for site in asymmetric_unit(crystal)]
    kept = min(orbits, key=len)
    return dataclasses.replace(
        crystal,
        species=tuple(crystal.species[site] for site in kept),
        positions=crystal.positions[kept],
        occupancy=crystal.occupancy[kept],
        b_iso=crystal.b_iso[kept],
    )


def measured(crystals: Sequence[Crystal], instrument: Instrument, seconds: float) -> dict[str, Any]:
    """Return µs a crystal and the share of each part, reflections and sites, and GFLOP/s against the peak."""
    stripped = [bare(crystal) for crystal in crystals]
    times = times_in_turn(
        {
            "pack": lambda: [pack(crystal, instrument) for crystal in crystals],
            "reflections": lambda: sticks(stripped, instrument, threads=1),
            "sticks": lambda: sticks(crystals, instrument, threads=1),
            "patterns": lambda: simulate_patterns(crystals, instrument, threads=1),
        },
        seconds,
    )
    found = {name: float(np.median(value)) / len(crystals) for name, value in times.items()}
    counts = np.diff(sticks(crystals, instrument, threads=1).start)
    n_sites = np.array([len(crystal.species) for crystal in crystals])
    few_sites = np.array([len(crystal.species) for crystal in stripped])
    # the sum over sites grows as reflections · sites, so the few that the bare crystals have are told apart
    whole, few = float(counts @ n_sites), float(counts @ few_sites)
    structure_factors = (found["sticks"] - found["reflections"]) * whole / (whole - few)
    parts = {
        "packing": found["pack"],
        "reflections": found["sticks"] - found["pack"] - structure_factors,
        "structure factors": structure_factors,
        "profile": found["patterns"] - found["sticks"],
    }
    total = found["patterns"]
    return {
        "parts": {
            name: {"us": round(value * 1e6, 2), "share": round(value / total, 4)}
            for name, value in parts.items()
        },
        "pattern_us": round(total * 1e6, 2),
        "unique_reflections": float(counts.mean()),
        "sites": float(n_sites.mean()),
        "peak_gflops": {
            "float64": round(peak_gflops(np.float64), 1),
            "float32": round(peak_gflops(np.float32), 1),
        },
    }


def text(found: dict[str, Any]) -> str:
    """Return the breakdown as lines for people."""
    lines = [f"{found['pattern_us']:.1f} µs a pattern, {found['unique_reflections']:.0f} reflections"]
    lines += [
        f"  {name}: {part['us']:.1f} µs, {100 * part['share']:.0f} %" for name, part in found["parts"].items()
    ]
    peak = found["peak_gflops"]
    return "\n".join([*lines, f"  peak: {peak['float64']} GFLOP/s double, {peak['float32']} single"])
