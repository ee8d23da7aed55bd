"""Identifier files: any piece of them at any time, and what is none is told."""

import errno
import hashlib
import io
import os
import sys
import threading
from pathlib import Path

import pytest

from hxrd.errors import InputError, UsageError
from hxrd.simulate import identifiers as identifiers_module
from hxrd.simulate.identifiers import IdentifierFile


def test_any_piece_of_an_identifier_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identifiers_module, "_ROWS_BETWEEN_PLACES", 7)
    names = [f"crystal {number} ü" for number in range(100)]
    lines = [line for name in names for line in ("", f"  {name}\t", "# no")]
    file = tmp_path / "ids.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    with IdentifierFile(file) as identifiers:
        assert len(identifiers) == 100
        assert identifiers.sha256 == hashlib.sha256("\n".join(names).encode()).hexdigest()
        for start, stop in [(0, 100), (0, 1), (99, 100), (6, 8), (50, 50), (41, 77), (3, 5)]:
            assert identifiers.read(start, stop) == names[start:stop]


def test_lines_parted_by_carriage_returns_alone_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_bytes(b"a\rb\r\r#c\rd")
    with IdentifierFile(file) as identifiers:
        assert identifiers.read(0, 3) == ["a", "b", "d"]
        assert identifiers.read(1, 2) == ["b"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a\nb\xff\n", "byte 3"),
        (b"a\n\0\n", "zero byte"),
        (b"\n# nothing\n", "no identifiers"),
        (b"x" * (identifiers_module.LONGEST_LINE + 1), "longer than"),
    ],
)
def test_what_is_no_identifier_file_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "ids.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=told):
        IdentifierFile(file)


def test_an_absent_identifier_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        IdentifierFile(tmp_path / "absent.txt")
    with pytest.raises(InputError, match="cannot be read"):
        IdentifierFile(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeder = threading.Thread(target=pipe.write_bytes, args=(b"a\nb\nc\n",))
    feeder.start()
    with IdentifierFile(pipe) as identifiers:
        feeder.join()
        assert (identifiers.read(1, 3), identifiers.read(0, 1)) == (["b", "c"], ["a"])


def test_a_full_temporary_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, content) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n")))
    with pytest.raises(InputError, match="TMPDIR"):
        IdentifierFile("-")


def test_an_identifier_file_that_changes_during_the_run_is_told(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("a\nb\n")
    with IdentifierFile(file) as identifiers:
        with file.open("a") as more:
            more.write("c\n")
        with pytest.raises(InputError, match="changed"):
            identifiers.read(0, 1)
