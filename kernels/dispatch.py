"""Which implementation of the network's kernels runs, and why: chosen in one place and never silently.

CUDA tensors go to Triton, CPU tensors to compiled vector code (`cpu_layers`), anything else to plain torch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import conv_norm_gelu as conv
from . import conv_norm_gelu_checks as checks
from . import stem_norm_pool as stem

BACKENDS = ("auto", "triton", "compiled", "reference")


@dataclass(frozen=True)
class Choice:
    """The implementation that runs.

    Parameters
    ----------
    backend : str
        ``triton``, ``compiled`` or ``reference``.
    reason : str
        Why, in a few words.
    """

    backend: str
    reason: str


def choose(device: torch.device | str, backend: str = "auto") -> Choice:
    """Choose the implementation for tensors of a device.

    Parameters
    ----------
    device : torch.device or str
        Where the tensors lie.
    backend : str
        ``triton``, ``compiled`` or ``reference`` to insist; ``auto`` takes Triton for CUDA tensors where
        it can be imported, compiled code for CPU tensors, else the reference.

    Raises
    ------
    ValueError
        An unknown backend.
    RuntimeError
        The one insisted on cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown kernel backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return Choice("reference", "asked for")
    device = torch.device(device)
    wanted = backend if backend != "auto" else "compiled" if device.type == "cpu" else "triton"
    obstacle = _obstacle(wanted, device)
    if obstacle and backend != "auto":
        raise RuntimeError(f"the {backend} kernels cannot run: {obstacle}")
    if obstacle:
        return Choice("reference", obstacle)
    if backend != "auto":
        return Choice(backend, "asked for")
    if wanted == "triton":
        return Choice("triton", f"CUDA tensors, triton {conv.TRITON_VERSION}")
    return Choice("compiled", "CPU tensors, vector code by LLVM")


def _compiled() -> Any:
    """Return the compiled layers: they, and Numba with them, are imported where they are wanted."""
    from . import cpu_layers  # type: ignore[attr-defined]  # mypy knows this folder by another name

    return cpu_layers


def _obstacle(backend: str, device: torch.device) -> str:
    """Tell why a backend cannot run on a device; empty where it can."""
    if backend == "triton":
        return conv.unavailable(device)
    if device.type != "cpu":
        return f"a {device.type} tensor, and compiled code runs on the CPU"
    try:
        return str(_compiled().unavailable())
    except ImportError as error:
        return f"numba cannot be imported ({error})"


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
        The one insisted on cannot run here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    choice = choose(device, backend)
    return f"{choice.backend} ({choice.reason})"


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
    dropout: float = 0.0,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Convolve, drop out, normalise over channels, add the residual and apply GELU.

    Within `torch.autocast` the input, the weight and the residual are cast to its dtype for Triton and the
    reference; compiled code stays in float32, which is quicker on a CPU.

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
    dropout : float
        Probability of losing an element of the convolution's output.
    seed : Tensor, shape (1,), int64, optional
        Of the dropout mask (see `dropout.keep_mask`); needed where there is dropout.
    backend : str
        ``auto``, ``triton``, ``compiled`` or ``reference``; see `choose`.

    Returns
    -------
    Tensor, shape (batch, L_out, C_out)
        L_out = (length + 2·padding − taps) // stride + 1.

    Raises
    ------
    ValueError
        An unknown backend, dropout without a seed, or a shape or dtype that the kernel does not take.
    RuntimeError
        The backend insisted on cannot run here.
    """
    checks.check_sizes(x_BLC, weight, norm_weight, norm_bias, residual, stride, padding)
    implementation = _implementation(x_BLC, backend, weight.shape[:2])
    seed = _checked_seed(dropout, seed)
    numbers = stride, padding, eps
    if implementation == "compiled":
        return _compiled().conv_norm_gelu(
            x_BLC, weight, norm_weight, norm_bias, residual, seed, *numbers, gelu, dropout
        )
    x_BLC, weight = _autocast(x_BLC), _autocast(weight)
    residual = None if residual is None else _autocast(residual)
    tensors = x_BLC, weight, norm_weight, norm_bias, residual
    if implementation == "triton":
        return conv.conv_norm_gelu(*tensors, seed, *numbers, gelu, dropout, _deterministic())
    return conv.reference(*tensors, *numbers, gelu, dropout, seed)


def conv_norm_pair(
    x_BLC: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    shortcut_weight: Tensor,
    shortcut_norm_weight: Tensor,
    shortcut_norm_bias: Tensor,
    *,
    stride: int,
    padding: int,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute a residual block's first convolution and its projected shortcut, from one read of the input.

    Parameters
    ----------
    x_BLC, weight, norm_weight, norm_bias, stride, padding, eps, dropout, seed, backend
        As for `conv_norm_gelu`; 0 ≤ padding < taps.
    shortcut_weight : Tensor, shape (C_out, C_in, 1)
        Convolution of the same stride without padding and dropout.
    shortcut_norm_weight, shortcut_norm_bias : Tensor, shape (C_out,)
        Affine part of its LayerNorm; no GELU follows.

    Returns
    -------
    main, shortcut : Tensor, shape (batch, L_out, C_out)

    Raises
    ------
    ValueError, RuntimeError
        As `conv_norm_gelu`.
    """
    checks.check_sizes(x_BLC, weight, norm_weight, norm_bias, None, stride, padding)
    shortcut = shortcut_weight, shortcut_norm_weight, shortcut_norm_bias
    checks.check_shortcut(x_BLC, weight, *shortcut, stride, padding)
    implementation = _implementation(x_BLC, backend, weight.shape[:2])
    seed = _checked_seed(dropout, seed)
    norms = norm_weight, norm_bias
    shortcut_norms = shortcut_norm_weight, shortcut_norm_bias
    if implementation == "compiled":
        main = _compiled().conv_norm_gelu(
            x_BLC, weight, *norms, None, seed, stride, padding, eps, True, dropout
        )
        return main, _compiled().conv_norm_gelu(
            x_BLC, shortcut_weight, *shortcut_norms, None, None, stride, 0, eps, False, 0.0
        )
    x_BLC, weight, shortcut_weight = _autocast(x_BLC), _autocast(weight), _autocast(shortcut_weight)
    tensors = x_BLC, weight, *norms, shortcut_weight, *shortcut_norms
    if implementation == "triton":
        return conv.conv_norm_pair(*tensors, seed, stride, padding, eps, dropout, _deterministic())
    return conv.pair_reference(*tensors, stride, padding, eps, dropout, seed)


def stem_norm_pool(
    x_BL: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    pool: int | None,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Convolve single-channel patterns, drop out, normalise, apply GELU and pool.

    Parameters
    ----------
    x_BL : Tensor, shape (batch, length)
        Patterns.
    weight : Tensor, shape (C_out, 1, taps)
        Convolution weight, without bias; stride 1, no padding.
    norm_weight, norm_bias, eps, dropout, seed, backend
        As for `conv_norm_gelu`.
    pool : int or None
        Window and stride of the max pool, padded by ``pool // 2``; None for no pool.

    Returns
    -------
    Tensor, shape (batch, positions, C_out)

    Raises
    ------
    ValueError, RuntimeError
        As `conv_norm_gelu`.
    """
    _check_stem(x_BL, weight, norm_weight, norm_bias, pool)
    implementation = _implementation(x_BL, backend, (weight.shape[0],))
    seed = _checked_seed(dropout, seed)
    tensors = x_BL, weight, norm_weight, norm_bias, seed
    if implementation == "compiled":
        return _compiled().stem_norm_pool(*tensors, pool or 0, eps, dropout)
    tensors = _autocast(x_BL), _autocast(weight), norm_weight, norm_bias, seed
    if implementation == "triton":
        return stem.stem_norm_pool(*tensors, pool or 0, eps, dropout, _deterministic())
    return stem.reference(*tensors, pool or 0, eps, dropout)


def _implementation(x: Tensor, backend: str, channels: tuple[int, ...] | torch.Size) -> str:
    """Return what runs: ``auto`` leaves channels that the compiled code does not take to the reference."""
    choice = choose(x.device, backend)
    if choice.backend != "compiled" or backend == "compiled":
        return choice.backend
    return "compiled" if _compiled().takes(channels, x.dtype) else "reference"


def _checked_seed(dropout: float, seed: Tensor | None) -> Tensor | None:
    checks.check_dropout(seed, dropout)
    return seed if dropout else None


def _check_stem(
    x_BL: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, pool: int | None
) -> None:
    """Refuse a stem whose tensors do not fit each other."""
    if x_BL.ndim != 2 or weight.ndim != 3 or weight.shape[1] != 1 or x_BL.shape[1] < weight.shape[2]:
        shapes = f"{tuple(x_BL.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"stem_norm_pool: input (B, L) and weight (C_out, 1, taps ≤ L) do not fit: {shapes}")
    if not norm_weight.shape == norm_bias.shape == weight.shape[:1]:
        shapes = f"{tuple(norm_weight.shape)} and {tuple(norm_bias.shape)}"
        raise ValueError(f"stem_norm_pool: norm_weight and norm_bias must be ({len(weight)},), not {shapes}")
    if pool is not None and pool < 0:
        raise ValueError(f"stem_norm_pool: pool must be None or at least 1, not {pool}")


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def _autocast(tensor: Tensor) -> Tensor:
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor
