"""`hxrd models export --format onnx`: the graph is the network, and says what it wants and gives."""

import dataclasses
import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from classified import N_CLASSES, make_model

from hxrd.cli.main import main
from hxrd.errors import HxrdError
from hxrd.models.onnx_export import export_onnx, onnx_model
from hxrd.models.registry import ModelMetadata, load_model

onnx = pytest.importorskip("onnx")

# The release's own input: 3042 points, 14 lattices, an offset.
RELEASED = {
    "variant": "released",
    "task": "bravais",
    "classes": ("cF", "cI", "cP", "hP", "mC", "mP", "oC", "oF", "oI", "oP", "hR", "tI", "tP", "aP"),
    "grid": (2.95, 155.0, 0.05),
    "input_offset": 1e-3,
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


def logits_in_onnxruntime(model, patterns):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"patterns": patterns[:, None]})[0]


@pytest.mark.parametrize("planar", [True, False], ids=["planar", "one dimension"])
@pytest.mark.parametrize("changes", [{}, RELEASED], ids=["paper", "released"])
def test_logits_are_those_of_torch(tmp_path, changes, planar):
    loaded = load_model(make_model(tmp_path / "m.safetensors", **changes))
    shape = (7, loaded.metadata.n_points)
    patterns = np.random.default_rng(0).random(shape, np.float32)
    with torch.inference_mode():
        expected = loaded.model(torch.from_numpy(patterns)[:, None]).numpy()
    assert expected.std(axis=0).min() > 1e-2  # patterns differ
    model = onnx_model(loaded, planar=planar)
    for rows in (slice(0, 7), slice(3, 4)):
        np.testing.assert_allclose(logits_in_onnxruntime(model, patterns[rows]), expected[rows], atol=1e-4)


def test_logits_of_a_bundled_model_are_those_of_torch():
    loaded = load_model("neutron-clean")
    patterns = np.random.default_rng(1).random((2, loaded.metadata.n_points), np.float32)
    with torch.inference_mode():
        expected = loaded.model(torch.from_numpy(patterns)[:, None]).numpy()
    np.testing.assert_allclose(logits_in_onnxruntime(onnx_model(loaded), patterns), expected, atol=1e-4)


def test_the_graph_says_what_it_wants_and_gives(loaded):
    model = onnx_model(loaded)
    (given,), (gives,) = model.graph.input, model.graph.output
    sizes = [
        [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim]
        for value in (given, gives)
    ]
    assert (given.name, gives.name) == ("patterns", "logits")
    assert sizes == [["batch", 1, 501], ["batch", N_CLASSES]]
    assert given.type.tensor_type.elem_type == gives.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert "neutron powder patterns at 2.0775 Å, 2θ 10 to 60 by 0.1 degrees" in given.doc_string
    assert {opset.domain for opset in model.opset_import} == {""}


def test_no_node_is_idle_and_no_constant_unused(loaded):
    for planar in (True, False):
        graph = onnx_model(loaded, planar=planar).graph
        wanted = {name for node in graph.node for name in node.input} | {"logits"}
        made = {name for node in graph.node for name in node.output}
        constants = {tensor.name for tensor in graph.initializer}
        assert made | constants | {"patterns"} == wanted
        assert not any(name.startswith("adv") for name in constants)


def test_metadata_are_the_models_own(loaded):
    stored = {entry.key: entry.value for entry in onnx_model(loaded).metadata_props}
    assert msgspec.json.decode(stored["hxrd"].encode(), type=ModelMetadata) == loaded.metadata
    assert stored["model_sha256"] == loaded.sha256


def test_input_in_words_names_what_is_done_before(loaded):
    metadata = msgspec.structs.replace(
        loaded.metadata, preprocessing="background", input_transform="sqrt", input_offset=0.001
    )
    words = onnx_model(dataclasses.replace(loaded, metadata=metadata)).doc_string
    assert "background removed, divided by the maximum, square root taken, 0.001 added" in words


def test_a_file_is_written_whole_or_not_at_all(tmp_path, loaded, monkeypatch):
    path = tmp_path / "folder" / "m.onnx"
    export_onnx(loaded, path)
    onnx.checker.check_model(str(path), full_check=True)
    with pytest.raises(HxrdError, match=r"m\.onnx exists.*--force"):
        export_onnx(loaded, path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *paths: pytest.fail("renamed a file that was not written"))
    monkeypatch.setattr(
        "pathlib.Path.write_bytes", lambda *arguments: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        export_onnx(loaded, path, force=True)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("bundled")
def test_export_from_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["models", "export", "--format", "onnx"]) == 0
    assert capsys.readouterr().out == "neutron.onnx\n"
    command = ["models", "export", "--format", "onnx", "--model", "neutron-clean", "-o", "n.onnx"]
    assert [main(command), main(command), main([*command, "--force"])] == [0, 1, 0]
    names = [json.loads(props_of(tmp_path / name)["hxrd"])["name"] for name in ("neutron.onnx", "n.onnx")]
    assert names == ["neutron", "neutron-clean"]


def props_of(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.usefixtures("bundled")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "onnx", "-o", "m.txt"], "the suffix must be .onnx"),
        (["--format", "onnx", "--model", "nobody"], "no model is called 'nobody'"),
        (["--format", "torch"], "torch"),
        ([], "--format"),
    ],
)
def test_wrong_usage_is_said_in_one_line(capsys, arguments, said):
    assert main(["models", "export", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]


@pytest.mark.usefixtures("bundled")
def test_without_the_package_the_error_says_how_to_get_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["models", "export", "--format", "onnx", "-o", str(tmp_path / "m.onnx")]) == 1
    error = capsys.readouterr().err
    assert "pip install 'hxrd[onnx]'" in error
    assert len(error.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_torch_is_not_needed(tmp_path):
    program = (
        "import sys; from hxrd.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(code or ('torch' in sys.modules and 'torch was imported'))"
    )
    command = [sys.executable, "-c", program, "models", "export", "--format", "onnx"]
    made = subprocess.run(
        [*command, "-o", str(tmp_path / "m.onnx")], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "m.onnx").stat().st_size > 2_000_000
