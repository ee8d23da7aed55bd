"""What goes with a tile of products on a CPU: LayerNorm, dropout, GELU, max pool, and gradients.

A tile is a float32 array (ROWS, N), N whole panels; its rows are output positions.
"""

from llvmlite import ir
from numba import types

from .hashing import GOLDEN
from .vector_code import (
    FLOATS,
    INT32,
    INT64,
    LANES,
    PANEL,
    ROWS,
    WIDE,
    constant,
    extent,
    gelu,
    gelu_slope,
    hashed,
    intrinsic,
    inverse_deviations,
    load_vector,
    multiply_add,
    over_vectors,
    pointer_of,
    rounded_to_bfloat16,
    row_means,
    splat,
    splat_of,
    store_vector,
)
from .vector_gemm import product


@intrinsic
def tile_scales(typing_context, y, eps, scales):
    """Set `scales` (ROWS,) to 1/√(mean square + eps) of each row."""
    signature = types.void(y, types.float32, scales)

    def codegen(context, builder, signature, arguments):
        rows, out = (pointer_of(context, builder, signature, arguments, i) for i in (0, 2))
        width = extent(context, builder, signature, arguments, 0, 1)
        zero = ir.Constant(FLOATS, [0.0] * LANES)

        def add_squares(column, sums):
            values = [load_vector(builder, rows, _at(builder, width, r, column)) for r in range(ROWS)]
            return [
                multiply_add(builder, value, value, total) for value, total in zip(values, sums, strict=True)
            ]

        sums = over_vectors(builder, width, add_squares, [zero] * ROWS)
        scale = inverse_deviations(builder, sums, width, arguments[1])
        builder.store(scale, builder.bitcast(out, scale.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def tile_affine(typing_context, y, scales, gamma, beta):
    """Set y[r, c] to y[r, c] · scales[r] · gamma[c] + beta[c]."""
    return types.void(y, scales, gamma, beta), _affine_code(lambda builder, value, place: value)


@intrinsic
def tile_affine_gelu(typing_context, y, scales, gamma, beta):
    """Set y[r, c] to GELU(y[r, c] · scales[r] · gamma[c] + beta[c])."""
    return types.void(y, scales, gamma, beta), _affine_code(
        lambda builder, value, place: gelu(builder, value)
    )


@intrinsic
def tile_affine_add_gelu(typing_context, y, scales, gamma, beta, other):
    """Set y[r, c] to GELU(y[r, c] · scales[r] · gamma[c] + beta[c] + other[r, c])."""
    signature = types.void(y, scales, gamma, beta, other)

    def codegen(context, builder, signature, arguments):
        others = pointer_of(context, builder, signature, arguments, 4)

        def add_gelu(builder, value, place):
            return gelu(builder, builder.fadd(value, load_vector(builder, others, place)))

        return _affine_code(add_gelu)(context, builder, signature, arguments)

    return signature, codegen


def _affine_code(then):
    """Return what emits the affine part of LayerNorm over a tile; `then(builder, value, place)` goes on."""

    def codegen(context, builder, signature, arguments):
        rows, scale, gamma, beta = (pointer_of(context, builder, signature, arguments, i) for i in range(4))
        width = extent(context, builder, signature, arguments, 0, 1)
        factors = _row_factors(builder, scale)

        def transform(column, _):
            slope, shift = (load_vector(builder, each, column) for each in (gamma, beta))
            for r, factor in enumerate(factors):
                place = _at(builder, width, r, column)
                value = builder.fmul(load_vector(builder, rows, place), factor)
                value = multiply_add(builder, value, slope, shift)
                store_vector(builder, then(builder, value, place), rows, place)
            return []

        over_vectors(builder, width, transform, [])
        return context.get_dummy_value()

    return codegen


@intrinsic
def tile_gelu(typing_context, y):
    """Set y[r, c] to its GELU."""
    return types.void(y), _elementwise_code(gelu)


@intrinsic
def tile_gelu_slope(typing_context, y):
    """Set y[r, c] to the derivative of GELU there."""
    return types.void(y), _elementwise_code(gelu_slope)


def _elementwise_code(function):
    def codegen(context, builder, signature, arguments):
        rows = pointer_of(context, builder, signature, arguments, 0)
        width = extent(context, builder, signature, arguments, 0, 1)

        def transform(place, _):
            store_vector(builder, function(builder, load_vector(builder, rows, place)), rows, place)
            return []

        over_vectors(builder, builder.mul(width, ir.Constant(INT64, ROWS)), transform, [])
        return context.get_dummy_value()

    return codegen


@intrinsic
def tile_extremes(typing_context, y, scales, high, low):
    """Take y[r, c] · scales[r] into the greatest, `high`, and the least, `low`, both (ROWS, N)."""
    signature = types.void(y, scales, high, low)

    def codegen(context, builder, signature, arguments):
        rows, scale, high, low = (pointer_of(context, builder, signature, arguments, i) for i in range(4))
        width = extent(context, builder, signature, arguments, 0, 1)
        factors = _row_factors(builder, scale)

        def compare(column, _):
            for r, factor in enumerate(factors):
                place = _at(builder, width, r, column)
                value = builder.fmul(load_vector(builder, rows, place), factor)
                _take_into(builder, value, high, low, place)
            return []

        over_vectors(builder, width, compare, [])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def tile_product_extremes(typing_context, left, starts, right, n_steps, eps, high, low):
    """Do `tile`, `tile_scales` and `tile_extremes` in registers, for N = PANEL, the only panel of `right`."""
    signature = types.void(left, starts, right, n_steps, types.float32, high, low)

    def codegen(context, builder, signature, arguments):
        left, starts, right, high, low = (
            pointer_of(context, builder, signature, arguments, i) for i in (0, 1, 2, 5, 6)
        )
        rows = product(builder, left, starts, right, ir.Constant(INT64, 0), arguments[3], False)
        squares = [constant(0)] * ROWS
        for vectors in zip(*rows, strict=True):
            squares = [multiply_add(builder, v, v, total) for v, total in zip(vectors, squares, strict=True)]
        scales = inverse_deviations(builder, squares, ir.Constant(INT64, PANEL), arguments[4])
        for r, vectors in enumerate(rows):
            factor = splat(builder, builder.extract_element(scales, ir.Constant(INT32, r)))
            for i, vector in enumerate(vectors):
                place = ir.Constant(INT64, r * PANEL + i * LANES)
                _take_into(builder, builder.fmul(vector, factor), high, low, place)
        return context.get_dummy_value()

    return signature, codegen


def _take_into(builder, value, high, low, place):
    for extreme, relation in ((high, ">"), (low, "<")):
        best = load_vector(builder, extreme, place)
        better = builder.fcmp_ordered(relation, value, best)
        store_vector(builder, builder.select(better, value, best), extreme, place)


@intrinsic
def tile_centre(typing_context, y):
    """Take its mean away from each row."""
    signature = types.void(y)

    def codegen(context, builder, signature, arguments):
        rows = pointer_of(context, builder, signature, arguments, 0)
        width = extent(context, builder, signature, arguments, 0, 1)

        def add(column, sums):
            return [
                builder.fadd(total, load_vector(builder, rows, _at(builder, width, r, column)))
                for r, total in enumerate(sums)
            ]

        means = row_means(builder, over_vectors(builder, width, add, [constant(0)] * ROWS), width)

        def subtract(column, _):
            for r, mean in enumerate(means):
                place = _at(builder, width, r, column)
                store_vector(builder, builder.fsub(load_vector(builder, rows, place), mean), rows, place)
            return []

        over_vectors(builder, width, subtract, [])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def tile_norm_gradient(typing_context, slope, normalised, scales, gamma, out):
    """Take the gradient behind a LayerNorm's affine part, `slope`, to before the LayerNorm, `out`.

    With ŷ the normalised rows and g = slope · gamma: out = (g − mean(g) − ŷ · mean(g · ŷ))/σ, means by row.
    """
    signature = types.void(slope, normalised, scales, gamma, out)

    def codegen(context, builder, signature, arguments):
        slopes, hats, scale, gamma, out = (
            pointer_of(context, builder, signature, arguments, i) for i in range(5)
        )
        width = extent(context, builder, signature, arguments, 0, 1)

        def each(column):
            factor = load_vector(builder, gamma, column)
            for r in range(ROWS):
                place = _at(builder, width, r, column)
                delta = builder.fmul(load_vector(builder, slopes, place), factor)
                yield place, delta, load_vector(builder, hats, place)

        def add(column, sums):
            totals = []
            for r, (_, delta, hat) in enumerate(each(column)):
                totals += [
                    builder.fadd(sums[2 * r], delta),
                    multiply_add(builder, delta, hat, sums[2 * r + 1]),
                ]
            return totals

        sums = over_vectors(builder, width, add, [constant(0)] * (2 * ROWS))
        means, alongs = (row_means(builder, sums[first::2], width) for first in (0, 1))
        factors = _row_factors(builder, scale)

        def transform(column, _):
            for r, (place, delta, hat) in enumerate(each(column)):
                rest = builder.fsub(builder.fsub(delta, means[r]), builder.fmul(hat, alongs[r]))
                store_vector(builder, builder.fmul(rest, factors[r]), out, place)
            return []

        over_vectors(builder, width, transform, [])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def tile_affine_gradient(typing_context, slope, normalised, affine):
    """Add the gradients of a LayerNorm's gamma, Σ slope · ŷ, and beta, Σ slope, to `affine` (2, N)."""
    signature = types.void(slope, normalised, affine)

    def codegen(context, builder, signature, arguments):
        slopes, hats, affine = (pointer_of(context, builder, signature, arguments, i) for i in range(3))
        width = extent(context, builder, signature, arguments, 0, 1)

        def add(column, _):
            second = builder.add(width, column)
            gamma, beta = load_vector(builder, affine, column), load_vector(builder, affine, second)
            for r in range(ROWS):
                place = _at(builder, width, r, column)
                value = load_vector(builder, slopes, place)
                gamma = multiply_add(builder, value, load_vector(builder, hats, place), gamma)
                beta = builder.fadd(beta, value)
            store_vector(builder, gamma, affine, column)
            store_vector(builder, beta, affine, second)
            return []

        over_vectors(builder, width, add, [])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def tile_drop(typing_context, y, seed, threshold, gain, rows):
    """Zero what dropout loses and multiply the rest by `gain`; `rows` (ROWS,) are the numbers of the rows.

    The mask is that of `dropout.keep_mask`.
    """
    signature = types.void(y, types.uint64, types.uint64, types.float32, rows)

    def codegen(context, builder, signature, arguments):
        y, numbers = (pointer_of(context, builder, signature, arguments, i) for i in (0, 4))
        width = extent(context, builder, signature, arguments, 0, 1)
        least, gain = splat_of(builder, arguments[2], LANES), splat(builder, arguments[3])
        lanes = ir.Constant(WIDE, [(lane + 1) * GOLDEN % 2**64 for lane in range(LANES)])
        origins = []
        for r in range(ROWS):
            number = builder.load(builder.gep(numbers, [ir.Constant(INT64, r)]))
            step = builder.mul(builder.mul(number, width), ir.Constant(INT64, GOLDEN))
            origins.append(builder.add(arguments[1], step))

        def transform(column, _):
            ahead = builder.mul(column, ir.Constant(INT64, GOLDEN))
            for r, origin in enumerate(origins):
                place = _at(builder, width, r, column)
                counter = builder.add(splat_of(builder, builder.add(origin, ahead), LANES), lanes)
                kept = builder.icmp_unsigned(">=", hashed(builder, counter), least)
                value = builder.fmul(load_vector(builder, y, place), gain)
                store_vector(builder, builder.select(kept, value, constant(0)), y, place)
            return []

        over_vectors(builder, width, transform, [])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def store_row(typing_context, y, row, out, place):
    """Write a row of a tile to a flat array from `place` on: float32, or rounded to bfloat16 if uint16."""
    signature = types.void(y, row, out, place)
    half = isinstance(out.dtype, types.Integer)

    def codegen(context, builder, signature, arguments):
        rows, out = (pointer_of(context, builder, signature, arguments, i) for i in (0, 2))
        width = extent(context, builder, signature, arguments, 0, 1)
        source = builder.gep(rows, [builder.mul(width, arguments[1])])
        target = builder.gep(out, [arguments[3]])

        def copy(column, _):
            vector = load_vector(builder, source, column)
            if half:
                vector = rounded_to_bfloat16(builder, vector)
            pointer = builder.bitcast(builder.gep(target, [column]), vector.type.as_pointer())
            builder.store(vector, pointer, align=2)
            return []

        over_vectors(builder, width, copy, [])
        return context.get_dummy_value()

    return signature, codegen


def _row_factors(builder, scales):
    return [
        splat(builder, builder.load(builder.gep(scales, [ir.Constant(INT64, r)]), align=4))
        for r in range(ROWS)
    ]


def _at(builder, width, row, column):
    return builder.add(builder.mul(width, ir.Constant(INT64, row)), column)
