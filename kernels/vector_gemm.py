"""The inner loop of the network on a CPU: a small tile of a matrix product, held in vector registers.

A channels-last convolution in one dimension is a matrix product without any copy: the window of an
output row is a contiguous stretch of the input, taps · channels long, so the rows of the left matrix
are given by where they begin. Numba alone does not keep a tile in registers; here LLVM is told to.

Values are float32, or pairs of bfloat16 in one uint32 where the processor multiplies those (AVX512-BF16:
sums in float32).
"""

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import types
from numba.extending import intrinsic as numba_intrinsic
from numpy.typing import NDArray

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
        return builder.call(
            _function(builder, kind, "llvm.x86.avx512bf16.dpbf16ps.512"), [total, factor, vector]
        )
    return float_intrinsic(builder, "fma", FLOATS, factor, vector, total)


def float_intrinsic(builder, name, kind, *operands):
    """Call LLVM's `name` for vectors of floats."""
    function = ir.FunctionType(kind, [kind] * len(operands))
    return builder.call(_function(builder, function, f"llvm.{name}.v{kind.count}f32"), operands)


def _function(builder, kind, name):
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)


def splat(builder, scalar):
    """Fill a vector with one value."""
    kind = ir.VectorType(scalar.type, LANES)
    undefined = ir.Constant(kind, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES))


def load_vector(builder, pointer, place, kind=FLOATS):
    """Load LANES values from `place` on; nothing is aligned to more than one of them."""
    return builder.load(builder.bitcast(builder.gep(pointer, [place]), kind.as_pointer()), align=4)


def store_vector(builder, vector, pointer, place):
    """Store LANES floats from `place` on."""
    builder.store(vector, builder.bitcast(builder.gep(pointer, [place]), FLOATS.as_pointer()), align=4)


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


def _array(context, builder, signature, arguments, index):
    return context.make_array(signature.args[index])(context, builder, arguments[index])


def pointer_of(context, builder, signature, arguments, index):
    """Return where the array that is argument number `index` begins, as a pointer to its elements."""
    data = _array(context, builder, signature, arguments, index).data
    kind = signature.args[index].dtype
    element = FLOAT if isinstance(kind, types.Float) else ir.IntType(kind.bitwidth)
    return builder.bitcast(data, element.as_pointer())


def extent(context, builder, signature, arguments, index, axis):
    """Return the length of an axis of the array that is argument number `index`."""
    return builder.extract_value(_array(context, builder, signature, arguments, index).shape, axis)
