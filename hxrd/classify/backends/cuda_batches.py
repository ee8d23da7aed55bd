"""Batches on a GPU: while one is computed the next is copied there, and the ranks of the last one back.

Two slots take turns. Each has its own stream for the way there; one stream computes, one batch after the
other, if asked for as a CUDA graph that is recorded once and then started as a whole.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SLOTS = 2
WARM_UPS = 3  # eager runs before a graph is recorded, in which kernels are tuned and memory is taken
SHARE_OF_MEMORY = 0.7  # of what is free; the rest is for slots, graphs and fragments

Step = Callable[[Tensor], tuple[Tensor, ...]]


def fitting_batch(free: float, needed: float, largest: int) -> int:
    """Return the largest power of two of patterns, at most `largest`, that memory holds; at least 1.

    Parameters
    ----------
    free, needed : float
        Bytes that are free, and that each pattern needs.
    largest : int
        A power of two.
    """
    size = largest
    while size > 1 and size * needed > SHARE_OF_MEMORY * free:
        size //= 2
    return size


@dataclass(eq=False)
class _Slot:
    """A stream, and the memory on both sides that a batch travels through."""

    stream: torch.cuda.Stream
    staged: Tensor | None = None
    fetched: dict[int, Tensor] = field(default_factory=dict)

    def room(self, batch_size: int, n_points: int) -> Tensor:
        """Return memory on the device for a batch."""
        if self.staged is None or self.staged.shape != (batch_size, n_points):
            self.staged = None
            self.staged = torch.empty(batch_size, n_points, device=self.stream.device)
        return self.staged

    def fetch(self, number: int, output: Tensor) -> Tensor:
        """Begin to copy an output to pinned memory of the host."""
        held = self.fetched.get(number)
        if held is None or held.shape != output.shape or held.dtype != output.dtype:
            held = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
            self.fetched[number] = held
        return held.copy_(output, non_blocking=True)


@dataclass(eq=False)
class _Graph:
    """A recorded step with its fixed input and outputs."""

    graph: torch.cuda.CUDAGraph
    x_BL: Tensor
    outputs: tuple[Tensor, ...]


class CudaBatches:
    """Puts patterns through a step on a GPU.

    Parameters
    ----------
    device : torch.device
        Which.
    graphs : bool
        Record each step as a CUDA graph.
    """

    def __init__(self, device: torch.device, *, graphs: bool):
        self._device = device
        self._graphs: dict[object, _Graph] | None = {} if graphs else None
        self._compute = torch.cuda.Stream(device)
        self._lock = threading.Lock()
        self._slots: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(SLOTS):
            self._slots.put(_Slot(torch.cuda.Stream(device)))

    def run(self, step: Step, key: object, x: NDArray[np.float32], batch_size: int) -> list[NDArray]:  # type: ignore[type-arg]
        """Return each output of the step for all patterns; `key` tells one step from another."""
        slot = self._slots.get()
        try:
            with torch.cuda.device(self._device):
                parts = [
                    self._part(slot, step, (key, batch_size), x[first : first + batch_size], batch_size)
                    for first in range(0, len(x), batch_size)
                ]
        finally:
            self._slots.put(slot)
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def forget(self) -> None:
        """Free the recorded graphs, which are of the present batch size."""
        with self._lock:
            if self._graphs:
                self._graphs.clear()
        torch.cuda.empty_cache()

    def _part(
        self, slot: _Slot, step: Step, key: object, part: NDArray[np.float32], batch_size: int
    ) -> list[NDArray]:  # type: ignore[type-arg]
        n = len(part)
        with torch.cuda.stream(slot.stream):
            x_BL = slot.room(batch_size, part.shape[1])
            x_BL[:n].copy_(torch.from_numpy(part), non_blocking=True)
            x_BL[n:].zero_()
            arrived = slot.stream.record_event()
        with self._lock, torch.cuda.stream(self._compute):
            self._compute.wait_event(arrived)
            outputs = step(x_BL) if self._graphs is None else self._replayed(step, key, x_BL)
            fetched = [slot.fetch(number, output) for number, output in enumerate(outputs)]
            done = self._compute.record_event()
        done.synchronize()
        return [values[:n].numpy().copy() for values in fetched]

    def _replayed(self, step: Step, key: object, x_BL: Tensor) -> tuple[Tensor, ...]:
        assert self._graphs is not None
        recorded = self._graphs.get(key)
        if recorded is None:
            recorded = self._graphs[key] = self._recorded(step, x_BL)
        recorded.x_BL.copy_(x_BL)
        recorded.graph.replay()
        return recorded.outputs

    def _recorded(self, step: Step, x_BL: Tensor) -> _Graph:
        fixed = x_BL.clone()
        for _ in range(WARM_UPS):
            step(fixed)
        graph = torch.cuda.CUDAGraph()
        # The other threads go on copying meanwhile, which a recording of all threads would not allow.
        with torch.cuda.graph(graph, stream=self._compute, capture_error_mode="thread_local"):
            outputs = step(fixed)
        return _Graph(graph, fixed, outputs)
