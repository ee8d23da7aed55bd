"""The check for GPU machines, run here without one: its refusal, its dry run, what it reads from logs."""

import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from hxrd.kernels import triton_tiles

CHECKOUT = Path(__file__).resolve().parent.parent
SCRIPTS = CHECKOUT / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def gpu_check():
    yield from script("gpu_check")


@pytest.fixture(scope="module")
def gpu_warm():
    yield from script("gpu_warm")


def run_check(*arguments, **environment):
    variables = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(
        [str(SCRIPTS / "gpu_check.sh"), *map(str, arguments)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=600,
    )


def wheel(folder, name="carried", good=True):
    """Write a wheel of one module, as small as pip takes it."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "__version__ = '1.0'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-1.0-{'py3' if good else 'py2'}-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)


def test_without_a_gpu_one_line_and_a_summary(tmp_path):
    done = run_check("", tmp_path / "out")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no CUDA device" in done.stderr
    assert "--check" in done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["passed"] is False
    assert "no CUDA device" in summary["problem"]
    assert summary["packages"]["torch"][0].isdigit()


def test_wheels_that_are_not_there(tmp_path):
    done = run_check(tmp_path / "nothing", tmp_path / "out")
    assert done.returncode == 2
    assert "scripts/gpu_wheels.sh" in done.stderr


def test_carried_wheels_and_the_checkout_can_be_imported(gpu_check, tmp_path):
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheel(wheels)
    wheel(wheels, "unfit", good=False)
    gpu_check.make_site(site)
    assert gpu_check.install(wheels, site, tmp_path / "install.log") == ["unfit-1.0-py2-none-any.whl"]
    script = """
import carried, hxrd, hxrd.kernels, hxrd.cli.main, importlib.metadata
from importlib import resources
assert (resources.files("hxrd.models") / "weights").is_dir()
print(hxrd.__file__, hxrd.__version__ == importlib.metadata.version("hxrd"), carried.__version__)
"""
    variables = gpu_check.environment(tmp_path, on_cpu=False)
    assert "TRITON_INTERPRET" not in variables
    done = subprocess.run(
        [sys.executable, "-c", script], env=variables, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(site / "hxrd" / "__init__.py"), "True", "1.0"], done.stderr


def test_a_part_is_ended_in_time_with_its_children(gpu_check, tmp_path):
    script = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
    began = time.monotonic()
    part = gpu_check.Part("sleeper", ("-c", script), 1.5)
    ended = gpu_check.run(part, os.environ, tmp_path / "sleeper.log", part.seconds)
    assert ended["timed_out"]
    assert ended["exit_code"] != 0
    assert time.monotonic() - began < 30
    child = int((tmp_path / "sleeper.log").read_text().split()[0])
    for _ in range(50):
        if not is_running(child):
            break
        time.sleep(0.1)
    assert not is_running(child)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", ["", "[gw1] [ 25%] "])
def test_outcomes_of_an_unfinished_log(gpu_check, tmp_path, workers):
    log = tmp_path / "tests.log"
    names = [("PASSED", "a"), ("PASSED", "b[x-1]"), ("FAILED", "c"), ("SKIPPED", "d")]
    lines = [
        f"{workers}{word} tests/test_x.py::test_{name} "
        if workers
        else f"tests/test_x.py::test_{name} {word}"
        for word, name in names
    ]
    log.write_text("\n".join([*lines, "FAILED tests/test_x.py::test_c - assert 1 == 2", ""]))
    found = gpu_check.outcomes(log)
    assert {key: found[key] for key in ("passed", "failed", "error", "skipped")} == {
        "passed": 2,
        "failed": 1,
        "error": 0,
        "skipped": 1,
    }
    assert found["failures"] == ["tests/test_x.py::test_c - assert 1 == 2"]


def test_tests_on_a_gpu_are_those_of_the_kernels(gpu_check):
    files = gpu_check.kernel_tests()
    assert "tests/test_gpu.py" in files
    assert "tests/test_conv_norm_gelu.py" in files
    assert not any("compiled" in file for file in files)


def test_parts_on_a_gpu_are_scripts_of_the_checkout(gpu_check, tmp_path):
    found = gpu_check.parts(tmp_path, on_cpu=False, parallel=True)
    assert [part.name for part in found] == ["warm", "tests", "network", "layers"]
    files = [word for part in found for word in part.arguments if word.endswith(".py")]
    assert files
    assert all((CHECKOUT / file).is_file() for file in files)


def test_warming_compiles_the_tiles_of_every_convolution(gpu_warm, monkeypatch):
    from hxrd.models.layout import parameter_shapes

    shapes = {shape for key, shape in parameter_shapes(144).items() if key.endswith("conv.weight")}
    assert {(n, c, taps) for c, n, taps in shapes if n > 1} == set(gpu_warm.weight_shapes())
    jobs = gpu_warm.jobs(torch.bfloat16)
    assert {job[0] for job in jobs} == {"forward", "rows", "input", "weight"}
    monkeypatch.setattr(gpu_warm.tuning, "TRIAL", (1, 16))
    if triton_tiles.unavailable(torch.device("cpu")):
        pytest.skip("needs TRITON_INTERPRET=1")
    for kind in ("forward", "rows", "input", "weight"):
        job = next(job for job in jobs if job[0] == kind)
        assert gpu_warm.compile_one(job, "cpu") == ""
    assert "RuntimeError" in gpu_warm.compile_one(jobs[0], "no device")


@pytest.mark.slow
def test_dry_run_on_the_cpu(tmp_path):
    wheel(tmp_path / "wheels")
    done = run_check("--check", tmp_path / "wheels", tmp_path / "out")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    text = (tmp_path / "out" / "summary.json").read_text()
    summary = json.loads(text)
    assert summary["passed"]
    assert summary["dry_run"]
    assert [part["name"] for part in summary["parts"]] == ["tests", "network"]
    assert summary["parts"][0]["skipped"] > 0  # all of them need a GPU
    assert not summary["network"]["wrong"]
    assert {"forward, paper", "training, paper, nothing compiled", "roofline, paper", "end to end"} <= set(
        summary["network"]["breakdown"]
    )
    assert str(tmp_path) not in text
    assert len(list((tmp_path / "out").iterdir())) <= 8
