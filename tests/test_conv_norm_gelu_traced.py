"""What torch.compile sees of the operators on a GPU, without having one: Triton kernels, not opaque calls.

The interpreter's operators are opaque, so this file runs itself without it, on tensors without memory.
"""

import json
from collections import Counter

import pytest
import torch
from compiled_kernels import run_python

from hxrd.kernels import conv_norm_gelu as op


class PretendedDriver:
    """Tells Triton which GPU to compile for, which is all that tracing asks."""

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def block(x_BLC, weights, norms, shortcut_weight, seed):
    """A residual block: the pair, then the second convolution with its residual."""
    options = 1e-5, 0.1, False
    main, shortcut = op.conv_norm_pair(
        x_BLC, weights[0], *norms, shortcut_weight, *norms, seed, 4, 2, *options
    )
    return op.conv_norm_gelu(main, weights[1], *norms, shortcut, seed, 1, 2, 1e-5, True, 0.1, False)


def traced_kernels() -> list[dict[str, int]]:
    """Return how many operations of each kind the forward and the backward graph hold."""
    import triton
    from functorch.compile import aot_function, make_boxed_func
    from torch._subclasses.fake_tensor import FakeTensorMode

    from hxrd.kernels import conv_norm_gelu_checks

    triton.runtime.driver.set_active(PretendedDriver())
    conv_norm_gelu_checks.unavailable = lambda device: ""  # a CPU tensor stands for one on the GPU
    graphs = []

    def collect(module: torch.fx.GraphModule, _: list) -> object:
        graphs.append(Counter(str(node.target) for node in module.graph.nodes if node.op == "call_function"))
        return make_boxed_func(module.forward)

    with FakeTensorMode():
        x_BLC = torch.empty(2, 433, 32, requires_grad=True)
        weights = [torch.empty(32, 32, 5, requires_grad=True) for _ in range(2)]
        norms = [torch.empty(32, requires_grad=True) for _ in range(2)]
        shortcut_weight = torch.empty(32, 32, 1, requires_grad=True)
        seed = torch.empty(1, dtype=torch.int64)
        compiled = aot_function(block, fw_compiler=collect, bw_compiler=collect)
        compiled(x_BLC, weights, norms, shortcut_weight, seed).sum().backward()
    return graphs


@pytest.mark.skipif(bool(op.TRITON_MISSING), reason=op.TRITON_MISSING or "triton is here")
def test_compile_sees_the_kernels() -> None:
    forward, backward = json.loads(run_python("-W", "ignore", __file__))
    kernels = "triton_kernel_wrapper_functional"
    assert forward[kernels] == 2
    assert backward[kernels] == 8  # rows: 3, input: 2, weight: 3
    assert not any("hxrd" in name for graph in (forward, backward) for name in graph)


if __name__ == "__main__":
    print(json.dumps(traced_kernels()))
