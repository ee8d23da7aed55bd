"""Import of the checkpoints released with Lolla et al. (2022), J. Appl. Cryst. 55.

Each released ``.pth`` is a dict with keys ``SGAN`` and ``Supervised`` that hold state dicts; a bare state
dict is taken too. Files are read with `torch.load(weights_only=True)`: nothing in them is ever executed.
"""

import hashlib
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.symmetry import BRAVAIS_LATTICES, SPACE_GROUPS_144
from hxrd.errors import InputError, UsageError
from hxrd.models.layout import Weights, check_weights
from hxrd.models.registry import ModelMetadata, build_network

if TYPE_CHECKING:
    from hxrd.models.resnet1d import ResNet1D

Which = Literal["sgan", "supervised"]

RELEASED_KEYS: dict[Which, str] = {"sgan": "SGAN", "supervised": "Supervised"}
PAPER_WAVELENGTH = 2.0775  # Å, fitted to the published patterns
INPUT_OFFSET = 1e-3  # the released code adds it to every point
SPACE_GROUP_GRID = (3.0, 155.0, 0.05)
BRAVAIS_GRID = (2.95, 155.0, 0.05)
LICENCE = "as released at github.com/usnistgov/semi-supervised-neutron"

# All that torch's restricted unpickler and its zip reader were seen to raise on damaged files.
_DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
    OverflowError,
    MemoryError,
)


def import_seed_checkpoint(
    path: str | Path, *, name: str | None = None, which: Which | None = None
) -> list[tuple["ResNet1D", ModelMetadata]]:
    """Read a released checkpoint.

    Parameters
    ----------
    path : str or Path
        The ``.pth`` file; ``module.`` prefixes and half precision are understood.
    name : str, optional
        Of the model; the file's own name in lower case where left out. With two models in the file,
        ``-sgan`` and ``-supervised`` are appended.
    which : {"sgan", "supervised"}, optional
        Take only this one, without an appended name.

    Returns
    -------
    list of (ResNet1D, ModelMetadata)
        The task (144 space groups or 14 Bravais lattices) follows from the number of classes.

    Raises
    ------
    UsageError
        The file does not exist, or does not hold the one asked for.
    InputError
        It holds no weights of the ResNet-18-1D, or more than weights.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a released .pth file")
    states = _state_dicts(path, _read_weights(path))
    base = name or path.stem.lower()
    if which is not None:
        if which not in states:
            held = ", ".join(str(key) for key in states if key) or "a bare state dict"
            raise UsageError(
                f"{path} holds no {RELEASED_KEYS[which]} model (it holds {held}); change --which"
            )
        states = {which: states[which]}
    names = {key: base if len(states) == 1 else f"{base}-{key}" for key in states}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return [_model(path, names[key], key, states[key], digest) for key in states]


def _read_weights(path: Path) -> Any:
    import torch

    if path.is_dir():
        raise InputError(f"{path} is a folder; give a released .pth file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle protocol: the error below says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise InputError(
            f"{path}: no PyTorch file of plain weights (empty, damaged, or holding code, which is never run)"
        ) from error


def _state_dicts(path: Path, content: Any) -> dict[Which | None, Weights]:
    """Return the state dicts by their key in `RELEASED_KEYS`; None is the key of a bare one."""
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__} where a dict of weights was expected")
    found: dict[Which | None, Weights] = {
        key: _plain_weights(path, content[released])
        for key, released in RELEASED_KEYS.items()
        if released in content
    }
    return found or {None: _plain_weights(path, content)}


def _plain_weights(path: Path, state: Any) -> Weights:
    import torch

    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path}: holds no weights where a state dict was expected")
    weights: dict[str, NDArray[np.float32]] = {}
    for key, tensor in state.items():
        dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
        if not isinstance(key, str) or not dense:
            raise InputError(f"{path}: entry {str(key)[:60]!r} is no weight of a state dict")
        weights[key.removeprefix("module.")] = tensor.detach().float().numpy()
    return weights


def _model(
    path: Path, name: str, which: Which | None, weights: Weights, digest: str
) -> tuple["ResNet1D", ModelMetadata]:
    bias = weights.get("classifier.bias")
    n_classes = bias.size if bias is not None else 0
    tasks: dict[int, tuple[Literal["space-group", "bravais"], tuple[int | str, ...], Any]] = {
        len(SPACE_GROUPS_144): ("space-group", SPACE_GROUPS_144, SPACE_GROUP_GRID),
        len(BRAVAIS_LATTICES): ("bravais", BRAVAIS_LATTICES, BRAVAIS_GRID),
    }
    if n_classes not in tasks:
        raise InputError(
            f"{path}: {n_classes} outputs; released models have 144 (space groups) or 14 (Bravais lattices)"
        )
    task, classes, grid = tasks[n_classes]
    check_weights(weights, n_classes, str(path))
    network = build_network(weights, "released")
    metadata = ModelMetadata(
        name=name,
        variant="released",
        task=task,
        classes=classes,
        grid=grid,
        probe="neutron",
        wavelength=PAPER_WAVELENGTH,
        input_offset=INPUT_OFFSET,
        provenance={
            "imported_from": path.name,
            "sha256": digest,
            "training": RELEASED_KEYS[which] if which else "unknown",
            "instrument": "paper",
            "source": "Lolla et al. (2022), J. Appl. Cryst. 55",
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        licence=LICENCE,
    )
    return network, metadata
