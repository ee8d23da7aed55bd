"""The fused stages of the ResNet one by one: what they must move and compute, and a call that runs each.

Shape suffixes: B batch, L positions along the pattern, C channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hxrd.kernels import dispatch
from hxrd.models.layout import POOL, STAGES, STEM_CHANNELS, STEM_KERNEL
from hxrd.models.resnet1d import ResNet1D

Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class Stage:
    """One call of the network's forward pass.

    Parameters
    ----------
    name : str
    values : int
        Numbers that are read or written at least: each input, weight and output once.
    operations : int
        Multiplications and additions of the convolutions.
    call : callable
        Runs it on tensors of its own.
    """

    name: str
    values: int
    operations: int
    call: Callable[[], object]


def length_out(length: int, taps: int, stride: int, padding: int) -> int:
    """Return the points that a convolution or a pool leaves."""
    return (length + 2 * padding - taps) // stride + 1


def stages(model: ResNet1D, batch: int, n_points: int, dtype: torch.dtype, backend: str) -> list[Stage]:
    """Return the stages of a model, which has this dtype, on patterns of `n_points`.

    Raises
    ------
    ValueError, RuntimeError
        From a call: the backend cannot run here.
    """
    weight = model.classifier.weight
    found = [_stem(model, batch, n_points, dtype, backend)]
    length = length_out(n_points, STEM_KERNEL, 1, 0)
    if model.resnet.pool:
        length = length_out(length, POOL, POOL, POOL // 2)
    width = STEM_CHANNELS
    for number, (_, kernel, stride) in enumerate(STAGES, start=1):
        for place, block in enumerate(getattr(model.resnet, f"layer{number}")):
            step = stride if place == 0 else 1
            name = f"layer{number}.{place}"
            x_BLC = torch.rand(batch, length, width, dtype=dtype, device=weight.device)
            found.append(_first_half(block, x_BLC, kernel, step, f"{name} conv1, shortcut", backend))
            length, width = length_out(length, kernel, step, kernel // 2), block.conv1.conv.out_channels
            found.append(_second_half(block, x_BLC.new_zeros(0), (batch, length), f"{name} conv2", backend))
    y_BLC = torch.rand(batch, length, width, dtype=dtype, device=weight.device)
    head_values = y_BLC.numel() + weight.numel() + batch * len(weight)
    head = Stage("head", head_values, 2 * batch * weight.numel(), lambda: model.classifier(y_BLC.amax(dim=1)))
    return [*found, head]


def _stem(model: ResNet1D, batch: int, n_points: int, dtype: torch.dtype, backend: str) -> Stage:
    weight, norm = model.resnet.conv.conv.weight, model.resnet.conv.layer_norm
    x_BL = torch.rand(batch, n_points, dtype=dtype, device=weight.device)
    pool = model.resnet.pool
    length = length_out(n_points, STEM_KERNEL, 1, 0)
    windows = length_out(length, pool, pool, pool // 2) if pool else length

    def call() -> Tensor:
        return dispatch.stem_norm_pool(x_BL, weight, norm.weight, norm.bias, pool=pool, backend=backend)

    values = x_BL.numel() + weight.numel() + batch * windows * STEM_CHANNELS
    name = f"stem, pool {pool}" if pool else "stem"
    return Stage(name, values, 2 * batch * length * weight.numel(), call)


def _first_half(block: nn.Module, x_BLC: Tensor, kernel: int, stride: int, name: str, backend: str) -> Stage:
    first, shortcut = block.conv1, block.downsample
    batch, length, _ = x_BLC.shape
    rows = batch * length_out(length, kernel, stride, kernel // 2)
    n_weights = first.conv.weight.numel() + shortcut.conv.weight.numel()

    def call() -> tuple[Tensor, Tensor]:
        parameters = [
            parameter
            for part in (first, shortcut)
            for parameter in (part.conv.weight, part.layer_norm.weight, part.layer_norm.bias)
        ]
        return dispatch.conv_norm_pair(
            x_BLC, *parameters, stride=stride, padding=kernel // 2, backend=backend
        )

    values = x_BLC.numel() + n_weights + 2 * rows * first.conv.out_channels
    return Stage(name, values, 2 * rows * n_weights, call)


def _second_half(block: nn.Module, like: Tensor, shape: tuple[int, int], name: str, backend: str) -> Stage:
    second = block.conv2
    weight, norm = second.conv.weight, second.layer_norm
    x_BLC = torch.rand(*shape, weight.shape[1], dtype=like.dtype, device=like.device)
    residual = torch.rand_like(x_BLC)

    def call() -> Tensor:
        return dispatch.conv_norm_gelu(
            x_BLC, weight, norm.weight, norm.bias, residual, padding=weight.shape[2] // 2, backend=backend
        )

    return Stage(name, 3 * x_BLC.numel() + weight.numel(), 2 * math.prod(shape) * weight.numel(), call)


def copy_ceiling(device: torch.device, n_bytes: int, seconds_of: Timer) -> float:
    """Return bytes/s, read and written together, of a large copy on the device."""
    source = torch.rand(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source))


def product_ceiling(device: torch.device, side: int, dtype: torch.dtype, seconds_of: Timer) -> float:
    """Return operations/s of a large matrix product of random numbers."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: left @ right)
