"""The loop: learning rate, losses, averaged weights, checkpoints and the log."""

import json
import math
import os
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from training_archives import IDENTIFIERS, SMALL, archive_stream

from hxrd.errors import InputError
from hxrd.simulate.templates import TemplateSettings
from hxrd.train.config import Recipe
from hxrd.train.loop import Trainer, one_cycle, trim_log
from hxrd.train.streams import (
    ArchiveStream,
    Validation,
)

CPU = torch.device("cpu")
N = len(IDENTIFIERS)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def stream(training_archive: Path) -> ArchiveStream:
    return archive_stream(training_archive)


def test_the_rate_rises_and_falls_once() -> None:
    recipe = Recipe(learning_rate=2e-3, warm_up=0.25)
    rates = [one_cycle(step / 1000, recipe) for step in range(1001)]
    top = int(np.argmax(rates))
    assert top == 250
    assert rates[top] == pytest.approx(2e-3)
    assert rates[0] == pytest.approx(0.04 * 2e-3)
    assert np.all(np.diff(rates[: top + 1]) > 0)
    assert np.all(np.diff(rates[top:]) <= 0)
    assert 0 < rates[-1] <= 1e-3 * 2e-3
    assert rates[625] == pytest.approx(1e-3, rel=1e-6)  # half-way down the cosine
    assert one_cycle(0, Recipe(warm_up=0)) == Recipe().learning_rate


def run(trainer: Trainer, stream: ArchiveStream, folder: Path) -> list[dict]:
    """Train; return the lines of the log."""
    validation = Validation(stream.patterns(0, np.arange(8)), stream.labels[:8])
    log = folder / "log.jsonl"
    trainer.run(stream, validation, folder / "checkpoint", log, lambda count: None)
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_small_problem_is_learnt_by_heart(stream: ArchiveStream, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(SMALL, epochs=40, dropout=0.0, input_transform="sqrt")
    lines = run(Trainer(recipe, 144, 0, CPU), stream, tmp_path)
    assert lines[0]["loss"] > 3
    assert lines[-1]["loss"] < 0.2 * math.log(len(set(stream.labels)))
    assert lines[-1]["validation"]["top_1"] == 1
    assert lines[-1]["validation"]["loss"] < 0.5
    assert [line["epoch"] for line in lines] == list(range(1, 41))


def test_progress_counts_every_pattern(stream: ArchiveStream, tmp_path: Path) -> None:
    counts: list[int] = []
    validation = Validation(stream.patterns(0, np.arange(3)), stream.labels[:3])
    Trainer(SMALL, 144, 0, CPU).run(
        stream, validation, tmp_path / "checkpoint", tmp_path / "log", counts.append
    )
    assert sum(counts) == SMALL.epochs * N
    assert max(counts) == SMALL.batch_size


def test_the_same_seed_gives_the_same_losses(stream: ArchiveStream, tmp_path: Path) -> None:
    def losses(seed: int) -> list[float]:
        folder = tmp_path / str(time.monotonic_ns())
        folder.mkdir()
        return [line["loss"] for line in run(Trainer(SMALL, 144, seed, CPU), stream, folder)]

    assert losses(3) == losses(3)
    assert losses(3) != losses(4)


def test_a_restored_trainer_is_the_one_that_was_saved(stream: ArchiveStream, tmp_path: Path) -> None:
    trainer = Trainer(SMALL, 144, 0, CPU)
    run(trainer, stream, tmp_path)
    other = Trainer(SMALL, 144, 0, CPU)
    other.restore(tmp_path / "checkpoint")
    assert other.epoch == trainer.epoch == 2
    patterns = stream.patterns(0, np.arange(N))
    np.testing.assert_array_equal(other.logits(patterns), trainer.logits(patterns))
    for one, two in zip(other.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not list(tmp_path.glob("*.part"))


def test_the_average_follows_the_weights(stream: ArchiveStream, tmp_path: Path) -> None:
    patterns = stream.patterns(0, np.arange(N))
    plain = Trainer(msgspec.structs.replace(SMALL, average_decay=0.0), 144, 0, CPU)
    run(plain, stream, tmp_path)
    own = plain.model.eval()(torch.from_numpy(patterns)[:, None]).detach().numpy()
    np.testing.assert_allclose(plain.logits(patterns), own, atol=1e-4)
    averaged = Trainer(SMALL, 144, 0, CPU)
    run(averaged, stream, tmp_path)
    assert not averaged.average.training
    assert not any(parameter.requires_grad for parameter in averaged.average.parameters())
    assert np.abs(averaged.logits(patterns) - own).max() > 1e-3


@pytest.mark.parametrize(
    "change", [{"learning_rate": 1e-3}, {"templates": TemplateSettings()}, {"epochs": 3}]
)
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, change: dict) -> None:
    Trainer(SMALL, 144, 0, CPU).save(tmp_path / "checkpoint")
    other = Trainer(msgspec.structs.replace(SMALL, **change), 144, 0, CPU)
    with pytest.raises(InputError, match="another recipe or seed"):
        other.restore(tmp_path / "checkpoint")


def test_a_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    Trainer(SMALL, 144, 0, CPU).save(tmp_path / "checkpoint")
    with pytest.raises(InputError, match="another recipe or seed"):
        Trainer(SMALL, 144, 1, CPU).restore(tmp_path / "checkpoint")


class Harmful:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("damage", ["empty", "noise", "truncated", "flipped", "foreign", "harmful"])
def test_a_damaged_checkpoint_is_told_in_one_line(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "checkpoint"
    trainer = Trainer(SMALL, 144, 0, CPU)
    trainer.save(file)
    content = file.read_bytes()
    middle = len(content) // 2
    contents = {
        "empty": b"",
        "noise": np.random.default_rng(0).bytes(5000),
        "truncated": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    if damage in contents:
        file.write_bytes(contents[damage])
    else:
        torch.save({"weights": 1} if damage == "foreign" else Harmful(), file)
    with pytest.raises(InputError, match=r"checkpoint is damaged.*--force in place") as caught:
        trainer.restore(file)
    assert "\n" not in str(caught.value)
    assert not Path("harmed").exists()


def test_training_that_diverges_says_what_to_change(stream: ArchiveStream, tmp_path: Path) -> None:
    trainer = Trainer(SMALL, 144, 0, CPU)
    with torch.no_grad():
        trainer.model.resnet.conv.conv.weight *= torch.inf
    with pytest.raises(InputError, match="diverged at step 0: lower learning_rate"):
        run(trainer, stream, tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_the_log_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    trim_log(log, 3)
    assert not log.exists()
    log.write_text("1\n2\n3\n4")
    trim_log(log, 3)
    assert log.read_text() == "1\n2\n3\n"
    trim_log(log, 5)
    assert log.read_text() == "1\n2\n3\n"
