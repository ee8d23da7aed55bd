"""Convolution, dropout, LayerNorm over channels, residual and GELU of the 1-D ResNet, fused by Triton.

`conv_norm_gelu` is one convolution; `conv_norm_pair` the first one of a block together with the projected
shortcut, with one read of the input. Each is a torch operator with a plain reference beside it.

Shapes: B patterns, L points, C input channels, N output channels;
L_out = (L + 2·padding − taps) // stride + 1.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from . import conv_norm_gelu_checks as checks
from .conv_norm_gelu_checks import output_length
from .dropout import apply as apply_dropout
from .triton_tiles import TRITON_MISSING, TRITON_VERSION, interpreted, unavailable

if not TRITON_MISSING:
    from . import conv_norm_gelu_run as run
    from .conv_norm_gelu_launch import NO_DROPOUT, Dropout, Geometry, Norm

__all__ = [
    "TRITON_MISSING",
    "TRITON_VERSION",
    "conv_norm_gelu",
    "conv_norm_pair",
    "output_length",
    "pair_reference",
    "reference",
    "unavailable",
]


def reference(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    residual: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    eps: float = 1e-5,
    gelu: bool = True,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Compute the same in plain torch: the truth that the kernel is tested against.

    Parameters
    ----------
    x_BLC : Tensor, shape (batch, length, C_in)
        Input, channels last.
    weight : Tensor, shape (C_out, C_in, taps)
        Convolution weight in torch's own layout, of the input's dtype; there is no bias.
    norm_weight, norm_bias : Tensor, shape (C_out,)
        Affine part of the LayerNorm over channels, of any floating dtype.
    residual : Tensor, shape (batch, L_out, C_out), optional
        Added after the normalisation.
    stride, padding : int
        In points; the padding is zeros at both ends.
    eps : float
        Added to the variance of each row.
    gelu : bool
        Whether the exact (erf) GELU comes last.
    dropout : float
        Probability of losing an element of the convolution's result.
    seed : Tensor, shape (1,), int64, optional
        Of the dropout's mask; needed where there is dropout.

    Returns
    -------
    Tensor, shape (batch, L_out, C_out)
        In the input's dtype; normalisation and what follows are computed in float32 or better.
    """
    wide = torch.promote_types(x_BLC.dtype, torch.float32)
    y_BLN = functional.conv1d(x_BLC.transpose(1, 2), weight, stride=stride, padding=padding).transpose(1, 2)
    y_BLN = apply_dropout(y_BLN.to(wide), seed, dropout)
    y_BLN = functional.layer_norm(y_BLN, y_BLN.shape[-1:], norm_weight.to(wide), norm_bias.to(wide), eps)
    if residual is not None:
        y_BLN = y_BLN + residual
    if gelu:
        y_BLN = functional.gelu(y_BLN)
    return y_BLN.to(x_BLC.dtype)


def pair_reference(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    shortcut_weight: Tensor,
    shortcut_norm_weight: Tensor,
    shortcut_norm_bias: Tensor,
    stride: int = 1,
    padding: int = 0,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute a convolution with dropout, LayerNorm and GELU, and the projected shortcut beside it.

    Parameters are those of `reference`; `shortcut_weight`, shape (C_out, C_in, 1), is a convolution of the
    same stride without padding, followed by its own LayerNorm, without dropout and GELU.
    """
    main = reference(x_BLC, weight, norm_weight, norm_bias, None, stride, padding, eps, True, dropout, seed)
    norm = shortcut_norm_weight, shortcut_norm_bias
    return main, reference(x_BLC, shortcut_weight, *norm, None, stride, 0, eps, False)


# Under the interpreter `triton_op` would have inductor compile what cannot be compiled.
# No operator has default values: torch would strip them, and `needs_input_grad` would not fit the inputs.
_operator = torch.library.custom_op if TRITON_MISSING or interpreted() else torch.library.triton_op


@_operator("hxrd::conv_norm_gelu", mutates_args=())
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
    deterministic: bool,
) -> Tensor:
    """Run the Triton kernel as a torch operator; parameters and result are those of `reference`.

    `hxrd.kernels.dispatch.conv_norm_gelu` chooses between the two. The backward pass computes the convolution
    again, so nothing but the inputs is kept in memory; it can be differentiated once. `deterministic` makes
    it add the weight's gradient in a fixed order, with tiles by the heuristics alone.

    Raises
    ------
    ValueError
        A shape, dtype or device that the kernel does not take.
    """
    checks.check(x_BLC, weight, norm_weight, norm_bias, residual, seed, stride, padding, dropout)
    geometry = _geometry(x_BLC, weight, stride, padding)
    out_BLN = _allocate(x_BLC, weight, stride, padding)
    norm = Norm(norm_weight, norm_bias, eps)
    mask = Dropout(dropout, seed)
    run.forward(x_BLC, weight, norm, residual, None, mask, (out_BLN, None), geometry, gelu, deterministic)
    return out_BLN


@_operator("hxrd::conv_norm_gelu_backward", mutates_args=())
def conv_norm_gelu_backward(
    grad_out: Tensor,
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
    deterministic: bool,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight, norm weight, norm bias and residual; empty where not needed."""
    geometry = _geometry(x_BLC, weight, stride, padding)
    norm = Norm(norm_weight, norm_bias, eps)
    mask = Dropout(dropout, seed)
    grad_conv, grad_residual, *grad_norm = run.rows_backward(
        x_BLC, weight, norm, residual, mask, grad_out, geometry, gelu, deterministic
    )
    grad_x, grad_weight = x_BLC.new_empty(0), weight.new_empty(0)
    if need_input:
        grad_x = run.input_backward(x_BLC, grad_conv, weight, None, geometry, deterministic)
    if need_weight:
        grad_weight = run.weight_backward(x_BLC, grad_conv, weight, geometry, deterministic)
    return grad_x, grad_weight, grad_norm[0], grad_norm[1], grad_residual


@_operator("hxrd::conv_norm_pair", mutates_args=())
def conv_norm_pair(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    shortcut_weight: Tensor,
    shortcut_norm_weight: Tensor,
    shortcut_norm_bias: Tensor,
    seed: Tensor | None,
    stride: int,
    padding: int,
    eps: float,
    dropout: float,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """Run both convolutions of `pair_reference` in one Triton kernel, as a torch operator.

    Raises
    ------
    ValueError
        A shape, dtype or device that the kernel does not take.
    """
    checks.check(x_BLC, weight, norm_weight, norm_bias, None, seed, stride, padding, dropout)
    checks.check_shortcut(
        x_BLC, weight, shortcut_weight, shortcut_norm_weight, shortcut_norm_bias, stride, padding
    )
    geometry = _geometry(x_BLC, weight, stride, padding)
    outputs = _allocate(x_BLC, weight, stride, padding), _allocate(x_BLC, weight, stride, padding)
    norm = Norm(norm_weight, norm_bias, eps)
    shortcut = shortcut_weight, Norm(shortcut_norm_weight, shortcut_norm_bias, eps)
    mask = Dropout(dropout, seed)
    run.forward(x_BLC, weight, norm, None, shortcut, mask, outputs, geometry, True, deterministic)
    return outputs


@_operator("hxrd::conv_norm_pair_backward", mutates_args=())
def conv_norm_pair_backward(
    grad_out: Tensor,
    grad_shortcut_out: Tensor,
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    shortcut_weight: Tensor,
    shortcut_norm_weight: Tensor,
    shortcut_norm_bias: Tensor,
    seed: Tensor | None,
    stride: int,
    padding: int,
    eps: float,
    dropout: float,
    deterministic: bool,
    need_input: bool,
    need_weight: bool,
    need_shortcut_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the first seven inputs of `conv_norm_pair`; empty where not needed."""
    geometry = _geometry(x_BLC, weight, stride, padding)
    beside = geometry.shortcut
    norm = Norm(norm_weight, norm_bias, eps)
    shortcut_norm = Norm(shortcut_norm_weight, shortcut_norm_bias, eps)
    mask = Dropout(dropout, seed)
    grad_conv, _, *grad_norm = run.rows_backward(
        x_BLC, weight, norm, None, mask, grad_out, geometry, True, deterministic
    )
    grad_shortcut, _, *grad_shortcut_norm = run.rows_backward(
        x_BLC,
        shortcut_weight,
        shortcut_norm,
        None,
        NO_DROPOUT,
        grad_shortcut_out,
        beside,
        False,
        deterministic,
    )
    grad_x, grad_weight = x_BLC.new_empty(0), weight.new_empty(0)
    grad_shortcut_weight = shortcut_weight.new_empty(0)
    if need_input:
        shortcut = grad_shortcut, shortcut_weight
        grad_x = run.input_backward(x_BLC, grad_conv, weight, shortcut, geometry, deterministic)
    if need_weight:
        grad_weight = run.weight_backward(x_BLC, grad_conv, weight, geometry, deterministic)
    if need_shortcut_weight:
        grad_shortcut_weight = run.weight_backward(
            x_BLC, grad_shortcut, shortcut_weight, beside, deterministic
        )
    main = grad_x, grad_weight, grad_norm[0], grad_norm[1]
    return *main, grad_shortcut_weight, grad_shortcut_norm[0], grad_shortcut_norm[1]


def _geometry(x_BLC: Tensor, weight: Tensor, stride: int, padding: int) -> "Geometry":
    c_out, c_in, taps = weight.shape
    length = x_BLC.shape[1]
    length_out = output_length(length, taps, stride, padding)
    return Geometry(x_BLC.shape[0], length, length_out, c_in, c_out, taps, stride, padding)


def _allocate(x_BLC: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    length_out = output_length(x_BLC.shape[1], weight.shape[2], stride, padding)
    return x_BLC.new_empty(x_BLC.shape[0], length_out, weight.shape[0])


def _like(tensor: Tensor, needed: bool = True) -> Tensor:
    return tensor.new_empty(tensor.shape if needed else 0)


@conv_norm_gelu.register_fake
def _(x_BLC, weight, norm_weight, norm_bias, residual, seed, stride, padding, *options):
    return _allocate(x_BLC, weight, stride, padding)


@conv_norm_gelu_backward.register_fake
def _(grad_out, x_BLC, weight, norm_weight, norm_bias, residual, *options):
    *_, need_input, need_weight = options
    grad_residual = grad_out.new_empty(0 if residual is None else residual.shape)
    grad_x, grad_weight = _like(x_BLC, need_input), _like(weight, need_weight)
    return grad_x, grad_weight, _like(norm_weight), _like(norm_bias), grad_residual


@conv_norm_pair.register_fake
def _(x_BLC, weight, norm_weight, norm_bias, w, nw, nb, seed, stride, padding, *options):
    return _allocate(x_BLC, weight, stride, padding), _allocate(x_BLC, weight, stride, padding)


@conv_norm_pair_backward.register_fake
def _(grad_out, grad_shortcut_out, x_BLC, weight, norm_weight, norm_bias, w, nw, nb, *options):
    *_, need_input, need_weight, need_shortcut_weight = options
    main = _like(x_BLC, need_input), _like(weight, need_weight), _like(norm_weight), _like(norm_bias)
    return *main, _like(w, need_shortcut_weight), _like(nw), _like(nb)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


@once_differentiable
def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:5]
    found = conv_norm_gelu_backward(grad_out, *ctx.saved_tensors, *ctx.options, *needed[:2])
    return *_wanted(found, needed), *[None] * 7


def _save_pair(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.options = inputs[8:]


@once_differentiable
def _backward_pair(ctx: Any, grad_out: Tensor, grad_shortcut_out: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:7]
    found = conv_norm_pair_backward(
        grad_out, grad_shortcut_out, *ctx.saved_tensors, *ctx.options, *needed[:2], needed[4]
    )
    return *_wanted(found, needed), *[None] * 6


def _wanted(gradients: tuple[Tensor, ...], needed: tuple[bool, ...]) -> list[Tensor | None]:
    return [gradient if need else None for gradient, need in zip(gradients, needed, strict=True)]


conv_norm_gelu.register_autograd(_backward, setup_context=_save)
conv_norm_pair.register_autograd(_backward_pair, setup_context=_save_pair)
