"""Time the fused convolution against plain torch, layer by layer of the ResNet.

`pytest benchmarks/bench_conv_norm_gelu.py`; nothing is timed before its result equals the float64 reference.
"""

from dataclasses import dataclass

import pytest
import torch

from hxrd.kernels import conv_norm_gelu as op
from hxrd.kernels import dispatch

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH = 1024 if DEVICE.type == "cuda" else 16
CHECKED = 4  # patterns compared with float64: the kernel treats each alike


@dataclass(frozen=True)
class Layer:
    """One convolution as the `paper` network meets it, after its pooling."""

    name: str
    length: int
    c_in: int
    c_out: int
    taps: int
    stride: int
    padding: int
    residual: bool = False
    gelu: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def length_out(self) -> int:
        return op.output_length(self.length, self.taps, self.stride, self.padding)

    @property
    def flops(self) -> int:
        return 2 * BATCH * self.length_out * self.c_out * self.c_in * self.taps

    def tensors(self, dtype: torch.dtype) -> list[torch.Tensor | None]:
        generator = torch.Generator().manual_seed(7)
        shapes = [
            (BATCH, self.length, self.c_in),
            (self.c_out, self.c_in, self.taps),
            (self.c_out,),
            (self.c_out,),
            (BATCH, self.length_out, self.c_out),
        ]
        x_BLC, weight, norm_weight, norm_bias, residual = (
            torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes
        )
        weight /= (self.c_in * self.taps) ** 0.5
        added = residual.to(dtype) if self.residual else None
        return [x_BLC.to(dtype), weight.to(dtype), norm_weight, norm_bias, added]


LAYERS = [
    Layer("stem", 3041, 1, 32, 13, 1, 0),
    Layer("layer1-conv1", 433, 32, 32, 5, 4, 2),
    Layer("layer1-conv2", 109, 32, 32, 5, 1, 2, residual=True),
    Layer("layer1-shortcut", 433, 32, 32, 1, 4, 0, gelu=False),
    Layer("layer2-conv2", 28, 64, 64, 7, 1, 3, residual=True),
    Layer("layer3-conv2", 6, 64, 64, 17, 1, 8, residual=True),
    Layer("layer4-conv2", 2, 64, 64, 13, 1, 6, residual=True),
]


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep cuDNN from rounding float32 convolutions of the reference to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def require_equality(out_BLN: torch.Tensor, tensors: list[torch.Tensor | None], layer: Layer) -> None:
    """Fail unless the first patterns equal the float64 reference and all the others are finite."""
    x_BLC, weight, norm_weight, norm_bias, residual = (None if t is None else t.cpu() for t in tensors)
    some = [x_BLC[:CHECKED], weight, norm_weight, norm_bias, None if residual is None else residual[:CHECKED]]
    exact = op.reference(
        *(None if tensor is None else tensor.double() for tensor in some),
        stride=layer.stride,
        padding=layer.padding,
        gelu=layer.gelu,
    )
    error = (out_BLN[:CHECKED].cpu().double() - exact).norm() / exact.norm()
    assert error <= BOUNDS[out_BLN.dtype]
    assert out_BLN.isfinite().all()


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_forward(benchmark, backend: str, layer: Layer, dtype: torch.dtype) -> None:
    if backend == "triton" and (DEVICE.type != "cuda" or op.unavailable(DEVICE)):
        pytest.skip("the Triton kernel is timed on CUDA devices only")
    tensors = layer.tensors(dtype)

    def run() -> torch.Tensor:
        options = {"stride": layer.stride, "padding": layer.padding, "gelu": layer.gelu}
        out_BLN = dispatch.conv_norm_gelu(*tensors, **options, backend=backend)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return out_BLN

    with torch.inference_mode():
        require_equality(run(), tensors, layer)
        benchmark.group = f"{layer} {dtype} {DEVICE.type}"
        benchmark.extra_info["patterns"] = BATCH
        benchmark(run)
    if benchmark.stats is not None:
        benchmark.extra_info["gflop_per_s"] = round(layer.flops / benchmark.stats.stats.mean / 1e9, 1)
