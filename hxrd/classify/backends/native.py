"""hxrd's own network for the CPU: vector code by Numba, or plain NumPy for a few patterns. No torch."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hxrd.cores import available_cores
from hxrd.errors import UsageError
from hxrd.kernels.compiled import can_compile, must_compile, worth_compiling
from hxrd.models.layout import pool_of

if TYPE_CHECKING:
    from hxrd.models.registry import LoadedModel

BATCH = 64  # patterns a thread takes at a time

logger = logging.getLogger("hxrd")

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class NativeBackend:
    """A network on the CPU, one thread a core, each with its own patterns.

    Parameters
    ----------
    loaded : LoadedModel
        The model.
    device : {"cpu"}
        Where it runs.
    precision : {"auto", "fp32", "bf16"}
        ``auto`` is bf16 where the processor multiplies it, and fp32 for a job too small to be compiled for.
    batch_size : int, optional
        64 where left out. What a pattern gives does not depend on it.
    threads : int, optional
        All that the process may use where left out.
    n_patterns : int, optional
        Size of the job: a small one is done in NumPy, without waiting for a compiler.

    Raises
    ------
    UsageError
        bf16 is asked for and the processor does not have it.
    """

    name = "native"
    device = "cpu"

    def __init__(
        self,
        loaded: "LoadedModel",
        device: str = "cpu",
        precision: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
        n_patterns: int | None = None,
    ):
        small = n_patterns is not None and not worth_compiling(n_patterns)
        if (small or not can_compile()) and precision != "bf16":
            self.precision, self._network, threads = "fp32", _plain(loaded), 1  # NumPy's BLAS has its own
        else:
            self.precision, self._network = _compiled(loaded, precision)
        self.batch_size = batch_size or BATCH
        self._n_classes = loaded.metadata.n_classes
        self._threads = ThreadPoolExecutor(threads or available_cores(), thread_name_prefix="hxrd-native")

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits (n, n_classes) of network inputs (n, n_points)."""
        out = np.empty((len(x), self._n_classes), np.float32)
        parts = [slice(first, first + self.batch_size) for first in range(0, len(x), self.batch_size)]

        def fill(part: slice) -> None:
            out[part] = self._network(x[part])

        for _ in self._threads.map(fill, parts):
            pass
        return out


def _plain(loaded: "LoadedModel") -> Network:
    from hxrd.kernels.numpy_network import numpy_logits

    pool = pool_of(loaded.metadata.variant)
    return lambda x: numpy_logits(loaded.weights, x, pool)


def _compiled(loaded: "LoadedModel", precision: str) -> tuple[str, Network]:
    from hxrd.kernels.cpu_network import CpuNetwork, has_bfloat16

    if precision == "auto":
        precision = "bf16" if has_bfloat16() else "fp32"
    if precision == "bf16" and not has_bfloat16():
        raise UsageError("--precision bf16: this processor does not multiply bfloat16; give fp32 or auto")
    if must_compile("cpu_network.*"):
        logger.info("compiling the network for this machine: once, about half a minute")
    network = CpuNetwork(loaded.weights, pool_of(loaded.metadata.variant), precision)  # type: ignore[arg-type]
    return precision, network.logits
