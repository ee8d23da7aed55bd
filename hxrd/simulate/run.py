"""From a file of identifiers to an archive of patterns, shard by shard."""

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hxrd import __version__
from hxrd.archive import Archive, ArchiveWriter, create_archive, open_archive, open_writer, schema
from hxrd.archive.writer import check_output
from hxrd.errors import InputError, Rejected
from hxrd.physics.instrument import Instrument
from hxrd.simulate.identifiers import Identifiers
from hxrd.simulate.plan import Plan
from hxrd.simulate.shards import simulate_shards
from hxrd.sources import SourceChain, UnknownIdentifier, icsd_hint

SAMPLE_SIZE = 200  # identifiers looked up before anything is made
PIECE_SIZE = 4096  # identifiers read together
REASONS_TOLD = 10  # rejected entries named on stderr; all are in the archive

# What archives begun before these settings existed were made with.
_EARLIER = {"augmentation": None, "per_structure": 1}

logger = logging.getLogger(__name__)


def simulate_archive(
    plan: Plan,
    output: str | Path,
    source: SourceChain,
    *,
    command: str = "",
    resume: bool = False,
    force: bool = False,
    shard_size: int | None = None,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Archive:
    """Simulate the patterns of a plan into an archive, in memory that does not grow with their number.

    Parameters
    ----------
    plan : Plan
        Identifiers, instrument, seed, sources, augmentation.
    output : path
        The archive.
    source : SourceChain
        Where crystals come from.
    command : str
        The command line, for the provenance.
    resume : bool
        Finish an interrupted run of the same plan; begin where there is none.
    force : bool
        Overwrite an existing archive.
    shard_size : int, optional
        Patterns in one file, the smallest unit that is kept or lost.  [default: 4096, fewer if long]
    threads : int, optional
        Processors that simulate; None for all.
    advance : callable
        Told the number of patterns that have been done since the last call.

    Returns
    -------
    Archive
        The finished archive; its rejected rows carry their reasons.

    Raises
    ------
    InputError
        The output exists, is being written by another process or belongs to another plan; every
        identifier was rejected.
    UsageError
        The folder that should hold the output does not exist.
    OSError
        The disk is full; a resumed run goes on from there.
    """
    with _writer(plan, Path(output), command, resume, force, shard_size) as writer:
        pending = writer.pending_shards()
        done = writer.n_patterns - sum(len(writer.rows(index)) for index in pending)
        if done:
            logger.info("%s: %d of %d patterns are there already", output, done, writer.n_patterns)
        advance(done)
        try:
            simulate_shards(writer, plan, source, threads, advance)
        except KeyboardInterrupt:
            logger.warning("%s is unfinished: the same command with --resume finishes it", output)
            raise
    archive = open_archive(output)
    _report(archive)
    return archive


def check_known(identifiers: Identifiers, source: SourceChain) -> None:
    """Raise at once where nearly all identifiers are ICSD numbers that no source knows.

    Parameters
    ----------
    identifiers : Identifiers
        An evenly spread sample is looked up, and only if that fails all of them.
    source : SourceChain
        Where crystals would come from.

    Raises
    ------
    InputError
        It says how to supply an ICSD export.
    """
    count = len(identifiers)
    rows = range(0, count, -(-count // SAMPLE_SIZE))
    sample = [identifiers.read(row, row + 1)[0] for row in rows]
    if icsd_hint(_unknown(sample, source), len(sample)) is None:
        return
    pieces = (identifiers.read(row, row + PIECE_SIZE) for row in range(0, count, PIECE_SIZE))
    every = (name for piece in pieces for name in piece)
    hint = icsd_hint(_unknown(every, source), count)
    if hint is not None:
        raise InputError(hint)


def _unknown(identifiers: Iterable[str], source: SourceChain) -> Iterator[str]:
    for identifier in identifiers:
        try:
            source.get(identifier)
        except UnknownIdentifier:
            yield identifier
        except Rejected:
            continue


def describe_plan(plan: Plan, output: str | Path, resume: bool = False, force: bool = False) -> str:
    """Say what `simulate_archive` would do, after the checks that it would make first.

    Raises
    ------
    InputError, UsageError
        As `simulate_archive` would, before it simulates anything.
    """
    output = Path(output)
    n_patterns = pending = plan.n_patterns
    if resume and output.exists():
        archive = open_archive(output)
        _check_same_plan(archive, plan)
        pending = int(np.count_nonzero(archive.status == schema.NOT_WRITTEN))
    else:
        check_output(output, force)
    n_points = len(plan.instrument.grid())
    size = (4 + plan.has_masks) * n_patterns * n_points / 1e6
    return (
        f"would simulate {pending} of {n_patterns} patterns of {n_points} points into {output} "
        f"(at most {size:,.1f} MB) from {', '.join(plan.sources)}"
    )


def _writer(
    plan: Plan, output: Path, command: str, resume: bool, force: bool, shard_size: int | None
) -> ArchiveWriter:
    if resume and output.exists():
        _check_same_plan(open_archive(output), plan)
        return open_writer(output)
    instrument = plan.instrument
    return create_archive(
        output,
        n_patterns=plan.n_patterns,
        two_theta=instrument.grid(),
        probe=instrument.probe,
        wavelength=instrument.wavelengths,
        instrument=instrument.name,
        normalization="maximum",
        provenance={
            "command": command,
            "version": __version__,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **plan.provenance(),
        },
        n_impurities=plan.n_impurities,
        measured=plan.has_masks,
        force=force,
        shard_size=shard_size,
    )


def _check_same_plan(archive: Archive, plan: Plan) -> None:
    """Raise where finishing the archive by this plan would mix two runs."""
    before, now = {**_EARLIER, **archive.provenance}, plan.provenance()
    names = {"identifiers_sha256": "identifiers", "instrument_settings": "instrument"}
    for key, value in now.items():
        if key not in before:
            raise InputError(f"{archive.path} was not made by hxrd simulate, so --resume cannot finish it")
        if before[key] != value and not (
            key == "instrument_settings" and _equals(before[key], plan.instrument)
        ):
            detail = f" ({before[key]}, now {value})" if key in ("seed", "sources", "per_structure") else ""
            raise InputError(
                f"{archive.path} was begun with other {names.get(key, key)}{detail}: "
                "repeat the first command to resume it, or use --force to start afresh"
            )
    if before.get("version") != __version__:
        logger.warning(
            "%s was begun by hxrd %s, this is %s", archive.path, before.get("version"), __version__
        )


def _equals(settings: Any, instrument: Instrument) -> bool:
    """Whether settings of an earlier version, which may lack newer fields, describe the instrument."""
    try:
        return msgspec.convert(settings, Instrument) == instrument
    except msgspec.ValidationError:
        return False


def _report(archive: Archive) -> None:
    """Name the first rejected entries and count them; raise where nothing is left."""
    n_rejected = archive.n_rejected
    for rejection in islice(archive.iterate_rejections(), REASONS_TOLD):
        logger.warning("rejected %s (row %d): %s", rejection.source_id, rejection.pattern, rejection.reason)
    listed = f"all reasons are in {archive.path / schema.REJECTIONS_FILE}"
    if n_rejected > REASONS_TOLD:
        logger.warning("… and %d more: %s", n_rejected - REASONS_TOLD, listed)
    if n_rejected == archive.n_patterns:
        raise InputError(f"every one of the {n_rejected} identifiers was rejected: {listed}")
    good = archive.n_patterns - n_rejected
    logger.info("%s: %d patterns, %d identifiers rejected", archive.path, good, n_rejected)
