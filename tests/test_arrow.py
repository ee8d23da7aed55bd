"""Arrow arrays made from buffers equal those that pyarrow makes itself."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from hxrd.classify import arrow

BLANKS = [None, np.array([False, True, False] * 5), np.zeros(15, bool), np.ones(15, bool)]


@pytest.mark.parametrize("blank", BLANKS, ids=["none", "some", "no", "all"])
@pytest.mark.parametrize("kind", [pa.int16(), pa.int64(), pa.float32(), pa.float64()], ids=str)
def test_numbers(kind, blank):
    values = np.arange(30)[::2] - 5
    made = arrow.numbers(values, kind, blank)
    made.validate(full=True)
    assert made.equals(pa.array(values, kind, mask=blank))
    assert made.null_count == (0 if blank is None else blank.sum())


@pytest.mark.parametrize("blank", BLANKS, ids=["none", "some", "no", "all"])
@pytest.mark.parametrize("values", [["a", "", "ccc"] * 5, ["é", "𝛼2θ", "plain"] * 5], ids=["ascii", "wide"])
def test_texts(values, blank):
    made = arrow.texts(values, blank)
    made.validate(full=True)
    expected = [None if blank is not None and blank[i] else value for i, value in enumerate(values)]
    assert made.to_pylist() == expected
    assert made.equals(pa.array(expected, pa.string()))


@pytest.mark.parametrize("blank", BLANKS, ids=["none", "some", "no", "all"])
def test_lists(blank):
    values = np.arange(60, dtype=np.float32).reshape(15, 4)
    made = arrow.lists(values, blank)
    made.validate(full=True)
    rows = [None if blank is not None and blank[i] else row for i, row in enumerate(values.tolist())]
    assert made.equals(pa.array(rows, pa.list_(pa.float32())))


def test_no_rows():
    none = np.zeros(0, bool)
    assert len(arrow.numbers(np.zeros(0), pa.int16(), none)) == len(arrow.texts([], none)) == 0
    assert len(arrow.lists(np.zeros((0, 3), np.float32))) == 0


def test_pandas_is_not_imported():
    script = (
        "import sys, numpy as np, pyarrow as pa; from hxrd.classify import arrow; "
        "arrow.numbers(np.arange(3), pa.int16()); arrow.texts(['a']); arrow.lists(np.ones((2, 2), 'f')); "
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
