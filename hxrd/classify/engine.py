"""From patterns to logits, in a bounded stream: threads read and prepare ahead while the network runs.

Shape suffixes: B batch, C channels, L positions along the pattern.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hxrd.classify.inputs import REJECTED, Concatenation, PatternSlice
from hxrd.classify.results import ClassifiedBatch
from hxrd.errors import HxrdError, InputError, UsageError
from hxrd.models.preprocess import Grid, coverage, doubts, preprocess_batch
from hxrd.models.registry import LoadedModel, ModelMetadata, network_input

BATCH_ON_CPU, BATCH_ON_GPU = 64, 1024
LEAST_READ = 512  # patterns read at a time
READERS = 2

REASONS = {
    "not-finite": "an intensity is not a finite number",
    "flat": "no peak stands out",
    "out-of-range": "too little of the model's range is covered",
}


def resolve_device(device: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    HxrdError
        There is no such device.
    UsageError
        Several devices are named.
    """
    if "," in device:
        raise UsageError(f"--device {device}: one device at a time; give the first alone")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = torch.device(device)
    n_present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted.type == "cuda" and (wanted.index or 0) >= n_present:
        raise HxrdError(f"no device {device} ({n_present} CUDA devices here); give --device cpu or auto")
    return wanted


class Predictor:
    """A network on its device, run on batches of one fixed size.

    A pattern stands at the same place of an equally large batch however a run is cut into ranges, so a
    resumed run gives the same numbers as an uninterrupted one.

    Parameters
    ----------
    loaded : LoadedModel
        The model.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        Where it runs.
    precision : {"auto", "fp32", "bf16"}
        ``auto`` is bf16 on a CUDA device that has it and fp32 elsewhere.
    batch_size : int, optional
        64 on a CPU and 1024 on a GPU where left out.

    Raises
    ------
    HxrdError
        There is no such device.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
    ):
        self.device = resolve_device(device)
        on_gpu = self.device.type == "cuda"
        self.batch_size = batch_size or (BATCH_ON_GPU if on_gpu else BATCH_ON_CPU)
        if precision == "auto":
            precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
        self.precision = precision
        self.n_classes = loaded.metadata.n_classes
        self._model = loaded.model.to(self.device).eval()
        # On a CPU a batch for each thread: the layers are too small to be shared out among threads.
        n_threads = 1 if on_gpu else torch.get_num_threads()
        self._threads = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, prepared: NDArray[np.float32], first: int = 0) -> NDArray[np.float32]:
        """Return logits (n, n_classes) of network inputs (n, n_points), the first being pattern `first`."""
        n, lead = len(prepared), first % self.batch_size
        padded_length = -(-(lead + n) // self.batch_size) * self.batch_size
        padded = np.zeros((padded_length, prepared.shape[1]), np.float32)
        padded[lead : lead + n] = prepared
        batches = np.split(padded, padded_length // self.batch_size)
        logits = list(self._threads.map(self._logits, batches))
        return np.concatenate(logits)[lead : lead + n]

    @torch.inference_mode()
    def _logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        x_BCL = torch.from_numpy(batch)[:, None].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self._model(x_BCL)
        return logits.float().cpu().numpy()


def prepare(
    patterns: PatternSlice, metadata: ModelMetadata, target: Grid
) -> tuple[NDArray[np.float32], list[str]]:
    """Bring patterns to a model's grid and say which of them cannot be classified.

    Parameters
    ----------
    patterns : PatternSlice
        Of one input.
    metadata : ModelMetadata
        Of the model.
    target : Grid
        Its grid and wavelength.

    Returns
    -------
    intensity : ndarray, shape (n, n_points), float32
        Input of the network; rows with a flag are of no meaning.
    flag : list of str, length n
        ``rejected``, ``not-finite``, ``flat``, ``out-of-range`` or empty.

    Raises
    ------
    InputError
        A grid that no pattern can have.
    """
    n = len(patterns.source_id)
    if not len(patterns.two_theta):
        return np.zeros((n, len(target.two_theta)), np.float32), list(patterns.flag)
    prepared = preprocess_batch(
        patterns.intensity,
        patterns.two_theta,
        patterns.wavelength,
        target,
        metadata.preprocessing == "background",
        probe=metadata.probe,
    )
    covered, _, _ = coverage(patterns.two_theta, patterns.wavelength, target)
    seen = doubts(patterns.intensity, prepared, covered)
    flags = [known or doubt for known, doubt in zip(patterns.flag, seen, strict=True)]
    return network_input(prepared, metadata), flags


def classify_patterns(
    patterns: Concatenation,
    loaded: LoadedModel,
    predictor: Predictor,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[ClassifiedBatch]:
    """Classify patterns in their order.

    Parameters
    ----------
    patterns : Concatenation
        Where they come from.
    loaded : LoadedModel
        Its metadata say how patterns are prepared.
    predictor : Predictor
        Of the same model.
    start, stop : int
        The first pattern and the one after the last; all of them where left out.

    Yields
    ------
    ClassifiedBatch
        Some 512 patterns each. Memory does not grow with their number.

    Raises
    ------
    InputError
        An archive turns out to be corrupt.
    """
    metadata = loaded.metadata
    target = Grid.of_range(*metadata.grid, metadata.wavelength)
    stop = patterns.n_patterns if stop is None else stop
    size = -(-LEAST_READ // predictor.batch_size) * predictor.batch_size
    first_stop = min(stop, (start // size + 1) * size)
    bounds = [start, *range(first_stop, stop, size), stop] if start < stop else []

    def load(first: int, end: int) -> tuple[NDArray[np.float32], ClassifiedBatch]:
        return _load(patterns, metadata, target, first, end)

    spans = list(pairwise(bounds))
    for prepared, batch in _ahead(load, spans):
        batch.logits[:] = predictor(prepared, batch.first)
        yield batch


def _load(
    patterns: Concatenation, metadata: ModelMetadata, target: Grid, first: int, end: int
) -> tuple[NDArray[np.float32], ClassifiedBatch]:
    prepared, slices, flags, reasons = [], [], [], []
    for part in patterns.read(first, end):
        try:
            rows, row_flags = prepare(part, metadata, target)
            reasons += part.reason
        except InputError as error:
            n = len(part.source_id)
            rows, row_flags = np.zeros((n, len(target.two_theta)), np.float32), [REJECTED] * n
            reasons += [str(error)] * n
        prepared.append(rows)
        flags += row_flags
        slices.append(part)
    batch = ClassifiedBatch(
        first,
        [name for part in slices for name in part.source_id],
        flags,
        [reason or REASONS.get(flag, "") for reason, flag in zip(reasons, flags, strict=True)],
        np.concatenate([part.space_group for part in slices]),
        np.zeros((end - first, metadata.n_classes), np.float32),
    )
    return np.concatenate(prepared), batch


def _ahead(load: Callable[[int, int], Any], spans: list[tuple[int, int]]) -> Iterator[Any]:
    """Yield `load` of each span in order, a few of them begun before they are asked for."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(READERS, thread_name_prefix="hxrd-read") as pool:
        try:
            for span in spans:
                waiting.append(pool.submit(load, *span))
                if len(waiting) > READERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
