"""The benchmarks compare like with like: their crystals, their peers' answers, their timer."""

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hxrd.crystal.crystal import checked
from hxrd.crystal.symmetry import find_symmetry
from hxrd.physics.instrument import load_instrument, with_overrides
from hxrd.physics.reflections import peaks
from hxrd.simulate.simulate import simulate_patterns

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """The modules of the benchmarks, which stand beside the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import crystals
        import interleaved
        import peers
        import report

        yield SimpleNamespace(crystals=crystals, peers=peers, interleaved=interleaved, report=report)
    for name in ("crystals", "peers", "interleaved", "report"):
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def neutrons():
    return with_overrides(load_instrument("paper"), wavelength="1.5403")


@pytest.fixture(scope="module")
def xrays():
    paper = load_instrument("paper")
    return with_overrides(paper, probe="xray", wavelength="CuKa1", two_theta=(5.0, 90.0, 0.02))


@pytest.mark.parametrize(
    ("name", "space_group", "content", "n_unique"),
    [
        ("silicon", 227, {"Si": 8}, 1),
        ("perovskite", 62, {"Ca": 4, "Ti": 4, "O": 12}, 4),
        ("monoclinic", 14, {"Y": 16, "Al": 8, "O": 36}, 15),
        ("garnet", 230, {"Ca": 24, "Al": 16, "Si": 24, "O": 96}, 4),
    ],
)
def test_crystal_has_its_symmetry_and_content(bench, name, space_group, content, n_unique):
    crystal = checked(getattr(bench.crystals, name)())
    assert crystal.space_group == space_group
    assert find_symmetry(crystal).space_group == space_group
    assert Counter(crystal.species) == content
    unique = bench.peers.asymmetric_unit(crystal)
    assert len(unique) == n_unique
    orbits = [bench.peers.orbit_of(crystal, site) for site in unique]
    assert sorted(site for orbit in orbits for site in orbit) == list(range(len(crystal.species)))


def test_crystal_without_symmetry(bench):
    crystal = checked(bench.crystals.triclinic_p1(40, 600.0, seed=1))
    assert find_symmetry(crystal).space_group == 1
    assert crystal.volume == pytest.approx(600)
    assert len(crystal.species) == len(bench.peers.asymmetric_unit(crystal)) == 40


def test_conventional_cell_gives_the_same_pattern(bench, neutrons):
    primitive = next(one for one in bench.crystals.prototypes()[0] if "_cF" in one.identifier)
    conventional = bench.crystals.conventional(primitive)
    assert conventional.volume == pytest.approx(4 * primitive.volume, rel=1e-3)
    (one, other), reasons = simulate_patterns([primitive, conventional], neutrons)
    assert reasons == [None, None]
    assert np.abs(one - other).max() < 1e-4


def strongest(sticks, n=5):
    two_theta, intensity = sticks
    order = np.sort(np.argsort(intensity)[::-1][:n])
    return two_theta[order], intensity[order] / intensity.max()


def summed_sticks(crystal, instrument):
    """Our reflections, those at one angle added up, as the peers give them."""
    found = peaks(crystal, instrument)
    two_theta = np.array([one.two_theta for one in found])
    angles, index = np.unique(np.round(two_theta, 5), return_inverse=True)
    return angles, np.bincount(index, [one.intensity for one in found])


@pytest.mark.parametrize("name", ["silicon", "perovskite", "garnet"])
def test_pymatgen_sticks_are_ours(bench, neutrons, name):
    pytest.importorskip("pymatgen")
    crystal = getattr(bench.crystals, name)()
    with bench.peers.pymatgen_with_lengths_of(neutrons.scattering_table):
        theirs = bench.peers.PymatgenNeutrons(crystal, neutrons).sticks()
    for one, other in zip(strongest(theirs), strongest(summed_sticks(crystal, neutrons)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("name", ["silicon", "perovskite", "garnet"])
def test_rust_sticks_are_ours(bench, xrays, name):
    pytest.importorskip("xrd_rust_calculator")
    crystal = getattr(bench.crystals, name)()
    theirs = strongest(bench.peers.RustXrays(crystal, xrays).sticks())
    ours = strongest(summed_sticks(crystal, xrays))
    np.testing.assert_allclose(theirs[0], ours[0], atol=2e-5)
    np.testing.assert_allclose(theirs[1], ours[1], atol=0.01)  # two tables of form factors


@pytest.mark.parametrize("way", ["PhasesmithWhole", "PhasesmithValues", "PhasesmithKept"])
def test_phasesmith_patterns_are_ours(bench, neutrons, way):
    pytest.importorskip("phasesmith")
    import msgspec

    asymmetry = neutrons.axial_divergence if way == "PhasesmithWhole" else 0.0
    instrument = msgspec.structs.replace(
        neutrons, scattering_table="periodictable", axial_divergence=asymmetry
    )
    crystal = bench.crystals.perovskite()
    theirs = getattr(bench.peers, way)(crystal, instrument).pattern()
    ours, _ = simulate_patterns([crystal], instrument)
    assert np.corrcoef(ours[0], theirs)[0, 1] > 0.9999
    assert np.abs(ours[0] - theirs).max() < 0.005


def test_table_of_pymatgen_is_put_back(bench):
    neutron = pytest.importorskip("pymatgen.analysis.diffraction.neutron")
    before = dict(neutron.ATOMIC_SCATTERING_LEN)
    with bench.peers.pymatgen_with_lengths_of("sears1992"):
        assert before != neutron.ATOMIC_SCATTERING_LEN
    assert before == neutron.ATOMIC_SCATTERING_LEN


def test_contestants_take_turns_in_turned_order(bench):
    called = []

    def contestant(name):
        return lambda: called.append(name) or sum(range(200_000))

    times = bench.interleaved.times_in_turn({n: contestant(n) for n in "ab"}, seconds=0.0, least_rounds=3)
    assert "".join(called[4:]) == "abbaab"  # each was called twice before
    assert all(len(values) == 3 and values.min() > 0 for values in times.values())


def test_ratio_is_the_median_of_each_round(bench):
    ratio = bench.interleaved.ratio_of(np.array([10.0, 40.0, 90.0]), np.array([1.0, 2.0, 3.0]))
    assert (ratio.low, ratio.median, ratio.high, ratio.rounds) == (15.0, 20.0, 25.0, 3)


def test_line_below_what_is_asked_for_is_missed(bench):
    ratio = bench.interleaved.Ratio(4.9, 4.0, 6.0, 7)
    line = bench.report.Line("ours against theirs", 5.0, ratio, 1e-6, 4.9e-6, "equal")
    assert line.met is False
    assert "MISSED" in bench.report.table([line])
    written = bench.report.record([line], {}, "wall")
    assert written["lines"][0]["ratio"] == 4.9
    assert written["lines"][0]["other_us"] == 4.9
    assert written["versions"]["numpy"] == np.__version__
    assert len(written["commit"]) in (0, 40)
