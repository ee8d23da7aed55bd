"""The network's convolutions as torch operators on the CPU, with gradients, by the code of `cpu_training`.

Everything is computed in float32, also within `torch.autocast`: on a CPU that is quicker than casting, and
more exact. Patterns are shared out among as many threads as torch uses. The stem is in `cpu_stem`.

Shape suffixes: B batch, L positions, C channels in, N channels out, T taps.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cpu_training as kernels
from .cpu_patterns import Array, array_of, mask_of, norm_of, over_patterns, steps_of, takes, unavailable
from .cpu_stem import stem_norm_pool
from .vector_code import PANEL, ROWS
from .vector_gemm import packed

__all__ = ["conv_norm_gelu", "stem_norm_pool", "takes", "unavailable"]


class _Geometry:
    """A convolution's sizes, and where its windows begin in padded channels-last patterns."""

    def __init__(self, shape: torch.Size, weight: torch.Size, stride: int, padding: int):
        self.length, self.n_in = shape[1], shape[2]
        self.n_out, _, self.taps = weight
        self.stride, self.padding = stride, padding
        if self.n_in != weight[1] or self.length + 2 * padding < self.taps:
            raise ValueError(f"input {tuple(shape)} and weight {tuple(weight)} do not fit, padding {padding}")
        self.length_out = (self.length + 2 * padding - self.taps) // stride + 1

    def padded(self, x_BLC: Array) -> Array:
        x_BLC = np.pad(x_BLC, ((0, 0), (self.padding, self.padding), (0, 0))) if self.padding else x_BLC
        return np.ascontiguousarray(x_BLC)

    def starts(self, n_patterns: int) -> Array:
        whole = (self.length + 2 * self.padding) * self.n_in
        return _row_starts(n_patterns, whole, 0, self.stride * self.n_in, self.length_out)


@lru_cache(maxsize=128)
def _row_starts(n_patterns: int, whole: int, first: int, step: int, n_rows: int) -> Array:
    """Return where rows begin, `n_rows` of each pattern of `whole` values, filled up to whole tiles."""
    within = first + step * np.arange(n_rows)
    starts = np.add.outer(np.arange(n_patterns) * whole, within).ravel()
    return np.concatenate([starts, np.zeros(ROWS, np.int64)])


def conv_norm_gelu(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    residual: Tensor | None,
    seed: Tensor | None,
    stride: int,
    padding: int,
    eps: float,
    gelu: bool,
    dropout: float,
) -> Tensor:
    """Run a layer; parameters and result are those of `dispatch.conv_norm_gelu`.

    Raises
    ------
    ValueError
        Channels that do not fill whole panels, or shapes that do not fit.
    """
    if not takes(weight.shape[:2], torch.float32):
        raise ValueError(
            f"the compiled kernels need multiples of {PANEL} channels, not {tuple(weight.shape)}"
        )
    tensors = x_BLC, weight, norm_weight, norm_bias, residual, seed
    return _conv_norm_gelu(*tensors, stride, padding, eps, gelu, dropout)[0].to(x_BLC.dtype)


@torch.library.custom_op("hxrd::cpu_conv_norm_gelu", mutates_args=())
def _conv_norm_gelu(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    residual: Tensor | None,
    seed: Tensor | None,
    stride: int,
    padding: int,
    eps: float,
    gelu: bool,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer's output, its normalised rows and their 1/σ."""
    geometry = _Geometry(x_BLC.shape, weight.shape, stride, padding)
    out, normalised, scales = _layer_outputs(x_BLC, weight, stride, padding)
    arrays = tuple(tensor.numpy() for tensor in (out, normalised, scales))
    x, right = array_of(x_BLC), packed(steps_of(weight), False)
    added = array_of(residual, (len(x), 0, geometry.n_out))
    norm = norm_of(norm_weight, norm_bias, eps)

    def work(part: slice) -> None:
        rows = [array[part].reshape(-1, *array.shape[2:]) for array in arrays]
        kernels.layer_forward(
            geometry.padded(x[part]).reshape(-1),
            geometry.starts(part.stop - part.start),
            right,
            norm,
            added[part].reshape(-1, geometry.n_out),
            mask_of(seed, dropout, part.start * geometry.length_out),
            gelu,
            *rows,
        )

    over_patterns(work, len(x))
    return out, normalised, scales


@_conv_norm_gelu.register_fake
def _(x_BLC, weight, norm_weight, norm_bias, residual, seed, stride, padding, eps, gelu, dropout):
    return _layer_outputs(x_BLC, weight, stride, padding)


def _layer_outputs(x_BLC: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    length_out = (x_BLC.shape[1] + 2 * padding - weight.shape[2]) // stride + 1
    shape = x_BLC.shape[0], length_out, weight.shape[0]
    out, normalised = (x_BLC.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return out, normalised, x_BLC.new_empty(shape[:2], dtype=torch.float32)


def _save_layer(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.options = inputs[6:]


@once_differentiable
def _layer_gradients(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    need_input = ctx.needs_input_grad[0]
    found = _conv_norm_gelu_backward(grad_out, *ctx.saved_tensors, *ctx.options, need_input)
    to_input, to_weight, to_gamma, to_beta, to_residual = found
    tensors = ctx.saved_tensors
    return (
        to_input.to(tensors[0].dtype) if need_input else None,
        to_weight.to(tensors[1].dtype),
        to_gamma,
        to_beta,
        None if tensors[4] is None else to_residual.to(tensors[4].dtype),
        *[None] * 6,
    )


_conv_norm_gelu.register_autograd(_layer_gradients, setup_context=_save_layer)


@torch.library.custom_op("hxrd::cpu_conv_norm_gelu_backward", mutates_args=())
def _conv_norm_gelu_backward(
    grad_out: Tensor,
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    residual: Tensor | None,
    seed: Tensor | None,
    normalised: Tensor,
    scales: Tensor,
    stride: int,
    padding: int,
    eps: float,
    gelu: bool,
    dropout: float,
    need_input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the input (empty if not needed), weight, LayerNorm and residual."""
    geometry = _Geometry(x_BLC.shape, weight.shape, stride, padding)
    x, grad, hat, deviation = (array_of(tensor) for tensor in (x_BLC, grad_out, normalised, scales))
    added = array_of(residual, (len(x), 0, geometry.n_out))
    norm, to_sum = norm_of(norm_weight, norm_bias, eps), np.empty_like(grad)
    to_input = np.zeros(x.shape if need_input else (0,), np.float32)
    phases = _phases(geometry, weight) if need_input else []

    def work(part: slice) -> tuple[Array, Array]:
        n, width = part.stop - part.start, geometry.n_out
        to_conv = np.empty((n * geometry.length_out, width), np.float32)
        affine = np.zeros((2, width), np.float32)
        rows = [array[part].reshape(-1, *array.shape[2:]) for array in (grad, hat, deviation)]
        mask = mask_of(seed, dropout, part.start * geometry.length_out)
        kernels.layer_backward(
            *rows,
            norm,
            added[part].reshape(-1, width),
            mask,
            gelu,
            to_sum[part].reshape(-1, width),
            to_conv,
            affine,
        )
        to_steps = np.zeros((geometry.taps * geometry.n_in, width), np.float32)
        left = geometry.padded(x[part]).reshape(-1)
        kernels.weight_gradient(left, geometry.starts(n), to_conv, to_steps)
        if need_input:
            _input_gradient(geometry, phases, to_conv.reshape(n, -1, width), to_input[part])
        return to_steps, affine

    sums = over_patterns(work, len(x))
    to_steps, affine = (np.stack(parts).sum(axis=0) for parts in zip(*sums, strict=True))
    to_weight = to_steps.reshape(geometry.taps, geometry.n_in, geometry.n_out).transpose(2, 1, 0)
    found = to_input, np.ascontiguousarray(to_weight), affine[0].copy(), affine[1].copy()
    kept = to_sum if residual is not None else np.empty(0, np.float32)
    return (*(torch.from_numpy(array) for array in found), torch.from_numpy(kept))  # type: ignore[return-value]


@_conv_norm_gelu_backward.register_fake
def _(grad_out, x_BLC, weight, norm_weight, norm_bias, residual, *others):
    need_input = others[-1]
    single = {"dtype": torch.float32}
    return (
        x_BLC.new_empty(x_BLC.shape if need_input else (0,), **single),
        weight.new_empty(weight.shape, **single),
        norm_weight.new_empty(norm_weight.shape, **single),
        norm_bias.new_empty(norm_bias.shape, **single),
        grad_out.new_empty((0,) if residual is None else grad_out.shape, **single),
    )


def _phases(geometry: _Geometry, weight: Tensor) -> list[tuple[int, int, Array]]:
    """Split the gradient of a strided convolution's input by position modulo the stride.

    Returns (first position, first output row of its window, packed weight) for each phase that any tap
    reaches: position l gets from output row o by tap t where o·stride + t = l + padding.
    """
    found = []
    weight_NCT = weight.detach().float().numpy()
    for first in range(min(geometry.stride, geometry.length)):
        taps = np.arange((first + geometry.padding) % geometry.stride, geometry.taps, geometry.stride)[::-1]
        if len(taps):
            steps = weight_NCT[:, :, taps].transpose(2, 0, 1).reshape(-1, geometry.n_in)
            lowest = (first + geometry.padding - int(taps[0])) // geometry.stride
            found.append((first, lowest, packed(np.ascontiguousarray(steps), False)))
    return found


def _input_gradient(
    geometry: _Geometry, phases: list[tuple[int, int, Array]], to_conv: Array, to_input: Array
) -> None:
    """Add to `to_input` (B, L, C) the gradient that comes from the convolution's result (B, L_out, N)."""
    n, width = len(to_conv), geometry.n_out
    before = max(0, *(-lowest for _, lowest, _ in phases)) if phases else 0
    n_taps = -(-geometry.taps // geometry.stride)
    rows = before + geometry.length // geometry.stride + geometry.padding + n_taps + geometry.length_out + 1
    margin = np.zeros((n, rows, width), np.float32)
    margin[:, before : before + geometry.length_out] = to_conv
    for first, lowest, weight in phases:
        steps = len(range(first, geometry.length, geometry.stride))
        windows = _row_starts(n, rows * width, (before + lowest) * width, width, steps)
        channels = geometry.n_in
        places = _row_starts(
            n, geometry.length * channels, first * channels, geometry.stride * channels, steps
        )
        kernels.input_gradient(margin.reshape(-1), windows, n * steps, weight, to_input.reshape(-1), places)
