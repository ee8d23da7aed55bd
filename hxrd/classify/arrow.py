"""Arrow arrays from NumPy arrays and lists of text, without pandas.

`pyarrow.array` imports pandas, where that is installed, to see whether it was handed one of its objects: a
third of a second, half of what the classification of one pattern takes. These are made from their buffers.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Blank = NDArray[np.bool_] | None


def numbers(values: NDArray[np.generic], kind: pa.DataType, blank: Blank = None) -> pa.Array:
    """Return an array of a plain number type such as ``pa.int16()``.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Converted to `kind`.
    kind : DataType
        Of fixed width.
    blank : ndarray of bool, shape (n,), optional
        Where to have null.
    """
    plain = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(plain), [_validity(blank), pa.py_buffer(plain)])


def texts(values: Sequence[str], blank: Blank = None) -> pa.Array:
    """Return an array of strings.

    Parameters
    ----------
    values : sequence of str
        At most 2 GiB in all.
    blank : ndarray of bool, shape (n,), optional
        Where to have null.
    """
    encoded = [value.encode() for value in values]
    content = b"".join(encoded)
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, encoded), np.int32, len(values)), out=offsets[1:])
    buffers = [_validity(blank), pa.py_buffer(offsets), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def lists(values: NDArray[np.float32], blank: Blank = None) -> pa.Array:
    """Return an array of equally long lists of float32, one for each row of `values`, shape (n, k)."""
    n, k = values.shape
    offsets = pa.py_buffer(np.arange(0, (n + 1) * k, k, dtype=np.int32) if k else np.zeros(n + 1, np.int32))
    children = [numbers(values.reshape(-1), pa.float32())]
    kind = pa.list_(pa.float32())
    return pa.Array.from_buffers(kind, n, [_validity(blank), offsets], children=children)


def _validity(blank: Blank) -> pa.Buffer | None:
    if blank is None or not blank.any():
        return None
    return pa.py_buffer(np.packbits(~blank, bitorder="little"))
