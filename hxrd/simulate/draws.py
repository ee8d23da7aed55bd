"""Random numbers of augmentations: each row's from its own seed, each effect's from its own stream."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from hxrd.kernels import poisson

_HALF_STEP = 2.0**-54  # even numbers are multiples of 2⁻⁵³ from 0: half a step keeps quantiles finite


class Stream(IntEnum):
    """Which effect draws. A number, once given, is never used for another: seeds keep their meaning."""

    SIZE = 0
    MICROSTRAIN = 1
    TEXTURE = 2
    LATTICE_STRAIN = 3
    THERMAL_EXPANSION = 4
    DISPLACEMENT = 5
    DISPLACEMENT_OF_SPECIES = 6
    ABSORPTION = 7
    ZERO_SHIFT = 8
    SAMPLE_DISPLACEMENT = 9
    IMPURITY = 10
    BACKGROUND = 11
    INCOHERENT = 12
    TOTAL = 13
    COUNTS = 14
    TRUNCATION = 15
    MASKED_REGIONS = 16


def uniforms(seeds: NDArray[np.uint64], stream: Stream, count: int) -> NDArray[np.float64]:
    """Even random numbers in [0, 1), shape (n_rows, count)."""
    out = np.empty((len(seeds), count))
    poisson.uniforms(seeds, int(stream), out)
    return out


def normals(seeds: NDArray[np.uint64], stream: Stream, count: int) -> NDArray[np.float64]:
    """Normal random numbers of variance 1, shape (n_rows, count), made of the numbers of `uniforms`."""
    return ndtri(uniforms(seeds, stream, count) + _HALF_STEP)


def between(bounds: tuple[float, float], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring even numbers in [0, 1) to a range."""
    return bounds[0] + (bounds[1] - bounds[0]) * u


def log_between(bounds: tuple[float, float], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring even numbers in [0, 1) to a range, evenly in the logarithm."""
    return bounds[0] * np.exp(np.log(bounds[1] / bounds[0]) * u)
