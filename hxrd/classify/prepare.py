"""From patterns as they are to what the network is given, and what is wrong with those it cannot have."""

import numpy as np
from numpy.typing import NDArray

from hxrd.classify.inputs import PatternSlice
from hxrd.models.preprocess import LEAST_CONTRAST, Grid, coverage, doubts, preprocess_batch, same_grid
from hxrd.models.registry import ModelMetadata, network_input


def prepare(
    patterns: PatternSlice,
    metadata: ModelMetadata,
    target: Grid,
    out: NDArray[np.float32],
    *,
    compiled: bool = True,
) -> list[str]:
    """Bring patterns to a model's input and say which of them cannot be classified.

    Parameters
    ----------
    patterns : PatternSlice
        Of one input.
    metadata : ModelMetadata
        Of the model.
    target : Grid
        Its grid and wavelength.
    out : ndarray, shape (n, n_points), float32
        Filled; rows with a flag are finite but of no meaning.
    compiled : bool
        By Numba kernels, or by NumPy; the numbers are the same.

    Returns
    -------
    list of str, length n
        ``rejected``, ``not-finite``, ``flat``, ``out-of-range`` or empty.

    Raises
    ------
    InputError
        A grid that no pattern can have.
    """
    if not len(patterns.two_theta):
        out[:] = 0
        return list(patterns.flag)
    background = metadata.preprocessing == "background"
    as_they_are = not background and same_grid(patterns.two_theta, patterns.wavelength, target)
    if compiled and as_they_are and patterns.intensity.dtype == np.float32:
        seen = _directly(patterns.intensity, metadata, out)
    else:
        prepared = preprocess_batch(
            patterns.intensity,
            patterns.two_theta,
            patterns.wavelength,
            target,
            background,
            probe=metadata.probe,
            compiled=compiled,
        )
        covered, _, _ = coverage(patterns.two_theta, patterns.wavelength, target)
        seen = doubts(patterns.intensity, prepared, covered)
        network_input(prepared, metadata, out=out)
    if not any(seen):
        return list(patterns.flag)
    return [known or doubt for known, doubt in zip(patterns.flag, seen, strict=True)]


def _directly(intensity: NDArray[np.float32], metadata: ModelMetadata, out: NDArray[np.float32]) -> list[str]:
    """Fill `out` from patterns on the model's own grid, in one pass; return doubts."""
    from hxrd.kernels.direct_input import FINE, FLAT, NOT_FINITE, direct_rows

    doubt = np.empty(len(intensity), np.uint8)
    root = metadata.input_transform == "sqrt"
    offset = np.float32(metadata.input_offset)
    direct_rows(np.ascontiguousarray(intensity), LEAST_CONTRAST, root, offset, out, doubt)
    words = {FINE: "", NOT_FINITE: "not-finite", FLAT: "flat"}
    return [words[code] for code in doubt.tolist()] if doubt.any() else []
