"""What follows a tile of products on a CPU, in vector registers: LayerNorm, GELU, the extremes of a pool.

A tile is a float32 array (ROWS, N), N whole panels; its rows are output positions.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types

from .hashing import FIRST_FACTOR, GOLDEN, SECOND_FACTOR
from .numpy_network import ERF_ABOVE, ERF_BELOW
from .vector_gemm import (
    FLOATS,
    INT32,
    INT64,
    LANES,
    PANEL,
    ROWS,
    extent,
    float_intrinsic,
    intrinsic,
    load_vector,
    pointer_of,
    product,
    splat,
    store_vector,
)


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
                _multiply_add(builder, value, value, total) for value, total in zip(values, sums, strict=True)
            ]

        sums = _over_vectors(builder, width, add_squares, [zero] * ROWS)
        scale = _scales(builder, sums, width, arguments[1])
        builder.store(scale, builder.bitcast(out, scale.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return signature, codegen


def _scales(builder, sums, width, eps):
    """Return 1/√(mean + eps) of each row, from the vectors of its partial sums."""
    kind = ir.VectorType(ir.FloatType(), ROWS)
    mean = builder.fdiv(
        _row_sums(builder, sums), _splat_of(builder, builder.sitofp(width, ir.FloatType()), ROWS)
    )
    root = float_intrinsic(builder, "sqrt", kind, builder.fadd(mean, _splat_of(builder, eps, ROWS)))
    return builder.fdiv(ir.Constant(kind, [1.0] * ROWS), root)


@intrinsic
def tile_affine(typing_context, y, scales, gamma, beta):
    """Set y[r, c] to y[r, c] · scales[r] · gamma[c] + beta[c]."""
    return types.void(y, scales, gamma, beta), _affine_code(lambda builder, value, place: value)


@intrinsic
def tile_affine_gelu(typing_context, y, scales, gamma, beta):
    """Set y[r, c] to GELU(y[r, c] · scales[r] · gamma[c] + beta[c])."""
    return types.void(y, scales, gamma, beta), _affine_code(
        lambda builder, value, place: _gelu(builder, value)
    )


@intrinsic
def tile_affine_add_gelu(typing_context, y, scales, gamma, beta, other):
    """Set y[r, c] to GELU(y[r, c] · scales[r] · gamma[c] + beta[c] + other[r, c])."""
    signature = types.void(y, scales, gamma, beta, other)

    def codegen(context, builder, signature, arguments):
        others = pointer_of(context, builder, signature, arguments, 4)

        def add_gelu(builder, value, place):
            return _gelu(builder, builder.fadd(value, load_vector(builder, others, place)))

        return _affine_code(add_gelu)(context, builder, signature, arguments)

    return signature, codegen


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

        means = _row_means(builder, _over_vectors(builder, width, add, [_constant(0)] * ROWS), width)

        def subtract(column, _):
            for r, mean in enumerate(means):
                place = _at(builder, width, r, column)
                store_vector(builder, builder.fsub(load_vector(builder, rows, place), mean), rows, place)
            return []

        _over_vectors(builder, width, subtract, [])
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
                    _multiply_add(builder, delta, hat, sums[2 * r + 1]),
                ]
            return totals

        sums = _over_vectors(builder, width, add, [_constant(0)] * (2 * ROWS))
        means, alongs = (_row_means(builder, sums[first::2], width) for first in (0, 1))
        factors = _row_factors(builder, scale)

        def transform(column, _):
            for r, (place, delta, hat) in enumerate(each(column)):
                rest = builder.fsub(builder.fsub(delta, means[r]), builder.fmul(hat, alongs[r]))
                store_vector(builder, builder.fmul(rest, factors[r]), out, place)
            return []

        _over_vectors(builder, width, transform, [])
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
                gamma = _multiply_add(builder, value, load_vector(builder, hats, place), gamma)
                beta = builder.fadd(beta, value)
            store_vector(builder, gamma, affine, column)
            store_vector(builder, beta, affine, second)
            return []

        _over_vectors(builder, width, add, [])
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
        least, gain = _splat_of(builder, arguments[2], LANES), splat(builder, arguments[3])
        lanes = ir.Constant(_WIDE, [(lane + 1) * GOLDEN % 2**64 for lane in range(LANES)])
        origins = []
        for r in range(ROWS):
            number = builder.load(builder.gep(numbers, [ir.Constant(INT64, r)]))
            step = builder.mul(builder.mul(number, width), ir.Constant(INT64, GOLDEN))
            origins.append(builder.add(arguments[1], step))

        def transform(column, _):
            ahead = builder.mul(column, ir.Constant(INT64, GOLDEN))
            for r, origin in enumerate(origins):
                place = _at(builder, width, r, column)
                counter = builder.add(_splat_of(builder, builder.add(origin, ahead), LANES), lanes)
                kept = builder.icmp_unsigned(">=", _hashed(builder, counter), least)
                value = builder.fmul(load_vector(builder, y, place), gain)
                store_vector(builder, builder.select(kept, value, _constant(0)), y, place)
            return []

        _over_vectors(builder, width, transform, [])
        return context.get_dummy_value()

    return signature, codegen


_WIDE = ir.VectorType(INT64, LANES)


def _hashed(builder, z):
    """Return the upper half of SplitMix64's hash."""
    for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
        z = builder.xor(z, builder.lshr(z, ir.Constant(_WIDE, [shift] * LANES)))
        z = builder.mul(z, ir.Constant(_WIDE, [factor] * LANES))
    z = builder.xor(z, builder.lshr(z, ir.Constant(_WIDE, [31] * LANES)))
    return builder.lshr(z, ir.Constant(_WIDE, [32] * LANES))


def _row_means(builder, sums, width):
    """Return the mean of each row, splat, from the vectors of its partial sums."""
    totals = _row_sums(builder, sums)
    means = builder.fdiv(totals, _splat_of(builder, builder.sitofp(width, ir.FloatType()), ROWS))
    return [splat(builder, builder.extract_element(means, ir.Constant(INT32, r))) for r in range(ROWS)]


@intrinsic
def tile_gelu(typing_context, y):
    """Set y[r, c] to its GELU."""
    return types.void(y), _elementwise_code(_gelu)


@intrinsic
def tile_gelu_slope(typing_context, y):
    """Set y[r, c] to the derivative of GELU there."""
    return types.void(y), _elementwise_code(_gelu_slope)


def _elementwise_code(function):
    def codegen(context, builder, signature, arguments):
        rows = pointer_of(context, builder, signature, arguments, 0)
        width = extent(context, builder, signature, arguments, 0, 1)

        def transform(place, _):
            store_vector(builder, function(builder, load_vector(builder, rows, place)), rows, place)
            return []

        _over_vectors(builder, builder.mul(width, ir.Constant(INT64, ROWS)), transform, [])
        return context.get_dummy_value()

    return codegen


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
                value = _multiply_add(builder, value, slope, shift)
                store_vector(builder, then(builder, value, place), rows, place)
            return []

        _over_vectors(builder, width, transform, [])
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

        _over_vectors(builder, width, compare, [])
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
        squares = [_constant(0)] * ROWS
        for vectors in zip(*rows, strict=True):
            squares = [_multiply_add(builder, v, v, total) for v, total in zip(vectors, squares, strict=True)]
        scales = _scales(builder, squares, ir.Constant(INT64, PANEL), arguments[4])
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
                vector = _bfloat16_bits(builder, vector)
            pointer = builder.bitcast(builder.gep(target, [column]), vector.type.as_pointer())
            builder.store(vector, pointer, align=2)
            return []

        _over_vectors(builder, width, copy, [])
        return context.get_dummy_value()

    return signature, codegen


def _bfloat16_bits(builder, vector):
    """Round finite values to bfloat16, to nearest even."""
    kind = ir.VectorType(INT32, LANES)
    sixteen, one, half = (ir.Constant(kind, [value] * LANES) for value in (16, 1, 0x7FFF))
    bits = builder.bitcast(vector, kind)
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    rounded = builder.lshr(builder.add(bits, builder.add(odd, half)), sixteen)
    return builder.trunc(rounded, ir.VectorType(ir.IntType(16), LANES))


def _gelu(builder, x):
    return builder.fmul(x, _normal_distribution(builder, x))


def _gelu_slope(builder, x):
    """Φ(x) + x·φ(x), of the normal distribution and its density."""
    half_square = builder.fmul(builder.fmul(x, x), _constant(-0.5))
    density = builder.fmul(_exponential(builder, half_square), _constant(1 / np.sqrt(2 * np.pi)))
    return _multiply_add(builder, x, density, _normal_distribution(builder, x))


def _exponential(builder, x):
    """e^x for x ≤ 0, to 2e-7: 2^n · e^r with |r| ≤ ln 2 / 2 and e^r by its series."""
    x = float_intrinsic(builder, "maxnum", FLOATS, x, _constant(-87.0))
    n = float_intrinsic(builder, "rint", FLOATS, builder.fmul(x, _constant(1 / np.log(2))))
    high = np.float32(0.693359375)  # few enough bits that n · high is exact
    r = _multiply_add(builder, n, _constant(-high), x)
    r = _multiply_add(builder, n, _constant(float(high) - np.log(2)), r)
    power = _polynomial(builder, r, [1 / math.factorial(k) for k in range(7, -1, -1)])
    kind = ir.VectorType(INT32, LANES)
    exponent = builder.add(builder.fptosi(n, kind), ir.Constant(kind, [127] * LANES))
    return builder.fmul(
        power, builder.bitcast(builder.shl(exponent, ir.Constant(kind, [23] * LANES)), FLOATS)
    )


def _normal_distribution(builder, x):
    """Φ(x) = (1 + erf(x/√2))/2."""
    z = builder.fmul(x, _constant(np.sqrt(0.5)))
    for bound, name in ((4.0, "minnum"), (-4.0, "maxnum")):
        z = float_intrinsic(builder, name, FLOATS, z, _constant(bound))
    square = builder.fmul(z, z)
    above, below = (_polynomial(builder, square, each) for each in (ERF_ABOVE, ERF_BELOW))
    erf = builder.fdiv(builder.fmul(z, above), below)
    return _multiply_add(builder, erf, _constant(0.5), _constant(0.5))


def _polynomial(builder, x, coefficients):
    """Evaluate by Horner's rule, the highest coefficient first."""
    value = _constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = _multiply_add(builder, value, x, _constant(coefficient))
    return value


def _constant(value):
    return ir.Constant(FLOATS, [float(np.float32(value))] * LANES)


def _multiply_add(builder, a, b, c):
    return float_intrinsic(builder, "fma", FLOATS, a, b, c)


def _row_sums(builder, vectors):
    """Add up the lanes of each vector; returns a vector of the sums, in their order.

    Two halves at a time go side by side into one vector, so that all rows are added up together.
    """
    lanes = LANES
    while len(vectors) > 1:  # each vector holds its rows' partial sums side by side
        paired = []
        rows_each = LANES // lanes
        for one, other in zip(vectors[::2], vectors[1::2], strict=True):
            first = [g * lanes + i for g in range(rows_each) for i in range(lanes // 2)]
            even = first + [LANES + i for i in first]
            odd = [i + lanes // 2 for i in even]
            paired.append(
                builder.fadd(_shuffled(builder, one, other, even), _shuffled(builder, one, other, odd))
            )
        vectors, lanes = paired, lanes // 2
    total = vectors[0]
    while lanes > 1:
        even = [g * lanes + i for g in range(total.type.count // lanes) for i in range(lanes // 2)]
        odd = [i + lanes // 2 for i in even]
        total = builder.fadd(_shuffled(builder, total, total, even), _shuffled(builder, total, total, odd))
        lanes //= 2
    return total


def _shuffled(builder, one, other, lanes):
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(INT32, len(lanes)), lanes))


def _splat_of(builder, scalar, lanes):
    kind = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes))


def _row_factors(builder, scales):
    return [
        splat(builder, builder.load(builder.gep(scales, [ir.Constant(INT64, r)]), align=4))
        for r in range(ROWS)
    ]


def _at(builder, width, row, column):
    return builder.add(builder.mul(width, ir.Constant(INT64, row)), column)


def _over_vectors(builder, n_values, body, initial):
    """Emit a loop over whole vectors; `body(place, carried)` returns what it carries on."""
    before = builder.block
    loop, end = builder.append_basic_block("vectors"), builder.append_basic_block("vectors.end")
    builder.branch(loop)
    builder.position_at_end(loop)
    place = builder.phi(INT64)
    place.add_incoming(ir.Constant(INT64, 0), before)
    carried = [builder.phi(value.type) for value in initial]
    after = body(place, carried)
    following = builder.add(place, ir.Constant(INT64, LANES))
    place.add_incoming(following, loop)
    for phi, start, new in zip(carried, initial, after, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, n_values), loop, end)
    builder.position_at_end(end)
    return after


assert PANEL % LANES == 0
