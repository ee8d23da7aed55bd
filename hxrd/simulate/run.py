"""From a file of identifiers to an archive of patterns, shard by shard."""

import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hxrd import __version__
from hxrd.archive import Archive, ArchiveWriter, create_archive, open_archive, open_writer, schema
from hxrd.archive.writer import SHARD_SIZE, check_output
from hxrd.crystal.crystal import Crystal
from hxrd.errors import InputError, Rejected, UsageError
from hxrd.physics.instrument import Instrument
from hxrd.simulate.simulate import simulate_patterns
from hxrd.sources import SourceChain, UnknownIdentifier, icsd_hint

STDIN = "-"
BATCH_SIZE = 512  # crystals simulated together: enough for all cores, few enough for a lively progress bar
SAMPLE_SIZE = 200  # identifiers looked up before anything is made
REASONS_TOLD = 10  # rejected entries named on stderr; all are in the archive

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a run is to do; two runs of equal plans give equal arrays.

    Parameters
    ----------
    identifiers : sequence of str
        One for each row, in order.
    instrument : Instrument
        The diffractometer.
    seed : int
        Of all random numbers.
    sources : sequence of str
        Specifications of the sources, in the order they are tried.
    """

    identifiers: Sequence[str]
    instrument: Instrument
    seed: int
    sources: Sequence[str]

    def provenance(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the first."""
        joined = "\n".join(self.identifiers).encode()
        return {
            "identifiers_sha256": hashlib.sha256(joined).hexdigest(),
            "instrument_settings": msgspec.to_builtins(self.instrument, builtin_types=()),
            "seed": self.seed,
            "sources": list(self.sources),
        }


def read_identifiers(file: str | Path) -> list[str]:
    """Read one identifier a line, stripped; empty lines and lines that begin with ``#`` are skipped.

    Parameters
    ----------
    file : path
        A text file in UTF-8, or ``-`` for stdin.

    Raises
    ------
    UsageError
        The file does not exist.
    InputError
        It is a directory, cannot be read, is not text, or holds no identifier.
    """
    name = "stdin" if str(file) == STDIN else str(file)
    try:
        content = sys.stdin.buffer.read() if name == "stdin" else Path(file).read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"identifier file {name} does not exist") from error
    except OSError as error:
        raise InputError(f"identifier file {name} cannot be read ({error.strerror})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no identifier file: it is not text (byte {error.start})") from error
    if "\0" in text:
        raise InputError(f"{name} is no identifier file: it is not text (it holds a zero byte)")
    lines = (line.strip() for line in text.splitlines())
    identifiers = [line for line in lines if line and not line.startswith("#")]
    if not identifiers:
        raise InputError(f"{name} holds no identifiers: write one a line")
    return identifiers


def simulate_archive(
    plan: Plan,
    output: str | Path,
    source: SourceChain,
    *,
    command: str = "",
    resume: bool = False,
    force: bool = False,
    shard_size: int = SHARD_SIZE,
    advance: Callable[[int], None] = lambda count: None,
) -> Archive:
    """Simulate one pattern for each identifier into an archive.

    Parameters
    ----------
    plan : Plan
        Identifiers, instrument, seed and sources.
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
    shard_size : int
        Patterns in one file: what a kill can lose.
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
    """
    with _writer(plan, Path(output), command, resume, force, shard_size) as writer:
        pending = writer.pending_shards()
        done = writer.n_patterns - sum(len(writer.rows(index)) for index in pending)
        if done:
            logger.info("%s: %d of %d patterns are there already", output, done, writer.n_patterns)
        advance(done)
        try:
            for index in pending:
                _simulate_shard(writer, index, plan, source, advance)
        except KeyboardInterrupt:
            logger.warning("%s is unfinished: the same command with --resume finishes it", output)
            raise
    archive = open_archive(output)
    _report(archive)
    return archive


def check_known(identifiers: Sequence[str], source: SourceChain) -> None:
    """Raise at once where nearly all identifiers are ICSD numbers that no source knows.

    Parameters
    ----------
    identifiers : sequence of str
        An evenly spread sample is looked up, and only if that fails all of them.
    source : SourceChain
        Where crystals would come from.

    Raises
    ------
    InputError
        It says how to supply an ICSD export.
    """
    sample = identifiers[:: -(-len(identifiers) // SAMPLE_SIZE)]
    if icsd_hint(_unknown(sample, source), len(sample)) is None:
        return
    hint = icsd_hint(_unknown(identifiers, source), len(identifiers))
    if hint is not None:
        raise InputError(hint)


def _unknown(identifiers: Sequence[str], source: SourceChain) -> list[str]:
    unknown = []
    for identifier in identifiers:
        try:
            source.get(identifier)
        except UnknownIdentifier:
            unknown.append(identifier)
        except Rejected:
            continue
    return unknown


def describe_plan(plan: Plan, output: str | Path, resume: bool = False, force: bool = False) -> str:
    """Say what `simulate_archive` would do, after the checks that it would make first.

    Raises
    ------
    InputError, UsageError
        As `simulate_archive` would, before it simulates anything.
    """
    output = Path(output)
    n_patterns, pending = len(plan.identifiers), len(plan.identifiers)
    if resume and output.exists():
        archive = open_archive(output)
        _check_same_plan(archive, plan)
        pending = int(np.count_nonzero(archive.status == schema.NOT_WRITTEN))
    else:
        check_output(output, force)
    n_points = len(plan.instrument.grid())
    size = 4 * n_patterns * n_points / 1e6
    return (
        f"would simulate {pending} of {n_patterns} patterns of {n_points} points into {output} "
        f"(at most {size:,.1f} MB) from {', '.join(plan.sources)}"
    )


def _writer(
    plan: Plan, output: Path, command: str, resume: bool, force: bool, shard_size: int
) -> ArchiveWriter:
    if resume and output.exists():
        _check_same_plan(open_archive(output), plan)
        return open_writer(output)
    instrument = plan.instrument
    return create_archive(
        output,
        n_patterns=len(plan.identifiers),
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
        force=force,
        shard_size=shard_size,
    )


def _check_same_plan(archive: Archive, plan: Plan) -> None:
    """Raise where finishing the archive by this plan would mix two runs."""
    before, now = archive.provenance, plan.provenance()
    names = {"identifiers_sha256": "identifiers", "instrument_settings": "instrument"}
    # The round trip through JSON makes tuples lists, as they are in the archive.
    for key, value in msgspec.json.decode(msgspec.json.encode(now)).items():
        if key not in before:
            raise InputError(f"{archive.path} was not made by hxrd simulate, so --resume cannot finish it")
        if before[key] != value:
            detail = f" ({before[key]}, now {value})" if key in ("seed", "sources") else ""
            raise InputError(
                f"{archive.path} was begun with other {names.get(key, key)}{detail}: "
                "repeat the first command to resume it, or use --force to start afresh"
            )
    if before.get("version") != __version__:
        logger.warning(
            "%s was begun by hxrd %s, this is %s", archive.path, before.get("version"), __version__
        )


def _simulate_shard(
    writer: ArchiveWriter, index: int, plan: Plan, source: SourceChain, advance: Callable[[int], None]
) -> None:
    rows = writer.rows(index)
    identifiers = plan.identifiers[rows.start : rows.stop]
    intensity = np.zeros((len(rows), len(plan.instrument.grid())), np.float32)
    space_group = np.zeros(len(rows), np.int16)
    reasons: list[str | None] = [None] * len(rows)
    for start in range(0, len(rows), BATCH_SIZE):
        batch = range(start, min(start + BATCH_SIZE, len(rows)))
        crystals: dict[int, Crystal] = {}
        for row in batch:
            try:
                crystals[row] = source.get(identifiers[row])
            except Rejected as rejection:
                reasons[row] = str(rejection)
        found = list(crystals)
        if found:
            intensity[found], told = simulate_patterns([crystals[row] for row in found], plan.instrument)
            for row, reason in zip(found, told, strict=True):
                reasons[row] = reason
                space_group[row] = crystals[row].space_group
        advance(len(batch))
    status = [schema.GOOD if reason is None else schema.REJECTED for reason in reasons]
    writer.write_shard(index, intensity, space_group, identifiers, status, reasons)


def _report(archive: Archive) -> None:
    """Name the first rejected entries and count them; raise where nothing is left."""
    rejections = archive.rejections()
    for rejection in rejections[:REASONS_TOLD]:
        logger.warning("rejected %s (row %d): %s", rejection.source_id, rejection.pattern, rejection.reason)
    listed = f"all reasons are in {archive.path / schema.REJECTIONS_FILE}"
    if len(rejections) > REASONS_TOLD:
        logger.warning("… and %d more: %s", len(rejections) - REASONS_TOLD, listed)
    if len(rejections) == archive.n_patterns:
        raise InputError(f"every one of the {len(rejections)} identifiers was rejected: {listed}")
    good = archive.n_patterns - len(rejections)
    logger.info("%s: %d patterns, %d identifiers rejected", archive.path, good, len(rejections))
