"""The ResNet-18-1D in plain NumPy: the truth that `cpu_network` is tested against, and needing no compiler.

Shape suffixes: B batch, L positions, C and N channels, T taps.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

EPS = 1e-5  # of every LayerNorm
BLOCK = 16  # patterns at a time: the windows of a layer are copied

# erf(z) = z·P(z²)/Q(z²) in float32 for |z| ≤ 4, to 3e-7; beyond it is ±1. Highest power first; the
# coefficients are those of Eigen 3's `erf` for floats (unsupported/Eigen/src/SpecialFunctions).
ERF_ABOVE = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
ERF_BELOW = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)

# (name, stride) of the blocks; kernel sizes and channels are those of the weights
BLOCKS = tuple(
    (f"resnet.layer{stage}.{block}", stride if block == 0 else 1)
    for stage, stride in ((1, 4), (2, 4), (3, 5), (4, 3))
    for block in (0, 1)
)


def numpy_logits(
    weights: Mapping[str, NDArray[np.float32]], x_BL: NDArray[np.float32], pool: int | None
) -> NDArray[np.float32]:
    """Return the network's outputs, shape (B, classes).

    Parameters
    ----------
    weights : mapping of str to ndarray
        The released state dict; entries that the classifier does not need are ignored.
    x_BL : ndarray, shape (B, L), float32
        What the network is given.
    pool : int or None
        Window and stride of the max pool after the stem.
    """
    parts = [_features(weights, x_BL[first : first + BLOCK], pool) for first in range(0, len(x_BL), BLOCK)]
    features = np.concatenate(parts) if parts else np.zeros((0, weights["classifier.weight"].shape[1]))
    return (features @ weights["classifier.weight"].T + weights["classifier.bias"]).astype(np.float32)


def _features(
    weights: Mapping[str, NDArray[np.float32]], x_BL: NDArray[np.float32], pool: int | None
) -> NDArray[np.float32]:
    y_BLN = gelu(_conv_norm(weights, "resnet.conv", x_BL[:, :, None], 1, 0))
    if pool:
        y_BLN = _max_pool(y_BLN, pool)
    for name, stride in BLOCKS:
        x_BLC = y_BLN
        padding = weights[f"{name}.conv1.conv.weight"].shape[2] // 2
        y_BLN = gelu(_conv_norm(weights, f"{name}.conv1", x_BLC, stride, padding))
        y_BLN = _conv_norm(weights, f"{name}.conv2", y_BLN, 1, padding)
        y_BLN = gelu(y_BLN + _conv_norm(weights, f"{name}.downsample", x_BLC, stride, 0))
    return y_BLN.max(axis=1)


def _conv_norm(
    weights: Mapping[str, NDArray[np.float32]],
    name: str,
    x_BLC: NDArray[np.float32],
    stride: int,
    padding: int,
) -> NDArray[np.float32]:
    weight_NCT = weights[f"{name}.conv.weight"]
    x_BLC = np.pad(x_BLC, ((0, 0), (padding, padding), (0, 0)))
    windows_BLCT = np.lib.stride_tricks.sliding_window_view(x_BLC, weight_NCT.shape[2], axis=1)[:, ::stride]
    y_BLN = np.tensordot(windows_BLCT, weight_NCT, axes=([2, 3], [1, 2]))
    y_BLN -= y_BLN.mean(axis=-1, keepdims=True)
    y_BLN /= np.sqrt(np.square(y_BLN).mean(axis=-1, keepdims=True) + np.float32(EPS))
    y_BLN *= weights[f"{name}.layer_norm.weight"]
    y_BLN += weights[f"{name}.layer_norm.bias"]
    return y_BLN


def _max_pool(y_BLN: NDArray[np.float32], pool: int) -> NDArray[np.float32]:
    margin = pool // 2
    padded = np.pad(y_BLN, ((0, 0), (margin, margin), (0, 0)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, pool, axis=1)[:, ::pool].max(axis=-1)


def gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the exact (erf) GELU."""
    z = np.clip(x * np.float32(np.sqrt(0.5)), np.float32(-4), np.float32(4))
    erf = _polynomial(ERF_ABOVE, square := z * z)
    erf *= z
    erf /= _polynomial(ERF_BELOW, square)
    erf += np.float32(1)
    erf *= np.float32(0.5) * x
    return erf


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float32]) -> NDArray[np.float32]:
    value = x * np.float32(coefficients[0])
    for coefficient in coefficients[1:-1]:
        value += np.float32(coefficient)
        value *= x
    value += np.float32(coefficients[-1])
    return value
