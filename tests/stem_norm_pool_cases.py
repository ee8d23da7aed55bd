"""Stems, their tensors, and how the fused one is compared with the reference."""

from dataclasses import dataclass

import torch
from conv_norm_gelu_cases import BOUNDS, DEVICE, SEED, double, relative_error, slopes_of, with_gradients

from hxrd.kernels import stem_norm_pool as op
from hxrd.kernels import stem_norm_pool_launch as launch

EPS = 1e-5


@dataclass(frozen=True)
class Stem:
    """One stem; `bias` is where its norm's biases lie, below 0 for maxima on GELU's falling side."""

    name: str
    pool: int = 7
    channels: int = 32
    taps: int = 13
    dropout: float = 0.0
    bias: float = 0.0

    def __str__(self) -> str:
        return self.name

    def tensors(self, batch: int, length: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        """Input, weight and both norm parameters, of order one."""
        generator = torch.Generator().manual_seed(SEED)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        x_BL = normal(batch, length).to(dtype)
        weight = (normal(self.channels, 1, self.taps) / self.taps**0.5).to(dtype)
        norm = 1 + 0.2 * normal(self.channels), self.bias + 0.2 * normal(self.channels)
        return [tensor.to(DEVICE) for tensor in (x_BL, weight, *norm)]


RESNET = [Stem("paper", dropout=0.1), Stem("released", 0, dropout=0.05)]
OTHERS = [
    Stem("paper-inference"),
    Stem("released-inference", 0),
    Stem("falling-gelu", bias=-2.0, dropout=0.1),
    Stem("even-pool", 4, dropout=0.7),
    Stem("pool-of-one", 1),
    Stem("two-taps", 3, taps=2),
    Stem("many-taps", 5, taps=17, dropout=0.2),
    Stem("few-channels", 2, channels=5, dropout=0.3),
    Stem("widest", 7, channels=256, taps=16),
]


def seed_of(stem: Stem) -> torch.Tensor | None:
    return torch.tensor([-SEED], device=DEVICE) if stem.dropout else None


def fused(tensors: list[torch.Tensor], stem: Stem, deterministic: bool = True) -> torch.Tensor:
    return op.stem_norm_pool(*tensors, seed_of(stem), stem.pool, EPS, stem.dropout, deterministic)


def plain(tensors: list[torch.Tensor], stem: Stem) -> torch.Tensor:
    seed = seed_of(stem)
    seed = None if seed is None else seed.to(tensors[0].device)
    return op.reference(*tensors, seed, stem.pool, EPS, stem.dropout)


def shared_arguments(tensors: list[torch.Tensor], stem: Stem) -> dict:
    """Return what both kernels take."""
    return launch.shared_arguments(*tensors, seed_of(stem), stem.pool, EPS, stem.dropout)


def require_gradients(stem: Stem, batch: int, length: int, dtype: torch.dtype) -> None:
    """Fail unless the result and every gradient agree with the float64 reference.

    With one tap the norm takes out what a point's value does but for its sign, so its gradient is all
    cancellation and not compared.
    """
    tensors = with_gradients(stem.tensors(batch, length, dtype))
    exact = with_gradients(double(tensors))
    found, expected = fused(tensors, stem), plain(exact, stem)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert relative_error(found, expected) <= BOUNDS[dtype]
    (slope,) = slopes_of((expected,), dtype)
    expected.backward(slope.double())
    found.backward(slope.to(DEVICE))
    for name, tensor, truth in zip(("x", "weight", "norm_weight", "norm_bias"), tensors, exact, strict=True):
        error = 0.0 if name == "x" and stem.taps == 1 else relative_error(tensor.grad, truth.grad)
        assert error <= BOUNDS[dtype], f"gradient of {name}: {error:.1e}"
