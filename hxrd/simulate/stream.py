"""An endless stream of patterns, each decided by its number: generator → simulator → augmentation.

Nothing is stored. Patterns are made in blocks of fixed size, the unit of work and the batch within which
foreign phases find each other; who makes a block, when, and beside which others, changes nothing in it.
"""

import hashlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import count
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from hxrd.crystal.crystal import Crystal
from hxrd.errors import InputError, UsageError
from hxrd.models.preprocess import Grid, bridge_gaps, preprocess_batch
from hxrd.physics.instrument import Instrument
from hxrd.simulate.augment import Augmented, augmented
from hxrd.simulate.augmentation import Augmentation
from hxrd.simulate.seeds import row_seeds
from hxrd.simulate.simulate import in_parts, simulated
from hxrd.simulate.supply import CrystalSupply
from hxrd.simulate.workers import in_order, process_pool

BLOCK_SIZE = 256
_DRAWS = 8  # of a crystal in place of those that cannot be simulated
_NEXT_DRAW = 2**40  # between the numbers of successive draws: at 10 000 patterns a second, three years
_COMPANIONS = 32  # crystals of the block among which a pattern that is drawn again finds foreign phases


class Block(NamedTuple):
    """Patterns with consecutive numbers.

    Parameters
    ----------
    number : int
        Row r is pattern ``number * block_size + r`` of the stream.
    intensity : ndarray of float32, shape (block_size, n_points)
        Each row divided by its maximum.
    space_group : ndarray of int16, shape (block_size,)
    identifiers : tuple of str
        Of the crystals.
    impurity_index : ndarray of int32, shape (block_size, k)
        Rows of this block whose crystals are mixed in, -1 for none.
    impurity_fraction : ndarray of float32, shape (block_size, k)
        Their weight fractions, 0 for none.
    mask : ndarray of bool, shape (block_size, n_points), or None
        True where a point is measured; None where nothing is hidden, or the patterns are on a model's grid.
    """

    number: int
    intensity: NDArray[np.float32]
    space_group: NDArray[np.int16]
    identifiers: tuple[str, ...]
    impurity_index: NDArray[np.int32]
    impurity_fraction: NDArray[np.float32]
    mask: NDArray[np.bool_] | None

    @property
    def impurity_space_group(self) -> NDArray[np.int16]:
        """Space groups of the foreign phases, 0 for none, shape (block_size, k)."""
        return np.where(self.impurity_index < 0, np.int16(0), self.space_group[self.impurity_index])


class PatternStream:
    """Simulated patterns number 0, 1, 2, … without end.

    A pattern depends on the settings, the seed and its number; its foreign phases on its block besides.

    Parameters
    ----------
    crystals : CrystalSupply
        Such as `SyntheticCrystals`, `VariedCrystals` or `CrystalsInTurn`. Where one cannot be simulated (an
        element without a scattering length, no line in range), the supply is asked for another.
    instrument : Instrument
    augmentation : Augmentation, optional
        What a measurement adds; without it, the patterns are clean.
    seed : int
        Of all random numbers, 0 to 2⁶⁴ - 1.
    block_size : int
        Patterns made together.
    target : Grid, optional
        A model's grid, to which patterns are brought by the preprocessing that measured ones go through.
    remove_background : bool
        Whether to remove the background, as a model trained on such patterns does in use.

    Raises
    ------
    UsageError
        An impossible seed or block size.
    """

    def __init__(
        self,
        crystals: CrystalSupply,
        instrument: Instrument,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        block_size: int = BLOCK_SIZE,
        *,
        target: Grid | None = None,
        remove_background: bool = False,
    ) -> None:
        if not 0 <= seed < 2**64:
            raise UsageError(f"seed {seed} must lie between 0 and 2^64 - 1")
        if block_size < 1:
            raise UsageError(f"a block of {block_size} patterns is impossible; give at least 1")
        self.crystals, self.instrument, self.augmentation = crystals, instrument, augmentation
        self.seed, self.block_size = seed, block_size
        self.target = target or Grid(instrument.grid(), instrument.wavelength)
        self.remove_background = remove_background
        self._is_prepared = target is not None or remove_background

    def block(self, number: int, threads: int | None = None) -> Block:
        """Make the patterns of one block.

        Parameters
        ----------
        number : int
            From 0 on.
        threads : int, optional
            Processors that simulate; 1 stays on the calling thread.  [default: all]

        Raises
        ------
        InputError
            No crystal that the supply gives for a number can be simulated.
        """
        numbers = np.arange(number * self.block_size, (number + 1) * self.block_size)
        crystals = self.crystals.crystals(numbers, self.seed)
        seeds = row_seeds(self.seed, numbers)
        made = self._simulated(crystals, seeds, threads)
        for draw in range(1, _DRAWS):
            rejected = np.flatnonzero([reason is not None for reason in made.reasons])
            if not len(rejected):
                break
            others = self.crystals.crystals(numbers[rejected] + draw * _NEXT_DRAW, self.seed)
            for row, crystal in zip(rejected.tolist(), others, strict=True):
                crystals[row] = crystal
            self._make_again(made, crystals, rejected, seeds, threads)
        self._check(made, crystals, numbers)
        return Block(
            number,
            self._prepared(made.intensity, made.mask, threads) if self._is_prepared else made.intensity,
            np.array([crystal.space_group for crystal in crystals], np.int16),
            tuple(crystal.identifier for crystal in crystals),
            made.impurity_index,
            made.impurity_fraction,
            None if self._is_prepared else made.mask,
        )

    def blocks(
        self, start: int = 0, step: int = 1, *, workers: int = 0, processes: bool = False
    ) -> Generator[Block, None, None]:
        """Yield blocks `start`, `start` + `step`, …, made ahead by workers; never ends.

        Closing the iterator (leaving a loop over it does) stops the workers.

        Parameters
        ----------
        start, step : int
            Numbers of blocks.
        workers : int
            How many make blocks, each on one processor. Without any, blocks are made when they are asked for,
            on all processors.
        processes : bool
            Whether workers are processes, which take seconds to start, or threads.

        Raises
        ------
        InputError
            From `block`.
        HxrdError
            A worker process ended.
        """
        numbers = count(start, step)
        if not workers:
            yield from map(self.block, numbers)
        elif processes:
            with process_pool(workers, _set_up_worker, self) as pool:
                yield from in_order(_block_in_worker, numbers, pool, workers + 1)
        else:
            with ThreadPoolExecutor(workers, "hxrd-stream") as threads:
                yield from in_order(self._block_on_one_thread, numbers, threads, workers + 1)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that decides the patterns, to tell whether two streams are one."""
        settings = (
            *(self.instrument, self.augmentation, self.seed, self.block_size, self.remove_background),
            *(self.target.two_theta.tolist(), self.target.wavelength, self.crystals.describe()),
        )
        return hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:16]

    def _block_on_one_thread(self, number: int) -> Block:
        return self.block(number, threads=1)

    def _simulated(
        self, crystals: list[Crystal], seeds: NDArray[np.uint64], threads: int | None
    ) -> Augmented:
        if self.augmentation is not None:
            return augmented(crystals, self.instrument, self.augmentation, seeds, threads)
        made = simulated(crystals, self.instrument, threads=threads)
        nothing = np.zeros((len(crystals), 0))
        return Augmented(
            made.intensity, made.reasons, nothing.astype(np.int32), nothing.astype(np.float32), None
        )

    def _make_again(
        self,
        made: Augmented,
        crystals: list[Crystal],
        rejected: NDArray[np.int64],
        seeds: NDArray[np.uint64],
        threads: int | None,
    ) -> None:
        """Fill in the rejected rows, in place, with the patterns of other crystals."""
        good = np.flatnonzero([reason is None for reason in made.reasons])
        rows = np.concatenate([rejected, good[:_COMPANIONS]])
        again = self._simulated([crystals[row] for row in rows], seeds[rows], threads)
        own = slice(len(rejected))
        made.intensity[rejected] = again.intensity[own]
        made.impurity_index[rejected] = np.append(rows, -1)[again.impurity_index[own]]
        made.impurity_fraction[rejected] = again.impurity_fraction[own]
        if made.mask is not None and again.mask is not None:
            made.mask[rejected] = again.mask[own]
        for row, reason in zip(rejected.tolist(), again.reasons, strict=False):
            made.reasons[row] = reason

    def _check(self, made: Augmented, crystals: list[Crystal], numbers: NDArray[np.int64]) -> None:
        for number, crystal, reason in zip(numbers.tolist(), crystals, made.reasons, strict=True):
            if reason is not None:
                raise InputError(
                    f"pattern {number} cannot be made: {_DRAWS} crystals in a row were rejected "
                    f"(the last is {crystal.identifier}: {reason}); give others, or another instrument"
                )

    def _prepared(
        self, intensity: NDArray[np.float32], mask: NDArray[np.bool_] | None, threads: int | None
    ) -> NDArray[np.float32]:
        if mask is not None:
            bridge_gaps(intensity, self.instrument.grid(), mask)
        prepared = np.empty((len(intensity), len(self.target.two_theta)), np.float32)

        def prepare(rows: NDArray[np.int64]) -> None:
            prepared[rows] = preprocess_batch(
                intensity[rows],
                self.instrument.grid(),
                self.instrument.wavelength,
                self.target,
                self.remove_background,
                probe=self.instrument.probe,
            )

        in_parts(prepare, [1.0] * len(intensity), threads)
        return prepared


# Worker processes ---------------------------------------------------------------------------------

_worker_stream: PatternStream | None = None


def _set_up_worker(stream: PatternStream) -> None:
    global _worker_stream
    _worker_stream = stream


def _block_in_worker(number: int) -> Block:
    if _worker_stream is None:
        raise RuntimeError("the worker was not set up")
    return _worker_stream.block(number, threads=1)
