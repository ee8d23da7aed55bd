"""Rate of whole simulated patterns against pymatgen's neutron calculator, which gives sticks alone.

    pytest benchmarks/bench_simulate.py --benchmark-json=simulate.json

One thread each, the same prototypes and wavelength in one run; compare the medians of the two.
"""

from pathlib import Path

import numba
import pytest

from hxrd.physics.instrument import load_instrument, with_overrides
from hxrd.simulate.simulate import simulate_patterns
from hxrd.sources import open_sources

WAVELENGTH = 1.5403
EXAMPLES = Path(__file__).resolve().parent.parent / "scripts" / "examples" / "prototype_ids.txt"


@pytest.fixture(scope="module")
def crystals():
    numba.set_num_threads(1)
    source = open_sources(["prototypes"])
    lines = EXAMPLES.read_text(encoding="utf-8").splitlines()
    return [source.get(line) for line in lines if not line.startswith("#")]


@pytest.mark.benchmark(group="prototypes, 3 to 155 degrees, one thread")
def test_hxrd_patterns(benchmark, crystals):
    instrument = with_overrides(load_instrument("paper"), wavelength=str(WAVELENGTH))
    intensity, reasons = simulate_patterns(crystals, instrument)
    assert not any(reasons)
    assert intensity.max(axis=1).min() == 1
    benchmark(simulate_patterns, crystals, instrument)
    benchmark.extra_info["patterns"] = len(crystals)


@pytest.mark.benchmark(group="prototypes, 3 to 155 degrees, one thread")
def test_pymatgen_sticks(benchmark, crystals):
    diffraction = pytest.importorskip("pymatgen.analysis.diffraction.neutron")
    from pymatgen.core import Lattice, Structure

    structures = [
        Structure(Lattice.from_parameters(*crystal.cell), crystal.species, crystal.positions)
        for crystal in crystals
    ]
    calculator = diffraction.NDCalculator(wavelength=WAVELENGTH)
    benchmark.pedantic(
        lambda: [calculator.get_pattern(structure, two_theta_range=(3, 155)) for structure in structures],
        rounds=3,
    )
    benchmark.extra_info["patterns"] = len(crystals)
