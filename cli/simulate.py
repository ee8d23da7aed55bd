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
@options.augment_option
@click.option(
    "--per-structure",
    type=click.IntRange(min=1, max=1_000_000),
    default=1,
    show_default=True,
    metavar="N",
    help="Patterns for each identifier, one after the other, each augmented by itself.",
)
@options.seed_option
@options.shard_size_option
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
    augment: str | None,
    per_structure: int,
    seed: int,
    shard_size: int | None,
    workers: int | None,
    force: bool,
    resume: bool,
    dry_run: bool,
) -> int:
    """Simulate one powder pattern, or with --augment several, for each identifier of IDS.

    IDS is a text file with one identifier a line ('-' is stdin), of any length; empty lines and lines that
    begin with '#' are skipped. Each pattern is divided by its maximum; angles are 2θ in degrees,
    wavelengths in Å. An identifier without a usable crystal keeps an empty row, its reason goes to
    rejections.jsonl in the archive, and the exit code is 3. An interrupted run is finished by the same
    command with --resume. Equal commands give equal patterns, whatever the number of workers.

    \b
    Example:
      hxrd simulate ids.txt -o patterns.zarr --source cif:my_cifs --source prototypes
      hxrd simulate ids.txt -o measured.zarr --augment realistic-neutron --per-structure 20
    """
    if per_structure > 1 and augment is None:
        raise UsageError(f"--per-structure {per_structure} without --augment makes equal patterns: give both")
    if force and resume:
        raise UsageError("--force starts afresh and --resume goes on: give one of them")
    if output is None:
        if identifiers == "-":
            raise UsageError("identifiers come from stdin: name the archive with -o")
        output = options.default_output(Path(identifiers), ".zarr")
    from hxrd.simulate import run
    from hxrd.simulate.augmentation import load_augmentation
    from hxrd.simulate.identifiers import IdentifierFile
    from hxrd.simulate.plan import Plan
    from hxrd.sources import open_sources

    with IdentifierFile(identifiers) as names:
        augmentation = None if augment is None else load_augmentation(augment)
        chosen = options.resolve_instrument(instrument, probe, wavelength, two_theta)
        chain = open_sources(sources or None)
        plan = Plan(names, chosen, seed, chain.describe(), augmentation, per_structure)
        run.check_known(names, chain)
        if dry_run:
            options.logger.info("%s", run.describe_plan(plan, output, resume, force))
            return 0
        options.announce_compilation("powder.patterns")
        with options.progress("simulating", plan.n_patterns) as advance:
            archive = run.simulate_archive(
                plan,
                output,
                chain,
                command=options.command_line(),
                resume=resume,
                force=force,
                shard_size=shard_size,
                threads=workers,
                advance=advance,
            )
    return options.SOME_REJECTED if archive.n_rejected else 0
