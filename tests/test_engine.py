"""From patterns to logits: inputs, preparation, order and flags."""

import numpy as np
import pytest
from classified import TWO_THETA, WAVELENGTH, make_archive, make_model, make_patterns, write_xye

from hxrd.classify.backends import choose_backends
from hxrd.classify.engine import Engine
from hxrd.classify.inputs import open_inputs
from hxrd.classify.labels import Labels, probabilities_from_logits
from hxrd.classify.results import Columns
from hxrd.errors import InputError, UsageError
from hxrd.models.registry import load_model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


SMALL, LARGE = 1, 10**6  # patterns of a job: done in NumPy, and by compiled kernels


def engine_of(loaded, backends=None, batch_size=8, job=SMALL):
    columns = Columns(loaded.metadata, Labels.of_model(loaded.metadata), logits=True)
    backends = backends or choose_backends(loaded, "cpu", batch_size=batch_size, n_patterns=job)
    return Engine.of(loaded, backends, columns, job)


def classified(patterns, loaded, batch_size=8, job=SMALL, **span):
    return list(engine_of(loaded, batch_size=batch_size, job=job).classify(patterns, **span))


def test_an_archive_gives_the_networks_own_logits(tmp_path, loaded):
    import torch

    intensity = make_patterns(70)
    patterns = open_inputs([make_archive(tmp_path / "a.zarr", intensity)])
    batches = classified(patterns, loaded)
    with torch.no_grad():
        expected = loaded.model(torch.from_numpy(intensity)[:, None]).numpy()
    assert np.allclose(np.concatenate([batch.logits for batch in batches]), expected, atol=1e-4)
    assert expected.std(axis=0).min() > 0.01  # patterns differ, so a wrong order would show
    names = [name for batch in batches for name in batch.source_id]
    assert names == [f"crystal {row}" for row in range(70)]


def test_ranges_give_exactly_the_rows_of_the_whole(tmp_path, loaded):
    patterns = open_inputs([make_archive(tmp_path / "a.zarr", make_patterns(70))])
    whole = np.concatenate([batch.logits for batch in classified(patterns, loaded, job=LARGE)])
    for start, stop in [(0, 1), (13, 14), (5, 61), (64, 70)]:
        batches = classified(patterns, loaded, job=LARGE, start=start, stop=stop)
        assert batches[0].first == start
        assert np.array_equal(np.concatenate([batch.logits for batch in batches]), whole[start:stop])


def test_long_runs_come_in_order_and_in_pieces(tmp_path, loaded):
    archive = make_archive(tmp_path / "a.zarr", make_patterns(1100), chunk_size=256, shard_size=512)
    batches = classified(open_inputs([archive]), loaded, batch_size=256)
    assert [batch.first for batch in batches] == [0, 512, 1024]
    assert sum(len(batch) for batch in batches) == 1100


def test_flags_tell_what_is_wrong(tmp_path, loaded):
    intensity = make_patterns(5)
    intensity[1, 7] = np.nan
    intensity[2] = 0.25
    archive = make_archive(tmp_path / "a.zarr", intensity, rejected=(3,))
    (batch,) = classified(open_inputs([archive]), loaded)
    assert batch.flag == ["", "not-finite", "flat", "rejected", ""]
    assert batch.reason[3] == "no scattering length for Ac"
    assert all(bool(flag) == bool(reason) for flag, reason in zip(batch.flag, batch.reason, strict=True))


def test_rows_not_written_yet_are_flagged(tmp_path, loaded):
    archive = make_archive(tmp_path / "a.zarr", make_patterns(40), written=32)
    (batch,) = classified(open_inputs([archive]), loaded)
    assert batch.flag == [""] * 32 + ["rejected"] * 8
    assert "not written yet" in batch.reason[-1]


def test_a_pattern_off_the_range_is_flagged(tmp_path, loaded):
    angles = np.linspace(5, 12, 80)
    file = write_xye(tmp_path / "low.xye", angles, np.exp(-((angles - 9) ** 2)))
    (batch,) = classified(open_inputs([file], probe="neutron", wavelength=WAVELENGTH), loaded)
    assert batch.flag == ["out-of-range"]


def test_a_measured_file_of_another_wavelength_is_rebinned(tmp_path, loaded):
    (pattern,) = make_patterns(1)
    archive = make_archive(tmp_path / "a.zarr", pattern[None])
    stretched = 2 * np.degrees(np.arcsin(np.sin(np.radians(TWO_THETA / 2)) * 1.5 / WAVELENGTH))
    file = write_xye(tmp_path / "short.xye", stretched, 5000 * pattern)
    (known,) = classified(open_inputs([archive]), loaded)
    (measured,) = classified(open_inputs([file], probe="neutron", wavelength=1.5), loaded)
    assert measured.flag == [""]
    first, second = (probabilities_from_logits(batch.logits, 1.0) for batch in (known, measured))
    assert np.abs(first - second).max() < 0.02


def test_scale_does_not_matter(tmp_path, loaded):
    intensity = make_patterns(3)
    one = make_archive(tmp_path / "one.zarr", intensity)
    many = make_archive(tmp_path / "many.zarr", 731 * intensity, normalization="none")
    (first,), (second,) = (classified(open_inputs([path]), loaded) for path in (one, many))
    assert np.allclose(first.logits, second.logits, atol=1e-3)


def test_offset_and_transform_reach_the_network(tmp_path):
    import torch

    intensity = make_patterns(2)
    archive = make_archive(tmp_path / "a.zarr", intensity)
    path = make_model(tmp_path / "root.safetensors", input_transform="sqrt", input_offset=1e-3)
    loaded = load_model(path)
    (batch,) = classified(open_inputs([archive]), loaded)
    with torch.no_grad():
        expected = loaded.model(torch.from_numpy(np.sqrt(intensity) + 1e-3)[:, None]).numpy()
    assert np.allclose(batch.logits, expected, atol=1e-4)


def test_inputs_are_numbered_through(tmp_path, loaded):
    intensity = make_patterns(20)
    archive = make_archive(tmp_path / "a.zarr", intensity[:9])
    file = write_xye(tmp_path / "one.xye", TWO_THETA, intensity[9])
    empty = tmp_path / "empty.xye"
    empty.touch()
    patterns = open_inputs([archive, file, empty, archive], probe="neutron", wavelength=WAVELENGTH)
    assert patterns.n_patterns == 20
    batches = classified(patterns, loaded, start=7)
    names = [name for batch in batches for name in batch.source_id]
    assert names[:4] == ["crystal 7", "crystal 8", str(file), str(empty)]
    assert names[-1] == "crystal 8"
    flags = [flag for batch in batches for flag in batch.flag]
    assert flags == ["", "", "", "rejected"] + [""] * 9


def test_a_corrupt_archive_is_an_error(tmp_path, loaded):
    archive = make_archive(tmp_path / "a.zarr", make_patterns(40))
    files = sorted(path for path in (archive / "intensity" / "c").rglob("*") if path.is_file())
    content = bytearray(files[0].read_bytes())
    content[len(content) // 3] ^= 0xFF
    files[0].write_bytes(content)
    with pytest.raises(InputError, match="corrupt"):
        classified(open_inputs([archive]), loaded)


def test_files_never_get_a_guessed_wavelength_or_probe(tmp_path):
    bare = write_xye(tmp_path / "bare.xye", TWO_THETA, make_patterns(1)[0])
    with pytest.raises(UsageError, match="--wavelength"):
        open_inputs([bare], probe="neutron")
    with pytest.raises(UsageError, match="--probe"):
        open_inputs([bare], wavelength=1.5)
    header = "# wavelength = 1.8857\n# radiation: neutrons\n"
    stated = write_xye(tmp_path / "stated.xye", TWO_THETA, make_patterns(1)[0], header)
    (one,) = open_inputs([stated]).inputs
    assert (one.probe, one.wavelength) == ("neutron", 1.8857)
    (one,) = open_inputs([stated], wavelength=1.5).inputs
    assert one.wavelength == 1.5
