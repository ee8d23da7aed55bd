"""Streams as tensors: torch's own loader and ours see one sequence, wherever they begin."""

import os
import re
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from endless_streams import COARSE, GROUPS, REALISTIC, Failing, Killed, small_stream
from torch.utils.data import DataLoader

from hxrd.crystal.symmetry import SPACE_GROUPS_144
from hxrd.crystal.synthetic import SyntheticSettings
from hxrd.errors import InputError, UsageError
from hxrd.simulate.stream import PatternStream
from hxrd.simulate.supply import SyntheticCrystals
from hxrd.train.dataset import PatternDataset, PatternLoader

CHECKOUT = Path(__file__).resolve().parent.parent


def rows(batches) -> tuple[torch.Tensor, torch.Tensor]:
    """Put batches end to end."""
    patterns, labels = zip(*batches, strict=True)
    return torch.cat(patterns), torch.cat(labels)


def assert_same(one, other) -> None:
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def sequence(stream: PatternStream, n: int, numbers=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The first patterns of the given blocks, straight from the stream."""
    classes = list(SPACE_GROUPS_144)
    blocks = [stream.block(number) for number in islice(numbers or count(), -(-n // stream.block_size))]
    intensity = np.concatenate([block.intensity for block in blocks])[:n]
    labels = [classes.index(group) for block in blocks for group in block.space_group.tolist()][:n]
    return torch.from_numpy(intensity), torch.tensor(labels)


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 0},
        {"num_workers": 1, "multiprocessing_context": "fork"},
        {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": True},
        {"num_workers": 3, "multiprocessing_context": "fork", "prefetch_factor": 1},
        {"num_workers": 2, "multiprocessing_context": "spawn"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
@pytest.mark.parametrize("position", [0, 13])
def test_the_loader_of_torch_gives_one_order_for_any_number_of_workers(options, position: int) -> None:
    if position and options.get("multiprocessing_context") == "spawn":
        position = 16  # at the edge of a block
    stream = small_stream(REALISTIC)
    batches = DataLoader(PatternDataset(stream, position=position), batch_size=None, **options)
    for _ in range(2 if options.get("persistent_workers") else 1):
        iterator = iter(batches)
        found = rows(islice(iterator, 6))
        n = len(found[1])
        assert n == 48 - position % 8
        expected = sequence(stream, position + n)
        assert_same(found, (expected[0][position:], expected[1][position:]))
    assert (found[0].dtype, found[1].dtype) == (torch.float32, torch.int64)
    assert found[0].shape == (n, 601)


@pytest.mark.parametrize("batch_size", [1, 5, 8, 16, 21])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_any_size_hold_one_sequence(batch_size: int, workers: int) -> None:
    stream = small_stream(REALISTIC)
    loader = PatternLoader(stream, batch_size=batch_size, workers=workers)
    n_batches = -(-40 // batch_size)
    batches = list(islice(loader, n_batches))
    assert {len(labels) for _, labels in batches} == {batch_size}
    assert_same(rows(batches), sequence(stream, n_batches * batch_size))
    assert loader.position == n_batches * batch_size


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [3, 8, 19])
@pytest.mark.parametrize("n_before", [1, 2, 5])
def test_a_resumed_loader_gives_exactly_the_rest(workers: int, batch_size: int, n_before: int) -> None:
    stream = small_stream(REALISTIC)
    whole = list(islice(PatternLoader(stream, batch_size=batch_size), n_before + 4))
    first = PatternLoader(stream, batch_size=batch_size, workers=workers)
    for turn, _ in enumerate(first, start=1):  # more is made ahead by now
        if turn == n_before:
            state = first.state_dict()
            break
    second = PatternLoader(small_stream(REALISTIC), batch_size=batch_size, workers=2 - workers)
    second.load_state_dict(state)
    assert_same(rows(islice(second, 4)), rows(whole[n_before:]))


def test_processes_resume_as_well() -> None:
    stream = small_stream(REALISTIC)
    loader = PatternLoader(stream, batch_size=7, workers=2, processes=True)
    loader.load_state_dict({**loader.state_dict(), "position": 10})
    expected = sequence(stream, 31)
    assert_same(rows(islice(loader, 3)), (expected[0][10:], expected[1][10:]))
    assert loader.state_dict()["position"] == 31


def test_another_loop_goes_on_and_another_batch_size_may() -> None:
    stream = small_stream()
    loader = PatternLoader(stream, batch_size=6, workers=1)
    parts = list(islice(loader, 2))
    loader.batch_size = 10
    parts += list(islice(loader, 2))
    assert_same(rows(parts), sequence(stream, 32))


@pytest.mark.parametrize("position", [0, 11])
def test_ranks_share_the_blocks_out(position: int) -> None:
    stream = small_stream(REALISTIC)
    for rank in range(3):
        n = position + 20
        expected = sequence(stream, n, count(rank, 3))
        loader = PatternLoader(stream, batch_size=10, workers=2, rank=rank, world_size=3)
        loader.load_state_dict({**loader.state_dict(), "position": position})
        assert_same(rows(islice(loader, 2)), (expected[0][position:], expected[1][position:]))
        dataset = PatternDataset(stream, rank=rank, world_size=3, position=position)
        batches = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
        patterns, labels = rows(islice(iter(batches), 4))
        assert_same((patterns[:20], labels[:20]), (expected[0][position:], expected[1][position:]))


def test_the_state_is_plain_and_belongs_to_its_stream() -> None:
    loader = PatternLoader(small_stream(), batch_size=5)
    list(islice(loader, 3))
    state = loader.state_dict()
    assert {key: type(value) for key, value in state.items()} == {
        "position": int,
        "world_size": int,
        "stream": str,
    }
    assert state["position"] == 15
    with pytest.raises(InputError, match="other settings, seed or crystals"):
        PatternLoader(small_stream(seed=1)).load_state_dict(state)
    with pytest.raises(InputError, match="with 1 ranks and there are 2"):
        PatternLoader(small_stream(), world_size=2).load_state_dict(state)


def test_classes_number_the_labels() -> None:
    stream = small_stream()
    for classes in (GROUPS, GROUPS[::-1], range(1, 231)):
        _, labels = next(iter(PatternDataset(stream, classes)))
        assert [classes[label] for label in labels] == stream.block(0).space_group.tolist()


def test_groups_that_are_no_class_are_refused() -> None:
    everything = PatternStream(SyntheticCrystals(), COARSE)
    for make in (PatternDataset, PatternLoader):
        with pytest.raises(InputError, match=r"space group 3 .* 144 classes \(86 such groups\)"):
            make(everything)
    fewer = PatternStream(SyntheticCrystals(SyntheticSettings(groups=SPACE_GROUPS_144)), COARSE)
    assert len(PatternLoader(fewer).state_dict()["stream"]) == 16


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (PatternDataset, {"rank": 1}),
        (PatternDataset, {"rank": -1}),
        (PatternDataset, {"position": -1}),
        (PatternLoader, {"batch_size": 0}),
        (PatternLoader, {"workers": -1}),
        (PatternLoader, {"rank": 2, "world_size": 2}),
    ],
)
def test_impossible_options_are_refused(make, options) -> None:
    with pytest.raises(UsageError):
        make(small_stream(), **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_reaches_the_loop_and_the_position_stays(workers: int) -> None:
    loader = PatternLoader(small_stream(supply=Failing(last=20)), batch_size=4, workers=workers)
    with pytest.raises(InputError, match="there is no crystal 23"):
        for _ in loader:
            pass
    assert loader.position == 16


def test_a_killed_worker_of_torch_is_an_error_and_no_silence() -> None:
    dataset = PatternDataset(small_stream(supply=Killed(last=20)))
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (exited unexpectedly|killed by signal)"):
        list(islice(DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork"), 4))


def test_the_examples_of_the_page_run(tmp_path: Path) -> None:
    page = (CHECKOUT / "docs" / "stream.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        script = tmp_path / f"example_{number}.py"
        script.write_text(block, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
