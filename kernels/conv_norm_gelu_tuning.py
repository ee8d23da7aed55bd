"""The tile of a launch: tried out once on each kind of GPU, then remembered on disk; else the heuristic one.

A trial times the kernel on rows of its own, so the choice depends on nothing but the weight's shape and the
dtype. Launches of few rows take half the heuristic tile, and ``HXRD_AUTOTUNE=0`` forbids it.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from . import conv_norm_gelu_launch as launch
from .conv_norm_gelu_launch import NO_DROPOUT, Geometry, Launch, Norm
from .conv_norm_gelu_tiles import Tile, candidates, for_few_rows, heuristic, padded
from .triton_tiles import TRITON_VERSION

SWITCH = "HXRD_AUTOTUNE"
SMALL = (
    2**15
)  # rows below which a launch has fewer tiles than a large GPU runs at once: no trial, smaller tiles
TRIAL = (1024, 128)  # patterns and points that are timed

_known: dict[str, dict[str, Tile]] = {}
_lock = threading.Lock()


def choose_tile(kind: str, device: torch.device, dtype: torch.dtype, geometry: Geometry) -> Tile:
    """Choose the tile of one kernel.

    Parameters
    ----------
    kind : str
        One of `conv_norm_gelu_tiles.KINDS`.
    device, dtype : torch.device, torch.dtype
        Of the input.
    geometry : Geometry
        Of the launch.
    """
    shape = geometry.c_in, geometry.c_out, geometry.taps
    usual = heuristic(kind, *shape, dtype.itemsize)
    if isinstance(geometry.n_rows, int) and geometry.n_rows < SMALL:  # else large, or a symbol
        return for_few_rows(kind, usual, dtype.itemsize)
    if not _may_try(device):
        return usual
    gpu = torch.cuda.get_device_name(device)
    key = f"{kind} {geometry.c_in} {geometry.c_out} {geometry.taps} {str(dtype).removeprefix('torch.')}"
    with _lock:
        if gpu not in _known:
            _known[gpu] = _read(gpu)
        known = _known[gpu]
        if key not in known and not torch.cuda.is_current_stream_capturing():
            tiles = candidates(kind, *shape, dtype.itemsize)
            known[key] = _apart(
                device, lambda: quickest(tiles, lambda tile: trial(kind, *shape, tile, dtype, device))
            )
            _write(gpu, known)
        return known.get(key, usual)


def _may_try(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available() and os.environ.get(SWITCH) != "0"


def quickest(tiles: list[Tile], prepare: Callable[[Tile], Launch]) -> Tile:
    """Return the tile whose launch takes least time; those that spill registers or do not fit are left out.

    Parameters
    ----------
    tiles : list of Tile
        The first is taken where none can run.
    prepare : callable
        Turns a tile into a launch.
    """
    times = {tile: _milliseconds(prepare(tile)) for tile in tiles}
    return min(tiles, key=lambda tile: times[tile])


def _milliseconds(prepared: Launch) -> float:
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        compiled = prepared.run_now()
    except OutOfResources:
        return float("inf")
    if getattr(compiled, "n_spills", 0):
        return float("inf")
    return do_bench(prepared.run_now, warmup=3, rep=15, return_mode="median")


def trial(
    kind: str, c_in: int, c_out: int, taps: int, tile: Tile, dtype: torch.dtype, device: torch.device
) -> Launch:
    """Prepare a launch of one kernel on rows of noise."""
    batch, length = TRIAL
    padding = taps // 2
    length_out = length + 2 * padding - taps + 1
    geometry = Geometry(batch, length, length_out, c_in, c_out, taps, 1, padding)

    def noise(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, device=device).to(kind)

    x_BLC, weight = launch.channels_last(noise(batch, length, c_in)), noise(c_out, c_in, taps)
    out_BLN = torch.empty(batch, length_out, c_out, dtype=dtype, device=device)
    norm = Norm(noise(c_out, kind=torch.float32), noise(c_out, kind=torch.float32), 1e-5)
    if kind == "forward":
        return launch.forward(
            x_BLC, weight, norm, None, None, NO_DROPOUT, (out_BLN, None), geometry, True, tile
        )
    grad = noise(batch, length_out, c_out)
    if kind == "rows":
        programs = min(launch.ceil_div(geometry.n_rows, tile.block_m), launch.LARGEST_PROGRAMS)
        grad_norm = noise(programs, 2, c_out, kind=torch.float32)
        return launch.rows_backward(
            x_BLC, weight, norm, None, NO_DROPOUT, grad, (out_BLN, None, grad_norm), geometry, True, tile
        )
    grad = launch.channels_last(grad)
    if kind == "input":
        grad_x = torch.empty(batch, length, c_in, dtype=dtype, device=device)
        return launch.input_backward(grad, weight, None, grad_x, geometry, tile)
    depth = launch.ceil_div(taps * c_in, tile.block_k) * tile.block_k
    grad_weight = torch.zeros(1, depth, padded(c_out), device=device)
    return launch.weight_backward(x_BLC, grad, grad_weight, geometry, True, tile)


def _apart(device: torch.device, work: Callable[[], Tile]) -> Tile:
    """Run in a thread of its own, where no tracing of torch.compile turns tensors into symbols."""
    results: list[Any] = []

    def keep() -> None:
        try:
            several = torch.cuda.device_count() > 1  # and a new thread begins on the first
            with torch.cuda.device(device) if several else contextlib.nullcontext():
                results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=keep, name="hxrd-tuning")
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def _file(gpu: str) -> Path:
    """Return where the choices for a GPU stand: another one for other kernels or another Triton."""
    folder = Path(__file__).resolve().parent
    names = "triton_tiles", "conv_norm_gelu_kernels", "conv_norm_gelu_tiles"
    sources = b"".join((folder / f"{name}.py").read_bytes() for name in names)
    digest = hashlib.sha256(f"{gpu} {TRITON_VERSION} ".encode() + sources).hexdigest()[:16]
    return user_cache_path("hxrd") / "tiles" / f"{digest}.json"


def _read(gpu: str) -> dict[str, Tile]:
    """Read the choices; none where there is no file or it makes no sense."""
    try:
        stored = json.loads(_file(gpu).read_text(encoding="utf-8"))
        return {key: Tile(**fields) for key, fields in stored["tiles"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(gpu: str, tiles: dict[str, Tile]) -> None:
    """Write the choices, whole or not at all; a folder that cannot be written is left alone."""
    choices = {key: tile.as_dict() for key, tile in sorted(tiles.items())}
    stored = {"gpu": gpu, "triton": TRITON_VERSION, "tiles": choices}
    file = _file(gpu)
    part = file.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(stored, indent=1), encoding="utf-8")
        part.replace(file)
