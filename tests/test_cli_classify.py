"""`hxrd classify` from the command line: output, messages, exit codes."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
from classified import CLASSES, TWO_THETA, WAVELENGTH, make_archive, make_model, make_patterns, write_xye

from hxrd.cli.main import main

MEASURED = ["--probe", "neutron", "--wavelength", str(WAVELENGTH)]
pytestmark = pytest.mark.usefixtures("bundled")


@pytest.fixture
def archive(tmp_path):
    return make_archive(tmp_path / "a.zarr", make_patterns(30))


@pytest.fixture
def measured(tmp_path):
    return write_xye(tmp_path / "one.xye", TWO_THETA, 900 * make_patterns(1)[0])


def run(capsys, *arguments):
    """Return exit code, stdout, and the lines of stderr."""
    code = main(["classify", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def failure(capsys, *arguments):
    """Return exit code and the one line that tells what is wrong; nothing may be on stdout."""
    code, out, lines = run(capsys, *arguments)
    errors = [line for line in lines if line.startswith("hxrd: error: ")]
    assert out == ""
    assert len(errors) == 1
    assert errors[0] == lines[-1]
    assert not any("Traceback" in line for line in lines)
    return code, errors[0]


# Done ---------------------------------------------------------------------------------------------


def test_an_archive_gives_a_table_and_a_summary(capsys, archive):
    code, out, lines = run(capsys, archive, "--topk", "3")
    assert code == 0
    assert "crystal 0" in out
    assert "crystal 19" in out
    assert "crystal 20" not in out
    assert "… and 10 more" in out
    assert "30 of 30 patterns classified" in out
    assert "among the first 3" in out
    assert any("neutrons, 2.0775 Å" in line and "neutron-clean" in line for line in lines)
    assert any("patterns/s" in line for line in lines)


def test_a_measured_file_gets_the_realistic_model(capsys, measured):
    code, out, lines = run(capsys, measured, *MEASURED)
    assert code == 0
    assert "one.xye" in out
    assert "1 of 1 patterns classified" in out
    assert any("model neutron " in line for line in lines)


def test_output_to_a_file_keeps_stdout_empty(capsys, archive, tmp_path):
    output = tmp_path / "out.parquet"
    code, out, _ = run(capsys, archive, "-o", output, "--topk", "2", "--logits", "--range", "3:9")
    assert (code, out) == (0, "")
    table = pyarrow.parquet.read_table(output)
    assert table["pattern"].to_pylist() == list(range(3, 9))
    assert table["source_id"].to_pylist() == [f"crystal {row}" for row in range(3, 9)]
    assert "space_group_2" in table.column_names
    assert "space_group_3" not in table.column_names
    assert len(table["logits"][0]) == len(CLASSES)
    assert b"hxrd" in table.schema.metadata[b"command"]


def test_table_and_file_agree(capsys, archive, tmp_path):
    run(capsys, archive, "-o", tmp_path / "out.jsonl", "--topk", "1")
    _, out, _ = run(capsys, archive, "--topk", "1")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, line in zip(rows[:20], out.splitlines()[1:21], strict=True):
        assert f"{row['symbol_1']} {row['probability_1']:.2f}" in line
        assert f"{row['bravais_lattice']} {row['bravais_probability']:.2f}" in line


def test_an_open_range_and_a_model_by_path(capsys, archive, bundled, tmp_path):
    model = bundled / "neutron.safetensors"
    code, _, lines = run(capsys, archive, "-o", tmp_path / "o.csv", "--range", "28:", "--model", model)
    assert code == 0
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 3
    assert any("model neutron " in line for line in lines)


def test_back_ends_are_chosen_by_name_and_agree(capsys, archive, tmp_path):
    tables = {}
    for backend in ("native", "torch"):
        output = tmp_path / f"{backend}.parquet"
        options = ["--backend", backend, "--precision", "fp32", "--workers", "1", "-v"]
        code, _, lines = run(capsys, archive, "-o", output, *options)
        assert code == 0
        assert any(f"cpu: {backend}, fp32" in line for line in lines)
        tables[backend] = pyarrow.parquet.read_table(output)
    native, torch = tables.values()
    assert native["symbol_1"].equals(torch["symbol_1"])
    assert np.allclose(native["probability_1"].to_numpy(), torch["probability_1"].to_numpy(), atol=1e-4)


def test_force_overwrites(capsys, archive, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("old")
    code, _, _ = run(capsys, archive, "-o", output, "--force")
    assert code == 0
    assert len(output.read_text().splitlines()) == 31


def test_a_line_name_is_a_wavelength(capsys, measured, bundled):
    make_model(bundled / "x.safetensors", probe="xray", wavelength=1.5418)
    code, _, lines = run(capsys, measured, "--probe", "xray", "--wavelength", "CuKa", "--model", "x")
    assert code == 0
    assert any("X-rays, 1.54187 Å" in line for line in lines)


def test_a_kill_and_resume_give_the_same_rows(bundled, tmp_path):
    """SIGKILL a real process between two parts, resume it, compare with an uninterrupted run."""
    archive = make_archive(tmp_path / "a.zarr", make_patterns(1100), shard_size=256)
    script = tmp_path / "dying.py"
    script.write_text(  # the third and last span is the only short one
        "import os, signal, sys\n"
        "import hxrd.classify.run as running\n"
        "from hxrd.classify.backends.native import NativeBackend\n"
        "running.FLUSH_ROWS = 1\n"
        "original = NativeBackend.logits\n"
        "def logits(self, x):\n"
        "    if len(x) < 512:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(self, x)\n"
        "NativeBackend.logits = logits\n"
        "from hxrd.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    options = ["--model", str(bundled / "neutron-clean.safetensors"), "--device", "cpu"]
    cut, whole = tmp_path / "cut.parquet", tmp_path / "whole.parquet"
    command = ["classify", str(archive), "-o", str(cut), *options]
    killed = subprocess.run([sys.executable, str(script), *command], capture_output=True, check=False)
    assert killed.returncode == -9
    assert not cut.exists()
    assert (tmp_path / "cut.parquet.part.d").is_dir()
    assert main([*command, "--resume"]) == 0
    assert main(["classify", str(archive), "-o", str(whole), *options]) == 0
    table = pyarrow.parquet.read_table(cut)
    assert table.num_rows == 1100
    assert table.equals(pyarrow.parquet.read_table(whole))


# Some inputs rejected: 3 --------------------------------------------------------------------------


def test_bad_files_among_good_ones_are_listed(capsys, measured, tmp_path):
    empty = tmp_path / "empty.xye"
    empty.touch()
    noise = tmp_path / "noise.xye"
    noise.write_bytes(bytes(range(256)) * 8)
    code, out, lines = run(capsys, empty, measured, noise, tmp_path, *MEASURED)
    assert code == 3
    assert "1 of 4 patterns classified; 3 rejected" in out
    warnings = [line for line in lines if "warning" in line]
    assert [name for name in ("empty.xye", "noise.xye") if any(name in line for line in warnings)]
    assert len(warnings) == 3


def test_a_pattern_with_nan_keeps_its_row(capsys, tmp_path):
    intensity = make_patterns(3)
    intensity[1, 100] = np.nan
    archive = make_archive(tmp_path / "nan.zarr", intensity)
    code, _, lines = run(capsys, archive, "-o", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert code == 3
    assert [row["flag"] for row in rows] == ["", "not-finite", ""]
    assert rows[1]["symbol_1"] is None
    assert any("crystal 1" in line and "not-finite" in line for line in lines)


def test_patterns_rejected_by_the_simulation_are_listed(capsys, tmp_path):
    archive = make_archive(tmp_path / "r.zarr", make_patterns(4), rejected=(2,))
    code, out, lines = run(capsys, archive)
    assert code == 3
    assert "3 of 4 patterns classified; 1 rejected" in out
    assert any("no scattering length for Ac" in line for line in lines)


# Failed: 1 ----------------------------------------------------------------------------------------


def unusable(tmp_path, kind):
    path = tmp_path / f"{kind}.xye"
    angles, (intensity,) = TWO_THETA, make_patterns(1)
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "truncated":
        write_xye(path, angles[:5], intensity[:5])
    elif kind == "nan":
        write_xye(path, angles, np.where(np.arange(501) == 9, np.nan, intensity))
    elif kind == "flat":
        write_xye(path, angles, np.ones(501))
    elif kind == "off-range":
        write_xye(path, np.linspace(2, 9, 501), intensity)
    return path


@pytest.mark.parametrize("kind", ["empty", "folder", "noise", "truncated", "nan", "flat", "off-range"])
@pytest.mark.parametrize("to_file", [False, True])
def test_nothing_usable_fails(capsys, tmp_path, kind, to_file):
    path = unusable(tmp_path, kind)
    output = ["-o", tmp_path / "out.csv"] if to_file else []
    code, message = failure(capsys, path, *MEASURED, *output)
    assert code == 1
    assert "Error" not in message
    assert sorted(item.name for item in tmp_path.iterdir()) == [path.name]


def test_a_corrupt_archive_fails(capsys, archive):
    (archive / "intensity" / "zarr.json").write_text("{")
    code, message = failure(capsys, archive)
    assert code == 1
    assert "a.zarr" in message


def test_a_corrupt_model_fails(capsys, archive, tmp_path):
    model = tmp_path / "bad.safetensors"
    model.write_bytes(b"nothing of the kind")
    code, message = failure(capsys, archive, "--model", model)
    assert code == 1
    assert "bad.safetensors" in message


def test_an_existing_output_is_kept(capsys, archive, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("precious")
    for options in ([], ["--resume"]):
        code, message = failure(capsys, archive, "-o", output, *options)
        assert code == 1
        assert "--force" in message
    assert output.read_text() == "precious"


@pytest.mark.parametrize("devices", ["cuda:99", "cuda:98,99"])
def test_no_such_device_fails(capsys, archive, devices):
    code, message = failure(capsys, archive, "--device", devices)
    assert code == 1
    assert "no device cuda:9" in message


def test_a_back_end_that_is_not_installed_fails(capsys, archive, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, message = failure(capsys, archive, "--backend", "onnxruntime")
    assert code == 1
    assert "hxrd[onnxruntime]" in message


# Wrong usage: 2 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--topk", "0"], "--topk"),
        (["--topk", "-3"], "--topk"),
        (["--topk", "13"], "--topk"),
        (["--topk", "many"], "--topk"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "missing.safetensors"], "missing.safetensors"),
        (["--range", "5"], "--range"),
        (["--range", "9:9"], "--range"),
        (["--range", "30:"], "--range"),
        (["--task", "colour"], "--task"),
        (["--device", "abacus"], "--device"),
        (["--device", "cuda:0,"], "--device"),
        (["--backend", "abacus"], "--backend"),
        (["-o", "out.xlsx"], ".xlsx"),
        (["-o", "nowhere/out.csv"], "nowhere"),
        (["--resume"], "--resume"),
        (["--batch-size", "0"], "--batch-size"),
        (["--wavelength", "-1"], "wavelength"),
    ],
)
def test_wrong_usage(capsys, archive, options, named):
    code, message = failure(capsys, archive, *options)
    assert code == 2
    assert named in message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--probe", "neutron"], "--wavelength"),
        (["--wavelength", "1.5"], "--probe"),
        (["--probe", "xray", "--wavelength", "CuKa"], "--model"),
        (["--probe", "neutron", "--wavelength", "NoKa"], "NoKa"),
    ],
)
def test_a_measured_file_needs_its_radiation(capsys, measured, options, named):
    code, message = failure(capsys, measured, *options)
    assert code == 2
    assert named in message


@pytest.mark.parametrize("options", [["--probe", "xray"], ["--wavelength", "1.2"]])
def test_options_that_contradict_an_archive_are_told(capsys, archive, measured, options):
    code, _, lines = run(capsys, archive, *options)
    assert code == 0
    assert any("warning" in line and str(archive) in line and "itself" in line for line in lines)
    radiation = ["--probe", "neutron", "--wavelength", "1.2"]
    code, _, lines = run(capsys, archive, measured, *radiation)
    assert code == 0
    assert not any("itself" in line for line in lines)


def test_a_file_name_that_is_no_utf_8_is_shown_with_replacements(capsys, measured, tmp_path):
    odd = os.fsdecode(bytes(measured.parent) + b"/b\xff.xye")
    measured.rename(odd)
    radiation = ["--probe", "neutron", "--wavelength", str(WAVELENGTH)]
    for options in ([], ["-o", tmp_path / "result.parquet"], ["-o", tmp_path / "result.jsonl"]):
        assert run(capsys, odd, *radiation, *options)[0] == 0
    row = json.loads((tmp_path / "result.jsonl").read_text())
    assert row["source_id"].endswith("b\N{REPLACEMENT CHARACTER}.xye")


def test_a_terminal_without_the_marks_gets_question_marks():
    command = "import sys; from hxrd.cli.main import _write_any_text as any_text; any_text()"
    command += "; print('\\N{CHECK MARK} Fm-3m')"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, env=environment, check=True)
    assert done.stdout == b"? Fm-3m\n"


def test_paths_must_exist(capsys, archive, tmp_path):
    for path in ("nowhere.zarr", "nowhere.xye"):
        code, message = failure(capsys, archive, tmp_path / path)
        assert code == 2
        assert path in message
    assert failure(capsys)[0] == 2


def test_a_lattice_model_has_no_space_groups(capsys, archive, bundled):
    make_model(bundled / "lattices.safetensors", task="bravais", classes=("cF", "cI", "aP"))
    code, message = failure(capsys, archive, "--model", "lattices", "--task", "space-group")
    assert code == 2
    assert "Bravais" in message
    code, out, _ = run(capsys, archive, "--model", "lattices", "--topk", "3")
    assert code == 0
    assert "Bravais lattice" in out


def test_help_needs_no_heavy_import():
    code = (
        "import sys; from hxrd.cli.main import main\n"
        "for command in (['classify', '--help'], ['models', 'import', '-h']):\n"
        "    assert main(command) == 0\n"
        "heavy = {'torch', 'numba', 'zarr', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert finished.returncode == 0, finished.stderr
    assert "--topk" in finished.stdout
