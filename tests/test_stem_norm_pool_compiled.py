"""The fused stem's kernels compiled for three GPUs, and as inductor sees them, without having a GPU.

Triton's interpreter is chosen at import, so this is done in processes of their own:
`python test_stem_norm_pool_compiled.py 90` prints what came out for sm_90.
"""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from compiled_kernels import NAMES, TARGETS, compiled_report, require_good_code, run_python
from stem_norm_pool_cases import EPS, RESNET, Stem

from hxrd.kernels import stem_norm_pool_launch as launch
from hxrd.kernels.triton_tiles import TRITON_MISSING

BATCH, LENGTH = 64, 3041
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRACED = """
import torch, triton
from functorch.compile import aot_function, make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from hxrd.kernels import stem_norm_pool as op


class Driver:  # Triton asks it which GPU there is, and nothing else
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def tell(graph, inputs):
    for node in graph.graph.nodes:
        if "triton_kernel" in str(node.target):
            print(len(node.kwargs["grid"]), *sorted(node.kwargs["tensors_to_clone"]))
    return make_boxed_func(graph.forward)


triton.runtime.driver.set_active(Driver())
op.launch.unavailable = lambda device: ""
with FakeTensorMode():
    shapes = (64, 3041), (32, 1, 13), (32,), (32,)
    inputs = [torch.empty(shape).requires_grad_() for shape in shapes]
    seed = torch.empty(1, dtype=torch.int64)
    run = aot_function(
        lambda *tensors: op.stem_norm_pool(*tensors, 7, 1e-5, 0.1, DETERMINISTIC), tell, tell
    )
    run(*inputs, seed).sum().backward()
"""


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def kernels_of(stem: Stem, dtype: torch.dtype) -> Iterator[tuple[str, str, dict]]:
    """List (what, kernel, arguments) of every kernel that training or inference with the stem launches."""
    x_BL, weight = empty(BATCH, LENGTH, dtype=dtype), empty(stem.channels, 1, stem.taps, dtype=dtype)
    tensors = x_BL, weight, empty(stem.channels), empty(stem.channels)
    rows, windows = (launch.output_length(LENGTH, stem.taps, pool) for pool in (0, stem.pool))
    out_BPC = empty(BATCH, windows, stem.channels, dtype=dtype)
    chosen_BPC = empty(*out_BPC.shape, dtype=torch.uint8) if stem.pool else None
    partial = empty(1024, launch.padded(stem.taps) + 2, launch.padded(stem.channels))
    spread_BLT = empty(BATCH, rows, stem.taps)
    inference = launch.shared_arguments(*tensors, None, stem.pool, EPS, 0.0)
    training = launch.shared_arguments(*tensors, empty(1, dtype=torch.int64), stem.pool, EPS, stem.dropout)
    yield "inference", launch.FORWARD, launch.forward_arguments(inference, out_BPC)
    yield "forward", launch.FORWARD, launch.forward_arguments(training, out_BPC, chosen_BPC)
    gradients = training, out_BPC, chosen_BPC, partial
    yield "backward", launch.BACKWARD, launch.backward_arguments(*gradients)
    yield "backward to the input", launch.BACKWARD, launch.backward_arguments(*gradients, spread_BLT)


def compile_everything(target: int) -> list[dict]:
    from hxrd.kernels import stem_norm_pool_kernels as kernels

    reports = []
    for dtype in DTYPES:
        for stem in RESNET:
            for what, name, arguments in kernels_of(stem, dtype):
                for rows, warps in launch.configurations(name, stem.channels, dtype.itemsize):
                    case = f"{stem} {what} {NAMES[dtype]} {rows} rows {warps} warps"
                    options = {"num_warps": warps, "num_stages": 1}
                    tiled = {**arguments, "BLOCK_M": rows}
                    reports.append(compiled_report(case, getattr(kernels, name), tiled, options, target))
        gathered = launch.gather_arguments(empty(BATCH, 3029, 13), empty(BATCH, LENGTH, dtype=dtype))
        kernel, options = kernels.stem_input_gradient_kernel, {"num_warps": 4}
        reports.append(compiled_report(f"gather {NAMES[dtype]}", kernel, gathered, options, target))
    return reports


@pytest.fixture(scope="module")
def reports() -> dict[int, list[dict]]:
    with ThreadPoolExecutor(2) as pool:
        printed = pool.map(lambda target: run_python(__file__, str(target)), TARGETS)
        return dict(zip(TARGETS, map(json.loads, printed), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(bool(TRITON_MISSING), reason=TRITON_MISSING or "triton is here")
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_a_gpu(target: int, reports: dict[int, list[dict]]) -> None:
    assert len(reports[target]) == 59
    require_good_code(reports[target])
    require_good_code(
        (report for report in reports[target] if "fp32" not in report["case"] and "rows" in report["case"]),
        on_tensor_cores=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(bool(TRITON_MISSING), reason=TRITON_MISSING or "triton is here")
@pytest.mark.parametrize("deterministic", [False, True])
def test_inductor_sees_the_kernels_and_what_they_write(deterministic: bool) -> None:
    """Number of configurations, and arguments written to: were others thought to be, they would be copied."""
    printed = run_python("-c", TRACED.replace("DETERMINISTIC", str(deterministic))).splitlines()
    tried = (1, 1) if deterministic else (2, 2)
    expected = [f"{tried[0]} chosen_ptr out_ptr", f"{tried[1]} partial_ptr spread_ptr", "1 grad_x_ptr"]
    assert printed == expected


if __name__ == "__main__":
    print(json.dumps(compile_everything(int(sys.argv[1]))))
