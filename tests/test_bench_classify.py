"""The classifier's benchmark judges before it times, and counts the work that the paper states."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from hxrd.models.registry import load_model

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """The modules of the benchmark, which stand beside the package."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import bench_classify
        import classify_contestants
        import classify_patterns
        import classify_work

        yield SimpleNamespace(
            main=bench_classify,
            contestants=classify_contestants,
            patterns=classify_patterns,
            work=classify_work,
        )
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == FOLDER:
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def loaded():
    return load_model("neutron-clean")


def test_operations_are_those_of_the_seed(bench, loaded):
    released = bench.main.as_variant(loaded, "released").metadata
    assert bench.work.operations_of(released) == pytest.approx(105e6, rel=0.01)
    assert bench.work.operations_of(loaded.metadata) < bench.work.operations_of(released) / 5


def test_share_is_of_the_product_of_the_same_round(bench):
    times = {"ours bf16": np.array([1.0, 2.0, 4.0]), "onnxruntime fp32": np.array([2.0, 4.0, 8.0])}
    products = {"bf16": np.array([0.5, 1.0, 2.0]), "fp32": np.array([1.0, 2.0, 4.0])}
    found = bench.main.rates(times, 100, bench.work.PRODUCT_OPERATIONS // 100, products)
    assert found["ours bf16"]["share_of_bf16_gemm"] == pytest.approx(0.5, abs=1e-3)
    assert found["onnxruntime fp32"]["share_of_fp32_gemm"] == pytest.approx(0.5, abs=1e-3)
    assert found["ours bf16"]["patterns_per_second"] == 50


def logits_of(classes, n_classes=4):
    return np.eye(n_classes, dtype=np.float32)[classes]


def test_judge_refuses_other_classes(bench):
    truth = np.arange(1000) % 4
    judge = bench.main.Judge(logits_of(truth), truth)
    shifted = truth.copy()
    shifted[:4] = (truth[:4] + 1) % 4  # 0.4 % differ, and are wrong
    assert judge.check("same", logits_of(truth), 0.995, True) == {
        "top_1_agreement": 1.0,
        "top_1_accuracy": 1.0,
    }
    with pytest.raises(bench.main.Disagreement, match=r"accuracy 0\.40% apart"):
        judge.check("ours", logits_of(shifted), 0.995, True)
    assert judge.check("peer", logits_of(shifted), 0.9, True)["top_1_agreement"] == 0.996
    with pytest.raises(bench.main.Disagreement, match="the reference's for 0"):
        judge.check("peer", logits_of((truth + 1) % 4), 0.9, False)


def test_every_need_has_its_line(bench):
    names = ["ours bf16", "ours fp32", *bench.main.NEEDS_WITH_BF16]
    times = {name: np.array([1.0, 1.0]) for name in names}
    scores = {name: {"top_1_agreement": 1.0} for name in names}
    lines = bench.main.ratios("paper", times, scores, 10, half=True)
    assert sorted(line.need for line in lines if line.need) == sorted(bench.main.NEEDS_WITH_BF16.values())
    without = {name: times[name] for name in names if "bf16" not in name}
    lines = bench.main.ratios("paper", without, scores, 10, half=False)
    assert [line.need for line in lines if line.need] == [1.0]
    assert {line.ours for line in lines} == {0.1}


def test_the_quickest_setting_is_chosen(bench):
    settings = {
        "slow": lambda x: time.sleep(0.03),
        "quick": lambda x: x,
        "slower": lambda x: time.sleep(0.06),
    }
    assert bench.contestants.best_setting(settings, np.zeros((2, 3), np.float32)) == "quick"


def test_without_shared_crystals_prototypes_are_taken(bench, loaded, monkeypatch, tmp_path):
    monkeypatch.setenv("HXRD_SHARED", str(tmp_path))
    bench.patterns._patterns.cache_clear()
    patterns = bench.patterns.real_patterns(loaded, 8)
    assert patterns.origin == "AFLOW prototypes"
    assert 4 < len(patterns) == len(patterns.labels(loaded)) <= 8
    assert patterns.labels(loaded).min() >= 0
    assert np.isfinite(patterns.inputs(loaded)).all()
    bench.patterns._patterns.cache_clear()


def test_an_archive_repeats_the_patterns(bench, tmp_path):
    from hxrd.archive import open_archive

    patterns = bench.patterns.Patterns(
        "made", np.random.default_rng(0).random((3, 3041), np.float32), np.array([1, 2, 225], np.int16)
    )
    archive = open_archive(bench.patterns.write_archive(tmp_path / "a.zarr", patterns, 8))
    assert np.array_equal(archive.read(0, 8), patterns.intensity[np.arange(8) % 3])


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_openvinos_queue_keeps_the_order(bench, loaded, precision):
    openvino = pytest.importorskip("openvino")
    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("no bf16 here")
    x = np.random.default_rng(0).random((19, loaded.metadata.n_points), np.float32)
    queue = bench.contestants._openvino_queue(loaded, precision, "THROUGHPUT", 8)
    expected = bench.contestants.ours(loaded, "fp32")(x)
    np.testing.assert_allclose(queue(x), expected, atol=1e-3 if precision == "f32" else 1.0)


def test_variants_share_their_weights(bench, loaded):
    released = bench.main.as_variant(loaded, "released")
    assert released.weights is loaded.weights
    assert msgspec.structs.replace(released.metadata, variant="paper") == loaded.metadata
