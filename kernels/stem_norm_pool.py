"""The ResNet's stem fused: convolution of one channel, dropout, LayerNorm, GELU and max pool.

Its activations at the pattern's full resolution are most of the network's; here they live in registers
only, in the forward pass and in the backward pass, which computes them anew.

Shape suffixes: B patterns, L points, T taps, C channels, P windows of the max pool.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from . import dropout as dropout_mask
from . import stem_norm_pool_launch as launch
from .triton_tiles import TRITON_MISSING, interpreted

MOST_PROGRAMS = 1024  # of the backward kernel: each sums over many tiles and writes its share once


def reference(
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    seed: Tensor | None = None,
    pool: int = 0,
    eps: float = 1e-5,
    dropout: float = 0.0,
) -> Tensor:
    """Compute the same in plain torch: the truth that the kernels are tested against.

    Parameters
    ----------
    x_BL : Tensor, shape (batch, length)
        Patterns.
    weight : Tensor, shape (C, 1, taps)
        Convolution weight in torch's own layout, of the input's dtype; no bias, no padding, stride 1.
    norm_weight, norm_bias : Tensor, shape (C,)
        Affine part of the LayerNorm over channels, of any floating dtype.
    seed : Tensor, shape (1,), int64, optional
        Of the dropout mask (`dropout.keep_mask`).
    pool : int
        Size and stride of the max pool, padded by ``pool // 2``; 0 for none.
    eps : float
        Added to the variance of each position.
    dropout : float
        Probability of losing an element of the convolution's output.

    Returns
    -------
    Tensor, shape (batch, P, C)
        In the input's dtype; what follows the convolution is computed in float32 or better.
        Without a pool P = length − taps + 1.
    """
    wide = torch.promote_types(x_BL.dtype, torch.float32)
    y_BLC = functional.conv1d(x_BL.unsqueeze(1), weight).transpose(1, 2).to(wide)
    y_BLC = dropout_mask.apply(y_BLC, seed, dropout)
    affine = norm_weight.to(wide), norm_bias.to(wide)
    y_BLC = functional.gelu(functional.layer_norm(y_BLC, y_BLC.shape[-1:], *affine, eps))
    if pool:
        y_BLC = functional.max_pool1d(y_BLC.transpose(1, 2), pool, pool, pool // 2).transpose(1, 2)
    return y_BLC.to(x_BL.dtype)


def stem_norm_pool(
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    seed: Tensor | None,
    pool: int,
    eps: float,
    dropout: float,
    deterministic: bool,
) -> Tensor:
    """Run the Triton kernels; parameters and result are those of `reference`.

    What comes before the pool is computed anew in the backward pass; the point that each window's maximum
    comes from is kept, in one byte, where there will be such a pass. It can be differentiated once. Gradients
    are sums in a fixed order in any case; `deterministic` also fixes the tiles, which are otherwise chosen by
    measuring.

    Raises
    ------
    ValueError
        A shape, dtype or device that the kernels do not take.
    """
    tensors = (x_BL, weight, norm_weight, norm_bias)
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    options = pool, eps, dropout, deterministic, differentiable and pool > 1
    return stem_norm_pool_forward(*tensors, seed, *options)[0]


def _operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register an operator whose kernels inductor sees; the interpreter's it cannot."""
    opaque = TRITON_MISSING or interpreted()
    register: Callable[..., Any] = torch.library.custom_op if opaque else torch.library.triton_op
    return register(name, mutates_args=())


def _allocate(x_BL: Tensor, weight: Tensor, pool: int, keep: bool) -> tuple[Tensor, Tensor]:
    shape = x_BL.shape[0], launch.output_length(x_BL.shape[1], weight.shape[2], pool), weight.shape[0]
    return x_BL.new_empty(shape), x_BL.new_empty(shape if keep else (0,), dtype=torch.uint8)


@_operator("hxrd::stem_norm_pool")
def stem_norm_pool_forward(
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    seed: Tensor | None,
    pool: int,
    eps: float,
    dropout: float,
    deterministic: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Return the result of `stem_norm_pool` and, if `keep`, the point chosen in each window (else empty)."""
    inputs = x_BL, weight, norm_weight, norm_bias, seed, pool
    launch.check(*inputs, dropout)
    out_BPC, chosen_BPC = _allocate(x_BL, weight, pool, keep)
    if out_BPC.numel():
        shared = launch.shared_arguments(*inputs, eps, dropout)
        arguments = launch.forward_arguments(shared, out_BPC, chosen_BPC if keep else None)
        launch.run_forward(arguments, deterministic)
    return out_BPC, chosen_BPC


@stem_norm_pool_forward.register_fake
def _(x_BL, weight, norm_weight, norm_bias, seed, pool, eps, dropout, deterministic, keep):
    return _allocate(x_BL, weight, pool, keep)


@_operator("hxrd::stem_norm_pool_backward")
def stem_norm_pool_backward(
    grad_out_BPC: Tensor,
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    seed: Tensor | None,
    chosen_BPC: Tensor,
    pool: int,
    eps: float,
    dropout: float,
    deterministic: bool,
    input_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the input (empty if not wanted), the weight and both norm parameters."""
    channels, _, taps = weight.shape
    batch, rows = x_BL.shape[0], launch.output_length(x_BL.shape[1], taps, 0)
    tiles = launch.configurations(launch.BACKWARD, channels, x_BL.element_size())
    programs = min(MOST_PROGRAMS, -(-batch * rows // min(height for height, _ in tiles)))
    columns = launch.padded(channels)
    partial = x_BL.new_empty(programs, launch.padded(taps) + 2, columns, dtype=torch.float32)
    spread_BLT = x_BL.new_empty(batch, rows, taps, dtype=torch.float32) if input_gradient else None
    grad_x = x_BL.new_empty(x_BL.shape if input_gradient else (0,))
    if programs:
        inputs = x_BL, weight, norm_weight, norm_bias, seed, pool, eps, dropout
        shared, chosen = launch.shared_arguments(*inputs), chosen_BPC if pool > 1 else None
        arguments = launch.backward_arguments(shared, grad_out_BPC, chosen, partial, spread_BLT)
        launch.run_backward(arguments, deterministic)
        if spread_BLT is not None:
            launch.run_gather(launch.gather_arguments(spread_BLT, grad_x))
    sums = partial.sum(dim=0)[:, :channels]
    grad_weight = sums[:taps].t().contiguous().unsqueeze(1).to(weight.dtype)
    grad_norm_weight = sums[-2].to(norm_weight.dtype, copy=True)
    return grad_x, grad_weight, grad_norm_weight, sums[-1].to(norm_bias.dtype, copy=True)


@stem_norm_pool_backward.register_fake
def _(
    grad_out_BPC,
    x_BL,
    weight,
    norm_weight,
    norm_bias,
    seed,
    chosen_BPC,
    pool,
    eps,
    dropout,
    deterministic,
    input_gradient,
):
    grad_x = x_BL.new_empty(x_BL.shape if input_gradient else (0,))
    parameters = weight, norm_weight, norm_bias
    return grad_x, *(torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters)


# The operators have no default values: torch would strip them, and gradients would not fit the inputs.
def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, pool, eps, dropout, deterministic, _ = inputs
    ctx.options = (pool, eps, dropout, deterministic)
    ctx.save_for_backward(*tensors, output[1])


@once_differentiable
def _backward(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:4]
    found = stem_norm_pool_backward(grad_out, *ctx.saved_tensors, *ctx.options, needed[0])
    gradients = (grad if need else None for grad, need in zip(found, needed, strict=True))
    return *gradients, None, None, None, None, None, None


stem_norm_pool_forward.register_autograd(_backward, setup_context=_save)
