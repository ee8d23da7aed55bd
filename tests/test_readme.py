"""The commands of the README, run as a reader would run them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
SET_UP = {"scripts/quickstart.sh", "scripts/test.sh"}
NEEDS_SHARED = "crystals.jsonl.gz"


def console_blocks() -> list[str]:
    return re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """Return every `$ command` of the console blocks, in order, continuation lines joined."""
    text = "\n".join(console_blocks()).replace("\\\n", " ")
    return [line[2:].strip() for line in text.splitlines() if line.startswith("$ ")]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("HXRD_SOURCES", None)
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def copy_of_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout to a command, and takes what the commands write."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("scripts", "docs", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(CHECKOUT / name)
    return folder


def test_every_command_of_the_readme_runs(copy_of_checkout: Path, request: pytest.FixtureRequest) -> None:
    listed = [command for command in commands() if shlex.split(command)[0] not in {*SET_UP, "git", "cd"}]
    assert len(listed) >= 8
    for command in listed:
        if NEEDS_SHARED in command and not (copy_of_checkout / NEEDS_SHARED).exists():
            shared = request.getfixturevalue("shared")
            (copy_of_checkout / NEEDS_SHARED).symlink_to(shared / NEEDS_SHARED)
        done = run(command, copy_of_checkout)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_the_python_block_runs(copy_of_checkout: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        script = copy_of_checkout / f"block_{number}.py"
        script.write_text(block, encoding="utf-8")
        done = run(f"python {script.name}", copy_of_checkout)
        assert done.returncode == 0, done.stderr


def test_the_two_set_up_commands_are_those_of_the_readme_and_of_ci() -> None:
    assert set(commands()) >= SET_UP
    assert "exec scripts/test.sh" in (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8")
    for script in SET_UP:
        assert os.access(CHECKOUT / script, os.X_OK)


def test_the_quickstart_ranks_most_prototypes_right(tmp_path: Path) -> None:
    if not (CHECKOUT / ".venv").exists() and "CI" not in os.environ:
        pytest.skip("scripts/quickstart.sh installs into .venv, which is not here (scripts/test.sh makes it)")
    done = run(f"scripts/quickstart.sh {tmp_path / 'out'}", CHECKOUT)
    assert done.returncode == 0, done.stderr
    import pyarrow.parquet

    from hxrd.archive.reader import open_archive

    truth = open_archive(tmp_path / "out" / "prototypes.zarr").space_group
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "result.parquet").to_pylist()
    within_five = [
        int(group) in [row[f"space_group_{place}"] for place in range(1, 6)]
        for group, row in zip(truth, rows, strict=True)
    ]
    assert sum(within_five) > 0.7 * len(within_five)
    assert (tmp_path / "out" / "patterns.png").stat().st_size > 10_000
    for row in rows[:3]:
        assert row["source_id"] in done.stdout
