"""Model files: safetensors whose metadata hold all that is needed to use the weights, and where they lie."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.symmetry import BRAVAIS_LATTICES
from hxrd.errors import HxrdError, InputError, UsageError
from hxrd.models.layout import Variant, Weights, check_weights

if TYPE_CHECKING:
    from hxrd.models.resnet1d import ResNet1D

BUNDLED_FOLDER = Path(__file__).parent / "weights"
SUFFIX = ".safetensors"
METADATA_KEY = "hxrd"  # the one entry of the safetensors metadata, a JSON object


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a model but its weights.

    Parameters
    ----------
    name : str
        What `hxrd models list` and the results call it.
    architecture : {"resnet18"}
        The network.
    variant : {"paper", "released"}
        With or without the max pool (see `hxrd.models.resnet1d`).
    task : {"space-group", "bravais"}
        What the classes are.
    classes : tuple of int or str
        The label of each output: space-group numbers, or Bravais lattices.
    grid : tuple of float
        Start, stop (included) and step of 2θ in degrees.
    probe : {"neutron", "xray"}
        Radiation of the training patterns.
    wavelength : float
        In Å; the weighted mean of a multiplet.
    preprocessing : {"none", "background"}
        Whether a background is removed from each pattern before the network sees it.
    input_transform : {"none", "sqrt"}
        Applied to the pattern after division by its maximum.
    input_offset : float
        Added after the transform (the release adds 1e-3).
    temperature : float
        Probabilities are softmax(logits / temperature).
    low_confidence : float
        A best probability below this is flagged.
    provenance : dict
        How, when and on what it was trained, or where it was imported from.
    licence : str
        Of the weights.
    """

    name: str
    architecture: Literal["resnet18"] = "resnet18"
    variant: Variant
    task: Literal["space-group", "bravais"]
    classes: tuple[int | str, ...]
    grid: tuple[float, float, float]
    probe: Literal["neutron", "xray"]
    wavelength: float
    preprocessing: Literal["none", "background"] = "none"
    input_transform: Literal["none", "sqrt"] = "none"
    input_offset: float = 0.0
    temperature: float = 1.0
    low_confidence: float = 0.0
    provenance: dict[str, Any] = {}
    licence: str = ""

    def __post_init__(self) -> None:
        """Refuse what is impossible; msgspec reports a ValueError as a validation error."""
        start, stop, step = self.grid
        if not (0 <= start < stop < 180 and 0 < step <= stop - start):
            raise ValueError("grid must satisfy 0 <= start < stop < 180 and 0 < step")
        steps = (stop - start) / step
        if abs(steps - round(steps)) > 1e-3:
            raise ValueError("grid must reach its stop by whole steps")
        if not (math.isfinite(self.wavelength) and self.wavelength > 0):
            raise ValueError("wavelength must be above 0")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError("temperature must be above 0")
        if not (0 <= self.low_confidence <= 1 and math.isfinite(self.input_offset)):
            raise ValueError("low_confidence must lie in [0, 1] and input_offset be finite")
        _check_classes(self.task, self.classes)

    @property
    def n_classes(self) -> int:
        """Number of outputs."""
        return len(self.classes)

    @property
    def n_points(self) -> int:
        """Number of points of the grid, both ends included."""
        start, stop, step = self.grid
        return round((stop - start) / step) + 1


def _check_classes(task: str, classes: tuple[int | str, ...]) -> None:
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError("classes must be at least two and all different")
    if task == "bravais":
        known = all(label in BRAVAIS_LATTICES for label in classes)
    else:
        known = all(isinstance(label, int) and 1 <= label <= 230 for label in classes)
    if not known:
        raise ValueError(f"classes hold a label that a {task} model cannot have")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model file that was read and checked; torch is imported only where `model` is asked for.

    Parameters
    ----------
    weights : mapping of str to ndarray
        Float32, by the released keys; ``adv.*`` may be there or not.
    metadata : ModelMetadata
        What came with the weights.
    sha256 : str
        Of the whole file.
    path : Path
        Where it was read from.
    """

    weights: Weights
    metadata: ModelMetadata
    sha256: str
    path: Path

    @cached_property
    def model(self) -> "ResNet1D":
        """The network of these weights in evaluation mode, float32, on the CPU."""
        return build_network(self.weights, self.metadata.variant)


@dataclass(frozen=True)
class ModelEntry:
    """One line of `hxrd models list`.

    Parameters
    ----------
    name : str
        What to give to ``--model``.
    path : Path
        Its file.
    origin : {"bundled", "local"}
        Which folder it lies in.
    metadata : ModelMetadata or None
        None where the file cannot be used.
    problem : str
        Why it cannot be used; empty where it can.
    """

    name: str
    path: Path
    origin: Literal["bundled", "local"]
    metadata: ModelMetadata | None
    problem: str = ""


def local_folder() -> Path:
    """Return the user's own model folder (it need not exist)."""
    from platformdirs import user_data_dir

    return Path(user_data_dir("hxrd", appauthor=False)) / "models"


def list_models() -> list[ModelEntry]:
    """Return the bundled and the local models, by name; a bundled one hides a local one of its name."""
    entries: dict[str, ModelEntry] = {}
    for folder, origin in ((BUNDLED_FOLDER, "bundled"), (local_folder(), "local")):
        for path in _files_of(folder):
            entries.setdefault(path.stem, _entry(path, origin))  # type: ignore[arg-type]
    return sorted(entries.values(), key=lambda entry: (entry.origin, entry.name))


def _files_of(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob(f"*{SUFFIX}"))
    except PermissionError:  # a home that is another user's, as in some containers
        return []


def _entry(path: Path, origin: Literal["bundled", "local"]) -> ModelEntry:
    try:
        return ModelEntry(path.stem, path, origin, read_metadata(path))
    except InputError as error:
        return ModelEntry(path.stem, path, origin, None, str(error))


def find_model(name_or_path: str | Path) -> Path:
    """Return the file of a model given by its name or its path.

    Raises
    ------
    UsageError
        There is no such file, or no bundled or local model of that name.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    text = os.fspath(name_or_path)
    if path.suffix == SUFFIX or os.sep in text or path.is_dir():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(
            f"model file {text} {problem}; give a .safetensors file or a name of `hxrd models list`"
        )
    for folder in (BUNDLED_FOLDER, local_folder()):
        candidate = folder / f"{text}{SUFFIX}"
        if candidate.is_file():
            return candidate
    known = ", ".join(entry.name for entry in list_models()) or "none"
    raise UsageError(f"no model is called {text!r}; known: {known}; or give a .safetensors file")


def read_metadata(path: Path) -> ModelMetadata:
    """Return the metadata of a model file, reading no weights.

    Raises
    ------
    InputError
        The file is unreadable, no safetensors file, or none of hxrd's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return _parse_metadata(path, file.metadata())
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: no readable safetensors file ({_first_line(error)})") from error


def _parse_metadata(path: Path, stored: dict[str, str] | None) -> ModelMetadata:
    if not stored or METADATA_KEY not in stored:
        raise InputError(
            f"{path}: a safetensors file without hxrd's metadata; make it with `hxrd models import`"
        )
    try:
        return msgspec.json.decode(stored[METADATA_KEY].encode(), type=ModelMetadata)
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: model metadata not understood ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def load_model(name_or_path: str | Path) -> LoadedModel:
    """Load a model by its name or its path.

    Weights stored in half precision become float32. Nothing is unpickled.

    Raises
    ------
    UsageError
        There is no such model.
    InputError
        The file is corrupt, or its weights do not fit the architecture that its metadata name.
    """
    from safetensors import SafetensorError, deserialize

    path = find_model(name_or_path)
    metadata = read_metadata(path)
    try:
        content = path.read_bytes()
        weights = {key: _float32(stored) for key, stored in deserialize(content)}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: weights cannot be read ({_first_line(error)})") from error
    check_weights(weights, metadata.n_classes, str(path))
    return LoadedModel(weights, metadata, hashlib.sha256(content).hexdigest(), path)


def _float32(stored: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return one tensor of a safetensors file; bfloat16, which NumPy lacks, is half a float32."""
    kinds = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    kind = kinds.get(stored["dtype"])
    if kind is None:
        raise ValueError(f"numbers of type {stored['dtype']}")
    array = np.frombuffer(stored["data"], dtype=kind).reshape(stored["shape"])
    if kind is np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused later
        return array.astype(np.float32)


def build_network(weights: Weights, variant: Variant) -> "ResNet1D":
    """Return a `ResNet1D` in evaluation mode that holds copies of weights which `check_weights` passed."""
    import torch

    from hxrd.models.resnet1d import ResNet1D

    n_classes = len(weights["classifier.bias"])
    model = ResNet1D(n_classes, variant=variant, adversarial_head="adv.weight" in weights)
    model.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})
    return model.eval()


def network_input(
    intensity: NDArray[np.float32], metadata: ModelMetadata, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Apply the model's transform and offset to patterns on its grid, maximum 1.

    Parameters
    ----------
    intensity : ndarray, shape (..., n_points)
        Within [0, 1].
    metadata : ModelMetadata
        Of the model.
    out : ndarray, shape (..., n_points), float32, optional
        Where to put the result; a new array where left out.

    Returns
    -------
    ndarray, shape (..., n_points), float32
    """
    if out is None:
        out = np.empty(intensity.shape, np.float32)
    if metadata.input_transform == "sqrt":
        np.sqrt(intensity, out=out)
    else:
        out[...] = intensity
    if metadata.input_offset:
        out += np.float32(metadata.input_offset)
    return out


def save_model(
    path: str | Path, model: "ResNet1D", metadata: ModelMetadata, *, half: bool = False, force: bool = True
) -> None:
    """Write a model file, first as ``NAME.part``, then renamed.

    Parameters
    ----------
    path : str or Path
        Ends in ``.safetensors``.
    model : ResNet1D
        On any device.
    metadata : ModelMetadata
        Stored as one JSON string.
    half : bool
        Store the weights as float16 (half the size; about three decimal digits).
    force : bool
        Overwrite an existing file.

    Raises
    ------
    HxrdError
        The file exists and `force` is False.
    InputError
        The number of outputs differs from the number of classes.
    """
    import torch
    from safetensors.torch import save_file

    path = Path(path)
    if path.exists() and not force:
        raise HxrdError(f"{path} exists; give another name, or --force to overwrite it")
    if model.classifier.out_features != metadata.n_classes:
        raise InputError(f"{path}: {model.classifier.out_features} outputs but {metadata.n_classes} classes")
    dtype = torch.float16 if half else torch.float32
    weights = {
        key: tensor.detach().to("cpu", dtype, copy=True).contiguous()
        for key, tensor in model.state_dict().items()
    }
    text = json.dumps(msgspec.to_builtins(metadata), ensure_ascii=False)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, part, metadata={METADATA_KEY: text})
    os.replace(part, path)
