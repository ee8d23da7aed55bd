"""The fused convolution's forward pass, interpreted on the CPU (TRITON_INTERPRET=1) or run on a GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compiled_kernels import run_python
from conv_norm_gelu_cases import (
    BOUNDS,
    DEVICE,
    OBSTACLE,
    OTHERS,
    PAIRS,
    RESNET,
    SEED,
    Conv,
    double,
    fused,
    plain,
    relative_error,
    require_close,
)

from hxrd.kernels import conv_norm_gelu as op
from hxrd.kernels import conv_norm_gelu_run as run
from hxrd.kernels import dropout as masks
from hxrd.kernels.conv_norm_gelu_launch import NO_DROPOUT, Geometry, Norm

needs_kernel = pytest.mark.skipif(bool(OBSTACLE), reason=f"the Triton kernel cannot run here: {OBSTACLE}")
AWKWARD = [
    (batch, length, conv)
    for batch in (1, 7)
    for length in (1, 17, 1023)
    for conv in (Conv("awkward", 32, 64, 7, 4, 3, residual=True), PAIRS[2])
]


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep cuDNN from rounding float32 convolutions of the reference to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@needs_kernel
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("conv", RESNET + PAIRS + OTHERS, ids=str)
def test_kernel_agrees_with_float64(conv: Conv, dtype: torch.dtype) -> None:
    tensors = conv.tensors(batch=3, length=61, dtype=dtype)
    found = fused(tensors, conv)
    assert {result.dtype for result in found} == {dtype}
    require_close(found, plain(double(tensors), conv), BOUNDS[dtype])


@needs_kernel
@pytest.mark.parametrize(("batch", "length", "conv"), AWKWARD)
def test_awkward_lengths(batch: int, length: int, conv: Conv) -> None:
    tensors = conv.tensors(batch, length, torch.float16)
    require_close(fused(tensors, conv), plain(double(tensors), conv), BOUNDS[torch.float16])


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("conv", [RESNET[0], PAIRS[2]], ids=str)
def test_reference_in_low_precision(conv: Conv, dtype: torch.dtype) -> None:
    tensors = conv.tensors(batch=3, length=61, dtype=dtype)
    found = plain(tensors, conv)
    assert {result.dtype for result in found} == {dtype}
    require_close(found, plain(double(tensors), conv), BOUNDS[dtype])


def test_reference_is_the_formula() -> None:
    """One output row by hand: sums over taps and channels, dropout, mean, variance, erf."""
    conv = Conv("by hand", 2, 4, 3, 2, 1, residual=True)
    tensors = double(conv.tensors(batch=1, length=5))
    x_BLC, weight, norm_weight, norm_bias, residual = tensors
    window = torch.cat([torch.zeros(1, 2, dtype=torch.float64), x_BLC[0, :2]])  # the padding and two points
    row = torch.stack([(window.T * weight[channel]).sum() for channel in range(4)])
    kept = masks.keep_mask(torch.tensor([SEED]), (1, 3, 4), 0.5)[0, 0]
    assert 0 < kept.sum() < 4
    row = row * kept / 0.5
    row = (row - row.mean()) / ((row - row.mean()).square().mean() + 1e-5).sqrt()
    row = row * norm_weight + norm_bias + residual[0, 0]
    row = row * 0.5 * (1 + torch.erf(row / 2**0.5))
    (found,) = plain(tensors, conv, dropout=0.5)
    assert torch.allclose(found[0, 0], row, rtol=0, atol=1e-12)


def test_reference_of_the_pair_is_two_convolutions() -> None:
    conv = PAIRS[2]
    x_BLC, weight, norm_weight, norm_bias, *beside = double(conv.tensors(batch=2, length=29))
    main, shortcut = plain([x_BLC, weight, norm_weight, norm_bias, *beside], conv)
    (alone,) = plain([x_BLC, weight, norm_weight, norm_bias, None], replace(conv, shortcut=False))
    projected = torch.einsum("blc,nc->bln", x_BLC[:, :: conv.stride], beside[0][..., 0])
    expected = torch.nn.functional.layer_norm(projected, (conv.c_out,), *beside[1:])
    assert torch.equal(main, alone)
    assert torch.allclose(shortcut, expected, rtol=0, atol=1e-12)


@needs_kernel
@pytest.mark.parametrize("conv", [RESNET[0], RESNET[1], PAIRS[2]], ids=str)
@pytest.mark.parametrize("dropout", [0.05, 0.7])
def test_dropout_loses_what_the_mask_says(conv: Conv, dropout: float) -> None:
    tensors = conv.tensors(batch=3, length=61)
    require_close(fused(tensors, conv, dropout), plain(double(tensors), conv, dropout), 1e-5)


@needs_kernel
def test_rate_of_the_dropout() -> None:
    """LayerNorm of ones and zeros tells which elements the kernel kept."""
    conv = Conv("all ones", 16, 16, 1, gelu=False)
    x_BLC, weight = torch.full((1, 4000, 16), 1 / 16), torch.ones(16, 16, 1)
    tensors = [x_BLC, weight, torch.ones(16), torch.zeros(16), None]
    (found,) = fused([None if t is None else t.to(DEVICE) for t in tensors], conv, dropout=0.1)
    lost = found < 0
    assert lost.double().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / 64000) ** 0.5)
    assert lost.double().mean(dim=(0, 1)).std() < 4 * (0.09 / 4000) ** 0.5  # of each channel alike


def amid_nan(tensor: torch.Tensor, margin: int) -> torch.Tensor:
    """Copy the tensor into the middle of NaN: before, after, and between its slices along axis −2."""
    shape = list(tensor.shape)
    axis = max(tensor.ndim - 2, 0)
    shape[axis] += 2 * margin
    surrounded = torch.full(shape, torch.nan, device=tensor.device)
    return surrounded.narrow(axis, margin, tensor.shape[axis]).copy_(tensor)


@needs_kernel
@pytest.mark.parametrize("conv", [RESNET[0], RESNET[2], PAIRS[4], OTHERS[1], OTHERS[3]], ids=str)
def test_no_read_and_no_write_out_of_bounds(conv: Conv) -> None:
    tensors = conv.tensors(batch=3, length=23)
    x_BLC, weight, norm_weight, norm_bias, *rest = tensors
    expected = plain(double(tensors), conv)
    poisoned = amid_nan(x_BLC, margin=20)  # more than any window reaches
    assert poisoned.data_ptr() != poisoned.contiguous().data_ptr()
    frames = [torch.full((5, *truth.shape[1:]), torch.nan, device=DEVICE) for truth in expected]
    outputs = [frame[1:4] for frame in frames]
    norm = Norm(amid_nan(norm_weight, 256), amid_nan(norm_bias, 256), 1e-5)
    shortcut = (rest[0], Norm(amid_nan(rest[1], 256), amid_nan(rest[2], 256), 1e-5)) if rest[1:] else None
    residual = None if conv.shortcut else rest[0]
    if residual is not None:
        surrounded = torch.full_like(frames[0], torch.nan)
        surrounded[1:4] = residual
        residual = surrounded[1:4]
    sizes = (3, 23, expected[0].shape[1], conv.c_in, conv.c_out, conv.taps, conv.stride, conv.padding)
    both = outputs[0], outputs[1] if conv.shortcut else None
    run.forward(
        poisoned, weight, norm, residual, shortcut, NO_DROPOUT, both, Geometry(*sizes), conv.gelu, True
    )
    require_close(tuple(outputs), expected, 1e-5)
    for frame in frames:
        assert frame[0].isnan().all()
        assert frame[4].isnan().all()


@needs_kernel
@pytest.mark.skipif(DEVICE.type == "cuda", reason="the sparse file lies in the memory of the CPU")
@pytest.mark.parametrize("axis", ["batch", "length"])
def test_addresses_beyond_32_bits(tmp_path: Path, axis: str) -> None:
    conv = Conv("far apart", 16, 16, 1)
    batch, length = (3, 1) if axis == "batch" else (1, 3)
    tensors = conv.tensors(batch, length, torch.float16)
    # the third slice lies 2**31 elements on, where a 32-bit offset wraps to the (empty) start of the file
    sparse = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**32 + 64, dtype=torch.float16)
    x_BLC = sparse.as_strided(tensors[0].shape, (2**30, 2**30, 1), storage_offset=2**31)
    tensors[0] = x_BLC.copy_(tensors[0])
    expected = plain(double(tensors), conv)
    tensors[1].requires_grad_()
    found = fused(tensors, conv)
    require_close(found, expected, BOUNDS[torch.float16])
    found[0].sum().backward()  # reads the input again
    exact = double(tensors)
    exact[1].requires_grad_()
    plain(exact, conv)[0].sum().backward()
    assert relative_error(tensors[1].grad, exact[1].grad) <= BOUNDS[torch.float16]


@needs_kernel
def test_channels_first_memory_and_no_patterns() -> None:
    for conv in (RESNET[1], PAIRS[0]):
        tensors = conv.tensors(batch=2, length=17)
        expected = plain(double(tensors), conv)
        tensors[0] = tensors[0].transpose(1, 2).contiguous().transpose(1, 2)
        require_close(fused(tensors, conv), expected, 1e-5)
        for nothing in fused(conv.tensors(batch=0, length=17), conv):
            assert nothing.shape == (0, conv.length_out(17), 32)


@needs_kernel
@pytest.mark.parametrize(
    ("conv", "length", "dtype", "message"),
    [
        (Conv("odd width", 3, 32, 3), 17, torch.float32, "powers of two"),
        (Conv("too wide", 16, 512, 3), 17, torch.float32, "up to 256"),
        (Conv("double", 16, 16, 3), 17, torch.float64, "float64"),
        (Conv("no stride", 16, 16, 3, 0), 17, torch.float32, "stride 0"),
        (Conv("pair that does not fit", 16, 16, 3, 1, 0, shortcut=True), 17, torch.float32, "another length"),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_compute(conv: Conv, length: int, dtype: torch.dtype, message: str) -> None:
    tensors = replace(conv, stride=1).tensors(2, length, dtype)
    with pytest.raises(ValueError, match=message):
        fused(tensors, conv)


@needs_kernel
def test_refuses_tensors_that_do_not_fit() -> None:
    conv = RESNET[1]
    x_BLC, weight, norm_weight, norm_bias, residual = conv.tensors(batch=2, length=17)
    with pytest.raises(ValueError, match="residual must be"):
        fused([x_BLC, weight, norm_weight, norm_bias, residual[:, 1:]], conv)
    with pytest.raises(ValueError, match="norm_bias must be"):
        fused([x_BLC, weight, norm_weight, norm_bias[1:], residual], conv)
    with pytest.raises(ValueError, match="dtypes must be one"):
        fused([x_BLC, weight.half(), norm_weight, norm_bias, residual], conv)
    with pytest.raises(ValueError, match="do not fit"):
        fused([x_BLC[..., 1:], weight, norm_weight, norm_bias, residual], conv)
    with pytest.raises(ValueError, match="dropout must lie"):
        fused([x_BLC, weight, norm_weight, norm_bias, residual], conv, dropout=1.0)
    with pytest.raises(ValueError, match="needs a seed"):
        op.conv_norm_gelu(x_BLC, weight, norm_weight, norm_bias, residual, None, 1, 2, 1e-5, True, 0.1, False)


def test_works_without_triton() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch
from hxrd.kernels import conv_norm_gelu as op
tensors = torch.ones(2, 9, 1), torch.ones(4, 1, 3), torch.ones(4), torch.zeros(4)
print(tuple(op.reference(*tensors).shape), op.unavailable(torch.device("cuda")))
try:
    op.conv_norm_gelu(*tensors, None, None, 1, 0, 1e-5, True, 0.0, False)
except ValueError as error:
    print(error)
"""
    first, second = run_python("-c", script).splitlines()
    assert first.startswith("(2, 7, 4) triton cannot be imported")
    assert second.startswith("conv_norm_gelu: triton cannot be imported")
