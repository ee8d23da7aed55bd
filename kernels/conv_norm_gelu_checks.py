"""What the Triton kernels of `conv_norm_gelu` take, and refusals of the rest."""

import torch
from torch import Tensor

from .triton_tiles import unavailable

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_WIDTH = 256  # channels; a tile holds whole output rows
LONGEST = 2**31 - 1024  # points; positions within one pattern are 32-bit, addresses 64-bit


def output_length(length: int, taps: int, stride: int, padding: int) -> int:
    """Return the number of output points of a convolution over `length` points."""
    return (length + 2 * padding - taps) // stride + 1


def check(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    residual: Tensor | None,
    seed: Tensor | None,
    stride: int,
    padding: int,
    dropout: float,
) -> None:
    """Refuse what the kernels would compute wrongly.

    Raises
    ------
    ValueError
        A shape, dtype or device that they do not take.
    """
    if reason := unavailable(x_BLC.device):
        raise ValueError(f"conv_norm_gelu: {reason}")
    c_out, c_in = weight.shape[:2] if weight.ndim == 3 else (0, 0)
    if not all(0 < width <= LARGEST_WIDTH and width & (width - 1) == 0 for width in (c_in, c_out)):
        raise ValueError(
            f"conv_norm_gelu: channels must be powers of two up to {LARGEST_WIDTH}, not {c_in} and {c_out}"
        )
    check_sizes(x_BLC, weight, norm_weight, norm_bias, residual, stride, padding)
    _check_kinds([x_BLC, weight, residual], [norm_weight, norm_bias, seed])
    check_dropout(seed, dropout)


def check_sizes(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    residual: Tensor | None,
    stride: int,
    padding: int,
) -> None:
    """Refuse a layer whose tensors do not fit each other, whatever is to compute it.

    Raises
    ------
    ValueError
        Of shapes, or of the stride or padding.
    """
    if x_BLC.ndim != 3 or weight.ndim != 3 or x_BLC.shape[2] != weight.shape[1]:
        shapes = f"{tuple(x_BLC.shape)} and {tuple(weight.shape)}"
        raise ValueError(
            f"conv_norm_gelu: input (B, L, C_in) and weight (C_out, C_in, taps) do not fit: {shapes}"
        )
    c_out, _, taps = weight.shape
    length = x_BLC.shape[1]
    if stride < 1 or padding < 0 or length + 2 * padding < taps or length + 2 * padding > LONGEST:
        raise ValueError(
            f"conv_norm_gelu: {taps} taps, stride {stride}, padding {padding} do not fit {length} points"
        )
    shape_out = (x_BLC.shape[0], output_length(length, taps, stride, padding), c_out)
    _check_shapes(
        ("norm_weight", norm_weight, (c_out,)),
        ("norm_bias", norm_bias, (c_out,)),
        ("residual", residual, shape_out),
    )


def check_shortcut(
    x_BLC: Tensor,
    weight: Tensor,
    shortcut_weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    stride: int,
    padding: int,
) -> None:
    """Refuse a shortcut that does not fit the convolution beside it.

    Raises
    ------
    ValueError
        Of another length or width.
    """
    c_out, c_in, taps = weight.shape
    _check_shapes(
        ("shortcut_weight", shortcut_weight, (c_out, c_in, 1)),
        ("shortcut_norm_weight", norm_weight, (c_out,)),
        ("shortcut_norm_bias", norm_bias, (c_out,)),
    )
    length = x_BLC.shape[1]
    if output_length(length, taps, stride, padding) != output_length(length, 1, stride, 0):
        raise ValueError(
            f"conv_norm_gelu: with {taps} taps and padding {padding} the shortcut has another length"
        )


def _check_shapes(*expected: tuple[str, Tensor | None, tuple[int, ...]]) -> None:
    for name, tensor, shape in expected:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"conv_norm_gelu: {name} must be {shape}, not {tuple(tensor.shape)}")


def _check_kinds(alike: list[Tensor | None], others: list[Tensor | None]) -> None:
    same = [tensor for tensor in alike if tensor is not None]
    if same[0].dtype not in DTYPES or len({tensor.dtype for tensor in same}) > 1:
        names = ", ".join(str(tensor.dtype) for tensor in same)
        raise ValueError(f"conv_norm_gelu: dtypes must be one of float32, bfloat16, float16, not {names}")
    if len({tensor.device for tensor in (*same, *others) if tensor is not None}) > 1:
        raise ValueError("conv_norm_gelu: all tensors must lie on one device")


def check_dropout(seed: Tensor | None, dropout: float) -> None:
    """Refuse a probability outside [0, 1), and dropout without a seed that names its mask.

    Raises
    ------
    ValueError
        Of either.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"conv_norm_gelu: dropout must lie in [0, 1), not {dropout}")
    if dropout and (seed is None or tuple(seed.shape) != (1,) or seed.dtype != torch.int64):
        raise ValueError("conv_norm_gelu: dropout needs a seed: an int64 tensor of shape (1,)")
