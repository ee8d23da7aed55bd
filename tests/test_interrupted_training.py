"""A training that is killed and resumed ends as an uninterrupted one."""

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_archives import RECIPE, TEMPLATES, recipe_file

from hxrd.cli.main import main
from hxrd.models.registry import load_model

pytestmark = pytest.mark.usefixtures("one_torch_thread")


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


@pytest.mark.parametrize(
    "text", [RECIPE, TEMPLATES + "[synthetic]\n"], ids=["stored patterns", "varied and synthetic crystals"]
)
def test_a_killed_and_resumed_training_is_an_uninterrupted_one(
    training_archive: Path, tmp_path: Path, text: str
) -> None:
    recipe = recipe_file(tmp_path, text)
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    assert main(command(training_archive, recipe, whole)) == 0
    killed_in_mid_run(command(training_archive, recipe, broken), broken)
    assert 2 <= len(log_of(broken)) < 6
    assert broken.with_suffix(".checkpoint").exists()
    assert not broken.exists()
    assert main(command(training_archive, recipe, broken, "--resume")) == 0
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
