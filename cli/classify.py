"""`hxrd classify`: the likeliest space groups and Bravais lattice of every pattern."""

import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hxrd.cli.options import (
    SOME_REJECTED,
    backend_option,
    batch_size_option,
    command_line,
    device_option,
    force_option,
    logging_options,
    precision_option,
    probe_option,
    progress,
    radiation,
    resume_option,
    wavelength_option,
    workers_option,
)
from hxrd.errors import UsageError

if TYPE_CHECKING:
    from hxrd.classify.inputs import Concatenation
    from hxrd.classify.run import Classification
    from hxrd.models.registry import LoadedModel

logger = logging.getLogger("hxrd")

DEFAULT_TOPK = 5
PIPE_WIDTH = 160  # characters of the table where stdout is no terminal
SAME_WAVELENGTH = 1e-4  # relative; closer ones are the same with fewer digits


def _check_range(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int | None, int | None]:
    if value is None:
        return None, None
    match = re.fullmatch(r"(\d*):(\d*)", value)
    if match is None:
        raise click.BadParameter(
            f"{value!r} is not A:B (pattern numbers from 0, B excluded, either left out)"
        )
    first, stop = (int(number) if number else None for number in match.groups())
    if stop is not None and (first or 0) >= stop:
        raise click.BadParameter(f"{value} holds no pattern")
    return first, stop


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Result file: .parquet, .csv or .jsonl. Without it, a table of the first patterns.",
)
@click.option(
    "--topk", type=int, metavar="K", help=f"Space groups to rank.  [default: {DEFAULT_TOPK}, or all if fewer]"
)
@click.option(
    "--task",
    type=click.Choice(["space-group", "bravais", "all"]),
    default="all",
    show_default=True,
    help="Which columns to give.",
)
@click.option(
    "--model",
    default="auto",
    show_default=True,
    metavar="NAME|FILE",
    help="`hxrd models list` names them; auto picks the bundled one that fits the patterns.",
)
@click.option("--logits", is_flag=True, help="Add the raw outputs of the network.")
@click.option(
    "--range",
    "span",
    metavar="A:B",
    callback=_check_range,
    help="Only patterns A to B (from 0; B excluded; either may be left out).",
)
@probe_option
@wavelength_option
@device_option
@backend_option
@precision_option
@batch_size_option
@workers_option
@force_option
@resume_option
@logging_options
def classify(
    inputs: tuple[str, ...],
    output: Path | None,
    topk: int | None,
    task: str,
    model: str,
    logits: bool,
    span: tuple[int | None, int | None],
    probe: str | None,
    wavelength: str | None,
    force: bool,
    resume: bool,
    **running: Any,
) -> int:
    """Rank the space groups and the Bravais lattice of each pattern.

    INPUT is an archive (a folder made by `hxrd simulate`) or a measured pattern (.xy, .xye, also .gz; 2θ in
    degrees). Archives carry their probe and wavelength; for a measured file give --probe and --wavelength
    (Å) unless it states them. Several inputs are numbered through.

    \b
    Example:
      hxrd classify patterns.zarr --topk 5
      hxrd classify quartz.xye --probe neutron --wavelength 1.5401 -o result.parquet
    """
    # Read by NumPy as it is imported: a small job's matrices are too small to be shared among threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from hxrd.classify.inputs import open_inputs

    if topk is not None and topk < 1:
        raise UsageError(f"--topk {topk} is impossible; give 1 or more")
    if resume and output is None:
        raise UsageError("--resume needs the -o FILE of the interrupted run")
    if output is not None:
        from hxrd.classify.output import check_output

        check_output(output, force=force, resume=resume)
    length = _angstrom(wavelength)
    patterns = open_inputs(inputs, probe=probe, wavelength=length)
    _tell_unused(patterns, probe, length)
    loaded = _load_model(model, patterns, topk, task)
    topk = topk or min(DEFAULT_TOPK, loaded.metadata.n_classes)
    run = _plan(patterns, loaded, (topk, task, logits), span, running)
    return _to_table(run) if output is None else _to_file(run, output, resume=resume, force=force)


def _angstrom(wavelength: str | None) -> float | None:
    if wavelength is None:
        return None
    import numpy as np

    from hxrd.physics.instrument import parse_wavelength

    lengths, weights = zip(*parse_wavelength(wavelength), strict=True)
    return float(np.average(lengths, weights=weights))


def _tell_unused(patterns: "Concatenation", probe: str | None, wavelength: float | None) -> None:
    """Warn where options contradict an archive, and no measured file can be what they are meant for."""
    from hxrd.classify.inputs import MeasuredFile

    if any(isinstance(one, MeasuredFile) for one in patterns.usable):
        return
    for one in patterns.usable:
        same_length = wavelength is None or abs(wavelength / one.wavelength - 1) < SAME_WAVELENGTH
        if probe in (None, one.probe) and same_length:
            continue
        logger.warning(
            "%s states %s and %.6g Å itself, which holds: --probe and --wavelength are for measured files",
            one.name,
            one.probe,
            one.wavelength,
        )


def _load_model(model: str, patterns: "Concatenation", topk: int | None, task: str) -> "LoadedModel":
    """Load the model and echo it with the patterns' probe and wavelength."""
    from hxrd.classify.choice import AUTO, choose_model, common_probe
    from hxrd.models.registry import load_model

    loaded = None if model == AUTO else load_model(model)
    probe = common_probe(patterns)
    if loaded is None:
        loaded = load_model(choose_model(patterns))
    metadata = loaded.metadata
    if topk is not None and topk > metadata.n_classes:
        raise UsageError(f"--topk {topk} is more than the {metadata.n_classes} classes of {metadata.name}")
    if metadata.task == "bravais" and task == "space-group":
        raise UsageError(f"model {metadata.name} knows Bravais lattices only; give --task bravais or all")
    wavelengths = ", ".join(f"{value:.6g}" for value in sorted({one.wavelength for one in patterns.usable}))
    logger.info(
        "%s, %s Å; model %s (sha256 %s)",
        radiation(probe),
        wavelengths,
        metadata.name,
        loaded.sha256[:12],
    )
    if metadata.probe != probe:
        logger.warning(
            "model %s was trained on %s patterns, these are %s", metadata.name, metadata.probe, probe
        )
    return loaded


def _plan(
    patterns: "Concatenation",
    loaded: "LoadedModel",
    shape: tuple[int, Any, bool],
    span: tuple[int | None, int | None],
    running: dict[str, Any],
) -> "Classification":
    from hxrd.classify.backends import choose_backends
    from hxrd.classify.engine import Engine
    from hxrd.classify.labels import Labels
    from hxrd.classify.results import Columns
    from hxrd.classify.run import Classification

    first, stop = span[0] or 0, min(span[1] or patterns.n_patterns, patterns.n_patterns)
    if first >= stop:
        raise UsageError(f"--range begins at pattern {first}, but there are only {patterns.n_patterns}")
    backends = choose_backends(
        loaded,
        running["device"],
        running["backend"],
        running["precision"],
        running["batch_size"],
        running["workers"],
        stop - first,
    )
    for one in backends:
        logger.debug("%s: %s, %s, %d at a time", one.device, one.name, one.precision, one.batch_size)
    topk, task, logits = shape
    columns = Columns(loaded.metadata, Labels.of_model(loaded.metadata), topk, task, logits)
    engine = Engine.of(loaded, backends, columns, stop - first)
    return Classification(patterns, engine, columns, first, stop, command_line())


def _to_file(run: "Classification", output: Path, *, resume: bool, force: bool) -> int:
    from hxrd.classify.run import classify_to_file

    begun = time.perf_counter()
    with progress("classifying", run.stop - run.start) as advance:
        summary = classify_to_file(run, output, resume=resume, force=force, advance=advance)
    logger.info("%s", summary.line())
    logger.info("%s written%s", output, "" if resume else f", {_rate(run, begun)}")
    return SOME_REJECTED if summary.n_classified < summary.n_patterns else 0


def _to_table(run: "Classification") -> int:
    from shutil import get_terminal_size

    from hxrd.classify.preview import SHOWN
    from hxrd.classify.run import classify_to_table

    width = get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    begun = time.perf_counter()
    with progress("classifying", run.stop - run.start) as advance:
        table, summary = classify_to_table(run, width, advance)
    click.echo(table)
    if summary.n_patterns > SHOWN:
        click.echo(f"… and {summary.n_patterns - SHOWN} more: -o FILE.parquet (.csv, .jsonl) writes all")
    click.echo(f"\n{summary.line()}")
    logger.info("%s", _rate(run, begun))
    return SOME_REJECTED if summary.n_classified < summary.n_patterns else 0


def _rate(run: "Classification", begun: float) -> str:
    seconds = time.perf_counter() - begun
    return f"{(run.stop - run.start) / seconds:,.0f} patterns/s"
