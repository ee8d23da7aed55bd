"""Time the fused convolutions against plain torch, layer by layer of the ResNet.

`pytest benchmarks/bench_conv_norm_gelu.py`; nothing is timed before its results, and of a training step its
gradients, equal the float64 reference.
"""

from dataclasses import dataclass

import pytest
import torch

from hxrd.kernels import conv_norm_gelu as op
from hxrd.kernels import dispatch

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH = 1024 if DEVICE.type == "cuda" else 16
CHECKED = 4  # patterns compared with float64: the kernels treat each alike
SEED = 7


@dataclass(frozen=True)
class Layer:
    """One launch as the `paper` network meets it, after its pooling: a pair, or one with residual."""

    name: str
    length: int
    c_in: int
    c_out: int
    taps: int
    stride: int
    shortcut: bool

    def __str__(self) -> str:
        return self.name

    @property
    def length_out(self) -> int:
        return op.output_length(self.length, self.taps, self.stride, self.taps // 2)

    @property
    def flops(self) -> int:
        """Of a forward pass; a training step has three times as many, and computes these again."""
        taps = self.taps + self.shortcut
        return 2 * BATCH * self.length_out * self.c_out * self.c_in * taps

    def tensors(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """Input, weight and both norm parameters, then those of the shortcut or the residual."""
        generator = torch.Generator().manual_seed(SEED)

        def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(DEVICE, dtype)

        def parameters(taps: int) -> list[torch.Tensor]:
            weight = normal(self.c_out, self.c_in, taps, dtype=torch.float32) / (self.c_in * taps) ** 0.5
            return [weight.to(dtype), *(normal(self.c_out, dtype=torch.float32) for _ in range(2))]

        tensors = [normal(BATCH, self.length, self.c_in), *parameters(self.taps)]
        return tensors + (parameters(1) if self.shortcut else [normal(BATCH, self.length_out, self.c_out)])

    def results(self, tensors: list[torch.Tensor], dropout: float, backend: str) -> tuple[torch.Tensor, ...]:
        """Run one backend; the mask is that of `SEED`."""
        seed = torch.tensor([SEED], device=tensors[0].device) if dropout else None
        options = {"stride": self.stride, "padding": self.taps // 2, "dropout": dropout, "seed": seed}
        if self.shortcut:
            return dispatch.conv_norm_pair(*tensors, **options, backend=backend)
        return (dispatch.conv_norm_gelu(*tensors, **options, backend=backend),)


LAYERS = [
    Layer("layer1-block1", 433, 32, 32, 5, 4, True),
    Layer("layer1-conv2", 109, 32, 32, 5, 1, False),
    Layer("layer2-block1", 109, 32, 64, 7, 4, True),
    Layer("layer2-conv2", 28, 64, 64, 7, 1, False),
    Layer("layer3-block1", 28, 64, 64, 17, 5, True),
    Layer("layer3-conv2", 6, 64, 64, 17, 1, False),
    Layer("layer4-block1", 6, 64, 64, 13, 3, True),
    Layer("layer4-conv2", 2, 64, 64, 13, 1, False),
]


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep cuDNN from rounding float32 convolutions of the reference to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def skip_unless_timed(backend: str) -> None:
    try:
        dispatch.choose(DEVICE, backend)
    except RuntimeError as error:
        pytest.skip(str(error))
    if backend == "triton" and DEVICE.type != "cuda":
        pytest.skip("Triton kernels are timed on CUDA devices only")


def first_patterns(layer: Layer, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return leaves of the first patterns: input and residual are cut, the parameters are not."""
    cut = {0} if layer.shortcut else {0, 4}
    return [
        (tensor[:CHECKED] if number in cut else tensor).detach().clone().requires_grad_()
        for number, tensor in enumerate(tensors)
    ]


def require_equality(layer: Layer, tensors: list[torch.Tensor], dropout: float, backend: str) -> None:
    """Fail unless results and gradients of the first patterns are those of the float64 reference."""
    some = first_patterns(layer, tensors)
    exact = [tensor.detach().cpu().double().requires_grad_() for tensor in some]
    expected, found = layer.results(exact, dropout, "reference"), layer.results(some, dropout, backend)
    sum(result.square().sum() for result in expected).backward()
    sum(result.double().square().sum() for result in found).backward()
    pairs = [
        *zip(found, expected, strict=True),
        *((tensor.grad, truth.grad) for tensor, truth in zip(some, exact, strict=True)),
    ]
    for result, truth in pairs:
        error = (result.detach().cpu().double() - truth).norm() / truth.norm()
        # the slope, twice the result, is itself rounded to the dtype
        assert error <= 2 * BOUNDS[tensors[0].dtype]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("backend", ["reference", "compiled", "triton"])
@pytest.mark.parametrize("step", ["forward", "training"])
def test_layer(benchmark, step: str, backend: str, layer: Layer, dtype: torch.dtype) -> None:
    skip_unless_timed(backend)
    if backend == "compiled" and dtype != torch.float32:
        pytest.skip("compiled code computes in float32")
    training = step == "training"
    dropout = 0.1 if training else 0.0
    tensors = [tensor.requires_grad_(training) for tensor in layer.tensors(dtype)]
    with torch.enable_grad():
        require_equality(layer, tensors, dropout, backend)
    slopes = [torch.randn_like(result) for result in layer.results(tensors, dropout, backend)]

    def run() -> None:
        with torch.set_grad_enabled(training):
            results = layer.results(tensors, dropout, backend)
            if training:
                torch.autograd.grad(results, tensors, slopes)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    run()
    benchmark.group = f"{step} {layer} {dtype} {DEVICE.type}"
    benchmark.extra_info["patterns"] = BATCH
    benchmark(run)
    if benchmark.stats is not None:
        flops = layer.flops * (3 if training else 1)
        benchmark.extra_info["gflop_per_s"] = round(flops / benchmark.stats.stats.mean / 1e9, 1)
