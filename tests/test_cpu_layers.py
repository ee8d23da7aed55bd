"""The network's layers compiled for the CPU: values and every gradient against float64, dropout included."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from hxrd.kernels import cpu_layers, cpu_stem, dispatch
from hxrd.kernels.dropout import keep_mask
from hxrd.models.resnet1d import ResNet1D

BOUND = 1e-5


@dataclass(frozen=True)
class Layer:
    name: str
    c_in: int
    c_out: int
    taps: int
    stride: int = 1
    padding: int = 0
    residual: bool = False
    gelu: bool = True

    def __str__(self) -> str:
        return self.name


LAYERS = [
    Layer("layer1-conv1", 32, 32, 5, 4, 2),
    Layer("layer1-conv2", 32, 32, 5, 1, 2, residual=True),
    Layer("layer1-shortcut", 32, 32, 1, 4, gelu=False),
    Layer("layer2-conv1", 32, 64, 7, 4, 3),
    Layer("layer3-conv1", 64, 64, 17, 5, 8),
    Layer("layer3-shortcut", 64, 64, 1, 5, gelu=False),
    Layer("layer4-conv2", 64, 64, 13, 1, 6, residual=True),
    Layer("stride-beyond-taps", 32, 32, 2, 3, 1),
    Layer("padding-beyond-taps", 32, 32, 3, 2, 5, residual=True, gelu=False),
    Layer("wide", 128, 96, 4, 2, 1),
]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.detach().double() - expected).norm() / expected.norm()).item()


def both(function, tensors: list[Tensor | None], **options) -> list[float]:
    """Relative errors of the output and of every gradient, against the reference in float64."""
    tensors = [None if t is None else t.requires_grad_() for t in tensors]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    found = function(*tensors, **options, backend="compiled")
    expected = function(*exact, **options, backend="reference")
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found.backward(slope.float())
    expected.backward(slope)
    errors = [relative_error(found, expected)]
    for one, other in zip(tensors, exact, strict=True):
        if one is not None and other.grad.any():
            errors.append(relative_error(one.grad, other.grad))
    return errors


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (7, 17), (2, 109), (1, 433), (1, 1023)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layer(layer: Layer, dropout: float, batch: int, length: int) -> None:
    if length + 2 * layer.padding < layer.taps:
        length += layer.taps
    torch.manual_seed(5)
    length_out = (length + 2 * layer.padding - layer.taps) // layer.stride + 1
    tensors = [
        torch.randn(batch, length, layer.c_in),
        torch.randn(layer.c_out, layer.c_in, layer.taps) / (layer.c_in * layer.taps) ** 0.5,
        1 + 0.2 * torch.randn(layer.c_out),
        0.2 * torch.randn(layer.c_out),
        torch.randn(batch, length_out, layer.c_out) if layer.residual else None,
    ]
    options = {"stride": layer.stride, "padding": layer.padding, "gelu": layer.gelu, "dropout": dropout}
    errors = both(dispatch.conv_norm_gelu, tensors, seed=torch.tensor([-987654321]), **options)
    assert max(errors) <= BOUND


@pytest.mark.parametrize(("batch", "length"), [(1, 13), (1, 14), (7, 29), (2, 1023), (1, 3041), (1, 3042)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("pool", [None, 7, 2])
def test_stem(pool: int | None, dropout: float, batch: int, length: int) -> None:
    torch.manual_seed(6)
    tensors = [
        torch.randn(batch, length),
        torch.randn(32, 1, 13) / 13**0.5,
        1 + 0.4 * torch.randn(32),
        0.2 * torch.randn(32),
    ]
    errors = both(
        dispatch.stem_norm_pool, tensors, pool=pool, dropout=dropout, seed=torch.tensor([2**62 + 11])
    )
    assert max(errors) <= BOUND


def test_a_gamma_that_is_negative_pools_right() -> None:
    torch.manual_seed(8)
    tensors = [torch.randn(2, 200), torch.randn(32, 1, 13), -torch.rand(32) - 0.1, torch.zeros(32)]
    assert max(both(dispatch.stem_norm_pool, tensors, pool=7)) <= BOUND


def test_threads_share_patterns_without_a_trace() -> None:
    torch.manual_seed(9)
    x_BL, seed = torch.randn(5, 400), torch.tensor([17])
    model = ResNet1D(14, "paper", backend="compiled")
    found = []
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            model.zero_grad()
            features = dispatch.stem_norm_pool(
                x_BL, *model.resnet.conv.tensors, pool=7, dropout=0.3, seed=seed, backend="compiled"
            )
            features.square().sum().backward()
            found.append((features.detach(), model.resnet.conv.conv.weight.grad.clone()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert relative_error(found[1][1], found[0][1].double()) <= 1e-6


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_training_steps_are_those_of_the_reference(compiler: str) -> None:
    losses = []
    for backend in ("compiled", "reference"):
        torch.manual_seed(11)
        model = ResNet1D(14, "paper", dropout=0.1, backend=backend)
        if backend == "compiled":
            model = torch.compile(model, backend=compiler)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        x_B1L, labels = torch.rand(4, 1, 300) ** 3, torch.arange(4)
        steps = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x_B1L), labels)
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        losses.append(steps)
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert np.allclose(*losses, rtol=2e-3, atol=2e-4)


def test_mask_loses_its_share_and_differs_by_seed() -> None:
    first, second = (keep_mask(torch.tensor([seed]), (50, 40, 64), 0.1) for seed in (1, 2))
    for mask in (first, second):
        assert abs(mask.float().mean().item() - 0.9) < 0.004  # five standard deviations
    assert abs((first == second).float().mean().item() - 0.82) < 0.006


@pytest.mark.parametrize("needs_input", [False, True])
def test_opcheck(needs_input: bool) -> None:
    torch.manual_seed(12)
    weights = [torch.randn(32, 32, 3), torch.ones(32), torch.zeros(32)]
    x_BLC = torch.randn(2, 9, 32, requires_grad=needs_input)
    tensors = [t.requires_grad_() for t in weights]
    seed = torch.tensor([5])
    torch.library.opcheck(cpu_layers._conv_norm_gelu, (x_BLC, *tensors, None, seed, 2, 1, 1e-5, True, 0.1))
    stem = [torch.randn(32, 1, 5).requires_grad_(), *tensors[1:]]
    x_BL = torch.randn(2, 30, requires_grad=needs_input)
    torch.library.opcheck(cpu_stem._stem_norm_pool, (x_BL, *stem, seed, 7, 1e-5, 0.1))


def test_stays_in_float32_within_autocast() -> None:
    model = ResNet1D(14, "paper", backend="compiled").eval()
    x_B1L = torch.rand(2, 1, 300)
    plain = model(x_B1L)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.resnet(x_B1L[:, 0])
    assert features.dtype == torch.float32
    assert torch.equal(model.classifier(features), plain)


def test_a_network_in_bfloat16_stays_in_it() -> None:
    model = ResNet1D(14, "paper", backend="compiled").eval()
    x_B1L = torch.rand(2, 1, 300)
    expected = model(x_B1L).detach()
    found = model.bfloat16()(x_B1L.bfloat16())
    assert found.dtype == torch.bfloat16
    assert relative_error(found, expected.double()) <= 2e-2


def test_refuses_what_it_cannot_compute() -> None:
    norm = torch.ones(8), torch.zeros(8)
    with pytest.raises(ValueError, match="multiples of"):
        dispatch.conv_norm_gelu(torch.ones(1, 9, 8), torch.ones(8, 8, 3), *norm, backend="compiled")
    wide = torch.ones(32), torch.zeros(32)
    with pytest.raises(ValueError, match="do not fit"):
        dispatch.stem_norm_pool(torch.ones(1, 9), torch.ones(32, 1, 13), *wide, pool=7, backend="compiled")
    with pytest.raises(ValueError, match="seed"):
        dispatch.conv_norm_gelu(torch.ones(1, 9, 8), torch.ones(8, 8, 3), *norm, dropout=0.5)
    out = dispatch.conv_norm_gelu(torch.ones(1, 9, 8), torch.ones(8, 8, 3), *norm)  # auto: the reference
    assert out.shape == (1, 7, 8)
