"""Which device and which back end a classification gets."""

import subprocess
import sys

import pytest
import torch
from classified import make_model, make_patterns

from hxrd.classify import backends
from hxrd.classify.backends import choose_backend, choose_backends, device_names, resolve_device
from hxrd.classify.backends.cuda_batches import fitting_batch
from hxrd.classify.backends.native import NativeBackend
from hxrd.classify.backends.torch_device import TorchBackend
from hxrd.errors import HxrdError, UsageError
from hxrd.kernels.compiled import SMALL_JOB
from hxrd.models.registry import load_model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


def pretend(monkeypatch, by_driver, by_torch):
    """Let the driver and torch see so many CUDA devices."""
    monkeypatch.setattr(backends, "driver_devices", lambda: by_driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: by_torch > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: by_torch)


@pytest.mark.parametrize(
    ("device", "names"),
    [
        ("auto", ["auto"]),
        ("cpu", ["cpu"]),
        ("cuda", ["cuda"]),
        ("cuda:3", ["cuda:3"]),
        ("cuda:2,0", ["cuda:2", "cuda:0"]),
        ("cuda:1,01,1", ["cuda:1"]),
    ],
)
def test_devices_are_named_one_by_one(device, names):
    assert device_names(device) == names


@pytest.mark.parametrize(
    ("by_driver", "by_torch", "expected"),
    [(0, 0, "cpu"), (2, 2, "cuda:0"), (2, 0, "cpu")],
    ids=["no driver", "two", "torch without CUDA"],
)
def test_auto_takes_a_gpu_where_torch_can_use_it(monkeypatch, by_driver, by_torch, expected):
    pretend(monkeypatch, by_driver, by_torch)
    assert resolve_device("auto") == expected


def test_devices_that_are_not_there_are_refused(monkeypatch):
    pretend(monkeypatch, 2, 2)
    assert [resolve_device(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda:0", "cuda:1"]
    with pytest.raises(HxrdError, match=r"no device cuda:2 \(2 CUDA devices here\)"):
        resolve_device("cuda:2")
    pretend(monkeypatch, 0, 0)
    with pytest.raises(HxrdError, match="no device cuda"):
        resolve_device("cuda")


def test_no_driver_is_no_device(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(backends.ctypes, "CDLL", missing)
    assert backends.driver_devices() == 0


@pytest.mark.parametrize(("status", "expected"), [(0, 3), (100, 0)], ids=["works", "driver without a device"])
def test_the_driver_is_asked(monkeypatch, status, expected):
    class Driver:
        def cuInit(self, flags):
            return status

        def cuDeviceGetCount(self, count):
            count._obj.value = 3
            return 0

    monkeypatch.setattr(backends.ctypes, "CDLL", lambda name: Driver())
    assert backends.driver_devices() == expected


def test_auto_is_native_on_the_cpu(loaded):
    (backend,) = choose_backends(loaded, "cpu", n_patterns=1)
    assert isinstance(backend, NativeBackend)
    assert (backend.name, backend.device) == ("native", "cpu")


def test_named_options_reach_the_back_end(loaded):
    backend = choose_backend(loaded, "cpu", "torch", "fp32", batch_size=5, threads=1)
    assert isinstance(backend, TorchBackend)
    assert (backend.name, backend.precision, backend.batch_size) == ("torch", "fp32", 5)
    assert backend.logits(make_patterns(7)).shape == (7, 12)


@pytest.mark.parametrize("name", ["native", "openvino"])
def test_a_back_end_off_its_device_is_refused(monkeypatch, loaded, name):
    pretend(monkeypatch, 1, 1)
    with pytest.raises(UsageError, match=f"{name} runs on cpu only"):
        choose_backend(loaded, "cuda", name)


def test_an_unknown_back_end_is_refused(loaded):
    with pytest.raises(UsageError, match="--backend abacus"):
        choose_backend(loaded, "cpu", "abacus")


def test_a_package_that_is_not_installed_is_named(monkeypatch, loaded):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(HxrdError, match=r"needs openvino.*hxrd\[openvino\]"):
        choose_backend(loaded, "cpu", "openvino")


def test_bfloat16_without_the_hardware_is_refused(monkeypatch, loaded):
    monkeypatch.setattr("hxrd.kernels.cpu_network.has_bfloat16", lambda: False)
    with pytest.raises(UsageError, match="does not multiply bfloat16"):
        NativeBackend(loaded, precision="bf16")
    assert NativeBackend(loaded).precision == "fp32"


def test_a_small_job_waits_for_no_compiler(loaded):
    program = (
        "import sys; from hxrd.classify.backends import choose_backend; import numpy as np\n"
        "from hxrd.models.registry import load_model\n"
        f"backend = choose_backend(load_model({str(loaded.path)!r}), 'cpu', n_patterns=int(sys.argv[1]))\n"
        "backend.logits(np.ones((3, 501), np.float32))\n"
        "print(backend.precision, *sorted({'numba', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(SMALL_JOB - 1)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["fp32"]


@pytest.mark.parametrize(
    ("free", "needed", "batch"),
    [(80e9, 1e6, 4096), (2e9, 1e6, 1024), (1.4e6, 1e6, 1), (0, 1e6, 1), (80e9, 0, 4096)],
)
def test_the_batch_fits_the_memory(free, needed, batch):
    assert fitting_batch(free, needed, 4096) == batch
    assert batch == 1 or batch * needed <= 0.7 * free


def test_only_one_thread_halves_a_batch(loaded):
    backend = TorchBackend(loaded, batch_size=8)
    assert backend.shrink(8)
    assert backend.batch_size == 4
    assert backend.shrink(8)  # another thread, whose batch was the same
    assert backend.batch_size == 4
    assert backend.shrink(4)
    assert backend.shrink(2)
    assert not backend.shrink(1)


# On a GPU -----------------------------------------------------------------------------------------

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("job", [1, 10**6], ids=["eager", "graph"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
class TestOnAGpu:
    pytestmark = needs_gpu

    def test_logits_are_those_of_the_cpu(self, loaded, precision, job):
        patterns = make_patterns(300)
        backend = TorchBackend(loaded, "cuda:0", precision, batch_size=128, n_patterns=job)
        expected = TorchBackend(loaded, "cpu", "fp32").logits(patterns)
        error = abs(backend.logits(patterns) - expected).max() / abs(expected).max()
        assert error < (1e-3 if precision == "fp32" else 5e-2)

    def test_a_batch_of_its_own_choice_and_pinned_input(self, loaded, precision, job):
        backend = TorchBackend(loaded, "cuda:0", precision, n_patterns=job)
        assert backend.batch_size == 4096
        x = backend.empty_input((5000, 501))
        assert torch.from_numpy(x).is_pinned()
        x[:] = make_patterns(5000)
        assert (backend.logits(x) == backend.logits(x.copy())).all()


def test_auto_leaves_a_named_back_end_on_the_cpu(monkeypatch, loaded):
    pretend(monkeypatch, 1, 1)
    assert choose_backend(loaded, "auto", "native").device == "cpu"


def test_torch_on_a_cpu_does_not_pretend_to_be_bf16(loaded):
    with pytest.raises(UsageError, match="on a CPU torch computes in fp32"):
        choose_backend(loaded, "cpu", "torch", "bf16")


def test_a_batch_is_no_larger_than_the_job(loaded):
    assert choose_backend(loaded, "cpu", "torch", batch_size=100_000, n_patterns=35).batch_size == 35
