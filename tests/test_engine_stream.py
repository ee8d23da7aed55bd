"""The engine as a stream: order, bounds, several devices, memory that runs out, errors."""

import itertools
import logging
import threading
import time

import numpy as np
import pytest
import torch
from classified import N_CLASSES, TWO_THETA, columns, make_archive, make_model, make_patterns

from hxrd.classify import engine
from hxrd.classify.backends import choose_backend, choose_backends
from hxrd.classify.backends.torch_device import TorchBackend
from hxrd.classify.engine import LEAST_SPAN, Engine
from hxrd.classify.inputs import Concatenation, PatternSlice, open_inputs
from hxrd.classify.ranking import Ranks
from hxrd.errors import InputError
from hxrd.models.registry import load_model

N_POINTS = len(TWO_THETA)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


class NumberedInput:
    """Endless patterns, the n-th with n in a place that `Recognising` reads; notes what was read."""

    usable, probe, wavelength = True, "neutron", 2.0775

    def __init__(self, n_patterns, fail_at=None):
        self.name, self.n_patterns, self.fail_at = "numbers", n_patterns, fail_at
        self.read_spans = []

    @property
    def space_group(self):
        return np.zeros(self.n_patterns, np.int16)

    def read(self, start, stop, room=None):
        if self.fail_at is not None and start <= self.fail_at < stop:
            raise InputError("a chunk is corrupt")
        self.read_spans.append((start, stop))
        n = stop - start
        intensity = np.zeros((n, N_POINTS), np.float32)
        intensity[:, 0] = 1
        intensity[:, 1] = np.arange(start, stop) / 2**20
        names = [f"number {row}" for row in range(start, stop)]
        return PatternSlice(intensity, TWO_THETA, 2.0775, names, [""] * n, [""] * n, np.zeros(n, np.int16))

    def fingerprint(self):
        return [self.name]


class Recognising:
    """A back end whose first logit is the pattern's number."""

    name, precision = "recognising", "fp32"

    def __init__(self, batch_size=LEAST_SPAN, device="cpu", delay=lambda: 0.0):
        self.device, self.batch_size, self.delay = device, batch_size, delay
        self.seen = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def logits(self, x):
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay())
        logits = np.zeros((len(x), N_CLASSES), np.float32)
        logits[:, 0] = np.round(x[:, 1] * 2**20)
        with self.lock:
            self.at_once -= 1
            self.seen += logits[:, 0].astype(int).tolist()
        return logits


class Forgetful(Recognising):
    """Memory for a few patterns only."""

    def __init__(self, room, **settings):
        super().__init__(**settings)
        self.room, self.tried = room, []

    def logits(self, x):
        size = self.batch_size
        self.tried.append(size)
        if size > self.room:
            raise MemoryError
        return super().logits(x)

    def shrink(self, batch_size):
        with self.lock:
            if self.batch_size == batch_size:
                self.batch_size = max(batch_size // 2, 1)
        return batch_size > 1


def engine_of(loaded, *backends, **settings):
    return Engine(loaded, backends, columns().ranking, with_logits=True, **settings)


def run(engine, patterns, **span):
    batches = list(engine.classify(Concatenation([patterns]), **span))
    assert [batch.first for batch in batches] == sorted(batch.first for batch in batches)
    return np.concatenate([batch.logits[:, 0] for batch in batches]).astype(int).tolist()


def threads_of_the_engine():
    return [
        thread for thread in threading.enumerate() if thread.name.startswith(("hxrd-read", "hxrd-network"))
    ]


def test_order_is_kept_whoever_is_ready_first(loaded):
    delays = itertools.cycle([0.03, 0.0])
    backend = Recognising(delay=lambda: next(delays))
    numbers = run(engine_of(loaded, backend, readers=4), NumberedInput(8000))
    assert numbers == list(range(8000))
    assert backend.seen != numbers  # they were indeed done in another order
    assert backend.most_at_once == 2


def test_two_devices_share_the_work(loaded):
    one, two = Recognising(delay=lambda: 0.01), Recognising(device="cpu:1", delay=lambda: 0.01)
    numbers = run(engine_of(loaded, one, two), NumberedInput(10_000))
    assert numbers == list(range(10_000))
    assert not set(one.seen) & set(two.seen)
    assert min(len(one.seen), len(two.seen)) > 2000


def test_a_slow_device_does_not_hold_up_a_quick_one(loaded):
    quick, slow = Recognising(), Recognising(delay=lambda: 0.2)
    numbers = run(engine_of(loaded, quick, slow), NumberedInput(20 * LEAST_SPAN))
    assert numbers == list(range(20 * LEAST_SPAN))
    assert len(quick.seen) > 2 * len(slow.seen)


def test_spans_are_whole_batches(loaded, monkeypatch):
    monkeypatch.setattr(engine, "HOT", 10_000)  # a span is read at one go
    source = NumberedInput(3000)
    run(engine_of(loaded, Recognising(batch_size=300)), source, start=700)
    assert sorted(source.read_spans) == [(700, 1200), (1200, 1800), (1800, 2400), (2400, 3000)]


def test_spans_are_read_in_pieces_in_order(loaded):
    source = NumberedInput(600)
    run(engine_of(loaded, Recognising(batch_size=300), readers=1), source)
    assert source.read_spans == [(row, min(row + engine.HOT, 600)) for row in range(0, 600, engine.HOT)]


def test_no_more_is_read_than_can_soon_be_used(loaded, monkeypatch):
    monkeypatch.setattr(engine, "HOT", 10_000)
    source = NumberedInput(200 * LEAST_SPAN)
    stream = engine_of(loaded, Recognising(), readers=2).classify(Concatenation([source]))
    for taken in range(1, 20):
        next(stream)
        time.sleep(0.005)  # a slow writer
        assert len(source.read_spans) <= taken + 4  # two readers and two workers
    stream.close()
    assert not threads_of_the_engine()


@pytest.mark.parametrize("room", [1, 3, 100, 512])
def test_batches_are_halved_until_they_fit(loaded, room, caplog):
    backend = Forgetful(room)
    with caplog.at_level(logging.WARNING, "hxrd"):
        assert run(engine_of(loaded, backend), NumberedInput(2000)) == list(range(2000))
    fitting = 2 ** int(np.log2(room))
    assert backend.batch_size == fitting
    assert (min(backend.tried), max(backend.tried)) == (fitting, LEAST_SPAN)
    if room < LEAST_SPAN:
        assert f"going on with {fitting}" in caplog.text


def test_memory_for_not_even_one_pattern_is_an_error(loaded):
    with pytest.raises(MemoryError):
        run(engine_of(loaded, Forgetful(0)), NumberedInput(2000))
    assert not threads_of_the_engine()


def test_a_device_that_cannot_shrink_says_so(loaded):
    class Rigid(Recognising):
        def logits(self, x):
            raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        run(engine_of(loaded, Rigid()), NumberedInput(10))


def test_an_error_of_a_reader_comes_after_what_was_read_before(loaded):
    stream = engine_of(loaded, Recognising()).classify(
        Concatenation([NumberedInput(20 * LEAST_SPAN, fail_at=5 * LEAST_SPAN)])
    )
    numbers = [next(stream).first for _ in range(5)]
    assert numbers == [0, 512, 1024, 1536, 2048]
    with pytest.raises(InputError, match="corrupt"):
        next(stream)
    assert not threads_of_the_engine()


def test_ranks_of_the_device_are_taken(loaded):
    class Ranking(Recognising):
        def ranks(self, x, ranking, with_logits):
            ranks = Ranks.empty(len(x), ranking.k)
            for array in (ranks.entries, ranks.probabilities, ranks.best, ranks.best_probabilities):
                array[:] = 1
            return ranks, self.logits(x) if with_logits else None

    (batch,) = engine_of(loaded, Ranking()).classify(Concatenation([NumberedInput(20)]), start=3)
    assert len(batch) == len(batch.ranks) == len(batch.logits) == 17
    assert (batch.ranks.entries == 1).all()
    assert batch.logits[:, 0].tolist() == list(range(3, 20))


def test_inputs_go_to_memory_that_the_device_provides(loaded):
    class Pinned(Recognising):
        def __init__(self):
            super().__init__()
            self.given = []

        def empty_input(self, shape):
            array = np.empty(shape, np.float32)
            self.given.append(array.__array_interface__["data"][0])
            return array

        def logits(self, x):
            assert x.__array_interface__["data"][0] in self.given
            return super().logits(x)

    assert run(engine_of(loaded, Pinned()), NumberedInput(1500)) == list(range(1500))


def test_logits_are_left_out_where_not_asked_for(loaded):
    engine = Engine(loaded, [Recognising()], columns().ranking)
    (batch,) = engine.classify(Concatenation([NumberedInput(5)]))
    assert batch.logits is None


# Torch's back end, which runs on the CPU as it does on a GPU but for graphs and streams ----------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return make_archive(tmp_path_factory.mktemp("archive") / "a.zarr", make_patterns(700), shard_size=256)


def classified(loaded, backends, archive):
    engine = Engine.of(loaded, backends, columns(logits=True), n_patterns=1)
    batches = list(engine.classify(open_inputs([archive])))
    ranks = [batch.ranks for batch in batches]
    return np.concatenate([batch.logits for batch in batches]), np.concatenate([one.entries for one in ranks])


def test_torch_ranks_as_the_native_back_end_does(loaded, archive):
    native = classified(loaded, choose_backends(loaded, "cpu", n_patterns=1), archive)
    ours = classified(loaded, choose_backends(loaded, "cpu", "torch"), archive)
    assert np.allclose(native[0], ours[0], atol=2e-4)
    gaps = -np.diff(np.sort(ours[0], axis=1), axis=1)
    clear = (np.abs(gaps) > 1e-3).all(axis=1)
    assert clear.sum() > 300
    assert np.array_equal(native[1][clear], ours[1][clear])


def test_two_torch_workers_give_the_rows_of_one(loaded, archive):
    one = classified(loaded, [TorchBackend(loaded, batch_size=64)], archive)
    two = classified(loaded, [TorchBackend(loaded, batch_size=64) for _ in range(2)], archive)
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("[…] can't allocate memory: …")]
)
def test_torch_goes_on_with_smaller_batches(loaded, archive, monkeypatch, error):
    whole = classified(loaded, [TorchBackend(loaded, batch_size=64)], archive)
    backend = TorchBackend(loaded, batch_size=64)
    run_network = backend._features

    def network(x_BCL):
        if len(x_BCL) > 20:
            raise error
        return run_network(x_BCL)

    monkeypatch.setattr(backend, "_features", network)
    small = classified(loaded, [backend], archive)
    assert backend.batch_size == 16
    assert np.allclose(small[0], whole[0], atol=1e-4)


def test_other_errors_of_torch_are_not_taken_for_memory(loaded, monkeypatch):
    backend = TorchBackend(loaded)
    monkeypatch.setattr(backend, "_features", lambda x_BCL: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        backend.logits(make_patterns(2))
    assert backend.batch_size == 64


def test_no_patterns_give_no_logits(loaded):
    for name in ("native", "torch"):
        backend = choose_backend(loaded, "cpu", name, n_patterns=1)
        assert backend.logits(np.zeros((0, N_POINTS), np.float32)).shape == (0, N_CLASSES)
    ranks, logits = TorchBackend(loaded).ranks(np.zeros((0, N_POINTS), np.float32), columns().ranking, True)
    assert (len(ranks), len(logits)) == (0, 0)
