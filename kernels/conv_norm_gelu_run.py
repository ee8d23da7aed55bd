"""`conv_norm_gelu` and `conv_norm_pair` by Triton: allocate, choose tiles, launch, gather.

Shapes: B patterns, L points, C input channels, N output channels.
"""

import torch
from torch import Tensor

from . import conv_norm_gelu_launch as launch
from .conv_norm_gelu_launch import NO_DROPOUT, Dropout, Geometry, Norm
from .conv_norm_gelu_tiles import Tile, heuristic, padded
from .conv_norm_gelu_tuning import choose_tile
from .triton_tiles import computable


def forward(
    x_BLC: Tensor,
    weight: Tensor,
    norm: Norm,
    residual: Tensor | None,
    shortcut: tuple[Tensor, Norm] | None,
    dropout: Dropout,
    outputs: tuple[Tensor, Tensor | None],
    geometry: Geometry,
    gelu: bool,
    deterministic: bool,
) -> None:
    """Fill the outputs, contiguous: the convolution's, and the projected shortcut's if there is one."""
    if geometry.n_rows == 0:
        return
    tile = _tile("forward", x_BLC, geometry, deterministic)
    x_BLC = launch.channels_last(x_BLC)
    launch.forward(x_BLC, weight, norm, residual, shortcut, dropout, outputs, geometry, gelu, tile).run()


def rows_backward(
    x_BLC: Tensor,
    weight: Tensor,
    norm: Norm,
    residual: Tensor | None,
    dropout: Dropout,
    grad_out: Tensor,
    geometry: Geometry,
    gelu: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the convolution's result, of the residual (or nothing), of the norm's two."""
    grad_conv = torch.empty_like(grad_out, memory_format=torch.contiguous_format)
    grad_residual = grad_out.new_empty(0 if residual is None else residual.shape)
    if geometry.n_rows == 0:
        return grad_conv, grad_residual, torch.zeros_like(norm.weight), torch.zeros_like(norm.bias)
    tile = _tile("rows", x_BLC, geometry, deterministic)
    programs = min(launch.ceil_div(geometry.n_rows, tile.block_m), launch.LARGEST_PROGRAMS)
    grad_norm = x_BLC.new_empty((programs, 2, geometry.c_out), dtype=torch.float32)
    launch.rows_backward(
        launch.channels_last(x_BLC),
        weight,
        norm,
        residual,
        dropout,
        grad_out,
        (grad_conv, None if residual is None else grad_residual, grad_norm),
        geometry,
        gelu,
        tile,
    ).run()
    summed = grad_norm.sum(0)
    grad_weight, grad_bias = summed[0].to(norm.weight.dtype), summed[1].to(norm.bias.dtype)
    return computable(grad_conv), grad_residual, grad_weight.clone(), grad_bias.clone()


def input_backward(
    x_BLC: Tensor,
    grad_conv: Tensor,
    weight: Tensor,
    shortcut: tuple[Tensor, Tensor] | None,
    geometry: Geometry,
    deterministic: bool,
) -> Tensor:
    """Return the input's gradient; `shortcut` is the gradient of its convolution and its weight."""
    grad_x = x_BLC.new_empty((geometry.batch, geometry.length, geometry.c_in))
    if geometry.batch == 0:
        return grad_x
    tile = _tile("input", x_BLC, geometry, deterministic)
    launch.input_backward(grad_conv, weight, shortcut, grad_x, geometry, tile).run()
    return grad_x


def weight_backward(
    x_BLC: Tensor, grad_conv: Tensor, weight: Tensor, geometry: Geometry, deterministic: bool
) -> Tensor:
    """Return the weight's gradient: shares of the rows are added atomically, or in order if deterministic."""
    if geometry.n_rows == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    tile = _tile("weight", x_BLC, geometry, deterministic)
    shares = launch.row_shares(geometry, tile)
    depth = launch.ceil_div(geometry.taps * geometry.c_in, tile.block_k) * tile.block_k
    shape = (shares if deterministic else 1, depth, padded(geometry.c_out))
    allocate = x_BLC.new_empty if deterministic else x_BLC.new_zeros
    grad_weight = allocate(shape, dtype=torch.float32)
    launch.weight_backward(
        launch.channels_last(x_BLC), grad_conv, grad_weight, geometry, not deterministic, tile
    ).run()
    flat = grad_weight.sum(0)[: geometry.taps * geometry.c_in, : geometry.c_out]
    turned = flat.reshape(geometry.taps, geometry.c_in, geometry.c_out).permute(2, 1, 0)
    return turned.to(weight.dtype, memory_format=torch.contiguous_format, copy=True)


def _tile(kind: str, x_BLC: Tensor, geometry: Geometry, deterministic: bool) -> Tile:
    if deterministic:
        return heuristic(kind, geometry.c_in, geometry.c_out, geometry.taps, x_BLC.element_size())
    return choose_tile(kind, x_BLC.device, x_BLC.dtype, geometry)


__all__ = ["NO_DROPOUT", "Dropout", "Geometry", "Norm"]
