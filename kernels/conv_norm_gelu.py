"""Convolution, LayerNorm over channels, residual and GELU of the 1-D ResNet, in one Triton kernel.

Shapes: B patterns, L points, C input channels, N output channels, K taps, M = B·L_out output rows.
Everything is channels-last, so an output row and its normalisation live in one tile and the
convolution's result never travels to memory.

Inside the kernel: `i_` index, `o_` offsets, `m_` mask, `p_` pointers, `b_` block.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

try:
    import triton
    import triton.language as tl
except ImportError as error:  # optional: there is no Triton for macOS, and a CPU has no use for it
    TRITON_VERSION, TRITON_MISSING = "", f"triton cannot be imported ({error})"
else:
    TRITON_VERSION, TRITON_MISSING = triton.__version__, ""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_WIDTH = 256  # channels; a tile holds whole output rows
SMALLEST_DOT = 16  # input channels from which the taps are matrix products on tensor cores
STAGE_BYTES = 24 * 1024  # of shared memory: three stages fit the 99 KiB of the smallest chips since sm_80
LONGEST = 2**31 - 1024  # points; positions within one pattern are 32-bit, addresses 64-bit


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

    Returns
    -------
    Tensor, shape (batch, L_out, C_out)
        In the input's dtype; normalisation and what follows are computed in float32 or better.
        L_out = (length + 2·padding − taps) // stride + 1.
    """
    wide = torch.promote_types(x_BLC.dtype, torch.float32)
    y_BLN = functional.conv1d(x_BLC.transpose(1, 2), weight, stride=stride, padding=padding).transpose(1, 2)
    y_BLN = functional.layer_norm(
        y_BLN.to(wide), y_BLN.shape[-1:], norm_weight.to(wide), norm_bias.to(wide), eps
    )
    if residual is not None:
        y_BLN = y_BLN + residual
    if gelu:
        y_BLN = functional.gelu(y_BLN)
    return y_BLN.to(x_BLC.dtype)


if not TRITON_MISSING:

    @triton.jit
    def conv_norm_gelu_kernel(
        x_ptr,
        weight_ptr,
        norm_weight_ptr,
        norm_bias_ptr,
        residual_ptr,
        out_ptr,
        n_rows,
        length,
        length_out,
        stride_batch,
        stride_length,
        stride,
        padding,
        eps,
        TAPS: tl.constexpr,
        C_IN: tl.constexpr,
        C_OUT: tl.constexpr,
        GELU: tl.constexpr,
        BLOCK_M: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        """Fill one tile: BLOCK_M output rows, each with all its C_OUT channels."""
        # first output row of the tile, split into pattern and position
        i_row = tl.program_id(0).to(tl.int64) * BLOCK_M
        o_m = tl.arange(0, BLOCK_M)
        o_n = tl.arange(0, C_OUT)
        o_c = tl.arange(0, BLOCK_C)
        m_row = i_row + o_m < n_rows
        o_ahead = (i_row % length_out).to(tl.int32) + o_m
        o_batch = i_row // length_out + o_ahead // length_out
        o_first = (o_ahead % length_out) * stride - padding
        p_pattern = x_ptr + o_batch * stride_batch

        # implicit GEMM: (M, taps·C) @ (taps·C, N)
        b_y = tl.zeros([BLOCK_M, C_OUT], dtype=tl.float32)
        for i_block in range(TAPS * (C_IN // BLOCK_C)):
            o_x = o_first + i_block // (C_IN // BLOCK_C)
            m_x = m_row & (o_x >= 0) & (o_x < length)
            p_x = p_pattern + o_x.to(tl.int64) * stride_length + i_block % (C_IN // BLOCK_C) * BLOCK_C
            p_weight = weight_ptr + i_block * BLOCK_C * C_OUT
            if BLOCK_C == 1:
                b_x = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
                b_w = tl.load(p_weight + o_n).to(tl.float32)
                b_y += b_x[:, None] * b_w[None, :]
            else:
                b_x = tl.load(p_x[:, None] + o_c[None, :], mask=m_x[:, None], other=0.0)
                b_w = tl.load(p_weight + o_c[:, None] * C_OUT + o_n[None, :])
                b_y = tl.dot(b_x, b_w, b_y, input_precision="ieee")

        # LayerNorm over N
        b_y -= (tl.sum(b_y, axis=1) / C_OUT)[:, None]
        b_variance = tl.sum(b_y * b_y, axis=1) / C_OUT
        b_y *= (1.0 / tl.sqrt(b_variance + eps))[:, None]
        b_y *= tl.load(norm_weight_ptr + o_n).to(tl.float32)[None, :]
        b_y += tl.load(norm_bias_ptr + o_n).to(tl.float32)[None, :]

        o_out = (i_row + o_m)[:, None] * C_OUT + o_n[None, :]
        if residual_ptr is not None:
            b_y += tl.load(residual_ptr + o_out, mask=m_row[:, None], other=0.0).to(tl.float32)
        if GELU:
            b_y = 0.5 * b_y * (1.0 + tl.erf(b_y * 0.7071067811865476))
        tl.store(out_ptr + o_out, b_y.to(out_ptr.dtype.element_ty), mask=m_row[:, None])


def _interpreted() -> bool:
    """Whether TRITON_INTERPRET was set when this module was imported."""
    return not isinstance(conv_norm_gelu_kernel, triton.runtime.JITFunction)


def unavailable(device: torch.device) -> str:
    """Tell why the kernel cannot run on tensors of `device`; empty where it can."""
    if TRITON_MISSING or device.type == "cuda":
        return TRITON_MISSING
    if device.type == "cpu" and _interpreted():
        return ""
    return (
        f"a {device.type} tensor, and Triton needs CUDA (TRITON_INTERPRET=1 emulates it on the CPU, slowly)"
    )


def compile_options(c_in: int, c_out: int, taps: int, gelu: bool, itemsize: int) -> dict[str, Any]:
    """Choose the kernel's compile-time arguments, the tile among them.

    Parameters
    ----------
    c_in, c_out, taps : int
        Shape of the weight.
    gelu : bool
        Whether GELU comes last.
    itemsize : int
        Bytes of one input value.

    Returns
    -------
    dict
        The kernel's constexpr arguments, `num_warps`, `num_stages` and `enable_fp_fusion`.
    """
    block_m = 128 if c_out <= 64 else 64
    block_c = 1 if c_in < SMALLEST_DOT else min(c_in, 64)
    while block_c > SMALLEST_DOT and (block_m + c_out) * block_c * itemsize > STAGE_BYTES:
        block_c //= 2
    return {
        "TAPS": taps,
        "C_IN": c_in,
        "C_OUT": c_out,
        "GELU": gelu,
        "BLOCK_M": block_m,
        "BLOCK_C": block_c,
        "num_warps": 4 if block_m * c_out <= 4096 else 8,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }


def output_length(length: int, taps: int, stride: int, padding: int) -> int:
    """Return the number of output points of a convolution over `length` points."""
    return (length + 2 * padding - taps) // stride + 1


def launch(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    residual: Tensor | None,
    out_BLN: Tensor,
    stride: int,
    padding: int,
    eps: float,
    gelu: bool,
) -> None:
    """Run the kernel once and fill `out_BLN`, contiguous; the arguments are those of `reference`.

    Raises
    ------
    ValueError
        A shape, dtype or device that the kernel does not take.
    """
    _check(x_BLC, weight, norm_weight, norm_bias, residual, out_BLN, stride, padding)
    n_rows = out_BLN.shape[0] * out_BLN.shape[1]
    if n_rows == 0:
        return
    if x_BLC.dtype == torch.bfloat16 and _interpreted():
        # Triton's interpreter has no bfloat16 arithmetic: it would multiply the bit patterns
        x_BLC, weight = x_BLC.float(), weight.float()
    if x_BLC.stride(2) != 1 and x_BLC.shape[2] > 1:
        x_BLC = x_BLC.contiguous()
    c_out, c_in, taps = weight.shape
    options = compile_options(c_in, c_out, taps, gelu, x_BLC.element_size())
    with torch.cuda.device_of(x_BLC):
        conv_norm_gelu_kernel[(triton.cdiv(n_rows, options["BLOCK_M"]),)](
            x_BLC,
            weight.permute(2, 1, 0).contiguous(),  # (taps, C, N): rows of N are what the tiles read
            norm_weight.contiguous(),
            norm_bias.contiguous(),
            None if residual is None else residual.contiguous(),
            out_BLN,
            n_rows,
            x_BLC.shape[1],
            out_BLN.shape[1],
            x_BLC.stride(0),
            x_BLC.stride(1),
            stride,
            padding,
            eps,
            **options,
        )


def _check(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    residual: Tensor | None,
    out_BLN: Tensor,
    stride: int,
    padding: int,
) -> None:
    """Refuse what the kernel would compute wrongly."""
    if reason := unavailable(x_BLC.device):
        raise ValueError(f"conv_norm_gelu: {reason}")
    if x_BLC.ndim != 3 or weight.ndim != 3 or x_BLC.shape[2] != weight.shape[1]:
        shapes = f"{tuple(x_BLC.shape)} and {tuple(weight.shape)}"
        raise ValueError(
            f"conv_norm_gelu: input (B, L, C_in) and weight (C_out, C_in, taps) do not fit: {shapes}"
        )
    c_out, c_in, taps = weight.shape
    if not all(0 < width <= LARGEST_WIDTH and width & (width - 1) == 0 for width in (c_in, c_out)):
        raise ValueError(
            f"conv_norm_gelu: channels must be powers of two up to {LARGEST_WIDTH}, not {c_in} and {c_out}"
        )
    length = x_BLC.shape[1]
    if stride < 1 or padding < 0 or length + 2 * padding < taps or length + 2 * padding > LONGEST:
        raise ValueError(
            f"conv_norm_gelu: {taps} taps, stride {stride}, padding {padding} do not fit {length} points"
        )
    shape_out = (x_BLC.shape[0], output_length(length, taps, stride, padding), c_out)
    for name, tensor, shape in (
        ("norm_weight", norm_weight, (c_out,)),
        ("norm_bias", norm_bias, (c_out,)),
        ("residual", residual, shape_out),
        ("out", out_BLN, shape_out),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"conv_norm_gelu: {name} must be {shape}, not {tuple(tensor.shape)}")
    same = [tensor for tensor in (x_BLC, weight, residual, out_BLN) if tensor is not None]
    if x_BLC.dtype not in DTYPES or len({tensor.dtype for tensor in same}) > 1:
        names = ", ".join(str(tensor.dtype) for tensor in same)
        raise ValueError(f"conv_norm_gelu: dtypes must be one of float32, bfloat16, float16, not {names}")
    if len({tensor.device for tensor in (*same, norm_weight, norm_bias)}) > 1:
        raise ValueError("conv_norm_gelu: all tensors must lie on one device")
    if not out_BLN.is_contiguous():
        raise ValueError("conv_norm_gelu: out must be contiguous")


@torch.library.custom_op("hxrd::conv_norm_gelu", mutates_args=())
def conv_norm_gelu(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    residual: Tensor | None,
    stride: int,
    padding: int,
    eps: float,
    gelu: bool,
) -> Tensor:
    """Run the Triton kernel as a torch operator; parameters and result are those of `reference`.

    `hxrd.kernels.dispatch.conv_norm_gelu` chooses between the two. The backward pass recomputes the
    forward by `reference` and differentiates that, so nothing but the inputs is kept in memory; it
    can be differentiated once.

    Raises
    ------
    ValueError
        A shape, dtype or device that the kernel does not take.
    """
    out_BLN = _allocate(x_BLC, weight, stride, padding)
    launch(x_BLC, weight, norm_weight, norm_bias, residual, out_BLN, stride, padding, eps, gelu)
    return out_BLN


def _allocate(x_BLC: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    length_out = output_length(x_BLC.shape[1], weight.shape[2], stride, padding)
    return x_BLC.new_empty(x_BLC.shape[0], length_out, weight.shape[0])


@conv_norm_gelu.register_fake
def _(x_BLC, weight, norm_weight, norm_bias, residual, stride, padding, eps, gelu):
    return _allocate(x_BLC, weight, stride, padding)


# The operator has no default values: torch would strip them, and `needs_input_grad` would not fit the inputs.
def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, stride, padding, eps, gelu = inputs
    ctx.options = (stride, padding, eps, gelu)
    ctx.save_for_backward(*tensors)


@once_differentiable
def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:5]
    tensors: list[Any] = [
        None if tensor is None else tensor.detach().requires_grad_(need)
        for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
    ]
    with torch.enable_grad():
        out_BLN = reference(*tensors, *ctx.options)
    wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
    found = iter(torch.autograd.grad(out_BLN, wanted, grad_out))
    return (*(next(found) if need else None for need in needed), None, None, None, None)


conv_norm_gelu.register_autograd(_backward, setup_context=_save)
