"""What the network is given: the one pass over patterns on its grid equals the steps one by one."""

import dataclasses

import numpy as np
import pytest
from classified import TWO_THETA, WAVELENGTH, make_patterns, model_metadata

from hxrd.classify.inputs import PatternSlice
from hxrd.classify.prepare import prepare
from hxrd.errors import InputError
from hxrd.models.preprocess import Grid

MODELS = {
    "plain": {},
    "root": {"input_transform": "sqrt"},
    "offset": {"input_offset": 1e-3},
    "both": {"input_transform": "sqrt", "input_offset": 1e-3},
}


def awkward_rows():
    """Every kind of row that an archive may hold."""
    rows = make_patterns(24)
    rows[1] *= 731.7
    rows[2] -= 0.25  # partly negative
    rows[3] = -rows[3]
    rows[4] = 0
    rows[5] = 0.25
    rows[6, 17] = np.nan
    rows[7, 0], rows[8, -1] = np.inf, -np.inf
    rows[9] *= np.float32(1e-40)  # denormal
    rows[10] *= np.float32(3e38)
    rows[11] = 1 - rows[11] * 1e-7  # flat within the limit
    rows[12], rows[12, 5] = -1, 3e-7
    rows[13, 100] = np.nan
    rows[13, 101] = np.inf
    rows[14, 3] = -0.0
    return rows


def slice_of(rows, two_theta=TWO_THETA, wavelength=WAVELENGTH, flag=None):
    n = len(rows)
    return PatternSlice(
        rows, two_theta, wavelength, ["x"] * n, flag or [""] * n, [""] * n, np.zeros(n, np.int16)
    )


def prepared(patterns, compiled, **model):
    metadata = model_metadata(**model)
    target = Grid.of_range(*metadata.grid, metadata.wavelength)
    out = np.full((len(patterns.source_id), metadata.n_points), np.nan, np.float32)
    return prepare(patterns, metadata, target, out, compiled=compiled), out


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_one_pass_equals_the_steps(model):
    one_flags, one = prepared(slice_of(awkward_rows()), True, **model)
    flags, steps = prepared(slice_of(awkward_rows()), False, **model)
    assert one_flags == flags
    assert flags.count("not-finite") == 4
    assert flags.count("flat") >= 4
    good = [not flag for flag in flags]
    assert sum(good) > 10
    assert np.array_equal(one[good], steps[good])
    assert np.isfinite(one).all()
    assert np.isfinite(steps).all()


@pytest.mark.parametrize("compiled", [True, False])
def test_input_is_left_as_it_was(compiled):
    rows = awkward_rows()
    prepared(slice_of(rows), compiled, input_transform="sqrt")
    assert np.array_equal(rows, awkward_rows(), equal_nan=True)


@pytest.mark.parametrize("compiled", [True, False])
def test_known_flags_come_first(compiled):
    rows = make_patterns(3)
    rows[1:] = 0
    flags, _ = prepared(slice_of(rows, flag=["rejected", "rejected", ""]), compiled)
    assert flags == ["rejected", "rejected", "flat"]


@pytest.mark.parametrize(
    "change", [{"wavelength": 1.5}, {"two_theta": TWO_THETA + 0.01}, {"dtype": np.float64}]
)
def test_what_is_not_on_the_grid_takes_the_steps(monkeypatch, change):
    def direct(*arguments):
        raise AssertionError("taken as if it were on the model's grid")

    monkeypatch.setattr("hxrd.classify.prepare._directly", direct)
    rows = make_patterns(2).astype(change.pop("dtype", np.float32))
    flags, out = prepared(slice_of(rows, **change), True)
    assert flags == ["", ""]
    assert np.allclose(out.max(axis=1), 1)


def test_nothing_readable_gives_zeros():
    empty = dataclasses.replace(
        slice_of(np.zeros((1, 0), np.float32)), two_theta=np.zeros(0), flag=["rejected"]
    )
    flags, out = prepared(empty, True)
    assert flags == ["rejected"]
    assert not out.any()


def test_an_impossible_grid_is_an_error():
    with pytest.raises(InputError, match="increase"):
        prepared(slice_of(make_patterns(1), two_theta=TWO_THETA[::-1].copy()), True)
