"""What a pattern costs the network at least, and what the processor could do."""

from collections.abc import Callable

import numpy as np
import torch
from network_stages import length_out

from hxrd.cores import available_cores
from hxrd.models.layout import STAGES, STEM_KERNEL, parameter_shapes, pool_of
from hxrd.models.registry import ModelMetadata

SIDE = 2048  # of the square matrices whose product gives the ceiling
PRODUCT_OPERATIONS = 2 * SIDE**3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def operations_of(metadata: ModelMetadata) -> int:
    """Return the multiplications and additions of a pattern's convolutions and last layer."""
    shapes = parameter_shapes(metadata.n_classes)

    def convolution(name: str, positions: int) -> int:
        return 2 * positions * int(np.prod(shapes[f"{name}.conv.weight"]))

    length = length_out(metadata.n_points, STEM_KERNEL, 1, 0)
    total = convolution("resnet.conv", length)
    if (pool := pool_of(metadata.variant)) is not None:
        length = length_out(length, pool, pool, pool // 2)
    for number, (_, kernel, stride) in enumerate(STAGES, start=1):
        length = length_out(length, kernel, stride, kernel // 2)
        for block in range(2):
            name = f"resnet.layer{number}.{block}"
            total += sum(convolution(f"{name}.{part}", length) for part in ("conv1", "conv2", "downsample"))
    return total + 2 * int(np.prod(shapes["classifier.weight"]))


def large_product(precision: str) -> Callable[[], object]:
    """Return a call that multiplies two large matrices on all cores: `PRODUCT_OPERATIONS`."""
    left, right = (torch.randn(SIDE, SIDE).to(DTYPES[precision]) for _ in range(2))

    def multiply() -> torch.Tensor:
        torch.set_num_threads(available_cores())
        return torch.mm(left, right)

    return multiply
