"""The endless stream: a pattern is its number, whoever makes it and whenever."""

import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from itertools import islice
from pathlib import Path

import moyopy
import msgspec
import numpy as np
import pytest
from endless_streams import (
    COARSE,
    GIVEN,
    GROUPS,
    MIXED,
    REALISTIC,
    UNKNOWN_TO_NEUTRONS,
    Failing,
    Killed,
    small_stream,
)

from hxrd.crystal.synthetic import SyntheticSettings
from hxrd.errors import HxrdError, InputError, Rejected, UsageError
from hxrd.models.preprocess import Grid, bridge_gaps, preprocess_batch
from hxrd.simulate import supply as supplies
from hxrd.simulate.simulate import simulate_patterns
from hxrd.simulate.stream import Block, PatternStream
from hxrd.simulate.supply import CrystalsInTurn, SyntheticCrystals, VariedCrystals
from hxrd.simulate.templates import TemplateSettings

OTHER_INSTRUMENT = msgspec.structs.replace(COARSE, caglioti_w=0.1)
WITHOUT_IMPURITY = msgspec.structs.replace(REALISTIC, impurity=None)


def assert_equal(one: Block, other: Block) -> None:
    assert (one.number, one.identifiers) == (other.number, other.identifiers)
    for name in ("intensity", "space_group", "impurity_index", "impurity_fraction", "mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def stream_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hxrd-stream")]


@pytest.mark.parametrize("augmentation", [None, MIXED, REALISTIC], ids=["clean", "mixed", "realistic"])
def test_a_block_depends_on_its_number_alone(augmentation) -> None:
    stream = small_stream(augmentation, seed=5, block_size=24)
    third = stream.block(3)
    stream.block(0)
    assert_equal(stream.block(3, threads=1), third)
    assert_equal(small_stream(augmentation, seed=5, block_size=24).block(3, threads=2), third)
    assert third.intensity.dtype == np.float32
    assert third.intensity.max(axis=1) == pytest.approx(np.ones(24), abs=1e-6)
    for other in (stream.block(4), small_stream(augmentation, seed=6, block_size=24).block(3)):
        assert np.abs(other.intensity - third.intensity).max(axis=1).min() > 0.01


def test_without_foreign_phases_the_size_of_blocks_does_not_matter() -> None:
    whole = small_stream(WITHOUT_IMPURITY, block_size=32).block(1)
    parts = [small_stream(WITHOUT_IMPURITY, block_size=8).block(number) for number in range(4, 8)]
    np.testing.assert_array_equal(np.concatenate([part.intensity for part in parts]), whole.intensity)
    np.testing.assert_array_equal(np.concatenate([part.space_group for part in parts]), whole.space_group)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize(("start", "step"), [(0, 1), (5, 3)])
def test_threads_give_the_same_blocks_in_order(workers: int, start: int, step: int) -> None:
    stream = small_stream(REALISTIC)
    found = list(islice(stream.blocks(start, step, workers=workers), 5))
    for number, block in zip(range(start, start + 5 * step, step), found, strict=True):
        assert_equal(block, stream.block(number))


def test_processes_give_the_same_blocks_in_order_and_are_gone_afterwards() -> None:
    stream = small_stream(REALISTIC, VariedCrystals(GIVEN), seed=2**64 - 1)
    blocks = stream.blocks(1, 2, workers=2, processes=True)
    found = list(islice(blocks, 5))
    blocks.close()
    for number, block in zip(range(1, 11, 2), found, strict=True):
        assert_equal(block, stream.block(number))
    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True
    )
    assert "spawn_main" not in children.stdout


def test_a_block_holds_what_the_simulator_gives_and_names_its_crystals() -> None:
    stream = small_stream(block_size=12)
    block = stream.block(2)
    crystals = stream.crystals.crystals(np.arange(24, 36), 0)
    np.testing.assert_array_equal(block.intensity, simulate_patterns(crystals, COARSE)[0])
    assert block.identifiers == tuple(crystal.identifier for crystal in crystals)
    assert block.impurity_index.shape == block.impurity_fraction.shape == (12, 0)
    assert block.mask is None


def test_labels_are_the_symmetry_that_moyopy_finds() -> None:
    for supply in (SyntheticCrystals(SyntheticSettings(groups=GROUPS)), VariedCrystals(GIVEN[:2])):
        stream = small_stream(supply=supply, block_size=16)
        block = stream.block(0)
        crystals = stream.crystals.crystals(np.arange(16), 0)
        for crystal, label in zip(crystals, block.space_group.tolist(), strict=True):
            basis = np.linalg.cholesky(crystal.metric)
            names = sorted(set(crystal.species))
            cell = moyopy.Cell(
                basis.tolist(),
                crystal.positions.tolist(),
                [names.index(name) + 1 for name in crystal.species],
            )
            assert moyopy.MoyoDataset(cell, symprec=1e-3).number == label
        assert set(block.space_group.tolist()) <= set(supply.space_groups)


def test_every_space_group_asked_for_turns_up() -> None:
    groups = small_stream(block_size=200).block(0).space_group
    counts = np.array([np.count_nonzero(groups == group) for group in GROUPS])
    assert counts.sum() == 200
    assert counts.min() > 15  # of 33 expected: 3.4 standard deviations
    assert len(set(groups[:20].tolist())) >= 4  # mixed, not one after the other


def test_given_crystals_take_turns_in_another_order_each_round() -> None:
    supply = CrystalsInTurn(GIVEN)
    n = len(GIVEN)
    rounds = [supply.crystals(np.arange(turn * n, (turn + 1) * n), 1) for turn in range(3)]
    orders = [[next(i for i, own in enumerate(GIVEN) if own is crystal) for crystal in r] for r in rounds]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    backwards = supply.crystals(np.arange(3 * n)[::-1], 1)[::-1]
    assert [id(c) for c in backwards] == [id(c) for r in rounds for c in r]


def test_no_crystals_are_an_error() -> None:
    for supply in (CrystalsInTurn, VariedCrystals):
        with pytest.raises(InputError, match="no crystals"):
            supply([])


def test_foreign_phases_are_labelled() -> None:
    block = small_stream(MIXED, block_size=24).block(0)
    assert block.impurity_index.shape == (24, 2)
    there = block.impurity_index >= 0
    assert 20 < there.sum() < 48
    np.testing.assert_array_equal(block.impurity_fraction > 0, there)
    np.testing.assert_array_equal(
        block.impurity_space_group[there], block.space_group[block.impurity_index[there]]
    )
    assert set(block.impurity_space_group[~there].tolist()) == {0}
    clean = small_stream(block_size=24).block(0)
    mixed = there.any(axis=1)
    assert np.abs(block.intensity - clean.intensity).max(axis=1)[mixed].min() > 1e-3
    np.testing.assert_allclose(block.intensity[~mixed], clean.intensity[~mixed], atol=1e-6)


@pytest.mark.parametrize("augmentation", [None, MIXED, REALISTIC], ids=["clean", "mixed", "realistic"])
def test_a_crystal_that_cannot_be_simulated_is_replaced(augmentation) -> None:
    supply = CrystalsInTurn([*GIVEN[:4], UNKNOWN_TO_NEUTRONS])
    block = small_stream(augmentation, supply, block_size=20).block(0)
    asked = supply.crystals(np.arange(20), 0)
    bad = np.array([crystal is UNKNOWN_TO_NEUTRONS for crystal in asked])
    assert bad.sum() == 4
    assert UNKNOWN_TO_NEUTRONS.identifier not in block.identifiers
    assert block.intensity.max(axis=1) == pytest.approx(np.ones(20), abs=1e-6)
    known = {crystal.identifier: crystal for crystal in GIVEN}
    for identifier, label in zip(block.identifiers, block.space_group.tolist(), strict=True):
        assert known[identifier].space_group == label
    if augmentation is None:
        expected = simulate_patterns([known[name] for name in block.identifiers], COARSE)[0]
        np.testing.assert_allclose(block.intensity, expected, atol=1e-6)
    if augmentation is MIXED:
        there = block.impurity_index[bad] >= 0
        assert there.any()
        rows = np.broadcast_to(np.flatnonzero(bad)[:, None], there.shape)[there]
        partners = block.impurity_index[bad][there]
        own, foreign = (np.array(block.identifiers)[index] for index in (rows, partners))
        assert (own != foreign).all()


def test_crystals_that_can_never_be_simulated_are_an_error() -> None:
    stream = small_stream(supply=CrystalsInTurn([UNKNOWN_TO_NEUTRONS]))
    with pytest.raises(InputError, match=r"pattern 16 cannot be made: .* astatine: .*At"):
        stream.block(2)


def test_a_crystal_that_was_not_found_gives_way_to_another_of_its_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = SyntheticCrystals(SyntheticSettings(groups=GROUPS))
    before = drawn.crystals(np.arange(9), 0)
    draw = supplies.drawn_crystals

    def without_one(groups, seeds, numbers):
        crystals = draw(groups, seeds, numbers)
        if before[5].identifier in [crystal.identifier for crystal in crystals]:
            raise Rejected("not found")
        return crystals

    monkeypatch.setattr(supplies, "drawn_crystals", without_one)
    after = drawn.crystals(np.arange(9), 0)
    same = [one.identifier == other.identifier for one, other in zip(before, after, strict=True)]
    assert same == [True] * 5 + [False] + [True] * 3
    assert after[5].space_group == before[5].space_group


def test_patterns_are_prepared_as_measured_ones_are() -> None:
    target = Grid.of_range(20.0, 110.0, 0.25, 1.8)
    for remove_background in (False, True):
        raw = small_stream(REALISTIC).block(1)
        stream = small_stream(REALISTIC, target=target, remove_background=remove_background)
        if raw.mask is not None:
            bridge_gaps(raw.intensity, COARSE.grid(), raw.mask)
        expected = preprocess_batch(
            raw.intensity, COARSE.grid(), COARSE.wavelength, target, remove_background, probe="neutron"
        )
        for threads in (1, 2):
            np.testing.assert_array_equal(stream.block(1, threads).intensity, expected)
        assert raw.mask is not None
        assert stream.block(1).mask is None


def test_a_fingerprint_tells_streams_apart() -> None:
    groups = SyntheticSettings(groups=(1, 2))
    streams = [
        small_stream(),
        small_stream(MIXED),
        small_stream(seed=1),
        small_stream(block_size=9),
        small_stream(supply=SyntheticCrystals(groups)),
        small_stream(supply=CrystalsInTurn(GIVEN)),
        small_stream(supply=CrystalsInTurn(GIVEN[:-1])),
        small_stream(supply=VariedCrystals(GIVEN[:2])),
        small_stream(supply=VariedCrystals(GIVEN[:2], TemplateSettings(displacement=0.2))),
        small_stream(remove_background=True),
        small_stream(target=Grid.of_range(20.0, 110.0, 0.25, 1.8)),
        PatternStream(SyntheticCrystals(groups), OTHER_INSTRUMENT, block_size=8),
    ]
    assert len({stream.fingerprint for stream in streams}) == len(streams)
    assert small_stream(MIXED).fingerprint == streams[1].fingerprint


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 2**64}, {"block_size": 0}])
def test_impossible_settings_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        small_stream(**options)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_comes_in_its_turn_and_leaves_no_thread(workers: int) -> None:
    blocks = small_stream(supply=Failing(last=30)).blocks(workers=workers)
    assert [block.number for block in islice(blocks, 3)] == [0, 1, 2]
    with pytest.raises(InputError, match="there is no crystal 31") as caught:
        next(blocks)
    assert "\n" not in str(caught.value)
    assert stream_threads() == []


def test_an_error_in_a_process_is_told_as_it_is() -> None:
    blocks = small_stream(supply=Failing(last=10)).blocks(workers=1, processes=True)
    next(blocks)
    with pytest.raises(InputError, match=r"^there is no crystal 15$"):
        next(blocks)


def test_the_death_of_a_process_is_an_error_of_one_line() -> None:
    blocks = small_stream(supply=Killed(last=10)).blocks(workers=1, processes=True)
    with pytest.raises(HxrdError, match="a worker process ended") as caught:
        list(islice(blocks, 3))
    assert "\n" not in str(caught.value)


def test_leaving_a_loop_ends_the_threads() -> None:
    for block in small_stream().blocks(workers=2):
        assert len(stream_threads()) == 2
        if block.number == 2:
            break
    del block
    assert stream_threads() == []


def test_memory_does_not_grow_with_the_blocks() -> None:
    tracemalloc.start()  # begun and ended while no other thread runs: Python 3.11 may crash else
    blocks = small_stream(REALISTIC, block_size=16).blocks(workers=2)
    try:
        for _ in islice(blocks, 50):
            pass
        early = tracemalloc.get_traced_memory()[0]
        for _ in islice(blocks, 200):
            pass
        late, peak = tracemalloc.get_traced_memory()
    finally:
        blocks.close()
        tracemalloc.stop()
    passed = 200 * 16 * 601 * 4  # bytes of intensities alone
    assert late - early < passed / 8
    assert peak < 2 * passed


INTERRUPTED = """
import sys, threading
from endless_streams import REALISTIC, small_stream
if __name__ == "__main__":
    try:
        for block in small_stream(REALISTIC).blocks(workers=2, processes=sys.argv[1] == "processes"):
            if block.number == 2:
                print("begun", flush=True)
    except KeyboardInterrupt:
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("hxrd-stream")]
        print("ended", len(names), flush=True)
        sys.exit(130)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_ctrl_c_ends_all_at_once(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(script), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    told, errors = process.communicate(timeout=60)
    assert (told, errors, process.returncode) == ("ended 0\n", "", 130)
    assert time.monotonic() - begin < 20
    while (
        is_alive(process.pid) and time.monotonic() - begin < 20
    ):  # what tracks resources ends a little later
        time.sleep(0.05)
    assert not is_alive(process.pid)


def is_alive(group: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
