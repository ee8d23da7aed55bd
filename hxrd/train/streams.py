"""Where training patterns come from: an archive as it stands, or varied crystals simulated afresh."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from hxrd.archive.reader import Archive, open_archive
from hxrd.archive.schema import GOOD
from hxrd.crystal.crystal import Crystal
from hxrd.errors import InputError, Rejected
from hxrd.models.preprocess import Grid, bridge_gaps, preprocess_batch
from hxrd.physics.instrument import Instrument
from hxrd.simulate.realism import RealismSettings, measured_like
from hxrd.simulate.seeds import row_seeds
from hxrd.simulate.simulate import simulate_patterns
from hxrd.simulate.supply import synthetic_crystals
from hxrd.simulate.templates import TemplateSampler, TemplateSettings, templates_from
from hxrd.simulate.workers import process_pool

_CHUNKS_AHEAD = 3  # at least; more where more workers are to be kept busy


@dataclass
class Validation:
    """Patterns that the model does not learn from: shape (n, n_points), and their labels."""

    patterns: NDArray[np.float32]
    labels: NDArray[np.int64]


class ArchiveStream:
    """The good patterns of an archive whose space group is one of the classes, held in memory.

    Parameters
    ----------
    archive : Archive
    classes : sequence of int
        Space groups, in label order.
    """

    def __init__(self, archive: Archive, classes: Sequence[int]):
        rows, self.labels = labelled_rows(archive, classes)
        self._grid = Grid(archive.two_theta, archive.wavelength)
        intensity, measured = archive.read(0, archive.n_patterns), archive.measured(0, archive.n_patterns)
        if measured is not None:
            bridge_gaps(intensity, archive.two_theta, measured)
        self._intensity = intensity[rows]

    def hold_out(self, share: float, seed: int) -> "Validation":
        """Take a random share of the patterns out of the stream and return it.

        Raises
        ------
        InputError
            There is only one pattern.
        """
        order = np.random.default_rng([seed, 4]).permutation(len(self.labels))
        if len(order) < 2:
            raise InputError("one pattern is too few to hold any out: give more, or --validation ARCHIVE")
        n_held = max(1, round(share * len(order)))
        held, kept = np.sort(order[:n_held]), np.sort(order[n_held:])
        validation = Validation(self.patterns(0, held), self.labels[held])
        self._intensity, self.labels = self._intensity[kept], self.labels[kept]
        return validation

    def patterns(self, epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the stored patterns, whatever the epoch."""
        chosen = self._intensity[numbers]
        return preprocess_batch(
            chosen, self._grid.two_theta, self._grid.wavelength, self._grid, background=False
        )


def labelled_rows(archive: Archive, classes: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows with a good pattern of one of the classes, and the label of each.

    Raises
    ------
    InputError
        There is none.
    """
    index = np.full(231, -1)
    index[list(classes)] = np.arange(len(classes))
    labels = index[archive.space_group]
    rows = np.flatnonzero((labels >= 0) & (archive.status == GOOD))
    if not len(rows):
        raise InputError(f"{archive.path}: no good pattern has a space group that is one of the classes")
    return rows, labels[rows]


@dataclass(frozen=True)
class CrystalStreamSpec:
    """What another process needs to build a `CrystalStream`.

    Parameters
    ----------
    archive : Path
        Names the crystals (its `source_id`), their labels, and the instrument.
    sources : tuple of str
        Where the crystals are found.
    classes : tuple of int
    templates : TemplateSettings or None
        None leaves the crystals as they are.
    realism : RealismSettings or None
    seed : int
    synthetic_share : float
        Of the patterns, those with a synthetic crystal of the same space group.
    """

    archive: Path
    sources: tuple[str, ...]
    classes: tuple[int, ...]
    templates: TemplateSettings | None
    realism: RealismSettings | None
    seed: int
    synthetic_share: float = 0.0


class CrystalStream:
    """Patterns simulated from the crystals behind an archive, varied anew in each epoch.

    Raises
    ------
    InputError
        A crystal of the archive is not in the sources.
    """

    def __init__(self, spec: CrystalStreamSpec):
        archive = open_archive(spec.archive)
        rows, self.labels = labelled_rows(archive, spec.classes)
        self.instrument = _instrument_of(archive)
        self._target = Grid(archive.two_theta, archive.wavelength)
        self._spec = spec
        crystals = _crystals(archive, rows, spec.sources)
        templates, elements = templates_from(crystals) if spec.templates else ([], [])
        self._crystals = crystals
        self._sampler = (
            TemplateSampler(templates, spec.templates, _scatterers(elements, self.instrument))
            if spec.templates
            else None
        )

    def patterns(self, epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Simulate varied crystals."""
        crystals = [self._drawn(epoch, int(number)) for number in numbers]
        self._put_in_synthetic(crystals, epoch, numbers)
        if self._spec.realism is None:
            return simulate_patterns(crystals, self.instrument, threads=1)[0]  # a worker takes one core
        rng = np.random.default_rng([self._spec.seed, 1, epoch + 1, int(numbers[0])])
        return measured_like(crystals, self.instrument, self._spec.realism, self._target, rng)

    def _drawn(self, epoch: int, number: int) -> Crystal:
        if self._sampler is None:
            return self._crystals[number]
        return self._sampler.draw(number, np.random.default_rng([self._spec.seed, 0, epoch + 1, number]))

    def _put_in_synthetic(self, crystals: list[Crystal], epoch: int, numbers: NDArray[np.int64]) -> None:
        """Replace some crystals, in place, by synthetic ones of their space groups."""
        if not self._spec.synthetic_share:
            return
        names = row_seeds(self._spec.seed, (epoch + 1) * len(self.labels) + numbers)
        places = np.flatnonzero(names < self._spec.synthetic_share * 2.0**64)
        groups = np.array(self._spec.classes)[self.labels[numbers[places]]]
        drawn = synthetic_crystals(groups, self._spec.seed % 2**64, names[places])
        for place, crystal in zip(places.tolist(), drawn, strict=True):
            crystals[place] = crystal


def _instrument_of(archive: Archive) -> Instrument:
    """Return the instrument as the archive recorded it, with whatever overrides it was simulated with."""
    try:
        instrument = msgspec.convert(archive.provenance["instrument_settings"], Instrument)
    except (KeyError, msgspec.ValidationError) as error:
        raise InputError(
            f"{archive.path}: does not say with which instrument it was simulated ({error}); "
            "patterns can be made afresh only for an archive of `hxrd simulate`"
        ) from error
    if len(instrument.grid()) != archive.n_points or abs(instrument.grid()[0] - archive.two_theta[0]) > 1e-6:
        raise InputError(f"{archive.path}: its 2θ grid is not that of instrument {archive.instrument}")
    return instrument


def _crystals(archive: Archive, rows: NDArray[np.int64], sources: tuple[str, ...]) -> list[Crystal]:
    from hxrd.sources import open_sources

    chain = open_sources(sources or None)
    identifiers = archive.source_id
    crystals = []
    for row in rows:
        try:
            crystals.append(chain.get(identifiers[row]))
        except Rejected as error:
            raise InputError(
                f"{archive.path}: crystal {identifiers[row]} is needed to make patterns afresh ({error}); "
                "give its source with --source"
            ) from error
    return crystals


def _scatterers(elements: list[str], instrument: Instrument) -> list[str]:
    from hxrd.physics.scattering import scattering_lengths

    def scatters(name: str) -> bool:
        try:
            scattering_lengths((name,), instrument.scattering_table)
        except Rejected:
            return False
        return True

    known = {name: scatters(name) for name in set(elements)}
    return [name for name in elements if known[name]]


# Worker processes ---------------------------------------------------------------------------------

_worker_spec: CrystalStreamSpec | None = None
_worker_stream: CrystalStream | None = None


def _set_up_worker(spec: CrystalStreamSpec) -> None:
    global _worker_spec
    _worker_spec = spec


def _chunk_in_worker(epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    global _worker_stream
    if _worker_spec is None:
        raise RuntimeError("the worker was not set up")
    if _worker_stream is None:  # built here and not in the initializer, so that its errors are told
        _worker_stream = CrystalStream(_worker_spec)
    return _worker_stream.patterns(epoch, numbers)


class WorkerStream:
    """A `CrystalStream` that lives in worker processes, beside the training.

    Parameters
    ----------
    spec : CrystalStreamSpec
    labels : ndarray of int64, shape (n_patterns,)
    n_workers : int
    """

    def __init__(self, spec: CrystalStreamSpec, labels: NDArray[np.int64], n_workers: int):
        self.labels = labels
        self.chunks_ahead = max(_CHUNKS_AHEAD, n_workers)
        self._pool = process_pool(n_workers, _set_up_worker, spec)

    def submit(self, epoch: int, numbers: NDArray[np.int64]) -> "Future[NDArray[np.float32]]":
        """Ask for patterns ahead of their use."""
        return self._pool.submit(_chunk_in_worker, epoch, numbers)

    def close(self) -> None:
        """Stop the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def epoch_chunks(
    stream: ArchiveStream | WorkerStream, epoch: int, chunk_size: int, seed: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield all patterns of a stream once, shuffled, with their labels, in chunks."""
    order = np.random.default_rng([seed, 2, epoch]).permutation(len(stream.labels))
    pieces = [order[first : first + chunk_size] for first in range(0, len(order), chunk_size)]
    if isinstance(stream, ArchiveStream):
        for numbers in pieces:
            yield stream.patterns(epoch, numbers), stream.labels[numbers]
        return
    waiting: list[Future[NDArray[np.float32]]] = []
    for turn, numbers in enumerate(pieces):
        while len(waiting) <= min(stream.chunks_ahead, len(pieces) - 1 - turn):
            waiting.append(stream.submit(epoch, pieces[turn + len(waiting)]))
        yield waiting.pop(0).result(), stream.labels[numbers]
