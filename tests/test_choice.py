"""Which bundled model patterns get where the user names none."""

import pytest
from classified import SIMULATED, TWO_THETA, WAVELENGTH, make_archive, make_model, make_patterns, write_xye

from hxrd.classify.choice import choose_model
from hxrd.classify.inputs import open_inputs
from hxrd.errors import UsageError
from hxrd.models.registry import ModelEntry, read_metadata


def entry(tmp_path, name, **changes):
    path = make_model(tmp_path / f"{name}.safetensors", **changes)
    return ModelEntry(name, path, "bundled", read_metadata(path))


def test_clean_simulated_patterns_get_the_clean_model(tmp_path):
    both = [entry(tmp_path, "neutron-clean"), entry(tmp_path, "neutron", preprocessing="background")]
    intensity = make_patterns(2)

    def choice(name, **changes):
        return choose_model(open_inputs([make_archive(tmp_path / name, intensity, **changes)]), both)

    assert choice("clean.zarr") == "neutron-clean"
    assert choice("other.zarr", wavelength=1.54) == "neutron"
    assert choice("counts.zarr", normalization="none") == "neutron"
    other = SIMULATED | {"instrument_settings": SIMULATED["instrument_settings"] | {"caglioti_w": 0.1}}
    assert choice("device.zarr", provenance=other) == "neutron"
    augmented = SIMULATED | {"augmentation": "full"}
    assert choice("augmented.zarr", provenance=augmented) == "neutron"
    assert choice("imported.zarr", provenance={"command": "hxrd import simulate.xy"}) == "neutron"
    assert choice("grid.zarr", two_theta=TWO_THETA + 0.02) == "neutron"
    file = write_xye(tmp_path / "one.xye", TWO_THETA, intensity[0])
    mixed = open_inputs([tmp_path / "clean.zarr", file], probe="neutron", wavelength=WAVELENGTH)
    assert choose_model(mixed, both) == "neutron"
    assert choose_model(mixed, both[:1]) == "neutron-clean"


def test_a_probe_without_a_bundled_model(tmp_path):
    archive = make_archive(tmp_path / "x.zarr", make_patterns(1), probe="xray")
    with pytest.raises(UsageError, match="--model"):
        choose_model(open_inputs([archive]), [entry(tmp_path, "neutron")])


def test_probes_are_not_mixed(tmp_path):
    paths = [
        make_archive(tmp_path / f"{probe}.zarr", make_patterns(1), probe=probe)
        for probe in ("xray", "neutron")
    ]
    with pytest.raises(UsageError, match="apart"):
        choose_model(open_inputs(paths), [entry(tmp_path, "neutron")])
