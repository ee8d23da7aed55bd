"""The shape of the ResNet-18-1D, without torch: what `resnet1d` builds and a model file must hold."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hxrd.errors import InputError

Variant = Literal["paper", "released"]

STEM_CHANNELS, STEM_KERNEL = 32, 13
POOL = 7  # window and stride of the max pool behind the stem
# (out channels, kernel, stride) of the four stages, two residual blocks each.
STAGES = ((32, 5, 4), (64, 7, 4), (64, 17, 5), (64, 13, 3))
N_FEATURES = STAGES[-1][0]

Shape = tuple[int, ...]
Weights = Mapping[str, NDArray[np.float32]]


def pool_of(variant: Variant) -> int | None:
    """Return the window of the max pool, or None: the released code builds the pool and never calls it."""
    return POOL if variant == "paper" else None


def parameter_shapes(n_classes: int, adversarial_head: bool = False) -> dict[str, Shape]:
    """Return the shape of every weight by its released key, in the order of the network.

    Parameters
    ----------
    n_classes : int
        Number of outputs.
    adversarial_head : bool
        With the release's second output, ``adv.*``.

    Returns
    -------
    dict of str to tuple of int
        Convolutions (out, in, taps), linear layers (out, in), the rest (channels,); both variants alike.
    """
    shapes = _conv_norm("resnet.conv", 1, STEM_CHANNELS, STEM_KERNEL)
    channels = STEM_CHANNELS
    for number, (channels_out, kernel, _) in enumerate(STAGES, start=1):
        for block in range(2):
            prefix = f"resnet.layer{number}.{block}"
            shapes |= _conv_norm(f"{prefix}.conv1", channels, channels_out, kernel)
            shapes |= _conv_norm(f"{prefix}.conv2", channels_out, channels_out, kernel)
            shapes |= _conv_norm(f"{prefix}.downsample", channels, channels_out, 1)
            channels = channels_out
    shapes |= _linear("classifier", channels, n_classes)
    return shapes | _linear("adv", channels, 1) if adversarial_head else shapes


def _conv_norm(prefix: str, channels_in: int, channels_out: int, kernel: int) -> dict[str, Shape]:
    return {
        f"{prefix}.conv.weight": (channels_out, channels_in, kernel),
        f"{prefix}.layer_norm.weight": (channels_out,),
        f"{prefix}.layer_norm.bias": (channels_out,),
    }


def _linear(name: str, features: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, features), f"{name}.bias": (outputs,)}


def check_weights(weights: Weights, n_classes: int, origin: str) -> None:
    """Refuse weights that are not those of a ResNet-18-1D.

    Parameters
    ----------
    weights : mapping of str to ndarray
        By the released keys; ``adv.*`` may be there or not.
    n_classes : int
        Number of outputs.
    origin : str
        The file, for the error message.

    Raises
    ------
    InputError
        Keys or shapes differ, or a weight is not finite.
    """
    expected = parameter_shapes(n_classes, "adv.weight" in weights)
    present = {key: array.shape for key, array in weights.items()}
    if expected != present:
        differing = sorted(
            key for key in expected.keys() | present.keys() if expected.get(key) != present.get(key)
        )
        raise InputError(
            f"{origin}: weights do not fit the ResNet-18-1D with {n_classes} classes "
            f"({len(differing)} entries differ, the first is {differing[0]!r})"
        )
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise InputError(f"{origin}: weights that are not finite; the file is damaged or training diverged")
