"""Ways to run the same classifier on a CPU, each in its best setting of a few.

A contestant is a call from network inputs (n, n_points) to logits (n, n_classes). All may use all cores.
"""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from interleaved import timed
from numpy.typing import NDArray
from plain_network import PlainNetwork

from hxrd.classify.backends import choose_backend
from hxrd.classify.backends.onnx import OnnxRuntimeBackend
from hxrd.cores import available_cores
from hxrd.models.onnx_export import INPUT, OUTPUT, onnx_model
from hxrd.models.registry import LoadedModel

Floats = NDArray[np.float32]
Classifier = Callable[[Floats], Floats]
Settings = dict[str, Classifier]

MANY = 10**6  # patterns of a job that is worth compiling for
BATCH = 64
TRIALS = 3  # of each setting, before the best is chosen


def ours(loaded: LoadedModel, precision: str) -> Classifier:
    """Return the native back end as `hxrd classify` chooses it for a large job."""
    return choose_backend(loaded, "cpu", "native", precision, n_patterns=MANY).logits


def peers(loaded: LoadedModel, half: bool) -> dict[str, Settings]:
    """Return the settings of every peer, by its name.

    Parameters
    ----------
    loaded : LoadedModel
        The same weights for all.
    half : bool
        Whether the processor has bf16, so that peers are run with it too.
    """
    found = {
        "onnxruntime fp32": onnxruntime(loaded),
        "openvino fp32": openvino(loaded, "f32"),
        "release's layout eager fp32": eager(loaded, False),
    }
    called = f"a batch of {BATCH}, all threads"
    found["release's layout eager fp32, as called"] = {called: found["release's layout eager fp32"][called]}
    if half:
        found["openvino bf16"] = openvino(loaded, "bf16")
        found["release's layout eager AMP"] = eager(loaded, True)
    return found


def onnxruntime(loaded: LoadedModel) -> Settings:
    """Settings of onnxruntime, two-dimensional convolutions: a batch a thread, or all threads on one."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cores()
    session = ort.InferenceSession(
        onnx_model(loaded).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def all_threads(x: Floats) -> Floats:
        return np.concatenate([session.run([OUTPUT], {INPUT: part[:, None]})[0] for part in _parts(x, BATCH)])

    a_thread = {
        f"a batch of {size} a thread": OnnxRuntimeBackend(loaded, batch_size=size).logits for size in (16, 64)
    }
    return a_thread | {f"a batch of {BATCH}, all threads": all_threads}


def openvino(loaded: LoadedModel, precision: str) -> Settings:
    """Settings of OpenVINO: both performance hints, two batch sizes, static shapes, an asynchronous queue."""
    settings = [("THROUGHPUT", 16), ("THROUGHPUT", 64), ("LATENCY", 64)]
    return {
        f"{hint.lower()} hint, batches of {size}": _openvino_queue(loaded, precision, hint, size)
        for hint, size in settings
    }


def _openvino_queue(loaded: LoadedModel, precision: str, hint: str, size: int) -> Classifier:
    import openvino

    core = openvino.Core()
    graph = core.read_model(onnx_model(loaded, planar=False).SerializeToString())
    graph.reshape([size, 1, loaded.metadata.n_points])
    compiled = core.compile_model(
        graph, "CPU", {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": hint}
    )
    queue = openvino.AsyncInferQueue(compiled)
    n_classes = loaded.metadata.n_classes

    def classify(x: Floats) -> Floats:
        logits = np.empty((-(-len(x) // size) * size, n_classes), np.float32)

        def keep(request: Any, first: int) -> None:
            logits[first : first + size] = request.get_output_tensor(0).data

        # The queue keeps no hold of an input that it shares, so they are held here until it is done.
        held = [_filled_up(part, size)[:, None] for part in _parts(x, size)]
        queue.set_callback(keep)
        for number, part in enumerate(held):
            queue.start_async({0: part}, number * size, share_inputs=True)
        queue.wait_all()
        return logits[: len(x)]

    return classify


def eager(loaded: LoadedModel, half: bool) -> Settings:
    """Settings of torch without compiler, channels first: all threads on a batch, or a batch a thread."""
    network = PlainNetwork(copy.deepcopy(loaded.model), "channels-first").eval()
    pool = ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,))

    @torch.inference_mode()
    def run(part: Floats) -> Floats:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return network(torch.from_numpy(part)[:, None]).float().numpy()

    def all_threads(x: Floats) -> Floats:
        torch.set_num_threads(available_cores())
        return np.concatenate([run(part) for part in _parts(x, BATCH)])

    def a_thread(size: int) -> Classifier:
        return lambda x: np.concatenate(list(pool.map(run, _parts(x, size))))

    own = {f"a batch of {size} a thread": a_thread(size) for size in (16, 64)}
    return own | {f"a batch of {BATCH}, all threads": all_threads}


def _parts(x: Floats, size: int) -> list[Floats]:
    return [x[first : first + size] for first in range(0, len(x), size)]


def _filled_up(part: Floats, size: int) -> Floats:
    missing = size - len(part)
    return np.concatenate([part, np.zeros((missing, part.shape[1]), np.float32)]) if missing else part


def best_setting(settings: Settings, x: Floats) -> str:
    """Return the name of the quickest setting, all warmed up and tried in turn."""
    for classify in settings.values():
        classify(x)
    trials = [{name: timed(lambda c=one: c(x)) for name, one in settings.items()} for _ in range(TRIALS)]
    return min(settings, key=lambda name: min(trial[name] for trial in trials))
