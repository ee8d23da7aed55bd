"""The fused convolutions compiled for three GPUs, without having one: every kernel that the ResNet launches.

`python test_conv_norm_gelu_compiled.py 90 bf16` prints what came out for sm_90.
"""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from compiled_kernels import NAMES, TARGETS, compiled_report, require_good_code, run_python, specialised
from conv_norm_gelu_cases import PAIRS, RESNET, Conv

from hxrd.kernels import conv_norm_gelu as op

WORKERS = min(os.cpu_count() or 1, 4)
LAST = 9  # candidate: more than there are, so the last one, which launches of few rows take
DTYPES = {NAMES[dtype]: dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}

if not op.TRITON_MISSING:
    from hxrd.kernels import conv_norm_gelu_launch as launch
    from hxrd.kernels.conv_norm_gelu_tiles import Tile, candidates, heuristic, padded


@dataclass(frozen=True)
class Meta:
    """Launches of one convolution on tensors without memory."""

    conv: Conv
    dtype: torch.dtype
    tried: int = 0

    def tile(self, kind: str, taps: int) -> "Tile":
        """The heuristic tile, or the candidate number `tried` (the last one where there are fewer)."""
        shape = self.conv.c_in, self.conv.c_out, taps, self.dtype.itemsize
        tiles = candidates(kind, *shape)
        assert tiles[0] == heuristic(kind, *shape)
        few_rows = self.tried == LAST and kind == "weight"  # whose tile does not depend on them
        return tiles[0 if few_rows else min(self.tried, len(tiles) - 1)]

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device="meta")

    def launches(self) -> Iterator[tuple[str, "launch.Launch"]]:
        conv, batch, length = self.conv, 512, 433
        sizes = conv.c_in, conv.c_out, conv.taps, conv.stride, conv.padding
        geometry = launch.Geometry(batch, length, conv.length_out(length), *sizes)
        x_BLC = self.tensor(batch, length, conv.c_in)
        out_BLN = self.tensor(batch, geometry.length_out, conv.c_out)
        weight = self.tensor(conv.c_out, conv.c_in, conv.taps)
        shortcut_weight = self.tensor(conv.c_out, conv.c_in, 1)
        affine = self.tensor(conv.c_out, dtype=torch.float32)
        norm = launch.Norm(affine, affine, 1e-5)
        grad_norm = self.tensor(1024, 2, conv.c_out, dtype=torch.float32)
        residual = out_BLN if conv.residual else None
        dropout = launch.Dropout(0.1, self.tensor(1, dtype=torch.int64))
        masks = {"training": dropout}
        if self.dtype == torch.bfloat16:
            masks["inference"] = launch.NO_DROPOUT
        for name, mask in masks.items():
            yield (
                f"forward {name}",
                launch.forward(
                    x_BLC,
                    weight,
                    norm,
                    residual,
                    (shortcut_weight, norm) if conv.shortcut else None,
                    mask,
                    (out_BLN, out_BLN),
                    geometry,
                    conv.gelu,
                    self.tile("forward", conv.taps),
                ),
            )
        yield (
            "rows",
            launch.rows_backward(
                x_BLC,
                weight,
                norm,
                residual,
                dropout,
                out_BLN,
                (out_BLN, residual, grad_norm),
                geometry,
                conv.gelu,
                self.tile("rows", conv.taps),
            ),
        )
        if conv.shortcut:
            tile = self.tile("rows", 1)
            gradients = out_BLN, None, grad_norm
            beside = geometry.shortcut
            yield (
                "rows shortcut",
                launch.rows_backward(
                    x_BLC,
                    shortcut_weight,
                    norm,
                    None,
                    launch.NO_DROPOUT,
                    out_BLN,
                    gradients,
                    beside,
                    False,
                    tile,
                ),
            )
        pair = (out_BLN, shortcut_weight) if conv.shortcut else None
        tile = self.tile("input", conv.taps)
        yield "input", launch.input_backward(out_BLN, weight, pair, x_BLC, geometry, tile)
        yield from self.weight_launches(x_BLC, out_BLN, geometry)
        if conv.shortcut:
            yield from self.weight_launches(x_BLC, out_BLN, geometry.shortcut)

    def weight_launches(
        self, x_BLC: torch.Tensor, grad_conv: torch.Tensor, geometry: "launch.Geometry"
    ) -> Iterator[tuple[str, "launch.Launch"]]:
        tile = self.tile("weight", geometry.taps)
        depth = launch.ceil_div(geometry.taps * geometry.c_in, tile.block_k) * tile.block_k
        grad_weight = self.tensor(8, depth, padded(geometry.c_out), dtype=torch.float32)
        for atomic in (True, False):
            name = f"weight {geometry.taps} {'atomic' if atomic else 'in order'}"
            yield name, launch.weight_backward(x_BLC, grad_conv, grad_weight, geometry, atomic, tile)


def variants(dtype: torch.dtype, tried: tuple[int, ...]) -> dict[str, tuple]:
    """Return kernel, arguments and options of all launches whose machine code differs, by name."""
    different = {}
    for number in tried:
        for conv in RESNET[1:] + PAIRS:  # the stem has kernels of its own
            for name, prepared in Meta(conv, dtype, number).launches():
                options = {key: prepared.options[key] for key in ("num_warps", "num_stages")}
                arguments = prepared.arguments | prepared.options
                arguments = {key: value for key, value in arguments.items() if key not in options}
                code = str((prepared.kernel.__name__, specialised(prepared.kernel, arguments), options))
                case = f"{conv} {name} tile {number}"
                different.setdefault(code, (case, prepared.kernel, arguments, options))
    return {case: (kernel, arguments, options) for case, kernel, arguments, options in different.values()}


def report(dtype_name: str, tried: tuple[int, ...], case: str, target: int) -> dict:
    kernel, arguments, options = variants(DTYPES[dtype_name], tried)[case]
    return compiled_report(f"{case} {dtype_name}", kernel, arguments, options, target)


def compile_everything(target: int, dtype_name: str, *tried: int) -> list[dict]:
    """Compile for the heuristic tiles, of bf16 those of few rows too, or for the candidates `tried`."""
    tried = tried or ((0, LAST) if dtype_name == "bf16" else (0,))
    cases = list(variants(DTYPES[dtype_name], tried))
    with ProcessPoolExecutor(WORKERS) as pool:
        parts = [pool.submit(report, dtype_name, tried, case, target) for case in cases]
        return [part.result() for part in parts]


@pytest.mark.slow
@pytest.mark.skipif(bool(op.TRITON_MISSING), reason=op.TRITON_MISSING or "triton is here")
@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_a_gpu(target: int, dtype_name: str) -> None:
    reports = json.loads(run_python("-W", "ignore", __file__, str(target), dtype_name))
    for kind in ("forward training", "rows", "rows shortcut", "input", "atomic", "in order"):
        assert any(kind in found["case"] for found in reports)
    require_good_code(reports, on_tensor_cores=True)


if __name__ == "__main__":
    print(json.dumps(compile_everything(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))))
