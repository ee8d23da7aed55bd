"""What `checked` lets pass and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hxrd.crystal.crystal import Crystal, checked
from hxrd.errors import Rejected


def _crystal(
    positions=((0, 0, 0), (0.5, 0.5, 0.5)), cell=(4, 5, 6, 90, 90, 90), occupancy=None, species=None
):
    n_sites = len(positions)
    return Crystal(
        identifier="made up",
        cell=np.array(cell, dtype=float),
        species=species or ("Na",) * n_sites,
        positions=np.array(positions, dtype=float).reshape(-1, 3),
        occupancy=np.ones(n_sites) if occupancy is None else np.array(occupancy, dtype=float),
        b_iso=np.zeros(n_sites),
    )


def test_sane_crystal_passes_unchanged():
    crystal = _crystal()
    assert checked(crystal) is crystal
    assert crystal.volume == pytest.approx(120)
    assert np.allclose(crystal.metric, np.diag([16, 25, 36]))


def test_metric_of_a_skew_cell():
    crystal = _crystal(cell=(4, 5, 6, 80, 95, 105))
    vectors = np.linalg.cholesky(crystal.metric)
    cosine = vectors[0] @ vectors[1] / 20
    assert np.degrees(np.arccos(cosine)) == pytest.approx(105)
    assert crystal.volume == pytest.approx(abs(np.linalg.det(vectors)))


@pytest.mark.parametrize(
    "cell",
    [
        (0, 5, 6, 90, 90, 90),
        (-4, 5, 6, 90, 90, 90),
        (np.nan, 5, 6, 90, 90, 90),
        (4, 5, 5000, 90, 90, 90),
        (4, 5, 6, 0, 90, 90),
        (4, 5, 6, 120, 120, 120),
        (4, 5, 6, 30, 30, 90),
        (4, 5, 6, 190, 90, 90),
        (400, 400, 400, 90, 90, 90),
    ],
)
def test_absurd_cells_are_rejected(cell):
    with pytest.raises(Rejected, match="absurd cell"):
        checked(_crystal(cell=cell))


def test_needle_like_rhombohedral_cell_passes():
    checked(_crystal(cell=(34.09, 34.09, 34.09, 7.36, 7.36, 7.36)))


@pytest.mark.parametrize("occupancy", [0.0, -0.1, 1.01, np.nan])
def test_occupancy_outside_its_bounds_is_rejected(occupancy):
    with pytest.raises(Rejected, match="occupancy"):
        checked(_crystal(occupancy=(1.0, occupancy)))


@pytest.mark.parametrize("near", [(0.02, 0, 0), (0.98, 0, 0), (0.97, 0.97, 0.98), (1e-9, -1e-9, 0)])
def test_overlapping_atoms_are_rejected(near):
    with pytest.raises(Rejected, match="overlapping"):
        checked(_crystal(positions=((0, 0, 0), near)))


@pytest.mark.parametrize("near", [(0.0, 0, 0), (0.02, 0, 0)])
def test_partly_occupied_atoms_may_share_a_place(near):
    checked(_crystal(positions=((0, 0, 0), near), occupancy=(0.4, 0.6)))


def test_coordinate_that_is_no_number_is_rejected():
    with pytest.raises(Rejected, match="coordinate"):
        checked(_crystal(positions=((0, 0, np.nan),)))


def test_displacement_that_is_no_number_is_rejected():
    crystal = _crystal()
    crystal.b_iso[1] = np.inf
    with pytest.raises(Rejected, match="displacement"):
        checked(crystal)


def test_no_atoms_are_rejected():
    with pytest.raises(Rejected, match="no atoms"):
        checked(_crystal(positions=()))


@given(
    shift=st.tuples(*[st.floats(-3, 3)] * 3),
    distance=st.floats(0.05, 2.0).filter(lambda value: abs(value - 0.5) > 1e-3),
    direction=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda vector: np.linalg.norm(vector) > 0.1),
)
def test_overlap_depends_on_the_distance_alone(shift, distance, direction):
    """Wherever the pair lies, across faces too, and whatever the direction."""
    skew = _crystal(cell=(5, 6, 7, 75, 100, 110))
    step = distance * np.array(direction) / np.linalg.norm(direction)
    fractional = step @ np.linalg.inv(np.linalg.cholesky(skew.metric))
    pair = replace(skew, positions=np.array([shift, np.array(shift) + fractional]))
    if distance < 0.5:
        with pytest.raises(Rejected, match="overlapping"):
            checked(pair)
    else:
        assert checked(pair) is pair
