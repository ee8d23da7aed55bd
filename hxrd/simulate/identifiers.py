"""Files of identifiers, read piece by piece however many they hold."""

import hashlib
import os
import stat
import sys
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from hxrd.errors import InputError, UsageError
from hxrd.sources.spool import temporary_copy

STDIN = "-"
LONGEST_LINE = 2**20  # bytes; whatever has a longer one is no list of names
_ROWS_BETWEEN_PLACES = 1024  # identifiers that are skipped at most to find one
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Identifiers(Protocol):
    """The identifiers of a run in order, asked for piece by piece."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    @property
    def sha256(self) -> str:
        """Digest of all of them, joined by line feeds."""
        ...

    def read(self, start: int, stop: int) -> list[str]:
        """Return identifiers `start` to `stop` (excluded)."""
        ...


class IdentifierFile:
    """A text file with one identifier a line, stripped; empty lines and comments (``#``) are skipped.

    The file is read once to check, count and digest it, in memory that does not grow with it, and then
    again piece by piece. What cannot be read twice (stdin, a pipe) is copied to a temporary file first.
    Use it as a context manager.

    Parameters
    ----------
    file : path
        In UTF-8, or ``-`` for stdin.

    Attributes
    ----------
    sha256 : str
        Digest of the identifiers, joined by line feeds.

    Raises
    ------
    UsageError
        The file does not exist.
    InputError
        It is a directory, cannot be read, is not text, or holds no identifier.
    """

    def __init__(self, file: str | Path) -> None:
        self.name = "stdin" if str(file) == STDIN else str(file)
        self._stream = _rereadable(file, self.name)
        try:
            self._places = [(0, 0)]  # (identifiers before, byte offset) of some lines
            self._count, self.sha256 = self._scan()
            self._state = self._stamp()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Self:
        """Return the open file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read any more."""
        self._stream.close()

    def read(self, start: int, stop: int) -> list[str]:
        """Return identifiers `start` to `stop` (excluded).

        Raises
        ------
        InputError
            The file has changed since it was opened, or cannot be read any more.
        """
        row, offset = self._places[bisect_right(self._places, (start, sys.maxsize)) - 1]
        found: list[str] = []
        for _, identifiers in self._lines(offset):
            found += identifiers[max(start - row, 0) : max(stop - row, 0)]
            row += len(identifiers)
            if row >= stop:
                break
        if self._stamp() != self._state:
            raise InputError(
                f"{self.name} changed while it was in use: rerun with --resume once it is restored"
            )
        return found

    def _scan(self) -> tuple[int, str]:
        """Read the whole file once; note where some lines begin."""
        count, digest = 0, hashlib.sha256()
        for offset, identifiers in self._lines(0):
            if count >= self._places[-1][0] + _ROWS_BETWEEN_PLACES:
                self._places.append((count, offset))
            for identifier in identifiers:
                digest.update(b"\n" + identifier.encode() if count else identifier.encode())
                count += 1
        if not count:
            raise InputError(f"{self.name} holds no identifiers: write one a line")
        return count, digest.hexdigest()

    def _lines(self, offset: int) -> Iterator[tuple[int, list[str]]]:
        """Yield the byte offset of each line from `offset` on, and the identifiers in it.

        A line ends with a line feed here and holds several where carriage returns part them.
        """
        try:
            self._stream.seek(offset)
            while line := self._stream.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise InputError(
                        f"{self.name} is no identifier file: a line is longer than {LONGEST_LINE} bytes"
                    )
                yield offset, self._identifiers(line, offset)
                offset += len(line)
        except OSError as error:
            raise _unreadable(self.name, error) from error

    def _identifiers(self, line: bytes, offset: int) -> list[str]:
        if offset == 0:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.name} is no identifier file: it is not text (byte {offset + error.start})"
            ) from error
        if "\0" in text:
            raise InputError(f"{self.name} is no identifier file: it is not text (it holds a zero byte)")
        pieces = [piece.strip() for piece in text.splitlines()]
        return [piece for piece in pieces if piece and not piece.startswith("#")]

    def _stamp(self) -> tuple[int, int]:
        state = os.fstat(self._stream.fileno())
        return state.st_size, state.st_mtime_ns


def _rereadable(file: str | Path, name: str) -> IO[bytes]:
    """Open the file, or a temporary copy of what is no regular file."""
    if str(file) == STDIN:
        return _copied(sys.stdin.buffer, name)
    try:
        stream = Path(file).open("rb")  # noqa: SIM115  (returned open)
    except FileNotFoundError as error:
        raise UsageError(f"identifier file {name} does not exist") from error
    except OSError as error:
        raise _unreadable(name, error) from error
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    with stream:
        return _copied(stream, name)


def _copied(stream: IO[bytes], name: str) -> IO[bytes]:
    try:
        return temporary_copy(stream, name)
    except OSError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError) -> InputError:
    return InputError(f"identifier file {name} cannot be read ({error.strerror})")
