"""`hxrd info`: what a file holds, and what this machine offers."""

import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hxrd import __version__
from hxrd.cli import options
from hxrd.errors import InputError, UsageError

if TYPE_CHECKING:
    import pyarrow

    from hxrd.physics.instrument import Instrument

Line = tuple[str, Any]

OPTIONAL_PACKAGES = {
    "triton": "fused network kernels on a GPU",
    "zarrs": "faster archives",
    "h5py": "HDF5 and NeXus files",
    "fairmat-readers-xrd": "vendors' files",
    "mp-api": "crystals of the Materials Project",
    "dask": "clusters",
    "dask-jobqueue": "clusters",
    "onnxruntime": "inference",
    "openvino": "inference",
}
RESULT_SUFFIXES = (".parquet", ".csv", ".jsonl")


@click.command(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--instruments", is_flag=True, help="List the instrument presets.")
@click.option("--system", is_flag=True, help="Describe the hardware, the kernels in use, optional packages.")
@options.logging_options
def info(path: Path | None, instruments: bool, system: bool) -> None:
    """Say what PATH holds: an archive, a model (.safetensors) or a result (.parquet, .csv, .jsonl).

    Angles are 2θ in degrees, wavelengths in Å.

    \b
    Example:
      hxrd info patterns.zarr
      hxrd info --system
    """
    if path is None and not (instruments or system):
        raise UsageError("name an archive, model or result, or give --instruments or --system")
    if path is not None:
        _print(_describe(path))
    if instruments:
        click.echo(_instruments())
    if system:
        _print(_system())


def _print(lines: Iterable[Line]) -> None:
    rows = [(name, str(value)) for name, value in lines]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}".rstrip())


def _describe(path: Path) -> Iterable[Line]:
    if path.is_dir():
        return _archive(path)
    if path.suffix == ".safetensors":
        return _model(path)
    if path.suffix in RESULT_SUFFIXES:
        return _result(path)
    raise InputError(
        f"{path} is neither an archive (a folder), a model (.safetensors) nor a result "
        f"({', '.join(RESULT_SUFFIXES)})"
    )


def _archive(path: Path) -> Iterator[Line]:
    import numpy as np

    from hxrd.archive import open_archive
    from hxrd.archive.schema import GOOD, NOT_WRITTEN, REJECTED

    archive = open_archive(path)
    counts = np.bincount(archive.status, minlength=3)
    grid, groups = archive.two_theta, Counter(archive.space_group[archive.status == GOOD].tolist())
    unknown = groups.pop(0, 0)
    yield "archive", path
    yield (
        "patterns",
        f"{archive.n_patterns} ({counts[GOOD]} good, {counts[REJECTED]} rejected, "
        f"{counts[NOT_WRITTEN]} not written)",
    )
    yield "points", archive.n_points
    yield "two_theta", f"{grid[0]:g} to {grid[-1]:g} degrees"
    yield "probe", archive.probe
    yield "wavelength", _wavelength(archive.wavelengths)
    yield "instrument", archive.instrument
    yield "normalization", archive.attributes["normalization"]
    yield "stored as", f"{archive.dtype}, {archive.shard_size} patterns a file"
    yield "size", f"{_size(path) / 1e6:,.1f} MB"
    yield "space groups", f"{len(groups)} of 230, {unknown} patterns of unknown group"
    yield (
        "most frequent",
        ", ".join(f"{number} ({count})" for number, count in groups.most_common(5)) or "none",
    )
    yield from _provenance(archive.provenance)
    for rejection in archive.rejections()[:5]:
        yield "rejected", f"row {rejection.pattern}, {rejection.source_id}: {rejection.reason}"


def _model(path: Path) -> Iterator[Line]:
    import hashlib

    from hxrd.models.registry import read_metadata

    metadata = read_metadata(path)
    start, stop, step = metadata.grid
    yield "model", metadata.name
    yield "file", path
    yield "sha256", hashlib.sha256(path.read_bytes()).hexdigest()
    yield "size", f"{path.stat().st_size / 1e6:,.1f} MB"
    yield "architecture", f"{metadata.architecture}, variant {metadata.variant}"
    yield "task", f"{metadata.task}, {metadata.n_classes} classes"
    yield "two_theta", f"{start:g} to {stop:g} by {step:g} degrees, {metadata.n_points} points"
    yield "probe", metadata.probe
    yield "wavelength", f"{metadata.wavelength:g} Å"
    yield "preprocessing", metadata.preprocessing
    yield "input", f"transform {metadata.input_transform}, offset {metadata.input_offset:g}"
    yield "temperature", f"{metadata.temperature:g}"
    yield "low confidence", f"below {metadata.low_confidence:g}"
    yield "licence", metadata.licence or "not stated"
    yield from _provenance(metadata.provenance)


def _result(path: Path) -> Iterator[Line]:
    table = _read_result(path)
    yield "result", path
    yield "rows", table.num_rows
    yield "columns", ", ".join(table.column_names)
    for column, name in (("bravais_lattice", "lattices"), ("flag", "flags")):
        if column in table.column_names:
            counts = Counter(value for value in table[column].to_pylist() if value)
            yield name, ", ".join(f"{value} ({count})" for value, count in counts.most_common()) or "none"
    for key, value in (table.schema.metadata or {}).items():
        if not key.startswith((b"ARROW:", b"pandas")):
            yield key.decode(errors="replace"), value.decode(errors="replace")


def _read_result(path: Path) -> "pyarrow.Table":
    import pyarrow
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    readers = {
        ".parquet": pyarrow.parquet.read_table,
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
    }
    try:
        table = readers[path.suffix](path)
    except (pyarrow.ArrowException, OSError) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"{path} is no readable {path.suffix} file ({first_line})") from error
    if "pattern" not in table.column_names:
        raise InputError(f"{path} is no result of hxrd classify (it has no column pattern)")
    return table


def _provenance(provenance: Any) -> Iterator[Line]:
    for key, value in provenance.items():
        if key == "augmentation":
            yield key, _augmentation(value)
        elif not isinstance(value, dict):
            yield key, ", ".join(map(str, value)) if isinstance(value, list) else value


def _augmentation(settings: dict[str, Any] | None) -> str:
    if settings is None:
        return "none"
    effects = [name for name, effect in settings.items() if isinstance(effect, dict)]
    return f"{settings['name']} ({', '.join(effects)})"


def _wavelength(lines: Iterable[tuple[float, float]]) -> str:
    *several, last = [f"{length:g} Å (weight {weight:.3g})" for length, weight in lines]
    return ", ".join([*several, last]) if several else last.split(" (")[0]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _instruments() -> str:
    from hxrd.physics.instrument import load_instrument, preset_names

    blocks = []
    for name in preset_names():
        instrument = load_instrument(name)
        start, stop, step = instrument.two_theta
        blocks.append(
            f"{name}: {instrument.description}\n"
            f"  {instrument.probe}, {_wavelength(instrument.wavelengths)}, "
            f"2θ {start:g} to {stop:g} by {step:g} degrees, scattering table {instrument.scattering_table}\n"
            f"  U V W {instrument.caglioti_u:g} {instrument.caglioti_v:g} {instrument.caglioti_w:g} deg², "
            f"X Y {instrument.lorentzian_x:g} {instrument.lorentzian_y:g} deg, "
            f"axial divergence {_axial_divergence(instrument)}\n"
            f"{_beam(instrument)}"
            f"  source: {instrument.source}"
        )
    return "\n".join(blocks)


def _axial_divergence(instrument: "Instrument") -> str:
    heights = instrument.sample_half_height, instrument.detector_half_height
    if any(heights):
        return f"S/L H/L {heights[0]:g} {heights[1]:g}"
    return f"{instrument.axial_divergence:g}"


def _beam(instrument: "Instrument") -> str:
    """Return a line on polarisation and zero shift, or nothing where there is nothing to say."""
    said = []
    if instrument.probe == "xray":
        said.append(f"polarisation {instrument.polarization:g}")
        if instrument.monochromator_two_theta:
            said.append(f"monochromator 2θ {instrument.monochromator_two_theta:g} degrees")
    if instrument.zero_shift:
        said.append(f"zero shift {instrument.zero_shift:g} degrees")
    return f"  {', '.join(said)}\n" if said else ""


def _classifier() -> str:
    from hxrd.kernels.cpu_network import has_bfloat16

    precision = "bf16 (AVX512-BF16)" if has_bfloat16() else "fp32 (no AVX512-BF16 here)"
    return f"on the CPU the whole network as vector code, without torch, in {precision}"


def _system() -> Iterator[Line]:
    import numba
    import torch

    from hxrd.kernels import dispatch

    yield "hxrd", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "processor", f"{_processor()}, {os.cpu_count()} cores"
    yield "memory", _memory()
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        yield "cuda", "no device"
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    yield "numba", f"{numba.__version__}, {numba.get_num_threads()} threads"
    yield "simulation", "kernels by Numba, on the CPU"
    yield "network", f"{dispatch.describe()} in training and where torch runs it"
    yield "classify", _classifier()
    for package, purpose in OPTIONAL_PACKAGES.items():
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, f"not installed ({purpose})"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"
