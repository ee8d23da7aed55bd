"""What an archive holds (schema 1), and the test that a Zarr group is one.

Beside the members that every archive has (`intensity`, `two_theta`, `space_group`, `source_id`,
`status`), it may hold these, which a reader can ignore; all have one row for each pattern:

- `scale` (n_patterns,) float32: what stored counts are multiplied by;
- `impurity_id` (n_patterns, k) string and `impurity_fraction` (n_patterns, k) float32: identifiers and
  weight fractions of foreign phases, empty and 0 where there is none;
- `measured` (n_patterns, n_points) bool: false at points outside a pattern's range or masked, whose
  intensities are zeros; all false for a rejected pattern. Stored and sharded as `intensity`.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hxrd.errors import InputError, UsageError

if TYPE_CHECKING:
    import zarr

SCHEMA = 1
NOT_WRITTEN, GOOD, REJECTED = 0, 1, 2  # values of `status`
INTENSITY_TYPES = ("float32", "float16", "uint16")
REQUIRED = ("intensity", "two_theta", "space_group", "source_id", "status")
OPTIONAL = ("scale", "impurity_id", "impurity_fraction", "measured")
REJECTIONS_FILE = "rejections.jsonl"
PROBES = ("neutron", "xray")

_ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}

Wavelength = float | Sequence[tuple[float, float]]


def open_group(path: Path, mode: str = "r") -> "zarr.Group":
    """Open the Zarr group of an archive and check that it is one of schema 1.

    Parameters
    ----------
    path : Path
        The archive's folder.
    mode : {"r", "r+"}
        Read only, or read and write.

    Raises
    ------
    UsageError
        The path does not exist.
    InputError
        It is not an archive, its metadata is damaged or incomplete, or its schema is another one.
    """
    group = _zarr_group(path, mode)
    schema = group.attrs.get("hxrd_schema")
    if schema is None:
        raise InputError(f"{path} is a Zarr group but no hxrd archive (it has no attribute hxrd_schema)")
    if schema != SCHEMA:
        raise InputError(f"{path} has archive schema {schema!r}; this hxrd reads {SCHEMA}: use a newer hxrd")
    _check_members(path, group)
    _check_attributes(path, group.attrs.asdict())
    return group


def member(group: "zarr.Group", name: str) -> "zarr.Array[Any]":
    """Return an array of the group by name.

    One that is only read is decoded by zarrs where that is installed, two to three times as fast; it
    does not write, as it would not replace a chunk's file as a whole.
    """
    import zarr

    with zarr.config.set(_ZARRS if group.read_only and _has_zarrs() else {}):
        array = group[name]
    assert isinstance(array, zarr.Array)
    return array


@functools.cache
def _has_zarrs() -> bool:
    from importlib.metadata import distributions

    return any(True for _ in distributions(name="zarrs"))


def is_archive(path: Path) -> bool:
    """Whether the folder is an hxrd archive of any schema, so that ``--force`` may delete it."""
    try:
        return "hxrd_schema" in _zarr_group(path, "r").attrs
    except (InputError, UsageError):
        return False


def wavelength_attribute(wavelength: Wavelength) -> float | list[list[float]]:
    """Return the attribute: a number in Å, or a list of [wavelength, weight] for a multiplet."""
    if isinstance(wavelength, (int, float)):
        return float(wavelength)
    lines = [[float(length), float(weight)] for length, weight in wavelength]
    return lines[0][0] if len(lines) == 1 else lines


def wavelength_lines(attribute: Any) -> tuple[tuple[float, float], ...]:
    """Return (wavelength in Å, weight) of each line from the attribute.

    Raises
    ------
    ValueError, TypeError
        It is neither a positive number nor a list of such pairs.
    """
    lines = [(attribute, 1.0)] if isinstance(attribute, (int, float)) else attribute
    lines = tuple((float(length), float(weight)) for length, weight in lines)
    if not lines or not all(np.isfinite(line).all() and min(line) > 0 for line in lines):
        raise ValueError("no positive wavelength")
    return lines


def checked_two_theta(two_theta: Any) -> NDArray[np.float64]:
    """Return the grid as float64 if it is strictly increasing within 0 to 180 degrees.

    Raises
    ------
    ValueError
        It is not.
    """
    grid = np.asarray(two_theta, dtype=np.float64)
    if grid.ndim != 1 or not grid.size or not np.all(np.isfinite(grid)):
        raise ValueError("two_theta is not a list of angles")
    if np.any(np.diff(grid) <= 0) or grid[0] < 0 or grid[-1] > 180:
        raise ValueError("two_theta is not strictly increasing within 0 to 180 degrees")
    return grid


def _zarr_group(path: Path, mode: str) -> "zarr.Group":
    if not path.exists():
        raise UsageError(f"archive {path} does not exist")
    if not path.is_dir():
        raise InputError(f"{path} is a file, not an archive (an archive is a folder, made by hxrd simulate)")
    if not (path / "zarr.json").is_file():
        raise InputError(f"{path} is no hxrd archive (it has no zarr.json)")
    import zarr

    try:
        return zarr.open_group(path, mode=mode, zarr_format=3, use_consolidated=False)  # type: ignore[arg-type]
    except Exception as error:  # zarr raises whatever its JSON and codec parsers raise
        raise InputError(f"{path} is no readable Zarr group ({one_line(error)})") from error


def _check_members(path: Path, group: "zarr.Group") -> None:
    try:
        shapes = {name: member(group, name).shape for name in REQUIRED}
        types = {name: str(member(group, name).dtype) for name in REQUIRED}
    except Exception as error:  # as above: whatever zarr raises on damaged metadata
        raise InputError(f"archive {path} is incomplete or damaged ({one_line(error)})") from error
    if len(shapes["intensity"]) != 2 or types["intensity"] not in INTENSITY_TYPES:
        raise InputError(
            f"archive {path}: intensity is {types['intensity']} {shapes['intensity']}, "
            f"not (n_patterns, n_points) of {', '.join(INTENSITY_TYPES)}"
        )
    n_patterns, n_points = shapes["intensity"]
    expected = dict.fromkeys(REQUIRED, (n_patterns,)) | {
        "intensity": (n_patterns, n_points),
        "two_theta": (n_points,),
    }
    if "measured" in group:
        expected["measured"] = (n_patterns, n_points)
        shapes["measured"] = member(group, "measured").shape
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise InputError(f"archive {path}: {name} has shape {shapes[name]} instead of {shape}")


def _check_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    missing = [name for name in _ATTRIBUTES if name not in attributes]
    if missing:
        raise InputError(f"archive {path} lacks the attribute {missing[0]}")
    if attributes["probe"] not in PROBES:
        raise InputError(f"archive {path}: probe {attributes['probe']!r} is neither neutron nor xray")
    try:
        wavelength_lines(attributes["wavelength"])
    except (TypeError, ValueError) as error:
        raise InputError(
            f"archive {path}: wavelength {attributes['wavelength']!r} is neither a number in Å "
            "nor a list of [wavelength, weight]"
        ) from error


def one_line(error: BaseException) -> str:
    """Return an error of another library, whatever its type, as a short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


_ATTRIBUTES = ("probe", "wavelength", "instrument", "normalization", "provenance")
