"""Sources: identifiers become crystals, or named reasons why not."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pytest

from hxrd.crystal.symmetry import SPACE_GROUPS_144, bravais_lattice, enantiomorph
from hxrd.errors import InputError, Rejected, UsageError
from hxrd.sources import UnknownIdentifier, chain, default_specs, icsd_hint, open_sources
from hxrd.sources.cif_tree import CifTree
from hxrd.sources.jsonl import JsonlSource
from hxrd.sources.prototypes import PrototypeSource, _records

EXAMPLE = Path(__file__).resolve().parent.parent / "scripts" / "examples" / "prototype_ids.txt"
ROCK_SALT = """data_{name}
{code}
_cell_length_a {a}
_cell_length_b {a}
_cell_length_c {a}
_space_group_name_H-M_alt 'F m -3 m'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na1 Na1+ 0 0 0
Cl1 Cl1- 0.5 0.5 0.5
"""


def resolve(source, identifier):
    """Return the crystal of an identifier, or the reason why there is none."""
    try:
        return source.get(identifier)
    except Rejected as rejection:
        return rejection


def _cif(folder, name, a=5.64, block="x", code=""):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ROCK_SALT.format(name=block, a=a, code=code).encode()
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)


def _record(identifier="salt", **changes):
    sites = [["Na", 0, 0, 0, 1.0, 0.5], ["Cl", 0.5, 0.5, 0.5, 1.0, None]]
    return {"id": identifier, "cell": [4, 4, 4, 90, 90, 90], "sites": sites, "space_group": 221} | changes


def _table(path, lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def no_settings(monkeypatch, tmp_path):
    """Neither environment variable nor configuration file; returns where the file would be."""
    monkeypatch.delenv("HXRD_SOURCES", raising=False)
    monkeypatch.setattr(chain, "config_path", lambda: tmp_path / "config.toml")
    return tmp_path / "config.toml"


@pytest.mark.parametrize("name", ["table.jsonl", "table.jsonl.gz"])
def test_jsonl_record_becomes_a_crystal(tmp_path, name):
    source = JsonlSource(_table(tmp_path / name, [_record(extra="ignored")]))
    crystal = source.get("salt")
    assert crystal.species == ("Na", "Cl")
    assert crystal.b_iso.tolist() == [0.5, 0.0]
    assert crystal.space_group == 221
    assert crystal.cell.tolist() == [4, 4, 4, 90, 90, 90]
    assert source.describe() == f"jsonl:{tmp_path / name}"
    assert list(source.identifiers()) == ["salt"]


def test_jsonl_first_of_a_repeated_identifier_wins(tmp_path):
    source = JsonlSource(_table(tmp_path / "t.jsonl", [_record(), _record(cell=[9, 9, 9, 90, 90, 90])]))
    assert len(source) == 1
    assert source.get("salt").cell[0] == 4


def test_jsonl_bad_lines_are_named_and_left_out(tmp_path, caplog):
    source = JsonlSource(_table(tmp_path / "t.jsonl", ["{broken", "", _record(), '{"name": "no id"}']))
    assert [number for number, _ in source.bad_lines] == [1, 4]
    assert "t.jsonl line 1" in source.bad_lines[0][1]
    assert "left out 2 lines" in caplog.text
    assert source.get("salt").space_group == 221


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sites": [["Cx", 0, 0, 0, 1, None]]}, "unknown element 'Cx'"),
        ({"sites": [["Na", 0, 0, 0, 1.2, None]]}, "occupancy 1.2"),
        ({"sites": [["Na", 0, 0, 0, 1, None], ["K", 0, 0, 0.01, 1, None]]}, "overlapping"),
        ({"sites": []}, "no atoms"),
        ({"sites": [["Na", 0, 0]]}, "not a crystal record"),
        ({"cell": [4, 4, 4, 90, 90]}, "not a crystal record"),
        ({"cell": [4, 4, 4, 0, 90, 90]}, "absurd cell"),
        ({"space_group": 231}, "space group 231"),
    ],
)
def test_jsonl_rejects_by_reason(tmp_path, changes, reason):
    source = JsonlSource(_table(tmp_path / "t.jsonl", [_record(**changes)]))
    with pytest.raises(Rejected, match=reason):
        source.get("salt")
    ((record, rejection),) = source.iterate()
    assert record["id"] == "salt"
    assert isinstance(rejection, Rejected)


def test_jsonl_unknown_identifier(tmp_path):
    with pytest.raises(UnknownIdentifier):
        JsonlSource(_table(tmp_path / "t.jsonl", [_record()])).get("pepper")


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"hello\n", b"\x1f\x8b cut off", gzip.compress(b"x" * 999)[:20]]
)
def test_jsonl_without_a_record_is_an_input_error(tmp_path, content):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.jsonl"):
        JsonlSource(path)


def test_tree_finds_a_file_with_and_without_prefix(tmp_path):
    _cif(tmp_path, "icsd_000123.cif", a=5.1)
    _cif(tmp_path, "deep/er/45.cif.gz", a=5.2)
    _cif(tmp_path, "ICSD_CollCode678.CIF", a=5.3)
    _cif(tmp_path, "mp-149.cif", a=5.4)
    tree = CifTree(tmp_path)
    for identifier in ("icsd_000123", "icsd_000123.cif", "000123", "123", "icsd_123"):
        assert tree.get(identifier).cell[0] == 5.1
    for identifier in ("45", "icsd_45", "deep/er/45", "deep/er/45.cif.gz"):
        assert tree.get(identifier).cell[0] == 5.2
    assert tree.get("678").cell[0] == 5.3
    assert tree.get("mp-149").cell[0] == 5.4
    with pytest.raises(UnknownIdentifier):
        tree.get("149")
    assert len(tree) == 4


@pytest.mark.parametrize(
    "tag",
    [
        "_database_code_ICSD 777",
        "_cod_database_code 777",
        "_DATABASE_CODE_icsd '777'",
        "_database_code_depnum_ccdc_archive 'CCDC 777'",
    ],
)
def test_tree_finds_a_collection_code(tmp_path, tag):
    _cif(tmp_path, "some_name.cif", code=tag)
    assert CifTree(tmp_path).get("777").space_group == 225


def test_tree_prefers_the_exact_name(tmp_path):
    _cif(tmp_path, "a/icsd_7.cif", a=5.1)
    _cif(tmp_path, "b/7.cif", a=5.2)
    _cif(tmp_path, "c/other.cif", a=5.3, code="_database_code_ICSD 7")
    assert CifTree(tmp_path).get("7").cell[0] == 5.2


def test_tree_picks_the_block_of_that_code(tmp_path):
    first = ROCK_SALT.format(name="one", a=5.1, code="_database_code_ICSD 11")
    second = ROCK_SALT.format(name="two", a=5.2, code="_database_code_ICSD 22")
    (tmp_path / "both.cif").write_text(first + second)
    tree = CifTree(tmp_path)
    assert [tree.get(name).cell[0] for name in ("11", "22", "both")] == [5.1, 5.2, 5.1]


def test_tree_rejects_an_unreadable_file_and_goes_on(tmp_path):
    (tmp_path / "1.cif").write_bytes(b"\0\1\2binary")
    (tmp_path / "2.cif").write_text("")
    _cif(tmp_path, "3.cif")
    sources = open_sources([f"cif:{tmp_path}"])
    assert isinstance(resolve(sources, "1"), Rejected)
    assert "empty" in str(resolve(sources, "2"))
    assert resolve(sources, "3").space_group == 225
    assert isinstance(resolve(sources, "4"), UnknownIdentifier)


def test_every_prototype_is_a_crystal_of_its_label():
    source = PrototypeSource()
    assert len(source) > 250
    differing = []
    for identifier in source.identifiers():
        crystal = source.get(identifier)
        number = int(identifier.split("_")[2])
        if crystal.space_group not in (number, enantiomorph(number)):
            differing.append(identifier)
    assert differing == ["AB3_tI16_140_b_ah", "A2B_oC12_38_de_ab"]


def test_repeated_labels_are_numbered():
    source = PrototypeSource()
    assert _records()["ABC3_hR10_167_a_b_e#2"]["tags"]["mineral"] == "Calcite"
    assert set(source.get("ABC3_hR10_167_a_b_e#2").species) == {"Ca", "C", "O"}
    assert set(source.get("ABC3_hR10_167_a_b_e").species) == {"Li", "Nb", "O"}
    with pytest.raises(UnknownIdentifier):
        source.get("ABC3_hR10_167_a_b_e#9")


def test_rock_salt_is_a_primitive_cell_with_its_operations():
    crystal = PrototypeSource().get("AB_cF8_225_a_b")
    assert sorted(crystal.species) == ["Cl", "Na"]
    assert crystal.rotations.shape == (48, 3, 3)


def test_example_list_spans_the_lattices():
    lines = EXAMPLE.read_text().splitlines()
    assert lines[0].startswith("#")
    identifiers = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert len(identifiers) == len(set(identifiers))
    crystals = [PrototypeSource().get(identifier) for identifier in identifiers]
    assert {crystal.space_group for crystal in crystals} <= set(SPACE_GROUPS_144)
    assert len({bravais_lattice(crystal.space_group) for crystal in crystals}) == 14


def test_chain_asks_in_order(tmp_path):
    first = _table(tmp_path / "a.jsonl", [_record(cell=[5, 5, 5, 90, 90, 90])])
    second = _table(tmp_path / "b.jsonl", [_record(), _record("other")])
    sources = open_sources([f"jsonl:{first}", f"jsonl:{second}", "prototypes"])
    assert sources.get("salt").cell[0] == 5
    assert sources.get("other").cell[0] == 4
    assert sources.get("A_cI2_229_a").space_group == 229
    with pytest.raises(UnknownIdentifier, match=r"b\.jsonl"):
        sources.get("nowhere")


def test_chain_does_not_hide_a_rejected_entry(tmp_path):
    bad = _table(tmp_path / "a.jsonl", [_record(cell=[5, 5, 5, 0, 90, 90])])
    good = _table(tmp_path / "b.jsonl", [_record()])
    with pytest.raises(Rejected, match="absurd cell"):
        open_sources([f"jsonl:{bad}", f"jsonl:{good}"]).get("salt")


def test_default_is_variable_then_file_then_prototypes(no_settings, monkeypatch):
    assert default_specs() == ["prototypes"]
    no_settings.write_text('sources = ["cif:/a", "prototypes"]\n')
    assert default_specs() == ["cif:/a", "prototypes"]
    monkeypatch.setenv("HXRD_SOURCES", "jsonl:/b , prototypes")
    assert default_specs() == ["jsonl:/b", "prototypes"]
    monkeypatch.setenv("HXRD_SOURCES", " ,")
    assert default_specs() == ["cif:/a", "prototypes"]


@pytest.mark.parametrize("text", ["sources = 3", "sources = [", 'source = ["prototypes"]', "sources = [1]"])
def test_broken_configuration_is_an_input_error(no_settings, text):
    no_settings.write_text(text)
    with pytest.raises(InputError, match=r"config\.toml"):
        open_sources()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("icsd:/x", "cif:DIR, prototypes, jsonl:FILE"),
        ("cif", "cif:DIR"),
        ("cif:", "cif:DIR"),
        ("cif:/no/such/folder", "no such folder"),
        ("jsonl:/no/such/file", "no such file"),
        ("prototypes:x", "takes no path"),
        ("mp", "not available in this version"),
        ("optimade:https://example.org", "not available in this version"),
    ],
)
def test_impossible_sources_are_wrong_usage(spec, words):
    with pytest.raises(UsageError, match=words) as caught:
        open_sources([spec])
    assert "\n" not in str(caught.value)


def test_paths_of_the_wrong_kind_are_input_errors(tmp_path):
    file = _table(tmp_path / "t.jsonl", [_record()])
    empty = tmp_path / "empty"
    empty.mkdir()
    for spec in (f"cif:{file}", f"jsonl:{tmp_path}", f"cif:{empty}"):
        with pytest.raises(InputError):
            open_sources([spec])


def test_hint_for_the_whole_list_of_icsd_numbers_takes_seconds():
    identifiers = [str(number) for number in range(1, 138_302)]
    sources = open_sources(["prototypes"])
    start = time.perf_counter()
    unknown = [name for name in identifiers if isinstance(resolve(sources, name), UnknownIdentifier)]
    hint = icsd_hint(unknown, len(identifiers))
    assert time.perf_counter() - start < 10
    assert "--source cif:DIR" in hint
    assert "138301" in hint
    assert "\n" not in hint


@pytest.mark.parametrize(
    ("unknown", "n_identifiers"),
    [([], 10), (["1", "2"], 10), (["mp-1", "quartz", "salt"], 3), (["A_cI2_229_b"], 1)],
)
def test_no_hint_where_icsd_is_not_the_matter(unknown, n_identifiers):
    assert icsd_hint(unknown, n_identifiers) is None


def test_shared_table_opens_in_seconds_and_agrees(shared):
    start = time.perf_counter()
    source = JsonlSource(shared / "crystals.jsonl.gz")
    assert time.perf_counter() - start < 15
    assert len(source) == 31_824
    assert not source.bad_lines


def test_shared_lattices_are_ours(shared):
    with gzip.open(shared / "crystals.jsonl.gz", "rt") as stream:
        for line in stream:
            head = json.loads(line[: line.index('"structure_type"')].rstrip(", ") + "}")
            assert bravais_lattice(head["space_group"]) == head["bravais_lattice"], head["id"]


def test_shared_sample_round_trip(shared):
    source = JsonlSource(shared / "crystals.jsonl.gz")
    good = 0
    for index, identifier in enumerate(source.identifiers()):
        if index % 200:
            continue
        crystal = resolve(source, identifier)
        if isinstance(crystal, Rejected):
            continue
        good += 1
        assert crystal.identifier == identifier
        assert len(crystal.species) == len(crystal.positions) == len(crystal.b_iso)
        assert np.all(crystal.occupancy > 0)
    assert good > 150
