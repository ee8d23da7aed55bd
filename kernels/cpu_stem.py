"""The network's stem as a torch operator on the CPU, with all gradients, by the code of `cpu_training`.

Shape suffixes: B batch, L positions, N channels out, T taps.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cpu_training as kernels
from .cpu_patterns import Array, array_of, mask_of, norm_of, over_patterns, steps_of, takes
from .vector_code import PANEL, ROWS
from .vector_gemm import packed


def stem_norm_pool(
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    seed: Tensor | None,
    pool: int,
    eps: float,
    dropout: float,
) -> Tensor:
    """Run the stem; parameters and result are those of `dispatch.stem_norm_pool`.

    `pool` is 0 for no pool.

    Raises
    ------
    ValueError
        Channels that do not fill whole panels, or patterns shorter than the window.
    """
    if not takes(weight.shape[:1], torch.float32):
        raise ValueError(f"the compiled kernels need multiples of {PANEL} channels, not {len(weight)}")
    if x_BL.shape[1] < weight.shape[2]:
        raise ValueError(f"patterns of {x_BL.shape[1]} points are shorter than {weight.shape[2]} taps")
    tensors = x_BL, weight, norm_weight, norm_bias, seed
    return _stem_norm_pool(*tensors, pool, eps, dropout)[0].to(x_BL.dtype)


@torch.library.custom_op("hxrd::cpu_stem_norm_pool", mutates_args=())
def _stem_norm_pool(
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    seed: Tensor | None,
    pool: int,
    eps: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pooled activations, and the argument and position that each comes from."""
    outputs = _stem_outputs(x_BL, weight, pool)
    arrays = tuple(tensor.numpy() for tensor in outputs)
    n_positions = x_BL.shape[1] - weight.shape[2] + 1
    x, right, norm = array_of(x_BL), packed(steps_of(weight), False), norm_of(norm_weight, norm_bias, eps)

    def work(part: slice) -> None:
        mask = mask_of(seed, dropout, part.start * n_positions)
        found = [array[part] for array in arrays]
        kernels.pooled_stem_forward(x[part], n_positions, right, norm, mask, pool or 1, *found)

    over_patterns(work, len(x))
    return outputs


@_stem_norm_pool.register_fake
def _(x_BL, weight, norm_weight, norm_bias, seed, pool, eps, dropout):
    return _stem_outputs(x_BL, weight, pool)


def _stem_outputs(x_BL: Tensor, weight: Tensor, pool: int) -> tuple[Tensor, Tensor, Tensor]:
    pool = pool or 1
    n_positions = x_BL.shape[1] - weight.shape[2] + 1
    shape = x_BL.shape[0], (n_positions + 2 * (pool // 2) - pool) // pool + 1, weight.shape[0]
    out, argument = (x_BL.new_empty(shape, dtype=torch.float32) for _ in range(2))
    return out, argument, x_BL.new_empty(shape, dtype=torch.int32)


def _save_stem(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:5], *output[1:])
    ctx.options = inputs[5:]


@once_differentiable
def _stem_gradients(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    need_input = ctx.needs_input_grad[0]
    found = _stem_norm_pool_backward(grad_out, *ctx.saved_tensors, *ctx.options, need_input)
    to_input, to_weight, to_gamma, to_beta = found
    x_BL, weight = ctx.saved_tensors[:2]
    first = to_input.to(x_BL.dtype) if need_input else None
    return (first, to_weight.to(weight.dtype), to_gamma, to_beta, None, None, None, None)


_stem_norm_pool.register_autograd(_stem_gradients, setup_context=_save_stem)


@torch.library.custom_op("hxrd::cpu_stem_norm_pool_backward", mutates_args=())
def _stem_norm_pool_backward(
    grad_out: Tensor,
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    seed: Tensor | None,
    argument: Tensor,
    chosen: Tensor,
    pool: int,
    eps: float,
    dropout: float,
    need_input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the patterns (empty if not needed), the weight and the LayerNorm."""
    n_out, _, taps = weight.shape
    n_positions = x_BL.shape[1] - taps + 1
    n_steps = -(-taps // ROWS) * ROWS  # whole tiles; the surplus steps read the margin
    x = np.pad(array_of(x_BL), ((0, 0), (0, n_steps - taps)))
    right, norm = packed(steps_of(weight), False), norm_of(norm_weight, norm_bias, eps)
    grad, arguments, places = array_of(grad_out), array_of(argument), chosen.numpy()
    to_input = np.zeros(tuple(x_BL.shape) if need_input else (len(x), 0), np.float32)

    def work(part: slice) -> tuple[Array, Array]:
        to_steps, affine = np.zeros((n_steps, n_out), np.float32), np.zeros((2, n_out), np.float32)
        kernels.pooled_stem_backward(
            grad[part],
            x[part],
            n_positions,
            right,
            norm,
            mask_of(seed, dropout, part.start * n_positions),
            pool or 1,
            arguments[part],
            places[part],
            to_steps,
            affine,
            to_input[part] if need_input else to_input[:0],
        )
        return to_steps, affine

    sums = over_patterns(work, len(x))
    to_steps, affine = (np.stack(parts).sum(axis=0) for parts in zip(*sums, strict=True))
    to_weight = np.ascontiguousarray(to_steps[:taps].T[:, None])
    found = to_input if need_input else np.empty(0, np.float32), to_weight, affine[0].copy(), affine[1].copy()
    return tuple(torch.from_numpy(array) for array in found)  # type: ignore[return-value]


@_stem_norm_pool_backward.register_fake
def _(grad_out, x_BL, weight, norm_weight, norm_bias, *others):
    need_input = others[-1]
    single = {"dtype": torch.float32}
    return (
        x_BL.new_empty(x_BL.shape if need_input else (0,), **single),
        weight.new_empty(weight.shape, **single),
        norm_weight.new_empty(norm_weight.shape, **single),
        norm_bias.new_empty(norm_bias.shape, **single),
    )
