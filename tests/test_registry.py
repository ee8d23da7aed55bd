"""Model files: what is written is read back, what is damaged is refused in one line."""

import json
import pickle
import struct
from collections import OrderedDict

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from hxrd.crystal.symmetry import BRAVAIS_LATTICES, SPACE_GROUPS_144
from hxrd.errors import HxrdError, InputError, UsageError
from hxrd.models import registry
from hxrd.models.layout import parameter_shapes
from hxrd.models.registry import ModelMetadata, list_models, load_model, read_metadata, save_model
from hxrd.models.resnet1d import ResNet1D
from hxrd.models.seed_checkpoint import import_seed_checkpoint


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    folder = tmp_path / "local"
    folder.mkdir()
    monkeypatch.setattr(registry, "local_folder", lambda: folder)
    return folder


def metadata(**changes):
    fields = {
        "name": "tiny",
        "variant": "paper",
        "task": "space-group",
        "classes": (1, 2, 225),
        "grid": (3.0, 155.0, 0.05),
        "probe": "neutron",
        "wavelength": 2.0775,
        "temperature": 1.3,
        "provenance": {"epochs": 3, "crystals": "a table"},
        "licence": "MIT",
    }
    return ModelMetadata(**fields | changes)


def network(n_classes=3, **options):
    torch.manual_seed(0)
    return ResNet1D(n_classes, **options).eval()


def written(tmp_path, **changes):
    path = tmp_path / "tiny.safetensors"
    save_model(path, network(), metadata(**changes))
    return path


def test_a_saved_model_is_read_back_wholly(tmp_path):
    path, model = tmp_path / "tiny.safetensors", network()
    save_model(path, model, metadata())
    loaded = load_model(path)
    x = torch.rand((2, 1, 3041))
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model(x))
    assert loaded.metadata == metadata()
    assert loaded.metadata.n_points == 3041
    assert len(loaded.sha256) == 64
    assert not list(tmp_path.glob("*.part"))


def test_half_precision_is_loaded_as_float32(tmp_path):
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save_model(full, network(), metadata())
    save_model(half, network(), metadata(), half=True)
    assert half.stat().st_size < 0.6 * full.stat().st_size
    weights = load_model(half).model.state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    expected = load_model(full).model.state_dict()
    assert all(torch.allclose(weights[key], expected[key], atol=1e-3) for key in expected)


def test_the_adversarial_head_survives(tmp_path):
    path = tmp_path / "sgan.safetensors"
    save_model(path, network(variant="released", adversarial_head=True), metadata(variant="released"))
    assert load_model(path).model.adv is not None


@pytest.mark.parametrize("adversarial_head", [False, True])
def test_the_layout_is_that_of_the_network(adversarial_head):
    state = network(17, adversarial_head=adversarial_head).state_dict()
    expected = {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert list(parameter_shapes(17, adversarial_head).items()) == list(expected.items())


def stored_as(tmp_path, change):
    """A model file whose weights went through `change`, and the weights before."""
    path, weights = tmp_path / "stored.safetensors", network().state_dict()
    text = json.dumps(msgspec.to_builtins(metadata()))
    save_file({key: change(tensor) for key, tensor in weights.items()}, path, metadata={"hxrd": text})
    return path, weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_float_type_are_torchs_own_float32(tmp_path, dtype):
    path, weights = stored_as(tmp_path, lambda tensor: tensor.to(dtype))
    for key, array in load_model(path).weights.items():
        assert array.dtype == "float32"
        assert torch.equal(torch.from_numpy(array), weights[key].to(dtype).float())


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda t: t.to(torch.int8), "type I8"), (lambda t: t.double() * 1e300, "not finite")],
)
def test_numbers_that_are_no_weights_are_refused(tmp_path, change, message):
    path, _ = stored_as(tmp_path, change)
    with pytest.raises(InputError, match=message):
        load_model(path)


def test_existing_file_is_kept_without_force(tmp_path):
    path = written(tmp_path)
    with pytest.raises(HxrdError, match="--force"):
        save_model(path, network(), metadata(), force=False)


def test_outputs_must_match_classes(tmp_path):
    with pytest.raises(InputError, match="5 outputs but 3 classes"):
        save_model(tmp_path / "wrong.safetensors", network(5), metadata())


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": (3.0, 155.0, 0.0)},
        {"grid": (10.0, 5.0, 0.1)},
        {"grid": (3.0, 155.0, 0.07)},
        {"wavelength": -1.0},
        {"temperature": 0.0},
        {"low_confidence": 2.0},
        {"classes": (1, 1, 2)},
        {"classes": (1, 2, 231)},
        {"task": "bravais", "classes": ("cF", "xX")},
    ],
)
def test_impossible_metadata_is_refused(changes):
    with pytest.raises(ValueError, match=r"must|label"):
        metadata(**changes)


def corrupt_files(path):
    """Yield damaged versions of the bytes of a model file."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    yield "empty", b""
    yield "noise", bytes(range(256)) * 40
    yield "header cut", content[: size // 2]
    yield "weights cut", content[:-1000]
    yield "huge header", struct.pack("<Q", 2**60) + content[8:]
    yield "pickle", pickle.dumps({"hxrd": 1})
    yield "not finite", content[:-2000] + b"\xff" * 2000


def test_damaged_files_are_refused_in_one_line(tmp_path):
    path = written(tmp_path)
    damaged = tmp_path / "damaged.safetensors"
    for what, content in corrupt_files(path):
        damaged.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_model(damaged)
        assert "damaged.safetensors" in str(caught.value), what
        assert "\n" not in str(caught.value), what


def test_metadata_are_checked(tmp_path):
    weights = {key: tensor.contiguous() for key, tensor in network().state_dict().items()}
    good = msgspec.to_builtins(metadata())
    cases = {
        "none": None,
        "not json": {"hxrd": "{"},
        "unknown field": {"hxrd": json.dumps(good | {"favourite_colour": "blue"})},
        "missing field": {"hxrd": json.dumps({"name": "x"})},
        "wrong type": {"hxrd": json.dumps(good | {"wavelength": "long"})},
        "impossible": {"hxrd": json.dumps(good | {"temperature": -1})},
    }
    for what, stored in cases.items():
        path = tmp_path / f"{what}.safetensors"
        save_file(weights, path, metadata=stored)
        with pytest.raises(InputError, match="metadata"):
            read_metadata(path)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    text = json.dumps(msgspec.to_builtins(metadata()))
    save_file({"layer.weight": torch.zeros(3)}, path, metadata={"hxrd": text})
    with pytest.raises(InputError, match="do not fit"):
        load_model(path)


def test_models_are_found_by_name(own_folder):
    save_model(own_folder / "mine.safetensors", network(), metadata(name="mine"))
    (own_folder / "broken.safetensors").write_bytes(b"nothing")
    entries = {entry.name: entry for entry in list_models()}
    assert entries["mine"].origin == "local"
    assert entries["mine"].metadata == metadata(name="mine")
    assert entries["broken"].metadata is None
    assert entries["broken"].problem
    assert load_model("mine").path == own_folder / "mine.safetensors"


@pytest.mark.parametrize("name", ["no-such-model", "no/such/file", "missing.safetensors"])
def test_an_unknown_model_is_a_usage_error(name):
    with pytest.raises(UsageError, match="model"):
        load_model(name)


# Released checkpoints -----------------------------------------------------------------------------


def released_state(n_classes, prefix="", half=False, seed=0):
    torch.manual_seed(seed)
    state = ResNet1D(n_classes, variant="released", adversarial_head=True).state_dict()
    return OrderedDict((prefix + key, value.half() if half else value) for key, value in state.items())


def test_a_released_file_gives_two_models(tmp_path):
    path = tmp_path / "SpaceGroupModels.pth"
    sgan, supervised = released_state(144, "module.", half=True), released_state(144, seed=1)
    torch.save({"SGAN": sgan, "Supervised": supervised}, path)
    (first, first_metadata), (second, second_metadata) = import_seed_checkpoint(path)
    assert first_metadata.name == "spacegroupmodels-sgan"
    assert second_metadata.name == "spacegroupmodels-supervised"
    assert torch.equal(first.classifier.weight, sgan["module.classifier.weight"].float())
    assert torch.equal(second.classifier.weight, supervised["classifier.weight"])
    assert first_metadata.classes == SPACE_GROUPS_144
    assert (first_metadata.variant, first_metadata.task) == ("released", "space-group")
    assert (first_metadata.n_points, first_metadata.wavelength) == (3041, 2.0775)
    assert first_metadata.input_offset == 1e-3
    assert first_metadata.provenance["instrument"] == "paper"


def test_one_of_the_two_can_be_taken(tmp_path):
    path = tmp_path / "models.pth"
    torch.save({"SGAN": released_state(14), "Supervised": released_state(14, seed=1)}, path)
    ((model, stored),) = import_seed_checkpoint(path, name="lattices", which="supervised")
    assert stored.name == "lattices"
    assert torch.equal(model.classifier.weight, released_state(14, seed=1)["classifier.weight"])


def test_a_bare_bravais_state_dict(tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(released_state(14), path)
    ((model, stored),) = import_seed_checkpoint(path)
    assert (stored.name, stored.task, stored.classes) == ("bare", "bravais", BRAVAIS_LATTICES)
    assert stored.grid == (2.95, 155.0, 0.05)
    assert stored.n_points == 3042
    save_model(tmp_path / "bare.safetensors", model, stored)
    assert load_model(tmp_path / "bare.safetensors").metadata == stored


def test_a_model_that_is_not_held_is_a_usage_error(tmp_path):
    path = tmp_path / "one.pth"
    torch.save({"SGAN": released_state(14)}, path)
    with pytest.raises(UsageError, match="Supervised"):
        import_seed_checkpoint(path, which="supervised")
    with pytest.raises(UsageError, match="does not exist"):
        import_seed_checkpoint(tmp_path / "nowhere.pth")


class Trap:
    """Its unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    path, evidence = tmp_path / "trap.pth", tmp_path / "evidence"
    torch.save({"SGAN": Trap(evidence)}, path)
    with pytest.raises(InputError, match="never run"):
        import_seed_checkpoint(path)
    path.write_bytes(pickle.dumps(Trap(evidence)))
    with pytest.raises(InputError, match="never run"):
        import_seed_checkpoint(path)
    assert not evidence.exists()


def test_unusable_checkpoints_are_refused_in_one_line(tmp_path):
    good = tmp_path / "good.pth"
    torch.save(released_state(14), good)
    content = good.read_bytes()
    path = tmp_path / "bad.pth"
    for damaged in (b"", b"PK\x03\x04 no zip", bytes(range(256)) * 9, content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError) as caught:
            import_seed_checkpoint(path)
        assert "\n" not in str(caught.value)
    for held in (torch.zeros(3), {}, {"SGAN": 3}, {"epoch": 3}, released_state(17), {"a": torch.zeros(2)}):
        torch.save(held, path)
        with pytest.raises(InputError, match=r"bad\.pth"):
            import_seed_checkpoint(path)
    with pytest.raises(InputError, match="folder"):
        import_seed_checkpoint(tmp_path)
