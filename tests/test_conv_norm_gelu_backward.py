"""Gradients of the fused convolution, and how it composes with torch's own machinery."""

import pytest
import torch
from conv_norm_gelu_cases import (
    BOUNDS,
    DEVICE,
    OBSTACLE,
    OTHERS,
    PAIRS,
    RESNET,
    Conv,
    double,
    fused,
    plain,
    relative_error,
    require_close,
    require_gradients,
    seed_of,
    with_gradients,
)

from hxrd.kernels import conv_norm_gelu as op

pytestmark = pytest.mark.skipif(bool(OBSTACLE), reason=f"the Triton kernel cannot run here: {OBSTACLE}")
STAGE_STRIDES = (4, 4, 5, 3)


def input_length(conv: Conv, n_points: int, pooled: bool) -> int:
    """Return the points at the input of a layer of the network, `paper` (pooled) or `released`."""
    length = (n_points - 12 - 1) // 7 + 1 if pooled else n_points - 12
    layer = int(conv.name[5])
    first = conv.name.endswith("block1")
    for stride in STAGE_STRIDES[: layer - 1 if first else layer]:
        length = (length - 1) // stride + 1
    return length


NETWORK = sorted(
    {
        (str(conv), input_length(conv, n_points, pooled))
        for conv in RESNET[1:] + PAIRS  # the stem has kernels of its own
        for n_points in (3041, 3042)
        for pooled in (True, False)
    }
)


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep cuDNN from rounding float32 convolutions of the reference to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_lengths_are_those_of_the_network() -> None:
    lengths = {(conv.name, input_length(conv, 3041, pooled)) for conv in PAIRS for pooled in (True, False)}
    assert {("layer1-block1", 433), ("layer2-block1", 109), ("layer4-block2", 2)} <= lengths
    assert {("layer1-block1", 3029), ("layer3-block2", 38), ("layer4-block2", 13)} <= lengths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "length"), NETWORK)
def test_network_layers_with_dropout(name: str, length: int, dtype: torch.dtype) -> None:
    conv = next(conv for conv in RESNET + PAIRS if conv.name == name)
    require_gradients(conv, 1 if length > 100 else 3, length, dtype, dropout=0.1)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("conv", [RESNET[0], *OTHERS], ids=str)
def test_other_shapes(conv: Conv, dtype: torch.dtype) -> None:
    require_gradients(conv, 2, 29, dtype, dropout=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("length", [1, 17, 1023])
@pytest.mark.parametrize("conv", [Conv("awkward", 32, 64, 7, 4, 3, residual=True), PAIRS[2]], ids=str)
def test_awkward_lengths(conv: Conv, length: int, batch: int, dtype: torch.dtype) -> None:
    require_gradients(conv, batch, length, dtype, dropout=0.05)


@pytest.mark.parametrize("conv", [RESNET[1], PAIRS[2]], ids=str)
def test_any_input_alone_may_need_its_gradient(conv: Conv) -> None:
    reference = with_gradients(double(conv.tensors(batch=2, length=29)))
    sum(result.square().sum() for result in plain(reference, conv)).backward()
    for number in range(len(reference)):
        tensors = conv.tensors(batch=2, length=29)
        tensors[number].requires_grad_()
        sum(result.square().sum() for result in fused(tensors, conv)).backward()
        assert relative_error(tensors[number].grad, reference[number].grad) <= 1e-5
        assert [tensor.grad is None for tensor in tensors].count(False) == 1


def test_one_result_of_the_pair_alone() -> None:
    conv = PAIRS[2]
    tensors = with_gradients(conv.tensors(batch=2, length=29))
    exact = with_gradients(double(tensors))
    plain(exact, conv)[1].square().sum().backward()
    fused(tensors, conv)[1].square().sum().backward()
    assert not tensors[1].grad.any()
    for tensor, truth in zip([tensors[0], *tensors[4:]], [exact[0], *exact[4:]], strict=True):
        assert relative_error(tensor.grad, truth.grad) <= 1e-5


@pytest.mark.parametrize("conv", [RESNET[1], PAIRS[2]], ids=str)
def test_added_atomically_or_in_order(conv: Conv) -> None:
    """Many shares of rows: both ways agree, and one way twice is the same to the last bit."""
    gradients = []
    for deterministic in (False, True, True):
        tensors = with_gradients(conv.tensors(batch=3, length=300))
        results = fused(tensors, conv, dropout=0.1, deterministic=deterministic)
        sum(result.square().sum() for result in results).backward()
        gradients.append([tensor.grad for tensor in tensors if tensor is not None])
    for atomic, ordered, again in zip(*gradients, strict=True):
        assert torch.equal(ordered, again)
        assert relative_error(atomic, ordered.cpu().double()) <= 1e-5


@pytest.mark.parametrize("conv", [RESNET[0], RESNET[1], PAIRS[2]], ids=str)
def test_scratch_memory_is_never_read_before_it_is_written(
    conv: Conv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that nobody has written comes filled with NaN."""
    empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs)))
    require_gradients(conv, 2, 37, torch.float32, dropout=0.1)


def test_gradients_of_no_patterns() -> None:
    for conv in (RESNET[1], PAIRS[2]):
        tensors = with_gradients(conv.tensors(batch=0, length=17))
        sum(result.sum() for result in fused(tensors, conv)).backward()
        for tensor in tensors:
            assert tensor.grad.shape == tensor.shape
            assert not tensor.grad.any()


def test_second_derivatives_are_refused() -> None:
    for conv in (RESNET[0], PAIRS[0]):
        tensors = conv.tensors(batch=1, length=15)
        tensors[1].requires_grad_()
        results = fused(tensors, conv)
        (slope,) = torch.autograd.grad(results[0].square().sum(), tensors[1], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()


@pytest.mark.parametrize("conv", [RESNET[0], RESNET[1]], ids=str)
def test_opcheck(conv: Conv) -> None:
    tensors = with_gradients(conv.tensors(batch=2, length=21))
    options = conv.stride, conv.padding, 1e-5, conv.gelu, 0.1, True
    torch.library.opcheck(op.conv_norm_gelu, (*tensors, seed_of(0.1), *options))
    slope = torch.randn(2, conv.length_out(21), conv.c_out, device=DEVICE)
    inputs = slope, *(None if tensor is None else tensor.detach() for tensor in tensors), seed_of(0.1)
    for needed in ((True, True), (False, True)):
        torch.library.opcheck(op.conv_norm_gelu_backward, (*inputs, *options, *needed))


def test_opcheck_of_the_pair() -> None:
    conv = PAIRS[2]
    tensors = with_gradients(conv.tensors(batch=2, length=21))
    options = conv.stride, conv.padding, 1e-5, 0.1, True
    torch.library.opcheck(op.conv_norm_pair, (*tensors, seed_of(0.1), *options))
    slopes = [torch.randn(2, conv.length_out(21), conv.c_out, device=DEVICE) for _ in range(2)]
    inputs = *slopes, *(tensor.detach() for tensor in tensors), seed_of(0.1)
    for needed in ((True, True, True), (False, False, True)):
        torch.library.opcheck(op.conv_norm_pair_backward, (*inputs, *options, *needed))


@pytest.mark.parametrize("conv", [RESNET[1], PAIRS[2]], ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_sees_one_graph(conv: Conv, dynamic: bool) -> None:
    tensors = with_gradients(conv.tensors(batch=2, length=17))
    exact = with_gradients(double(tensors))
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    expected, found = plain(exact, conv, 0.1), compiled(tensors, conv, 0.1)
    require_close(found, expected, 1e-5)
    sum(result.square().sum() for result in expected).backward()
    sum(result.square().sum() for result in found).backward()
    for tensor, truth in zip(tensors, exact, strict=True):
        assert relative_error(tensor.grad, truth.grad) <= 1e-5
