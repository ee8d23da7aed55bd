"""The whole network compiled for the CPU, against torch and against its NumPy reference."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from hxrd.kernels.cpu_network import CpuNetwork, has_bfloat16
from hxrd.kernels.numpy_network import gelu, numpy_logits
from hxrd.kernels.vector_code import PANEL, ROWS
from hxrd.kernels.vector_gemm import bfloat16_bits, packed
from hxrd.models.layout import pool_of
from hxrd.models.resnet1d import ResNet1D

VARIANTS = ("paper", "released")
PRECISIONS = [
    "fp32",
    pytest.param("bf16", marks=pytest.mark.skipif(not has_bfloat16(), reason="no AVX512-BF16")),
]
BOUNDS = {"fp32": 1e-5, "bf16": 2e-2}


def network(variant: str, n_classes: int = 144) -> tuple[ResNet1D, dict[str, np.ndarray]]:
    torch.manual_seed(7)
    model = ResNet1D(n_classes, variant, backend="reference").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:  # an affine part that does something
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model, {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def patterns(n: int, n_points: int) -> np.ndarray:
    return np.random.default_rng(n_points).random((n, n_points), np.float32) ** 4


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("n_points", [13, 100, 1023, 3041, 3042])
@pytest.mark.parametrize("variant", VARIANTS)
def test_numpy_agrees_with_torch(variant: str, n_points: int) -> None:
    model, weights = network(variant)
    x_BL = patterns(3, n_points)
    with torch.inference_mode():
        expected = model(torch.from_numpy(x_BL)[:, None]).numpy()
    assert relative_error(numpy_logits(weights, x_BL, pool_of(variant)), expected) <= 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("n", "n_points"), [(1, 13), (1, 14), (7, 100), (2, 1023), (19, 3041), (1, 3042)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_agrees_with_numpy(variant: str, n: int, n_points: int, precision: str) -> None:
    _, weights = network(variant)
    x_BL = patterns(n, n_points)
    found = CpuNetwork(weights, pool_of(variant), precision).logits(x_BL)
    assert found.dtype == np.float32
    assert relative_error(found, numpy_logits(weights, x_BL, pool_of(variant))) <= BOUNDS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("n_classes", [14, 230])
def test_any_number_of_classes(n_classes: int, precision: str) -> None:
    _, weights = network("paper", n_classes)
    x_BL = patterns(2, 500)
    found = CpuNetwork(weights, 7, precision).logits(x_BL)
    assert relative_error(found, numpy_logits(weights, x_BL, 7)) <= BOUNDS[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_pattern_depends_on_no_other(precision: str) -> None:
    _, weights = network("paper")
    compiled = CpuNetwork(weights, 7, precision)
    x_BL = patterns(40, 700)
    together = compiled.logits(x_BL)
    assert np.array_equal(together, np.concatenate([compiled.logits(row[None]) for row in x_BL]))
    assert np.array_equal(together[3:29], compiled.logits(x_BL[3:29]))


def test_not_finite_patterns_leave_their_neighbours_alone() -> None:
    _, weights = network("paper")
    compiled = CpuNetwork(weights, 7)
    x_BL = patterns(20, 700)
    expected = compiled.logits(x_BL)
    spoilt = x_BL.copy()
    spoilt[5], spoilt[11, 30] = np.nan, np.inf
    clean = np.setdiff1d(np.arange(20), [5, 11])
    assert np.array_equal(compiled.logits(spoilt)[clean], expected[clean])
    assert np.array_equal(compiled.logits(x_BL), expected)


def test_one_network_serves_patterns_of_several_lengths_and_none() -> None:
    _, weights = network("paper")
    compiled = CpuNetwork(weights, 7)
    for n_points in (700, 300, 700):
        x_BL = patterns(3, n_points)
        assert relative_error(compiled.logits(x_BL), numpy_logits(weights, x_BL, 7)) <= 1e-5
    assert compiled.logits(np.zeros((0, 300), np.float32)).shape == (0, 144)
    with pytest.raises(ValueError, match="shorter"):
        compiled.logits(np.zeros((1, 12), np.float32))


def test_gelu_is_the_exact_one() -> None:
    x = torch.linspace(-12, 12, 200_001)
    exact = torch.nn.functional.gelu(x.double()).numpy()
    assert np.abs(gelu(x.numpy()) - exact).max() <= 2e-6
    assert np.abs(gelu(x.numpy()) - exact)[np.abs(x.numpy()) < 1].max() <= 2e-7


def test_bfloat16_rounds_as_torch_does() -> None:
    values = np.random.default_rng(1).normal(size=10_000).astype(np.float32)
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    assert np.array_equal(bfloat16_bits(values), expected)


def test_packed_weights_are_panels_of_whole_vectors() -> None:
    weight_KN = np.arange(6 * (PANEL + 3), dtype=np.float32).reshape(6, PANEL + 3)
    single = packed(weight_KN, False)
    assert single.shape == (2, 6, PANEL)
    assert np.array_equal(single[1, :, :3], weight_KN[:, PANEL:])
    assert not single[1, :, 3:].any()
    half = packed(weight_KN, True)
    assert half.shape == (2, 3, PANEL)
    low, high = (int(bfloat16_bits(weight_KN[step : step + 1, 4])[0]) for step in (2, 3))
    assert half[0, 1, 4] == low | high << 16
    assert ROWS % 4 == 0


def test_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from hxrd.kernels import cpu_network

    _, weights = network("paper")
    monkeypatch.setattr(cpu_network, "HAS_BFLOAT16", False)
    with pytest.raises(ValueError, match="bfloat16"):
        CpuNetwork(weights, 7, "bf16")
    weights["resnet.conv.conv.weight"] = weights["resnet.conv.conv.weight"][:7]
    with pytest.raises(ValueError, match="7 channels"):
        CpuNetwork(weights, 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "features", "lanes"), [("haswell", "+avx,+avx2,+fma,+sse4.2,+bmi,+bmi2", 8), ("generic", "", 4)]
)
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="features of x86 processors")
def test_other_processors_compute_the_same(name: str, features: str, lanes: int) -> None:
    script = """
import numpy as np
from hxrd.kernels import vector_code
from hxrd.kernels.cpu_network import CpuNetwork, has_bfloat16
from hxrd.kernels.numpy_network import numpy_logits
from hxrd.models.registry import load_model
x_BL = np.random.default_rng(0).random((9, 400), np.float32) ** 4
weights = load_model("neutron-clean").weights
found, expected = CpuNetwork(weights, 7).logits(x_BL), numpy_logits(weights, x_BL, 7)
print(vector_code.LANES, has_bfloat16(), np.abs(found - expected).max() < 1e-4)
"""
    told = os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run([sys.executable, "-c", script], env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(lanes), "False", "True"]
