"""Endless simulated patterns for torch: a dataset for its `DataLoader`, and a loader that can be resumed.

Shape suffixes: B batch, L points of a pattern.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hxrd.crystal.symmetry import SPACE_GROUPS_144
from hxrd.errors import InputError, UsageError
from hxrd.simulate.stream import Block, PatternStream

Batch = tuple[Tensor, Tensor]


class PatternDataset(IterableDataset[Batch]):
    """Blocks of a stream as tensors: ``patterns_BL`` float32 and ``labels_B`` int64, B the block size.

    Each item is a batch, so torch's loader is told not to make any:
    ``DataLoader(dataset, batch_size=None, num_workers=2)``. The batches and their order are the same for
    any number of workers. It never ends. `PatternLoader` cuts batches of any size, and knows its position.

    Parameters
    ----------
    stream : PatternStream
    classes : sequence of int
        Space groups in label order.  [default: the paper's 144]
    rank, world_size : int
        Of distributed training: rank r gets blocks r, r + world_size, …
    position : int
        How many of this rank's patterns to leave out: the first item is what is left of the block that this
        falls into.

    Raises
    ------
    UsageError
        A rank outside the world, or a negative position.
    InputError
        The stream has space groups that are not among the classes.
    """

    def __init__(
        self,
        stream: PatternStream,
        classes: Sequence[int] = SPACE_GROUPS_144,
        *,
        rank: int = 0,
        world_size: int = 1,
        position: int = 0,
    ) -> None:
        if not 0 <= rank < world_size:
            raise UsageError(f"rank {rank} must lie between 0 and {world_size - 1}, below the world size")
        if position < 0:
            raise UsageError(f"position {position} must be at least 0")
        if unknown := sorted(set(stream.crystals.space_groups) - set(classes)):
            raise InputError(
                f"space group {unknown[0]} of the crystals is not among the {len(classes)} classes "
                f"({len(unknown)} such groups): draw crystals of the classes only, or give more classes"
            )
        self.stream, self.classes = stream, tuple(classes)
        self.rank, self.world_size, self.position = rank, world_size, position
        self._label = np.full(231, -1, np.int64)
        self._label[list(classes)] = np.arange(len(classes))

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step, threads = (0, 1, None) if worker is None else (worker.id, worker.num_workers, 1)
        own_block, row = divmod(self.position, self.stream.block_size)
        for turn in count(first, step):
            number = self.block_number(own_block + turn)
            yield self.tensors(self.stream.block(number, threads), row if turn == 0 else 0)

    def block_number(self, own_block: int) -> int:
        """Return the number in the stream of a block that is counted among this rank's."""
        return own_block * self.world_size + self.rank

    def tensors(self, block: Block, first_row: int = 0) -> Batch:
        """Return patterns (float32) and labels (int64) of a block from a row on."""
        return (
            torch.from_numpy(block.intensity[first_row:]),
            torch.from_numpy(self._label[block.space_group[first_row:]]),
        )


class PatternLoader:
    """Batches of any size of an endless stream, made ahead by threads or processes, resumable.

    Every ``for patterns_BL, labels_B in loader`` goes on where the last one stopped. Batches made ahead
    but not handed over do not count: leaving the loop forgets them, and they are made again.

    Parameters
    ----------
    stream : PatternStream
    classes : sequence of int
        Space groups in label order.  [default: the paper's 144]
    batch_size : int
        Patterns of a batch.
    workers : int
        How many make patterns beside the training; without any, training waits for them.
    processes : bool
        Whether workers are processes or threads. Threads start at once and suffice for a few.
    rank, world_size : int
        Of distributed training, see `PatternDataset`.

    Raises
    ------
    UsageError
        A batch size below 1, a negative number of workers, a rank outside the world.
    InputError
        The stream has space groups that are not among the classes.
    """

    def __init__(
        self,
        stream: PatternStream,
        classes: Sequence[int] = SPACE_GROUPS_144,
        *,
        batch_size: int = 128,
        workers: int = 0,
        processes: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise UsageError(f"batch_size {batch_size} must be at least 1, workers {workers} at least 0")
        self._blocks = PatternDataset(stream, classes, rank=rank, world_size=world_size)
        self.batch_size, self.workers, self.processes = batch_size, workers, processes
        self.position = 0

    def __iter__(self) -> Iterator[Batch]:
        with closing(self._rows()) as rows:
            held_BL, held_B = next(rows)
            while True:
                parts, n_patterns = [(held_BL, held_B)], len(held_B)
                while n_patterns < self.batch_size:
                    parts.append(next(rows))
                    n_patterns += len(parts[-1][1])
                held_BL, held_B = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
                self.position += self.batch_size
                yield held_BL[: self.batch_size], held_B[: self.batch_size]
                held_BL, held_B = held_BL[self.batch_size :], held_B[self.batch_size :]

    def _rows(self) -> Generator[Batch, None, None]:
        """Yield what is left of the block at the position, then block after block."""
        dataset = self._blocks
        own_block, row = divmod(self.position, dataset.stream.block_size)
        first = dataset.block_number(own_block)
        blocks = dataset.stream.blocks(
            first, dataset.world_size, workers=self.workers, processes=self.processes
        )
        with closing(blocks):
            for block in blocks:
                yield dataset.tensors(block, row if block.number == first else 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in this rank's patterns, and of which stream it is; the same on every rank."""
        dataset = self._blocks
        return {
            "position": self.position,
            "world_size": dataset.world_size,
            "stream": dataset.stream.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; the next batch is the one that followed it.

        Raises
        ------
        InputError
            The state is of another stream, or another number of ranks.
        """
        own = self.state_dict()
        if state["stream"] != own["stream"]:
            raise InputError(
                "the position was saved for other settings, seed or crystals: make the stream as it was then"
            )
        if state["world_size"] != own["world_size"]:
            raise InputError(
                f"the position was saved with {state['world_size']} ranks and there are {own['world_size']}: "
                "resume with as many"
            )
        self.position = int(state["position"])
