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
from .dropout import FIRST_FACTOR, GOLDEN, SECOND_FACTOR
from .vector_gemm import PANEL, ROWS, transposed_tile
from .vector_tiles import tile_affine, tile_gelu, tile_gelu_slope, tile_scales

CHUNK = 512  # rows whose gradients are multiplied at a time: they stay in the second-level cache

_GOLDEN, _FIRST, _SECOND = np.uint64(GOLDEN), np.uint64(FIRST_FACTOR), np.uint64(SECOND_FACTOR)


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


@compiled_fastmath
def _keep_factors(mask, row, factors):
    """Fill a row of factors: `gain` for elements that dropout keeps, else 0."""
    first = np.uint64(row * len(factors) + 1)
    for c in range(len(factors)):
        z = mask.seed + (first + np.uint64(c)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
        z = z ^ (z >> np.uint64(31))
        factors[c] = mask.gain if (z >> np.uint64(32)) >= mask.threshold else np.float32(0)


@compiled_fastmath
def _multiply(values, factors):
    flat, other = values.reshape(-1), factors.reshape(-1)
    for i in range(len(flat)):
        flat[i] *= other[i]


@compiled_fastmath
def _normalise(y, eps, scales):
    """Normalise rows in place; `scales` (ROWS,) becomes 1/σ."""
    width = y.shape[1]
    for r in range(ROWS):
        row = y[r]
        total = np.float32(0)
        for c in range(width):
            total += row[c]
        mean = total / np.float32(width)
        for c in range(width):
            row[c] -= mean
    tile_scales(y, eps, scales)
    for r in range(ROWS):
        row, scale = y[r], scales[r]
        for c in range(width):
            row[c] *= scale


@compiled_fastmath
def _through_norm(slope, normalised, scale, gamma, affine, out):
    """Take a row's gradient through LayerNorm; its affine part's gradients are added to `affine` (2, N)."""
    width = len(slope)
    mean = along = np.float32(0)
    to_gamma, to_beta = affine[0], affine[1]
    for c in range(width):
        to_gamma[c] += slope[c] * normalised[c]
        to_beta[c] += slope[c]
        delta = slope[c] * gamma[c]
        mean += delta
        along += delta * normalised[c]
    mean, along = mean / np.float32(width), along / np.float32(width)
    for c in range(width):
        out[c] = scale * (slope[c] * gamma[c] - mean - normalised[c] * along)


@compiled
def layer_forward(left, starts, weight, norm, residual, mask, gelu, out, normalised, scales_R):
    """Fill `out` and `normalised` (R, N), and `scales_R` (R,), 1/σ of each row.

    `left` (flat) holds padded patterns, `starts` (R, filled up to whole tiles) where the rows' windows
    begin; `residual` is (R, N), or (0, N) for none.
    """
    n_rows, width = out.shape
    y, factors = np.zeros((ROWS, width), np.float32), np.empty((ROWS, width), np.float32)
    scales, units = np.empty(ROWS, np.float32), np.ones(ROWS, np.float32)
    for first in range(0, n_rows, ROWS):
        n = min(ROWS, n_rows - first)
        products(left, starts, first, weight, y)
        if mask.threshold:
            for r in range(ROWS):
                _keep_factors(mask, mask.first_row + first + r, factors[r])
            _multiply(y, factors)
        _normalise(y, norm.eps, scales)
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
    slope, factors = np.zeros((ROWS, width), np.float32), np.empty(width, np.float32)
    units = np.ones(ROWS, np.float32)
    for first in range(0, n_rows, ROWS):
        n = min(ROWS, n_rows - first)
        if gelu:
            slope[:n] = normalised[first : first + n]
            tile_affine(slope, units, norm.gamma, norm.beta)
            if len(residual):
                slope[:n] += residual[first : first + n]
            tile_gelu_slope(slope)
            to_sum[first : first + n] = grad[first : first + n] * slope[:n]
        else:
            to_sum[first : first + n] = grad[first : first + n]
        for row in range(first, first + n):
            _through_norm(to_sum[row], normalised[row], scales_R[row], norm.gamma, affine, to_conv[row])
            if mask.threshold:
                _keep_factors(mask, mask.first_row + row, factors)
                _multiply(to_conv[row], factors)


@compiled
def weight_gradient(left, starts, to_conv, out):
    """Add a convolution's gradient to `out` (K filled up to whole tiles, N), from that of its result (R, N)."""
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
    """Fill `out`, GELU's `argument` and its position, `chosen`, all (B, W, N), of pooled single-channel patterns.

    The rows of a tile are neighbouring windows. GELU falls and then rises, so its maximum over a window is
    taken where its argument is greatest or least. A point beyond the ends is replaced by the last within.
    """
    n_windows, width = out.shape[1:]
    y, factors = np.zeros((ROWS, width), np.float32), np.empty((ROWS, width), np.float32)
    high, low = np.empty_like(y), np.empty_like(y)
    high_at, low_at = np.empty((ROWS, width), np.int32), np.empty((ROWS, width), np.int32)
    scales, units, starts = np.empty(ROWS, np.float32), np.ones(ROWS, np.float32), np.empty(ROWS, np.int64)
    for b in range(len(x_BL)):
        first_row = mask.first_row + b * n_positions
        for first in range(0, n_windows, ROWS):
            high[:], low[:] = LOWEST, -LOWEST
            for phase in range(pool):
                for r in range(ROWS):
                    position = (first + r) * pool - pool // 2 + phase
                    starts[r] = max(0, min(position, n_positions - 1))
                products(x_BL[b], starts, 0, weight, y)
                if mask.threshold:
                    for r in range(ROWS):
                        _keep_factors(mask, first_row + starts[r], factors[r])
                    _multiply(y, factors)
                _normalise(y, norm.eps, scales)
                tile_affine(y, units, norm.gamma, norm.beta)
                for r in range(ROWS):
                    _extremes(y[r], starts[r], high[r], high_at[r], low[r], low_at[r])
            for r in range(min(ROWS, n_windows - first)):
                argument[b, first + r] = high[r]
                chosen[b, first + r] = high_at[r]
            y[:] = low
            tile_gelu(high)
            tile_gelu(low)
            for r in range(min(ROWS, n_windows - first)):
                _take_better(high[r], low[r], y[r], low_at[r], argument[b, first + r], chosen[b, first + r])
                out[b, first + r] = high[r]


@compiled_fastmath
def _extremes(row, position, high, high_at, low, low_at):
    place = np.int32(position)
    for c in range(len(row)):
        value = row[c]
        above, below = value > high[c], value < low[c]
        high[c] = value if above else high[c]
        high_at[c] = place if above else high_at[c]
        low[c] = value if below else low[c]
        low_at[c] = place if below else low_at[c]


@compiled_fastmath
def _take_better(best, other, other_argument, other_at, argument, chosen):
    for c in range(len(best)):
        better = other[c] > best[c]
        best[c] = other[c] if better else best[c]
        argument[c] = other_argument[c] if better else argument[c]
        chosen[c] = other_at[c] if better else chosen[c]


@compiled
def pooled_stem_backward(
    grad, x_BL, n_positions, weight, norm, mask, pool, argument, chosen, to_weight, affine, to_x
):
    """Add to `to_weight` (K filled up to whole tiles, N), `affine` (2, N) and, unless empty, `to_x` (B, L)."""
    n_windows, width = argument.shape[1:]
    y, factors = np.zeros((ROWS, width), np.float32), np.ones((ROWS, width), np.float32)
    slopes = np.zeros((-(-n_windows // ROWS) * ROWS, width), np.float32)
    to_conv = np.empty((n_positions, width), np.float32)
    scales, row = np.empty(ROWS, np.float32), np.empty(width, np.float32)
    starts = np.zeros(n_positions + ROWS, np.int64)
    starts[:n_positions] = np.arange(n_positions)
    for b in range(len(x_BL)):
        slopes[:n_windows] = argument[b]
        for first in range(0, n_windows, ROWS):
            tile_gelu_slope(slopes[first : first + ROWS])
        slopes[:n_windows] *= grad[b]
        for first in range(0, n_positions, ROWS):
            products(x_BL[b], starts, first, weight, y)
            if mask.threshold:
                for r in range(ROWS):
                    _keep_factors(mask, mask.first_row + b * n_positions + first + r, factors[r])
                _multiply(y, factors)
            _normalise(y, norm.eps, scales)
            for r in range(min(ROWS, n_positions - first)):
                position = first + r
                window = (position + pool // 2) // pool
                _where_chosen(slopes[window], chosen[b, window], position, row)
                _through_norm(row, y[r], scales[r], norm.gamma, affine, to_conv[position])
                if mask.threshold:
                    _multiply(to_conv[position], factors[r])
        weight_gradient(x_BL[b], starts, to_conv, to_weight)
        if len(to_x):
            _to_patterns(to_conv, weight, to_x[b])


@compiled_fastmath
def _where_chosen(slopes, chosen, position, out):
    place = np.int32(position)
    for c in range(len(out)):
        out[c] = slopes[c] if chosen[c] == place else np.float32(0)


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
