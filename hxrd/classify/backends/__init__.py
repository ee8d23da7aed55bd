"""What runs the network: one module a back end, behind one small protocol.

A back end is a class whose constructor takes ``(loaded, device, precision, batch_size, threads)`` and, where
the size of the job matters to it, ``n_patterns``. To add one, write its module and name it in `BACKENDS`.
"""

import ctypes
import importlib
import sys
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hxrd.errors import HxrdError, UsageError

if TYPE_CHECKING:
    from hxrd.classify.ranking import Ranking, Ranks
    from hxrd.models.registry import LoadedModel

AUTO = "auto"


class Backend(Protocol):
    """A network on a device.

    Parameters
    ----------
    name : str
        As in ``--backend``.
    device : str
        ``cpu``, ``cuda:0``, …
    precision : {"fp32", "bf16"}
        Of the convolutions.
    batch_size : int
        Patterns that go through the network together.
    """

    name: str
    device: str
    precision: str
    batch_size: int

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits (n, n_classes) of network inputs (n, n_points), for any n.

        Several threads may call at once. A row's logits do not depend on the rows beside it.
        """


@runtime_checkable
class RanksOnDevice(Protocol):
    """A back end that ranks the classes where the logits are, so that only the ranks travel."""

    def ranks(
        self, x: NDArray[np.float32], ranking: "Ranking", with_logits: bool
    ) -> "tuple[Ranks, NDArray[np.float32] | None]":
        """Return the ranks of network inputs (n, n_points) and, if asked for, their logits."""


@runtime_checkable
class PinnedInput(Protocol):
    """A back end that takes inputs quicker from memory that it provides."""

    def empty_input(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Return an array for network inputs, to be filled."""


@runtime_checkable
class Shrinking(Protocol):
    """A back end that can go on with smaller batches where `logits` or `ranks` raised MemoryError."""

    def shrink(self, batch_size: int) -> bool:
        """Halve the batch unless another thread has done so since it was `batch_size`; False if it is 1."""


class _Entry(NamedTuple):
    module: str
    class_name: str
    devices: tuple[str, ...]
    knows_size: bool = False


BACKENDS = {
    "native": _Entry("native", "NativeBackend", ("cpu",), knows_size=True),
    "torch": _Entry("torch_device", "TorchBackend", ("cpu", "cuda"), knows_size=True),
    "onnxruntime": _Entry("onnx", "OnnxRuntimeBackend", ("cpu", "cuda")),
    "openvino": _Entry("openvino", "OpenVinoBackend", ("cpu",)),
}


def choose_backend(
    loaded: "LoadedModel",
    device: str = AUTO,
    backend: str = AUTO,
    precision: str = AUTO,
    batch_size: int | None = None,
    threads: int | None = None,
    n_patterns: int | None = None,
) -> Backend:
    """Return the back end for one device.

    Parameters
    ----------
    loaded : LoadedModel
        The model.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        Where it runs.
    backend : {"auto", "native", "torch", "onnxruntime", "openvino"}
        ``auto`` is native on the CPU and torch on CUDA. With device ``auto`` all but torch run on the CPU.
    precision : {"auto", "fp32", "bf16"}
        ``auto`` is bf16 where the hardware has it.
    batch_size : int, optional
        The back end's own choice where left out.
    threads : int, optional
        Of the processor; all that the process may use where left out.
    n_patterns : int, optional
        Size of the job: a small one does not wait for a compiler.

    Raises
    ------
    HxrdError
        There is no such device, or a package is not installed.
    UsageError
        The back end does not run on that device.
    """
    if device == AUTO and backend not in (AUTO, "torch"):
        device = "cpu"  # where every one of the others runs
    device = resolve_device(device)
    kind = device.split(":")[0]
    name = backend if backend != AUTO else ("torch" if kind == "cuda" else "native")
    entry = BACKENDS.get(name)
    if entry is None:
        raise UsageError(f"--backend {backend} is none of auto, {', '.join(BACKENDS)}")
    if kind not in entry.devices:
        raise UsageError(f"backend {name} runs on {' and '.join(entry.devices)} only, not on {device}")
    more = {"n_patterns": n_patterns} if entry.knows_size else {}
    if batch_size is not None and n_patterns:
        batch_size = min(
            batch_size, n_patterns
        )  # a batch is filled up, which is to cost no more than the job
    try:
        module = importlib.import_module(f"{__name__}.{entry.module}")
        made: Backend = getattr(module, entry.class_name)(
            loaded, device, precision, batch_size, threads, **more
        )
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("hxrd"):
            raise
        raise HxrdError(
            f"backend {name} needs {error.name}, which is not installed: pip install 'hxrd[{name}]'"
        ) from error
    return made


def choose_backends(
    loaded: "LoadedModel",
    device: str = AUTO,
    backend: str = AUTO,
    precision: str = AUTO,
    batch_size: int | None = None,
    threads: int | None = None,
    n_patterns: int | None = None,
) -> list[Backend]:
    """Return a back end for each device of ``--device``, such as ``cuda:0,1`` (see `choose_backend`)."""
    devices = device_names(device)
    return [
        choose_backend(loaded, one, backend, precision, batch_size, threads, n_patterns) for one in devices
    ]


def device_names(device: str) -> list[str]:
    """Return each device of ``cuda:0,1…`` by its own name, without repeats; one of any other kind alone."""
    kind, _, numbers = device.partition(":")
    return (
        list(dict.fromkeys(f"{kind}:{int(number)}" for number in numbers.split(","))) if numbers else [kind]
    )


def resolve_device(device: str) -> str:
    """Return ``cpu`` or ``cuda:N`` for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Torch is imported only where the driver names a CUDA device or one is asked for.

    Raises
    ------
    HxrdError
        There is no such device.
    """
    if device == "cpu" or (device == AUTO and not driver_devices()):
        return "cpu"
    n_present = _torch_devices()
    index = int(device.partition(":")[2] or 0)
    if device == AUTO:
        return "cuda:0" if n_present else "cpu"
    if index >= n_present:
        raise HxrdError(f"no device {device} ({n_present} CUDA devices here); give --device cpu or auto")
    return f"cuda:{index}"


def driver_devices() -> int:
    """Return the number of CUDA devices that the driver names; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _torch_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
