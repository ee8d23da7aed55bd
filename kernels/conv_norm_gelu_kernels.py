"""The Triton kernels of `conv_norm_gelu`: forward, alone or with the projected shortcut, and backward.

Shapes: B patterns, L points, C input channels, N output channels, K taps, M = B·L_out output rows.
Everything is channels-last, so an output row and its normalisation live in one tile and the convolution's
result never travels to memory. The convolution is an implicit matrix product: (M, K·C) @ (K·C, N).

Both sides of a product have at least 16 columns: weights come padded with zeros, and `COLUMNS` counts what
`C_OUT` (or `C_IN`) is padded to. Pointers of what a variant leaves out are valid and unused.
"""

import triton
import triton.language as tl

from .triton_tiles import dropped_tile, gelu_slope_tile, gelu_tile, normalised_gradient_tile, normalised_tile

# Known at run time only, so that one compiled kernel serves all lengths, batches, taps and strides.
SIZES = (
    "n_rows",
    "n_tiles",
    "rows_per_split",
    "length",
    "length_out",
    "length_phase",
    "stride",
    "padding",
    "taps",
    "threshold",
)


@triton.jit
def row_positions(i_row, length_out, BLOCK_M: tl.constexpr):
    """Split the rows from `i_row` on into pattern (64-bit) and position (32-bit)."""
    o_ahead = (i_row % length_out).to(tl.int32) + tl.arange(0, BLOCK_M)
    return i_row // length_out + o_ahead // length_out, o_ahead % length_out


@triton.jit
def window_tile(
    x_ptr,
    o_batch,
    o_first,
    m_row,
    i_k,
    length,
    stride_batch,
    stride_length,
    taps,
    C_IN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Load BLOCK_K elements, from `i_k` on, of the flattened (K, C) windows that begin at `o_first`."""
    o_k = tl.arange(0, BLOCK_K)
    p_pattern = x_ptr + o_batch * stride_batch
    if C_IN % BLOCK_K == 0:  # one tap
        o_x = o_first + i_k // C_IN
        m_x = m_row & (o_x >= 0) & (o_x < length)
        p_x = p_pattern + o_x.to(tl.int64) * stride_length + i_k % C_IN
        b_x = tl.load(p_x[:, None] + o_k[None, :], mask=m_x[:, None], other=0.0)
    else:
        o_tap = (i_k + o_k) // C_IN
        o_x = o_first[:, None] + o_tap[None, :]
        m_x = m_row[:, None] & (o_x >= 0) & (o_x < length) & (o_tap < taps)[None, :]
        p_x = p_pattern[:, None] + o_x.to(tl.int64) * stride_length
        b_x = tl.load(p_x + ((i_k + o_k) % C_IN)[None, :], mask=m_x, other=0.0)
    return b_x


@triton.jit
def convolved_tile(
    x_ptr,
    weight_ptr,
    i_row,
    n_rows,
    length,
    length_out,
    stride_batch,
    stride_length,
    stride,
    padding,
    taps,
    C_IN: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Convolve: BLOCK_M output rows from `i_row` on, in float32."""
    o_batch, o_position = row_positions(i_row, length_out, BLOCK_M)
    o_first = o_position * stride - padding
    m_row = i_row + tl.arange(0, BLOCK_M) < n_rows
    o_weight = tl.arange(0, BLOCK_K)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    b_y = tl.zeros([BLOCK_M, COLUMNS], dtype=tl.float32)
    for i_block in range((taps * C_IN + BLOCK_K - 1) // BLOCK_K):
        i_k = i_block * BLOCK_K
        b_x = window_tile(
            x_ptr, o_batch, o_first, m_row, i_k, length, stride_batch, stride_length, taps, C_IN, BLOCK_K
        )
        b_w = tl.load(weight_ptr + i_k * COLUMNS + o_weight)
        b_y = tl.dot(b_x, b_w, b_y, input_precision=PRECISION)
    return b_y


@triton.jit
def affine_tile(b_hat, norm_weight_ptr, norm_bias_ptr, o_n, m_n):
    """Apply the LayerNorm's weight and bias."""
    b_weight = tl.load(norm_weight_ptr + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_bias = tl.load(norm_bias_ptr + o_n, mask=m_n, other=0.0).to(tl.float32)
    return b_hat * b_weight[None, :] + b_bias[None, :]


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x_ptr,
    weight_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    residual_ptr,
    seed_ptr,
    out_ptr,
    shortcut_weight_ptr,
    shortcut_norm_weight_ptr,
    shortcut_norm_bias_ptr,
    shortcut_ptr,
    n_rows,
    length,
    length_out,
    stride_batch,
    stride_length,
    stride,
    padding,
    taps,
    eps,
    threshold,
    scale,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    COLUMNS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GELU: tl.constexpr,
    DROPOUT: tl.constexpr,
    SHORTCUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_K_SHORTCUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fill one tile: BLOCK_M output rows, each with all its C_OUT channels; likewise of the shortcut."""
    i_row = tl.program_id(0).to(tl.int64) * BLOCK_M
    i_rows = i_row + tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, COLUMNS)
    o_out = i_rows[:, None] * C_OUT + o_n[None, :]
    m_n = o_n < C_OUT
    m_out = (i_rows < n_rows)[:, None] & m_n[None, :]

    b_y = convolved_tile(
        x_ptr, weight_ptr, i_row, n_rows, length, length_out, stride_batch, stride_length, stride, padding,
        taps, C_IN, COLUMNS, BLOCK_M, BLOCK_K, PRECISION,
    )  # fmt: skip
    if DROPOUT:
        b_y = dropped_tile(b_y, seed_ptr, i_rows, o_n, threshold, scale, C_OUT)
    b_hat, _ = normalised_tile(b_y, o_n, eps, C_OUT)
    b_y = affine_tile(b_hat, norm_weight_ptr, norm_bias_ptr, o_n, m_n)
    if RESIDUAL:
        b_y += tl.load(residual_ptr + o_out, mask=m_out, other=0.0).to(tl.float32)
    if GELU:
        b_y = gelu_tile(b_y)
    tl.store(out_ptr + o_out, b_y.to(out_ptr.dtype.element_ty), mask=m_out)

    if SHORTCUT:  # what it reads was read a moment ago, as the middle tap
        b_y = convolved_tile(
            x_ptr, shortcut_weight_ptr, i_row, n_rows, length, length_out, stride_batch, stride_length,
            stride, 0, 1, C_IN, COLUMNS, BLOCK_M, BLOCK_K_SHORTCUT, PRECISION,
        )  # fmt: skip
        b_hat, _ = normalised_tile(b_y, o_n, eps, C_OUT)
        b_y = affine_tile(b_hat, shortcut_norm_weight_ptr, shortcut_norm_bias_ptr, o_n, m_n)
        tl.store(shortcut_ptr + o_out, b_y.to(shortcut_ptr.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=SIZES)
def rows_backward_kernel(
    x_ptr,
    weight_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    residual_ptr,
    seed_ptr,
    grad_out_ptr,
    grad_conv_ptr,
    grad_residual_ptr,
    grad_norm_ptr,
    n_rows,
    n_tiles,
    length,
    length_out,
    stride_batch,
    stride_length,
    stride,
    padding,
    taps,
    eps,
    threshold,
    scale,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    COLUMNS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GELU: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Convolve again and turn the result's gradient into those of the convolution and the residual.

    `grad_norm`, shape (programs, 2, N), gets each program's share of the gradients of the LayerNorm's weight
    and bias; a program takes every so-many-th tile.
    """
    o_n = tl.arange(0, COLUMNS)
    m_n = o_n < C_OUT
    b_norm_weight = tl.load(norm_weight_ptr + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_grad_weight = tl.zeros([COLUMNS], dtype=tl.float32)
    b_grad_bias = tl.zeros([COLUMNS], dtype=tl.float32)
    for i_tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        i_row = tl.cast(i_tile, tl.int64) * BLOCK_M
        i_rows = i_row + tl.arange(0, BLOCK_M)
        o_out = i_rows[:, None] * C_OUT + o_n[None, :]
        m_out = (i_rows < n_rows)[:, None] & m_n[None, :]
        b_y = convolved_tile(
            x_ptr, weight_ptr, i_row, n_rows, length, length_out, stride_batch, stride_length, stride,
            padding, taps, C_IN, COLUMNS, BLOCK_M, BLOCK_K, PRECISION,
        )  # fmt: skip
        if DROPOUT:
            b_y = dropped_tile(b_y, seed_ptr, i_rows, o_n, threshold, scale, C_OUT)
        b_hat, b_scale = normalised_tile(b_y, o_n, eps, C_OUT)

        b_grad = tl.load(grad_out_ptr + o_out, mask=m_out, other=0.0).to(tl.float32)
        if GELU:
            b_y = affine_tile(b_hat, norm_weight_ptr, norm_bias_ptr, o_n, m_n)
            if RESIDUAL:
                b_y += tl.load(residual_ptr + o_out, mask=m_out, other=0.0).to(tl.float32)
            b_grad *= gelu_slope_tile(b_y)
        if RESIDUAL:
            tl.store(grad_residual_ptr + o_out, b_grad.to(grad_residual_ptr.dtype.element_ty), mask=m_out)
        b_grad_weight += tl.sum(b_grad * b_hat, axis=0)
        b_grad_bias += tl.sum(b_grad, axis=0)

        b_grad = normalised_gradient_tile(b_grad * b_norm_weight[None, :], b_hat, b_scale, C_OUT)
        if DROPOUT:
            b_grad = dropped_tile(b_grad, seed_ptr, i_rows, o_n, threshold, scale, C_OUT)
        tl.store(grad_conv_ptr + o_out, b_grad.to(grad_conv_ptr.dtype.element_ty), mask=m_out)
    p_norm = grad_norm_ptr + tl.program_id(0) * 2 * C_OUT + o_n
    tl.store(p_norm, b_grad_weight, mask=m_n)
    tl.store(p_norm + C_OUT, b_grad_bias, mask=m_n)


@triton.jit(do_not_specialize=SIZES)
def input_backward_kernel(
    grad_conv_ptr,
    weight_ptr,
    grad_shortcut_ptr,
    shortcut_weight_ptr,
    grad_x_ptr,
    n_rows,
    length,
    length_out,
    length_phase,
    stride,
    padding,
    taps,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHORTCUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fill BLOCK_M rows of the input's gradient, `stride` points apart.

    Points of one phase (their remainder by the stride) meet the same taps, every `stride`-th one, so that
    each phase is a convolution of stride 1. `weight` is (K, N, C), N and C padded; the shortcut's (N, C).
    """
    i_phase = tl.program_id(1)
    i_row = tl.program_id(0).to(tl.int64) * BLOCK_M
    o_batch, o_position = row_positions(i_row, length_phase, BLOCK_M)
    m_row = i_row + tl.arange(0, BLOCK_M) < n_rows
    p_pattern = grad_conv_ptr + o_batch * length_out * C_OUT
    o_k = tl.arange(0, BLOCK_K)
    o_c = tl.arange(0, COLUMNS)
    o_weight = o_k[:, None] * COLUMNS + o_c[None, :]
    BLOCKS: tl.constexpr = (C_OUT + BLOCK_K - 1) // BLOCK_K

    i_first = (i_phase + padding) % stride
    o_out = o_position + (i_phase + padding) // stride
    b_x = tl.zeros([BLOCK_M, COLUMNS], dtype=tl.float32)
    for i_block in range((taps - i_first + stride - 1) // stride * BLOCKS):
        i_step = i_block // BLOCKS
        i_n = i_block % BLOCKS * BLOCK_K
        o_row = o_out - i_step
        m_k = m_row & (o_row >= 0) & (o_row < length_out)
        p_grad = p_pattern + o_row.to(tl.int64) * C_OUT + i_n
        b_grad = tl.load(
            p_grad[:, None] + o_k[None, :], mask=m_k[:, None] & (i_n + o_k < C_OUT)[None, :], other=0.0
        )
        p_weight = weight_ptr + ((i_first + i_step * stride) * BLOCKS * BLOCK_K + i_n) * COLUMNS
        b_x = tl.dot(b_grad, tl.load(p_weight + o_weight), b_x, input_precision=PRECISION)

    if SHORTCUT:
        p_pattern = grad_shortcut_ptr + o_batch * length_out * C_OUT
        m_k = m_row & (o_position < length_out)
        p_grad = p_pattern + o_position.to(tl.int64) * C_OUT
        for i_block in range(tl.where(i_phase == 0, BLOCKS, 0)):
            i_n = i_block * BLOCK_K
            m_grad = m_k[:, None] & (i_n + o_k < C_OUT)[None, :]
            b_grad = tl.load(p_grad[:, None] + (i_n + o_k)[None, :], mask=m_grad, other=0.0)
            b_w = tl.load(shortcut_weight_ptr + i_n * COLUMNS + o_weight)
            b_x = tl.dot(b_grad, b_w, b_x, input_precision=PRECISION)

    o_x = o_position * stride + i_phase
    m_x = (m_row & (o_x < length))[:, None] & (o_c < C_IN)[None, :]
    p_x = grad_x_ptr + (o_batch * length + o_x) * C_IN
    tl.store(p_x[:, None] + o_c[None, :], b_x.to(grad_x_ptr.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=SIZES)
def weight_backward_kernel(
    x_ptr,
    grad_conv_ptr,
    grad_weight_ptr,
    n_rows,
    rows_per_split,
    length,
    length_out,
    stride_batch,
    stride_length,
    stride,
    padding,
    taps,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    COLUMNS: tl.constexpr,
    ATOMIC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum windowᵀ @ gradient over one share of the rows, for BLOCK_K of the flattened (K, C) elements.

    `grad_weight`, float32: (K·C, N), zero before, if ATOMIC; else (shares, K·C, N), K·C and N padded.
    """
    i_k = tl.program_id(0) * BLOCK_K
    i_first = tl.program_id(1).to(tl.int64) * rows_per_split
    o_k = i_k + tl.arange(0, BLOCK_K)
    o_n = tl.arange(0, COLUMNS)
    m_n = o_n < C_OUT
    b_weight = tl.zeros([BLOCK_K, COLUMNS], dtype=tl.float32)
    for i_ahead in range(0, rows_per_split, BLOCK_M):
        i_row = i_first + i_ahead
        i_rows = i_row + tl.arange(0, BLOCK_M)
        m_row = i_rows < n_rows
        o_batch, o_position = row_positions(i_row, length_out, BLOCK_M)
        o_first = o_position * stride - padding
        b_x = window_tile(
            x_ptr, o_batch, o_first, m_row, i_k, length, stride_batch, stride_length, taps, C_IN, BLOCK_K
        )
        p_grad = grad_conv_ptr + i_rows[:, None] * C_OUT + o_n[None, :]
        b_grad = tl.load(p_grad, mask=m_row[:, None] & m_n[None, :], other=0.0)
        b_weight = tl.dot(tl.trans(b_x), b_grad, b_weight, input_precision=PRECISION)
    o_weight = o_k[:, None] * COLUMNS + o_n[None, :]
    if ATOMIC:
        m_weight = (o_k < taps * C_IN)[:, None] & m_n[None, :]
        tl.atomic_add(grad_weight_ptr + o_weight, b_weight, mask=m_weight, sem="relaxed")
    else:
        i_share = tl.program_id(1).to(tl.int64) * tl.num_programs(0) * BLOCK_K * COLUMNS
        tl.store(grad_weight_ptr + i_share + o_weight, b_weight)
