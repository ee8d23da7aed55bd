"""From patterns to rows: columns, twins, sums, flags, order, resume, preview."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from classified import (
    CLASSES,
    GRID,
    SIMULATED,
    TWO_THETA,
    WAVELENGTH,
    make_archive,
    make_model,
    make_patterns,
    write_xye,
)

from hxrd.classify.choice import choose_model
from hxrd.classify.engine import Predictor, classify_patterns
from hxrd.classify.inputs import Concatenation, open_inputs
from hxrd.classify.labels import Labels, probabilities_from_logits
from hxrd.classify.output import ResultStore
from hxrd.classify.preview import Summary, first_rows
from hxrd.classify.results import ClassifiedBatch, Columns
from hxrd.classify.run import Classification, classify_to_file
from hxrd.crystal.symmetry import (
    SPACE_GROUPS_144,
    bravais_lattice,
    crystal_system,
    extinction_group,
    merged_number,
    merged_symbol,
)
from hxrd.errors import HxrdError, InputError, UsageError
from hxrd.models.registry import ModelEntry, ModelMetadata, load_model, read_metadata

N_CLASSES = len(CLASSES)


def metadata(**changes):
    fields = {
        "name": "tiny",
        "variant": "paper",
        "task": "space-group",
        "classes": CLASSES,
        "grid": GRID,
        "probe": "neutron",
        "wavelength": WAVELENGTH,
    }
    return ModelMetadata(**fields | changes)


def columns(topk=5, task="all", logits=False, **changes):
    described = metadata(**changes)
    return Columns(described, Labels.of_model(described), topk, task, logits)


def batch_of(logits, flag=None, space_group=None, first=0):
    n = len(logits)
    return ClassifiedBatch(
        first,
        [f"entry {row}" for row in range(n)],
        flag or [""] * n,
        [""] * n,
        np.zeros(n, np.int16) if space_group is None else np.array(space_group, np.int16),
        np.asarray(logits, np.float32),
    )


def random_logits(n=50, n_classes=N_CLASSES, seed=0):
    return 3 * np.random.default_rng(seed).normal(size=(n, n_classes)).astype(np.float32)


# Columns ------------------------------------------------------------------------------------------


def test_the_columns_of_the_contract():
    table = columns(topk=2, logits=True).table(batch_of(random_logits(3)))
    assert table.column_names == [
        "pattern",
        "source_id",
        "space_group_1",
        "space_group_2",
        "symbol_1",
        "symbol_2",
        "probability_1",
        "probability_2",
        "extinction_group",
        "extinction_probability",
        "bravais_lattice",
        "bravais_probability",
        "crystal_system",
        "flag",
        "logits",
    ]
    assert table.schema.field("pattern").type == pa.int64()
    assert table["flag"].to_pylist() == ["", "", ""]
    assert np.array_equal(table["logits"].to_pylist(), random_logits(3))


@pytest.mark.parametrize("classes", [CLASSES, SPACE_GROUPS_144, tuple(range(1, 231))])
def test_rows_equal_a_plain_recount(classes):
    logits = random_logits(20, len(classes))
    table = columns(topk=4, classes=classes, temperature=1.7).table(batch_of(logits))
    for row, values in enumerate(table.to_pylist()):
        exponentials = np.exp(logits[row].astype(float) / 1.7)
        probability = dict(zip(classes, exponentials / exponentials.sum(), strict=True))

        def best(name_of, probability=probability):
            sums = {}
            for number, value in probability.items():
                sums[name_of(number)] = sums.get(name_of(number), 0) + value
            return sorted(sums.items(), key=lambda item: -item[1])

        for rank, (number, value) in enumerate(best(merged_number)[:4], start=1):
            assert values[f"space_group_{rank}"] == number
            assert values[f"symbol_{rank}"] == merged_symbol(number)
            assert values[f"probability_{rank}"] == pytest.approx(value, rel=1e-6)
        name, value = best(extinction_group)[0]
        assert values["extinction_group"] == name
        assert values["extinction_probability"] == pytest.approx(value, rel=1e-6)
        name, value = best(bravais_lattice)[0]
        assert values["bravais_lattice"] == name
        assert values["bravais_probability"] == pytest.approx(value, rel=1e-6)
        assert values["crystal_system"] == best(crystal_system)[0][0]


def test_twins_are_one_entry_with_both_symbols():
    logits = np.full((1, len(CLASSES)), -20.0)
    logits[0, CLASSES.index(92)], logits[0, CLASSES.index(96)] = 1.0, 1.2
    row = columns(topk=len(CLASSES)).table(batch_of(logits)).to_pylist()[0]
    assert row["space_group_1"] == 92
    assert row["symbol_1"] == "P4_1 2_1 2 | P4_3 2_1 2"
    assert row["probability_1"] == pytest.approx(1, abs=1e-6)
    ranked = [row[f"space_group_{rank}"] for rank in range(1, len(CLASSES) + 1)]
    assert 96 not in ranked
    assert 154 not in ranked
    assert ranked[-2:] == [None, None]  # two pairs leave two places over


def test_a_twin_that_is_no_class_is_still_named():
    row = columns(topk=1, classes=(144, 225)).table(batch_of([[5.0, 0.0]])).to_pylist()[0]
    assert (row["space_group_1"], row["symbol_1"]) == (144, "P3_1 | P3_2")


def test_probabilities_sum_to_one_over_all_entries():
    table = columns(topk=len(CLASSES)).table(batch_of(random_logits()))
    total = sum(np.nan_to_num(table[f"probability_{rank}"].to_numpy()) for rank in range(1, len(CLASSES) + 1))
    assert np.allclose(total, 1, atol=1e-6)


def test_flagged_rows_have_empty_predictions():
    logits = random_logits(3)
    logits[1] = np.nan
    table = columns(topk=2, logits=True).table(batch_of(logits, flag=["", "not-finite", ""]))
    rows = table.to_pylist()
    filled = {name for name, value in rows[1].items() if value is not None}
    assert filled == {"pattern", "source_id", "flag"}
    assert rows[1]["flag"] == "not-finite"
    assert None not in rows[0].values()


def test_low_confidence_is_flagged_but_predicted():
    logits = np.zeros((2, len(CLASSES)))
    logits[1, 0] = 50
    rows = columns(low_confidence=0.5).table(batch_of(logits)).to_pylist()
    assert [row["flag"] for row in rows] == ["low-confidence", ""]
    assert rows[0]["space_group_1"] is not None


def test_tasks_choose_the_columns():
    batch = batch_of(random_logits(2))
    bravais = columns(task="bravais").table(batch).column_names
    groups = columns(task="space-group", topk=1).table(batch).column_names
    assert bravais == [
        "pattern",
        "source_id",
        "bravais_lattice",
        "bravais_probability",
        "crystal_system",
        "flag",
    ]
    assert "symbol_1" in groups
    assert "bravais_lattice" not in groups


def test_a_lattice_model_fills_the_lattice_columns_only():
    described = metadata(task="bravais", classes=("cF", "hP", "aP"))
    made = Columns(described, Labels.of_model(described), topk=2)
    row = made.table(batch_of([[0.0, 3.0, 0.0]])).to_pylist()[0]
    assert row["bravais_lattice"] == "hP"
    assert row["bravais_probability"] == pytest.approx(np.e**3 / (np.e**3 + 2), rel=1e-5)
    others = set(row) - {"pattern", "source_id", "bravais_lattice", "bravais_probability", "flag"}
    assert all(row[name] is None for name in others)


# Engine -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


def classified(patterns, loaded, batch_size=8, **span):
    predictor = Predictor(loaded, "cpu", "fp32", batch_size)
    return list(classify_patterns(patterns, loaded, predictor, **span))


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
    whole = np.concatenate([batch.logits for batch in classified(patterns, loaded)])
    for start, stop in [(0, 1), (13, 14), (5, 61), (64, 70)]:
        batches = classified(patterns, loaded, start=start, stop=stop)
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


def test_no_such_device():
    import torch

    from hxrd.classify.engine import resolve_device

    count = torch.cuda.device_count()
    with pytest.raises(HxrdError, match="no device"):
        resolve_device(f"cuda:{count}")
    assert resolve_device("cpu").type == "cpu"


# Choice of the model ------------------------------------------------------------------------------


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


# Files --------------------------------------------------------------------------------------------


def plan(patterns: Concatenation, loaded, **changes):
    settings = {"topk": 3, "task": "all", "logits": False} | changes
    made = Columns(loaded.metadata, Labels.of_model(loaded.metadata), **settings)
    predictor = Predictor(loaded, "cpu", "fp32", 8)
    return Classification(patterns, loaded, predictor, made, 0, patterns.n_patterns, "hxrd classify a.zarr")


@pytest.fixture
def patterns(tmp_path):
    return open_inputs([make_archive(tmp_path / "a.zarr", make_patterns(30), rejected=(4,))])


def test_the_three_formats_hold_the_same_rows(tmp_path, patterns, loaded):
    run = plan(patterns, loaded, logits=True)
    paths = {suffix: tmp_path / f"out{suffix}" for suffix in (".parquet", ".csv", ".jsonl")}
    for path in paths.values():
        classify_to_file(run, path)
    rows = pyarrow.parquet.read_table(paths[".parquet"]).to_pylist()
    lines = [json.loads(line) for line in paths[".jsonl"].read_text().splitlines()]
    with open(paths[".csv"], newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(rows) == len(lines) == len(cells) == 30
    for row, line, cell in zip(rows, lines, cells, strict=True):
        assert list(row) == list(line) == list(cell)
        for name, value in row.items():
            if value is None:
                assert line[name] is None
                assert cell[name] == ""
            elif name == "logits":
                assert np.allclose(json.loads(cell[name]), value)
                assert np.allclose(line[name], value)
            elif isinstance(value, float):
                assert np.float32(line[name]) == np.float32(cell[name]) == np.float32(value)
            else:
                assert line[name] == value
                assert cell[name] == str(value)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.zarr", *(path.name for path in paths.values())}


def test_the_parquet_file_says_where_it_comes_from(tmp_path, patterns, loaded):
    classify_to_file(plan(patterns, loaded), tmp_path / "out.parquet")
    stored = pyarrow.parquet.read_schema(tmp_path / "out.parquet").metadata
    metadata = {key.decode(): value.decode() for key, value in stored.items()}
    assert metadata["model_name"] == "tiny"
    assert metadata["model_sha256"] == loaded.sha256
    assert metadata["command"] == "hxrd classify a.zarr"
    assert (metadata["probe"], metadata["wavelength"]) == ("neutron", "2.0775")
    assert {"hxrd_version", "time"} <= metadata.keys()


class Killed(BaseException):
    pass


def test_a_resumed_run_gives_the_same_rows(tmp_path, loaded, monkeypatch):
    archive = make_archive(tmp_path / "a.zarr", make_patterns(1400), rejected=(3,), shard_size=256)
    run = plan(open_inputs([archive]), loaded)
    classify_to_file(run, tmp_path / "whole.parquet")
    whole = pyarrow.parquet.read_table(tmp_path / "whole.parquet")

    class DyingPredictor(Predictor):
        def __call__(self, prepared, first=0):
            if first >= 1024:
                raise Killed
            return super().__call__(prepared, first)

    dying = Classification(
        run.patterns, loaded, DyingPredictor(loaded, "cpu", "fp32", 8), run.columns, 0, 1400, run.command
    )
    output = tmp_path / "cut.parquet"
    with pytest.raises(Killed):
        classify_to_file(dying, output, flush_seconds=0)
    assert not output.exists()
    done = []
    summary = classify_to_file(run, output, resume=True, advance=done.append)
    assert done[0] == 1024
    assert sum(done) == 1400
    assert pyarrow.parquet.read_table(output).equals(whole)
    assert (summary.n_patterns, summary.n_classified) == (1400, 1399)
    assert not (tmp_path / "cut.parquet.part.d").exists()


def interrupted(path, run):
    """Leave the parts of a run that was killed after ten patterns."""
    store = ResultStore(path, run.description(), run.columns.schema)
    store.append(run.columns.table(batch_of(random_logits(10))))
    store.close()


def test_another_run_is_not_resumed(tmp_path, patterns, loaded):
    output = tmp_path / "out.csv"
    interrupted(output, plan(patterns, loaded))
    with pytest.raises(HxrdError, match="other inputs, model or options"):
        classify_to_file(plan(patterns, loaded, topk=4), output, resume=True)
    summary = classify_to_file(plan(patterns, loaded, topk=4), output)  # afresh
    assert summary.n_patterns == 30


def test_resume_with_nothing_to_resume_starts_afresh(tmp_path, patterns, loaded):
    summary = classify_to_file(plan(patterns, loaded), tmp_path / "out.csv", resume=True)
    assert summary.n_patterns == 30


def test_a_part_after_a_gap_is_done_again(tmp_path, patterns, loaded):
    run, output = plan(patterns, loaded), tmp_path / "out.parquet"
    store = ResultStore(output, run.description(), run.columns.schema)
    table = run.columns.table(batch_of(random_logits(10)))
    store.append(table)
    store.append(table)
    store.close()
    (tmp_path / "out.parquet.part.d" / "rows-000000000000-000000000010.parquet").unlink()
    store = ResultStore(output, run.description(), run.columns.schema, resume=True)
    assert store.next_pattern == 0
    store.discard()


def test_one_writer_at_a_time(tmp_path, patterns, loaded):
    run, output = plan(patterns, loaded), tmp_path / "out.parquet"
    store = ResultStore(output, run.description(), run.columns.schema)
    with pytest.raises(HxrdError, match="another process"):
        ResultStore(output, run.description(), run.columns.schema)
    store.discard()


def test_nothing_classified_leaves_nothing(tmp_path, loaded):
    archive = make_archive(tmp_path / "a.zarr", make_patterns(3), rejected=(0, 1, 2))
    with pytest.raises(InputError, match="none of the 3"):
        classify_to_file(plan(open_inputs([archive]), loaded), tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


# For people ---------------------------------------------------------------------------------------


def test_summary_counts_truths_with_twins_merged():
    logits = np.full((4, len(CLASSES)), -9.0)
    for row, number in enumerate((92, 225, 227, 2)):
        logits[row, CLASSES.index(number)] = 9
    logits[2, CLASSES.index(229)] = 5
    made = columns(topk=2)
    batch = batch_of(logits, flag=["", "", "", "flat"], space_group=[96, 225, 229, 2])
    summary = Summary(made)
    summary.update(made.table(batch), batch.space_group)
    assert (summary.n_patterns, summary.n_classified, summary.n_known) == (4, 3, 3)
    assert (summary.n_first, summary.n_among, summary.n_lattice) == (2, 3, 2)
    assert "first 66.7%" in summary.line()
    assert "1 flat" in summary.line()


def test_the_table_marks_the_truth():
    logits = np.full((3, len(CLASSES)), -9.0)
    logits[0, CLASSES.index(225)] = logits[1, CLASSES.index(225)] = 9
    logits[1, CLASSES.index(166)] = 5
    truth = np.array([225, 166, 0], np.int16)
    made = columns(topk=2)
    lines = first_rows(made.table(batch_of(logits)), truth, made, width=160).splitlines()
    assert len(lines) == 4
    assert "✓1 Fm-3m" in lines[1]
    assert "✓2 R-3m" in lines[2]
    assert "✓" not in lines[3]
    assert "cF 1.00" in lines[1]


def test_a_narrow_terminal_wraps_candidates_only():
    made = columns(topk=5)
    table = made.table(batch_of(random_logits(2)))
    text = first_rows(table, np.zeros(2, np.int16), made, width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert len(text.splitlines()) > 3
    joined = " ".join(text.split())
    for rank in range(1, 6):
        assert table[f"symbol_{rank}"][0].as_py() in joined
