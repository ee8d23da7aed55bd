"""The tile of a launch: tried out on the device where that pays, else by the heuristics."""

import torch

from .conv_norm_gelu_tiles import Tile, heuristic


def choose_tile(kind: str, c_in: int, c_out: int, taps: int, dtype: torch.dtype) -> Tile:
    """Choose the tile of one kernel."""
    return heuristic(kind, c_in, c_out, taps, dtype.itemsize)
