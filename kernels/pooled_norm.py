"""LayerNorm, GELU and max pool of the ResNet's stem, fused for the CPU.

The stem works at the pattern's full resolution, so its activations are most of the network's. Here
they are read once. The max pool needs no GELU: GELU falls and then rises, so its maximum over a
window is taken where its argument is greatest or least, and only the chosen argument goes on.

Shape suffixes: B batch, L positions along the pattern, P windows, C channels.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

_NAN_IS_ALLOWED = {"contract", "reassoc", "nsz", "arcp", "afn"}  # all freedoms but those that rule out NaN


def reference(x_BLC: Tensor, gamma_C: Tensor, beta_C: Tensor, pool: int, eps: float = 1e-5) -> Tensor:
    """Return max pool(GELU(LayerNorm(x))) in plain torch, shape (B, P, C).

    Parameters
    ----------
    x_BLC : Tensor
        Channels last.
    gamma_C, beta_C : Tensor
        Affine of the LayerNorm over the channels.
    pool : int
        Size and stride of the max pool, padded by ``pool // 2``.
    eps : float
        Of the LayerNorm.
    """
    y_BLC = functional.gelu(functional.layer_norm(x_BLC, gamma_C.shape, gamma_C, beta_C, eps))
    return functional.max_pool1d(y_BLC.transpose(1, 2), pool, pool, pool // 2).transpose(1, 2)


def pooled_norm(x_BLC: Tensor, gamma_C: Tensor, beta_C: Tensor, pool: int, eps: float = 1e-5) -> Tensor:
    """Compute `reference` fused, on the CPU, in float32, with all gradients."""
    return functional.gelu(_GeluArgument.apply(x_BLC, gamma_C, beta_C, pool, eps))


class _GeluArgument(torch.autograd.Function):
    """The argument of GELU at the place of each window where GELU is greatest."""

    @staticmethod
    def forward(ctx, x_BLC, gamma_C, beta_C, pool, eps):
        x, gamma, beta = (t.detach().float().contiguous().numpy() for t in (x_BLC, gamma_C, beta_C))
        n_windows = (x.shape[1] + 2 * (pool // 2) - pool) // pool + 1
        chosen = np.empty((len(x), n_windows, x.shape[2]), np.int32)
        out = np.empty(chosen.shape, np.float32)
        _over_rows(lambda rows: _forward(x[rows], gamma, beta, pool, eps, out[rows], chosen[rows]), len(x))
        ctx.arrays = (x, gamma, chosen, eps)
        ctx.dtype = x_BLC.dtype
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx, grad_BPC):
        x, gamma, chosen, eps = ctx.arrays
        grad_x = np.zeros_like(x)
        affine = np.zeros((len(x), 2, x.shape[2]), np.float32)
        grad = grad_BPC.float().contiguous().numpy()
        _over_rows(
            lambda rows: _backward(grad[rows], x[rows], gamma, chosen[rows], eps, grad_x[rows], affine[rows]),
            len(x),
        )
        gamma_C, beta_C = torch.from_numpy(affine.sum(axis=0, dtype=np.float64).astype(np.float32))
        return torch.from_numpy(grad_x).to(ctx.dtype), gamma_C, beta_C, None, None


@cache
def _threads(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="pooled-norm")


def _over_rows(work: Callable[[slice], None], n_rows: int) -> None:
    """Share rows among as many threads as torch uses.

    Not by Numba's own threads: those change the number of OpenMP threads that torch uses from then on.
    """
    n_threads = min(torch.get_num_threads(), n_rows)
    if n_threads <= 1:
        work(slice(0, n_rows))
        return
    bounds = np.linspace(0, n_rows, n_threads + 1).astype(int)
    slices = [slice(a, b) for a, b in pairwise(bounds)]
    list(_threads(n_threads).map(work, slices))


@njit(cache=True, nogil=True, fastmath=_NAN_IS_ALLOWED, error_model="numpy")
def _normalised(x, eps, out):
    """Normalise over the channels of one position; returns 1/σ."""
    n_channels = len(x)
    mean = np.float32(0)
    for c in range(n_channels):
        mean += x[c]
    mean /= n_channels
    variance = np.float32(0)
    for c in range(n_channels):
        out[c] = x[c] - mean
        variance += out[c] * out[c]
    scale = np.float32(1 / math.sqrt(variance / n_channels + eps))
    for c in range(n_channels):
        out[c] *= scale
    return scale


@njit(cache=True, nogil=True)
def _gelu(value):
    return 0.5 * value * (1 + math.erf(value * 0.7071067811865476))


@njit(cache=True, nogil=True, fastmath=_NAN_IS_ALLOWED)
def _forward(x, gamma, beta, pool, eps, out, chosen):
    n_positions, n_channels = x.shape[1:]
    for row in range(len(x)):
        y = np.empty(n_channels, np.float32)
        greatest, least = np.empty(n_channels, np.float32), np.empty(n_channels, np.float32)
        greatest_at, least_at = np.empty(n_channels, np.int32), np.empty(n_channels, np.int32)
        for window in range(out.shape[1]):
            begin = max(0, window * pool - pool // 2)
            end = min(n_positions, window * pool - pool // 2 + pool)
            greatest[:], least[:] = -np.inf, np.inf
            greatest_at[:], least_at[:] = begin, begin  # NaN is neither: its gradient must not go astray
            for position in range(begin, end):
                _normalised(x[row, position], eps, y)
                place = np.int32(position)
                for c in range(n_channels):  # selections, not branches: this loop becomes vectors
                    value = y[c] * gamma[c] + beta[c]
                    above, below = value > greatest[c], value < least[c]
                    greatest[c] = value if above else greatest[c]
                    greatest_at[c] = place if above else greatest_at[c]
                    least[c] = value if below else least[c]
                    least_at[c] = place if below else least_at[c]
            for c in range(n_channels):
                falling = greatest[c] < 0 and _gelu(least[c]) > _gelu(greatest[c])
                out[row, window, c] = least[c] if falling else greatest[c]
                chosen[row, window, c] = least_at[c] if falling else greatest_at[c]


@njit(cache=True, nogil=True, fastmath=_NAN_IS_ALLOWED, error_model="numpy")
def _backward(grad, x, gamma, chosen, eps, grad_x, affine):
    """Gradient of x (zeros on entry), and each row's share in those of gamma and beta."""
    n_positions, n_channels = x.shape[1:]
    for row in range(len(x)):
        touched = np.zeros(n_positions, np.bool_)
        for window in range(grad.shape[1]):
            for c in range(n_channels):
                grad_x[row, chosen[row, window, c], c] += grad[row, window, c]
                touched[chosen[row, window, c]] = True
        hat = np.empty(n_channels, np.float32)
        for position in range(n_positions):
            if not touched[position]:
                continue
            scale = _normalised(x[row, position], eps, hat)
            delta = grad_x[row, position]
            mean = along = np.float32(0)
            for c in range(n_channels):
                affine[row, 0, c] += delta[c] * hat[c]
                affine[row, 1, c] += delta[c]
                delta[c] *= gamma[c]
                mean += delta[c]
                along += delta[c] * hat[c]
            mean /= n_channels
            along /= n_channels
            for c in range(n_channels):
                delta[c] = scale * (delta[c] - mean - hat[c] * along)
