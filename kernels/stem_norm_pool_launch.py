"""Launch the kernels of the fused stem: their tiles, their arguments, and what they refuse.

Shape suffixes: B patterns, L points, T taps, C channels, P windows of the max pool.
"""

import os
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
SWITCH = "HXRD_AUTOTUNE"  # the environment variable that forbids measuring with the value 0
SMALL = 2**15  # rows of the convolution from which measuring means something
MOST_WARPS = 8  # of one program
INTERPRETED_ROWS = 512  # of a tile: the interpreter pays for operations, not for values
FORWARD, BACKWARD = "stem_norm_pool_kernel", "stem_norm_pool_backward_kernel"
TILES = {  # (kernel, bytes of an input value): (values, warps) of the tiles that are tried
    (FORWARD, 2): ((1024, 2), (2048, 4), (1024, 4)),
    (FORWARD, 4): ((1024, 4), (512, 2)),
    (BACKWARD, 2): ((1024, 2), (2048, 4)),
    (BACKWARD, 4): ((1024, 4), (512, 2)),
}


def output_length(length: int, taps: int, pool: int) -> int:
    """Return the number of windows of the pool, or of rows of the convolution where `pool` is 0."""
    rows = length - taps + 1
    return (rows + 2 * (pool // 2) - pool) // pool + 1 if pool else rows


def configurations(name: str, channels: int, itemsize: int) -> list[tuple[int, int]]:
    """List (rows of a tile, warps) that a GPU may choose from; the first is taken where nothing is tried.

    In the first, a thread holds 16 values of a tile whose matrix products run on tensor cores, as those hand
    them out, else eight: some ten such arrays fit its registers. Rows are then whole within a warp, so the
    norm exchanges nothing between warps.

    Parameters
    ----------
    name : str
        Of the kernel.
    channels : int
        Channels of the convolution.
    itemsize : int
        Bytes of an input value.
    """
    if interpreted():
        return [(INTERPRETED_ROWS, 1)]
    found = []
    for values, warps in TILES[name, itemsize]:
        rows = max(values // padded(channels), SMALLEST_DOT)
        found.append((rows, min(max(warps, rows * padded(channels) * warps // values), MOST_WARPS)))
    return found


def padded(size: int) -> int:
    """Return the least side of a matrix product that holds `size`."""
    return max(1 << (size - 1).bit_length(), SMALLEST_DOT)


@cache
def _tuned(name: str, channels: int, itemsize: int) -> Any:
    """Wrap a kernel: its first call on a GPU tries `configurations`, and Triton keeps the choice on disk."""
    configs = [
        triton.Config({"BLOCK_M": rows}, num_warps=warps, num_stages=1)
        for rows, warps in configurations(name, channels, itemsize)
    ]
    return triton.autotune(configs, ["TAPS_PADDED", "WINDOW"], cache_results=True)(getattr(kernels, name))


def _run(name: str, grid: Any, arguments: dict[str, Any], deterministic: bool) -> None:
    """Launch a kernel with the quickest of its configurations, or the first where it must not measure."""
    x_BL = arguments["x_ptr"]
    kind = name, arguments["WIDTH"], x_BL.element_size()
    kernel = getattr(kernels, name)
    rows, warps = configurations(*kind)[0]
    first = {"BLOCK_M": rows, "num_warps": warps, "num_stages": 1}
    with torch.cuda.device_of(x_BL):
        if interpreted():
            kernel[grid](**arguments, **first)
        elif deterministic or not _measurable(x_BL.shape[0] * arguments["length_out"], _tuned(*kind)):
            torch.library.wrap_triton(kernel)[grid](**arguments, **first)
        else:
            torch.library.wrap_triton(_tuned(*kind))[grid](**arguments)


def _measurable(n_rows: int, tuned: Any) -> bool:
    """Whether configurations may be tried: not on little work, nor while a CUDA graph is recorded."""
    if os.environ.get(SWITCH) == "0" or (isinstance(n_rows, int) and n_rows < SMALL):
        return False
    recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return bool(tuned.cache) or not recording


def shared_arguments(
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    seed: Tensor | None,
    pool: int,
    eps: float,
    dropout: float,
) -> dict[str, Any]:
    """Return what the forward and the backward kernel both take, by name, but the tile."""
    channels, _, taps = weight.shape
    windows = output_length(x_BL.shape[1], taps, pool)
    padding = (0, padded(taps) - taps, 0, padded(channels) - channels)
    x_BL = computable(x_BL)
    return {
        "x_ptr": x_BL,
        "weight_ptr": computable(functional.pad(weight.squeeze(1), padding).t().contiguous()),
        "norm_weight_ptr": computable(norm_weight.contiguous()),
        "norm_bias_ptr": computable(norm_bias.contiguous()),
        "seed_ptr": seed if dropout else None,
        "windows": windows,
        "length_out": output_length(x_BL.shape[1], taps, 0),
        "stride_batch": x_BL.stride(0),
        "stride_length": x_BL.stride(1),
        "eps": eps,
        "dropout_threshold": threshold(dropout),
        "dropout_scale": 1 / (1 - dropout),
        "TAPS": taps,
        "TAPS_PADDED": padded(taps),
        "WIDTH": channels,
        "COLUMNS": padded(channels),
        "WINDOW": pool or 1,
    }


def forward_arguments(
    shared: dict[str, Any], out_BPC: Tensor, chosen_BPC: Tensor | None = None
) -> dict[str, Any]:
    """Return what the forward kernel takes.

    Parameters
    ----------
    shared : dict
        `shared_arguments`.
    out_BPC : Tensor, shape (batch, P, C)
        Of the input's dtype, contiguous; is filled.
    chosen_BPC : Tensor of uint8, shape (batch, P, C), optional
        Becomes the point of its window that each value comes from: all that the backward pass needs.
    """
    n_windows = out_BPC.shape[0] * out_BPC.shape[1]
    return {**shared, "out_ptr": out_BPC, "chosen_ptr": chosen_BPC, "n_windows": n_windows}


def backward_arguments(
    shared: dict[str, Any],
    grad_out_BPC: Tensor,
    chosen_BPC: Tensor | None,
    partial: Tensor,
    spread_BLT: Tensor | None = None,
) -> dict[str, Any]:
    """Return what the backward kernel takes.

    Parameters
    ----------
    shared : dict
        `shared_arguments`.
    grad_out_BPC : Tensor, shape (batch, P, C)
        Gradient of the output.
    chosen_BPC : Tensor of uint8, shape (batch, P, C)
        From the forward kernel; None where there is no pool.
    partial : Tensor of float32, shape (programs, taps padded + 2, C padded)
        Becomes the programs' shares in the gradients of the weight, and of the norm's weight and bias.
    spread_BLT : Tensor of float32, shape (batch, length − taps + 1, taps), optional
        Becomes what each row of the convolution gives to the gradients of its points.
    """
    return {
        **shared,
        "chosen_ptr": chosen_BPC,
        "grad_out_ptr": computable(grad_out_BPC.contiguous()),
        "partial_ptr": partial,
        "spread_ptr": spread_BLT,
        "n_rows": grad_out_BPC.shape[0] * shared["length_out"],
        "PRECISION": "ieee" if shared["x_ptr"].dtype == torch.float32 else "tf32",
    }


def gather_arguments(spread_BLT: Tensor, grad_x_BL: Tensor) -> dict[str, Any]:
    """Return what the kernel takes that gathers the input's gradient into `grad_x_BL`, contiguous."""
    return {
        "spread_ptr": spread_BLT,
        "grad_x_ptr": grad_x_BL,
        "n_points": grad_x_BL.numel(),
        "length": grad_x_BL.shape[1],
        "length_out": spread_BLT.shape[1],
        "TAPS": spread_BLT.shape[2],
        "BLOCK_L": GATHERED,
    }


def run_forward(arguments: dict[str, Any], deterministic: bool) -> None:
    """Run the forward kernel."""

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (triton.cdiv(arguments["n_windows"], meta["BLOCK_M"]),)

    _run(FORWARD, grid, arguments, deterministic)


def run_backward(arguments: dict[str, Any], deterministic: bool) -> None:
    """Run the backward kernel, as many programs as `partial` has places."""
    _run(BACKWARD, (arguments["partial_ptr"].shape[0],), arguments, deterministic)


def run_gather(arguments: dict[str, Any]) -> None:
    """Run the kernel that gathers the input's gradient."""
    kernel = kernels.stem_input_gradient_kernel
    kernel = kernel if interpreted() else torch.library.wrap_triton(kernel)
    with torch.cuda.device_of(arguments["grad_x_ptr"]):
        kernel[(triton.cdiv(arguments["n_points"], GATHERED),)](**arguments, num_warps=4)


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
