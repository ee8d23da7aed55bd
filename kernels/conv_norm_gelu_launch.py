"""Launches of the kernels of `conv_norm_gelu`: from tensors to grids and arguments.

Shapes: B patterns, L points, C input channels, N output channels.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import conv_norm_gelu_kernels as kernels
from .conv_norm_gelu_tiles import Tile, padded
from .dropout import threshold
from .triton_tiles import computable, interpreted

LARGEST_PROGRAMS = 1024  # that sum gradients over rows: more than any GPU runs at once


@dataclass(frozen=True)
class Geometry:
    """Sizes of one convolution.

    Parameters
    ----------
    batch, length, length_out : int
        Patterns, and their points before and after.
    c_in, c_out, taps, stride, padding : int
        Of the convolution.
    """

    batch: int
    length: int
    length_out: int
    c_in: int
    c_out: int
    taps: int
    stride: int
    padding: int

    @property
    def n_rows(self) -> int:
        """Rows of the output."""
        return self.batch * self.length_out

    @property
    def shortcut(self) -> "Geometry":
        """The projected shortcut beside this convolution."""
        return replace(self, taps=1, padding=0)


@dataclass(frozen=True)
class Dropout:
    """Probability of losing an element, and the mask's seed (on the device) where that is not zero."""

    probability: float
    seed: Tensor | None

    def arguments(self, unused: Tensor) -> dict[str, Any]:
        """Return the kernels' arguments; a pointer that is not read points to `unused`."""
        return {
            "seed_ptr": unused if self.seed is None else self.seed,
            "threshold": threshold(self.probability),
            "scale": 1.0 / (1.0 - self.probability),
            "DROPOUT": self.probability > 0,
        }


NO_DROPOUT = Dropout(0.0, None)


@dataclass(frozen=True)
class Norm:
    """Weight, bias and eps of a LayerNorm."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid, arguments and compile-time options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        """Run the kernel on the device of its first argument, or let torch.compile see that it would run."""
        traceable = self.kernel if interpreted() else torch.library.wrap_triton(self.kernel)
        if traceable is self.kernel:
            self.run_now()
        else:
            traceable[self.grid](**self.arguments, **self.options)

    def run_now(self) -> Any:
        """Run the kernel and return what Triton compiled."""
        with torch.cuda.device_of(next(iter(self.arguments.values()))):
            # asked for, as a future Triton would not fuse by itself; torch.compile's wrapper takes no options
            return self.kernel[self.grid](**self.arguments, **self.options, enable_fp_fusion=True)


def channels_last(x_BLC: Tensor) -> Tensor:
    """Return the input as the kernels read it: channels side by side."""
    return computable(x_BLC if x_BLC.stride(2) == 1 or x_BLC.shape[2] == 1 else x_BLC.contiguous())


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
    tile: Tile,
) -> Launch:
    """Prepare the forward pass, with the projected shortcut where its weight and norm are given."""
    out, shortcut_out = outputs
    extra_weight, extra_norm = (None, norm) if shortcut is None else shortcut
    block_k_shortcut = min(tile.block_k, padded(geometry.c_in))
    return Launch(
        kernels.forward_kernel,
        (ceil_div(geometry.n_rows, tile.block_m),),
        {
            **_input_arguments(x_BLC, geometry),
            "weight_ptr": flattened(weight, tile.block_k),
            **_norm_arguments(norm),
            "residual_ptr": out if residual is None else residual.contiguous(),
            "out_ptr": out,
            "shortcut_weight_ptr": out if extra_weight is None else flattened(extra_weight, block_k_shortcut),
            "shortcut_norm_weight_ptr": extra_norm.weight.contiguous(),
            "shortcut_norm_bias_ptr": extra_norm.bias.contiguous(),
            "shortcut_ptr": out if shortcut_out is None else shortcut_out,
            **dropout.arguments(out),
        },
        {
            **_sizes(geometry),
            "COLUMNS": padded(geometry.c_out),
            "RESIDUAL": residual is not None,
            "GELU": gelu,
            "SHORTCUT": shortcut is not None,
            "BLOCK_K_SHORTCUT": block_k_shortcut,
            **tile.options,
        },
    )


def rows_backward(
    x_BLC: Tensor,
    weight: Tensor,
    norm: Norm,
    residual: Tensor | None,
    dropout: Dropout,
    grad_out: Tensor,
    gradients: tuple[Tensor, Tensor | None, Tensor],
    geometry: Geometry,
    gelu: bool,
    tile: Tile,
) -> Launch:
    """Prepare the gradients of the convolution's result, the residual and the LayerNorm's parameters.

    `gradients` are filled: of the convolution, of the residual, and of the norm (programs, 2, N), float32.
    """
    grad_conv, grad_residual, grad_norm = gradients
    return Launch(
        kernels.rows_backward_kernel,
        (grad_norm.shape[0],),
        {
            **_input_arguments(x_BLC, geometry),
            "weight_ptr": flattened(weight, tile.block_k),
            **_norm_arguments(norm),
            "residual_ptr": grad_out if residual is None else residual.contiguous(),
            "grad_out_ptr": grad_out.contiguous(),
            "grad_conv_ptr": grad_conv,
            "grad_residual_ptr": grad_conv if grad_residual is None else grad_residual,
            "grad_norm_ptr": grad_norm,
            "n_tiles": ceil_div(geometry.n_rows, tile.block_m),
            **dropout.arguments(grad_out),
        },
        {
            **_sizes(geometry),
            "COLUMNS": padded(geometry.c_out),
            "RESIDUAL": residual is not None,
            "GELU": gelu,
            **tile.options,
        },
    )


def input_backward(
    grad_conv: Tensor,
    weight: Tensor,
    shortcut: tuple[Tensor, Tensor] | None,
    grad_x: Tensor,
    geometry: Geometry,
    tile: Tile,
) -> Launch:
    """Prepare the input's gradient; `shortcut` is its convolution's gradient and weight."""
    grad_shortcut, shortcut_weight = shortcut or (grad_conv, None)
    length_phase = ceil_div(geometry.length, geometry.stride)
    n_rows = geometry.batch * length_phase
    return Launch(
        kernels.input_backward_kernel,
        (ceil_div(n_rows, tile.block_m), geometry.stride),
        {
            "grad_conv_ptr": grad_conv,
            "weight_ptr": transposed(weight),
            "grad_shortcut_ptr": grad_shortcut,
            "shortcut_weight_ptr": grad_conv if shortcut_weight is None else transposed(shortcut_weight),
            "grad_x_ptr": grad_x,
            "n_rows": n_rows,
            "length": geometry.length,
            "length_out": geometry.length_out,
            "length_phase": length_phase,
            "stride": geometry.stride,
            "padding": geometry.padding,
            "taps": geometry.taps,
        },
        {
            **_sizes(geometry),
            "COLUMNS": padded(geometry.c_in),
            "SHORTCUT": shortcut is not None,
            **tile.options,
        },
    )


def weight_backward(
    x_BLC: Tensor, grad_conv: Tensor, grad_weight: Tensor, geometry: Geometry, atomic: bool, tile: Tile
) -> Launch:
    """Prepare the weight's gradient: `grad_weight` is (shares, K·C, N), both padded, float32."""
    shares = grad_weight.shape[0]
    if atomic:
        shares = row_shares(geometry, tile)
    arguments = _input_arguments(x_BLC, geometry)
    return Launch(
        kernels.weight_backward_kernel,
        (grad_weight.shape[1] // tile.block_k, shares),
        {
            **arguments,
            "grad_conv_ptr": grad_conv,
            "grad_weight_ptr": grad_weight,
            "rows_per_split": ceil_div(ceil_div(geometry.n_rows, shares), tile.block_m) * tile.block_m,
        },
        {**_sizes(geometry), "COLUMNS": padded(geometry.c_out), "ATOMIC": atomic, **tile.options},
    )


def row_shares(geometry: Geometry, tile: Tile) -> int:
    """Return into how many shares the weight's gradient divides the rows: at least four blocks each."""
    blocks = ceil_div(geometry.taps * geometry.c_in, tile.block_k)
    by_rows = ceil_div(geometry.n_rows, 4 * tile.block_m)
    return max(min(by_rows, LARGEST_PROGRAMS // blocks), 1)


def flattened(weight: Tensor, block_k: int) -> Tensor:
    """Return the weight as (K·C, N), padded with zeros to blocks and tile."""
    c_out, c_in, taps = weight.shape
    flat = weight.permute(2, 1, 0).reshape(taps * c_in, c_out)
    missing = (0, padded(c_out) - c_out, 0, -taps * c_in % block_k)
    return computable(functional.pad(flat, missing) if any(missing) else flat.contiguous())


def transposed(weight: Tensor) -> Tensor:
    """Return the weight as (K, N, C), N and C padded with zeros."""
    c_out, c_in, _ = weight.shape
    missing = (0, padded(c_in) - c_in, 0, padded(c_out) - c_out)
    turned = weight.permute(2, 0, 1)
    return computable(functional.pad(turned, missing) if any(missing) else turned.contiguous())


def ceil_div(dividend: int, divisor: int) -> int:
    """Divide and round up."""
    return -(-dividend // divisor)


def _input_arguments(x_BLC: Tensor, geometry: Geometry) -> dict[str, Any]:
    return {
        "x_ptr": x_BLC,
        "n_rows": geometry.n_rows,
        "length": geometry.length,
        "length_out": geometry.length_out,
        "stride_batch": x_BLC.stride(0),
        "stride_length": x_BLC.stride(1),
        "stride": geometry.stride,
        "padding": geometry.padding,
        "taps": geometry.taps,
    }


def _norm_arguments(norm: Norm) -> dict[str, Any]:
    return {
        "norm_weight_ptr": norm.weight.contiguous(),
        "norm_bias_ptr": norm.bias.contiguous(),
        "eps": norm.eps,
    }


def _sizes(geometry: Geometry) -> dict[str, int]:
    return {"C_IN": geometry.c_in, "C_OUT": geometry.c_out}
