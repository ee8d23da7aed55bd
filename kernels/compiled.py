"""How the Numba kernels are compiled: without the GIL, and kept on disk until a kernel's source changes.

Numba is imported with the first kernel, not with this module, so that a job too small to be worth it
(`worth_compiling`) starts without.
"""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL_JOB = 200
"""Patterns below which NumPy is quicker than to import Numba, and far quicker than to compile."""

_FOLDER = Path(__file__).resolve().parent


def worth_compiling(n_patterns: int) -> bool:
    """Tell whether a job is to be done by compiled kernels rather than by their equals in NumPy.

    It depends on the job alone, not on what was compiled before, so that the same job gives the same numbers.

    Parameters
    ----------
    n_patterns : int
        Of the whole job.
    """
    return n_patterns >= SMALL_JOB


def can_compile() -> bool:
    """Tell whether Numba compiles here: NUMBA_DISABLE_JIT forbids it."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")


def must_compile(kernel: str) -> bool:
    """Tell whether a kernel, such as ``powder.patterns``, has no compiled code on disk yet."""
    _forget_stale_code()
    cache = _FOLDER / "__pycache__"
    elsewhere = "NUMBA_CACHE_DIR" in os.environ or not os.access(cache, os.W_OK)
    return not elsewhere and not any(cache.glob(f"{kernel}-*.nbi"))


def compiled(kernel: Callable[..., Any]) -> Any:
    """Decorate a kernel; divisions are not checked for zero."""
    return _njit(kernel, fastmath=False)


def compiled_fastmath(kernel: Callable[..., Any]) -> Any:
    """Decorate an inner loop that is to become vector code: its sums may be taken in any order.

    What keeps such a loop from it: an index of the form `array[first + i]` (take a slice before the loop),
    `min` and `max` of floats (write `a if a < b else b`), and a Python float among single-precision numbers.
    """
    return _njit(kernel, fastmath=True)


def _njit(kernel: Callable[..., Any], fastmath: bool) -> Any:
    from numba import njit

    _forget_stale_code()
    return njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)(kernel)


@functools.cache
def _forget_stale_code() -> None:
    """Drop compiled code when any source here has changed: Numba itself looks at one file at a time."""
    sources = (file.read_bytes() for file in sorted(_FOLDER.glob("*.py")))
    digest = hashlib.sha256(b"".join(text for text in sources if b"import triton" not in text)).hexdigest()
    cache = _FOLDER / "__pycache__"
    stamp = cache / "kernels.sha256"
    try:
        if stamp.is_file() and stamp.read_text(encoding="ascii") == digest:
            return
        for file in cache.glob("*.nb[ic]"):  # indices and code
            file.unlink(missing_ok=True)
        cache.mkdir(exist_ok=True)
        stamp.write_text(digest, encoding="ascii")
    except OSError:
        return  # an installation that cannot be written is not edited either
