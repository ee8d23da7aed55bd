"""Result files: formats, metadata, interruption and resume."""

import csv
import dataclasses
import json

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from classified import make_archive, make_model, make_patterns, random_logits, table_of

from hxrd.classify.backends import choose_backends
from hxrd.classify.backends.native import NativeBackend
from hxrd.classify.engine import Engine
from hxrd.classify.inputs import Concatenation, open_inputs
from hxrd.classify.labels import Labels
from hxrd.classify.output import ResultStore
from hxrd.classify.results import Columns
from hxrd.classify.run import Classification, classify_to_file
from hxrd.errors import HxrdError, InputError
from hxrd.models.registry import load_model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


def plan(patterns: Concatenation, loaded, **changes):
    settings = {"topk": 3, "task": "all", "logits": False} | changes
    made = Columns(loaded.metadata, Labels.of_model(loaded.metadata), **settings)
    engine = Engine.of(loaded, choose_backends(loaded, "cpu", n_patterns=1), made, 1)
    return Classification(patterns, engine, made, 0, patterns.n_patterns, "hxrd classify a.zarr")


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

    class DyingBackend(NativeBackend):
        def logits(self, x):
            if len(x) < 512:
                raise Killed
            return super().logits(x)

    dying = dataclasses.replace(
        run, engine=dataclasses.replace(run.engine, backends=[DyingBackend(loaded, n_patterns=1)])
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
    store.append(table_of(run.columns, random_logits(10)))
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
    table = table_of(run.columns, random_logits(10))
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
