"""The convolutions of the ResNet and awkward others, their tensors, and how results are compared."""

from dataclasses import dataclass

import torch

from hxrd.kernels import conv_norm_gelu as op

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OBSTACLE = op.unavailable(DEVICE)
SEED = 20775


@dataclass(frozen=True)
class Conv:
    """One convolution; a `shortcut` makes it a pair, without residual."""

    name: str
    c_in: int
    c_out: int
    taps: int
    stride: int = 1
    padding: int = 0
    residual: bool = False
    gelu: bool = True
    shortcut: bool = False

    def __str__(self) -> str:
        return self.name

    def length_out(self, length: int) -> int:
        return op.output_length(length, self.taps, self.stride, self.padding)

    def tensors(self, batch: int, length: int, dtype: torch.dtype = torch.float32) -> list:
        """Input, weight, both norm parameters, then residual or what the shortcut has, of order one."""
        generator = torch.Generator().manual_seed(SEED)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        def parameters(taps: int) -> list[torch.Tensor]:
            weight = normal(self.c_out, self.c_in, taps) / (self.c_in * taps) ** 0.5
            return [weight.to(dtype), 1 + 0.2 * normal(self.c_out), 0.2 * normal(self.c_out)]

        tensors = [normal(batch, length, self.c_in).to(dtype), *parameters(self.taps)]
        if self.shortcut:
            tensors += parameters(1)
        else:
            shape = (batch, self.length_out(length), self.c_out)
            tensors.append(normal(*shape).to(dtype) if self.residual else None)
        return [on(DEVICE, tensor) for tensor in tensors]


RESNET = [
    Conv("stem", 1, 32, 13),
    Conv("layer1-conv2", 32, 32, 5, 1, 2, residual=True),
    Conv("layer2-conv2", 64, 64, 7, 1, 3, residual=True),
    Conv("layer3-conv2", 64, 64, 17, 1, 8, residual=True),
    Conv("layer4-conv2", 64, 64, 13, 1, 6, residual=True),
]
"""Alone; of a layer, both blocks' second convolutions are alike."""

PAIRS = [
    Conv("layer1-block1", 32, 32, 5, 4, 2, shortcut=True),
    Conv("layer1-block2", 32, 32, 5, 1, 2, shortcut=True),
    Conv("layer2-block1", 32, 64, 7, 4, 3, shortcut=True),
    Conv("layer2-block2", 64, 64, 7, 1, 3, shortcut=True),
    Conv("layer3-block1", 64, 64, 17, 5, 8, shortcut=True),
    Conv("layer3-block2", 64, 64, 17, 1, 8, shortcut=True),
    Conv("layer4-block1", 64, 64, 13, 3, 6, shortcut=True),
    Conv("layer4-block2", 64, 64, 13, 1, 6, shortcut=True),
]
"""The first convolution of each block with its projected shortcut."""

OTHERS = [
    Conv("even-taps", 16, 16, 4, 2, 1, residual=True, gelu=False),
    Conv("few-channels", 2, 4, 3, 1, 1, residual=True),
    Conv("widest", 256, 256, 3, 2, 5, residual=True),
    Conv("padding-beyond-taps", 2, 8, 2, 3, 7),
    Conv("stride-beyond-taps", 32, 16, 1, 4, 0, gelu=False),
    Conv("pair-of-few-channels", 4, 8, 3, 2, 1, shortcut=True),
]


def seed_of(dropout: float) -> torch.Tensor | None:
    return torch.tensor([SEED], device=DEVICE) if dropout else None


def fused(tensors: list, conv: Conv, dropout: float = 0.0, deterministic: bool = True) -> tuple:
    """Run the operator; a tuple of one result or two."""
    seed = seed_of(dropout)
    if conv.shortcut:
        options = conv.stride, conv.padding, 1e-5, dropout, deterministic
        return op.conv_norm_pair(*tensors, seed, *options)
    options = conv.stride, conv.padding, 1e-5, conv.gelu, dropout, deterministic
    return (op.conv_norm_gelu(*tensors, seed, *options),)


def plain(tensors: list, conv: Conv, dropout: float = 0.0) -> tuple:
    """Run the reference; a tuple of one result or two."""
    seed = None if not dropout else torch.tensor([SEED], device=tensors[0].device)
    if conv.shortcut:
        return op.pair_reference(*tensors, conv.stride, conv.padding, 1e-5, dropout, seed)
    return (op.reference(*tensors, conv.stride, conv.padding, 1e-5, conv.gelu, dropout, seed),)


def on(device: torch.device, tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(device)


def double(tensors: list) -> list:
    return [None if tensor is None else tensor.detach().cpu().double() for tensor in tensors]


def with_gradients(tensors: list) -> list:
    return [None if tensor is None else tensor.requires_grad_() for tensor in tensors]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; NaN where anything is NaN, which fails every bound."""
    return ((found.detach().cpu().double() - expected.detach()).norm() / expected.detach().norm()).item()


def require_close(found: tuple, expected: tuple, bound: float) -> None:
    for result, truth in zip(found, expected, strict=True):
        assert result.shape == truth.shape
        assert relative_error(result, truth) <= bound


def slopes_of(results: tuple, dtype: torch.dtype) -> list[torch.Tensor]:
    """Gradients of the results, representable in `dtype`."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(result.shape, generator=generator, dtype=torch.float64).to(dtype) for result in results
    ]


def require_gradients(conv: Conv, batch: int, length: int, dtype: torch.dtype, dropout: float) -> None:
    """Fail unless results and every gradient agree with the float64 reference."""
    tensors = with_gradients(conv.tensors(batch, length, dtype))
    exact = with_gradients(double(tensors))
    expected, found = plain(exact, conv, dropout), fused(tensors, conv, dropout)
    require_close(found, expected, BOUNDS[dtype])
    slopes = slopes_of(expected, dtype)
    torch.autograd.backward(expected, [slope.double() for slope in slopes])
    torch.autograd.backward(found, [slope.to(DEVICE) for slope in slopes])
    for number, (tensor, truth) in enumerate(zip(tensors, exact, strict=True)):
        if tensor is not None:
            error = relative_error(tensor.grad, truth.grad)
            assert error <= BOUNDS[dtype], f"gradient of input {number}: {error:.1e}"
