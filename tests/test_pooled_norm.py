"""The fused stem (LayerNorm, GELU, max pool) against its plain reference: values and every gradient."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hxrd.kernels import pooled_norm as op
from hxrd.models import resnet1d
from hxrd.models.resnet1d import POOL, ResNet1D


@dataclass(frozen=True)
class Shape:
    batch: int
    length: int
    channels: int
    pool: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}x{self.channels}-pool{self.pool}"

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """Input, gamma of both signs, and beta, so that arguments of GELU lie on both sides of its dip."""
        generator = torch.Generator().manual_seed(20775)
        x_BLC = torch.randn(self.batch, self.length, self.channels, generator=generator)
        gamma_C = torch.linspace(-2, 2, self.channels)
        beta_C = torch.linspace(-3, 1, self.channels).roll(self.channels // 3)
        return x_BLC.to(dtype), gamma_C.to(dtype), beta_C.to(dtype)


STEM = Shape(3, 3029, 32, POOL)
SHAPES = [
    STEM,
    *[Shape(2, length, 32, POOL) for length in (1, 3, 4, 7, 8, 10, 11, 73)],
    *[Shape(2, 41, 32, pool) for pool in (1, 2, 3, 4, 16, 50)],
    *[Shape(1, 29, channels, POOL) for channels in (2, 3, 5, 33)],
    Shape(5, 1, 4, 2),
]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def with_gradients(function, tensors, pool: int) -> list[Tensor]:
    """The value, and the gradients of x, gamma and beta for one weighted sum of the outputs."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = function(*leaves, pool)
    weights = torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)
    (value.double() * weights).sum().backward()
    return [value.detach().double(), *(leaf.grad.double() for leaf in leaves)]


def assert_like_reference(tensors, pool: int, bound: float) -> None:
    expected = with_gradients(op.reference, [tensor.double() for tensor in tensors], pool)
    for found, wanted in zip(with_gradients(op.pooled_norm, tensors, pool), expected, strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= bound * wanted.abs().max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_reference(shape: Shape, threads: int) -> None:
    assert_like_reference(shape.tensors(), shape.pool, 1e-4 if shape.channels == 2 else 2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_computed_in_float32_and_keep_their_gradients_dtype(dtype: torch.dtype) -> None:
    shape = Shape(2, 73, 32, POOL)
    tensors = shape.tensors(dtype)
    assert_like_reference(tensors, shape.pool, 1e-2 if dtype.itemsize == 2 else 2e-6)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = op.pooled_norm(*leaves, shape.pool)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert [leaf.grad.dtype for leaf in leaves] == [dtype] * 3


def test_where_gelu_falls_the_least_argument_is_taken() -> None:
    """Below its dip at −0.75 GELU falls, so a window's greatest GELU may stand at its least argument."""
    shape = Shape(2, 700, 32, POOL)
    x_BLC, gamma_C, beta_C = shape.tensors()
    beta_C = beta_C - 1
    y_BLC = torch.nn.functional.layer_norm(x_BLC, (32,), gamma_C, beta_C)
    windows = torch.nn.functional.pad(y_BLC, (0, 0, 3, 4)).unfold(1, POOL, POOL)[:, 1:-1]
    least, greatest = windows.amin(-1), windows.amax(-1)
    gelu = torch.nn.functional.gelu
    falling = (greatest < 0) & (gelu(least) > gelu(greatest))
    assert 0.2 < float(falling.float().mean()) < 0.8  # both branches are taken often
    found = op.pooled_norm(x_BLC, gamma_C, beta_C, POOL)[:, 1 : windows.shape[1] + 1]
    assert torch.allclose(found[falling], gelu(least[falling]), atol=1e-5)
    assert torch.allclose(found[~falling], gelu(greatest[~falling]), atol=1e-5)
    assert_like_reference((x_BLC, gamma_C, beta_C), POOL, 2e-6)


def test_input_need_not_be_contiguous() -> None:
    x_BLC, gamma_C, beta_C = STEM.tensors()
    transposed = x_BLC.transpose(1, 2).contiguous().transpose(1, 2)
    assert not transposed.is_contiguous()
    found = op.pooled_norm(transposed, gamma_C, beta_C, POOL)
    assert torch.equal(found, op.pooled_norm(x_BLC, gamma_C, beta_C, POOL))


def test_the_number_of_threads_changes_nothing() -> None:
    tensors, before = Shape(5, 300, 32, POOL).tensors(), torch.get_num_threads()
    results = []
    for n_threads in (1, 2, 3, 8):
        torch.set_num_threads(n_threads)
        results.append(with_gradients(op.pooled_norm, tensors, POOL))
        assert torch.get_num_threads() == n_threads
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(bad: float, threads: int) -> None:
    shape = Shape(3, 70, 32, POOL)
    x_BLC, gamma_C, beta_C = shape.tensors()
    x_BLC[1] = bad
    value, grad_x, *_ = with_gradients(op.pooled_norm, (x_BLC, gamma_C, beta_C), POOL)
    assert torch.isnan(value[1]).all()
    assert torch.isfinite(value[[0, 2]]).all()
    assert torch.isfinite(grad_x[[0, 2]]).all()
    alone = op.pooled_norm(x_BLC[[0, 2]], gamma_C, beta_C, POOL)
    assert torch.equal(value[[0, 2]], alone.double())


# In the network -----------------------------------------------------------------------------------


def network(variant: str = "paper") -> ResNet1D:
    torch.manual_seed(1)
    model = ResNet1D(12, variant, dropout=0.0)
    with torch.no_grad():
        norm = model.resnet.conv.layer_norm
        norm.weight.copy_(torch.linspace(-2, 2, 32))
        norm.bias.copy_(torch.linspace(-2, 1, 32))
    return model


def patterns() -> Tensor:
    return torch.rand(4, 1, 501, generator=torch.Generator().manual_seed(2))


def logits_and_gradients(model: ResNet1D) -> list[Tensor]:
    model.zero_grad()
    logits = model(patterns())
    logits.square().sum().backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def test_the_network_is_the_same_with_and_without_fusion(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    fused = logits_and_gradients(model)
    calls = []

    def unfused(*arguments):
        calls.append(arguments)
        return op.reference(*arguments)

    monkeypatch.setattr(resnet1d.pooled_norm, "pooled_norm", unfused)
    plain = logits_and_gradients(model)
    assert len(calls) == 1
    for one, other in zip(fused, plain, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_the_release_without_pool_never_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet1d.pooled_norm, "pooled_norm", None)
    monkeypatch.setattr(resnet1d.pooled_norm, "reference", None)
    assert network("released")(patterns()).shape == (4, 12)


def test_inside_torch_compile_the_reference_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network().eval()
    with torch.no_grad():
        eager = model(patterns())

        def fail(*arguments):
            raise AssertionError("the fused stem was called while compiling")

        monkeypatch.setattr(resnet1d.pooled_norm, "pooled_norm", fail)
        # only the stem: to trace the rest too takes long
        monkeypatch.setattr(model.resnet, "_stem", torch.compile(model.resnet._stem, backend="eager"))
        compiled = model(patterns())
    assert torch.allclose(compiled, eager, atol=1e-5)


def test_the_stem_works_in_float32_under_autocast() -> None:
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        half = model.resnet._stem(patterns().transpose(1, 2))
    assert half.dtype == torch.float32
    assert torch.equal(half, model.resnet._stem(patterns().transpose(1, 2)))
