"""Every back end gives the ranks of the reference, torch in float32, on real crystals' patterns."""

import importlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from classified import make_archive, make_model, make_patterns

from hxrd.classify.backends import choose_backend
from hxrd.classify.backends.onnx import OnnxRuntimeBackend
from hxrd.cli.main import main
from hxrd.cli.options import SOME_REJECTED
from hxrd.errors import HxrdError, Rejected, UsageError
from hxrd.models.registry import load_model, network_input
from hxrd.physics.instrument import load_instrument
from hxrd.simulate.simulate import simulate_patterns
from hxrd.sources.prototypes import PrototypeSource

# Logits of the bundled models spread over 6 and the first two lie 2 apart, so this is a near-tie.
NEAR_TIE = {"fp32": 1e-3, "bf16": 0.2}
RANKS = 5
EVERY = 4  # of the prototypes
ENGINES = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "native": (),
    "torch": (),
}
ALL = [
    ("native", "fp32"),
    ("native", "bf16"),
    ("torch", "fp32"),
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
]
every_backend = pytest.mark.parametrize(("name", "precision"), ALL)


@pytest.fixture(scope="module")
def loaded():
    return load_model("neutron-clean")


@pytest.fixture(scope="module")
def inputs(loaded):
    """What the network is given for some of the AFLOW prototypes."""
    source = PrototypeSource()
    crystals = []
    for identifier in list(source.identifiers())[::EVERY]:
        try:
            crystals.append(source.get(identifier))
        except Rejected:
            continue
    intensity, reasons = simulate_patterns(crystals, load_instrument("paper"))
    good = intensity[[reason is None for reason in reasons]]
    return network_input(np.maximum(good, 0), loaded.metadata)


@pytest.fixture(scope="module")
def reference(loaded, inputs):
    with torch.inference_mode():
        return loaded.model(torch.from_numpy(inputs)[:, None]).numpy()


@pytest.fixture(scope="module")
def opened(loaded):
    """Return a function that opens a back end once, and skips where it cannot run here."""
    held = {}

    def get(name, precision):
        for package in ENGINES[name]:
            pytest.importorskip(package)
        if (name, precision) not in held:
            try:
                held[name, precision] = choose_backend(loaded, "cpu", name, precision, threads=2)
            except HxrdError as error:
                if precision != "bf16":
                    raise
                pytest.skip(str(error))
        return held[name, precision]

    return get


def worst_swap(reference, logits, ranks=RANKS):
    """Largest difference of two of the reference's logits, one among the first, whose order is not kept."""
    first = np.argsort(-reference, axis=1)[:, :ranks]
    ahead = np.take_along_axis(reference, first, 1)[:, :, None] - reference[:, None]
    kept = np.take_along_axis(logits, first, 1)[:, :, None] - logits[:, None]
    return ahead[(ahead > 0) & (kept <= 0)].max(initial=0.0)


def test_a_swapped_rank_is_noticed(reference):
    swapped = reference.copy()
    best = np.argsort(-reference[3])[:2]
    swapped[3, best] = reference[3, best[::-1]]
    assert worst_swap(reference, reference) == 0
    assert worst_swap(reference, swapped) == pytest.approx(np.ptp(reference[3, best]), rel=1e-4)


@every_backend
def test_ranks_are_the_references_outside_near_ties(opened, inputs, reference, name, precision):
    backend = opened(name, precision)
    logits = backend.logits(inputs)
    assert (backend.name, backend.device, backend.precision) == (name, "cpu", precision)
    assert logits.shape == reference.shape
    assert logits.dtype == np.float32
    assert worst_swap(reference, logits) < NEAR_TIE[precision]
    if precision == "fp32":
        np.testing.assert_allclose(logits, reference, atol=2e-4)


@every_backend
def test_a_row_does_not_depend_on_those_beside_it(opened, inputs, name, precision):
    backend = opened(name, precision)
    whole = backend.logits(inputs)
    for rows in (slice(0, 1), slice(3, 4), slice(5, 22), slice(1, 33), slice(17, len(inputs))):
        assert np.array_equal(backend.logits(inputs[rows]), whole[rows])
    assert backend.logits(inputs[:0]).shape == (0, whole.shape[1])


@every_backend
def test_several_threads_may_call_at_once(opened, inputs, name, precision):
    backend = opened(name, precision)
    whole = backend.logits(inputs)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(backend.logits, [inputs] * 8):
            assert np.array_equal(got, whole)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_batch_size_and_threads_change_no_rank(loaded, inputs, reference, opened, name):
    opened(name, "fp32")  # skips where it is not installed
    backend = choose_backend(loaded, "cpu", name, "fp32", batch_size=7, threads=1)
    assert backend.batch_size == 7
    np.testing.assert_allclose(backend.logits(inputs[:20]), reference[:20], atol=2e-4)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_model_without_pool_and_of_another_grid(tmp_path, opened, name):
    opened(name, "fp32")  # skips where it is not installed
    loaded = load_model(make_model(tmp_path / "m.safetensors", variant="released"))
    x = np.random.default_rng(0).random((3, loaded.metadata.n_points), np.float32)
    with torch.inference_mode():
        expected = loaded.model(torch.from_numpy(x)[:, None]).numpy()
    np.testing.assert_allclose(choose_backend(loaded, "cpu", name, "fp32").logits(x), expected, atol=2e-4)


def test_openvino_chooses_bf16_where_the_processor_has_it(loaded):
    openvino = pytest.importorskip("openvino")
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    chosen = choose_backend(loaded, "cpu", "openvino").precision
    assert chosen == ("bf16" if "BF16" in capabilities else "fp32")


def test_openvino_without_bf16_says_so(loaded, monkeypatch):
    openvino = pytest.importorskip("openvino")
    without = importlib.import_module("hxrd.classify.backends.openvino")

    class Core(openvino.Core):
        def get_property(self, *names):
            return ["FP32"]

    monkeypatch.setattr(openvino, "Core", Core)
    assert without.OpenVinoBackend(loaded).precision == "fp32"
    with pytest.raises(HxrdError, match="no bf16 that OpenVINO could use; give --precision fp32"):
        without.OpenVinoBackend(loaded, precision="bf16")


def test_onnxruntime_has_no_bf16(loaded):
    with pytest.raises(UsageError, match="computes in fp32"):
        OnnxRuntimeBackend(loaded, precision="bf16")


def test_onnxruntime_without_cuda_says_what_to_install(loaded):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(HxrdError, match="install onnxruntime-gpu"):
        OnnxRuntimeBackend(loaded, "cuda:0")


@pytest.mark.parametrize(("name", "package"), [(name, one) for name in ENGINES for one in ENGINES[name]])
def test_a_missing_package_is_named(loaded, monkeypatch, name, package):
    for other in {*ENGINES[name]} - {package}:
        pytest.importorskip(other)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HxrdError, match=rf"pip install 'hxrd\[{'onnx' if package == 'onnx' else name}\]'"):
        choose_backend(loaded, "cpu", name)


def rows_of(folder, name, archive):
    output = folder / f"{name}.jsonl"
    command = ["classify", str(archive), "--backend", name, "--precision", "fp32", "--device", "cpu"]
    assert main([*command, "--model", "neutron-clean", "--topk", "3", "-o", str(output)]) == SOME_REJECTED
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.usefixtures("bundled")
@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_the_command_gives_the_same_rows(tmp_path, name):
    for package in ENGINES[name]:
        pytest.importorskip(package)
    archive = make_archive(tmp_path / "a.zarr", make_patterns(37), rejected=(5,))
    native, other = rows_of(tmp_path, "native", archive), rows_of(tmp_path, name, archive)
    assert len(other) == 37
    assert len({row["space_group_1"] for row in native}) > 3
    for one, same in zip(native, other, strict=True):
        assert one == pytest.approx(same, abs=1e-3)
