"""Compile Triton kernels for GPUs that are not here, and tell what the machine code holds.

Triton's interpreter is chosen at import, so kernels are compiled in a process of their own: a test file runs
itself by `run_python(__file__, …)` and reads the reports as JSON.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

TARGETS = (80, 90, 100)
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that a block may have
TENSOR_CORES = {80: r"mma\.sync", 90: r"wgmma\.mma_async|mma\.sync", 100: r"tcgen05\.mma|mma\.sync"}
NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
}


def run_python(*arguments: str, **environment: str) -> str:
    """Run Python without the interpreter of Triton kernels and return what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def compiled_report(
    case: str, kernel: Any, arguments: dict[str, Any], options: dict[str, Any], target: int
) -> dict:
    """Compile one kernel as a launch with these arguments would, for sm_`target`.

    Parameters
    ----------
    case : str
        For the report.
    kernel : triton.JITFunction
        What is compiled.
    arguments : dict
        Every argument by name; of a tensor (on the device `meta`, for instance) only the dtype counts.
    options : dict
        `num_warps`, `num_stages`.
    target : int
        Compute capability, 80 for 8.0.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = specialised(kernel, arguments)
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return {
        "case": f"{case} sm_{target}",
        "target": target,
        "tensor_cores": bool(re.search(TENSOR_CORES[target], binary.asm["ptx"])),
        "shared_memory": binary.metadata.shared,
        "spilled": spilled_bytes(binary.asm["cubin"]),
    }


def specialised(kernel: Any, arguments: dict[str, Any]) -> tuple[dict, dict, dict]:
    """Return signature, constants and attributes as Triton's own launcher finds them."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list] = {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        looked_at = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (looked_at and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        signature[parameter.name] = type_name(value)
        if isinstance(value, torch.Tensor) or (looked_at and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def type_name(value: torch.Tensor | float) -> str:
    """Return Triton's name for the type of an argument."""
    if isinstance(value, torch.Tensor):
        return f"*{NAMES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


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


def require_good_code(reports: Iterable[dict], on_tensor_cores: bool = False) -> None:
    """Fail at the first kernel that spills, needs too much shared memory, or leaves tensor cores idle."""
    for report in reports:
        assert not report["spilled"], report
        assert report["shared_memory"] <= SHARED_MEMORY[report["target"]], report
        assert report["tensor_cores"] or not on_tensor_cores, report
