"""The fused convolution, interpreted on the CPU (TRITON_INTERPRET=1) or run on a GPU."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from hxrd.kernels import conv_norm_gelu as op
from hxrd.kernels import dispatch

BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OBSTACLE = op.unavailable(DEVICE)
needs_kernel = pytest.mark.skipif(bool(OBSTACLE), reason=f"the Triton kernel cannot run here: {OBSTACLE}")


@dataclass(frozen=True)
class Conv:
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

    @property
    def options(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "eps": 1e-5, "gelu": self.gelu}

    def tensors(
        self, batch: int, length: int, dtype: torch.dtype = torch.float32
    ) -> list[torch.Tensor | None]:
        """Input, weight, both norm parameters and residual, with activations of order one."""
        generator = torch.Generator().manual_seed(20775)
        length_out = op.output_length(length, self.taps, self.stride, self.padding)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        x_BLC = normal(batch, length, self.c_in).to(dtype)
        weight = (normal(self.c_out, self.c_in, self.taps) / (self.c_in * self.taps) ** 0.5).to(dtype)
        norm_weight, norm_bias = 1 + 0.2 * normal(self.c_out), 0.2 * normal(self.c_out)
        residual = normal(batch, length_out, self.c_out).to(dtype) if self.residual else None
        return [on(DEVICE, tensor) for tensor in (x_BLC, weight, norm_weight, norm_bias, residual)]


RESNET = [
    Conv("stem", 1, 32, 13),
    Conv("layer1-conv1", 32, 32, 5, 4, 2),
    Conv("layer1-conv2", 32, 32, 5, 1, 2, residual=True),
    Conv("layer1-shortcut", 32, 32, 1, 4, gelu=False),
    Conv("layer2-conv1", 32, 64, 7, 4, 3),
    Conv("layer2-conv2", 64, 64, 7, 1, 3, residual=True),
    Conv("layer2-shortcut", 32, 64, 1, 4, gelu=False),
    Conv("layer3-conv1", 64, 64, 17, 5, 8),
    Conv("layer3-conv2", 64, 64, 17, 1, 8, residual=True),
    Conv("layer3-shortcut", 64, 64, 1, 5, gelu=False),
    Conv("layer4-conv1", 64, 64, 13, 3, 6),
    Conv("layer4-conv2", 64, 64, 13, 1, 6, residual=True),
    Conv("layer4-shortcut", 64, 64, 1, 1, gelu=False),
]
OTHERS = [
    Conv("even-taps", 16, 16, 4, 2, 1, residual=True, gelu=False),
    Conv("few-channels", 4, 2, 3, 1, 1, residual=True),
    Conv("one-channel-out", 16, 1, 3, 1, 1, residual=True),
    Conv("widest", 256, 256, 3, 2, 5, residual=True),
    Conv("padding-beyond-taps", 2, 8, 2, 3, 7),
]
AWKWARD = [
    (batch, length, Conv("awkward", 32, 64, 7, 4, 3, residual=True))
    for batch in (1, 7)
    for length in (1, 17, 1023)
]


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep cuDNN from rounding float32 convolutions of the reference to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on(device: torch.device, tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(device)


def double(tensors: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [None if tensor is None else tensor.detach().cpu().double() for tensor in tensors]


def truth(tensors: list[torch.Tensor | None], conv: Conv) -> torch.Tensor:
    return op.reference(*double(tensors), **conv.options)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; NaN where anything is NaN, which fails every bound."""
    return ((found.detach().cpu().double() - expected).norm() / expected.norm()).item()


@needs_kernel
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("conv", RESNET + OTHERS, ids=str)
def test_kernel_agrees_with_float64(conv: Conv, dtype: torch.dtype) -> None:
    tensors = conv.tensors(batch=3, length=61, dtype=dtype)
    found = dispatch.conv_norm_gelu(*tensors, **conv.options, backend="triton")
    assert found.dtype == dtype
    assert relative_error(found, truth(tensors, conv)) <= BOUNDS[dtype]


@needs_kernel
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("batch", "length", "conv"), AWKWARD)
def test_awkward_lengths(batch: int, length: int, conv: Conv, dtype: torch.dtype) -> None:
    tensors = conv.tensors(batch, length, dtype)
    found = op.conv_norm_gelu(*tensors, **conv.options)
    assert relative_error(found, truth(tensors, conv)) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("conv", [RESNET[0], RESNET[5]], ids=str)
def test_reference_in_low_precision(conv: Conv, dtype: torch.dtype) -> None:
    tensors = conv.tensors(batch=3, length=61, dtype=dtype)
    found = op.reference(*tensors, **conv.options)
    assert found.dtype == dtype
    assert relative_error(found, truth(tensors, conv)) <= BOUNDS[dtype]


def test_reference_is_the_formula() -> None:
    """One output row by hand: sums over taps and channels, mean, variance, erf."""
    conv = Conv("by hand", 2, 4, 3, 2, 1, residual=True)
    x_BLC, weight, norm_weight, norm_bias, residual = double(conv.tensors(batch=1, length=5))
    window = torch.cat([torch.zeros(1, 2, dtype=torch.float64), x_BLC[0, :2]])  # the padding and two points
    row = torch.stack([(window.T * weight[channel]).sum() for channel in range(4)])
    row = (row - row.mean()) / ((row - row.mean()).square().mean() + 1e-5).sqrt()
    row = row * norm_weight + norm_bias + residual[0, 0]
    row = row * 0.5 * (1 + torch.erf(row / 2**0.5))
    found = op.reference(x_BLC, weight, norm_weight, norm_bias, residual, **conv.options)
    assert torch.allclose(found[0, 0], row, rtol=0, atol=1e-12)


def amid_nan(tensor: torch.Tensor, margin: int) -> torch.Tensor:
    """Copy the tensor into the middle of NaN: before, after, and between its slices along axis −2."""
    shape = list(tensor.shape)
    axis = max(tensor.ndim - 2, 0)
    shape[axis] += 2 * margin
    return (
        torch.full(shape, torch.nan, device=tensor.device)
        .narrow(axis, margin, tensor.shape[axis])
        .copy_(tensor)
    )


@needs_kernel
@pytest.mark.parametrize("conv", [RESNET[0], RESNET[4], RESNET[8], OTHERS[1], OTHERS[4]], ids=str)
def test_no_read_and_no_write_out_of_bounds(conv: Conv) -> None:
    tensors = conv.tensors(batch=3, length=23)
    x_BLC, weight, norm_weight, norm_bias, residual = tensors
    expected = truth(tensors, conv)
    poisoned = amid_nan(x_BLC, margin=20)  # more than any window reaches
    assert poisoned.data_ptr() != poisoned.contiguous().data_ptr()
    frame = torch.full((5, *expected.shape[1:]), torch.nan, device=DEVICE)
    out_BLN = frame[1:4]
    if residual is not None:
        surrounded = torch.full_like(frame, torch.nan)
        surrounded[1:4] = residual
        residual = surrounded[1:4]
    parameters = amid_nan(norm_weight, 256), amid_nan(norm_bias, 256)
    op.launch(poisoned, weight, *parameters, residual, out_BLN, conv.stride, conv.padding, 1e-5, conv.gelu)
    assert relative_error(out_BLN, expected) <= 2e-6
    assert frame[0].isnan().all()
    assert frame[4].isnan().all()


@needs_kernel
@pytest.mark.skipif(DEVICE.type == "cuda", reason="the sparse file lies in the memory of the CPU")
@pytest.mark.parametrize("axis", ["batch", "length"])
def test_addresses_beyond_32_bits(tmp_path: Path, axis: str) -> None:
    conv = Conv("far apart", 16, 16, 1)
    tensors = conv.tensors(
        batch=3 if axis == "batch" else 1, length=1 if axis == "batch" else 3, dtype=torch.float16
    )
    # the third slice lies 2**31 elements on, where a 32-bit offset wraps to the (empty) start of the file
    sparse = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**32 + 64, dtype=torch.float16)
    x_BLC = sparse.as_strided(tensors[0].shape, (2**30, 2**30, 1), storage_offset=2**31)
    tensors[0] = x_BLC.copy_(tensors[0])
    found = op.conv_norm_gelu(*tensors, **conv.options)
    assert relative_error(found, truth(tensors, conv)) <= BOUNDS[torch.float16]


@needs_kernel
def test_channels_first_memory_and_no_patterns() -> None:
    conv = RESNET[2]
    tensors = conv.tensors(batch=2, length=17)
    expected = truth(tensors, conv)
    tensors[0] = tensors[0].transpose(1, 2).contiguous().transpose(1, 2)
    assert relative_error(op.conv_norm_gelu(*tensors, **conv.options), expected) <= 2e-6
    nothing = op.conv_norm_gelu(*conv.tensors(batch=0, length=17), **conv.options)
    assert nothing.shape == (0, 17, 32)


@needs_kernel
@pytest.mark.parametrize("conv", [RESNET[0], RESNET[4], RESNET[11], OTHERS[0]], ids=str)
def test_gradients_agree_with_float64(conv: Conv) -> None:
    tensors = [None if t is None else t.requires_grad_() for t in conv.tensors(batch=2, length=29)]
    exact = [None if t is None else t.requires_grad_() for t in double(tensors)]
    expected = op.reference(*exact, **conv.options)
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected.backward(slope)
    op.conv_norm_gelu(*tensors, **conv.options).backward(slope.float().to(DEVICE))
    for found, true in zip(tensors, exact, strict=True):
        assert found is None or relative_error(found.grad, true.grad) <= 2e-6


@needs_kernel
def test_gradient_of_the_weight_alone() -> None:
    conv = RESNET[2]
    tensors = conv.tensors(batch=2, length=29)
    exact = double(tensors)
    for chosen in (tensors, exact):
        chosen[1].requires_grad_()
    op.reference(*exact, **conv.options).square().sum().backward()
    op.conv_norm_gelu(*tensors, **conv.options).square().sum().backward()
    assert relative_error(tensors[1].grad, exact[1].grad) <= 2e-6


@needs_kernel
def test_second_derivatives_are_refused() -> None:
    conv = RESNET[0]
    tensors = conv.tensors(batch=1, length=15)
    tensors[1].requires_grad_()
    out_BLN = op.conv_norm_gelu(*tensors, **conv.options)
    (slope,) = torch.autograd.grad(out_BLN.square().sum(), tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@needs_kernel
@pytest.mark.parametrize("conv", [RESNET[0], RESNET[2]], ids=str)
def test_opcheck(conv: Conv) -> None:
    tensors = [None if t is None else t.requires_grad_() for t in conv.tensors(batch=2, length=21)]
    torch.library.opcheck(op.conv_norm_gelu, tuple(tensors), conv.options)


@needs_kernel
@pytest.mark.parametrize(
    ("conv", "length", "dtype", "message"),
    [
        (Conv("odd width", 3, 32, 3), 17, torch.float32, "powers of two"),
        (Conv("too wide", 16, 512, 3), 17, torch.float32, "up to 256"),
        (Conv("double", 16, 16, 3), 17, torch.float64, "float64"),
        (Conv("no stride", 16, 16, 3, 0), 17, torch.float32, "stride 0"),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_compute(conv: Conv, length: int, dtype: torch.dtype, message: str) -> None:
    tensors = replace(conv, stride=1).tensors(2, length, dtype)
    out_BLN = torch.empty(2, length - 2, conv.c_out, dtype=dtype, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        op.launch(*tensors, out_BLN, conv.stride, conv.padding, 1e-5, conv.gelu)


@needs_kernel
def test_refuses_tensors_that_do_not_fit() -> None:
    conv = RESNET[2]
    x_BLC, weight, norm_weight, norm_bias, residual = conv.tensors(batch=2, length=17)
    with pytest.raises(ValueError, match="residual must be"):
        op.conv_norm_gelu(x_BLC, weight, norm_weight, norm_bias, residual[:, 1:], **conv.options)
    with pytest.raises(ValueError, match="norm_bias must be"):
        op.conv_norm_gelu(x_BLC, weight, norm_weight, norm_bias[1:], residual, **conv.options)
    with pytest.raises(ValueError, match="dtypes must be one"):
        op.conv_norm_gelu(x_BLC, weight.half(), norm_weight, norm_bias, residual, **conv.options)
    with pytest.raises(ValueError, match="do not fit"):
        op.conv_norm_gelu(x_BLC[..., 1:], weight, norm_weight, norm_bias, residual, **conv.options)


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=needs_kernel)])
def test_autocast_casts_for_every_backend(backend: str) -> None:
    conv = RESNET[2]
    tensors = conv.tensors(batch=2, length=17)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = dispatch.conv_norm_gelu(*tensors, **conv.options, backend=backend)
    assert found.dtype == torch.bfloat16
    assert relative_error(found, truth(tensors, conv)) <= 2e-2  # weights and input are rounded too


@needs_kernel
def test_torch_compile_sees_one_graph() -> None:
    conv = RESNET[2]
    tensors = conv.tensors(batch=2, length=17)
    compiled = torch.compile(dispatch.conv_norm_gelu, backend="aot_eager", fullgraph=True)
    assert relative_error(compiled(*tensors, **conv.options, backend="triton"), truth(tensors, conv)) <= 2e-6


def test_dispatch_tells_what_runs_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.choose("cpu").backend == "reference"
    assert "cpu tensors" in dispatch.choose("cpu").reason or "cpu tensor" in dispatch.describe("cpu")
    assert dispatch.describe("cpu", "reference") == "conv_norm_gelu: reference (asked for)"
    with pytest.raises(ValueError, match="auto, triton, reference"):
        dispatch.choose("cpu", "cuda")
    monkeypatch.setattr(op, "TRITON_MISSING", "")
    assert dispatch.choose("cuda").backend == "triton"
    monkeypatch.setattr(op, "TRITON_MISSING", "triton cannot be imported (none)")
    assert dispatch.describe("cuda") == "conv_norm_gelu: reference (triton cannot be imported (none))"
    with pytest.raises(RuntimeError, match="cannot be imported"):
        dispatch.choose("cuda", "triton")


def run_python(*arguments: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_works_without_triton() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch
from hxrd.kernels import dispatch
out = dispatch.conv_norm_gelu(torch.ones(2, 9, 1), torch.ones(4, 1, 3), torch.ones(4), torch.zeros(4))
print(tuple(out.shape), dispatch.describe())
"""
    printed = run_python("-c", script)
    assert printed.startswith("(2, 7, 4) conv_norm_gelu: reference (triton cannot be imported")
