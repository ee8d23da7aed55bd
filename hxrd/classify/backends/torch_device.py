"""The network run by torch, on a GPU or on the CPU; its classes are ranked on the same device.

Shape suffixes: B batch, L positions along the pattern.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hxrd.classify.backends.cuda_batches import CudaBatches, fitting_batch
from hxrd.classify.backends.torch_ranks import rank_tensors
from hxrd.classify.ranking import Ranking, Ranks
from hxrd.cores import available_cores
from hxrd.errors import UsageError
from hxrd.models.registry import build_network

if TYPE_CHECKING:
    from hxrd.models.registry import LoadedModel
    from hxrd.models.resnet1d import ResNet1D

BATCH_ON_CPU = 64
LARGEST_BATCH = 4096  # on a GPU, which more would not make quicker
PROBE_BATCH = 64  # patterns whose memory is measured
GRAPH_JOB = 100_000  # patterns that repay the second in which a CUDA graph is recorded
COMPILED_JOB = 5_000_000  # patterns that repay the half minute of inductor

Step = Callable[[Tensor], tuple[Tensor, ...]]


class Batches(Protocol):
    """Puts any number of patterns through a step, `batch_size` at a time."""

    def run(self, step: Step, key: object, x: NDArray[np.float32], batch_size: int) -> list[NDArray]:  # type: ignore[type-arg]
        """Return each output of the step for all patterns; `key` tells one step from another."""

    def forget(self) -> None:
        """Free what is held for the present batch size."""


class TorchBackend:
    """A network in torch, in batches of one fixed size.

    Parameters
    ----------
    loaded : LoadedModel
        The model.
    device : str
        ``cpu`` or ``cuda:N``.
    precision : {"auto", "fp32", "bf16"}
        ``auto`` is bf16 on a CUDA device that has it and fp32 elsewhere.
    batch_size : int, optional
        64 on a CPU, and on a GPU what its free memory holds, at most 4096, where left out.
    threads : int, optional
        Of a CPU; all that the process may use where left out.
    n_patterns : int, optional
        Size of the job: on a GPU a large one is recorded as a CUDA graph, a very large one compiled first.

    Raises
    ------
    UsageError
        bf16 is asked for on a CPU.
    """

    name = "torch"

    def __init__(
        self,
        loaded: "LoadedModel",
        device: str = "cpu",
        precision: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
        n_patterns: int | None = None,
    ):
        self.device = device
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        if precision == "auto":
            has_bfloat16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16" if has_bfloat16 else "fp32"
        if precision == "bf16" and not on_gpu:
            raise UsageError(
                "--precision bf16: on a CPU torch computes in fp32 here; give fp32, or --backend native"
            )
        self.precision = precision
        self._n_points, self._n_classes = loaded.metadata.n_points, loaded.metadata.n_classes
        network = build_network(loaded.weights, loaded.metadata.variant).to(self._device)
        n_patterns = n_patterns or 0
        compiled = on_gpu and n_patterns >= COMPILED_JOB
        backbone = torch.compile(network.resnet, dynamic=False) if compiled else network.resnet
        self._features: Callable[[Tensor], Tensor] = backbone
        self._classifier = network.classifier
        self._lock = threading.Lock()
        self._batches: Batches
        if on_gpu:
            self._batches = CudaBatches(self._device, graphs=n_patterns >= GRAPH_JOB)
        else:
            self._batches = ThreadBatches(threads or available_cores())
        self.batch_size = batch_size or (self._fitting_batch(network) if on_gpu else BATCH_ON_CPU)

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits (n, n_classes) of network inputs (n, n_points)."""
        if not len(x):
            return np.zeros((0, self._n_classes), np.float32)
        (logits,) = self._run(lambda x_BL: (self._logits(x_BL),), "logits", x)
        return logits

    def ranks(
        self, x: NDArray[np.float32], ranking: Ranking, with_logits: bool
    ) -> tuple[Ranks, NDArray[np.float32] | None]:
        """Return the ranks of network inputs (n, n_points) and, if asked for, their logits."""
        if not len(x):
            return Ranks.empty(0, ranking.k), self.logits(x) if with_logits else None

        def step(x_BL: Tensor) -> tuple[Tensor, ...]:
            logits = self._logits(x_BL)
            return (*rank_tensors(logits, ranking), *((logits,) if with_logits else ()))

        outputs = self._run(step, (ranking, with_logits), x)
        return Ranks(*outputs[:4]), outputs[4] if with_logits else None

    def empty_input(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Return an array for network inputs, for a GPU in memory that it can read by itself."""
        array: NDArray[np.float32] = torch.empty(shape, pin_memory=self._device.type == "cuda").numpy()
        return array

    def shrink(self, batch_size: int) -> bool:
        """Halve the batch unless another thread has done so since it was `batch_size`; False if it is 1."""
        with self._lock:
            if self.batch_size != batch_size:
                return True
            if batch_size == 1:
                return False
            self.batch_size = batch_size // 2
            self._batches.forget()
            return True

    def _run(self, step: Step, key: object, x: NDArray[np.float32]) -> list[NDArray]:  # type: ignore[type-arg]
        with memory_errors():
            return self._batches.run(step, key, x, self.batch_size)

    def _logits(self, x_BL: Tensor) -> Tensor:
        kind = self._device.type
        with torch.inference_mode():
            with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
                features = self._features(x_BL)
            logits: Tensor = self._classifier(features.float())  # rounded, classes would tie
        return logits

    def _fitting_batch(self, network: "ResNet1D") -> int:
        """Measure what one pattern needs and see how many the free memory holds."""
        self._features, kept = network.resnet, self._features  # not the compiled ones, of the whole batch
        with torch.cuda.device(self._device), memory_errors():
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self._logits(torch.zeros(PROBE_BATCH, self._n_points, device=self._device))
            needed = (torch.cuda.max_memory_allocated() - before) / PROBE_BATCH
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
        self._features = kept
        return fitting_batch(free, needed, LARGEST_BATCH)


class ThreadBatches:
    """Batches on a CPU, one a thread: the layers are too small to be shared out among threads.

    Parameters
    ----------
    threads : int
        Batches in work at a time.
    """

    def __init__(self, threads: int):
        self._threads = ThreadPoolExecutor(threads, "hxrd-torch", torch.set_num_threads, (1,))

    def run(self, step: Step, key: object, x: NDArray[np.float32], batch_size: int) -> list[NDArray]:  # type: ignore[type-arg]
        """Return each output of the step for all patterns."""

        def outputs(first: int) -> list[NDArray]:  # type: ignore[type-arg]
            part = x[first : first + batch_size]
            x_BL = torch.zeros(batch_size, x.shape[1])
            x_BL[: len(part)] = torch.from_numpy(part)
            return [output[: len(part)].numpy() for output in step(x_BL)]

        parts = list(self._threads.map(outputs, range(0, len(x), batch_size)))
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def forget(self) -> None:
        """Free nothing: nothing is held."""


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's several ways to say that memory ran out into MemoryError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error
    except RuntimeError as error:
        if "allocate memory" in str(error) or "out of memory" in str(error):
            raise MemoryError(str(error)) from error
        raise
