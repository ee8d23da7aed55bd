"""What a reader sees: the summary and the table of the first patterns."""

import numpy as np
from classified import CLASSES, batch_of, columns, random_logits, table_of

from hxrd.classify.preview import Summary, first_rows


def test_summary_counts_truths_with_twins_merged():
    logits = np.full((4, len(CLASSES)), -9.0)
    for row, number in enumerate((92, 225, 227, 2)):
        logits[row, CLASSES.index(number)] = 9
    logits[2, CLASSES.index(229)] = 5
    made = columns(topk=2)
    batch = batch_of(made, logits, flag=["", "", "", "flat"], space_group=[96, 225, 229, 2])
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
    lines = first_rows(table_of(made, logits), truth, made, width=160).splitlines()
    assert len(lines) == 4
    assert "✓1 Fm-3m" in lines[1]
    assert "✓2 R-3m" in lines[2]
    assert "✓" not in lines[3]
    assert "cF 1.00" in lines[1]


def test_a_narrow_terminal_wraps_candidates_only():
    made = columns(topk=5)
    table = table_of(made, random_logits(2))
    text = first_rows(table, np.zeros(2, np.int16), made, width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert len(text.splitlines()) > 3
    joined = " ".join(text.split())
    for rank in range(1, 6):
        assert table[f"symbol_{rank}"][0].as_py() in joined
