"""Compile every tile of the fused convolutions that a trial may choose, in processes side by side.

The trials of `hxrd.kernels.conv_norm_gelu_tuning` compile one tile after the other, some hundred of them;
now they find these on disk. For `gpu_check.py`, whose time is short.
"""

import multiprocessing
import os
import sys

import torch

from hxrd.kernels import conv_norm_gelu_tuning as tuning
from hxrd.kernels.conv_norm_gelu_tiles import KINDS, Tile, candidates
from hxrd.models.layout import STAGES, STEM_CHANNELS

Job = tuple[str, int, int, int, Tile]


def weight_shapes() -> list[tuple[int, int, int]]:
    """Return input channels, output channels and taps of the network's convolutions, shortcuts included."""
    found, width = set(), STEM_CHANNELS
    for channels, kernel, _ in STAGES:
        found |= {(n, channels, taps) for n in (width, channels) for taps in (kernel, 1)}
        width = channels
    return sorted(found)


def jobs(dtype: torch.dtype) -> list[Job]:
    """Return all that is compiled for a dtype."""
    return [
        (kind, *shape, tile)
        for kind in KINDS
        for shape in weight_shapes()
        for tile in candidates(kind, *shape, dtype.itemsize)
    ]


def compile_one(job: Job, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> str:
    """Compile a tile by one launch; say what failed, nothing where it did not."""
    try:
        tuning.trial(*job, dtype, torch.device(device)).run_now()
    except Exception as error:  # a tile that does not fit this GPU is no reason to stop: trials leave it out
        return f"{job}: {type(error).__name__}: {error}"[:300]
    return ""


def main() -> int:
    """Compile all of them; fail only where none could be compiled."""
    everything = jobs(torch.bfloat16)
    with multiprocessing.get_context("spawn").Pool(min(12, os.cpu_count() or 1)) as pool:
        problems = [problem for problem in pool.imap_unordered(compile_one, everything) if problem]
    print(f"{len(everything) - len(problems)} of {len(everything)} tiles compiled")
    print("\n".join(problems))
    return int(len(problems) == len(everything))


if __name__ == "__main__":
    sys.exit(main())
