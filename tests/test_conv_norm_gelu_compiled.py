"""The fused convolution compiled for three GPUs, without having one.

Triton's interpreter is chosen at import, so each target is compiled in a process of its own:
`python test_conv_norm_gelu_compiled.py 90` prints what came out for sm_90.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from test_conv_norm_gelu import OTHERS, RESNET, Conv, run_python

from hxrd.kernels import conv_norm_gelu as op

TARGETS = (80, 90, 100)
SMALLEST_SHARED_MEMORY = 99 * 1024  # bytes a block may have on sm_86, the least of all targets since sm_80
TENSOR_CORES = {80: r"mma\.sync", 90: r"wgmma\.mma_async", 100: r"tcgen05\.mma"}
IN_FLOAT32 = ("stem", "layer1-conv2", "layer3-conv2")
# one layer, the last, for each shape of a weight: the rest of a layer is known at run time only
WEIGHT_SHAPES = {(conv.c_in, conv.c_out, conv.taps): conv for conv in [*RESNET, OTHERS[3]]}


def compiled_report(conv: Conv, dtype: str, target: int) -> dict:
    """Compile one variant of the kernel and tell what the machine code holds."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = op.conv_norm_gelu_kernel
    options = op.compile_options(conv.c_in, conv.c_out, conv.taps, conv.gelu, 4 if dtype == "fp32" else 2)
    constants = {name: value for name, value in options.items() if name in kernel.arg_names}
    launch_options = {name: value for name, value in options.items() if name not in kernel.arg_names}
    if not conv.residual:
        constants["residual_ptr"] = None
    signature = {name: argument_type(name, dtype, constants) for name in kernel.arg_names}
    aligned = [
        i for i, name in enumerate(kernel.arg_names) if name.endswith("_ptr") and name not in constants
    ]
    if conv.c_in >= 16:
        aligned += [kernel.arg_names.index(name) for name in ("stride_batch", "stride_length")]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", target, 32), options=launch_options)
    return {
        "case": f"{conv} {dtype} sm_{target}",
        "tensor_cores": bool(re.search(TENSOR_CORES[target], binary.asm["ptx"])),
        "expected_tensor_cores": dtype == "bf16" and conv.c_in >= 16,
        "shared_memory": binary.metadata.shared,
        "spilled": spilled_bytes(binary.asm["cubin"]),
    }


def argument_type(name: str, dtype: str, constants: dict) -> str:
    if name in constants:
        return "constexpr"
    if name.endswith("_ptr"):
        return "*fp32" if name.startswith("norm_") else f"*{dtype}"
    return "fp32" if name == "eps" else "i32"


def spilled_bytes(cubin: bytes) -> int | None:
    """Bytes of local memory that a thread uses; None where Triton brings no cuobjdump."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not cuobjdump.exists():
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    sizes = re.findall(r"\b(?:STACK|LOCAL):(\d+)", usage.stdout)
    assert sizes, usage.stdout
    return sum(int(size) for size in sizes)


def compile_everything(target: int) -> list[dict]:
    in_bfloat16 = [compiled_report(conv, "bf16", target) for conv in WEIGHT_SHAPES.values()]
    return in_bfloat16 + [compiled_report(conv, "fp32", target) for conv in RESNET if conv.name in IN_FLOAT32]


@pytest.mark.slow
@pytest.mark.skipif(bool(op.TRITON_MISSING), reason=op.TRITON_MISSING or "triton is here")
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_without_a_gpu(target: int) -> None:
    reports = json.loads(run_python(__file__, str(target)))
    assert len(reports) == len(WEIGHT_SHAPES) + len(IN_FLOAT32)
    for report in reports:
        assert report["tensor_cores"] == report["expected_tensor_cores"], report
        assert report["shared_memory"] <= SMALLEST_SHARED_MEMORY, report
        assert not report["spilled"], report


if __name__ == "__main__":
    print(json.dumps(compile_everything(int(sys.argv[1]))))
