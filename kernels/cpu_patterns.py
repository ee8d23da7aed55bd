"""What the CPU's torch operators share: arrays of tensors, the dropout mask, and threads.

Shape suffixes: N channels out, C channels in, T taps, K steps of a window (T · C).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numba import config as numba_config
from numpy.typing import NDArray
from torch import Tensor

from .cpu_training import Mask, Norm
from .dropout import threshold
from .vector_code import PANEL

Array = NDArray[Any]
T = TypeVar("T")


def unavailable() -> str:
    """Tell why compiled code cannot run here; empty where it can."""
    return "NUMBA_DISABLE_JIT is set" if getattr(numba_config, "DISABLE_JIT", 0) else ""


def takes(channels: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> bool:
    """Tell whether the kernels take layers of these channels: whole panels of vectors, single precision."""
    return all(n > 0 and n % PANEL == 0 for n in channels) and dtype in (torch.float32, torch.bfloat16)


def steps_of(weight_NCT: Tensor) -> Array:
    """Return a weight as the right matrix (K, N) of the product with windows."""
    return weight_NCT.detach().float().permute(2, 1, 0).reshape(-1, len(weight_NCT)).numpy()


def array_of(tensor: Tensor | None, empty: tuple[int, ...] = ()) -> Array:
    """Return a tensor's values in float32, contiguous; for no tensor an array of shape `empty`."""
    if tensor is None:
        return np.empty(empty, np.float32)
    return tensor.detach().float().contiguous().numpy()


def norm_of(norm_weight: Tensor, norm_bias: Tensor, eps: float) -> Norm:
    """Return a LayerNorm's affine part as the kernels take it."""
    return Norm(array_of(norm_weight), array_of(norm_bias), np.float32(eps))


def mask_of(seed: Tensor | None, dropout: float, first_row: int) -> Mask:
    """Return the dropout mask of patterns whose first row has that number."""
    if seed is None or not dropout:
        return Mask(np.uint64(0), np.uint64(0), np.float32(1), first_row)
    bits = np.int64(seed.item()).astype(np.uint64)
    return Mask(bits, np.uint64(threshold(dropout)), np.float32(1 / (1 - dropout)), first_row)


@cache
def _threads(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="hxrd-layers")


def over_patterns(work: Callable[[slice], T], n_patterns: int) -> list[T]:
    """Share patterns among as many threads as torch uses; returns what each found, in the patterns' order.

    Not by Numba's own threads: those change the number of OpenMP threads that torch uses from then on.
    Torch's threads go on spinning for a while when their work is done, on the very cores that are wanted
    here: ``OMP_WAIT_POLICY=PASSIVE``, which `hxrd train` sets, makes a step a third quicker.
    """
    n_threads = max(1, min(torch.get_num_threads(), n_patterns))
    bounds = np.linspace(0, n_patterns, n_threads + 1).astype(int).tolist()
    own, *others = (slice(first, stop) for first, stop in pairwise(bounds))
    waiting = [_threads(n_threads - 1).submit(work, part) for part in others]
    return [work(own), *(part.result() for part in waiting)]
