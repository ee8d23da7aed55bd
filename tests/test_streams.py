"""Streams: where the patterns of a training come from, in which order, and which are held out."""

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from training_archives import IDENTIFIERS, archive_stream, foreign_archive

from hxrd.archive import open_archive
from hxrd.cli.main import main
from hxrd.crystal.symmetry import SPACE_GROUPS_144
from hxrd.errors import InputError
from hxrd.simulate.realism import RealismSettings
from hxrd.simulate.templates import TemplateSettings
from hxrd.train.streams import (
    ArchiveStream,
    CrystalStream,
    CrystalStreamSpec,
    WorkerStream,
    epoch_chunks,
    labelled_rows,
)

N = len(IDENTIFIERS)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def stream(training_archive: Path) -> ArchiveStream:
    return archive_stream(training_archive)


def crystal_stream(
    archive: Path, templates: TemplateSettings | None, realism=None, seed=0, synthetic=0.0
) -> CrystalStream:
    return CrystalStream(
        CrystalStreamSpec(archive, ("prototypes",), SPACE_GROUPS_144, templates, realism, seed, synthetic)
    )


def test_only_good_patterns_of_the_classes_are_learnt(training_archive: Path) -> None:
    archive = open_archive(training_archive)
    rows, labels = labelled_rows(archive, SPACE_GROUPS_144)
    assert rows.tolist() == list(range(N))  # the last one was rejected
    assert [SPACE_GROUPS_144[label] for label in labels] == archive.space_group[rows].tolist()
    few, few_labels = labelled_rows(archive, (194, 225))
    assert set(archive.space_group[few]) == {194, 225}
    assert [(194, 225)[label] for label in few_labels] == archive.space_group[few].tolist()
    with pytest.raises(InputError, match=r"train\.zarr: no good pattern"):
        labelled_rows(archive, (3, 16))


def test_an_archive_yields_its_own_patterns(stream: ArchiveStream, training_archive: Path) -> None:
    stored = open_archive(training_archive).read(0, N)
    for epoch in (0, 5):
        numbers = np.array([3, 0, 17])
        np.testing.assert_allclose(stream.patterns(epoch, numbers), stored[numbers], atol=1e-6)


def test_held_out_patterns_are_learnt_no_more(stream: ArchiveStream, training_archive: Path) -> None:
    everything = stream.patterns(0, np.arange(N))
    validation = stream.hold_out(0.25, seed=1)
    kept = stream.patterns(0, np.arange(len(stream.labels)))
    assert len(validation.labels) == 6
    assert len(kept) == N - 6
    found = [tuple(pattern) for pattern in (*validation.patterns, *kept)]
    assert sorted(found) == sorted(tuple(pattern) for pattern in everything)
    again = archive_stream(training_archive).hold_out(0.25, seed=1)
    np.testing.assert_array_equal(again.labels, validation.labels)
    np.testing.assert_array_equal(again.patterns, validation.patterns)


def test_one_pattern_is_too_few_to_hold_any_out(stream: ArchiveStream) -> None:
    stream.labels = stream.labels[:1]
    with pytest.raises(InputError, match="--validation"):
        stream.hold_out(0.05, seed=0)


def test_without_variation_crystals_give_the_stored_patterns(training_archive: Path) -> None:
    found = crystal_stream(training_archive, None).patterns(0, np.arange(N))
    np.testing.assert_allclose(found, open_archive(training_archive).read(0, N), atol=2e-6)


def test_varied_patterns_depend_on_epoch_and_number_and_not_on_the_chunk(training_archive: Path) -> None:
    made = crystal_stream(training_archive, TemplateSettings())
    whole = made.patterns(2, np.arange(N))
    order = np.random.default_rng(0).permutation(N)
    parts = [made.patterns(2, order[first : first + 5]) for first in range(0, N, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[order])
    np.testing.assert_array_equal(
        crystal_stream(training_archive, TemplateSettings()).patterns(2, order), whole[order]
    )
    assert np.abs(made.patterns(3, np.arange(N)) - whole).max(axis=1).min() > 0.01
    other_seed = crystal_stream(training_archive, TemplateSettings(), seed=1).patterns(2, np.arange(N))
    assert np.abs(other_seed - whole).max(axis=1).min() > 0.01


def test_synthetic_crystals_take_the_place_of_some_and_keep_the_label(training_archive: Path) -> None:
    plain, made = (crystal_stream(training_archive, None, synthetic=share) for share in (0.0, 0.4))
    stored = plain.patterns(0, np.arange(N))
    changed = []
    for epoch in range(12):
        whole = made.patterns(epoch, np.arange(N))
        order = np.random.default_rng(epoch).permutation(N)
        np.testing.assert_array_equal(made.patterns(epoch, order), whole[order])
        changed.append(np.abs(whole - stored).max(axis=1) > 0.01)
    assert 0.3 < np.mean(changed) < 0.5  # of 276: 3.4 standard deviations
    assert len({tuple(row) for row in changed}) == 12
    everything = crystal_stream(training_archive, None, synthetic=1.0)
    crystals: list = [None] * N
    everything._put_in_synthetic(crystals, 0, np.arange(N))
    assert [SPACE_GROUPS_144[label] for label in made.labels] == [crystal.space_group for crystal in crystals]
    assert all(crystal.identifier.startswith("syn-") for crystal in crystals)
    everything._put_in_synthetic(later := [None] * N, 1, np.arange(N))
    assert not {crystal.identifier for crystal in crystals} & {crystal.identifier for crystal in later}


def test_measured_like_patterns_are_the_same_for_the_same_question(training_archive: Path) -> None:
    made = crystal_stream(training_archive, TemplateSettings(), RealismSettings(group_size=8))
    one, again, later = (made.patterns(epoch, np.arange(N)) for epoch in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - later).max(axis=1).min() > 0.01
    assert one.min() == 0
    assert one.max(axis=1) == pytest.approx(1, abs=1e-6)


def test_a_multiplet_keeps_all_its_lines(tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(IDENTIFIERS[:6]))
    command = f"simulate {ids} --source prototypes --instrument xray --two-theta 20 120 0.05 -q"
    assert main(command.split()) == 0
    found = crystal_stream(ids.with_suffix(".zarr"), None).patterns(0, np.arange(6))
    np.testing.assert_allclose(found, open_archive(ids.with_suffix(".zarr")).read(0, 6), atol=2e-6)


def test_crystals_of_an_unknown_instrument_cannot_be_made_afresh(tmp_path: Path) -> None:
    archive = foreign_archive(tmp_path / "foreign.zarr", np.arange(10.0, 60.0, 0.5))
    with pytest.raises(InputError, match=r"foreign\.zarr: does not say with which instrument"):
        crystal_stream(archive, None)


def test_a_missing_crystal_is_told(training_archive: Path, tmp_path: Path) -> None:
    empty = tmp_path / "crystals.jsonl"
    empty.write_text('{"id": "other", "space_group": 221, "cell": [4, 4, 4, 90, 90, 90], "sites": [["Fe", 0, 0, 0, 1, null]]}\n')  # fmt: skip # noqa: E501
    spec = CrystalStreamSpec(training_archive, (f"jsonl:{empty}",), SPACE_GROUPS_144, None, None, 0)
    with pytest.raises(InputError, match=r"crystal A_cF4_225_a is needed .* --source"):
        CrystalStream(spec)


class Immediate(WorkerStream):
    """A `WorkerStream` whose work is done at once, in this process."""

    def __init__(self, made: CrystalStream, chunks_ahead: int):
        self.labels, self.chunks_ahead = made.labels, chunks_ahead
        self._made = made
        self.asked: list[np.ndarray] = []

    def submit(self, epoch, numbers):
        self.asked.append(numbers)
        future: Future = Future()
        future.set_result(self._made.patterns(epoch, numbers))
        return future


@pytest.mark.parametrize("chunk_size", [1, 5, 8, N - 1, N, 100])
@pytest.mark.parametrize("chunks_ahead", [0, 3, 50])
def test_an_epoch_shows_each_pattern_once_with_its_label(
    training_archive: Path, chunk_size: int, chunks_ahead: int
) -> None:
    made = crystal_stream(training_archive, None)
    ahead = Immediate(made, chunks_ahead)
    stored, labels = made.patterns(0, np.arange(N)), made.labels
    seen = []
    for turn, (patterns, chunk_labels) in enumerate(epoch_chunks(ahead, 4, chunk_size, seed=7)):
        numbers = [int(np.argmin(np.abs(stored - pattern).max(axis=1))) for pattern in patterns]
        assert labels[numbers].tolist() == chunk_labels.tolist()
        assert len(ahead.asked) <= turn + 1 + chunks_ahead
        seen += numbers
    assert sorted(seen) == list(range(N))
    assert seen == np.concatenate(ahead.asked).tolist()


def test_epochs_are_shuffled_and_alike_for_both_kinds_of_stream(
    stream: ArchiveStream, training_archive: Path
) -> None:
    def order(of, epoch: int, seed: int = 0) -> list[int]:
        return np.concatenate([labels for _, labels in epoch_chunks(of, epoch, 7, seed)]).tolist()

    assert order(stream, 0) == order(stream, 0)
    assert order(stream, 0) == order(Immediate(crystal_stream(training_archive, None), 3), 0)
    assert order(stream, 0) != order(stream, 1)
    assert order(stream, 0) != order(stream, 0, seed=1)
    assert sorted(order(stream, 3)) == sorted(stream.labels.tolist())
