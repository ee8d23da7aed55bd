"""Launch the kernels of the fused stem: their tiles, their arguments, and what they refuse.

Shape suffixes: B patterns, L points, T taps, C channels, P windows of the max pool.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .dropout import threshold
from .triton_tiles import SMALLEST_DOT, TRITON_MISSING, computable, interpreted, unavailable

if not TRITON_MISSING:
    import triton

    from . import stem_norm_pool_kernels as kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_WIDTH = 256  # channels; a tile holds whole rows
LONGEST = 2**31 - 1024  # points; positions within one pattern are 32-bit, addresses 64-bit
LARGEST_POOL = 255  # points; the place of a maximum within its window is kept in one byte
GATHERED = 256  # points of one program that gathers the input's gradient
TILES = ((2048, 4), (1024, 2), (1024, 4), (2048, 8))  # (values, warps) that are tried


def configurations(channels: int) -> list[tuple[int, int]]:
    """List (windows of a tile, warps) that a GPU may choose from; the first is taken where nothing is tried.

    A thread holds 16 values of a tile in the first: a few such arrays fit its registers.
    """
    return [(max(elements // padded(channels), SMALLEST_DOT), warps) for elements, warps in TILES]


def constants(weight: Tensor, pool: int) -> dict[str, int]:
    """Return the compile-time arguments that forward and backward kernels share, but the tile."""
    channels, _, taps = weight.shape
    sizes = {"TAPS": taps, "TAPS_PADDED": padded(taps), "WIDTH": channels, "COLUMNS": padded(channels)}
    return {**sizes, "WINDOW": pool or 1}


def padded(size: int) -> int:
    """Return the least side of a matrix product that holds `size`."""
    return max(1 << (size - 1).bit_length(), SMALLEST_DOT)


@cache
def _tuned(name: str, channels: int) -> Any:
    """Wrap a kernel: its first call on a GPU tries `configurations`, and Triton keeps the choice on disk."""
    configs = [triton.Config({"BLOCK_M": m}, num_warps=w, num_stages=1) for m, w in configurations(channels)]
    return triton.autotune(configs, ["TAPS_PADDED", "WINDOW"], cache_results=True)(getattr(kernels, name))


def _start(name: str, channels: int, grid: Any, fixed: bool, *arguments: Any, **options: Any) -> None:
    """Launch a kernel with the quickest of its configurations, or with the first."""
    block, warps = configurations(channels)[0]
    first = {"BLOCK_M": block, "num_warps": warps, "num_stages": 1}
    if interpreted():
        getattr(kernels, name)[grid](*arguments, **options, **first)
    elif fixed:
        torch.library.wrap_triton(getattr(kernels, name))[grid](*arguments, **options, **first)
    else:
        torch.library.wrap_triton(_tuned(name, channels))[grid](*arguments, **options)


def _matrix(weight: Tensor) -> Tensor:
    """Return the weight as the kernels read it: (taps, channels), both padded with zeros."""
    channels, _, taps = weight.shape
    padding = (0, padded(taps) - taps, 0, padded(channels) - channels)
    return computable(functional.pad(weight.squeeze(1), padding).t().contiguous())


def launch(
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    seed: Tensor | None,
    out_BPC: Tensor,
    chosen_BPC: Tensor | None,
    pool: int,
    eps: float,
    dropout: float,
    deterministic: bool = False,
) -> None:
    """Run the forward kernel and fill `out_BPC` and, where given, `chosen_BPC`, both contiguous.

    Parameters
    ----------
    x_BL, weight, norm_weight, norm_bias, seed, pool, eps, dropout
        As for `reference`.
    out_BPC : Tensor, shape (batch, P, C)
        Of the input's dtype.
    chosen_BPC : Tensor of uint8, shape (batch, P, C), optional
        Becomes the point of its window that each value comes from: all that the backward pass needs.
    deterministic : bool
        Whether the first of the configurations is taken, whichever were quicker.

    Raises
    ------
    ValueError
        A shape, dtype or device that the kernel does not take.
    """
    check(x_BL, weight, norm_weight, norm_bias, seed, pool, dropout)
    n_windows = out_BPC.shape[0] * out_BPC.shape[1]
    if n_windows == 0:
        return
    _start(
        "stem_norm_pool_kernel",
        weight.shape[0],
        lambda meta: (triton.cdiv(n_windows, meta["BLOCK_M"]),),
        deterministic,
        computable(x_BL),
        _matrix(weight),
        norm_weight.contiguous(),
        norm_bias.contiguous(),
        seed if dropout else None,
        out_BPC,
        chosen_BPC,
        *_numbers(x_BL, weight, out_BPC.shape[1], eps, dropout),
        **constants(weight, pool),
    )


def _numbers(x_BL: Tensor, weight: Tensor, windows: int, eps: float, dropout: float) -> tuple[Any, ...]:
    """List the run-time numbers that both kernels take."""
    rows = x_BL.shape[1] - weight.shape[2] + 1
    chance = threshold(dropout), 1 / (1 - dropout)
    return x_BL.shape[0] * windows, windows, rows, x_BL.stride(0), x_BL.stride(1), eps, *chance


def launch_backward(
    grad_out_BPC: Tensor,
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    seed: Tensor | None,
    chosen_BPC: Tensor | None,
    partial: Tensor,
    spread_BLT: Tensor | None,
    pool: int,
    eps: float,
    dropout: float,
    deterministic: bool = False,
) -> None:
    """Run the backward kernel: fill `partial` and, where given, `spread_BLT`.

    Parameters
    ----------
    grad_out_BPC : Tensor
        Gradient of the output.
    x_BL, weight, norm_weight, norm_bias, seed, chosen_BPC, pool, eps, dropout, deterministic
        As for `launch`.
    partial : Tensor of float32, shape (programs, T padded + 2, C)
        Becomes the programs' shares in the gradients of the weight, and of the norm's weight and bias.
    spread_BLT : Tensor of float32, shape (batch, L_out, T), optional
        Becomes what each row of the convolution gives to the gradient of its T points.
    """
    _start(
        "stem_norm_pool_backward_kernel",
        weight.shape[0],
        (len(partial),),
        deterministic,
        computable(x_BL),
        _matrix(weight),
        norm_weight.contiguous(),
        norm_bias.contiguous(),
        seed if dropout else None,
        chosen_BPC if pool > 1 else None,
        computable(grad_out_BPC.contiguous()),
        partial,
        spread_BLT,
        *_numbers(x_BL, weight, grad_out_BPC.shape[1], eps, dropout),
        PRECISION="ieee" if x_BL.dtype == torch.float32 else "tf32",
        **constants(weight, pool),
    )


def gather_input_gradient(spread_BLT: Tensor, grad_x_BL: Tensor, covered: int) -> None:
    """Fill `grad_x_BL`, contiguous, from what `launch_backward` spread; windows cover `covered` rows."""
    n_points = grad_x_BL.numel()
    kernel = kernels.stem_input_gradient_kernel
    run = kernel if interpreted() else torch.library.wrap_triton(kernel)
    sizes = grad_x_BL.shape[1], spread_BLT.shape[1], covered
    run[(triton.cdiv(n_points, GATHERED),)](
        spread_BLT, grad_x_BL, n_points, *sizes, TAPS=spread_BLT.shape[2], BLOCK_L=GATHERED, num_warps=4
    )


def check(
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    seed: Tensor | None,
    pool: int,
    dropout: float,
) -> None:
    """Refuse what the kernels would compute wrongly."""
    if reason := unavailable(x_BL.device):
        raise ValueError(f"stem_norm_pool: {reason}")
    if x_BL.ndim != 2 or weight.ndim != 3 or weight.shape[1] != 1:
        shapes = f"{tuple(x_BL.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"stem_norm_pool: input (B, L) and weight (C, 1, taps) do not fit: {shapes}")
    channels, _, taps = weight.shape
    if not 0 < channels <= LARGEST_WIDTH:
        raise ValueError(f"stem_norm_pool: channels must be at most {LARGEST_WIDTH}, not {channels}")
    if not taps <= x_BL.shape[1] <= LONGEST:
        raise ValueError(f"stem_norm_pool: {taps} taps do not fit {x_BL.shape[1]} points")
    if not 0 <= pool <= LARGEST_POOL:
        raise ValueError(f"stem_norm_pool: a pool must be at most {LARGEST_POOL} points, not {pool}")
    if not 0 <= dropout < 1 or (dropout and seed is None):
        raise ValueError(f"stem_norm_pool: dropout {dropout} must lie in [0, 1) and needs a seed")
    for name, tensor in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if tuple(tensor.shape) != (channels,):
            raise ValueError(f"stem_norm_pool: {name} must be {(channels,)}, not {tuple(tensor.shape)}")
    if x_BL.dtype not in DTYPES or weight.dtype != x_BL.dtype:
        raise ValueError(
            "stem_norm_pool: dtypes must be one of float32, bfloat16, float16, "
            f"not {x_BL.dtype}, {weight.dtype}"
        )
    tensors = (x_BL, weight, norm_weight, norm_bias, x_BL if seed is None else seed)
    if len({tensor.device for tensor in tensors}) > 1:
        raise ValueError("stem_norm_pool: all tensors must lie on one device")
