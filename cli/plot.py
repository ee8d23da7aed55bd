"""`hxrd plot`: pictures of patterns, and the class distribution of an archive."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hxrd.cli import options
from hxrd.errors import InputError, Rejected, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hxrd.archive import Archive
    from hxrd.evaluate.figures import PatternPanel
    from hxrd.physics.instrument import Instrument
    from hxrd.sources import SourceChain

SUFFIXES = (".png", ".svg", ".pdf")
MOST_PATTERNS = 20  # in one picture


@click.command(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("archive", metavar="ARCHIVE.zarr", type=click.Path(exists=True, path_type=Path))
@click.argument("indices", metavar="[INDEX]...", nargs=-1, type=click.IntRange(min=0))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="The picture, .png, .svg or .pdf.  [default: ARCHIVE with the ending .png]",
)
@click.option(
    "--class-distribution", is_flag=True, help="Draw the counts of space groups and lattices instead."
)
@options.source_option
@options.force_option
@options.logging_options
def plot(
    archive: Path,
    indices: tuple[int, ...],
    output: Path | None,
    class_distribution: bool,
    sources: tuple[str, ...],
    force: bool,
) -> int:
    """Draw the patterns of ARCHIVE.zarr with these INDEXes (from 0), one above the other.

    With --source, and where it knows the pattern's identifier, the crystal's reflections are drawn as
    ticks, with its calculated pattern and the difference. Angles are 2θ in degrees.

    \b
    Example:
      hxrd plot patterns.zarr 0 7 -o two.png --source prototypes
      hxrd plot patterns.zarr --class-distribution -o classes.png
    """
    if bool(indices) == class_distribution:
        raise UsageError("give either the INDEX of one or more patterns, or --class-distribution")
    if len(indices) > MOST_PATTERNS:
        raise UsageError(f"{len(indices)} patterns are too many for one picture: at most {MOST_PATTERNS}")
    output = output or options.default_output(archive, ".png")
    _check_output(output, force)

    from hxrd.archive import open_archive

    opened = open_archive(archive)
    if class_distribution:
        _save(_distribution(opened), output)
        return 0
    rejected = _rejected(opened, indices)
    figure = _patterns(opened, [index for index in indices if index not in rejected], sources)
    _save(figure, output)
    return options.SOME_REJECTED if rejected else 0


def _check_output(output: Path, force: bool) -> None:
    if output.suffix not in SUFFIXES:
        raise UsageError(f"{output}: the picture's name must end in {', '.join(SUFFIXES)}")
    if not output.parent.is_dir():
        raise UsageError(f"folder {output.parent} does not exist: make it first, or choose another output")
    if output.is_dir() or (output.exists() and not force):
        raise InputError(f"{output} exists: --force overwrites a file, -o names another output")


def _rejected(archive: "Archive", indices: Sequence[int]) -> set[int]:
    """Tell which of the patterns there is nothing to draw of, and why."""
    from hxrd.archive.schema import NOT_WRITTEN

    for index in indices:
        if index >= archive.n_patterns:
            raise UsageError(f"no pattern {index}: {archive.path} has 0 to {archive.n_patterns - 1}")
    reasons = {rejection.pattern: rejection.reason for rejection in archive.rejections()}
    reasons |= {index: "not written yet" for index in indices if archive.status[index] == NOT_WRITTEN}
    rejected = {index for index in indices if index in reasons}
    for index in sorted(rejected):
        options.logger.warning("pattern %d (%s): %s", index, archive.source_id[index], reasons[index])
    if rejected == set(indices):
        raise InputError(f"{archive.path}: there is nothing to draw of the patterns asked for")
    return rejected


def _distribution(archive: "Archive") -> "Figure":
    from hxrd.archive.schema import GOOD
    from hxrd.evaluate.figures import class_distribution_figure

    groups = archive.space_group[archive.status == GOOD]
    if not groups.any():
        raise InputError(f"{archive.path}: no pattern has a known space group")
    known = int((groups > 0).sum())
    return class_distribution_figure(groups, f"{known:,} patterns of known space group")


def _patterns(archive: "Archive", indices: Sequence[int], specs: Sequence[str]) -> "Figure":
    from hxrd.evaluate.figures import patterns_figure

    source: SourceChain | None = None
    if specs:
        from hxrd.sources import open_sources

        source = open_sources(specs)
    panels = [_panel(archive, index, source) for index in indices]
    note = f"{options.radiation(archive.probe)}, {archive.wavelength:.5g} Å"
    return patterns_figure(archive.two_theta, panels, note)


def _panel(archive: "Archive", index: int, source: "SourceChain | None") -> "PatternPanel":
    import numpy as np

    from hxrd.crystal.symmetry import symbol
    from hxrd.evaluate.figures import PatternPanel

    group, identifier = int(archive.space_group[index]), archive.source_id[index]
    title = f"{index}: {identifier}" + (f", {symbol(group)} ({group})" if group else "")
    intensity = archive.read(index, index + 1)[0]
    if (measured := archive.measured(index, index + 1)) is not None:
        intensity[~measured[0]] = np.nan
    if source is None:
        return PatternPanel(title, intensity)
    from hxrd.physics.reflections import peaks
    from hxrd.simulate.simulate import simulate_patterns

    instrument = _instrument(archive)
    try:
        crystal = source.get(identifier)
        reflections = np.array([reflection.two_theta for reflection in peaks(crystal, instrument)])
        simulated, (reason,) = simulate_patterns([crystal], instrument)
        if reason is not None:
            raise Rejected(reason)
    except Rejected as rejection:
        options.logger.warning("no calculated pattern of %s: %s", identifier, rejection)
        return PatternPanel(title, intensity)
    calculated = np.interp(archive.two_theta, instrument.grid(), simulated[0])
    return PatternPanel(title, intensity, calculated, reflections)


def _instrument(archive: "Archive") -> "Instrument":
    """Return the archive's own instrument, or a preset with the archive's probe, wavelengths and range."""
    import msgspec
    import numpy as np

    from hxrd.physics.instrument import Instrument, load_instrument

    settings = archive.provenance.get("instrument_settings")
    if settings is not None:
        try:
            return msgspec.convert(settings, Instrument)
        except msgspec.ValidationError as error:
            raise InputError(
                f"archive {archive.path}: instrument settings not understood ({error})"
            ) from error
    preset = load_instrument("paper" if archive.probe == "neutron" else "xray")
    angles = archive.two_theta
    step = float(np.median(np.diff(angles)))
    start = max(float(angles[0]), step)
    return msgspec.structs.replace(
        preset,
        wavelengths=archive.wavelengths,
        two_theta=(start, start + step * np.ceil((angles[-1] - start) / step), step),
    )


def _save(figure: "Figure", output: Path) -> None:
    part = output.with_name(output.name + ".part")
    try:
        figure.savefig(part, format=output.suffix[1:])
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)
