"""The network run by OpenVINO."""

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hxrd.classify.backends.fixed_batches import FixedBatches
from hxrd.cores import available_cores
from hxrd.errors import HxrdError
from hxrd.models.onnx_export import onnx_model

if TYPE_CHECKING:
    from hxrd.models.registry import LoadedModel

BATCH = 16
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}  # ours and OpenVINO's names


class OpenVinoBackend:
    """A network in OpenVINO, one stream a thread.

    Parameters
    ----------
    loaded : LoadedModel
        The model.
    device : {"cpu"}
        Where it runs.
    precision : {"auto", "fp32", "bf16"}
        ``auto`` is bf16 where OpenVINO says that the processor has it.
    batch_size : int, optional
        16 where left out. The network is compiled for it: that is half as quick again as any size.
    threads : int, optional
        All that the process may use where left out.

    Raises
    ------
    ModuleNotFoundError
        The package openvino is not installed.
    HxrdError
        The processor has no bf16, and it was asked for.
    """

    name = "openvino"

    def __init__(
        self,
        loaded: "LoadedModel",
        device: str = "cpu",
        precision: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
    ):
        import openvino

        core = openvino.Core()
        self.device = device
        self.precision = _precision(core, precision)
        self.batch_size = batch_size or BATCH
        self._shape = (0, loaded.metadata.n_classes)
        threads = threads or available_cores()
        graph = core.read_model(onnx_model(loaded, planar=False).SerializeToString())
        graph.reshape([self.batch_size, 1, loaded.metadata.n_points])
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision],
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
        }
        self._compiled = core.compile_model(graph, "CPU", settings)
        self._own = threading.local()
        self._batches = FixedBatches(self._run, self.batch_size, threads)

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits (n, n_classes) of network inputs (n, n_points)."""
        return self._batches(x) if len(x) else np.zeros(self._shape, np.float32)

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        if not hasattr(self._own, "request"):  # a request holds one batch: each thread has its own
            self._own.request = self._compiled.create_infer_request()
        request = self._own.request
        request.infer({0: batch}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()


def _precision(core: Any, precision: str) -> str:
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "auto":
        return "bf16" if has_bfloat16 else "fp32"
    if precision == "bf16" and not has_bfloat16:
        raise HxrdError("this processor has no bf16 that OpenVINO could use; give --precision fp32 or auto")
    return precision
