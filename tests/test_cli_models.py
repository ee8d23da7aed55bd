"""`hxrd models` from the command line: the list, and the import of released checkpoints."""

import json

import pytest
import torch
from classified import make_archive, make_patterns

from hxrd.cli.main import main
from hxrd.models.resnet1d import ResNet1D

pytestmark = pytest.mark.usefixtures("bundled")


def test_models_are_listed(capsys, bundled):
    (bundled / "broken.safetensors").write_bytes(b"")
    assert main(["models", "list"]) == 0
    captured = capsys.readouterr()
    names = [line.split()[0] for line in captured.out.splitlines()]
    assert names == ["name", "neutron", "neutron-clean"]
    assert "broken.safetensors" in captured.err


def released(path, n_classes=14, key=None):
    torch.manual_seed(1)
    state = ResNet1D(n_classes, variant="released", adversarial_head=True).state_dict()
    torch.save({key: state} if key else state, path)
    return path


def test_an_imported_model_can_be_used(capsys, tmp_path):
    archive = make_archive(tmp_path / "a.zarr", make_patterns(30))
    checkpoint = released(tmp_path / "BravaisModels.pth", key="SGAN")
    assert main(["models", "import", str(checkpoint), "--name", "lattices"]) == 0
    assert capsys.readouterr().out == "lattices\n"
    assert main(["models", "list"]) == 0
    assert "14 Bravais lattices" in capsys.readouterr().out
    output = tmp_path / "out.jsonl"
    assert main(["classify", str(archive), "--model", "lattices", "-o", str(output)]) == 0
    row = json.loads(output.read_text().splitlines()[0])
    assert row["bravais_lattice"]
    assert row["symbol_1"] is None


def test_import_to_a_file_and_again(capsys, tmp_path):
    checkpoint, output = released(tmp_path / "bare.pth", 144), tmp_path / "bare.safetensors"
    command = ["models", "import", str(checkpoint), "-o", str(output)]
    assert [main(command), main(command), main([*command, "--force"])] == [0, 1, 0]
    assert capsys.readouterr().out == 2 * f"{output}\n"


def test_import_errors(capsys, tmp_path):
    checkpoint = released(tmp_path / "one.pth", key="SGAN")
    both = tmp_path / "both.pth"
    state = torch.load(checkpoint, weights_only=True)["SGAN"]
    torch.save({"SGAN": state, "Supervised": state}, both)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(checkpoint.read_bytes()[:9000])
    cases = [
        (1, [damaged]),
        (2, [tmp_path / "nowhere.pth"]),
        (2, [checkpoint, "--which", "supervised"]),
        (2, [checkpoint, "--name", "../escape"]),
        (2, [checkpoint, "--name", "neutron"]),
        (2, [checkpoint, "-o", tmp_path / "out.pth"]),
        (2, [both, "-o", tmp_path / "out.safetensors"]),
    ]
    for code, arguments in cases:
        assert main(["models", "import", *(str(argument) for argument in arguments)]) == code, arguments
        errors = capsys.readouterr().err.splitlines()
        assert errors[-1].startswith("hxrd: error: ")
    assert main(["models", "import", str(both)]) == 0
    assert capsys.readouterr().out == "both-sgan\nboth-supervised\n"
