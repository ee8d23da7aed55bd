"""`hxrd train`: what it refuses and with which exit code, its options, and how it is interrupted."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training_archives import RECIPE, TEMPLATES, recipe_file, simulated_archive

from hxrd.archive import create_archive
from hxrd.cli.main import main
from hxrd.models.registry import read_metadata

BRIEF = RECIPE.replace("epochs = 6", "epochs = 1")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_archive(tmp_path_factory.mktemp("archive"), n=12)


@pytest.fixture
def place(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with one of everything, good and bad."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HXRD_SOURCES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-configuration"))
    Path("train.zarr").symlink_to(archive)
    recipe_file(tmp_path, BRIEF, "brief.toml")
    recipe_file(tmp_path, TEMPLATES, "templates.toml")
    recipe_file(tmp_path, "epochs = 3\nlearning_speed = 0.1\n", "foreign.toml")
    recipe_file(tmp_path, "batch_size = 0\n", "impossible.toml")
    recipe_file(tmp_path, "epochs = \n", "broken.toml")
    Path("noise.toml").write_bytes(np.random.default_rng(3).bytes(1000))
    Path("empty").touch()
    Path("folder").mkdir()
    Path("noise.zarr").mkdir()
    Path("noise.zarr", "zarr.json").write_bytes(np.random.default_rng(4).bytes(1000))
    Path("taken.safetensors").write_text("mine")
    Path("begun.checkpoint").write_text("mine")
    Path("folder.safetensors").mkdir()
    other = {
        "id": "other",
        "space_group": 221,
        "cell": [4, 4, 4, 90, 90, 90],
        "sites": [["Fe", 0, 0, 0, 1, None]],
    }
    Path("others.jsonl").write_text(json.dumps(other) + "\n")
    for name, group in (("unlabelled.zarr", 0), ("uncommon.zarr", 16)):
        with create_archive(
            name,
            n_patterns=2,
            two_theta=np.arange(10.0, 60.0, 0.5),
            probe="neutron",
            wavelength=1.5,
            instrument="mine",
            normalization="maximum",
            provenance={"command": "test"},
        ) as writer:
            patterns = np.random.default_rng(0).random((2, 100), np.float32)
            writer.write_shard(0, patterns, [group] * 2, ["a", "b"], [1, 1], [None, None])
    return tmp_path


NEW = "-o new.safetensors"


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        # 1: an input that exists but cannot be used
        (f"empty {NEW}", 1, "empty"),
        (f"folder {NEW}", 1, "folder"),
        (f"noise.zarr {NEW}", 1, "noise.zarr"),
        (f"unlabelled.zarr {NEW}", 1, "no good pattern has a space group"),
        (f"uncommon.zarr {NEW}", 1, "no good pattern has a space group"),
        (f"train.zarr {NEW} --validation noise.zarr", 1, "noise.zarr"),
        (f"train.zarr {NEW} --validation uncommon.zarr", 1, "differs from"),
        (f"train.zarr {NEW} --recipe foreign.toml", 1, "learning_speed"),
        (f"train.zarr {NEW} --recipe impossible.toml", 1, "batch_size"),
        (f"train.zarr {NEW} --recipe broken.toml", 1, "broken.toml"),
        (f"train.zarr {NEW} --recipe noise.toml", 1, "noise.toml"),
        (f"train.zarr {NEW} --start-from taken.safetensors", 1, "taken.safetensors"),
        ("train.zarr -o begun.safetensors --resume", 1, "begun.checkpoint is damaged"),
        # 1: no crystals to vary: told by the worker process
        (
            f"train.zarr {NEW} --recipe templates.toml --validation train.zarr --source jsonl:others.jsonl",
            1,
            "A_cF4_225_a is needed to make patterns afresh (unknown to jsonl:others.jsonl); give its source",
        ),
        # 1: output exists
        ("train.zarr -o taken.safetensors", 1, "taken.safetensors exists; give another name, or --force"),
        ("train.zarr -o begun.safetensors", 1, "--resume goes on, --force restarts"),
        # 2: wrong usage
        ("", 2, "ARCHIVE"),
        ("train.zarr", 2, "--output"),
        (f"absent.zarr {NEW}", 2, "absent.zarr"),
        (f"train.zarr {NEW} --fast", 2, "--fast"),
        ("train.zarr -o new.pth", 2, "must end in .safetensors"),
        ("train.zarr -o new", 2, "must end in .safetensors"),
        ("train.zarr -o folder.safetensors", 2, "is a folder"),
        (f"train.zarr {NEW} --recipe absent.toml", 2, "absent.toml"),
        (f"train.zarr {NEW} --validation absent.zarr", 2, "absent.zarr"),
        (f"train.zarr {NEW} --recipe templates.toml", 2, "--validation"),
        (f"train.zarr {NEW} --start-from absent", 2, "absent"),
        (f"train.zarr {NEW} --epochs 0", 2, "epochs"),
        (f"train.zarr {NEW} --variant mine", 2, "variant"),
        (f"train.zarr {NEW} --groups 100", 2, "groups"),
        (f"train.zarr {NEW} --workers 0", 2, "workers"),
        (f"train.zarr {NEW} --threads 0", 2, "threads"),
        (f"train.zarr {NEW} --seed -1", 2, "seed"),
        (f"train.zarr {NEW} --device tpu", 2, "tpu"),
        (f"train.zarr {NEW} --force --resume", 2, "give one of them"),
        (
            f"train.zarr {NEW} --recipe templates.toml --validation train.zarr --source oracle",
            2,
            "oracle",
        ),
    ],
)
def test_what_is_refused(
    place: Path, command: str, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *shlex.split(command)]) == code
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert sum(line.startswith("hxrd: error: ") for line in printed.err.splitlines()) == 1
    assert not list(place.glob("new*"))
    assert Path("taken.safetensors").read_text() == "mine"


def test_a_device_that_is_not_there_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["train", "train.zarr", *shlex.split(NEW), "--device", "cuda"]) == 1
    assert "no device cuda" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_an_example_and_every_option(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", flag]) == 0
    text = capsys.readouterr().out
    assert "Example:" in text
    assert "hxrd train train.zarr -o model.safetensors" in text
    for option in (
        *("--output", "--recipe", "--validation", "--variant", "--groups", "--epochs", "--source", "--seed"),
        *("--device", "--workers", "--threads", "--resume", "--force", "--verbose", "--quiet", "--log-file"),
    ):
        assert option in text


def test_options_override_the_recipe(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        f"train train.zarr {NEW} --recipe brief.toml --epochs 2 --variant released --groups 230 --threads 1"
    )
    assert main(text.split()) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "epoch 2 of 2" in printed.err
    metadata = read_metadata(Path("new.safetensors"))
    assert metadata.variant == "released"
    assert metadata.classes == tuple(range(1, 231))
    recipe = metadata.provenance["recipe"]
    assert (recipe["epochs"], recipe["variant"], recipe["groups"]) == (2, "released", 230)
    assert (recipe["batch_size"], recipe["dropout"]) == (8, 0.1)  # of the recipe
    lines = [json.loads(line) for line in Path("new.log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert set(lines[0]) == {"epoch", "loss", "learning_rate", "validation", "seconds"}
    assert set(lines[0]["validation"]) == {"loss", "top_1", "top_5"}


def test_force_overwrites_and_quiet_says_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "train train.zarr -o taken.safetensors --recipe brief.toml --force -q --threads 1"
    Path("taken.checkpoint").write_text("of an older training")
    assert main([*text.split(), "--licence", "CC0-1.0"]) == 0
    assert capsys.readouterr().err == ""
    metadata = read_metadata(Path("taken.safetensors"))
    assert metadata.licence == "CC0-1.0"
    assert metadata.variant == "paper"
    assert len(metadata.classes) == 144
    assert not list(place.glob("*.part"))
    assert not Path("taken.checkpoint").exists()


def test_resume_starts_afresh_where_there_is_nothing_to_resume(place: Path) -> None:
    assert main(f"train train.zarr {NEW} --recipe brief.toml --resume -q --threads 1".split()) == 0
    assert Path("new.safetensors").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_ends_training_and_workers_in_one_line_and_resumes(place: Path) -> None:
    text = f"train train.zarr {NEW} --recipe templates.toml --validation train.zarr --threads 1"
    begun = "import sys; from hxrd.cli.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", begun, *text.split()],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not Path("new.checkpoint").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[-1] == "hxrd: warning: interrupted"
    # click ends the line on which the terminal wrote ^C
    assert [line for line in told.splitlines() if line and not line.startswith("hxrd: ")] == []
    assert not Path("new.safetensors").exists()
    assert main([*text.split(), "--resume", "-q"]) == 0
    assert len(Path("new.log.jsonl").read_text().splitlines()) == 6
