"""What a small job imports: neither torch nor a compiler, and Zarr for archives only."""

import subprocess
import sys

import numpy as np
import pytest
from classified import TWO_THETA, make_archive, make_model, make_patterns, write_xye

from hxrd.classify.backends import choose_backend, native
from hxrd.kernels.compiled import SMALL_JOB, worth_compiling
from hxrd.kernels.numpy_network import numpy_logits
from hxrd.models.layout import pool_of
from hxrd.models.registry import load_model

SLOW = {"torch", "numba", "llvmlite", "scipy", "pandas", "matplotlib", "pymatgen", "triton"}
_PROGRAM = """
import sys
from hxrd.cli.main import main
code = main(sys.argv[1:])
print("imported:", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
sys.exit(code)
"""


def imported_by(*arguments: object, expected: int = 0) -> set[str]:
    """The top-level modules that a command imports."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == expected, done.stderr
    return set(done.stderr.partition("imported:")[2].split())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", preprocessing="background")


@pytest.fixture
def measured(tmp_path):
    header = "# wavelength = 1.9\n# probe: neutron\n"
    return write_xye(tmp_path / "one.xye", TWO_THETA, 900 * make_patterns(1)[0] + 100, header)


@pytest.mark.parametrize("suffix", [None, "parquet", "csv", "jsonl"])
def test_a_measured_pattern_needs_numpy_and_arrow_only(measured, model, tmp_path, suffix):
    output = [] if suffix is None else ["-o", tmp_path / f"result.{suffix}"]
    found = imported_by("classify", measured, "--model", model, "--device", "cpu", *output)
    assert found & {*SLOW, "zarr"} == set()
    assert {"numpy", "pyarrow", "safetensors"} <= found


def test_the_bundled_model_is_chosen_without_torch(measured):
    assert imported_by("classify", measured, "--device", "cpu") & {*SLOW, "zarr"} == set()


def test_a_small_archive_needs_zarr_besides(model, tmp_path):
    archive = make_archive(tmp_path / "small.zarr", make_patterns(20), rejected=(3,))
    found = imported_by("classify", archive, "--model", model, "--device", "cpu", expected=3)
    assert found & SLOW == set()
    assert "zarr" in found


def test_what_cannot_be_classified_is_told_without_torch(model, tmp_path):
    empty = tmp_path / "empty.xye"
    empty.write_text("")
    options = ("--probe", "neutron", "--wavelength", "1.9")
    assert imported_by("classify", empty, "--model", model, *options, expected=1) & SLOW == set()
    assert imported_by("classify", tmp_path / "none.xye", expected=2) & SLOW == set()


@pytest.mark.parametrize("command", [("info", "--instruments"), ("models", "list")])
def test_what_only_looks_needs_no_torch(command):
    assert imported_by(*command) & SLOW == set()


def test_the_size_of_the_job_alone_decides():
    assert not worth_compiling(1)
    assert not worth_compiling(SMALL_JOB - 1)
    assert worth_compiling(SMALL_JOB)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_small_and_a_large_job_rank_alike(tmp_path, variant):
    """The same patterns by NumPy, and by the compiled network in float32."""
    loaded = load_model(make_model(tmp_path / "tiny.safetensors", variant=variant))
    patterns = make_patterns(40)
    small, large = (
        choose_backend(loaded, "cpu", precision="fp32", n_patterns=n).logits(patterns) for n in (40, 10**6)
    )
    np.testing.assert_allclose(small, numpy_logits(loaded.weights, patterns, pool_of(variant)), atol=1e-5)
    np.testing.assert_allclose(small, large, atol=1e-3, rtol=1e-4)
    first, second = np.sort(large, axis=1)[:, -2:].T[::-1]
    clear = first - second > 5e-3
    assert clear.sum() > 30
    np.testing.assert_array_equal(small.argmax(axis=1)[clear], large.argmax(axis=1)[clear])


@pytest.mark.parametrize(("n_patterns", "told"), [(SMALL_JOB - 1, False), (SMALL_JOB, True)])
def test_only_a_large_job_compiles_and_says_so(model, monkeypatch, n_patterns, told):
    messages = []
    monkeypatch.setattr(native, "must_compile", lambda kernel: True)
    monkeypatch.setattr(native.logger, "info", messages.append)
    choose_backend(load_model(model), "cpu", n_patterns=n_patterns)
    assert ["compiling" in message for message in messages] == [True] * told
