"""Training: where patterns come from, the loop, and that an interruption changes nothing."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from training_archives import IDENTIFIERS, RECIPE, TEMPLATES, recipe_file, simulated_archive

from hxrd.archive import create_archive, open_archive
from hxrd.cli.main import main
from hxrd.crystal.symmetry import SPACE_GROUPS_144
from hxrd.errors import HxrdError, InputError, UsageError
from hxrd.models.registry import load_model
from hxrd.simulate.realism import RealismSettings
from hxrd.simulate.templates import TemplateSettings
from hxrd.train.config import Recipe, load_recipe
from hxrd.train.loop import Trainer, one_cycle, trim_log
from hxrd.train.streams import (
    ArchiveStream,
    CrystalStream,
    CrystalStreamSpec,
    Validation,
    WorkerStream,
    epoch_chunks,
    labelled_rows,
)
from hxrd.train.train import train_model

CPU = torch.device("cpu")
N = len(IDENTIFIERS)
SMALL = Recipe(epochs=2, batch_size=8, precision="fp32", dropout=0.1, average_decay=0.9)


@pytest.fixture(autouse=True)
def one_thread(archive_path: Path) -> Iterator[None]:
    """Let torch use one thread, as Numba's parallel simulation sets it to its own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def archive_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture
def stream(archive_path: Path) -> ArchiveStream:
    return ArchiveStream(open_archive(archive_path), SPACE_GROUPS_144, background=False)


def crystal_stream(archive: Path, templates: TemplateSettings | None, realism=None, seed=0) -> CrystalStream:
    return CrystalStream(
        CrystalStreamSpec(archive, ("prototypes",), SPACE_GROUPS_144, templates, realism, seed)
    )


def hand_made(path: Path, two_theta: np.ndarray, **changes) -> Path:
    """Write an archive that `hxrd simulate` did not make."""
    fields = {"probe": "neutron", "wavelength": 2.0775, "instrument": "paper", "normalization": "maximum"}
    n = len(SPACE_GROUPS_144[:3])
    with create_archive(
        path, n_patterns=n, two_theta=two_theta, provenance={"command": "test"}, **(fields | changes)
    ) as writer:
        patterns = np.random.default_rng(0).random((n, len(two_theta)), np.float32)
        writer.write_shard(0, patterns, SPACE_GROUPS_144[:n], list("abc")[:n], [1] * n, [None] * n)
    return path


# Streams ------------------------------------------------------------------------------------------


def test_only_good_patterns_of_the_classes_are_learnt(archive_path: Path) -> None:
    archive = open_archive(archive_path)
    rows, labels = labelled_rows(archive, SPACE_GROUPS_144)
    assert rows.tolist() == list(range(N))  # the last one was rejected
    assert [SPACE_GROUPS_144[label] for label in labels] == archive.space_group[rows].tolist()
    few, few_labels = labelled_rows(archive, (194, 225))
    assert set(archive.space_group[few]) == {194, 225}
    assert [(194, 225)[label] for label in few_labels] == archive.space_group[few].tolist()
    with pytest.raises(InputError, match=r"train\.zarr: no good pattern"):
        labelled_rows(archive, (3, 16))


def test_an_archive_yields_its_own_patterns(stream: ArchiveStream, archive_path: Path) -> None:
    stored = open_archive(archive_path).read(0, N)
    for epoch in (0, 5):
        numbers = np.array([3, 0, 17])
        np.testing.assert_allclose(stream.patterns(epoch, numbers), stored[numbers], atol=1e-6)


def test_held_out_patterns_are_learnt_no_more(stream: ArchiveStream, archive_path: Path) -> None:
    everything = stream.patterns(0, np.arange(N))
    validation = stream.hold_out(0.25, seed=1)
    kept = stream.patterns(0, np.arange(len(stream.labels)))
    assert len(validation.labels) == 6
    assert len(kept) == N - 6
    found = [tuple(pattern) for pattern in (*validation.patterns, *kept)]
    assert sorted(found) == sorted(tuple(pattern) for pattern in everything)
    again = ArchiveStream(open_archive(archive_path), SPACE_GROUPS_144, background=False).hold_out(
        0.25, seed=1
    )
    np.testing.assert_array_equal(again.labels, validation.labels)
    np.testing.assert_array_equal(again.patterns, validation.patterns)


def test_one_pattern_is_too_few_to_hold_any_out(stream: ArchiveStream) -> None:
    stream.labels = stream.labels[:1]
    with pytest.raises(InputError, match="--validation"):
        stream.hold_out(0.05, seed=0)


def test_without_variation_crystals_give_the_stored_patterns(archive_path: Path) -> None:
    found = crystal_stream(archive_path, None).patterns(0, np.arange(N))
    np.testing.assert_allclose(found, open_archive(archive_path).read(0, N), atol=2e-6)


def test_varied_patterns_depend_on_epoch_and_number_and_not_on_the_chunk(archive_path: Path) -> None:
    made = crystal_stream(archive_path, TemplateSettings())
    whole = made.patterns(2, np.arange(N))
    order = np.random.default_rng(0).permutation(N)
    parts = [made.patterns(2, order[first : first + 5]) for first in range(0, N, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[order])
    np.testing.assert_array_equal(
        crystal_stream(archive_path, TemplateSettings()).patterns(2, order), whole[order]
    )
    assert np.abs(made.patterns(3, np.arange(N)) - whole).max(axis=1).min() > 0.01
    other_seed = crystal_stream(archive_path, TemplateSettings(), seed=1).patterns(2, np.arange(N))
    assert np.abs(other_seed - whole).max(axis=1).min() > 0.01


def test_measured_like_patterns_are_the_same_for_the_same_question(archive_path: Path) -> None:
    made = crystal_stream(archive_path, TemplateSettings(), RealismSettings(group_size=8))
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
    archive = hand_made(tmp_path / "foreign.zarr", np.arange(10.0, 60.0, 0.5))
    with pytest.raises(InputError, match=r"foreign\.zarr: does not say with which instrument"):
        crystal_stream(archive, None)


def test_a_missing_crystal_is_told(archive_path: Path, tmp_path: Path) -> None:
    empty = tmp_path / "crystals.jsonl"
    empty.write_text('{"id": "other", "space_group": 221, "cell": [4, 4, 4, 90, 90, 90], "sites": [["Fe", 0, 0, 0, 1, null]]}\n')  # fmt: skip # noqa: E501
    spec = CrystalStreamSpec(archive_path, (f"jsonl:{empty}",), SPACE_GROUPS_144, None, None, 0)
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
    archive_path: Path, chunk_size: int, chunks_ahead: int
) -> None:
    made = crystal_stream(archive_path, None)
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
    stream: ArchiveStream, archive_path: Path
) -> None:
    def order(of, epoch: int, seed: int = 0) -> list[int]:
        return np.concatenate([labels for _, labels in epoch_chunks(of, epoch, 7, seed)]).tolist()

    assert order(stream, 0) == order(stream, 0)
    assert order(stream, 0) == order(Immediate(crystal_stream(archive_path, None), 3), 0)
    assert order(stream, 0) != order(stream, 1)
    assert order(stream, 0) != order(stream, 0, seed=1)
    assert sorted(order(stream, 3)) == sorted(stream.labels.tolist())


# Recipes ------------------------------------------------------------------------------------------


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


def test_the_recipes_of_the_checkout_are_valid() -> None:
    recipes = Path(__file__).parent.parent / "scripts" / "recipes"
    loaded = {path.stem: load_recipe(path) for path in recipes.glob("*.toml")}
    assert {"neutron", "neutron-clean"} <= set(loaded)
    assert loaded["neutron"].realism is not None
    assert loaded["neutron-clean"].realism is None
    assert loaded["neutron-clean"].templates is not None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch = 3", "epoch"),
        ("epochs = 0", "epochs"),
        ("epochs = 1.5", "epochs"),
        ("batch_size = 1", "batch_size"),
        ('variant = "mine"', "variant"),
        ("groups = 100", "groups"),
        ("learning_rate = 0.0", "learning_rate"),
        ("warm_up = 1.0", "warm_up"),
        ("dropout = 1.0", "dropout"),
        ("label_smoothing = -0.1", "label_smoothing"),
        ("average_decay = 1.0", "average_decay"),
        ("weight_decay = -1.0", "weight_decay"),
        ("clip_norm = 0.0", "clip_norm"),
        ("clip_norm = nan", "clip_norm"),
        ('input_transform = "log"', "input_transform"),
        ("[templates]\nstrain = 1.0", "strain"),
        ("[templates]\nexchange_probability = 2.0", "exchange_probability"),
        ("[realism]\ngroup_size = 0", "group_size"),
        ("[realism]\nwavelength = [2.0]", "wavelength"),
        ("[realism]\nstart = [20.0, 2.0]", "start"),
        ("epochs 3", "recipe.toml"),
    ],
)
def test_a_recipe_that_cannot_work_is_told_by_file_and_field(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        load_recipe(recipe_file(tmp_path, text))
    assert "recipe.toml" in str(caught.value)


def test_a_recipe_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_recipe(tmp_path / "absent.toml")


# The loop -----------------------------------------------------------------------------------------


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


# From archive to model ----------------------------------------------------------------------------


def trained(archive: Path, output: Path, recipe: Recipe, **changes) -> None:
    options = {
        "validation_paths": [], "sources": ("prototypes",), "start_from": None, "licence": "MIT", "seed": 0,
        "device": "cpu", "workers": 1, "resume": False, "force": False, "progress": lambda count: None,
    }  # fmt: skip
    train_model(archive, output, recipe, **(options | changes))


def test_a_trained_model_says_all_about_itself_and_classifies(
    archive_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = msgspec.structs.replace(SMALL, epochs=25, dropout=0.0, input_transform="sqrt")
    output = tmp_path / "own.safetensors"
    trained(archive_path, output, recipe, validation_paths=[archive_path], seed=5)
    loaded = load_model(output)
    metadata = loaded.metadata
    assert metadata.name == "own"
    assert (metadata.variant, metadata.task, metadata.probe) == ("paper", "space-group", "neutron")
    assert metadata.classes == SPACE_GROUPS_144
    assert metadata.grid == (10.0, 130.0, 0.2)
    assert metadata.wavelength == 2.0775
    assert (metadata.preprocessing, metadata.input_transform) == ("none", "sqrt")
    assert metadata.licence == "MIT"
    assert 0.05 <= metadata.temperature <= 20
    assert metadata.temperature != 1
    provenance = metadata.provenance
    assert provenance["archive"] == "train.zarr"
    assert provenance["validation"] == ["train.zarr"]
    assert provenance["n_patterns"] == N
    assert (provenance["seed"], provenance["instrument"]) == (5, "paper")
    assert msgspec.convert(provenance["recipe"], Recipe) == recipe
    assert provenance["validation_scores"]["top_1"] >= 0.9
    assert {"hxrd", "torch", "time"} <= set(provenance)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.log.jsonl", "own.safetensors"]

    results = tmp_path / "results.jsonl"
    assert main(["classify", str(archive_path), "--model", str(output), "-o", str(results), "-q"]) == 3
    rows = [json.loads(line) for line in results.read_text().splitlines()][:N]
    truth = open_archive(archive_path).space_group[:N]
    right = [row["space_group_1"] == number for row, number in zip(rows, truth, strict=True)]
    assert np.mean(right) >= 0.9


def test_realism_in_the_recipe_asks_for_background_removal_in_use(archive_path: Path, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(
        SMALL, epochs=1, realism=RealismSettings(), groups=230, variant="released"
    )
    output = tmp_path / "own.safetensors"
    trained(archive_path, output, recipe, validation_paths=[archive_path])
    metadata = load_model(output).metadata
    assert metadata.preprocessing == "background"
    assert metadata.classes == tuple(range(1, 231))
    assert metadata.variant == "released"


def test_training_may_start_from_the_weights_of_a_model(archive_path: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    brief = msgspec.structs.replace(SMALL, epochs=1)
    trained(archive_path, first, brief)
    trained(archive_path, second, brief, start_from=str(first), seed=1)
    assert load_model(second).metadata.provenance["started_from"] == str(first)
    weights = load_model(first).model.state_dict()
    own = Trainer(brief, 144, 1, CPU).model.state_dict()
    moved = sum(torch.dist(t, weights[key]) for key, t in load_model(second).model.state_dict().items())
    assert 0 < moved < 0.5 * sum(torch.dist(tensor, weights[key]) for key, tensor in own.items())
    released = msgspec.structs.replace(brief, variant="released")
    with pytest.raises(UsageError, match=r"first\.safetensors: its classes or variant"):
        trained(archive_path, tmp_path / "third.safetensors", released, start_from=str(first))


@pytest.mark.parametrize("other", ["wavelength", "probe", "grid", "points"])
def test_a_validation_archive_that_differs_is_refused(archive_path: Path, tmp_path: Path, other: str) -> None:
    two_theta = open_archive(archive_path).two_theta
    grids = {"grid": two_theta + 0.1, "points": two_theta[:-1]}
    changes = {"wavelength": {"wavelength": 1.8}, "probe": {"probe": "xray"}}.get(other, {})
    validation = hand_made(tmp_path / "validation.zarr", grids.get(other, two_theta), **changes)
    with pytest.raises(InputError, match=r"validation\.zarr differs from .*train\.zarr"):
        trained(archive_path, tmp_path / "own.safetensors", SMALL, validation_paths=[validation])
    assert not list(tmp_path.glob("own*"))


@pytest.mark.parametrize(
    ("two_theta", "told"),
    [(np.linspace(3, 12, 200) ** 2, "not evenly spaced"), (np.arange(10.0, 22.0), "too few")],
)
def test_an_archive_whose_grid_no_model_can_have_is_refused_at_once(
    tmp_path: Path, two_theta: np.ndarray, told: str
) -> None:
    archive = hand_made(tmp_path / "odd.zarr", two_theta)
    with pytest.raises(InputError, match=told):
        trained(archive, tmp_path / "own.safetensors", SMALL)


def test_an_unfinished_training_is_not_overwritten_unasked(archive_path: Path, tmp_path: Path) -> None:
    Trainer(SMALL, 144, 0, CPU).save(tmp_path / "own.checkpoint")
    with pytest.raises(HxrdError, match="--resume goes on, --force restarts"):
        trained(archive_path, tmp_path / "own.safetensors", SMALL)
    trained(archive_path, tmp_path / "own.safetensors", SMALL, force=True)
    assert len((tmp_path / "own.log.jsonl").read_text().splitlines()) == 2


def test_an_interrupted_restart_leaves_nothing_of_the_older_training(
    archive_path: Path, tmp_path: Path
) -> None:
    output, checkpoint = tmp_path / "own.safetensors", tmp_path / "own.checkpoint"
    Trainer(SMALL, 144, 0, CPU).save(checkpoint)

    def interrupt(count: int) -> None:
        if count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(archive_path, output, SMALL, force=True, progress=interrupt)
    assert not checkpoint.exists()


# Interruption -------------------------------------------------------------------------------------


def command(archive: Path, recipe: Path, output: Path, *more: str) -> list[str]:
    fixed = [
        "--source",
        "prototypes",
        "--validation",
        str(archive),
        "--threads",
        "1",
        "--device",
        "cpu",
        "-q",
    ]
    return ["train", str(archive), "-o", str(output), "--recipe", str(recipe), *fixed, *more]


def log_of(output: Path) -> list[dict]:
    log = output.with_suffix(".log.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def children_of(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def ended(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


def wait_until(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def killed_in_mid_run(arguments: list[str], output: Path) -> None:
    """Kill -9 a training after its second epoch; its workers end of themselves."""
    process = subprocess.Popen([sys.executable, "-c", "from hxrd.cli.main import main; main()", *arguments])
    assert wait_until(lambda: len(log_of(output)) >= 2 or process.poll() is not None)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert wait_until(lambda: all(ended(worker) for worker in workers), 20)


@pytest.mark.parametrize("text", [RECIPE, TEMPLATES], ids=["stored patterns", "varied crystals"])
def test_a_killed_and_resumed_training_is_an_uninterrupted_one(
    archive_path: Path, tmp_path: Path, text: str
) -> None:
    recipe = recipe_file(tmp_path, text)
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    assert main(command(archive_path, recipe, whole)) == 0
    killed_in_mid_run(command(archive_path, recipe, broken), broken)
    assert 2 <= len(log_of(broken)) < 6
    assert broken.with_suffix(".checkpoint").exists()
    assert not broken.exists()
    assert main(command(archive_path, recipe, broken, "--resume")) == 0
    for line, expected in zip(log_of(broken), log_of(whole), strict=True):
        assert line["epoch"] == expected["epoch"]
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert line["validation"] == pytest.approx(expected["validation"], abs=1e-6)
        assert line["learning_rate"] == expected["learning_rate"]
    one, other = load_model(whole), load_model(broken)
    assert one.metadata.temperature == pytest.approx(other.metadata.temperature, abs=1e-4)
    for a, b in itertools.zip_longest(one.model.parameters(), other.model.parameters()):
        assert torch.allclose(a, b, atol=1e-6)
    assert not broken.with_suffix(".checkpoint").exists()
