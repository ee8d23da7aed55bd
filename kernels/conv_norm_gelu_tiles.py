"""Which tile each kernel of `conv_norm_gelu` works on: heuristics, and the few candidates that are tried.

Heuristics. A tile is as many rows as give each thread some 32 accumulators (128 rows of up to 64 channels in
16-bit types, half of it in float32), for LayerNorm needs whole rows in registers. Of the taps' products it
takes up to 64 channels of one tap at a time, fewer where a stage of the pipeline would exceed 24 KiB of
shared memory: three stages then fit the 99 KiB of the smallest chips since sm_80. Below 16 input channels
several taps share a product. The weight's gradient has taps and channels for rows and sums over 64 points
at a time. float32 is multiplied as three TF32 products, whose error is that of float32 to a few units.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from .triton_tiles import SMALLEST_DOT

KINDS = ("forward", "rows", "input", "weight")
STAGE_BYTES = 24 * 1024  # of shared memory
PRECISION = "tf32x3"  # of float32 products


@dataclass(frozen=True)
class Tile:
    """Compile-time choices of one kernel.

    Parameters
    ----------
    block_m, block_k : int
        Rows, and elements of the inner dimension (of the `weight` kernel: of the outer one).
    num_warps, num_stages : int
        Warps of a program, and stages of its software pipeline.
    """

    block_m: int
    block_k: int
    num_warps: int
    num_stages: int

    def as_dict(self) -> dict[str, int]:
        """Return the fields, for JSON."""
        return asdict(self)

    @property
    def options(self) -> dict[str, Any]:
        """The kernel's arguments."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_K": self.block_k,
            "PRECISION": PRECISION,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


def padded(width: int) -> int:
    """Return the columns of a tile of `width` channels."""
    return max(width, SMALLEST_DOT)


def heuristic(kind: str, c_in: int, c_out: int, taps: int, itemsize: int) -> Tile:
    """Choose the tile of a kernel without trying any.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    c_in, c_out, taps : int
        Shape of the convolution's weight.
    itemsize : int
        Bytes of one input value.
    """
    if kind == "weight":
        return _weight_tile(c_in, c_out, taps, itemsize)
    inner, columns = (c_out, padded(c_in)) if kind == "input" else (c_in, padded(c_out))
    block_m = _rows(columns, itemsize, least=32 if kind == "rows" else 64)
    block_k = SMALLEST_DOT if inner < SMALLEST_DOT else min(inner, 64)
    while block_k > SMALLEST_DOT and (block_m + columns) * block_k * itemsize > STAGE_BYTES:
        block_k //= 2
    return Tile(block_m, block_k, _warps(block_m, columns, itemsize), 3)


def for_few_rows(kind: str, tile: Tile, itemsize: int) -> Tile:
    """Return the tile for a launch of few rows: half as large, so that more of the GPU has work.

    In float32 it is as large as ever: half of it would spill registers with four warps.
    """
    if kind == "weight" or tile.block_m <= 64 or itemsize > 2:
        return tile
    return replace(tile, block_m=tile.block_m // 2, num_warps=4)


def candidates(kind: str, c_in: int, c_out: int, taps: int, itemsize: int) -> list[Tile]:
    """Return the tiles that are worth a trial, the heuristic one first."""
    first = heuristic(kind, c_in, c_out, taps, itemsize)
    tried = [first, replace(first, num_stages=4)]
    if itemsize > 2:
        return tried
    if first.num_warps == 4:
        tried.append(replace(first, num_warps=8))
    if for_few_rows(kind, first, itemsize) != first:
        tried.append(for_few_rows(kind, first, itemsize))
    if kind == "weight" and first.block_k > 2 * SMALLEST_DOT:
        tried.append(replace(first, block_k=first.block_k // 2, num_warps=4))
    return tried


def _weight_tile(c_in: int, c_out: int, taps: int, itemsize: int) -> Tile:
    """Take as many elements of the windows as the accumulators allow, so that gradients are read seldom."""
    columns = padded(c_out)
    block_k = _rows(columns, itemsize, least=64)
    while block_k > SMALLEST_DOT and block_k >= 2 * taps * c_in:
        block_k //= 2
    block_m = 64 if itemsize == 2 else 32
    while block_m > 2 * SMALLEST_DOT and block_m * (block_k + columns) * itemsize > STAGE_BYTES:
        block_m //= 2
    return Tile(block_m, block_k, _warps(block_k, columns, itemsize), 3)


def _rows(columns: int, itemsize: int, least: int) -> int:
    """Return how many rows of accumulators a program holds: 8192 numbers, or 4096 for float32."""
    return min(max(16384 // itemsize // columns, least if itemsize == 2 else SMALLEST_DOT), 128)


def _warps(rows: int, columns: int, itemsize: int) -> int:
    """Give float32 twice the threads: the parts of its factors live in registers too."""
    return 4 if rows * columns * itemsize <= 8192 else 8
