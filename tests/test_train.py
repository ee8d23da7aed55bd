"""From archive to model: what the model says of itself, and the archives that are refused."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from training_archives import IDENTIFIERS, SMALL, foreign_archive

from hxrd.archive import open_archive
from hxrd.cli.main import main
from hxrd.crystal.symmetry import SPACE_GROUPS_144
from hxrd.errors import HxrdError, InputError, UsageError
from hxrd.models.registry import load_model
from hxrd.simulate.realism import RealismSettings
from hxrd.train.config import Recipe
from hxrd.train.loop import Trainer
from hxrd.train.train import train_model

CPU = torch.device("cpu")
N = len(IDENTIFIERS)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def trained(archive: Path, output: Path, recipe: Recipe, **changes) -> None:
    options = {
        "validation_paths": [], "sources": ("prototypes",), "start_from": None, "licence": "MIT", "seed": 0,
        "device": "cpu", "workers": 1, "resume": False, "force": False, "progress": lambda count: None,
    }  # fmt: skip
    train_model(archive, output, recipe, **(options | changes))


def test_a_trained_model_says_all_about_itself_and_classifies(
    training_archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = msgspec.structs.replace(SMALL, epochs=25, dropout=0.0, input_transform="sqrt")
    output = tmp_path / "own.safetensors"
    trained(training_archive, output, recipe, validation_paths=[training_archive], seed=5)
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
    assert main(["classify", str(training_archive), "--model", str(output), "-o", str(results), "-q"]) == 3
    rows = [json.loads(line) for line in results.read_text().splitlines()][:N]
    truth = open_archive(training_archive).space_group[:N]
    right = [row["space_group_1"] == number for row, number in zip(rows, truth, strict=True)]
    assert np.mean(right) >= 0.9


def test_realism_in_the_recipe_asks_for_background_removal_in_use(
    training_archive: Path, tmp_path: Path
) -> None:
    recipe = msgspec.structs.replace(
        SMALL, epochs=1, realism=RealismSettings(), groups=230, variant="released"
    )
    output = tmp_path / "own.safetensors"
    trained(training_archive, output, recipe, validation_paths=[training_archive])
    metadata = load_model(output).metadata
    assert metadata.preprocessing == "background"
    assert metadata.classes == tuple(range(1, 231))
    assert metadata.variant == "released"


def test_training_may_start_from_the_weights_of_a_model(training_archive: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    brief = msgspec.structs.replace(SMALL, epochs=1)
    trained(training_archive, first, brief)
    trained(training_archive, second, brief, start_from=str(first), seed=1)
    assert load_model(second).metadata.provenance["started_from"] == str(first)
    weights = load_model(first).model.state_dict()
    own = Trainer(brief, 144, 1, CPU).model.state_dict()
    moved = sum(torch.dist(t, weights[key]) for key, t in load_model(second).model.state_dict().items())
    assert 0 < moved < 0.5 * sum(torch.dist(tensor, weights[key]) for key, tensor in own.items())
    released = msgspec.structs.replace(brief, variant="released")
    with pytest.raises(UsageError, match=r"first\.safetensors: its classes or variant"):
        trained(training_archive, tmp_path / "third.safetensors", released, start_from=str(first))


@pytest.mark.parametrize("other", ["wavelength", "probe", "grid", "points"])
def test_a_validation_archive_that_differs_is_refused(
    training_archive: Path, tmp_path: Path, other: str
) -> None:
    two_theta = open_archive(training_archive).two_theta
    grids = {"grid": two_theta + 0.1, "points": two_theta[:-1]}
    changes = {"wavelength": {"wavelength": 1.8}, "probe": {"probe": "xray"}}.get(other, {})
    validation = foreign_archive(tmp_path / "validation.zarr", grids.get(other, two_theta), **changes)
    with pytest.raises(InputError, match=r"validation\.zarr differs from .*train\.zarr"):
        trained(training_archive, tmp_path / "own.safetensors", SMALL, validation_paths=[validation])
    assert not list(tmp_path.glob("own*"))


@pytest.mark.parametrize(
    ("two_theta", "told"),
    [(np.linspace(3, 12, 200) ** 2, "not evenly spaced"), (np.arange(10.0, 22.0), "too few")],
)
def test_an_archive_whose_grid_no_model_can_have_is_refused_at_once(
    tmp_path: Path, two_theta: np.ndarray, told: str
) -> None:
    archive = foreign_archive(tmp_path / "odd.zarr", two_theta)
    with pytest.raises(InputError, match=told):
        trained(archive, tmp_path / "own.safetensors", SMALL)


def test_an_unfinished_training_is_not_overwritten_unasked(training_archive: Path, tmp_path: Path) -> None:
    Trainer(SMALL, 144, 0, CPU).save(tmp_path / "own.checkpoint")
    with pytest.raises(HxrdError, match="--resume goes on, --force restarts"):
        trained(training_archive, tmp_path / "own.safetensors", SMALL)
    trained(training_archive, tmp_path / "own.safetensors", SMALL, force=True)
    assert len((tmp_path / "own.log.jsonl").read_text().splitlines()) == 2


def test_an_interrupted_restart_leaves_nothing_of_the_older_training(
    training_archive: Path, tmp_path: Path
) -> None:
    output, checkpoint = tmp_path / "own.safetensors", tmp_path / "own.checkpoint"
    Trainer(SMALL, 144, 0, CPU).save(checkpoint)

    def interrupt(count: int) -> None:
        if count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(training_archive, output, SMALL, force=True, progress=interrupt)
    assert not checkpoint.exists()
