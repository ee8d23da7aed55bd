"""Columns of text, ``.xy`` and ``.xye``: 2θ, intensity and perhaps sigma.

Columns are separated by blanks, tabs, commas or semicolons; a decimal comma is understood where another
separator stands beside it. Empty lines and those that begin with ``# ! ; ' "`` or ``//`` are comments; text
before the first points is a header. A last line cut short is left out, and said; any other line that is no
point is an error, for numbers run together are those of the strongest peaks. A wavelength or probe is taken
only from a comment or header that labels it, as ``wavelength = 1.54`` or ``probe: neutron``.
"""

import gzip
import re
import zlib
from pathlib import Path

import numpy as np

from hxrd.errors import InputError
from hxrd.formats.pattern import MeasuredPattern, tidied

DESCRIPTION = "columns of 2θ, intensity and perhaps sigma (.xy, .xye, also .gz)"
SUFFIXES = (".xy", ".xye", ".xy.gz", ".xye.gz")
LARGEST_SIZE = 256 * 1024**2  # bytes, after decompression
MOST_COLUMNS = 3
MOST_LONE_NUMBERS = 5  # lines of one number that may stand before the columns: a count, a monitor
WAVELENGTHS = (0.05, 30.0)  # Å; anything else is no wavelength of powder diffraction

GZIP_MAGIC = b"\x1f\x8b"
COMMENT_MARKS = ("#", "!", ";", "'", '"', "//")
ENCODINGS_BY_MARK = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
CONTROL = re.compile(r"[\x00-\x08\x0e-\x19\x1b-\x1f]")  # text may hold tabs, form feeds, a DOS end mark
_COMMA_NUMBER = r"[+-]?\d+(?:,\d+)?(?:[eEdD][+-]?\d+)?"
DECIMAL_COMMA = re.compile(rf"{_COMMA_NUMBER}(?:\s*[;\s]\s*{_COMMA_NUMBER}){{1,2}}")
SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")
WAVELENGTH = re.compile(
    r"(?<![\w.])(?:wave[\s_-]*length|lambda|λ)\s*(?:[(\[][^)\]]*[)\]])?\s*[:=]\s*"
    r"(\d+(?:\.\d*)?|\.\d+)(?![\w.,]*\d)\s*(nm\b)?",
    re.IGNORECASE,
)
PROBE = re.compile(
    r"\b(?:probe|radiation)(?:[\s_-]*type)?\s*[:=]\s*[\"']?(neutrons?|x[\s-]?rays?)\b", re.IGNORECASE
)


def understands(path: Path) -> bool:
    """Tell by the suffix whether the file is one of columns."""
    return path.name.lower().endswith(SUFFIXES)


def read(path: Path) -> MeasuredPattern:
    """Read a file of two or three columns.

    Parameters
    ----------
    path : Path
        An existing file.

    Returns
    -------
    MeasuredPattern
        Degrees, sorted, at least 10 points.

    Raises
    ------
    InputError
        An empty, unreadable, truncated, binary or too large file; one column or more than three; a line
        among the points that is none; fewer than 10 points. One line that names the file.
    """
    try:
        header, points, notes = _split(_text(path))
        sigma = points[:, 2] if points.shape[1] == MOST_COLUMNS else None
        if sigma is not None and not np.all(sigma >= 0):
            sigma = None  # a third column that cannot be an uncertainty
        pattern = MeasuredPattern(
            points[:, 0], points[:, 1], sigma, _wavelength(header), _probe(header), _name(path), notes
        )
        return tidied(pattern)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _name(path: Path) -> str:
    suffix = max((one for one in SUFFIXES if path.name.lower().endswith(one)), key=len, default="")
    return path.name[: len(path.name) - len(suffix)] or path.name


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            raw.seek(0)
            if not packed:
                return raw.read(LARGEST_SIZE + 1)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return unpacked.read(LARGEST_SIZE + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError("its gzip compression is truncated or damaged; fetch the file again") from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})") from error


def _text(path: Path) -> str:
    content = _content(path)
    if len(content) > LARGEST_SIZE:
        raise InputError(f"is larger than {LARGEST_SIZE // 1024**2} MiB, which no powder pattern is")
    if not content.strip():
        raise InputError("is empty")
    encoding = next((name for mark, name in ENCODINGS_BY_MARK if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if CONTROL.search(text):
        raise InputError("is binary, not columns of text")
    return text.replace("\x1a", "")


def _numbers(line: str) -> list[float] | None:
    """Return the line's numbers, or None if something else stands in it."""
    if "," in line and DECIMAL_COMMA.fullmatch(line):
        line = line.replace(",", ".")
    fields = SEPARATOR.split(line.rstrip(",; \t"))
    try:
        return [float(field) for field in fields]
    except ValueError:
        pass
    try:
        return [float(field.upper().replace("D", "E")) for field in fields]  # Fortran doubles
    except ValueError:
        return None


def _split(text: str) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Return the comment and header lines, the points of shape (n, 2 or 3), and notes."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    header: list[str] = []
    rows: list[list[float]] = []
    notes: tuple[str, ...] = ()
    lone_numbers = 0
    for number, line in lines:
        values = None if line.startswith(COMMENT_MARKS) else _numbers(line)
        if line.startswith(COMMENT_MARKS) or (values is None and not rows):
            header.append(line)
        elif values is not None and len(values) == 1 and not rows:
            lone_numbers += 1
        elif values is not None and len(values) == (len(rows[0]) if rows else _n_columns(values, number)):
            rows.append(values)
        elif number == lines[-1][0]:
            notes = (f"the last line ({line[:40]!r}), no point, left out",)
        else:
            raise InputError(f"line {number} is not a point of {len(rows[0])} numbers: {line[:40]!r}")
    if not rows or lone_numbers > MOST_LONE_NUMBERS:
        alone = "one column; 2θ and intensity are needed" if lone_numbers else "no columns of numbers"
        raise InputError(f"has {alone}")
    return header, np.array(rows, dtype=np.float64), notes


def _n_columns(values: list[float], number: int) -> int:
    if len(values) > MOST_COLUMNS:
        raise InputError(f"line {number} has {len(values)} columns; 2θ, intensity and perhaps sigma are read")
    return len(values)


def _wavelength(header: list[str]) -> float | None:
    """Return the one wavelength in Å that the header labels; None if it names none or several."""
    found = set()
    for line in header:
        for match in WAVELENGTH.finditer(line):
            value = float(match[1]) * (10 if match[2] else 1)
            if WAVELENGTHS[0] <= value <= WAVELENGTHS[1]:
                found.add(round(value, 9))
    return found.pop() if len(found) == 1 else None


def _probe(header: list[str]) -> str | None:
    found = {
        "neutron" if match[1].lower().startswith("n") else "xray"
        for line in header
        for match in PROBE.finditer(line)
    }
    return found.pop() if len(found) == 1 else None
