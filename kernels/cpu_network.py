"""The whole ResNet-18-1D on a CPU, for inference: packed weights, fused layers, no torch.

LayerNorm's mean is taken away beforehand, from the weights: the mean over the output channels of a
convolution without bias is the convolution with the mean of its weights. The max pool needs GELU at the
greatest and the least argument of a window only, since GELU falls and then rises.

All sums, the stem and the last stage are float32; with bfloat16 the weights between them, and the
activations that those meet, are rounded to it. What a pattern gives depends on no other pattern of its call.

Shape suffixes: B batch, L positions, C and N channels, T taps, K steps of a window (taps · channels).
"""

import threading
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import literal_unroll
from numpy.typing import NDArray

from .compiled import compiled, compiled_fastmath
from .numpy_network import BLOCKS, EPS
from .vector_code import HAS_BFLOAT16, PANEL, ROWS
from .vector_gemm import packed, tile
from .vector_tiles import (
    store_row,
    tile_affine,
    tile_affine_add_gelu,
    tile_affine_gelu,
    tile_extremes,
    tile_product_extremes,
    tile_scales,
)

BLOCK_BYTES = 512 * 1024  # of a block's largest activation: half a usual second-level cache
MOST_PATTERNS = 16  # of a block; more would not spread the reading of the weights much further

HALF_BLOCKS = 6  # of eight; the last stage is little work, and its rounding would show most in the ranks
LOWEST = np.finfo(np.float32).min  # not −∞, which fast arithmetic may take as impossible
_EPS = np.float32(EPS)

Precision = Literal["fp32", "bf16"]


def has_bfloat16() -> bool:
    """Tell whether this processor multiplies bfloat16 (AVX512-BF16)."""
    return HAS_BFLOAT16


class Conv(NamedTuple):
    """A convolution and its LayerNorm, ready for the kernels.

    `weight` (panels, K, PANEL) is packed and has no mean over the output channels; `gamma`, `beta` (N,).
    """

    weight: NDArray[Any]
    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]


# --- compiled: rows of one layer ----------------------------------------------------------------------


@compiled
def products(left, starts, first, weight, out):
    """Fill `out` (ROWS, N) with the convolution of rows first … first + ROWS − 1."""
    n_steps = weight.shape[1]
    for panel in range(len(weight)):
        tile(left, starts, first, weight, panel * n_steps, n_steps, out, panel * PANEL)


@compiled
def conv_norm_gelu(left, starts, n_rows, conv, out, places):
    """Fill rows of `out`, each beginning at its place, with GELU(LayerNorm(convolution))."""
    width = len(conv.gamma)
    y, scales = np.empty((ROWS, width), np.float32), np.empty(ROWS, np.float32)
    for first in range(0, n_rows, ROWS):
        products(left, starts, first, conv.weight, y)
        tile_scales(y, _EPS, scales)
        tile_affine_gelu(y, scales, conv.gamma, conv.beta)
        for r in range(min(ROWS, n_rows - first)):
            store_row(y, r, out, places[first + r])


@compiled
def conv_norm_add_gelu(left, starts, n_rows, conv, source, source_starts, shortcut, out, places):
    """Do the same with a second convolution of another input added before GELU."""
    width = len(conv.gamma)
    y, z = np.empty((ROWS, width), np.float32), np.empty((ROWS, width), np.float32)
    scales = np.empty(ROWS, np.float32)
    for first in range(0, n_rows, ROWS):
        products(left, starts, first, conv.weight, y)
        products(source, source_starts, first, shortcut.weight, z)
        tile_scales(z, _EPS, scales)
        tile_affine(z, scales, shortcut.gamma, shortcut.beta)
        tile_scales(y, _EPS, scales)
        tile_affine_add_gelu(y, scales, conv.gamma, conv.beta, z)
        for r in range(min(ROWS, n_rows - first)):
            store_row(y, r, out, places[first + r])


@compiled
def pooled_stem(x_BL, conv, pool, out, places):
    """Fill rows of `out` with maxpool(GELU(LayerNorm(convolution))) of single-channel patterns.

    The rows of a tile are neighbouring windows, its steps through them the window's points; a point beyond
    the ends is replaced by the last one within, which changes no maximum.
    """
    width, n_taps = len(conv.gamma), conv.weight.shape[1]
    n_positions = x_BL.shape[1] - n_taps + 1
    n_windows = (n_positions + 2 * (pool // 2) - pool) // pool + 1
    y = np.empty((ROWS, width), np.float32)
    high, low, scales = np.empty_like(y), np.empty_like(y), np.empty(ROWS, np.float32)
    starts = np.empty(ROWS, np.int64)
    for b in range(len(x_BL)):
        for first in range(0, n_windows, ROWS):
            high[:], low[:] = LOWEST, -LOWEST
            for phase in range(pool):
                for r in range(ROWS):
                    position = (first + r) * pool - pool // 2 + phase
                    starts[r] = max(0, min(position, n_positions - 1))
                if width == PANEL:
                    tile_product_extremes(x_BL[b], starts, conv.weight, n_taps, _EPS, high, low)
                else:
                    products(x_BL[b], starts, 0, conv.weight, y)
                    tile_scales(y, _EPS, scales)
                    tile_extremes(y, scales, high, low)
            _greatest_gelu(high, low, conv.gamma, conv.beta)
            for r in range(min(ROWS, n_windows - first)):
                store_row(high, r, out, places[b * n_windows + first + r])


@compiled
def plain_stem(x_BL, conv, out, places):
    """Fill rows of `out` with GELU(LayerNorm(convolution)) of single-channel patterns."""
    n_positions = x_BL.shape[1] - conv.weight.shape[1] + 1
    starts = np.zeros(n_positions + ROWS, np.int64)
    starts[:n_positions] = np.arange(n_positions)
    for b in range(len(x_BL)):
        conv_norm_gelu(x_BL[b], starts, n_positions, conv, out, places[b * n_positions :])


@compiled_fastmath
def _greatest_gelu(high, low, gamma, beta):
    """Turn the extremes of windows into the greatest GELU over each, in `high`."""
    units = np.ones(ROWS, np.float32)
    for extreme in (high, low):
        tile_affine_gelu(extreme, units, gamma, beta)
    best, other = high.reshape(-1), low.reshape(-1)
    for i in range(len(best)):
        best[i] = best[i] if best[i] > other[i] else other[i]


@compiled_fastmath
def greatest_over_positions(activations, places, n_positions, out):
    """Fill `out` (B, N) with the maximum over the positions of each pattern."""
    n_channels = out.shape[1]
    for b in range(len(out)):
        best = out[b]
        best[:] = LOWEST
        for position in range(n_positions):
            place = places[b * n_positions + position]
            values = activations[place : place + n_channels]
            for c in range(n_channels):
                best[c] = values[c] if values[c] > best[c] else best[c]


@compiled
def linear(features, weight, bias, out):
    """Fill `out` (B, classes) with features · weight + bias; `weight` is packed, the sums are float32."""
    sums = np.empty((ROWS, len(weight) * PANEL), np.float32)
    starts = np.empty(ROWS, np.int64)
    for first in range(0, len(features), ROWS):
        for r in range(ROWS):
            starts[r] = min(first + r, len(features) - 1) * features.shape[1]
        products(features.reshape(-1), starts, 0, weight, sums)
        for r in range(min(ROWS, len(features) - first)):
            for k in range(len(bias)):
                out[first + r, k] = sums[r, k] + bias[k]


class Block(NamedTuple):
    """A residual block over a workspace.

    `before`, `between`, the flat activations that its convolutions read (pairs of bfloat16 as uint32), each
    with where the windows begin; `middle`, `after`, the flat activations that they write, each with the
    places of the rows; `length` positions a pattern.
    """

    conv1: Conv
    conv2: Conv
    shortcut: Conv
    before: NDArray[Any]
    conv1_starts: NDArray[np.int64]
    shortcut_starts: NDArray[np.int64]
    middle: NDArray[Any]
    middle_places: NDArray[np.int64]
    between: NDArray[Any]
    conv2_starts: NDArray[np.int64]
    after: NDArray[Any]
    after_places: NDArray[np.int64]
    length: int


@compiled
def network_logits(x_BL, stem, pool, first, first_places, blocks, features, head, bias, out):
    """Fill `out` (B, classes), as many patterns at a time as `features` has rows."""
    for begin in range(0, len(x_BL), len(features)):
        part = x_BL[begin : begin + len(features)]
        if pool:
            pooled_stem(part, stem, pool, first, first_places)
        else:
            plain_stem(part, stem, first, first_places)
        for block in literal_unroll(blocks):
            n_rows = len(part) * block.length
            conv_norm_gelu(
                block.before, block.conv1_starts, n_rows, block.conv1, block.middle, block.middle_places
            )
            conv_norm_add_gelu(
                block.between,
                block.conv2_starts,
                n_rows,
                block.conv2,
                block.before,
                block.shortcut_starts,
                block.shortcut,
                block.after,
                block.after_places,
            )
        last = blocks[-1]
        found = features[: len(part)]
        greatest_over_positions(last.after, last.after_places, last.length, found)
        linear(found, head, bias, out[begin : begin + len(part)])


# --- the network ---------------------------------------------------------------------------------------


class _Activation(NamedTuple):
    """A padded channels-last activation of a block of patterns, and where its rows begin.

    `values` is flat; `read` the same memory as the kernels multiply it (pairs of bfloat16 as uint32).
    """

    values: NDArray[Any]
    read: NDArray[Any]
    n_channels: int
    padding: int
    length: int
    n_patterns: int

    @property
    def n_rows(self) -> int:
        return self.n_patterns * self.length

    def starts(self, stride: int, shift: int) -> NDArray[np.int64]:
        """Return where the windows of a convolution begin, `shift` points after the padding's first."""
        length_out = (self.length - 1) // stride + 1
        return self._elements(np.arange(length_out) * stride + shift) * len(self.read) // len(self.values)

    @property
    def places(self) -> NDArray[np.int64]:
        """Where the rows lie that a layer writes."""
        return self._elements(np.arange(self.length) + self.padding)

    def _elements(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        whole = (self.length + 2 * self.padding) * self.n_channels
        starts = np.add.outer(np.arange(self.n_patterns) * whole, positions * self.n_channels).ravel()
        return np.concatenate([starts, np.zeros(-len(starts) % ROWS, np.int64)])


class CpuNetwork:
    """The classifier for inference on a CPU.

    Parameters
    ----------
    weights : mapping of str to ndarray
        The released state dict, float32; entries that the classifier does not need are ignored.
    pool : int or None
        Window and stride of the max pool after the stem.
    precision : {"fp32", "bf16"}
        Of weights and activations between the stem and the last stage.

    Raises
    ------
    ValueError
        bf16 on a processor that does not have it, or channels that do not fill whole panels.
    """

    def __init__(
        self, weights: Mapping[str, NDArray[np.float32]], pool: int | None, precision: Precision = "fp32"
    ):
        if precision == "bf16" and not HAS_BFLOAT16:
            raise ValueError("this processor does not multiply bfloat16")
        self.pool, self.precision = pool, precision
        self._halves = [precision == "bf16" and i < HALF_BLOCKS for i in range(len(BLOCKS))]
        self._stem = _conv(weights, "resnet.conv", False)
        self._blocks = [
            [_conv(weights, f"{name}.{part}", half) for part in ("conv1", "conv2", "downsample")]
            for (name, _), half in zip(BLOCKS, self._halves, strict=True)
        ]
        self._head = packed(weights["classifier.weight"].T, False)
        self._bias = np.ascontiguousarray(weights["classifier.bias"], np.float32)
        self._shapes = [weights[f"{name}.conv1.conv.weight"].shape for name, _ in BLOCKS]
        self._local = threading.local()

    def logits(self, x_BL: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return outputs (B, classes) of network inputs (B, L), on the calling thread, without the GIL.

        Raises
        ------
        ValueError
            Patterns shorter than the stem's window.
        """
        x_BL = np.ascontiguousarray(x_BL, np.float32)
        if x_BL.shape[1] < self._stem.weight.shape[1]:
            raise ValueError(
                f"patterns of {x_BL.shape[1]} points are shorter than the network's first window"
            )
        out = np.empty((len(x_BL), len(self._bias)), np.float32)
        work = self._workspace(x_BL.shape[1])
        stem, head = self._stem, (self._head, self._bias)
        network_logits(
            x_BL, stem, self.pool or 0, work.first, work.places, work.blocks, work.features, *head, out
        )
        return out

    def _workspace(self, n_points: int) -> "_Workspace":
        """Return this thread's own memory for patterns of that length."""
        held = getattr(self._local, "workspace", None)
        if held is None or held.n_points != n_points:
            held = self._local.workspace = _Workspace(self, n_points)
        return held


class _Workspace:
    """Memory for a block of patterns on their way through the network, and where every row lies."""

    def __init__(self, network: CpuNetwork, n_points: int):
        self.n_points = n_points
        length = n_points - network._stem.weight.shape[1] + 1
        if network.pool:
            length = (length + 2 * (network.pool // 2) - network.pool) // network.pool + 1
        width = len(network._stem.gamma)
        itemsize = 2 if network.precision == "bf16" else 4
        self.n_patterns = min(MOST_PATTERNS, max(1, BLOCK_BYTES // (length * width * itemsize)))
        paddings = [shape[2] // 2 for shape in network._shapes]
        before = self._activation(width, paddings[0], length, network._halves[0])
        self.first, self.places = before.values, before.places
        blocks = []
        for i, (conv1, conv2, shortcut) in enumerate(network._blocks):
            stride, width = BLOCKS[i][1], len(conv1.gamma)
            length = (length - 1) // stride + 1
            between = self._activation(width, paddings[i], length, network._halves[i])
            last = i + 1 == len(network._blocks)
            half = not last and network._halves[i + 1]
            after = self._activation(width, 0 if last else paddings[i + 1], length, half)
            block = Block(
                conv1,
                conv2,
                shortcut,
                before=before.read,
                conv1_starts=before.starts(stride, before.padding - paddings[i]),
                shortcut_starts=before.starts(stride, before.padding),
                middle=between.values,
                middle_places=between.places,
                between=between.read,
                conv2_starts=between.starts(1, 0),
                after=after.values,
                after_places=after.places,
                length=length,
            )
            blocks.append(block)
            before = after
        self.blocks = tuple(blocks)
        self.features = np.empty((self.n_patterns, width), np.float32)

    def _activation(self, n_channels: int, padding: int, length: int, half: bool) -> _Activation:
        n_values = self.n_patterns * (length + 2 * padding) * n_channels
        if half:
            values: NDArray[Any] = np.zeros(n_values, np.uint16)
            read: NDArray[Any] = values.view(np.uint32)
        else:
            read = values = np.zeros(n_values, np.float32)
        return _Activation(values, read, n_channels, padding, length, self.n_patterns)


def _conv(weights: Mapping[str, NDArray[np.float32]], name: str, half: bool) -> Conv:
    weight_NCT = weights[f"{name}.conv.weight"].astype(np.float32)
    if len(weight_NCT) % PANEL:
        raise ValueError(f"{name}: {len(weight_NCT)} channels; the CPU kernels need a multiple of {PANEL}")
    centred = weight_NCT - weight_NCT.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    weight_KN = centred.transpose(2, 1, 0).reshape(-1, len(weight_NCT))
    gamma, beta = (
        np.ascontiguousarray(weights[f"{name}.layer_norm.{part}"], np.float32) for part in ("weight", "bias")
    )
    return Conv(packed(weight_KN, half), gamma, beta)
