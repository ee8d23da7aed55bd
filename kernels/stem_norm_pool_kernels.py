"""The Triton kernels of the fused stem; `stem_norm_pool` launches them.

Shapes: B patterns, L points, T taps, C channels, P windows of the max pool, M = B·P windows in all.
A tile holds BLOCK_M windows with all their channels and goes through a window point by point, so the
convolution at the pattern's full resolution never travels to memory. Without a pool a window is one point.

Inside the kernels: `i_` index, `o_` offsets, `m_` mask, `p_` pointers, `b_` block.
"""

import triton
import triton.language as tl

from .triton_tiles import (
    dropped_tile,
    gelu_slope_tile,
    gelu_tile,
    keep_tile,
    normalised_gradient_tile,
    normalised_tile,
)


@triton.jit
def stem_norm_pool_kernel(
    x_ptr,
    weight_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    seed_ptr,
    out_ptr,
    chosen_ptr,
    n_windows,
    windows,
    length_out,
    stride_batch,
    stride_length,
    eps,
    dropout_threshold,
    dropout_scale,
    TAPS: tl.constexpr,
    TAPS_PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Fill one tile: BLOCK_M windows of C channels, and which point of its window each value comes from."""
    i_window = tl.program_id(0).to(tl.int64) * BLOCK_M
    o_m = tl.arange(0, BLOCK_M)
    o_c = tl.arange(0, COLUMNS)
    o_t = tl.arange(0, TAPS_PADDED)
    m_window = i_window + o_m < n_windows
    o_ahead = (i_window % windows).to(tl.int32) + o_m
    o_batch = i_window // windows + o_ahead // windows
    o_first = (o_ahead % windows) * WINDOW - WINDOW // 2
    p_pattern = x_ptr + o_batch * stride_batch
    b_w = tl.load(weight_ptr + o_t[:, None] * COLUMNS + o_c[None, :])
    b_scale = tl.load(norm_weight_ptr + o_c, mask=o_c < WIDTH, other=0.0).to(tl.float32)[None, :]
    b_shift = tl.load(norm_bias_ptr + o_c, mask=o_c < WIDTH, other=0.0).to(tl.float32)[None, :]

    # GELU falls and then rises: the greatest of its values is taken at its greatest argument or its least
    b_greatest = tl.full([BLOCK_M, COLUMNS], float("-inf"), tl.float32)
    b_least = tl.full([BLOCK_M, COLUMNS], float("inf"), tl.float32)
    b_greatest_at = tl.zeros([BLOCK_M, COLUMNS], tl.int32)
    b_least_at = tl.zeros([BLOCK_M, COLUMNS], tl.int32)
    for i_point in range(WINDOW):
        o_l = o_first + i_point
        m_l = (o_l >= 0) & (o_l < length_out)
        p_x = p_pattern[:, None] + (o_l[:, None] + o_t[None, :]).to(tl.int64) * stride_length
        b_x = tl.load(p_x, mask=(m_window & m_l)[:, None] & (o_t < TAPS)[None, :], other=0.0)
        b_y = tl.dot(b_x, b_w, input_precision="ieee")
        if seed_ptr is not None:
            o_row = o_batch * length_out + o_l
            b_y = dropped_tile(b_y, seed_ptr, o_row, o_c, dropout_threshold, dropout_scale, WIDTH)
        b_hat, _ = normalised_tile(b_y, o_c, eps, WIDTH)
        b_y = b_hat * b_scale + b_shift
        if WINDOW == 1:
            b_greatest = b_y
        else:
            # as torch's pool: the first of equals, and NaN above all
            m_above = m_l[:, None] & ((b_y > b_greatest) | (b_y != b_y))
            m_below = m_l[:, None] & (b_y < b_least)
            b_greatest = tl.where(m_above, b_y, b_greatest)
            b_least = tl.where(m_below, b_y, b_least)
            if chosen_ptr is not None:
                b_greatest_at = tl.where(m_above, i_point, b_greatest_at)
                b_least_at = tl.where(m_below, i_point, b_least_at)

    b_out = gelu_tile(b_greatest)
    o_out = (i_window + o_m)[:, None] * WIDTH + o_c[None, :]
    m_out = m_window[:, None] & (o_c < WIDTH)[None, :]
    if WINDOW > 1:
        b_falling = gelu_tile(b_least)
        m_falling = (b_greatest < 0.0) & (b_falling > b_out)
        b_out = tl.where(m_falling, b_falling, b_out)
        if chosen_ptr is not None:
            b_at = tl.where(m_falling, b_least_at, b_greatest_at)
            tl.store(chosen_ptr + o_out, b_at.to(tl.uint8), mask=m_out)
    tl.store(out_ptr + o_out, b_out.to(out_ptr.dtype.element_ty), mask=m_out)


@triton.jit
def rows_of_one_thread(b_y):
    """Add up rows 8 apart, which one thread holds of a matrix product: shape (M / 16, 8, columns)."""
    return tl.sum(tl.reshape(b_y, [b_y.shape[0] // 16, 2, 8, b_y.shape[1]]), axis=1)


@triton.jit
def stem_norm_pool_backward_kernel(
    x_ptr,
    weight_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    seed_ptr,
    chosen_ptr,
    grad_out_ptr,
    partial_ptr,
    spread_ptr,
    n_rows,
    windows,
    length_out,
    stride_batch,
    stride_length,
    eps,
    dropout_threshold,
    dropout_scale,
    TAPS: tl.constexpr,
    TAPS_PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Go through every n-th tile, compute its rows anew and sum up the gradients of the parameters.

    Here a tile holds rows of the convolution, M = B·L_out in all; the gradient of a window is read by each
    of its rows, which costs less than to keep it in registers. A program writes its share once, as rows of
    COLUMNS values: TAPS_PADDED of the weight's gradient, then the gradients of the norm's weight and bias.
    Where `spread_ptr` is given, what each row gives to its T points goes there, of shape (B, L_out, T).
    """
    o_m = tl.arange(0, BLOCK_M)
    o_c = tl.arange(0, COLUMNS)
    o_t = tl.arange(0, TAPS_PADDED)
    b_w = tl.load(weight_ptr + o_t[:, None] * COLUMNS + o_c[None, :])
    b_scale = tl.load(norm_weight_ptr + o_c, mask=o_c < WIDTH, other=0.0).to(tl.float32)[None, :]
    b_shift = tl.load(norm_bias_ptr + o_c, mask=o_c < WIDTH, other=0.0).to(tl.float32)[None, :]
    DOT_TYPE: tl.constexpr = tl.bfloat16 if x_ptr.dtype.element_ty == tl.bfloat16 else tl.float32
    b_grad_w = tl.zeros([COLUMNS, TAPS_PADDED], tl.float32)
    b_grad_scale = tl.zeros([BLOCK_M // 16, 8, COLUMNS], tl.float32)
    b_grad_shift = tl.zeros([BLOCK_M // 16, 8, COLUMNS], tl.float32)

    for i_tile in tl.range(tl.program_id(0), tl.cdiv(n_rows, BLOCK_M), tl.num_programs(0), disable_licm=True):
        i_row = tl.cast(i_tile, tl.int64) * BLOCK_M
        o_row = i_row + o_m
        m_row = o_row < n_rows
        o_ahead = (i_row % length_out).to(tl.int32) + o_m
        o_batch = i_row // length_out + o_ahead // length_out
        o_l = o_ahead % length_out
        p_x = x_ptr + (o_batch * stride_batch)[:, None]
        p_x += (o_l[:, None] + o_t[None, :]).to(tl.int64) * stride_length
        b_x = tl.load(p_x, mask=m_row[:, None] & (o_t < TAPS)[None, :], other=0.0)
        b_y = tl.dot(b_x, b_w, input_precision="ieee")
        if seed_ptr is not None:
            b_keep = keep_tile(seed_ptr, o_row, o_c, dropout_threshold, WIDTH)
            b_y = tl.where(b_keep, b_y * dropout_scale, 0.0)
        b_hat, b_rstd = normalised_tile(b_y, o_c, eps, WIDTH)

        # max pool, GELU and the norm's affine part
        o_window = (o_l + WINDOW // 2) // WINDOW  # the pool may leave the last rows out
        o_out = (o_batch * windows + o_window)[:, None] * WIDTH + o_c[None, :]
        m_out = (m_row & (o_window < windows))[:, None] & (o_c < WIDTH)[None, :]
        if WINDOW > 1:
            b_at = tl.load(chosen_ptr + o_out, mask=m_out, other=255).to(tl.int32)
            m_out = m_out & (b_at == ((o_l + WINDOW // 2) % WINDOW)[:, None])
        b_grad = tl.load(grad_out_ptr + o_out, mask=m_out, other=0.0).to(tl.float32)
        b_grad *= gelu_slope_tile(b_hat * b_scale + b_shift)
        b_grad_scale += rows_of_one_thread(b_grad * b_hat)
        b_grad_shift += rows_of_one_thread(b_grad)

        # LayerNorm over C
        b_grad = normalised_gradient_tile(b_grad * b_scale, b_hat, b_rstd, WIDTH)
        if seed_ptr is not None:
            b_grad = tl.where(b_keep, b_grad * dropout_scale, 0.0)

        # convolution
        b_grad = b_grad.to(DOT_TYPE)
        b_grad_w = tl.dot(tl.trans(b_grad), b_x.to(DOT_TYPE), b_grad_w, input_precision=PRECISION)
        if spread_ptr is not None:
            b_spread = tl.dot(b_grad, tl.trans(b_w.to(DOT_TYPE)), input_precision=PRECISION)
            p_spread = spread_ptr + o_row[:, None] * TAPS + o_t[None, :]
            tl.store(p_spread, b_spread, mask=m_row[:, None] & (o_t < TAPS)[None, :])

    p_partial = partial_ptr + tl.program_id(0).to(tl.int64) * ((TAPS_PADDED + 2) * COLUMNS)
    tl.store(p_partial + o_t[None, :] * COLUMNS + o_c[:, None], b_grad_w)
    tl.store(p_partial + TAPS_PADDED * COLUMNS + o_c, tl.sum(tl.sum(b_grad_scale, axis=0), axis=0))
    tl.store(p_partial + (TAPS_PADDED + 1) * COLUMNS + o_c, tl.sum(tl.sum(b_grad_shift, axis=0), axis=0))


@triton.jit
def stem_input_gradient_kernel(
    spread_ptr,
    grad_x_ptr,
    n_points,
    length,
    length_out,
    TAPS: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Gather the input's gradient from what each row gave to its T points."""
    i_first = tl.program_id(0).to(tl.int64) * BLOCK_L
    o_l = tl.arange(0, BLOCK_L)
    o_ahead = (i_first % length).to(tl.int32) + o_l
    o_point = o_ahead % length
    o_row = (i_first // length + o_ahead // length) * length_out + o_point
    m_l = i_first + o_l < n_points
    b_grad = tl.zeros([BLOCK_L], tl.float32)
    for i_tap in range(TAPS):
        m_row = m_l & (o_point >= i_tap) & (o_point - i_tap < length_out)
        b_grad += tl.load(spread_ptr + (o_row - i_tap) * TAPS + i_tap, mask=m_row, other=0.0)
    tl.store(grad_x_ptr + i_first + o_l, b_grad.to(grad_x_ptr.dtype.element_ty), mask=m_l)
