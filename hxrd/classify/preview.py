"""What a reader sees: the table of the first patterns and the summary."""

import os
import textwrap
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hxrd.classify.arrow import numbers, texts
from hxrd.classify.results import LOW_CONFIDENCE, Columns
from hxrd.crystal.symmetry import bravais_lattice, merged_number, symbol

SHOWN = 20  # patterns
LEAST_CANDIDATE_WIDTH = 30
LONGEST_SOURCE = 28
RIGHT, WRONG = "✓", "✗"
GAP = "   "
HARD_SPACE = "\N{NO-BREAK SPACE}"  # within a symbol: lines are not broken there

# By space group; 0 is none.
_MERGED = np.array([0, *map(merged_number, range(1, 231))], np.int16)
_LATTICES = texts(["", *map(bravais_lattice, range(1, 231))])


@dataclass
class Summary:
    """Counts over all patterns of a run, and how often the known truth was found.

    Enantiomorphic twins count as one group.

    Parameters
    ----------
    columns : Columns
        Of the result.
    """

    columns: Columns
    n_patterns: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    n_known: int = 0
    n_first: int = 0
    n_among: int = 0
    n_lattice: int = 0

    def update(self, table: pa.Table, space_group: NDArray[np.int16]) -> None:
        """Count the rows of a table, whose true groups (0 where unknown) are `space_group`, shape (n,)."""
        self.n_patterns += table.num_rows
        counts = {item["values"]: item["counts"] for item in table["flag"].value_counts().to_pylist()}
        flags = {flag: count for flag, count in counts.items() if flag}
        self.flags.update(flags)
        known = np.asarray(space_group) > 0
        if flags.keys() - {LOW_CONFIDENCE}:
            known &= np.array([flag in ("", LOW_CONFIDENCE) for flag in table["flag"].to_pylist()])
        if known.all():
            self._count_truths(table, space_group)
        elif known.any():
            self._count_truths(table.take(numbers(np.flatnonzero(known), pa.int64())), space_group[known])

    def _count_truths(self, table: pa.Table, space_group: NDArray[np.int16]) -> None:
        self.n_known += len(space_group)
        true = numbers(_MERGED[space_group], pa.int16())
        among = None
        for rank in range(1, self.columns.topk + 1):
            name = f"space_group_{rank}"
            if name not in table.column_names:
                break
            hit = pc.equal(table[name], true)
            self.n_first += _count(hit) if rank == 1 else 0
            among = hit if among is None else pc.or_kleene(among, hit)
        self.n_among += 0 if among is None else _count(among)
        if "bravais_lattice" in table.column_names:
            right = pc.equal(table["bravais_lattice"], _LATTICES.take(numbers(space_group, pa.int16())))
            self.n_lattice += _count(right)

    @property
    def n_classified(self) -> int:
        """Patterns with a prediction."""
        return self.n_patterns - sum(count for flag, count in self.flags.items() if flag != LOW_CONFIDENCE)

    def line(self) -> str:
        """Return all of it in one line."""
        parts = [f"{self.n_classified} of {self.n_patterns} patterns classified"]
        parts += [f"{count} {flag}" for flag, count in sorted(self.flags.items())]
        if self.n_known:
            parts.append(f"true group known for {self.n_known}: {', '.join(self._scores())}")
        return "; ".join(parts)

    def _scores(self) -> list[str]:
        scores = []
        if self.columns.task != "bravais" and self.columns.labels.entries is not None:
            scores = [f"first {self.n_first / self.n_known:.1%}"]
            if self.columns.topk > 1:
                scores.append(f"among the first {self.columns.topk} {self.n_among / self.n_known:.1%}")
        if self.columns.task != "space-group":
            scores.append(f"Bravais lattice {self.n_lattice / self.n_known:.1%}")
        return scores


def _count(hits: pa.ChunkedArray) -> int:
    return pc.sum(hits).as_py() or 0  # null where all are


def rank_of_truth(table: pa.Table, row: int, number: int, topk: int) -> int | None:
    """Return the place (from 1) of the true group or its twin among a row's entries, or None."""
    true = merged_number(number)
    for rank in range(1, topk + 1):
        name = f"space_group_{rank}"
        if name in table.column_names and table[name][row].as_py() == true:
            return rank
    return None


def first_rows(table: pa.Table, space_group: NDArray[np.int16], columns: Columns, width: int) -> str:
    """Return a table for people.

    Parameters
    ----------
    table : pyarrow.Table
        Rows to show.
    space_group : ndarray, shape (n,)
        The truth; 0 where unknown. It is marked where it is known.
    columns : Columns
        Of the result.
    width : int
        Of the terminal; the ranked symbols go on in a further line where it is narrow.

    Returns
    -------
    str
        Several lines, aligned, without a newline at the end.
    """
    rows = [_texts(table, row, int(number), columns) for row, number in enumerate(space_group)]
    names = [name for name in rows[0] if any(texts[name] for texts in rows)]
    headings = {name: name for name in names}
    widths = {name: max(len(name), *(len(texts[name]) for texts in rows)) for name in names}
    room = max(width - sum(widths.values()) - 2 * len(widths), LEAST_CANDIDATE_WIDTH)
    heading = "likeliest space groups" if columns.task != "bravais" and columns.labels.entries else ""
    lines = _aligned(headings, widths, heading, room)
    ranked = _candidates(table, columns, room)
    for row, candidates in zip(rows, ranked, strict=True):
        lines += _aligned(row, widths, candidates, room)
    return "\n".join(line.rstrip() for line in lines)


def _texts(table: pa.Table, row: int, number: int, columns: Columns) -> dict[str, str]:
    values: dict[str, Any] = {name: table[name][row].as_py() for name in table.column_names}
    lattice, likely = values.get("bravais_lattice"), values.get("bravais_probability")
    return {
        "pattern": str(values["pattern"]),
        "source": _cut(values["source_id"]),
        "truth": _truth(table, row, number, columns, lattice) if number else "",
        "lattice": f"{lattice} {likely:.2f}" if lattice else "",
        "flag": values["flag"],
    }


def _candidates(table: pa.Table, columns: Columns, room: int) -> list[str]:
    """Return each row's ranked symbols in one text, in columns where they fit side by side."""
    ranks = [rank for rank in range(1, columns.topk + 1) if f"symbol_{rank}" in table.column_names]
    cells = [[_candidate(table, row, rank) for rank in ranks] for row in range(table.num_rows)]
    widths = [max(len(texts[place]) for texts in cells) for place in range(len(ranks))]
    if sum(widths) + len(GAP) * (len(widths) - 1) <= room:
        cells = [
            [text.ljust(width, HARD_SPACE) for text, width in zip(texts, widths, strict=True)]
            for texts in cells
        ]
    return [GAP.join(text for text in texts if text) for texts in cells]


def _candidate(table: pa.Table, row: int, rank: int) -> str:
    name = table[f"symbol_{rank}"][row].as_py()
    if name is None:
        return ""
    return f"{name} {table[f'probability_{rank}'][row].as_py():.2f}".replace(" ", HARD_SPACE)


def _cut(text: str) -> str:
    if len(text) <= LONGEST_SOURCE:
        return text
    kept = LONGEST_SOURCE - 1
    return "…" + text[-kept:] if os.sep in text else text[:kept] + "…"


def _truth(table: pa.Table, row: int, number: int, columns: Columns, lattice: str | None) -> str:
    of_lattice = columns.task == "bravais" or columns.labels.entries is None
    name = bravais_lattice(number) if of_lattice else symbol(number)
    if table["flag"][row].as_py() not in ("", LOW_CONFIDENCE):  # no prediction to mark
        return f"   {name}"
    if of_lattice:
        return f"{RIGHT if lattice == name else WRONG}  {name}"
    rank = rank_of_truth(table, row, number, columns.topk)
    return f"{f'{RIGHT}{rank}' if rank else f'{WRONG} '} {name}"


def _aligned(texts: dict[str, str], widths: dict[str, int], candidates: str, room: int) -> list[str]:
    left = "  ".join(texts[name].ljust(width) for name, width in widths.items())
    pieces = _wrapped(candidates, room)
    indent = " " * len(left)
    return [f"{left if place == 0 else indent}  {piece}" for place, piece in enumerate(pieces)]


def _wrapped(text: str, room: int) -> list[str]:
    lines = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False)
    return [line.replace(HARD_SPACE, " ") for line in lines] or [""]
