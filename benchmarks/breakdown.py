"""Where the time of a simulated pattern goes, and how near the arithmetic comes to the processor's peak.

Parts are differences of kernels that go one step further each, taken in turn on the same packed batch:
symmetry; and the unique reflections; and the structure factors; and, sorted, their profile (the pattern).
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import Clock, timed, times_in_turn
from numpy.typing import DTypeLike, NDArray
from peers import peak_widths

from hxrd.crystal.crystal import Crystal
from hxrd.kernels import powder, profile, reduction, reflections, structure_factor
from hxrd.kernels.compiled import compiled
from hxrd.physics.instrument import Instrument
from hxrd.physics.packing import pack
from hxrd.simulate.simulate import conditions_of, kernel_grid, simulate_patterns, sticks

_GEMM_SIZE = 1024
# Operations of one point in the two loops of `hxrd.kernels.profile`, divisions counted as one.
_NEAR_FLOPS, _FAR_FLOPS = 27, 14

# Numba's cache looks at this file alone, but the kernels called here become part of its functions.
for _stale in (Path(__file__).parent / "__pycache__").glob("breakdown.*.nb?"):
    _stale.unlink(missing_ok=True)


def peak_gflops(dtype: DTypeLike, clock: Clock = time.perf_counter, rounds: int = 15) -> float:
    """GFLOP/s of a large matrix product on one thread: what fused multiply-adds reach here."""
    left = np.random.default_rng(0).random((_GEMM_SIZE, _GEMM_SIZE)).astype(dtype)
    out = np.empty_like(left)
    np.matmul(left, left, out=out)
    seconds = min(timed(lambda: np.matmul(left, left, out=out), 1, clock) for _ in range(rounds))
    return 2 * _GEMM_SIZE**3 / seconds / 1e9


@compiled
def symmetry_of(batch, marks, tolerance):
    """Bring each crystal to its primitive cell and find its Laue class; return the sum of their orders."""
    work = reduction.new_workspace(int(np.diff(batch.site_start).max()))
    total = 0
    for crystal in range(len(batch.cells)):
        total += _reduced(batch, crystal, marks, tolerance, work)[2]
    return total


@compiled
def reflections_of(batch, marks, s_low, s_high, tolerance):
    """Find the unique reflections of each crystal as well; return how many columns they fill."""
    work = reduction.new_workspace(int(np.diff(batch.site_start).max()))
    bounds, columns = reflections.new_bounds(), reflections.new_columns(256, 4096)
    total = 0
    for crystal in range(len(batch.cells)):
        metric, _, n_rotations, _, _ = _reduced(batch, crystal, marks, tolerance, work)
        sizes = reflections.set_bounds(work.rotations, n_rotations, bounds)
        n_columns, _, columns = reflections.find_columns(metric, s_high, bounds, sizes, columns)
        reflections.fill_columns(
            metric,
            s_low,
            s_high,
            bounds,
            sizes,
            n_rotations,
            work.translations,
            work.is_operation,
            columns,
            n_columns,
        )
        total += n_columns
    return total


@compiled
def structure_factors_of(batch, s_low, s_high, tolerance):
    """Compute the structure factors too; return how many places they fill."""
    n_sites = int(np.diff(batch.site_start).max())
    work, bounds = reduction.new_workspace(n_sites), reflections.new_bounds()
    columns, tables = reflections.new_columns(256, 4096), structure_factor.new_tables(n_sites)
    strength, total = np.empty(4096), 0
    for crystal in range(len(batch.cells)):
        _, _, _, _, n_places, columns, tables, strength = powder._reflections(
            batch, crystal, s_low, s_high, False, tolerance, work, bounds, columns, tables, strength
        )
        total += n_places
    return total


@compiled
def _reduced(batch, crystal, marks, tolerance, work):
    site, end = batch.site_start[crystal], batch.site_start[crystal + 1]
    first, last = batch.operation_start[crystal], batch.operation_start[crystal + 1]
    return reduction.reduced(
        batch.cells[crystal],
        batch.positions[site:end],
        marks[site:end],
        batch.rotations[first:last],
        batch.translations[first:last],
        tolerance,
        work,
    )


def structure_factor_flops(crystal: Crystal, n_reflections: int) -> float:
    """Operations that the sums over atoms cannot do without, a fused multiply-add counted as two.

    A reflection and an atom of the primitive cell cost one product of complex numbers and its sum, four
    multiply-adds; with an inversion centre half of the atoms and the real part do, two multiply-adds each.
    """
    identity = np.eye(3, dtype=np.int8)
    n_centrings = int((crystal.rotations == identity).all(axis=(1, 2)).sum())
    n_sites = len(crystal.species) / n_centrings
    is_centric = bool((crystal.rotations == -identity).all(axis=(1, 2)).any())
    each = n_sites / 2 * 4 if is_centric else n_sites * 8
    return n_reflections * each


def profile_flops(two_theta: NDArray[np.float64], instrument: Instrument) -> float:
    """Operations of `hxrd.kernels.profile` for lines at two_theta (degrees), a multiply-add counted as two.

    Follows `add_peak` for instruments with the short form of axial asymmetry: near the centre each point is
    computed once a node, beyond that once.
    """
    fwhm, eta = peak_widths(np.radians(two_theta / 2), instrument)
    lorentz_top = eta * 2 / (np.pi * fwhm)
    top = lorentz_top + (1 - eta) * 2 / fwhm * np.sqrt(np.log(2) / np.pi)
    gauss_reach = np.sqrt(np.log(1 / profile.PROFILE_CUT) / np.log(2))
    lorentz_reach = np.sqrt(np.maximum(lorentz_top / (profile.PROFILE_CUT * top) - 1, 0))
    reach = 0.5 * fwhm * np.maximum(gauss_reach, lorentz_reach)
    tail = np.abs(0.5 * np.degrees(instrument.axial_divergence**2) / np.tan(np.radians(two_theta)))
    n_nodes = profile._RULE_SIZES[np.searchsorted(profile._RULE_REACH, tail / fwhm).clip(max=12)]
    near = np.minimum(2 * profile._NEAR * fwhm + 3 * tail, 2 * reach + tail)
    step = instrument.two_theta[2]
    points = near * n_nodes * _NEAR_FLOPS + (2 * reach + tail - near) * _FAR_FLOPS
    return float(points.sum()) / step


def measured(
    crystals: Sequence[Crystal], instrument: Instrument, seconds: float, clock: Clock = time.perf_counter
) -> dict[str, Any]:
    """Return µs and share of each part of a pattern, and GFLOP/s of the arithmetic against the peak.

    Parameters
    ----------
    crystals : sequence of Crystal
        Of neutrons, their operations in full.
    instrument : Instrument
        Neutrons, real scattering lengths.
    seconds : float
        How long to measure.
    clock : callable
    """
    batch, grid = pack(crystals, instrument), kernel_grid(instrument)
    marks = 1.0 + batch.species  # what scatters alike; these crystals are fully occupied
    s_range = [
        math.sin(math.radians(angle / 2)) / instrument.wavelength for angle in instrument.two_theta[:2]
    ]
    conditions = conditions_of(instrument, len(crystals))
    out, maximum = np.empty((len(crystals), grid.n_points), np.float32), np.empty(len(crystals))
    times = times_in_turn(
        {
            "packing": lambda: pack(crystals, instrument),
            "symmetry": lambda: symmetry_of(batch, marks, reduction.LENIENT),
            "reflections": lambda: reflections_of(batch, marks, *s_range, reduction.LENIENT),
            "structure factors": lambda: structure_factors_of(batch, *s_range, reduction.LENIENT),
            "patterns": lambda: powder.patterns(
                batch, np.arange(len(batch.cells)), conditions, grid, 0.0, False, out, maximum
            ),
            "whole": lambda: simulate_patterns(crystals, instrument, threads=1),
        },
        seconds,
        clock=clock,
    )
    each = {name: float(np.median(value)) / len(crystals) for name, value in times.items()}
    found = sticks(crystals, instrument)
    counts = np.diff(found.start)
    flops = [structure_factor_flops(crystal, int(n)) for crystal, n in zip(crystals, counts, strict=True)]
    lines = [np.unique(np.round(part, 8)) for part in np.split(found.two_theta, found.start[1:-1])]
    parts = {
        "packing": each["packing"],
        "symmetry": each["symmetry"],
        "reflections": each["reflections"] - each["symmetry"],
        "structure factors": each["structure factors"] - each["reflections"],
        "profile": each["patterns"] - each["structure factors"],
        "the rest": each["whole"] - each["patterns"] - each["packing"],
    }
    work = {
        "structure factors": ("float64", sum(flops)),
        "profile": ("float32", sum(profile_flops(part, instrument) for part in lines)),
    }
    peak = {"float64": peak_gflops(np.float64, clock), "float32": peak_gflops(np.float32, clock)}
    report: dict[str, Any] = {}
    for name, value in parts.items():
        report[name] = {"us": round(value * 1e6, 2), "share": round(value / each["whole"], 4)}
        if name in work:
            precision, operations = work[name]
            rate = operations / len(crystals) / value / 1e9
            report[name] |= {"gflops": round(rate, 2), "share_of_peak": round(rate / peak[precision], 3)}
    return {
        "parts": report,
        "pattern_us": round(each["whole"] * 1e6, 2),
        "unique_reflections": round(float(counts.mean()), 1),
        "lines": round(float(np.mean([len(part) for part in lines])), 1),
        "peak_gflops": {precision: round(value, 1) for precision, value in peak.items()},
    }


def text(found: dict[str, Any]) -> str:
    """Return the breakdown as lines for people."""
    rows = [
        f"{found['pattern_us']:.1f} µs a pattern of {found['unique_reflections']:.0f} unique reflections, "
        f"{found['lines']:.0f} lines"
    ]
    for name, part in found["parts"].items():
        row = f"  {name}: {part['us']:.1f} µs, {100 * part['share']:.0f} %"
        if "gflops" in part:
            row += f", {part['gflops']:.1f} GFLOP/s, {100 * part['share_of_peak']:.0f} % of the peak"
        rows.append(row)
    peak = found["peak_gflops"]
    return "\n".join([*rows, f"  peak: {peak['float64']} GFLOP/s double, {peak['float32']} single"])
