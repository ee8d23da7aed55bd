"""Rate of the bundled classifier on the CPU, fused stem against the same network in plain torch.

pytest benchmarks/bench_classify.py --benchmark-json=classify.json
"""

import numpy as np
import pytest
import torch

from hxrd.kernels import pooled_norm
from hxrd.models.registry import load_model

N_PATTERNS = 256


@pytest.fixture(scope="module")
def model():
    return load_model("neutron-clean").model


@pytest.fixture(scope="module")
def patterns():
    return torch.from_numpy(np.random.default_rng(0).random((N_PATTERNS, 1, 3041), np.float32))


@torch.inference_mode()
def classify(model, patterns):
    return torch.cat([model(part) for part in patterns.split(64)])


@pytest.mark.benchmark(group="classify")
def test_fused_stem(benchmark, model, patterns):
    logits = benchmark(classify, model, patterns)
    assert logits.shape == (N_PATTERNS, 144)
    benchmark.extra_info["patterns"] = N_PATTERNS


@pytest.mark.benchmark(group="classify")
def test_plain_stem(benchmark, model, patterns, monkeypatch):
    fused = classify(model, patterns)
    monkeypatch.setattr(pooled_norm, "pooled_norm", pooled_norm.reference)
    assert torch.allclose(classify(model, patterns), fused, atol=1e-3)
    benchmark(classify, model, patterns)
    benchmark.extra_info["patterns"] = N_PATTERNS
