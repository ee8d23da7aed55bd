"""`hxrd generate`: synthetic crystals and their patterns."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hxrd.cli import options
from hxrd.errors import UsageError

if TYPE_CHECKING:
    from hxrd.physics.instrument import Probe

ALL_GROUPS = tuple(range(1, 231))
LARGEST_NUMBER = 10**9  # of patterns: terabytes


class GroupList(click.ParamType):
    """`144`, `230`, or a list such as `62,225` or `195-230`.

    Yields a tuple of space groups.
    """

    name = "144|230|LIST"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the space groups."""
        if isinstance(value, tuple):
            return value
        if value == "230":
            return ALL_GROUPS
        if value == "144":
            from hxrd.crystal.symmetry import SPACE_GROUPS_144

            return SPACE_GROUPS_144
        try:
            bounds = [[int(end) for end in part.split("-")] for part in value.split(",")]
            groups = tuple(number for ends in bounds for number in range(ends[0], ends[-1] + 1))
        except ValueError:
            groups = ()
        if not groups or not set(groups) <= set(ALL_GROUPS) or any(len(ends) > 2 for ends in bounds):
            self.fail(f"{value!r} is neither 144, 230 nor a list such as 62,225 or 195-230", param, ctx)
        return groups


@click.command(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("number", metavar="N", type=click.IntRange(min=1, max=LARGEST_NUMBER))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="ARCHIVE.zarr",
    help="The archive to make.",
)
@click.option(
    "--groups",
    type=GroupList(),
    default="230",
    show_default=True,
    help="Space groups: the paper's 144, all 230, or a list such as 62,225 or 195-230.",
)
@click.option(
    "--weights",
    type=click.Choice(["even", "training"]),
    default="even",
    show_default=True,
    help="The groups take turns, or come as often as among known crystals.",
)
@click.option(
    "--templates",
    metavar="IDS",
    help="Vary these known crystals of --source (a text file of identifiers) instead of drawing new ones.",
)
@options.source_option
@click.option(
    "--crystals",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl[.gz]",
    help="Write the crystals as well, for --source jsonl:FILE.",
)
@options.instrument_options
@options.augment_option
@options.seed_option
@options.shard_size_option
@options.workers_option
@options.force_option
@options.resume_option
@options.dry_run_option
@options.logging_options
def generate(
    number: int,
    output: Path,
    groups: tuple[int, ...],
    weights: str,
    templates: str | None,
    sources: tuple[str, ...],
    crystals: Path | None,
    instrument: str,
    probe: "Probe | None",
    wavelength: str | None,
    two_theta: tuple[float, float, float] | None,
    augment: str | None,
    seed: int,
    shard_size: int | None,
    workers: int | None,
    force: bool,
    resume: bool,
    dry_run: bool,
) -> int:
    """Make N synthetic crystals and simulate their powder patterns.

    Each crystal has just the space group asked for, atoms on Wyckoff positions that are occupied as in
    known crystals, and no two atoms too near each other. Its name, syn-GROUP-SEED-NUMBER, says all that
    making it anew needs (--source synthetic of other commands). With --templates, known crystals are varied
    instead: elements exchanged, the cell strained within its crystal system, free coordinates moved; those
    that cannot be used are named, the rest goes on, and the exit code is 3.
    Angles are 2θ in degrees, wavelengths in Å.

    \b
    Example:
      hxrd generate 10000 -o synthetic.zarr --groups 144 --seed 1
    """
    if force and resume:
        raise UsageError("--force starts afresh and --resume goes on: give one of them")
    if sources and templates is None:
        raise UsageError("--source names where the crystals of --templates are: give both")
    if templates is not None and (groups != ALL_GROUPS or weights != "even"):
        raise UsageError("--templates decide the space groups: leave out --groups and --weights")
    from hxrd.simulate import run
    from hxrd.simulate.augmentation import load_augmentation
    from hxrd.simulate.plan import Plan
    from hxrd.sources.chain import SourceChain
    from hxrd.sources.jsonl_writer import check_table, write_table

    augmentation = None if augment is None else load_augmentation(augment)
    names, source, n_left_out = (
        _new(number, seed, groups, weights)
        if templates is None
        else _varied(number, seed, templates, sources)
    )
    if crystals is not None:
        check_table(crystals, names, overwrite=force, resume=resume)
    chosen = options.resolve_instrument(instrument, probe, wavelength, two_theta)
    chain = SourceChain([source])
    plan = Plan(names, chosen, seed, chain.describe(), augmentation)
    if dry_run:
        options.logger.info("%s", run.describe_plan(plan, output, resume, force))
        return 0
    options.announce_compilation("powder.patterns")
    with options.progress("generating", plan.n_patterns) as advance:
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
    if crystals is not None:
        write_table(crystals, names, source)
    return options.SOME_REJECTED if archive.n_rejected or n_left_out else 0


def _new(number: int, seed: int, groups: tuple[int, ...], weights: Any) -> tuple[Any, Any, int]:
    """Return the names of new crystals, their source, and how many templates were left out of it."""
    from hxrd.crystal.synthetic import Generator, SyntheticSettings
    from hxrd.sources.synthetic import SyntheticSource

    settings = SyntheticSettings(seed=seed, groups=groups, weights=weights)
    return Generator(settings).identifiers(number), SyntheticSource(), 0


def _varied(number: int, seed: int, templates: str, sources: tuple[str, ...]) -> tuple[Any, Any, int]:
    """Return the same of variations."""
    from hxrd.simulate.identifiers import IdentifierFile
    from hxrd.simulate.template_source import TemplateSource
    from hxrd.sources import open_sources

    with IdentifierFile(templates) as identifiers:
        source = TemplateSource(identifiers.read(0, len(identifiers)), open_sources(sources or None), seed)
    return source.identifiers(number), source, source.n_left_out
