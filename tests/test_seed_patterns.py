"""The preset `paper` reproduces the published patterns that it was derived from, within 0.005."""

import naive
import numpy as np
import pytest
from built_crystals import built
from scipy.optimize import nnls

from hxrd.crystal.crystal import Crystal
from hxrd.physics.instrument import load_instrument, with_overrides
from hxrd.simulate.simulate import simulate_patterns

SPACE_GROUP_GRID = (3.0, 155.0, 0.05)
BRAVAIS_GRID = (2.95, 155.0, 0.05)  # the published file has one more point in front
STORED_OFFSET = 1e-3

# Which published pattern each crystal is; the hcp one is of a single element, so any element will do.
PUBLISHED = {
    "c-BN": (
        built("F -4 3 m", (3.5890,) * 3 + (90,) * 3, [("B", (0, 0, 0)), ("N", (0.25, 0.25, 0.25))]),
        ("bravais_patterns", 7, BRAVAIS_GRID),
    ),
    "GeTe": (
        built("F m -3 m", (6.0200,) * 3 + (90,) * 3, [("Ge", (0, 0, 0)), ("Te", (0.5, 0.5, 0.5))]),
        ("space_group_patterns", 6, SPACE_GROUP_GRID),
    ),
    "hcp": (
        built("P 63/m m c", (2.7500, 2.7500, 4.4500, 90, 90, 120), [("Os", (1 / 3, 2 / 3, 0.25))]),
        ("bravais_patterns", 8, BRAVAIS_GRID),
    ),
}


@pytest.fixture(scope="module")
def seed_patterns(shared):
    with np.load(shared / "seed_patterns.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def published(seed_patterns, member: str, row: int) -> np.ndarray:
    return seed_patterns[member][row].astype(float) - STORED_OFFSET


def paper_pattern(crystal: Crystal, grid: tuple[float, float, float]) -> np.ndarray:
    patterns, reasons = simulate_patterns([crystal], with_overrides(load_instrument("paper"), two_theta=grid))
    assert reasons == [None]
    return patterns[0].astype(float)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_pattern_is_reproduced(seed_patterns, name):
    crystal, (member, row, grid) = PUBLISHED[name]
    truth, ours = published(seed_patterns, member, row), paper_pattern(crystal, grid)
    assert ours.shape == truth.shape
    difference = np.abs(ours - truth)
    assert difference.max() < 0.005
    assert np.sqrt(np.mean(difference**2)) < 0.0003


@pytest.mark.parametrize("name", PUBLISHED)
def test_peaks_end_where_the_published_ones_end(seed_patterns, name):
    """The published tails are cut; our support ends within a grid point or two of theirs."""
    crystal, (member, row, grid) = PUBLISHED[name]
    theirs = published(seed_patterns, member, row) > 1e-7
    ours = paper_pattern(crystal, grid) > 0
    assert 0.2 < theirs.mean() < 0.6  # most of these patterns is exactly zero
    assert np.mean(theirs != ours) < 0.01


def test_the_labels_are_those_of_the_crystals(seed_patterns):
    assert seed_patterns["space_group"][6] == 225
    assert seed_patterns["bravais_index"][7] == 0  # cF
    assert seed_patterns["bravais_index"][8] == 3  # hP


def test_a_line_just_beyond_the_range_leaves_no_trace(seed_patterns):
    """Space-group row 0 is P4/mmm, a = 3.8850, c = 11.7387: its 227 would stand at 155.67°, 2.5° wide."""
    edges = np.array([3.8850, 3.8850, 11.7387])
    instrument = load_instrument("paper")
    truth = published(seed_patterns, "space_group_patterns", 0)
    angles = [155.67, *lines_of(edges, instrument.wavelength, 155.0)]
    single = [one_line(angle, instrument) for angle in angles]
    strengths, misfit = nnls(np.array(single).T, truth)
    assert misfit < 0.01  # the cell explains the whole pattern
    assert strengths[0] < 1e-3 * strengths.max()


def lines_of(edges, wavelength, stop):
    """2θ of all hkl of a tetragonal cell up to `stop`, each once."""
    hkl = np.array([hkl for hkl in np.ndindex(5, 5, 16) if any(hkl)])
    sine = wavelength / 2 * np.linalg.norm(hkl / edges, axis=1)
    angles = 2 * np.degrees(np.arcsin(sine[sine < 1]))
    return np.unique(np.round(angles[angles < stop], 4))


def one_line(angle, instrument):
    return naive.peak_profile(instrument.grid(), angle, instrument)
