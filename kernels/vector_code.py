"""Vector code by LLVM, from which the CPU kernels of the network are put together: values, memory, functions.

Everything here emits instructions through llvmlite; `builder` is where they go. LANES floats make a vector;
a tile has ROWS rows and whole panels of PANEL columns.
"""

import math
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import types
from numba.extending import intrinsic as numba_intrinsic

from .hashing import FIRST_FACTOR, SECOND_FACTOR
from .numpy_network import ERF_ABOVE, ERF_BELOW

intrinsic: Any = numba_intrinsic  # what it makes is called without the first argument, which mypy cannot know


def _features() -> set[str]:
    """Return what the processor can do that Numba compiles for: this one, unless NUMBA_CPU_… tell another."""
    told = getattr(numba_config, "CPU_FEATURES", None)
    if told is not None:
        return {name[1:] for name in told.split(",") if name.startswith("+")}
    if getattr(numba_config, "CPU_NAME", None) not in (None, "host"):
        return set()
    return {name for name, present in llvm.get_host_cpu_features().items() if present}


_FEATURES = _features()
HAS_BFLOAT16 = "avx512bf16" in _FEATURES

if "avx512f" in _FEATURES:  # 32 registers of 16 floats
    LANES, ROWS, PANEL = 16, 8, 32
elif "avx2" in _FEATURES:  # 16 registers of 8
    LANES, ROWS, PANEL = 8, 4, 16
else:  # NEON: 32 registers of 4; anything else is right, if not quick
    LANES, ROWS, PANEL = 4, 4, 16

INT32, INT64, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, PAIRS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT32, LANES)
WIDE = ir.VectorType(INT64, LANES)


# --- memory and values ----------------------------------------------------------------------------------


def pointer_of(context, builder, signature, arguments, index):
    """Return where the array that is argument number `index` begins, as a pointer to its elements."""
    data = _array(context, builder, signature, arguments, index).data
    kind = signature.args[index].dtype
    element = FLOAT if isinstance(kind, types.Float) else ir.IntType(kind.bitwidth)
    return builder.bitcast(data, element.as_pointer())


def extent(context, builder, signature, arguments, index, axis):
    """Return the length of an axis of the array that is argument number `index`."""
    return builder.extract_value(_array(context, builder, signature, arguments, index).shape, axis)


def _array(context, builder, signature, arguments, index):
    return context.make_array(signature.args[index])(context, builder, arguments[index])


def load_vector(builder, pointer, place, kind=FLOATS):
    """Load LANES values from `place` on; nothing is aligned to more than one of them."""
    return builder.load(builder.bitcast(builder.gep(pointer, [place]), kind.as_pointer()), align=4)


def store_vector(builder, vector, pointer, place):
    """Store LANES floats from `place` on."""
    builder.store(vector, builder.bitcast(builder.gep(pointer, [place]), FLOATS.as_pointer()), align=4)


def splat(builder, scalar):
    """Fill a vector with one value."""
    kind = ir.VectorType(scalar.type, LANES)
    undefined = ir.Constant(kind, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES))


def splat_of(builder, scalar, lanes):
    """Fill a vector of so many lanes with one value."""
    kind = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes))


def constant(value):
    """Return a vector filled with a number."""
    return ir.Constant(FLOATS, [float(np.float32(value))] * LANES)


def float_intrinsic(builder, name, kind, *operands):
    """Call LLVM's `name` for vectors of floats."""
    function = ir.FunctionType(kind, [kind] * len(operands))
    return call(builder, function, f"llvm.{name}.v{kind.count}f32", *operands)


def call(builder, kind, name, *operands):
    """Call a function of LLVM's by its whole name."""
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, operands)


def multiply_add(builder, a, b, c):
    """Return a · b + c, rounded once."""
    return float_intrinsic(builder, "fma", FLOATS, a, b, c)


def over_vectors(builder, n_values, body, initial):
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


# --- functions of vectors ---------------------------------------------------------------------------------


def gelu(builder, x):
    """Return the exact (erf) GELU."""
    return builder.fmul(x, _normal_distribution(builder, x))


def gelu_slope(builder, x):
    """Φ(x) + x·φ(x), of the normal distribution and its density."""
    half_square = builder.fmul(builder.fmul(x, x), constant(-0.5))
    density = builder.fmul(_exponential(builder, half_square), constant(1 / np.sqrt(2 * np.pi)))
    return multiply_add(builder, x, density, _normal_distribution(builder, x))


def _exponential(builder, x):
    """e^x for x ≤ 0, to 2e-7: 2^n · e^r with |r| ≤ ln 2 / 2 and e^r by its series."""
    x = float_intrinsic(builder, "maxnum", FLOATS, x, constant(-87.0))
    n = float_intrinsic(builder, "rint", FLOATS, builder.fmul(x, constant(1 / np.log(2))))
    high = np.float32(0.693359375)  # few enough bits that n · high is exact
    r = multiply_add(builder, n, constant(-high), x)
    r = multiply_add(builder, n, constant(float(high) - np.log(2)), r)
    power = _polynomial(builder, r, [1 / math.factorial(k) for k in range(7, -1, -1)])
    kind = ir.VectorType(INT32, LANES)
    exponent = builder.add(builder.fptosi(n, kind), ir.Constant(kind, [127] * LANES))
    return builder.fmul(
        power, builder.bitcast(builder.shl(exponent, ir.Constant(kind, [23] * LANES)), FLOATS)
    )


def _normal_distribution(builder, x):
    """Φ(x) = (1 + erf(x/√2))/2."""
    z = builder.fmul(x, constant(np.sqrt(0.5)))
    for bound, name in ((4.0, "minnum"), (-4.0, "maxnum")):
        z = float_intrinsic(builder, name, FLOATS, z, constant(bound))
    square = builder.fmul(z, z)
    above, below = (_polynomial(builder, square, each) for each in (ERF_ABOVE, ERF_BELOW))
    erf = builder.fdiv(builder.fmul(z, above), below)
    return multiply_add(builder, erf, constant(0.5), constant(0.5))


def _polynomial(builder, x, coefficients):
    """Evaluate by Horner's rule, the highest coefficient first."""
    value = constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = multiply_add(builder, value, x, constant(coefficient))
    return value


def hashed(builder, z):
    """Return the upper half of SplitMix64's hash."""
    for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
        z = builder.xor(z, builder.lshr(z, ir.Constant(WIDE, [shift] * LANES)))
        z = builder.mul(z, ir.Constant(WIDE, [factor] * LANES))
    z = builder.xor(z, builder.lshr(z, ir.Constant(WIDE, [31] * LANES)))
    return builder.lshr(z, ir.Constant(WIDE, [32] * LANES))


def rounded_to_bfloat16(builder, vector):
    """Round finite values to bfloat16, to nearest even."""
    kind = ir.VectorType(INT32, LANES)
    sixteen, one, half = (ir.Constant(kind, [value] * LANES) for value in (16, 1, 0x7FFF))
    bits = builder.bitcast(vector, kind)
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    rounded = builder.lshr(builder.add(bits, builder.add(odd, half)), sixteen)
    return builder.trunc(rounded, ir.VectorType(ir.IntType(16), LANES))


# --- sums over rows ---------------------------------------------------------------------------------------


def row_sums(builder, vectors):
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


def row_means(builder, sums, width):
    """Return the mean of each row, splat, from the vectors of its partial sums."""
    totals = row_sums(builder, sums)
    means = builder.fdiv(totals, splat_of(builder, builder.sitofp(width, ir.FloatType()), ROWS))
    return [splat(builder, builder.extract_element(means, ir.Constant(INT32, r))) for r in range(ROWS)]


def inverse_deviations(builder, sums, width, eps):
    """Return 1/√(mean + eps) of each row, from the vectors of its partial sums."""
    kind = ir.VectorType(ir.FloatType(), ROWS)
    mean = builder.fdiv(
        row_sums(builder, sums), splat_of(builder, builder.sitofp(width, ir.FloatType()), ROWS)
    )
    root = float_intrinsic(builder, "sqrt", kind, builder.fadd(mean, splat_of(builder, eps, ROWS)))
    return builder.fdiv(ir.Constant(kind, [1.0] * ROWS), root)
