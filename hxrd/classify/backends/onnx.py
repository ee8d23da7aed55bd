"""The network run by onnxruntime."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hxrd.classify.backends.fixed_batches import FixedBatches
from hxrd.cores import available_cores
from hxrd.errors import HxrdError, UsageError
from hxrd.models.onnx_export import INPUT, OUTPUT, onnx_model

if TYPE_CHECKING:
    import onnxruntime

    from hxrd.models.registry import LoadedModel

BATCH_ON_CPU, BATCH_ON_GPU = 16, 1024
ERRORS_ONLY = 3  # of onnxruntime's severities


class OnnxRuntimeBackend:
    """A network in onnxruntime, float32.

    On a CPU each thread runs its own batch: the layers are too small to be shared out among threads.

    Parameters
    ----------
    loaded : LoadedModel
        The model.
    device : str
        ``cpu``, or ``cuda:N`` with onnxruntime's CUDA provider.
    precision : {"auto", "fp32"}
        Of the convolutions.
    batch_size : int, optional
        16 on a CPU and 1024 on a GPU where left out.
    threads : int, optional
        All that the process may use where left out.

    Raises
    ------
    ModuleNotFoundError
        The package onnxruntime is not installed.
    UsageError
        A precision that it does not have.
    HxrdError
        This onnxruntime does not know the device.
    """

    name = "onnxruntime"
    precision = "fp32"

    def __init__(
        self,
        loaded: "LoadedModel",
        device: str = "cpu",
        precision: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
    ):
        if precision not in ("auto", "fp32"):
            raise UsageError(
                f"--precision {precision}: backend onnxruntime computes in fp32; give fp32 or auto"
            )
        on_cpu = device == "cpu"
        self.device = device
        self.batch_size = batch_size or (BATCH_ON_CPU if on_cpu else BATCH_ON_GPU)
        self._n_classes = loaded.metadata.n_classes
        self._session = _session(loaded, device)
        self._batches = FixedBatches(
            self._run, self.batch_size, (threads or available_cores()) if on_cpu else 1
        )

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits (n, n_classes) of network inputs (n, n_points)."""
        return self._batches(x) if len(x) else np.zeros((0, self._n_classes), np.float32)

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        (logits,) = self._session.run([OUTPUT], {INPUT: batch})
        return logits


def _session(loaded: "LoadedModel", device: str) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    kind, _, number = device.partition(":")
    providers: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]
    if kind == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise HxrdError(
                f"this onnxruntime cannot use {device}: install onnxruntime-gpu in place of onnxruntime, "
                "or give --backend torch or --device cpu"
            )
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number or "0", "use_tf32": "0"}))
    content = onnx_model(loaded, planar=True).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    if session.get_providers()[0] != providers[0][0]:
        raise HxrdError(
            f"onnxruntime could not load CUDA for {device}: look for a missing cuDNN, "
            "or give --backend torch or --device cpu"
        )
    return session
