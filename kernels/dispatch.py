"""Which implementation of a kernel runs, and why: chosen in one place and never silently."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import conv_norm_gelu as op

BACKENDS = ("auto", "triton", "reference")


@dataclass(frozen=True)
class Choice:
    """The implementation that runs.

    Parameters
    ----------
    backend : str
        ``triton`` or ``reference``.
    reason : str
        Why, in a few words.
    """

    backend: str
    reason: str


def choose(device: torch.device | str, backend: str = "auto") -> Choice:
    """Choose the implementation of `conv_norm_gelu` for tensors of a device.

    Parameters
    ----------
    device : torch.device or str
        Where the tensors lie.
    backend : str
        ``triton`` or ``reference`` to insist; ``auto`` takes Triton for CUDA tensors where it can be
        imported, else the reference.

    Raises
    ------
    ValueError
        An unknown backend.
    RuntimeError
        Triton was insisted on and cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown kernel backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return Choice("reference", "asked for")
    device = torch.device(device)
    obstacle = op.unavailable(device)
    if backend == "triton" and obstacle:
        raise RuntimeError(f"the Triton kernel conv_norm_gelu cannot run: {obstacle}")
    if backend == "triton":
        return Choice("triton", "asked for")
    if obstacle:
        return Choice("reference", obstacle)
    if device.type != "cuda":
        return Choice("reference", f"{device.type} tensors, where Triton is only emulated")
    return Choice("triton", f"CUDA tensors, triton {op.TRITON_VERSION}")


def describe(device: torch.device | str | None = None, backend: str = "auto") -> str:
    """Tell in one line what would run on a device and why.

    Parameters
    ----------
    device : torch.device or str, optional
        By default CUDA where torch sees it, else the CPU.
    backend : str
        As for `choose`.

    Raises
    ------
    ValueError
        An unknown backend.
    RuntimeError
        Triton was insisted on and cannot run here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    choice = choose(device, backend)
    return f"conv_norm_gelu: {choice.backend} ({choice.reason})"


def conv_norm_gelu(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    eps: float = 1e-5,
    gelu: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Convolve, normalise over channels, add the residual and apply GELU by the fitting implementation.

    Within `torch.autocast` the input, the weight and the residual are cast to its dtype, whichever
    implementation runs.

    Parameters
    ----------
    x_BLC : Tensor, shape (batch, length, C_in)
        Input, channels last.
    weight : Tensor, shape (C_out, C_in, taps)
        Convolution weight, without bias.
    norm_weight, norm_bias : Tensor, shape (C_out,)
        Affine part of the LayerNorm.
    residual : Tensor, shape (batch, L_out, C_out), optional
        Added after the normalisation.
    stride, padding : int
        In points.
    eps : float
        Added to the variance of each row.
    gelu : bool
        Whether the exact (erf) GELU comes last.
    backend : str
        ``auto``, ``triton`` or ``reference``; see `choose`.

    Returns
    -------
    Tensor, shape (batch, L_out, C_out)
        L_out = (length + 2·padding − taps) // stride + 1.

    Raises
    ------
    ValueError
        An unknown backend, or a shape or dtype that the Triton kernel does not take.
    RuntimeError
        Triton was insisted on and cannot run here.
    """
    triton = choose(x_BLC.device, backend).backend == "triton"
    x_BLC, weight = _autocast(x_BLC), _autocast(weight)
    residual = None if residual is None else _autocast(residual)
    tensors = x_BLC, weight, norm_weight, norm_bias, residual
    if not triton:
        return op.reference(*tensors, stride, padding, eps, gelu)
    deterministic = torch.are_deterministic_algorithms_enabled()
    return op.conv_norm_gelu(*tensors, None, stride, padding, eps, gelu, 0.0, deterministic)


def _autocast(tensor: Tensor) -> Tensor:
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor
