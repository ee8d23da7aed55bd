"""The columns of a result: ranks, twins, sums and flags of every row."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from classified import CLASSES, columns, model_metadata, random_logits, table_of

from hxrd.classify.labels import Labels
from hxrd.classify.results import Columns
from hxrd.crystal.symmetry import (
    SPACE_GROUPS_144,
    bravais_lattice,
    crystal_system,
    extinction_group,
    merged_number,
    merged_symbol,
)


def test_the_columns_of_the_contract():
    table = table_of(columns(topk=2, logits=True), random_logits(3))
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
    table = table_of(columns(topk=4, classes=classes, temperature=1.7), logits)
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
    row = table_of(columns(topk=len(CLASSES)), logits).to_pylist()[0]
    assert row["space_group_1"] == 92
    assert row["symbol_1"] == "P4_1 2_1 2 | P4_3 2_1 2"
    assert row["probability_1"] == pytest.approx(1, abs=1e-6)
    ranked = [row[f"space_group_{rank}"] for rank in range(1, len(CLASSES) + 1)]
    assert 96 not in ranked
    assert 154 not in ranked
    assert ranked[-2:] == [None, None]  # two pairs leave two places over


def test_a_twin_that_is_no_class_is_still_named():
    row = table_of(columns(topk=1, classes=(144, 225)), [[5.0, 0.0]]).to_pylist()[0]
    assert (row["space_group_1"], row["symbol_1"]) == (144, "P3_1 | P3_2")


def test_probabilities_sum_to_one_over_all_entries():
    table = table_of(columns(topk=len(CLASSES)), random_logits())
    total = sum(np.nan_to_num(table[f"probability_{rank}"].to_numpy()) for rank in range(1, len(CLASSES) + 1))
    assert np.allclose(total, 1, atol=1e-6)


def test_flagged_rows_have_empty_predictions():
    logits = random_logits(3)
    logits[1] = np.nan
    table = table_of(columns(topk=2, logits=True), logits, flag=["", "not-finite", ""])
    rows = table.to_pylist()
    filled = {name for name, value in rows[1].items() if value is not None}
    assert filled == {"pattern", "source_id", "flag"}
    assert rows[1]["flag"] == "not-finite"
    assert None not in rows[0].values()


def test_low_confidence_is_flagged_but_predicted():
    logits = np.zeros((2, len(CLASSES)))
    logits[1, 0] = 50
    rows = table_of(columns(low_confidence=0.5), logits).to_pylist()
    assert [row["flag"] for row in rows] == ["low-confidence", ""]
    assert rows[0]["space_group_1"] is not None


def test_tasks_choose_the_columns():
    logits = random_logits(2)
    bravais = table_of(columns(task="bravais"), logits).column_names
    groups = table_of(columns(task="space-group", topk=1), logits).column_names
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
    described = model_metadata(task="bravais", classes=("cF", "hP", "aP"))
    made = Columns(described, Labels.of_model(described), topk=2)
    row = table_of(made, [[0.0, 3.0, 0.0]]).to_pylist()[0]
    assert row["bravais_lattice"] == "hP"
    assert row["bravais_probability"] == pytest.approx(np.e**3 / (np.e**3 + 2), rel=1e-5)
    others = set(row) - {"pattern", "source_id", "bravais_lattice", "bravais_probability", "flag"}
    assert all(row[name] is None for name in others)
