"""`hxrd generate`: what it writes, how it is rebuilt and finished, and what it refuses."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from hxrd.archive import open_archive
from hxrd.cli.generate import generate as generate_command
from hxrd.cli.main import main
from hxrd.crystal.symmetry import SPACE_GROUPS_144, find_symmetry
from hxrd.crystal.synthetic import smallest_distance
from hxrd.simulate.template_source import TemplateSource
from hxrd.sources import open_sources
from hxrd.sources.jsonl import JsonlSource

QUICK = ("--two-theta", "10", "90", "0.1")


def generate(*arguments: object) -> int:
    return main(["generate", *map(str, arguments), *QUICK])


def test_each_group_takes_its_turn_and_each_pattern_is_good(tmp_path: Path) -> None:
    output = tmp_path / "new.zarr"
    assert generate(12, "-o", output, "--groups", "62,194,225", "--seed", 3) == 0
    archive = open_archive(output)
    np.testing.assert_array_equal(archive.space_group, [62, 194, 225] * 4)
    assert list(archive.source_id)[:2] == ["syn-62-3-0", "syn-194-3-1"]
    assert np.all(archive.status == 1)
    np.testing.assert_allclose(archive.read(0, 12).max(axis=1), 1, rtol=1e-6)


def test_the_crystals_are_written_and_simulate_to_the_same_patterns(tmp_path: Path) -> None:
    output, table = tmp_path / "new.zarr", tmp_path / "new.jsonl.gz"
    assert generate(20, "-o", output, "--crystals", table, "--groups", "144") == 0
    archive = open_archive(output)
    assert set(archive.space_group) <= set(SPACE_GROUPS_144)
    crystals = JsonlSource(table)
    assert list(crystals.identifiers()) == list(archive.source_id)
    for identifier, group in zip(archive.source_id, archive.space_group, strict=True):
        assert find_symmetry(crystals.get(identifier)).space_group == group
    names = tmp_path / "names.txt"
    names.write_text("\n".join(archive.source_id))
    for source in ("synthetic", f"jsonl:{table}"):
        again = tmp_path / f"{source[:5]}.zarr"
        assert main(["simulate", str(names), "-o", str(again), "--source", source, *QUICK]) == 0
        difference = np.abs(open_archive(again).read(0, 20) - archive.read(0, 20)).max()
        assert difference < (1e-7 if source == "synthetic" else 2e-3)  # the table rounds B


def test_a_finished_run_is_left_alone_and_another_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "new.zarr"
    assert generate(4, "-o", output) == 0
    before = open_archive(output).read(0, 4)
    assert generate(4, "-o", output) == 1
    assert generate(4, "-o", output, "--resume") == 0
    assert generate(4, "-o", output, "--resume", "--seed", 1) == 1
    np.testing.assert_array_equal(open_archive(output).read(0, 4), before)
    assert generate(4, "-o", output, "--force", "--seed", 1) == 0
    assert next(iter(open_archive(output).source_id)) == "syn-1-1-0"


def test_dry_run_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new.zarr"
    assert generate(1000, "-o", output, "--crystals", tmp_path / "new.jsonl", "--dry-run") == 0
    assert "1000" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_known_crystals_are_varied(tmp_path: Path) -> None:
    names, output = tmp_path / "names.txt", tmp_path / "varied.zarr"
    labels = [open_sources().sources[0].identifiers().__next__(), "A_cF4_225_a"]  # type: ignore[attr-defined]
    names.write_text("\n".join(labels))
    assert generate(6, "-o", output, "--templates", names, "--source", "prototypes") == 0
    archive = open_archive(output)
    assert list(archive.source_id) == [f"{labels[number % 2]}~{number}" for number in range(6)]
    assert list(archive.space_group)[1::2] == [225] * 3
    assert len(np.unique(archive.read(0, 6), axis=0)) == 6


def test_variations_keep_their_group_and_depend_on_seed_and_number() -> None:
    chain = open_sources(["prototypes"])
    labels = list(chain.sources[0].identifiers())[::12]  # type: ignore[attr-defined]
    source = TemplateSource(labels, chain, seed=1)
    names = source.identifiers(60).read(0, 60)
    crystals = source.get_many(names)
    for crystal in crystals:
        assert find_symmetry(crystal).space_group == crystal.space_group
    again = TemplateSource(labels, chain, seed=1).get(names[37])
    np.testing.assert_array_equal(again.positions, crystals[37].positions)
    np.testing.assert_array_equal(again.cell, crystals[37].cell)
    other = TemplateSource(labels, chain, seed=2).get(names[37])
    assert not np.array_equal(other.cell, again.cell)


def test_variations_keep_their_atoms_apart() -> None:
    chain = open_sources(["prototypes"])
    labels = ["AB_cF8_225_a_b", "ABC3_cP5_221_a_b_c", "A_cF4_225_a", "A2BC4_cF56_227_d_a_e"]
    known = set(chain.sources[0].identifiers())  # type: ignore[attr-defined]
    source = TemplateSource([label for label in labels if label in known], chain, seed=9)
    exchanged = set()
    for crystal in source.get_many(source.identifiers(80).read(0, 80)):
        basis = np.linalg.cholesky(crystal.metric)
        for (one, other), distance in distances(crystal.positions, crystal.species, basis).items():
            assert distance >= smallest_distance(one, other) * (1 - 1e-6)
        exchanged.add(tuple(sorted(set(crystal.species))))
    assert len(exchanged) > 20


def distances(
    positions: np.ndarray, species: tuple[str, ...], basis: np.ndarray
) -> dict[tuple[str, str], float]:
    """Shortest distance of each pair of elements, by brute force."""
    shifts = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    found: dict[tuple[str, str], float] = {}
    for position, one in zip(positions, species, strict=True):
        lengths = np.linalg.norm((positions - position + shifts) @ basis, axis=2)
        lengths[lengths < 1e-6] = np.inf
        for other, length in zip(species, lengths.min(axis=0), strict=True):
            found[(one, other)] = min(found.get((one, other), np.inf), float(length))
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["0", "-o", "x.zarr"], 2, "N"),
        (["3"], 2, "--output"),
        (["3", "-o", "x.zarr", "--groups", "231"], 2, "neither 144, 230 nor a list"),
        (["3", "-o", "x.zarr", "--groups", "1-2-3"], 2, "neither 144, 230 nor a list"),
        (["3", "-o", "x.zarr", "--groups", "9-3"], 2, "neither 144, 230 nor a list"),
        (["3", "-o", "x.zarr", "--source", "prototypes"], 2, "--templates"),
        (["3", "-o", "x.zarr", "--templates", "none.txt"], 2, "none.txt"),
        (["3", "-o", "x.zarr", "--templates", "none.txt", "--groups", "144"], 2, "leave out"),
        (["3", "-o", "x.zarr", "--crystals", "table.csv"], 2, ".jsonl"),
        (["3", "-o", "x.zarr", "--groups", "89", "--weights", "training"], 2, "even weights"),
        (["3", "-o", "x.zarr", "--force", "--resume"], 2, "one of them"),
        (["3", "-o", "x.zarr", "--seed", str(2**64)], 2, "the largest is"),
        ([str(10**23), "-o", "x.zarr", "--dry-run"], 2, "'N'"),
        (["3", "-o", "x.zarr", "--templates", "unknown.txt", "--source", "prototypes"], 1, "no template can"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("unknown.txt").write_text("neither\nnor\n")
    assert main(["generate", *arguments]) == code
    told = capsys.readouterr().err
    assert message in told
    assert [path.name for path in tmp_path.iterdir()] == ["unknown.txt"]


def test_an_existing_table_is_not_overwritten(tmp_path: Path) -> None:
    table = tmp_path / "crystals.jsonl"
    table.write_text("mine\n")
    assert generate(3, "-o", tmp_path / "new.zarr", "--crystals", table) == 1
    assert table.read_text() == "mine\n"
    assert not (tmp_path / "new.zarr").exists()


def test_resuming_overwrites_no_table_of_other_crystals(tmp_path: Path) -> None:
    archive, table, others = tmp_path / "new.zarr", tmp_path / "own.jsonl.gz", tmp_path / "others.jsonl.gz"
    assert generate(3, "-o", archive, "--crystals", table) == 0
    assert generate(3, "-o", tmp_path / "others.zarr", "--crystals", others, "--seed", 1) == 0
    before = others.read_bytes()
    assert generate(3, "-o", archive, "--crystals", others, "--resume") == 1
    assert others.read_bytes() == before
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(before[:50])
    assert generate(3, "-o", archive, "--crystals", broken, "--resume") == 1
    assert broken.read_bytes() == before[:50]
    assert generate(3, "-o", archive, "--crystals", table, "--resume") == 0
    with gzip.open(table, "rt") as stream:
        assert sum(1 for _ in stream) == 3


def test_templates_that_cannot_be_used_are_named_and_the_rest_is_varied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, output = tmp_path / "names.txt", tmp_path / "varied.zarr"
    names.write_text("\n".join(["A_cF4_225_a", *(f"unknown{number}" for number in range(12))]))
    assert generate(2, "-o", output, "--templates", names, "--source", "prototypes") == 3
    assert list(open_archive(output).source_id) == ["A_cF4_225_a~0", "A_cF4_225_a~1"]
    told = capsys.readouterr().err
    assert "left out template unknown9: unknown to prototypes" in told
    assert "and 2 more templates" in told


def test_files_of_long_patterns_are_bounded(tmp_path: Path) -> None:
    context = generate_command.make_context("generate", ["3", "-o", str(tmp_path / "x.zarr")])
    assert context.params["shard_size"] is None  # the archive decides, by the length of a pattern
