"""The network's layers on a CPU in training: forward passes that keep what the gradients need, and those.

Arrays only, float32. `cpu_layers` lays them out and shares patterns out among threads. "Normalised" is
what LayerNorm makes of a row before its affine part.

Shape suffixes: B batch, L positions, R rows (positions of several patterns), W windows of the pool,
N output channels, K steps of a window (taps · input channels).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled, compiled_fastmath
from .cpu_network import LOWEST, products
from .vector_code import PANEL, ROWS
from .vector_gemm import transposed_tile
from .vector_tiles import (
    tile_affine,
    tile_affine_gradient,
    tile_centre,
    tile_drop,
    tile_gelu,
    tile_gelu_slope,
    tile_norm_gradient,
    tile_scales,
)

CHUNK = 512  # rows whose gradients are multiplied at a time: they stay in the second-level cache


class Norm(NamedTuple):
    """Affine part of a LayerNorm, each (N,), and the ε added to the variance."""

    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    eps: np.float32


class Mask(NamedTuple):
    """What decides dropout (see `dropout.keep_mask`).

    `threshold` is 0 without dropout; `gain` what the kept elements are multiplied by; `first_row` the number
    of the first row that a call works on.
    """

    seed: np.uint64
    threshold: np.uint64
    gain: np.float32
    first_row: int


@compiled
def _drop(mask, first_row, rows, y):
    """Apply dropout to a tile whose rows follow each other from number `first_row` on."""
    for r in range(ROWS):
        rows[r] = first_row + r
    tile_drop(y, mask.seed, mask.threshold, mask.gain, rows)


@compiled
def _normalise(y, eps, scales, ones, zeros):
    """Normalise rows in place; `scales` (ROWS,) becomes 1/σ."""
    tile_centre(y)
    tile_scales(y, eps, scales)
    tile_affine(y, scales, ones, zeros)


@compiled
def layer_forward(left, starts, weight, norm, residual, mask, gelu, out, normalised, scales_R):
    """Fill `out` and `normalised` (R, N), and `scales_R` (R,), 1/σ of each row.

    `left` (flat) holds padded patterns, `starts` (R, filled up to whole tiles) where the rows' windows
    begin; `residual` is (R, N), or (0, N) for none.
    """
    n_rows, width = out.shape
    y, rows = np.zeros((ROWS, width), np.float32), np.empty(ROWS, np.int64)
    scales, units = np.empty(ROWS, np.float32), np.ones(ROWS, np.float32)
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    for first in range(0, n_rows, ROWS):
        n = min(ROWS, n_rows - first)
        products(left, starts, first, weight, y)
        if mask.threshold:
            _drop(mask, mask.first_row + first, rows, y)
        _normalise(y, norm.eps, scales, ones, zeros)
        normalised[first : first + n] = y[:n]
        scales_R[first : first + n] = scales[:n]
        tile_affine(y, units, norm.gamma, norm.beta)
        if len(residual):
            y[:n] += residual[first : first + n]
        if gelu:
            tile_gelu(y)
        out[first : first + n] = y[:n]


@compiled
def layer_backward(grad, normalised, scales_R, norm, residual, mask, gelu, to_sum, to_conv, affine):
    """Fill `to_sum` and `to_conv` (R, N), the gradients before GELU and of the convolution's result.

    The former is also the residual's. `affine` (2, N) gathers those of the LayerNorm.
    """
    n_rows, width = grad.shape
    slope, hat, y = (
        np.zeros((ROWS, width), np.float32),
        np.zeros((ROWS, width), np.float32),
        np.zeros((ROWS, width), np.float32),
    )
    scales, units, rows = np.zeros(ROWS, np.float32), np.ones(ROWS, np.float32), np.empty(ROWS, np.int64)
    for first in range(0, n_rows, ROWS):
        n = min(ROWS, n_rows - first)
        hat[:n], scales[:n] = normalised[first : first + n], scales_R[first : first + n]
        slope[:] = 1
        if gelu:
            slope[:n] = hat[:n]
            tile_affine(slope, units, norm.gamma, norm.beta)
            if len(residual):
                slope[:n] += residual[first : first + n]
            tile_gelu_slope(slope)
        slope[:n] *= grad[first : first + n]
        slope[n:] = 0
        to_sum[first : first + n] = slope[:n]
        tile_affine_gradient(slope, hat, affine)
        tile_norm_gradient(slope, hat, scales, norm.gamma, y)
        if mask.threshold:
            _drop(mask, mask.first_row + first, rows, y)
        to_conv[first : first + n] = y[:n]


@compiled
def weight_gradient(left, starts, to_conv, out):
    """Add a convolution's gradient to `out` (K in whole tiles, N), from that of its result (R, N)."""
    n_steps, width = out.shape
    for first in range(0, len(to_conv), CHUNK):
        part = to_conv[first : first + CHUNK]
        for step in range(0, n_steps, ROWS):
            for column in range(0, width, PANEL):
                transposed_tile(left, starts[first:], step, part, len(part), out, step, column)


@compiled
def input_gradient(left, starts, n_rows, weight, out, places):
    """Add products of windows of `left` with `weight` to rows of `out` (flat), each from its place on."""
    width = len(weight) * PANEL
    y = np.empty((ROWS, width), np.float32)
    for first in range(0, n_rows, ROWS):
        products(left, starts, first, weight, y)
        for r in range(min(ROWS, n_rows - first)):
            place = places[first + r]
            out[place : place + width] += y[r]


@compiled
def pooled_stem_forward(x_BL, n_positions, weight, norm, mask, pool, out, argument, chosen):
    """Fill `out`, GELU's `argument` and its position, `chosen`, all (B, W, N), of single-channel patterns.

    The rows of a tile are neighbouring windows. GELU falls and then rises, so its maximum over a window is
    taken where its argument is greatest or least. A point beyond the ends is replaced by the last within.
    """
    n_windows, width = out.shape[1:]
    y, high, low = (
        np.zeros((ROWS, width), np.float32),
        np.zeros((ROWS, width), np.float32),
        np.zeros((ROWS, width), np.float32),
    )
    high_at, low_at = np.empty((ROWS, width), np.int32), np.empty((ROWS, width), np.int32)
    scales, units, starts = np.empty(ROWS, np.float32), np.ones(ROWS, np.float32), np.empty(ROWS, np.int64)
    ones, zeros, rows = np.ones(width, np.float32), np.zeros(width, np.float32), np.empty(ROWS, np.int64)
    for b in range(len(x_BL)):
        for first in range(0, n_windows, ROWS):
            high[:], low[:] = LOWEST, -LOWEST
            for phase in range(pool):
                for r in range(ROWS):
                    position = (first + r) * pool - pool // 2 + phase
                    starts[r] = max(0, min(position, n_positions - 1))
                products(x_BL[b], starts, 0, weight, y)
                if mask.threshold:
                    rows[:] = starts + (mask.first_row + b * n_positions)
                    tile_drop(y, mask.seed, mask.threshold, mask.gain, rows)
                _normalise(y, norm.eps, scales, ones, zeros)
                tile_affine(y, units, norm.gamma, norm.beta)
                _extremes(y, starts, high, high_at, low, low_at)
            n = min(ROWS, n_windows - first)
            y[:] = high
            tile_gelu(high)
            argument[b, first : first + n], chosen[b, first : first + n] = y[:n], high_at[:n]
            y[:] = low
            tile_gelu(low)
            _take_better(
                high[:n], low, y, low_at, argument[b, first : first + n], chosen[b, first : first + n]
            )
            out[b, first : first + n] = high[:n]


@compiled_fastmath
def _extremes(y, positions, high, high_at, low, low_at):
    for r in range(ROWS):
        place = np.int32(positions[r])
        for c in range(y.shape[1]):
            value = y[r, c]
            above, below = value > high[r, c], value < low[r, c]
            high[r, c] = value if above else high[r, c]
            high_at[r, c] = place if above else high_at[r, c]
            low[r, c] = value if below else low[r, c]
            low_at[r, c] = place if below else low_at[r, c]


@compiled_fastmath
def _take_better(best, other, other_argument, other_at, argument, chosen):
    for r in range(len(best)):
        for c in range(best.shape[1]):
            better = other[r, c] > best[r, c]
            best[r, c] = other[r, c] if better else best[r, c]
            argument[r, c] = other_argument[r, c] if better else argument[r, c]
            chosen[r, c] = other_at[r, c] if better else chosen[r, c]


@compiled
def pooled_stem_backward(
    grad, x_BL, n_positions, weight, norm, mask, pool, argument, chosen, to_weight, affine, to_x
):
    """Add to `to_weight` (whole tiles, N), `affine` (2, N) and, unless empty, `to_x` (B, L)."""
    n_windows, width = argument.shape[1:]
    y, slope = np.zeros((ROWS, width), np.float32), np.zeros((ROWS, width), np.float32)
    slopes = np.zeros((-(-n_windows // ROWS) * ROWS, width), np.float32)
    to_conv = np.empty((-(-n_positions // ROWS) * ROWS, width), np.float32)
    scales, rows = np.empty(ROWS, np.float32), np.empty(ROWS, np.int64)
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    starts = np.zeros(n_positions + ROWS, np.int64)
    starts[:n_positions] = np.arange(n_positions)
    for b in range(len(x_BL)):
        slopes[:n_windows] = argument[b]
        for first in range(0, n_windows, ROWS):
            tile_gelu_slope(slopes[first : first + ROWS])
        slopes[:n_windows] *= grad[b]
        for first in range(0, n_positions, ROWS):
            first_row = mask.first_row + b * n_positions + first
            products(x_BL[b], starts, first, weight, y)
            if mask.threshold:
                _drop(mask, first_row, rows, y)
            _normalise(y, norm.eps, scales, ones, zeros)
            _where_chosen(slopes, chosen[b], first, pool, slope)
            tile_affine_gradient(slope, y, affine)
            tile = to_conv[first : first + ROWS]
            tile_norm_gradient(slope, y, scales, norm.gamma, tile)
            if mask.threshold:
                _drop(mask, first_row, rows, tile)
        weight_gradient(x_BL[b], starts, to_conv[:n_positions], to_weight)
        if len(to_x):
            _to_patterns(to_conv[:n_positions], weight, to_x[b])


@compiled_fastmath
def _where_chosen(slopes, chosen, first, pool, out):
    """Fill a tile of consecutive positions with the slopes of their windows, where they were chosen."""
    for r in range(ROWS):
        window = min((first + r + pool // 2) // pool, len(chosen) - 1)
        place = np.int32(first + r)
        for c in range(out.shape[1]):
            out[r, c] = slopes[window, c] if chosen[window, c] == place else np.float32(0)


@compiled_fastmath
def _to_patterns(to_conv, weight, to_x):
    """Add the gradient of a single-channel pattern; `weight` (panels, K, PANEL)."""
    for position in range(len(to_conv)):
        for panel in range(len(weight)):
            slope = to_conv[position, panel * PANEL : (panel + 1) * PANEL]
            for step in range(weight.shape[1]):
                row = weight[panel, step]
                total = np.float32(0)
                for c in range(PANEL):
                    total += slope[c] * row[c]
                to_x[position + step] += total
