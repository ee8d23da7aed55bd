"""What the Triton kernels of the network share: dropout, LayerNorm and GELU of a tile, and whether they run.

A tile holds whole rows: one row for each output position, all its channels in the columns. Where there are
fewer than 16 channels the columns are padded, as a matrix product needs; `WIDTH` counts the true ones.

Inside kernels: `i_` index, `o_` offsets, `m_` mask, `p_` pointers, `b_` block.
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError as error:  # optional: there is no Triton for macOS, and a CPU has no use for it
    TRITON_VERSION, TRITON_MISSING = "", f"triton cannot be imported ({error})"
else:
    TRITON_VERSION, TRITON_MISSING = triton.__version__, ""

SMALLEST_DOT = 16  # rows and columns of the smallest matrix product


if not TRITON_MISSING:

    @triton.jit
    def keep_tile(seed_ptr, i_rows, o_n, threshold, WIDTH: tl.constexpr):
        """Tell which elements of rows `i_rows` (int64) dropout keeps, bit for bit as `dropout.keep_mask`."""
        # the counter's product with the golden ratio, taken apart: one product an element is saved
        p_golden = tl.full([1], 0x9E3779B97F4A7C15, dtype=tl.uint64)
        b_row = (i_rows.to(tl.uint64) * WIDTH + 1) * p_golden + tl.load(seed_ptr).to(tl.uint64)
        b_z = b_row[:, None] + (o_n.to(tl.uint64) * p_golden)[None, :]
        b_z = (b_z ^ (b_z >> 30)) * 0xBF58476D1CE4E5B9
        b_z = (b_z ^ (b_z >> 27)) * 0x94D049BB133111EB
        return ((b_z ^ (b_z >> 31)) >> 32).to(tl.int64) >= threshold

    @triton.jit
    def dropped_tile(b_y, seed_ptr, i_rows, o_n, threshold, scale, WIDTH: tl.constexpr):
        """Apply dropout; its gradient is the same function of the gradient. `scale` is 1 / (1 − p)."""
        return tl.where(keep_tile(seed_ptr, i_rows, o_n, threshold, WIDTH), b_y * scale, 0.0)

    @triton.jit
    def normalised_tile(b_y, o_n, eps, WIDTH: tl.constexpr):
        """Return the rows with mean 0 and variance 1, padded columns zero, and 1 / √(variance + eps)."""
        b_y -= (tl.sum(b_y, axis=1) / WIDTH)[:, None]
        if b_y.shape[1] > WIDTH:
            b_y = tl.where((o_n < WIDTH)[None, :], b_y, 0.0)
        b_scale = 1.0 / tl.sqrt(tl.sum(b_y * b_y, axis=1) / WIDTH + eps)
        return b_y * b_scale[:, None], b_scale

    @triton.jit
    def normalised_gradient_tile(b_grad, b_hat, b_scale, WIDTH: tl.constexpr):
        """Return the gradient of `normalised_tile`'s input from that of its output.

        `b_hat` and `b_scale` are its results; `b_grad` is zero in padded columns, where the result is not.
        """
        b_mean = tl.sum(b_grad, axis=1) / WIDTH
        b_along = tl.sum(b_grad * b_hat, axis=1) / WIDTH
        return (b_grad - b_mean[:, None] - b_hat * b_along[:, None]) * b_scale[:, None]

    @triton.jit
    def gelu_tile(b_y):
        """Apply the exact GELU."""
        return 0.5 * b_y * (1.0 + tl.erf(b_y * 0.7071067811865476))

    @triton.jit
    def gelu_slope_tile(b_y):
        """Return the derivative of GELU: Φ(y) + y·φ(y)."""
        b_density = 0.3989422804014327 * tl.exp(-0.5 * b_y * b_y)
        return 0.5 * (1.0 + tl.erf(b_y * 0.7071067811865476)) + b_y * b_density


def interpreted() -> bool:
    """Whether TRITON_INTERPRET was set when this module was imported."""
    return not TRITON_MISSING and not isinstance(gelu_tile, triton.runtime.JITFunction)


def unavailable(device: torch.device) -> str:
    """Tell why Triton kernels cannot run on tensors of `device`; empty where they can."""
    if TRITON_MISSING or device.type == "cuda":
        return TRITON_MISSING
    if device.type == "cpu" and interpreted():
        return ""
    return (
        f"a {device.type} tensor, and Triton needs CUDA (TRITON_INTERPRET=1 emulates it on the CPU, slowly)"
    )


def computable(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor as kernels can read it: the interpreter has no bfloat16 arithmetic.

    It would multiply the bit patterns; storing to bfloat16 and converting to float32 it can.
    """
    return tensor.float() if tensor.dtype == torch.bfloat16 and interpreted() else tensor
