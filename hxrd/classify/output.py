"""Result files: Parquet, CSV or JSON lines, gathered part by part so that a killed run can go on."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from hxrd.classify.arrow import texts
from hxrd.errors import HxrdError, InputError, UsageError

SUFFIXES = (".parquet", ".csv", ".jsonl")
ROW_GROUP = 16_384  # rows held in memory as they are written
_RUN_FILE = "run.json"
_LOCK_FILE = "lock"


def check_output(path: Path, *, force: bool, resume: bool = False) -> None:
    """Refuse an output that cannot be written, before any work.

    Raises
    ------
    UsageError
        Its suffix is unknown or its folder does not exist.
    HxrdError
        It exists, and neither `force` nor (with an unfinished run beside it) `resume` is given.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"-o {path}: the suffix must be one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"-o {path}: folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise HxrdError(f"{path} is a folder; give the output another name")
    if path.exists() and not force:
        hint = "it is finished, so there is nothing to resume; " if resume else ""
        raise HxrdError(f"{path} exists; {hint}give --force to overwrite it, or another name")


class ResultStore:
    """The rows of a run in progress: one small Parquet file for each stretch of patterns.

    They lie in the folder ``NAME.part.d`` beside the output; each appears whole or not at all. `finish` joins
    them into ``NAME.part``, renames that, and removes the folder.

    Parameters
    ----------
    path : Path
        The output.
    run : mapping
        All that decides the rows (inputs, model, options); plain JSON values.
    schema : pyarrow.Schema
        Of the rows.
    start : int
        The first pattern of the run.
    resume : bool
        Go on where an interrupted run of the same description stopped.
    force : bool
        Overwrite an existing output.

    Raises
    ------
    HxrdError
        The output exists, another process writes it, or the interrupted run was a different one.
    """

    def __init__(
        self,
        path: Path,
        run: Mapping[str, Any],
        schema: pa.Schema,
        *,
        start: int = 0,
        resume: bool = False,
        force: bool = False,
    ):
        check_output(path, force=force, resume=resume)
        self.path = path
        self._schema = schema
        self._folder = path.with_name(path.name + ".part.d")
        self._parts: list[Path] = []
        self._folder.mkdir(exist_ok=True)
        self._lock = filelock.FileLock(self._folder / _LOCK_FILE)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise HxrdError(
                f"another process is writing {path}; wait for it, or give another name"
            ) from error
        try:
            self.next_pattern = self._begin(json.loads(json.dumps(dict(run))), start, resume)
        except BaseException:
            self.close()
            raise

    def _begin(self, run: dict[str, Any], start: int, resume: bool) -> int:
        description = self._folder / _RUN_FILE
        if resume and description.exists():
            if _read_json(description) != run:
                raise HxrdError(
                    f"{self._folder} holds an interrupted run of other inputs, model or options; "
                    "repeat its command with --resume, or leave --resume out to start afresh"
                )
            return self._find_parts(start)
        for leftover in self._folder.iterdir():
            if leftover.name != _LOCK_FILE:
                leftover.unlink()
        _write_whole(description, json.dumps(run).encode())
        return start

    def _find_parts(self, start: int) -> int:
        """Adopt the unbroken chain of parts that begins at `start`; return where it ends."""
        spans = {}
        for part in self._folder.glob("rows-*.parquet"):
            first, stop = (int(number) for number in part.stem.split("-")[1:])
            spans[first] = (stop, part)
        while start in spans:
            start, part = spans[start]
            self._parts.append(part)
        return start

    def append(self, table: pa.Table) -> None:
        """Add the rows of consecutive patterns; when this returns they outlive a kill."""
        if not table.num_rows:
            return
        stop = self.next_pattern + table.num_rows
        part = self._folder / f"rows-{self.next_pattern:012d}-{stop:012d}.parquet"
        partial = part.with_suffix(".partial")
        pyarrow.parquet.write_table(table, partial)
        os.replace(partial, part)
        self._parts.append(part)
        self.next_pattern = stop

    def tables(self) -> Iterator[pa.Table]:
        """Yield all rows so far, in order, part by part.

        Raises
        ------
        InputError
            A part is damaged.
        """
        for part in self._parts:
            try:
                with pyarrow.parquet.ParquetFile(part) as file:  # `read_table` imports pandas
                    table = file.read()
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{part} is damaged; run again without --resume") from error
            yield table

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the output and remove the parts.

        Parameters
        ----------
        metadata : mapping of str to str
            File metadata (Parquet only: the other two formats have no place for them).
        """
        partial = self.path.with_name(self.path.name + ".part")
        write_tables(self.tables(), self._schema, partial, self.path.suffix, metadata)
        os.replace(partial, self.path)
        shutil.rmtree(self._folder)
        self._lock.release()

    def close(self) -> None:
        """Let go of the lock; the parts stay for a resumed run."""
        if self._lock.is_locked:
            self._lock.release()

    def discard(self) -> None:
        """Remove the parts: there is nothing worth keeping."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self.close()


def write_tables(
    tables: Iterator[pa.Table], schema: pa.Schema, path: Path, suffix: str, metadata: Mapping[str, str]
) -> None:
    """Write tables one after the other to a file of the format that `suffix` names."""
    if suffix == ".parquet":
        _write_parquet(tables, schema.with_metadata(dict(metadata)), path)
    elif suffix == ".csv":
        _write_csv(tables, schema, path)
    else:
        with open(path, "wb") as file:
            for table in tables:
                for row in _plain_rows(table):
                    file.write(msgspec.json.encode(row) + b"\n")


def _write_parquet(tables: Iterator[pa.Table], schema: pa.Schema, path: Path) -> None:
    held: list[pa.Table] = []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            held.append(table.cast(schema))
            if sum(piece.num_rows for piece in held) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(held))
                held = []
        if held:
            writer.write_table(pa.concat_tables(held))


def _write_csv(tables: Iterator[pa.Table], schema: pa.Schema, path: Path) -> None:
    lists = [field.name for field in schema if pa.types.is_list(field.type)]
    for name in lists:  # CSV has no lists: they become JSON text
        position = schema.get_field_index(name)
        schema = schema.set(position, pa.field(name, pa.string()))
    with pyarrow.csv.CSVWriter(path, schema) as writer:
        for table in tables:
            for name in lists:
                position = table.schema.get_field_index(name)
                rows = table[name].to_pylist()
                blank = np.array([row is None for row in rows], dtype=bool)
                table = table.set_column(position, name, texts([json.dumps(row) for row in rows], blank))
            writer.write_table(table.cast(schema))


def _plain_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield rows as dicts; float32 as the shortest decimals that mean the same float32."""
    columns = {}
    for field in table.schema:
        values = table[field.name].to_pylist()
        if pa.types.is_float32(field.type):
            values = [None if value is None else float(f"{value:.9g}") for value in values]
        columns[field.name] = values
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
