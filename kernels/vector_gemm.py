"""The inner loop of the network on a CPU: a small tile of a matrix product, held in vector registers.

A channels-last convolution in one dimension is a matrix product without any copy: the window of an
output row is a contiguous stretch of the input, taps · channels long, so the rows of the left matrix
are given by where they begin. Numba alone does not keep a tile in registers; here LLVM is told to.

Values are float32, or pairs of bfloat16 in one uint32 where the processor multiplies those (AVX512-BF16:
sums in float32).
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from .vector_code import (
    FLOATS,
    INT64,
    LANES,
    PAIRS,
    PANEL,
    ROWS,
    call,
    extent,
    float_intrinsic,
    intrinsic,
    load_vector,
    pointer_of,
    splat,
    store_vector,
)


def packed(weight_KN: NDArray[np.float32], half: bool) -> NDArray[Any]:
    """Lay out a right matrix as `tile` and `transposed_tile` read it.

    Parameters
    ----------
    weight_KN : ndarray, shape (K, N)
        K even if `half`.
    half : bool
        Round to bfloat16 and pair neighbours along K.

    Returns
    -------
    ndarray, shape (panels, K or K/2, PANEL), float32 or uint32
        Columns are filled up with zeros to whole panels.
    """
    n_steps, n_columns = weight_KN.shape
    n_panels = -(-n_columns // PANEL)
    filled = np.zeros((n_steps, n_panels * PANEL), np.float32)
    filled[:, :n_columns] = weight_KN
    panels = filled.reshape(n_steps, n_panels, PANEL).transpose(1, 0, 2)
    if not half:
        return np.ascontiguousarray(panels)
    bits = bfloat16_bits(panels).astype(np.uint32)
    return np.ascontiguousarray(bits[:, 0::2] | bits[:, 1::2] << np.uint32(16))


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 to bfloat16, to nearest even, as the upper 16 bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )


@intrinsic
def tile(typing_context, left, starts, first, right, begin, n_steps, out, column):
    """Set out[r, column : column + PANEL] to Σ_k left[starts[first + r] + k] · right[begin + k, :].

    For r < ROWS. `left` (flat), `right` (…, PANEL) and `out` (ROWS, N) are C-contiguous arrays, `begin`
    a step of `right`'s panels one after the other; `left` and `right` both float32, or both uint32.
    """
    signature = types.void(left, starts, first, right, begin, n_steps, out, column)
    half = isinstance(left.dtype, types.Integer)

    def codegen(context, builder, signature, arguments):
        left, starts, right, out = (
            pointer_of(context, builder, signature, arguments, i) for i in (0, 1, 3, 6)
        )
        first, begin, n_steps, column = (arguments[i] for i in (2, 4, 5, 7))
        sums = product(builder, left, builder.gep(starts, [first]), right, begin, n_steps, half)
        n_columns = extent(context, builder, signature, arguments, 6, 1)
        for row, vectors in enumerate(sums):
            place = builder.add(builder.mul(n_columns, ir.Constant(INT64, row)), column)
            _store(builder, vectors, builder.gep(out, [place]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def transposed_tile(typing_context, left, starts, offset, right, n_steps, out, row, column):
    """Add Σ_k left[starts[k] + offset + r] · right[k, column : …] to out[row + r, column : column + PANEL].

    For r < ROWS: the gradient of a convolution's weight. `right` is (n_steps, N), `out` (…, N); all float32.
    """
    signature = types.void(left, starts, offset, right, n_steps, out, row, column)

    def codegen(context, builder, signature, arguments):
        left, starts, right, out = (
            pointer_of(context, builder, signature, arguments, i) for i in (0, 1, 3, 5)
        )
        offset, n_steps, row, column = (arguments[i] for i in (2, 4, 6, 7))
        n_columns = extent(context, builder, signature, arguments, 5, 1)
        left, right = builder.gep(left, [offset]), builder.gep(right, [column])
        places = [
            builder.gep(out, [builder.add(builder.mul(n_columns, _plus(builder, row, r)), column)])
            for r in range(ROWS)
        ]

        def broadcasts(step):
            origin = builder.gep(left, [builder.load(builder.gep(starts, [step]))])
            return [builder.load(builder.gep(origin, [ir.Constant(INT64, r)])) for r in range(ROWS)]

        sums = _accumulated(
            builder,
            n_steps,
            broadcasts,
            lambda step: _vectors(builder, builder.gep(right, [builder.mul(step, n_columns)])),
            [_vectors(builder, place) for place in places],
            False,
        )
        for vectors, place in zip(sums, places, strict=True):
            _store(builder, vectors, place)
        return context.get_dummy_value()

    return signature, codegen


def product(builder, left, starts, right, begin, n_steps, half):
    """Emit the product of a tile; returns its sums, by row and vector."""
    origins = [
        builder.gep(left, [builder.load(builder.gep(starts, [ir.Constant(INT64, row)]))])
        for row in range(ROWS)
    ]
    return _accumulated(
        builder,
        n_steps,
        lambda step: [builder.load(builder.gep(origin, [step])) for origin in origins],
        lambda step: _panel(builder, right, builder.add(begin, step), half),
        [[ir.Constant(FLOATS, [0.0] * LANES)] * (PANEL // LANES) for _ in range(ROWS)],
        half,
    )


def _accumulated(builder, n_steps, broadcasts, panel, initial, half):
    """Emit the loop over k; returns the sums, by row and vector."""
    before = builder.block
    loop, end = builder.append_basic_block("steps"), builder.append_basic_block("steps.end")
    enough = builder.icmp_signed(">", n_steps, ir.Constant(INT64, 0))
    builder.cbranch(enough, loop, end)
    builder.position_at_end(loop)
    step = builder.phi(INT64)
    step.add_incoming(ir.Constant(INT64, 0), before)
    sums = [[builder.phi(FLOATS) for _ in vectors] for vectors in initial]
    columns, scalars = panel(step), broadcasts(step)
    after = [
        [
            _multiply_add(builder, factor, vector, total, half)
            for vector, total in zip(columns, row, strict=True)
        ]
        for factor, row in zip((splat(builder, scalar) for scalar in scalars), sums, strict=True)
    ]
    following = _plus(builder, step, 1)
    step.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, n_steps), loop, end)
    builder.position_at_end(end)
    results = [[builder.phi(FLOATS) for _ in vectors] for vectors in initial]
    flat = ([vector for row in nested for vector in row] for nested in (initial, sums, after, results))
    for start, total, new, result in zip(*flat, strict=True):
        total.add_incoming(start, before)
        total.add_incoming(new, loop)
        result.add_incoming(start, before)
        result.add_incoming(new, loop)
    return results


def _multiply_add(builder, factor, vector, total, half):
    if half:
        kind = ir.FunctionType(FLOATS, [FLOATS, PAIRS, PAIRS])
        return call(builder, kind, "llvm.x86.avx512bf16.dpbf16ps.512", total, factor, vector)
    return float_intrinsic(builder, "fma", FLOATS, factor, vector, total)


def _vectors(builder, pointer, kind=FLOATS):
    """Load PANEL consecutive values."""
    places = (ir.Constant(INT64, first) for first in range(0, PANEL, LANES))
    return [load_vector(builder, pointer, place, kind) for place in places]


def _panel(builder, right, step, half):
    pointer = builder.gep(right, [builder.mul(step, ir.Constant(INT64, PANEL))])
    return _vectors(builder, pointer, PAIRS if half else FLOATS)


def _store(builder, vectors, pointer):
    for i, vector in enumerate(vectors):
        store_vector(builder, vector, pointer, ir.Constant(INT64, i * LANES))


def _plus(builder, value, constant):
    return builder.add(value, ir.Constant(INT64, constant))
