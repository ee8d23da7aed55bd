"""`hxrd simulate`: identifiers to an archive of patterns."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hxrd.cli import options
from hxrd.errors import UsageError

if TYPE_CHECKING:
    from hxrd.physics.instrument import Probe


@click.command(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("identifiers", metavar="IDS")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="ARCHIVE.zarr",
    help="The archive to make.  [default: IDS with the ending .zarr]",
)
@options.instrument_options
@options.source_option
@options.seed_option
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Patterns in one file of the archive: what a kill can lose.",
)
@options.workers_option
@options.force_option
@options.resume_option
@options.dry_run_option
@options.logging_options
def simulate(
    identifiers: str,
    output: Path | None,
    instrument: str,
    probe: "Probe | None",
    wavelength: str | None,
    two_theta: tuple[float, float, float] | None,
    sources: tuple[str, ...],
    seed: int,
    shard_size: int,
    workers: int | None,
    force: bool,
    resume: bool,
    dry_run: bool,
) -> int:
    """Simulate one powder pattern for each identifier of IDS.

    IDS is a text file with one identifier a line ('-' is stdin); empty lines and lines that begin with
    '#' are skipped. Each pattern is divided by its maximum; angles are 2θ in degrees, wavelengths in Å.
    An identifier without a usable crystal keeps an empty row, its reason goes to rejections.jsonl in the
    archive, and the exit code is 3. An interrupted run is finished by the same command with --resume.

    \b
    Example:
      hxrd simulate ids.txt -o patterns.zarr --source cif:my_cifs --source prototypes
    """
    if force and resume:
        raise UsageError("--force starts afresh and --resume goes on: give one of them")
    if output is None:
        if identifiers == "-":
            raise UsageError("identifiers come from stdin: name the archive with -o")
        output = options.default_output(Path(identifiers), ".zarr")
    from hxrd.simulate import run
    from hxrd.sources import open_sources

    names = run.read_identifiers(identifiers)
    chosen = options.resolve_instrument(instrument, probe, wavelength, two_theta)
    chain = open_sources(sources or None)
    plan = run.Plan(names, chosen, seed, chain.describe())
    run.check_known(names, chain)
    if dry_run:
        options.logger.info("%s", run.describe_plan(plan, output, resume, force))
        return 0
    options.set_workers(workers)
    with options.progress("simulating", len(names)) as advance:
        archive = run.simulate_archive(
            plan,
            output,
            chain,
            command=options.command_line(),
            resume=resume,
            force=force,
            shard_size=shard_size,
            advance=advance,
        )
    return options.SOME_REJECTED if archive.rejections() else 0
